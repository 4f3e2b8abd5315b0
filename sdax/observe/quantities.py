"""Times and columns, as people read them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from typing import Final
from unicodedata import combining, east_asian_width

UNITS: Final = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))


def seconds(time: float) -> str:
    """Return a time in three figures or more, in the unit that suits it: `"12.3 ms"`."""
    if not time:
        return "0 s"
    scale, unit = unit_of(time)
    amount = time / scale
    decimals = 0 if abs(amount) >= 99.95 else 1 if abs(amount) >= 9.995 else 2
    return f"{amount:,.{decimals}f} {unit}"


def unit_of(time: float) -> tuple[float, str]:
    """Return the unit that suits a time, and what it is in seconds."""
    for scale, unit in UNITS:
        if abs(time) >= scale:
            return scale, unit
    return UNITS[-1]


def ticks(duration: float, most: int) -> Iterator[tuple[float, str]]:
    """Yield the marks of an axis from 0 on, at most `most` of them, each with its label."""
    if duration <= 0:
        yield 0.0, "0"
        return
    rough = duration / max(1, most - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999999)
    scale, unit = unit_of(max(step, min(duration, 1e-3)) if duration < 1e-3 else duration)
    decimals = max(0, -math.floor(math.log10(step / scale) + 1e-9))
    for number in count():
        time = number * step
        if time > duration * 1.000001:
            return
        yield time, f"{time / scale:.{decimals}f} {unit}" if number else "0"


def cells(text: str) -> int:
    """Return how many columns of a terminal a text takes."""
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


def in_columns(rows: Sequence[Sequence[str]], right: int) -> list[str]:
    """Return rows of cells as lines; the first `right` columns are aligned to the right."""
    widths = [max(map(cells, column)) for column in zip(*rows, strict=True)]
    lines: list[str] = []
    for row in rows:
        padded = [
            " " * (width - cells(cell)) + cell if number < right else fitted(cell, width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(("  " + "  ".join(padded)).rstrip())
    return lines
