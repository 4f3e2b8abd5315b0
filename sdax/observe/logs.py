"""Events in the log, and warnings about functions that block the loop."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from threading import get_ident
from time import perf_counter
from typing import Any, Final

from ..common.checks import checked_number
from ..common.text import counted, one_line, shown
from ..events import (
    AttemptFinished,
    AttemptResumed,
    AttemptStarted,
    AttemptSuspended,
    Cause,
    Event,
    FellBack,
    TaskInfo,
)

_logger: Final = logging.getLogger("sdax")

_UNLOGGED: Final = frozenset({"run", "value", "report"})  # the last two may be large or secret


@dataclass(frozen=True, kw_only=True)
class EventLogger:
    """An observer that logs each event at `DEBUG` on the `sdax` logger.

    It logs the event's name, the number of the run, and all fields except values and reports. A
    function that falls back is a `WARNING`, because its fallback hides a failure. A failure of a
    task that is not required is a `WARNING` in every run, also without an observer.

    With a `blocking_threshold`, in seconds, it also logs a `WARNING` for a function that blocks
    the event loop for longer, from one `await` that waits to the next. Runs inside such a step do
    not count as its own time. Tasks that a function creates in a task group are not watched.
    `clock` returns the time in seconds.

    Raises `TypeError` for a threshold that is not a number and a clock that cannot be called, and
    `ValueError` for a threshold that is negative or not finite.

    >>> logging.getLogger("sdax").setLevel(logging.DEBUG)
    >>> logger = EventLogger(blocking_threshold=0.1)
    >>> report = await processor.process_tasks(ctx, observer=logger)
    """

    blocking_threshold: float | None = None
    clock: Callable[[], float] = perf_counter
    # For each thread, the start of each step that runs there, the innermost last. Steps nest
    # if a function starts a run, because the first steps of the run happen inside.
    _begun: dict[int, list[float]] = field(
        default_factory=dict[int, list[float]], init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        if self.blocking_threshold is not None:
            name = "EventLogger.blocking_threshold"
            number = checked_number(name, self.blocking_threshold)
            object.__setattr__(self, "blocking_threshold", number)
        if not callable(self.clock):
            raise TypeError(f"EventLogger.clock must be callable, got {shown(self.clock)}")

    def __call__(self, event: Event, /) -> None:
        """Log an event."""
        threshold = self.blocking_threshold
        # The time for logging does not count as time of the function. It comes after one step
        # and before the next.
        if threshold is not None and isinstance(event, (AttemptSuspended, AttemptFinished)):
            self._end_step(event, threshold)
        if _logger.isEnabledFor(logging.DEBUG):
            _logger.debug("%s", one_line(" ".join(_words(event))))
        if isinstance(event, FellBack):
            _logger.warning(
                "%s of task %s fell back after %s (run %d): %s",
                event.phase,
                one_line(shown(event.task.name)),
                counted(event.attempts, "attempt"),
                event.run.number,
                one_line(shown(event.exception)),
            )
        if threshold is not None and isinstance(event, (AttemptStarted, AttemptResumed)):
            self._begun.setdefault(get_ident(), []).append(self.clock())

    def _end_step(self, event: AttemptSuspended | AttemptFinished, threshold: float) -> None:
        now, thread = self.clock(), get_ident()
        begun = self._begun[thread]
        took = now - begun.pop()
        if begun:
            begun[:] = [began + took for began in begun]
        else:
            del self._begun[thread]
        if took > threshold:
            _logger.warning(
                "%s of task %s blocked the event loop for %.3f s in attempt %d (run %d): more than "
                "the threshold of %s s; await what takes long, or put it into a thread with "
                "task_thread_func",
                event.phase,
                one_line(shown(event.task.name)),
                took,
                event.attempt,
                event.run.number,
                threshold,
            )


def _words(event: Event) -> Iterator[str]:
    fields: dict[str, Any] = event._asdict()
    yield type(event).__name__
    yield f"run={event.run.number}"
    for name, value in fields.items():
        if value is not None and name not in _UNLOGGED:
            yield f"{name}={_as_text(value)}"


def _as_text(value: object) -> str:
    match value:
        case TaskInfo(name=name):
            return shown(name)
        case Cause(task=task, phase=phase, finished=finished):
            return f"{shown(task.name)}.{phase}" + (" (finished the run)" if finished else "")
        case str():  # a phase or a state, which needs no quotes
            return str(value)
        case _:
            return shown(value)
