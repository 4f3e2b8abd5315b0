"""What several modules check of what users give: returned as it can be relied on, or refused."""

from __future__ import annotations

import inspect
import math
from functools import partial
from inspect import CO_ITERABLE_COROUTINE
from typing import Any, Final

from .text import shown

# What to do instead of a phase with a 'yield'.
_NO_GENERATOR: Final = (
    "a phase cannot be a generator, because nothing would run what stands after its 'yield'; "
)
SPLIT_GENERATOR: Final = _NO_GENERATOR + (
    "define it with 'async def' and make the task with resource(name, function), or put what "
    "stands before the 'yield' into pre_execute, and what stands after it into post_execute"
)
USE_RESOURCE: Final = _NO_GENERATOR + (
    "make the whole task of this function with resource(name, function), or put what stands "
    "before the 'yield' into pre_execute, and what stands after it into post_execute"
)


def checked_number(field: str, value: Any) -> float:
    """Return a number that is finite and not negative; refuse all else in the field's name."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{field} must be a number, got {shown(value)}")
    # A subclass may do anything in its arithmetic, and a run must be able to rely on it.
    number = float.__pos__(value) if isinstance(value, float) else int.__pos__(value)
    try:
        finite = math.isfinite(number)
    except OverflowError:
        finite = False
    if not finite or number < 0:
        raise ValueError(f"{field} must be finite and not negative, got {shown(value)}")
    return number


def checked_limit(field: str, value: Any, least: int = 1) -> int | None:
    """Return None or an integer of at least this; refuse all else in the field's name."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{field} must be an integer or None, got {shown(value)}")
    number = int.__pos__(value)  # as above: nothing of a subclass
    if number < least:
        raise ValueError(f"{field} must be at least {least}, got {shown(value)}")
    return number


def is_async(function: Any) -> bool:
    """Return True if a call makes a coroutine, by an `async def` of its own or of `__call__`."""
    return any(map(inspect.iscoroutinefunction, _called(function)))


def is_generator(function: Any) -> bool:
    """Return True if a call makes a generator, async or not, which nobody can await."""
    if is_async_generator(function):
        return True
    for each in _called(function):
        # What types.coroutine() makes of a generator function can be awaited.
        flags = getattr(getattr(each, "__code__", None), "co_flags", 0)
        if inspect.isgeneratorfunction(each) and not flags & CO_ITERABLE_COROUTINE:
            return True
    return False


def is_async_generator(function: Any) -> bool:
    """Return True if a call makes an async generator."""
    return any(map(inspect.isasyncgenfunction, _called(function)))


def runs_later(function: Any) -> bool:
    """Return True if a call does nothing until somebody awaits or iterates what it returns."""
    return is_async(function) or is_generator(function)


def _called(function: Any) -> tuple[Any, Any]:
    """Return what a call runs: the function itself, or its class's `__call__`."""
    while isinstance(function, partial):
        function = function.func
    return function, getattr(type(function), "__call__", None)  # noqa: B004
