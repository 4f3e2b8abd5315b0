"""The parts of a driver that are not hot. They are written once, for both engines."""

from __future__ import annotations

import asyncio
from asyncio import CancelledError, current_task
from collections.abc import Callable
from contextvars import Context
from typing import TYPE_CHECKING, Any, Final

from .attempts import History
from .calls import cancel
from .exceptions import is_cancellation, put_after
from .shelter import sheltered

# The states of a driver. The compiled engine has the same ones, in this order.
NEW: Final = "new"  # nothing is called yet
STEPPING: Final = "stepping"  # a function, up to what it waits for next
SUSPENDED: Final = "suspended"
PAUSING: Final = "pausing"  # before the next attempt
HOLDING: Final = "holding"  # a resource, until its turn to be cleaned up comes
BREAKING: Final = "breaking"  # waits in the cleanup of a resource before its turn
ENDED: Final = "ended"  # there is nothing left to call
STATES: Final = (NEW, STEPPING, SUSPENDED, PAUSING, HOLDING, BREAKING, ENDED)


class DriverBase:
    """The part of a driver that both engines share: what other code does to its `asyncio.Task`."""

    if not TYPE_CHECKING:
        __slots__ = ()  # an engine has them
    else:
        run: Any  # None once it has ended
        index: int
        task: Any
        context: Any  # that of the asyncio.Task
        coroutine: Any  # that of the function that is under way
        called: Any  # the `Work` of the last function, for its name, if the engine keeps that
        first_step: Any  # on 3.11: kept from the loop
        resource: Any  # that is held, or is cleaned up
        sheltered: Any  # the future that a cleanup waits for, where the end of the loop is near
        spared: bool  # from a cancellation by the end of the loop, once

        @property
        def state(self) -> str:
            """One of `STATES`."""
            raise NotImplementedError

        def discard(self) -> Any:
            """Let go of everything, also before the first step."""

        def never_called(self, error: BaseException) -> Any:
            """End before the first step."""

        def broken(self, run: Any, error: BaseException) -> Any:
            """End, because the engine itself has failed."""

        def has_expired(self) -> bool:
            """Return True once the timer of an attempt has cancelled it."""
            raise NotImplementedError

        def attempts_made(self) -> tuple[int, History | None]:
            """Return the number of the attempt that is under way, or was the last one, and what
            the attempts before it have left."""
            raise NotImplementedError

    # Its state.

    @property
    def begun(self) -> bool:
        """True from the first step on."""
        return self.state != NEW

    def is_open(self) -> bool:
        """Return True for a function that has begun, also while it waits for its next attempt."""
        return self.coroutine is not None or self.state in (STEPPING, PAUSING)

    def is_running(self) -> bool:
        """Return True during a step."""
        return self.state == STEPPING or getattr(self.coroutine, "cr_running", False)

    # The end of the loop.

    def shelter(self, yielded: Any) -> Any:
        """Have a cleanup wait for what the end of the loop does not cut short."""
        self.sheltered = yielded
        run = self.run
        return sheltered(run.loop, yielded, run.break_down)

    def spare(self, exception: BaseException) -> bool:
        """Return True if a cleanup goes on waiting: a cancellation of all tasks of the loop passes
        by, once. The future that it waits for hears of any other."""
        future = self.sheltered
        if (
            is_cancellation(exception)
            and not self.spared
            and not self.has_expired()
            and self.run.is_loop_ending()
        ):
            self.task.uncancel()
            self.spared = True
        else:
            try:
                if future is None or not future.cancel() or future.done():
                    return False
            except BaseException as error:  # the function is woken in its place, as by `cancel`
                self.run.break_down(error)
                return False
        if future is not None:  # a task that is cancelled is awaited
            future._asyncio_future_blocking = True
        return True

    # A resource that it holds.

    def has_broken(self, error: BaseException) -> None:
        """Take note of what the cleanup of a resource leaves that has broken while it was held."""
        run, index = self.run, self.index
        is_due = not run.has_held(self)
        self.discard()
        if is_due:
            run.failed(index, error)
        else:
            run.broke(index, error)
        if not run.pumping:
            run.pump()

    # Other code may use the `asyncio.Task`, and the coroutine that it finds there.

    def is_stepped(self) -> bool:
        # Only the loop makes our asyncio.Task current, to step it. At other times a GeneratorExit
        # does not come from a function: the interpreter drops what will never continue.
        return self.run is not None and current_task(self.run.loop) is self.task

    def disturb(self, method: str, *arguments: Any) -> Any:
        """Let other code close the coroutine or throw into it, as it could with that of any
        `asyncio.Task`. The function may have given up what its own one waits for, which would
        never go on then: it is cancelled."""
        try:
            self.refuse_running()
            if self.coroutine is not None:
                return getattr(self.coroutine, method)(*arguments)
            if arguments:
                raise RuntimeError("cannot reuse already awaited coroutine")
            return None
        finally:
            del arguments
            run: Any = self.run
            if run is not None:
                try:
                    if not self.is_stepped():
                        cancel(self.task, run.break_down)
                except BaseException as error:
                    run.break_down(error)
                    if not self.is_stepped():
                        cancel(self.task, run.break_down)

    def refuse_running(self) -> None:
        """Raise the `ValueError` that a coroutine raises that is asked to step while it steps.

        Asked itself, on Python 3.11 and 3.12, it may crash the interpreter.
        """
        if self.is_running():
            raise ValueError("coroutine already executing")

    def close(self) -> None:
        """Close the coroutine of the function, as other code may."""
        if self.run is not None and self.is_open():
            self.disturb("close")

    def task_ended(self, task: Any) -> None:
        """Hear that the `asyncio.Task` has ended, maybe without the driver: where a factory wraps
        it in a coroutine that is cancelled before its first step, or that gives up."""
        run, index = self.run, self.index
        if run is None:
            return
        error: BaseException | None = CancelledError()
        try:
            if not task.cancelled():
                error = task.exception()
            if error is None:
                error = RuntimeError("its asyncio.Task ended without waiting for it")
            if not self.begun:
                self.never_called(error)
                return
            coroutine = self.coroutine
            made, history = self.attempts_made()
            was_held = run.has_held(self)
            self.discard()
            if coroutine is not None:
                coroutine.close()
            if was_held:
                run.broke(index, error)
            else:
                run.failed(index, error, made, history=history)
            if not run.pumping:
                run.pump()
        except BaseException as exception:
            assert error is not None
            put_after(exception, error)
            self.broken(run, exception)

    def catch_first_step(
        self, callback: Callable[..., Any], *arguments: Any, context: Context | None = None
    ) -> Any:
        """Be the loop's `call_soon` while the `asyncio.Task` is made, on 3.11.

        Finalizers and signal handlers that happen to run meanwhile get the real one.
        """
        if context is self.context:
            self.first_step = callback
            return None
        loop = self.run.loop
        return type(loop).call_soon(loop, callback, *arguments, context=context)


def can_catch_first_steps(loop: Any) -> bool:
    """Return True if the loop's `call_soon` is its class's, so that an attribute can hide it."""
    method: Any = getattr(type(loop), "call_soon", None)
    return (
        isinstance(loop, asyncio.AbstractEventLoop)
        and hasattr(method, "__get__")
        and not hasattr(method, "__set__")  # as a property has, which no attribute hides
        and bool(loop.call_soon == method.__get__(loop))
    )
