"""Random workflows with random failures, retries and cancellations, for as long as one likes.

    python -m tests.monte_carlo --runs 10000
    python -m tests.monte_carlo --minutes 10     # with a line about memory every few seconds

A run is one seed, and two workflows made from it. The settled one (see `random_workflows`) is
played on the reference model and on each engine: all must agree. The other is played on each
engine, races and all: it must break no promise. And two engines must be alike in everything that
can be seen.

The seed to begin with is a new one each time, unless it is given. What is found is printed with
the command that repeats it.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from random import Random, SystemRandom
from statistics import median
from types import ModuleType
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent))  # for python -m tests.monte_carlo

from conftest import ENGINES
from playing import Observation, observe, observe_reference, on_engine, using
from random_workflows import random_workflow
from verdicts import broken_promises, differences, disagreements
from virtual_clock import watchdog
from workflows import Workflow

STATM = Path("/proc/self/statm")
SAMPLES = 60  # of memory, in all
ALLOWANCE = 1.0  # MiB: what the allocator may need more, some 20 bytes for each run of 10 minutes


def play(workflow: Workflow, engine: ModuleType) -> Observation:
    with using(engine):
        return observe(workflow, on_engine)


def against_promises(workflow: Workflow, *engines: ModuleType) -> list[str]:
    """What a workflow, races and all, shows to be wrong with an engine."""
    return [
        problem
        for engine in engines
        for problem in broken_promises(workflow, play(workflow, engine))
    ]


def against_model(workflow: Workflow, *engines: ModuleType) -> list[str]:
    """What a settled workflow shows to be wrong with an engine, or with the model."""
    with using(engines[0]):  # for the runs inside of its functions
        model, failed_at = observe_reference(workflow)
    problems = [f"the model: {problem}" for problem in broken_promises(workflow, model)]
    for engine in engines:
        seen = play(workflow, engine)
        problems += broken_promises(workflow, seen)
        problems += disagreements(seen, model, failed_at)
    return problems


def against_each_other(workflow: Workflow, *engines: ModuleType) -> list[str]:
    """Where two engines are not exactly alike."""
    one, other = (play(workflow, engine) for engine in engines)
    return differences(one, other)


class Finding(NamedTuple):
    """A seed that showed something to be wrong, and what."""

    seed: int
    engines: Sequence[str]
    workflow: Workflow
    problems: list[str]

    def __str__(self) -> str:
        engine = self.engines[0] if len(self.engines) == 1 else "both"
        command = f"python -m tests.monte_carlo --engine {engine} --seed {self.seed} --runs 1"
        return "\n".join([repr(self.workflow), *self.problems, f"to repeat it: {command}"])


def search(engines: Mapping[str, ModuleType], seeds: Iterable[int]) -> Iterator[Finding | None]:
    """Make a run of each seed, and tell what it has found, if anything."""
    for seed in seeds:
        settled, races = (random_workflow(Random(seed), settled=each) for each in (True, False))
        found = None
        for workflow, check in ((settled, against_model), (races, against_promises)):
            with watchdog():
                problems = check(workflow, *engines.values())
                if len(engines) == 2:
                    problems += against_each_other(workflow, *engines.values())
            if problems:
                found = Finding(seed, [*engines], workflow, problems)
        yield found


class Memory:
    """The memory of this process over the time of a search."""

    def __init__(self) -> None:
        self.samples: list[float] = []  # MiB

    def sample(self) -> float:
        """Return the MiB that are resident, without what only waits for the collector."""
        gc.collect()
        pages = int(STATM.read_text(encoding="utf-8").split()[1])
        self.samples.append(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)
        return self.samples[-1]

    def growth(self) -> float:
        """Return by how many MiB the last third of the samples is above the second, in the
        median: the first may fill caches."""
        third = len(self.samples) // 3
        return median(self.samples[-third:]) - median(self.samples[-2 * third : -third])


def soak(
    engines: Mapping[str, ModuleType], seed: int, minutes: float, memory: Memory
) -> Iterator[Finding | None]:
    """Search for so long, and print a line about memory now and then."""
    began = time.monotonic()
    for runs, found in enumerate(search(engines, count(seed)), 1):
        yield found
        passed = time.monotonic() - began
        if passed >= minutes * 60 * (len(memory.samples) + 1) / SAMPLES:
            print(f"{passed:6.0f} s {runs:9} runs {memory.sample():8.2f} MiB", flush=True)
            if len(memory.samples) == SAMPLES:
                return


def main(arguments: Sequence[str] | None = None) -> int:
    """Search random workflows for what an engine does wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.monte_carlo", description=main.__doc__)
    parser.add_argument("--engine", choices=[*ENGINES, "both"], default="both")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--runs", type=int, default=1000)
    length.add_argument("--minutes", type=float, help="search for so long, and watch memory")
    parser.add_argument("--seed", type=int, help="of the first run; a new one if not given")
    parser.add_argument("--show", type=int, default=3, help="how many findings to print in full")
    options = parser.parse_args(arguments)
    names = list(ENGINES) if options.engine == "both" else [options.engine]
    engines = {name: importlib.import_module(ENGINES[name]) for name in names}
    seed = SystemRandom().randrange(2**32) if options.seed is None else options.seed
    print(f"seed {seed}, engines: {', '.join(names)}", flush=True)
    memory = Memory()
    if options.minutes is None:
        results = search(engines, range(seed, seed + options.runs))
    else:
        results = soak(engines, seed, options.minutes, memory)
    began = time.monotonic()
    runs = findings = 0
    for runs, found in enumerate(results, 1):  # noqa: B007
        if found is not None:
            findings += 1
            if findings <= options.show:
                print(found, end="\n\n", flush=True)
    print(f"{runs} runs, {findings} findings, {time.monotonic() - began:.0f} s")
    if memory.samples:
        growth = memory.growth()
        verdict = "memory keeps growing" if growth > ALLOWANCE else "memory is steady"
        print(f"{verdict}: {growth:+.2f} MiB from the second third of the time to the last")
        return bool(findings) or growth > ALLOWANCE
    return bool(findings)


if __name__ == "__main__":
    sys.exit(main())
