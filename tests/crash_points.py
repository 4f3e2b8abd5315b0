"""Every point at which a small workflow can be disturbed, on the engines and on the model.

    python -m tests.crash_points --engine both          # the quick set: half of it is in the suite
    python -m tests.crash_points --engine both --full   # all of it: make proof

Each *schedule* is one run of one workflow with one set of disturbances: the caller is cancelled
between any two callbacks of the event loop, and again between any later two, and each function
fails in each way of `Fault`, before it suspends and after. `full_sets` says which workflows there
are, and how they are disturbed; the number printed is that of the runs made on an engine.

After each run two things are checked. `broken_promises` looks at this run alone. And the outcome
(every event of every function, the error, the report) must be that of the reference model: of
a cancellation, it must be an outcome of a model that hears of it at the same point, that is with
the same events behind it, or at one that comes before the caller's turn. Where that is a race
that the model runs otherwise (see `is_settled`), only the first of the two is checked.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent))  # for python -m tests.crash_points

import workflows
from conftest import ENGINES
from helpers import TURN
from playing import (
    Event,
    Observation,
    Place,
    Player,
    on_engine,
    on_reference,
    using,
)
from small_workflows import (
    ALL_PHASES,
    MOST_UNLIKE,
    ON_CANCEL,
    RESOURCES,
    Pace,
    Small,
    in_graphs,
    in_levels,
    with_faults,
    with_oddities,
    with_two_faults,
)
from verdicts import broken_promises, contracted
from virtual_clock import SteppingLoop, watchdog
from workflows import WILLING, Arrangement, Disturbance, Factory, Workflow

Outcome = dict[str, Hashable]
Point = frozenset[Event]  # what has happened so far


class Found(NamedTuple):
    """A schedule that showed something to be wrong, and what."""

    engine: str
    workflow: Workflow
    problems: list[str]

    def __str__(self) -> str:
        repeat = f'python -m tests.crash_points --engine {self.engine} --repeat "{self.workflow}"'
        return "\n".join([*self.problems, f"to repeat it: {repeat}"])


class Tally:
    """How many schedules an engine went through, by kind, and what they showed to be wrong."""

    def __init__(self, engine: str) -> None:
        self.engine = engine
        self.schedules: Counter[str] = Counter()
        self.found: list[Found] = []

    def count(self, kind: str, workflow: Workflow, problems: list[str]) -> None:
        self.schedules[kind] += 1
        if problems:
            self.found.append(Found(self.engine, workflow, problems))


class Model:
    """What the reference model makes of a workflow, undisturbed and cancelled."""

    def __init__(self, workflow: Workflow, loop: SteppingLoop) -> None:
        self.workflow = workflow
        self.loop = loop
        self.player = Player(workflow, on_reference, loop)
        self.known: dict[Point, list[Outcome]] = {}

    @cached_property
    def has_resources(self) -> bool:
        """Return True if a resource may hear of a cancellation before the caller does."""
        return any(node.is_resource for node in self.workflow.nodes)

    @cached_property
    def outcome(self) -> Outcome:
        return contracted(self.undisturbed)

    @cached_property
    def undisturbed(self) -> Observation:
        return self.player.play(Disturbance())

    def cancelled(self, at: Point) -> list[Outcome]:
        """Return the outcomes of a cancellation that is heard at this point."""
        if at not in self.known:
            self.known[at] = []
            for number in range(self.undisturbed.passes):
                if point(self.undisturbed, number) == at:
                    for at_once in (True, False) if self.has_resources else (True,):
                        disturbance = Disturbance(cancel_at_pass=(number,), heard_at_once=at_once)
                        outcome = contracted(self.player.play(disturbance))
                        if outcome not in self.known[at]:
                            self.known[at].append(outcome)
        return self.known[at]

    def allowed(self, workflow: Workflow, seen: Observation) -> Sequence[Outcome]:
        """Return the outcomes that the model says a run may have."""
        if seen.heard_by is None:
            return [self.outcome]
        (first, *_) = workflow.disturbance.cancel_at_pass
        last = min(seen.heard_by, len(seen.progress) - 1)
        if self.has_resources:  # whose cleanup asks for a cancellation in the middle of a pass
            events = {*range(seen.progress[first], seen.progress[last] + 1)}
        else:
            events = {seen.progress[number] for number in range(first, last + 1)}
        points = {frozenset(seen.trace[:number]) for number in events}
        return [outcome for each in points for outcome in self.cancelled(each)]


def point(seen: Observation, number: int) -> Point:
    """Return what had happened before this pass of the loop."""
    return frozenset(seen.trace[: seen.progress[number]])


def is_settled(workflow: Workflow) -> bool:
    """Tell whether the model has the same outcome, and not only one that is as good.

    A cancellation by a function is felt a pass of the loop later. What an engine does by then
    without a pass may take the model several: all of a run, or to open what waits in a graph. So
    it is with a resource that breaks when it has hardly been set up.
    """
    functions = repr(workflow.nodes)
    races = workflow.is_graph or "is_resource" in functions
    return "CancelCaller" not in functions and not (races and "CancelSelf" in functions)


def cancelled_at(workflow: Workflow, *passes: int) -> Workflow:
    return replace(workflow, disturbance=Disturbance(cancel_at_pass=passes))


class Explorer:
    """Goes through the schedules of one workflow on one engine."""

    def __init__(self, model: Model, tally: Tally) -> None:
        self.model = model
        self.tally = tally
        self.by_model = is_settled(model.workflow)
        self.player = Player(model.workflow, on_engine, model.loop)
        self.accepted: list[tuple[Outcome, list[Event], bool]] = []

    def play(self, kind: str, *cancelled: int) -> Observation:
        """Make one run, cancelled before these passes of the loop, and check it."""
        workflow = cancelled_at(self.model.workflow, *cancelled)
        seen = self.player.play(workflow.disturbance)
        self.tally.count(kind, workflow, self.problems(workflow, seen))
        return seen

    def problems(self, workflow: Workflow, seen: Observation) -> list[str]:
        outcome = contracted(seen)
        problems = []
        if self.by_model:
            allowed = self.model.allowed(workflow, seen)
            if outcome not in allowed:
                problems.append(unlike(outcome, allowed))
        # What these look at is all in here, and most schedules differ from another in nothing.
        evidence = (outcome, seen.trace, seen.interrupted)
        if evidence not in self.accepted:
            broken = broken_promises(workflow, seen)
            problems += broken
            if not broken:
                self.accepted.append(evidence)
        return problems

    def play_again(self, kind: str, once: Observation, *cancelled: int) -> None:
        """Make a run with a further cancellation, which must change nothing."""
        workflow = cancelled_at(self.model.workflow, *cancelled)
        seen = self.player.play(workflow.disturbance)
        outcome, expected = contracted(seen), contracted(once)
        problems = []
        if {**outcome, "cancelling": 1} != expected or seen.trace != once.trace:
            problems.append(f"a further cancellation: {unlike(outcome, [expected])}")
        if seen.cancelling != len(cancelled):
            problems.append(f"cancelled {len(cancelled)} times, cancelling() is {seen.cancelling}")
        self.tally.count(kind, workflow, problems)

    def play_cancelled(self, passes: int, *, twice: bool) -> None:
        """Cancel the caller before each pass, and again before each later one."""
        for first in range(passes):
            once = self.play("cancelled", first)
            if twice:
                for second in range(first, once.passes):
                    self.play_again("cancelled twice", once, first, second)


def unlike(outcome: Outcome, allowed: Sequence[Outcome]) -> str:
    """Show where an outcome differs from the one that is most like it."""
    if not allowed:
        return "the model never comes to this point"

    def differences(other: Outcome) -> dict[str, tuple[Hashable, Hashable]]:
        return {
            key: (outcome.get(key), other.get(key))
            for key in {**outcome, **other}
            if outcome.get(key) != other.get(key)
        }

    nearest = min(map(differences, allowed), key=len)
    return "\n".join(
        f"{key}:\n    {mine}\n    the model: {other}" for key, (mine, other) in nearest.items()
    )


def waits(place: Place, events: Sequence[Event]) -> bool:
    """Tell whether a function has been called, and has not ended."""
    last = [event.what for event in events if event.place == place][-1:]
    return last in (["call"], ["resume"])


class Set(NamedTuple):
    """Workflows, and how they are disturbed besides one cancellation at each point."""

    title: str
    small: Iterable[Small]
    paces: Sequence[Pace]
    factories: Sequence[Factory] = (Factory.NONE,)
    twice: bool = True  # a further cancellation at each later point
    faults_cancelled: bool = False  # each fault with one cancellation at each point, too
    two_faults: bool = False  # and each two functions that raise
    zoo: bool = False  # and each function raises each exception of the zoo
    keeps_going: bool = False  # after a failure
    spared: bool = False  # each task in turn is not required

    def workflows(self) -> Iterator[Workflow]:
        for small in self.small:
            for pace in self.paces:
                for factory in self.factories:
                    workflow = replace(small.workflow(pace), factory=factory)
                    yield from self.variants(replace(workflow, keeps_going=self.keeps_going))

    def variants(self, workflow: Workflow) -> Iterator[Workflow]:
        if not self.spared:
            yield workflow
            return
        for number, node in enumerate(workflow.nodes):
            nodes = [*workflow.nodes]
            nodes[number] = replace(node, required=False)
            yield replace(workflow, nodes=tuple(nodes))


def quick_sets() -> list[Set]:
    """What the suite goes through: a little of everything, and more on several Pythons."""
    ones = [*in_levels(1, ALL_PHASES)][TURN % 2 :: 2]
    pairs = [*in_levels(2, ("pep",))]
    graphs = [*in_graphs(3, ("pep",), IN_ORDER)][TURN % 6 :: 6]
    paces = [Pace.MIXED, Pace.LIMITED][TURN % 2 :: 2]
    resources = [*in_levels(2, ("rer", "pep"))][TURN % 6 :: 6]
    return [
        Set("1 task", ones, MIXED, faults_cancelled=True),
        Set("1 task, task factories", in_levels(1, ("pep",)), MIXED, FACTORIES),
        Set("2 tasks in levels", pairs, paces),
        (
            Set("2 tasks, two faults", pairs[:1], MIXED, twice=False, two_faults=True),
            Set("2 tasks, the zoo", pairs[1:], MIXED, twice=False, zoo=True),
        )[TURN % 2],
        Set("graphs of 3", graphs, [Pace.SLEEPING], twice=False),
        Set("graphs of 3, keep going", graphs, MIXED, twice=False, keeps_going=True),
        Set("2 tasks, one not required", pairs[:1], MIXED, twice=False, spared=True),
        Set("2 tasks, resources", resources, MIXED, twice=False),
    ]


def full_sets() -> list[Set]:
    """What `make proof` goes through."""
    return [
        Set("1 task", in_levels(1, ALL_PHASES), PACES, WILLING, faults_cancelled=True),
        Set("2 tasks in levels", in_levels(2, ALL_PHASES), PACES),
        Set("1 resource", in_levels(1, RESOURCES), PACES, WILLING, faults_cancelled=True),
        Set("2 tasks, resources", in_levels(2, (*RESOURCES, "pep")), MIXED, FACTORIES),
        Set(
            "2 tasks, resources, two faults",
            in_levels(2, ("rer", "pep")),
            MIXED,
            twice=False,
            faults_cancelled=True,
            two_faults=True,
            spared=True,
        ),
        Set("3 tasks, resources", in_levels(3, ("rer", "pep")), MIXED, twice=False),
        Set("graphs of 3, resources", in_graphs(3, ("rer", "pep"), IN_ORDER), MIXED, twice=False),
        Set("2 tasks, task factories", in_levels(2, MOST_UNLIKE), MIXED, FACTORIES),
        Set(
            "2 tasks, faults and cancellations together",
            in_levels(2, MOST_UNLIKE),
            MIXED,
            twice=False,
            faults_cancelled=True,
        ),
        Set("2 tasks, two faults", in_levels(2, MOST_UNLIKE), PACES, twice=False, two_faults=True),
        Set("3 tasks, two faults", in_levels(3, ("pep",)), MIXED, twice=False, two_faults=True),
        Set("1 task, the zoo", in_levels(1, ALL_PHASES), PACES, WILLING, zoo=True),
        Set("2 tasks, the zoo", in_levels(2, MOST_UNLIKE), MIXED, twice=False, zoo=True),
        Set(
            "graphs of 3, two faults",
            in_graphs(3, ("pep",), IN_ORDER),
            MIXED,
            twice=False,
            two_faults=True,
        ),
        Set("3 tasks in levels", in_levels(3, ALL_PHASES), MIXED, twice=False),
        Set("3 tasks, cancelled twice, at any pace", in_levels(3, ("pep", ".ep")), PACES),
        Set("4 tasks in levels", in_levels(4, ("pep", "pe.", ".ep")), MIXED, twice=False),
        Set("4 tasks, cancelled twice", in_levels(4, ("pep",)), SLEEPING),
        Set("graphs of 2", in_graphs(2, ALL_PHASES, IN_ORDER), MIXED),
        Set("graphs of 3", in_graphs(3, MOST_UNLIKE, IN_ORDER), MIXED),
        Set("graphs of 3, execute at once", in_graphs(3, ("pep", ".ep"), AT_ONCE), SLEEPING),
        Set("graphs of 4", in_graphs(4, ("pep", ".ep"), IN_ORDER), MIXED, twice=False),
        Set("graphs of 4, cancelled twice", in_graphs(4, ("pep",), IN_ORDER), SLEEPING),
        Set("graphs of 4, execute at once", in_graphs(4, ("pep",), AT_ONCE), MIXED, twice=False),
        Set(
            "2 tasks, keep going",
            in_levels(2, MOST_UNLIKE),
            PACES,
            twice=False,
            faults_cancelled=True,
            two_faults=True,
            keeps_going=True,
        ),
        Set(
            "3 tasks, keep going",
            in_levels(3, ("pep", ".ep")),
            MIXED,
            twice=False,
            two_faults=True,
            keeps_going=True,
        ),
        Set(
            "graphs of 3, keep going",
            in_graphs(3, ("pep", ".ep"), IN_ORDER),
            MIXED,
            twice=False,
            two_faults=True,
            keeps_going=True,
        ),
        Set(
            "graphs of 4, keep going",
            in_graphs(4, ("pep",), AT_ONCE),
            MIXED,
            twice=False,
            keeps_going=True,
        ),
        Set(
            "2 tasks, one not required",
            in_levels(2, MOST_UNLIKE),
            PACES,
            twice=False,
            faults_cancelled=True,
            two_faults=True,
            spared=True,
        ),
        Set(
            "graphs of 3, one not required",
            in_graphs(3, ("pep", ".ep"), IN_ORDER),
            MIXED,
            twice=False,
            two_faults=True,
            spared=True,
        ),
        Set(
            "graphs of 3, one not required, keep going",
            in_graphs(3, ("pep",), IN_ORDER),
            MIXED,
            twice=False,
            keeps_going=True,
            spared=True,
        ),
    ]


IN_ORDER, AT_ONCE = Arrangement.GRAPH_IN_ORDER, Arrangement.GRAPH
FACTORIES = (Factory.PLAIN, Factory.EAGER)
PACES, MIXED, SLEEPING = tuple(Pace), (Pace.MIXED,), (Pace.SLEEPING,)


def explore(
    workflow: Workflow,
    tallies: Mapping[ModuleType, Tally],
    loop: SteppingLoop,
    *,
    twice: bool,
    faults_cancelled: bool,
    two_faults: bool,
    zoo: bool,
) -> None:
    """Go through all schedules of a workflow, on each of these engines."""
    model = Model(workflow, loop)
    faulty = [
        (fault, place, Model(variant, loop))
        for fault, place, variant in chain(
            with_faults(workflow), with_oddities(workflow) if zoo else ()
        )
    ]
    pairs = [
        (f"a function {one.value}, another {other.value}", Model(variant, loop))
        for one, other, variant in (with_two_faults(workflow) if two_faults else ())
    ]
    for engine, tally in tallies.items():
        with using(engine):
            explorer = Explorer(model, tally)
            undisturbed = explorer.play("undisturbed")
            explorer.play_cancelled(undisturbed.passes, twice=twice)
            for fault, place, variant in faulty:
                explorer = Explorer(variant, tally)
                kind = f"a function {fault.value}"
                if fault in ON_CANCEL:
                    for number in range(undisturbed.passes):
                        if waits(place, undisturbed.trace[: undisturbed.progress[number]]):
                            explorer.play(kind, number)
                else:
                    passes = explorer.play(kind).passes
                    if faults_cancelled:
                        for number in range(passes):
                            explorer.play(f"{kind}, cancelled", number)
            for kind, variant in pairs:
                Explorer(variant, tally).play(kind)


def explore_sets(sets: Iterable[Set], tallies: Mapping[ModuleType, Tally]) -> Iterator[str]:
    """Go through the schedules of these sets, and tell of each when it is done."""
    with closing(SteppingLoop()) as loop:
        for each in sets:
            began = time.perf_counter()
            before = [tally.schedules.total() for tally in tallies.values()]
            number = 0
            for workflow in each.workflows():
                number += 1
                with watchdog():
                    explore(
                        workflow,
                        tallies,
                        loop,
                        twice=each.twice,
                        faults_cancelled=each.faults_cancelled,
                        two_faults=each.two_faults,
                        zoo=each.zoo,
                    )
            counts = ", ".join(
                f"{tally.engine} {tally.schedules.total() - count} schedules"
                for tally, count in zip(tallies.values(), before, strict=True)
            )
            seconds = time.perf_counter() - began
            yield f"{each.title}: {number} workflows, {counts}, {seconds:.0f} s"


def repeat(workflow: Workflow, engine: ModuleType) -> list[str]:
    """Play one schedule again, and tell what is wrong with it."""
    tally = Tally(engine.__name__)
    cancelled = workflow.disturbance.cancel_at_pass
    with closing(SteppingLoop()) as loop, using(engine):
        explorer = Explorer(Model(workflow, loop), tally)
        once = explorer.play("repeated", *cancelled[:1])
        if cancelled[1:]:
            explorer.play_again("repeated", once, *cancelled)
    return [problem for found in tally.found for problem in found.problems]


def main(arguments: Sequence[str] | None = None) -> int:
    """Go through all schedules, and print how many there were."""
    parser = argparse.ArgumentParser(prog="python -m tests.crash_points", description=main.__doc__)
    parser.add_argument("--engine", choices=[*ENGINES, "both"], default="both")
    parser.add_argument("--full", action="store_true", help="all sets, which takes minutes")
    parser.add_argument("--repeat", metavar="WORKFLOW", help="play one schedule that was printed")
    parser.add_argument("--show", type=int, default=3, help="how many findings to print in full")
    options = parser.parse_args(arguments)
    names = list(ENGINES) if options.engine == "both" else [options.engine]
    tallies = {importlib.import_module(ENGINES[name]): Tally(name) for name in names}
    if options.repeat:
        workflow = eval(options.repeat, {**vars(workflows)})
        problems = [problem for engine in tallies for problem in repeat(workflow, engine)]
        print(*problems, f"{len(problems)} problems", sep="\n")
        return bool(problems)
    for line in explore_sets(full_sets() if options.full else quick_sets(), tallies):
        print(line, flush=True)
    for tally in tallies.values():
        print(f"\n{tally.engine}: {tally.schedules.total()} schedules, {len(tally.found)} findings")
        print(*(f"  {number:8} {kind}" for kind, number in tally.schedules.items()), sep="\n")
        print(*tally.found[: options.show], sep="\n\n", flush=True)
    return any(tally.found for tally in tallies.values())


if __name__ == "__main__":
    sys.exit(main())
