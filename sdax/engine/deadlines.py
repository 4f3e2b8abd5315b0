"""The timeouts and pauses of one run, for both engines."""

from __future__ import annotations

import time
from asyncio import AbstractEventLoop, BaseEventLoop, TimerHandle
from collections.abc import Callable
from contextvars import Context
from heapq import heapify, heappop, heappush
from types import ModuleType
from typing import Final, Protocol

FEWEST: Final = 64  # entries that are kept without a look at which of them still count


def clock_of(loop: AbstractEventLoop) -> Callable[[], float] | ModuleType:
    """Return the loop's clock, or the module `time` where that is its `monotonic`.

    To call that directly takes less time. It is looked up for each call, as asyncio does: tests
    put another one in its place.
    """
    clock = loop.time
    return time if getattr(clock, "__func__", None) is BaseEventLoop.time else clock


class Waiter(Protocol):
    """Something that waits for a moment. `serial` says for which moment. 0 means none any more."""

    serial: int

    def expire(self) -> None:
        """Hear that the moment has come."""


class Deadlines:
    """Moments to come, on one timer of the loop: that of the earliest.

    A timer of its own for each would cost each function more than its start does. `broken` is
    called with whatever the loop raises when the timer fires.
    """

    __slots__ = ("_broken", "_context", "_entries", "_loop", "_most", "_serial", "_timer", "_when")

    def __init__(
        self, loop: AbstractEventLoop, context: Context, broken: Callable[[BaseException], None]
    ) -> None:
        self._loop = loop
        # A copy: what a future's `cancel` sets in it must reach no function.
        self._context = context.copy()
        self._broken: Callable[[BaseException], None] | None = broken
        self._entries: list[tuple[float, int, Waiter]] = []
        self._most = FEWEST
        self._serial = 0
        self._timer: TimerHandle | None = None
        self._when = 0.0

    def add(self, when: float, waiter: Waiter) -> int:
        """Expire `waiter` at the loop's time `when`, if its serial is the returned one then."""
        if len(self._entries) >= self._most:
            self._forget_the_past()
        self._serial += 1
        heappush(self._entries, (when, self._serial, waiter))
        try:
            if self._timer is None or when < self._when:
                self._set_timer(when)
        except BaseException as error:
            if self._broken is None:
                raise
            self._broken(error)  # and `renew` sets the timer
        return self._serial

    def renew(self) -> None:
        """Set the timer again, after something was raised while it was set."""
        self._forget_the_past()
        if self._entries:
            self._set_timer(self._entries[0][0])

    def close(self) -> None:
        """Forget everything, the timer included."""
        self._entries = []
        self._broken = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _forget_the_past(self) -> None:
        """Drop the entries for which nobody waits, and allow twice as many as are left."""
        self._entries = [entry for entry in self._entries if entry[2].serial == entry[1]]
        heapify(self._entries)
        self._most = max(FEWEST, 2 * len(self._entries))

    def _set_timer(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._timer = self._loop.call_at(when, self._fire, context=self._context)
        self._when = when

    def _fire(self) -> None:
        self._timer = None
        try:
            self._expire()
        except BaseException as error:
            if self._broken is None:
                raise
            self._broken(error)

    def _expire(self) -> None:
        now = max(self._when, self._loop.time())  # a loop may be early by its clock's resolution
        while self._entries:
            when, serial, waiter = self._entries[0]
            if waiter.serial != serial:
                heappop(self._entries)
                continue
            if when > now:
                self._set_timer(when)
                return
            waiter.expire()
            if waiter.serial == serial:
                waiter.serial = 0  # not before: if `expire` raises, it must be called again
