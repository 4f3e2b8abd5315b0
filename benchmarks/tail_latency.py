"""How much shorter does `hedged` make the slowest answers, and what does it cost?

    python benchmarks/tail_latency.py [--rate 50] [--seconds 20] [--rounds 3] [--loop uvloop]

Here the endpoint of `service/` over a real PostgreSQL also asks an upstream service. That takes 20
ms to answer, and 20 times as long for 2 % of the requests. Three variants of the endpoint are
loaded in turn, at a fixed rate: by hand, with sdax, and with sdax and `hedged` around the call of
the service. The program prints the latencies of each, and its calls to the service per request.
It writes them to `results/tail.json`, instead of those of the same Python and loop.

It needs the extra `bench` and PostgreSQL (on Debian: apt-get install postgresql).
"""

from __future__ import annotations

import argparse
import asyncio
import platform
import secrets
import shlex
import signal
import subprocess
import sys
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from measurements import keep
from sdax import IMPLEMENTATION
from service.database import CUSTOMERS, fill, running
from service.launch import Server, Variant, pinned, serving, shared_out
from service.open_load import offer
from service.upstream import Upstream
from service.work import sign
from throughput import check_answers, end

RESULTS = Path(__file__).parent / "results" / "tail.json"
UPSTREAM_SECONDS = 0.02
SLOW_SHARE = 0.02
SLOW_FACTOR = 20
HEDGED_AFTER = 0.06  # seconds: three times what most answers of the upstream service take
WARM_UP = 2  # seconds

VARIANTS = (
    Variant("by hand", "with_upstream.answer_by_hand"),
    Variant("sdax", "with_upstream.answer_with_sdax", IMPLEMENTATION),
    Variant("sdax, hedged", "with_upstream.answer_hedged", IMPLEMENTATION),
)


@contextmanager
def upstream() -> Generator[int]:
    """Start the upstream service, and yield its port."""
    options = {
        "--seconds": UPSTREAM_SECONDS,
        "--share": SLOW_SHARE,
        "--factor": SLOW_FACTOR,
        "--seed": 1,
    }
    arguments = [str(each) for option in options.items() for each in option]
    with subprocess.Popen(
        [sys.executable, "-m", "service.upstream", *arguments],
        cwd=Path(__file__).parent,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline())
        finally:
            process.terminate()


async def load(
    server: Server, tokens: Sequence[str], rate: float, seconds: float, upstream_port: int
) -> tuple[list[float], int]:
    """Load a server. Return the latencies, and the number of its calls to the upstream service."""
    counter = Upstream(upstream_port, server.variant.name)
    before = await counter.ask("?")
    latencies = await offer(server.port, tokens, rate, seconds)
    await asyncio.to_thread(server.settle)
    calls = await counter.ask("?") - before
    counter.close()
    return latencies, calls


def percentile(latencies: Sequence[float], share: float) -> float:
    """Return the latency, in milliseconds, within which this share of the answers came."""
    return sorted(latencies)[min(len(latencies) - 1, int(len(latencies) * share))] * 1000


def main() -> None:
    """Read the arguments, measure, and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=50, help="requests per second")
    parser.add_argument("--seconds", type=float, default=20, help="of load in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--loop", choices=["asyncio", "uvloop"], default="asyncio")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, end)
    secret = secrets.token_bytes()
    tokens = [sign(secret, each + 1) for each in range(CUSTOMERS)]
    latencies: dict[str, list[float]] = {variant.name: [] for variant in VARIANTS}
    calls = dict.fromkeys(latencies, 0)
    for_servers, for_others = shared_out()
    with ExitStack() as stack:
        stack.enter_context(pinned(for_others))
        database = stack.enter_context(running())
        asyncio.run(fill(database))
        port = stack.enter_context(upstream())
        environment = {
            **database.environment,
            "SERVICE_SECRET": secret.hex(),
            "SERVICE_UPSTREAM_PORT": str(port),
            "SERVICE_HEDGED_AFTER": str(HEDGED_AFTER),
        }
        with pinned(for_servers):
            servers = [
                stack.enter_context(serving(variant, environment, args.loop))
                for variant in VARIANTS
            ]
        for server in servers:
            check_answers(server, secret)
            asyncio.run(load(server, tokens, args.rate, WARM_UP, port))
        for number in range(args.rounds):
            turn = number % len(servers)
            for server in (*servers[turn:], *servers[:turn]):
                name = server.variant.name
                taken, asked = asyncio.run(load(server, tokens, args.rate, args.seconds, port))
                latencies[name] += taken
                calls[name] += asked
                print(
                    f"round {number + 1}/{args.rounds}  {name:12}  p99 "
                    f"{percentile(taken, 0.99):6.1f} ms",
                    file=sys.stderr,
                    flush=True,
                )
    print(f"{'':14}{'requests':>9}{'p50 ms':>9}{'p99 ms':>9}{'p99.9 ms':>10}{'calls':>8}")
    rows: list[dict[str, Any]] = []
    for name, taken in latencies.items():
        shares = [percentile(taken, share) for share in (0.5, 0.99, 0.999)]
        calls_each = calls[name] / len(taken)
        print(
            f"{name:14}{len(taken):9}{shares[0]:9.1f}{shares[1]:9.1f}{shares[2]:10.1f}"
            f"{calls_each:8.3f}"
        )
        rows.append(
            {
                "command": f"python benchmarks/tail_latency.py {shlex.join(sys.argv[1:])}".strip(),
                "python": platform.python_version(),
                "loop": args.loop,
                "variant": name,
                "requests": len(taken),
                **dict(zip(("p50_ms", "p99_ms", "p999_ms"), shares, strict=True)),
                "calls": calls_each,
            }
        )
    keep(RESULTS, rows, ("python", "loop"))


if __name__ == "__main__":
    main()
