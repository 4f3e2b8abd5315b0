"""Points: the places at which a function can be disturbed. Their names survive edits.

`Database.pre_execute#1@2` is a task, a phase, an attempt and the second await in it. `@call` and
`@return` are the ends of the attempt. At `@2` the function waits. At `@2+` it has its result, but
has not continued yet. A disturbance is a point and a fault, `Database.pre_execute#1@2+:cancel`. A
schedule is one or more disturbances, separated by commas.

The limits of a function that call the user's code are functions of their own:
`Database.pre_execute.fallback#1@1`. A limiter has two, `limiter.enter` and `limiter.exit`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Hashable, Iterable
from enum import StrEnum
from functools import cache
from typing import Any, Final, NamedTuple, TypeAlias

from ..common.order import PHASES, POST
from ..common.text import nearest, one_line, shown
from ..tasks import AsyncTask, TaskFunction

CALL: Final = "call"
RETURN: Final = "return"

# The limits of a function that call the user's code, by their names in points.
ENTER: Final = "limiter.enter"
EXIT: Final = "limiter.exit"
FALLBACK: Final = "fallback"
QUESTIONS: Final = ("retryable_exceptions", "fallback_exceptions", "retry_after")

AFTER_FAILURE: Final = frozenset({FALLBACK, *QUESTIONS})  # only a failed attempt leads to them

_PHASES: Final = "|".join(PHASES)
_LIMITS: Final = "|".join(map(re.escape, (ENTER, EXIT, FALLBACK, *QUESTIONS)))


class Point(NamedTuple):
    """A place in an attempt of a function: `at` is `call`, `2` or `2+` for an await, `return`."""

    function: str
    attempt: int
    at: str

    def __str__(self) -> str:
        return f"{self.function}#{self.attempt}@{self.at}"


class Fault(StrEnum):
    """A disturbance of a function at a point."""

    CANCEL = "cancel"  # the caller of the run is cancelled
    FAIL = "fail"  # an exception that is retried
    FAIL_ALWAYS = "fail always"  # the same, in each attempt
    FAIL_UNEXPECTEDLY = "fail unexpectedly"  # an exception that is not retried
    HANG = "hang"  # the await never ends
    INTERRUPT = "interrupt"  # KeyboardInterrupt


class Disturbance(NamedTuple):
    """A fault at a point."""

    point: Point
    fault: Fault

    def __str__(self) -> str:
        return f"{self.point}:{self.fault}"


Schedule: TypeAlias = tuple[Disturbance, ...]

_DISTURBANCE: Final = re.compile(
    rf"(?P<function>.+?\.(?:{_PHASES})(?:\.(?:{_LIMITS}))?)#(?P<attempt>[1-9][0-9]*)"
    rf"@(?P<at>{CALL}|{RETURN}|[1-9][0-9]*\+?)"
    rf":(?P<fault>{'|'.join(sorted(Fault, key=len, reverse=True))})(?:, |$)",
    re.DOTALL,
)


_FUNCTION: Final = re.compile(
    rf"(?P<owner>.*\.(?P<phase>{_PHASES}))(?:\.(?P<limit>{_LIMITS}))?", re.DOTALL
)


class Label(NamedTuple):
    """The parts of a function's name in points.

    `owner` is the name of the function whose limit it is, or its own name. `limit` is the name of
    that limit, or None.
    """

    owner: str
    phase: str
    limit: str | None

    @property
    def is_cleanup(self) -> bool:
        """True for a `post_execute` and its limits."""
        return self.phase == PHASES[POST]


def await_of(at: str) -> str:
    """Return "2nd await" for the place `2` or `2+`, and an empty text for another place."""
    number = at.removesuffix("+")
    if not number.isdecimal():
        return ""
    ending = "th"
    if number[-2:-1] != "1":
        ending = {"1": "st", "2": "nd", "3": "rd"}.get(number[-1], ending)
    return f"{number}{ending} await"


@cache
def label_of(function: str) -> Label:
    """Return the parts of a function's name in points."""
    found = _FUNCTION.fullmatch(function)
    assert found is not None
    return Label(found["owner"], found["phase"], found["limit"])


def text_of(schedule: Schedule) -> str:
    """Return the text that repeats a schedule."""
    return ", ".join(map(str, schedule))


def labels_of(names: Collection[Hashable]) -> dict[Any, str]:
    """Return the names of tasks in points, each different."""
    labels: dict[Any, str] = {}
    for name in names:
        label = one_line(name)
        number = 1
        while label in labels.values():
            number += 1
            label = f"{one_line(name)} ({number})"
        labels[name] = label
    return labels


def functions_of(tasks: Iterable[AsyncTask[Any, Any]]) -> dict[str, TaskFunction[Any]]:
    """Return the functions of tasks and of their limits, by their names in points."""
    tasks = list(tasks)
    labels = labels_of([task.name for task in tasks])
    found: dict[str, TaskFunction[Any]] = {}
    for task in tasks:
        for phase in PHASES:
            function = getattr(task, phase)
            if function is not None:
                label = f"{labels[task.name]}.{phase}"
                found[label] = function
                found.update({f"{label}.{limit}": function for limit in limits_of(function)})
    return found


def limits_of(function: TaskFunction[Any]) -> list[str]:
    """Return the names of the limits of a function that call the user's code."""
    limits = [] if function.limiter is None else [ENTER, EXIT]
    for name in (FALLBACK, *QUESTIONS):
        if callable(getattr(function, name)):
            limits.append(name)
    return limits


def parsed(text: object, functions: dict[str, TaskFunction[Any]]) -> Schedule:
    """Return the schedule that a text names.

    Raises `TypeError` if it is not a text, and `ValueError` if the text is not a schedule or names
    a function that does not exist, with similar names.
    """
    if not isinstance(text, str):
        raise TypeError(f"a schedule is a text such as 'Flags.execute#1@2:fail', got {shown(text)}")
    schedule: list[Disturbance] = []
    position = 0
    while position < len(text) or not schedule:
        found = _DISTURBANCE.match(text, position)
        if found is None:
            raise ValueError(
                f"{shown(text[position:])} does not name a disturbance; write task, phase, "
                f"attempt, place and fault as in 'Flags.execute#1@2:fail'. A place is call, "
                f"return, or the number of an await (2 while it waits, 2+ when it is about to go "
                f"on); a fault is {', '.join(Fault)}"
            )
        position = found.end()
        function = found["function"]
        if function not in functions:
            raise ValueError(
                f"there is no function {shown(function)}{nearest(function, functions)}"
            )
        point = Point(function, int(found["attempt"]), found["at"])
        attempts = functions[function].retries + 1
        limit = label_of(function).limit
        if limit == FALLBACK:
            attempts = 1
        # A question is asked once for each exception of a group.
        if point.attempt > attempts and limit not in QUESTIONS:
            raise ValueError(
                f"{function} has {attempts} attempts, so there is no {point}"
                if attempts > 1
                else f"{function} has no retries, so there is no {point}"
            )
        fault = Fault(found["fault"])
        if fault is Fault.HANG and not point.at.isdecimal():
            raise ValueError(f"only an await can hang, as in {function}#1@1:hang; got {point}:hang")
        schedule.append(Disturbance(point, fault))
    return tuple(schedule)
