"""What a run writes down while it runs."""

from __future__ import annotations

from asyncio import AbstractEventLoop, CancelledError
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

from .errors import SdaxExecutionError, TaskCancelledError, TaskFailure
from .plan import EXECUTE, PHASES, POST, Plan
from .report import PhaseReport, RunReport, State
from .text import shown
from .watch import Watch

_SKIPPED: Final = PhaseReport(State.SKIPPED)
_CANCELLED: Final = PhaseReport(State.CANCELLED, 1)


class Record:
    """Everything of a run but the plain successes, which cost nothing.

    Both engines make one only when there is something to write down, or somebody who watches.
    """

    __slots__ = ("_plan", "_watch", "failures", "fatal", "phases")

    def __init__(self, plan: Plan, watch: Watch | None) -> None:
        self._plan = plan
        self._watch = watch
        self.phases: dict[int, PhaseReport] = {}
        self.failures: list[TaskFailure] = []
        self.fatal: BaseException | None = None

    def succeeded(self, number: int, index: int, attempts: int, value: Any) -> None:
        """Note a success that took more than one attempt, or that somebody watches."""
        if attempts > 1:
            self.phases[self._plan.key(number, index)] = PhaseReport(State.SUCCEEDED, attempts)
        if self._watch is not None:
            self._watch.task_finished(number, index, attempts, State.SUCCEEDED, value)

    def cancelled(self, number: int, index: int, attempts: int) -> None:
        """Note a function that was cancelled by the run."""
        report = _CANCELLED if attempts == 1 else PhaseReport(State.CANCELLED, attempts)
        self.phases[self._plan.key(number, index)] = report
        if self._watch is not None:
            self._watch.task_finished(number, index, attempts, State.CANCELLED)

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
        loop: AbstractEventLoop,
        *,
        timed_out: bool = False,
    ) -> None:
        """Note what left a function for good."""
        name = self._plan.names[index]
        phase = PHASES[number]
        if isinstance(exception, CancelledError):
            original = exception
            exception = TaskCancelledError(
                f"{phase} of task {shown(name)} was cancelled, but not by its run: the function "
                f"cancelled itself, or other code cancelled its asyncio.Task"
            )
            exception.__cause__ = original
        state = State.TIMED_OUT if timed_out else State.FAILED
        key = self._plan.key(number, index)
        # What is no Exception is raised as it is, out of a frame that knows this record: to
        # keep it here would close a reference cycle.
        reported = exception if isinstance(exception, Exception) else None
        self.phases[key] = PhaseReport(state, attempts, None, reported)
        _add_note(exception, self._plan, number, index, attempts)
        if self._watch is not None:
            self._watch.task_finished(number, index, attempts, state, exception=exception)
        if isinstance(exception, Exception):
            self.failures.append(TaskFailure(name, phase, attempts, exception))
        elif self.fatal is None:
            self.fatal = exception
        else:
            loop.call_exception_handler(
                {
                    "message": f"sdax: {phase} of task {shown(name)} raised {shown(exception)} "
                    f"after another function had raised {shown(self.fatal)}",
                    "exception": exception,
                }
            )

    def raise_failures(self, report: RunReport[Any]) -> None:
        """Raise what the run has to raise, if anything."""
        try:
            if self.failures:
                raise SdaxExecutionError.from_failures(self.failures, report)
        except SdaxExecutionError as error:
            if self.fatal is not None:
                self.fatal.__context__ = error  # on PyPy, raising it below does not do that
            raise
        finally:
            self.raise_fatal()

    def raise_fatal(self) -> None:
        """Raise, once, what was no `Exception`, if there was such."""
        fatal, self.fatal = self.fatal, None
        try:
            if fatal is not None:
                raise fatal
        finally:
            # Its traceback leads to this frame: no name here may lead back.
            del fatal


def _add_note(exception: BaseException, plan: Plan, number: int, index: int, attempts: int) -> None:
    work = plan.phases[number].work[index]
    assert work is not None
    allowed = 1 if work[1] is None else work[1].retries + 1
    name = shown(plan.names[index])
    note = f"task {name}, {PHASES[number]}, attempt {attempts} of {shown(allowed)}"
    # An exception class may forbid it, and that must not cost the exception itself.
    with suppress(Exception):
        exception.add_note(note)
