"""Chrome's trace event format, which Perfetto and chrome://tracing load."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, TypeAlias

from ..common.text import one_line
from ..states import State
from .notes import call, describe, describe_attempt, describe_cancellation, reason
from .spans import FunctionSpan, RecordedRun

TraceEvent: TypeAlias = dict[str, Any]

# The names of colours in chrome://tracing. Perfetto chooses its own colours.
COLOURS: Final = {
    State.FAILED: "terrible",
    State.TIMED_OUT: "bad",
    State.CANCELLED: "grey",
}


def chrome_trace(runs: Sequence[RecordedRun]) -> dict[str, Any]:
    """Return the trace of all runs. Its times, in microseconds, begin with the first run."""
    events: list[TraceEvent] = []
    if runs:
        origin = min(run.start for run in runs)
        for run in runs:
            events += _Process(run, origin).events()
    return {"traceEvents": events, "displayTimeUnit": "ns"}


class _Process:
    """A run as a process: its first thread has the run and its phases, the others are tasks.

    The first thread has the number of the process, because Perfetto expects this of a main thread.
    Perfetto reads 0 as this number too, and would draw two threads as one.
    """

    def __init__(self, run: RecordedRun, origin: float) -> None:
        self.run = run
        self.origin = origin

    def events(self) -> Iterator[TraceEvent]:
        run = self.run
        main = run.number
        yield self.named("process_name", main, name=f"run {run.number}")
        yield self.named("process_sort_index", main, sort_index=run.number)
        yield self.named("thread_name", main, name="phases")
        yield self.named("thread_sort_index", main, sort_index=main)
        args = {"state": run.state or "under way", "thread": run.thread}
        if run.exception is not None:
            args["exception"] = run.exception
        yield self.slice(f"run {run.number}", "run", main, run.start, run.end, run.state, args)
        for phase in run.phases:
            yield self.slice(phase.phase, "phase", main, phase.start, phase.end, None, {})
        for cancellation in run.cancellations:
            text = describe_cancellation(cancellation)
            yield self.instant(text, "cancellation", main, cancellation.time, "p")
        thread = main
        for title, tasks in run.groups:
            for task in tasks:
                thread += 1
                name = one_line(task.name)
                yield self.named("thread_name", thread, name=name)
                yield self.named("thread_sort_index", thread, sort_index=thread)
                for span in run.by_task[task.name]:
                    yield from self.function(span, thread, title)

    def function(self, span: FunctionSpan, thread: int, group: str) -> Iterator[TraceEvent]:
        if not span.attempts:
            yield self.instant(describe(self.run, span), "task", thread, span.start, "t")
            return
        args: dict[str, Any] = {
            "task": one_line(span.task.name),
            "group": group,
            "state": span.state or "under way",
            "attempts": span.tries,
        }
        if span.exception is not None:
            args["exception"] = span.exception
        if span.spared:
            args["required"] = False
        if span.state is State.CANCELLED:
            args["cause"] = reason(self.run, span.cause)
        yield self.slice(span.phase, "task", thread, span.start, span.end, span.state, args)
        for attempt in span.attempts:
            args = {"state": attempt.state or "under way", "busy_us": _micros(attempt.busy)}
            for key in ("exception", "timeout", "delay", "suppressed", "covers"):
                if (value := getattr(attempt, key)) is not None:
                    args[key] = value
            name = call(attempt)
            start, end, state = attempt.start, attempt.end, attempt.state
            yield self.slice(name, "attempt", thread, start, end, state, args)
            if attempt.state not in (None, State.SUCCEEDED):
                text = describe_attempt(span, attempt)
                yield self.instant(text, "attempt", thread, self.run.until(end), "t")

    def named(self, what: str, thread: int, **args: Any) -> TraceEvent:
        return {"ph": "M", "name": what, "pid": self.run.number, "tid": thread, "args": args}

    def slice(
        self,
        name: str,
        category: str,
        thread: int,
        start: float,
        end: float | None,
        state: State | None,
        args: dict[str, Any],
    ) -> TraceEvent:
        begin = self.time(start)
        event = self.event("X", name, category, thread, begin) | {
            "dur": _micros_between(begin, self.time(self.run.until(end))),
            "args": args,
        }
        if state is not None and state in COLOURS:
            event["cname"] = COLOURS[state]
        return event

    def instant(self, name: str, category: str, thread: int, time: float, scope: str) -> TraceEvent:
        return self.event("i", name, category, thread, self.time(time)) | {"s": scope}

    def event(self, kind: str, name: str, category: str, thread: int, time: float) -> TraceEvent:
        ids = {"pid": self.run.number, "tid": thread}
        return {"ph": kind, "name": name, "cat": category, "ts": time, **ids}

    def time(self, time: float) -> float:
        return _micros(time - self.origin)


def _micros(time: float) -> float:
    """Return a time in microseconds, to the nanosecond, so that spans nest exactly."""
    return round(time * 1e9) / 1000


def _micros_between(start: float, end: float) -> float:
    return round((end - start) * 1000) / 1000
