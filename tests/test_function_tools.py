"""What asyncio and anyio offer works inside of functions, before the first await too."""

from __future__ import annotations

import asyncio
from typing import Any

import anyio
import pytest

from helpers import (
    Broken,
    Trace,
    bare_or_limited,
    build,
    current,
    error_of,
    failure_of,
    forever,
    nothing,
    passes,
    solo,
    soon_or_late,
    spawn,
    states,
    task,
    until,
)
from sdax import TaskFunction


@pytest.mark.virtual_clock
@soon_or_late
@bare_or_limited
async def test_timeout_inside(number: int, limits: Any) -> None:
    trace = Trace()

    async def function(ctx: Any) -> None:
        await passes(number)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3):
                await forever()
        trace.append("in time")
        assert current().cancelling() == 0
        await asyncio.sleep(0)

    function_limited = TaskFunction(function, **limits)
    report = await build(
        [
            task("A", *[function_limited] * 3),
            task("B", trace.pausing("B", 1)),
        ]
    ).process_tasks(None)
    assert trace.count("in time") == 3
    assert states(report) == {"A": "+++", "B": "+--"}


@pytest.mark.virtual_clock
@soon_or_late
async def test_a_timeout_inside_that_is_left_in_time(number: int) -> None:
    async def function(ctx: Any) -> None:
        async with asyncio.timeout(3):
            await passes(number)

    async def slow(ctx: Any) -> None:
        await asyncio.sleep(10)

    # The next functions of the same asyncio.Task, if it were the same, would be cancelled at 3.
    report = await solo(function, slow, slow).process_tasks(None)
    assert states(report) == {"A": "+++"}


@pytest.mark.virtual_clock
@soon_or_late
async def test_wait_for_inside(number: int) -> None:
    async def function(ctx: Any) -> str:
        await passes(number)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(forever(), 3)
        return await asyncio.wait_for(asyncio.sleep(1, "slept"), 3)

    report = await solo(function, function, function).process_tasks(None)
    assert report["A"].post_execute.value == "slept"


@soon_or_late
async def test_task_group_inside(number: int) -> None:
    trace = Trace()

    async def function(ctx: Any) -> list[str]:
        await passes(number)
        async with asyncio.TaskGroup() as group:
            children = [group.create_task(asyncio.sleep(0, name)) for name in "xy"]
        return [child.result() for child in children]

    async def failing(ctx: Any) -> None:
        await passes(number)
        with pytest.raises(ExceptionGroup):
            async with asyncio.TaskGroup() as group:
                group.create_task(trace.failing("child", Broken())(None))
                await forever()
        assert current().cancelling() == 0
        await asyncio.sleep(0)

    report = await build(
        [task("A", function, function, function), task("B", failing, failing, failing)]
    ).process_tasks(None)
    assert states(report) == {"A": "+++", "B": "+++"}
    assert report["A"].execute.value == ["x", "y"]


async def test_the_failure_of_a_task_group_inside_stays_one_member() -> None:
    broken = [Broken(1), Broken(2)]

    async def fail(error: Exception) -> None:
        await asyncio.sleep(0)
        raise error

    async def function(ctx: Any) -> None:
        async with asyncio.TaskGroup() as group:
            for error in broken:
                group.create_task(fail(error))

    error = await failure_of(solo(function))
    (member,) = error.exceptions
    assert type(member) is ExceptionGroup
    assert error.leaf_exceptions() == broken


@soon_or_late
async def test_shield_inside(number: int) -> None:
    trace = Trace()
    gate = asyncio.Event()
    shielded: list[Any] = []

    async def function(ctx: Any) -> None:
        await passes(number)
        shielded.append(asyncio.ensure_future(trace.waiting("child", gate)(None)))
        await asyncio.shield(shielded[0])

    run = spawn(solo(function))
    await until(lambda: trace)
    run.cancel()
    assert isinstance(await error_of(run), asyncio.CancelledError)
    gate.set()
    await shielded[0]
    assert trace == ["child", "child done"]


@soon_or_late
async def test_uncancel_inside(number: int) -> None:
    async def function(ctx: Any) -> str:
        await passes(number)
        current().cancel()
        try:
            await forever()
        except asyncio.CancelledError:
            assert current().uncancel() == 0
        await asyncio.sleep(0)
        async with asyncio.timeout(60):
            await asyncio.sleep(0)
        return "survived"

    report = await solo(function, function, function).process_tasks(None)
    assert [phase.value for phase in report["A"]] == ["survived"] * 3


@soon_or_late
async def test_anyio_inside(number: int) -> None:
    trace = Trace()

    async def function(ctx: Any) -> None:
        await passes(number)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await anyio.sleep_forever()
        assert scope.cancelled_caught
        with anyio.move_on_after(0) as scope:
            await anyio.sleep_forever()
        assert scope.cancelled_caught
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.sleep, 0)
            group.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            await anyio.lowlevel.checkpoint()
        assert current().cancelling() == 0
        trace.append("survived")

    report = await build(
        [task("A", function, function, function), task("B", function, nothing, function)]
    ).process_tasks(None)
    assert states(report) == {"A": "+++", "B": "+++"}
    assert trace == ["survived"] * 5


async def test_an_anyio_scope_around_a_run() -> None:
    trace = Trace()
    with anyio.move_on_after(0.001) as scope:
        await solo(trace.waiting("A"), post=trace.quick("post")).process_tasks(None)
    assert scope.cancelled_caught
    assert trace == ["A", "A cancelled", "post"]
