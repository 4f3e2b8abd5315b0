"""The timeouts and pauses of one run, for both engines."""

from __future__ import annotations

from asyncio import AbstractEventLoop, BaseEventLoop, TimerHandle
from collections.abc import Callable
from contextvars import Context
from heapq import heappop, heappush
from time import monotonic
from typing import Protocol


def clock_of(loop: AbstractEventLoop) -> Callable[[], float]:
    """Return what tells the loop's time: `time.monotonic` itself where the loop would call that."""
    clock = loop.time
    return monotonic if getattr(clock, "__func__", None) is BaseEventLoop.time else clock


class Waiter(Protocol):
    """Whoever waits for a moment: `serial` says for which one, 0 for none any more."""

    serial: int

    def expire(self) -> None:
        """Hear that the moment has come."""


class Deadlines:
    """Moments to come, on one timer of the loop: that of the earliest.

    A timer of its own for each would cost each function more than its start does.
    """

    __slots__ = ("_context", "_entries", "_loop", "_serial", "_timer", "_when")

    def __init__(self, loop: AbstractEventLoop, context: Context) -> None:
        self._loop = loop
        self._context = context
        self._entries: list[tuple[float, int, Waiter]] = []
        self._serial = 0
        self._timer: TimerHandle | None = None
        self._when = 0.0

    def add(self, when: float, waiter: Waiter) -> int:
        """Expire `waiter` at the loop's time `when`, if its serial is the returned one then."""
        self._serial += 1
        heappush(self._entries, (when, self._serial, waiter))
        if self._timer is None or when < self._when:
            self._set_timer(when)
        return self._serial

    def close(self) -> None:
        """Forget everything, the timer included."""
        self._entries.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set_timer(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._when = when
        self._timer = self._loop.call_at(when, self._fire, context=self._context)

    def _fire(self) -> None:
        self._timer = None
        now = max(self._when, self._loop.time())  # a loop may be early by its clock's resolution
        entries = self._entries
        while entries:
            when, serial, waiter = entries[0]
            waiting = waiter.serial == serial
            if waiting and when > now:
                self._set_timer(when)
                return
            heappop(entries)
            if waiting:
                waiter.expire()
