"""The engine's handling of users' exceptions: nothing that an exception can refuse.

An exception class may forbid attributes, raise in its `__repr__` or pretend to be of another
class. So everything here goes to `BaseException` itself and never asks the exception.
"""

from __future__ import annotations

from asyncio import CancelledError
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, NoReturn

from ..common.groups import iter_leaves

MOST_NOTES: Final = 10  # on one exception, because many runs may share it

_OUR_PACKAGE: Final = __name__.partition(".")[0]

_traceback: Final[Any] = BaseException.__traceback__
_context: Final[Any] = BaseException.__context__
_cause: Final[Any] = BaseException.__cause__
_members: Final[Any] = BaseExceptionGroup.exceptions


def is_exception(error: BaseException) -> bool:
    """Return True for an `Exception`, False for what stops a program, such as `SystemExit`."""
    return issubclass(type(error), Exception)


def is_cancellation(error: BaseException | None) -> bool:
    """Return True for a `CancelledError`, and for a group of nothing else, however nested.

    `except* CancelledError: raise` makes such groups.
    """
    kind = type(error)
    if issubclass(kind, BaseExceptionGroup):
        assert error is not None
        return all(issubclass(type(leaf), CancelledError) for leaf in iter_leaves(error))
    return issubclass(kind, CancelledError)


def hide_engine(exception: BaseException) -> None:
    """Drop the engine's frames off a traceback. It starts at the user's function then.

    The frames know the run, so they would also close a reference cycle.
    """
    first: TracebackType | None = _traceback.__get__(exception)
    traceback = first
    while traceback is not None and _is_ours(traceback.tb_frame.f_globals):
        traceback = traceback.tb_next
    if traceback is not first:
        _traceback.__set__(exception, traceback)


def _is_ours(module: dict[str, Any]) -> bool:
    name = dict.get(module, "__name__")
    return type(name) is str and name.partition(".")[0] == _OUR_PACKAGE


def traceback_of(exception: BaseException) -> TracebackType | None:
    """Return the traceback of an exception."""
    traceback: TracebackType | None = _traceback.__get__(exception)
    return traceback


def set_traceback(exception: BaseException, traceback: TracebackType | None) -> None:
    """Set the traceback of an exception."""
    _traceback.__set__(exception, traceback)


def context_of(exception: BaseException) -> BaseException | None:
    """Return the context of an exception."""
    context: BaseException | None = _context.__get__(exception)
    return context


def set_context(exception: BaseException, context: BaseException | None) -> None:
    """Set the context of an exception."""
    _context.__set__(exception, context)


def set_cause(exception: BaseException, cause: BaseException) -> None:
    """Set the cause of an exception."""
    _cause.__set__(exception, cause)


def add_note(exception: BaseException, note: str) -> None:
    """Add a note, unless the exception has it, has many already, or refuses."""
    with suppress(Exception):
        notes = getattr(exception, "__notes__", ())
        if note not in notes and len(notes) < MOST_NOTES:
            BaseException.add_note(exception, note)


def chain(exception: BaseException, earlier: BaseException | None) -> bool:
    """Put `earlier` at the end of the contexts of `exception`. Return True if it is there now.

    It stays out if that would close a circle.
    """
    if earlier is None or leads_to(exception, earlier):
        return True
    if leads_to(earlier, exception):
        return False
    last = exception
    seen = {id(last)}
    while (context := context_of(last)) is not None:
        if id(context) in seen:
            return False
        seen.add(id(context))
        last = context
    set_context(last, earlier)
    return True


def put_after(exception: BaseException, later: BaseException) -> None:
    """Put `later` at the end of the contexts of `exception`, also where it leads back there.

    An exception that was raised while `exception` was handled has that as its context.
    """
    if chain(exception, later):
        return
    current: BaseException | None = later
    seen = set[int]()
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        context = context_of(current)
        if context is exception:
            set_context(current, None)
        current = context
    chain(exception, later)


def put_before(exception: BaseException, earlier: BaseException) -> bool:
    """Make `earlier` the context of `exception`, and what that was the end of its contexts.

    Return False if that would close a circle.
    """
    context = context_of(exception)
    if context is not None and leads_to(context, earlier):
        return True
    if leads_to(earlier, exception):
        return False
    if context is None or chain(earlier, context):
        set_context(exception, earlier)
        return True
    return False


def raise_with_context(exception: BaseException) -> NoReturn:
    """Raise an exception with the context that it has.

    Where the caller handles another exception, a plain `raise` would put that in its place: it
    comes last here.
    """
    context = context_of(exception)
    try:
        raise exception
    except BaseException:
        handled = context_of(exception)
        if handled is not context:
            set_context(exception, context)
            chain(exception, handled)
        raise
    finally:
        # The traceback leads here: no name may lead back.
        handled = None
        del exception, context


def leads_to(exception: BaseException, other: BaseException) -> bool:
    """Return True if one exception is the other, or leads to it by contexts, causes or members."""
    seen = set[int]()
    stack = [exception]
    while stack:
        current = stack.pop()
        if current is other:
            return True
        if id(current) in seen:
            continue
        seen.add(id(current))
        both = (_context.__get__(current), _cause.__get__(current))
        stack.extend(each for each in both if each is not None)
        if issubclass(type(current), BaseExceptionGroup):
            stack.extend(_members.__get__(current))
    return False
