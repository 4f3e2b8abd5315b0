"""The exceptions of workflows: made to tell where they come from, and compared as values."""

from __future__ import annotations

from asyncio import CancelledError
from collections import Counter

from sdax import RetryableException, SdaxExecutionError, TaskCancelledError
from workflows import Error


class FatalError(BaseException):
    """No `Exception`, and unknown to everybody."""


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


def describe(exception: BaseException | None) -> object:
    """Say all about an exception that two engines must show alike, as values."""
    if exception is None:
        return None
    members: object = ()
    if isinstance(exception, BaseExceptionGroup):
        members = tuple(map(describe, exception.exceptions))
    return (
        type(exception),
        str(exception),
        tuple(getattr(exception, "__notes__", ())),
        members,
        describe(exception.__cause__),
        describe(exception.__context__),
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
    text = str(exception) if "#" in str(exception) else None
    cause = None
    if isinstance(exception, TaskCancelledError):
        cause = outline(exception.__cause__)
    return (type(exception), text, members, cause)
