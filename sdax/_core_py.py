"""The engine in Python: what `_core.pyx` does, to be read by people.

A `Run` decides what may be called next. An `asyncio.Task` gets a `Driver` in place of a coroutine,
and the driver makes the call. So there is no pass through the event loop to start a child task, no
callback when it is done and no other pass to wake the parent:

- A run's `pump` makes a driver and an `asyncio.Task` for each function that may be called, and
  the first step is taken there and then.
- A function that returns without suspending leaves its `asyncio.Task` to the next function. A
  function that suspends keeps it until it ends.
- The last function of a stage opens the next one, in the same callback of the loop.
"""

from __future__ import annotations

import asyncio
import sys
import time
from asyncio import CancelledError, Task, current_task
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextvars import Context, copy_context
from gc import get_referents
from itertools import chain as one_after_another
from sys import exception as handled
from sys import getrecursionlimit, setrecursionlimit
from types import CoroutineType, coroutine
from typing import TYPE_CHECKING, Any, Final, NoReturn
from weakref import getweakrefcount

from .common.order import PHASES, POST, PRE
from .engine.attempts import AT_ONCE, History
from .engine.calls import as_coroutine, refuse_coroutine
from .engine.deadlines import Deadlines, clock_of
from .engine.driver import (
    BREAKING,
    ENDED,
    HOLDING,
    NEW,
    PAUSING,
    STEPPING,
    SUSPENDED,
    DriverBase,
    can_catch_first_steps,
)
from .engine.exceptions import chain, hide_engine, put_after
from .engine.limited import UNSET, AttemptsBase
from .engine.losses import Losses, Setbacks
from .engine.plan import Plan, Work
from .engine.record import Record
from .engine.resources import Resource
from .engine.run import RunBase
from .engine.seen import of_coroutine
from .engine.sharing import may_share
from .engine.stack import DEEPEST, ROOM, refuse_endless
from .engine.starting import start_by_factory
from .engine.variables import Contexts
from .engine.work import (
    FEEDS,
    FUNCTION,
    KIND,
    OUTCOME,
    RESOURCE,
    TASK_NAME,
    USERS_NAME,
)
from .finish import Finish
from .tasks import TaskFunction

if TYPE_CHECKING:
    from .engine.watch import Watch

if sys.version_info < (3, 12):
    from asyncio.tasks import _current_tasks  # type: ignore[attr-defined]

if hasattr(sys, "getrefcount"):
    from sys import getrefcount

__all__ = ["Run"]

NONE_READY: Iterator[int] = iter(())
HAS_ENDED: Final = NONE_READY.__next__  # the step of a driver that has nothing left to do

EAGER_START: Final = sys.version_info >= (3, 12)
EAGER_FACTORY: Final = getattr(asyncio, "eager_task_factory", None)
AWAITED_BY: Final = sys.version_info >= (3, 14)  # asyncio can be told who waits for whom
# There, attributes have no dictionary until one is looked up by a subclass of str.
INLINE_ATTRIBUTES: Final = sys.version_info >= (3, 14)
UNKNOWN: Final = type("Unknown", (str,), {})()


def traces(task: Any, context: Context) -> object:
    """Return what a function may have left on an `asyncio.Task` and its context."""
    return (
        getrefcount(task),
        getrefcount(task.get_coro()),
        getrefcount(context),
        getweakrefcount(task),
        bool(attributes_of(task)),
        bool(task._callbacks),
        task._must_cancel,
        *((bool(task._asyncio_awaited_by),) if AWAITED_BY else ()),
        len(context) and id(get_referents(context)[-1]),
    )


class Run(RunBase):
    """One run of a plan.

    `start` it. While it is not `over`, put a future into `waiter` and await that: it is done
    when the run is. `cancel` asks it to end early. Then `values` has what functions
    returned, by the plan's keys, and `record` everything else that is not a plain success.
    Both are None while empty. `fatal` is not an `Exception`, or it broke the engine
    itself: the run ends with it. A run with a `watch` tells it everything: its plan must have
    limits for every function (see `Plan.observed`).
    """

    entered: list[int]  # what gates opened
    mapping: Any  # what holds the variables of a context until one is set

    __slots__ = (
        "aborted",
        "cleanup_ends",
        "clock",
        "closed",
        "context",
        "contexts",
        "ctx",
        "deadlines",
        "deferred",
        "depth",
        "due",
        "entered",
        "fatal",
        "held",
        "interrupted",
        "is_lazy",
        "last_phase",
        "loop",
        "losses",
        "mapping",
        "number",
        "opened",
        "over",
        "parent",
        "pending",
        "phase",
        "places",
        "plan",
        "pumping",
        "queue",
        "ready",
        "record",
        "resources",
        "setbacks",
        "shaken",
        "suspended",
        "to_cancel",
        "uncalled",
        "untouched",
        "values",
        "variables",
        "waiter",
        "waiting",
        "watch",
    )

    def __init__(self, plan: Plan, ctx: Any, watch: Watch | None = None) -> None:
        self.plan = plan
        self.ctx = ctx
        self.loop = asyncio.get_running_loop()
        self.parent: Task[Any] | None = None  # who waits for this run
        self.depth = 1  # of runs inside of runs, on one stack
        self.context = copy_context()
        self.variables = len(self.context)
        self.contexts: Contexts | None = None  # once a resource has set a context variable
        self.resources: dict[int, Resource] | None = None  # of which a set-up was called
        self.waiter: asyncio.Future[None] | None = None
        self.values: dict[int, Any] | None = None
        self.watch = watch
        self.record: Record | None = None if watch is None else Record(plan, watch)
        self.fatal: BaseException | None = None
        self.over = False
        self.interrupted = False  # by its caller, who may not wait any more
        self.shaken = False  # its caller was cancelled once more, in this pass of the loop
        self.number = PRE
        self.phase = plan.phases[PRE]
        self.opened = 0  # how many stages of the phase
        self.ready = NONE_READY  # opened, not yet called
        self.held: Iterable[int] = NONE_READY  # the same, while the run is deferred
        self.waiting: list[int] | None = None  # completions that each gate still waits for
        self.queue: deque[int] | None = None  # what gates opened, not yet called
        self.places = plan.places
        self.pending = 0  # opened, not yet finished
        self.suspended: dict[Driver, None] = {}
        self.pumping = False
        self.untouched: Any = None  # references to what no function has taken hold of
        self.closed = False  # nothing of this phase is opened any more
        self.aborted = False  # nothing of it is called any more either
        self.to_cancel: list[Driver] | None = None  # of the stopped phase, the next one last
        self.losses: Losses | None = None
        self.uncalled: Sequence[int] = ()
        self.due: set[int] | None = None  # whose functions are due in this phase, or None for all
        self.deadlines: Deadlines | None = None
        self.cleanup_ends: float | None = None  # by the loop's clock, once it has begun
        self.clock: Any = None  # see `clock_of`, once a timeout asks for it
        self.deferred = False  # nothing is opened or called until the loop calls `go_on`
        self.is_lazy = False  # the task factory: what it starts begins in its turn of the loop
        self.setbacks: Setbacks | None = None

    def start(self, last: int = POST) -> bool:
        """Run up to and with the phase `last` until all that is left is suspended, and return
        True if the run has ended. A run that begins in the middle goes on from there."""
        self.last_phase = last
        self.over = False
        try:
            self.parent = current_task(self.loop)
            if type(self.parent) is Task:
                driver: Any = self.parent.get_coro()
                if type(driver) is Driver and driver not in driver.run.suspended:
                    self.depth = driver.run.depth + 1
            if self.depth > DEEPEST:
                refuse_endless(self.context)
                self.depth = 1
                self.defer()
            elif self.fatal is not None or handled() is not None:
                self.defer()  # functions would see what is handled as their own
            self.advance()
            self.pump()
        except RecursionError as error:
            # There is hardly a frame left, and nothing that could be called with it.
            limit = getrecursionlimit()
            setrecursionlimit(limit + ROOM)
            try:
                self.break_down(error)
            finally:
                setrecursionlimit(limit)
        except BaseException as error:
            self.break_down(error)
        return self.over

    # The rest is for the engine.

    def enter_phase(self, number: int) -> None:
        self.number = number
        self.phase = self.plan.phases[number]
        self.opened = 0
        if self.waiting is not None:
            self.waiting = self.queue = None
        if self.closed:
            self.closed = self.aborted = False

    def pump(self) -> None:
        """Call all that may be called now, each in an `asyncio.Task`."""
        self.pumping = True
        try:
            factory = self.loop.get_task_factory()
            by_loop = factory is None or factory is EAGER_FACTORY
            start = start_ready if by_loop else start_by_factory
            seen = None
            while self.ready is not seen and not self.over and len(self.suspended) < self.places:
                seen = self.ready
                start(self)
            if len(self.suspended) < self.places:
                self.ready = NONE_READY
        finally:
            self.pumping = False

    def advance(self) -> None:
        """Open the next stage, of the next phase if need be, or end the run.

        Called when nothing that was opened is unfinished.
        """
        while not self.pending and not self.deferred:
            phase = self.phase
            if self.opened < len(phase.stages) and not self.closed:
                stage = phase.stages[self.opened]
                if self.due is not None:
                    stage = tuple(index for index in stage if index in self.due)
                ready, pending = iter(stage), len(stage)
                self.opened += 1  # no call from here on: a stage is opened once, or not at all
                self.ready, self.pending = ready, pending
                if pending:
                    return
            elif phase.gates and self.waiting is None and not self.closed:
                self.waiting = list(phase.waits)
                self.queue = deque()
                self.entered = []
                self.open_gates([0])
            elif self.number >= self.last_phase:
                self.finish()
                return
            else:
                number = self.number
                if self.closed or self.record is not None:
                    number = self.leave_phase()
                self.enter_phase(number + 1)

    def feed(self, gates: Sequence[int]) -> None:
        """Count a completion for each of these gates, and open those that wait for no more."""
        if opening := self.count_down(gates):
            self.open_gates(opening)

    def count_down(self, gates: Sequence[int]) -> list[int]:
        waiting = self.waiting
        assert waiting is not None
        ready = []
        for gate in gates:
            waiting[gate] -= 1
            if not waiting[gate]:
                ready.append(gate)
        return ready

    def open_gates(self, opening: list[int]) -> None:
        phase, due, queue = self.phase, self.due, self.queue
        assert queue is not None
        opened: list[int] = []
        while opening:
            gate = opening.pop()
            opening += self.count_down(phase.onward[gate])
            for index in phase.gates[gate]:
                if due is None or index in due:
                    opened.append(index)
                else:
                    opening += self.count_down(phase.work[index][FEEDS])
        opened.sort()
        count = len(opened)
        queue.extend(opened)
        self.entered += opened
        self.pending += count
        if not self.deferred:
            self.ready = drain(queue)

    def finish(self) -> None:
        if self.watch is not None:
            self.tell("phase_finished")
        self.over = True
        self.parent = None  # its result may be an error, and by that lead to the run
        if self.deadlines is not None or self.waiter is not None:
            try:
                self.wind_up()
            except BaseException as error:
                self.take_fatal(error)
                self.wind_up()  # nobody else would wake the caller up

    def keep(self, index: int, value: Any) -> None:
        if self.values is None:
            self.values = {}
        self.values[self.plan.key(self.number, index)] = value

    def now(self) -> float:
        """Return the time of the loop's clock."""
        if self.clock is None:
            self.clock = clock_of(self.loop)
        now: float = time.monotonic() if self.clock is time else self.clock()
        return now

    def finished_one(self) -> None:
        self.pending -= 1
        if not self.pending:
            self.advance()

    def take_left(self) -> list[int]:
        """Take everything that is opened and not yet called."""
        left = [*self.held, *self.ready, *(self.queue or ())]
        self.held = self.ready = NONE_READY
        if self.queue is not None:
            self.queue.clear()
        return left

    # For `RunBase`.

    def drivers(self) -> list[Driver]:
        return list(self.suspended)

    def take_next(self) -> int:
        if len(self.suspended) >= self.places or self.deferred:
            return -1
        return next(self.ready, -1)

    def lone_driver(self, index: int) -> LoneDriver:
        return LoneDriver(self, index)

    def link(self, driver: Driver) -> None:
        self.suspended[driver] = None

    def set_contexts(self, contexts: Contexts) -> None:
        """Have functions called in different contexts, and share no `asyncio.Task` any more."""
        self.contexts = contexts
        self.variables = -1

    def count_in(self, driver: Driver) -> None:
        """Count the driver of a resource among the suspended ones: its cleanup begins."""
        if AWAITED_BY and self.parent is not None:  # pragma: no cover (3.14)
            asyncio.future_add_to_awaited_by(  # type: ignore[attr-defined]
                driver.task, self.parent
            )
        by_step = self.goes_by_step()
        self.suspended[driver] = None  # no call from here on: it is counted in, or it is not
        if by_step and driver.resource is not None:  # else it has broken, and cleans up already
            driver.__next__ = driver.begin

    def goes_by_step(self) -> bool:
        """Return True if it matters to what is called now that its first step has suspended."""
        return self.watch is not None or self.plan.has_timeouts or self.interrupted

    def stop_calling(self) -> None:
        self.held, self.ready = self.ready, NONE_READY

    def put_back(self, index: int) -> None:
        """Keep what was taken and not called, to be called by the event loop."""
        self.defer()
        self.held = one_after_another([index], self.held)

    def give_back(self, indices: list[int]) -> None:
        if self.queue is None:
            self.ready = iter(indices)
        else:
            self.queue.extend(indices)
            self.ready = drain(self.queue)

    def called_by_gates(self) -> set[int]:
        self.held = left = self.take_left()
        return set(self.entered).difference(left)

    def requeue(self, called: set[int], opened: set[int]) -> None:
        entered, queue = sorted(called.union(opened)), deque(sorted(opened - called))
        self.entered, self.queue, self.held = entered, queue, NONE_READY


class Driver(DriverBase):
    """Runs one function after another in an `asyncio.Task`. The last of them may suspend.

    It stands in for the coroutine of the function that it is at: `repr(task)`, stacks and
    debuggers show the user's code. Its `__next__` is a slot, so that each driver has what its
    next step needs. Then a step of a suspended function is a step of `body` and nothing more.
    """

    __slots__ = (
        "__next__",
        "__qualname__",
        "attempts",
        "body",
        "context",
        "coroutine",
        "index",
        "resource",
        "run",
        "shared",
        "sheltered",
        "spared",
        "task",
        *(() if EAGER_START else ("first_step",)),  # each takes memory of each function that waits
    )

    called: Any = None  # a finished one still has its coroutine, or the name
    __next__: Callable[[], Any]
    body: Any
    first_step: Any  # on 3.11: kept from the loop
    __qualname__: str  # the coroutine's, or the function's before there is one

    def __init__(
        self, run: Run, index: int, work: Work, context: Context | None, by_step: bool
    ) -> None:
        self.run: Any = run  # None once it has ended
        self.index = index
        self.__qualname__ = work[USERS_NAME]
        self.context: Any = context  # that of the asyncio.Task
        self.shared = SHARING
        self.attempts: Attempts | None = None
        self.coroutine: Any = None
        self.task: Any = None
        self.resource: Resource | None = None  # that is held, until its turn comes
        self.body = self.call_functions(work)
        self.__next__ = self.begin if by_step else self.body.__next__

    @coroutine
    def call_functions(self, work: Work) -> Generator[Any, None, None]:
        """Call one function after another, until one has suspended and ended.

        A function leaves the `asyncio.Task` to the next only where nobody could tell that the
        two shared it.
        """
        run: Run = self.run
        index = self.index
        attempts: Attempts | None = None
        task: Any = None  # once something is asked of it
        attributes: dict[str, Any] | None = None  # of the asyncio.Task
        variables = run.variables
        tasks = drivers = contexts = weakly = -1  # references where nothing took hold of anything
        if run.untouched is not None:
            tasks, drivers, contexts, weakly = run.untouched
        called: bool | None = False  # the first function
        error = kind = None
        try:
            if self.task is None:
                self.task = current_task(run.loop)
            while True:
                if called or (tasks < 0 and self.shared):
                    if task is None:
                        task, context = self.task, self.context
                    # Who knows the asyncio.Task, its driver or its context. Counted in one place,
                    # because the interpreter adds to a count, and not the same in all places.
                    now_tasks = getrefcount(task)
                    now_drivers = getrefcount(self)
                    now_contexts = getrefcount(context)
                    now_weakly = getweakrefcount(task)
                    if not called:
                        tasks, drivers = now_tasks, now_drivers
                        contexts, weakly = now_contexts, now_weakly
                        run.untouched = tasks, drivers, contexts, weakly
                        if variables:
                            run.mapping = get_referents(context)[-1]
                    else:
                        if attributes is None:
                            attributes = attributes_of(task)
                        # Each request to cancel it is in `_must_cancel`: nothing has suspended.
                        if (
                            now_tasks != tasks
                            or now_drivers != drivers
                            or now_contexts != contexts
                            or now_weakly != weakly
                            or attributes
                            or task._callbacks
                            or task._must_cancel
                            or (AWAITED_BY and task._asyncio_awaited_by)
                            or len(context) != variables
                            or (variables and get_referents(context)[-1] is not run.mapping)
                            or (following := next(run.ready, None)) is None
                        ):
                            self.release()
                            return
                        index = following  # and `self.index` only when it is called
                        work = run.phase.work[index]
                        task.set_name(work[TASK_NAME])
                call, limits, _, feeds, kind, timeout, _, special = work
                if kind and kind is RESOURCE and self.shared and run.number == POST:
                    run.clean_up(index)
                    self.index = index
                    if len(run.suspended) < run.places:
                        continue
                    self.release()
                    return
                value = None
                if limits is not None and (timeout is not None or special or run.watch is not None):
                    attempts = self.attempts = Attempts(self, limits)
                called = True
                self.index = index
                while True:
                    try:
                        if attempts is not None:
                            value = yield from attempts.make(work)
                            error, attempts.error = attempts.error, None
                        elif kind:
                            if kind is True:
                                value = self.call_plain(work)
                            else:
                                value = yield from self.call_otherwise(work)
                        else:
                            awaitable: Any = call(run.ctx)
                            if type(awaitable) is not CoroutineType:
                                awaitable = self.as_coroutine(awaitable)
                            self.coroutine = awaitable
                            self.__qualname__ = awaitable.__qualname__
                            value = yield from awaitable
                    except BaseException as exception:
                        if type(exception) is GeneratorExit and not self.is_stepped():
                            raise
                        error = exception
                    if error is None or limits is None or attempts is not None:
                        break
                    # Retries cost nothing before this.
                    attempts = self.attempts = Attempts(self, limits)
                    attempts.first_failed(error)
                    error = None
                if attempts is not None:
                    self.attempts = None
                if kind and self.resource is not None:
                    yield from self.hold(work, attempts, value, error)
                    if self.run is None:
                        return
                    work = run.phase.work[index]
                    called = None  # in this phase
                    attempts = error = None
                    continue
                shared = self.shared
                if not shared:
                    run.suspended.pop(self, None)
                    if AWAITED_BY and run.parent is not None:  # pragma: no cover (3.14)
                        asyncio.future_discard_from_awaited_by(  # type: ignore[attr-defined]
                            self.task, run.parent
                        )
                    self.release()
                if error is not None:
                    if self.coroutine is not None and issubclass(type(error), RecursionError):
                        self.coroutine.close()  # it may not even have begun
                    if attempts is None:
                        run.failed(index, error)
                    else:
                        run.failed(
                            index,
                            error,
                            attempts.number,
                            attempts.timed_out,
                            attempts.pausing,
                            attempts.take_history(),
                        )
                        attempts = None
                    error = None
                else:
                    if value is not None:
                        if type(value) is Finish:
                            if attempts is None:
                                run.ends_early(index, value)
                            else:
                                run.ends_early(
                                    index, value, attempts.number, attempts.take_history()
                                )
                            if not shared:
                                return
                            attempts = None
                            continue
                        run.keep(index, value)
                    if attempts is not None:
                        if attempts.number > 1 or run.watch is not None:
                            made = attempts.number
                            run.write(
                                "succeeded", run.number, index, made, value, attempts.take_history()
                            )
                        attempts = None
                    if feeds and not run.aborted:
                        run.feed(feeds)
                    run.pending -= 1
                    if not run.pending:
                        run.advance()
                        if shared and run.over:  # nobody is left to hand the asyncio.Task to
                            self.release()
                            return
                if not shared:
                    if run.ready is not NONE_READY and not run.pumping:
                        run.pump()
                    return
        except BaseException as exception:
            if type(exception) is GeneratorExit and not self.is_stepped():
                raise
            broken = exception
        else:
            return
        try:
            if error is not None:
                put_after(broken, error)
            if kind and self.is_left():
                yield from self.end_resource(broken)
            self.broken(run, broken)
            if called is False or self.index != index:
                run.put_back(index)
        finally:
            del broken
            error = None

    @coroutine
    def call_otherwise(self, work: Work) -> Generator[Any, None, Any]:
        """Call a function that is neither one of the context alone, nor a plain one."""
        run = self.run
        if work[KIND] is OUTCOME:
            call: Any = work[FUNCTION]
            awaitable = call(run.ctx, run.outcome())
            if type(awaitable) is not CoroutineType:
                awaitable = self.as_coroutine(awaitable)
            self.coroutine = awaitable
            self.__qualname__ = awaitable.__qualname__
            return (yield from awaitable)
        if run.number == POST:
            return (yield from self.coroutine)
        self.coroutine = run.set_up(self.index)
        self.__qualname__ = work[USERS_NAME]
        step, argument = self.coroutine.send, None
        while True:
            try:
                yielded = step(argument)
            except BaseException as exception:
                argument = None
                if not self.is_left():
                    raise
                step, argument = self.coroutine.throw, exception  # it was not even stepped
                continue
            argument = None
            if type(yielded) is Resource:
                self.resource = yielded
                return yielded.value
            step = self.coroutine.send
            try:
                yield yielded
            except BaseException as exception:
                step, argument = self.coroutine.throw, exception

    def may_have_set_variables(self) -> bool:
        """Return True unless its context is certainly as it was."""
        return True

    @coroutine
    def hold(
        self, work: Work, attempts: Attempts | None, value: Any, error: BaseException | None
    ) -> Generator[Any, None, None]:
        """Go on with what a resource opens that is set up. Hold it until its cleanup is due.

        If it breaks before, clean it up, and let go of the run.
        """
        run, index, resource = self.run, self.index, self.resource
        assert resource is not None
        resource.driver = self  # without a call: from here on it is cleaned up, whatever breaks
        try:
            self.shared = False
            self.__next__ = self.body.__next__
            if error is not None:
                run.break_down(error)
            self.set_up_ended(work, attempts, value)
        except BaseException as broken:
            run.break_down(broken)
            run.suspended.pop(self, None)
        attempts = value = error = None
        came = None
        while True:
            try:
                yield resource
            except BaseException as exception:
                if type(exception) is GeneratorExit and not self.is_stepped():
                    raise
                came = exception
            try:
                if came is None or not run.passes_by(resource):
                    break
                self.task.uncancel()
            except BaseException as broken:
                run.break_down(broken)
            came = None
            resource._asyncio_future_blocking = True
        self.resource = None
        if came is not None:
            if not resource.broken:  # by other code, which has thrown into the coroutine
                resource.thrown = came
            resource.broken = True
            came = None
        if self not in run.suspended:  # else its turn has come
            try:
                run.limit_broken(index, resource)
            except BaseException as broken:
                run.break_down(broken)
            if run.interrupted:
                self.spared = False
                self.__next__ = self.resume_sheltered
            yield from self.end_broken(resource)

    def set_up_ended(self, work: Work, attempts: Attempts | None, value: Any) -> None:
        """Take note of a resource that is set up, and go on with what that opens."""
        run, index = self.run, self.index
        run.suspended.pop(self, None)
        if AWAITED_BY and run.parent is not None:  # pragma: no cover (3.14)
            asyncio.future_discard_from_awaited_by(  # type: ignore[attr-defined]
                self.task, run.parent
            )
        run.hold_resource(index, self.resource, self)
        number = 1 if attempts is None else attempts.number
        history = None if attempts is None else attempts.take_history()
        if type(value) is Finish:
            run.ends_early(index, value, number, history)
        else:
            if value is not None:
                run.keep(index, value)
            if number > 1 or run.watch is not None:
                run.write("succeeded", run.number, index, number, value, history)
            if work[FEEDS] and not run.aborted:
                run.feed(work[FEEDS])
            run.finished_one()
        if run.ready is not NONE_READY and not run.pumping:
            run.pump()

    @coroutine
    def end_broken(self, resource: Resource) -> Generator[Any, None, None]:
        """Clean up a resource that has broken while it was held."""
        run = self.run
        error: Any = None
        try:
            yield from self.coroutine
        except BaseException as exception:
            if type(exception) is GeneratorExit and not self.is_stepped():
                raise
            error = exception
        try:
            self.has_broken(error)
        except BaseException as broken:
            resource.driver = None
            put_after(broken, error)
            self.broken(run, broken)
        finally:
            error = None

    @coroutine
    def end_resource(self, broken: BaseException) -> Generator[Any, None, None]:
        """Go on with the cleanup of a resource, although a call of the engine has failed."""
        try:
            yield from self.coroutine
        except BaseException as exception:
            if type(exception) is GeneratorExit and not self.is_stepped():
                raise
            put_after(broken, exception)
        finally:
            del broken

    def is_left(self) -> bool:
        """Return True if the coroutine of a resource can go on."""
        left = self.coroutine
        return left is not None and left.cr_frame is not None and not left.cr_running

    def begin(self) -> Any:
        """Take the first step. See `Run.goes_by_step`."""
        try:
            yielded = self.body.send(None)
        except StopIteration:
            raise
        except BaseException as error:
            yielded = self.step_again(error)
        run = self.run
        try:
            return self.begun_with(yielded)
        except BaseException as error:  # it was not even called
            run.break_down(error)
            return self.begun_with(yielded)

    def begun_with(self, yielded: Any) -> Any:
        """Go on after the first step, which has suspended."""
        run = self.run
        if self.resource is not None:
            return yielded
        self.__next__ = self.body.__next__ if self.attempts is None else self.resume
        try:
            self.suspend()
            if self.attempts is not None:
                self.attempts.suspended()
        except BaseException as error:
            # The function waits: whatever fails beside it, its asyncio.Task is told so.
            self.shared = False
            run.suspended[self] = None
            run.break_down(error)
        if run.interrupted and run.number == POST:
            self.spared = False
            self.__next__ = self.resume_sheltered
            try:
                return self.shelter(yielded)
            except BaseException as error:
                run.break_down(error)
                return self.shelter(yielded)
        return yielded

    def step_again(self, error: BaseException, exception: BaseException | None = None) -> Any:
        """Take a step, or throw something in, that was broken before the function heard of it."""
        run, body = self.run, self.body
        try:
            if run is None or body.gi_running or not (body.gi_suspended or self.is_new()):
                raise error
            run.break_down(error)
            try:
                return body.send(None) if exception is None else self.throw_in(exception)
            except StopIteration:
                raise
            except BaseException as another:
                self.broken(run, another)
                body.close()
            raise StopIteration
        finally:
            del error, exception

    def suspend(self) -> None:
        """Keep the `asyncio.Task` for this function, which has suspended."""
        run = self.run
        if self.resource is not None:
            return
        self.shared = False
        run.suspended[self] = None
        if AWAITED_BY and run.parent is not None:  # pragma: no cover (3.14)
            asyncio.future_add_to_awaited_by(  # type: ignore[attr-defined]
                self.task, run.parent
            )

    def resume(self) -> Any:
        """Go on with a function that has a timeout, or is watched."""
        attempts: Any = self.attempts
        run = self.run
        try:
            if attempts.watch is not None:
                attempts.resumed()
        except BaseException as error:
            run.break_down(error)
        try:
            yielded = self.body.send(None)
        except StopIteration:
            raise
        except BaseException as error:
            yielded = self.step_again(error)
        try:
            if self.resource is None:
                attempts.suspended()
        except BaseException as error:
            run.break_down(error)
        return yielded

    def resume_sheltered(self) -> Any:
        """Go on with a cleanup that the end of the loop must not cut short."""
        self.sheltered = None
        try:
            yielded = self.body.send(None) if self.attempts is None else self.resume()
        except StopIteration:
            raise
        except BaseException as error:
            yielded = self.step_again(error)
        try:
            return self.shelter(yielded)
        except BaseException as error:
            self.run.break_down(error)
            return self.shelter(yielded)

    def set_timeout(self) -> None:
        """Set the timer of a timeout, where that could not be done in time."""
        if self.attempts is not None:
            self.attempts.set_timeout()

    def release(self) -> None:
        """Let go of what leads back here: there is nothing more to call."""
        self.run = self.task = self.context = None
        self.__next__ = HAS_ENDED

    def discard(self) -> None:
        """Let go of everything, and be suspended no more."""
        run = self.run
        run.suspended.pop(self, None)
        if AWAITED_BY and run.parent is not None:  # pragma: no cover (3.14)
            asyncio.future_discard_from_awaited_by(  # type: ignore[attr-defined]
                self.task, run.parent
            )
        self.release()

    @property
    def state(self) -> str:
        """One of `STATES`. Nothing keeps it: a step of `body` takes no more than that."""
        attempts = self.attempts
        if self.run is None:
            return ENDED
        if self.body.gi_running:
            return STEPPING
        if self.is_new():
            return NEW
        if attempts is not None and attempts.pausing:
            return PAUSING
        if self.resource is not None:
            return HOLDING
        return SUSPENDED if self in self.run.suspended else BREAKING

    def is_new(self) -> bool:
        """Return True until the first step, and during each step."""
        return not self.body.gi_suspended and self.body.gi_frame is not None

    def broken(self, run: Run, error: BaseException) -> None:
        """End, for the engine itself has failed, and have the run take stock."""
        run.break_down(error)  # first: where there is no frame left for it, it is called again
        run.suspended.pop(self, None)
        self.release()

    def as_coroutine(self, returned: Any) -> Any:
        plan = self.run.plan
        return as_coroutine(returned, plan.names[self.index], PHASES[self.run.number])

    def call_plain(self, work: Work) -> Any:
        self.coroutine = None
        self.__qualname__ = work[USERS_NAME]
        value: Any = work[FUNCTION](self.run.ctx)
        if type(value) is CoroutineType:
            refuse_coroutine(value, self.run.plan.names[self.index], PHASES[self.run.number])
        return value

    def has_expired(self) -> bool:
        return self.attempts is not None and self.attempts.expired

    def attempts_made(self) -> tuple[int, History | None]:
        attempts = self.attempts
        return (1, None) if attempts is None else (attempts.number, attempts.history)

    # The rest of what asyncio.Task asks of a coroutine.

    def send(self, value: Any) -> Any:
        self.refuse_running()
        return self.__next__()

    def throw(self, exception: Any, value: Any = None, traceback: Any = None) -> Any:
        try:
            self.refuse_running()
            if self.run is not None and self.is_open() and not self.is_stepped():
                return self.disturb("throw", exception)
            return self.throw_in(exception)
        except StopIteration:
            raise
        except BaseException as error:
            if error is exception or not self.is_stepped():
                raise
            return self.step_again(error, exception)
        finally:
            # The traceback that it gets leads to this frame.
            del exception

    def throw_in(self, exception: Any) -> Any:
        attempts, run = self.attempts, self.run
        if self.__next__ == self.resume_sheltered:
            try:
                is_spared = self.spare(exception)
            except BaseException as error:
                run.break_down(error)
                is_spared = self.spare(exception)
            if is_spared:
                try:
                    return self.shelter(self.sheltered)
                except BaseException as error:
                    run.break_down(error)
                    return self.shelter(self.sheltered)
        try:
            if attempts is not None and attempts.watch is not None:
                attempts.resumed()
        except BaseException as error:
            run.break_down(error)
        begins = self.__next__ == self.begin  # the cleanup of a resource
        try:
            yielded = self.body.throw(exception)
        finally:
            del exception
        if begins:
            return self.begun_with(yielded)
        try:
            if attempts is not None and self.resource is None:
                attempts.suspended()
        except BaseException as error:
            run.break_down(error)
        if self.__next__ == self.resume_sheltered:
            try:
                return self.shelter(yielded)
            except BaseException as error:
                run.break_down(error)
                return self.shelter(yielded)
        return yielded

    def __await__(self) -> Driver:
        try:
            self.refuse_running()
        except ValueError:
            raise
        except BaseException as error:  # which whoever awaits is not to answer for
            if self.run is None:
                raise
            self.run.break_down(error)
        return self

    __iter__ = __await__

    # For tools that show a coroutine. (A __getattr__ would do for all of it, and would make every
    # other attribute slow.)

    @property
    def __name__(self) -> str:
        return self.__qualname__.rpartition(".")[2]

    cr_frame = of_coroutine("cr_frame")
    cr_code = of_coroutine("cr_code")
    cr_await = of_coroutine("cr_await")
    cr_origin = of_coroutine("cr_origin")
    cr_running = of_coroutine("cr_running")
    cr_suspended = of_coroutine("cr_suspended")
    cr_state = of_coroutine("cr_state")  # from 3.15 on


class LoneDriver(Driver):
    """A driver whose `asyncio.Task` the loop's task factory makes, and starts when it likes."""

    __slots__ = ()

    def __init__(self, run: Run, index: int) -> None:
        super().__init__(run, index, run.phase.work[index], None, True)
        self.shared = False

    def begin(self) -> Any:
        run = self.run
        try:
            self.task = current_task(run.loop)
            if self.task is not None:
                self.task.set_name(run.phase.work[self.index][TASK_NAME])
        except BaseException as error:
            run.break_down(error)
        try:
            return super().begin()
        except StopIteration:
            raise
        except BaseException as error:
            yielded = self.step_again(error)
        return self.begun_with(yielded)

    def throw_in(self, exception: Any) -> Any:
        try:
            if self.begun:
                return super().throw_in(exception)
            if self.run is not None:
                self.never_called(exception)
            raise exception
        finally:
            del exception

    def never_called(self, error: BaseException) -> None:
        """End before the first step."""
        run, index = self.run, self.index
        try:
            self.discard()
        except BaseException as broken:
            self.broken(run, broken)  # which does what is left of it
        try:
            run.never_called(index, error)
        except BaseException as broken:
            run.break_down(broken)
            run.put_back(index)

    def discard(self) -> None:
        """Let go of everything before the first step."""
        body = self.body
        super().discard()
        if not body.gi_running:
            self.body = None
            body.close()  # closed before its first step, it would still hold on to this driver


class Attempts(AttemptsBase):
    """The attempts at one function that has limits, or that somebody watches."""

    __slots__ = (
        "awaited",
        "began",
        "cancelling",
        "deadline",
        "driver",
        "error",
        "expired",
        "history",
        "limits",
        "number",
        "pause",
        "pausing",
        "requests",
        "serial",
        "started",
        "timed_out",
        "watch",
    )

    def __init__(self, driver: Driver, limits: TaskFunction[Any]) -> None:
        self.driver = driver
        self.limits = limits
        self.number = 0
        self.error: BaseException | None = None
        self.history: History | None = None
        self.timed_out = False
        self.expired = False
        self.cancelling = 0
        self.began = 0.0
        self.deadline: float | None = None
        self.serial = 0  # of the timer that is set
        self.pausing = False
        self.pause: asyncio.Future[None] | None = None
        self.watch: Watch | None = driver.run.watch

    if not TYPE_CHECKING:  # they are the driver's
        run = property(lambda self: self.driver.run)
        index = property(lambda self: self.driver.index)
        task = property(lambda self: self.driver.task)
        context = property(lambda self: self.driver.context)

    def take_history(self) -> History | None:
        """Return what came before the last attempt, and forget it: the frames that its exceptions
        lead to know these attempts."""
        history, self.history = self.history, None
        return history

    def first_failed(self, error: BaseException) -> None:
        """Go on from the failure of a first attempt that was not made here."""
        self.number = 1
        hide_engine(error)
        self.error = self.unasked(error)

    @coroutine
    def make(self, work: Work) -> Generator[Any, None, Any]:
        """Try until an attempt succeeds, and return its value, or none is left: see `error`."""
        call, _, _, _, kind, timeout, name, special = work
        driver = self.driver
        run = driver.run
        while self.error is None or (yield from self.pause_before_next()):
            self.error = None
            self.number += 1
            self.timed_out = False
            error = value = None
            other: Any = None
            driver.__qualname__ = name
            more = special or self.history is not None
            try:
                if self.watch is not None:
                    run.tell("attempt_started", *self.place())
                if more:
                    self.begin_special(work)
                    other = self.other_call(work)
                elif timeout is not None:
                    if run.clock is None:
                        run.clock = clock_of(run.loop)
                    self.began = now = time.monotonic() if run.clock is time else run.clock()
                    self.deadline = now + timeout if timeout else AT_ONCE
            except BaseException as exception:
                run.break_down(exception)
                self.deadline = UNSET
                if more and other is None:
                    other = self.other_call(work)
            try:
                if other is not None:
                    driver.coroutine = other
                    value = yield from other
                elif kind is True:
                    value = driver.call_plain(work)
                elif kind:
                    value = yield from driver.call_otherwise(work)
                else:
                    awaitable = call(run.ctx)
                    if type(awaitable) is not CoroutineType:
                        awaitable = driver.as_coroutine(awaitable)
                    driver.coroutine = awaitable
                    driver.__qualname__ = awaitable.__qualname__
                    value = yield from awaitable  # type: ignore[misc]
            except BaseException as exception:
                if type(exception) is GeneratorExit and not driver.is_stepped():
                    raise
                error = exception
            left = error
            self.deadline = None
            self.serial = 0
            try:
                if error is not None or more or self.expired or self.watch is not None:
                    error = self.settle(special, value, error)
            except BaseException as broken:
                # It is what the run ends with, and nothing that the function raised is lost.
                run.break_down(broken)
                chain(broken, left)
            left = None
            if error is None:
                return value
            self.error = error
            error = None
        return None

    @coroutine
    def pause_before_next(self) -> Generator[Any, None, bool]:
        """Wait as long as the next attempt has to. Return True if it or the fallback follows."""
        driver = self.driver
        run, task = driver.run, driver.task
        error: Any = self.error
        try:
            delay, falls_back = self.what_follows()
        except BaseException as broken:
            run.break_down(broken)
            chain(broken, error)
            return False
        if delay is None and not falls_back:
            return False
        driver.coroutine = None
        driver.__qualname__ = run.phase.work[driver.index][USERS_NAME]
        loop = run.loop
        self.pausing = True
        try:
            if delay is not None and self.watch is not None:
                run.tell("retry_scheduled", *self.place(), delay, error)
            error = None  # whose traceback leads here
            leftover = task._must_cancel
            if leftover:
                # The attempt that is over asked for it, or a group inside of it.
                try:
                    yield None
                except CancelledError:
                    if run.is_stopping():
                        return False
            if delay:
                self.pause = loop.create_future()
                self.set_timer(loop.time() + delay)
                yield from self.pause
            elif leftover or not falls_back:
                yield None
        except CancelledError:
            return False
        except BaseException as broken:
            if type(broken) is not GeneratorExit or driver.is_stepped():
                run.break_down(broken)
                return False
            raise
        finally:
            self.pause = None
            self.serial = 0
        self.pausing = False
        try:
            self.goes_on(falls_back)
        except BaseException as broken:
            run.break_down(broken)
            chain(broken, self.error)
        return True

    def resumed(self) -> None:
        """Tell the watch that the function goes on, unless a pause has ended."""
        if not self.pausing:
            self.driver.run.tell("attempt_resumed", *self.place())

    def suspended(self) -> None:
        """Set the timer of a timeout, if there is one: only what suspends can take long."""
        if self.watch is not None and not self.pausing:
            self.driver.run.tell("attempt_suspended", *self.place())
        if self.deadline is not None:
            self.set_timeout()

    def set_timeout(self) -> None:
        """Set the timer of a timeout that has none yet."""
        deadline = self.deadline
        if deadline is None:
            return
        if deadline == UNSET:
            deadline = self.late_deadline()
        if deadline is not None:
            self.awaited = deadline
            if deadline == AT_ONCE:
                self.time_out()
            else:
                self.set_timer(deadline)
        self.deadline = None

    def set_timer(self, deadline: float) -> None:
        run = self.driver.run
        if run.deadlines is None:
            run.deadlines = Deadlines(run.loop, run.context, run.break_down)
        self.serial = run.deadlines.add(deadline, self)


def drain(queue: deque[int]) -> Iterator[int]:
    while queue:
        yield queue.popleft()


def attributes_of(task: Any) -> dict[str, Any]:
    """Return the dictionary of what others set on an `asyncio.Task`, which has no `__dict__`."""
    if INLINE_ATTRIBUTES:  # pragma: no cover (3.14)
        hasattr(task, UNKNOWN)
    else:
        task._sdax = None
        del task._sdax
    attributes: dict[str, Any] = get_referents(task)[-1]
    return attributes


# Without reference counts nobody can tell who knows an asyncio.Task.
SHARING: Final = may_share("Python", traces if hasattr(sys, "getrefcount") else None)


def start_ready(run: Run) -> None:
    """Start a driver in a new `asyncio.Task` while there is something to call, and a place.

    Python 3.11 has no `eager_start`. There asyncio's hooks for tasks of other makers do the same. A
    loop that somebody has given another `call_soon` makes and starts each `asyncio.Task` itself.
    """
    loop = run.loop
    if not EAGER_START and not can_catch_first_steps(loop):
        start_by_factory(run)
        return
    by_step = run.goes_by_step()
    current = None if EAGER_START else _current_tasks.pop(loop, None)
    try:
        for index in run.ready:
            driver: Driver | None = None
            work = run.phase.work[index]
            if work[KIND] is RESOURCE and run.number == POST:
                try:
                    run.clean_up(index)
                except BaseException as error:  # it was not even called
                    run.break_down(error)
                    run.put_back(index)
                if len(run.suspended) >= run.places or run.deferred:
                    break
                continue
            try:
                context = run.context
                if run.contexts is not None:
                    context = run.contexts.of(run.number, index)
                context = context.copy()
                driver = Driver(run, index, work, context, by_step)
                name = work[TASK_NAME]
                if EAGER_START:
                    task: Task[Any] = Task(  # type: ignore[call-arg]
                        driver, loop=loop, name=name, context=context, eager_start=True
                    )
                else:
                    # An asyncio.Task gives its first step to the loop's `call_soon`, in whose place
                    # the driver catches it. In a function of its own this would need a frame more,
                    # and near the recursion limit leave an asyncio.Task behind that is half made.
                    loop.call_soon = driver.catch_first_step  # type: ignore[assignment, method-assign]
                    try:
                        task = Task(driver, loop=loop, name=name, context=context)
                    finally:
                        del loop.call_soon
                    driver.task = task
                    context.run(driver.first_step)
                    del driver.first_step
                if driver.run is not None:
                    if task.done():
                        # Not even a frame was left for what should have caught its error.
                        raise_error_of(task)
                    if not by_step:
                        driver.suspend()
            except BaseException as error:
                if driver is None or driver.is_new():
                    run.ready = one_after_another((index,), run.ready)
                start_failed(run, driver, error)
            if len(run.suspended) >= run.places or run.deferred:
                break
    finally:
        if current is not None:
            _current_tasks[loop] = current


def raise_error_of(task: Task[Any]) -> NoReturn:
    """Raise what an `asyncio.Task` ended with that should be suspended."""
    task.result()
    raise RuntimeError("an asyncio.Task ended early")


def start_failed(run: Run, driver: Driver | None, error: BaseException) -> None:
    """See to a function whose `asyncio.Task` could not be made, or not be looked after."""
    run.break_down(error)
    if driver is not None and driver.resource is None:
        if driver.body.gi_suspended and driver.task is not None and not driver.task.done():
            driver.shared = False
            run.suspended[driver] = None
        else:
            driver.release()
            step = getattr(driver, "first_step", None)
            if step is not None:
                del driver.first_step
                step()  # which ends its asyncio.Task: there is nothing left to do
