"""A limit for the retries of many functions and runs together."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from functools import partial
from threading import Lock
from typing import Any, Final

from .common.checks import checked_number
from .common.frozen import Frozen
from .common.text import shown

SLICES: Final = 10  # of the window. They expire one after the other


class RetryBudget(Frozen):
    """Allows retries in proportion to first attempts, so that retries cannot overload a service.

    Without a budget, a service that is down gets `retries + 1` times its usual calls. With a
    budget, first attempts deposit and retries withdraw. Create one budget for each service and
    share it between all functions that call it, in all runs, event loops and threads of a process.

    - `ratio`: the number of retries that each first attempt allows. 0.2 allows one retry for five
      calls.
    - `min_per_second`: retries per second that are always allowed, for a service that is rarely
      called. They can come all at once: `min_per_second * ttl` in `ttl` seconds.
    - `ttl`: the seconds for which deposits and withdrawals count. (They expire in tenths.)
    - `clock`: a function that returns the time in seconds, for tests.

    sdax calls the methods for functions that have the budget as their `retry_budget`. Call them
    yourself for everything else that calls the same service. Cancelled attempts do not count.

    A budget belongs to one process. A copy or a pickle has the same settings, but no deposits and
    no withdrawals.

    The rules are those of Finagle's `RetryBudget`. Raises `TypeError` or `ValueError`, with the
    field and the value, for settings that cannot work.

    >>> budget = RetryBudget(ratio=0.1)
    >>> task_func(load_user, timeout=1.0, retries=3, retry_budget=budget)
    >>> task_func(load_orders, timeout=1.0, retries=3, retry_budget=budget)
    """

    __slots__ = ("_window", "clock", "min_per_second", "ratio", "ttl")
    __match_args__ = ("ratio", "min_per_second", "ttl")

    ratio: float
    min_per_second: float
    ttl: float
    clock: Callable[[], float]
    _window: _Window

    def __init__(
        self,
        ratio: float = 0.2,
        min_per_second: float = 10.0,
        ttl: float = 10.0,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        given = {"ratio": ratio, "min_per_second": min_per_second, "ttl": ttl}
        for name, value in given.items():
            self._set_once(**{name: float(checked_number(f"RetryBudget.{name}", value))})
        if self.ttl == 0:
            raise ValueError(f"RetryBudget.ttl must be greater than 0, got {self.ttl!r}")
        if not callable(clock):
            raise TypeError(
                f"RetryBudget.clock must be a function that returns the time in seconds, "
                f"got {shown(clock)}"
            )
        self._set_once(clock=clock, _window=_Window(self.ttl, clock()))

    def __eq__(self, other: object) -> bool:
        return self is other  # each has counts of its own

    __hash__ = object.__hash__

    def deposit(self) -> None:
        """Deposit for a first attempt that has ended."""
        now, window = self.clock(), self._window
        with window.lock:
            window.move_to(now)
            window.deposits[-1] += 1

    def try_withdraw(self) -> bool:
        """Withdraw a retry and return True, or return False if too little is left.

        It never waits.
        """
        now, window = self.clock(), self._window
        with window.lock:
            window.move_to(now)
            allowed = self._left() >= 1
            window.withdrawals[-1] += allowed
        return allowed

    def give_back(self) -> None:
        """Deposit the price of a cancelled retry again, if the withdrawal still counts."""
        now, window = self.clock(), self._window
        with window.lock:
            window.move_to(now)
            for number in reversed(range(SLICES)):
                if window.withdrawals[number]:
                    window.withdrawals[number] -= 1
                    break

    @property
    def balance(self) -> float:
        """The number of retries that are left now. A fraction is not enough for a retry."""
        now, window = self.clock(), self._window
        with window.lock:
            window.move_to(now)
            return max(0.0, self._left())

    def _left(self) -> float:
        window = self._window
        paid = sum(window.deposits) * self.ratio + self.min_per_second * self.ttl
        return paid - sum(window.withdrawals)

    def __reduce__(self) -> tuple[Any, ...]:
        make = partial(type(self), clock=self.clock)
        return make, (self.ratio, self.min_per_second, self.ttl)


class _Window:
    """Counts of the last `ttl` seconds, in slices. The newest slice is the last."""

    __slots__ = ("began", "deposits", "lock", "ttl", "withdrawals")

    def __init__(self, ttl: float, now: float) -> None:
        self.ttl = ttl
        self.began = now  # the newest slice
        self.deposits = deque([0] * SLICES, maxlen=SLICES)
        self.withdrawals = deque([0] * SLICES, maxlen=SLICES)
        self.lock = Lock()

    def move_to(self, now: float) -> None:
        """Begin new slices up to this moment. Each replaces the oldest slice."""
        passed = (now - self.began) * SLICES / self.ttl
        if passed < 1:  # or another thread read the clock later and was here first
            return
        slices = int(min(passed, SLICES))
        for _ in range(slices):
            self.deposits.append(0)
            self.withdrawals.append(0)
        self.began = now if slices == SLICES else self.began + slices * self.ttl / SLICES
