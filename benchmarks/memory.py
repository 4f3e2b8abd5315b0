"""How much memory does a run take? Measured with tracemalloc and the process's resident set.

    python benchmarks/memory.py

Prints bytes per task of a processor and of a run, for sizes from 1,000 to 100,000; bytes per
suspended function beside a bare suspended `asyncio.Task`; the bytes of one small idle run; and
whether memory is back where it was afterwards.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import tracemalloc
from contextlib import suppress
from pathlib import Path
from typing import Any

import workloads
from sdax import AsyncTask, AsyncTaskProcessor, TaskFunction

SIZES = (1_000, 10_000, 100_000)


def build(levels: int, width: int, function: workloads.Function) -> AsyncTaskProcessor[Any, Any]:
    """Build so many levels of so many tasks."""
    builder = AsyncTaskProcessor.builder()
    execute = TaskFunction[Any](function)
    for level in range(levels):
        for number in range(width):
            builder.add_task(AsyncTask((level, number), execute), level)
    return builder.build()


def traced() -> int:
    """Return the bytes that Python has allocated and not yet given back."""
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


def resident() -> int:
    """Return the bytes of the process in memory, 0 where the system does not tell."""
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[1]) * 4096 if status.exists() else 0


async def peak_of_a_run(processor: AsyncTaskProcessor[Any, Any]) -> int:
    """Return the bytes that a run takes at most, its report included."""
    before = traced()
    tracemalloc.reset_peak()
    report = await processor.process_tasks(None)
    peak = tracemalloc.get_traced_memory()[1] - before
    del report
    return peak


async def suspended(width: int) -> tuple[int, int]:
    """Return the bytes of so many suspended functions: of sdax, and of bare tasks."""
    gate = asyncio.Event()

    async def wait(ctx: Any) -> None:
        await gate.wait()

    processor = build(1, width, wait)
    before = traced()
    run = asyncio.ensure_future(processor.process_tasks(None))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    ours = traced() - before
    gate.set()
    await run
    del run
    gate.clear()
    before = traced()
    tasks = [asyncio.ensure_future(wait(None)) for _ in range(width)]
    await asyncio.sleep(0)
    bare = traced() - before
    gate.set()
    await asyncio.gather(*tasks)
    return ours, bare


async def idle_run(function: int) -> int:
    """Return the bytes of a run of 7 tasks that waits in one, less what a suspended function
    takes in a run of many."""
    gate = asyncio.Event()

    async def wait(ctx: Any) -> None:
        await gate.wait()

    builder = AsyncTaskProcessor.builder()
    for number in range(7):
        execute = TaskFunction[Any](wait if number == 0 else workloads.returns_at_once)
        builder.add_task(AsyncTask(number, execute), 0)
    processor = builder.build()
    for _ in range(3):
        await asyncio.sleep(0)  # for what earlier measurements have left in the loop
    before = traced()
    runs = [processor.process_tasks(None) for _ in range(1000)]
    for run in runs:
        run.send(None)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    taken = traced() - before
    gate.set()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    for run in runs:
        with suppress(StopIteration):
            run.send(None)
    return taken // len(runs) - function


async def measure(engine: str) -> None:
    """Measure one engine and print its lines."""
    workloads.processors.Run = workloads.engines()[engine]
    print(f"\n{engine} engine")
    start = resident()
    for function in (workloads.returns_at_once, workloads.suspends_once):
        for name, shape in (("one level", (1, None)), ("levels of one", (None, 1))):
            line = []
            for size in SIZES:
                processor = build(shape[0] or size, shape[1] or size, function)
                line.append(f"{await peak_of_a_run(processor) / size:8.0f}")
                del processor
            print(f"  bytes per task, {function.__name__:16} {name:14}" + "".join(line))
    ours = 0
    for size in SIZES:
        ours, bare = await suspended(size)
        print(
            f"  {size:7} suspended functions: {ours / size:.0f} bytes each, a bare "
            f"asyncio.Task {bare / size:.0f}, beyond that {(ours - bare) / size:.0f}"
        )
    print(f"  idle run of 7 tasks: {await idle_run(ours // SIZES[-1])} bytes")
    gc.collect()
    print(f"  resident set: {start / 2**20:.0f} MiB before, {resident() / 2**20:.0f} MiB after")


def main() -> None:
    """Measure every engine that is installed."""
    print(f"CPython {sys.version.split()[0]}; sizes {', '.join(f'{size:,}' for size in SIZES)}")
    tracemalloc.start()
    for engine in workloads.engines():
        asyncio.run(measure(engine))


if __name__ == "__main__":
    main()
