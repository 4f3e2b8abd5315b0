"""Delays that a service asks for."""

from __future__ import annotations

from typing import Any

import pytest

from attempts import Flaky, now, virtual_clock
from helpers import error_of, failure_of, solo
from observing import Recorder
from sdax import RetryableException, TaskFunction
from sdax.clients import retry_after
from sdax.observe import RetryScheduled, RetrySuppressed

# Factors of 1: the most that a delay may be.
pytestmark = pytest.mark.usefixtures("factors")


def busy(*seconds: float | None) -> list[BaseException]:
    return [RetryableException("busy", retry_after=each) for each in seconds]


@virtual_clock
async def test_at_least_so_long_and_then_the_backoff_anew(factors: list[Any]) -> None:
    events = Recorder()
    flaky = Flaky(*busy(None, None, 10, None, None))
    function = TaskFunction(flaky, retries=9)
    report = await solo(function).process_tasks(None, observer=events)
    assert report["A"].pre_execute[:2] == ("succeeded", 6)
    delays = [event.delay for event in events if isinstance(event, RetryScheduled)]
    # Backoffs of 1 and 2; 10 and half of initial_delay; and 1 and 2 again.
    assert delays == [1, 2, 10.5, 1, 2]
    assert factors == [(0.5, 1.0)] * 5
    assert now() == sum(delays)


@virtual_clock
async def test_a_function_is_asked_once_for_each_retry() -> None:
    asked: list[Exception] = []

    def ask(error: Exception) -> float:
        asked.append(error)
        return 3.0

    errors = [ConnectionError(), ValueError()]
    await failure_of(solo(TaskFunction(Flaky(*errors), retries=9, retry_after=ask)))
    assert asked == errors[:1]
    assert now() == 3.5


@virtual_clock
async def test_the_largest_of_a_group() -> None:
    group = ExceptionGroup("", [*busy(2), ExceptionGroup("", [*busy(5), TimeoutError()])])
    flaky = Flaky(group)
    function = TaskFunction(flaky, retries=1, initial_delay=0, retry_after=retry_after)
    await solo(function).process_tasks(None)
    assert flaky.calls == [0, 5]


@virtual_clock
@pytest.mark.parametrize(
    ("seconds", "limits", "reason"),
    [
        (-1, {}, "retry_after says that there must be none"),
        (30, {"max_delay": 20}, "retry_after asks for 30 s, more than max_delay=20 s"),
        (30, {"total_timeout": 25}, "the pause before it would reach total_timeout=25 s"),
    ],
)
async def test_never_a_silent_cap(seconds: float, limits: Any, reason: str) -> None:
    events = Recorder()
    (error,) = busy(seconds)
    flaky = Flaky(error)
    function = TaskFunction(flaky, retries=9, **limits)
    raised: Any = await error_of(solo(function).process_tasks(None, observer=events))
    assert raised.exceptions == (error,)
    assert len(flaky.calls) == 1
    assert f"no further attempt: {reason}" in error.__notes__
    assert [event.reason for event in events if isinstance(event, RetrySuppressed)] == [reason]
