"""The engine's plan: what a processor was told, in the flat form in which a run reads it."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Collection, Hashable, Iterable, Iterator, Sequence
from typing import Any, TypeAlias

from ..common.frozen import Frozen
from ..common.order import EXECUTE, PHASES, POST, PRE
from ..common.text import shown
from ..functions import PlainFunction, ResourceCleanUp, ResourceSetUp, ThreadFunction
from ..tasks import AsyncTask, TaskFunction
from .calls import WithTaskGroup, name_of
from .threads import OwnThreads
from .work import FEEDS, IS_SPECIAL, LIMITS, OUTCOME, RESOURCE, TIMEOUT

Call: TypeAlias = Callable[[Any], Awaitable[Any]]
# One phase of a task as the engines take it. `work.py` has the names of the fields.
Work: TypeAlias = tuple[
    Call, TaskFunction[Any] | None, str, tuple[int, ...], bool | str, float | None, str, bool
]


def replaced(work: Work, field: int, value: object) -> Work:
    """Return the same work with another value in one field."""
    fields: Any = (*work[:field], value, *work[field + 1 :])
    return fields  # type: ignore[no-any-return]


class Holding(Frozen):
    """The stand-in for the function of a resource in each of its halves."""

    __slots__ = __match_args__ = ("function", "held_name")

    function: Callable[[Any], Any]
    held_name: str  # of its asyncio.Task between them

    def __init__(self, function: Callable[[Any], Any], held_name: str) -> None:
        self._set_once(function=function, held_name=held_name)

    def __call__(self, ctx: Any) -> Any:
        """Return what the user's function returns, which is nothing to be awaited."""
        return self.function(ctx)


class Phase:
    """One phase of a plan: what it calls, and in which order.

    `work` has a `Work` per task, None for a task without this phase. A sequence of levels is in
    `stages`, tuples of task indices, none empty. A stage opens when nothing opened before is
    unfinished, and its functions are called in this order.

    A graph that is not a sequence of stages has `gates` instead, tuples of task indices as well.
    Gate g opens after `waits[g]` completions: of tasks whose work says that they feed it, and of
    gates whose `onward` says so, which feed it as they open. Gate 0 waits for nothing.
    """

    __slots__ = ("gates", "number", "onward", "stages", "waits", "work")

    def __init__(
        self,
        number: int,
        work: tuple[Any, ...],
        stages: tuple[tuple[int, ...], ...] = (),
        gates: tuple[tuple[int, ...], ...] = (),
        onward: tuple[tuple[int, ...], ...] = (),
        waits: tuple[int, ...] = (),
    ) -> None:
        self.number = number
        self.work = work
        self.stages = stages
        self.gates = gates
        self.onward = onward
        self.waits = waits

    def limited(self, tasks: Sequence[AsyncTask[Any, Any]]) -> Phase:
        """Return the same phase of these tasks with limits for every function."""
        work = [
            entry and replaced(entry, LIMITS, getattr(task, PHASES[self.number]))
            for task, entry in zip(tasks, self.work, strict=True)
        ]
        return Phase(self.number, tuple(work), self.stages, self.gates, self.onward, self.waits)

    def within(self, seconds: float | None, tasks: Sequence[AsyncTask[Any, Any]]) -> Phase:
        """Return the same phase, in which every attempt asks what is left of these seconds."""
        if seconds is None:
            return self
        phase = self.limited(tasks)
        phase.work = tuple(entry and replaced(entry, IS_SPECIAL, True) for entry in phase.work)
        return phase

    def unopened(self, opened: int, waiting: Sequence[int] | None) -> Iterator[int]:
        """Yield the tasks that wait in stages from `opened` on, or in gates still `waiting`: all
        where that is None, and none where it is empty."""
        for stage in self.stages[opened:]:
            yield from stage
        for gate, members in enumerate(self.gates):
            if waiting is None or (waiting and waiting[gate]):
                yield from members

    def reopened(
        self, due: Collection[int] | None, finished: Collection[int]
    ) -> tuple[list[int], set[int]]:
        """Return the completions that each gate waits for when these tasks have finished, and the
        tasks whose gate is open: of those that are `due`, where None is all."""
        waiting = list(self.waits)
        opening = [0]
        opened = set[int]()

        def feed(gates: Iterable[int]) -> None:
            for gate in gates:
                waiting[gate] -= 1
                if not waiting[gate]:
                    opening.append(gate)

        while opening:
            gate = opening.pop()
            feed(self.onward[gate])
            for index in self.gates[gate]:
                is_due = due is None or index in due
                if is_due:
                    opened.add(index)
                if not is_due or index in finished:
                    feed(self.work[index][FEEDS])
        return waiting, opened

    def reached_from(self, index: int) -> frozenset[int]:
        """Return the gates that wait for a task, or for what waits for it."""
        reached = set[int]()
        left: list[int] = list(self.work[index][FEEDS])
        while left:
            gate = left.pop()
            if gate not in reached:
                reached.add(gate)
                left += self.onward[gate]
                for member in self.gates[gate]:
                    left += self.work[member][FEEDS]
        return frozenset(reached)


class Plan:
    """All that a run needs to know: immutable, and shared by every run of a processor.

    `names` are the task names in the order in which tasks were added. A task is known by its
    index there. `starts_with[i]` is the stage or gate of `pre_execute` with whose opening task i
    can start. At most `places` functions are suspended at a time. The run does not need the tasks
    in `optional`, and a failure stops it unless it `keeps_going`.
    """

    __slots__ = (
        "_observed",
        "_reached",
        "_tasks",
        "arrays",
        "cleanup_timeout",
        "has_timeouts",
        "index_of",
        "keeps_going",
        "names",
        "optional",
        "phases",
        "places",
        "starts_with",
    )

    def __init__(
        self,
        tasks: Sequence[AsyncTask[Any, Any]],
        phases: tuple[Phase, ...],
        starts_with: Sequence[int],
        places: int,
        *,
        keeps_going: bool,
        cleanup_timeout: float | None,
    ) -> None:
        self._tasks = tasks
        self._observed: Plan | None = None
        self._reached: dict[int, frozenset[int]] = {}
        self.names: tuple[Hashable, ...] = tuple(task.name for task in tasks)
        self.index_of = {name: index for index, name in enumerate(self.names)}
        self.phases = phases
        # The phases once more, for the compiled engine: it reads tuples faster than attributes.
        self.arrays = tuple((p.work, p.stages, p.gates, p.onward, p.waits) for p in phases)
        self.has_timeouts = cleanup_timeout is not None or any(
            work is not None
            and (work[TIMEOUT] is not None or (work[LIMITS] and work[LIMITS].timeout is not None))
            for phase in phases
            for work in phase.work
        )
        self.cleanup_timeout = cleanup_timeout
        self.starts_with = tuple(starts_with)
        self.places = places
        self.optional = frozenset(i for i, task in enumerate(tasks) if not task.required)
        self.keeps_going = keeps_going

    @property
    def observed(self) -> Plan:
        """The same plan with limits for every function: such functions the engine tells of."""
        if self._observed is None:
            phases = [phase.limited(self._tasks) for phase in self.phases]
            self._observed = Plan(
                self._tasks,
                tuple(phases),
                self.starts_with,
                self.places,
                keeps_going=self.keeps_going,
                cleanup_timeout=self.cleanup_timeout,
            )
        return self._observed

    def is_before(self, index: int, at: int) -> bool:
        """Return True if all that starts with this stage or gate waits for this `pre_execute`."""
        if not self.phases[PRE].gates:
            return self.starts_with[index] < at
        if index not in self._reached:
            self._reached[index] = self.phases[PRE].reached_from(index)
        return at in self._reached[index]

    def key(self, number: int, index: int) -> int:
        """Return the key under which records and values of a run know this phase of this task."""
        return number * len(self.names) + index

    def started(
        self, opened: int, waiting: Sequence[int] | None, uncalled: Iterable[int]
    ) -> set[int]:
        """Return the tasks that have started, when `opened` stages of `pre_execute` were opened,
        its gates are `waiting` for that many, and the functions of `uncalled` were not called."""
        if waiting is None:
            reached = {index for index, at in enumerate(self.starts_with) if at < opened}
        else:
            reached = {index for index, at in enumerate(self.starts_with) if not waiting[at]}
        return reached.difference(uncalled)

    def held_up(
        self, number: int, failed: Sequence[int], opened: int, skipped: Iterable[int]
    ) -> dict[int, int]:
        """Return which tasks are never called because these have failed in this phase, of which
        `opened` stages were opened and these were `skipped`, and for each of them the first
        failure that it depends on."""
        phase = self.phases[number]
        if not phase.gates:
            held = dict.fromkeys(skipped, failed[0])
            if number == PRE:
                above = (index for index, at in enumerate(self.starts_with) if at >= opened)
                held.update(dict.fromkeys(above, failed[0]))
            return held
        gates: dict[int, int] = {}
        for index in failed:
            left = list(phase.work[index][FEEDS])
            while left:
                gate = left.pop()
                if gate not in gates:
                    gates[gate] = index
                    left += phase.onward[gate]
                    for member in phase.gates[gate]:
                        left += phase.work[member][FEEDS]
        return {index: gates[at] for index, at in enumerate(self.starts_with) if at in gates}


def plan_levels(
    levels: Iterable[Sequence[int]],
    tasks: Sequence[AsyncTask[Any, Any]],
    max_concurrency: int | None,
    *,
    execute_in_order: bool = False,
    keeps_going: bool = False,
    cleanup_timeout: float | None = None,
) -> Plan:
    """Plan tasks that stand in levels: the indices of each level's tasks, from the lowest on."""
    levels = list(levels)
    pre, execute, post = (work_of(tasks, number) for number in range(len(PHASES)))
    starts_with = [0] * len(tasks)
    pre_stages: list[tuple[int, ...]] = []
    for members in levels:
        for index in members:
            starts_with[index] = len(pre_stages)
        # A level without functions opens and is done at once, together with the next one.
        if stage := with_function(members, pre):
            pre_stages.append(stage)
    at_once = levels if execute_in_order else [range(len(tasks))]
    phases = (
        Phase(PRE, pre, tuple(pre_stages)),
        Phase(EXECUTE, execute, stages_of(at_once, execute)),
        Phase(POST, post, stages_of(reversed(levels), post)).within(cleanup_timeout, tasks),
    )
    return Plan(
        tasks,
        phases,
        starts_with,
        places_of(max_concurrency),
        keeps_going=keeps_going,
        cleanup_timeout=cleanup_timeout,
    )


def places_of(max_concurrency: int | None) -> int:
    """Return how many functions may be suspended, as a number that the engines can count to."""
    return sys.maxsize if max_concurrency is None else min(max_concurrency, sys.maxsize)


def work_of(tasks: Sequence[AsyncTask[Any, Any]], number: int) -> tuple[Any, ...]:
    phase = PHASES[number]
    work: list[Work | None] = []
    for task in tasks:
        function: TaskFunction[Any] | None = getattr(task, phase)
        if function is None:
            work.append(None)
            continue
        name = task_name(task.name, phase)
        call: Any = function.function
        users_name = name_of(call)
        if function.has_task_group_argument:
            call = WithTaskGroup(call)
        kind: bool | str = False
        if isinstance(call, PlainFunction):
            kind = True
            call = call.function
        elif isinstance(call, (ResourceSetUp, ResourceCleanUp)):
            kind = RESOURCE
            call = Holding(call.function, task_name(task.name, "resource"))
        elif function.has_outcome_argument:
            kind = OUTCOME
        if isinstance(call, ThreadFunction):
            call = in_its_thread(call, function, name, is_cleanup=number == POST)
        limits = function if has_limits(function) else None
        special = function.limiter is not None or function.retry_budget is not None
        first = first_timeout(function)
        work.append((call, limits, name, (), kind, first, users_name, special))
    return tuple(work)


def has_limits(function: TaskFunction[Any]) -> bool:
    """Return True if there is anything to look after besides the call."""
    return bool(function.retries) or any(
        limit is not None
        for limit in (
            function.timeout,
            function.total_timeout,
            function.limiter,
            function.fallback,
            function.retry_budget,
        )
    )


def first_timeout(function: TaskFunction[Any]) -> float | None:
    """Return the seconds that the first attempt may take, or its wait for the limiter."""
    timeout = function.timeout if function.limiter is None else None
    total = function.total_timeout
    return timeout if total is None else total if timeout is None else min(timeout, total)


def in_its_thread(
    call: ThreadFunction[Any], limits: TaskFunction[Any], name: str, *, is_cleanup: bool
) -> ThreadFunction[Any]:
    """Return the function of a thread with threads of its own, if it must not wait for one.

    Other threads that hang must not keep a cleanup from being called, and a timeout must not run
    before its function does.
    """
    timed = limits.timeout is not None or limits.total_timeout is not None
    if call.executor is None and (is_cleanup or timed):
        threads = OwnThreads(name, urgent=is_cleanup)
        return ThreadFunction(call.function, call.abandon_on_cancel, threads)
    return call


def task_name(name: Hashable, phase: str) -> str:
    """Return the name of the `asyncio.Task` of a function."""
    return f"sdax:{_as_text(name)}:{phase}"


def _as_text(name: Hashable) -> str:
    try:
        return str(name)
    except Exception:
        return shown(name)


def stages_of(groups: Iterable[Iterable[int]], work: Sequence[Any]) -> tuple[tuple[int, ...], ...]:
    return tuple(stage for members in groups if (stage := with_function(members, work)))


def with_function(members: Iterable[int], work: Sequence[Any]) -> tuple[int, ...]:
    return tuple(index for index in members if work[index] is not None)
