"""Gantt charts in plain text, for terminals."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from shutil import get_terminal_size
from typing import Final

from ..common.order import PHASES
from ..common.text import cells, counted, fitted, one_line, wrapped
from ..states import State
from .notes import describe_runs, notes_of
from .spans import FunctionSpan, RecordedRun
from .times import seconds, ticks

WIDEST_LABEL: Final = 32
NARROWEST_LABEL: Final = 8
NARROWEST_CHART: Final = 20
NARROWEST_TICK: Final = 5
MOST_TICKS: Final = 12
TIME_WIDTH: Final = 10
MOST_RUNS_SHOWN: Final = 40
MOST_NOTES_SHOWN: Final = 40


@dataclass(frozen=True)
class Marks:
    """The characters of a chart, and their meanings."""

    phases: dict[str, str]
    states: dict[State, str]
    pause: str
    fallback: str
    running: str
    ellipsis: str


UNICODE: Final = Marks(
    dict(zip(PHASES, "▒█░", strict=True)),
    {State.FAILED: "✗", State.TIMED_OUT: "◷", State.CANCELLED: "⊘", State.SKIPPED: "◇"},
    "·",
    "↷",
    "▶",
    "…",
)
ASCII: Final = Marks(
    dict(zip(PHASES, "=#-", strict=True)),
    {State.FAILED: "x", State.TIMED_OUT: "T", State.CANCELLED: "C", State.SKIPPED: "s"},
    ".",
    "f",
    ">",
    "~",
)


def draw_runs(
    runs: Sequence[RecordedRun], width: int | None = None, only_ascii: bool | None = None
) -> str:
    """Draw a run. If there are several, draw a line for each, and the longest run in full."""
    if not runs:
        return "no runs"
    if len(runs) == 1:
        return draw_run(runs[0], width, only_ascii)
    chart = _Chart(width, only_ascii, min(run.start for run in runs), latest(runs))
    lines = chart.wrapped(f"{describe_runs(runs)}; {seconds(chart.duration)} in all")
    shown = notable_runs(runs, MOST_RUNS_SHOWN)
    chart.label_width = max(cells(f"run {run.number}") for run in shown) + 2
    lines.append(chart.axis())
    lines += (chart.row_of_run(run) for run in shown)
    if len(shown) < len(runs):
        lines.append(f"  (and {counted(len(runs) - len(shown), 'shorter run')})")
    longest = max(runs, key=lambda run: run.duration)
    return "\n".join([*lines, *chart.legend(), "", draw_run(longest, width, only_ascii)])


def draw_run(run: RecordedRun, width: int | None = None, only_ascii: bool | None = None) -> str:
    """Draw a run: a line for each task, by level or layer, and notes."""
    chart = _Chart(width, only_ascii, run.start, run.until(run.end))
    names = [one_line(task.name) for _, tasks in run.groups for task in tasks]
    room = chart.width - NARROWEST_CHART - TIME_WIDTH - 3
    chart.label_width = min(WIDEST_LABEL, room, max(map(cells, names), default=0) + 2)
    head = f"run {run.number}: {run.state or 'under way'}, {seconds(run.duration)}"
    if run.exception is not None:
        head += f", {one_line(run.exception)}"
    lines = [*chart.wrapped(head), chart.axis()]
    for title, tasks in run.groups:
        lines.append(title)
        for task in tasks:
            lines.append(chart.row_of_task(one_line(task.name), run.by_task[task.name], run))
    lines += chart.legend()
    notes = notes_of(run)
    for note in notes[:MOST_NOTES_SHOWN]:
        time = seconds(note.time - run.start)
        lines += chart.wrapped(note.text, f"{time:>{TIME_WIDTH}}  ")
    if len(notes) > MOST_NOTES_SHOWN:
        lines.append(f"  (and {len(notes) - MOST_NOTES_SHOWN} more)")
    text = "\n".join(lines)
    return text if chart.marks is UNICODE else in_ascii(text)


def latest(runs: Sequence[RecordedRun]) -> float:
    """Return when the last of the runs ended."""
    return max(run.until(run.end) for run in runs)


def notable_runs(runs: Sequence[RecordedRun], most: int) -> list[RecordedRun]:
    """Return the longest runs, in the order in which they started."""
    longest = sorted(runs, key=lambda run: run.duration, reverse=True)[:most]
    return sorted(longest, key=lambda run: run.number)


class _Chart:
    """Columns of characters, on a scale of time."""

    def __init__(
        self, width: int | None, only_ascii: bool | None, start: float, end: float
    ) -> None:
        self.marks = (
            ASCII if (not can_show_unicode() if only_ascii is None else only_ascii) else UNICODE
        )
        wide = get_terminal_size().columns if width is None else width
        self.width = max(wide, NARROWEST_LABEL + NARROWEST_CHART + TIME_WIDTH + 3)
        self.start = start
        self.duration = end - start
        self.label_width = 0
        self.used: dict[str, str] = {}  # marks, and their meanings

    @property
    def columns(self) -> int:
        return self.width - self.label_width - TIME_WIDTH - 3

    def column(self, time: float) -> int:
        if self.duration <= 0:
            return 0
        share = (time - self.start) / self.duration
        return min(self.columns - 1, max(0, int(share * self.columns)))

    def axis(self) -> str:
        """Return all marks of time that fit side by side."""
        most = min(MOST_TICKS, self.columns // NARROWEST_TICK)
        lines = (self.marked(number) for number in range(most, 1, -1))
        return (" " * (self.label_width + 1) + next(filter(None, lines), "|0")).rstrip()

    def marked(self, most: int) -> str | None:
        """Return at most `most` marks, or None if two of them would touch."""
        line = ""
        for time, text in ticks(self.duration, most):
            column = self.column(self.start + time)
            if column + len(text) < self.columns:
                text = "|" + text
            else:
                text += "|"
                column -= len(text) - 1
            if line and column < len(line) + 2:
                return None
            line = line.ljust(column) + text
        return line

    def row_of_run(self, run: RecordedRun) -> str:
        line = [" "] * self.columns
        self.fill(
            line, run.start, run.until(run.end), self.use(self.marks.phases["execute"], "run")
        )
        self.mark(line, run.until(run.end), run.state)
        return self.row(f"run {run.number}", line, run.duration)

    def row_of_task(self, name: str, spans: Sequence[FunctionSpan], run: RecordedRun) -> str:
        line = [" "] * self.columns
        for span in spans:
            before: float | None = None
            for attempt in span.attempts:
                if before is not None and attempt.covers is None:
                    pause = self.use(self.marks.pause, "pause before a retry")
                    self.fill(line, before, attempt.start, pause)
                before = run.until(attempt.end)
                self.fill(line, attempt.start, before, self.use_phase(span.phase))
            if span.attempts and span.attempts[-1].delay is not None and before is not None:
                self.fill(
                    line,
                    before,
                    run.until(span.end),
                    self.use(self.marks.pause, "pause before a retry"),
                )
        # Later marks in the same column must not replace it.
        for span in spans:
            for attempt in span.attempts:
                self.mark(line, run.until(attempt.end), attempt.state)
                if attempt.covers is not None:
                    line[self.column(attempt.start)] = self.use(self.marks.fallback, "fallback")
            self.mark(line, run.until(span.end), span.state)
        called = [span for span in spans if span.attempts]
        time = sum(run.until(span.end) - span.start for span in called) if called else None
        return self.row(name, line, time)

    def row(self, name: str, line: list[str], time: float | None) -> str:
        label = fitted("  " + name, self.label_width)
        shown = "" if time is None else seconds(time)
        return f"{label} {''.join(line)} {shown:>{TIME_WIDTH}}".rstrip()

    def fill(self, line: list[str], start: float, end: float, mark: str) -> None:
        first, last = self.column(start), self.column(end)
        for column in range(first, max(first + 1, last)):
            line[column] = mark

    def mark(self, line: list[str], time: float, state: State | None) -> None:
        if state is None:
            mark = self.use(self.marks.running, "under way")
        elif state in self.marks.states:
            mark = self.use(self.marks.states[state], str(state))
        else:
            return
        line[max(0, self.column(time) - (state is not State.SKIPPED))] = mark

    def use_phase(self, phase: str) -> str:
        return self.use(self.marks.phases[phase], phase)

    def use(self, mark: str, meaning: str) -> str:
        self.used[mark] = meaning
        return mark

    def legend(self) -> list[str]:
        """Return the meanings of the used marks."""
        if not self.used:
            return []
        indent = " " * (self.label_width + 1)
        meanings = [f"{mark} {meaning}" for mark, meaning in self.used.items()]
        self.used = {}
        return [indent + line for line in wrapped(meanings, self.width - len(indent), "   ")]

    def wrapped(self, text: str, head: str = "") -> list[str]:
        """Return a text in lines as wide as the chart, the first after a head, all below it."""
        first, *others = wrapped(text.split(" "), self.width - len(head))
        return [head + first, *(" " * len(head) + line for line in others)]


def can_show_unicode() -> bool:
    """Return True if standard output can show the marks that are not in ASCII."""
    marks = "".join([*UNICODE.phases.values(), *UNICODE.states.values(), "·↷▶…"])
    try:
        marks.encode(getattr(sys.stdout, "encoding", None) or "ascii")
    except (UnicodeError, LookupError):
        return False
    return True


def in_ascii(text: str) -> str:
    """Return a text with all characters outside ASCII replaced."""
    return text.replace("µs", "us").encode("ascii", "replace").decode()
