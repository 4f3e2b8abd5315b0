"""A report as a table of plain text."""

from __future__ import annotations

import reprlib
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from typing import Any, Final, TypeAlias

from .common.order import PHASES
from .common.text import brief_exception, counted, in_columns, one_line
from .states import PhaseReport, TaskReport

Entry: TypeAlias = tuple[Hashable, str, PhaseReport | None]  # a task, a phase, its result

WIDEST_RESULT: Final = 72  # characters of a value or an exception, before "..."
MOST_ROWS: Final = 50

_HEAD: Final = ("task", "phase", "state", "attempts", "value or exception")

# The order of importance, for a table that cannot show everything. A fallback hides a failure.
_RANKS: Final = {"failed": 0, "timed out": 0, "cancelled": 2, "skipped": 3, "succeeded": 4}
_FELL_BACK: Final = 1
_NO_PHASE: Final = 5

# It reads only the shown part of a collection, because a value may be large.
_short: Final = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = WIDEST_RESULT


def table_of(report: Mapping[Any, TaskReport], finished_by: Hashable | None = None) -> str:
    """Show the number of phases in each state, and a line for each phase that has a function.

    It shows at most 50 lines, first the failures, then the fallbacks. If a task finished the run
    early, the first line has its name.
    """
    entries: list[Entry] = []
    for name, task in report.items():
        called: list[Entry] = [
            (name, phase, each)
            for phase, each in zip(PHASES, task, strict=True)
            if each.state != "absent"
        ]
        entries += called or [(name, "(no phase)", None)]
    if len(entries) > MOST_ROWS:
        entries.sort(key=lambda entry: _rank(entry[2]))
    shown, left = entries[:MOST_ROWS], entries[MOST_ROWS:]
    head = _described(counted(len(report), "task"), entries)
    lines = [head if finished_by is None else f"{head}, finished by {one_line(finished_by)}"]
    if shown:
        lines += in_columns([_HEAD, *(_row(*entry) for entry in shown)])
    if left:
        lines.append("  " + _described(f"... and {counted(len(left), 'line')} more", left))
    return "\n".join(lines)


def _rank(report: PhaseReport | None) -> int:
    if report is None:
        return _NO_PHASE
    rank = _RANKS[report.state]
    return min(rank, _FELL_BACK) if report.fell_back else rank


def _described(things: str, entries: Iterable[Entry]) -> str:
    reports = [each for _, _, each in entries if each is not None]
    states = Counter(each.state for each in reports)
    covered = sum(each.fell_back for each in reports if each.state == "succeeded")
    by_fallback = {"succeeded": f" ({covered} by fallback)"} if covered else {}
    counts = ", ".join(f"{n} {state}{by_fallback.get(state, '')}" for state, n in states.items())
    return f"{things}: {counts}" if counts else things


def _row(name: Hashable, phase: str, report: PhaseReport | None) -> tuple[str, ...]:
    if report is None:
        return one_line(name), phase, "", "", ""
    attempts = str(report.attempts) if report.attempts else ""
    if report.fell_back:
        attempts += ", fallback"
    return one_line(name), phase, report.state, attempts, _result(report)


def _result(report: PhaseReport) -> str:
    if report.exception is not None and report.state != "succeeded":
        return _shortened(brief_exception(report.exception))
    return "" if report.value is None else _shortened(one_line(_brief(report.value)))


def _brief(value: object) -> str:
    try:
        return _short.repr(value)
    except Exception:
        return object.__repr__(value)


def _shortened(text: str) -> str:
    return text if len(text) <= WIDEST_RESULT else text[: WIDEST_RESULT - 3] + "..."
