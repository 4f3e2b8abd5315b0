"""Every allocation of memory fails, one in each run: what `faults` cannot reach, the calls in C.

    python -m tests.failing_allocations
    python -m tests.failing_allocations --engine compiled --scenario success --first 7

The scenarios are those of `faults`. An allocation may fail as well in asyncio or in the tests
themselves, which then break their own promises, so a run that hangs is counted and no finding.
What must never happen is that the interpreter crashes, or comes to no end within one pass of the
loop: the runs are made in other processes, and whichever dies is a finding.
"""

from __future__ import annotations

import argparse
import faulthandler
import importlib
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from types import ModuleType

sys.path.insert(0, str(Path(__file__).parent))  # for python -m tests.failing_allocations

from conftest import ENGINES
from failing_calls import Calls
from fault_scenarios import SCENARIOS
from faults import play, using

try:
    import _testcapi  # type: ignore[import-not-found]
except ImportError:
    _testcapi = None  # a Python without it cannot be tested so

LIMIT = 20  # seconds for one run, which takes some milliseconds


class FailingAllocation(Calls):
    """Fails one allocation of a run, of so many."""

    def __init__(self, engine: ModuleType, number: int) -> None:
        super().__init__(engine, number, MemoryError())
        self.is_decoration = True  # an allocation may fail where nobody minds

    @contextmanager
    def failing(self) -> Iterator[None]:
        _testcapi.set_nomemory(self.number, self.number + 1)
        try:
            yield
        finally:
            try:
                for _ in range(self.number + 1):
                    bytearray(100)
                self.place = f"allocation {self.number}"
            except MemoryError:
                pass  # the run had fewer: it was one of these
            _testcapi.remove_mem_hooks()


def go_through(name: str, scenario: str, numbers: Iterator[int]) -> None:
    """Fail these allocations of a scenario, and print what came of each."""
    engine = importlib.import_module(ENGINES[name])
    faulthandler.enable()
    with using(engine):
        play(SCENARIOS[scenario], engine, Calls(engine, 0, MemoryError()))
        for number in numbers:
            print(number, end=" ", flush=True)
            faulthandler.dump_traceback_later(LIMIT, exit=True)
            failing = FailingAllocation(engine, number)
            try:
                seen = play(SCENARIOS[scenario], engine, failing)
            finally:
                _testcapi.remove_mem_hooks()
                faulthandler.cancel_dump_traceback_later()
            ended = "it hangs" not in seen.problems
            print("ended" if ended else "hung", flush=True)
            if ended and not failing.has_failed_one:
                return


class Tally:
    """What came of the allocations that failed on one engine."""

    def __init__(self, engine: str) -> None:
        self.engine = engine
        self.outcomes: Counter[str] = Counter()
        self.crashes: list[str] = []

    def count(self, scenario: str, first: int, step: int) -> None:
        """Go through a scenario in other processes, a new one after each that has crashed."""
        while True:
            command = [
                *(sys.executable, "-m", "tests.failing_allocations", "--engine", self.engine),
                *("--scenario", scenario, "--first", str(first), "--step", str(step)),
            ]
            done = subprocess.run(
                [*command, "--here"],
                capture_output=True,
                text=True,
                check=False,
                cwd=Path(__file__).parents[1],
            )
            lines = [line.split() for line in done.stdout.splitlines()]
            self.outcomes.update(words[1] for words in lines if len(words) == 2)
            if done.returncode == 0:
                return
            number = int(lines[-1][0]) if lines else first
            self.crashes.append(
                f"the interpreter ended with {done.returncode}:\n{done.stderr.strip()}\n"
                f"to repeat it: python -m tests.failing_allocations --engine {self.engine} "
                f"--scenario '{scenario}' --first {number}"
            )
            first = number + step

    def __str__(self) -> str:
        return (
            f"{self.engine}: {self.outcomes.total()} allocations, each failed in turn, "
            f"{len(self.crashes)} crashes ({self.outcomes['hung']} runs hung)"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Fail every allocation of every scenario, and print how many runs have crashed."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.failing_allocations", description=main.__doc__
    )
    parser.add_argument("--engine", choices=[*ENGINES, "both"], default="both")
    parser.add_argument("--scenario", choices=SCENARIOS, metavar="NAME", help="this one alone")
    parser.add_argument("--first", type=int, default=0, help="the allocation to begin with")
    parser.add_argument("--step", type=int, default=1, help="fail every so many of them")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.here:
        go_through(options.engine, options.scenario, count(options.first, options.step))
        return 0
    crashes = 0
    for name in ENGINES if options.engine == "both" else [options.engine]:
        tally = Tally(name)
        for scenario in [options.scenario] if options.scenario else SCENARIOS:
            tally.count(scenario, options.first, options.step)
        print(*tally.crashes, tally, sep="\n\n", flush=True)
        crashes += len(tally.crashes)
    return bool(crashes)


if __name__ == "__main__":
    sys.exit(main())
