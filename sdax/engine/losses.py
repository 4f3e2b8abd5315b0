"""The memory of a run about what went wrong and has not ended it."""

from __future__ import annotations

from typing import Any

from ..common.order import PHASES
from .stack import MOST_VAIN_ATTEMPTS


class Losses:
    """The memory of a run about failures that have not stopped it."""

    __slots__ = ("causes", "holding", "started", "unprepared")

    def __init__(self) -> None:
        # Failed, by phase: what depends on them is not called.
        self.holding: tuple[list[int], ...] = tuple([] for _ in PHASES)
        self.unprepared = set[int]()  # failed in `pre_execute`: their `execute` is not called
        self.started: set[int] | None = None  # after `pre_execute`: the tasks that must clean up
        self.causes = dict[int, tuple[int, int]]()  # see `Causes`


class Setbacks:
    """The memory of a run about exceptions that were raised where they should not be."""

    __slots__ = ("again", "stock", "vain")

    def __init__(self) -> None:
        self.again = set[int]()  # called twice, because the first call was refused
        self.stock: Any = None  # what was left the last time
        self.vain = 0  # how often the same was left

    def are_too_many(self, stock: Any) -> bool:
        """Return True if the same was left some times, None for what moves by itself."""
        self.vain = self.vain + 1 if stock is not None and stock == self.stock else 0
        self.stock = stock
        return self.vain >= MOST_VAIN_ATTEMPTS
