"""What follows a failed attempt, decided without a run: a line for each rule."""

from __future__ import annotations

import asyncio
import math
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from helpers import one_loop
from sdax import RetryableException, RetryBudget, TaskFunction
from sdax.clients import retry_after
from sdax.engine.attempts import (
    Next,
    TimeLeft,
    after_failure,
    after_timeout,
    limit_of,
    settle_with_budget,
    time_left,
)

pytestmark = one_loop

FACTOR = 0.75  # in place of what lies between 0.5 and 1.0


@pytest.fixture(autouse=True)
def fixed_factor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdax.engine.attempts.uniform", lambda low, high: FACTOR)


class TooManyError(Exception):
    def __init__(self, seconds: Any = None) -> None:
        super().__init__("too many requests")
        self.seconds = seconds


def says(error: Exception) -> Any:
    return getattr(error, "seconds", None)


def handle(ctx: Any, error: Exception) -> None: ...


async def call(ctx: Any) -> None: ...


def decide(
    error: BaseException,
    attempts: int = 1,
    backoffs: int = 0,
    left: float | None = None,
    stopping: bool = False,
    **limits: Any,
) -> Next:
    limits = {"retries": 3, "retryable_exceptions": (ConnectionError, TooManyError)} | limits
    cleanup_timeout: float | None = limits.pop("cleanup_timeout", None)
    function = TaskFunction(call, **limits)
    time: TimeLeft | None = None
    if cleanup_timeout is not None:
        time = left or 0.0, "cleanup_timeout", cleanup_timeout
    elif left is not None:
        time = left, "total_timeout", limits["total_timeout"]
    return after_failure(function, attempts, backoffs, time, error, stopping)


BACKOFF = 1.0 * FACTOR
JITTER = 1.0 * (FACTOR - 0.5)


@pytest.mark.parametrize(
    ("error", "arguments", "delay", "backoffs"),
    [
        # The backoff, by how many there were since the last delay that was asked for.
        (ConnectionError(), {}, BACKOFF, 1),
        (ConnectionError(), {"attempts": 3, "backoffs": 2}, 4 * FACTOR, 3),
        (ConnectionError(), {"attempts": 3, "backoffs": 0}, BACKOFF, 1),
        (ConnectionError(), {"backoffs": 2, "max_delay": 2}, 2 * FACTOR, 3),
        (ConnectionError(), {"initial_delay": 0}, 0, 1),
        # What a service asks for: at least that, and the backoff starts anew.
        (TooManyError(5), {"retry_after": says}, 5 + JITTER, 0),
        (TooManyError(5), {"retry_after": says, "attempts": 3, "backoffs": 2}, 5 + JITTER, 0),
        (TooManyError(0), {"retry_after": says}, JITTER, 0),
        (TooManyError(5), {"retry_after": says, "initial_delay": 0}, 5, 0),
        (TooManyError(5), {"retry_after": says, "initial_delay": 8}, 5 + 8 * (FACTOR - 0.5), 0),
        (TooManyError(5), {"retry_after": says, "max_delay": 5}, 5 + JITTER, 0),
        (TooManyError(5), {"retry_after": says, "left": 5.5, "total_timeout": 9}, 5 + JITTER, 0),
        (TooManyError(), {"retry_after": says}, BACKOFF, 1),
        (ConnectionError(), {"retry_after": says}, BACKOFF, 1),
        # It says so itself, without a function or where the function says nothing.
        (RetryableException(retry_after=2), {}, 2 + JITTER, 0),
        (RetryableException(retry_after=2), {"retry_after": says}, 2 + JITTER, 0),
        (RetryableException(retry_after=2), {"retry_after": retry_after}, 2 + JITTER, 0),
        (RetryableException(retry_after=2), {"retry_after": lambda error: 4}, 4 + JITTER, 0),
        (RetryableException(), {}, BACKOFF, 1),
        # A group: the largest of its leaves.
        (
            ExceptionGroup("", [TooManyError(3), ExceptionGroup("", [TooManyError(7)])]),
            {"retry_after": says},
            7 + JITTER,
            0,
        ),
        (
            ExceptionGroup("", [TooManyError(0), TooManyError(0.5), TooManyError(7)]),
            {"retry_after": says},
            7 + JITTER,
            0,
        ),
        (
            ExceptionGroup("", [TooManyError(3), TooManyError()]),
            {"retry_after": says},
            3 + JITTER,
            0,
        ),
        (ExceptionGroup("", [TooManyError(), TooManyError()]), {"retry_after": says}, BACKOFF, 1),
        # What is left of total_timeout is enough.
        (ConnectionError(), {"left": 0.76, "total_timeout": 9}, BACKOFF, 1),
        (ConnectionError(), {"attempts": 3}, BACKOFF, 1),
    ],
)
def test_another_attempt(error: Exception, arguments: Any, delay: float, backoffs: int) -> None:
    retryable = (ConnectionError, TooManyError, RetryableException)
    following = decide(error, **{"retryable_exceptions": retryable, **arguments})
    assert following == Next(error, delay, backoffs)
    assert not hasattr(error, "__notes__")


@pytest.mark.parametrize(
    ("error", "arguments", "reason"),
    [
        # Never a silent cap.
        (TooManyError(-1), {"retry_after": says}, "retry_after says that there must be none"),
        (TooManyError(math.inf), {"retry_after": says}, "retry_after says that there must be none"),
        (
            TooManyError(61),
            {"retry_after": says, "max_delay": 60},
            "retry_after asks for 61 s, more than max_delay=60 s",
        ),
        (
            TooManyError(9.5),
            {"retry_after": says, "left": 9, "total_timeout": 10},
            "the pause before it would reach total_timeout=10 s",
        ),
        (
            RetryableException(retry_after=-1),
            {},
            "retry_after says that there must be none",
        ),
        # A leaf that asks never to come back asks for more than any other.
        (
            ExceptionGroup("", [TooManyError(-1), TooManyError(7)]),
            {"retry_after": says},
            "retry_after says that there must be none",
        ),
        # The next pause reaches the limit.
        (
            ConnectionError(),
            {"left": BACKOFF, "total_timeout": 5},
            "the pause before it would reach total_timeout=5 s",
        ),
        (
            ConnectionError(),
            {"left": 0.0, "total_timeout": 5, "initial_delay": 0},
            "the pause before it would reach total_timeout=5 s",
        ),
        (
            ConnectionError(),
            {"left": BACKOFF, "cleanup_timeout": 2.5},
            "the pause before it would reach cleanup_timeout=2.5 s",
        ),
        (
            ConnectionError(),
            {"retry_budget": RetryBudget(min_per_second=0)},
            "its retry budget is spent",
        ),
    ],
)
def test_an_attempt_that_is_suppressed(error: Exception, arguments: Any, reason: str) -> None:
    retryable = (ConnectionError, TooManyError, RetryableException)
    following = decide(error, **{"retryable_exceptions": retryable, **arguments})
    assert following == Next(error, suppressed=reason)
    assert error.__notes__ == [f"no further attempt: {reason}"]
    # With a fallback, that comes now.
    following = decide(error, fallback=handle, **{"retryable_exceptions": retryable, **arguments})
    assert following == Next(error, falls_back=True, suppressed=reason)


def is_odd(error: Exception) -> bool:
    return isinstance(error, KeyError)


@pytest.mark.parametrize(
    ("error", "arguments", "falls_back"),
    [
        # By default for what is retryable, after the last attempt.
        (ConnectionError(), {"attempts": 4}, True),
        (ConnectionError(), {"retries": 0}, True),
        (ValueError(), {}, False),
        (ValueError(), {"attempts": 4}, False),
        (ExceptionGroup("", [ConnectionError()]), {"retries": 0}, True),
        (ExceptionGroup("", [ConnectionError(), ValueError()]), {"retries": 0}, False),
        # For what was said.
        (ValueError(), {"fallback_exceptions": ValueError}, True),
        (ConnectionError(), {"attempts": 4, "fallback_exceptions": [ValueError]}, False),
        (KeyError(), {"fallback_exceptions": is_odd}, True),
        (ValueError(), {"fallback_exceptions": is_odd}, False),
        (ExceptionGroup("", [KeyError(), KeyError()]), {"fallback_exceptions": is_odd}, True),
        (ExceptionGroup("", [KeyError(), OSError()]), {"fallback_exceptions": is_odd}, False),
        # Never after a cancellation, for what is no Exception, or in a run that stops.
        (asyncio.CancelledError(), {"fallback_exceptions": Exception}, False),
        (KeyboardInterrupt(), {"fallback_exceptions": Exception}, False),
        (
            BaseExceptionGroup("", [asyncio.CancelledError()]),
            {"fallback_exceptions": lambda error: True},
            False,
        ),
        (ConnectionError(), {"attempts": 4, "stopping": True}, False),
        (ConnectionError(), {"stopping": True}, False),
    ],
)
def test_a_failure_for_good(error: BaseException, arguments: Any, falls_back: bool) -> None:
    assert decide(error, fallback=handle, **arguments) == Next(error, falls_back=falls_back)
    arguments.pop("fallback_exceptions", None)
    assert decide(error, **arguments) == Next(error)


def test_a_retry_comes_before_the_fallback() -> None:
    error = ConnectionError()
    assert decide(error, fallback=handle) == Next(error, BACKOFF, 1)


def test_nobody_is_asked_twice() -> None:
    asked: list[str] = []

    def ask(answer: Any) -> Callable[[Exception], Any]:
        return lambda error: asked.append(type(error).__name__) or answer

    for retryable, attempts in ((True, 1), (False, 1), (True, 4), (False, 4)):
        decide(KeyError(), attempts, fallback=handle, retryable_exceptions=ask(retryable), left=0.1,
               total_timeout=1)  # fmt: skip
        assert asked == ["KeyError"]
        asked.clear()
    decide(ConnectionError(), retry_after=ask(None))
    assert asked == ["ConnectionError"]
    asked.clear()
    decide(ValueError(), retry_after=ask(None))
    decide(ConnectionError(), 4, retry_after=ask(None))
    assert asked == []  # it has not earned a retry


def fails(error: Exception) -> Any:
    raise LookupError("out of the function that was asked")


@pytest.mark.parametrize(
    ("limits", "kind", "message"),
    [
        ({"retry_after": fails}, LookupError, "out of the function"),
        ({"retryable_exceptions": fails}, LookupError, "out of the function"),
        (
            {"fallback": handle, "fallback_exceptions": fails, "retries": 0},
            LookupError,
            "out of the function",
        ),
        ({"retry_after": lambda error: "5"}, TypeError, "retry_after .* a number .* got '5'"),
        ({"retry_after": lambda error: True}, TypeError, "retry_after .* a number .* got True"),
        ({"retry_after": lambda error: math.nan}, ValueError, "retry_after .* got nan"),
        ({"retry_after": lambda error: call(None)}, TypeError, "retry_after must be a plain"),
    ],
)
def test_what_a_function_that_is_asked_raises(
    limits: Any, kind: type[Exception], message: str
) -> None:
    error = ConnectionError()
    following = decide(error, **limits)
    assert following == Next(following.error)
    frames = traceback.extract_tb(following.error.__traceback__)
    assert [frame.name for frame in frames] in ([], ["fails"])  # none of the engine's
    with pytest.raises(kind, match=message):
        raise following.error
    assert following.error.__context__ is error


def test_a_budget_pays_only_for_what_nothing_else_forbids() -> None:
    budget = RetryBudget(ratio=0, min_per_second=0.1)
    for arguments in (
        {"left": 0.1, "total_timeout": 1},
        {"left": 0.1, "cleanup_timeout": 1},
        {"attempts": 4},
        {"stopping": True},
    ):
        assert decide(ConnectionError(), retry_budget=budget, **arguments).delay is None  # type: ignore[arg-type]
    assert decide(ValueError(), retry_budget=budget).delay is None
    assert budget.balance == 1
    assert decide(ConnectionError(), retry_budget=budget).delay == BACKOFF
    assert budget.balance == 0
    assert decide(ConnectionError(), retry_budget=budget).delay is None


@pytest.mark.parametrize(
    ("attempt", "cancelled", "balance"),
    [(1, False, 3.5), (1, True, 3), (2, False, 3), (2, True, 4), (3, True, 4)],
)
def test_what_counts_for_a_budget(attempt: int, cancelled: bool, balance: float) -> None:
    budget = RetryBudget(ratio=0.5, min_per_second=0.4)
    budget.try_withdraw()
    settle_with_budget(TaskFunction(call, retry_budget=budget), attempt, cancelled)
    settle_with_budget(TaskFunction(call), attempt, cancelled)
    assert budget.balance == balance


@dataclass
class Cut:
    """An attempt whose timer has fired."""

    requests: int = 0
    stopping: bool = False
    error: Callable[[], BaseException | None] = asyncio.CancelledError
    times_out: bool = True


@pytest.mark.parametrize(
    "cut",
    [
        Cut(),
        Cut(error=lambda: BaseExceptionGroup("", [asyncio.CancelledError()])),
        Cut(requests=2),
        Cut(requests=-1, times_out=False),  # a request that came after it
        Cut(stopping=True, times_out=False),
        Cut(error=ValueError, times_out=False),
        Cut(error=lambda: None, times_out=False),
    ],
)
async def test_an_attempt_that_is_cut_off(cut: Cut) -> None:
    task = asyncio.current_task()
    assert task is not None
    error, earlier = cut.error(), ConnectionError("the real reason")
    for before in (None, earlier):
        left, timed_out = after_timeout(error, "too late", task, cut.requests, cut.stopping, before)
        assert timed_out == cut.times_out
        if not timed_out:
            assert left is error
            continue
        assert isinstance(left, TimeoutError)
        assert str(left) == "too late"
        assert left.__cause__ is error
        assert left.__context__ is before
        notes = [] if before is None else [f"the attempt before it raised {before!r}"]
        assert getattr(left, "__notes__", []) == notes


@pytest.mark.parametrize(
    ("started", "deadline", "covers", "seconds", "message"),
    [
        (100.0, 101.0, False, 1.0, "timed out after 1.0 s"),
        (100.0, 100 + 4 / 3, False, 4 / 3, f"timed out after total_timeout={4 / 3} s"),
        (101.0, 100 + 4 / 3, False, 0.333333, f"timed out after total_timeout={4 / 3} s"),
        (101.0, 102.0, True, 1.0, "the fallback timed out after 1.0 s"),
    ],
)
def test_the_limit_that_cuts_off(
    started: float, deadline: float, covers: bool, seconds: float, message: str
) -> None:
    function = TaskFunction(call, timeout=1.0, total_timeout=4 / 3)
    assert limit_of(function, 100.0, started, deadline, covers) == (seconds, message)


@pytest.mark.parametrize(
    ("now", "cut_off_at", "left"),
    [(101.0, None, 3.0), (101.0, 101.0, 3.0), (103.75, 104.0, 0.0), (104.5, 104.0, 0.0)],
)
def test_the_seconds_that_are_left(now: float, cut_off_at: float | None, left: float) -> None:
    limits = TaskFunction(call, timeout=1.0, total_timeout=4.0)
    unlimited = TaskFunction(call, timeout=1.0)
    total, cleanup = (left, "total_timeout", 4.0), (left, "cleanup_timeout", 9.0)
    # Timers may be early.
    assert time_left(limits, 100.0, now, cut_off_at, None, None) == total
    assert time_left(limits, 100.0, now, cut_off_at, 9.0, None) == total  # not begun
    assert time_left(limits, 100.0, now, cut_off_at, 9.0, 104.0) == total
    assert time_left(limits, 103.0, now, cut_off_at, 9.0, 104.0) == cleanup  # which is less
    assert time_left(unlimited, 100.0, now, cut_off_at, 9.0, 104.0) == cleanup
    assert time_left(unlimited, 100.0, now, cut_off_at, None, None) is None
