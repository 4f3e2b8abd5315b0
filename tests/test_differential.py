"""Random workflows, on the engines and on the reference model: all must agree.

A quick search, always the same, is part of the suite: by hypothesis, which shrinks what it
finds, and by the first seeds of `random.Random`, which are faster. For a long one:

    DIFFERENTIAL_EXAMPLES=20000 pytest tests/test_differential.py
    PYTHONPATH=. python tests/test_differential.py --engine python --runs 100000

The first is hypothesis, with new examples each time; the second prints the seeds it stopped at.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from random import Random
from types import ModuleType
from typing import NamedTuple, TypeVar
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import sdax.processor
from conftest import ENGINES, Implementation
from playing import RANDOM_FACTOR, Observation, observe, observe_reference, on_engine
from verdicts import broken_promises, differences, disagreements
from workflows import Workflow, random_workflow

T = TypeVar("T")

SEEDS = range(1000)
EXAMPLES = int(os.environ.get("DIFFERENTIAL_EXAMPLES", "0"))
search = settings(
    max_examples=EXAMPLES or 100,
    derandomize=not EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


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


def play(workflow: Workflow, module: ModuleType) -> Observation:
    """Play a workflow on an engine whose random factor is fixed."""

    def fixed(low: float, high: float) -> float:
        assert (low, high) == (0.5, 1.0)
        return RANDOM_FACTOR

    with (
        mock.patch.object(sdax.processor, "Run", module.Run),
        mock.patch.object(module, "uniform", fixed),
    ):
        return observe(workflow, on_engine)


def against_promises(workflow: Workflow, module: ModuleType) -> list[str]:
    """What a workflow, races and all, shows to be wrong with an engine."""
    return broken_promises(workflow, play(workflow, module))


def against_model(workflow: Workflow, module: ModuleType) -> list[str]:
    """What a settled workflow shows to be wrong with an engine, or with the model."""
    seen = play(workflow, module)
    model, failed_at = observe_reference(workflow)
    return [
        *broken_promises(workflow, seen),
        *(f"the model: {problem}" for problem in broken_promises(workflow, model)),
        *disagreements(seen, model, failed_at),
    ]


def against_each_other(workflow: Workflow, *modules: ModuleType) -> list[str]:
    """Where two engines are not exactly alike."""
    one, other = (play(workflow, module) for module in modules)
    return differences(one, other)


class Finding(NamedTuple):
    """A workflow that showed something to be wrong, and what."""

    seed: int
    workflow: Workflow
    problems: list[str]

    def __str__(self) -> str:
        return "\n".join([f"seed {self.seed}:", repr(self.workflow), *self.problems])


def search_seeds(
    check: Callable[..., list[str]], modules: Iterable[ModuleType], settled: bool, seeds: range
) -> list[Finding]:
    findings = []
    for seed in seeds:
        workflow = random_workflow(Random(seed), settled=settled)
        if problems := check(workflow, *modules):
            findings.append(Finding(seed, workflow, problems))
    return findings


@search
@given(workflow=workflows(settled=True))
def test_an_engine_and_the_model_agree(engine: Implementation, workflow: Workflow) -> None:
    problems = against_model(workflow, engine.module)
    assert not problems, "\n".join(problems)


@search
@given(workflow=workflows(settled=False))
def test_races_break_no_promise(engine: Implementation, workflow: Workflow) -> None:
    problems = against_promises(workflow, engine.module)
    assert not problems, "\n".join(problems)


def test_an_engine_and_the_model_agree_on_seeds(engine: Implementation) -> None:
    findings = search_seeds(against_model, [engine.module], True, SEEDS)
    assert not findings, "\n\n".join(map(str, findings))


def test_races_of_seeds_break_no_promise(engine: Implementation) -> None:
    findings = search_seeds(against_promises, [engine.module], False, SEEDS)
    assert not findings, "\n\n".join(map(str, findings))


@pytest.mark.parametrize("settled", [True, False])
def test_the_engines_are_alike(both_engines: list[ModuleType], settled: bool) -> None:
    findings = search_seeds(against_each_other, both_engines, settled, SEEDS)
    assert not findings, "\n\n".join(map(str, findings))


@pytest.fixture
def both_engines(request: pytest.FixtureRequest) -> list[ModuleType]:
    chosen = request.config.getoption("engine")
    if chosen != "both":
        pytest.skip(f"compares two engines, and --engine {chosen} asks for one")
    return [importlib.import_module(name) for name in ENGINES.values()]


def main(arguments: Sequence[str] | None = None) -> int:
    """Search without hypothesis, and print the seeds of what is found."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--engine", choices=[*ENGINES, "both"], default="both")
    parser.add_argument("--runs", type=int, default=10_000, help="workflows of each kind")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--show", type=int, default=3, help="how many findings to print in full")
    options = parser.parse_args(arguments)
    names = list(ENGINES) if options.engine == "both" else [options.engine]
    modules = [importlib.import_module(ENGINES[name]) for name in names]
    searches: list[tuple[str, Callable[..., list[str]], list[ModuleType], bool]] = []
    for name, module in zip(names, modules, strict=True):
        searches.append((f"{name} against the model", against_model, [module], True))
        searches.append((f"{name} in races", against_promises, [module], False))
    if len(modules) == 2:
        searches.append(("the engines alike", against_each_other, modules, True))
        searches.append(("the engines alike in races", against_each_other, modules, False))
    seeds = range(options.first_seed, options.first_seed + options.runs)
    found_any = False
    for title, check, involved, settled in searches:
        began = time.perf_counter()
        findings = search_seeds(check, involved, settled, seeds)
        seconds = time.perf_counter() - began
        print(
            f"{title}: {len(seeds)} workflows, {len(findings)} findings, {seconds:.0f} s; "
            f"seeds {[finding.seed for finding in findings[:20]]}",
            *findings[: options.show],
            sep="\n\n",
            flush=True,
        )
        found_any = found_any or bool(findings)
    return found_any


if __name__ == "__main__":
    sys.exit(main())
