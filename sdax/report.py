"""What a run reports to its caller."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Any, Final, Generic, NamedTuple

from .generic import K
from .plan import PHASES, Plan
from .table import table_of
from .text import counted, shown, shown_fields


class State(StrEnum):
    """What became of one phase of a task."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    TIMED_OUT = "timed out"
    CANCELLED = "cancelled"
    SKIPPED = "skipped"  # it has a function, which was not called
    ABSENT = "absent"  # it has no function


FAILURES: Final = (State.FAILED, State.TIMED_OUT)


class PhaseReport(NamedTuple):
    """What became of one phase of a task: state, attempts made, and what it returned or raised.

    `value` is None unless the phase succeeded; `exception` is what failed it, an `Exception`
    (what is no `Exception`, such as `KeyboardInterrupt`, is raised and not kept here).
    """

    state: State
    attempts: int = 0
    value: Any = None
    exception: BaseException | None = None

    def __repr__(self) -> str:
        return shown_fields(self)


class TaskReport(NamedTuple):
    """What became of a task, phase by phase."""

    pre_execute: PhaseReport
    execute: PhaseReport
    post_execute: PhaseReport


_ABSENT = PhaseReport(State.ABSENT)
_SUCCEEDED = PhaseReport(State.SUCCEEDED, 1)


class RunReport(Mapping[K, TaskReport], Generic[K]):
    """What happened in a run: a read-only mapping from task name to `TaskReport`.

    >>> report = await processor.process_tasks(ctx)
    >>> report["UserData"].execute.value
    """

    __slots__ = ("_phases", "_plan", "_tasks", "_values")

    def __init__(
        self,
        plan: Plan,
        values: Mapping[int, Any] | None,
        phases: Mapping[int, PhaseReport] | None,
    ) -> None:
        if type(plan) is not Plan:
            raise TypeError(f"a RunReport is made by a run, out of its plan; got {shown(plan)}")
        self._plan = plan
        self._values = values
        self._phases = phases

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
        return f"<RunReport of {counted(len(self), 'task')}>"

    def __str__(self) -> str:
        """Return a table: each phase with its state, attempts, and value or exception in short.

        >>> print(report)
        1 task: 1 succeeded, 1 failed
          task      phase         state      attempts  value or exception
          UserData  pre_execute   succeeded  2
          UserData  execute       failed     1         ConnectionError: no route
        """
        return table_of(self)

    def _phase_report(self, number: int, index: int) -> PhaseReport:
        if self._plan.phases[number].work[index] is None:
            return _ABSENT
        key = self._plan.key(number, index)
        report = self._phases.get(key, _SUCCEEDED) if self._phases else _SUCCEEDED
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
