"""The handling of everything that goes wrong in a run. It is not hot, so it is written once."""

from __future__ import annotations

import math
from asyncio import AbstractEventLoop, CancelledError, Future
from collections.abc import Sequence
from contextvars import Context
from types import CoroutineType
from typing import TYPE_CHECKING, Any

from ..common.order import EXECUTE, PHASES, POST, PRE
from ..common.text import shown
from ..errors import SdaxExecutionError
from ..finish import Finish
from ..report import RunReport
from ..states import Outcome
from .attempts import History, settle_with_budget
from .calls import cancel
from .deadlines import Deadlines
from .exceptions import (
    chain,
    hide_engine,
    is_cancellation,
    is_exception,
    put_after,
    set_context,
    traceback_of,
)
from .losses import Losses, Setbacks
from .plan import Plan
from .record import Record
from .resources import Resource, hold
from .shelter import is_ending
from .variables import Contexts

if TYPE_CHECKING:
    from .watch import Watch


class RunBase:
    """The part of a run that both engines share: failures, cancellation, and what broke them.

    An exception that is raised where it should not be goes to `break_down`. It only keeps the error
    and has `go_on` called by the event loop, which takes stock of what is left. So a run ends and
    cleans up, whatever was interrupted in the middle.
    """

    if not TYPE_CHECKING:
        __slots__ = ()  # an engine has them
    else:
        plan: Plan
        loop: AbstractEventLoop
        ctx: Any
        context: Context
        contexts: Contexts | None  # once a resource has set a context variable
        resources: dict[int, Resource] | None  # of which a set-up was called
        values: dict[int, Any] | None
        cleanup_ends: float | None  # by the loop's clock, once it has begun
        watch: Watch | None
        record: Record | None
        fatal: BaseException | None  # not an `Exception`, or what broke the engine
        waiter: Future[None] | None
        over: bool
        number: int  # of the phase
        opened: int  # how many stages of the phase
        waiting: list[int] | None  # completions that each gate still waits for
        pending: int  # opened, not yet finished
        pumping: bool
        closed: bool  # nothing of this phase is opened any more
        aborted: bool  # nothing of it is called any more either
        to_cancel: list[Any] | None  # drivers of the phase that was stopped, the next one last
        losses: Losses | None
        uncalled: Sequence[int]
        due: set[int] | None  # the tasks whose functions are due in this phase, or None for all
        deadlines: Deadlines | None
        interrupted: bool  # by its caller, who may not wait any more
        shaken: bool  # its caller was cancelled once more, in this pass of the loop
        deferred: bool  # nothing is opened or called until the loop calls `go_on`
        setbacks: Setbacks | None

        def pump(self) -> Any: ...
        def advance(self) -> Any: ...
        def finish(self) -> Any: ...
        def feed(self, gates: tuple[int, ...]) -> Any: ...
        def keep(self, index: int, value: Any) -> Any: ...
        def finished_one(self) -> Any: ...
        def enter_phase(self, number: int) -> Any: ...
        def drivers(self) -> list[Any]:  # those of suspended functions, in their order
            raise NotImplementedError

        def stop_calling(self) -> Any: ...
        def hold(self, index: int) -> Any: ...
        def take_left(self) -> list[int]:
            raise NotImplementedError

        def count_in(self, driver: Any) -> Any: ...
        def set_contexts(self, contexts: Contexts) -> Any: ...
        def give_back(self, indices: list[int]) -> Any: ...
        def called_by_gates(self) -> set[int]:
            raise NotImplementedError

        def requeue(self, called: set[int], opened: set[int]) -> Any: ...

    # For callers that wait for a run.

    def cancel(self) -> None:
        """End early: cancel what is suspended and go on to the cleanup, which is never cut."""
        self.interrupted = True
        try:
            self.abort()
        except BaseException as error:
            self.break_down(error)

    def take_record(self) -> tuple[Record | None, BaseException | None]:
        """Return the record and `fatal`, and forget both: what is raised may lead to the run."""
        record, self.record = self.record, None
        fatal, self.fatal = self.fatal, None
        return record, fatal

    def cut_short(self) -> None:
        """Have resources hear that the run was not completed: somebody has left it."""
        self.interrupted = True

    def skip_execute(self) -> None:
        """After `pre_execute`, leave out `execute`: go on with the cleanup."""
        if self.number == PRE and not self.aborted:
            self.leave_phase()
            self.enter_phase(EXECUTE)
            self.aborted = self.closed = True

    def runs_in(self, task: Any) -> bool:
        """Return True if this `asyncio.Task` runs a function of this run."""
        coroutine = getattr(task, "get_coro", lambda: None)()
        return getattr(coroutine, "run", None) is self or any(
            driver.task is task for driver in [*self.drivers(), *self.holders()]
        )

    # How functions end that do not succeed.

    def failed(
        self,
        index: int,
        error: BaseException,
        attempts: int = 1,
        timed_out: bool = False,
        pausing: bool = False,
        history: History | None = None,
    ) -> None:
        """Take note of what left a function for good, and stop the phase, unless the run goes on
        without the function.

        `pausing` is for a function that waited for its next attempt.
        """
        number = self.number
        if self.aborted and type(error) is CancelledError and history is None:
            # The usual end of what runs beside a failure, which may be thousands of functions.
            self.write("cancelled", number, index, attempts)
            self.finished_one()
            return
        required, stops = True, True
        if pausing and history is not None and history.is_due:
            self.cancel_retry(index, attempts)
        if self.has_cancelled(error):
            self.write("cancelled", number, index, attempts, None, history)
        elif pausing and self.is_stopping():
            hide_engine(error)
            self.write("cancelled", number, index, attempts, error, history)
            if self.fatal is not None:
                put_after(self.fatal, error)  # whoever gets that has no report to find it in
        else:
            hide_engine(error)
            if issubclass(type(error), RecursionError):
                if number == POST and traceback_of(error) is None and self.call_later(index):
                    return  # it was not even called: there is no frame of its own
                self.defer()  # no cleanup would have room here
            if number != POST and (is_exception(error) or is_cancellation(error)):
                required = index not in self.plan.optional
                stops = required and not self.plan.keeps_going
            self.note_failure(
                index,
                error,
                attempts,
                timed_out=timed_out,
                required=required,
                stops=stops,
                history=history,
            )
        if stops:
            self.abort()
        else:
            self.go_on_without(index, required)
        if number == POST and self.waiting is not None:
            work = self.plan.phases[POST].work[index]
            self.feed(work[3])
        self.finished_one()

    def note_failure(
        self, index: int, error: BaseException, attempts: int = 1, **outcome: Any
    ) -> None:
        """Write a failure down, and keep it if the run ends with it."""
        number = self.number
        if not is_exception(error) and not is_cancellation(error):
            self.take_fatal(error, number, index)
        if not self.write("failed", number, index, attempts, error, **outcome):
            assert self.fatal is not None
            chain(self.fatal, error)

    def go_on_without(self, index: int, required: bool) -> None:
        """Go on after a failure: what depends on the task is called only if it is not required."""
        losses = self.losses
        if losses is None:
            losses = self.losses = Losses()
        if self.number == PRE:
            losses.unprepared.add(index)
        if self.aborted:
            return
        if required:
            losses.holding[self.number].append(index)
            if self.waiting is None:
                self.closed = True  # after this stage
        elif self.waiting is not None:
            self.feed(self.plan.phases[self.number].work[index][3])

    def ends_early(
        self, index: int, finish: Finish[Any], attempts: int = 1, history: History | None = None
    ) -> None:
        """Take note of a function that returned `Finish`, and end the run if it is the first."""
        number, value = self.number, finish.value
        if number == POST:
            name = shown(self.plan.names[index])
            error = TypeError(
                f"{PHASES[number]} of task {name} returned {shown(finish)}, but only a pre_execute "
                f"or an execute can finish a run; return the value itself"
            )
            self.failed(index, error, attempts, history=history)
        else:
            if value is not None:
                self.keep(index, value)
            if attempts > 1 or self.watch is not None:
                self.write("succeeded", number, index, attempts, value, history)
            if not self.aborted:
                self.write("finished", number, index)
                self.abort()
            self.finished_one()
        if not self.pumping:
            self.pump()

    def cancel_retry(self, index: int, attempts: int) -> None:
        """Take note of an attempt that was to follow these, and was cancelled before it began."""
        work = self.plan.phases[self.number].work[index]
        try:
            settle_with_budget(work[1], attempts + 1, True)
        except BaseException as error:
            self.break_down(error)

    def never_called(self, index: int, error: BaseException) -> None:
        """Take note of a function whose `asyncio.Task` did not come to its first step."""
        try:
            if self.number == POST and self.call_later(index):
                # A failure, and the cleanup is due all the same.
                hide_engine(error)
                self.note_failure(index, error)
                return
            self.uncalled = [*self.uncalled, index]
            if self.aborted and is_cancellation(error):
                self.write("skipped", self.number, [index])
                self.finished_one()
            else:
                self.failed(index, error)
            if not self.pumping:
                self.pump()
        except BaseException as broken:
            self.break_down(broken)
            put_after(broken, error)

    def is_stopping(self) -> bool:
        """Return True if the run, or its caller, has cancelled what is suspended.

        Code that cancels all tasks of a loop may get to a function before its run. Then the caller
        has been cancelled too, and will hear of it soon.
        """
        return self.aborted or (
            self.number != POST and self.waiter is not None and self.waiter.cancelled()
        )

    def is_loop_ending(self) -> bool:
        """Return True if the loop ends: it cancels every task, the caller's among them."""
        waiter = self.waiter
        return (self.shaken or waiter is None or waiter.cancelled()) and self.is_alone()

    def is_alone(self) -> bool:
        """Return True if every task of the loop is being cancelled, but for those of this run."""
        ours = {driver.task for driver in [*self.drivers(), *self.holders()]}
        return is_ending(self.loop, ours)

    def has_cancelled(self, error: BaseException | None) -> bool:
        """Return True if what left a function comes from the run, or from its caller."""
        return is_cancellation(error) and self.is_stopping()

    def abort(self) -> None:
        """Call nothing more in this phase and cancel what is suspended, except in cleanup."""
        if self.aborted or self.number == POST:
            return
        suspended = self.drivers()
        suspended.reverse()
        uncalled = self.take_left()
        self.uncalled = [*self.uncalled, *uncalled]
        self.aborted = self.closed = True
        self.to_cancel = suspended
        self.pending -= len(uncalled)
        self.write("stopped", self.number, uncalled)
        self.cancel_suspended()

    def cancel_suspended(self) -> None:
        """Cancel what was suspended when the phase was stopped, as far as that is not yet done."""
        left = self.to_cancel
        while left:
            driver = left[-1]
            if driver.task is not None:
                cancel(driver.task, self.break_down)
            if left and left[-1] is driver:
                del left[-1]

    def leave_phase(self) -> int:
        """Tell of the end of a phase that was not a plain success, or is watched. Return the last
        phase before the next one."""
        number, losses = self.number, self.losses
        if self.closed or losses is not None:
            skipped = self.find_skipped()
            if losses is not None:
                self.find_causes(losses, skipped)
            self.write("skipped", number, skipped, losses and losses.causes)
            self.find_due()
        if self.watch is not None:
            self.tell("phase_finished")
        if number == PRE and self.due is not None:
            executing = () if self.aborted else self.due
            started = self.due if losses is None or self.aborted else losses.started
            self.write("never_due", executing, started, losses and losses.causes)
        last = EXECUTE if self.aborted else number
        if last == EXECUTE and (broken := self.not_held(broken=True)):
            due = range(len(self.plan.names)) if self.due is None else self.due
            self.due = set(due).difference(broken)
        return last

    def find_skipped(self) -> list[int]:
        """Return the tasks that are due in this phase and were not opened."""
        due = None if self.number == PRE else self.due
        left = self.plan.phases[self.number].unopened(self.opened, self.waiting)
        return [index for index in left if due is None or index in due]

    def find_causes(self, losses: Losses, skipped: Sequence[int]) -> None:
        """Find out which failures keep which tasks from being called, for those who watch."""
        number = self.number
        holding = losses.holding[number]
        if holding and self.watch is not None:
            held = self.plan.held_up(number, holding, self.opened, skipped)
            losses.causes.update({index: (cause, number) for index, cause in held.items()})
        if number == PRE:
            losses.causes.update({index: (index, PRE) for index in losses.unprepared})

    def find_due(self) -> None:
        """Find out which tasks have functions that are due in the next phase."""
        losses = self.losses
        if self.number == PRE:
            # Tasks above the last stage have started too, if no failure came before them.
            opened = self.opened if self.closed else self.opened + 1
            started = self.plan.started(opened, self.waiting, self.uncalled)
            # Of a resource whose set-up has not succeeded, nothing is due later.
            started.difference_update(self.not_held(broken=False))
            self.due = started
            if losses is not None and not self.aborted:
                losses.started = started
                self.due = started - losses.unprepared
        elif losses is not None and losses.started is not None:
            self.due = losses.started

    # The bound on all cleanup.

    def bounded(self, deadline: float | None, now: float) -> float | None:
        """Return when an attempt is cut off whose own deadline this is: at once, if no time is left
        for cleanup."""
        seconds = self.plan.cleanup_timeout
        if seconds is None or self.number != POST:
            return deadline
        if self.cleanup_ends is None:
            self.cleanup_ends = now + seconds  # with the first cleanup
        if now >= self.cleanup_ends:
            return -math.inf
        return self.cleanup_ends if deadline is None else min(deadline, self.cleanup_ends)

    def cut_off(self, deadline: float) -> tuple[float, str] | None:
        """Return the seconds of `cleanup_timeout` and what to say, if that is what cuts an attempt
        off which has this deadline."""
        ends, seconds = self.cleanup_ends, self.plan.cleanup_timeout
        if ends is None or seconds is None:
            return None
        if deadline != ends and not (deadline == -math.inf and self.loop.time() >= ends):
            return None
        return seconds, f"cut off by cleanup_timeout: all cleanup of the run had {seconds} s"

    def may_try_again(self, delay: float) -> bool:
        """Return True if `cleanup_timeout` leaves time for another attempt after a pause."""
        return self.cleanup_ends is None or self.loop.time() + delay < self.cleanup_ends

    # Resources.

    def holders(self) -> list[Any]:
        """Return the drivers of the resources that are held."""
        resources = (self.resources or {}).values()
        return [each.driver for each in resources if each.driver is not None]

    def not_held(self, *, broken: bool) -> list[int]:
        """Return the resources that are not held: because their set-up has not succeeded, or
        because they are broken, and have been cleaned up."""
        resources = (self.resources or {}).items()
        return [index for index, each in resources if each.driver is None and each.broken == broken]

    def set_up(self, index: int) -> CoroutineType[Any, Any, None]:
        """Return the coroutine of an attempt to set up a resource, which then holds it."""
        if self.resources is None:
            self.resources = {}
        work = self.plan.phases[PRE].work[index]
        resource = self.resources.get(index)
        if resource is None:
            resource = Resource(self.loop, work[0].function, self.plan.names[index])
            self.resources[index] = resource
        else:
            resource.begin_again()
        coroutine: Any = hold(resource, self.ctx)
        coroutine.__qualname__ = work[6]
        return coroutine  # type: ignore[no-any-return]

    def hold_resource(self, index: int, resource: Resource, driver: Any) -> None:
        """Hold a resource that is set up, until `clean_up` is called for it.

        Its driver is not among the suspended ones meanwhile: it takes no place, and nothing of
        the run cancels it.
        """
        try:
            driver.task.set_name(self.plan.phases[PRE].work[index][0].held_name)
            if driver.may_have_set_variables() and (changes := resource.changes()):
                if self.contexts is None:
                    self.set_contexts(Contexts(self.plan, self.context))
                assert self.contexts is not None
                self.contexts.add(index, changes)
        except BaseException as error:
            self.break_down(error)

    def clean_up(self, index: int, soon: bool = False) -> None:
        """Have a resource go on from its `yield`, if it is held: now, or in its turn of the loop,
        after others that have not begun."""
        resource = (self.resources or {}).get(index)
        driver = None if resource is None else resource.driver
        postponed = resource is not None and resource.postponed
        try:
            if resource is None or driver is None or driver.run is None:
                self.leave_out(index)
                return
            if not (resource.is_waiting() or resource.postponed):
                self.postpone(index, resource)
                return
            self.count_in(driver)
            resource.driver = None
        except BaseException as error:
            self.break_down(error)
            if resource is not None and driver is not None and resource.postponed == postponed:
                self.hold(index)
            return
        if resource.broken:
            return  # it is being cleaned up already
        resource.ask = self.to_throw
        try:
            driver.task.set_name(self.plan.phases[POST].work[index][2])
        except BaseException as error:
            self.break_down(error)
        try:
            resource.go_on(soon)
        except BaseException as error:
            self.break_down(error)
            if resource.is_waiting():
                resource.go_on(soon)  # it was not even called

    def postpone(self, index: int, resource: Resource) -> None:
        """Clean up a resource in the next pass of the loop, because the step that has set it up is
        not over. Later functions must not overtake it."""
        left = [index]
        self.loop.call_soon(self.call_postponed, left, context=self.context.copy())
        resource.postponed = True
        left += self.take_left()
        self.stop_calling()
        self.deferred = True

    def call_postponed(self, left: list[int]) -> None:
        """Go on with what was postponed."""
        self.deferred = False
        try:
            self.give_back([*left, *self.take_left()])
            if self.setbacks is None:
                self.pump()
                return
        except BaseException as error:
            self.break_down(error)
        self.go_on()

    def give_up_resources(self) -> None:
        """Have what is still held clean up by itself: the run has given up."""
        for driver in self.holders():
            cancel(driver.task, self.take_fatal)

    def has_held(self, driver: Any) -> bool:
        """Return True for the driver of a held resource, and hold it no more."""
        resource = (self.resources or {}).get(driver.index)
        if resource is None or resource.driver is not driver:
            return False
        resource.driver = None
        return True

    def leave_out(self, index: int) -> None:
        """Go on without the cleanup of a resource that was never held, or has broken since."""
        if self.record is None or self.plan.key(POST, index) not in self.record.phases:
            self.write("skipped", POST, [index])
        if self.waiting is not None:
            self.feed(self.plan.phases[POST].work[index][3])
        self.finished_one()

    def passes_by(self, resource: Resource) -> bool:
        """Return True if a cancellation leaves a held resource alone, once: the loop ends and
        cancels all tasks, the caller's among them, and the cleanup is to come."""
        waiter = self.waiter
        is_coming = self.over or self.interrupted or waiter is None or waiter.cancelled()
        if not resource.spared and is_coming and self.is_alone():
            resource.spared = True
            return True
        return False

    def broke(self, index: int, error: BaseException) -> None:
        """Take note of a resource that has broken while it was held, and stop the run."""
        hide_engine(error)
        if not is_exception(error) and not is_cancellation(error):
            self.take_fatal(error, POST, index)
        if not self.write("failed", POST, index, 1, error):
            assert self.fatal is not None
            chain(self.fatal, error)
        if not self.plan.keeps_going or self.fatal is not None:
            self.abort()
        if not self.over and not self.pending:
            self.advance()

    def to_throw(self) -> BaseException | None:
        """Return what to raise in a resource whose turn has come."""
        try:
            if self.record is None and not self.is_cut_short():
                return None
            return self.outcome().exception
        except BaseException as error:
            self.break_down(error)
        return CancelledError()  # so that it is never told of a success by mistake

    def is_cut_short(self) -> bool:
        """Return True if the run is not completed: its caller may be about to hear of it, or an
        exception came that is not an `Exception`."""
        waiter = self.waiter
        return (
            self.interrupted
            or self.fatal is not None
            or (waiter is not None and waiter.cancelled())
        )

    def outcome(self) -> Outcome:
        """Return how the run has gone so far."""
        record, cancelled = self.record, self.is_cut_short()
        failures = () if record is None else tuple(record.failures)
        exception: BaseException | None = None
        if failures:
            assert record is not None
            report: RunReport[Any] = RunReport(self.plan, self.values, record.so_far())
            exception = SdaxExecutionError.from_failures(failures, report)
        if cancelled:
            cancellation = CancelledError()
            if exception is not None:
                set_context(cancellation, exception)
            exception = cancellation
        return Outcome(bool(failures), cancelled, failures, exception)

    # Exceptions that are raised where they should not be.

    def write(self, what: str, *arguments: Any, **options: Any) -> bool:
        """Have the record write something down, and return True if that worked.

        It calls observers, handlers and the `repr` of what users give.
        """
        try:
            if self.record is None:
                self.record = Record(self.plan, self.watch)
            getattr(self.record, what)(*arguments, **options)
        except BaseException as error:
            self.break_down(error)
            return False
        return True

    def tell(self, what: str, *arguments: Any, **options: Any) -> None:
        """Tell the observers."""
        try:
            getattr(self.watch, what)(*arguments, **options)
        except BaseException as error:
            self.break_down(error)

    def break_down(self, error: BaseException) -> None:
        """Keep what was raised where it should not be: the run ends early, cleans up, and raises
        it."""
        self.take_fatal(error)
        if not self.over:
            self.defer()

    def take_fatal(
        self, error: BaseException, number: int | None = None, index: int | None = None
    ) -> None:
        """Keep what the run ends with, or tell the loop if there is something already."""
        hide_engine(error)
        first = self.fatal
        if first is None:
            self.fatal = error
        elif number is None or not self.write("also_fatal", number, index, error, first, self.loop):
            put_after(first, error)

    def defer(self) -> Setbacks:
        """Open and call nothing more until the loop calls `go_on`, on a stack of its own."""
        setbacks = self.setbacks
        if setbacks is None:
            setbacks = self.setbacks = Setbacks()
        if not self.deferred and not self.over:
            self.loop.call_soon(self.go_on, context=self.context.copy())
            self.stop_calling()
            self.deferred = True
        return setbacks

    def call_later(self, index: int) -> bool:
        """Have a function called from the event loop that could not be called here, once."""
        again = self.defer().again
        if index in again:
            return False
        again.add(index)
        try:
            self.hold(index)
        except BaseException:
            again.discard(index)
            raise
        return True

    def go_on(self) -> None:
        """Take stock of what is left, after something was interrupted in the middle, and go on.

        The lists of suspended functions and of those not yet called cannot be wrong.
        """
        self.deferred = False
        if self.over:
            self.take_left()  # nothing, but the next phase must not find it deferred
            return
        self.pumping = False
        try:
            if self.waiting and not self.aborted:
                self.recount_gates()
            if self.fatal is not None:
                self.abort()
            if self.aborted:
                self.cancel_suspended()
            if self.deadlines is not None:
                self.deadlines.renew()
            for driver in self.drivers():
                driver.set_timeout()
            left = self.take_left()
            try:
                self.give_back(left)
            except BaseException:
                self.give_back(left)
                raise
            suspended = len(self.drivers())
            self.pending = len(left) + suspended
            stock = None if suspended else (self.number, self.opened, len(left))
            assert self.setbacks is not None
            if self.setbacks.are_too_many(stock):
                self.give_up_resources()
                self.finish()
            elif not self.pending:
                self.advance()
            self.pump()
        except BaseException as error:
            self.break_down(error)

    def recount_gates(self) -> None:
        """Find out again what each gate waits for, and queue what should have been opened."""
        called = self.called_by_gates()
        finished = called.difference(driver.index for driver in self.drivers())
        if self.losses is not None:
            finished.difference_update(self.losses.holding[self.number])
        due = None if self.number == PRE else self.due
        self.waiting, opened = self.plan.phases[self.number].reopened(due, finished)
        self.requeue(called, opened)
