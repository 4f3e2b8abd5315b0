"""Fallbacks: what is called when the last attempt has failed for good."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from attempts import Flaky, now, sleep_for_ten, virtual_clock
from helpers import (
    Broken,
    Trace,
    build,
    current,
    error_of,
    failure_of,
    forever,
    passes,
    solo,
    spawn,
    states,
    task,
    task_in,
    until,
)
from observing import Recorder
from sdax import (
    RetryBudget,
    State,
    TaskCancelledError,
    TaskFunction,
    task_sync_func,
    task_thread_func,
)
from sdax.observe import EventLogger, FellBack

pytestmark = pytest.mark.usefixtures("factors")


def cached(ctx: Any, error: Exception) -> str:
    """Answer in place of a function."""
    return f"cached, {error}"


async def cached_later(ctx: Any, error: Exception) -> str:
    """Do it as an async function."""
    await asyncio.sleep(0)
    return f"cached, {error}"


async def fail(ctx: Any) -> None:
    await asyncio.sleep(0)
    raise ConnectionError("down")


def fail_at_once(ctx: Any) -> None:
    raise ConnectionError("down")


BOTH = pytest.mark.parametrize("fallback", [cached, cached_later])


@BOTH
@pytest.mark.parametrize("phase", ["pre_execute", "execute"])
@pytest.mark.parametrize(
    "make", [TaskFunction, lambda f, **limits: task_sync_func(fail_at_once, **limits)]
)
async def test_its_value_is_the_functions(fallback: Any, phase: str, make: Any) -> None:
    trace = Trace()
    function = make(fail, fallback=fallback)
    after = task("B", trace.quick("B.pre"), trace.quick("B.execute"))
    report = await build([task_in(phase, function)], [after]).process_tasks(None)
    assert trace == ["B.pre", "B.execute"]  # the run goes on, as after a success
    reported = getattr(report["A"], phase)
    assert reported[:3] == (State.SUCCEEDED, 1, "cached, down")
    assert reported.fell_back
    assert isinstance(reported.exception, ConnectionError)
    assert report.ok
    assert report.failures == ()
    assert "1, fallback  'cached, down'" in str(report)


@BOTH
@virtual_clock
async def test_after_the_last_attempt(fallback: Any) -> None:
    errors = [ConnectionError(number) for number in range(3)]
    flaky = Flaky(*errors)
    events = Recorder()
    function = TaskFunction(flaky, retries=2, fallback=fallback)
    report = await solo(function).process_tasks(None, observer=events)
    assert now() == 3
    reported = report["A"].pre_execute
    assert reported == (State.SUCCEEDED, 3, "cached, 2", errors[2], tuple(errors[:2]), True)
    (fell_back,) = (event for event in events if isinstance(event, FellBack))
    assert fell_back[2:] == ("pre_execute", 3, errors[2])
    waits = ["A.pre 4 suspended", "A.pre 4 resumed"] if fallback is cached_later else []
    assert events.lines()[events.index(fell_back) :] == [
        "A.pre falls back after 3 ConnectionError",
        "A.pre 4",
        *waits,
        "A.pre 4 succeeded = 'cached, 2'",
        "A.pre succeeded after 3 = 'cached, 2'",
        "pre finished",
        "run succeeded",
    ]


async def test_not_after_a_success() -> None:
    report = await solo(TaskFunction(Flaky(), fallback=cached)).process_tasks(None)
    assert report["A"].pre_execute == (State.SUCCEEDED, 1, "done", None, (), False)


@pytest.mark.parametrize(
    ("error", "limits", "covered"),
    [
        (ConnectionError(), {}, True),
        (ValueError(), {}, False),  # a programming error never hides behind it
        (ValueError(), {"retryable_exceptions": ValueError}, True),
        (ValueError(), {"fallback_exceptions": ValueError}, True),
        (ConnectionError(), {"fallback_exceptions": ValueError}, False),
        (KeyError("A"), {"fallback_exceptions": lambda error: "A" in error.args}, True),
        (KeyError("B"), {"fallback_exceptions": lambda error: "A" in error.args}, False),
        (ExceptionGroup("", [TimeoutError(), ConnectionError()]), {}, True),
        (ExceptionGroup("", [TimeoutError(), ValueError()]), {}, False),
    ],
)
async def test_for_what_it_is_called(error: Exception, limits: Any, covered: bool) -> None:
    function = TaskFunction(Flaky(error), fallback=cached, **limits)
    if covered:
        report = await solo(function).process_tasks(None)
        assert report["A"].pre_execute.exception is error
    else:
        failed = await failure_of(solo(function))
        assert failed.exceptions == (error,)
        assert not failed.report["A"].pre_execute.fell_back


@pytest.mark.parametrize("raised", [KeyboardInterrupt, SystemExit, GeneratorExit])
async def test_not_for_what_stops_a_program(raised: type[BaseException]) -> None:
    trace = Trace()
    function = TaskFunction(
        Flaky(raised()), fallback=lambda *_: trace.append("!"), fallback_exceptions=Exception
    )
    assert isinstance(await error_of(solo(function).process_tasks(None)), raised)
    assert trace == []


@BOTH
async def test_never_after_a_cancellation(fallback: Any) -> None:
    trace = Trace()

    def note(ctx: Any, error: Exception) -> None:
        trace.append("!")

    spiteful = TaskFunction(
        trace.spiteful("A", ConnectionError()), fallback=note, fallback_exceptions=Exception
    )
    error = await failure_of(
        build([task("A", spiteful), task("B", trace.failing("B", Broken(), 2))])
    )
    assert trace == ["A", "B"]
    assert states(error.report) == {"A": "F--", "B": "F--"}
    run = spawn(solo(TaskFunction(forever, fallback=note, fallback_exceptions=Exception)))
    await asyncio.sleep(0)
    run.cancel()
    assert isinstance(await error_of(run), asyncio.CancelledError)
    assert trace == ["A", "B"]


async def test_after_a_cancellation_that_nobody_asked_for() -> None:
    # It is a failure like any other, and covered if it is named.
    async def lost(ctx: Any) -> None:
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    function = TaskFunction(lost, fallback=cached, fallback_exceptions=TaskCancelledError)
    report = await solo(function).process_tasks(None)
    assert isinstance(report["A"].pre_execute.exception, TaskCancelledError)
    assert report["A"].pre_execute.fell_back
    await failure_of(solo(TaskFunction(lost, fallback=cached)))


@virtual_clock
async def test_a_cancellation_while_it_runs() -> None:
    trace = Trace()

    async def slow(ctx: Any, error: Exception) -> None:
        await trace.waiting("fallback")(ctx)

    async def fail_later(ctx: Any) -> None:
        await asyncio.sleep(1)
        raise Broken

    flaky = Flaky(ConnectionError(1), ConnectionError(2))
    function = TaskFunction(flaky, retries=1, initial_delay=0, fallback=slow)
    error = await failure_of(build([task("A", function), task("B", fail_later)]))
    assert trace == ["fallback", "fallback cancelled"]
    reported = error.report["A"].pre_execute
    assert reported[:3] == (State.CANCELLED, 2, None)
    assert reported.fell_back
    assert reported.exception is not None
    assert reported.exception.args == (2,)  # nothing is lost
    assert [each.args for each in reported.attempts_failed] == [(1,)]


@pytest.mark.parametrize("later", [False, True])
async def test_if_it_raises(later: bool) -> None:
    broken, original = Broken("fallback"), ConnectionError("down")

    def plain(ctx: Any, error: Exception) -> None:
        raise broken

    async def in_time(ctx: Any, error: Exception) -> None:
        await asyncio.sleep(0)
        raise broken

    function = TaskFunction(Flaky(original), retries=0, fallback=in_time if later else plain)
    error = await failure_of(solo(function))
    assert error.exceptions == (broken,)
    assert broken.__context__ is original
    assert broken.__notes__ == ["task 'A', pre_execute, fallback after attempt 1 of 1"]
    assert error.failures == (("A", "pre_execute", 1, broken),)
    assert error.report["A"].pre_execute == (State.FAILED, 1, None, broken, (), True)
    assert broken.__traceback__ is not None
    assert broken.__traceback__.tb_frame.f_code.co_name == ("in_time" if later else "plain")


async def test_it_is_not_tried_again() -> None:
    calls: list[int] = []

    def flaky(ctx: Any, error: Exception) -> None:
        calls.append(1)
        raise ConnectionError("as well")

    function = TaskFunction(Flaky(*[ConnectionError()] * 3), retries=2, initial_delay=0,
                            fallback=flaky)  # fmt: skip
    error = await failure_of(solo(function))
    assert len(calls) == 1
    assert error.failures[0].attempts == 3


async def test_it_may_raise_what_it_got() -> None:
    original = ConnectionError("down")

    def give_up(ctx: Any, error: Exception) -> None:
        raise error

    error = await failure_of(solo(TaskFunction(Flaky(original), fallback=give_up)))
    assert error.exceptions == (original,)
    assert original.__context__ is None


@virtual_clock
async def test_the_timeout_bounds_it_as_one_more_attempt() -> None:
    original = ConnectionError("down")

    async def slow(ctx: Any, error: Exception) -> None:
        await sleep_for_ten(ctx)

    # And total_timeout does not.
    function = TaskFunction(
        Flaky(original), timeout=3, total_timeout=1, fallback=slow, limiter=asyncio.Lock()
    )
    error = await failure_of(solo(function))
    assert now() == 3
    (timeout,) = error.exceptions
    assert str(timeout) == "the fallback timed out after 3 s"
    assert timeout.__context__ is original
    assert error.report["A"].pre_execute[:2] == (State.TIMED_OUT, 1)
    function = TaskFunction(Flaky(original), total_timeout=1, fallback=slow)
    await solo(function).process_tasks(None)
    assert now() == 13


@virtual_clock
async def test_after_a_timeout() -> None:
    function = TaskFunction(forever, timeout=3, fallback=cached)
    report = await solo(function).process_tasks(None)
    assert report["A"].pre_execute.value == "cached, timed out after 3 s"
    function = TaskFunction(forever, total_timeout=3, fallback=cached)
    report = await solo(function).process_tasks(None)
    assert report["A"].pre_execute.value == "cached, timed out after total_timeout=3 s"
    assert now() == 6


async def test_after_a_retry_that_is_suppressed() -> None:
    budget = RetryBudget(0, 0)
    function = TaskFunction(fail, retries=3, retry_budget=budget, fallback=cached)
    report = await solo(function).process_tasks(None)
    reported = report["A"].pre_execute
    assert reported[:3] == (State.SUCCEEDED, 1, "cached, down")
    assert reported.exception is not None
    assert "no further attempt: its retry budget is spent" in reported.exception.__notes__


async def test_it_runs_where_the_function_did() -> None:
    seen: list[Any] = []

    async def function(ctx: Any) -> None:
        seen.append(current())
        await asyncio.sleep(0)
        raise ConnectionError

    async def fallback(ctx: Any, error: Exception) -> None:
        await asyncio.sleep(0)
        seen.append(current())

    await solo(TaskFunction(function, fallback=fallback)).process_tasks(None)
    assert seen[0] is seen[1]
    assert seen[0].get_name() == "sdax:A:pre_execute"


async def test_a_cancellation_that_the_attempt_has_left_behind() -> None:
    async def function(ctx: Any) -> None:
        current().cancel()  # not yet felt
        raise ConnectionError("down")

    report = await solo(TaskFunction(function, fallback=cached_later)).process_tasks(None)
    assert report["A"].pre_execute.value == "cached, down"


async def test_stop_iteration_is_a_failure_like_any_other() -> None:
    stop = StopIteration("A")

    def fallback(ctx: Any, error: Exception) -> None:
        raise stop

    error = await failure_of(solo(TaskFunction(fail, fallback=fallback)))
    assert error.exceptions == (stop,)


async def test_of_a_thread() -> None:
    function = task_thread_func(fail_at_once, fallback=cached)
    report = await solo(function).process_tasks(None)
    assert report["A"].pre_execute.value == "cached, down"


async def test_a_sibling_fails_before_it_could_be_called() -> None:
    # In the same pass of the loop.
    trace = Trace()
    event = asyncio.Event()

    async def fail_after(ctx: Any) -> None:
        await event.wait()
        raise ConnectionError("down")

    def note(ctx: Any, error: Exception) -> None:
        trace.append("fallback")

    processor = build(
        [
            task("B", trace.waiting("B", event)),
            task("C", TaskFunction(fail_after)),
            task("A", TaskFunction(fail_after, fallback=note)),
        ]
    )
    run = spawn(processor)
    await until(lambda: trace)
    event.set()
    await error_of(run)
    assert "fallback" not in trace


async def test_the_log_warns(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "sdax"):
        await solo(TaskFunction(fail, fallback=cached)).process_tasks(None, observer=EventLogger())
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    text = record.getMessage()
    assert text.startswith("pre_execute of task 'A' fell back after 1 attempt (run ")
    assert text.endswith("): ConnectionError('down')")


async def test_many_at_once() -> None:
    names = range(100)
    functions = {
        name: TaskFunction(Flaky(ConnectionError(name)), fallback=cached_later) for name in names
    }
    report = await build([task(name, functions[name]) for name in names]).process_tasks(None)
    assert [report[name].pre_execute.value for name in names] == [f"cached, {n}" for n in names]
    await passes(1)
