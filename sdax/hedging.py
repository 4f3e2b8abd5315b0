"""A second call beside a slow call. The first answer wins."""

from __future__ import annotations

import asyncio
import sys
from asyncio import BaseEventLoop, CancelledError, Task, get_running_loop
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from contextvars import copy_context
from inspect import isawaitable
from types import CoroutineType
from typing import Any, NoReturn, TypeVar

from .common.arguments import check_takes
from .common.checks import checked_limit, checked_number, is_generator
from .common.frozen import Frozen
from .common.text import shown

C = TypeVar("C")
R = TypeVar("R")


def hedged(
    function: Callable[[C], Awaitable[R]], delay: float, attempts: int = 2
) -> Callable[[C], Coroutine[Any, Any, R]]:
    """Return a function that calls `function` again, beside the first call, if that is slow.

    Use it only for functions that return their answer and do not write the context, because
    several calls may run at the same time, with the same context.

    A further call starts when `delay` seconds have passed without an answer, or immediately when a
    call has failed, until there were `attempts` calls. When a call succeeds, the others are
    cancelled and awaited, even if they raise. Then the function returns the first success. If all
    calls fail, it raises the first failure, with the others as notes on it. Each call runs in its
    own `asyncio.Task`, with a copy of the context variables. If the function is cancelled, it
    cancels all calls and waits for them.

    - `delay`: seconds. Use the time in which 95 or 99 % of the calls are answered. Then there are
      5 or 1 % more calls.
    - `attempts`: the maximum number of calls. 1 means that there is never a second call.

    A timeout of the `TaskFunction` limits all calls together, and a retry starts again. Raises
    `TypeError` or `ValueError`, with the argument and the value, for bad arguments.

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
    check_takes("hedged: function", function, "ctx")
    delay = checked_number("hedged: delay", delay)
    calls = checked_limit("hedged: attempts", attempts)
    if calls is None:
        raise TypeError("hedged: attempts must be an integer, got None")
    name = getattr(function, "__qualname__", None)
    if not isinstance(name, str):
        name = type(function).__qualname__
    return _Hedged(function, delay, calls, f"hedged:{name}")


class _Hedged(Frozen):
    """The function that `hedged` returns. It is picklable if `function` is."""

    __slots__ = ("function", "delay", "attempts", "name")  # noqa: RUF023 (as in pickles)
    __match_args__ = ("function", "delay", "attempts")

    function: Callable[[Any], Awaitable[Any]]
    delay: float
    attempts: int
    name: str  # of the asyncio.Task of each call

    def __init__(
        self, function: Callable[[Any], Awaitable[Any]], delay: float, attempts: int, name: str
    ) -> None:
        self._set_once(function=function, delay=delay, attempts=attempts, name=name)

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
                        raise  # it cannot await anything
                    interruption = error if interruption is None else interruption
            if race.has_won and race.fatal is None and interruption is None:
                return race.value
            race.raise_what_failed(interruption)
        finally:
            # The traceback of the exception refers to this frame, which must not refer back.
            race.failures = ()
            del race, interruption


class _Race:
    """The calls of one call of a hedged function, by number."""

    # Slots are read faster than attributes of the class.
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
        self.waiter: asyncio.Future[None] | None = None  # done when no call runs
        self.timer: asyncio.TimerHandle | None = None  # of the next call
        self.stopped = False  # no more calls start, and the running calls are cancelled
        self.has_won = False
        self.value: Any = None  # of the winning call
        self.failures: Sequence[BaseException] = ()
        self.fatal: BaseException | None = None  # not an Exception: it ends everything

    def start_call(self) -> None:
        """Start the next call, and another call for each that fails immediately."""
        loop, name = self.loop, self.hedged.name
        while self.left and not self.stopped:
            self.left = number = self.left - 1
            coroutine = self.call(number)
            try:
                if loop.get_task_factory() is not None:
                    task = loop.create_task(coroutine, name=name)
                elif sys.version_info >= (3, 12):  # this saves a pass of the loop
                    task = Task(coroutine, loop=loop, name=name, eager_start=True)
                else:
                    task = Task(coroutine, loop=loop, name=name)
            except BaseException as error:  # from the loop's task factory
                coroutine.close()
                self.failed(error)
                continue
            if task.done():  # possible if it starts immediately
                if (closed := task.exception()) is not None:
                    self.failed(closed)
                continue
            self.running[number] = task
            task.add_done_callback(self.not_noted)
            if number:
                if isinstance(loop, BaseEventLoop):  # its call_later calls call_at
                    self.timer = loop.call_at(loop.time() + self.hedged.delay, self.start_call)
                else:
                    self.timer = loop.call_later(self.hedged.delay, self.start_call)
            return

    async def call(self, number: int) -> None:
        """Call the function, and record its result."""
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
            raise  # a closed coroutine must not continue
        except BaseException as error:
            failure = error
        task = self.running.pop(number, None)
        if task is not None:  # None while it is being created
            task.remove_done_callback(self.not_noted)
        if failure is not None:
            self.failed(failure)
            failure = None
        elif not self.stopped:
            self.value = value
            self.has_won = True
            self.stop()
        waiter = self.waiter
        if task is None or waiter is None:
            return
        if self.stopped:
            if not self.running and not waiter.done():
                waiter.set_result(None)
        else:
            self.go_on()

    def not_noted(self, task: asyncio.Task[None]) -> None:
        """Record an `asyncio.Task` that was cancelled before its first step, or closed."""
        self.running = {n: each for n, each in self.running.items() if each is not task}
        error = CancelledError() if task.cancelled() else task.exception()
        assert error is not None
        self.failed(error)
        self.go_on()

    def failed(self, error: BaseException) -> None:
        """Record the exception of a call. Our own cancellation is not a failure."""
        if not isinstance(error, (Exception, CancelledError)):
            self.fatal = error if self.fatal is None else self.fatal
            self.stop()
        elif not self.stopped or not isinstance(error, CancelledError):
            self.failures = [*self.failures, error]

    def go_on(self) -> None:
        """After a call has ended, start another call instead, or wake the waiting function."""
        waiter = self.waiter
        if self.left and not self.stopped and not (waiter is not None and waiter.cancelled()):
            if self.timer is not None:
                self.timer.cancel()
            self.context.run(self.start_call)
        if not self.running and waiter is not None and not waiter.done():
            waiter.set_result(None)

    def stop(self) -> None:
        """Start no more calls, and cancel the running calls once."""
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
        # An exception may refuse a note. An exception of several runs gets each note once.
        with suppress(Exception):
            if note not in getattr(exception, "__notes__", ()):
                exception.add_note(note)
