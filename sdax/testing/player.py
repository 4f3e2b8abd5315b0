"""Plays one schedule: a run with its disturbances, and finds its problems."""

from __future__ import annotations

import asyncio
import inspect
import sys
from asyncio import CancelledError
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from contextvars import copy_context
from copy import copy
from functools import partial
from typing import Any, Final, Generic
from weakref import ref

from .. import processor as processors
from ..common.generic import T
from ..common.groups import iter_leaves
from ..common.order import PHASES, POST
from ..common.text import listed, shown
from ..engine import attempts
from ..errors import SdaxExecutionError
from ..events import Event, RetryScheduled, RunFinished, TimeoutExpired
from ..report import RunReport
from ..tasks import AsyncTask
from .clock import DeadlockError, EndlessError, OutsideWorldError
from .driven import driven
from .driving import Attempt, Course, Happened, Injected
from .faults import InjectedInterrupt
from .frames import of_user, raising_place, waiting_tasks
from .leftovers import Complaints, Leftovers
from .loops import Loops
from .points import ENTER, Fault, Schedule, await_of, functions_of, label_of, labels_of, text_of

ONE_FOR_ALL: Final = "one context for all would have what earlier runs left in it"

MOST_FAILURES: Final = 3

# Exceptions of a function that needs something which does not exist.
_MISSING: Final = (
    AssertionError,
    AttributeError,
    FileNotFoundError,
    LookupError,
    NameError,
    ProcessLookupError,
    TypeError,
    ValueError,
)


class ExploredRun(Generic[T]):
    """One run of an exploration. The check gets it.

    - `context`: the context that the factory created for this run.
    - `schedule`: a text that describes the disturbances. It is empty for the undisturbed run.
    - `report`: the report of the run, also if the run raised.
    - `error`: the exception of `process_tasks`, or None.
    - `time`: the seconds that the run took.

    The undisturbed run must succeed, unless the check reads its `error` or `report`.
    """

    def __init__(
        self,
        context: T,
        schedule: str,
        report: RunReport[Any] | None,
        error: BaseException | None,
        time: float,
    ) -> None:
        self.context = context
        self.schedule = schedule
        self.time = time
        self._report = report
        self._error = error
        self.looked_at = False  # True when the check has read the outcome

    @property
    def report(self) -> RunReport[Any] | None:
        """The report of the run."""
        self.looked_at = True
        return self._report

    @property
    def error(self) -> BaseException | None:
        """The exception of the run, or None."""
        self.looked_at = True
        return self._error

    def __repr__(self) -> str:
        what = self.schedule or "undisturbed"
        return f"<ExploredRun: {what}, {self._error!r} after {self.time:.6g} s>"


class SharedContextError(TypeError):
    """Two runs got the same context. Explorations raise it as a `TypeError`."""


class Played:
    """A played schedule: its events and its problems."""

    def __init__(self, schedule: Schedule, course: Course, may_fail: frozenset[str]) -> None:
        self.schedule = schedule
        self.course = course
        self.failed_cleanups: dict[str, BaseException] = {}  # by function
        self.stage = "to make the context"
        self.run: ExploredRun[Any] | None = None
        self.report: RunReport[Any] | None = None
        self.error: BaseException | None = None
        self.late = False  # the caller was cancelled when the run waited for nothing any more
        self.problems: list[str] = []
        self.check_error: BaseException | None = None
        self.leftovers: Leftovers | None = None
        self.may_fail = may_fail

    @property
    def trace(self) -> list[Happened]:
        """The events, in order."""
        return self.course.trace

    @property
    def injected(self) -> list[Injected]:
        """The disturbances that happened."""
        return self.course.injected


class Player:
    """Plays schedules of a processor, one after another."""

    def __init__(
        self,
        processor: processors.TaskProcessor[Any, Any],
        context: Callable[[], Any],
        check: Callable[[ExploredRun[Any]], Any],
        loops: Loops,
    ) -> None:
        tasks = tasks_of(processor)
        self.functions = functions_of(tasks)
        self.labels = labels_of([task.name for task in tasks])
        self.processor = processor.replaced(driven(tasks))
        self.context = context
        self.check = check
        self.loops = loops
        self.complaints = Complaints()
        self.may_fail: frozenset[str] = frozenset()  # cleanups that fail in the undisturbed run
        self._contexts = 0
        self._first_context: Callable[[], Any] | None = None

    def play(self, schedule: Schedule, *, checked: bool = True, detailed: bool = False) -> Played:
        """Make a run with these disturbances, and find its problems.

        Without `checked`, the result of the check does not matter.
        """
        loop = self.loops.clean_loop()
        loop.set_exception_handler(self.complaints.handle)
        played = Played(schedule, Course(loop, schedule, detailed=detailed), self.may_fail)
        main = loop.create_task(
            self._main(loop, played, checked), name="sdax.testing", context=copy_context()
        )
        try:
            self.loops.run(main)
        except (DeadlockError, EndlessError) as error:
            # Discarding the loop causes events that belong to no run.
            played = _never_ended(played, error)
        finally:
            del main
            self.loops.tidy()
        return played

    async def _main(self, loop: asyncio.AbstractEventLoop, played: Played, checked: bool) -> None:
        made = self.context()
        if inspect.isawaitable(made):
            made = await made
        if isinstance(made, AbstractAsyncContextManager):
            try:
                async with made as ctx:
                    await self._run(loop, played, ctx, checked)
                    played.stage = "to leave the context"
            except Exception as error:
                if played.stage != "to leave the context":
                    raise
                if checked:
                    text = f"{type(error).__name__}: {error}"
                    played.problems.append(f"the context raised when it was left: {text}")
                    if played.check_error is None:
                        played.check_error = error
        else:
            await self._run(loop, played, made, checked)
        played.stage = "to end"
        assert played.leftovers is not None
        await self.loops.let_end(played.leftovers)
        played.problems += played.leftovers.found()

    async def _run(
        self, loop: asyncio.AbstractEventLoop, played: Played, ctx: Any, checked: bool
    ) -> None:
        self._refuse_shared(ctx)
        played.stage = "the run"
        with Leftovers(loop) as played.leftovers:
            await loop.create_task(self._call(played, ctx), name="the caller")
        course = played.course
        played.run = ExploredRun(
            ctx, text_of(played.schedule), played.report, played.error, loop.time() - course.began
        )
        _look_outside(played.error)
        played.problems += _not_as_promised(played)
        played.stage = "the check"
        accepted = await self._check(played) if checked else False
        if not played.schedule and played.error is not None and not accepted:
            played.problems.append(
                f"{self._failure(played.error)}. If the undisturbed run is meant to fail, let the "
                f"check look at run.error"
            )

    def _refuse_shared(self, ctx: Any) -> None:
        """Raise `TypeError` if the first two runs get the same context, unless it is a value."""
        self._contexts += 1
        if self._contexts == 1 and not _is_value(ctx):
            try:
                self._first_context = ref(ctx)
            except TypeError:  # a dict, or a class with slots
                self._first_context = lambda: ctx
        elif self._contexts == 2 and self._first_context is not None:
            first = self._first_context()
            self._first_context = None
            if first is ctx:
                raise SharedContextError(
                    f"context must make a new context for each run, but made {shown(ctx)} twice: "
                    f"{ONE_FOR_ALL}"
                )

    def _failure(self, error: BaseException) -> str:
        """Return a sentence about the exception of a run."""
        if not isinstance(error, SdaxExecutionError):
            return f"the run raised {shown(error)}"
        failures = [
            f"{self.labels[each.name]}.{each.phase} raised {shown(each.exception)}"
            for each in error.failures
        ]
        return listed(failures, len(failures), MOST_FAILURES)

    async def _call(self, played: Played, ctx: Any) -> None:
        """Call `process_tasks`, as the caller of the run."""
        played.course.begin()
        try:
            await self.processor.process_tasks(ctx, observer=partial(self._hear, played))
        except BaseException as error:
            played.error = error
            if isinstance(error, KeyboardInterrupt) and not isinstance(error, InjectedInterrupt):
                raise
        if any(each.disturbance.fault is Fault.CANCEL for each in played.injected):
            try:
                await asyncio.sleep(0)
            except CancelledError:
                played.late = True

    def _hear(self, played: Played, event: Event) -> None:
        """Observe the run."""
        if isinstance(event, RunFinished):
            played.report = report = event.report
            played.failed_cleanups = {
                f"{self.labels[each.name]}.{each.phase}": each.exception
                for each in (() if report is None else report.failures)
                if each.phase == PHASES[POST]
            }
        elif isinstance(event, (RetryScheduled, TimeoutExpired)):
            label = f"{self.labels[event.task.name]}.{event.phase}"
            retried = isinstance(event, RetryScheduled)
            what = "will be retried" if retried else "times out"
            played.course.note(label, event.attempt, what)

    async def _check(self, played: Played) -> bool:
        """Call the user's check. Return True if it accepted a failure."""
        run = played.run
        assert run is not None
        try:
            answer = self.check(run)
            if inspect.isawaitable(answer):
                answer = await answer
        except BaseException as error:
            if not isinstance(error, (Exception, *_pytest_failures())):
                raise
            played.check_error = error
            played.problems.append(f"the check failed: {type(error).__name__}: {error}")
            return True
        if answer is False:
            played.problems.append("the check returned False")
        elif answer is not None and answer is not True:
            raise TypeError(f"check must return True, False or None, got {shown(answer)}")
        return run.looked_at


def _never_ended(played: Played, error: Exception) -> Played:
    course = played.course
    told = copy(played)
    told.course = course.copy()
    told.problems = [*played.problems]
    told.leftovers = None
    under_way = list(course.under_way)
    how = "waits for ever" if isinstance(error, DeadlockError) else "never ends"
    for attempt in under_way:
        if attempt.hangs:
            hint = ""
            if attempt.of.phase != PHASES[POST]:
                hint = ", or leave out the fault hang if its callers bound the run"
            told.problems.append(f"nothing bounds {attempt.of.label}: {_bound(attempt)}{hint}")
    waiting = [_waits(attempt) for attempt in under_way] or waiting_tasks(course.loop)
    told.problems.append("\n  ".join([f"{played.stage} {how}:", *waiting]))
    return told


def _waits(attempt: Attempt) -> str:
    places = of_user(attempt.frames())
    where = f", {places[-1]}: {places[-1].source}" if places else ""
    how = f"waits at its {await_of(attempt.at)}"
    limits = attempt.of.limits
    advice = ""
    if not attempt.hangs and limits.timeout is limits.total_timeout is None:
        advice = f"\n    ({_bound(attempt)}, and let it wait only for what always comes)"
    return f"{attempt.of.label}, attempt {attempt.number}, {how}{where}{advice}"


def _bound(attempt: Attempt) -> str:
    """Return what to do so that an attempt cannot wait for ever."""
    owner, _, limit = label_of(attempt.of.label)
    if limit is None:
        return "give it a timeout"
    return f"give {owner} a {'total_timeout' if limit == ENTER else 'timeout'}"


def _is_value(ctx: Any) -> bool:
    """Return True for None and for types that hash by value, which two runs may share."""
    by: Any = type(ctx).__hash__
    return ctx is None or not (by is None or by is object.__hash__)


def _look_outside(error: BaseException | None) -> None:
    """Raise the `OutsideWorldError` of a function."""
    for leaf in () if error is None else iter_leaves(error):
        if isinstance(leaf, OutsideWorldError):
            raise leaf


def _not_as_promised(played: Played) -> Iterator[str]:
    """Yield the disturbances that did not have the promised result."""
    course, error = played.course, played.error
    for who in course.swallowed:
        yield (
            f"{who} was cancelled, and returned as if nothing had happened; let CancelledError "
            f"through"
        )
    for function, place in course.skipped.items():
        yield (
            f"{function} did nothing, because the exception at its yield skipped the code after "
            f"it ({place}). Put that code into 'finally' or 'async with'. If only a success needs "
            f"it, write 'except BaseException: raise' after the yield"
        )
    yield from _failed_cleanups(played)
    known: set[int] | None = None
    for disturbance, _, exception, _ in course.injected:
        function, attempt, _ = disturbance.point
        if disturbance.fault is Fault.CANCEL:
            if not played.late and (error is None or isinstance(error, Exception)):
                yield f"the caller was cancelled, and got {shown(error)} in place of CancelledError"
        elif isinstance(exception, InjectedInterrupt):
            if not isinstance(error, InjectedInterrupt):
                yield f"{function} swallowed KeyboardInterrupt"
        elif exception is not None:
            raised = course.raised.get((function, attempt))
            retried = course.attempts[function] > attempt
            if isinstance(raised, Exception) and not retried:
                if known is None:
                    known = _reachable(error, played.report)
                if id(raised) not in known:
                    yield f"{function} raised {shown(raised)}, which is lost"


def _failed_cleanups(played: Played) -> Iterator[str]:
    """Yield the cleanups that fail although they were not disturbed themselves."""
    if not played.schedule:
        return
    labels = [label_of(each.disturbance.point.function) for each in played.course.injected]
    disturbed = {label.owner for label in labels}
    # A cleanup that takes all of cleanup_timeout cuts off others as well.
    others_cut_off = any(label.is_cleanup for label in labels)
    for function, error in played.failed_cleanups.items():
        is_cut_off = isinstance(error, TimeoutError) and str(error).startswith(attempts.CUT_OFF)
        skipped = is_cut_off and others_cut_off
        others_cut_off |= is_cut_off
        if not (skipped or function in disturbed or function in played.may_fail):
            where = ""
            if isinstance(error, TimeoutError):
                attempt = function, played.course.attempts.get(function, 0)
                place = raising_place(played.course.raised.get(attempt))
                where = "" if place is None else f" ({place}: {place.source})"
            yield f"{function} raised {shown(error)}{where}; {_advice(error)}"


def _advice(error: BaseException) -> str:
    """Return what to do about a cleanup that fails only in disturbed runs."""
    if isinstance(error, TimeoutError):
        return "a cleanup must not wait for what never comes after a failure or a cancellation"
    if isinstance(error, _MISSING):
        return "a cleanup must work with whatever exists"
    return "a cleanup must also succeed after a failure or a cancellation"


def _reachable(error: BaseException | None, report: RunReport[Any] | None) -> set[int]:
    """Return the ids of all exceptions that an error refers to, or that a report has."""
    found: dict[int, BaseException] = {}
    told = [error]
    for phases in () if report is None else report.values():
        told += [phase.exception for phase in phases]
    while told:
        exception = told.pop()
        if exception is None or id(exception) in found:
            continue
        found[id(exception)] = exception
        if isinstance(exception, BaseExceptionGroup):
            told += exception.exceptions
        told += exception.__cause__, exception.__context__
    return set(found)


def _pytest_failures() -> tuple[type[BaseException], ...]:
    """Return the exception of pytest.fail(), if pytest is loaded. It is not an `Exception`."""
    outcomes = sys.modules.get("_pytest.outcomes")
    return () if outcomes is None else (outcomes.Failed,)


@contextmanager
def pinned_jitter(factor: float) -> Generator[None, None, None]:
    """Make this the random factor of each delay before a retry."""
    engine: Any = attempts  # this module decides for both engines
    uniform = engine.uniform

    def pinned(low: float, high: float) -> float:
        return factor

    engine.uniform = pinned
    try:
        yield
    finally:
        engine.uniform = uniform


def tasks_of(processor: processors.TaskProcessor[Any, Any]) -> list[AsyncTask[Any, Any]]:
    """Return the tasks of a processor."""
    if isinstance(processor, processors.AsyncDagTaskProcessor):
        return list(processor.tasks.values())
    assert isinstance(processor, processors.AsyncTaskProcessor)
    return [task for tasks in processor.levels.values() for task in tasks]
