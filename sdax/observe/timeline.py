"""Records runs, and shows the records."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Mapping
from itertools import count
from pathlib import Path
from time import perf_counter
from typing import Any
from weakref import ref

from ..common.checks import checked_limit
from ..common.text import counted
from ..events import Event, ObservedRun, RunStarted
from .critical_path import CriticalPath
from .gantt import draw_runs
from .mermaid import runs_to_mermaid
from .recording import WRITERS, RunRecord
from .run import RunSpan
from .timeline_page import timeline_page
from .trace import chrome_trace


class Timeline:
    """An observer that records runs: when each function was called, waited, failed and ended.

    It can record any number of runs at once, in several event loops and threads. It keeps the
    latest `max_runs`, or all runs with None. Of a run it keeps the times, the states, the names of
    tasks and the `repr` of exceptions, but no values, contexts or exceptions. The memory of an
    attempt does not depend on the number of its suspensions.

    `clock` returns the time in seconds.

    >>> timeline = Timeline()
    >>> await processor.process_tasks(ctx, observer=timeline)
    >>> print(timeline)
    >>> print(timeline.critical_path())
    >>> timeline.to_html("timeline.html")
    """

    def __init__(
        self, *, max_runs: int | None = 1000, clock: Callable[[], float] = perf_counter
    ) -> None:
        self._clock = clock
        self._numbers = count(1)
        limit = checked_limit("max_runs", max_runs)
        # A deque cannot have a larger maximum than sys.maxsize.
        self._runs: deque[RunRecord] = deque(maxlen=limit and min(limit, sys.maxsize))
        # The key must not refer to the context of a run, which can be large and refer back here.
        # A WeakKeyDictionary would run Python code at each event.
        self._run_of: dict[ref[ObservedRun], RunRecord] = {}

    def __call__(self, event: Event, /) -> None:
        """Record an event."""
        now = self._clock()
        if isinstance(event, RunStarted):
            run = RunRecord(next(self._numbers), event.run, now)
            self._run_of[ref(event.run, self._run_of.pop)] = run
            self._runs.append(run)
        else:
            WRITERS[type(event)](self._run_of[ref(event.run)], event, now)

    @property
    def runs(self) -> tuple[RunSpan, ...]:
        """The record of each run until now, in the order in which they started."""
        now = self._clock()
        return tuple(run.span(now) for run in self._runs.copy())

    def critical_path(
        self, depends_on: Mapping[Any, Iterable[Hashable]] | None = None
    ) -> CriticalPath:
        """Return the chain of functions that the longest finished run waited for.

        Use `RunSpan.critical_path` for any other run. Raises `ValueError` if no run has finished.

        >>> for step in timeline.critical_path().steps:
        ...     print(step.name, step.phase, step.hold, step.without)
        """
        finished = [run for run in self.runs if run.is_over]
        if not finished:
            raise ValueError("critical_path: no run of this timeline has finished yet")
        return max(finished, key=lambda run: run.duration).critical_path(depends_on)

    def to_chrome_trace(self) -> dict[str, Any]:
        """Return the runs in Chrome's trace event format.

        https://ui.perfetto.dev and chrome://tracing show it: each run as a process, and each of its
        tasks as a thread of it. Write it with `ensure_ascii=False`, or Perfetto shows `\\u00b5s`
        instead of `µs`.

        >>> trace = json.dumps(timeline.to_chrome_trace(), ensure_ascii=False)
        >>> Path("trace.json").write_text(trace, encoding="utf-8")
        """
        return chrome_trace(self.runs)

    def to_mermaid(self) -> str:
        """Return a Mermaid gantt diagram of the run.

        If there are several runs, it has a bar for each. `RunSpan.to_mermaid` draws a single run.

        >>> Path("timeline.mmd").write_text(timeline.to_mermaid(), encoding="utf-8")
        """
        runs = self.runs
        return runs[0].to_mermaid() if len(runs) == 1 else runs_to_mermaid(runs)

    def to_html(self, path: str | Path, *, title: str = "Timeline") -> None:
        """Write one HTML page that needs no other file.

        It shows each run's functions over time, all failures, retries and cancellations with their
        reasons, and its critical path.

        >>> timeline.to_html("timeline.html")
        """
        Path(path).write_text(timeline_page(self.runs, title), encoding="utf-8")

    def to_text(self, width: int | None = None, *, ascii: bool | None = None) -> str:
        """Return a gantt chart of the run in text, at most `width` (at least 41) characters wide.

        If there are several runs, it has a line for each, and the chart of the longest run. By
        default it is as wide as the terminal, and in ASCII if standard output can show nothing
        else.

        >>> print(timeline.to_text(width=100))
        """
        return draw_runs(self.runs, width, ascii)

    def __str__(self) -> str:
        return self.to_text()

    def __repr__(self) -> str:
        return f"<Timeline of {counted(len(self._runs), 'run')}>"
