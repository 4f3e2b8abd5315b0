"""What a run writes down while it runs."""

from __future__ import annotations

from asyncio import AbstractEventLoop
from collections.abc import Sequence
from typing import Any, Final

from ..common.order import EXECUTE, PHASES, POST
from ..common.text import shown
from ..errors import TaskCancelledError
from ..states import FAILURES, PhaseReport, State, TaskFailure
from .attempts import History
from .exceptions import add_note, is_cancellation, is_exception, set_cause
from .plan import Plan
from .watch import Watch

_SKIPPED: Final = PhaseReport(State.SKIPPED)
_CANCELLED: Final = PhaseReport(State.CANCELLED, 1)


class Record:
    """Everything of a run but the plain successes, which cost nothing.

    Both engines make one only when there is something to write down, or somebody who watches.
    """

    __slots__ = ("_plan", "_watch", "failures", "phases")

    def __init__(self, plan: Plan, watch: Watch | None) -> None:
        self._plan = plan
        self._watch = watch
        self.phases: dict[int, PhaseReport] = {}
        self.failures: list[TaskFailure] = []

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
        """Note what became of a function; the call of its fallback is one of these attempts."""
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

    def skipped(self, number: int, indices: Sequence[int]) -> None:
        """Note functions that are not called."""
        key = self._plan.key
        self.phases.update(dict.fromkeys([key(number, index) for index in indices], _SKIPPED))
        if self._watch is not None:
            self._watch.tasks_skipped(number, indices)

    def never_due(self, started: set[int]) -> None:
        """Note what is left out after a `pre_execute` that has failed: the phases that are not
        begun, and the cleanup of tasks that have not started."""
        self.skipped_phase(EXECUTE)
        post = enumerate(self._plan.phases[POST].work)
        self.skipped(POST, [index for index, work in post if work and index not in started])

    def skipped_phase(self, number: int) -> None:
        """Note that a whole phase is left out."""
        work = enumerate(self._plan.phases[number].work)
        self.skipped(number, [index for index, work in work if work])

    def failed(
        self,
        number: int,
        index: int,
        attempts: int,
        exception: BaseException,
        *,
        timed_out: bool = False,
        history: History | None = None,
    ) -> None:
        """Note what left a function for good, or its fallback.

        What is not an `Exception` is kept by the run, which ends with it.
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
            self.failures.append(TaskFailure(name, phase, made, exception))
        else:
            # It is raised as it is, out of a frame that knows this record: to keep it here would
            # close a reference cycle.
            self._note(number, index, state, attempts, None, history)
        if self._watch is not None:
            self._watch.task_finished(number, index, made, state, exception=exception)

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


def _made(attempts: int, history: History | None) -> int:
    """Return how many of these attempts were not the call of the fallback."""
    return attempts - (history is not None and history.covered is not None)


def unasked_cancellation(
    plan: Plan, number: int, index: int, original: BaseException
) -> TaskCancelledError:
    """Return the failure of a function that was cancelled, but not by its run."""
    error = TaskCancelledError(
        f"{PHASES[number]} of task {shown(plan.names[index])} was cancelled, but not by its run: "
        f"the function cancelled itself, or other code cancelled its asyncio.Task or the future "
        f"that it waited for"
    )
    set_cause(error, original)
    return error


def _annotate(
    exception: BaseException, plan: Plan, number: int, index: int, attempts: int, fell_back: bool
) -> None:
    work = plan.phases[number].work[index]
    assert work is not None
    allowed = 1 if work[1] is None else work[1].retries + 1
    name = shown(plan.names[index])
    what = "fallback after attempt" if fell_back else "attempt"
    add_note(exception, f"task {name}, {PHASES[number]}, {what} {attempts} of {shown(allowed)}")
