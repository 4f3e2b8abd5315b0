"""Goes through the schedules of a processor, one disturbance after another."""

from __future__ import annotations

import inspect
import random
import time
from bisect import bisect_right
from collections.abc import Awaitable, Callable, Collection, Generator, Iterable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, closing, contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, TypeAlias, Unpack

from ..common.generic import T
from ..common.text import counted, shown
from ..processor import AsyncDagTaskProcessor, AsyncTaskProcessor
from .clock import refuse_running_loop
from .disturbing import check_reached
from .driving import Happened
from .faults import USUAL, faults_at
from .findings import NotDeterministic, ScheduleFailed, finding_of, refuse_difference
from .leftovers import without_collector
from .loops import Loops, RealLoops, VirtualLoops
from .player import ONE_FOR_ALL, ExploredRun, Played, Player, pinned_jitter, tasks_of
from .points import (
    AFTER_FAILURE,
    EXIT,
    Disturbance,
    Fault,
    Point,
    Schedule,
    functions_of,
    label_of,
    parsed,
    text_of,
)
from .settings import Options, Settings, settled

Processor: TypeAlias = AsyncTaskProcessor[T, Any] | AsyncDagTaskProcessor[T, Any]
Made: TypeAlias = T | AbstractAsyncContextManager[T]
Factory: TypeAlias = Callable[[], Made[T] | Awaitable[Made[T]]]
Check: TypeAlias = Callable[[ExploredRun[T]], bool | Awaitable[bool | None] | None]


@dataclass(frozen=True)
class Exploration:
    """The result of an exploration.

    - `schedules`: the number of runs with different disturbances, including the undisturbed run.
    - `points`: the number of points of the undisturbed run.
    - `exhaustive`: True if every requested disturbance happened.
    - `seconds`: the time that it took.
    - `findings`: the number of schedules after which something was wrong.
    - `not_reached`: the number of schedules that never reached their point. This happens with a
      real clock.
    """

    schedules: int
    points: int
    exhaustive: bool
    seconds: float
    findings: int
    not_reached: int
    summary: str

    def __str__(self) -> str:
        return self.summary


def explore(
    processor: Processor[T], *, context: Factory[T], check: Check[T], **options: Unpack[Options]
) -> Exploration:
    """Run a processor many times, disturbed at each of its points, and check each run.

    Raises `ScheduleFailed` for the first schedule after which something is wrong.

    - `context`: a function that creates a new context for each run. It is plain or async, or
      returns an async context manager, which is left after the check of the run. One object for all
      runs is refused with a `TypeError`, unless it is None or a value such as a number.
    - `check`: gets each run as an `ExploredRun`. To fail it, it returns False or raises an
      exception. It can be async.
    - `faults`: the kinds to try. By default `"cancel"` (the caller is cancelled), `"fail"` (an
      exception is raised), `"hang"` (an await never ends) and `"cancel again"` (the caller is
      cancelled twice). There are also `"interrupt"` (`KeyboardInterrupt`) and `"fail cleanup"` (a
      `post_execute` fails for good).
    - `disturbances`: with 2, also try every two of them.
    - `clock`: `"virtual"`, or `"real"` for workflows with real sockets and threads.
    - `max_schedules`, `seconds`: the limits. With a `seed`, a random sample is tried beyond them.
    - `jitter`: the random factor of delays before retries, from 0.5 to 1.0.
    - `replay`: a schedule to repeat, in the words of a finding.

    Raises `NotDeterministic` if two undisturbed runs differ, `OutsideWorldError` for a socket or
    a thread with the virtual clock, `NotReachedError` for a replay whose point no run reached,
    `RuntimeError` in a running event loop, and `TypeError` or `ValueError` for bad arguments.

    >>> explore(checkout, context=new_request, check=lambda run: run.context.pool.free == 2)
    """
    __tracebackhide__ = True
    explorer = Explorer(processor, context, check, options)
    with closing(explorer.findings()) as findings:
        finding = next(findings, None)
    if finding is not None:
        raise finding
    return explorer.exploration()


def explorations(
    processor: Processor[T], *, context: Factory[T], check: Check[T], **options: Unpack[Options]
) -> Iterator[ScheduleFailed]:
    """Yield every finding of an exploration. Everything else is as with `explore`.

    >>> for finding in explorations(checkout, context=new_request, check=gives_back):
    ...     print(finding.schedule, finding.problems)
    """
    return Explorer(processor, context, check, options).findings()


class Explorer:
    """A running exploration."""

    def __init__(
        self,
        processor: Any,
        context: Any,
        check: Any,
        options: Mapping[str, Any],
        *,
        command: str | None = None,
    ) -> None:
        refuse_running_loop("explore")
        _check_arguments(processor, context, check)
        self.settings = settled(options, command)
        self.functions = functions_of(tasks_of(processor))
        self.loops: Loops = VirtualLoops()
        if self.settings.clock == "real":
            timeouts = [each.timeout or 0.0 for each in self.functions.values()]
            self.loops = RealLoops(max(timeouts, default=0.0))
        replay = self.settings.replay
        self.replayed = None if replay is None else parsed(replay, self.functions)
        self.player = Player(processor, context, check, self.loops)
        self.schedules = 0
        self.known = 1  # the number of schedules, at least
        self.found = 0
        self.not_reached = 0
        self.complete = False
        self.seconds = 0.0
        self._began = 0.0
        self._trace: list[Happened] = []  # of the undisturbed run
        self._points: list[Point] = []
        self._unfailing: set[Point] = set()
        self._reached: set[str] = set()  # limits that only a failure leads to
        self._following: dict[Schedule, list[Disturbance]] = {}

    def exploration(self) -> Exploration:
        """Return the result so far."""
        return Exploration(
            schedules=self.schedules,
            points=len(self._points),
            exhaustive=self.complete and not (self.found or self.not_reached),
            seconds=self.seconds,
            findings=self.found,
            not_reached=self.not_reached,
            summary=self._summary(),
        )

    def findings(self) -> Generator[ScheduleFailed, None, None]:
        """Go through the schedules, and yield the findings."""
        self._began = time.perf_counter()
        try:
            if finding := self._begin():
                yield finding
                return
            if self.replayed is not None:
                if finding := self._try(self.replayed, self._check_replayed):
                    yield finding
                return
            for schedule in self._all():
                if self._is_cut_off():
                    return
                if finding := self._try(schedule, self._learn):
                    yield finding
            if self.schedules < self.known:
                return  # it was a sample
            # At the end, the undisturbed run must still do the same.
            if finding := self._try((), self._compare):
                yield finding
            self.schedules -= 1  # it was counted already
            self.complete = True
        finally:
            self.loops.close()
            self.seconds = time.perf_counter() - self._began
            self.settings.tell(self._summary())

    def _begin(self) -> ScheduleFailed | None:
        """Make the undisturbed run, twice."""
        if finding := self._try((), self._learn_undisturbed):
            return finding
        self.schedules = 0  # they count as one
        return self._try((), self._compare)

    def _try(self, schedule: Schedule, learn: Callable[[Played], None]) -> ScheduleFailed | None:
        """Play a schedule, and return its finding, or learn from it."""
        checked = not any(map(self._is_hopeless, schedule))
        detailed = not schedule or self.settings.disturbances > 1
        with self._prepared():
            played = self.player.play(schedule, checked=checked, detailed=detailed)
            self.schedules += 1
            complaints: list[str] = []
            if not played.problems:
                learn(played)
                # Most complaints come when an object is dropped.
                del played
                complaints = self.player.complaints.taken()
                if not complaints:
                    return None
                played = self.player.play(schedule, checked=checked)
                # A reference to this run would keep its open objects, which would complain later.
                played.run = None
            else:
                complaints = self.player.complaints.taken()
            self.found += 1
            finding = finding_of(
                played,
                self._trace or played.trace,
                [*played.problems, *complaints],
                self.settings.repeating(text_of(schedule)),
            )
            del played
            self.player.complaints.taken()
            return finding

    @contextmanager
    def _prepared(self) -> Generator[None, None, None]:
        """Remove all randomness, and get the complaints about dropped objects."""
        with (
            pinned_jitter(self.settings.jitter),
            without_collector(),
            self.player.complaints.listening(),
        ):
            yield

    def _is_hopeless(self, disturbance: Disturbance) -> bool:
        """Return True for a cleanup that never ends and has no retry, and for a limiter's.

        Its author cannot prevent this. The cleanup only needs a limit.
        """
        point, fault = disturbance
        label = label_of(point.function)
        return fault is Fault.HANG and (
            label.limit == EXIT
            or (label.is_cleanup and point.attempt > self.functions[point.function].retries)
        )

    def _learn_undisturbed(self, played: Played) -> None:
        self._trace = played.trace
        self._points = played.course.points()
        self._unfailing = played.course.unfailing
        self.player.may_fail = frozenset(played.failed_cleanups)
        self._new(played)
        self.loops.learn()

    def _compare(self, played: Played) -> None:
        if self.settings.clock == "virtual":
            refuse_difference(self._trace, played.trace)

    def _learn(self, played: Played) -> None:
        """Record the points at which a second disturbance can follow."""
        if played.course.missed():
            if self.settings.clock == "virtual":
                raise NotDeterministic(
                    f"the run never came to {text_of(played.schedule)}, although the undisturbed "
                    f"one did: something that one run leaves behind changes the next"
                )
            self.not_reached += 1
        elif len(played.schedule) == 1:
            self._following[played.schedule] = list(self._later(played))

    def _check_replayed(self, played: Played) -> None:
        check_reached(played.course)

    def _all(self) -> Iterator[Schedule]:
        """Yield the schedules. Those of one disturbance come first, in the order of points."""
        singles = [(each,) for each in self._singles()]
        self.known += len(singles)
        for number in self._chosen(len(singles)):
            yield singles[number]
        firsts = list(self._following)
        ends = list(accumulate(map(len, self._following.values())))
        total = ends[-1] if ends else 0
        self.known += total
        for number in self._chosen(total):
            which = bisect_right(ends, number)
            (first,) = firsts[which]
            yield first, self._following[firsts[which]][number - ends[which]]

    def _chosen(self, total: int) -> Iterable[int]:
        """Return the numbers of the schedules to try, of `total` schedules."""
        settings = self.settings
        left = settings.max_schedules - self.schedules
        if settings.seed is None or total <= left:
            return range(total)
        return sorted(random.Random(settings.seed).sample(range(total), left))

    def _singles(self) -> Iterator[Disturbance]:
        kinds = self.settings.faults
        # Hanging comes last, because it takes the longest and says the least.
        for some in ([kind for kind in kinds if kind != "hang"], ["hang"]):
            for point in self._points:
                yield from self._at(point, set(some) & set(kinds), self._unfailing)

    def _later(self, played: Played) -> Iterator[Disturbance]:
        """Yield the disturbances that can follow the disturbance of a schedule."""
        kinds: Collection[str] = self.settings.faults
        new: Collection[str] = ()
        if self.settings.disturbances == 1:
            cancelled = played.schedule[0].fault is Fault.CANCEL
            new = self._new(played)
            kinds = {"cancel"} if cancelled and "cancel again" in kinds else ()
        for point in played.course.points(after=played.injected[0].position):
            some = self.settings.faults if point.function in new else kinds
            yield from self._at(point, some, played.course.unfailing)

    def _new(self, played: Played) -> set[str]:
        """Return the limits that only a failure leads to, if this run is the first that has them.

        The undisturbed run has no point in a fallback.
        """
        reached = {
            function
            for _, function, _, _ in played.trace
            if label_of(function).limit in AFTER_FAILURE
        }
        new = reached - self._reached
        self._reached |= new
        return new

    def _at(
        self, point: Point, kinds: Collection[str], unfailing: Collection[Point]
    ) -> Iterator[Disturbance]:
        limits = self.functions[point.function]
        for fault in faults_at(point, limits, kinds, can_fail=point not in unfailing):
            yield Disturbance(point, fault)

    def _is_cut_off(self) -> bool:
        settings = self.settings
        took = time.perf_counter() - self._began
        return self.schedules >= settings.max_schedules or (
            settings.seconds is not None and took >= settings.seconds
        )

    def _summary(self) -> str:
        settings = self.settings
        count = counted(self.schedules, "schedule")
        if self.replayed is not None:
            text = f"{text_of(self.replayed)} replayed"
        elif self.complete:
            text = f"{count}, {_covering(settings)}"
        elif self.found:
            text = count
        else:
            text = f"cut off at {self.schedules:,} of at least {self.known:,}: NOT exhaustive"
        if self.found:
            text += f", {counted(self.found, 'finding')}"
        if self.not_reached:
            text += f", {counted(self.not_reached, 'schedule')} never came to the point"
        return f"{text}, {self.seconds:.1f} s"


def _covering(settings: Settings) -> str:
    """Describe all schedules of these settings."""
    text = "every single disturbance"
    if settings.disturbances > 1:
        text = "every one and every two disturbances"
    return text if settings.faults == USUAL else f"{text} ({', '.join(settings.faults)})"


def _check_arguments(processor: Any, context: Any, check: Any) -> None:
    """Raise an error for arguments that cannot be explored."""
    if not isinstance(processor, (AsyncTaskProcessor, AsyncDagTaskProcessor)):
        hint = "; did you forget .build()?" if hasattr(processor, "build") else ""
        raise TypeError(f"explore takes a processor, got {shown(processor)}{hint}")
    if not callable(context):
        if inspect.iscoroutine(context):
            context.close()
        raise TypeError(
            f"context must be a function that makes a new context for each run, got "
            f"{shown(context)}: {ONE_FOR_ALL}"
        )
    if inspect.isgeneratorfunction(context) or inspect.isasyncgenfunction(context):
        raise TypeError(
            f"context must be a function, got the generator function {shown(context)}; decorate "
            f"it with contextlib.asynccontextmanager, as an async one"
        )
    if not callable(check):
        raise TypeError(f"check must be a function of an ExploredRun, got {shown(check)}")
