"""Small workflows disturbed at every point: a quick set of what `make proof` goes through."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from conftest import ENGINES, Implementation
from crash_points import Set, Tally, explore_sets, main, quick_sets
from helpers import TURN
from playing import observe, on_engine, using
from sdax import _core_py
from small_workflows import Pace, in_graphs, in_levels
from verdicts import broken_promises
from workflows import Arrangement, Workflow


def test_every_point_of_small_workflows(engine: Implementation) -> None:
    tally = Tally(engine.name)
    # Each engine goes through every second set, and on other Pythons through the others.
    turn = TURN // 2 + [*ENGINES].index(engine.name)
    for line in explore_sets(quick_sets()[turn % 2 :: 2], {engine.module: tally}):
        print(line)
    assert not tally.found, "\n\n".join(map(str, tally.found[:3]))
    assert tally.schedules.total() > 500


@pytest.mark.parametrize(
    ("size", "shapes", "graphs"), [(1, 1, 1), (2, 2, 2), (3, 4, 6), (4, 7, 31)]
)
def test_no_shape_is_left_out(size: int, shapes: int, graphs: int) -> None:
    """So many there are: of the graphs, that is how many acyclic ones have no names."""
    assert len(set(in_levels(size, ("pep",)))) == shapes
    assert len(set(in_graphs(size, ("pep",), Arrangement.GRAPH))) == graphs


class FoundError(Exception):
    """A schedule has shown something to be wrong."""


class Impatient(Tally):
    """Ends the search with what it finds first."""

    def count(self, kind: str, workflow: Workflow, problems: list[str]) -> None:
        super().count(kind, workflow, problems)
        if problems:
            raise FoundError


class DeafRun(_core_py.Run):
    """Does not end early when it is told to."""

    def cancel(self) -> None:
        pass


class HastyRun(_core_py.Run):
    """Lets a cancellation cut the cleanup."""

    def cancel(self) -> None:
        super().cancel()
        for driver in self.suspended:
            driver.task.cancel()


class ForgetfulRun(_core_py.Run):
    """Does not clean up what failed."""

    def leave_phase(self) -> int:
        failed = [*self.record.failures] if self.record is not None else []
        number = super().leave_phase()
        if failed and self.due:
            self.due -= {self.plan.index_of[failure.name] for failure in failed}
        return number


class LosingRun(_core_py.Run):
    """Loses what a function raises."""

    def failed(self, index: int, error: BaseException, *arguments: Any) -> None:
        self.abort()
        self.finished_one()


class OneFailureRun(_core_py.Run):
    """Knows of no second failure."""

    def failed(self, index: int, error: BaseException, *arguments: Any) -> None:
        if self.record is not None and self.record.failures:
            error = asyncio.CancelledError()
            self.aborted = True
        super().failed(index, error, *arguments)


class TouchyRun(_core_py.Run):
    """Does to an exception what that may refuse."""

    def failed(self, index: int, error: BaseException, *arguments: Any) -> None:
        error.__traceback__ = None
        super().failed(index, error, *arguments)


@pytest.mark.parametrize(
    "run", [DeafRun, HastyRun, ForgetfulRun, LosingRun, OneFailureRun, TouchyRun]
)
def test_a_broken_engine_is_found(run: type[_core_py.Run], monkeypatch: pytest.MonkeyPatch) -> None:
    small = in_levels(2, ("pep",))
    sets = [Set("2 tasks", small, [Pace.SLEEPING], two_faults=True, zoo=True)]
    monkeypatch.setattr(_core_py, "Run", run)
    with pytest.raises(FoundError):
        list(explore_sets(sets, {_core_py: Impatient(run.__name__)}))


class EndlessRun(_core_py.Run):
    """Never ends."""

    def finish(self) -> None:
        pass


class RestlessRun(_core_py.Run):
    """Looks in each pass of the loop whether there is something to do."""

    def start(self, last: int = 2) -> bool:
        over = super().start(last)
        self.look()
        return over

    def look(self) -> None:
        if not self.over:
            self.loop.call_soon(self.look)


@pytest.mark.parametrize(("run", "problem"), [(EndlessRun, "it hangs"), (RestlessRun, "it spins")])
def test_a_run_that_does_not_end_is_found(
    run: type[_core_py.Run], problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_core_py, "Run", run)
    tally = Impatient(run.__name__)
    sets = [Set("1 task", in_levels(1, ("pep",)), [Pace.SLEEPING], twice=False)]
    with pytest.raises(FoundError):
        list(explore_sets(sets, {_core_py: tally}))
    assert problem in str(tally.found[0])
    (small, *_) = in_levels(1, ("pep",))
    workflow = small.workflow(Pace.SLEEPING)
    with using(_core_py):
        (told,) = broken_promises(workflow, observe(workflow, on_engine))
    assert problem in told


@pytest.mark.parametrize("what", ["call", "resume"])
def test_a_function_that_goes_on_after_it_has_returned_is_found(
    engine: Implementation, what: str
) -> None:
    (small, *_) = in_levels(1, ("pep",))
    workflow = small.workflow(Pace.SLEEPING)
    with using(engine.module):
        seen = observe(workflow, on_engine)
    assert broken_promises(workflow, seen) == []
    last = seen.trace[-1]
    seen.trace.append(last._replace(what=what))
    assert any(str(last.place) in problem for problem in broken_promises(workflow, seen))


def test_an_error_of_the_engines_own_is_found(engine: Implementation) -> None:
    (small, *_) = in_levels(1, ("pep",))
    workflow = small.workflow(Pace.SLEEPING)
    with using(engine.module):
        seen = observe(workflow, on_engine)
    seen.error = AttributeError()
    assert any("by no function" in problem for problem in broken_promises(workflow, seen))


def test_what_was_found_can_be_repeated(
    engine: Implementation, capsys: pytest.CaptureFixture[str]
) -> None:
    workflow = (
        "Workflow((Node('T0', 0, Behaviour((Script((Sleep(2.5),), on_cancel=Script()),)),"
        " post_execute=Behaviour()),), Disturbance(cancel_at_pass=(1, 2)))"
    )
    assert main(["--engine", engine.name, "--repeat", workflow]) == 0
    assert "0 problems" in capsys.readouterr().out
