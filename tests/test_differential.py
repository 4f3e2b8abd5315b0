"""Random workflows, on the engines and on the reference model: all must agree.

A quick search: by hypothesis, which shrinks what it finds, and by seeds of `random.Random`, which
are faster. `monte_carlo` goes on for as long as one likes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from random import Random
from types import ModuleType
from typing import TypeVar, get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import Implementation
from helpers import TURN
from monte_carlo import against_each_other, against_model, against_promises, search
from random_workflows import random_workflow
from workflows import (
    Arrangement,
    Behaviour,
    CancelCaller,
    Disturbance,
    Ending,
    Error,
    Factory,
    Node,
    Raise,
    Retryable,
    Scope,
    Script,
    Shape,
    Step,
    Watcher,
    Workflow,
    Yield,
)

T = TypeVar("T")

SEEDS = range(100 * TURN, 100 * (TURN + 1))  # `make proof` plays more
quick = settings(
    max_examples=40,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


def test_everything_is_drawn() -> None:
    """Each exception, scope, factory and watcher, each step and each disturbance."""
    drawn = "".join(
        repr(random_workflow(Random(seed), settled=settled))
        for seed in range(300)
        for settled in (True, False)
    )
    values = [*Error, *Scope, *Factory, *Watcher, *Shape, *Retryable, *Arrangement]
    classes = [*get_args(Step), *get_args(Ending)]
    names = [*map(str, values), *(f"{each.__name__}(" for each in classes)]
    names += [f"{each.name}=" for each in (*fields(Disturbance), *fields(Behaviour))]
    # What is as usual is not shown, nor are the names of first fields. One is for `crash_points`.
    usual = {str(Factory.NONE), str(Watcher.NONE), str(Shape.ASYNC_DEF), str(Retryable.DEFAULT)}
    usual |= {str(Arrangement.LEVELS), "scripts=", "shape=", "cancel_at=", "heard_at_once="}
    names.append("Disturbance((")
    assert [name for name in names if name not in drawn and name not in usual] == []


class _Drawn:
    """Choices made by hypothesis, which can shrink them."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw

    def randint(self, a: int, b: int, /) -> int:
        return self.draw(st.integers(a, b))

    def choice(self, seq: Sequence[T], /) -> T:
        return seq[self.draw(st.integers(0, len(seq) - 1))]


@st.composite
def workflows(draw: st.DrawFn, settled: bool) -> Workflow:
    return random_workflow(_Drawn(draw), settled=settled)


@quick
@given(workflow=workflows(settled=True))
def test_an_engine_and_the_model_agree(engine: Implementation, workflow: Workflow) -> None:
    problems = against_model(workflow, engine.module)
    assert not problems, "\n".join(problems)


@quick
@given(workflow=workflows(settled=False))
def test_races_break_no_promise(engine: Implementation, workflow: Workflow) -> None:
    problems = against_promises(workflow, engine.module)
    assert not problems, "\n".join(problems)


def test_an_engine_and_the_model_agree_on_seeds(engine: Implementation) -> None:
    findings = [*filter(None, search({engine.name: engine.module}, SEEDS))]
    assert not findings, "\n\n".join(map(str, findings))


@pytest.mark.parametrize("settled", [True, False])
def test_the_engines_are_alike(both_engines: list[ModuleType], settled: bool) -> None:
    for seed in SEEDS:
        workflow = random_workflow(Random(seed), settled=settled)
        problems = against_each_other(workflow, *both_engines)
        assert not problems, "\n".join([f"seed {seed}", repr(workflow), *problems])


def test_a_cleanup_after_a_task_that_its_limiter_never_let_in(engine: Implementation) -> None:
    waits = Behaviour(total_timeout=1.5, limiter=4.0)
    workflow = Workflow(
        (
            Node("waits", 0, waits, required=False),
            Node("cleans up", 0, post_execute=Behaviour(), depends_on=("waits",)),
        ),
        arrangement=Arrangement.GRAPH,
    )
    assert not against_model(workflow, engine.module)


def test_the_engines_are_alike_in_how_they_share_a_task_after_bare_yields(
    both_engines: list[ModuleType],
) -> None:
    raises_once = Behaviour(
        (Script(ending=Raise(Error.TIMEOUT)), Script()), retries=1, initial_delay=0
    )
    workflow = Workflow(
        (
            Node("waits", 0, Behaviour((Script((Yield(3),)),)), raises_once),
            Node("cancels", 0, Behaviour((Script((CancelCaller(),)),))),
        ),
        places=1,
    )
    assert not against_each_other(workflow, *both_engines)
