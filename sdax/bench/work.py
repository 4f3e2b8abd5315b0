"""The work of a benchmark, and the check that a contestant has done it.

A `Work` is a description. A contestant gets a `Job`: the functions, level by level. There are two
kinds of functions. Plain functions are timed. Writing functions record their calls and their ends
in the context, for `check()`.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

Function: TypeAlias = Callable[[Any], Awaitable[Any]]
Levels: TypeAlias = Sequence[Sequence[Function]]
Once: TypeAlias = Callable[[Any], Awaitable[Any]]
Event: TypeAlias = tuple[int, tuple[int, int], bool]  # rank, level and number, has it ended?

PRE, EXECUTE, POST = "pre_execute", "execute", "post_execute"


class PlannedFailureError(Exception):
    """The exception of the failing function of a work."""


@dataclass(frozen=True)
class Library:
    """The functions that wait, and the functions that start and run a job."""

    sleep: Callable[[float], Awaitable[Any]]
    sleep_forever: Callable[[], Awaitable[Any]]
    all_at_once: Callable[[Sequence[Callable[[], Awaitable[Any]]]], Awaitable[Any]]
    run: Callable[[asyncio.AbstractEventLoop, Callable[[], Awaitable[Any]]], Any]


async def _sleep_forever() -> None:
    await asyncio.get_running_loop().create_future()


async def _gather(runs: Sequence[Callable[[], Awaitable[Any]]]) -> None:
    await asyncio.gather(*(run() for run in runs))


ASYNCIO = Library(
    asyncio.sleep,
    _sleep_forever,
    _gather,
    lambda loop, run: loop.run_until_complete(run()),
)


@dataclass(frozen=True)
class Work:
    """A number of tasks in each level, with a function in each of the phases.

    - `sleep`: the seconds that a function waits. 0 suspends for one pass of the event loop. None
      does not suspend at all.
    - `timeout`, `retries`, `total_timeout`: of each function. No function ever uses them up.
    - `required`: False for tasks whose failure would stop nothing. None of them fails.
    - `fails`: in the last level the last function raises, and all others wait for ever.
    - `resources`: the number of tasks of the first level that are resources. Their `PRE` and `POST`
      are the two halves. Contestants without resources call them as two functions.
    - `repeat`, `concurrent`: the number of runs one after another, or at once.
    """

    name: str
    shape: tuple[int, ...]
    sleep: float | None = None
    phases: tuple[str, ...] = (PRE,)
    timeout: float | None = None
    retries: int = 0
    fails: bool = False
    resources: int = 0
    total_timeout: float | None = None
    required: bool = True
    repeat: int = 1
    concurrent: int = 1

    @property
    def functions(self) -> int:
        """The number of all function calls."""
        return sum(self.shape) * len(self.phases) * self.repeat * self.concurrent


@dataclass(frozen=True)
class Job:
    """The functions of each phase, level by level. An absent phase has no levels."""

    pre: Levels
    execute: Levels
    post: Levels
    timeout: float | None
    retries: int
    resources: int = 0
    total_timeout: float | None = None
    required: bool = True


# Short works are repeated. Otherwise the start and the end of the event loop, tens of microseconds
# each time, would be a part of the measurement.
SELECTION = (
    Work("1 x 1000", (1000,), repeat=10),
    Work("100 x 10", (10,) * 100, repeat=10),
    Work("1000 x 1", (1,) * 1000, repeat=10),
    Work("3-2-2", (3, 2, 2), repeat=1000),
    Work("100 x 10, three phases", (10,) * 100, phases=(PRE, EXECUTE, POST), repeat=5),
    Work("1 x 1000, timeout", (1000,), timeout=5, repeat=10),
    Work("1 x 1000, retries", (1000,), retries=3, repeat=10),
    Work("3-2-2, 500 at once", (3, 2, 2), concurrent=500),
    Work("sleep(0), 1 x 1000", (1000,), 0),
    Work("sleep(0), 100 x 10", (10,) * 100, 0),
    Work("sleep(0), 1 x 1000, timeout", (1000,), 0, timeout=5),
    Work("sleep(0), 1 x 1000, total_timeout", (1000,), 0, total_timeout=5),
    Work("sleep(0), 1 x 1000, not required", (1000,), 0, required=False),
    Work("1 ms, 3-2-2, 500 at once", (3, 2, 2), 0.001, concurrent=500),
    Work("1 of 1000 fails", (1000,), 0, phases=(PRE, POST), fails=True),
)


def job_of(work: Work, library: Library = ASYNCIO, *, writing: bool = False) -> Job:
    """Return the functions of a work. Writing functions append their events to their context.

    >>> job_of(Work("two by two", (2, 2))).pre
    """
    plain = _functions(work, library)
    phases: dict[str, Levels] = dict.fromkeys((PRE, EXECUTE, POST), ())
    for phase in work.phases:
        phases[phase] = [
            [
                _writing(plain(phase, level, number), _rank(work, phase, level), (level, number))
                if writing
                else plain(phase, level, number)
                for number in range(width)
            ]
            for level, width in enumerate(work.shape)
        ]
    levels = (phases[PRE], phases[EXECUTE], phases[POST])
    return Job(
        *levels, work.timeout, work.retries, work.resources, work.total_timeout, work.required
    )


def repeated(work: Work, library: Library, once: Once) -> Callable[[], Awaitable[None]]:
    """Return a function that does the whole work with `once`, which does one run."""
    if work.fails:
        once = _expected_to_fail(once)

    async def one_after_another() -> None:
        for _ in range(work.repeat):
            await once(None)

    async def at_once() -> None:
        await library.all_at_once([lambda: once(None)] * work.concurrent)

    return one_after_another if work.concurrent == 1 else at_once


def check(
    loop: asyncio.AbstractEventLoop, work: Work, library: Library, make: Callable[[Job], Once]
) -> None:
    """Run a contestant on writing functions, and check their events.

    Raises `AssertionError` if a run did not call each function exactly once, or called a function
    before all earlier functions had ended.
    """
    once = make(job_of(work, library, writing=True))
    contexts: list[list[Event]] = []

    async def in_a_context(_: Any) -> None:
        ctx: list[Event] = []
        contexts.append(ctx)
        await once(ctx)

    library.run(loop, repeated(work, library, in_a_context))
    _ensure(len(contexts) == work.repeat * work.concurrent, f"{work.name}: {len(contexts)} runs")
    for ctx in contexts:
        check_events(work, ctx)


def check_events(work: Work, events: Sequence[Event]) -> None:
    """Check the events of one run, see `check()`."""
    expected = Counter(
        (_rank(work, phase, level), (level, number), ended)
        for phase in work.phases
        for level, width in enumerate(work.shape)
        for number in range(width)
        for ended in (False, True)
    )
    written = Counter(events)
    _ensure(
        written == expected,
        f"{work.name}: missing {expected - written}, not expected {written - expected}",
    )
    ranks = [rank for rank, _, _ in events]
    _ensure(ranks == sorted(ranks), f"{work.name}: a function was called before its turn")


def _ensure(holds: bool, message: str) -> None:
    """Do the same as `assert`, also with `python -O`."""
    if not holds:
        raise AssertionError(message)


def _rank(work: Work, phase: str, level: int) -> int:
    """Return the position of a level of functions in the order of calls."""
    height = len(work.shape)
    return {PRE: level, EXECUTE: height, POST: 2 * height - level}[phase]


def _functions(work: Work, library: Library) -> Callable[[str, int, int], Function]:
    """Return a function that returns the plain function of a phase, a level and a number."""
    sleep, seconds = library.sleep, work.sleep

    async def returns_at_once(ctx: Any) -> None:
        pass

    async def waits(ctx: Any) -> None:
        await sleep(seconds)  # type: ignore[arg-type]

    async def waits_for_ever(ctx: Any) -> None:
        await library.sleep_forever()

    async def fails(ctx: Any) -> None:
        await sleep(0)
        raise PlannedFailureError

    usual = returns_at_once if seconds is None else waits
    last = len(work.shape) - 1

    def plain(phase: str, level: int, number: int) -> Function:
        if not work.fails or phase != PRE or level != last:
            return usual
        return fails if number == work.shape[last] - 1 else waits_for_ever

    return plain


def _writing(function: Function, rank: int, task: tuple[int, int]) -> Function:
    async def writing(ctx: list[Event]) -> None:
        ctx.append((rank, task, False))
        try:
            await function(ctx)
        finally:
            ctx.append((rank, task, True))

    return writing


def _expected_to_fail(once: Once) -> Once:
    async def failing(ctx: Any) -> None:
        try:
            await once(ctx)
        except (PlannedFailureError, ExceptionGroup):
            return
        raise AssertionError("nothing has failed")

    return failing
