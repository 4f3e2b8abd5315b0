"""A report as a table of plain text."""

from __future__ import annotations

import reprlib
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from .plan import PHASES
from .text import class_name, counted, in_columns, one_line

if TYPE_CHECKING:
    from .report import PhaseReport, TaskReport

WIDEST_RESULT: Final = 72  # characters of a value or an exception; the rest is "..."

_HEAD: Final = ("task", "phase", "state", "attempts", "value or exception")

# Looks at no more of a collection than it shows: a value may be large.
_short: Final = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = WIDEST_RESULT


def table_of(report: Mapping[Any, TaskReport]) -> str:
    """Show how many phases ended in which state, and each phase that has a function in a line."""
    rows: list[tuple[str, ...]] = [_HEAD]
    states = Counter[str]()
    for name, task in report.items():
        called = [
            (phase, each)
            for phase, each in zip(PHASES, task, strict=True)
            if each.state != "absent"
        ]
        for phase, each in called:
            states[each.state] += 1
            attempts = str(each.attempts) if each.attempts else ""
            rows.append((one_line(name), phase, each.state, attempts, _result(each)))
        if not called:
            rows.append((one_line(name), "(no phase)", "", "", ""))
    counts = ", ".join(f"{number} {state}" for state, number in states.items())
    head = f"{counted(len(report), 'task')}: {counts}" if counts else counted(len(report), "task")
    return "\n".join([head, *in_columns(rows if len(rows) > 1 else [])])


def _result(report: PhaseReport) -> str:
    if report.exception is not None:
        return _shortened(_described(report.exception))
    return "" if report.value is None else _shortened(one_line(_brief(report.value)))


def _brief(value: object) -> str:
    try:
        return _short.repr(value)
    except Exception:
        return object.__repr__(value)


def _described(exception: BaseException) -> str:
    kind = class_name(exception)
    try:
        first, *more = str.__str__(str(exception)).splitlines() or [""]
    except Exception:
        return kind
    return one_line(f"{kind}: {first}{' ...' if more else ''}" if first or more else kind)


def _shortened(text: str) -> str:
    return text if len(text) <= WIDEST_RESULT else text[: WIDEST_RESULT - 3] + "..."
