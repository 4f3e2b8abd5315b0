"""The resources of a run: how they are set up, held and cleaned up, in both engines."""

from __future__ import annotations

from asyncio import CancelledError
from types import CoroutineType
from typing import Any

from ..common.order import POST, PRE
from ..errors import SdaxExecutionError
from ..report import RunReport
from ..states import Outcome
from .attempts import cut_off_by
from .calls import cancel
from .exceptions import chain, hide_engine, is_cancellation, is_exception, set_context
from .face import RunFace
from .resources import Resource, hold
from .variables import Contexts
from .work import FEEDS, FUNCTION, TASK_NAME, TIMEOUT, USERS_NAME


class ResourcesBase(RunFace):
    """The part of a run that has to do with resources."""

    __slots__ = ()

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
            resource = Resource(self.loop, work[FUNCTION].function, self.plan.names[index])
            self.resources[index] = resource
        else:
            resource.begin_again()
        coroutine: Any = hold(resource, self.ctx)
        coroutine.__qualname__ = work[USERS_NAME]
        return coroutine  # type: ignore[no-any-return]

    def hold_resource(self, index: int, resource: Resource, driver: Any) -> None:
        """Hold a resource that is set up, until `clean_up` is called for it.

        Its driver is not among the suspended ones meanwhile: it takes no place, and nothing of
        the run cancels it.
        """
        try:
            driver.task.set_name(self.plan.phases[PRE].work[index][FUNCTION].held_name)
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
                self.put_back(index)
            return
        if resource.broken:
            return  # it is being cleaned up already
        resource.ask = self.to_throw
        try:
            driver.task.set_name(self.plan.phases[POST].work[index][TASK_NAME])
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
            self.feed(self.plan.phases[POST].work[index][FEEDS])
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

    def limit_broken(self, index: int, resource: Resource) -> None:
        """Limit the cleanup of a resource that has broken while it was held, before its turn.

        If that is before all other cleanup, it has the whole `cleanup_timeout` for itself: time
        for the others begins with theirs.
        """
        resource.limit = self.plan.phases[POST].work[index][TIMEOUT]
        seconds = self.plan.cleanup_timeout
        if seconds is None:
            return
        left = seconds
        if self.cleanup_ends is not None:
            left = max(0.0, self.cleanup_ends - self.now())
        if resource.limit is None or left < resource.limit:
            resource.limit, resource.cut_off = left, cut_off_by(seconds)

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
