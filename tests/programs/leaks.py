"""A thousand runs of each path, then what is left of them: allocated blocks, references to the
context and to a value, what only the garbage collector could take away, and resident memory.

What a run of a path ends with is of no interest here, so long as it is what the path is for.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from collections import deque
from collections.abc import AsyncIterator
from contextvars import ContextVar
from inspect import isasyncgenfunction
from pathlib import Path
from typing import Any

from sdax import (
    AsyncTask,
    AsyncTaskProcessor,
    RunReport,
    SdaxExecutionError,
    TaskFunction,
    resource,
    task_group_func,
)
from sdax.observe import Event, EventLogger, Timeline

CTX, MESSAGE = object(), "".join(["mes", "sage"])
KEPT = 50  # reports, where they are kept


async def value(ctx: object) -> object:
    return ctx


async def pause(ctx: object) -> object:
    await asyncio.sleep(0)
    return ctx


async def fail(ctx: object) -> None:
    raise ConnectionError(MESSAGE)


async def fail_late(ctx: object) -> None:
    await asyncio.sleep(0)
    raise ConnectionError(MESSAGE)


async def forever(ctx: object) -> None:
    await asyncio.get_running_loop().create_future()


async def in_a_group(ctx: object, group: Any) -> None:
    group.create_task(pause(ctx))


# (Not with a TaskGroup: up to Python 3.12 that leaves cycles of its own when its block fails.)


async def held(ctx: object) -> AsyncIterator[object]:
    async with asyncio.timeout(3600):
        var.set(ctx)
        yield ctx
        await pause(ctx)


async def held_badly(ctx: object) -> AsyncIterator[None]:
    try:
        yield
    except (SdaxExecutionError, asyncio.CancelledError):
        raise ConnectionError(MESSAGE) from None
    except BaseException as error:
        raise ConnectionError(MESSAGE) from error


async def broken(ctx: object) -> AsyncIterator[None]:
    async with asyncio.timeout(0.001):
        yield


async def never_held(ctx: object) -> AsyncIterator[None]:
    await fail_late(ctx)
    yield


LIMITS: dict[str, Any] = {"retries": 1, "initial_delay": 0}
PATHS: dict[str, list[Any]] = {
    "success": [value, pause],
    "failure": [forever, fail],
    "late failure": [forever, fail_late],
    "cancel": [forever, pause],
    "timeout": [TaskFunction(forever, timeout=0), pause],
    "retry": [TaskFunction(fail, **LIMITS), TaskFunction(fail_late, **LIMITS)],
    "group": [task_group_func(in_a_group), value],
    "reports kept": [value, pause],
    "failed reports kept": [value, fail_late],
    "observed": [pause, TaskFunction(fail, **LIMITS), TaskFunction(forever, timeout=0), forever],
    "observed cancel": [forever, pause],
    "resource": [held, pause],
    "resource, failure": [held, held_badly, fail],
    "resource, late failure": [held, held_badly, fail_late],
    "resource that breaks": [held, broken, forever],
    "resource, no set-up": [held, never_held, pause],
    "resource, cancel": [held, held_badly, forever],
    "observed resource, failure": [held, held_badly, fail],
}
ENDS: dict[str, type[BaseException]] = {
    "failure": SdaxExecutionError,
    "late failure": SdaxExecutionError,
    "cancel": asyncio.CancelledError,
    "timeout": SdaxExecutionError,
    "retry": SdaxExecutionError,
    "failed reports kept": SdaxExecutionError,
    "observed": SdaxExecutionError,
    "observed cancel": asyncio.CancelledError,
    "resource, failure": SdaxExecutionError,
    "resource, late failure": SdaxExecutionError,
    "resource that breaks": SdaxExecutionError,
    "resource, no set-up": SdaxExecutionError,
    "resource, cancel": asyncio.CancelledError,
    "observed resource, failure": SdaxExecutionError,
}
var: ContextVar[object] = ContextVar("var")


class Latest:
    """An observer that keeps the latest events, and with them what was raised."""

    def __init__(self) -> None:
        self.events: deque[Event] = deque(maxlen=KEPT)

    def __call__(self, event: Event) -> None:
        self.events.append(event)


OBSERVERS = (EventLogger(blocking_threshold=60), Timeline(max_runs=KEPT))


def make_processor(path: str) -> AsyncTaskProcessor[Any, Any]:
    builder = AsyncTaskProcessor.builder()
    for level in range(2):
        for number, function in enumerate(PATHS[path]):
            name = (level, number)
            if isasyncgenfunction(function):
                task = resource(name, function, execute=value)
            else:
                task = AsyncTask(name, function, value, pause)
            builder.add_task(task, level)
    return builder.build()


async def run_often(processor: AsyncTaskProcessor[Any, Any], path: str, number: int) -> None:
    kept: list[RunReport[Any] | None] = []
    for _ in range(number):
        observers = (*OBSERVERS, Latest()) if path.startswith("observed") else None
        run = asyncio.ensure_future(processor.process_tasks(CTX, observer=observers))
        if path.endswith("cancel"):
            await asyncio.sleep(0)
            run.cancel()
        ended: type[BaseException] | None = None
        report: RunReport[Any] | None = None
        try:
            report = await run
        except (SdaxExecutionError, asyncio.CancelledError) as error:
            ended = type(error)
            report = getattr(error, "report", None)
            str(error)
        assert ended is ENDS.get(path), (path, ended)
        if path.endswith("kept"):
            kept.append(report)
            assert report is not None
            dict(report)
            del kept[:-KEPT]
        del run, report, observers


def resident() -> int:
    """Return the kilobytes of memory that this process has, 0 where the system does not say."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    lines = dict(line.split(":", 1) for line in status.read_text(encoding="utf-8").splitlines())
    return int(lines["VmRSS"].split()[0])


def measure() -> list[int]:
    return [sys.getallocatedblocks(), sys.getrefcount(CTX), sys.getrefcount(MESSAGE), resident()]


async def main(path: str) -> None:
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    processor = make_processor(path)
    await run_often(processor, path, 200)
    gc.collect()
    gc.disable()
    before = measure()
    await run_often(processor, path, 1000)
    cycles = gc.collect()  # what this could take away counts as left; free lists do not
    print(cycles, *(late - early for late, early in zip(measure(), before, strict=True)))
    gc.enable()


for path in sys.argv[1:]:
    asyncio.run(main(path))
