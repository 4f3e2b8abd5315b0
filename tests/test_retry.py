"""Which exceptions earn another attempt."""

from __future__ import annotations

import traceback
from typing import Any

import pytest

from attempts import Flaky, suspended_or_not, virtual_clock
from helpers import PHASES, Broken, Trace, build, error_of, failure_of, nothing, solo, task_in
from sdax import RetryableException, TaskFunction

pytestmark = pytest.mark.usefixtures("factors")


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
    assert phase_report[:4] == ("succeeded", 3, "done", None)
    assert [type(each) for each in phase_report.attempts_failed] == [
        RetryableException,
        ConnectionError,
    ]


@virtual_clock
@suspended_or_not
@pytest.mark.parametrize("phase", PHASES)
async def test_retries_used_up(phase: str, suspend: bool) -> None:
    errors = [RetryableException(number) for number in range(3)]
    flaky = Flaky(*errors, suspend=suspend)
    error = await failure_of(build([task_in(phase, TaskFunction(flaky, retries=2))]))
    assert len(flaky.calls) == 3
    # The last attempt's alone; the others' are in the report.
    assert error.exceptions == (errors[2],)
    assert error.failures == (("A", phase, 3, errors[2]),)
    assert errors[2].__notes__ == [f"task 'A', {phase}, attempt 3 of 3"]
    assert errors[2].__context__ is None
    reported = getattr(error.report["A"], phase)
    assert reported[:2] == ("failed", 3)
    assert reported.attempts_failed == tuple(errors[:2])


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


@pytest.mark.parametrize("fatal", [KeyboardInterrupt(), SystemExit(), GeneratorExit()], ids=repr)
async def test_what_is_not_an_exception_is_never_retried(fatal: BaseException) -> None:
    flaky = Flaky(fatal)
    function = TaskFunction(flaky, retries=5, retryable_exceptions=lambda error: True)
    assert await error_of(solo(function).process_tasks(None)) is fatal
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


@virtual_clock
async def test_a_predicate_sees_the_frames_of_the_function_alone() -> None:
    seen: list[list[str]] = []

    def predicate(error: Exception) -> bool:
        seen.append([frame.name for frame in traceback.extract_tb(error.__traceback__)])
        return True

    async def fails_once(ctx: Any) -> None:
        if not seen:
            raise Broken

    await solo(
        TaskFunction(fails_once, retries=1, initial_delay=0, retryable_exceptions=predicate)
    ).process_tasks(None)
    assert seen == [["fails_once"]]
