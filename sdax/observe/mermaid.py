"""Gantt diagrams for Mermaid."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from ..common.text import counted, one_line
from ..diagram import escaped
from ..states import FAILURES, State
from .gantt import notable_runs
from .notes import call, describe_cancellation
from .spans import FunctionSpan, RecordedRun

MOST_RUNS_SHOWN: Final = 200
# Mermaid's bars have whole milliseconds. In a shorter chart, a microsecond is drawn as one.
SHORT: Final = 1.0  # seconds

TAGS: Final = {
    None: "active, ",
    State.SUCCEEDED: "",
    State.FAILED: "crit, ",
    State.TIMED_OUT: "crit, active, ",
    State.CANCELLED: "done, ",
    State.SKIPPED: "done, ",
}


def run_to_mermaid(run: RecordedRun) -> str:
    """Draw a run: a section for each level or layer, a bar for each function or attempt."""
    scale = _Scale(run.start, run.duration)
    title = f"run {run.number} {run.state or 'under way'}, times in {scale.unit}"
    lines = [*_head(title)]
    for name, tasks in run.groups:
        lines.append(f"    section {name}")
        for task in tasks:
            for span in run.by_task[task.name]:
                lines += _bars(run, span, scale)
    if run.cancellations:
        lines.append("    section cancellations")
        for each in run.cancellations:
            moment = scale.moment(each.time)
            text = escaped(describe_cancellation(each))
            lines.append(f"    {text} :crit, milestone, {moment}, {moment}")
    return "\n".join(lines) + "\n"


def runs_to_mermaid(runs: Sequence[RecordedRun]) -> str:
    """Draw a bar for each of several runs, or for the longest runs if there are many."""
    start = min((run.start for run in runs), default=0.0)
    end = max((run.until(run.end) for run in runs), default=0.0)
    scale = _Scale(start, end - start)
    lines = [*_head(f"{counted(len(runs), 'run')}, times in {scale.unit}"), "    section runs"]
    for run in notable_runs(runs, MOST_RUNS_SHOWN):
        label = f"run {run.number}{_remark(run.state)}"
        lines.append(scale.bar(label, run.state, run.start, run.until(run.end)))
    return "\n".join(lines) + "\n"


class _Scale:
    def __init__(self, origin: float, duration: float) -> None:
        self.origin = origin
        self.per_second, self.unit = (1e6, "µs") if duration < SHORT else (1e3, "ms")

    def moment(self, time: float) -> int:
        return round((time - self.origin) * self.per_second)

    def bar(self, label: str, state: State | None, start: float, end: float) -> str:
        first = self.moment(start)
        # Mermaid does not show a bar without length.
        last = max(first + 1, self.moment(end))
        return f"    {escaped(label)} :{TAGS[state]}{first}, {last}"


def _head(title: str) -> Iterator[str]:
    yield "gantt"
    yield f"    title {title}"
    yield "    dateFormat x"
    yield "    axisFormat %Q"
    yield "    todayMarker off"


def _bars(run: RecordedRun, span: FunctionSpan, scale: _Scale) -> Iterator[str]:
    # The phase comes first, because Mermaid interprets a line that begins with "section".
    label = f"{span.phase} {one_line(span.task.name)}"
    if not span.attempts:
        moment = scale.moment(span.start)
        yield f"    {escaped(label + _remark(span.state))} :done, milestone, {moment}, {moment}"
        return
    several = len(span.attempts) > 1
    for attempt in span.attempts:
        number = f", {call(attempt)}" if several else ""
        state = span.state if attempt is span.attempts[-1] else attempt.state
        end = run.until(attempt.end)
        remark = _remark(state)
        if span.spared and state in FAILURES:
            remark = f" ({state}, not required)"
        yield scale.bar(f"{label}{number}{remark}", state, attempt.start, end)


def _remark(state: State | None) -> str:
    return "" if state is State.SUCCEEDED else f" ({state or 'under way'})"
