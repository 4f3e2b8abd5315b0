"""The contents of exception groups."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from .text import shown

_members: Final[Any] = BaseExceptionGroup.exceptions


def iter_leaves(exception: BaseException) -> Iterator[BaseException]:
    """Yield the exceptions inside a group, however deeply nested, or the exception itself."""
    stack = [exception]
    while stack:
        current = stack.pop()
        if issubclass(type(current), BaseExceptionGroup):  # not its __class__, which may lie
            stack.extend(reversed(_members.__get__(current)))
        else:
            yield current


def flatten_exceptions(exception: BaseException) -> list[BaseException]:
    """Return the leaves of an exception group in order, or a list of the exception itself.

    Raises `TypeError` if the argument is not an exception.

    >>> flatten_exceptions(ExceptionGroup("", [OSError(1), ExceptionGroup("", [KeyError(2)])]))
    [OSError(1), KeyError(2)]
    """
    if not isinstance(exception, BaseException):
        raise TypeError(f"flatten_exceptions takes an exception, got {shown(exception)}")
    return list(iter_leaves(exception))
