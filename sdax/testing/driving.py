"""Drives the functions of a processor step by step, and disturbs them at their points.

It replaces the functions of a processor by functions that step the user's coroutines. They see the
start and the end of each await, on both engines. Other processors have no cost.
"""

from __future__ import annotations

import asyncio
import sys
from asyncio import CancelledError, Task, current_task
from collections.abc import AsyncGenerator, Callable, Generator, Iterable
from contextlib import asynccontextmanager
from contextvars import ContextVar, Token
from copy import copy
from types import AsyncGeneratorType, CoroutineType, FrameType, coroutine
from typing import Any, Final, NamedTuple, TypeAlias, cast

from ..common.order import PHASES, POST
from ..engine.calls import as_coroutine
from ..engine.plan import in_its_thread
from ..engine.resources import as_generator
from ..functions import ThreadFunction
from ..tasks import TaskFunction
from .clock import VirtualClockLoop, outside
from .faults import InjectedError, InjectedInterrupt, exception_of
from .frames import Place, awaiting, of_user
from .points import CALL, RETURN, Disturbance, Fault, Point, Schedule, label_of
from .yields import skipping_yield

COURSE: ContextVar[Course | None] = ContextVar("COURSE", default=None)

_CLEANUP: Final = PHASES[POST]

# Modules of asyncio whose waits cannot fail. They can only be cancelled.
_NEVER_FAILING: Final = frozenset(
    {"asyncio.locks", "asyncio.queues", "asyncio.taskgroups", "asyncio.timeouts"}
)
# (Up to Python 3.11, wait_for() awaits the end of an asyncio.Task, and not the task itself.)
_FAILING_IN_TASKS: Final = {"sleep", "__sleep0"} | (
    {"wait_for"} if sys.version_info >= (3, 12) else set[str]()
)


# An event of a function: the time, the function, the attempt, and the place of a point or the end
# of the attempt. (Runs have many events, so they are plain tuples.)
Happened: TypeAlias = tuple[float, str, int, str]


class Injected(NamedTuple):
    """A disturbance that happened: the function's place, and the exception, if any."""

    disturbance: Disturbance
    places: list[Place]
    exception: BaseException | None
    position: int  # in the trace


class Course:
    """The events of the functions of one run, and the disturbances for them."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, schedule: Schedule, *, detailed: bool = False
    ) -> None:
        self.loop = loop
        self.schedule = schedule
        self.detailed = detailed
        self.began = 0.0
        self.caller: Task[Any] | None = None
        self.trace: list[Happened] = []
        self.unfailing: set[Point] = set()  # points at which no exception can come
        self.injected: list[Injected] = []
        self.swallowed: list[str] = []  # functions that were cancelled and still returned
        self.skipped: dict[str, Place] = {}  # the `yield`s of cleanups that an exception skipped
        self.raised: dict[tuple[str, int], BaseException] = {}  # by function and attempt
        self.attempts: dict[str, int] = {}
        self.under_way: dict[Attempt, None] = {}
        self._once: dict[tuple[str, int, str], Disturbance]
        self._once = {each.point: each for each in schedule}
        self._always: dict[tuple[str, str], Disturbance] = {}
        for each in schedule:
            if each.fault is Fault.FAIL_ALWAYS:
                self._always.setdefault((each.point.function, each.point.at), each)

    def begin(self) -> Token[Course | None]:
        """Begin the run. The current `asyncio.Task` is its caller."""
        self.began = self.loop.time()
        self.caller = current_task()
        return COURSE.set(self)

    def note(self, function: str, attempt: int, what: str) -> None:
        """Write down what happened."""
        self.trace.append((self.loop.time() - self.began, function, attempt, what))

    def points(self, after: int = 0) -> list[Point]:
        """Return the points that the functions reached after a number of events, in order."""
        return [
            Point(function, attempt, what)
            for _, function, attempt, what in self.trace[after:]
            if what[0].isdecimal() or what in (CALL, RETURN)
        ]

    def disturbance_at(self, function: str, attempt: int, at: str) -> Disturbance | None:
        """Return the disturbance at a point, or None."""
        if not self._once:
            return None
        if (once := self._once.get((function, attempt, at))) is not None:
            return once
        always = self._always.get((function, at))
        return always if always is not None and attempt > always.point.attempt else None

    def copy(self) -> Course:
        """Return a copy that does not change any more."""
        copied = copy(self)
        copied.trace = [*self.trace]
        copied.injected = [*self.injected]
        copied.under_way = {}
        copied.caller = None
        return copied

    def missed(self) -> list[Point]:
        """Return the points of the schedule that the run never reached."""
        took_place = {each.disturbance for each in self.injected}
        return [each.point for each in self.schedule if each not in took_place]


class Attempt:
    """One running attempt of a function."""

    __slots__ = ("at", "body", "cancelling", "course", "hangs", "number", "of", "unheard")

    def __init__(self, of: DrivenFunction, course: Course) -> None:
        self.of = of
        self.course = course
        self.number = course.attempts.get(of.label, 0) + 1
        self.at = CALL
        self.body: Any = None
        self.hangs = False
        self.cancelling = 0  # cancel requests at the last cancellation that it got
        self.unheard = False  # the caller was cancelled here, and this function has not got it yet
        course.attempts[of.label] = self.number
        course.under_way[self] = None

    def came_to(self, at: str) -> Disturbance | None:
        """Record that the function is at a point, and disturb it there.

        A disturbance of an await is returned, and `drive` does it.
        """
        self.at = at
        self.note(at)
        course = self.course
        disturbance = course.disturbance_at(self.of.label, self.number, at)
        if disturbance is None:
            return None
        if disturbance.fault is Fault.CANCEL:
            self.inject(disturbance)
            # The function cannot wake up before the caller gets the cancellation.
            self.unheard = self.of.phase != _CLEANUP
            assert course.caller is not None
            course.caller.cancel()
            return None
        if at not in (CALL, RETURN):
            return disturbance
        raise self.failure(disturbance)

    def failure(self, disturbance: Disturbance) -> BaseException:
        """Return the exception that a fault raises here."""
        point = Point(self.of.label, self.number, self.at)
        exception = exception_of(disturbance.fault, self.of.limits, point)
        self.inject(disturbance, exception)
        return exception

    def inject(self, disturbance: Disturbance, exception: BaseException | None = None) -> None:
        """Record a disturbance that happens now."""
        course = self.course
        places = of_user(self.frames())
        self.note(f"({disturbance.fault})")
        course.injected.append(Injected(disturbance, places, exception, len(course.trace)))

    def frames(self) -> Iterable[FrameType]:
        """Return the frames of the function, from its own to the innermost waiting frame."""
        return () if self.body is None else awaiting(self.body)

    def note(self, what: str) -> None:
        """Write down what happened."""
        self.course.note(self.of.label, self.number, what)

    def ended(self, error: BaseException | None) -> None:
        """Record the end of the attempt, unless it is a point."""
        course = self.course
        course.under_way.pop(self, None)
        if error is not None:
            course.raised[self.of.label, self.number] = error
            cancelled = isinstance(error, CancelledError)
            self.note("is cancelled" if cancelled else f"raises {type(error).__name__}")
        elif self.cancelling:
            task = current_task()
            if task is not None and task.cancelling() >= self.cancelling:
                course.swallowed.append(f"{self.of.label}, attempt {self.number},")

    @coroutine
    def drive(self, body: Any) -> Generator[Any, Any, Any]:
        """Run a coroutine completely, and stop at each of its points."""
        self.body = body
        error: BaseException | None = None
        number = 0
        while True:
            try:
                if error is None:
                    awaited = body.send(None)
                else:
                    raised, error = error, None
                    try:
                        awaited = body.throw(raised)
                    finally:
                        del raised
            except StopIteration as end:
                return end.value
            number += 1
            at = str(number)
            if self.course.detailed and not _can_fail(awaiting(body)):
                self.course.unfailing.add(Point(self.of.label, self.number, at))
            disturbance = self.came_to(at)
            if disturbance is None:
                error = yield from _resumed(awaited)
            elif disturbance.fault is Fault.HANG:
                error = yield from self.hang(awaited, disturbance)
            else:
                error = yield from self.fail(awaited, disturbance)
            if self.unheard and not isinstance(error, CancelledError):
                error = (yield from _resumed(None)) or error
            self.unheard = False
            if not isinstance(error, (CancelledError, InjectedError, InjectedInterrupt)):
                error = (yield from self.go_on(f"{at}+")) or error
            if isinstance(error, CancelledError):
                task = current_task()
                self.cancelling = 0 if task is None else task.cancelling()

    def go_on(self, at: str) -> Generator[Any, Any, BaseException | None]:
        """Stop before the function continues, and return an exception to raise in it, or None."""
        disturbance = self.came_to(at)
        if disturbance is not None:
            return self.failure(disturbance)
        if not self.unheard:
            return None
        self.unheard = False
        return (yield from _resumed(None))

    def hang(
        self, awaited: Any, disturbance: Disturbance
    ) -> Generator[Any, Any, BaseException | None]:
        """Wait until the function is cancelled, and then until its own await ends."""
        self.inject(disturbance)
        self.hangs = True
        error = yield from _resumed(self.course.loop.create_future())
        self.hangs = False
        if _is_future(awaited) and awaited.cancel():
            ending = yield from _resumed(awaited)
            if not isinstance(ending, CancelledError):
                return ending
        return error

    def fail(self, awaited: Any, disturbance: Disturbance) -> Generator[Any, Any, BaseException]:
        """End the awaited thing, and return the exception to raise instead."""
        exception = self.failure(disturbance)
        if _is_future(awaited):
            # Otherwise it could continue, for example an asyncio.Task.
            task = current_task()
            assert task is not None
            requests = task.cancelling()
            if awaited.cancel():
                ending = yield from _resumed(awaited)
                if isinstance(ending, CancelledError) and task.cancelling() > requests:
                    return ending  # from elsewhere, meanwhile
        return exception


def _resumed(awaited: Any) -> Generator[Any, Any, BaseException | None]:
    """Wait for the thing that a coroutine yielded. Return the exception to resume it with, or None.

    There is never a value, because a coroutine takes it from the future that it waited for.
    """
    if _is_future(awaited):
        awaited._asyncio_future_blocking = True  # as its own __await__ does
    try:
        yield awaited
    except BaseException as error:
        return error
    return None


def _is_future(awaited: Any) -> bool:
    return asyncio.isfuture(awaited)


def _can_fail(frames: Iterable[FrameType]) -> bool:
    """Return True if the wait of the innermost frame can raise an exception.

    The wait for a lock, a queue or a task group can only be cancelled.
    """
    *_, innermost = frames
    module = str(innermost.f_globals.get("__name__"))
    if module == "asyncio.tasks":
        return innermost.f_code.co_name in _FAILING_IN_TASKS
    if module.partition(".")[0] == "sdax":
        return module == as_coroutine.__module__  # it awaits the result of the function
    return module not in _NEVER_FAILING


class DrivenFunction:
    """A replacement for a user's function, for an engine to call."""

    def __init__(
        self, function: Callable[..., Any], limits: TaskFunction[Any], name: Any, label: str
    ) -> None:
        self.phase = label_of(label).phase
        self.threaded = isinstance(function, ThreadFunction)
        if isinstance(function, ThreadFunction):
            is_cleanup = self.phase == _CLEANUP
            function = in_its_thread(function, limits, f"sdax:{label}", is_cleanup=is_cleanup)
        self.function = function
        self.limits = limits
        self.name = name
        self.label = label

    async def __call__(self, *arguments: Any) -> Any:
        attempt = self.attempt()
        error = None
        try:
            attempt.came_to(CALL)
            if self.threaded and isinstance(attempt.course.loop, VirtualClockLoop):
                raise outside("a thread")
            body = self.call(*arguments)
            if type(body) is not CoroutineType:
                body = as_coroutine(body, self.name, self.phase)
            value = await attempt.drive(body)
            self.came_to_end(attempt)
            return value
        except BaseException as exception:
            error = exception
            raise
        finally:
            attempt.ended(error)
            del arguments, attempt, error  # the traceback leads here

    def call(self, *arguments: Any) -> Any:
        """Call the function, and return what it awaits."""
        return self.function(*arguments)

    def came_to_end(self, attempt: Attempt) -> None:
        """Note that the function is about to return, and do what is due there."""
        attempt.came_to(RETURN)

    def attempt(self) -> Attempt:
        """Begin an attempt in the current run."""
        course = COURSE.get()
        assert course is not None, "the functions of a driven processor run in a Course"
        return Attempt(self, course)


class DrivenSetUp(DrivenFunction):
    """The first half of a resource. It has no answer that could be lost: it yields."""

    def came_to_end(self, attempt: Attempt) -> None:
        """Note that the function yields."""
        attempt.note("yields")


class DrivenHalf(DrivenFunction):
    """Enters or leaves a limiter. It has no answer that could be lost."""

    def came_to_end(self, attempt: Attempt) -> None:
        """Note that the function has entered or left."""
        attempt.note("is through")


class DrivenResource:
    """The function of a resource: each of its halves is driven as a function of its own."""

    def __init__(
        self, function: Callable[[Any], Any], set_up: DrivenFunction, clean_up: DrivenFunction
    ) -> None:
        self.function = function
        self.set_up = set_up
        self.clean_up = clean_up

    def __call__(self, ctx: Any) -> DrivenManager:
        return DrivenManager(self, ctx)


class DrivenManager:
    """A driven resource of one run: an async context manager."""

    def __init__(self, of: DrivenResource, ctx: Any) -> None:
        self.of = of
        self.ctx = ctx
        self.manager: Any = None

    async def __aenter__(self) -> Any:
        return await self.of.set_up(self)

    async def __aexit__(self, *raised: Any) -> Any:
        try:
            return await self.of.clean_up(self, raised)
        finally:
            del raised

    async def enter(self) -> Any:
        """Run the function up to its `yield`."""
        returned = self.of.function(self.ctx)
        if isinstance(returned, AsyncGeneratorType):
            self.manager = asynccontextmanager(_given)(cast("AsyncGenerator[Any, None]", returned))
        else:
            self.manager = returned
            as_generator(returned, self.of.set_up.name)  # which refuses what it cannot be
        return await type(self.manager).__aenter__(self.manager)

    async def leave(self, raised: Any) -> Any:
        """Run the function on from its `yield`."""
        course = COURSE.get()
        if course is not None and raised[0] is not None:
            place = skipping_yield(self.manager)
            if place is not None:
                course.skipped[self.of.clean_up.label] = place
        try:
            return await type(self.manager).__aexit__(self.manager, *raised)
        finally:
            del raised


def _given(generator: AsyncGenerator[Any, None]) -> AsyncGenerator[Any, None]:
    return generator


class DrivenPlainFunction(DrivenFunction):
    """A plain function of a user, which the engine calls in the event loop."""

    def __call__(self, *arguments: Any) -> Any:
        attempt = self.attempt()
        error = None
        try:
            attempt.came_to(CALL)
            value = self.function(*arguments)
            attempt.came_to(RETURN)
            return value
        except BaseException as exception:
            error = exception
            raise
        finally:
            attempt.ended(error)
            del attempt, error
