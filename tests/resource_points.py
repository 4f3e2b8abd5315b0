"""Small workflows with resources, disturbed at every point: by a cancellation of the caller or of a
resource in every pass of the loop, and by an exception out of every function.

    python -m tests.resource_points

It prints how many runs were disturbed how, and what is wrong.
"""

from __future__ import annotations

import asyncio
import importlib
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from itertools import combinations, pairwise, product
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from unittest import mock

sys.path.insert(0, str(Path(__file__).parent))  # for python -m tests.resource_points

import sdax.processor
from conftest import ENGINES
from helpers import Broken, passes
from sdax import (
    AsyncDagTaskProcessor,
    AsyncTask,
    AsyncTaskProcessor,
    SdaxExecutionError,
    State,
    resource,
)

KINDS = "RET"  # a resource, one with an execute, and a task with all phases
MOST_PASSES = 40


class FatalError(BaseException):
    """What is no `Exception`, and which asyncio does not let through the event loop."""


class Shape(NamedTuple):
    """The kinds of tasks by level; or, in a graph, each depends on all but the one before it."""

    levels: tuple[str, ...]
    is_graph: bool = False


class Disturbance(NamedTuple):
    """What happens to a run: at a pass of the loop, or in a function (task, half or phase)."""

    kind: str
    at: Any = None
    late: bool = False  # after the function has suspended


def shapes(most: int = 3) -> Iterator[Shape]:
    """All shapes of so many tasks that have a resource."""
    for size in range(1, most + 1):
        for kinds in map("".join, product(KINDS, repeat=size)):
            if not set(kinds) & set("RE"):
                continue
            for heights in range(1, size + 1):
                for cuts in combinations(range(1, size), heights - 1):
                    bounds = (0, *cuts, size)
                    yield Shape(tuple(kinds[one:other] for one, other in pairwise(bounds)))
            if size > 2:
                yield Shape((kinds,), is_graph=True)


class Seen(NamedTuple):
    """What was seen of a run."""

    trace: list[str]
    outcome: str
    states: list[Any]
    problems: list[str]


class Player:
    """One run of a workflow."""

    def __init__(self, shape: Shape, number: int, disturbance: Disturbance) -> None:
        self.shape = shape
        self.number = number  # of passes for which each function suspends
        self.disturbance = disturbance
        self.trace: list[str] = []
        self.holding: dict[str, asyncio.Task[Any] | None] = {}
        self.thrown: dict[str, BaseException | None] = {}
        self.problems: list[str] = []

    async def come_to(self, place: str) -> None:
        """Be in a function: write it down, suspend, and fail where it is to fail."""
        kind, at, late = self.disturbance
        self.trace.append(place)
        if at == place and not late:
            self.fail(kind)
        await passes(self.number)
        if at == place and late:
            self.fail(kind)
        self.trace.append(f"{place} done")

    def fail(self, kind: str) -> None:
        if kind == "raise":
            raise Broken
        if kind == "interrupt":
            raise FatalError

    def function(self, place: str) -> Any:
        async def function(ctx: Any) -> None:
            await self.come_to(place)

        return function

    def held(self, name: str) -> Any:
        async def function(ctx: Any) -> AsyncIterator[str]:
            await self.come_to(f"{name}.up")
            own = self.holding[name] = asyncio.current_task()
            thrown: BaseException | None = None
            try:
                yield name
            except BaseException as error:
                thrown = error
            if asyncio.current_task() is not own:
                self.problems.append(f"{name} was moved to another asyncio.Task")
            self.holding[name] = None
            if name in self.thrown:
                self.problems.append(f"{name} is cleaned up twice")
            self.thrown[name] = thrown
            self.trace.append(f"{name} hears {type(thrown).__name__}")
            await self.come_to(f"{name}.down")
            if thrown is not None:
                raise thrown

        return function

    def tasks(self) -> list[tuple[AsyncTask[Any, Any], int]]:
        found: list[tuple[AsyncTask[Any, Any], int]] = []
        for level, kinds in enumerate(self.shape.levels):
            for kind in kinds:
                name = f"{kind}{len(found)}"
                execute = self.function(f"{name}.execute")
                if kind == "T":
                    phases = (f"{name}.pre", f"{name}.post")
                    pre, post = map(self.function, phases)
                    made: Any = AsyncTask(name, pre, execute, post)
                else:
                    made = resource(name, self.held(name), execute=execute if kind == "E" else None)
                found.append((made, level))
        return found

    def processor(self) -> Any:
        tasks = self.tasks()
        builder: Any
        if self.shape.is_graph:
            builder = AsyncDagTaskProcessor.builder()
            names = [task.name for task, _ in tasks]
            for number, (task, _) in enumerate(tasks):
                builder.add_task(task, depends_on=names[: max(0, number - 1)])
            return builder.build()
        builder = AsyncTaskProcessor.builder()
        for task, level in tasks:
            builder.add_task(task, level)
        return builder.build()

    async def play(self) -> Seen:
        loop = asyncio.get_running_loop()
        handled: list[Any] = []
        loop.set_exception_handler(lambda _, context: handled.append(context))
        kind, at, _ = self.disturbance
        run = loop.create_task(self.processor().process_tasks(None))
        number = 0
        while not run.done() and number < 10 * MOST_PASSES:
            if at == number and kind == "cancel":
                run.cancel()
            if at is not None and kind.startswith("break") and at == number:
                own = self.holding.get(kind.partition(" ")[2])
                if own is not None:
                    own.cancel()
                    self.trace.append("breaks")
            number += 1
            await asyncio.sleep(0)
        if not run.done():
            self.problems.append("it does not end")
        if kind == "cancel" and number <= at:
            self.problems.append("over before")
        return self.judge(run)

    def judge(self, run: asyncio.Task[Any]) -> Seen:
        error: BaseException | None = None
        report: Any = None
        if run.cancelled():
            error = asyncio.CancelledError()
        else:
            error = run.exception()
            report = run.result() if error is None else getattr(error, "report", None)
        others = asyncio.all_tasks() - {asyncio.current_task()}
        self.problems += [f"{each.get_name()} is left" for each in others]
        self.problems += [f"{name} is held" for name, own in self.holding.items() if own]
        for place in ("up", "pre"):
            for event in self.trace:
                if event.endswith(f".{place} done"):
                    self.check_cleanup(event.partition(".")[0], is_resource=place == "up")
        for name in self.thrown:
            if f"{name}.up done" not in self.trace:
                self.problems.append(f"{name} is cleaned up, and was never held")
            self.check_order(name)
        broke = "breaks" in self.trace
        for name, thrown in self.thrown.items():
            if error is None and thrown is not None:
                self.problems.append(f"{name} hears {thrown!r}, and all is well")
            if isinstance(thrown, SdaxExecutionError) and not isinstance(
                error, (SdaxExecutionError, asyncio.CancelledError, FatalError)
            ):
                self.problems.append(f"{name} hears of failures that the run does not raise")
        if broke and error is None:
            self.problems.append("it broke, and all is well")
        states = (
            [] if report is None else [[phase.state for phase in each] for each in report.values()]
        )
        if error is None and any(State.FAILED in each for each in states):
            self.problems.append("a failure is not raised")
        return Seen(self.trace, type(error).__name__, states, self.problems)

    def check_cleanup(self, name: str, *, is_resource: bool) -> None:
        last = f"{name}.down" if is_resource else f"{name}.post"
        if self.trace.count(last) != 1:
            self.problems.append(f"{last} was called {self.trace.count(last)} times")

    def check_order(self, name: str) -> None:
        """What is above a resource has been cleaned up when its turn comes, unless it broke."""
        if "breaks" in self.trace:
            return
        turn = next(i for i, each in enumerate(self.trace) if each.startswith(f"{name} hears"))
        for event in self.trace[turn:]:
            other = event.partition(".")[0].partition(" ")[0]
            if self.waits_for(other, name):
                self.problems.append(f"{event} after the turn of {name}")

    def waits_for(self, other: str, name: str) -> bool:
        """Return True if one task is above another."""
        one, two = int(other[1:]), int(name[1:])
        if self.shape.is_graph:
            return two < one - 1
        bounds = [
            len("".join(self.shape.levels[:level])) for level in range(len(self.shape.levels))
        ]
        return any(two < bound <= one for bound in bounds)


def disturbances(shape: Shape, seen: Seen) -> Iterator[Disturbance]:
    """All that can happen to a run, of which the undisturbed course is known."""
    for place in [each for each in seen.trace if "." in each and not each.endswith("done")]:
        for kind in ("raise", "interrupt"):
            for late in (False, True):
                yield Disturbance(kind, place, late)


def play(engine: ModuleType, shape: Shape, number: int, disturbance: Disturbance) -> Seen:
    """Run once, in an event loop of its own."""
    with mock.patch.object(sdax.processor, "Run", engine.Run), asyncio.Runner() as runner:
        return runner.run(Player(shape, number, disturbance).play())


def search(engines: list[ModuleType], most: int = 3) -> tuple[Counter[str], list[str]]:
    """Disturb everything; return how often what was tried, and what is wrong."""
    tried: Counter[str] = Counter()
    wrong: list[str] = []

    def compare(shape: Shape, number: int, disturbance: Disturbance) -> Seen:
        seen = [play(engine, shape, number, disturbance) for engine in engines]
        tried[disturbance.kind.partition(" ")[0]] += len(seen)
        problems = [each for one in seen for each in one.problems if each != "over before"]
        if len(seen) > 1 and seen[0] != seen[1]:
            problems.append(f"the engines differ: {seen}")
        if problems:
            wrong.append(f"{shape}, {number}, {disturbance}: {problems}")
        return seen[0]

    for shape in shapes(most):
        for number in (0, 1):
            course = compare(shape, number, Disturbance("nothing"))
            for disturbance in disturbances(shape, course):
                compare(shape, number, disturbance)
            names = [each.partition(" ")[0] for each in course.trace if " hears" in each]
            for at in range(MOST_PASSES):
                for name in names:
                    compare(shape, number, Disturbance(f"break {name}", at))
                if "over before" in compare(shape, number, Disturbance("cancel", at)).problems:
                    break
    return tried, wrong


def main() -> int:
    """Search with both engines, and print what is found."""
    tried, wrong = search([importlib.import_module(name) for name in ENGINES.values()])
    print(f"{sum(tried.values()):,} runs: {dict(tried)}; {len(wrong)} wrong")
    for line in wrong[:20]:
        print(line)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
