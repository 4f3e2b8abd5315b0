"""The findings of an exploration: the schedule, the problem, and how to repeat it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from difflib import SequenceMatcher
from typing import Any, Final

from ..engine.exceptions import hide_engine
from .driving import Happened, Injected
from .player import ExploredRun, Played
from .points import CALL, RETURN, Disturbance, Fault, Point, await_of, text_of

MOST_EVENTS: Final = 20
MOST_PLACES: Final = 3


class ScheduleFailed(AssertionError):
    """A schedule after which something is wrong.

    - `schedule`: a text that describes and repeats the disturbances. It is empty for the
      undisturbed run.
    - `problems`: the problems, a sentence each.
    - `run`: the run that the check got, or None if it never ended.

    Its text has all of this, the line of source of the disturbance, the differences from the
    undisturbed run, the report, and in its last line how to repeat the schedule.
    """

    __module__ = "sdax.testing"  # short, because pytest shows it

    def __init__(
        self, text: str, schedule: str, problems: Sequence[str], run: ExploredRun[Any] | None
    ) -> None:
        super().__init__(text)
        self.schedule = schedule
        self.problems = tuple(problems)
        self.run = run


class NotDeterministic(Exception):
    """Two undisturbed runs differ, so disturbed runs cannot be compared with them.

    The message shows the first difference.
    """

    __module__ = "sdax.testing"


def finding_of(
    played: Played, undisturbed: Sequence[Happened], problems: Sequence[str], repeat: str
) -> ScheduleFailed:
    """Return the finding of a schedule after which something is wrong."""
    paragraphs = ["\n".join(_first_lines(played, problems))]
    for each in played.injected:
        paragraphs.append("\n".join(_told(each)))
    if lines := list(_differences(undisturbed, played)):
        title = "Unlike the undisturbed run (+ only here, - only there):"
        paragraphs.append("\n".join([title, *_indented(lines)]))
    if played.error is not None:
        text = f"{type(played.error).__name__}: {played.error}".removesuffix(": ")
        paragraphs.append(f"The run raised {text}")
    if played.report is not None:
        paragraphs.append("\n".join(["The report:", *_indented(str(played.report).splitlines())]))
    paragraphs.append(f"To repeat it:\n    {repeat}")
    text = "\n\n".join(paragraphs)
    finding = ScheduleFailed(text, text_of(played.schedule), problems, played.run)
    cause = played.check_error
    if cause is not None:
        hide_engine(cause)
        finding.__cause__ = cause
    return finding


def refuse_difference(one: Sequence[Happened], other: Sequence[Happened]) -> None:
    """Raise `NotDeterministic` if the traces of two undisturbed runs differ."""
    if one == other:
        return
    number = 0
    while one[number : number + 1] == other[number : number + 1]:
        number += 1
    lines = [f"two undisturbed runs differ at event {number + 1}:"]
    for name, trace in ("one", one), ("other", other):
        happened = _line(trace[number]) if number < len(trace) else "nothing more"
        lines.append(f"    the {name:5}  {happened}")
    lines.append(
        "Look for random numbers, clocks, the order of a set, and for what one run leaves to the "
        "next. With clock='real' runs may differ."
    )
    raise NotDeterministic("\n".join(lines))


def _first_lines(played: Played, problems: Sequence[str]) -> Iterator[str]:
    first, *more = problems
    what = f"After {text_of(played.schedule)}" if played.schedule else "In the undisturbed run"
    yield f"{what}: {first}"
    for problem in more:
        yield f"{problem[0].upper()}{problem[1:]}"


def _told(injected: Injected) -> Iterator[str]:
    yield _sentence(injected.disturbance)
    for place in injected.places[-MOST_PLACES:]:
        yield f"    {place}"
        yield f"        {place.source}"


def _sentence(disturbance: Disturbance) -> str:
    """Describe a disturbance in words."""
    point, fault = disturbance
    what = f"{point.function}" + (f" (attempt {point.attempt})" if point.attempt > 1 else "")
    wait = await_of(point.at)
    if fault is Fault.CANCEL:
        return f"The caller was cancelled {_moment(point, what, wait)}."
    if fault is Fault.INTERRUPT:
        return f"KeyboardInterrupt came {_moment(point, what, wait)}."
    if fault is Fault.HANG:
        return f"The {wait} of {what} never ended."
    how = {
        Fault.FAIL: "",
        Fault.FAIL_ALWAYS: ", as in each further attempt",
        Fault.FAIL_UNEXPECTEDLY: ", with an exception that is not retried",
    }[fault]
    if point.at == CALL:
        return f"{what} failed when it was called{how}."
    if point.at == RETURN:
        return f"{what} did its work, and then its answer was lost{how}."
    return f"The {wait} of {what} failed{how}."


def _moment(point: Point, what: str, wait: str) -> str:
    if point.at == CALL:
        return f"when {what} was called"
    if point.at == RETURN:
        return f"when {what} had returned"
    if point.at.endswith("+"):
        return (
            f"when what the {wait} of {what} waited for was there, but the function had not gone on"
        )
    return f"while {what} waited at its {wait}"


def _differences(undisturbed: Sequence[Happened], played: Played) -> Iterator[str]:
    one = [each[1:] for each in undisturbed]
    other = [each[1:] for each in played.trace]
    marks: list[tuple[str, Happened]] = []
    for kind, start, stop, from_, to in SequenceMatcher(
        None, one, other, autojunk=False
    ).get_opcodes():
        if kind != "equal":
            marks += [("+", each) for each in played.trace[from_:to]]
            marks += [("-", each) for each in undisturbed[start:stop]]
    for mark, happened in marks[:MOST_EVENTS]:
        yield f"{mark} {_line(happened)}"
    if len(marks) > MOST_EVENTS:
        yield f"... and {len(marks) - MOST_EVENTS} more"


def _line(happened: Happened) -> str:
    time, function, attempt, what = happened
    if what == CALL:
        words = "is called"
    elif what == RETURN:
        words = "returns"
    elif what.isdecimal():
        words = f"waits, await {what}"
    elif what.endswith("+"):
        words = f"goes on, await {what[:-1]}"
    else:
        words = what
    return f"{time:8.3f} s  {function}#{attempt}  {words}"


def _indented(lines: Iterable[str]) -> list[str]:
    return [f"    {line}" for line in lines]
