"""The notes of a run while it runs."""

from __future__ import annotations

import logging
from asyncio import AbstractEventLoop
from collections.abc import Collection, Hashable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from ..common.order import EXECUTE, PHASES, POST
from ..common.text import counted, one_line, shown
from ..errors import TaskCancelledError
from ..states import FAILURES, PhaseReport, State, TaskFailure
from .attempts import History
from .exceptions import add_note, is_cancellation, is_exception, set_cause
from .plan import Plan
from .work import LIMITS

if TYPE_CHECKING:
    from .watch import Causes, Watch

_logger: Final = logging.getLogger("sdax")

_SKIPPED: Final = PhaseReport(State.SKIPPED)
_CANCELLED: Final = PhaseReport(State.CANCELLED, 1)


class Record:
    """Everything of a run but the plain successes, which cost nothing.

    Both engines make one only when there is something to write down, or somebody who watches.
    """

    __slots__ = ("_plan", "_so_far", "_watch", "failures", "finished_by", "phases")

    def __init__(self, plan: Plan, watch: Watch | None) -> None:
        self._plan = plan
        self._watch = watch
        self.phases: dict[int, PhaseReport] = {}
        self.failures: list[TaskFailure] = []  # of the run: not those of tasks not required
        self.finished_by: Hashable | None = None  # the task that returned `Finish`
        self._so_far: dict[int, PhaseReport] = {}

    def so_far(self) -> dict[int, PhaseReport]:
        """Return a copy of what is noted of phases.

        Objects that functions get must not lead to what they will raise.
        """
        if len(self._so_far) != len(self.phases):
            self._so_far = self.phases.copy()  # one for all that ask before there is more
        return self._so_far

    def succeeded(
        self, number: int, index: int, attempts: int, value: Any, history: History | None = None
    ) -> None:
        """Note a success that took more than one attempt, or that somebody watches."""
        if attempts > 1:
            self._note(number, index, State.SUCCEEDED, attempts, None, history)
        if self._watch is not None:
            made = _made(attempts, history)
            self._watch.task_finished(number, index, made, State.SUCCEEDED, value)

    def cancelled(
        self,
        number: int,
        index: int,
        attempts: int,
        exception: BaseException | None = None,
        history: History | None = None,
    ) -> None:
        """Note a function that the run cancelled, maybe while it waited for a retry: `exception`
        is what its last attempt raised then."""
        if attempts == 1 and exception is None:
            self.phases[self._plan.key(number, index)] = _CANCELLED
        else:
            self._note(number, index, State.CANCELLED, attempts, exception, history)
        if self._watch is not None:
            made = _made(attempts, history)
            self._watch.task_finished(number, index, made, State.CANCELLED, exception=exception)

    def _note(
        self,
        number: int,
        index: int,
        state: State,
        attempts: int,
        exception: BaseException | None,
        history: History | None,
    ) -> None:
        """Note the end of a function. The call of its fallback is one of these attempts."""
        if history is None:
            report: PhaseReport = PhaseReport(state, attempts, None, exception)
        else:
            covered = history.covered
            report = PhaseReport(
                state,
                _made(attempts, history),
                None,
                covered if exception is None and state not in FAILURES else exception,
                tuple(history.earlier),
                covered is not None,
            )
        self.phases[self._plan.key(number, index)] = report

    def stopped(self, number: int, uncalled: Sequence[int]) -> None:
        """Note that a phase ends early: what is suspended is cancelled, these are not called."""
        if self._watch is not None:
            self._watch.cancellation_requested(number)
        self.skipped(number, uncalled)

    def finished(self, number: int, index: int) -> None:
        """Note that a function has ended the run, by returning `Finish`."""
        self.finished_by = self._plan.names[index]
        if self._watch is not None:
            self._watch.run_ends_early(number, index)

    def skipped(self, number: int, indices: Sequence[int], causes: Causes | None = None) -> None:
        """Note functions that are not called: because of these failures, or with the run."""
        key = self._plan.key
        self.phases.update(dict.fromkeys([key(number, index) for index in indices], _SKIPPED))
        if self._watch is not None:
            self._watch.tasks_skipped(number, indices, causes)

    def never_due(
        self, executing: Collection[int], started: Collection[int], causes: Causes | None
    ) -> None:
        """Note what is left out after a `pre_execute` that has failed: the `execute` of all other
        tasks than these, and the cleanup of those that have not started."""
        for number, due in ((EXECUTE, executing), (POST, started)):
            work = enumerate(self._plan.phases[number].work)
            left = [index for index, work in work if work and index not in due]
            self.skipped(number, left, causes)

    def failed(
        self,
        number: int,
        index: int,
        attempts: int,
        exception: BaseException,
        *,
        timed_out: bool = False,
        required: bool = True,
        stops: bool = True,
        history: History | None = None,
    ) -> None:
        """Note what left a function for good, or its fallback: a failure of the run if the task
        is `required`, which goes on unless this `stops` it.

        The run keeps an exception that is not an `Exception`, and ends with it.
        """
        if is_cancellation(exception):
            exception = unasked_cancellation(self._plan, number, index, exception)
        state = State.TIMED_OUT if timed_out else State.FAILED
        made = _made(attempts, history)
        _annotate(exception, self._plan, number, index, made, made < attempts)
        if is_exception(exception):
            assert isinstance(exception, Exception)
            self._note(number, index, state, attempts, exception, history)
            name, phase = self._plan.names[index], PHASES[number]
            if required:
                self.failures.append(TaskFailure(name, phase, made, exception))
            else:
                _warn(name, phase, state, made, exception)
        else:
            # It is raised as it is, out of a frame that knows this record: to keep it here would
            # close a reference cycle.
            self._note(number, index, state, attempts, None, history)
        if self._watch is not None:
            self._watch.task_finished(
                number,
                index,
                made,
                state,
                exception=exception,
                required=required,
                stops=stops,
            )

    def also_fatal(
        self,
        number: int,
        index: int,
        exception: BaseException,
        first: BaseException,
        loop: AbstractEventLoop,
    ) -> None:
        """Tell the loop what a function raised that would have been raised, but for the first."""
        loop.call_exception_handler(
            {
                "message": f"sdax: {PHASES[number]} of task {shown(self._plan.names[index])} "
                f"raised {shown(exception)} after another function had raised {shown(first)}",
                "exception": exception,
            }
        )


def _warn(
    name: Hashable, phase: str, state: State, attempts: int, exception: BaseException
) -> None:
    """Log a failure that nobody is raised: it is in the report alone."""
    with suppress(Exception):  # a handler's own: logging never touches the run
        _logger.warning(
            "%s of task %s, which is not required, %s after %s: %s",
            phase,
            one_line(shown(name)),
            state,
            counted(attempts, "attempt"),
            one_line(shown(exception)),
        )


def _made(attempts: int, history: History | None) -> int:
    """Return how many of these attempts were not the call of the fallback."""
    return attempts - (history is not None and history.covered is not None)


def unasked_cancellation(
    plan: Plan, number: int, index: int, original: BaseException
) -> TaskCancelledError:
    """Return the failure of a function that was cancelled, but not by its run."""
    # Of the other functions, the caller's cancellation comes first then.
    ended = ", or the event loop cancelled it at its own end" if number == POST else ""
    error = TaskCancelledError(
        f"{PHASES[number]} of task {shown(plan.names[index])} was cancelled, but not by its run: "
        f"the function cancelled itself, or other code cancelled its asyncio.Task or the future "
        f"that it waited for{ended}"
    )
    set_cause(error, original)
    return error


def _annotate(
    exception: BaseException, plan: Plan, number: int, index: int, attempts: int, fell_back: bool
) -> None:
    work = plan.phases[number].work[index]
    assert work is not None
    allowed = 1 if work[LIMITS] is None else work[LIMITS].retries + 1
    name = shown(plan.names[index])
    what = "fallback after attempt" if fell_back else "attempt"
    add_note(exception, f"task {name}, {PHASES[number]}, {what} {attempts} of {shown(allowed)}")
