"""A PostgreSQL of our own: in a temporary directory, on a free loopback port, gone afterwards."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import asyncpg  # pyright: ignore[reportMissingTypeStubs]

CUSTOMERS = 1_000

SCHEMA = """
CREATE TABLE flags (name text PRIMARY KEY, enabled boolean NOT NULL);
CREATE TABLE customers (customer_id integer PRIMARY KEY, discount_percent integer NOT NULL);
CREATE TABLE baskets (
    customer_id integer NOT NULL REFERENCES customers,
    product text NOT NULL,
    quantity integer NOT NULL,
    price_cents integer NOT NULL,
    PRIMARY KEY (customer_id, product)
);
CREATE TABLE orders (
    order_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    customer_id integer NOT NULL REFERENCES customers,
    cents integer NOT NULL
);
"""

FLAGS = {"discounts": True, "new_checkout": False, "gift_wrap": True}


@dataclass(frozen=True)
class Database:
    """Where the server is, as the environment of a client, and which one it is."""

    environment: dict[str, str]
    version: str

    async def connect(self) -> Any:
        """Open a connection (asyncpg)."""
        return await asyncpg.connect(
            host=self.environment["PGHOST"],
            port=int(self.environment["PGPORT"]),
            user=self.environment["PGUSER"],
            password=self.environment["PGPASSWORD"],
            database=self.environment["PGDATABASE"],
        )


def discount_of(customer_id: int) -> int:
    """Return the discount of a customer in percent."""
    return customer_id % 20


def basket_of(customer_id: int) -> list[tuple[str, int, int]]:
    """Return what a customer has in the basket: product, quantity, and price in cents."""
    return [
        (f"product {number}", number % 3 + 1, 100 * number + customer_id)
        for number in range(1, customer_id % 5 + 3)
    ]


async def fill(database: Database) -> None:
    """Make the tables and their rows."""
    connection = await database.connect()
    try:
        await connection.execute(SCHEMA)
        everyone = range(1, CUSTOMERS + 1)
        for table, rows in {
            "flags": FLAGS.items(),
            "customers": ((customer, discount_of(customer)) for customer in everyone),
            "baskets": ((customer, *item) for customer in everyone for item in basket_of(customer)),
        }.items():
            await connection.copy_records_to_table(table, records=rows)
        await connection.execute("ANALYZE")
    finally:
        await connection.close()


@contextmanager
def postgresql() -> Generator[Database]:
    """Start a PostgreSQL with its own defaults, and stop and remove it in the end.

    Started as root, it runs as the user `postgres` (PostgreSQL itself refuses to run as root).
    Raises `SystemExit` if PostgreSQL is not installed or does not start.
    """
    programs = _programs()
    as_user: dict[str, Any] = {}
    with TemporaryDirectory(prefix="sdax-postgresql-") as folder:
        if os.geteuid() == 0:
            shutil.chown(folder, "postgres", "postgres")
            as_user = {"user": "postgres", "group": "postgres", "extra_groups": []}

        def run(program: str, *arguments: str) -> None:
            command = [str(programs / program), "-D", f"{folder}/data", *arguments]
            with Path(f"{folder}/output").open("w+") as output:
                status = subprocess.call(
                    command, stdout=output, stderr=subprocess.STDOUT, cwd=folder, **as_user
                )
                output.seek(0)
                if status != 0:
                    log = Path(f"{folder}/log")
                    said = output.read() + (log.read_text() if log.exists() else "")
                    raise SystemExit(f"{' '.join(command)} ended with status {status}:\n{said}")

        password = secrets.token_hex()
        password_file = Path(folder, "password")
        password_file.write_text(password)
        if as_user:
            shutil.chown(password_file, "postgres", "postgres")
        run("initdb", "-U", "service", "-A", "scram-sha-256", f"--pwfile={password_file}",
            "-E", "UTF8", "--locale=C", "--no-sync")  # fmt: skip
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = str(listener.getsockname()[1])
        run("pg_ctl", "start", "-w", "-l", f"{folder}/log", "-o", f"-h 127.0.0.1 -p {port} -k ''")
        try:
            yield Database(
                {
                    "PGHOST": "127.0.0.1",
                    "PGPORT": port,
                    "PGUSER": "service",
                    "PGPASSWORD": password,
                    "PGDATABASE": "postgres",
                },
                _version(programs),
            )
        finally:
            run("pg_ctl", "stop", "-w", "-m", "fast")


def _programs() -> Path:
    """Return the directory of PostgreSQL's programs: the newest of Debian's, or one on PATH."""
    packaged = Path("/usr/lib/postgresql").glob("*/bin/initdb")
    newest = max(packaged, key=lambda path: float(path.parts[-3]), default=None)
    found = newest or shutil.which("initdb")
    if found is None:
        raise SystemExit(
            "PostgreSQL is not installed: no initdb under /usr/lib/postgresql/*/bin or on PATH; "
            "on Debian: apt-get install postgresql"
        )
    return Path(found).parent


def _version(programs: Path) -> str:
    # "postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)"
    return subprocess.check_output([programs / "postgres", "--version"], text=True).split()[2]
