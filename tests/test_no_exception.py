"""`KeyboardInterrupt` and whatever else is no `Exception`."""

from __future__ import annotations

from typing import Any

import pytest

from helpers import (
    PHASES,
    Broken,
    Trace,
    build,
    current,
    error_of,
    nothing,
    solo,
    soon_or_late,
    task,
    task_in,
)
from sdax import SdaxExecutionError

FATAL = [KeyboardInterrupt, SystemExit, GeneratorExit, type("OwnFatal", (BaseException,), {})]


@pytest.mark.parametrize("kind", FATAL)
@pytest.mark.parametrize("phase", PHASES)
@soon_or_late
async def test_what_is_no_exception(kind: Any, phase: str, number: int) -> None:
    trace = Trace()
    fatal = kind("stop")
    error = await error_of(
        build(
            [trace.task("low")],
            [
                task_in(phase, trace.waiting("waiting") if phase != PHASES[2] else nothing),
                task_in(phase, trace.failing("fatal", fatal, number), name="fatal"),
                task_in(phase, trace.pausing("after", 3), name="after"),
                trace.task("cleanup", "post"),
            ],
            [trace.task("high")],
        ).process_tasks(None)
    )
    assert error is fatal
    assert error.__context__ is None
    assert error.__notes__ == [f"task 'fatal', {phase}, attempt 1 of 1"]
    posts = [event for event in trace if event.endswith("post")]
    if phase == "pre_execute":
        assert posts == ["cleanup.post", "low.post"]
        assert "waiting cancelled" in trace
        assert not [event for event in trace if event.endswith("execute")]
    else:
        assert posts == ["high.post", "cleanup.post", "low.post"]
    if phase == "execute":
        assert "waiting cancelled" in trace
    assert ("after done" in trace) is (phase == "post_execute")
    assert current().cancelling() == 0


@pytest.mark.parametrize("phase", PHASES)
async def test_other_failures_are_the_context_of_what_is_no_exception(phase: str) -> None:
    trace = Trace()
    fatal = KeyboardInterrupt()
    broken, later = Broken(1), Broken(2)
    other = trace.spiteful("A", broken) if phase != PHASES[2] else trace.failing("A", broken, 2)
    error = await error_of(
        build(
            [task("later", post=trace.failing("later", later))],
            [
                task_in(phase, other),
                task_in(phase, trace.failing("B", fatal, 1), name="B"),
            ],
        ).process_tasks(None)
    )
    assert error is fatal
    context = error.__context__
    assert type(context) is SdaxExecutionError
    assert context.exceptions == (broken, later)
    assert [failure.name for failure in context.failures] == ["A", "later"]
    assert context.report is not None


async def test_the_first_of_several_that_are_no_exceptions(loop_errors: list[Any]) -> None:
    trace = Trace()
    first, second, third = KeyboardInterrupt(), SystemExit(), KeyboardInterrupt()
    error = await error_of(
        build(
            [task("C", post=trace.failing("C", third))],
            [
                task("A", trace.spiteful("A", second)),
                task("B", trace.failing("B", first, 1)),
            ],
        ).process_tasks(None)
    )
    assert error is first
    # The others are not lost.
    assert [context["exception"] for context in loop_errors] == [second, third]
    assert all("KeyboardInterrupt" in context["message"] for context in loop_errors)
    loop_errors.clear()


async def test_a_group_that_is_no_exception() -> None:
    group = BaseExceptionGroup("several", [Broken(), KeyboardInterrupt()])
    assert await error_of(solo(Trace().failing("A", group)).process_tasks(None)) is group


async def test_what_is_no_exception_out_of_a_callable() -> None:
    fatal = KeyboardInterrupt()

    def function(ctx: Any) -> Any:
        raise fatal

    trace = Trace()
    assert await error_of(solo(function, post=trace.quick("post")).process_tasks(None)) is fatal
    assert trace == ["post"]


async def test_what_is_no_exception_after_a_failure() -> None:
    broken, fatal = Broken(), SystemExit(3)
    error = await error_of(
        solo(Trace().failing("A", broken), post=Trace().failing("A", fatal)).process_tasks(None)
    )
    assert error is fatal
    assert isinstance(error.__context__, SdaxExecutionError)
    assert error.__context__.exceptions == (broken,)
