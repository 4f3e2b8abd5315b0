"""How many requests does an endpoint serve, written by hand and with sdax, and how fast?

    python benchmarks/throughput.py [--seconds 5] [--rounds 7] [--connections 32] [--loop uvloop]

wrk loads the endpoint of `service/`, with a real PostgreSQL, uvicorn and Starlette. The program
needs the extra `bench`, PostgreSQL and wrk (on Debian: apt-get install postgresql wrk). First every
variant must answer correctly. Then the variants are loaded in turn. At the end clients hang up, and
nothing may be left of them. The program prints the median round of each variant and writes it to
`results/service.json`, where it replaces the result of the same Python, loop and number of
connections.
"""

from __future__ import annotations

import argparse
import asyncio
import platform
import secrets
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from measurements import keep
from sdax.bench.contestants import engines
from service.database import CUSTOMERS, Database, basket_of, discount_of, fill, running
from service.hang_up import Aftermath, hang_up_at_every_level
from service.launch import BY_HAND, COMPILED, VARIANTS, Server, pinned, serving, shared_out
from service.load import Load, Round, measure
from service.load import version as wrk_version
from service.work import sign

RESULTS = Path(__file__).parent / "results" / "service.json"
PACKAGES = ("asyncpg", "httptools", "starlette", "uvicorn", "sdax")
WARM_UP = 2  # seconds

Rounds = dict[str, list[Round]]


def check_answers(server: Server, secret: bytes) -> None:
    """Compare answers with the rows. Raise `SystemExit` if an answer is wrong."""
    wanted: dict[str, tuple[int, Any]] = {
        sign(secret, 1)[:-1] + "_": (401, {"error": "forged token"}),
        sign(secret, CUSTOMERS + 1): (404, {"error": f"no customer {CUSTOMERS + 1}"}),
        "": (401, {"error": "malformed token"}),
    }
    for customer in range(1, CUSTOMERS + 1, CUSTOMERS // 40):
        basket = basket_of(customer)
        cents = sum(quantity * price for _, quantity, price in basket)
        answer = {
            "customer": customer,
            "products": sorted(product for product, _, _ in basket),
            "cents": cents * (100 - discount_of(customer)) // 100,
        }
        wanted[sign(secret, customer)] = (200, answer)
    for token, expected in wanted.items():
        got = server.ask("POST", "/orders", token)
        if got != expected:
            raise SystemExit(f"{server.variant.name}: got {got}, expected {expected}")


async def check_orders(servers: Sequence[Server], database: Database) -> None:
    """Check that there is an order for every answer, and no other order.

    Only a commit whose client had hung up may have an order without an answer. Raises `SystemExit`
    if the check fails.
    """
    states = [await asyncio.to_thread(server.settle) for server in servers]
    connection = await database.connect()
    orders: int = await connection.fetchval("SELECT count(*) FROM orders")
    await connection.close()
    answered = sum(state["answered"] for state in states)
    cancelled = sum(state["cancelled"] for state in states)
    if not answered <= orders <= answered + cancelled:
        raise SystemExit(f"{orders} orders for {answered} answers and {cancelled} cancellations")


def load_in_turn(servers: Sequence[Server], load: Load, rounds: int, seconds: int) -> Rounds:
    """Load every server once in each round, in a different order each time."""
    for server in servers:
        measure(load, server, WARM_UP)
    measured: Rounds = {server.variant.name: [] for server in servers}
    for number in range(rounds):
        turn = number % len(servers)
        for server in (*servers[turn:], *servers[:turn]):
            result = measure(load, server, seconds)
            measured[server.variant.name].append(result)
            print(
                f"round {number + 1}/{rounds}  {server.variant.name:16} "
                f"{result.requests_per_second:7.0f} requests/s",
                file=sys.stderr,
                flush=True,
            )
    return measured


def summarize(measured: Rounds) -> dict[str, dict[str, Any]]:
    """Return the median round of each variant, and the median of its ratios to the rounds of the
    variant by hand."""
    by_hand = measured[BY_HAND.name]
    return {
        name: {
            **{key: round(median(asdict(each)[key] for each in own), 2) for key in asdict(own[0])},
            "ratio_to_by_hand": round(
                median(
                    each.requests_per_second / other.requests_per_second
                    for each, other in zip(own, by_hand, strict=True)
                ),
                3,
            ),
            "rounds": len(own),
        }
        for name, own in measured.items()
    }


def commit() -> str:
    """Return which commit of the checkout this is, or "unknown" outside of one."""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"],
        cwd=Path(__file__).parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=False,
    )
    return described.stdout.strip() or "unknown"


def report(rows: Sequence[dict[str, Any]]) -> None:
    """Print a table."""
    print(f"{'':16}{'requests/s':>12}{'p50 ms':>9}{'p99 ms':>9}{'p99.9 ms':>10}{'ratio':>8}")
    for row in rows:
        print(
            f"{row['variant']:16}{row['requests_per_second']:12.0f}{row['p50_ms']:9.2f}"
            f"{row['p99_ms']:9.2f}{row['p999_ms']:10.2f}{row['ratio_to_by_hand']:8.3f}"
        )
    for row in rows:
        print(
            f"{row['variant']}: {row['hung_up']} clients hung up; "
            f"{row['leaked_connections']} connections leaked, "
            f"{row['skipped_cleanups']} cleanups skipped, {row['busy_backends']} backends busy"
        )


def end(number: int, frame: object) -> None:
    """Exit on a signal as on an error. Otherwise PostgreSQL would continue to run."""
    sys.exit(f"ended by {signal.Signals(number).name}")


def main() -> None:
    """Read the arguments, measure, and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=5, help="of load in each round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--loop", choices=["asyncio", "uvloop"], default="asyncio")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, end)
    wrk = wrk_version()
    secret = secrets.token_bytes()
    variants = list(VARIANTS)
    if "compiled" not in engines():
        variants.remove(COMPILED)
        print("without the compiled engine, which cannot be imported", file=sys.stderr)
    for_server, for_others = shared_out()

    with ExitStack() as stack:
        folder = stack.enter_context(TemporaryDirectory(prefix="sdax-throughput-"))
        tokens = Path(folder, "tokens")
        tokens.write_text(
            "\n".join(sign(secret, each + 1) for each in range(CUSTOMERS)), encoding="utf-8"
        )
        load = Load(tokens, args.connections)
        stack.enter_context(pinned(for_others))
        database = stack.enter_context(running())
        asyncio.run(fill(database))
        environment = {**database.environment, "SERVICE_SECRET": secret.hex()}
        with pinned(for_server):
            servers = [
                stack.enter_context(serving(variant, environment, args.loop))
                for variant in variants
            ]
        for server in servers:
            check_answers(server, secret)
        measured = summarize(load_in_turn(servers, load, args.rounds, args.seconds))
        aftermath: dict[str, Aftermath] = {
            server.variant.name: asyncio.run(hang_up_at_every_level(server, database, load))
            for server in servers
        }
        asyncio.run(check_orders(servers, database))

    rows = [
        {
            "variant": variant.name,
            **measured[variant.name],
            **asdict(aftermath[variant.name]),
            "connections": args.connections,
            "seconds": args.seconds,
            "loop": args.loop,
            "python": platform.python_version(),
            "versions": {
                **{package: version(package) for package in PACKAGES},
                "postgresql": database.version,
                "wrk": wrk,
            },
            "processors": len(for_server | for_others),
            "command": " ".join(["python benchmarks/throughput.py", *sys.argv[1:]]),
            "commit": commit(),
            "date": datetime.now(UTC).date().isoformat(),
        }
        for variant in variants
    ]
    report(rows)
    keep(RESULTS, rows, ("python", "loop", "connections"))


if __name__ == "__main__":
    main()
