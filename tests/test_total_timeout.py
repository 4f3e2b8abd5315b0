"""How long all attempts at a function may take together, with the pauses between them.

Times are exact: the clock is virtual.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from attempts import Flaky, now, sleep_for_ten, virtual_clock
from helpers import (
    PHASES,
    Broken,
    Trace,
    build,
    error_of,
    failure_of,
    forever,
    nothing,
    solo,
    spawn,
    states,
    task,
    task_in,
)
from observing import Recorder
from sdax import AsyncTaskProcessor, State, TaskFunction
from sdax.observe import RetrySuppressed, TimeoutExpired

pytestmark = pytest.mark.usefixtures("factors")


def only(error: Any, phase: str = "pre_execute") -> Any:
    return getattr(error.report["A"], phase)


@virtual_clock
@pytest.mark.parametrize("phase", PHASES)
async def test_it_cuts_an_attempt_off(phase: str) -> None:
    trace = Trace()
    function = TaskFunction(trace.waiting("A"), total_timeout=3)
    error = await failure_of(build([task_in(phase, function)]))
    assert trace == ["A", "A cancelled"]
    assert now() == 3
    (timeout,) = error.exceptions
    assert str(timeout) == "timed out after total_timeout=3 s"
    assert type(timeout.__cause__) is asyncio.CancelledError
    assert timeout.__context__ is None
    assert only(error, phase)[:2] == (State.TIMED_OUT, 1)


@virtual_clock
async def test_attempts_and_pauses_count_together() -> None:
    calls: list[float] = []

    async def slow(ctx: Any) -> None:
        calls.append(now())
        await asyncio.sleep(2)
        raise ConnectionError(len(calls))

    # Attempts from 0 to 2 and from 3 to 5. From 7 on, one second is left.
    function = TaskFunction(slow, retries=9, total_timeout=8)
    error = await failure_of(solo(function))
    assert calls == [0, 3, 7]
    assert now() == 8
    (timeout,) = error.exceptions
    # What the attempts before it raised is not lost behind the timeout.
    assert isinstance(timeout.__context__, ConnectionError)
    assert timeout.__context__.args == (2,)
    assert "the attempt before it raised ConnectionError(2)" in timeout.__notes__
    assert only(error).attempts == 3
    assert [each.args for each in only(error).attempts_failed] == [(1,), (2,)]


@virtual_clock
async def test_an_attempt_may_take_the_lesser_of_both() -> None:
    events = Recorder()
    function = TaskFunction(forever, timeout=3, retries=9, total_timeout=8, backoff_factor=1)
    processor: Any = solo(function)
    error: Any = await error_of(processor.process_tasks(None, observer=events))
    # From 0 to 3, from 4 to 7, and at 8 there would be nothing left.
    assert now() == 7
    assert str(error.exceptions[0]) == "timed out after 3 s"
    function = TaskFunction(forever, timeout=3, retries=9, total_timeout=8.5, backoff_factor=1)
    error = await error_of(solo(function).process_tasks(None, observer=events))
    assert now() == 7 + 8.5
    (timeout,) = error.exceptions
    assert str(timeout) == "timed out after total_timeout=8.5 s"
    assert str(timeout.__context__) == "timed out after 3 s"
    expired = [event.timeout for event in events if isinstance(event, TimeoutExpired)]
    assert expired == [3, 3, 3, 3, 0.5]


@virtual_clock
@pytest.mark.parametrize("limits", [{}, {"timeout": 60}])
async def test_no_attempt_after_a_pause_that_would_reach_it(limits: Any) -> None:
    events = Recorder()
    errors = [ConnectionError(number) for number in range(3)]
    flaky = Flaky(*errors)
    # Pauses of 1, 2 and 4 seconds, of which the last would end at 7.
    function = TaskFunction(flaky, retries=9, total_timeout=7, **limits)
    error: Any = await error_of(solo(function).process_tasks(None, observer=events))
    assert flaky.calls == [0, 1, 3]
    assert now() == 3
    assert error.exceptions == (errors[2],)
    assert only(error)[:2] == (State.FAILED, 3)
    note = "no further attempt: the pause before it would reach total_timeout=7 s"
    assert note in errors[2].__notes__
    (suppressed,) = (event for event in events if isinstance(event, RetrySuppressed))
    assert suppressed[2:] == (
        "pre_execute",
        3,
        "the pause before it would reach total_timeout=7 s",
        errors[2],
    )
    # A little more, and there is another one.
    flaky = Flaky(*errors)
    report = await solo(TaskFunction(flaky, retries=9, total_timeout=7.1, **limits)).process_tasks(
        None
    )
    assert len(flaky.calls) == 4
    assert report["A"].pre_execute.value == "done"


@virtual_clock
async def test_what_is_cut_off_is_not_tried_again() -> None:
    function = TaskFunction(forever, retries=9, total_timeout=2, initial_delay=0)
    error = await failure_of(solo(function))
    assert now() == 2
    assert only(error)[:2] == (State.TIMED_OUT, 1)
    assert "total_timeout=2 s" in error.exceptions[0].__notes__[0]


@virtual_clock
async def test_it_does_not_count_the_wait_for_a_place() -> None:
    processor = (
        AsyncTaskProcessor.builder(max_concurrency=1)
        .add_task(task("long", sleep_for_ten), 1)
        .add_task(task("A", TaskFunction(forever, total_timeout=2)), 1)
        .build()
    )
    await failure_of(processor)
    assert now() == 12


@virtual_clock
async def test_a_pause_can_be_cancelled() -> None:
    failing = TaskFunction(Flaky(ConnectionError()), retries=1, initial_delay=50, total_timeout=99)

    async def fail(ctx: Any) -> None:
        await asyncio.sleep(1)
        raise Broken

    error = await failure_of(build([task("A", failing), task("B", fail)]))
    assert now() == 1
    assert states(error.report)["A"] == "C--"


async def test_none_at_all() -> None:
    # As with asyncio.timeout(0): what never suspends cannot be interrupted.
    await solo(TaskFunction(nothing, total_timeout=0)).process_tasks(None)
    error = await failure_of(solo(TaskFunction(forever, total_timeout=0)))
    assert str(error.exceptions[0]) == "timed out after total_timeout=0 s"


async def test_a_real_clock() -> None:
    function = TaskFunction(forever, total_timeout=0.02, retries=3, timeout=0.005, initial_delay=0)
    error = await failure_of(solo(function))
    assert isinstance(error.exceptions[0], TimeoutError)


async def test_the_caller_is_cancelled() -> None:
    run = spawn(solo(TaskFunction(forever, total_timeout=60)))
    await asyncio.sleep(0)
    run.cancel()
    assert isinstance(await error_of(run), asyncio.CancelledError)
