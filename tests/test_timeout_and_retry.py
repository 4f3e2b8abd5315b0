"""Attempts: how long each may take, and what earns another one.

Times are exact: the clock is virtual, and the random factor of the delays is fixed.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
from typing import Any

import pytest

from helpers import (
    PHASES,
    Trace,
    build,
    error_of,
    failure_of,
    forever,
    nothing,
    passes,
    solo,
    spawn,
    states,
    task,
    task_in,
    until,
)
from sdax import RetryableException, SdaxExecutionError, TaskCancelledError, TaskFunction

virtual_clock = pytest.mark.virtual_clock


class Broken(Exception):
    """What nobody retries, unless asked to."""


@pytest.fixture(autouse=True)
def factors(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Make every random factor 1, and return the ranges that were asked for."""
    ranges: list[Any] = []
    if "engine" in request.fixturenames:
        engine = request.getfixturevalue("engine")

        def uniform(low: float, high: float) -> float:
            ranges.append((low, high))
            return 1.0

        monkeypatch.setattr(engine.module, "uniform", uniform)
    return ranges


def now() -> float:
    return asyncio.get_running_loop().time()


class Flaky:
    """A function that fails as it is told, then succeeds; it notes when it was called."""

    def __init__(self, *errors: BaseException, suspend: bool = False) -> None:
        self.errors = list(errors)
        self.suspend = suspend
        self.calls: list[float] = []

    async def __call__(self, ctx: Any) -> str:
        self.calls.append(now())
        if self.suspend:
            await asyncio.sleep(0)
        if self.errors:
            raise self.errors.pop(0)
        return "done"


async def sleep_for_ten(ctx: Any) -> None:
    await asyncio.sleep(10)


suspended_or_not = pytest.mark.parametrize("suspend", [False, True], ids=["at once", "suspended"])


# Timeout


@virtual_clock
@pytest.mark.parametrize("phase", PHASES)
async def test_timeout(phase: str) -> None:
    trace = Trace()
    error = await failure_of(
        build(
            [
                task_in(phase, TaskFunction(trace.waiting("A"), timeout=3)),
                task_in(phase, sleep_for_ten, name="B"),
            ]
        )
    )
    assert trace == ["A", "A cancelled"]
    (exception,) = error.exceptions
    assert type(exception) is TimeoutError
    assert type(exception.__cause__) is asyncio.CancelledError
    assert states(error.report)["A"] == {0: "T--", 1: "-T-", 2: "--T"}[PHASES.index(phase)]
    # In cleanup nothing else is cancelled.
    assert now() == (10 if phase == "post_execute" else 3)


@virtual_clock
async def test_no_timeout_by_default() -> None:
    async def slow(ctx: Any) -> None:
        await asyncio.sleep(10**6)

    await solo(slow).process_tasks(None)
    assert now() == 10**6


@virtual_clock
async def test_what_ends_in_time_does_not_time_out() -> None:
    function = TaskFunction(sleep_for_ten, timeout=10.5)
    report = await solo(function, function, function).process_tasks(None)
    assert states(report) == {"A": "+++"}
    assert now() == 30


@pytest.mark.parametrize("timeout", [0, 0.0, 0.001])
async def test_timeouts_on_the_real_clock(timeout: float) -> None:
    error = await failure_of(solo(TaskFunction(forever, timeout=timeout)))
    assert type(error.exceptions[0]) is TimeoutError


@pytest.mark.parametrize("timeout", [10**9, 1e300])
async def test_timeouts_too_far_away_for_a_clock(timeout: float) -> None:
    report = await solo(TaskFunction(Trace().pausing("A"), timeout=timeout)).process_tasks(None)
    assert states(report) == {"A": "+--"}


async def test_timeout_of_zero_expires_at_the_first_suspension() -> None:
    trace = Trace()

    async def function(ctx: Any) -> None:
        trace.append("called")
        try:
            await asyncio.sleep(0)
            trace.append("never")
        finally:
            trace.append("ended")

    error = await failure_of(solo(TaskFunction(function, timeout=0)))
    assert type(error.exceptions[0]) is TimeoutError
    assert trace == ["called", "ended"]


async def test_timeout_of_zero_leaves_alone_what_never_suspends() -> None:
    async def function(ctx: Any) -> Any:
        done = asyncio.get_running_loop().create_future()
        done.set_result("done")
        return await done

    report = await solo(*[TaskFunction(function, timeout=0)] * 3).process_tasks(None)
    assert report["A"].execute.value == "done"


@virtual_clock
async def test_time_before_the_first_suspension_counts() -> None:
    trace = Trace()

    async def function(ctx: Any) -> None:
        asyncio.get_running_loop().advance(5)  # type: ignore[attr-defined]
        trace.append("computed")
        await asyncio.sleep(1)
        trace.append("never")

    error = await failure_of(solo(TaskFunction(function, timeout=3)))
    assert type(error.exceptions[0]) is TimeoutError
    assert trace == ["computed"]


@virtual_clock
async def test_time_without_a_suspension_is_never_a_timeout() -> None:
    async def function(ctx: Any) -> None:
        asyncio.get_running_loop().advance(5)  # type: ignore[attr-defined]

    assert states(await solo(TaskFunction(function, timeout=3)).process_tasks(None)) == {"A": "+--"}


@virtual_clock
async def test_each_of_many_timeouts_has_its_own_time() -> None:
    ended: list[tuple[Any, float]] = []

    def function(name: int) -> Any:
        async def wait(ctx: Any) -> None:
            try:
                await forever()
            finally:
                ended.append((name, now()))

        return TaskFunction(wait, timeout=name)

    # In cleanup, so that none stops the others; added in no order.
    error = await failure_of(
        build([task(name, post=function(name)) for name in (3, 1, 4, 5, 9, 2, 6)])
    )
    assert ended == [(name, float(name)) for name in (1, 2, 3, 4, 5, 6, 9)]
    assert [failure.name for failure in error.failures] == [1, 2, 3, 4, 5, 6, 9]


@virtual_clock
async def test_a_later_and_nearer_timeout_is_not_late() -> None:
    async def second(ctx: Any) -> None:
        await forever()

    error = await failure_of(
        build(
            [task("low", post=TaskFunction(second, timeout=1))],
            [
                task("slow", post=TaskFunction(sleep_for_ten, timeout=100)),
                task("high", post=TaskFunction(sleep_for_ten, timeout=50)),
            ],
        )
    )
    assert [failure.name for failure in error.failures] == ["low"]
    assert now() == 11


@virtual_clock
async def test_a_timeout_that_is_swallowed_is_a_success() -> None:
    trace = Trace()
    report = await solo(TaskFunction(trace.stubborn("A", "value"), timeout=3)).process_tasks(None)
    assert trace == ["A", "A swallowed"]
    assert report["A"].pre_execute[:3] == ("succeeded", 1, "value")


@virtual_clock
async def test_a_timeout_answered_with_another_exception() -> None:
    broken = Broken()
    error = await failure_of(solo(TaskFunction(Trace().spiteful("A", broken), timeout=3)))
    assert error.exceptions == (broken,)
    assert states(error.report) == {"A": "F--"}


@virtual_clock
async def test_what_follows_a_timeout_is_awaited() -> None:
    async def slow_to_end(ctx: Any) -> None:
        try:
            await forever()
        finally:
            await asyncio.sleep(4)

    error = await failure_of(solo(TaskFunction(slow_to_end, timeout=3)))
    assert type(error.exceptions[0]) is TimeoutError
    assert now() == 7


@virtual_clock
async def test_a_timeout_is_over_with_its_function() -> None:
    # The next function of the same task has its own limit, or none.
    async def short(ctx: Any) -> None:
        await asyncio.sleep(1)

    report = await solo(TaskFunction(short, timeout=2), sleep_for_ten).process_tasks(None)
    assert states(report) == {"A": "++-"}


@virtual_clock
@pytest.mark.parametrize("inner", [1, 5])
async def test_a_timeout_of_asyncios_inside(inner: int) -> None:
    trace = Trace()

    async def function(ctx: Any) -> None:
        try:
            async with asyncio.timeout(inner):
                await forever()
        except TimeoutError:
            trace.append("inner")
            await forever()

    error = await failure_of(solo(TaskFunction(function, timeout=3)))
    assert type(error.exceptions[0]) is TimeoutError
    assert now() == 3
    assert trace == (["inner"] if inner == 1 else [])


@virtual_clock
async def test_two_timeouts_at_once() -> None:
    async def function(ctx: Any) -> None:
        async with asyncio.timeout(3):
            await forever()

    error = await failure_of(solo(TaskFunction(function, timeout=3)))
    assert type(error.exceptions[0]) is TimeoutError


@virtual_clock
async def test_wait_for_inside() -> None:
    async def function(ctx: Any) -> None:
        await asyncio.wait_for(forever(), 2)

    error = await failure_of(solo(TaskFunction(function, timeout=3)))
    assert type(error.exceptions[0]) is TimeoutError
    assert states(error.report) == {"A": "F--"}  # the function's own, not the attempt's
    assert now() == 2


@virtual_clock
async def test_a_timeout_after_the_failure_of_a_sibling() -> None:
    # Cancelled by its sibling, it takes its time to end: the timeout changes nothing.
    trace = Trace()

    async def slow_to_end(ctx: Any) -> None:
        try:
            await forever()
        finally:
            try:
                await asyncio.sleep(10)
            finally:
                trace.append(f"ended at {now()}")

    async def fail(ctx: Any) -> None:
        await asyncio.sleep(1)
        raise Broken

    error = await failure_of(
        build([task("A", TaskFunction(slow_to_end, timeout=3)), task("B", fail)])
    )
    assert [type(exception) for exception in error.exceptions] == [Broken]
    assert states(error.report) == {"A": "C--", "B": "F--"}
    assert trace == ["ended at 3.0"]


@virtual_clock
async def test_a_timeout_together_with_the_failure_of_a_sibling() -> None:
    loop = asyncio.get_running_loop()
    gate = loop.create_future()

    async def fail(ctx: Any) -> None:
        await gate

    async def main() -> SdaxExecutionError:
        return await failure_of(
            build([task("B", fail), task("A", TaskFunction(forever, timeout=3))])
        )

    # The same pass of the loop, whichever timer comes first.
    broken = Broken()
    loop.call_at(3, gate.set_exception, broken)
    error = await main()
    assert error.failures[0].exception is broken or error.failures[0].name == "A"
    assert broken in error.exceptions or states(error.report)["B"] == "C--"
    assert states(error.report)["A"] in ("T--", "C--")
    assert "F--" in states(error.report).values() or "T--" in states(error.report).values()
    gate.exception()


@virtual_clock
async def test_a_timeout_together_with_a_cancellation_of_other_code() -> None:
    owned: list[asyncio.Task[Any]] = []

    async def function(ctx: Any) -> None:
        owned.append(asyncio.current_task())  # type: ignore[arg-type]
        try:
            await forever()
        finally:
            owned[0].cancel()

    # asyncio.timeout() tells its own cancellation from another by count, and lets that through.
    error = await failure_of(solo(TaskFunction(function, timeout=3)))
    assert type(error.exceptions[0]) is TaskCancelledError


@virtual_clock
async def test_the_count_of_cancellations_is_given_back() -> None:
    counts: list[int] = []

    async def function(ctx: Any) -> None:
        counts.append(asyncio.current_task().cancelling())  # type: ignore[union-attr]
        await forever()

    await failure_of(solo(TaskFunction(function, timeout=3, retries=2)))
    assert counts == [0, 0, 0]


@virtual_clock
async def test_a_cancellation_swallowed_before_counts_as_in_asyncio() -> None:
    async def swallow() -> None:
        asyncio.current_task().cancel()  # type: ignore[union-attr]
        with contextlib.suppress(asyncio.CancelledError):
            await forever()

    trace = Trace()

    async def ours(ctx: Any) -> None:
        trace.append("called")
        if len(trace) == 1:
            await swallow()
            raise RetryableException
        await forever()

    error = await failure_of(solo(TaskFunction(ours, timeout=1, retries=1)))
    assert len(trace) == 2
    # What asyncio.timeout() makes of it too, but for the first releases of 3.11.
    assert type(error.exceptions[0]) is TimeoutError


@virtual_clock
async def test_timeouts_in_cleanup_after_a_cancellation(loop_errors: list[Any]) -> None:
    run = spawn(solo(forever, post=TaskFunction(forever, timeout=4)))
    await passes(2)
    run.cancel()
    error = await error_of(run)
    assert isinstance(error, asyncio.CancelledError)
    assert now() == 4
    (failure,) = loop_errors.pop()["exception"].exceptions
    assert type(failure) is TimeoutError


# Which exceptions are retried


@virtual_clock
@suspended_or_not
@pytest.mark.parametrize("phase", PHASES)
async def test_retries_until_success(phase: str, suspend: bool) -> None:
    flaky = Flaky(RetryableException(), ConnectionError(), suspend=suspend)
    report = await build(
        [task_in(phase, TaskFunction(flaky, retries=3, initial_delay=1))]
    ).process_tasks(None)
    assert flaky.calls == [0, 1, 3]
    phase_report = getattr(report["A"], phase)
    assert phase_report == ("succeeded", 3, "done", None)


@virtual_clock
@suspended_or_not
@pytest.mark.parametrize("phase", PHASES)
async def test_retries_used_up(phase: str, suspend: bool) -> None:
    errors = [RetryableException(number) for number in range(3)]
    flaky = Flaky(*errors, suspend=suspend)
    error = await failure_of(build([task_in(phase, TaskFunction(flaky, retries=2))]))
    assert len(flaky.calls) == 3
    # The last attempt's alone.
    assert error.exceptions == (errors[2],)
    assert error.failures == (("A", phase, 3, errors[2]),)
    assert errors[2].__notes__ == [f"task 'A', {phase}, attempt 3 of 3"]
    assert errors[2].__context__ is None
    assert getattr(error.report["A"], phase)[:2] == ("failed", 3)  # type: ignore[index]


class OwnRetryable(RetryableException):
    pass


GROUP_OF_RETRYABLE = ExceptionGroup("", [TimeoutError(), ExceptionGroup("", [OwnRetryable()])])
GROUP_WITH_ANOTHER = ExceptionGroup("", [TimeoutError(), ExceptionGroup("", [ValueError()])])


@virtual_clock
@pytest.mark.parametrize(
    ("error", "retryable", "retried"),
    [
        (TimeoutError(), None, True),
        (ConnectionError(), None, True),
        (ConnectionResetError(), None, True),
        (RetryableException(), None, True),
        (OwnRetryable(), None, True),
        (OSError(), None, False),
        (ValueError(), None, False),
        (GROUP_OF_RETRYABLE, None, True),
        (GROUP_WITH_ANOTHER, None, False),
        (ValueError(), (ValueError, KeyError), True),
        (KeyError(), (ValueError, KeyError), True),
        (UnicodeError(), (ValueError,), True),
        (ValueError(), ValueError, True),
        (TimeoutError(), (ValueError,), False),
        (GROUP_OF_RETRYABLE, (ExceptionGroup,), True),
        (GROUP_WITH_ANOTHER, (ValueError,), False),
        (GROUP_WITH_ANOTHER, (ValueError, TimeoutError), True),
        (ValueError(), lambda error: isinstance(error, ValueError), True),
        (KeyError(), lambda error: isinstance(error, ValueError), False),
        (ValueError(), lambda error: "true", True),
        (ValueError(), lambda error: "", False),
        (GROUP_WITH_ANOTHER, lambda error: isinstance(error, (ValueError, TimeoutError)), True),
        (GROUP_WITH_ANOTHER, lambda error: isinstance(error, ValueError), False),
    ],
)
async def test_what_is_retried(error: Exception, retryable: Any, retried: bool) -> None:
    flaky = Flaky(error)
    limits = {} if retryable is None else {"retryable_exceptions": retryable}
    processor = solo(TaskFunction(flaky, retries=1, **limits))
    if retried:
        await processor.process_tasks(None)
    else:
        failure = await failure_of(processor)
        assert failure.failures[0].attempts == 1
        assert failure.exceptions == (error,)
    assert len(flaky.calls) == 1 + retried


async def test_nothing_is_retried_by_default() -> None:
    flaky = Flaky(RetryableException())
    await failure_of(solo(flaky))
    assert len(flaky.calls) == 1


async def test_a_predicate_is_asked_with_the_exception_itself() -> None:
    asked: list[Exception] = []
    errors = [Broken(1), Broken(2)]

    def predicate(error: Exception) -> bool:
        asked.append(error)
        return True

    flaky = Flaky(*errors)
    function = TaskFunction(flaky, retries=5, initial_delay=0, retryable_exceptions=predicate)
    await solo(function).process_tasks(None)
    assert asked == errors


async def test_a_predicate_is_not_asked_when_no_attempt_is_left() -> None:
    def predicate(error: Exception) -> bool:
        raise AssertionError

    broken = Broken()
    function = TaskFunction(Flaky(broken), retryable_exceptions=predicate)
    assert (await failure_of(solo(function))).exceptions == (broken,)


@suspended_or_not
async def test_a_predicate_that_raises(suspend: bool) -> None:
    broken, wrong = Broken(), ZeroDivisionError()

    def predicate(error: Exception) -> bool:
        raise wrong

    flaky = Flaky(broken, suspend=suspend)
    error = await failure_of(solo(TaskFunction(flaky, retries=1, retryable_exceptions=predicate)))
    assert error.exceptions == (wrong,)
    # What it was asked about is not lost.
    assert wrong.__context__ is broken
    assert len(flaky.calls) == 1


@suspended_or_not
async def test_a_predicate_that_raises_stop_iteration(suspend: bool) -> None:
    # A failure, never the end of an iteration; Python may make a RuntimeError of it.
    def predicate(error: Exception) -> bool:
        raise StopIteration("value")

    flaky = Flaky(Broken(), suspend=suspend)
    error = await failure_of(solo(TaskFunction(flaky, retries=1, retryable_exceptions=predicate)))
    assert type(error.exceptions[0]) in (StopIteration, RuntimeError)
    assert len(flaky.calls) == 1


async def test_a_predicate_that_raises_what_is_no_exception() -> None:
    fatal = KeyboardInterrupt()

    def predicate(error: Exception) -> bool:
        raise fatal

    trace = Trace()
    function = TaskFunction(Flaky(Broken()), retries=1, retryable_exceptions=predicate)
    assert await error_of(solo(function, post=trace.quick("post")).process_tasks(None)) is fatal
    assert trace == ["post"]


@suspended_or_not
async def test_a_predicate_that_returns_a_coroutine(suspend: bool) -> None:
    # It would always be true, and never awaited.
    async def ask(error: Exception) -> bool:
        raise AssertionError

    def predicate(error: Exception) -> Any:
        return ask(error)

    broken = Broken()
    flaky = Flaky(broken, suspend=suspend)
    function = TaskFunction(flaky, retries=1, retryable_exceptions=predicate)
    (error,) = (await failure_of(solo(function))).exceptions
    assert isinstance(error, TypeError)
    assert "predicate" in str(error)
    assert "ask" in str(error)
    assert error.__context__ is broken
    assert len(flaky.calls) == 1


@pytest.mark.parametrize("fatal", [KeyboardInterrupt(), asyncio.CancelledError(), GeneratorExit()])
async def test_what_is_no_exception_is_never_retried(fatal: BaseException) -> None:
    flaky = Flaky(fatal)
    function = TaskFunction(flaky, retries=5, retryable_exceptions=lambda error: True)
    error = await error_of(solo(function).process_tasks(None))
    if isinstance(fatal, asyncio.CancelledError):
        assert type(error) is SdaxExecutionError
        assert type(error.exceptions[0]) is TaskCancelledError
        assert error.failures[0].attempts == 1
    else:
        assert error is fatal
    assert len(flaky.calls) == 1


async def test_a_group_with_what_is_no_exception_is_never_retried() -> None:
    group = BaseExceptionGroup("", [RetryableException(), KeyboardInterrupt()])
    flaky = Flaky(group)
    assert await error_of(solo(TaskFunction(flaky, retries=1)).process_tasks(None)) is group
    assert len(flaky.calls) == 1


async def test_a_callable_that_raises_is_retried() -> None:
    trace = Trace()

    def function(ctx: Any) -> Any:
        trace.append("called")
        if len(trace) == 1:
            raise ConnectionError
        return nothing(ctx)

    await solo(TaskFunction(function, retries=1, initial_delay=0)).process_tasks(None)
    assert trace == ["called"] * 2


async def test_what_is_no_awaitable_is_retried_if_asked_for() -> None:
    trace = Trace()

    def function(ctx: Any) -> Any:
        trace.append("called")

    error = await failure_of(
        solo(TaskFunction(function, retries=1, initial_delay=0, retryable_exceptions=TypeError))
    )
    assert type(error.exceptions[0]) is TypeError
    assert trace == ["called"] * 2


# Timeouts and retries together


@virtual_clock
@pytest.mark.parametrize("phase", PHASES)
async def test_a_timeout_bounds_each_attempt(phase: str) -> None:
    calls: list[float] = []

    async def function(ctx: Any) -> None:
        calls.append(now())
        await forever()

    error = await failure_of(
        build([task_in(phase, TaskFunction(function, timeout=5, retries=2, initial_delay=1))])
    )
    # 5 seconds each, and delays of 1 and 2.
    assert calls == [0, 6, 13]
    assert now() == 18
    assert error.failures[0].attempts == 3
    assert type(error.exceptions[0]) is TimeoutError
    assert getattr(error.report["A"], phase).state == "timed out"  # type: ignore[index]


@virtual_clock
async def test_a_timeout_that_is_not_retryable() -> None:
    function = TaskFunction(forever, timeout=5, retries=2, retryable_exceptions=(ValueError,))
    error = await failure_of(solo(function))
    assert error.failures[0].attempts == 1
    assert now() == 5


@virtual_clock
async def test_an_attempt_in_time_after_one_that_timed_out() -> None:
    trace = Trace()

    async def function(ctx: Any) -> str:
        trace.append("called")
        await asyncio.sleep(10 if len(trace) == 1 else 2)
        return "in time"

    report = await solo(TaskFunction(function, timeout=5, retries=1)).process_tasks(None)
    assert report["A"].pre_execute == ("succeeded", 2, "in time", None)
    assert now() == 5 + 1 + 2


@virtual_clock
async def test_a_failure_after_an_attempt_that_timed_out() -> None:
    broken = Broken()
    trace = Trace()

    async def function(ctx: Any) -> None:
        trace.append("called")
        if len(trace) == 1:
            await forever()
        raise broken

    error = await failure_of(solo(TaskFunction(function, timeout=5, retries=1)))
    assert error.failures == (("A", "pre_execute", 2, broken),)
    assert states(error.report) == {"A": "F--"}


@virtual_clock
async def test_a_timeout_of_zero_is_retried() -> None:
    trace = Trace()

    async def function(ctx: Any) -> None:
        trace.append("called")
        if len(trace) < 3:
            await asyncio.sleep(0)

    function_of_zero = TaskFunction(function, timeout=0, retries=2)
    await solo(function_of_zero).process_tasks(None)
    assert now() == 1 + 2


@virtual_clock
async def test_the_pause_before_a_retry_is_no_part_of_an_attempt() -> None:
    flaky = Flaky(RetryableException())
    await solo(TaskFunction(flaky, timeout=1, retries=1, initial_delay=100)).process_tasks(None)
    assert flaky.calls == [0, 100]


# Delays


@virtual_clock
@pytest.mark.parametrize(
    ("limits", "delays"),
    [
        ({}, [1, 2, 4, 8]),
        ({"initial_delay": 3}, [3, 6, 12, 24]),
        ({"initial_delay": 3, "backoff_factor": 1}, [3, 3, 3, 3]),
        ({"backoff_factor": 0.5}, [1, 0.5, 0.25, 0.125]),
        ({"max_delay": 3}, [1, 2, 3, 3]),
        ({"max_delay": 0.5}, [0.5] * 4),
        ({"max_delay": 0}, [0] * 4),
        ({"initial_delay": 0}, [0] * 4),
        ({"initial_delay": 0, "backoff_factor": 1e308}, [0] * 4),
        ({"backoff_factor": 1e308, "max_delay": 5}, [1, 5, 5, 5]),
        ({"initial_delay": 1e308, "max_delay": 5}, [5] * 4),
        ({"initial_delay": 1e-308, "backoff_factor": 1e-308}, [1e-308, 0, 0, 0]),
    ],
)
async def test_delays(limits: dict[str, Any], delays: list[float], factors: list[Any]) -> None:
    flaky = Flaky(*[RetryableException()] * 4)
    await solo(TaskFunction(flaky, retries=4, **limits)).process_tasks(None)
    gaps = [after - before for before, after in zip(flaky.calls, flaky.calls[1:], strict=False)]
    assert gaps == pytest.approx(delays)
    assert factors == [(0.5, 1.0)] * 4


@virtual_clock
@pytest.mark.parametrize("factor", [0.5, 0.75, 1.0])
async def test_the_random_factor(
    factor: float, engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine.module, "uniform", lambda low, high: factor)
    flaky = Flaky(*[RetryableException()] * 3)
    await solo(TaskFunction(flaky, retries=3, max_delay=3)).process_tasks(None)
    assert flaky.calls == [0, factor, factor * (1 + 2), factor * (1 + 2 + 3)]


@virtual_clock
async def test_the_factor_is_really_random(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr("sdax.processor.Run", engine.module.Run)
    flaky = Flaky(*[RetryableException()] * 50)
    function = TaskFunction(flaky, retries=50, backoff_factor=1)
    await solo(function).process_tasks(None)
    gaps = [after - before for before, after in zip(flaky.calls, flaky.calls[1:], strict=False)]
    assert all(0.499 < gap < 1.001 for gap in gaps)
    assert len({round(gap, 6) for gap in gaps}) > 25


@pytest.mark.parametrize("retry", [0, 1, 10, 1023, 1024, 10**6, 10**18])
@pytest.mark.parametrize("initial_delay", [0, 1, 2.5])
@pytest.mark.parametrize("backoff_factor", [1, 2, 1.5, 0.5, 1e300, 1e-300, 10**30])
@pytest.mark.parametrize("max_delay", [None, 0, 60])
def test_the_backoff_never_overflows(
    retry: int, initial_delay: float, backoff_factor: float, max_delay: float | None
) -> None:
    function = TaskFunction(
        nothing, initial_delay=initial_delay, backoff_factor=backoff_factor, max_delay=max_delay
    )
    delay = function.backoff(retry)
    assert not math.isnan(delay)
    assert 0 <= delay <= (math.inf if max_delay is None else max_delay)
    if retry < 10 and backoff_factor < 10:
        expected = initial_delay * backoff_factor**retry
        assert delay == (expected if max_delay is None else min(max_delay, expected))
    if retry >= 10**6 and backoff_factor > 1 and initial_delay:
        assert delay == (math.inf if max_delay is None else max_delay)
    if retry >= 10**6 and backoff_factor < 1:
        assert delay == 0


@pytest.mark.parametrize("backoff_factor", [1, 1e308])
async def test_an_endless_delay_can_be_cancelled(
    backoff_factor: float, loop_errors: list[Any]
) -> None:
    errors = [RetryableException(1), RetryableException(2)]
    flaky = Flaky(*errors)
    function = TaskFunction(flaky, retries=3, initial_delay=1e308, backoff_factor=backoff_factor)
    run = spawn(solo(function))
    await until(lambda: flaky.calls)
    await passes(2)
    run.cancel()
    assert isinstance(await error_of(run), asyncio.CancelledError)
    assert loop_errors.pop()["exception"].exceptions == (errors[0],)


@virtual_clock
async def test_waiting_for_a_retry_stops_no_sibling() -> None:
    flaky = Flaky(RetryableException())
    trace = Trace()

    async def sibling(ctx: Any) -> None:
        await asyncio.sleep(5)
        trace.append(f"sibling at {now()}")

    async def above(ctx: Any) -> None:
        trace.append(f"above at {now()}")

    await build(
        [task("A", TaskFunction(flaky, retries=1, initial_delay=10)), task("B", sibling)],
        [task("C", above)],
    ).process_tasks(None)
    assert trace == ["sibling at 5.0", "above at 10.0"]


# Cancellation


@virtual_clock
@pytest.mark.parametrize("limits", [{"initial_delay": 100}, {"initial_delay": 0}])
async def test_cancelled_while_waiting_for_a_retry(
    limits: dict[str, Any], loop_errors: list[Any]
) -> None:
    errors = [RetryableException(number) for number in range(100)]
    trace = Trace()
    flaky = Flaky(*errors)
    run = spawn(solo(TaskFunction(flaky, retries=1000, **limits), post=trace.quick("post")))
    await until(lambda: flaky.calls)
    await asyncio.sleep(0)
    run.cancel()
    error = await error_of(run)
    assert isinstance(error, asyncio.CancelledError)
    assert now() == 0
    # What the last attempt raised is not lost.
    last = errors[len(flaky.calls) - 1]
    failures = loop_errors.pop()["exception"].failures
    assert failures == (("A", "pre_execute", len(flaky.calls), last),)
    assert trace == ["post"]


@virtual_clock
async def test_a_sibling_fails_while_one_waits_for_a_retry() -> None:
    last, broken = RetryableException(), Broken()

    async def fail(ctx: Any) -> None:
        await asyncio.sleep(5)
        raise broken

    flaky = Flaky(last)
    error = await failure_of(
        build([task("A", TaskFunction(flaky, retries=1, initial_delay=100)), task("B", fail)])
    )
    assert now() == 5
    assert error.exceptions == (broken, last)
    assert error.failures[1] == ("A", "pre_execute", 1, last)
    assert last.__notes__ == ["task 'A', pre_execute, attempt 1 of 2"]
    assert len(flaky.calls) == 1


@virtual_clock
async def test_other_code_cancels_while_one_waits_for_a_retry() -> None:
    owned: list[asyncio.Task[Any]] = []
    last = RetryableException()

    async def function(ctx: Any) -> None:
        owned.append(asyncio.current_task())  # type: ignore[arg-type]
        raise last

    run = asyncio.get_running_loop().create_task(
        failure_of(solo(TaskFunction(function, retries=1, initial_delay=100)))
    )
    await until(lambda: owned)
    await passes(2)
    owned[0].cancel()
    error = await run
    assert now() == 0
    assert error.exceptions == (last,)
    assert len(owned) == 1


@virtual_clock
async def test_a_wait_after_a_timeout_is_cancelled() -> None:
    broken = Broken()

    async def fail(ctx: Any) -> None:
        await asyncio.sleep(5)
        raise broken

    error = await failure_of(
        build(
            [
                task("A", TaskFunction(forever, timeout=1, retries=1, initial_delay=100)),
                task("B", fail),
            ]
        )
    )
    assert now() == 5
    assert [type(exception) for exception in error.exceptions] == [Broken, TimeoutError]
    assert states(error.report) == {"A": "T--", "B": "F--"}


@pytest.mark.parametrize("by", ["a sibling", "the caller"])
async def test_a_cancelled_attempt_is_never_retried(by: str, loop_errors: list[Any]) -> None:
    # Not even if it answers the cancellation with what would be retried.
    trace = Trace()
    error = RetryableException()
    limits: dict[str, Any] = {"retries": 5, "retryable_exceptions": lambda error: True}
    gate = asyncio.Event()

    async def fail(ctx: Any) -> None:
        await gate.wait()
        raise Broken

    run = spawn(
        build(
            [
                task("A", TaskFunction(trace.waiting("A"), **limits)),
                task("B", TaskFunction(trace.spiteful("B", error), **limits)),
                task("C", fail),
            ]
        )
    )
    await until(lambda: "B" in trace)
    await asyncio.sleep(0)
    if by == "a sibling":
        gate.set()
    else:
        run.cancel()
    raised = await error_of(run)
    if by == "the caller":
        assert isinstance(raised, asyncio.CancelledError)
        raised = loop_errors.pop()["exception"]
    assert isinstance(raised, SdaxExecutionError)
    assert raised.exceptions[-1] is error
    assert trace == ["A", "B", "A cancelled"]
    assert states(raised.report) == {"A": "C--", "B": "F--", "C": "F--" if gate.is_set() else "C--"}


@virtual_clock
async def test_cleanup_is_retried_after_a_failure_and_a_cancellation() -> None:
    flaky = Flaky(RetryableException(), RetryableException())
    cleanup = TaskFunction(flaky, retries=2)
    await failure_of(solo(Trace().failing("A", Broken()), post=cleanup))
    assert flaky.calls == [0, 1, 3]

    flaky = Flaky(RetryableException(), RetryableException())
    run = spawn(solo(forever, post=TaskFunction(flaky, retries=2, initial_delay=10)))
    await passes(2)
    run.cancel()
    await until(lambda: flaky.calls)
    # Not even the pause before a retry is cut short in cleanup.
    await passes(2)
    run.cancel()
    assert isinstance(await error_of(run), asyncio.CancelledError)
    assert flaky.calls == [3, 13, 33]


@virtual_clock
async def test_a_failing_cleanup_does_not_keep_another_from_its_retries() -> None:
    flaky = Flaky(RetryableException())

    async def fail_later(ctx: Any) -> None:
        await asyncio.sleep(5)
        raise Broken

    error = await failure_of(
        build(
            [
                task("A", post=Trace().failing("A", Broken())),
                task("B", post=TaskFunction(flaky, retries=1, initial_delay=10)),
                task("C", post=fail_later),
            ]
        )
    )
    assert flaky.calls == [0, 10]
    assert states(error.report) == {"A": "--F", "B": "--+", "C": "--F"}


# Functions with a task group


@virtual_clock
async def test_each_attempt_has_a_task_group_of_its_own() -> None:
    groups: list[Any] = []

    async def function(ctx: Any, group: Any) -> Any:
        groups.append(group)
        child = group.create_task(asyncio.sleep(1, "child"))
        if len(groups) == 1:
            raise RetryableException
        return await child

    report = await solo(
        TaskFunction(function, retries=1, has_task_group_argument=True)
    ).process_tasks("context")
    assert report["A"].pre_execute == ("succeeded", 2, "child", None)
    assert len(set(map(id, groups))) == 2
    assert all(isinstance(group, asyncio.TaskGroup) for group in groups)


@virtual_clock
async def test_children_are_awaited_before_an_attempt_ends() -> None:
    trace = Trace()

    async def child() -> None:
        await asyncio.sleep(3)
        trace.append("child")

    async def function(ctx: Any, group: Any) -> None:
        assert ctx == "context"
        group.create_task(child())

    await build(
        [task("A", TaskFunction(function, has_task_group_argument=True))],
        [task("B", trace.quick("B"))],
    ).process_tasks("context")
    assert trace == ["child", "B"]


@virtual_clock
async def test_a_failing_child_fails_the_attempt() -> None:
    broken = Broken()

    async def fail() -> None:
        await asyncio.sleep(1)
        raise broken

    async def function(ctx: Any, group: Any) -> None:
        group.create_task(fail())
        await forever()

    error = await failure_of(solo(TaskFunction(function, has_task_group_argument=True)))
    (member,) = error.exceptions
    assert type(member) is ExceptionGroup
    assert member.exceptions == (broken,)
    assert error.leaf_exceptions() == [broken]


@virtual_clock
async def test_children_are_cancelled_with_their_attempt() -> None:
    trace = Trace()

    async def function(ctx: Any, group: Any) -> None:
        group.create_task(trace.waiting("child")(None))

    error = await failure_of(solo(TaskFunction(function, timeout=2, has_task_group_argument=True)))
    assert type(error.exceptions[0]) is TimeoutError
    assert trace == ["child", "child cancelled"]


@virtual_clock
async def test_a_child_that_fails_retryably_is_retried_by_the_leaves() -> None:
    calls: list[float] = []

    async def fail() -> None:
        raise ConnectionError

    async def function(ctx: Any, group: Any) -> None:
        calls.append(now())
        if len(calls) < 3:
            group.create_task(fail())

    await solo(TaskFunction(function, retries=2, has_task_group_argument=True)).process_tasks(None)
    assert calls == [0, 1, 3]


# Refusals


@pytest.mark.parametrize(
    ("limits", "kind", "message"),
    [
        ({"timeout": -1}, ValueError, "TaskFunction.timeout must be finite .* negative, got -1"),
        ({"timeout": math.nan}, ValueError, "timeout must be finite and not negative, got nan"),
        ({"timeout": math.inf}, ValueError, "timeout must be finite and not negative, got inf"),
        ({"timeout": "5"}, TypeError, "TaskFunction.timeout must be a number, got '5'"),
        ({"timeout": True}, TypeError, "timeout must be a number, got True"),
        ({"timeout": 10**400}, ValueError, "timeout must be finite and not negative, got 1000"),
        ({"retries": -1}, ValueError, "TaskFunction.retries must not be negative, got -1"),
        ({"retries": 1.0}, TypeError, "TaskFunction.retries must be an integer, got 1.0"),
        ({"retries": True}, TypeError, "retries must be an integer, got True"),
        ({"retries": None}, TypeError, "retries must be an integer, got None"),
        ({"retries": "3"}, TypeError, "retries must be an integer, got '3'"),
        ({"initial_delay": -0.5}, ValueError, "initial_delay must be finite and not negative"),
        ({"initial_delay": math.nan}, ValueError, "initial_delay must be finite and .* got nan"),
        ({"initial_delay": math.inf}, ValueError, "initial_delay must be finite and .* got inf"),
        ({"initial_delay": None}, TypeError, "initial_delay must be a number, got None"),
        ({"backoff_factor": 0}, ValueError, "backoff_factor must be greater than 0, got 0"),
        ({"backoff_factor": -0.0}, ValueError, "backoff_factor must be greater than 0, got -0.0"),
        ({"backoff_factor": -2}, ValueError, "TaskFunction.backoff_factor must be .* got -2"),
        ({"backoff_factor": math.nan}, ValueError, "TaskFunction.backoff_factor must .* got nan"),
        ({"backoff_factor": math.inf}, ValueError, "TaskFunction.backoff_factor .* got inf"),
        ({"backoff_factor": 2j}, TypeError, "backoff_factor must be a number, got 2j"),
        ({"max_delay": -1}, ValueError, "TaskFunction.max_delay must be finite .* got -1"),
        ({"max_delay": math.nan}, ValueError, "max_delay must be finite .* got nan"),
        ({"max_delay": math.inf}, ValueError, "max_delay must be finite .* got inf"),
        ({"max_delay": []}, TypeError, r"max_delay must be a number, got \[\]"),
        (
            {"retries": 1, "retryable_exceptions": ()},
            ValueError,
            "TaskFunction.retryable_exceptions is empty, so retries=1 could never happen",
        ),
        (
            {"retryable_exceptions": (ValueError, "KeyError")},
            TypeError,
            "retryable_exceptions must hold subclasses of Exception, got 'KeyError'",
        ),
        (
            {"retryable_exceptions": (KeyboardInterrupt,)},
            TypeError,
            "subclasses of Exception, got <class 'KeyboardInterrupt'>",
        ),
        (
            {"retryable_exceptions": asyncio.CancelledError},
            TypeError,
            "subclasses of Exception, got <class 'asyncio.exceptions.CancelledError'>",
        ),
        (
            {"retryable_exceptions": (int,)},
            TypeError,
            "subclasses of Exception, got <class 'int'>",
        ),
        ({"retryable_exceptions": None}, TypeError, "retryable_exceptions must be .* got None"),
        ({"retryable_exceptions": 5}, TypeError, "retryable_exceptions must be .* got 5"),
        (
            {"retries": 1, "retryable_exceptions": Flaky()},
            TypeError,
            "retryable_exceptions must be a plain predicate.* got <.*Flaky",
        ),
        (
            {"has_task_group_argument": 1},
            TypeError,
            "has_task_group_argument must be a bool, got 1",
        ),
    ],
)
def test_refused_limits(limits: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message) as caught:
        TaskFunction(nothing, **limits)
    assert type(caught.value) is kind


@pytest.mark.parametrize("function", [None, 5, "name"])
def test_a_function_must_be_callable(function: Any) -> None:
    message = f"TaskFunction.function must be callable with the context, got {function!r}"
    with pytest.raises(TypeError, match=re.escape(message)):
        TaskFunction(function)


def test_a_coroutine_in_place_of_its_function() -> None:
    # It is closed: no warning that it was never awaited, which would be an error here.
    with pytest.raises(TypeError, match="pass the function itself, without calling it"):
        TaskFunction(nothing(None))  # type: ignore[arg-type]


def test_limits_in_their_order() -> None:
    def predicate(error: Exception) -> bool:
        return True

    function = TaskFunction(nothing, 1, 2, 3, 4, predicate, True, 5)
    assert function == TaskFunction(
        function=nothing,
        timeout=1,
        retries=2,
        initial_delay=3,
        backoff_factor=4,
        retryable_exceptions=predicate,
        has_task_group_argument=True,
        max_delay=5,
    )


def test_defaults() -> None:
    function: TaskFunction[Any] = TaskFunction(nothing)
    assert (function.timeout, function.retries, function.initial_delay) == (None, 0, 1.0)
    assert (function.backoff_factor, function.max_delay) == (2.0, None)
    assert function.retryable_exceptions == (TimeoutError, ConnectionError, RetryableException)
    assert function.has_task_group_argument is False


@pytest.mark.parametrize("kinds", [[ValueError], {ValueError}, frozenset({ValueError}), ValueError])
def test_retryable_exceptions_become_a_tuple(kinds: Any) -> None:
    function: TaskFunction[Any] = TaskFunction(nothing, retryable_exceptions=kinds)
    assert function.retryable_exceptions == (ValueError,)
    hash(function)
