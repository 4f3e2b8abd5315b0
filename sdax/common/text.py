"""How values, names and tables are written, in messages as in pictures."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence
from difflib import get_close_matches
from itertools import islice
from typing import Any, Final
from unicodedata import combining, east_asian_width

MOST_COMPARED: Final = 10_000  # names, when the nearest ones are looked for: it takes a while
MOST_LISTED: Final = 8
WIDEST_COLUMN: Final = 60  # a cell that is wider pushes on its own line alone

_qualified_name: Final[Callable[[type], str]] = vars(type)["__qualname__"].__get__
_module: Final[Callable[[type], object]] = vars(type)["__module__"].__get__


def shown(value: object) -> str:
    """Return the `repr` of a value for a message, whatever that `repr` does.

    It may raise, and an integer of some thousand digits has none. It may also return a string of
    a class that does not behave like one.
    """
    try:
        return str.__str__(repr(value))
    except Exception:
        return object.__repr__(value)


def shown_fields(record: Any) -> str:
    """Return the `repr` of a named tuple, whatever the `repr` of its members does."""
    pairs = zip(record._fields, record, strict=True)
    fields = ", ".join(f"{name}={shown(value)}" for name, value in pairs)
    return f"{type(record).__name__}({fields})"


def class_name(value: object) -> str:
    """Return the qualified name of a value's class, whatever its metaclass says."""
    return _qualified_name(type(value))


def module_name(value: object) -> str:
    """Return the module of a value's class, whatever its metaclass says."""
    return str(_module(type(value)))


def one_line(name: Hashable) -> str:
    """Return a name on one line: a string as it is, anything else as its `repr`."""
    text = str.__str__(name) if isinstance(name, str) else shown(name)
    if not text.isprintable():
        text = "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)
    return text or "''"


def nearest(name: Hashable, names: Collection[Hashable]) -> str:
    """Return the end of a sentence about a name that is not there: what may have been meant.

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
    """Return what `nearest` does, but nothing if no name is near."""
    texts: dict[str, Hashable] = {}
    for each in islice(names, MOST_COMPARED):
        texts.setdefault(one_line(each).casefold(), each)
    close = [texts[text] for text in get_close_matches(one_line(name).casefold(), texts)]
    return f"; did you mean {' or '.join(map(shown, close))}?" if close else ""


def digits(number: int) -> str:
    """Return a number, and no more than that, whatever an enumeration shows."""
    return shown(int.__pos__(number))


def counted(number: int, one: str, many: str | None = None) -> str:
    """Return so many of a thing: `"1 task"`, `"2 tasks"`."""
    return f"{digits(number)} {one if number == 1 else many or one + 's'}"


def shortened(text: str, longest: int) -> str:
    """Return a text of at most so many characters."""
    return text if len(text) <= longest else text[: longest - 1] + "…"


def listed(names: Iterable[str], number: int, most: int) -> str:
    """Return the first of `number` names: `"A, B and 98 more"` for `most=2`."""
    first = ", ".join(islice(names, most))
    return f"{first} and {number - most} more" if number > most else first


def cells(text: str) -> int:
    """Return how many columns of a terminal a text takes."""
    if text.isascii():
        return len(text)
    return sum(
        0 if combining(each) else 2 if east_asian_width(each) in "WF" else 1 for each in text
    )


def fitted(text: str, width: int) -> str:
    """Return a text cut or filled with spaces to so many columns of a terminal."""
    if cells(text) > width:
        while cells(text) > width - 1:
            text = text[:-1]
        text += "…"
    return text + " " * (width - cells(text))


def wrapped(parts: Iterable[str], width: int, separator: str = " ") -> list[str]:
    """Return lines of at most so many columns of a terminal; a part is broken if it must be."""
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
    """Yield a line for each row of cells, in columns of a terminal, of which the first `right`
    are aligned to the right. Rows may end early; the last cell of each is as wide as it is."""
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
