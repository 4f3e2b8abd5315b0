"""The handling of everything that goes wrong in a run. It is not hot, so it is written once."""

from __future__ import annotations

import math
from asyncio import CancelledError
from collections.abc import Sequence
from typing import Any

from ..common.order import EXECUTE, PHASES, POST, PRE
from ..common.text import shown
from ..finish import Finish
from .attempts import History, cut_off_by, settle_with_budget
from .calls import cancel
from .exceptions import (
    chain,
    hide_engine,
    is_cancellation,
    is_exception,
    put_after,
    traceback_of,
)
from .held import ResourcesBase
from .losses import Losses, Setbacks
from .record import Record
from .shelter import is_ending
from .work import FEEDS, LIMITS


class RunBase(ResourcesBase):
    """The part of a run that both engines share: failures, cancellation, and what broke them.

    An exception that is raised where it should not be goes to `break_down`. It only keeps the error
    and has `go_on` called by the event loop, which takes stock of what is left. So a run ends and
    cleans up, whatever was interrupted in the middle.
    """

    __slots__ = ()  # an engine has them

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
            self.feed(work[FEEDS])
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
            self.feed(self.plan.phases[self.number].work[index][FEEDS])

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
            settle_with_budget(work[LIMITS], attempts + 1, True)
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
        return seconds, cut_off_by(seconds)

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
            self.put_back(index)
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

    def wind_up(self) -> None:
        """Let go of the timers, and wake up the caller."""
        if self.deadlines is not None:
            self.deadlines.close()
            self.deadlines = None
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    def recount_gates(self) -> None:
        """Find out again what each gate waits for, and queue what should have been opened."""
        called = self.called_by_gates()
        finished = called.difference(driver.index for driver in self.drivers())
        if self.losses is not None:
            finished.difference_update(self.losses.holding[self.number])
        due = None if self.number == PRE else self.due
        self.waiting, opened = self.plan.phases[self.number].reopened(due, finished)
        self.requeue(called, opened)
