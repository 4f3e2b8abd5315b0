"""Pickling between this process and the workers: items, values and errors, each alone."""

from __future__ import annotations

import pickle
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from typing import Any, Final

from ..common.text import class_name, module_name, shortened, shown
from ..engine.exceptions import set_cause
from ..errors import SdaxExecutionError
from ..report import changed_report
from .outcome import Outcome, failed

LONGEST: Final = 2000  # characters of what is shown of a value

VALUE: Final = 0  # what is packed: a value, and whether it is the report
ERROR: Final = 1  # or an error, what is told of it if it cannot be loaded, and its traceback

_MAIN: Final = b"__main__"


class TravelError(Exception):
    """A value or an exception could not travel between this process and a worker.

    - `type_name`: the type of what could not travel;
    - `text`: its text;
    - `notes`: the notes of an exception;
    - `traceback`: the formatted traceback of an exception, or "".

    >>> if isinstance(outcome.error, TravelError):
    ...     print(outcome.error.type_name, outcome.error.traceback)
    """

    def __init__(
        self,
        message: str,
        type_name: str = "",
        text: str = "",
        notes: tuple[str, ...] = (),
        traceback: str = "",
    ) -> None:
        super().__init__(message, type_name, text, notes, traceback)
        self.type_name = type_name
        self.text = text
        self.notes = notes
        self.traceback = traceback

    def __str__(self) -> str:
        return str(self.args[0])


class WorkerTraceback(Exception):
    """The cause of an error that comes from a worker: its traceback there, as text."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}" if self.args else ""


class WorkerLost(Exception):
    """An input has ended its worker, or its worker could not be replaced: there is no outcome.

    A run whose worker ends is not cleaned up.
    """


def dumps(value: Any) -> bytes:
    """Pickle a value, by value for names of the main program if cloudpickle is installed."""
    try:
        data = pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
        if _MAIN not in data or not _has_cloudpickle():
            return data
    except Exception:
        if not _has_cloudpickle():
            raise
    import cloudpickle  # type: ignore[import-untyped]

    by_value: bytes = cloudpickle.dumps(value)
    return by_value


def _has_cloudpickle() -> bool:
    return "cloudpickle" in sys.modules or find_spec("cloudpickle") is not None


def loads(data: bytes) -> Any:
    """Return what was pickled."""
    return pickle.loads(data)


def cannot_travel(what: str, value: Any, reason: BaseException) -> TravelError:
    """Return the error for a value that cannot be pickled, or not be loaded where it arrives."""
    kind = f"{module_name(value)}.{class_name(value)}"
    message = f"{what}, of type {kind}, cannot travel: {type(reason).__name__}: {_text(reason)}"
    if not isinstance(value, BaseException):
        return TravelError(message, kind, shortened(shown(value), LONGEST))
    notes = getattr(value, "__notes__", ())
    return TravelError(
        message,
        kind,
        shortened(_text(value), LONGEST),
        tuple(map(str, notes)) if isinstance(notes, (list, tuple)) else (),
        formatted(value),
    )


def _text(value: object) -> str:
    try:
        return str.__str__(str(value))
    except Exception:
        return object.__repr__(value)


def formatted(error: BaseException) -> str:
    """Return the traceback of an error, with those of its causes and members."""
    try:
        return "".join(traceback.format_exception(error))
    except Exception:  # out of what users' classes do
        return f"{class_name(error)}, whose traceback cannot be shown\n"


def pack(outcome: Outcome[Any, Any]) -> bytes:
    """Pickle an outcome on a worker, all but its number and item, which are known already."""
    if outcome.error is not None:
        return pack_error(outcome.error)
    value = outcome.value
    is_report = value is outcome.report
    try:
        return dumps((VALUE, value, is_report))
    except Exception as reason:
        if is_report:
            with suppress(Exception):
                return dumps((VALUE, changed_report(value, _travelling(), value.failures), True))
        return pack_error(cannot_travel("the value", value, reason))


def pack_error(error: BaseException) -> bytes:
    """Pickle an error, or what can be told of it."""
    data = None
    try:
        data = _tried(error)
        substitute = cannot_travel("the error", error, TypeError("it cannot be loaded here"))
    except Exception as reason:
        substitute = cannot_travel("the error", error, reason)
        if isinstance(error, SdaxExecutionError):
            with suppress(Exception):
                data = _tried(_travelling_group(error))
    packed = (ERROR, data, substitute.args, formatted(error))
    return pickle.dumps(packed, pickle.HIGHEST_PROTOCOL)


def _tried(value: Any) -> bytes:
    """Pickle a value that can be loaded again: many exceptions can only be pickled."""
    data = dumps(value)
    loads(data)
    return data


def _travelling() -> Callable[[Any], Any]:
    """Return a function that puts a `TravelError` in place of what cannot travel."""
    substitutes: dict[int, TravelError] = {}  # an exception may come several times

    def change(value: Any) -> Any:
        if id(value) in substitutes:
            return substitutes[id(value)]
        try:
            _tried(value)
        except Exception as reason:
            what = "an exception" if isinstance(value, BaseException) else "a value"
            return substitutes.setdefault(id(value), cannot_travel(what, value, reason))
        return value

    return change


def _travelling_group(error: SdaxExecutionError) -> SdaxExecutionError:
    """Return the error of a run, with a `TravelError` for each failure that cannot travel."""
    change = _travelling()
    failures = tuple(
        failure._replace(exception=change(failure.exception)) for failure in error.failures
    )
    report = changed_report(error.report, change, failures)
    made = SdaxExecutionError.from_failures(failures, report)
    for note in getattr(error, "__notes__", ()):
        made.add_note(note)
    return made


def unpack(data: bytes, number: int, item: Any) -> Outcome[Any, Any]:
    """Return the outcome that a worker has packed."""
    try:
        kind, *fields = loads(data)
    except Exception as reason:
        message = f"the value of input {number} cannot be loaded here: {shown(reason)}"
        return failed(number, item, TravelError(message))
    if kind == VALUE:
        value, is_report = fields
        return Outcome(number, item, value, value if is_report else None, None)
    error = _loaded_error(*fields)
    if isinstance(error, Exception):
        return failed(number, item, error)
    return failed(number, item, TravelError(f"an error that stops everything: {shown(error)}"))


def unpack_error(data: bytes) -> BaseException:
    """Return an error that was packed by `pack_error`."""
    _, *fields = loads(data)
    return _loaded_error(*fields)


def _loaded_error(data: bytes | None, substitute: tuple[Any, ...], text: str) -> BaseException:
    error: BaseException = TravelError(*substitute)
    if data is not None:
        with suppress(Exception):
            error = loads(data)
    set_cause(error, WorkerTraceback(text))
    return error
