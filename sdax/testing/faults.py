"""The faults at a point of a function, and their exceptions."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, Final

from ..common.text import nearest, shown
from ..tasks import RetryableException, TaskFunction
from .points import CALL, ENTER, EXIT, FALLBACK, QUESTIONS, Fault, Point, label_of

# The kinds of faults, as users choose them, in the order in which they are tried.
KINDS: Final = ("cancel", "fail", "hang", "cancel again", "interrupt", "fail cleanup")
USUAL: Final = KINDS[:4]

_EXPECTED: Final = (ConnectionError, RetryableException, TimeoutError)
_UNEXPECTED: Final = (Exception, RuntimeError, ValueError, LookupError)


class InjectedError(Exception):
    """An exception that `sdax.testing` raises in a function. Some are also `ConnectionError`s.

    If a function is retried after a kind of exception, the injected exception is also of that kind.
    """

    def __init__(self, message: str) -> None:
        self.args = (message,)  # a base class may expect other arguments

    def __str__(self) -> str:
        return str(self.args[0])

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.args[0]!r})"


class InjectedInterrupt(KeyboardInterrupt):
    """The `KeyboardInterrupt` that `sdax.testing` raises in a function."""


def checked_kinds(faults: Any) -> tuple[str, ...]:
    """Return kinds of faults in their order. Raise an error for anything else."""
    if isinstance(faults, str) or not isinstance(faults, Collection):
        hint = f"; did you mean ({shown(faults)},)?" if isinstance(faults, str) else ""
        raise TypeError(f"faults must be a collection of names, got {shown(faults)}{hint}")
    for kind in faults:
        if kind not in KINDS:
            raise ValueError(f"faults: there is no fault {shown(kind)}{nearest(kind, KINDS)}")
    return tuple(kind for kind in KINDS if kind in faults)


def faults_at(
    point: Point, limits: TaskFunction[Any], kinds: Collection[str], *, can_fail: bool
) -> Iterator[Fault]:
    """Yield the faults that make sense at a point, of the requested kinds.

    If a cleanup fails for good, something is lost, and no author can prevent that. So a cleanup
    fails only if it has retries, and then once.
    """
    label = label_of(point.function)
    waits = point.at.isdecimal()
    # The function gets a cancellation at the first await, or at the end.
    if "cancel" in kinds and point.at != CALL:
        yield Fault.CANCEL
    if can_fail and not point.at.endswith("+"):
        yield from _failures(point, limits, kinds)
    if waits and "hang" in kinds:
        yield Fault.HANG
    if not waits and not label.is_cleanup and label.limit is None and "interrupt" in kinds:
        yield Fault.INTERRUPT


def _failures(point: Point, limits: TaskFunction[Any], kinds: Collection[str]) -> Iterator[Fault]:
    label = label_of(point.function)
    releases = label.is_cleanup or label.limit == EXIT
    for_good = ("fail cleanup" if releases else "fail") in kinds
    expected, unexpected = exceptions_for(limits)
    if label.limit in QUESTIONS:
        if for_good and point.at == CALL:
            yield Fault.FAIL
        return
    if label.limit == FALLBACK:  # it has no retry
        if for_good:
            yield Fault.FAIL if expected is not None else Fault.FAIL_UNEXPECTEDLY
        return
    if label.limit in (ENTER, EXIT) and point.at == CALL:
        return  # it fails where it waits
    # The place of a failed release is lost, although there is another attempt.
    has_retry = point.attempt <= limits.retries and label.limit != EXIT
    if expected is not None:
        if for_good or (has_retry and "fail" in kinds):
            yield Fault.FAIL
        if for_good and has_retry:
            yield Fault.FAIL_ALWAYS
    if unexpected is not None and for_good:
        yield Fault.FAIL_UNEXPECTEDLY


def exceptions_for(
    limits: TaskFunction[Any],
) -> tuple[type[InjectedError] | None, type[InjectedError] | None]:
    """Return an exception that is retried, and an exception that is not."""
    kinds = limits.retryable_exceptions
    named = kinds if isinstance(kinds, tuple) else ()
    return _first((*_EXPECTED, *named), limits, True), _first(_UNEXPECTED, limits, False)


def exception_of(fault: Fault, limits: TaskFunction[Any], point: Point) -> BaseException:
    """Make the exception that a fault raises.

    Raises `ValueError` if the function is retried after every exception, or after none.
    """
    if fault is Fault.INTERRUPT:
        return InjectedInterrupt(f"injected at {point}")
    if label_of(point.function).limit in QUESTIONS:
        question: Any = _injected(RuntimeError)
        return question(f"injected at {point}")  # type: ignore[no-any-return]
    expected, unexpected = exceptions_for(limits)
    kind = unexpected if fault is Fault.FAIL_UNEXPECTEDLY else expected
    if kind is None:
        which = "any" if fault is Fault.FAIL_UNEXPECTEDLY else "no"
        raise ValueError(f"{point.function} is retried after {which} exception that is known here")
    return kind(f"injected at {point}")


def _first(
    kinds: Collection[type[Exception]], limits: TaskFunction[Any], retried: bool
) -> type[InjectedError] | None:
    for kind in kinds:
        made = InjectedError if kind is Exception else _injected(kind)
        if made is not None and _is_retried(made, limits) is retried:
            return made
    return None


def _injected(kind: type[Exception]) -> type[InjectedError] | None:
    """Return a class of injected exceptions that are also of this kind, or None."""
    if kind not in _classes:
        try:
            made: Any = type(f"Injected{kind.__name__}", (InjectedError, kind), {})
            made("as a trial")
        except Exception:  # a class may refuse subclasses
            made = None
        _classes[kind] = made
    return _classes[kind]


_classes: dict[type[Exception], type[InjectedError] | None] = {}


def _is_retried(kind: type[InjectedError], limits: TaskFunction[Any]) -> bool | None:
    try:
        return bool(limits.is_retryable(kind("as a trial")))
    except Exception:  # from a predicate that expects other exceptions
        return None
