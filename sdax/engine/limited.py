"""The attempts at a function with limits, as far as they are not hot. Written once, for both
engines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from ..common.order import PHASES, POST
from ..tasks import TaskFunction
from .attempts import (
    History,
    after_failure,
    after_timeout,
    deadline_of,
    limit_of,
    moment,
    settled,
    time_left,
)
from .calls import cancel, fallback_call, limited_call
from .exceptions import hide_engine, is_cancellation
from .plan import Work
from .record import unasked_cancellation
from .work import KIND, OUTCOME, TIMEOUT, USERS_NAME

UNSET: Final = 0.0  # a deadline, for which there was no clock


class AttemptsBase:
    """The part of the attempts that both engines share: all but the steps of each attempt."""

    if not TYPE_CHECKING:
        __slots__ = ()  # an engine has them
    else:
        run: Any
        index: int
        task: Any
        context: Any  # that of the asyncio.Task
        limits: TaskFunction[Any]
        number: int  # of the attempt
        error: BaseException | None  # what left the last attempt
        history: History | None  # from the first failure on
        timed_out: bool
        expired: bool  # the timer has fired, and the attempt has not ended yet
        requests: int  # to cancel the asyncio.Task, when the timer fired
        cancelling: int  # requests that earlier attempts have left open
        began: float  # the first attempt
        started: float  # the last attempt, if it is not the first
        deadline: float | None  # wanted, but no timer is set yet
        awaited: float  # the deadline for which a timer was set
        pause: Any  # the future that a pause waits for

    def place(self) -> tuple[int, int, int]:
        """Return the phase, the task and the attempt, as a watch is told of them."""
        return self.run.number, self.index, self.number

    def covers(self) -> bool:
        """Return True while the fallback is called."""
        return self.history is not None and self.history.covered is not None

    # The begin of an attempt.

    def begin_special(self, work: Work) -> None:
        """Set the deadline of an attempt that is not a plain first one."""
        run, limits = self.run, self.limits
        self.started = now = run.now()
        if self.history is None:
            self.began = now
            timeout = work[TIMEOUT]
            deadline = None if timeout is None else moment(now, timeout)
        else:
            covers = self.covers()
            waits = limits.limiter is not None and not covers
            deadline = deadline_of(limits, self.began, now, waits, covers)
        self.deadline = run.bounded(deadline, now)

    def other_call(self, work: Work) -> Any:
        """Return the coroutine of what is called in place of the function, if anything is."""
        run, limits, history = self.run, self.limits, self.history
        if history is not None and history.covered is not None:
            return fallback_call(limits.fallback, history.covered, work[USERS_NAME], run.ctx)
        if limits.limiter is None:
            return None
        name, phase = run.plan.names[self.index], PHASES[run.number]
        return limited_call(
            limits.limiter, work, name, phase, self.task, self.let_in, self.owed, run.ctx
        )

    def let_in(self, broken: BaseException | None = None) -> tuple[Any, ...]:
        """Begin the timeout of an attempt, which its limiter has let in. Return the arguments of
        the function."""
        run = self.run
        try:
            if broken is not None:
                run.break_down(broken)
            now = run.now()
            deadline = deadline_of(self.limits, self.began, now, False, False)
            self.deadline = run.bounded(deadline, now)
        except BaseException as error:
            run.break_down(error)
            self.deadline = UNSET
        return self.arguments()

    def arguments(self) -> tuple[Any, ...]:
        """Return the arguments of the function."""
        run = self.run
        if run.plan.phases[run.number].work[self.index][KIND] is OUTCOME:
            return run.ctx, run.outcome()
        return (run.ctx,)

    def owed(self, broken: BaseException | None = None) -> tuple[Any, ...] | None:
        """Return the arguments of a cleanup that has no time left before its limiter has let it
        in: every cleanup is called. Return None for every other function."""
        run = self.run
        if broken is not None:
            run.break_down(broken)
        if run.number == POST and self.number == 1 and self.expired:
            return self.arguments()
        return None

    # Its timer.

    def late_deadline(self) -> float | None:
        """Return the deadline of an attempt that has begun without a clock."""
        self.started = now = self.run.now()
        self.began = self.began or now
        return deadline_of(self.limits, self.began, now, False, self.covers())

    def expire(self) -> None:
        """Hear of the timer that the deadline has come."""
        if self.pause is None:
            self.time_out()
        elif not self.pause.done():
            self.pause.set_result(None)

    def time_out(self) -> None:
        """Cancel the attempt. Tell of it in a context like that of its function."""
        run, task = self.run, self.task
        self.expired = True
        self.requests = task.cancelling()
        if run.watch is not None:
            context = run.context if self.context is None else self.context
            context.copy().run(run.tell, "timeout_expired", *self.place(), self.limit()[0])
        cancel(task, run.break_down)

    def limit(self) -> tuple[float, str]:
        """Return the seconds that the attempt had, and what to say when they have passed."""
        if (cut_off := self.run.cut_off(self.awaited)) is not None:
            return cut_off  # type: ignore[no-any-return]
        started = self.began if self.number == 1 else self.started
        return limit_of(self.limits, self.began, started, self.awaited, self.covers())

    # Its end.

    def settle(
        self, special: bool, value: Any, error: BaseException | None
    ) -> BaseException | None:
        """Return what an attempt leaves, and tell it to those who watch."""
        run, history = self.run, self.history
        self.timed_out = False
        if self.expired:
            self.expired = False
            earlier = None if history is None else history.last
            stopping = run.is_stopping()
            error, self.timed_out = after_timeout(
                error, self.limit()[1], self.task, self.requests, stopping, earlier
            )
        if error is not None:
            hide_engine(error)
            error = self.unasked(error)
        if special or history is not None:
            error = settled(self.limits, self.number, history, error, run.has_cancelled(error))
        if run.watch is not None:
            run.tell(
                "attempt_finished",
                *self.place(),
                value,
                error,
                timed_out=self.timed_out,
                cancelled=run.has_cancelled(error),
            )
        return error

    def unasked(self, error: BaseException) -> BaseException:
        """Return the failure that a cancellation is which nobody asked for: a library has
        cancelled the future that the function waited for. A cancellation of its `asyncio.Task`
        is left as it is, and nothing follows it."""
        run, limits = self.run, self.limits
        if (
            (limits.retries or limits.fallback is not None)
            and is_cancellation(error)
            and not run.is_stopping()
            and self.task.cancelling() <= self.cancelling
        ):
            return unasked_cancellation(run.plan, run.number, self.index, error)
        return error

    # Another attempt, the fallback or nothing, after a failure.

    def what_follows(self) -> tuple[float | None, bool]:
        """Return the seconds before the next attempt, if there is one, and whether the fallback
        is called. If neither follows, `error` is the failure."""
        run, limits, history = self.run, self.limits, self.history
        error: Any = self.error
        if history is None:
            history = self.history = History()
        elif history.covered is not None:
            return None, False
        left = None
        if limits.total_timeout is not None or run.cleanup_ends is not None:
            cut_off_at = self.awaited if self.timed_out else None
            cleanup = run.plan.cleanup_timeout, run.cleanup_ends
            left = time_left(limits, self.began, run.now(), cut_off_at, *cleanup)
        following = after_failure(limits, self.number, history.backoffs, left, error, run.aborted)
        if following.error is not error:
            self.error = following.error
            self.timed_out = False
        history.backoffs = following.backoffs
        history.is_due = following.delay is not None
        if following.suppressed is not None and run.watch is not None:
            run.tell("retry_suppressed", *self.place(), following.suppressed, error)
        return following.delay, following.falls_back

    def goes_on(self, falls_back: bool) -> None:
        """Go on after an attempt that has failed, with another one or with the fallback."""
        history, error = self.history, self.error
        assert history is not None
        assert error is not None
        self.cancelling = self.task.cancelling()
        if falls_back and self.run.watch is not None:
            self.run.tell("fell_back", *self.place(), error)
        history.goes_on(error, falls_back=falls_back)
        self.error = None
