"""The exceptions of workflows: made to tell where they come from, and compared as values."""

from __future__ import annotations

import re
from asyncio import CancelledError
from collections import Counter
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


class StubbornError(OSError):
    """What a future raises that cannot be cancelled."""


class RefusedError(Exception):
    """What a task factory raises that makes no `asyncio.Task`."""


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
        case Error.ASKING:
            return RetryableException(label, retry_after=2)
        case Error.FROZEN:
            return Frozen(label)
        case Error.SLOTTED:
            return Slotted(label)
        case Error.SPEECHLESS:
            return NoText(label)
        case Error.INCOMPARABLE:
            return Incomparable(label)
        case Error.WITHOUT_NOTES:
            return NoNotes(label)
        case Error.ODD_NOTES:
            return OddNotes(label)
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
    except Exception:
        return None


def notes_of(exception: BaseException) -> tuple[Any, ...] | None:
    """Return the notes of an exception, if they can be looked at."""
    try:
        notes = getattr(exception, "__notes__", ())
        # What cannot be shown is shown by its address.
        return tuple(re.sub(" at 0x[0-9a-f]+", "", str(note)) for note in notes)
    except Exception:
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


# Exceptions that refuse what others do to them: each is as Python allows it.


def _refuse(*_: Any) -> NoReturn:
    raise RuntimeError("refused")


class Frozen(Exception):
    """Cannot be changed."""

    __setattr__ = __delattr__ = _refuse


class Slotted(Exception):
    """Has a slot for what it knows."""

    __slots__ = ("code",)


class NoRepr(Exception):
    """Cannot be shown."""

    __repr__ = _refuse


class NoStr(Exception):
    """Has no text."""

    __str__ = _refuse


class NoText(Exception):
    """Has neither."""

    __repr__ = __str__ = _refuse


class OddText(Exception):
    """Gives no strings."""

    def __repr__(self) -> Any:
        return 5

    __str__ = __repr__


class OddStr(str):
    """A string that is none to look at."""

    __slots__ = ()

    __format__ = __len__ = __str__ = __repr__ = isprintable = splitlines = _refuse


class OddStrings(Exception):
    """Gives strings of a class that does not behave like one."""

    def __repr__(self) -> str:
        return OddStr("text")

    __str__ = __repr__


class Incomparable(Exception):
    """Cannot be compared, hashed or asked whether it is true."""

    __eq__ = __ne__ = __bool__ = _refuse
    __hash__ = None  # type: ignore[assignment]


class NoNotes(Exception):
    """Takes no notes."""

    add_note = _refuse


class OddNotes(Exception):
    """Has notes that are no list."""

    __notes__ = 5


class _Nameless(type):
    def __getattribute__(cls, name: str) -> Any:
        if name in ("__name__", "__qualname__", "__module__"):
            _refuse()
        return super().__getattribute__(name)


class Nameless(Exception, metaclass=_Nameless):
    """Does not tell what it is called. Not in the zoo, because pytest cannot show it."""


class Long(Exception):
    """Has a long text of several lines, with control characters."""

    def __str__(self) -> str:
        return "\x1b[31m first\nsecond " + "x" * 100_000

    __repr__ = __str__


ZOO: dict[str, type[Exception]] = {
    "frozen": Frozen,
    "slotted": Slotted,
    "no repr": NoRepr,
    "no str": NoStr,
    "no text": NoText,
    "odd text": OddText,
    "odd strings": OddStrings,
    "incomparable": Incomparable,
    "no notes": NoNotes,
    "odd notes": OddNotes,
    "long": Long,
}
