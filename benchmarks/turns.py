"""Times the contestants of a work in turn.

A slow phase of the machine then meets all of them alike. Each turn gives a ratio between two
contestants, and the ratios of all turns give a median and a spread.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median, quantiles
from typing import TypeAlias

Clock: TypeAlias = Callable[[], float]
Turn: TypeAlias = list[float]  # the seconds of each call

SHORTEST_TURN = 0.005  # seconds. Quick work is done several times in a turn


@dataclass
class Rival:
    """One who takes turns: what prepares it, what it does, and what came of it."""

    prepare: Callable[[], object]
    run: Callable[[], object]
    turns: list[Turn] = field(default_factory=list[Turn])
    error: BaseException | None = None  # after it, there are no more turns

    @property
    def times(self) -> list[float]:
        """Return the seconds of all calls."""
        return [seconds for turn in self.turns for seconds in turn]


def take_turns(
    rivals: Sequence[Rival], seconds: float, fewest: int, clock: Clock = time.perf_counter
) -> None:
    """Give each rival at least this number of turns, and more while they fit into `seconds`.

    The seconds are those of all rivals together. Garbage is collected between turns only.
    """
    gc.collect()
    gc.freeze()  # a collection between turns has nothing to do with what was there before
    gc.disable()
    try:
        begin = clock()
        rounds, latest = 0, begin
        while rounds < fewest or 2 * clock() - latest <= begin + seconds:
            latest = clock()
            able = [rival for rival in rivals if rival.error is None]
            if not able:
                return
            for rival in able:
                _take_turn(rival, clock)
            rounds += 1
    finally:
        gc.enable()
        gc.unfreeze()


def _take_turn(rival: Rival, clock: Clock) -> None:
    gc.collect()
    turn: Turn = []
    try:
        rival.prepare()
        until = clock() + SHORTEST_TURN
        end = clock()
        while not turn or end < until:
            begin = clock()
            rival.run()
            end = clock()
            turn.append(end - begin)
    except Exception as error:
        rival.error = error
    else:
        rival.turns.append(turn)


def ratios(baseline: Rival, rival: Rival) -> Mapping[str, float]:
    """Return how many times as fast as the baseline a rival is: the median of its turns' ratios.

    Half of the ratios are between `ratio_low` and `ratio_high`. Each compares the best times of
    one turn.
    """
    found = [min(base) / min(own) for base, own in zip(baseline.turns, rival.turns, strict=False)]
    low, _, high = quantiles(found, n=4, method="inclusive") if len(found) > 1 else found * 3
    return {"ratio": median(found), "ratio_low": low, "ratio_high": high}
