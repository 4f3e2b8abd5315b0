"""What a run writes down while it runs."""

from __future__ import annotations

from asyncio import AbstractEventLoop
from collections.abc import Sequence
from typing import Any, Final

from ..common.order import EXECUTE, PHASES, POST
from ..common.text import shown
from ..errors import TaskCancelledError
from ..states import PhaseReport, State, TaskFailure
from .exceptions import add_note, is_cancellation, is_exception, set_cause
from .plan import Plan
from .watch import Watch

_SKIPPED: Final = PhaseReport(State.SKIPPED)
_CANCELLED: Final = PhaseReport(State.CANCELLED, 1)


class Record:
    """Everything of a run but the plain successes, which cost nothing.

    Both engines make one only when there is something to write down, or somebody who watches.
    """

    __slots__ = ("_plan", "_so_far", "_watch", "failures", "phases")

    def __init__(self, plan: Plan, watch: Watch | None) -> None:
        self._plan = plan
        self._watch = watch
        self.phases: dict[int, PhaseReport] = {}
        self.failures: list[TaskFailure] = []
        self._so_far: dict[int, PhaseReport] = {}

    def so_far(self) -> dict[int, PhaseReport]:
        """Return a copy of what is noted of phases.

        What is given to functions must not lead to what they will raise.
        """
        if len(self._so_far) != len(self.phases):
            self._so_far = self.phases.copy()  # one for all that ask before there is more
        return self._so_far

    def succeeded(self, number: int, index: int, attempts: int, value: Any) -> None:
        """Note a success that took more than one attempt, or that somebody watches."""
        if attempts > 1:
            self.phases[self._plan.key(number, index)] = PhaseReport(State.SUCCEEDED, attempts)
        if self._watch is not None:
            self._watch.task_finished(number, index, attempts, State.SUCCEEDED, value)

    def cancelled(
        self, number: int, index: int, attempts: int, exception: BaseException | None = None
    ) -> None:
        """Note a function that the run cancelled, maybe while it waited for a retry: `exception`
        is what its last attempt raised then."""
        if attempts == 1 and exception is None:
            report = _CANCELLED
        else:
            report = PhaseReport(State.CANCELLED, attempts, None, exception)
        self.phases[self._plan.key(number, index)] = report
        if self._watch is not None:
            self._watch.task_finished(number, index, attempts, State.CANCELLED, exception=exception)

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
    ) -> None:
        """Note what left a function for good.

        What is not an `Exception` is kept by the run, which ends with it.
        """
        name = self._plan.names[index]
        phase = PHASES[number]
        if is_cancellation(exception):
            exception = unasked_cancellation(self._plan, number, index, exception)
        state = State.TIMED_OUT if timed_out else State.FAILED
        key = self._plan.key(number, index)
        _annotate(exception, self._plan, number, index, attempts)
        if is_exception(exception):
            assert isinstance(exception, Exception)
            self.phases[key] = PhaseReport(state, attempts, None, exception)
            self.failures.append(TaskFailure(name, phase, attempts, exception))
        else:
            # It is raised as it is, out of a frame that knows this record: to keep it here would
            # close a reference cycle.
            self.phases[key] = PhaseReport(state, attempts)
        if self._watch is not None:
            self._watch.task_finished(number, index, attempts, state, exception=exception)

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


def _annotate(exception: BaseException, plan: Plan, number: int, index: int, attempts: int) -> None:
    work = plan.phases[number].work[index]
    assert work is not None
    allowed = 1 if work[1] is None else work[1].retries + 1
    name = shown(plan.names[index])
    add_note(exception, f"task {name}, {PHASES[number]}, attempt {attempts} of {shown(allowed)}")
