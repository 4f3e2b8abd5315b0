"""`sdax.testing.explore` on resources: each half is disturbed as a function of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from exploring import Context, pause
from helpers import build, task
from sdax import resource
from sdax.testing import ScheduleFailed, explore


def connected(function: Any, **limits: Any) -> Any:
    limits = {"timeout": 60.0, "cleanup_timeout": 60.0, **limits}
    return build(
        [resource("Database", function, **limits)],
        [task("User", pause)],
    )


def all_back(run: Any) -> None:
    run.error  # noqa: B018 (looked at: the run may fail)
    assert run.context.pool.free == 2


async def careful(ctx: Context) -> AsyncIterator[None]:
    ctx.connection = await ctx.pool.acquire()
    try:
        yield
    finally:
        async with asyncio.timeout(30.0):
            await ctx.pool.release(ctx.connection)


@asynccontextmanager
async def managed(ctx: Context) -> AsyncIterator[None]:
    ctx.connection = await ctx.pool.acquire()
    try:
        yield
    finally:
        await ctx.pool.release(ctx.connection)


@pytest.mark.parametrize("function", [careful, managed])
def test_every_point_of_both_halves(engine: Any, function: Any) -> None:
    found = explore(
        connected(function, retries=1),
        context=Context,
        check=all_back,
        faults=("cancel", "fail", "cancel again"),
    )
    assert found.exhaustive
    assert found.findings == 0
    assert found.points >= 10


async def careless(ctx: Context) -> AsyncIterator[None]:
    ctx.connection = await ctx.pool.acquire()
    yield
    await ctx.pool.release(ctx.connection)


def test_what_is_forgotten_after_a_failure_is_found(engine: Any) -> None:
    with pytest.raises(ScheduleFailed) as caught:
        explore(connected(careless), context=Context, check=all_back)
    assert "User.pre_execute" in str(caught.value)
