"""A `CancelledError` that nobody asked for is a failure."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest

from helpers import (
    PHASES,
    Trace,
    build,
    current,
    failure_of,
    forever,
    passes,
    solo,
    soon_or_late,
    states,
    task_in,
    until,
)
from sdax import State, TaskCancelledError, TaskFunction


@pytest.mark.parametrize("phase", PHASES)
@soon_or_late
async def test_a_raised_cancelled_error(phase: str, number: int) -> None:
    trace = Trace()
    original = asyncio.CancelledError("mine")
    error = await failure_of(
        build(
            [
                task_in(phase, trace.failing("A", original, number)),
                task_in(phase, trace.pausing("B", 3), name="B"),
            ],
            [trace.task("C", "post")],
        )
    )
    (exception,) = error.exceptions
    assert type(exception) is TaskCancelledError
    assert exception.__cause__ is original
    assert re.match(f"{phase} of task 'A' was cancelled, but not by its run", str(exception))
    assert ("the event loop cancelled it at its own end" in str(exception)) == (
        phase == "post_execute"
    )
    assert error.failures == (("A", phase, 1, exception),)
    assert states(error.report)["A"].count("F") == 1
    if phase == "post_execute":
        assert trace.count("B done") == 1


@pytest.mark.parametrize("phase", PHASES)
@soon_or_late
async def test_a_function_that_cancels_itself(phase: str, number: int) -> None:
    async def function(ctx: Any) -> None:
        await passes(number)
        current().cancel("by myself")
        await forever()

    error = await failure_of(build([task_in(phase, function)]))
    (exception,) = error.exceptions
    assert type(exception) is TaskCancelledError
    assert type(exception.__cause__) is asyncio.CancelledError
    assert exception.__cause__.args == ("by myself",)


@pytest.mark.parametrize("phase", PHASES)
async def test_other_code_that_cancels_the_task_of_a_function(phase: str) -> None:
    trace = Trace()
    owned: list[asyncio.Task[Any]] = []

    async def function(ctx: Any) -> None:
        owned.append(current())
        await forever()

    run = asyncio.get_running_loop().create_task(
        failure_of(
            build(
                [
                    task_in(phase, function),
                    task_in(phase, trace.pausing("B", 4), name="B"),
                    trace.task("C", "post"),
                ]
            )
        )
    )
    await until(lambda: owned and "B" in trace)
    owned[0].cancel("from outside")
    error = await run
    (exception,) = error.exceptions
    assert type(exception) is TaskCancelledError
    assert exception.__cause__.args == ("from outside",)  # type: ignore[union-attr]
    assert [failure[:3] for failure in error.failures] == [("A", phase, 1)]
    # In cleanup nothing else is cancelled; elsewhere it is a failure like any other.
    assert ("B done" in trace) is (phase == "post_execute")
    assert "C.post" in trace


async def test_a_cancelled_future_fails_the_function_that_awaits_it() -> None:
    loop = asyncio.get_running_loop()
    future = loop.create_future()
    loop.call_soon(future.cancel, "given up")
    error = await failure_of(solo(lambda ctx: future))
    assert type(error.exceptions[0]) is TaskCancelledError


async def test_a_function_that_survives_a_cancellation_of_its_own_has_succeeded() -> None:
    async def function(ctx: Any) -> str:
        current().cancel()
        try:
            await forever()
        except asyncio.CancelledError:
            return "survived"
        raise AssertionError

    report = await solo(function, function, function).process_tasks(None)
    assert states(report) == {"A": "+++"}
    assert report["A"].execute.value == "survived"


async def test_a_cancellation_that_comes_too_late_to_arrive() -> None:
    async def function(ctx: Any) -> str:
        await asyncio.sleep(0)
        current().cancel()
        return "done"

    report = await solo(function, function, function).process_tasks(None)
    assert states(report) == {"A": "+++"}


@pytest.mark.parametrize("limits", [{}, {"timeout": 60.0}])
async def test_a_future_that_a_library_cancels_is_retried(limits: dict[str, Any]) -> None:
    """Whoever cancels what a function waits for does not cancel the function."""
    calls = 0

    async def get(ctx: Any) -> str:
        nonlocal calls
        calls += 1
        answer = asyncio.get_running_loop().create_future()
        if calls < 3:
            asyncio.get_running_loop().call_soon(answer.cancel)
        else:
            answer.set_result("value")
        return str(await answer)

    function = TaskFunction(
        get, retries=5, initial_delay=0.0, retryable_exceptions=TaskCancelledError, **limits
    )
    report = await solo(None, function).process_tasks(None)
    assert report["A"].execute[:3] == (State.SUCCEEDED, 3, "value")


async def test_a_task_that_other_code_cancels_is_not_retried() -> None:
    calls = 0

    async def get(ctx: Any) -> None:
        nonlocal calls
        calls += 1
        await forever()

    function = TaskFunction(
        get, retries=5, initial_delay=0.0, retryable_exceptions=TaskCancelledError
    )
    run = asyncio.ensure_future(failure_of(solo(None, function)))
    await until(lambda: calls)
    await passes(1)
    (owned,) = (each for each in asyncio.all_tasks() if each.get_name() == "sdax:A:execute")
    owned.cancel()
    error = await run
    assert type(error.exceptions[0]) is TaskCancelledError
    assert calls == 1
