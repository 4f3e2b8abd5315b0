"""The exceptions of workflows: made to tell where they come from, and compared as values."""

from __future__ import annotations

import re
from asyncio import CancelledError
from collections import Counter
from dataclasses import dataclass
from typing import Any, NoReturn

from sdax import (
    RetryableException,
    SdaxExecutionError,
    TaskCancelledError,
    flatten_exceptions,
)
from workflows import Error


class FatalError(BaseException):
    """No `Exception`, and unknown to everybody."""


@dataclass(frozen=True)
class FrozenError(Exception):
    """Which refuses to be given a traceback, a context or a note."""

    label: str


class ClosedError(Exception):
    """Which refuses whatever one does to it."""

    __slots__ = ()

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise RuntimeError("closed")

    def __delattr__(self, name: str) -> NoReturn:
        raise RuntimeError("closed")


class SpeechlessError(Exception):
    """Which has nothing to say."""

    def __repr__(self) -> NoReturn:
        raise RuntimeError("speechless")

    __str__ = __repr__


class IncomparableError(Exception):
    """Which is like no other."""

    def __eq__(self, other: object) -> NoReturn:
        raise RuntimeError("incomparable")

    def __hash__(self) -> NoReturn:
        raise RuntimeError("incomparable")


class NotelessError(Exception):
    """Which takes no notes."""

    def add_note(self, note: str) -> NoReturn:
        raise RuntimeError("no notes")

    @property
    def __notes__(self) -> NoReturn:
        raise RuntimeError("no notes")


class Withdrawal(CancelledError):
    """A cancellation of somebody's own."""


class Interrupt(KeyboardInterrupt):
    """An interruption of somebody's own."""


def make_exception(error: Error, label: str) -> BaseException:
    """Make an exception that tells by its text where it comes from."""
    match error:
        case Error.VALUE:
            return ValueError(label)
        case Error.CONNECTION:
            return ConnectionError(label)
        case Error.RETRYABLE:
            return RetryableException(label)
        case Error.TIMEOUT:
            return TimeoutError(label)
        case Error.RETRYABLE_GROUP:
            inner = ExceptionGroup(label, [RetryableException(label)])
            return ExceptionGroup(label, [ConnectionError(label), inner])
        case Error.MIXED_GROUP:
            return ExceptionGroup(label, [ConnectionError(label), ValueError(label)])
        case Error.STOP_ITERATION:
            return StopIteration(label)
        case Error.CANCELLED:
            return CancelledError(label)
        case Error.KEYBOARD_INTERRUPT:
            return KeyboardInterrupt(label)
        case Error.SYSTEM_EXIT:
            return SystemExit(label)
        case Error.GENERATOR_EXIT:
            return GeneratorExit(label)
        case Error.FATAL:
            return FatalError(label)
        case Error.FATAL_GROUP:
            return BaseExceptionGroup(label, [FatalError(label), ConnectionError(label)])
        case Error.FROZEN:
            return FrozenError(label)
        case Error.CLOSED:
            return ClosedError(label)
        case Error.SPEECHLESS:
            return SpeechlessError(label)
        case Error.INCOMPARABLE:
            return IncomparableError(label)
        case Error.WITHOUT_NOTES:
            return NotelessError(label)
        case Error.SHARED:
            return ConnectionError("shared#")
        case Error.CYCLIC:
            return _in_a_circle(ValueError(label), KeyError(label))
        case Error.STOP_ASYNC_ITERATION:
            return StopAsyncIteration(label)
        case Error.CANCELLED_GROUP:
            inner_group = BaseExceptionGroup(label, [CancelledError(label)])
            return BaseExceptionGroup(label, [CancelledError(label), inner_group])
        case Error.CANCELLED_SUBCLASS:
            return Withdrawal(label)
        case Error.INTERRUPT_SUBCLASS:
            return Interrupt(label)


def _in_a_circle(one: BaseException, other: BaseException) -> BaseException:
    one.__context__, other.__context__ = other, one
    return one


def is_cancellation(error: BaseException | None) -> bool:
    """Tell whether an exception is a `CancelledError`, or a group of nothing else."""
    return error is not None and all(
        isinstance(leaf, CancelledError) for leaf in flatten_exceptions(error)
    )


def text_of(exception: BaseException) -> str | None:
    """Return what an exception says of itself, if it can."""
    try:
        # A scope of anyio tells its address.
        return re.sub("scope [0-9a-f]+", "scope", str(exception))
    except RuntimeError:
        return None


def notes_of(exception: BaseException) -> tuple[Any, ...] | None:
    """Return the notes of an exception, if they can be looked at."""
    try:
        return tuple(getattr(exception, "__notes__", ()))
    except RuntimeError:
        return None


def describe(exception: BaseException | None, seen: tuple[int, ...] = ()) -> object:
    """Say all about an exception that two engines must show alike, as values."""
    if exception is None:
        return None
    if id(exception) in seen:
        return "a circle"
    seen += (id(exception),)
    members: object = ()
    if isinstance(exception, BaseExceptionGroup):
        members = tuple(describe(member, seen) for member in exception.exceptions)
    return (
        type(exception),
        text_of(exception),
        notes_of(exception),
        members,
        describe(exception.__cause__, seen),
        describe(exception.__context__, seen),
        exception.__suppress_context__,
    )


def outline(exception: BaseException | None) -> object:
    """Say of an exception what the contract says of it: no texts but the functions' own."""
    if exception is None:
        return None
    members: object = ()
    if isinstance(exception, BaseExceptionGroup):
        members = tuple(map(outline, exception.exceptions))
        if isinstance(exception, SdaxExecutionError):
            # Compared in another place, as far as it is ordered.
            members = frozenset(Counter(members).items())
    text = text_of(exception)
    cause = None
    if isinstance(exception, TaskCancelledError):
        cause = outline(exception.__cause__)
    return (type(exception), text if text and "#" in text else None, members, cause)
