"""Times in readable form."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import count
from typing import Final

UNITS: Final = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))


def seconds(time: float) -> str:
    """Return a time with three figures or more, in a suitable unit: `"12.3 ms"`."""
    if not time:
        return "0 s"
    scale, unit = unit_of(time)
    amount = time / scale
    decimals = 0 if abs(amount) >= 99.95 else 1 if abs(amount) >= 9.995 else 2
    return f"{amount:,.{decimals}f} {unit}"


def unit_of(time: float) -> tuple[float, str]:
    """Return a suitable unit for a time, with its length in seconds."""
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
