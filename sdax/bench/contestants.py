"""The contestants: sdax on each of its engines, and the same written by hand with asyncio.

The contestants by hand differ in one point only: how they run the functions of a level together.
See `by_hand()`.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import import_module
from itertools import chain, zip_longest
from typing import Any, TypeAlias

import sdax

from .work import (
    ASYNCIO,
    EXECUTE,
    POST,
    PRE,
    Function,
    Job,
    Library,
    Once,
    Work,
    check,
    job_of,
    repeated,
)

Together: TypeAlias = Callable[[Sequence[Function], Any], Awaitable[Any]]
Limit: TypeAlias = Callable[[Function, float], Function]
Loop: TypeAlias = asyncio.AbstractEventLoop

BASELINE = "TaskGroup"


@dataclass(frozen=True)
class Contestant:
    """One way to do a job.

    - `make`: takes a `Job` and returns a coroutine function, which takes the context of a run.
    - `can`: returns True for a work that it can do.
    - `prepare`: prepares a run, for example the task factory of the loop.
    - `library`: the functions that wait, and the function that runs it.
    - `builds`: True if `make` builds something that all runs share.
    """

    name: str
    make: Callable[[Job], Once]
    can: Callable[[Work], bool] = lambda work: True
    prepare: Callable[[Loop], None] = lambda loop: loop.set_task_factory(None)
    library: Library = ASYNCIO
    builds: bool = False

    def checked(self, loop: Loop, work: Work) -> Callable[[], None]:
        """Return a function that does the work once, after a check of the work.

        Raises `AssertionError` if the check fails.
        """
        self.prepare(loop)
        check(loop, replace(work, repeat=min(work.repeat, 2)), self.library, self.make)
        run = repeated(work, self.library, self.make(job_of(work, self.library)))
        return lambda: self.library.run(loop, run)


def engines() -> dict[str, Any]:
    """Return the installed engines by name. An earlier sdax without engines has none."""
    if not hasattr(sdax, "IMPLEMENTATION"):
        return {}
    found = {"python": import_module("sdax._core_py").Run}
    with suppress(ImportError):
        found = {"compiled": import_module("sdax._core").Run, **found}
    return found


def contestants() -> list[Contestant]:
    """Return the contestants that need only sdax and asyncio: sdax first, and the baseline."""
    found = [
        Contestant(f"sdax {name}", make_sdax, prepare=_selecting(run), builds=True)
        for name, run in engines().items()
    ]
    found.append(Contestant(BASELINE, by_hand(_in_task_group)))
    found.append(Contestant("gather", by_hand(_in_gather)))
    if sys.version_info >= (3, 12):
        found.append(
            Contestant(
                "TaskGroup, eager",
                by_hand(_in_task_group),
                prepare=lambda loop: loop.set_task_factory(_eagerly),
            )
        )
        bare = by_hand(_in_eager_tasks)
        found.append(Contestant("eager tasks", bare, can=lambda work: not work.fails))
    found.append(Contestant("one by one", by_hand(_one_by_one), can=_needs_no_concurrency))
    return found


def _eagerly(loop: Loop, coroutine: Any, *, eager_start: Any = None, **options: Any) -> Any:
    # uvloop passes eager_start, which the factory accepts from 3.13.3 on.
    factory: Any = asyncio.eager_task_factory  # type: ignore[attr-defined,unused-ignore]
    return factory(loop, coroutine, **options)


def build(job: Job) -> Any:
    """Return a processor of a job."""
    library: Any = sdax  # an earlier sdax may have other types, and fewer arguments
    limits: dict[str, Any] = {"timeout": job.timeout, "retries": job.retries}
    if job.total_timeout is not None:
        limits["total_timeout"] = job.total_timeout
    options: dict[str, Any] = {} if job.required else {"required": False}
    builder = library.AsyncTaskProcessor.builder()
    for level, tasks in enumerate(zip_longest(job.pre, job.execute, job.post, fillvalue=())):
        for number, functions in enumerate(zip_longest(*tasks)):
            phases = {
                phase: library.TaskFunction(function, **limits)
                for phase, function in zip((PRE, EXECUTE, POST), functions, strict=True)
                if function is not None
            }
            name = f"{level}.{number}"
            task = library.AsyncTask(name=name, **phases, **options)
            if level == 0 and number < job.resources:
                pre, _, post = functions
                task = library.resource(name, _in_one(pre, post))
            builder.add_task(task, level=level)
    return builder.build()


def _in_one(set_up: Function, clean_up: Function) -> Callable[[Any], AsyncIterator[None]]:
    async def resource(ctx: Any) -> AsyncIterator[None]:
        await set_up(ctx)
        yield
        await clean_up(ctx)

    return resource


def make_sdax(job: Job) -> Once:
    """Make a processor do the job."""
    run: Once = build(job).process_tasks
    return run


def asyncio_limit(function: Function, seconds: float) -> Function:
    """Return the function with a timeout."""

    async def limited(ctx: Any) -> Any:
        async with asyncio.timeout(seconds):
            return await function(ctx)

    return limited


def by_hand(
    together: Together, limit: Limit = asyncio_limit, library: Library = ASYNCIO
) -> Callable[[Job], Once]:
    """Return a function that does a job as if written by hand, level by level, with `finally`.

    `together(functions, ctx)` runs the functions of a level. `limit(function, seconds)` returns
    a function with a timeout.
    """

    def make(job: Job) -> Once:
        pre, execute, post = (
            [[limited(function, job) for function in level] for level in levels]
            for levels in (job.pre, job.execute, job.post)
        )
        execute_all = list(chain.from_iterable(execute))

        async def once(ctx: Any) -> None:
            opened = 0
            try:
                for functions in pre:
                    opened += 1
                    await together(functions, ctx)
                if execute_all:
                    await together(execute_all, ctx)
            finally:
                for functions in reversed(post[:opened]):
                    await together(functions, ctx)

        return once

    def limited(function: Function, job: Job) -> Function:
        if job.timeout is not None:
            function = limit(function, job.timeout)
        if job.retries:
            function = _retried(function, job.retries, library)
        if job.total_timeout is not None:
            function = limit(function, job.total_timeout)
        return function if job.required else _not_required(function)

    return make


def _not_required(function: Function) -> Function:
    async def spared(ctx: Any) -> Any:
        try:
            return await function(ctx)
        except Exception:
            logging.getLogger(__name__).exception("the rest goes on")

    return spared


def _retried(function: Function, retries: int, library: Library) -> Function:
    async def retried(ctx: Any) -> Any:
        for attempt in range(retries):
            try:
                return await function(ctx)
            except (TimeoutError, ConnectionError):
                await library.sleep(2.0**attempt)
        return await function(ctx)

    return retried


async def _in_task_group(functions: Sequence[Function], ctx: Any) -> None:
    async with asyncio.TaskGroup() as group:
        for function in functions:
            group.create_task(function(ctx))  # type: ignore[arg-type]


async def _in_gather(functions: Sequence[Function], ctx: Any) -> None:
    tasks = [asyncio.ensure_future(function(ctx)) for function in functions]
    try:
        await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


async def _in_eager_tasks(functions: Sequence[Function], ctx: Any) -> None:
    # The lowest cost of running them at once: if one fails, nobody stops the rest.
    options: dict[str, Any] = {"loop": asyncio.get_running_loop(), "eager_start": True}
    coroutines: Any = (function(ctx) for function in functions)
    tasks = [asyncio.Task(coroutine, **options) for coroutine in coroutines]
    for task in tasks:
        if not task.done():
            await task


async def _one_by_one(functions: Sequence[Function], ctx: Any) -> None:
    for function in functions:
        await function(ctx)


def _needs_no_concurrency(work: Work) -> bool:
    return not work.sleep and not work.fails and work.concurrent == 1


def _selecting(run: Any) -> Callable[[Loop], None]:
    processor: Any = import_module("sdax.processor")

    def prepare(loop: Loop) -> None:
        loop.set_task_factory(None)
        processor.Run = run

    return prepare
