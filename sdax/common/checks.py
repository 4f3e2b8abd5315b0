"""Checks of users' arguments for several modules. They return a safe value or raise."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from functools import partial, wraps
from inspect import CO_ITERABLE_COROUTINE
from typing import Any, Final, ParamSpec, TypeVar

from .text import class_name, nearest_only, shown

P = ParamSpec("P")
R = TypeVar("R")

# The advice for a phase with a 'yield'.
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
    """Return a finite, non-negative number. Otherwise raise an error that names the field."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{field} must be a number, got {shown(value)}")
    # The arithmetic of a subclass can do anything, and a run must be able to rely on the number.
    number = float.__pos__(value) if isinstance(value, float) else int.__pos__(value)
    try:
        finite = math.isfinite(number)
    except OverflowError:
        finite = False
    if not finite or number < 0:
        raise ValueError(f"{field} must be finite and not negative, got {shown(value)}")
    return number


def checked_seconds(field: str, value: Any) -> float:
    """Return a number, also a negative or infinite one. Otherwise raise an error with the field."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{field} must be a number of seconds or None, got {shown(value)}")
    try:
        number = float.__pos__(value) if isinstance(value, float) else float(int.__pos__(value))
    except OverflowError:
        number = math.inf if value > 0 else -math.inf
    if math.isnan(number):
        raise ValueError(f"{field} must be a number of seconds or None, got {shown(value)}")
    return number


def checked_limit(field: str, value: Any, least: int = 1) -> int | None:
    """Return None or an integer of at least `least`. Otherwise raise an error with the field."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{field} must be an integer or None, got {shown(value)}")
    number = int.__pos__(value)  # as above: not an instance of a subclass
    if number < least:
        raise ValueError(f"{field} must be at least {least}, got {shown(value)}")
    return number


def explained(
    explain: Callable[[tuple[Any, ...], dict[str, Any]], str | None],
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make a function that suggests the right arguments when it is called with wrong ones.

    `explain` gets the arguments if they do not fit. It returns a message, or None for Python's own.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                return function(*args, **kwargs)
            except TypeError as error:
                traceback = error.__traceback__
                inside = traceback is not None and traceback.tb_next is not None
                message = None if inside else explain(args, kwargs)
                if message is None:
                    raise
            raise TypeError(message)

        return call

    return decorate


def no_attribute(owner: object, name: str, hints: Mapping[str, str]) -> AttributeError:
    """Return the error for a missing attribute, with a hint if there is one."""
    hint = hints.get(name) or nearest_only(name, [n for n in dir(type(owner)) if n[0] != "_"])
    return AttributeError(f"{class_name(owner)} has no attribute {shown(name)}{hint}")


def is_async(function: Any) -> bool:
    """Return True if a call makes a coroutine: the function or its `__call__` is an `async def`."""
    return any(map(inspect.iscoroutinefunction, _called(function)))


def is_generator(function: Any) -> bool:
    """Return True if a call makes a generator, async or not, which nobody can await."""
    if is_async_generator(function):
        return True
    for each in _called(function):
        # The result of types.coroutine() is a generator function too, but can be awaited.
        flags = getattr(getattr(each, "__code__", None), "co_flags", 0)
        if inspect.isgeneratorfunction(each) and not flags & CO_ITERABLE_COROUTINE:
            return True
    return False


def is_async_generator(function: Any) -> bool:
    """Return True if a call makes an async generator."""
    return any(map(inspect.isasyncgenfunction, _called(function)))


def runs_later(function: Any) -> bool:
    """Return True if a call does nothing until its result is awaited or iterated."""
    return is_async(function) or is_generator(function)


def _called(function: Any) -> tuple[Any, Any]:
    """Return the function that a call runs: the function itself, or its class's `__call__`."""
    while isinstance(function, partial):
        function = function.func
    return function, getattr(type(function), "__call__", None)  # noqa: B004
