"""What a timeline has recorded: runs, their phases, functions and attempts. All immutable.

Times are in seconds on the clock of the timeline; the end of what is still under way is None.
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

    `busy` is for how many seconds it ran; in the others it waited, or others ran. `timeout` is
    the timeout that expired, if one did, and `delay` the pause that was to follow, if another
    attempt was. `suppressed` says why none followed, although the exception deserved it. `covers`
    is the exception of the attempt before, if this is the call of the fallback.
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

    One that was skipped has no attempts, and `start` and `end` say when that was decided. `cause`
    is why it was cancelled or skipped; None, for such a one, is the cancellation of the caller.
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
        """Whether its fallback was called, which is the last of the attempts then."""
        return bool(self.attempts) and self.attempts[-1].covers is not None

    @property
    def tries(self) -> int:
        """How many attempts there were, without the call of the fallback."""
        return len(self.attempts) - self.fell_back

    @property
    def interrupted(self) -> bool:
        """Whether it was cancelled: itself, or the pause before a retry. The latter has failed,
        by its last attempt."""
        return self.state is State.CANCELLED or (
            self.state is not None and bool(self.attempts) and self.attempts[-1].delay is not None
        )

    @property
    def spared(self) -> bool:
        """Whether it may fail and the run goes on as after a success: its task is not required."""
        return not self.task.required and self.phase != PHASES[POST]

    @property
    def suspended(self) -> bool:
        """Whether it ever waited for anything, the pause before a retry included."""
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
    """The moment in which what was suspended in a phase was cancelled, and why."""

    time: float
    phase: str
    cause: Cause | None


@dataclass(frozen=True)
class RecordedRun:
    """One run, as everything that is drawn of it sees it.

    `number` counts the runs of the timeline from 1, `now` is the time of looking. `tasks` are
    all of the processor, `functions` those that were called or skipped, in that order.
    `keeps_going` is whether a failure stops nothing that does not depend on it.
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
        """How long the run took, or has taken until `now`, in seconds."""
        return self.until(self.end) - self.start

    @property
    def is_over(self) -> bool:
        """Whether all has ended, cleanup after the caller has gone included."""
        return self.end is not None and all(span.end is not None for span in self.functions)

    def until(self, end: float | None) -> float:
        """Return an end, or the time of looking for what is still under way."""
        return self.now if end is None else end

    @cached_property
    def groups(self) -> tuple[tuple[str, tuple[TaskInfo, ...]], ...]:
        """The tasks that have functions, by level or by layer of the graph, from the first on.

        A layer is one more than the highest layer of what its tasks depend on.
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
        """Whether the tasks stand in levels, not in a graph."""
        return not any(task.depends_on is not None for task in self.tasks)

    @cached_property
    def by_task(self) -> dict[Hashable, list[FunctionSpan]]:
        """The functions of each task, by its name."""
        functions: dict[Hashable, list[FunctionSpan]] = {}
        for span in self.functions:
            functions.setdefault(span.task.name, []).append(span)
        return functions
