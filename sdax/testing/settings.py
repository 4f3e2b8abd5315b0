"""The options of an exploration: from arguments, a mark, and pytest's command line."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypedDict

from ..common.checks import checked_limit, checked_number
from ..common.text import nearest, shown
from .faults import USUAL, checked_kinds

PLUGIN: Final = "_sdax_pytest"

_NUMBERED: Final = re.compile(r"\[([1-9][0-9]*)\] ")


class Options(TypedDict, total=False):
    """The keyword arguments that `explore` and `explorations` share."""

    faults: Collection[str]
    disturbances: Literal[1, 2]
    clock: Literal["virtual", "real"]
    max_schedules: int
    seconds: float | None
    seed: int | None
    jitter: float
    replay: str | None


@dataclass(frozen=True)
class Settings:
    """Options, checked, and the test that asked for them."""

    faults: tuple[str, ...] = USUAL
    disturbances: int = 1
    clock: str = "virtual"
    max_schedules: int = 10_000
    seconds: float | None = None
    seed: int | None = None
    jitter: float = 1.0
    replay: str | None = None
    command: str | None = None  # a command that explores, instead of a test
    test: Any = None  # of pytest's plugin
    number: int = 1  # of the explorations of that test

    def repeating(self, schedule: str) -> str:
        """Return the command or the code that repeats a schedule."""
        if self.command is not None:
            return f"{self.command} --replay={shlex.quote(schedule)}" if schedule else self.command
        if self.test is None:
            return f"explore(..., replay={schedule!r})"
        if not schedule:
            return f"pytest {shlex.quote(self.test.nodeid)}"
        numbered = schedule if self.number == 1 else f"[{self.number}] {schedule}"
        return f"pytest {shlex.quote(self.test.nodeid)} --sdax-replay={shlex.quote(numbered)}"

    def tell(self, line: str) -> None:
        """Add a line about an exploration to pytest's summary."""
        if self.test is not None:
            self.test.tell(line)


_NAMES: Final = tuple(Options.__annotations__)


def settled(options: Mapping[str, Any], command: str | None) -> Settings:
    """Return the settings of an exploration.

    pytest's command line has priority, then the arguments, then the mark of the test. A `command`
    that explores has no test. Raises `TypeError` or `ValueError` for an unknown or bad option.
    """
    plugin = sys.modules.get(PLUGIN)
    test = None if plugin is None or command is not None else plugin.current
    number = 1
    asked = dict(options)
    if test is not None:
        number = test.begin_exploration()
        chosen = dict(test.chosen)
        if "replay" in chosen and not _is_meant_for(number, chosen["replay"]):
            del chosen["replay"]
        asked = {**test.marked, **asked, **chosen}
    if isinstance(asked.get("replay"), str):
        asked["replay"] = _NUMBERED.sub("", asked["replay"])
    for name in asked:
        if name not in _NAMES:
            raise TypeError(f"explore has no option {shown(name)}{nearest(name, _NAMES)}")
    if "faults" in asked:
        asked["faults"] = checked_kinds(asked["faults"])
    if asked.get("disturbances", 1) not in (1, 2):
        raise ValueError(f"disturbances must be 1 or 2, got {shown(asked['disturbances'])}")
    if asked.get("clock", "virtual") not in ("virtual", "real"):
        raise ValueError(f"clock must be 'virtual' or 'real', got {shown(asked['clock'])}")
    if "max_schedules" in asked and checked_limit("max_schedules", asked["max_schedules"]) is None:
        raise TypeError("max_schedules must be an integer, got None")
    if asked.get("seconds") is not None:
        asked["seconds"] = checked_number("seconds", asked["seconds"])
    if not isinstance(asked.get("seed"), (int, type(None))):
        raise TypeError(f"seed must be an integer or None, got {shown(asked['seed'])}")
    if not 0.5 <= checked_number("jitter", asked.get("jitter", 1.0)) <= 1.0:
        raise ValueError(f"jitter must be from 0.5 to 1.0, got {shown(asked['jitter'])}")
    return Settings(**asked, command=command, test=test, number=number)


def _is_meant_for(number: int, text: str) -> bool:
    """Return True if a schedule is for this exploration. A test can have several."""
    numbered = _NUMBERED.match(text)
    return number == (1 if numbered is None else int(numbered[1]))
