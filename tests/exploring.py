"""What the tests of `sdax.testing` are written in: a pool, a context, and short explorations."""

from __future__ import annotations

import asyncio
import inspect
from dataclasses import dataclass, field
from typing import Any

from helpers import build, task
from sdax import task_func
from sdax.testing import explorations


class Pool:
    """Two connections, which take a while to get and to give back."""

    def __init__(self) -> None:
        self.free = 2

    async def acquire(self) -> object:
        await asyncio.sleep(0.01)
        self.free -= 1
        return object()

    async def release(self, connection: object) -> None:
        await asyncio.sleep(0.01)
        self.free += 1


@dataclass
class Context:
    pool: Pool = field(default_factory=Pool)
    connection: object | None = None
    notes: list[Any] = field(default_factory=list)


async def take(ctx: Context) -> None:
    ctx.connection = await ctx.pool.acquire()


async def give_back(ctx: Context) -> None:
    connection, ctx.connection = ctx.connection, None
    if connection is not None:
        await ctx.pool.release(connection)


async def pause(ctx: Any) -> None:
    await asyncio.sleep(0.1)


def pooled(pre: Any = take, post: Any = give_back, *more: Any) -> Any:
    """A processor of a task "Database", whose functions have timeouts, and more levels."""
    functions = [
        task_func(each, timeout=60.0) if inspect.isfunction(each) else each for each in (pre, post)
    ]
    return build([task("Database", functions[0], None, functions[1])], *([each] for each in more))


def all_back(run: Any) -> bool:
    return bool(run.context.pool.free == 2)


def never(run: Any) -> bool:
    """Refuse every run but the undisturbed one."""
    return not run.schedule


def anything(run: Any) -> bool:
    """Accept every run, those that failed too."""
    assert run.error is None or run.schedule
    return True


def found(processor: Any, check: Any = all_back, **options: Any) -> list[Any]:
    """Return the findings of an exploration."""
    return list(explorations(processor, check=check, **{"context": Context, **options}))


def schedules(processor: Any, **options: Any) -> list[str]:
    """Return all schedules of an exploration."""
    return [finding.schedule for finding in found(processor, never, **options)]
