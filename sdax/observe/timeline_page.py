"""The page of a timeline."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from ..common.text import one_line
from ..states import State
from .critical_path import (
    CriticalPath,
    PathStep,
    critical_path,
    describe_graph,
    describe_shorter,
    divided,
)
from .notes import (
    describe,
    describe_attempt,
    describe_cancellation,
    describe_runs,
    label,
    notes_of,
)
from .page import page, text
from .spans import AttemptSpan, FunctionSpan, RecordedRun
from .times import seconds, ticks

MOST_TICKS: Final = 8
MOST_STEPS: Final = 100
INSIDE: Final = {
    None: "",
    State.SUCCEEDED: "",
    State.FAILED: "✕ failed",
    State.TIMED_OUT: "timeout",
    State.CANCELLED: "cancelled",
    State.SKIPPED: "",
}

LEGEND: Final = """\
<div class="legend">
<span><i><b class="bar pre_execute" style="width:100%"></b></i>pre_execute</span>
<span><i><b class="bar execute" style="width:100%"></b></i>execute</span>
<span><i><b class="bar post_execute" style="width:100%"></b></i>post_execute</span>
<span><i><b class="bar failed" style="width:100%"></b></i>failed</span>
<span><i><b class="bar timed-out" style="width:100%"></b></i>timed out</span>
<span><i><b class="bar cancelled" style="width:100%"></b></i>cancelled</span>
<span><i><b class="bar pause" style="width:100%;top:5px"></b></i>pause before a retry</span>
<span><i><b class="bar skipped" style="left:10px;top:1px"></b></i>skipped</span>
<span><i><b class="bar execute critical" style="width:100%"></b></i>
underlined: on the critical path</span>
</div>"""


def timeline_page(runs: Sequence[RecordedRun], title: str) -> str:
    """Return the page of some runs, as HTML."""
    parts: list[str] = []
    if not runs:
        parts.append('<p class="soft">No run was recorded.</p>')
    else:
        parts.append(LEGEND)
        if len(runs) > 1:
            parts += _overview(runs)
        longest = max(runs, key=lambda run: run.duration)
        for run in runs:
            parts += _section(run, opened=run is longest)
    return page(title, "\n".join(parts))


def _overview(runs: Sequence[RecordedRun]) -> Iterator[str]:
    start = min(run.start for run in runs)
    scale = _Scale(start, max(run.until(run.end) for run in runs) - start)
    yield '<section class="panel"><h2>All runs</h2>'
    yield f'<p class="soft">{describe_runs(runs)}</p><div class="chart">'
    yield from scale.frame()
    for run in runs:
        state = _class(run.state)
        tip = text(_summary(run))
        bar = scale.bar(run.start, run.until(run.end), f"execute {state}", tip, INSIDE[run.state])
        name = f'<a href="#run-{run.number}">run {run.number}</a>'
        yield _row(name, bar, seconds(run.duration))
    yield "</div></section>"


def _section(run: RecordedRun, *, opened: bool) -> Iterator[str]:
    opening = " open" if opened else ""
    path = critical_path(run) if run.is_over else None
    yield f'<details class="panel" id="run-{run.number}"{opening}><summary><b>run {run.number}</b>'
    yield f"{_badge(run.state)} {seconds(run.duration)}"
    if run.exception is not None:
        yield f" <code>{text(one_line(run.exception))}</code>"
    yield f' <span class="soft">in thread {text(run.thread)}</span></summary>'
    yield from _chart(run, () if path is None else path.steps)
    yield from _notes(run)
    if path is not None and path.steps:
        yield from _path(path)
    yield "</details>"


def _chart(run: RecordedRun, steps: Sequence[PathStep]) -> Iterator[str]:
    scale = _Scale(run.start, run.duration)
    critical = {id(step.span): step for step in steps}
    yield '<div class="chart">'
    yield from scale.frame()
    bands = [
        f'<b class="band {phase.phase}" {scale.place(phase.start, run.until(phase.end))}'
        f"{_tip(f'{phase.phase}: {seconds(run.until(phase.end) - phase.start)}')}>{phase.phase}</b>"
        for phase in run.phases
    ]
    yield f'<div class="row bands"><div></div><div class="track">{"".join(bands)}</div></div>'
    for title, tasks in run.groups:
        yield f'<div class="group">{title}</div>'
        for task in tasks:
            spans = run.by_task[task.name]
            bars = "".join(_bars(run, span, scale, critical) for span in spans)
            time = sum(run.until(span.end) - span.start for span in spans)
            called = any(span.attempts for span in spans)
            name = one_line(task.name)
            detail = (
                f"{name}\ndepends on {', '.join(map(one_line, task.depends_on))}"
                if task.depends_on
                else name
            )
            shown = f"<span{_tip(detail)}>{text(name)}</span>"
            yield _row(shown, bars, seconds(time) if called else "")
    lines = [
        f'<u style="left:{scale.percent(each.time)}%"'
        f"{_tip(f'{seconds(each.time - run.start)}: {describe_cancellation(each)}')}></u>"
        for each in run.cancellations
    ]
    yield f'<div class="lines">{"".join(lines)}</div></div>'


def _bars(
    run: RecordedRun, span: FunctionSpan, scale: _Scale, critical: dict[int, PathStep]
) -> str:
    facts = [describe(run, span)]
    if not span.attempts:
        return scale.bar(span.start, span.start, "skipped", text(facts[0]))
    step = critical.get(id(span))
    facts.append(
        f"began at {seconds(span.start - run.start)}, "
        f"took {seconds(run.until(span.end) - span.start)}"
    )
    if step is not None:
        facts.append(f"held the run for {seconds(step.hold)}")
        if step.without is not None:
            facts.append(f"without it the run would have taken {seconds(step.without)}")
    parts: list[str] = []
    before: float | None = None
    for attempt in span.attempts:
        if before is not None and attempt.covers is None:
            parts.append(
                scale.bar(
                    before,
                    attempt.start,
                    "pause",
                    text(
                        f"{label(span)}: pause of {seconds(attempt.start - before)} before a retry"
                    ),
                )
            )
        before = run.until(attempt.end)
        last = attempt is span.attempts[-1]
        classes = f"{span.phase} {_class(attempt.state)}{' critical' if step else ''}"
        tip = text("\n".join(facts + _attempt_facts(span, attempt)))
        parts.append(scale.bar(attempt.start, before, classes, tip, INSIDE[attempt.state]))
        if last and attempt.delay is not None:
            tip = text(f"{label(span)}: in the pause before a retry")
            end = run.until(span.end)
            parts.append(scale.bar(before, end, "pause", tip))
    return "".join(parts)


def _attempt_facts(span: FunctionSpan, attempt: AttemptSpan) -> list[str]:
    facts: list[str] = []
    if len(span.attempts) > 1:
        facts.append(describe_attempt(span, attempt))
    if attempt.end is not None:
        waiting = max(0.0, attempt.end - attempt.start - attempt.busy)
        facts.append(f"ran for {seconds(attempt.busy)}, waited for {seconds(waiting)}")
    return facts


def _notes(run: RecordedRun) -> Iterator[str]:
    notes = notes_of(run)
    if not notes:
        return
    yield "<h2>What happened</h2><table>"
    for note in notes:
        time = f'<td class="number">{seconds(note.time - run.start)}</td>'
        badge = f'<span class="badge {note.kind.replace(" ", "-")}">{note.kind}</span>'
        yield f"<tr>{time}<td>{badge}</td><td>{text(note.text)}</td></tr>"
    yield "</table>"


def _path(path: CriticalPath) -> Iterator[str]:
    yield "<h2>Critical path: what the run waited for</h2><table>"
    yield "<tr><th>function</th><th>held the run</th><th>run without waiting for it</th></tr>"
    shown, left = divided(path, MOST_STEPS)
    for step in shown:
        without = "unknown" if step.without is None else seconds(step.without)
        yield f"<tr><td>{text(label(step.span))}</td>"
        yield f'<td class="number">{seconds(step.hold)}</td><td class="number">{without}</td></tr>'
    if left:
        hold = seconds(sum(step.hold for step in left))
        yield f'<tr class="soft"><td>{describe_shorter(left)}</td>'
        yield f'<td class="number">{hold}</td></tr>'
    yield "</table>"
    if path.graph is not None:
        yield f'<p class="soft">{text(describe_graph(path.graph))}</p>'


class _Scale:
    """Times as shares of a width."""

    def __init__(self, start: float, duration: float) -> None:
        self.start = start
        self.duration = duration

    def percent(self, time: float) -> str:
        share = 0.0 if self.duration <= 0 else (time - self.start) / self.duration
        return f"{100 * min(1.0, max(0.0, share)):.3f}".rstrip("0").rstrip(".")

    def place(self, start: float, end: float) -> str:
        width = self.percent(self.start + end - start)
        return f'style="left:{self.percent(start)}%;width:{width}%"'

    def bar(self, start: float, end: float, classes: str, tip: str, inside: str = "") -> str:
        where = self.place(start, end)
        return f'<b class="bar {classes}" {where} data-tip="{tip}" tabindex="0">{inside}</b>'

    def frame(self) -> Iterator[str]:
        """Yield the axis, and the lines that go down from it."""
        marks = list(ticks(self.duration, MOST_TICKS))
        places = [self.percent(self.start + time) for time, _ in marks]
        yield '<div class="row axis"><div></div><div class="track">'
        for number, (place, (_, shown)) in enumerate(zip(places, marks, strict=True), 1):
            # Where there is little room, only each second or fourth has its label, with the last.
            left = len(marks) - number
            rare = "" if number == 1 else "few " if left % 2 else "some " if left % 4 else ""
            if float(place) < 97:
                yield f'<span class="{rare}tick" style="left:{place}%">{shown}</span>'
            else:
                right = 100 - float(place)
                yield f'<span class="{rare}last tick" style="right:{right:.3f}%">{shown}</span>'
        yield "</div></div>"
        lines = "".join(f'<b style="left:{place}%"></b>' for place in places)
        yield f'<div class="lines">{lines}</div>'


def _row(name: str, bars: str, time: str) -> str:
    return (
        f'<div class="row"><div class="name">{name}</div><div class="track">{bars}</div>'
        f'<div class="time">{time}</div></div>'
    )


def _tip(plain: str) -> str:
    return f' data-tip="{text(plain)}"'


def _badge(state: State | None) -> str:
    return f'<span class="badge {_class(state)}">{state or "under way"}</span>'


def _class(state: State | None) -> str:
    return "running" if state is None else state.replace(" ", "-")


def _summary(run: RecordedRun) -> str:
    return f"run {run.number}: {run.state or 'under way'}, {seconds(run.duration)}" + (
        "" if run.exception is None else f"\n{one_line(run.exception)}"
    )
