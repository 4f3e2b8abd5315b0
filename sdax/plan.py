"""The engine's plan: what a processor was told, in the flat form in which a run reads it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, Final, TypeAlias

from .calls import with_task_group
from .tasks import AsyncTask, TaskFunction

PRE: Final = 0
EXECUTE: Final = 1
POST: Final = 2
PHASES: Final = ("pre_execute", "execute", "post_execute")

Call: TypeAlias = Callable[[Any], Awaitable[Any]]
# A function as the engine takes it: what to call, its timeout and retries (None without
# either: such a function never pays for them), and the name of its asyncio.Task.
Work: TypeAlias = tuple[Call, TaskFunction[Any] | None, str]


class Phase:
    """One phase of a plan.

    `work` has an entry per task, None for a task without this phase. `stages` are tuples of
    task indices, none empty: a stage opens when nothing opened before is unfinished, and its
    functions are called in this order.
    """

    __slots__ = ("number", "stages", "work")

    def __init__(
        self, number: int, work: tuple[Work | None, ...], stages: tuple[tuple[int, ...], ...]
    ) -> None:
        self.number = number
        self.work = work
        self.stages = stages


class Plan:
    """All that a run needs to know: immutable, and shared by every run of a processor.

    `names` are the task names in the order in which tasks were added; a task is known by its
    index there. `starts_with[i]` is the stage of `pre_execute` with whose opening task i can
    start.
    """

    __slots__ = ("index_of", "names", "phases", "starts_with", "tasks")

    def __init__(
        self,
        tasks: tuple[AsyncTask[Any, Any], ...],
        phases: tuple[Phase, Phase, Phase],
        starts_with: tuple[int, ...],
    ) -> None:
        self.tasks = tasks
        self.names: tuple[Hashable, ...] = tuple(task.name for task in tasks)
        self.index_of = {name: index for index, name in enumerate(self.names)}
        self.phases = phases
        self.starts_with = starts_with

    def key(self, number: int, index: int) -> int:
        """Return the key under which records and values of a run know this phase of this task."""
        return number * len(self.names) + index

    def started(self, opened: int, uncalled: Iterable[int]) -> set[int]:
        """Return the tasks that have started, when `opened` stages of `pre_execute` were opened
        and the functions of `uncalled` were not called."""
        stages = self.starts_with
        reached = {index for index, stage in enumerate(stages) if stage < opened}
        return reached.difference(uncalled)


def plan_levels(levels: Mapping[int, Sequence[int]], tasks: Sequence[AsyncTask[Any, Any]]) -> Plan:
    """Plan tasks that stand in levels: `levels` has the indices of each level's tasks."""
    ascending = [levels[level] for level in sorted(levels)]
    pre, execute, post = (_work(tasks, number) for number in range(len(PHASES)))
    starts_with = [0] * len(tasks)
    pre_stages: list[tuple[int, ...]] = []
    for members in ascending:
        for index in members:
            starts_with[index] = len(pre_stages)
        # A level without functions opens and is done at once, together with the next one.
        if stage := _with_function(members, pre):
            pre_stages.append(stage)
    everything = _with_function(range(len(tasks)), execute)
    post_stages = [_with_function(members, post) for members in reversed(ascending)]
    return Plan(
        tuple(tasks),
        (
            Phase(PRE, pre, tuple(pre_stages)),
            Phase(EXECUTE, execute, (everything,) if everything else ()),
            Phase(POST, post, tuple(filter(None, post_stages))),
        ),
        tuple(starts_with),
    )


def _work(tasks: Sequence[AsyncTask[Any, Any]], number: int) -> tuple[Work | None, ...]:
    phase = PHASES[number]
    work: list[Work | None] = []
    for task in tasks:
        function: TaskFunction[Any] | None = getattr(task, phase)
        if function is None:
            work.append(None)
            continue
        call: Any = function.function
        if function.has_task_group_argument:
            call = with_task_group(call)
        limited = function.timeout is not None or function.retries
        work.append((call, function if limited else None, f"sdax:{task.name}:{phase}"))
    return tuple(work)


def _with_function(members: Iterable[int], work: Sequence[Work | None]) -> tuple[int, ...]:
    return tuple(index for index in members if work[index] is not None)

