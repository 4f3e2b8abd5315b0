"""Places of boxes in rows, and ways between them that avoid every other box.

This is the usual method for graphs in layers (Sugiyama, Tagawa and Toda 1981, and Gansner and
others 1993). A way that crosses a row has a narrow lane there, and lanes are placed like boxes. All
ways from one box share its lanes.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

# In pixels.
GAP: Final = 22  # between boxes
LANE: Final = 7  # to each side of the middle of a lane
SWEEPS: Final = 12

# How strongly two neighbours attract each other: two boxes, a box and a lane, two lanes. It makes
# long ways straight.
PULLS: Final = (1.0, 2.0, 8.0)


@dataclass(eq=False, slots=True)
class Place:
    """A box or a lane in a row. `middle` is its horizontal position."""

    row: int
    half: float  # of its width
    is_lane: bool = False
    middle: float = 0.0
    above: list[Place] = field(default_factory=list)
    below: list[Place] = field(default_factory=list)


class Rows:
    """Boxes in rows, from the top to the bottom, each with its place, and the ways between them.

    `ways` go from a box to one in a lower row, each named once.
    """

    def __init__(
        self,
        rows: Sequence[Sequence[Hashable]],
        widths: Mapping[Hashable, float],
        ways: Iterable[tuple[Hashable, Hashable]],
    ) -> None:
        self.places: dict[Hashable, Place] = {}
        self._rows: list[list[Place]] = []
        self._lanes: dict[tuple[Hashable, int], Place] = {}
        for number, names in enumerate(rows):
            row = [Place(number, widths[name] / 2) for name in names]
            self.places.update(zip(names, row, strict=True))
            self._rows.append(row)
        for start, end in ways:
            self._lead(start, end)
        for row in self._rows:
            # Lanes begin in the middle: at an end they would draw the rows below to that side.
            boxes = [place for place in row if not place.is_lane]
            half = len(boxes) // 2
            row[:] = [*boxes[:half], *row[len(boxes) :], *boxes[half:]]
            _stand(row, [0.0] * len(row))
        self._order()
        self._straighten()
        everywhere = [place for row in self._rows for place in row]
        left = min((place.middle - place.half for place in everywhere), default=0.0)
        for place in everywhere:
            place.middle -= left
        self.width = max((place.middle + place.half for place in everywhere), default=0.0)

    def way(self, start: Hashable, end: Hashable) -> list[Place]:
        """Return the places that a way leads through, in each row one."""
        first, last = self.places[start], self.places[end]
        lanes = (self._lanes[start, row] for row in range(first.row + 1, last.row))
        return [first, *lanes, last]

    def _lead(self, start: Hashable, end: Hashable) -> None:
        before, last = self.places[start], self.places[end]
        for row in range(before.row + 1, last.row):
            lane = self._lanes.get((start, row))
            if lane is None:
                lane = self._lanes[start, row] = Place(row, LANE, is_lane=True)
                self._rows[row].append(lane)
                before.below.append(lane)
                lane.above.append(before)
            before = lane
        before.below.append(last)
        last.above.append(before)

    def _order(self) -> None:
        """Order each row so that few ways cross: by where its neighbours are, down and up again,
        as long as that helps."""
        best = [list(row) for row in self._rows]
        fewest = self._crossings()
        for sweep in range(SWEEPS):
            if not fewest:
                break
            upwards = sweep % 2 == 1
            for row in reversed(self._rows) if upwards else self._rows:
                wanted = {
                    id(place): _mean(place.below if upwards else place.above, place)
                    for place in row
                }
                row.sort(key=lambda place: wanted[id(place)])
                _stand(row, [wanted[id(place)] for place in row])
            crossings = self._crossings()
            if crossings < fewest:
                best, fewest = [list(row) for row in self._rows], crossings
        self._rows = best
        for row in best:
            _stand(row, [0.0] * len(row))

    def _straighten(self) -> None:
        """Move places, in the order in which they stand, to the middle of their neighbours."""
        for sweep in range(SWEEPS):
            for row in reversed(self._rows) if sweep % 2 else self._rows:
                _stand(row, [_mean(place.above + place.below, place) for place in row])

    def _crossings(self) -> int:
        crossings = 0
        for above, row in pairwise(self._rows):
            position = {id(place): number for number, place in enumerate(row)}
            ends: list[int] = []
            for before in above:
                mine = [position[id(place)] for place in before.below]
                crossings += sum(len(ends) - bisect_right(ends, end) for end in mine)
                for end in mine:
                    insort(ends, end)
        return crossings


def _mean(neighbours: Iterable[Place], place: Place) -> float:
    total = weights = 0.0
    for each in neighbours:
        pull = PULLS[each.is_lane + place.is_lane]
        total += pull * each.middle
        weights += pull
    return total / weights if weights else place.middle


def _stand(row: Sequence[Place], wanted: Sequence[float]) -> None:
    """Place a row, in its order and without overlap, as near as can be to where each should be.

    This is isotonic regression: what is too near to each other forms a block, which stands where
    its members want it on average.
    """
    offsets: list[float] = []
    blocks: list[tuple[float, int]] = []  # the sum of what its members want, and how many
    for number, place in enumerate(row):
        before = row[number - 1]
        apart = before.half + place.half + _gap(before, place) if number else 0.0
        offsets.append((offsets[-1] if offsets else 0.0) + apart)
        total, count = wanted[number] - offsets[-1], 1
        while blocks and blocks[-1][0] / blocks[-1][1] >= total / count:
            others, more = blocks.pop()
            total, count = total + others, count + more
        blocks.append((total, count))
    middles = (total / count for total, count in blocks for _ in range(count))
    for place, offset, middle in zip(row, offsets, middles, strict=True):
        place.middle = middle + offset


def _gap(one: Place, other: Place) -> float:
    if one.is_lane and other.is_lane:
        return 0.0
    return GAP / 2 if one.is_lane or other.is_lane else GAP
