"""All small workflows: every shape of levels and every graph, with phases present or not.

What makes no difference comes once. Tasks of one level come in one order of their phases, and
of the graphs that differ only in the names of their nodes there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from enum import Enum
from itertools import combinations, combinations_with_replacement, pairwise, permutations, product
from typing import NamedTuple

from playing import Place
from workflows import (
    PHASES,
    ZOO,
    Arrangement,
    Behaviour,
    CancelCaller,
    CancelSelf,
    Error,
    Instant,
    Node,
    Raise,
    Retryable,
    Return,
    Script,
    Sleep,
    Step,
    Workflow,
    Yield,
)

# Which phases a task has: a letter for each, or a point.
ALL_PHASES = tuple(map("".join, product("p.", "e.", "p.")))
MOST_UNLIKE = ("pep", "pe.", ".ep", "p.p")
RESOURCES = ("r.r", "rer")  # whose two halves are one function

Edges = tuple[tuple[int, int], ...]  # who depends on whom, by numbers in an order of both

LIMIT = 10_000.0  # a timeout that nothing reaches
SHORT_LIMIT = 50.0  # longer than what any function takes unless it hangs


class Pace(Enum):
    """How functions take their time."""

    AT_ONCE = "none suspends"
    PASSING = "each suspends for a pass of the loop"
    SLEEPING = "each sleeps, and no two wake at the same moment"
    MIXED = "every other one sleeps"
    LIMITED = "the others sleep, and all have timeouts"


class Small(NamedTuple):
    """A workflow but for what its functions do."""

    phases: tuple[str, ...]
    levels: tuple[int, ...]
    edges: Edges = ()
    arrangement: Arrangement = Arrangement.LEVELS

    def workflow(self, pace: Pace) -> Workflow:
        """Give the tasks functions that succeed."""
        nodes = []
        for task, letters in enumerate(self.phases):
            behaviours = {
                phase: _behaviour(pace, task, number)
                for number, phase in enumerate(PHASES)
                if letters[number] != "."
            }
            depends_on = tuple(f"T{other}" for one, other in self.edges if one == task)
            nodes.append(
                Node(
                    f"T{task}",
                    self.levels[task],
                    depends_on=depends_on,
                    is_resource=letters[0] == "r",
                    **behaviours,
                )
            )
        return Workflow(tuple(nodes), arrangement=self.arrangement)


def _behaviour(pace: Pace, task: int, phase: int) -> Behaviour:
    steps: tuple[Step, ...] = ()
    if pace is Pace.PASSING:
        steps = (Yield(),)
    elif (
        pace is Pace.SLEEPING
        or (pace is Pace.MIXED and (task + phase) % 2)
        or (pace is Pace.LIMITED and not (task + phase) % 2)
    ):
        # A bit of its own for each: no two sums of them are alike.
        steps = (Sleep(2 + 2.0 ** -(3 * task + phase + 1)),)
    return Behaviour((Script(steps),), timeout=LIMIT if pace is Pace.LIMITED else None)


def in_levels(size: int, alphabet: Sequence[str]) -> Iterator[Small]:
    """All workflows of so many tasks in up to three levels."""
    for heights in range(1, min(size, 3) + 1):
        for cuts in combinations(range(1, size), heights - 1):
            bounds = (0, *cuts, size)
            sizes = [high - low for low, high in pairwise(bounds)]
            choices = [combinations_with_replacement(alphabet, number) for number in sizes]
            for chosen in product(*choices):
                levels = [level for level, group in enumerate(chosen) for _ in group]
                yield Small(tuple(sum(chosen, ())), tuple(levels))


def in_graphs(size: int, alphabet: Sequence[str], arrangement: Arrangement) -> Iterator[Small]:
    """All workflows of so many tasks in a graph, one of each that differ in names alone."""
    pairs = [(one, other) for one in range(size) for other in range(one)]
    relabelings = list(permutations(range(size)))
    for present in product((False, True), repeat=len(pairs)):
        edges = tuple(pair for pair, there in zip(pairs, present, strict=True) if there)
        for phases in product(alphabet, repeat=size):
            if all(
                (edges, phases) <= _relabeled(edges, phases, names)
                for names in relabelings
                if all(names[one] > names[other] for one, other in edges)
            ):
                yield Small(phases, (0,) * size, edges, arrangement)


def _relabeled(
    edges: Edges, phases: tuple[str, ...], names: Sequence[int]
) -> tuple[Edges, tuple[str, ...]]:
    renamed = sorted((names[one], names[other]) for one, other in edges)
    moved = [""] * len(names)
    for number, name in enumerate(names):
        moved[name] = phases[number]
    return tuple(renamed), tuple(moved)


class Fault(Enum):
    """What one function does that it should not."""

    RAISE = "raises"
    INTERRUPT = "raises KeyboardInterrupt"
    TIME_OUT = "times out"
    RETRY = "fails once, and is retried"
    FINISH = "returns Finish"
    FALL_BACK = "fails, and its fallback is called"
    WAIT_OUTSIDE = "has a limiter, and maybe waits for it"
    RUN_OUT_OF_TIME = "fails once, and is cut off by its total_timeout then"
    CANCEL_SELF = "cancels its own asyncio.Task"
    CANCEL_CALLER = "cancels the caller"
    SWALLOW = "swallows its cancellation"
    ANSWER = "answers its cancellation with an exception"
    RAISE_ODDITY = "raises what is in the zoo"
    ANSWER_ODDLY = "answers its cancellation with what is in the zoo"


ON_CANCEL = (Fault.SWALLOW, Fault.ANSWER, Fault.ANSWER_ODDLY)  # seen only where it is cancelled


# What a half of a resource cannot do, or have.
NOT_OF_RESOURCES = {
    "pre_execute": (Fault.FALL_BACK, Fault.WAIT_OUTSIDE),
    "post_execute": (
        Fault.FINISH,
        Fault.RETRY,
        Fault.FALL_BACK,
        Fault.WAIT_OUTSIDE,
        Fault.RUN_OUT_OF_TIME,
    ),
}

Faulty = Iterator[tuple[Fault, Place, Workflow]]


def with_faults(workflow: Workflow) -> Faulty:
    """Let each function in turn do each of these, before it suspends and after."""
    return _each_with(workflow, _faulty)


def with_oddities(workflow: Workflow) -> Faulty:
    """Let each function in turn raise each exception of the zoo."""
    return _each_with(workflow, _odd)


def _each_with(
    workflow: Workflow, make: Callable[[Behaviour], Iterator[tuple[Fault, Behaviour]]]
) -> Faulty:
    for number, node in enumerate(workflow.nodes):
        for phase in PHASES:
            behaviour: Behaviour | None = getattr(node, phase)
            if behaviour is None:
                continue
            for fault, faulty in make(behaviour):
                if fault is Fault.FALL_BACK and phase == "post_execute":
                    continue  # which must not have one
                if node.is_resource and phase != "execute" and fault in NOT_OF_RESOURCES[phase]:
                    continue
                nodes = [*workflow.nodes]
                nodes[number] = replace(node, **{phase: faulty})
                yield fault, Place(node.name, phase), replace(workflow, nodes=tuple(nodes))


def _odd(behaviour: Behaviour) -> Iterator[tuple[Fault, Behaviour]]:
    steps = behaviour.scripts[0].steps
    for error in ZOO:
        for before in ((), steps) if steps else ((),):
            odd = Script(before, Raise(error))
            yield Fault.RAISE_ODDITY, replace(behaviour, scripts=(odd,))
        if steps:
            answering = Script(steps, on_cancel=Script(ending=Raise(error)))
            yield Fault.ANSWER_ODDLY, replace(behaviour, scripts=(answering,))


def with_two_faults(workflow: Workflow) -> Iterator[tuple[Fault, Fault, Workflow]]:
    """Let each two functions raise or return `Finish`, before they suspend and after."""
    ending = (Fault.RAISE, Fault.INTERRUPT, Fault.FINISH)
    for one, place, faulty in with_faults(workflow):
        if one in ending:
            for other, other_place, twice_faulty in with_faults(faulty):
                if other in ending and place < other_place:
                    yield one, other, twice_faulty


def _faulty(behaviour: Behaviour) -> Iterator[tuple[Fault, Behaviour]]:
    steps = behaviour.scripts[0].steps

    def does(*scripts: Script) -> Behaviour:
        return replace(behaviour, scripts=scripts)

    for before in ((), steps) if steps else ((),):
        yield Fault.RAISE, does(Script(before, Raise(Error.VALUE)))
        yield Fault.INTERRUPT, does(Script(before, Raise(Error.KEYBOARD_INTERRUPT)))
        yield Fault.FINISH, does(Script(before, Return(1, finish=True)))
        after = steps[len(before) :]
        instants: list[tuple[Fault, Instant]] = [
            (Fault.CANCEL_SELF, CancelSelf()),
            (Fault.CANCEL_CALLER, CancelCaller()),
        ]
        for fault, instant in instants:
            yield fault, does(Script((*before, instant, *after)))
        if steps:
            yield Fault.SWALLOW, does(Script(steps, on_cancel=Script(before)))
            answer = Script(before, Raise(Error.CONNECTION))
            answering = does(Script(steps, on_cancel=answer))
            # Which has retries left, and may not use them.
            yield Fault.ANSWER, replace(answering, retries=1, retryable=Retryable.EVERYTHING)
        yield (
            Fault.RETRY,
            replace(
                behaviour,
                scripts=(Script(before, Raise(Error.CONNECTION)), Script(steps)),
                retries=1,
                retryable=Retryable.EVERYTHING,
            ),
        )
        failing = Script(before, Raise(Error.CONNECTION))
        yield Fault.FALL_BACK, replace(does(failing), fallback=Script(steps))
    doors = {0.0} | {step.seconds / 4 for step in steps if isinstance(step, Sleep)}
    for seconds in sorted(doors):
        yield Fault.WAIT_OUTSIDE, replace(behaviour, limiter=seconds)
    hanging = Script((Sleep(2 * SHORT_LIMIT),))
    late = does(Script(steps, Raise(Error.CONNECTION)), hanging)
    yield Fault.RUN_OUT_OF_TIME, replace(late, retries=1, total_timeout=SHORT_LIMIT)
    yield Fault.TIME_OUT, replace(behaviour, scripts=(hanging,), timeout=SHORT_LIMIT)
