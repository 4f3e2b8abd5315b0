"""`sdax.testing.explore` on resources: each half is disturbed as a function of its own."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from exploring import Context, pause
from helpers import build, task
from sdax import resource
from sdax.testing import ScheduleFailed, explorations, explore
from sdax.testing.yields import skipping_yield

only_cpython = pytest.mark.skipif(
    sys.implementation.name != "cpython", reason="PyPy has no table of handlers"
)


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


@only_cpython
def test_cleanup_that_an_exception_skips_is_found_whatever_the_check_looks_at(engine: Any) -> None:
    with pytest.raises(ScheduleFailed) as caught:
        explore(connected(careless), context=Context, check=lambda run: True)
    (problem,) = caught.value.problems
    assert re.sub(r"\d+", "N", problem) == (
        "Database.post_execute did nothing, because the exception at its yield skipped the code "
        "after it (tests/test_explore_resources.py, line N, in careless). Put that code into "
        "'finally' or 'async with'. If only a success needs it, write 'except BaseException: "
        "raise' after the yield"
    )
    wrapped = connected(asynccontextmanager(careless))
    found = explorations(wrapped, context=Context, check=lambda run: True, faults=("cancel",))
    assert {each.schedule: each.problems for each in found} == dict.fromkeys(
        [
            "User.pre_execute#1@1:cancel",
            "User.pre_execute#1@1+:cancel",
            "User.pre_execute#1@return:cancel",
        ],
        (problem,),
    )


async def only_after_a_success(ctx: Context) -> AsyncIterator[None]:
    try:
        yield
    except BaseException:
        raise
    ctx.notes.append("committed")


def test_code_that_only_a_success_needs_is_none(engine: Any) -> None:
    processor = connected(only_after_a_success)
    faults = ("cancel", "fail")
    assert explore(processor, context=Context, check=lambda run: True, faults=faults).exhaustive


@only_cpython
def test_a_workflow_that_fails_undisturbed_is_told_as_well(engine: Any) -> None:
    async def refuse(ctx: Context) -> None:
        raise ValueError("the card has expired")

    failing = build([resource("Database", careless)], [task("Pay", refuse)])
    with pytest.raises(ScheduleFailed, match="In the undisturbed run: Database"):
        explore(failing, context=Context, check=lambda run: run.error is not None)


# ------------------------------------------------------------- what an exception at a yield skips


async def await_after_it(ctx: Context) -> AsyncIterator[int]:
    yield 3
    await ctx.pool.release(3)


async def condition_after_it(ctx: Context) -> AsyncIterator[None]:
    yield
    if ctx.connection:
        ctx.notes.append(1)


async def used_after_it(ctx: Context) -> AsyncIterator[None]:
    sent = yield
    ctx.connection = sent


async def deletion_after_it(ctx: Context) -> AsyncIterator[None]:
    yield
    del ctx.notes[:]


async def in_a_handler(ctx: Context) -> AsyncIterator[None]:
    try:
        ctx.notes[0]
    except IndexError as error:
        yield
        print(error)


async def in_a_handler_and_after_it(ctx: Context) -> AsyncIterator[None]:
    try:
        ctx.notes[0]
    except IndexError:
        yield
    ctx.notes.append(1)


async def in_finally(ctx: Context) -> AsyncIterator[None]:
    try:
        ctx.notes.append(1)
    finally:
        yield
        ctx.notes.append(2)


async def in_branches(ctx: Context) -> AsyncIterator[int]:
    if ctx.notes:
        yield 1
    else:
        yield 2
    ctx.notes.append(1)


async def of_another_generator(ctx: Context) -> AsyncIterator[None]:
    async for each in careful(ctx):
        yield each


async def nothing_after_it(ctx: Context) -> AsyncIterator[int]:
    yield 3


async def only_a_name_after_it(ctx: Context) -> AsyncIterator[None]:
    sent = yield  # noqa: F841


async def a_loop_after_it(ctx: Context) -> AsyncIterator[None]:
    yield
    while True:
        pass


async def in_try(ctx: Context) -> AsyncIterator[None]:
    with suppress(ValueError):
        yield
    ctx.notes.append(1)


async def in_async_with(ctx: Context) -> AsyncIterator[None]:
    async with asyncio.Lock(), asyncio.Lock():
        yield
        ctx.notes.append(1)


async def last_in_a_handler(ctx: Context) -> AsyncIterator[None]:
    try:
        ctx.notes[0]
    except IndexError as error:  # noqa: F841
        yield


async def in_a_handler_in_try(ctx: Context) -> AsyncIterator[None]:
    try:
        try:
            ctx.notes[0]
        except IndexError:
            yield
    finally:
        ctx.notes.append(1)


async def last_in_branches(ctx: Context) -> AsyncIterator[int]:
    if ctx.notes:
        yield 1
    else:
        yield 2


async def last_in_a_loop(ctx: Context) -> AsyncIterator[int]:
    for each in range(3):
        yield each
        break


async def after_try(ctx: Context) -> AsyncIterator[None]:
    async with asyncio.Lock():
        ctx.notes.append(1)
    yield


SKIPPED = (
    careless,
    await_after_it,
    condition_after_it,
    used_after_it,
    deletion_after_it,
    in_a_handler,
    in_a_handler_and_after_it,
    in_finally,
    in_branches,
    of_another_generator,
)
NOT_SKIPPED = (
    careful,
    only_after_a_success,
    nothing_after_it,
    only_a_name_after_it,
    a_loop_after_it,
    in_try,
    in_async_with,
    last_in_a_handler,
    in_a_handler_in_try,
    last_in_branches,
    last_in_a_loop,
    after_try,
)


@only_cpython
def test_which_yields_skip_code() -> None:
    async def is_skipped(function: Any) -> bool:
        manager = asynccontextmanager(function)(Context())
        async with manager:
            place = skipping_yield(manager)
            assert place is None or place.source.startswith(("yield", "sent = yield"))
            if function is a_loop_after_it:
                await manager.gen.aclose()
                return place is not None
        return place is not None

    async def main() -> None:
        for function in SKIPPED:
            assert await is_skipped(function), function
        for function in NOT_SKIPPED:
            assert not await is_skipped(function), function

    asyncio.run(main())


def test_other_managers_skip_nothing() -> None:
    assert skipping_yield(asyncio.Lock()) is None
    manager: Any = asynccontextmanager(careless)(Context())
    asyncio.run(manager.gen.aclose())
    assert skipping_yield(manager) is None
