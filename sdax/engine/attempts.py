"""Decisions about a failed attempt, for both engines, which carry them out."""

from __future__ import annotations

import math
from asyncio import Task
from typing import Any, Final, NamedTuple, TypeAlias

from ..common.checks import checked_number, checked_seconds
from ..common.groups import iter_leaves
from ..common.text import shown
from ..limits import answer
from ..tasks import RetryableException, TaskFunction
from .calls import StoppedError
from .exceptions import (
    add_note,
    chain,
    hide_engine,
    is_cancellation,
    is_exception,
    set_cause,
    set_context,
)


def uniform(low: float, high: float) -> float:
    """Return the random factor of a delay. Tests and `sdax.testing` replace this function."""
    from random import uniform  # for retries only

    return uniform(low, high)


CUT_OFF: Final = "cut off by cleanup_timeout"

AT_ONCE: Final = -math.inf  # a deadline before any other moment

# The seconds that are left of a limit, its name, and the seconds of all of it.
TimeLeft: TypeAlias = tuple[float, str, float]


class Next(NamedTuple):
    """The decision about a failed attempt.

    After `delay` seconds comes another attempt. If `delay` is None, `falls_back` is True if the
    fallback is called, and otherwise `error` is the failure. `backoffs` counts the delays since the
    last delay that a service has asked for. `suppressed` says why there is no further attempt
    although the error is retryable.
    """

    error: BaseException
    delay: float | None = None
    backoffs: int = 0
    falls_back: bool = False
    suppressed: str | None = None


def after_timeout(
    error: BaseException | None,
    message: str,
    task: Task[Any],
    requests: int,
    stopping: bool,
    earlier: BaseException | None,
) -> tuple[BaseException | None, bool]:
    """Return what an attempt leaves whose timer has fired, and whether it has timed out.

    `requests` are the requests to cancel its `asyncio.Task` that were open before the timer's
    own. A cancellation that came after it wins, as with `asyncio.timeout()`, and so does that of
    a run that is stopping. `earlier` is what the attempt before it has raised: it must not be lost
    behind the timeout.
    """
    left = task.uncancel()
    if stopping or left > requests or not is_cancellation(error):
        return error, False
    assert error is not None
    hide_engine(error)
    timeout = TimeoutError(message)
    set_cause(timeout, error)
    if earlier is not None:
        set_context(timeout, earlier)
        # A traceback shows the cause, and the context no more.
        add_note(timeout, f"the attempt before it raised {shown(earlier)}")
    return timeout, True


def after_failure(
    limits: TaskFunction[Any],
    attempts: int,
    backoffs: int,
    left: TimeLeft | None,
    error: BaseException,
    stopping: bool,
) -> Next:
    """Decide what follows attempt number `attempts`, which has left this error.

    `left` is the time for all attempts, None without a limit. The error is replaced by what a
    function of the user's raises that is asked about it.
    """
    if stopping or not is_exception(error):
        return Next(error)
    try:
        retryable = attempts <= limits.retries and limits.is_retryable(error)
        following = Next(error)
        if retryable:
            following = _retry(limits, backoffs, left, error)
            if following.delay is not None:
                return following
            add_note(error, f"no further attempt: {following.suppressed}")
        if limits.fallback is None:
            return following
        # Nobody is asked twice.
        known = limits.fallback_exceptions is None and attempts <= limits.retries
        covered = retryable if known else limits.is_covered(error)
        return following._replace(falls_back=covered)
    except BaseException as exception:
        raised = exception
    hide_engine(raised)
    chain(raised, error)
    return Next(raised)


def _retry(
    limits: TaskFunction[Any], backoffs: int, left: TimeLeft | None, error: BaseException
) -> Next:
    """Return the delay before the next attempt, or what suppresses it."""
    asked = _asked_delay(limits, error)
    longest = limits.max_delay
    if asked is None:
        delay = checked_number("TaskFunction.backoff()", limits.backoff(backoffs))
        delay *= uniform(0.5, 1.0)
        backoffs += 1
    else:
        if not 0 <= asked < math.inf:
            return Next(error, suppressed="retry_after says that there must be none")
        if longest is not None and asked > longest:
            what = f"retry_after asks for {asked:.15g} s, more than max_delay={longest:.15g} s"
            return Next(error, suppressed=what)
        delay = asked + limits.initial_delay * (uniform(0.5, 1.0) - 0.5)
        backoffs = 0
    if left is not None and delay >= left[0]:
        _, limit, seconds = left
        what = f"the pause before it would reach {limit}={seconds:.15g} s"
        return Next(error, suppressed=what)
    budget = limits.retry_budget
    if budget is not None and not budget.try_withdraw():
        return Next(error, suppressed="its retry budget is spent")
    return Next(error, delay, backoffs)


def _asked_delay(limits: TaskFunction[Any], error: BaseException) -> float | None:
    """Return the seconds that a service asks to wait, or None.

    Of a group it is the most that a leaf asks for. A leaf that asks never to come back, with a
    negative number, asks for more than any other.
    """
    found: list[float] = []
    for leaf in iter_leaves(error):
        asked: Any = None
        if limits.retry_after is not None:
            asked = answer(limits.retry_after(leaf), "TaskFunction.retry_after")  # type: ignore[arg-type]
        if asked is None and issubclass(type(leaf), RetryableException):
            asked = leaf.retry_after  # type: ignore[attr-defined]
        if asked is not None:
            found.append(checked_seconds("what TaskFunction.retry_after returns", asked))
    return min(found) if any(each < 0 for each in found) else max(found, default=None)


class History:
    """The results of the attempts at a function, from the first failure on."""

    __slots__ = ("backoffs", "covered", "earlier", "is_due")

    def __init__(self) -> None:
        self.backoffs = 0  # since the last delay that a service has asked for
        self.is_due = False  # another attempt, which the retry budget has paid for
        self.earlier: list[Any] = []  # what attempts before the last one raised
        self.covered: Any = None  # what the fallback covers, which is called now

    @property
    def last(self) -> BaseException | None:
        """The exception of the attempt before this one."""
        last: BaseException | None = self.covered
        return self.earlier[-1] if last is None and self.earlier else last

    def goes_on(self, error: BaseException, *, falls_back: bool) -> None:
        """Note that something follows the attempt that raised this: another one or the fallback."""
        self.is_due = False
        if falls_back:
            self.covered = error
        else:
            self.earlier.append(error)


def deadline_of(
    limits: TaskFunction[Any], began: float, now: float, waits: bool, covers: bool
) -> float | None:
    """Return when an attempt that begins now is cut off, or None for never.

    `began` is the begin of the first attempt. An attempt that `waits` for its limiter has no
    timeout yet. The call of the fallback `covers` another attempt, and has no `total_timeout`.
    """
    timeout = None if waits else limits.timeout
    deadline = None if timeout is None else moment(now, timeout)
    if covers or limits.total_timeout is None:
        return deadline
    end = moment(began, limits.total_timeout)
    return end if deadline is None else min(deadline, end)


def moment(now: float, seconds: float) -> float:
    """Return when these seconds have passed. For 0 that is before any other moment."""
    return now + seconds if seconds else AT_ONCE


def limit_of(
    limits: TaskFunction[Any], began: float, started: float, deadline: float, covers: bool
) -> tuple[float, str]:
    """Return the seconds that an attempt had which was cut off at its deadline, and what to say."""
    total = limits.total_timeout
    if not covers and total is not None and deadline >= moment(began, total):
        had = total if started == began else round(began + total - started, 6)
        return had, f"timed out after total_timeout={total} s"
    assert limits.timeout is not None
    what = "the fallback timed out" if covers else "timed out"
    return limits.timeout, f"{what} after {limits.timeout} s"


def cut_off_by(cleanup_timeout: float) -> str:
    """Return what to say of a cleanup that the limit for all cleanup cuts off."""
    return f"{CUT_OFF}: all cleanup of the run had {cleanup_timeout} s"


def time_left(
    limits: TaskFunction[Any],
    began: float,
    now: float,
    cut_off_at: float | None,
    cleanup_timeout: float | None,
    cleanup_ends: float | None,
) -> TimeLeft | None:
    """Return what is left of `total_timeout` or of the time for cleanup, whichever is less.

    `cut_off_at` is the deadline of the attempt before, if it has timed out.
    """
    left: TimeLeft | None = None
    if limits.total_timeout is not None:
        end = moment(began, limits.total_timeout)
        left = _until(end, now, cut_off_at), "total_timeout", limits.total_timeout
    if cleanup_timeout is not None and cleanup_ends is not None:
        seconds = _until(cleanup_ends, now, cut_off_at)
        if left is None or seconds < left[0]:
            left = seconds, "cleanup_timeout", cleanup_timeout
    return left


def _until(end: float, now: float, cut_off_at: float | None) -> float:
    # The timer may be early, by the resolution of the clock.
    return 0.0 if cut_off_at is not None and cut_off_at >= end else end - now


def settled(
    limits: TaskFunction[Any],
    attempt: int,
    history: History | None,
    error: BaseException | None,
    cancelled: bool,
) -> BaseException | None:
    """Return what an attempt leaves that was made inside of a limiter, pays into a budget, or
    follows another one."""
    if type(error) is StoppedError:
        error = error.stop
        hide_engine(error)
    if history is not None and history.covered is not None:
        if error is not None and not cancelled:
            chain(error, history.covered)
    else:
        settle_with_budget(limits, attempt, cancelled)
    return error


def settle_with_budget(limits: TaskFunction[Any], attempt: int, cancelled: bool) -> None:
    """Account for an attempt that has ended. A cancelled attempt does not count."""
    budget = limits.retry_budget
    if budget is not None:
        if attempt == 1 and not cancelled:
            budget.deposit()
        elif attempt > 1 and cancelled:
            budget.give_back()
