"""Random workflows, written down in full, for comparing runs with and without an instrument.

python tests/instruments.py     # those of the engine that the environment chooses
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from random import Random
from types import ModuleType
from typing import Any

from monte_carlo import play
from playing import Observation
from random_workflows import random_workflow
from verdicts import broken_promises, contracted
from workflows import Workflow

SEEDS = range(40)


def settled_workflows() -> list[Workflow]:
    """Return workflows of all kinds; nothing in them depends on races."""
    return [random_workflow(Random(seed), settled=True) for seed in SEEDS]


def observations(engine: ModuleType) -> Iterator[tuple[Workflow, Observation]]:
    """Play each of them."""
    for workflow in settled_workflows():
        yield workflow, play(workflow, engine)


def story(engine: ModuleType) -> list[str]:
    """Tell, of each, all that the contract orders: trace, report, error, and what is left."""
    return [tell(workflow, seen) for workflow, seen in observations(engine)]


def tell(workflow: Workflow, seen: Observation) -> str:
    """Tell what has happened in one run, the same way in every process."""
    problems = broken_promises(workflow, seen)
    parts = {**contracted(seen), "problems": tuple(problems)}
    return "; ".join(f"{name}: {_in_order(value)}" for name, value in parts.items())


def _in_order(value: Any) -> str:
    if isinstance(value, frozenset):  # whose order differs from process to process
        return f"{{{', '.join(sorted(map(_in_order, value)))}}}"
    if isinstance(value, tuple):
        return f"({', '.join(map(_in_order, value))})"
    return repr(value)


if __name__ == "__main__":
    from sdax._impl import Run

    print("\n".join(story(importlib.import_module(Run.__module__))))
