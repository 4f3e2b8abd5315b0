"""Recording runs, and what can be had of the record."""

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

    Any number of runs may be recorded at once, in several event loops and threads. The latest
    `max_runs` are kept, all with None. What is kept of a run is its times and states, the names
    of tasks, and what `repr` says of exceptions: neither values nor contexts, nor the exceptions
    themselves. It takes memory for each attempt, however often that is suspended.

    `clock` tells the time in seconds.

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
        # Nothing can hold more than sys.maxsize, nor be told to.
        self._runs: deque[RunRecord] = deque(maxlen=limit and min(limit, sys.maxsize))
        # Not by what leads to the context of a run: that may be large, and lead back here. And no
        # WeakKeyDictionary, which looks things up in Python, at each event.
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
        """What was recorded of each run until now, in the order in which they started."""
        now = self._clock()
        return tuple(run.span(now) for run in self._runs.copy())

    def critical_path(
        self, depends_on: Mapping[Any, Iterable[Hashable]] | None = None
    ) -> CriticalPath:
        """Return the chain of functions that the run has waited for: of the longest run, if there
        are several that are over. See `RunSpan.critical_path`, which is for any of them.

        Raises `ValueError` if no run is over.

        >>> for step in timeline.critical_path().steps:
        ...     print(step.name, step.phase, step.hold, step.without)
        """
        finished = [run for run in self.runs if run.is_over]
        if not finished:
            raise ValueError("critical_path: no run of this timeline is over yet")
        return max(finished, key=lambda run: run.duration).critical_path(depends_on)

    def to_chrome_trace(self) -> dict[str, Any]:
        """Return the runs in Chrome's trace event format, for https://ui.perfetto.dev and
        chrome://tracing: each run as a process, and each of its tasks as a thread of it. Written
        without `ensure_ascii=False`, Perfetto shows `\\u00b5s` for `µs`.

        >>> trace = json.dumps(timeline.to_chrome_trace(), ensure_ascii=False)
        >>> Path("trace.json").write_text(trace, encoding="utf-8")
        """
        return chrome_trace(self.runs)

    def to_mermaid(self) -> str:
        """Return a Mermaid gantt diagram: of the run, or of all runs, a bar for each, if there
        are several (`RunSpan.to_mermaid` is for each of them).

        >>> Path("timeline.mmd").write_text(timeline.to_mermaid(), encoding="utf-8")
        """
        runs = self.runs
        return runs[0].to_mermaid() if len(runs) == 1 else runs_to_mermaid(runs)

    def to_html(self, path: str | Path, *, title: str = "Timeline") -> None:
        """Write one HTML page that needs nothing else: each run's functions over time, what
        failed, was retried or cancelled and why, and its critical path.

        >>> timeline.to_html("timeline.html")
        """
        Path(path).write_text(timeline_page(self.runs, title), encoding="utf-8")

    def to_text(self, width: int | None = None, *, ascii: bool | None = None) -> str:
        """Return a gantt chart in text, at most `width` characters wide (41, if that is more): of
        the run, or of all runs, a line for each, and of the longest, if there are several.

        By default it is as wide as the terminal, and in ASCII where standard output can show no
        more.

        >>> print(timeline.to_text(width=100))
        """
        return draw_runs(self.runs, width, ascii)

    def __str__(self) -> str:
        return self.to_text()

    def __repr__(self) -> str:
        return f"<Timeline of {counted(len(self._runs), 'run')}>"
