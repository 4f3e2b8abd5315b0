"""The database of the service: its tables and rows, in a PostgreSQL on a free loopback port."""

from __future__ import annotations

import secrets
import socket
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import asyncpg  # pyright: ignore[reportMissingTypeStubs]

from . import postgresql

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
def running() -> Generator[Database]:
    """Start a PostgreSQL with its own defaults, and stop and remove it in the end.

    Raises `SystemExit` if PostgreSQL is not installed, and `RuntimeError` if it does not start.
    """
    programs = postgresql.programs()
    if programs is None:
        raise SystemExit(
            "PostgreSQL is not installed: no initdb under /usr/lib/postgresql/*/bin or on PATH; "
            "on Debian: apt-get install postgresql"
        )
    password = secrets.token_hex()
    with TemporaryDirectory(prefix="sdax-postgresql-") as folder:
        cluster = postgresql.Cluster(programs, folder)
        password_file = Path(folder, "password")
        password_file.write_text(password, encoding="utf-8")
        cluster.own(password_file)
        cluster.initialize("-U", "service", "-A", "scram-sha-256", f"--pwfile={password_file}")
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = str(listener.getsockname()[1])
        with cluster.serving(f"-h 127.0.0.1 -p {port} -k ''"):
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


def _version(programs: Path) -> str:
    # "postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)"
    return subprocess.check_output([programs / "postgres", "--version"], text=True).split()[2]
