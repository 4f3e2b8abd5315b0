"""A processor built, and run, before a fork, and run again on both sides of it.

Once between runs, and once out of a function, while the parent's loop runs. Where there is no fork,
as on Windows, it runs only in the processes that the arguments ask for.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import sys
from collections.abc import Callable
from typing import Any

from sdax import AsyncTask, AsyncTaskProcessor, SdaxExecutionError, TaskFunction


async def pause(ctx: list[str]) -> int:
    await asyncio.sleep(0)
    ctx.append("work")
    return os.getpid()


async def fail(ctx: list[str]) -> None:
    await asyncio.sleep(0)
    raise ConnectionError


async def close(ctx: list[str]) -> None:
    await asyncio.sleep(0)
    ctx.append("close")


PROCESSOR: AsyncTaskProcessor[list[str], str] = (
    AsyncTaskProcessor.builder()
    .add_task(AsyncTask("A", TaskFunction(pause, timeout=60), None, TaskFunction(close)), 1)
    .add_task(AsyncTask("B", None, TaskFunction(fail, retries=1, initial_delay=0)), 2)
    .build()
)


def run() -> None:
    """Run in a loop of its own, and check what has happened."""
    events: list[str] = []
    try:
        asyncio.run(PROCESSOR.process_tasks(events))
    except SdaxExecutionError as error:
        assert error.report is not None
        assert error.report["A"].pre_execute.value == os.getpid()
        assert error.failures[0].attempts == 2
    assert events == ["work", "close"]


def in_child(work: Callable[[], None]) -> None:
    """Do this in a forked process, and see that it ends well."""
    pid = os.fork()
    if not pid:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


async def fork_inside() -> None:
    """Fork in the middle of a run: the child leaves the parent's loop alone and has its own."""

    async def fork(ctx: list[str]) -> None:
        await asyncio.sleep(0)
        in_child(run)
        ctx.append("forked")

    events: list[str] = []
    processor: AsyncTaskProcessor[Any, Any] = (
        AsyncTaskProcessor.builder()
        .add_task(AsyncTask("A", TaskFunction(fork), None, TaskFunction(close)), 1)
        .build()
    )
    await processor.process_tasks(events)
    assert events == ["forked", "close"]


def main() -> None:
    run()
    if hasattr(os, "fork"):
        in_child(run)
        run()
        asyncio.run(fork_inside())
        run()
    for method in sys.argv[1:]:
        child = multiprocessing.get_context(method).Process(target=run)
        child.start()
        child.join()
        assert child.exitcode == 0, method
    print("done")


if __name__ == "__main__":
    main()
