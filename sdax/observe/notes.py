"""Notes about a run: failures, timeouts, retries, and the reasons of cancellations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final, NamedTuple

from ..common.text import counted, listed, one_line
from ..events import Cause
from ..states import State
from .spans import AttemptSpan, Cancellation, FunctionSpan, RecordedRun
from .times import seconds

NAMES_SHOWN: Final = 3


class Note(NamedTuple):
    """An event worth a line: its time, its kind and a sentence."""

    time: float
    kind: str  # "retry", "fallback", "failed", "timed out", "cancelled" or "skipped"
    text: str


def notes_of(run: RecordedRun) -> list[Note]:
    """Return all notes, in the order of time."""
    notes: list[Note] = []
    skipped: dict[tuple[str, Cause | None], list[FunctionSpan]] = {}
    for span in run.functions:
        if span.state is State.SKIPPED:
            skipped.setdefault((span.phase, span.cause), []).append(span)
            continue
        notes += [
            Note(run.until(attempt.end), "retry", describe_attempt(span, attempt))
            for attempt in span.attempts
            if attempt.delay is not None or attempt.suppressed is not None
        ]
        if span.fell_back:
            text = f"{label(span)} falls back, to cover {one_line(span.attempts[-1].covers or '')}"
            notes.append(Note(span.attempts[-1].start, "fallback", text))
        if span.state in (State.FAILED, State.TIMED_OUT, State.CANCELLED):
            notes.append(Note(run.until(span.end), str(span.state), describe(run, span)))
    for cancellation in run.cancellations:
        notes.append(Note(cancellation.time, "cancelled", describe_cancellation(cancellation)))
    for (phase, cause), spans in skipped.items():
        names = (one_line(span.task.name) for span in spans)
        shown = listed(names, len(spans), NAMES_SHOWN)
        text = f"{phase} of {shown} skipped, because {reason(run, cause)}"
        notes.append(Note(spans[0].start, "skipped", text))
    return sorted(notes, key=lambda note: note.time)


def describe_runs(runs: Sequence[RecordedRun]) -> str:
    """Return the number of runs, and how they ended."""
    states = Counter("under way" if run.state is None else str(run.state) for run in runs)
    how = ", ".join(f"{number} {state}" for state, number in states.items())
    dropped = runs[0].number - 1
    earlier = f" ({counted(dropped, 'earlier run')} not kept)" if dropped else ""
    return f"{counted(len(runs), 'run')}: {how}{earlier}"


def label(span: FunctionSpan) -> str:
    """Return the name of a function: its task and phase."""
    return f"{one_line(span.task.name)}.{span.phase}"


def describe(run: RecordedRun, span: FunctionSpan) -> str:
    """Describe the result of a function."""
    made = " by its fallback" if span.fell_back else ""
    if span.tries > 1:
        made += f", after {span.tries} attempts"
    match span.state:
        case None:
            return f"{label(span)} is under way"
        case State.CANCELLED | State.SKIPPED:
            return f"{label(span)} {span.state}{made}, because {reason(run, span.cause)}"
        case State.FAILED | State.TIMED_OUT:
            spared = ", which is not required," if span.spared else ""
            return f"{label(span)}{spared} {span.state}{made}: {one_line(span.exception or '')}"
        case _:
            return f"{label(span)} {span.state}{made}"


def describe_attempt(span: FunctionSpan, attempt: AttemptSpan) -> str:
    """Describe the result of an attempt, and the delay before the next attempt, if any."""
    what = f"{label(span)}, {call(attempt)}: {attempt.state or 'under way'}"
    if attempt.timeout is not None:
        what += f" after {seconds(attempt.timeout)}"
    elif attempt.exception is not None:
        what += f": {one_line(attempt.exception)}"
    if attempt.suppressed is not None:
        return f"{what}; no further attempt: {attempt.suppressed}"
    return what if attempt.delay is None else f"{what}; again in {seconds(attempt.delay)}"


def call(attempt: AttemptSpan) -> str:
    """Return the name of an attempt: its number, or the word fallback."""
    return f"attempt {attempt.number}" if attempt.covers is None else "fallback"


def describe_cancellation(cancellation: Cancellation) -> str:
    """Describe the cancellation of a phase, and its reason."""
    if cancellation.cause is None:
        return f"{cancellation.phase} cancelled by the caller"
    return f"{cancellation.phase} cancelled, because {_failure(cancellation.cause)}"


def reason(run: RecordedRun, cause: Cause | None) -> str:
    """Describe the reason of a cancellation or a skip."""
    if cause is not None:
        return _failure(cause)
    if any(each.cause is None for each in run.cancellations):
        return "the caller was cancelled"
    return "the caller ended the run early"


def _failure(cause: Cause) -> str:
    what = "finished the run" if cause.finished else "failed"
    return f"{one_line(cause.task.name)}.{cause.phase} {what}"
