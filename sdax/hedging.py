"""A second call beside one that is slow: whichever answers first wins."""

from __future__ import annotations

import asyncio
import sys
from asyncio import CancelledError, Task, get_running_loop
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass, field
from inspect import isawaitable
from types import CoroutineType
from typing import Any, NoReturn, TypeVar

from .common.checks import checked_limit, checked_number, is_generator
from .common.text import shown

C = TypeVar("C")
R = TypeVar("R")


def hedged(
    function: Callable[[C], Awaitable[R]], delay: float, attempts: int = 2
) -> Callable[[C], Coroutine[Any, Any, R]]:
    """Return a function that calls another one again, beside the first call, if that is slow.

    Use it only for functions that return their answer and do not write the context: several calls
    may run at the same time, with the same context.

    A further call starts when `delay` seconds have passed without an answer, or at once when a
    call has failed, until there were `attempts` calls. The first success is returned, after the
    other calls have been cancelled and have ended, whatever they raise then. If all fail, the first
    failure is raised, with the others as notes on it. Each call runs in an `asyncio.Task` of its
    own, with a copy of the context variables. Cancelling the function cancels all calls and waits
    for them.

    - `delay`: seconds. Take the time within which 95 or 99 % of the calls are answered. Then 5 or
      1 % more calls are made.
    - `attempts`: the most calls that are made. 1 means that there is never a second one.

    A timeout of the `TaskFunction` bounds all calls together, and a retry begins anew. Raises
    `TypeError` or `ValueError`, with the argument and the value, for what cannot work.

    >>> task_func(hedged(fetch_price, delay=0.05), timeout=1.0, retries=2)
    """
    if not callable(function):
        raise TypeError(
            f"hedged: function must be callable with the context, got {shown(function)}; put "
            f"hedged around the function itself, without calling it"
        )
    if is_generator(function):
        raise TypeError(
            f"hedged: function must be an async function without 'yield', got {shown(function)}"
        )
    delay = checked_number("hedged: delay", delay)
    calls = checked_limit("hedged: attempts", attempts)
    if calls is None:
        raise TypeError("hedged: attempts must be an integer, got None")
    name = getattr(function, "__qualname__", None)
    if not isinstance(name, str):
        name = type(function).__qualname__
    return _Hedged(function, delay, calls, f"hedged:{name}")


@dataclass(frozen=True, slots=True)
class _Hedged:
    """What `hedged` makes: picklable when the function is."""

    function: Callable[[Any], Awaitable[Any]]
    delay: float
    attempts: int
    name: str = field(repr=False)  # of the asyncio.Task of each call

    async def __call__(self, ctx: Any) -> Any:
        race = _Race(self, ctx)
        interruption: BaseException | None = None
        try:
            race.start_call()
            while race.running:
                race.waiter = race.loop.create_future()
                try:
                    await race.waiter
                except BaseException as error:
                    race.stop()
                    if isinstance(error, GeneratorExit):
                        raise  # nothing can be awaited any more
                    interruption = error if interruption is None else interruption
            if race.has_won and race.fatal is None and interruption is None:
                return race.value
            race.raise_what_failed(interruption)
        finally:
            # What was raised leads here by its traceback: nothing may lead back.
            if race.failures:
                race.failures.clear()
            del race, interruption


class _Race:
    """The calls that one call of a hedged function makes, each known by its number."""

    __slots__ = (
        "context",
        "ctx",
        "failures",
        "fatal",
        "has_won",
        "hedged",
        "left",
        "loop",
        "running",
        "stopped",
        "timer",
        "value",
        "waiter",
    )

    def __init__(self, hedged: _Hedged, ctx: Any) -> None:
        self.hedged = hedged
        self.ctx = ctx
        self.loop = get_running_loop()
        self.context = copy_context()
        self.left = hedged.attempts
        self.running: dict[int, asyncio.Task[None]] = {}
        self.waiter: asyncio.Future[None] | None = None  # done when nothing runs any more
        self.timer: asyncio.TimerHandle | None = None  # of the next call
        self.stopped = False  # no call is started any more, and what runs is cancelled
        self.has_won = False
        self.value: Any = None  # of the call that has won
        self.failures: list[BaseException] = []
        self.fatal: BaseException | None = None  # is no Exception, and ends everything

    def start_call(self) -> None:
        """Start the next call, and another one for each that fails at once."""
        loop, name = self.loop, self.hedged.name
        while self.left and not self.stopped:
            self.left = number = self.left - 1
            coroutine = self.call(number)
            try:
                if loop.get_task_factory() is not None:
                    task = loop.create_task(coroutine, name=name)
                elif sys.version_info >= (3, 12):  # which saves a pass of the loop
                    task = Task(coroutine, loop=loop, name=name, eager_start=True)
                else:
                    task = Task(coroutine, loop=loop, name=name)
            except BaseException as error:  # out of the loop's task factory
                coroutine.close()
                self.failed(error)
                continue
            if task.done():  # as it may be if it starts at once
                if (closed := task.exception()) is not None:
                    self.failed(closed)
                continue
            self.running[number] = task
            task.add_done_callback(self.not_noted)
            if number:
                when = loop.time() + self.hedged.delay
                self.timer = loop.call_at(when, self.start_call, context=self.context)
            return

    async def call(self, number: int) -> None:
        """Call the function, and take note of what becomes of it."""
        value: Any = None
        failure: BaseException | None = None
        try:
            returned = self.hedged.function(self.ctx)
            if type(returned) is not CoroutineType and not isawaitable(returned):
                raise TypeError(
                    f"hedged takes an async function, but {shown(self.hedged.function)} returned "
                    f"{shown(returned)}, which cannot be awaited; define it with 'async def'"
                )
            value = await returned
        except GeneratorExit:
            raise  # nothing may follow if the coroutine is closed
        except BaseException as error:
            failure = error
        task = self.running.pop(number, None)
        if task is not None:  # or else it is still being made
            task.remove_done_callback(self.not_noted)
        if failure is not None:
            self.failed(failure)
            failure = None
        elif not self.stopped:
            self.value = value
            self.has_won = True
            self.stop()
        if task is not None:
            self.go_on()

    def not_noted(self, task: asyncio.Task[None]) -> None:
        """Take note of an `asyncio.Task` that was cancelled before its first step, or closed."""
        self.running = {n: each for n, each in self.running.items() if each is not task}
        error = CancelledError() if task.cancelled() else task.exception()
        assert error is not None
        self.failed(error)
        self.go_on()

    def failed(self, error: BaseException) -> None:
        """Take note of what a call has raised; a cancellation is no failure if we asked for it."""
        if not isinstance(error, (Exception, CancelledError)):
            self.fatal = error if self.fatal is None else self.fatal
            self.stop()
        elif not self.stopped or not isinstance(error, CancelledError):
            self.failures.append(error)

    def go_on(self) -> None:
        """After a call has ended, start another one in its place, or wake the waiting function."""
        waiter = self.waiter
        if self.left and not self.stopped and not (waiter is not None and waiter.cancelled()):
            if self.timer is not None:
                self.timer.cancel()
            self.context.run(self.start_call)
        if not self.running and waiter is not None and not waiter.done():
            waiter.set_result(None)

    def stop(self) -> None:
        """Start no more calls, and cancel those that run, once."""
        if self.stopped:
            return
        self.stopped = True
        if self.timer is not None:
            self.timer.cancel()
        for task in self.running.values():
            task.cancel()

    def raise_what_failed(self, interruption: BaseException | None) -> NoReturn:
        fatal, self.fatal = self.fatal, None
        try:
            if fatal is not None:
                raise fatal
            if self.failures:
                _add_notes(*self.failures)
            if interruption is None:
                raise self.failures[0]
            if self.failures and interruption.__context__ is None:
                interruption.__context__ = self.failures[0]
            raise interruption
        finally:
            del fatal, interruption


def _add_notes(exception: BaseException, *others: BaseException) -> None:
    for other in others:
        note = f"hedged: another call raised {shown(other)}"
        # An exception may refuse it. One that several runs raise gets each note once.
        with suppress(Exception):
            if note not in getattr(exception, "__notes__", ()):
                exception.add_note(note)
