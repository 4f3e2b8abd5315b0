"""Fails the n-th call that a run makes, whatever it calls, without a change of what is tested.

Python's profiler hears of each call before it is made. Where it raises, the call fails with that
and is not made; and the profiler is off from then on. What it does not hear of is a call of a C
function by the compiled engine, and what an `asyncio.Task` is made by: see `counted`.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from linecache import getline
from types import CodeType, FrameType, ModuleType
from typing import Any, TypeVar
from unittest import mock

from sdax.engine import resources
from sdax.engine.resources import Resource
from virtual_clock import PassCountingLoop

Function = TypeVar("Function", bound=Callable[..., Any])

# A step of one of these is no call: what it may raise is up to the user's code in it.
_STEPPED = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR

# What the event loop calls of sdax: there, nobody is called by the engine. What they call is, and
# each of their calls fails; were their own to fail, nobody but the loop's handler could hear of it.
_ENTRIES = ("_fire", "_release", "_settle", "_when_over", "go_on", "task_ended", "wake")

# What a C function in asyncio calls as well, half-way through a change of its own.
_HALFWAY = PassCountingLoop.call_soon.__code__
# What the constructor of asyncio.Task alone calls: one that is made by half complains when it goes.
_IN_CONSTRUCTOR = asyncio.BaseEventLoop.is_running.__code__

# What an `asyncio.Task` asks, in C, of the resource that it waits for, as of any future: were that
# to fail, it would wait without an end, and whoever cancels it would hear of that.
_ASKED = {
    each.__code__ for each in (Resource.get_loop, Resource.add_done_callback, Resource.cancel)
}
# Where a resource has its `asyncio.Task` stepped by a function in C: what that calls is as out of
# reach.
_STEPS = Resource.go_on.__code__
_TAKES_CURRENT = resources.take_current_task.__code__

_LOOP_TURN = asyncio.Handle._run.__code__

# Where an `Exception` may be swallowed: a note, a tidy traceback, a text, a line in the log and a
# scope of anyio's (without one, more passes of the loop) are not worth a run.
_DECORATIONS = {
    "hide_engine",
    "_add_note",
    "add_note",
    "_warn",
    "shown",
    "call_exception_handler",
    "shield",
}


# What lets go of a lock cannot fail, and nobody could mend it: the next one would wait for ever.
_LET_GO = {("lock", "__exit__"), ("lock", "release")}

_IN_PYTHON: set[CodeType] = set()


def called_by_engine(function: Function) -> Function:
    """Mark a plain function of the tests that the engine itself calls, or C in its place."""
    _IN_PYTHON.add(function.__code__)  # type: ignore[attr-defined]
    return function


class CountedFuture(asyncio.Future[Any]):
    """Whose methods are functions in Python, which the profiler hears of in every engine."""

    @called_by_engine
    def cancel(self, msg: Any = None) -> bool:
        return super().cancel(msg)

    @called_by_engine
    def cancelled(self) -> bool:
        return super().cancelled()

    @called_by_engine
    def done(self) -> bool:
        return super().done()

    @called_by_engine
    def set_result(self, result: Any) -> None:
        super().set_result(result)


class CountedTask(asyncio.Task[Any]):
    """Likewise; for task factories."""

    @called_by_engine
    def cancel(self, msg: Any = None) -> bool:
        return super().cancel(msg)

    @called_by_engine
    def uncancel(self) -> int:
        return super().uncancel()

    @called_by_engine
    def cancelling(self) -> int:
        return super().cancelling()

    @called_by_engine
    def set_name(self, value: object) -> None:
        super().set_name(value)


class CountedLoop(PassCountingLoop):
    """Whose futures are such ones."""

    def create_future(self) -> asyncio.Future[Any]:
        return CountedFuture(loop=self)


# What the compiled engine calls of the loop.
_IN_PYTHON |= {
    getattr(CountedLoop, name).__code__
    for name in (
        "call_at",
        "call_exception_handler",
        "create_future",
        "create_task",
        "get_task_factory",
        "time",
    )
}


class Calls:
    """Counts the calls of a run, and fails one of them."""

    def __init__(self, engine: ModuleType, number: int, error: BaseException) -> None:
        self.made = 0
        self.number = number  # of the call that fails, from 1; 0: none
        self.error = error
        self.place = ""  # of that call
        self.is_decoration = False
        self._compiled = not engine.__file__.endswith(".py")  # type: ignore[union-attr]
        self._ours: dict[CodeType, bool] = {}

    @property
    def has_failed_one(self) -> bool:
        return bool(self.place)

    @contextmanager
    def failing(self) -> Iterator[None]:
        """Count, and fail what is to fail, from here to there."""
        sys.setprofile(self._hear)
        try:
            yield
        finally:
            sys.setprofile(None)

    def _hear(self, frame: FrameType, event: str, called: Any) -> None:
        if event == "c_call":
            counts = self._is_ours(frame) and not (_lets_go(called) or _is_asked(frame))
        elif event == "call":
            counts = self._counts(frame)
        else:
            return
        if counts:
            self._hear_of_ours(frame, event, called)

    def _hear_of_ours(self, frame: FrameType, event: str, called: Any) -> None:
        self.made += 1
        if self.made == self.number:
            self._note_place(frame, event, called)
            raise self.error

    def _counts(self, frame: FrameType) -> bool:
        code, caller = frame.f_code, frame.f_back
        if code.co_flags & _STEPPED or code is _IN_CONSTRUCTOR or caller is None:
            return False
        if _is_asked(frame) or (caller.f_code is _STEPS and code is not _TAKES_CURRENT):
            return False
        if code is _HALFWAY and "call_soon(" not in getline(
            caller.f_code.co_filename, caller.f_lineno
        ):
            return False  # called by C, though it looks as if by whoever called that
        if code.co_name == "_remove" and "weakref" in frame.f_globals["__name__"]:
            return False  # something has gone: nobody calls that, and nobody hears of a failure
        if self._is_ours(caller):
            return True
        if not self._compiled or caller.f_code is not _LOOP_TURN or code.co_name in _ENTRIES:
            return False
        # The compiled engine has no frames: its caller's is the loop's turn.
        return code in _IN_PYTHON or self._is_ours(frame)

    def _is_ours(self, frame: FrameType) -> bool:
        ours = self._ours.get(frame.f_code)
        if ours is None:
            module = frame.f_globals.get("__name__", "")
            of_sdax = module.partition(".")[0] == "sdax"
            ours = self._ours[frame.f_code] = of_sdax and not module.startswith("sdax.testing")
        return ours

    def _note_place(self, frame: FrameType, event: str, called: Any) -> None:
        if event == "c_call":
            caller: FrameType | None = frame
            name = getattr(called, "__qualname__", repr(called))
        else:
            caller = frame.f_back
            name = frame.f_code.co_qualname
        assert caller is not None
        where = "the compiled engine"
        if self._is_ours(caller):
            module = caller.f_globals["__name__"].rpartition(".")[2]
            where = f"{module}.{caller.f_code.co_qualname}, line {caller.f_lineno}"
        self.place = f"{where}: {name}"
        each: FrameType | None = frame
        while each is not None and (self._is_ours(each) or each is frame):
            if each.f_code.co_name in _DECORATIONS or each.f_globals["__name__"] == "logging":
                self.is_decoration = True
            each = each.f_back


class Places(Calls):
    """Notes the place of each call, and fails none."""

    def __init__(self, engine: ModuleType) -> None:
        super().__init__(engine, 0, MemoryError())
        self.all: list[str] = []

    def _hear_of_ours(self, frame: FrameType, event: str, called: Any) -> None:
        self._note_place(frame, event, called)
        self.all.append(self.place)
        self.place = ""


def _is_asked(frame: FrameType) -> bool:
    """Return True for a call of one of these, and for a call that one of them makes."""
    each: FrameType | None = frame
    for _ in range(3):
        if each is not None and each.f_code not in _ASKED:
            each = each.f_back
    return each is not None and each.f_code in _ASKED


def _lets_go(called: Any) -> bool:
    kind = type(getattr(called, "__self__", None)).__name__
    return (kind, called.__name__) in _LET_GO


@contextmanager
def counted(engine: ModuleType) -> Iterator[None]:
    """Have the profiler hear of an `asyncio.Task` that the Python engine makes: the call of a
    type in C is none to it."""

    def make_task(*arguments: Any, **options: Any) -> asyncio.Task[Any]:
        return asyncio.Task(*arguments, **options)

    if hasattr(engine, "Task"):
        with mock.patch.object(engine, "Task", make_task):
            yield
    else:
        yield
