"""The chain that a run has waited for, checked by running again without each of its functions."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any
from unittest import mock

import pytest

import sdax.processor
from helpers import amount, one_loop
from playing import RANDOM_FACTOR, Added, Start, observe
from random_workflows import random_workflow
from sdax import (
    AsyncDagTaskProcessor,
    AsyncTask,
    AsyncTaskProcessor,
    Finish,
    SdaxExecutionError,
    TaskFunction,
    join,
)
from sdax.observe import CriticalPath, RunSpan, Timeline
from sdax.testing import VirtualClockLoop
from workflows import PHASES, Workflow

pytestmark = one_loop

Place = tuple[str, str]  # a task and a phase


@dataclass(frozen=True)
class Case:
    """Tasks whose functions sleep, and which of them fail in the end or after so many attempts."""

    kind: str  # one of KINDS
    depends_on: dict[str, tuple[str, ...]]
    levels: dict[str, int]
    sleeps: dict[Place, float]
    failing: frozenset[Place] = frozenset()
    flaky: dict[Place, int] = field(default_factory=dict)
    places: int | None = None
    optional: frozenset[str] = frozenset()
    keeps_going: bool = False
    finishing: frozenset[Place] = frozenset()

    def without(self, place: Place) -> Case:
        """The same case, but one function takes no time: it does not sleep, nor fail first."""
        flaky = {key: value for key, value in self.flaky.items() if key != place}
        return replace(self, sleeps=self.sleeps | {place: 0.0}, flaky=flaky)

    def as_graph(self) -> Case:
        return replace(self, kind=self.kind.replace("levels", "graph"))


def random_case(seed: int, kind: str, *, failing: bool = False, places: bool = False) -> Case:
    random = Random(seed)
    names = [f"T{number}" for number in range(random.randint(1, 6))]
    levels = {name: random.choice((-2, 0, 5)) for name in names}
    in_levels = kind.startswith("levels")
    if in_levels:
        before = {name: [each for each in names if levels[each] < levels[name]] for name in names}
    else:
        before = {name: names[:position] for position, name in enumerate(names)}
    depends_on = {
        name: tuple(each for each in before[name] if random.random() < 0.4) for name in names
    }
    sleeps = {
        # Few bits, so that sums are exact, and hardly ever equal.
        (name, phase): random.randint(1, 2**20) / 2**18
        for name in names
        for phase in PHASES
        if random.random() < 0.7
    }
    for name in names:
        if in_levels and not any((name, phase) in sleeps for phase in PHASES):
            sleeps[name, "execute"] = random.randint(1, 2**20) / 2**18
    chosen = sorted(sleeps)
    fails = frozenset(random.sample(chosen, min(len(chosen), 2))) if failing else frozenset[Place]()
    flaky = {place: random.randint(1, 2) for place in chosen if random.random() < 0.2}
    limit = random.randint(1, 3) if places else None
    return Case(kind, depends_on, levels, sleeps, fails, flaky, limit)


def surviving_case(seed: int, kind: str) -> Case:
    """A case with tasks that are not required, or that keeps going, or which a function ends."""
    case = random_case(seed, kind, failing=seed % 4 != 3)
    random = Random(-seed)
    names = frozenset(case.levels)
    optional = names if seed % 4 == 0 else frozenset(random.sample([*case.levels], 1))
    ending = [place for place in sorted(case.sleeps) if place[1] != "post_execute"]
    finishing = frozenset(random.sample(ending, min(len(ending), 1)))
    return replace(
        case,
        optional=optional,
        keeps_going=seed % 4 == 1,
        finishing=finishing if seed % 4 > 1 else frozenset(),
    )


def function_of(case: Case, place: Place) -> TaskFunction[Any] | None:
    if place not in case.sleeps:
        return None
    attempts = 0

    async def function(ctx: Any) -> Any:
        nonlocal attempts
        attempts += 1
        if case.sleeps[place]:
            await asyncio.sleep(case.sleeps[place])
        if attempts <= case.flaky.get(place, 0):
            raise ConnectionError
        if place in case.failing:
            raise ValueError(*place)
        return Finish(place) if place in case.finishing else None

    return TaskFunction(function, retries=2, initial_delay=0.5)


def run_case(case: Case, engine: Any) -> RunSpan:
    """Run a case once, on a virtual clock."""
    builder: Any
    in_levels = case.kind.startswith("levels")
    order: Any = "at once"
    if case.kind.endswith("in order"):
        order = "level" if in_levels else "dependency"
    kind = AsyncTaskProcessor if in_levels else AsyncDagTaskProcessor
    builder = kind.builder(
        execute_order=order,
        max_concurrency=case.places,
        on_failure="keep going" if case.keeps_going else "cancel",
    )
    for name in case.levels:
        functions = [function_of(case, (name, phase)) for phase in PHASES]
        required = name not in case.optional
        task: Any = AsyncTask(name, *functions, required) if any(functions) else join(name)
        builder.add_task(task, case.levels[name] if in_levels else case.depends_on[name])
    loop = VirtualClockLoop()
    timeline = Timeline(clock=loop.time)

    async def run() -> None:
        try:
            await builder.build().process_tasks(None, observer=timeline)
        except SdaxExecutionError:
            assert case.failing

    try:
        with mock.patch("sdax.engine.attempts.uniform", lambda low, high: RANDOM_FACTOR):
            loop.run_until_complete(run())
    finally:
        loop.close()
    return timeline.runs[0]


def holds(path: CriticalPath) -> float:
    return sum(step.hold for step in path.steps) + path.rest


KINDS = ("levels", "levels in order", "graph", "graph in order")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("places", [False, True])
def test_without_a_function_the_run_takes_what_was_predicted(
    kind: str, places: bool, engine: Any
) -> None:
    checked = 0
    for seed in range(amount(15, 60)):
        case = random_case(seed, kind, places=places)
        path = run_case(case, engine).critical_path()
        assert holds(path) == pytest.approx(path.duration), case
        assert path.rest == 0
        for step in path.steps:
            again = run_case(case.without((str(step.name), step.phase)), engine)
            assert step.without == pytest.approx(again.duration), (case, step)
            checked += 1
    assert checked > amount(25, 100)


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_function_a_failing_run_takes_what_was_predicted(kind: str, engine: Any) -> None:
    known = 0
    for seed in range(amount(20, 80)):
        case = random_case(seed, kind, failing=True)
        path = run_case(case, engine).critical_path()
        assert holds(path) == pytest.approx(path.duration), case
        for step in path.steps:
            if step.without is not None:
                again = run_case(case.without((str(step.name), step.phase)), engine)
                assert step.without == pytest.approx(again.duration), (case, step)
                known += 1
    assert known > amount(25, 100)


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_function_a_run_that_survives_takes_what_was_predicted(
    kind: str, engine: Any
) -> None:
    logging.getLogger("sdax").disabled = True
    known = 0
    for seed in range(amount(20, 80)):
        case = surviving_case(seed, kind)
        path = run_case(case, engine).critical_path()
        assert holds(path) == pytest.approx(path.duration), case
        for step in path.steps:
            if step.without is not None:
                again = run_case(case.without((str(step.name), step.phase)), engine)
                assert step.without == pytest.approx(again.duration), (case, step)
                known += 1
    logging.getLogger("sdax").disabled = False
    assert known > amount(25, 100)


def test_a_graph_of_the_true_dependencies_takes_what_was_predicted(engine: Any) -> None:
    saving = 0
    for seed in range(amount(15, 60)):
        case = random_case(seed, ("levels", "levels in order")[seed % 2])
        run = run_case(case, engine)
        exact = run.critical_path(case.depends_on).graph
        assert exact is not None and exact.exact
        graph = run_case(case.as_graph(), engine)
        assert exact.duration == pytest.approx(graph.duration), case
        assert exact.saving == pytest.approx(run.duration - graph.duration)
        bound = run.critical_path().graph
        assert bound is not None and not bound.exact
        assert bound.duration <= exact.duration + 1e-9
        saving += exact.saving > 0
    assert saving > amount(2, 10)


def played(seed: int, engine: Any) -> RunSpan | None:
    """Play a workflow of any kind, with failures and cancellations of every kind in it."""
    timelines: list[Timeline] = []
    loops: list[asyncio.AbstractEventLoop] = []

    def prepare(workflow: Workflow, added: Added) -> Start:
        timeline = Timeline(clock=lambda: loops[0].time())
        timelines.append(timeline)
        builder: Any
        on_failure: Any = "keep going" if workflow.keeps_going else "cancel"
        if not workflow.is_graph:
            builder = AsyncTaskProcessor.builder(
                execute_order="level" if workflow.in_order else "at once",
                max_concurrency=workflow.places,
                observer=timeline,
                on_failure=on_failure,
            )
            for task, level in added:
                builder.add_task(task, level)
        else:
            builder = AsyncDagTaskProcessor.builder(
                execute_order="dependency" if workflow.in_order else "at once",
                max_concurrency=workflow.places,
                observer=timeline,
                on_failure=on_failure,
            )
            for (task, _), node in zip(added, workflow.nodes, strict=True):
                builder.add_task(task, node.depends_on)
        processor = builder.build()

        async def start(ctx: Any) -> Any:
            loops.append(asyncio.get_running_loop())
            return await processor.process_tasks(ctx)

        return start

    with (
        mock.patch.object(sdax.processor, "Run", engine.module.Run),
        mock.patch("sdax.engine.attempts.uniform", lambda low, high: RANDOM_FACTOR),
    ):
        observe(random_workflow(Random(seed), settled=False), prepare)
    if not loops:
        return None  # the caller was cancelled before it began
    runs = timelines[0].runs
    return runs[0] if runs else None


def test_holds_add_up_to_the_run_whatever_happens_in_it(engine: Any) -> None:
    states: set[Any] = set()
    for seed in range(amount(40, 150)):
        run = played(seed, engine)
        if run is None:
            continue  # cancelled before it began
        path = run.critical_path()
        assert holds(path) == pytest.approx(path.duration), seed
        assert all(step.hold >= 0 and step.waited >= 0 for step in path.steps), seed
        assert path.rest >= 0
        assert str(path) and str(run) and run.to_mermaid()
        states.add(run.state)
    assert len(states) == 3


def fetch() -> Case:
    return Case(
        "levels",
        {"User": (), "Catalogue": (), "Prices": ("Catalogue",)},
        {"User": 1, "Catalogue": 1, "Prices": 2},
        {
            ("User", "pre_execute"): 3.0,
            ("Catalogue", "pre_execute"): 1.0,
            ("Prices", "pre_execute"): 2.0,
            ("Catalogue", "post_execute"): 0.5,
        },
    )


def test_a_path_and_its_table(engine: Any) -> None:
    path = run_case(fetch(), engine).critical_path({"Prices": ["Catalogue"]})
    assert [(step.name, step.phase, step.hold, step.without) for step in path.steps] == [
        ("User", "pre_execute", 3.0, 3.5),
        ("Prices", "pre_execute", 2.0, 3.5),
        ("Catalogue", "post_execute", 0.5, 5.0),
    ]
    assert path.graph is not None
    assert (path.graph.duration, path.graph.saving, path.graph.exact) == (3.5, 2.0, True)
    assert str(path) == (
        "critical path of run 1: 3 steps, 5.50 s\n"
        "    held  of run  without it  function\n"
        "  3.00 s     55%      3.50 s  User.pre_execute\n"
        "  2.00 s     36%      3.50 s  Prices.pre_execute\n"
        "  500 ms      9%      5.00 s  Catalogue.post_execute\n"
        "     0 s      0%              (the end of the run)\n"
        "as a graph with these dependencies: 3.50 s"
    )


def test_a_limit_without_dependencies(engine: Any) -> None:
    assert str(run_case(fetch(), engine).critical_path()).splitlines()[-1] == (
        "lower limit as a graph without dependencies: 3.50 s. "
        "Use critical_path(depends_on={...}) for the real ones."
    )


@pytest.mark.parametrize("number", [1, 2, 9])
def test_steps_that_take_next_to_no_time_share_a_row(number: int, engine: Any) -> None:
    short = [f"Short {each}" for each in range(number)]
    names = ["User", *short]
    case = Case(
        "levels",
        dict.fromkeys(names, ()),
        {name: level for level, name in enumerate(names)},
        {(name, "pre_execute"): 10.0 if name == "User" else 0.01 for name in names},
    )
    path = run_case(case, engine).critical_path()
    assert len(path.steps) == 1 + number
    table = str(path)
    assert ("Short 0" in table) == (number == 1)
    assert (f"({number} shorter steps in total)" in table) == (number > 1)


def test_pauses_before_retries_hold_a_run(engine: Any) -> None:
    case = replace(fetch(), flaky={("User", "pre_execute"): 1})
    path = run_case(case, engine).critical_path()
    assert path.steps[0].hold == 3.0 + 0.5 * RANDOM_FACTOR + 3.0
    assert "User.pre_execute (2 attempts)" in str(path)


def test_a_place_that_others_had_is_waited_for(engine: Any) -> None:
    path = run_case(replace(fetch(), places=1), engine).critical_path()
    assert [step.name for step in path.steps] == ["User", "Catalogue", "Prices", "Catalogue"]


def test_what_failed_comes_before_what_it_cancelled(engine: Any) -> None:
    case = replace(fetch(), failing=frozenset({("Catalogue", "pre_execute")}))
    run = run_case(case, engine)
    path = run.critical_path()
    assert [(step.name, step.phase, step.hold) for step in path.steps][-1] == (
        *("Catalogue", "post_execute"),
        0.5,
    )
    assert path.steps[0].name == "Catalogue" and path.steps[0].hold == 1.0
    assert path.duration == 1.5


def test_what_depends_on_what_is_checked(engine: Any) -> None:
    run = run_case(fetch(), engine)
    for wrong, kind, message in [
        ({"Price": ["User"]}, ValueError, "no task is named 'Price'"),
        ({"Prices": ["Users"]}, ValueError, "no task is named 'Users'"),
        ({"Prices": "User"}, TypeError, "must be a collection of names, got 'User'"),
        ({"User": ["Prices"]}, ValueError, "'User', at level 1, cannot depend on 'Prices'"),
        ({"User": ["User"]}, ValueError, "only what is at a lower level"),
    ]:
        with pytest.raises(kind, match=message):
            run.critical_path(wrong)  # type: ignore[arg-type]
    graph = run_case(fetch().as_graph(), engine)
    assert graph.critical_path().graph is None
    with pytest.raises(ValueError, match="is for runs in levels"):
        graph.critical_path({})


def test_the_path_of_nothing() -> None:
    with pytest.raises(ValueError, match="no run of this timeline has finished yet"):
        Timeline().critical_path()


async def test_the_path_of_a_run_without_functions(engine: Any) -> None:
    timeline = Timeline()
    await AsyncTaskProcessor.builder().build().process_tasks(None, observer=timeline)
    path = timeline.critical_path()
    assert path.steps == () and path.rest == path.duration
    assert str(path).startswith("critical path of run 1: 0 steps")


async def test_a_run_that_is_under_way_has_no_path_yet(engine: Any) -> None:
    timeline = Timeline()
    inside: list[Iterator[str] | str] = []

    async def look(ctx: Any) -> None:
        await asyncio.sleep(0)
        with pytest.raises(ValueError, match="run 1 has not finished yet"):
            timeline.runs[0].critical_path()
        inside.append(str(timeline))

    task = AsyncTask("A", TaskFunction(look))
    await (
        AsyncTaskProcessor.builder()
        .add_task(task, 1)
        .build()
        .process_tasks(None, observer=timeline)
    )
    assert "under way" in str(inside[0])
