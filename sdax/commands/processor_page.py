"""The page of a processor: its tasks by level, or by layer of the graph, as a picture in SVG."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Iterator
from dataclasses import dataclass
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

Task: TypeAlias = AsyncTask[Any, Any]
Group: TypeAlias = tuple[str, list[Task]]

# In pixels.
CHARACTER: Final = 7.3  # of the fixed-width font
LINE: Final = 19
INSET: Final = 12
GAP: Final = 22
BETWEEN: Final = 46  # groups, one above the other
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
.picture .edge { fill: none; stroke: var(--soft); stroke-width: 1.4; opacity: 0.75; }
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
        how = "An arrow goes from a task to one that depends on it."
    else:
        groups = [(f"level {level}", list(tasks)) for level, tasks in processor.levels.items()]
        picture = _Picture(groups, {})
        how = "pre_execute goes down the levels and post_execute up again."
        if processor.execute_order == "level":
            how = "pre_execute goes down the levels, then execute does, and post_execute up again."
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


@dataclass
class _Box:
    """A task, with its place in the picture."""

    task: Task
    lines: list[tuple[str, str]]
    width: float
    height: float
    x: float = 0.0
    y: float = 0.0

    @property
    def middle(self) -> float:
        return self.x + self.width / 2

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


class _Picture:
    """Groups one above the other, each in as many rows as it needs, and the arrows."""

    def __init__(self, groups: list[Group], dependencies: dict[Any, tuple[Any, ...]]) -> None:
        self.dependencies = dependencies
        self.boxes: dict[Hashable, _Box] = {}
        self.grounds: list[tuple[str, float, float]] = []  # name, top, height
        self.width = 0.0
        top = 0.0
        for name, tasks in groups:
            rows = list(_rows(self._ordered([_box(task) for task in tasks])))
            y = top + INSET
            for row in rows:
                self._place(row, y)
                y += max(box.height for box in row) + GAP
            height = y - GAP + INSET - top
            self.grounds.append((name, top, height))
            top += height + BETWEEN
        self.height = max(0.0, top - BETWEEN)
        for box in self.boxes.values():
            box.x += MARGIN + INSET

    def _ordered(self, boxes: list[_Box]) -> list[_Box]:
        """Return the boxes of a layer so that each is near what it depends on."""

        def place(box: _Box) -> float:
            above = [self.boxes[each].middle for each in self.dependencies.get(box.task.name, ())]
            return sum(above) / len(above) if above else 0.0

        return sorted(boxes, key=place)

    def _place(self, row: list[_Box], y: float) -> None:
        x = 0.0
        for box in row:
            box.x, box.y = x, y
            x += box.width + GAP
            self.boxes[box.task.name] = box
        self.width = max(self.width, x - GAP)

    def draw(self) -> Iterator[str]:
        width, height = MARGIN + self.width + 2 * INSET, self.height
        yield f'<svg width="{width:.0f}" height="{height:.0f}" role="img">{ARROW}'
        for name, top, ground in self.grounds:
            yield (
                f'<rect class="ground" x="{MARGIN}" y="{top}" width="{self.width + 2 * INSET:.1f}" '
                f'height="{ground}" rx="9"/>'
                f'<text class="soft" x="0" y="{top + INSET + 9}">{text(name)}</text>'
            )
        if self.dependencies:
            yield from self._arrows()
        else:
            x = MARGIN + INSET + self.width / 2
            for (_, top, ground), (_, following, _) in zip(
                self.grounds, self.grounds[1:], strict=False
            ):
                yield _edge(x, top + ground + 3, x, following - 3)
        for box in self.boxes.values():
            yield from box.draw(self.dependencies.get(box.task.name, ()))
        yield "</svg>"

    def _arrows(self) -> Iterator[str]:
        for name, above in self.dependencies.items():
            below = self.boxes[name]
            for each in above:
                box = self.boxes[each]
                yield _edge(box.middle, box.y + box.height, below.middle, below.y - 2)


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


def _edge(x: float, y: float, to_x: float, to_y: float) -> str:
    bend = max(18.0, (to_y - y) / 2)
    return (
        f'<path class="edge" marker-end="url(#arrow)" d="M{x:.1f} {y:.1f} C{x:.1f} {y + bend:.1f} '
        f'{to_x:.1f} {to_y - bend:.1f} {to_x:.1f} {to_y:.1f}"/>'
    )


def _cut(line: str) -> str:
    return shortened(line, LONGEST)
