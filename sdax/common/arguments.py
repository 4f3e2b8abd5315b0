"""Which arguments a user's function takes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from inspect import CO_VARARGS, CO_VARKEYWORDS
from types import FunctionType, MethodType
from typing import Any, Final, NamedTuple

from .text import shown

_mro: Final[Callable[[type], tuple[type, ...]]] = vars(type)["__mro__"].__get__
_Placeholder: Final = getattr(functools, "Placeholder", None)  # Python 3.14 and newer


def check_takes(field: str, function: object, *arguments: str, if_one_more: str = "") -> None:
    """Raise `TypeError` if a function certainly cannot be called with these arguments.

    It judges functions that are written in Python, also as methods, in `functools.partial` or as
    the `__call__` of an object. It accepts everything else. `if_one_more` is advice for a function
    that takes one argument more.
    """
    called = _called(function)
    if called is None or called.fits(len(arguments)):
        return
    taken = ", ".join(called.parameters())
    hint = if_one_more if called.fits(len(arguments) + 1) else ""
    if taken.partition(",")[0] == "self":
        hint = "; pass the method of an object, and not of its class"
    raise TypeError(
        f"{field} must take ({', '.join(arguments)}), got {shown(function)}, which takes "
        f"({taken}){hint}"
    )


class _Called(NamedTuple):
    """A function, with the arguments that it gets besides those of the call."""

    function: FunctionType
    bound: int  # positional arguments before those of the call
    named: frozenset[str]

    def fits(self, count: int) -> bool:
        """Return False if a call with `count` positional arguments certainly fails."""
        function, bound, named = self
        code, count = function.__code__, count + bound
        positional, keyword_only = self._names()
        required = len(positional) - len(function.__defaults__ or ())
        nameless = code.co_posonlyargcount  # parameters that are never passed by name
        by_name = {*positional[nameless:], *keyword_only}
        return not (
            (count > len(positional) and not code.co_flags & CO_VARARGS)
            or count < min(nameless, required)
            or not named.isdisjoint(positional[nameless:count])  # passed twice
            or not named.issuperset(positional[count:required])
            or not named.union(function.__kwdefaults__ or ()).issuperset(keyword_only)
            or not (code.co_flags & CO_VARKEYWORDS or named.issubset(by_name))
        )

    def parameters(self) -> Iterator[str]:
        """Yield the parameters that a call fills, as in a signature."""
        function, bound, named = self
        code = function.__code__
        positional, keyword_only = self._names()
        required = len(positional) - len(function.__defaults__ or ())
        rest = iter(code.co_varnames[len(positional) + len(keyword_only) :])
        for number, name in enumerate(positional):
            if number >= bound and name not in named:
                yield name if number < required else f"{name}=..."
        if code.co_flags & CO_VARARGS:
            yield f"*{next(rest)}"
        elif keyword_only:
            yield "*"
        for name in keyword_only:
            if name not in named:
                yield f"{name}=..." if name in (function.__kwdefaults__ or ()) else name
        if code.co_flags & CO_VARKEYWORDS:
            yield f"**{next(rest)}"

    def _names(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        code = self.function.__code__
        names, number = code.co_varnames, code.co_argcount
        return names[:number], names[number : number + code.co_kwonlyargcount]


def _called(function: Any) -> _Called | None:
    """Return the Python function that a call runs, or None if nothing is known about it."""
    bound, named = 0, frozenset[str]()
    while type(function) is not FunctionType:
        if type(function) is functools.partial:
            if _Placeholder is not None and any(each is _Placeholder for each in function.args):
                return None  # pragma: no cover (3.14)
            bound += len(function.args)
            named |= function.keywords.keys()
            function = function.func
            continue
        bound += 1
        if type(function) is MethodType:
            function = function.__func__
            continue
        owners = (vars(each) for each in _mro(type(function)))
        function = next((each["__call__"] for each in owners if "__call__" in each), None)
        if type(function) is not FunctionType:
            return None
    return _Called(function, bound, named)
