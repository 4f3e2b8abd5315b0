"""The virtual clock that sdax has for everybody, and loops that run callback by callback."""

from __future__ import annotations

import faulthandler
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from heapq import heappop

from sdax.testing.clock import DeadlockError, VirtualClockLoop

__all__ = [
    "DeadlockError",
    "PassCountingLoop",
    "SpinningError",
    "SteppingLoop",
    "VirtualClockLoop",
    "watchdog",
]


class SpinningError(Exception):
    """The loop passes again and again, and nothing is done."""


@contextmanager
def watchdog(seconds: float = 120) -> Iterator[None]:
    """End the process, and show where it is, if this takes longer by a real clock.

    For what hangs without a pass of the loop, which no virtual clock can hear of.
    """
    faulthandler.dump_traceback_later(seconds, file=2, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


class PassCountingLoop(VirtualClockLoop):
    """Tells before each of its passes which one it is."""

    def __init__(self) -> None:
        super().__init__()
        self.next_pass = 0
        self.before_pass: Callable[[int], None] | None = None

    def _run_once(self) -> None:
        if self.before_pass is not None:
            self.before_pass(self.next_pass)
            self.next_pass += 1
        self.run_pass()

    def run_pass(self) -> None:
        super()._run_once()  # type: ignore[misc]

    def forget(self) -> None:
        """Forget all that is ready, and all timers."""
        self._ready.clear()  # type: ignore[attr-defined]
        self._scheduled.clear()  # type: ignore[attr-defined]

    @property
    def queued(self) -> int:
        """How many callbacks are ready to run."""
        return len(self._ready)  # type: ignore[attr-defined]

    def put_last_first(self) -> None:
        """Give the next turn to the callback that came last."""
        self._ready.rotate(1)  # type: ignore[attr-defined]


class SteppingLoop(PassCountingLoop):
    """Runs one callback in each of its passes, so that something can come between any two.

    It may be used for one observation after another, each of which begins at time 0.
    """

    def run_pass(self) -> None:
        ready, timers = self._ready, self._scheduled  # type: ignore[attr-defined]
        while not ready:
            if not timers:
                raise DeadlockError("every task waits, and no timer is set")
            timer = heappop(timers)
            timer._scheduled = False
            if not timer.cancelled():
                self.advance(max(timer.when() - self.time(), 0.0))
                ready.append(timer)
        callback = ready.popleft()
        if not callback.cancelled():
            callback._run()

    def rewind(self) -> None:
        """Begin again at time 0, with what is left forgotten."""
        self.forget()
        super().rewind()
        self.next_pass = 0
        self.before_pass = None
