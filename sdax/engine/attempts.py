"""What follows a failed attempt: decided here, for both engines, which carry it out."""

from __future__ import annotations

import random
from asyncio import Task
from collections.abc import Callable
from typing import Any

from ..common.checks import checked_number
from ..tasks import TaskFunction
from .exceptions import chain, hide_engine, is_cancellation, is_exception, set_cause

# Of each delay; a name of its own, so that sdax.testing can put another one in its place.
uniform: Callable[[float, float], float] = random.uniform


def after_timeout(
    error: BaseException | None,
    limits: TaskFunction[Any],
    task: Task[Any],
    requests: int,
    stopping: bool,
    cut_off: float | None,
) -> tuple[BaseException | None, bool]:
    """Return what an attempt leaves whose timer has fired, and whether it has timed out.

    `requests` are the requests to cancel its `asyncio.Task` that were open before the timer's
    own. `cut_off` are the seconds of the run's `cleanup_timeout`, if that is over. A cancellation
    that came after it wins, as with `asyncio.timeout()`, and so does that of
    a run that is stopping.
    """
    left = task.uncancel()
    if stopping or left > requests or not is_cancellation(error):
        return error, False
    assert error is not None
    hide_engine(error)
    timeout = TimeoutError(
        f"timed out after {limits.timeout} s"
        if cut_off is None
        else f"cut off by cleanup_timeout: all cleanup of the run had {cut_off} s"
    )
    set_cause(timeout, error)
    return timeout, True


def after_failure(
    limits: TaskFunction[Any], attempts: int, error: BaseException, stopping: bool
) -> tuple[float | None, BaseException]:
    """Return the seconds to wait before the next attempt, or None to give up, and the error.

    It is the error that was given, or what a predicate or a `backoff` of the user's raised.
    """
    if stopping or attempts > limits.retries or not is_exception(error):
        return None, error
    try:
        if not limits.is_retryable(error):
            return None, error
        delay = checked_number("TaskFunction.backoff()", limits.backoff(attempts - 1))
        return delay * uniform(0.5, 1.0), error
    except BaseException as exception:
        raised = exception
    hide_engine(raised)
    chain(raised, error)
    return None, raised
