"""Event loops for one run after another. Each run gets a clean loop, and ends."""

from __future__ import annotations

import asyncio
import gc
import sys
from contextlib import suppress
from typing import Final, Literal, TypeAlias

from .clock import EndlessError, VirtualClockLoop, cancel_all
from .leftovers import Leftovers, timers_of

Clock: TypeAlias = Literal["virtual", "real"]

# A run is given up after a multiple of the time of the undisturbed run, plus this.
PASSES: Final = 10_000
SECONDS: Final = 10.0

LAST_PASSES: Final = 3  # for everything that is just ending with a run
LAST_SECONDS: Final = 0.25


class VirtualLoops:
    """Loops with a virtual clock. Each run begins at time 0."""

    def __init__(self) -> None:
        self.patience = 100 * PASSES
        self._loop: VirtualClockLoop | None = None
        self._turns = 0

    def clean_loop(self) -> VirtualClockLoop:
        """Return a clean loop."""
        if self._loop is None:
            self._loop = VirtualClockLoop()
        self._loop.rewind()
        return self._loop

    def run(self, main: asyncio.Task[None]) -> None:
        """Run until this is done. Raise `DeadlockError` or `EndlessError` if it never ends."""
        loop = self.clean_loop()
        loop.give_up_after(self.patience)
        loop.run_until_complete(main)
        self._turns = loop.turns

    def learn(self) -> None:
        """Expect further runs to take about as long as the last one."""
        self.patience = 100 * self._turns + PASSES

    async def let_end(self, leftovers: Leftovers) -> None:
        """Let tasks end that are just ending."""
        for _ in range(LAST_PASSES):
            if leftovers.tasks():
                await asyncio.sleep(0)

    def tidy(self) -> None:
        """Discard a loop with leftovers."""
        loop = self._loop
        if loop is not None and (asyncio.all_tasks(loop) or timers_of(loop)):
            loop.give_up_after(PASSES)
            self.close()

    def close(self) -> None:
        """Discard the loop."""
        loop, self._loop = self._loop, None
        if loop is not None:
            _end(loop, 3600.0)


class RealLoops:
    """Loops with a real clock, in which sockets and threads work."""

    def __init__(self, longest_timeout: float) -> None:
        self.patience = 60.0 + longest_timeout
        self._longest_timeout = longest_timeout
        self._loop: asyncio.AbstractEventLoop | None = None
        self._seconds = 0.0

    def clean_loop(self) -> asyncio.AbstractEventLoop:
        """Return a clean loop."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
        return self._loop

    def run(self, main: asyncio.Task[None]) -> None:
        """Run until this is done. Raise `EndlessError` if it takes too long."""
        loop = self.clean_loop()
        gave_up = False

        def give_up() -> None:
            nonlocal gave_up
            gave_up = True
            loop.stop()

        timer = loop.call_later(self.patience, give_up)
        began = loop.time()
        try:
            loop.run_until_complete(main)
        except RuntimeError:
            if gave_up:
                raise EndlessError from None
            raise
        finally:
            timer.cancel()
            self._seconds = loop.time() - began

    def learn(self) -> None:
        """Expect further runs to take about as long as the last one."""
        self.patience = 10 * self._seconds + SECONDS + self._longest_timeout

    async def let_end(self, leftovers: Leftovers) -> None:
        """Let tasks end that are just ending."""
        loop = asyncio.get_running_loop()
        until = loop.time() + LAST_SECONDS
        while (tasks := leftovers.tasks()) and loop.time() < until:
            await asyncio.wait(tasks, timeout=until - loop.time())

    def tidy(self) -> None:
        """Discard a loop with leftovers."""
        loop = self._loop
        if loop is not None and (asyncio.all_tasks(loop) or timers_of(loop)):
            self.close()

    def close(self) -> None:
        """Discard the loop."""
        loop, self._loop = self._loop, None
        if loop is not None:
            _end(loop, 1.0)


Loops: TypeAlias = VirtualLoops | RealLoops


def _say_nothing(unraisable: object) -> None:
    pass


def _end(loop: asyncio.AbstractEventLoop, seconds: float) -> None:
    """Cancel what is left in a loop, give it some time, and close the loop."""
    loop.set_exception_handler(lambda loop, context: None)
    with suppress(Exception):
        cancel_all(loop, seconds)
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()
    hook, sys.unraisablehook = sys.unraisablehook, _say_nothing
    try:
        # Tasks that do not end are in the finding, and would complain when they are dropped.
        tasks = asyncio.all_tasks(loop)
        while tasks:
            tasks.pop()._log_destroy_pending = False  # type: ignore[attr-defined]
        gc.collect(0)
    finally:
        sys.unraisablehook = hook
