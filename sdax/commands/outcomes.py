"""The outcomes of `python -m sdax run`: lines in JSON, in a file or on standard output."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import suppress
from errno import EINVAL, EPIPE
from inspect import isawaitable
from pathlib import Path
from typing import Any, Final, Literal, Self, TextIO

from ..common.text import class_name, counted, one_line, shown
from ..errors import SdaxExecutionError
from .named import refuse
from .output import discard_the_rest

STANDARD_OUTPUT: Final = ("-", "/dev/stdout")


class WriteError(Exception):
    """The outcomes cannot be written. `is_closed` is True if their reader has closed the pipe."""

    def __init__(self, args: argparse.Namespace, error: OSError) -> None:
        super().__init__(f"--out: {args.out} takes no more: {error.strerror}")
        self.is_closed = error.errno in (EPIPE, EINVAL)  # the second on Windows


class Out:
    """Where outcomes are written, a line for each. Opened when it is made."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._is_standard_output = args.out in STANDARD_OUTPUT
        self._file: TextIO = sys.stdout if self._is_standard_output else _opened(args)

    def write(self, number: int, outcome: Any) -> dict[str, Any] | None:
        """Write the outcome of an input. Return what was written of its error, if it has one.

        A value that is not JSON is an error. Raises `WriteError`.
        """
        error = outcome.error
        if error is None:
            try:
                self._write(in_json({"number": number, "value": outcome.value}))
                return None
            except WriteError:
                raise
            except Exception as reason:
                error = TypeError(_not_json(self._args, outcome.value, reason))
        return self.write_error(number, described(error))

    def write_error(self, number: int, error: dict[str, Any]) -> dict[str, Any]:
        """Write an error as the outcome of an input."""
        self._write(in_json({"number": number, "error": error}))
        return error

    def _write(self, line: str) -> None:
        try:
            self._file.write(line + "\n")
            self._file.flush()
        except OSError as error:
            if self._is_standard_output:
                discard_the_rest()
            raise WriteError(self._args, error) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._is_standard_output:
            with suppress(OSError):  # `write` has raised it
                self._file.close()


class Earlier:
    """The outcomes that the file has already. If it has several of an input, the last one counts.

    - `done`: the numbers of their inputs;
    - `failed`: those of them whose outcome is an error, and where it is in the file;
    - `first_error`: the number of the first of these, and what was written of its error.
    """

    def __init__(self) -> None:
        self.done: set[int] = set()
        self.failed: dict[int, int] = {}
        self.first_error: tuple[int, Any] | None = None

    def forget_failed(self) -> None:
        """Make the inputs that failed run again."""
        self.done.difference_update(self.failed)
        self.failed.clear()
        self.first_error = None

    def read(self, args: argparse.Namespace) -> None:
        """Read the file. A last line that is not whole is cut off."""
        path = Path(args.out)
        if args.out in STANDARD_OUTPUT or (path.exists() and not path.is_file()):
            refuse(args, f"--resume: {args.out} is not a file that can be read")
        if not path.exists():
            return
        with path.open("r+b") as file:
            whole = 0
            for place, text in enumerate(file, 1):
                if not text.endswith(b"\n"):
                    break
                try:
                    self._add(json.loads(text), whole)
                except (ValueError, KeyError, TypeError):
                    refuse(
                        args, f"--resume: {args.out}, line {place} has no outcome of this command"
                    )
                whole += len(text)
            file.truncate(whole)
            if self.failed:
                file.seek(min(self.failed.values()))
                line = json.loads(file.readline())
                self.first_error = line["number"], line["error"]

    def _add(self, line: dict[str, Any], place: int) -> None:
        number = int(line["number"])
        self.done.add(number)
        if line.get("error") is None:
            self.failed.pop(number, None)
        else:
            self.failed[number] = place


def _opened(args: argparse.Namespace) -> TextIO:
    path = Path(args.out)
    is_file = path.is_file() or not path.exists()
    # Nothing that was done is ever written over.
    mode: Literal["a", "w", "x"] = "w" if not is_file else "a" if args.resume else "x"
    try:
        return path.open(mode, encoding="utf-8")
    except FileExistsError:
        refuse(args, f"--out: {args.out} exists; --resume goes on with it")
    except OSError as error:
        refuse(args, f"--out: {args.out} cannot be written: {error.strerror}")


def in_json(value: Any) -> str:
    """Return a value in JSON. Raises an exception if it has anything that JSON does not have."""
    return json.dumps(value, default=_refuse_value, allow_nan=False)


def _refuse_value(value: Any) -> Any:
    if isawaitable(value):
        raise TypeError(f"it has a {class_name(value)}, for which an 'await' is missing")
    raise TypeError(f"it has an object of type {class_name(value)}")


def _not_json(args: argparse.Namespace, value: Any, reason: Exception) -> str:
    """Return what is wrong with a value, and what to do."""
    what, advice = "the return value of --pick", "return"
    if args.pick is None:
        what, advice = "the return value of execute", "name a function with --pick that returns"
        for name, each in value.items():
            try:
                in_json(each)
            except Exception:
                what += f" of task {shown(name)}"
                break
    return (
        f"{what} is not JSON: {_message(reason)}; {advice} text, numbers, lists and dicts of them"
    )


def described(error: BaseException) -> dict[str, Any]:
    """Return what is written of an error."""
    written: dict[str, Any] = {"type": class_name(error), "message": _message(error)}
    if isinstance(error, SdaxExecutionError):
        written["failures"] = [
            {
                "task": one_line(failure.name),
                "phase": failure.phase,
                "attempts": failure.attempts,
                "type": class_name(failure.exception),
                "message": _message(failure.exception),
            }
            for failure in error.failures
        ]
    return written


def described_stop(error: BaseException) -> dict[str, Any]:
    """Return what is written of what has ended the job. Its notes say which function raised it."""
    written = described(error)
    if notes := getattr(error, "__notes__", ()):
        written["notes"] = [one_line(note) for note in notes]
    return written


def _message(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception:  # out of what users' classes do
        text = shown(error)
    return one_line(text) if text else ""


def told(number: int, error: Any) -> str:
    """Return what was written of an error, as a text for people.

    >>> told(6, {"type": "LookupError", "message": "no order 5"})
    "line 6: LookupError: no order 5"
    """
    failures = error.get("failures") if isinstance(error, dict) else None
    if not failures:
        return f"line {number}: {_told(error)}"
    first = failures[0]
    more = f", and {counted(len(failures) - 1, 'more failure')}" if failures[1:] else ""
    return f"line {number}, {first['phase']} of task {first['task']!r}: {_told(first)}{more}"


def _told(error: Any) -> str:
    if not isinstance(error, dict) or "type" not in error:  # from another program
        return shown(error)
    text = ": ".join(filter(None, (error["type"], error.get("message"))))
    return f"{text} ({', '.join(error['notes'])})" if error.get("notes") else text
