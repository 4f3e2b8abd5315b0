"""What a run leaves behind: its record while it runs, its report afterwards."""

from __future__ import annotations

from asyncio import AbstractEventLoop, CancelledError
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from enum import StrEnum
from typing import Any, Generic, NamedTuple

from .errors import SdaxExecutionError, TaskCancelledError, TaskFailure
from .generic import K
from .plan import EXECUTE, PHASES, POST, Plan


class State(StrEnum):
    """What became of one phase of a task."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    TIMED_OUT = "timed out"
    CANCELLED = "cancelled"
    SKIPPED = "skipped"  # it has a function, which was not called
    ABSENT = "absent"  # it has no function


class PhaseReport(NamedTuple):
    """What became of one phase of a task: state, attempts made, and what it returned or raised.

    `value` is None unless the phase succeeded; `exception` is what failed it, an `Exception`
    (what is no `Exception`, such as `KeyboardInterrupt`, is raised and not kept here).
    """

    state: State
    attempts: int = 0
    value: Any = None
    exception: BaseException | None = None


class TaskReport(NamedTuple):
    """What became of a task, phase by phase."""

    pre_execute: PhaseReport
    execute: PhaseReport
    post_execute: PhaseReport


_ABSENT = PhaseReport(State.ABSENT)
_SKIPPED = PhaseReport(State.SKIPPED)
_SUCCEEDED = PhaseReport(State.SUCCEEDED, 1)


class RunReport(Mapping[K, TaskReport], Generic[K]):
    """What happened in a run: a read-only mapping from task name to `TaskReport`.

    >>> report = await processor.process_tasks(ctx)
    >>> report["UserData"].execute.value
    """

    __slots__ = ("_plan", "_records", "_tasks", "_values")

    def __init__(
        self,
        plan: Plan,
        values: Mapping[int, Any] | None,
        record: Record | None,
    ) -> None:
        self._plan = plan
        self._values = values
        self._records = None if record is None else record.phases

    def __getitem__(self, name: K) -> TaskReport:
        index = self._plan.index_of[name]
        return TaskReport(*(self._phase_report(number, index) for number in range(len(PHASES))))

    def __iter__(self) -> Iterator[K]:
        return iter(self._plan.index_of)  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self._plan.names)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Unpickled, (dict(self),)

    def __repr__(self) -> str:
        return f"<RunReport of {len(self)} tasks>"

    def _phase_report(self, number: int, index: int) -> PhaseReport:
        if self._plan.phases[number].work[index] is None:
            return _ABSENT
        key = self._plan.key(number, index)
        report = self._records.get(key, _SUCCEEDED) if self._records else _SUCCEEDED
        if self._values and key in self._values:
            return report._replace(value=self._values[key])
        return report


class _Unpickled(RunReport[K]):
    """A report without its plan, and so without the functions, which may not be picklable."""

    __slots__ = ()

    def __init__(self, tasks: dict[K, TaskReport]) -> None:
        self._tasks = tasks

    def __getitem__(self, name: K) -> TaskReport:
        return self._tasks[name]

    def __iter__(self) -> Iterator[K]:
        return iter(self._tasks)

    def __len__(self) -> int:
        return len(self._tasks)


class Record:
    """Everything of a run but the plain successes, which cost nothing.

    Both engines make one only when there is something to write down.
    """

    __slots__ = ("_plan", "failures", "fatal", "phases")

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self.phases: dict[int, PhaseReport] = {}
        self.failures: list[TaskFailure] = []
        self.fatal: BaseException | None = None

    def succeeded(self, number: int, index: int, attempts: int) -> None:
        """Note a success that took more than one attempt."""
        self.phases[self._plan.key(number, index)] = PhaseReport(State.SUCCEEDED, attempts)

    def cancelled(self, number: int, index: int, attempts: int) -> None:
        """Note a function that was cancelled by the run."""
        self.phases[self._plan.key(number, index)] = PhaseReport(State.CANCELLED, attempts)

    def skipped(self, number: int, indices: Iterable[int]) -> None:
        """Note functions that are not called."""
        key = self._plan.key
        self.phases.update(dict.fromkeys([key(number, index) for index in indices], _SKIPPED))

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
                f"{phase} of task {name!r} was cancelled, but not by its run: the function "
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
        if isinstance(exception, Exception):
            self.failures.append(TaskFailure(name, phase, attempts, exception))
        elif self.fatal is None:
            self.fatal = exception
        else:
            loop.call_exception_handler(
                {
                    "message": f"sdax: {phase} of task {name!r} raised {exception!r} after "
                    f"another function had raised {self.fatal!r}",
                    "exception": exception,
                }
            )

    def raise_failures(self, report: RunReport[Any]) -> None:
        """Raise what the run has to raise, if anything."""
        try:
            if self.failures:
                raise SdaxExecutionError.from_failures(self.failures, report)
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
    note = f"task {plan.names[index]!r}, {PHASES[number]}, attempt {attempts} of {allowed}"
    # An exception class may forbid it, and that must not cost the exception itself.
    with suppress(Exception):
        exception.add_note(note)
