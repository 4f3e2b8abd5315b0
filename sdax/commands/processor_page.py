"""The page of a processor: its tasks by level, or by layer of the graph, as a picture in SVG."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, TypeAlias

from ..common.order import PHASES
from ..common.text import one_line, shortened
from ..diagram import NOT_REQUIRED, described_limits
from ..events import TaskInfo
from ..observe.layers import layers_of
from ..observe.page import page, text
from ..processor import AsyncDagTaskProcessor
from ..tasks import AsyncTask
from .named import Processor
from .rows import GAP, Place, Rows

Task: TypeAlias = AsyncTask[Any, Any]
Group: TypeAlias = tuple[str, list[Task]]

# In pixels.
CHARACTER: Final = 7.3  # of the fixed-width font
LINE: Final = 19
INSET: Final = 12
BETWEEN: Final = 46  # groups, one above the other
STEEP: Final = 0.12  # what room ways have to go down, as a share of how far they go sideways
HIGHEST: Final = 120  # the most of it
ENDS: Final = 15  # between the arrowheads of a box
MARGIN: Final = 92  # for the names of groups, on the left
WIDEST: Final = 1300  # a row of tasks, before another one is begun

LONGEST: Final = 44  # characters of a line

STYLE: Final = """\
<style>
.picture { overflow-x: auto; }
.picture svg { display: block; margin: auto; font: 12px ui-monospace, monospace; fill: var(--ink); }
.picture .ground { fill: var(--band); }
.picture .box { fill: var(--panel); stroke: var(--line); stroke-width: 1.5; }
.picture .task { font-weight: 700; }
.picture .edge { fill: none; stroke: var(--soft); stroke-width: 1.4; }
.picture .edge:hover { stroke: var(--ink); stroke-width: 3; }
.picture .soft { fill: var(--soft); }
.picture .pre_execute { fill: var(--pre); } .picture .execute { fill: var(--execute); }
.picture .post_execute { fill: var(--post); }
</style>"""

ARROW: Final = """\
<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7"
orient="auto"><path class="soft" d="M0 0 8 4 0 8z"/></marker></defs>"""


def processor_page(processor: Processor, title: str) -> str:
    """Return the page of a processor, as HTML."""
    summary, *_ = str(processor).split("\n", 1)
    if isinstance(processor, AsyncDagTaskProcessor):
        dependencies = dict(processor.dependencies)
        picture = _Picture(_layers(processor), dependencies)
        how = "An arrow goes from a task to each task that depends on it."
    else:
        groups = [(f"level {level}", list(tasks)) for level, tasks in processor.levels.items()]
        picture = _Picture(groups, {})
        first = "pre_execute runs"
        if processor.execute_order == "level":
            first = "pre_execute and then execute run"
        how = f"{first} level by level along the arrows, and post_execute against them."
    about = f'<p class="soft">{text(summary)}. {how}</p>'
    body = [STYLE, about, '<div class="panel picture">', *picture.draw(), "</div>"]
    return page(title, "\n".join(body))


def _layers(processor: AsyncDagTaskProcessor[Any, Any]) -> list[Group]:
    tasks = [TaskInfo(name, None, names) for name, names in processor.dependencies.items()]
    layers = layers_of(tasks)
    groups: dict[int, list[Task]] = {}
    for name, task in processor.tasks.items():
        groups.setdefault(layers[name], []).append(task)
    return [(f"layer {number}", groups[number]) for number in sorted(groups)]


@dataclass(eq=False)
class _Box:
    """A task, with its place in the picture."""

    task: Task
    lines: list[tuple[str, str]]
    width: float
    height: float
    x: float = 0.0
    y: float = 0.0

    def draw(self, above: Collection[Hashable]) -> Iterator[str]:
        name = one_line(self.task.name)
        facts = [name, *(line for _, line in self.lines)]
        if above:
            facts.append("depends on " + ", ".join(map(one_line, above)))
        tip = text("\n".join(facts))
        yield f'<g data-tip="{tip}" transform="translate({self.x:.1f} {self.y:.1f})">'
        yield f'<rect class="box" width="{self.width:.1f}" height="{self.height}" rx="7"/>'
        yield f'<text class="task" x="{INSET}" y="{INSET + 9}">{text(_cut(name))}</text>'
        for number, (phase, line) in enumerate(self.lines, 1):
            y = INSET + 9 + number * LINE
            if phase:
                yield f'<rect class="{phase}" x="{INSET}" y="{y - 9}" width="9" height="9" rx="2"/>'
            yield f'<text x="{INSET + 16}" y="{y}">{text(_cut(line))}</text>'
        yield "</g>"


@dataclass(eq=False)
class _Row:
    """Some boxes of a group, side by side."""

    group: str
    boxes: list[_Box]
    top: float = 0.0

    @property
    def bottom(self) -> float:
        return self.top + max(box.height for box in self.boxes)


class _Picture:
    """Groups one above the other, each in as many rows as it needs, and the arrows."""

    def __init__(self, groups: list[Group], dependencies: Mapping[Any, Iterable[Hashable]]) -> None:
        self.dependencies = {
            name: tuple(dict.fromkeys(above)) for name, above in dependencies.items()
        }
        self.rows = [
            _Row(name, boxes)
            for name, tasks in self._ordered(groups)
            for boxes in _rows([_box(task) for task in tasks])
        ]
        self.boxes = {box.task.name: box for row in self.rows for box in row.boxes}
        self.places = Rows(
            [[box.task.name for box in row.boxes] for row in self.rows],
            {name: box.width for name, box in self.boxes.items()},
            [(each, name) for name, above in self.dependencies.items() for each in above],
        )
        self.left = MARGIN + INSET
        self.width = self.left + self.places.width + INSET
        self._stack()
        self.height = self.rows[-1].bottom + INSET if self.rows else 0.0

    def _ordered(self, groups: list[Group]) -> Iterator[Group]:
        """Yield the groups with their tasks so that each is near what it depends on, which
        matters where a group has several rows."""
        shares: dict[Hashable, float] = {}

        def place(task: Task) -> float:
            above = [shares[each] for each in self.dependencies.get(task.name, ())]
            return sum(above) / len(above) if above else 0.0

        for name, tasks in groups:
            ordered = sorted(tasks, key=place)
            shares.update((task.name, n / len(ordered)) for n, task in enumerate(ordered))
            yield name, ordered

    def _stack(self) -> None:
        """Place the boxes, each row as far below the one before as the arrows between them need."""
        sideways = [0.0] * len(self.rows)
        for name, above in self.dependencies.items():
            for each in above:
                for one, other in pairwise(self.places.way(each, name)):
                    far = abs(one.middle - other.middle)
                    sideways[other.row] = max(sideways[other.row], far)
        before: _Row | None = None
        for row, far in zip(self.rows, sideways, strict=True):
            if before is None:
                row.top = INSET
            else:
                same = before.group == row.group
                least = GAP if same else BETWEEN + 2 * INSET
                row.top = before.bottom + max(least, min(HIGHEST, STEEP * far))
            for box in row.boxes:
                box.x = self.left + self.places.places[box.task.name].middle - box.width / 2
                box.y = row.top
            before = row

    def draw(self) -> Iterator[str]:
        yield f'<svg width="{self.width:.0f}" height="{self.height:.0f}" role="img">{ARROW}'
        bands: dict[str, tuple[float, float]] = {}
        for row in self.rows:
            top, _ = bands.get(row.group, (row.top - INSET, 0.0))
            bands[row.group] = top, row.bottom + INSET
        for name, (top, bottom) in bands.items():
            yield (
                f'<rect class="ground" x="{MARGIN}" y="{top:.1f}" '
                f'width="{self.width - MARGIN:.1f}" height="{bottom - top:.1f}" rx="9"/>'
                f'<text class="soft" x="0" y="{top + INSET + 9:.1f}">{text(name)}</text>'
            )
        if self.dependencies:
            yield from self._arrows()
        else:
            x = (MARGIN + self.width) / 2
            for (_, bottom), (top, _) in pairwise(bands.values()):
                yield _edge(f"M{x:.1f} {bottom + 3:.1f}V{top - 3:.1f}")
        for box in self.boxes.values():
            yield from box.draw(self.dependencies.get(box.task.name, ()))
        yield "</svg>"

    def _arrows(self) -> Iterator[str]:
        for name, above in self.dependencies.items():
            ways = {each: self.places.way(each, name) for each in above}
            # Side by side, in the order in which they come.
            arriving = sorted(ways, key=lambda each: ways[each][-2].middle)
            apart = min(ENDS, 0.7 * self.boxes[name].width / len(arriving)) if arriving else 0.0
            for number, each in enumerate(arriving):
                shift = (number - (len(arriving) - 1) / 2) * apart
                tip = f"{one_line(name)} depends on {one_line(each)}"
                yield _edge(self._way(each, ways[each], shift), tip)

    def _way(self, start: Hashable, way: list[Place], shift: float) -> str:
        """Return the path of an arrow: straight down through the rows, and sideways only between
        them, where no box is."""
        x, box = self.left + way[0].middle, self.boxes[start]
        parts = [f"M{x:.1f} {box.y + box.height:.1f}"]
        for before, place in pairwise(way):
            to_x = self.left + place.middle
            y, to_y = self.rows[before.row].bottom, self.rows[place.row].top
            if place is way[-1]:
                to_x, to_y = to_x + shift, to_y - 2
            middle = (y + to_y) / 2
            parts.append(
                f"V{y:.1f}C{x:.1f} {middle:.1f} {to_x:.1f} {middle:.1f} {to_x:.1f} {to_y:.1f}"
            )
            x = to_x
        return "".join(parts)


def _box(task: Task) -> _Box:
    lines: list[tuple[str, str]] = []
    for phase in PHASES:
        function = getattr(task, phase)
        if function is not None:
            lines.append((phase, phase + described_limits(function)))
    if not lines:
        lines.append(("", "(no phase)"))
    if not task.required:
        lines.append(("", NOT_REQUIRED))
    longest = max(len(_cut(one_line(task.name))) - 2, *(len(_cut(line)) for _, line in lines), 12)
    width = 2 * INSET + 16 + longest * CHARACTER
    return _Box(task, lines, width, 2 * INSET + 12 + len(lines) * LINE - 6)


def _rows(boxes: Iterable[_Box]) -> Iterator[list[_Box]]:
    row: list[_Box] = []
    width = 0.0
    for box in boxes:
        if row and width + box.width > WIDEST:
            yield row
            row, width = [], 0.0
        row.append(box)
        width += box.width + GAP
    if row:
        yield row


def _edge(path: str, tip: str = "") -> str:
    told = f' data-tip="{text(tip)}"' if tip else ""
    return f'<path class="edge" marker-end="url(#arrow)" d="{path}"{told}/>'


def _cut(line: str) -> str:
    return shortened(line, LONGEST)
