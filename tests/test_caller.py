"""The caller of a run: as it was before, and not always an `asyncio.Task`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from helpers import (
    PHASES,
    Broken,
    Trace,
    build,
    current,
    failure_of,
    passes,
    solo,
    soon_or_late,
    states,
    task,
    task_in,
)
from sdax import SdaxExecutionError, TaskFunction


@pytest.mark.parametrize("phase", PHASES)
@soon_or_late
async def test_the_caller_is_as_it_was(phase: str, number: int) -> None:
    me = current()
    error = await failure_of(
        build(
            [
                task_in(phase, Trace().failing("A", Broken(), number)),
                task_in(phase, Trace().pausing("B", 3), name="B"),
            ]
        )
    )
    assert isinstance(error, SdaxExecutionError)
    assert me.cancelling() == 0
    await asyncio.sleep(0)  # no CancelledError is on its way
    async with asyncio.timeout(60):
        await asyncio.sleep(0)


async def test_a_count_of_cancellations_that_the_caller_had_is_kept() -> None:
    me = current()
    me.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.sleep(0)
    assert me.cancelling() == 1
    with pytest.raises(SdaxExecutionError):
        await solo(Trace().failing("A", Broken(), 1)).process_tasks(None)
    assert me.cancelling() == 1
    await solo(Trace().pausing("A")).process_tasks(None)
    assert me.uncancel() == 0


async def test_two_runs_in_one_caller_after_a_failure() -> None:
    trace = Trace()
    processor = build(
        [task("A", trace.waiting("A")), task("B", trace.failing("B", Broken(), 1))],
    )
    for _ in range(2):
        await failure_of(processor)
    assert trace == ["A", "B", "A cancelled"] * 2


async def test_an_exception_that_the_caller_is_handling_is_its_context_alone() -> None:
    outer, inner = Broken("outer"), Broken("inner")
    try:
        raise outer
    except Broken:
        error = await failure_of(solo(Trace().failing("A", inner, 1)))
    assert error.__context__ is outer


# Without an asyncio.Task


def drive(coroutine: Any, done: Callable[[Any, BaseException | None], None]) -> None:
    """Run a coroutine in the running loop, but in no asyncio.Task."""

    def step(future: Any = None) -> None:
        try:
            yielded = coroutine.send(None)
        except StopIteration as stop:
            done(stop.value, None)
        except BaseException as error:
            done(None, error)
        else:
            if yielded is None:
                loop.call_soon(step)
            else:
                yielded._asyncio_future_blocking = False
                yielded.add_done_callback(step)

    loop = asyncio.get_running_loop()
    loop.call_soon(step)


@soon_or_late
async def test_a_caller_without_a_task(number: int) -> None:
    finished = asyncio.get_running_loop().create_future()
    callers: list[Any] = []
    trace = Trace()

    async def look(ctx: Any) -> None:
        callers.append(current())
        await passes(number)
        assert current() is callers[-1]

    async def by_hand() -> Any:
        assert asyncio.current_task() is None
        report = await build(
            [task("A", look, trace.pausing("A"), look)], [task("B", TaskFunction(look, timeout=60))]
        ).process_tasks(None)
        assert asyncio.current_task() is None
        return report

    drive(by_hand(), lambda value, error: finished.set_result((value, error)))
    report, error = await finished
    assert error is None
    assert states(report) == {"A": "+++", "B": "+--"}


async def test_a_failure_for_a_caller_without_a_task() -> None:
    finished = asyncio.get_running_loop().create_future()
    trace = Trace()
    processor = build(
        [
            task("A", trace.waiting("A"), post=trace.quick("post")),
            task("B", trace.failing("B", Broken(), 1)),
        ]
    )
    drive(processor.process_tasks(None), lambda value, error: finished.set_result((value, error)))
    report, error = await finished
    assert report is None
    assert isinstance(error, SdaxExecutionError)
    assert trace == ["A", "B", "A cancelled", "post"]
