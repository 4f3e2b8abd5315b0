"""An asyncio event loop whose time jumps: nothing is waited for, and no timer is ever late."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Mapping
from typing import Any


class DeadlockError(Exception):
    """Nothing is ready, no timer is set, and so nothing will ever happen in this loop again."""


class _JumpingSelector(selectors.BaseSelector):
    """A selector that moves the clock of its loop forward instead of sleeping."""

    def __init__(self) -> None:
        self.now = 0.0
        self._selector = selectors.DefaultSelector()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = self._selector.select(0)
        if events:
            return events
        if timeout is None:
            raise DeadlockError("every task waits, and no timer is set")
        self.now += max(timeout, 0.0)
        return events

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._selector.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._selector.unregister(fileobj)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._selector.get_map()

    def close(self) -> None:
        self._selector.close()


class VirtualClockLoop(asyncio.SelectorEventLoop):
    """Starts at time 0; `time()` goes on only when nothing is left to do before the next timer.

    For tests without threads and without real I/O: it raises `DeadlockError` where another loop
    would block for ever.
    """

    def __init__(self) -> None:
        self._clock = _JumpingSelector()
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.now

    def advance(self, seconds: float) -> None:
        """Let time pass as if a function had computed for so long."""
        self._clock.now += seconds
