"""Workloads that the benchmarks share: the same work for sdax and for what people write by hand.

A workload is a shape (how many functions stand in each level), what each function does, and the
phases that have one. Every contestant is a coroutine function without arguments.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from sdax import AsyncTask, AsyncTaskProcessor, TaskFunction

# The module whose `Run` is the engine.
processors: Any = import_module("sdax.processor")

Function = Callable[[Any], Awaitable[Any]]
Contestant = Callable[[], Awaitable[Any]]


async def returns_at_once(ctx: Any) -> None:
    """Does not suspend."""


async def suspends_once(ctx: Any) -> None:
    """Waits for one pass of the event loop."""
    await asyncio.sleep(0)


async def waits_1ms(ctx: Any) -> None:
    """Stands for a short wait for I/O."""
    await asyncio.sleep(0.001)


@dataclass(frozen=True)
class Workload:
    """So many functions in each level, with so many phases, run `concurrent` times at once."""

    name: str
    shape: tuple[int, ...]
    function: Function = returns_at_once
    phases: int = 1
    timeout: float | None = None
    retries: int = 0
    concurrent: int = 1
    repeat: int = 1

    @property
    def functions(self) -> int:
        """How many functions are called in all."""
        return sum(self.shape) * self.phases * self.concurrent * self.repeat


def engines() -> dict[str, Any]:
    """The engines that are installed, by the name that a table gives them."""
    found = {"python": import_module("sdax._core_py").Run}
    with suppress(ImportError):
        found = {"compiled": import_module("sdax._core").Run, **found}
    return found


def sdax(work: Workload, engine: Any) -> Contestant:
    """The workload on one engine of sdax."""
    function = TaskFunction[Any](work.function, timeout=work.timeout, retries=work.retries)
    phases = (function,) * work.phases
    builder = AsyncTaskProcessor.builder()
    for level, width in enumerate(work.shape):
        for number in range(width):
            builder.add_task(AsyncTask((level, number), *phases), level)
    processor = builder.build()
    repeated = _repeated(work, lambda: processor.process_tasks(None))

    async def on_engine() -> None:
        processors.Run = engine
        await repeated()

    return on_engine


def raw(work: Workload) -> Contestant:
    """One `asyncio.TaskGroup` per level, as one writes it by hand."""
    function = work.function
    if work.timeout is not None:
        function = _with_timeout(function, work.timeout)
    if work.retries:
        function = _with_retries(function, work.retries)

    async def levels(widths: Sequence[int]) -> None:
        for width in widths:
            async with asyncio.TaskGroup() as group:
                for _ in range(width):
                    group.create_task(function(None))  # type: ignore[arg-type]

    async def once() -> None:
        await levels(work.shape)
        if work.phases > 1:
            await levels([sum(work.shape)])
        if work.phases > 2:
            await levels(work.shape[::-1])

    return _repeated(work, once)


def floor(work: Workload) -> Contestant:
    """Sequential awaits: what calling the functions costs, with no structure at all."""

    async def once() -> None:
        for _ in range(work.functions):
            await work.function(None)

    return once


def eager_tasks(work: Workload) -> Contestant:
    """A bare eagerly started `asyncio.Task` per function (Python 3.12+): the floor for functions
    that suspend, with no structure at all."""

    async def once() -> None:
        loop = asyncio.get_running_loop()
        make_task: Any = asyncio.Task  # the stubs of Python 3.11 do not know eager_start
        for width in work.shape:
            tasks = [
                make_task(work.function(None), loop=loop, eager_start=True) for _ in range(width)
            ]
            for task in tasks:
                await task

    return _repeated(work, once)


def _with_timeout(function: Function, timeout: float) -> Function:
    async def limited(ctx: Any) -> Any:
        async with asyncio.timeout(timeout):
            return await function(ctx)

    return limited


def _with_retries(function: Function, retries: int) -> Function:
    async def retried(ctx: Any) -> Any:
        for attempt in range(retries):
            try:
                return await function(ctx)
            except (TimeoutError, ConnectionError):
                await asyncio.sleep(2.0**attempt)
        return await function(ctx)

    return retried


def _repeated(work: Workload, once: Contestant) -> Contestant:
    if work.concurrent == 1 and work.repeat == 1:
        return once

    async def repeated() -> None:
        for _ in range(work.repeat):
            if work.concurrent == 1:
                await once()
            else:
                await asyncio.gather(*(once() for _ in range(work.concurrent)))

    return repeated
