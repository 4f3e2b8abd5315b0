"""How far `run_many` is, for those who show it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from time import monotonic
from typing import Any, Final, Protocol, runtime_checkable

from ..common.text import shown

_logger: Final = logging.getLogger("sdax")


@runtime_checkable
class ManyObserver(Protocol):
    """An observer that follows inputs and their outcomes rather than the events of each run.

    `run_many` calls `many_changed` when the block is entered, after each outcome and when the
    block has been left.
    """

    def many_changed(self, progress: Progress, /) -> None:
        """Hear that a count has changed, or that the last outcome has come."""


class Progress:
    """Counts of the inputs of one `run_many`.

    - `total`: how many inputs there are, or None if that is not known;
    - `done`: how many outcomes have come, those of failed inputs included;
    - `failed`: how many of them have an error;
    - `is_over`: the block has been left.
    """

    def __init__(self, total: int | None, observers: Sequence[ManyObserver]) -> None:
        self.total = total
        self.done = 0
        self.failed = 0
        self.is_over = False
        self._observers = list(observers)
        self._began = self._ended = monotonic()

    @property
    def seconds(self) -> float:
        """How long the block has been open."""
        return (self._ended if self.is_over else monotonic()) - self._began

    @property
    def per_second(self) -> float:
        """The number of outcomes per second so far."""
        return self.done / self.seconds if self.seconds else 0.0

    @property
    def seconds_left(self) -> float | None:
        """How long the rest takes at this rate, or None if that is not known."""
        if self.total is None or not self.done:
            return None
        return max(0, self.total - self.done) / self.per_second if self.per_second else None

    def begin(self) -> None:
        """The block is entered."""
        self._began = monotonic()
        self._tell()

    def add(self, error: BaseException | None) -> None:
        """An outcome has come."""
        self.done += 1
        if error is not None:
            self.failed += 1
        self._tell()

    def end(self) -> None:
        """The block has been left."""
        self._ended = monotonic()
        self.is_over = True
        self._tell()

    def _tell(self) -> None:
        for observer in list(self._observers):
            try:
                observer.many_changed(self)
            except Exception:
                self._observers.remove(observer)
                _logger.exception("%s failed: it hears no more of this run_many", shown(observer))


def split_observers(observers: Any) -> tuple[tuple[Any, ...], list[ManyObserver]]:
    """Return the observers of each run, and those of inputs and outcomes."""
    of_runs = tuple(each for each in observers if not isinstance(each, ManyObserver))
    return of_runs, [each for each in observers if isinstance(each, ManyObserver)]
