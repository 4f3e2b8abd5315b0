"""Planning a graph: tasks grouped by what they wait for."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import pairwise
from typing import Any

from ..common.order import EXECUTE, PHASES, POST, PRE
from ..common.text import shown
from ..tasks import AsyncTask
from .plan import Phase, Plan, places_of, plan_levels, replaced, stages_of, with_function, work_of
from .work import FEEDS


def plan_graph(
    prerequisites: Sequence[frozenset[int]],
    tasks: Sequence[AsyncTask[Any, Any]],
    max_concurrency: int | None,
    *,
    execute_in_order: bool,
    keeps_going: bool = False,
    cleanup_timeout: float | None = None,
) -> Plan:
    """Plan tasks in a graph: the indices of what each task depends on.

    Raises `ValueError`, naming the path, for a cycle.
    """
    forward = Gates.grouping(prerequisites)
    order = forward.opening_order()
    if len(order) < len(forward.members):
        raise ValueError(_describe_cycle(prerequisites, forward, set(order), tasks))
    if layers := forward.as_layers(order):
        return plan_levels(
            layers,
            tasks,
            max_concurrency,
            execute_in_order=execute_in_order,
            keeps_going=keeps_going,
            cleanup_timeout=cleanup_timeout,
        )
    backward = forward.reversed()
    pre, execute, post = (work_of(tasks, number) for number in range(len(PHASES)))
    if execute_in_order:
        execute_phase = _graph_phase(EXECUTE, execute, forward)
    else:
        execute_phase = Phase(EXECUTE, execute, stages_of([range(len(tasks))], execute))
    phases = (
        _graph_phase(PRE, pre, forward),
        execute_phase,
        _graph_phase(POST, post, backward).within(cleanup_timeout, tasks),
    )
    places = places_of(max_concurrency)
    return Plan(
        tasks,
        phases,
        forward.gate_of,
        places,
        keeps_going=keeps_going,
        cleanup_timeout=cleanup_timeout,
    )


class Gates:
    """Tasks grouped by what they wait for: a gate opens its `members` when all tasks in what it
    `requires` are done. Gate 0 requires nothing, and may have no members."""

    __slots__ = ("fed_by", "gate_of", "members", "requires")

    def __init__(
        self, members: Sequence[Sequence[int]], requires: Sequence[Collection[int]]
    ) -> None:
        self.members = members
        self.requires = requires
        size = sum(map(len, members))
        self.gate_of = [0] * size
        for gate, indices in enumerate(members):
            for index in indices:
                self.gate_of[index] = gate
        self.fed_by: list[list[int]] = [[] for _ in range(size)]  # the gates that a task feeds
        for gate, required in enumerate(requires):
            for index in required:
                self.fed_by[index].append(gate)

    @classmethod
    def grouping(cls, prerequisites: Sequence[frozenset[int]]) -> Gates:
        """Group tasks with the same prerequisites under one gate."""
        numbers: dict[frozenset[int], int] = {frozenset(): 0}
        members: list[list[int]] = [[]]
        for index, required in enumerate(prerequisites):
            gate = numbers.setdefault(required, len(members))
            if gate == len(members):
                members.append([])
            members[gate].append(index)
        return cls(members, list(numbers))

    def reversed(self) -> Gates:
        """Return the gates of the reversed graph: tasks grouped by what depends on them."""
        numbers: dict[tuple[int, ...], int] = {(): 0}
        members: list[list[int]] = [[]]
        for index, fed in enumerate(map(tuple, self.fed_by)):
            gate = numbers.setdefault(fed, len(members))
            if gate == len(members):
                members.append([])
            members[gate].append(index)
        requires = [[i for gate in fed for i in self.members[gate]] for fed in numbers]
        return Gates(members, requires)

    def opening_order(self) -> list[int]:
        """Return the gates in an order in which they can open, without those in a cycle."""
        missing = [len(required) for required in self.requires]
        order = [0]
        for gate in order:
            for index in self.members[gate]:
                for fed in self.fed_by[index]:
                    missing[fed] -= 1
                    if not missing[fed]:
                        order.append(fed)
        return order

    def as_layers(self, order: list[int]) -> list[Sequence[int]] | None:
        """Return the tasks in levels if that says the same, else None."""
        for before, gate in pairwise(order):
            if set(self.requires[gate]) != set(self.members[before]):
                return None
        return [self.members[gate] for gate in order]


def _graph_phase(number: int, work: tuple[Any, ...], gates: Gates) -> Phase:
    # A task without a function is done as its gate opens: the gate feeds what the task would.
    onward: list[set[int]] = [set() for _ in gates.members]
    waits = [0] * len(gates.members)
    for gate, required in enumerate(gates.requires):
        for index in required:
            if work[index] is not None:
                waits[gate] += 1
            elif gate not in onward[gates.gate_of[index]]:
                onward[gates.gate_of[index]].add(gate)
                waits[gate] += 1
    feeding = tuple(
        entry and replaced(entry, FEEDS, tuple(gates.fed_by[index]))
        for index, entry in enumerate(work)
    )
    return Phase(
        number,
        feeding,
        gates=tuple(with_function(members, work) for members in gates.members),
        onward=tuple(tuple(sorted(fed)) for fed in onward),
        waits=tuple(waits),
    )


def _describe_cycle(
    prerequisites: Sequence[frozenset[int]],
    gates: Gates,
    opened: set[int],
    tasks: Sequence[AsyncTask[Any, Any]],
) -> str:
    # A gate that never opens waits for a gate that never opens. Following that ends in a circle.
    index = next(i for i, gate in enumerate(gates.gate_of) if gate not in opened)
    path: dict[int, None] = {}
    while index not in path:
        path[index] = None
        index = min(i for i in prerequisites[index] if gates.gate_of[i] not in opened)
    before = list(path)
    cycle = [*before[before.index(index) :], index]
    names = " -> ".join(shown(tasks[i].name) for i in cycle)
    return f"build: the dependencies form a cycle: {names} (each depends on the next)"
