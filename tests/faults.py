"""Every call that leaves the engine fails, one in each run.

    python -m tests.faults                      # all of them, which takes minutes
    python -m tests.faults --engine python --scenario success --error MemoryError --call 7

A run of each scenario is made in which its first call fails, one in which its second does, and so
on, until there is a run that has no more calls: of functions, of asyncio, of the loop, of the
engine's own bookkeeping (see `failing_calls`). What is demanded of each run:

- It ends, and the loop does not pass without end while it waits.
- Every task that has begun is cleaned up, once. No cleanup is cut short.
- No `asyncio.Task` and no timer is left, and the caller is as cancelled as it was.
- The exception of the call is raised, or the loop's exception handler gets it from sdax where
  nobody awaits the run any more. It may be a member, a cause or a context of what is raised.
- So is every exception that a function raised, in the same way: where the failures cannot be
  raised as usual, because that itself has failed, they are the context of what is raised instead.

Nobody has to hear of an `Exception` where all that is lost is a decoration: a note, a tidy
traceback, a text, a line in the log. Two things do not fail here. What the event loop itself
calls fails within, not as a whole: only the loop could tell of that. And what C has begun, such as
to set a future's result, is either not done at all, or done.

What only C sees is failed by `failing_allocations`.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import importlib
import logging
import os
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import chain, count, islice, product
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from unittest import mock

sys.path.insert(0, str(Path(__file__).parent))  # for python -m tests.faults

import sdax.processor
from conftest import ENGINES
from failing_calls import Calls, CountedLoop, called_by_engine, counted
from fault_scenarios import POST, SCENARIOS, Event, Journal, Scenario
from playing import RANDOM_FACTOR
from virtual_clock import DeadlockError, SpinningError, watchdog

ERRORS: Mapping[str, type[BaseException]] = {
    "MemoryError": MemoryError,
    "KeyboardInterrupt": KeyboardInterrupt,
    "RecursionError": RecursionError,
    "OSError": OSError,
}
WATCHED = 600  # seconds that all calls of a scenario may take by a real clock
PASSES = 1000  # of the loop: no scenario needs a tenth of them


@dataclass
class Seen:
    """What was seen of one run."""

    calls: Calls
    journal: Journal
    outcome: BaseException | None = None
    handled: list[dict[str, Any]] = field(default_factory=list)
    logged: list[BaseException | None] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


class Finding(NamedTuple):
    """A call whose failure showed something to be wrong, and what."""

    engine: str
    scenario: str
    error: str
    number: int
    place: str
    problems: list[str]

    def __str__(self) -> str:
        command = (
            f"python -m tests.faults --engine {self.engine} --scenario '{self.scenario}' "
            f"--error {self.error} --call {self.number}"
        )
        place = self.place or "no call failed"
        return "\n".join([place, *self.problems, f"to repeat it: {command}"])


@contextmanager
def using(engine: ModuleType) -> Iterator[None]:
    """Run on this engine; what complains where nobody can hear it shall be quiet."""

    @called_by_engine
    def uniform(low: float, high: float) -> float:
        return RANDOM_FACTOR

    with (
        mock.patch.object(sdax.processor, "Run", engine.Run),
        mock.patch("sdax.engine.attempts.uniform", uniform),
        mock.patch.object(sys, "unraisablehook", lambda _: None),
        mock.patch.object(logging.getLogger("sdax"), "propagate", False),
        warnings.catch_warnings(),
        counted(engine),
    ):
        warnings.simplefilter("ignore")
        gc.disable()  # else what is left of one run may be closed in another
        try:
            yield
        finally:
            gc.enable()
            gc.collect()


def play(scenario: Scenario, engine: ModuleType, calls: Calls) -> Seen:
    """Make one run, and look at it when it has ended, if it does."""
    loop = CountedLoop()
    seen = Seen(calls, Journal(loop))
    handler = _Logged(seen)
    logging.getLogger("sdax").addHandler(handler)
    main = loop.create_task(_observe(scenario, loop, seen), name="main")
    try:
        while not main.done():
            try:
                loop.run_until_complete(main)
            except (DeadlockError, SpinningError) as error:
                seen.problems.append(
                    "it hangs" if isinstance(error, DeadlockError) else "it passes without end"
                )
                break
            except BaseException as error:
                seen.problems.append(f"{error!r} went through the loop")
    finally:
        logging.getLogger("sdax").removeHandler(handler)
        if not main.done():
            for task in asyncio.all_tasks(loop):
                task._log_destroy_pending = False  # type: ignore[attr-defined]
        loop.close()
    if main.done():
        seen.problems += _judge(seen)
    return seen


class _Logged(logging.Handler):
    def __init__(self, seen: Seen) -> None:
        super().__init__()
        self.seen = seen

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            self.seen.logged.append(record.exc_info[1])


async def _observe(scenario: Scenario, loop: CountedLoop, seen: Seen) -> None:
    journal = seen.journal
    call = scenario.prepare(journal)
    loop.set_exception_handler(lambda _, context: seen.handled.append(context))

    def before_pass(number: int) -> None:
        if number > PASSES:
            raise SpinningError

    async def call_it() -> None:
        try:
            with seen.calls.failing():
                await call()
        except BaseException as error:
            seen.outcome = error
        current = asyncio.current_task()
        assert current is not None
        if not scenario.goes_on:
            left = asyncio.all_tasks() - {current, main}
            seen.problems += [f"{task.get_name()} is left" for task in left]
        if current.cancelling() and not journal.cancels:
            seen.problems.append(f"cancelling() of the caller is {current.cancelling()}")

    main = asyncio.current_task()
    loop.before_pass = before_pass
    attributes = set(vars(loop))
    journal.caller = loop.create_task(call_it(), name="caller")
    loop.set_task_factory(scenario.factory)
    while others := asyncio.all_tasks() - {main}:
        with suppress(asyncio.CancelledError):  # by a scenario that ends the loop
            await asyncio.wait(others)
    loop.set_task_factory(None)
    for timer in journal.timers:
        timer.cancel()
    await asyncio.sleep(0)
    if any(not timer.cancelled() for timer in loop._scheduled):  # type: ignore[attr-defined]
        seen.problems.append("a timer is left")
    if changed := set(vars(loop)) - attributes:
        seen.problems.append(f"the loop has been given {changed}")
    del journal.caller


def _judge(seen: Seen) -> Iterator[str]:
    yield from _cleanups(seen.journal)
    yield from _overlaps(seen.journal)
    told = [id(error) for error in _reachable(seen)]
    calls = seen.calls
    is_quiet = calls.is_decoration and isinstance(calls.error, Exception)
    if calls.has_failed_one and not is_quiet and id(calls.error) not in told:
        yield f"the error of the call does not come out, but {seen.outcome!r}"
    for error in seen.journal.raised:
        if id(error) not in told:
            yield f"lost: {error!r}"
    for context in seen.handled:
        if not context["message"].startswith("sdax"):
            yield f"asyncio had to handle: {context['message']}"


def _cleanups(journal: Journal) -> Iterator[str]:
    begun = {event.task for event in journal.events if event.phase != POST}
    begins = Counter(each.task for each in journal.events if each[1:] == (POST, "begins"))
    ends = Counter(each.task for each in journal.events if each[1:] == (POST, "ends"))
    for name, attempts in journal.cleanups.items():
        if name in begun and not begins[name]:
            yield f"no cleanup of {name}"
        if begins[name] > attempts:
            yield f"{begins[name]} cleanups of {name}"
        if begins[name] != ends[name]:
            yield f"the cleanup of {name} does not end"
    for name in journal.cut:
        yield f"the cleanup of {name} is cut short"
    # One can have been called without having come to its first line: its call is what failed.
    extra = {*begins} & journal.acquires - begun
    if len(extra) > 1:
        yield f"cleanups of {extra}, which have not been called"


def _overlaps(journal: Journal) -> Iterator[str]:
    active: list[Event] = []
    for event in journal.events:
        if event.what == "ends":
            active = [each for each in active if each[:2] != event[:2]]
            continue
        for other in active:
            of_one_run = event.task.startswith("inner") == other.task.startswith("inner")
            if of_one_run and other.phase != event.phase:
                yield f"{event[:2]} begins before {other[:2]} has ended"
        active.append(event)


def _reachable(seen: Seen) -> Iterator[BaseException]:
    """Yield every exception that somebody was told of."""
    told: list[BaseException | None] = [seen.outcome, *seen.logged, *seen.journal.told]
    for context in seen.handled:
        if context["message"].startswith("sdax"):
            told.append(context.get("exception"))
    known: set[int] = set()
    while told:
        error = told.pop()
        if error is None or id(error) in known:
            continue
        known.add(id(error))
        yield error
        if isinstance(error, BaseExceptionGroup):
            told += error.exceptions
        told += error.__cause__, error.__context__


def search(
    scenario: Scenario, name: str, error: str, numbers: Iterable[int]
) -> Iterator[Finding | None]:
    """Fail each of these calls in turn, as far as there are so many; tell what it shows, if
    anything. Before that comes a run in which nothing fails: number 0."""
    engine = importlib.import_module(ENGINES[name])
    for number in chain([0], numbers):
        calls = Calls(engine, number, ERRORS[error]("injected"))
        seen = play(scenario, engine, calls)
        if seen.problems:
            yield Finding(name, scenario.name, error, number, calls.place, seen.problems)
        elif number and calls.has_failed_one:
            yield None
        if number and not calls.has_failed_one:
            break
    gc.collect()


def go_through(job: tuple[str, str, str, int | None]) -> tuple[int, list[Finding]]:
    """Fail the calls of one scenario with one error on one engine, or one call; return how many
    there were, and what they have shown."""
    name, scenario, error, number = job
    with using(importlib.import_module(ENGINES[name])), watchdog(WATCHED):
        searched = list(search(SCENARIOS[scenario], name, error, [number] if number else count(1)))
    return len(searched), [found for found in searched if found is not None]


class Tally:
    """What came of the calls that were failed on one engine."""

    def __init__(self, engine: str) -> None:
        self.engine = engine
        self.failed = 0
        self.findings: list[Finding] = []

    def add(self, searched: Iterable[tuple[int, list[Finding]]]) -> None:
        for failed, findings in searched:
            self.failed += failed
            self.findings += findings

    def __str__(self) -> str:
        kinds = Counter(
            kind
            for found in self.findings
            for kind in {_kind(problem) for problem in found.problems}
        )
        hangs, missed = kinds.pop(HANGS, 0), kinds.pop(MISSED, 0)
        lines = [
            f"{self.engine}: {self.failed} bookkeeping calls, each failed in turn, {hangs} hangs, "
            f"{missed} missed cleanups, {len(self.findings)} findings"
        ]
        lines += [f"  {number:6} {kind}" for kind, number in kinds.most_common()]
        return "\n".join(lines)

    def by_place(self) -> Iterator[str]:
        """Yield the first finding of each place, and how many there are."""
        places: dict[str, list[Finding]] = {}
        for found in self.findings:
            places.setdefault(found.place, []).append(found)
        for each in sorted(places.values(), key=len, reverse=True):
            yield f"{len(each)} times: {each[0]}"


HANGS, MISSED = "it hangs", "no cleanup"


def _kind(problem: str) -> str:
    """Name what many problems have in common."""
    kinds = {
        "without end": HANGS,
        "the cleanup of": MISSED,
        **{each: each for each in (HANGS, MISSED, "lost", "does not come out", "is left")},
        "begins before": "a cleanup that began early",
        "cleanups of": "a cleanup that came twice, or to what had not begun",
    }
    return next((kind for words, kind in kinds.items() if words in problem), problem[:40])


def main(arguments: Sequence[str] | None = None) -> int:
    """Fail every call of every scenario, and print what came of it."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=main.__doc__)
    parser.add_argument("--engine", choices=[*ENGINES, "both"], default="both")
    parser.add_argument("--scenario", choices=SCENARIOS, metavar="NAME", help="this one alone")
    parser.add_argument("--error", choices=ERRORS, help="fail with this one alone")
    parser.add_argument("--call", type=int, help="the number of the one call that fails")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count(), help="how many processes; as a rule, all CPUs"
    )
    parser.add_argument("--show", type=int, default=20, help="how many findings to print in full")
    options = parser.parse_args(arguments)
    names = list(ENGINES) if options.engine == "both" else [options.engine]
    scenarios = [options.scenario] if options.scenario else list(SCENARIOS)
    errors = [options.error] if options.error else list(ERRORS)
    findings = 0
    for name in names:
        tally = Tally(name)
        jobs = [
            (name, scenario, error, options.call) for scenario, error in product(scenarios, errors)
        ]
        if options.scenario or options.jobs == 1:
            tally.add(map(go_through, jobs))
        else:
            with ProcessPoolExecutor(options.jobs) as pool:
                tally.add(pool.map(go_through, jobs))
        print(*islice(tally.by_place(), options.show), sep="\n\n", end="\n\n")
        print(tally, flush=True)
        findings += len(tally.findings)
    return bool(findings)


if __name__ == "__main__":
    sys.exit(main())
