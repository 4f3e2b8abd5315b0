"""The engine in Python: what `_core.pyx` does, to be read by people.

A `Run` decides what may be called next; a `Driver` is what an `asyncio.Task` gets in place of
a coroutine, and calls it. So the usual cost of a child task is not paid, a pass through the
event loop to start it, a callback when it is done and another pass to wake the parent:

- A run's `pump` makes a driver and an `asyncio.Task` for each function that may be called, and
  the first step is taken there and then.
- A function that returns without suspending leaves its `asyncio.Task` to the next one. One that
  suspends keeps it until it ends.
- Whoever finishes a stage opens the next one, in the same callback of the loop.
"""

from __future__ import annotations

import asyncio
import sys
from asyncio import CancelledError, Task, current_task
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextvars import Context, copy_context
from gc import get_referents
from random import uniform
from types import CodeType, CoroutineType, FrameType, coroutine
from typing import Any, Final
from weakref import getweakrefcount

from .calls import as_coroutine, hide_engine, refuse_coroutine, refuse_running
from .deadlines import Deadlines, clock_of
from .plan import EXECUTE, PHASES, POST, PRE, Plan, Work
from .record import Record
from .tasks import TaskFunction
from .watch import Watch

if sys.version_info < (3, 12):
    from asyncio.tasks import (  # type: ignore[attr-defined]
        _current_tasks,
        _enter_task,
        _leave_task,
    )

SHARING: Final = hasattr(sys, "getrefcount")  # else nobody can tell who knows an asyncio.Task
if SHARING:
    from sys import getrefcount

__all__ = ["Run"]

NONE_READY: Iterator[int] = iter(())
ENDED: Final = NONE_READY.__next__  # the step of a driver that has nothing left to do

EAGER_FACTORY: Final = getattr(asyncio, "eager_task_factory", None)
AWAITED_BY: Final = sys.version_info >= (3, 14)  # asyncio can be told who waits for whom
# Attributes have no dictionary there until one is looked up by what is not exactly a str.
INLINE_ATTRIBUTES: Final = sys.version_info >= (3, 14)
UNKNOWN: Final = type("Unknown", (str,), {})()


class Run:
    """One run of a plan.

    `start` it; while it is not `over`, put a future into `waiter` and await that: it is done
    when the run is. `cancel` asks it to end early. Then `values` has what functions
    returned, by the plan's keys, and `record` everything else that is not a plain success;
    both are None while empty. A run with a `watch` tells it everything: its plan must have
    limits for every function (see `Plan.observed`).
    """

    __slots__ = (
        "aborted",
        "clock",
        "context",
        "ctx",
        "deadlines",
        "due",
        "last",
        "loop",
        "mapping",
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
        "suspended",
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
        self.context = copy_context()
        self.variables = len(self.context)
        self.waiter: asyncio.Future[None] | None = None
        self.values: dict[int, Any] | None = None
        self.watch = watch
        self.record: Record | None = None if watch is None else Record(plan, watch)
        self.over = False
        self.phase = plan.phases[PRE]
        self.opened = 0  # how many stages of the phase
        self.ready = NONE_READY  # opened, not yet called
        self.waiting: list[int] | None = None  # completions that each gate still waits for
        self.queue: deque[int] | None = None  # what gates opened, not yet called
        self.places = plan.places
        self.pending = 0  # opened, not yet finished
        self.suspended: dict[Driver, None] = {}
        self.pumping = False
        self.untouched: int | None = None  # references to what no function has taken hold of
        self.mapping: Any = None  # what holds the variables of a context until one is set
        self.aborted = False  # nothing of this phase is opened or called any more
        self.uncalled: list[int] = []
        self.due: set[int] | None = None  # the tasks to clean up; None is all
        self.deadlines: Deadlines | None = None
        self.clock: Callable[[], float] | None = None  # the loop's, once a timeout asks for it

    def start(self, last: int = POST) -> bool:
        """Run up to and with the phase `last` until all that is left is suspended, and tell
        whether the run is over. What begins in the middle goes on from there."""
        self.last = last
        self.over = False
        self.parent = current_task(self.loop)
        self.advance()
        self.pump()
        return self.over

    def cancel(self) -> None:
        """End early: cancel what is suspended and go on to the cleanup, which is never cut."""
        self.abort()

    def take_record(self) -> Record | None:
        """Return the record and forget it: what was raised may lead to the run."""
        record, self.record = self.record, None
        return record

    def skip_execute(self) -> None:
        """After `pre_execute`, leave out `execute`: go on with the cleanup."""
        if self.phase.number == PRE and not self.aborted:
            self.phase = self.plan.phases[EXECUTE]
            self.opened = len(self.phase.stages)
            self.waiting = []
            self.note().skipped_phase(EXECUTE)

    def pump(self) -> None:
        """Call all that may be called now, each in an `asyncio.Task`."""
        self.pumping = True
        factory = self.loop.get_task_factory()
        by_loop = factory is None or factory is EAGER_FACTORY
        start = start_ready if by_loop else start_ready_by_factory
        seen = None
        while self.ready is not seen and not self.over and len(self.suspended) < self.places:
            seen = self.ready
            start(self)
        if len(self.suspended) < self.places:
            self.ready = NONE_READY
        self.pumping = False

    def advance(self) -> None:
        """Open the next stage, of the next phase if need be, or end the run.

        Called when nothing that was opened is unfinished.
        """
        while not self.pending:
            phase = self.phase
            if self.opened < len(phase.stages) and not self.aborted:
                stage = phase.stages[self.opened]
                self.opened += 1
                if self.due is not None:
                    stage = tuple(index for index in stage if index in self.due)
                self.pending = len(stage)
                self.ready = iter(stage)
            elif phase.gates and self.waiting is None and not self.aborted:
                self.waiting = list(phase.waits)
                self.queue = deque()
                self.open_gates([0])
            elif phase.number >= self.last:
                self.finish()
                return
            else:
                number = phase.number
                if self.aborted or self.watch is not None:
                    number = self.leave_phase()
                self.phase = self.plan.phases[number + 1]
                self.opened = 0
                self.waiting = self.queue = None
                self.aborted = False

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
                    opening += self.count_down(phase.work[index][3])
        opened.sort()
        queue.extend(opened)
        self.pending += len(opened)
        self.ready = drain(queue)

    def leave_phase(self) -> int:
        """Tell of the end of the phase, and return the last one before the next."""
        number = self.phase.number
        if self.aborted:
            left = list(self.phase.unopened(self.opened, self.waiting))
            self.note().skipped(number, left)
        if self.watch is not None:
            self.watch.phase_finished()
        if not self.aborted:
            return number
        if number == PRE:
            self.due = self.plan.started(self.opened, self.waiting, self.uncalled)
            self.note().never_due(self.due)
        return EXECUTE

    def finish(self) -> None:
        self.over = True
        self.parent = None  # its result may be an error, and by that lead to the run
        if self.watch is not None:
            self.watch.phase_finished()
        if self.deadlines is not None:
            self.deadlines.close()
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    def failed(self, index: int, error: BaseException, attempts: Attempts | None) -> None:
        """Take note of what left a function for good, and stop the phase."""
        hide_engine(error)
        number = self.phase.number
        made = 1 if attempts is None else attempts.number
        if self.has_cancelled(error):
            self.note().cancelled(number, index, made)
        else:
            timed_out = attempts is not None and attempts.timed_out
            self.note().failed(number, index, made, error, self.loop, timed_out=timed_out)
        self.abort()
        if number == POST and self.waiting is not None:
            self.feed(self.phase.work[index][3])
        self.finished_one()

    def never_called(self, index: int, error: BaseException) -> None:
        """Take note of a function whose `asyncio.Task` did not come to its first step."""
        self.uncalled.append(index)
        if self.aborted and isinstance(error, CancelledError):
            self.note().skipped(self.phase.number, [index])
            self.finished_one()
        else:
            self.failed(index, error, None)
        if not self.pumping:
            self.pump()

    def keep(self, index: int, value: Any) -> None:
        if self.values is None:
            self.values = {}
        self.values[self.plan.key(self.phase.number, index)] = value

    def finished_one(self) -> None:
        self.pending -= 1
        if not self.pending:
            self.advance()

    def has_cancelled(self, error: BaseException | None) -> bool:
        """Tell whether what left a function comes from the run, or from its caller.

        Whoever cancels all tasks of a loop may get to a function before its run: the caller has
        been cancelled then, and will hear of it soon.
        """
        return isinstance(error, CancelledError) and (
            self.aborted
            or (self.phase.number != POST and self.waiter is not None and self.waiter.cancelled())
        )

    def abort(self) -> None:
        """Call nothing more in this phase and cancel what is suspended; not so in cleanup."""
        if self.aborted or self.phase.number == POST:
            return
        self.aborted = True
        uncalled = list(self.ready)
        self.uncalled += uncalled
        self.pending -= len(uncalled)
        self.note().stopped(self.phase.number, uncalled)
        for task in [driver.task for driver in self.suspended]:
            task.cancel()

    def note(self) -> Record:
        if self.record is None:
            self.record = Record(self.plan, self.watch)
        return self.record


class Driver:
    """What an `asyncio.Task` runs: one function after another, the last of which may suspend.

    It stands in for the coroutine of the function that it is at: `repr(task)`, stacks and
    debuggers show the user's code. Its `__next__` is a slot, so that each driver has the one
    that its next step needs; a step of a suspended function is then a step of `body` and
    nothing more.
    """

    __slots__ = (
        "__next__",
        "__qualname__",
        "attempts",
        "body",
        "context",
        "coroutine",
        "index",
        "run",
        "shared",
        "task",
    )

    __next__: Callable[[], Any]
    __qualname__: str

    def __init__(self, run: Run, index: int, work: Work, context: Context | None) -> None:
        self.run: Any = run  # None once it has ended
        self.index = index
        self.context: Any = context  # that of the asyncio.Task
        self.shared = SHARING
        self.attempts: Attempts | None = None
        self.coroutine: Any = None
        self.task: Any = None
        self.body = self.call_functions(work)
        self.__next__ = self.body.__next__

    @coroutine
    def call_functions(self, work: Work) -> Generator[Any, None, None]:
        """Call one function after another, until one has suspended and ended.

        A function leaves the `asyncio.Task` to the next only where nobody could tell that the
        two shared it.
        """
        run: Run = self.run
        index = self.index
        attempts: Attempts | None = None
        attributes: dict[str, Any] | None = None  # of the asyncio.Task
        called = False
        if self.task is None:
            self.task = current_task(run.loop)
        while True:
            if called or (run.untouched is None and self.shared):
                task, context = self.task, self.context
                # Who knows the asyncio.Task, its driver or its context. (Counted in one place,
                # for what the interpreter adds to a count differs from place to place.)
                traces = (
                    getrefcount(task)
                    + getrefcount(self)
                    + getrefcount(context)
                    + getweakrefcount(task)
                )
                if not called:
                    run.untouched = traces
                    if run.variables:
                        run.mapping = get_referents(context)[-1]
                else:
                    if attributes is None:
                        attributes = attributes_of(task)
                    # Each request to cancel it is in `_must_cancel`: nothing has suspended yet.
                    if (
                        traces != run.untouched
                        or attributes
                        or task._callbacks
                        or task._must_cancel
                        or (AWAITED_BY and task._asyncio_awaited_by)
                        or len(context) != run.variables
                        or (run.variables and get_referents(context)[-1] is not run.mapping)
                        or (following := next(run.ready, None)) is None
                    ):
                        self.release()
                        return
                    self.index = index = following
                    work = run.phase.work[index]
                    task.set_name(work[2])
            called = True
            call, limits, _, feeds, is_plain, timeout = work
            error = value = None
            if limits is not None and (timeout is not None or run.watch is not None):
                attempts = self.attempts = Attempts(self, limits)
            while True:
                try:
                    if attempts is not None:
                        value = yield from attempts.make(work)
                        error, attempts.error = attempts.error, None
                    elif is_plain:
                        value = self.call_plain(call)
                    else:
                        awaitable: Any = call(run.ctx)
                        if type(awaitable) is not CoroutineType:
                            awaitable = self.as_coroutine(awaitable)
                        self.coroutine = awaitable
                        self.__qualname__ = awaitable.__qualname__
                        value = yield from awaitable
                except BaseException as exception:
                    if isinstance(exception, GeneratorExit) and not self.is_stepped():
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
            shared = self.shared
            if not shared:
                run.suspended.pop(self, None)
                if AWAITED_BY and run.parent is not None:  # pragma: no cover (3.14)
                    asyncio.future_discard_from_awaited_by(  # type: ignore[attr-defined]
                        self.task, run.parent
                    )
                self.release()
            if error is not None:
                run.failed(index, error, attempts)
                error = None
            else:
                if value is not None:
                    run.keep(index, value)
                if attempts is not None and (attempts.number > 1 or run.watch is not None):
                    run.note().succeeded(run.phase.number, index, attempts.number, value)
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
            attempts = None

    def begin(self) -> Any:
        """Take the first step, where it matters to an attempt whether it has suspended."""
        yielded = self.body.send(None)
        self.keep_task()
        if self.attempts is None:
            self.__next__ = self.body.__next__
        else:
            self.attempts.suspended()
            self.__next__ = self.resume
        return yielded

    def keep_task(self) -> None:
        """Keep the `asyncio.Task` for this function, which has suspended."""
        run = self.run
        self.shared = False
        run.suspended[self] = None
        if AWAITED_BY and run.parent is not None:  # pragma: no cover (3.14)
            asyncio.future_add_to_awaited_by(  # type: ignore[attr-defined]
                self.task, run.parent
            )

    def resume(self) -> Any:
        attempts: Any = self.attempts
        if attempts.watch is not None:
            attempts.resumed(attempts.watch)
        yielded = self.body.send(None)
        attempts.suspended()
        return yielded

    def release(self) -> None:
        """Let go of what leads back here: there is nothing more to call."""
        self.run = self.task = self.context = None
        self.__next__ = ENDED

    def as_coroutine(self, returned: Any) -> Any:
        plan = self.run.plan
        return as_coroutine(returned, plan.names[self.index], PHASES[self.run.phase.number])

    def call_plain(self, call: Callable[[Any], Any]) -> Any:
        value = call(self.run.ctx)
        if type(value) is CoroutineType:
            refuse_coroutine(value, self.run.plan.names[self.index], PHASES[self.run.phase.number])
        return value

    def is_stepped(self) -> bool:
        # Nobody but the loop makes our asyncio.Task current, to step it: a GeneratorExit at any
        # other time is no function's own, but the interpreter dropping what will never run on.
        return current_task(self.run.loop) is self.task

    def disturb(self, method: Callable[..., Any], *arguments: Any) -> Any:
        """Let other code close the coroutine or throw into it, as it could with that of any
        `asyncio.Task`. The function may have given up what its own one waits for, which would
        never go on then: it is cancelled."""
        try:
            refuse_running(self.coroutine)
            return method(*arguments)
        finally:
            del method, arguments
            if not self.is_stepped():
                self.task.cancel()

    # The rest of what asyncio.Task asks of a coroutine.

    def send(self, value: Any) -> Any:
        if self.run is not None and self.coroutine is not None:
            refuse_running(self.coroutine)
        return self.__next__()

    def throw(self, exception: Any, value: Any = None, traceback: Any = None) -> Any:
        coroutine = None if self.run is None else self.coroutine
        try:
            if coroutine is not None and (coroutine.cr_running or not self.is_stepped()):
                return self.disturb(coroutine.throw, exception)
            return self.throw_in(exception)
        finally:
            # The traceback that it gets leads to this frame.
            del exception

    def throw_in(self, exception: Any) -> Any:
        attempts = self.attempts
        if attempts is not None and attempts.watch is not None:
            attempts.resumed(attempts.watch)
        try:
            yielded = self.body.throw(exception)
        finally:
            del exception
        if attempts is not None:
            attempts.suspended()
        return yielded

    def close(self) -> None:
        if self.run is not None and self.coroutine is not None:
            self.disturb(self.coroutine.close)

    def __await__(self) -> Driver:
        return self

    def __iter__(self) -> Driver:
        return self

    # What tools ask of a coroutine that they show. (A __getattr__ would do for all of it, and
    # would make every other attribute slow.)

    @property
    def __name__(self) -> str:
        return self.__qualname__.rpartition(".")[2]

    @property
    def cr_frame(self) -> FrameType | None:
        return getattr(self.coroutine, "cr_frame", None)

    @property
    def cr_code(self) -> CodeType | None:
        return getattr(self.coroutine, "cr_code", None)

    @property
    def cr_await(self) -> Any:
        return getattr(self.coroutine, "cr_await", None)

    @property
    def cr_running(self) -> bool:
        return getattr(self.coroutine, "cr_running", False)

    @property
    def cr_suspended(self) -> bool:
        return getattr(self.coroutine, "cr_suspended", False)

    @property
    def cr_state(self) -> str | None:  # pragma: no cover (3.15, in place of the two above)
        return getattr(self.coroutine, "cr_state", None)


class EarlyDriver(Driver):
    """A driver for Python 3.11, where no `asyncio.Task` starts eagerly: it keeps the first step
    from the loop, to have it taken at once."""

    __slots__ = ("first_step",)

    first_step: Callable[[], None]

    def catch_first_step(
        self, callback: Callable[..., Any], *arguments: Any, context: Context | None = None
    ) -> Any:
        """Be the loop's `call_soon` while the `asyncio.Task` is made.

        Finalizers and signal handlers that happen to run meanwhile get the real one.
        """
        if context is self.context:
            self.first_step = callback
            return None
        loop = self.run.loop
        return type(loop).call_soon(loop, callback, *arguments, context=context)


class LoneDriver(Driver):
    """A driver whose `asyncio.Task` the loop's task factory makes, and starts when it likes."""

    __slots__ = ("begun",)

    def __init__(self, run: Run, index: int) -> None:
        super().__init__(run, index, run.phase.work[index], None)
        self.shared = False
        self.begun = False
        self.__next__ = self.begin

    def begin(self) -> Any:
        self.begun = True
        self.task = current_task(self.run.loop)
        if self.task is not None:
            self.task.set_name(self.run.phase.work[self.index][2])
        return super().begin()

    def throw_in(self, exception: Any) -> Any:
        try:
            if self.begun:
                return super().throw_in(exception)
            run, index = self.run, self.index
            self.discard()
            run.never_called(index, exception)
            raise exception
        finally:
            del exception

    def discard(self) -> None:
        """Let go of everything before the first step."""
        self.run.suspended.pop(self, None)
        self.release()
        self.body.close()
        del self.body  # closed before its first step, it would still hold on to this driver


class Attempts:
    """The attempts at one function that has a timeout or retries, or that somebody watches."""

    __slots__ = (
        "cancelling",
        "deadline",
        "driver",
        "error",
        "expired",
        "limits",
        "number",
        "pause",
        "pausing",
        "serial",
        "timed_out",
        "watch",
    )

    def __init__(self, driver: Driver, limits: TaskFunction[Any]) -> None:
        self.driver = driver
        self.limits = limits
        self.number = 0
        self.error: BaseException | None = None  # what left the last attempt
        self.timed_out = False
        self.expired = False
        self.cancelling = 0  # requests that earlier attempts have left open
        self.deadline: float | None = None  # wanted, but no timer is set yet
        self.serial = 0  # of the timer that is set
        self.pausing = False
        self.pause: asyncio.Future[None] | None = None
        self.watch: Watch | None = driver.run.watch

    def first_failed(self, error: BaseException) -> None:
        """Go on from the failure of a first attempt that was not made here."""
        self.number = 1
        self.error = error
        hide_engine(error)

    @coroutine
    def make(self, work: Work) -> Generator[Any, None, Any]:
        """Try until an attempt succeeds, and return its value, or none is left: see `error`."""
        call, _, _, _, is_plain, timeout = work
        driver = self.driver
        run = driver.run
        while self.error is None or (yield from self.pause_before_next()):
            self.error = None
            self.number += 1
            self.timed_out = False
            error = value = None
            if self.watch is not None:
                self.watch.attempt_started(*self.place())
            if timeout is not None:
                if run.clock is None:
                    run.clock = clock_of(run.loop)
                self.deadline = run.clock() + timeout
            try:
                if is_plain:
                    value = driver.call_plain(call)
                else:
                    awaitable = call(run.ctx)
                    if type(awaitable) is not CoroutineType:
                        awaitable = driver.as_coroutine(awaitable)
                    driver.coroutine = awaitable
                    driver.__qualname__ = awaitable.__qualname__
                    value = yield from awaitable  # type: ignore[misc]
            except BaseException as exception:
                if isinstance(exception, GeneratorExit) and not driver.is_stepped():
                    raise
                error = exception
            if timeout is not None:
                self.deadline = None
                self.serial = 0
                if self.expired:
                    error = self.timeout_of(error)
            if error is not None:
                hide_engine(error)
            if self.watch is not None:
                self.watch.attempt_finished(
                    *self.place(),
                    value,
                    error,
                    timed_out=self.timed_out,
                    cancelled=run.has_cancelled(error),
                )
            if error is None:
                return value
            self.error = error
            error = None
        return None

    @coroutine
    def pause_before_next(self) -> Generator[Any, None, bool]:
        """Wait as long as the next attempt has to, and tell whether there is to be one."""
        if not self.may_retry():
            return False
        loop = self.driver.run.loop
        delay = self.limits.backoff(self.number - 1) * uniform(0.5, 1.0)
        if self.watch is not None:
            assert self.error is not None
            self.watch.retry_scheduled(*self.place(), delay, self.error)
        self.pausing = True
        try:
            if delay > 0:
                self.pause = loop.create_future()
                self.set_timer(loop.time() + delay)
                yield from self.pause
            else:
                yield None
        except CancelledError:
            return False
        finally:
            self.pause = None
            self.pausing = False
            self.serial = 0
        self.cancelling = self.driver.task.cancelling()
        return True

    def timeout_of(self, error: BaseException | None) -> BaseException | None:
        """Tell what an expired attempt leaves, as `asyncio.timeout()` does."""
        self.expired = False
        requests = self.driver.task.uncancel()
        if requests > self.cancelling or not isinstance(error, CancelledError):
            return error
        self.timed_out = True
        timeout = TimeoutError(f"timed out after {self.limits.timeout} s")
        timeout.__cause__ = error
        hide_engine(error)
        return timeout

    def may_retry(self) -> bool:
        run, error = self.driver.run, self.error
        if run.aborted or self.number > self.limits.retries or not isinstance(error, Exception):
            return False
        try:
            retry = self.limits.is_retryable(error)
        except BaseException as exception:  # out of a predicate of the user's
            self.error = exception
            exception.__context__ = error
            self.timed_out = retry = False
        return retry

    def place(self) -> tuple[int, int, int]:
        """Return the phase, the task and the attempt, as a watch is told of them."""
        return self.driver.run.phase.number, self.driver.index, self.number

    def resumed(self, watch: Watch) -> None:
        """Tell the watch that the function goes on, unless it is a pause that is over."""
        if not self.pausing:
            watch.attempt_resumed(*self.place())

    def suspended(self) -> None:
        """Set the timer of a timeout, if there is one: only what suspends can take long."""
        if self.watch is not None and not self.pausing:
            self.watch.attempt_suspended(*self.place())
        if self.deadline is None:
            return
        if self.limits.timeout == 0:
            self.time_out(None)
        else:
            self.set_timer(self.deadline)
        self.deadline = None

    def set_timer(self, deadline: float) -> None:
        run = self.driver.run
        if run.deadlines is None:
            run.deadlines = Deadlines(run.loop, run.context)
        self.serial = run.deadlines.add(deadline, self)

    def expire(self) -> None:
        """Hear of the timer that the deadline has come."""
        if self.pause is None:
            context = self.driver.context
            self.time_out(self.driver.run.context.copy() if context is None else context)
        elif not self.pause.done():
            self.pause.set_result(None)

    def time_out(self, context: Context | None) -> None:
        """Cancel the attempt; outside of its function, tell of it in this context."""
        self.expired = True
        if self.watch is not None:
            assert self.limits.timeout is not None
            tell, arguments = self.watch.timeout_expired, (*self.place(), self.limits.timeout)
            if context is None:
                tell(*arguments)
            else:
                context.run(tell, *arguments)
        self.driver.task.cancel()


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


def start_ready_eagerly(run: Run) -> None:
    """Start a driver in a new `asyncio.Task` while there is something to call, and a place."""
    by_step = run.watch is not None or run.plan.has_timeouts
    for index in run.ready:
        work = run.phase.work[index]
        context = run.context.copy()
        driver = Driver(run, index, work, context)
        if by_step:
            driver.__next__ = driver.begin
        Task(  # type: ignore[call-arg]
            driver, loop=run.loop, name=work[2], context=context, eager_start=True
        )
        if not by_step and driver.run is not None:
            driver.keep_task()
        if len(run.suspended) >= run.places:
            break


def start_ready_early(run: Run) -> None:
    """Do the same on Python 3.11, with the hooks that asyncio has for tasks of other makers.

    There an `asyncio.Task` gives its first step to the loop's `call_soon`, in whose place the
    driver catches it. A loop that somebody has given another `call_soon` makes and starts each
    `asyncio.Task` itself.
    """
    loop = run.loop
    if not can_catch_first_steps(loop):
        start_ready_by_factory(run)
        return
    by_step = run.watch is not None or run.plan.has_timeouts
    current = _current_tasks.get(loop)
    if current is not None:
        _leave_task(loop, current)
    for index in run.ready:
        work = run.phase.work[index]
        context = run.context.copy()
        driver = EarlyDriver(run, index, work, context)
        if by_step:
            driver.__next__ = driver.begin
        loop.call_soon = driver.catch_first_step  # type: ignore[assignment, method-assign]
        try:
            driver.task = Task(driver, loop=loop, name=work[2], context=context)
        finally:
            del loop.call_soon
        first_step = driver.first_step
        del driver.first_step
        context.run(first_step)
        if not by_step and driver.run is not None:
            driver.keep_task()
        if len(run.suspended) >= run.places:
            break
    if current is not None:
        _enter_task(loop, current)


def can_catch_first_steps(loop: Any) -> bool:
    """Tell whether the loop's `call_soon` is its class's, so that an attribute can hide it."""
    bind = getattr(getattr(type(loop), "call_soon", None), "__get__", None)
    return (
        isinstance(loop, asyncio.AbstractEventLoop)
        and bind is not None
        and bool(loop.call_soon == bind(loop))
    )


def start_ready_by_factory(run: Run) -> None:
    """Let the loop's task factory make an `asyncio.Task` for each function."""
    for index in run.ready:
        driver = LoneDriver(run, index)
        task: Any = None
        error = None
        try:
            task = run.context.copy().run(run.loop.create_task, driver)
        except BaseException as exception:
            error = exception
        if error is not None:
            driver.discard()
            run.never_called(index, error)
        elif not driver.begun:
            driver.task = task
            run.suspended[driver] = None
        if len(run.suspended) >= run.places:
            break


start_ready: Final = start_ready_eagerly if sys.version_info >= (3, 12) else start_ready_early
