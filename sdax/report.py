"""The report of a run to its caller."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Generic

from .common.generic import K
from .common.order import PHASES
from .common.text import counted, shown
from .engine.plan import Plan
from .states import (
    FAILURES,
    Durations,
    PhaseReport,
    State,
    TaskFailure,
    TaskReport,
    UnknownTaskError,
    explain_attribute,
)
from .table import table_of

_ABSENT = PhaseReport(State.ABSENT)
_SUCCEEDED = PhaseReport(State.SUCCEEDED, 1)


class RunReport(Mapping[K, TaskReport], Generic[K]):
    """The results of a run: a read-only mapping from task name to `TaskReport`.

    It is built when you read it. A report that nobody reads costs next to nothing. An unknown
    name raises a `KeyError` that suggests similar names.

    >>> report = await processor.process_tasks(ctx)
    >>> report["UserData"].execute.value
    """

    __slots__ = ("_durations", "_finished_by", "_phases", "_plan", "_tasks", "_values")

    def __init__(
        self,
        plan: Plan,
        values: Mapping[int, Any] | None,
        phases: Mapping[int, PhaseReport] | None,
        durations: Durations | None = None,
        finished_by: Hashable | None = None,
    ) -> None:
        if type(plan) is not Plan:
            raise TypeError(f"a RunReport is made by a run, from its plan; got {shown(plan)}")
        self._plan = plan
        self._values = values
        self._phases = phases
        self._durations = durations
        self._finished_by = finished_by

    @property
    def finished_by(self) -> K | None:
        """The name of the task that ended the run early, by returning `Finish`, or None."""
        return self._finished_by  # type: ignore[return-value]

    @property
    def ok(self) -> bool:
        """True if nothing failed, not even a task that is not required.

        A cancelled run can be ok, although not all of its functions were called.
        """
        return not any(each.state in FAILURES for each in self._phases_noted())

    @property
    def failures(self) -> tuple[TaskFailure, ...]:
        """`(name, phase, attempts, exception)` of each failed phase, in the order of failure.

        These are the failures of `SdaxExecutionError.failures` and those of tasks that are not
        required. They do not include a `KeyboardInterrupt`, or anything else that is not an
        `Exception`. The run raises it.
        """
        size = len(self._plan.names)
        return tuple(
            TaskFailure(self._plan.names[key % size], PHASES[key // size], each.attempts, exception)
            for key, each in (self._phases or {}).items()
            if each.state in FAILURES and isinstance(exception := each.exception, Exception)
        )

    @property
    def duration(self) -> float | None:
        """The seconds that the run took, or None. Only runs with an observer are measured."""
        return None if self._durations is None else self._durations.run

    @property
    def phase_durations(self) -> Mapping[str, float] | None:
        """The seconds of each phase that has begun, by name, or None as for `duration`."""
        return None if self._durations is None else self._durations.phases

    @property
    def counts(self) -> dict[State, int]:
        """The number of phases in each state. Phases without a function do not count."""
        found = Counter(each.state for task in self.values() for each in task)
        return {state: found[state] for state in State if found[state] and state != State.ABSENT}

    def __getitem__(self, name: K) -> TaskReport:
        index = self._plan.index_of.get(name)
        if index is None:
            raise UnknownTaskError(name, self._plan.names)
        return TaskReport(*(self._phase_report(number, index) for number in range(len(PHASES))))

    def __iter__(self) -> Iterator[K]:
        return iter(self._plan.index_of)  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self._plan.names)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Unpickled, (dict(self), self.failures, self._durations, self._finished_by)

    def __repr__(self) -> str:
        return f"<RunReport of {counted(len(self), 'task')}>"

    def __str__(self) -> str:
        """Return a table: each phase with its state, attempts, and value or exception in short.

        For a large run it shows a part: first the failures, then what a fallback has answered.

        >>> print(report)
        1 task: 1 succeeded, 1 failed
          task      phase         state      attempts  value or exception
          UserData  pre_execute   succeeded  2
          UserData  execute       failed     1         ConnectionError: no route
        """
        return table_of(self, self._finished_by)

    if not TYPE_CHECKING:
        __getattr__ = explain_attribute

    def _phases_noted(self) -> Iterable[PhaseReport]:
        """Return at least the phases that are not plain successes."""
        return (self._phases or {}).values()

    def _phase_report(self, number: int, index: int) -> PhaseReport:
        if self._plan.phases[number].work[index] is None:
            return _ABSENT
        key = self._plan.key(number, index)
        report = self._phases.get(key, _SUCCEEDED) if self._phases else _SUCCEEDED
        if self._values and key in self._values:
            return report._replace(value=self._values[key])
        return report


class _Unpickled(RunReport[K]):
    """A report without its plan and its functions, which may not be picklable."""

    __slots__ = ("_failures",)

    def __init__(
        self,
        tasks: dict[K, TaskReport],
        failures: tuple[TaskFailure, ...],
        durations: Durations | None,
        finished_by: Hashable | None = None,
    ) -> None:
        self._tasks = tasks
        self._failures = failures
        self._durations = durations
        self._finished_by = finished_by

    @property
    def failures(self) -> tuple[TaskFailure, ...]:
        return self._failures

    def __getitem__(self, name: K) -> TaskReport:
        if name not in self._tasks:
            raise UnknownTaskError(name, self._tasks)
        return self._tasks[name]

    def __iter__(self) -> Iterator[K]:
        return iter(self._tasks)

    def __len__(self) -> int:
        return len(self._tasks)

    def _phases_noted(self) -> Iterable[PhaseReport]:
        return (each for task in self._tasks.values() for each in task)


def changed_report(
    report: RunReport[K], change: Callable[[Any], Any], failures: tuple[TaskFailure, ...]
) -> RunReport[K]:
    """Return a report in which `change` has replaced each value and exception."""
    tasks = {
        name: TaskReport(
            *(
                each._replace(value=change(each.value), exception=change(each.exception))
                for each in task
            )
        )
        for name, task in report.items()
    }
    seconds, phases = report.duration, report.phase_durations
    durations = None if seconds is None or phases is None else Durations(seconds, phases)
    return _Unpickled(tasks, failures, durations)


def report_of_nothing() -> RunReport[Any]:
    """Return a report of no tasks."""
    return _Unpickled({}, (), None)
