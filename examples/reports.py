"""Ten thousand orders through the shop's workflow: on this event loop, then on two processes.

The workflow is ``shop/workflow.py``, with a real SQLite file and two services on loopback ports.
The same call, ``run_many``, runs it for each request, first here, then on a Dask cluster of two
local processes. Each worker opens its own connections, once. Both must give the same answers. Two
processes are not faster here, because the services that they call are in this program.

Run it with ``python examples/reports.py [NUMBER]``. It needs some extras. In a clone,
``pip install ".[examples,dask,rich]"`` installs them.
"""

import asyncio
import sys
import time
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import aiohttp
from yarl import URL

from sdax import RunReport
from sdax.many import Outcome, run_many
from sdax.observe.progress import ProgressDisplay
from shop.store import Pool, create_database, read_orders
from shop.upstream import Upstream, listening
from shop.workflow import PROCESSOR, Context, Request, Service, sign

ORDERS_CSV = Path(__file__).parent / "data" / "orders.csv"
SECRET = b"the shop's secret"
CONNECTIONS = 16  # of each worker

Answer = dict[str, Any]


@asynccontextmanager
async def open_service(database: Path, upstream: URL) -> AsyncGenerator[Service]:
    """Open what all requests of a worker share."""
    async with Pool(database, CONNECTIONS) as pool, aiohttp.ClientSession() as http:
        yield Service(SECRET, pool, http, upstream)


def make_context(request: Request, service: Service) -> Context:
    """Make the context of one run."""
    return Context(service, request)


def pick(ctx: Context, report: RunReport[str]) -> Answer:
    """Keep the answer alone: the context stays on the worker."""
    return cast(Answer, report["Answer"].execute.value)


def requests(number: int) -> list[Request]:
    """Make requests of users who have orders, and a few of one who has none."""
    users = sorted({order.user_id for order in read_orders(ORDERS_CSV)})
    asking = [999 if each % 1000 == 500 else users[each % len(users)] for each in range(number)]
    return [Request(each, sign(SECRET, user)) for each, user in enumerate(asking)]


async def answers(number: int, where: str, on: Any = None) -> dict[int, Answer | str]:
    """Run the workflow for each request, and return each answer, or what has failed."""
    upstream = Upstream()
    with TemporaryDirectory() as folder:
        database = Path(folder) / "shop.sqlite"
        create_database(database, read_orders(ORDERS_CSV))
        got: dict[int, Answer | str] = {}
        began = time.perf_counter()
        async with (
            listening(upstream.application()) as address,
            run_many(
                PROCESSOR,
                requests(number),
                make_context=make_context,
                resources=partial(open_service, database, address),
                pick=pick,
                concurrency=100,
                observer=ProgressDisplay(),
                on=on,
            ) as outcomes,
        ):
            async for outcome in outcomes:
                got[outcome.number] = outcome.value if outcome.error is None else why(outcome)
        seconds = time.perf_counter() - began
    failures = Counter(each for each in got.values() if isinstance(each, str))
    payable = sum(each["payable_cents"] for each in got.values() if not isinstance(each, str))
    print(f"{where}: {len(got):,} outcomes in {seconds:.1f} s, {payable / 100:,.2f} to pay")
    for reason, count in sorted(failures.items()):
        print(f"  {count} failed: {reason}")
    return got


def why(outcome: Outcome[Request, Answer]) -> str:
    """Return what has failed, in which task."""
    assert outcome.report is not None
    failure = outcome.report.failures[0]
    return f"{failure.name}.{failure.phase}: {failure.exception}"


async def main(number: int) -> None:
    """Run on this event loop, then on two processes, and compare."""
    from distributed import Client, LocalCluster

    here = await answers(number, "this event loop")
    options: dict[str, Any] = {"dashboard_address": "127.0.0.1:0", "asynchronous": True}
    start: Any = LocalCluster
    connect: Any = Client
    async with (
        start(n_workers=2, threads_per_worker=1, **options) as cluster,
        connect(cluster, asynchronous=True) as client,
    ):
        there = await answers(number, "two processes", on=client)
    if here != there or len(here) != number:
        raise SystemExit("reports.py: the answers differ")
    print("the answers are the same")


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000))
