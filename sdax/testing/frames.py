"""The places where code waits: frames of suspended coroutines, as lines of source."""

from __future__ import annotations

import asyncio
import inspect
import linecache
import os
from collections.abc import Iterable, Iterator
from gc import get_referents
from pathlib import Path
from traceback import walk_tb
from types import CodeType, FrameType
from typing import Any, Final, NamedTuple

from ..common.text import one_line

# Directories whose frames do not help a reader: Python's own library, and sdax.
_STANDARD_LIBRARY: Final = f"{Path(asyncio.__file__).parent.parent}{os.sep}"
_SDAX: Final = f"{Path(__file__).parent.parent}{os.sep}"


_INNER: Final = {"cr_frame": "cr_await", "gi_frame": "gi_yieldfrom", "ag_frame": "ag_await"}
_STEPS: Final = ("anext_awaitable", "async_generator_asend", "async_generator_athrow")


class Place(NamedTuple):
    """A line of source."""

    file: str
    line: int
    function: str

    def __str__(self) -> str:
        return f"{_short(self.file)}, line {self.line}, in {self.function}"

    @property
    def source(self) -> str:
        """The line without its indentation, or an empty text if there is no source."""
        return linecache.getline(self.file, self.line).strip()


def place_of(frame: FrameType) -> Place:
    """Return the line at which a frame is."""
    code = frame.f_code
    return Place(code.co_filename, frame.f_lineno or code.co_firstlineno, code.co_name)


def awaiting(awaitable: Any) -> Iterator[FrameType]:
    """Yield the frames of a suspended coroutine, from its own to the innermost waiting frame."""
    while awaitable is not None:
        for kind, inner in _INNER.items():
            if hasattr(awaitable, kind):
                if (frame := getattr(awaitable, kind)) is not None:
                    yield frame
                awaitable = getattr(awaitable, inner)
                break
        else:
            awaitable = _hidden_in(awaitable)


def _hidden_in(step: Any) -> Any:
    """Return the async generator that runs in a step, which has no attribute for it, or None."""
    if type(step).__name__ not in _STEPS:
        return None
    inner = (*_STEPS, "async_generator")
    return next((each for each in get_referents(step) if type(each).__name__ in inner), None)


def is_of_library(code: CodeType) -> bool:
    """Return True for code of Python's own library or of sdax, which a reader did not write."""
    file = code.co_filename
    own = file.startswith((_STANDARD_LIBRARY, "<frozen ")) and "site-packages" not in file
    return own or file.startswith(_SDAX)


def of_user(frames: Iterable[FrameType]) -> list[Place]:
    """Return the places of the frames that belong neither to Python's own library nor to sdax."""
    return [place_of(frame) for frame in frames if not is_of_library(frame.f_code)]


def calling_place() -> Place | None:
    """Return the running place in the user's code, or None if there is none."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_globals.get("__name__") != "asyncio.events":
        if not is_of_library(frame.f_code):
            return place_of(frame)
        frame = frame.f_back
    return None


def raising_place(error: BaseException | None) -> Place | None:
    """Return the innermost place in the user's code from which an exception came, or None."""
    found = None
    for frame, line in walk_tb(None if error is None else error.__traceback__):
        if not is_of_library(frame.f_code):
            found = Place(frame.f_code.co_filename, line, frame.f_code.co_name)
    return found


def waiting_tasks(loop: asyncio.AbstractEventLoop) -> list[str]:
    """Return a line for each `asyncio.Task` that waits in a loop: its name, and where it waits."""
    lines = []
    for task in sorted(asyncio.all_tasks(loop), key=lambda task: task.get_name()):
        places = of_user(awaiting(task.get_coro()))
        where = f" waits at {places[-1]}: {places[-1].source}" if places else " waits"
        lines.append(one_line(task.get_name()) + where)
    return lines


def _short(file: str) -> str:
    """Return a path relative to the current directory, if it is below it."""
    here = f"{Path.cwd()}{os.sep}"
    return file.removeprefix(here)
