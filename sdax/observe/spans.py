"""The spans of a timeline: runs, their phases, functions and attempts. All are immutable.

Times are in seconds on the clock of the timeline. The end of a running span is None.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from functools import cached_property

from ..common.order import PHASES, POST
from ..events import Cause, TaskInfo
from ..states import State
from .layers import layers_of


@dataclass(frozen=True, slots=True)
class AttemptSpan:
    """One attempt at a function.

    `busy` is the number of seconds in which it ran. In the rest it waited, or others ran. `timeout`
    is the timeout that expired, if one did. `delay` is the planned pause before the next attempt,
    if there was one. `suppressed` is the reason why there was no next attempt, although the
    exception is retried. If this is the call of the fallback, `covers` is the exception of the
    attempt before.
    """

    number: int
    start: float
    end: float | None
    busy: float
    state: State | None
    exception: str | None
    timeout: float | None
    delay: float | None
    suppressed: str | None = None
    covers: str | None = None


@dataclass(frozen=True, slots=True)
class FunctionSpan:
    """The function of a task in a phase, over all its attempts.

    A skipped function has no attempts. Its `start` and `end` are the time of that decision. `cause`
    is the reason why it was cancelled or skipped. None means the cancellation of the caller.
    """

    task: TaskInfo
    phase: str
    start: float
    end: float | None
    state: State | None
    exception: str | None
    cause: Cause | None
    attempts: tuple[AttemptSpan, ...]

    @property
    def fell_back(self) -> bool:
        """True if its fallback was called. The last attempt is then the call of the fallback."""
        return bool(self.attempts) and self.attempts[-1].covers is not None

    @property
    def tries(self) -> int:
        """The number of attempts, without the call of the fallback."""
        return len(self.attempts) - self.fell_back

    @property
    def interrupted(self) -> bool:
        """True if it was cancelled, or the pause before a retry was.

        In the second case it has failed, by its last attempt.
        """
        return self.state is State.CANCELLED or (
            self.state is not None and bool(self.attempts) and self.attempts[-1].delay is not None
        )

    @property
    def spared(self) -> bool:
        """True if the run continues after its failure, because its task is not required."""
        return not self.task.required and self.phase != PHASES[POST]

    @property
    def suspended(self) -> bool:
        """True if it ever waited, also in the pause before a retry."""
        first = self.attempts[0]
        return len(self.attempts) > 1 or first.end is None or first.busy < first.end - first.start


@dataclass(frozen=True, slots=True)
class PhaseSpan:
    """One phase of a run."""

    phase: str
    start: float
    end: float | None


@dataclass(frozen=True, slots=True)
class Cancellation:
    """The moment when the suspended functions of a phase were cancelled, and the reason."""

    time: float
    phase: str
    cause: Cause | None


@dataclass(frozen=True)
class RecordedRun:
    """One run, as all pictures of it see it.

    `number` counts the runs of the timeline from 1, `now` is the time of this record.
    `tasks` are all tasks of the processor. `functions` are those that were called or skipped, in
    that order. With `keeps_going`, a failure stops only the functions that depend on it.
    """

    number: int
    thread: str
    start: float
    end: float | None
    now: float
    state: State | None
    exception: str | None
    tasks: tuple[TaskInfo, ...]
    execute_in_order: bool
    max_concurrency: int | None
    keeps_going: bool
    phases: tuple[PhaseSpan, ...]
    functions: tuple[FunctionSpan, ...]
    cancellations: tuple[Cancellation, ...]

    @property
    def duration(self) -> float:
        """The seconds that the run took, or has taken until `now`."""
        return self.until(self.end) - self.start

    @property
    def is_over(self) -> bool:
        """True if everything has ended, also cleanup after the caller was closed."""
        return self.end is not None and all(span.end is not None for span in self.functions)

    def until(self, end: float | None) -> float:
        """Return an end, or `now` if it is None."""
        return self.now if end is None else end

    @cached_property
    def groups(self) -> tuple[tuple[str, tuple[TaskInfo, ...]], ...]:
        """The tasks that have functions, by level or by layer of the graph, in order.

        A layer is one more than the highest layer of the dependencies of its tasks.
        """
        seen = {span.task.name for span in self.functions}
        layers = layers_of(self.tasks)
        word = "level" if self.in_levels else "layer"
        groups: dict[int, list[TaskInfo]] = {}
        for task in self.tasks:
            if task.name in seen:
                groups.setdefault(layers[task.name], []).append(task)
        return tuple((f"{word} {number}", tuple(groups[number])) for number in sorted(groups))

    @property
    def in_levels(self) -> bool:
        """True if the tasks are in levels, not in a graph."""
        return not any(task.depends_on is not None for task in self.tasks)

    @cached_property
    def by_task(self) -> dict[Hashable, list[FunctionSpan]]:
        """The functions of each task, by its name."""
        functions: dict[Hashable, list[FunctionSpan]] = {}
        for span in self.functions:
            functions.setdefault(span.task.name, []).append(span)
        return functions
