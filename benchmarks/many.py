"""Many runs, compared with code that people write by hand and with plain asyncio on one process.

    python benchmarks/many.py here        # on this event loop, both engines
    python benchmarks/many.py million     # a million inputs, and the memory that they use
    python benchmarks/many.py clusters    # Dask and Ray on two local processes

Contestants take turns in one process, and each round begins with another contestant. `here` and
`million` measure processor time, because a machine may do other things too. `clusters` measures
real time, so each row has the load of the machine. Run it on a machine that does nothing else.
Each prints its figures and writes them to `results/many.json`. `report.py` makes a
chapter of them. It needs the extra `dask`. `ray` and `aiometer` take part if they are installed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from sdax import IMPLEMENTATION, AsyncTask, AsyncTaskProcessor, TaskFunction
from sdax.many import RayCluster, run_many

RESULTS = Path(__file__).parent / "results" / "many.json"
SHAPE = (3, 2, 2)
AT_ONCE = 500
ROUNDS = 9

Function = Callable[[Any], Awaitable[Any]]
Rows = list[dict[str, Any]]


# On this event loop.


async def at_once(ctx: Any) -> None:
    """Return."""


async def one_pass(ctx: Any) -> None:
    """Wait for one pass of the loop."""
    await asyncio.sleep(0)


async def one_ms(ctx: Any) -> None:
    """Wait for a millisecond."""
    await asyncio.sleep(0.001)


WORKS: dict[str, tuple[Function, int]] = {
    "3-2-2, at once": (at_once, 2000),
    "3-2-2, sleep(0)": (one_pass, 1000),
    "3-2-2, 1 ms": (one_ms, 1000),
}


def processor_of(function: Function) -> AsyncTaskProcessor[Any, str]:
    """Return tasks of three phases in three levels."""
    builder = AsyncTaskProcessor[Any, str].builder()
    for level, size in enumerate(SHAPE):
        for number in range(size):
            first, second, third = (TaskFunction(function) for _ in range(3))
            builder.add_task(AsyncTask(f"{level}-{number}", first, second, third), level)
    return builder.build()


async def by_hand(function: Function, ctx: Any) -> None:
    """Do the same with a task group for each level."""
    for size in (*SHAPE, sum(SHAPE), *reversed(SHAPE)):
        async with asyncio.TaskGroup() as group:
            for _ in range(size):
                group.create_task(function(ctx))  # type: ignore[arg-type]


async def gathered(one: Function, count: int) -> None:
    """Run `one` for each input behind a semaphore, with `asyncio.gather`."""
    places = asyncio.Semaphore(AT_ONCE)

    async def limited(item: int) -> None:
        async with places:
            await one(item)

    await asyncio.gather(*(limited(item) for item in range(count)))


async def without_levels(function: Function, count: int) -> None:
    """Run the same functions in an `asyncio.Task` each, and wait for nothing between them.

    It does less than was asked for: it shows what asyncio itself takes.
    """
    loop = asyncio.get_running_loop()
    left = total = count * (2 * sum(SHAPE) + sum(SHAPE))
    begun = 0
    ended = loop.create_future()

    def begin() -> None:
        nonlocal begun
        begun += 1
        loop.create_task(function(None)).add_done_callback(end_one)  # type: ignore[arg-type]

    def end_one(_: Any) -> None:
        nonlocal left
        left -= 1
        if begun < total:
            begin()
        elif not left:
            ended.set_result(None)

    for _ in range(min(total, AT_ONCE * SHAPE[0])):
        begin()
    await ended


async def in_many(processor: AsyncTaskProcessor[Any, str], count: int) -> None:
    """Run the processor for each input with `run_many`."""
    async with run_many(processor, range(count), concurrency=AT_ONCE) as outcomes:
        async for outcome in outcomes:
            assert outcome.error is None


async def with_anyio(one: Function, count: int) -> None:
    """The same with anyio's task group and limiter."""
    import anyio

    places = anyio.CapacityLimiter(AT_ONCE)

    async def limited(item: int) -> None:
        async with places:
            await one(item)

    async with anyio.create_task_group() as group:
        for item in range(count):
            group.start_soon(limited, item)


async def with_aiometer(one: Function, count: int) -> None:
    """The same with aiometer."""
    import aiometer  # type: ignore[import-not-found, unused-ignore]

    async with aiometer.amap(one, list(range(count)), max_at_once=AT_ONCE) as results:
        async for _ in results:
            pass


def contestants(function: Function) -> dict[str, Callable[[int], Awaitable[None]]]:
    """Return who takes part."""
    processor = processor_of(function)
    hand = partial(by_hand, function)
    found: dict[str, Callable[[int], Awaitable[None]]] = {
        "by hand": partial(gathered, hand),
        "asyncio.Task each, no levels": partial(without_levels, function),
        "run_many": partial(in_many, processor),
        "gather(process_tasks)": partial(gathered, processor.process_tasks),
    }
    if find_spec("anyio"):
        found["anyio, process_tasks"] = partial(with_anyio, processor.process_tasks)
    if find_spec("aiometer"):
        found["aiometer, process_tasks"] = partial(with_aiometer, processor.process_tasks)
    return found


def in_turn(names: list[str], rounds: int) -> Iterator[list[str]]:
    """Yield who runs in which order, round by round."""
    for number in range(rounds):
        first = number % len(names)
        yield names[first:] + names[:first]


def measure_here() -> Rows:
    """Measure the engine of this process."""
    rows: Rows = []
    for work, (function, count) in WORKS.items():
        found = contestants(function)
        taken: dict[str, list[float]] = {name: [] for name in found}
        for order in in_turn(list(found), ROUNDS):
            for name in order:
                gc.collect()
                began = time.process_time()
                asyncio.run(found[name](count))  # type: ignore[arg-type]
                taken[name].append((time.process_time() - began) / count * 1e6)
        hand = taken["by hand"]
        for name, times in taken.items():
            ratio = statistics.median(a / b for a, b in zip(hand, times, strict=True))
            rows.append(
                {
                    "python": platform.python_version(),
                    "engine": "compiled" if IMPLEMENTATION == "cython" else "python",
                    "work": work,
                    "contestant": name,
                    "microseconds": min(times),
                    "ratio": ratio,
                }
            )
    return rows


# A million inputs.

SAMPLES = 20
INPUTS = 1_000_000


async def sampled(count: int, every: int) -> Rows:
    """Run for many inputs, and note time and memory."""
    rows: Rows = []
    processor = processor_of(at_once)
    began = time.process_time()
    async with run_many(processor, range(count), concurrency=AT_ONCE) as outcomes:
        async for outcome in outcomes:
            if (outcome.number + 1) % every == 0:
                now = time.process_time()
                rows.append(
                    {
                        "inputs": outcome.number + 1,
                        "microseconds": (now - began) / every * 1e6,
                        "megabytes": memory(),
                    }
                )
                began = now
    return rows


def memory() -> float:
    """Return the megabytes that this process has in memory."""
    status = Path("/proc/self/statm")
    if status.exists():
        return int(status.read_text().split()[1]) * resource.getpagesize() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def measure_million() -> Rows:
    """Measure ten thousand inputs first, then a million."""
    asyncio.run(sampled(10_000, 10_000))
    (first,) = asyncio.run(sampled(10_000, 10_000))
    return [first, *asyncio.run(sampled(INPUTS, INPUTS // SAMPLES))]


# Clusters. A work of 5 tasks, 0.4 ms of processor time and 4 ms of waiting.

CONTEXTS = 4000
CONTEXTS_OF_TASKS = 500  # one task of Dask's for each is slow
CLUSTER_ROUNDS = 3
ONE_TASK_EACH = "Dask, one task per context"


async def load(ctx: Any) -> float:
    """Compute for 0.08 ms and wait for 2 ms."""
    until = time.thread_time() + 0.00008  # which does not go on while another process runs
    while time.thread_time() < until:
        pass
    await asyncio.sleep(0.002)
    return until


def cluster_processor() -> AsyncTaskProcessor[Any, str]:
    """Return the work: two tasks, then three."""
    builder = AsyncTaskProcessor[Any, str].builder()
    for number in range(5):
        builder.add_task(AsyncTask(f"T{number}", pre_execute=TaskFunction(load)), int(number > 1))
    return builder.build()


PROCESSOR = cluster_processor()


async def plainly(ctx: Any) -> None:
    """Do the work by hand."""
    for size in (2, 3):
        async with asyncio.TaskGroup() as group:
            for _ in range(size):
                group.create_task(load(ctx))


def number_of(ctx: Any, report: Any) -> Any:
    """Keep the input."""
    return ctx


async def on_cluster(on: Any, batch_size: int, count: int) -> None:
    """Run on a cluster, or on this loop."""
    async with run_many(
        PROCESSOR, range(count), pick=number_of, on=on, concurrency=100, batch_size=batch_size
    ) as outcomes:
        got = sorted([outcome.result() async for outcome in outcomes])
    assert got == list(range(count))


async def one_dask_task_each(client: Any, count: int) -> None:
    """Submit a task of Dask's for each context."""
    futures = client.map(process_one, range(count), pure=False)
    assert len(await asyncio.to_thread(client.gather, futures)) == count


async def process_one(ctx: Any) -> Any:
    """Be a task of Dask's."""
    await PROCESSOR.process_tasks(ctx)
    return ctx


async def plain(count: int) -> None:
    """Do all of the work in this process, a hundred contexts at a time."""
    places = asyncio.Semaphore(100)

    async def limited(item: int) -> None:
        async with places:
            await plainly(item)

    await asyncio.gather(*(limited(item) for item in range(count)))


def wait_for_others(seconds: float) -> None:
    """Wait until nothing else runs on this machine, at most so long (on Linux)."""
    until = time.monotonic() + seconds
    calm = 0
    while calm < 10 and time.monotonic() < until:
        running = int(Path("/proc/loadavg").read_text().split()[3].partition("/")[0])
        calm = calm + 1 if running <= 1 else 0
        time.sleep(0.02)


class Round(NamedTuple):
    """One measurement, with the processor time per input."""

    per_second: float
    microseconds_here: float  # of this process
    microseconds_all: float  # of Dask's workers too
    load: float


def used_by_workers(client: Any) -> float:
    """Return the processor time of Dask's workers so far."""
    used: dict[str, float] = client.run(time.process_time)
    return sum(used.values())


def measure_clusters(seconds: float) -> Rows:
    """Measure all in turn, with both clusters running."""
    from distributed import Client, LocalCluster

    start: Any = LocalCluster
    connect: Any = Client
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)
    with contextlib.ExitStack() as stack:
        options: dict[str, Any] = {"dashboard_address": "127.0.0.1:0"}
        cluster = stack.enter_context(start(n_workers=2, threads_per_worker=1, **options))
        client = stack.enter_context(connect(cluster))
        ways: dict[str, Callable[[int], Awaitable[None]]] = {
            "plain asyncio, one process": plain,
            "run_many, this loop": partial(on_cluster, None, 1),
            ONE_TASK_EACH: partial(one_dask_task_each, client),
        }
        for size in (50, 100, 250):
            ways[f"run_many on Dask, batches of {size}"] = partial(on_cluster, client, size)
        if find_spec("ray"):
            import ray

            settings: dict[str, Any] = {"log_to_driver": False, "include_dashboard": False}
            ray.init(num_cpus=2, **settings)
            stack.callback(ray.shutdown)
            for size in (50, 250):
                ways[f"run_many on Ray, batches of {size}"] = partial(
                    on_cluster, RayCluster(2), size
                )
        taken: dict[str, list[Round]] = {name: [] for name in ways}
        for way in ways.values():
            asyncio.run(way(CONTEXTS_OF_TASKS))  # type: ignore[arg-type]
        for order in in_turn(list(ways), CLUSTER_ROUNDS):
            for name in order:
                gc.collect()
                wait_for_others(seconds)
                load = os.getloadavg()[0]
                there = used_by_workers(client)
                began, used = time.perf_counter(), time.process_time()
                count = CONTEXTS_OF_TASKS if name == ONE_TASK_EACH else CONTEXTS
                asyncio.run(ways[name](count))  # type: ignore[arg-type]
                rate = count / (time.perf_counter() - began)
                here = (time.process_time() - used) / count * 1e6
                there = (used_by_workers(client) - there) / count * 1e6
                taken[name].append(Round(rate, here, here + there, load))
    alone = taken["plain asyncio, one process"]
    return [
        {
            "python": platform.python_version(),
            "contestant": name,
            "per_second": statistics.median(each.per_second for each in rounds),
            "ratio": statistics.median(
                each.per_second / plain.per_second
                for each, plain in zip(rounds, alone, strict=True)
            ),
            "best_ratio": max(each.per_second for each in rounds)
            / max(each.per_second for each in alone),
            "microseconds_here": statistics.median(each.microseconds_here for each in rounds),
            "microseconds_all": None
            if "Ray" in name
            else statistics.median(each.microseconds_all for each in rounds),
            "load": statistics.median(each.load for each in rounds),
        }
        for name, rounds in taken.items()
    ]


def both_engines() -> Rows:
    """Measure each engine in a process of its own."""
    rows: Rows = []
    for switch in "SDAX_REQUIRE_EXTENSIONS", "SDAX_NO_EXTENSIONS":
        done = subprocess.run(
            [sys.executable, __file__, "here", "--this"],
            env={**os.environ, switch: "1"},
            stdout=subprocess.PIPE,
            check=True,
        )
        rows += json.loads(done.stdout)
    return rows


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["here", "million", "clusters"])
    parser.add_argument("--this", action="store_true", help="measure the engine of this process")
    parser.add_argument(
        "--wait",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="of clusters: wait so long at most before each measurement for other programs",
    )
    args = parser.parse_args()
    if args.this:
        print(json.dumps(measure_here()))
        return
    measure: dict[str, Callable[[], Rows]] = {
        "here": both_engines,
        "million": measure_million,
        "clusters": partial(measure_clusters, args.wait),
    }
    rows = measure[args.what]()
    for row in rows:
        print(", ".join(f"{key} {_shown(value)}" for key, value in row.items()))
    written = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    written[args.what] = rows
    RESULTS.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")


def _shown(value: Any) -> str:
    return f"{value:,.2f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
