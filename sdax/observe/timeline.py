"""Recording runs."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Mapping
from itertools import count
from pathlib import Path
from time import perf_counter
from typing import Any, Final, TypeAlias
from weakref import ref

from ..checks import checked_limit
from ..events import (
    AttemptFinished,
    AttemptResumed,
    AttemptStarted,
    AttemptSuspended,
    CancellationRequested,
    Cause,
    Event,
    ObservedRun,
    PhaseFinished,
    PhaseStarted,
    RetryScheduled,
    RunFinished,
    RunStarted,
    TaskFinished,
    TaskInfo,
    TaskSkipped,
    TaskStarted,
    TimeoutExpired,
)
from ..report import State
from ..text import shortened, shown
from .critical_path import CriticalPath
from .gantt import draw_runs
from .mermaid import runs_to_mermaid
from .spans import AttemptSpan, Cancellation, FunctionSpan, PhaseSpan, RunSpan
from .timeline_page import timeline_page
from .trace import chrome_trace

LONGEST_EXCEPTION: Final = 300  # characters of its repr that are kept

Place: TypeAlias = tuple[str, Hashable]  # a phase, and the name of a task


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
        self._runs: deque[_Run] = deque(maxlen=checked_limit("max_runs", max_runs))
        # Not by what leads to the context of a run: that may be large, and lead back here. And no
        # WeakKeyDictionary, which looks things up in Python, at each event.
        self._run_of: dict[ref[ObservedRun], _Run] = {}

    def __call__(self, event: Event, /) -> None:
        """Record an event."""
        now = self._clock()
        if isinstance(event, RunStarted):
            run = _Run(next(self._numbers), event.run, now)
            self._run_of[ref(event.run, self._run_of.pop)] = run
            self._runs.append(run)
        else:
            RECORD[type(event)](self._run_of[ref(event.run)], event, now)

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
        return f"<Timeline of {len(self._runs)} runs>"


class _Attempt:
    __slots__ = (
        "busy",
        "delay",
        "end",
        "exception",
        "number",
        "since",
        "start",
        "state",
        "timeout",
    )

    def __init__(self, number: int, now: float) -> None:
        self.number = number
        self.start = now
        self.end: float | None = None
        self.busy = 0.0
        self.since: float | None = now  # when it last began to run; None while it is suspended
        self.state: State | None = None
        self.exception: str | None = None
        self.timeout: float | None = None
        self.delay: float | None = None

    def pause(self, now: float) -> None:
        if self.since is not None:
            self.busy += now - self.since
            self.since = None

    def span(self, now: float) -> AttemptSpan:
        running = 0.0 if self.since is None else now - self.since
        return AttemptSpan(
            self.number,
            self.start,
            self.end,
            self.busy + running,
            self.state,
            self.exception,
            self.timeout,
            self.delay,
        )


class _Function:
    __slots__ = ("attempts", "cause", "end", "exception", "start", "state", "task")

    def __init__(self, task: TaskInfo, now: float) -> None:
        self.task = task
        self.start = now
        self.end: float | None = None
        self.state: State | None = None
        self.exception: str | None = None
        self.cause: Cause | None = None
        self.attempts: list[_Attempt] = []

    def span(self, phase: str, now: float) -> FunctionSpan:
        return FunctionSpan(
            self.task,
            phase,
            self.start,
            self.end,
            self.state,
            self.exception,
            self.cause,
            tuple(attempt.span(now) for attempt in self.attempts.copy()),
        )


class _Run:
    """What is written down of a run: by its own thread alone, and read from any."""

    def __init__(self, number: int, run: ObservedRun, now: float) -> None:
        self.number = number
        self.thread = threading.current_thread().name
        self.tasks = run.tasks
        self.execute_in_order = getattr(run.processor, "execute_order", None) == "dependency"
        self.max_concurrency: int | None = run.processor.max_concurrency
        self.start = now
        self.end: float | None = None
        self.state: State | None = None
        self.exception: str | None = None
        self.phases: list[PhaseSpan] = []
        self.functions: dict[Place, _Function] = {}
        self.cancellations: list[Cancellation] = []

    def span(self, now: float) -> RunSpan:
        functions = self.functions.copy().items()
        return RunSpan(
            number=self.number,
            thread=self.thread,
            start=self.start,
            end=self.end,
            now=now,
            state=self.state,
            exception=self.exception,
            tasks=self.tasks,
            execute_in_order=self.execute_in_order,
            max_concurrency=self.max_concurrency,
            phases=tuple(self.phases),
            functions=tuple(function.span(phase, now) for (phase, _), function in functions),
            cancellations=tuple(self.cancellations),
        )

    def finished(self, event: RunFinished, now: float) -> None:
        self.end = now
        self.state = event.state
        self.exception = _described(event.exception)

    def phase_started(self, event: PhaseStarted, now: float) -> None:
        self.phases.append(PhaseSpan(event.phase, now, None))

    def phase_finished(self, event: PhaseFinished, now: float) -> None:
        last = self.phases[-1]
        self.phases[-1] = PhaseSpan(last.phase, last.start, now)
        self.goes_on(now)

    def task_started(self, event: TaskStarted, now: float) -> None:
        self.functions[event.phase, event.task.name] = _Function(event.task, now)

    def task_finished(self, event: TaskFinished, now: float) -> None:
        place = (event.phase, event.task.name)
        function = self.functions.get(place)
        if function is None:  # the loop's task factory made nothing for it
            function = self.functions[place] = _Function(event.task, now)
        function.end = now
        function.state = event.state
        function.exception = _described(event.exception)
        function.cause = event.cause
        self.goes_on(now)

    def task_skipped(self, event: TaskSkipped, now: float) -> None:
        function = _Function(event.task, now)
        function.end = now
        function.state = State.SKIPPED
        function.cause = event.cause
        self.functions[event.phase, event.task.name] = function

    def attempt_started(self, event: AttemptStarted, now: float) -> None:
        function = self.functions[event.phase, event.task.name]
        function.attempts.append(_Attempt(event.attempt, now))

    def attempt_suspended(self, event: AttemptSuspended, now: float) -> None:
        self.attempt(event).pause(now)

    def attempt_resumed(self, event: AttemptResumed, now: float) -> None:
        self.attempt(event).since = now

    def attempt_finished(self, event: AttemptFinished, now: float) -> None:
        attempt = self.attempt(event)
        attempt.pause(now)
        attempt.end = now
        attempt.state = event.state
        attempt.exception = _described(event.exception)

    def retry_scheduled(self, event: RetryScheduled, now: float) -> None:
        self.attempt(event).delay = event.delay

    def timeout_expired(self, event: TimeoutExpired, now: float) -> None:
        self.attempt(event).timeout = event.timeout

    def cancellation_requested(self, event: CancellationRequested, now: float) -> None:
        self.cancellations.append(Cancellation(now, event.phase, event.cause))

    def attempt(
        self,
        event: AttemptSuspended
        | AttemptResumed
        | AttemptFinished
        | RetryScheduled
        | TimeoutExpired,
    ) -> _Attempt:
        return self.functions[event.phase, event.task.name].attempts[-1]

    def goes_on(self, now: float) -> None:
        """Move the end of a run that nobody waits for any more, and that still cleans up."""
        if self.end is not None:
            self.end = now


def _described(exception: BaseException | None) -> str | None:
    return None if exception is None else shortened(shown(exception), LONGEST_EXCEPTION)


RECORD: Final[dict[type[Any], Callable[[_Run, Any, float], None]]] = {
    RunFinished: _Run.finished,
    PhaseStarted: _Run.phase_started,
    PhaseFinished: _Run.phase_finished,
    TaskStarted: _Run.task_started,
    TaskFinished: _Run.task_finished,
    TaskSkipped: _Run.task_skipped,
    AttemptStarted: _Run.attempt_started,
    AttemptSuspended: _Run.attempt_suspended,
    AttemptResumed: _Run.attempt_resumed,
    AttemptFinished: _Run.attempt_finished,
    RetryScheduled: _Run.retry_scheduled,
    TimeoutExpired: _Run.timeout_expired,
    CancellationRequested: _Run.cancellation_requested,
}
