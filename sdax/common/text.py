"""The text of values, names and tables, for messages and pictures."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Final

MOST_COMPARED: Final = 10_000  # names, in a search for similar ones, which takes time
MOST_LISTED: Final = 8
WIDEST_COLUMN: Final = 60  # a wider cell moves only the rest of its own line

_qualified_name: Final[Callable[[type], str]] = vars(type)["__qualname__"].__get__
_module: Final[Callable[[type], object]] = vars(type)["__module__"].__get__


def shown(value: object) -> str:
    """Return the `repr` of a value for a message. It never raises.

    A `repr` can raise, for example for an integer of some thousand digits. It can also return an
    instance of a string class that does not behave like a string.
    """
    try:
        return str.__str__(repr(value))
    except Exception:
        return object.__repr__(value)


def shown_fields(record: Any) -> str:
    """Return the `repr` of a named tuple, even if the `repr` of a member raises."""
    pairs = zip(record._fields, record, strict=True)
    fields = ", ".join(f"{name}={shown(value)}" for name, value in pairs)
    return f"{type(record).__name__}({fields})"


def class_name(value: object) -> str:
    """Return the qualified name of a value's class, without asking its metaclass."""
    return _qualified_name(type(value))


def module_name(value: object) -> str:
    """Return the module of a value's class, without asking its metaclass."""
    return str(_module(type(value)))


def one_line(name: Hashable) -> str:
    """Return a name on one line: a string unchanged, anything else as its `repr`."""
    text = str.__str__(name) if isinstance(name, str) else shown(name)
    if not text.isprintable():
        text = "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)
    return text or "''"


def brief_exception(exception: BaseException) -> str:
    """Return the type of an exception and the first line of its text, on one line.

    It never raises. If the exception cannot be shown, it returns the type alone.
    """
    kind = class_name(exception)
    try:
        first, *more = str.__str__(str(exception)).splitlines() or [""]
    except Exception:
        return kind
    return one_line(f"{kind}: {first}{' ...' if more else ''}" if first or more else kind)


def nearest(name: Hashable, names: Collection[Hashable]) -> str:
    """Return the end of a sentence about an unknown name, with similar names.

    >>> nearest("Usr", ["User", "Flags"])
    "; did you mean 'User'?"
    """
    if close := nearest_only(name, names):
        return close
    if not names:
        return "; there are none"
    few = list(map(shown, islice(names, MOST_LISTED)))
    more = ", ..." if len(names) > len(few) else ""
    return f"; there {'is' if len(names) == 1 else 'are'} {', '.join(few)}{more}"


def nearest_only(name: Hashable, names: Collection[Hashable]) -> str:
    """Return the same as `nearest`, or nothing if no name is similar."""
    from difflib import get_close_matches  # for mistakes only

    texts: dict[str, Hashable] = {}
    for each in islice(names, MOST_COMPARED):
        texts.setdefault(one_line(each).casefold(), each)
    close = [texts[text] for text in get_close_matches(one_line(name).casefold(), texts)]
    return f"; did you mean {' or '.join(map(shown, close))}?" if close else ""


def digits(number: int) -> str:
    """Return a number in digits, also for a member of an enumeration."""
    return shown(int.__pos__(number))


def counted(number: int, one: str, many: str | None = None) -> str:
    """Return a number of things: `"1 task"`, `"2 tasks"`."""
    return f"{digits(number)} {one if number == 1 else many or one + 's'}"


def shortened(text: str, longest: int) -> str:
    """Return a text of at most `longest` characters."""
    return text if len(text) <= longest else text[: longest - 1] + "…"


def listed(names: Iterable[str], number: int, most: int) -> str:
    """Return the first of `number` names: `"A, B and 98 more"` for `most=2`."""
    first = ", ".join(islice(names, most))
    return f"{first} and {number - most} more" if number > most else first


def cells(text: str) -> int:
    """Return the number of terminal columns of a text."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    return sum(
        0 if combining(each) else 2 if east_asian_width(each) in "WF" else 1 for each in text
    )


def fitted(text: str, width: int) -> str:
    """Return a text cut or filled with spaces to `width` terminal columns."""
    if cells(text) > width:
        while cells(text) > width - 1:
            text = text[:-1]
        text += "…"
    return text + " " * (width - cells(text))


def wrapped(parts: Iterable[str], width: int, separator: str = " ") -> list[str]:
    """Return lines of at most `width` terminal columns. A part that is wider is broken."""
    lines: list[str] = []
    line = ""
    for part in parts:
        if line and cells(line) + len(separator) + cells(part) <= width:
            line += separator + part
            continue
        if line:
            lines.append(line)
        line = ""
        for each in part:
            if line and cells(line + each) > width:
                lines.append(line)
                line = ""
            line += each
    return [*lines, line]


def in_columns(rows: Iterable[Sequence[str]], right: int = 0) -> Iterator[str]:
    """Yield a line for each row of cells, in columns of a terminal.

    The first `right` columns are aligned to the right. Rows can end early. The last cell of a row
    is not padded.
    """
    rows = list(rows)
    widths: dict[int, int] = {}
    for row in rows:
        for column, cell in enumerate(row[:-1]):
            widths[column] = max(widths.get(column, 0), min(WIDEST_COLUMN, cells(cell)))
    for row in rows:
        line = "  "
        for column, cell in enumerate(row[:-1]):
            space = " " * (widths[column] - cells(cell))
            line += (space + cell if column < right else cell + space) + "  "
        yield (line + row[-1]).rstrip()
