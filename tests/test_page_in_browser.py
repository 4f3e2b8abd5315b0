"""The pages of a timeline and of a processor in a real browser: what their script does, and where
the arrows lead."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import re
import shutil
import subprocess
from base64 import b64encode
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from helpers import build, error_of, forever, task
from sdax import AsyncDagTaskProcessor, TaskFunction, join
from sdax.commands.processor_page import processor_page
from sdax.observe import Timeline
from sdax.testing import VirtualClockLoop

pytestmark = pytest.mark.one_python

NAMES = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--window-size=1300,900", "--dump-dom"),
)

# Points at all that has details, at what is in front there, and writes down what is shown.
POINTING = """
{
  const tip = document.getElementById("tip");
  const shown = () => tip.checkVisibility() ? tip.innerText : null;
  const at = (element, type, more) =>
    element.dispatchEvent(new PointerEvent(type, { bubbles: true, ...more }));
  const seen = { pointed: [], inside: true };
  for (const target of document.querySelectorAll("[data-tip]")) {
    if (!target.checkVisibility()) continue;
    target.scrollIntoView({ block: "center" });
    const box = target.getBoundingClientRect();
    const clientX = box.x + box.width / 2, clientY = box.y + box.height / 2;
    at(document.elementFromPoint(clientX, clientY), "pointermove", { clientX, clientY });
    seen.pointed.push([target.dataset.tip, shown()]);
    const { left, top, right, bottom } = tip.getBoundingClientRect();
    seen.inside &&= left >= 0 && top >= 0 && right <= innerWidth && bottom <= innerHeight;
    const covers = left < box.right && right > box.left && top < box.bottom && bottom > box.top;
    seen.inside &&= !covers;
  }
  at(document.querySelector("h1"), "pointermove");
  seen.elsewhere = shown();
  const bar = document.querySelector("details[open] .bar[data-tip]");
  // Not bar.focus(): a browser without a window may have none to give yet.
  bar.dispatchEvent(new FocusEvent("focusin", { bubbles: true }));
  seen.focused = [bar.dataset.tip, shown()];
  seen.focusable = bar.tabIndex === 0;
  document.dispatchEvent(new KeyboardEvent("keydown", { key: "Escape" }));
  seen.escaped = shown();
  const run = document.getElementById("run-1");
  seen.opened = [1, 2].map(() => {
    run.open = false;
    document.querySelector("a[href='#run-1']").click();
    return run.open;
  });
  document.body.appendChild(document.createElement("output")).textContent = JSON.stringify(seen);
}
"""

# What somebody might get into a page, were a name not escaped.
INJECTED = """<script>window.ran = "a script";</script>
<img src="data:," onerror="window.ran = 'a handler'">
<form action="https://example.com"></form><base href="https://example.com/">
"""
TELLING = """
document.body.appendChild(document.createElement("output")).textContent = JSON.stringify(
  [window.ran ?? null, document.baseURI === location.href]
);
"""

# Follows each arrow of each picture: from which box to which it leads, and which others it touches.
FOLLOWING = """
const pictures = [...document.querySelectorAll("svg")].map((svg) => {
  const boxes = [...svg.querySelectorAll("g")].map((g) => {
    const { e, f } = g.transform.baseVal[0].matrix;
    const { width, height } = g.querySelector("rect").getBBox();
    return { name: g.querySelector("text").textContent, x: e, y: f, width, height };
  });
  const within = (point, box, more) =>
    point.x > box.x - more && point.x < box.x + box.width + more &&
    point.y > box.y - more && point.y < box.y + box.height + more;
  const over = boxes.filter((one) => boxes.some((other) => one !== other &&
    one.x < other.x + other.width && other.x < one.x + one.width &&
    one.y < other.y + other.height && other.y < one.y + one.height));
  const arrows = [...svg.querySelectorAll(".edge")].map((edge) => {
    const length = edge.getTotalLength();
    const at = (point) => boxes.filter((box) => within(point, box, 2.5)).map((box) => box.name);
    const touched = new Set();
    for (let far = 2; far < length - 2; far += 2) {
      const point = edge.getPointAtLength(far);
      for (const box of boxes) if (within(point, box, 2)) touched.add(box.name);
    }
    const ends = [at(edge.getPointAtLength(0)), at(edge.getPointAtLength(length))];
    return [...ends, [...touched]];
  });
  const { width, height } = svg.getBoundingClientRect();
  const outside = boxes.filter((box) => box.x < 0 || box.y < 0 || box.x + box.width > width
    || box.y + box.height > height);
  return { arrows, over: over.length + outside.length };
});
document.body.appendChild(document.createElement("output")).textContent = JSON.stringify(pictures);
"""


def recorded() -> Timeline:
    """Three runs with retries, a timeout, a failure and a cancellation, on a clock of their own:
    which bars are too short to be seen does not depend on this machine."""

    async def brief(ctx: Any) -> None:
        await asyncio.sleep(1)

    async def flaky(ctx: list[None]) -> None:
        ctx.append(None)
        if len(ctx) == 1:
            raise ConnectionError("reset")
        await (forever() if len(ctx) == 2 else brief(ctx))

    async def failing(ctx: Any) -> None:
        await asyncio.sleep(3)
        raise ValueError("no such <user> & co")

    retried = TaskFunction(flaky, timeout=2, retries=2, initial_delay=1)
    processor = build(
        [task("Steady", brief, forever, brief), task("Flaky", retried)],
        [task("Failing", None, failing)],
    )
    with asyncio.Runner(loop_factory=VirtualClockLoop) as runner:
        timeline = Timeline(clock=runner.get_loop().time)
        for _ in range(3):
            runner.run(error_of(processor.process_tasks([], observer=timeline)))
    return timeline


class Output(HTMLParser):
    """What a page says in its element `output`."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.inside = False
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.inside = tag == "output"

    def handle_endtag(self, tag: str) -> None:
        self.inside = False

    def handle_data(self, data: str) -> None:
        self.text += data if self.inside else ""


def in_browser(page: str, script: str, folder: Path) -> Any:
    """Open a page in a browser, run a script in it that its policy is made to allow, and return
    what that puts into an element `output`."""
    browser = next(filter(None, map(shutil.which, NAMES)), None)
    if browser is None:
        pytest.skip(f"there is no browser to open the page with: none of {', '.join(NAMES)}")
    digest = b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert page.count("</body>") == 1
    page = page.replace("script-src ", f"script-src 'sha256-{digest}' ")
    page = page.replace("</body>", f"<script>{script}</script></body>")
    path = folder / "changed.html"
    path.write_text(page, encoding="utf-8")
    done = subprocess.run(
        [browser, *OPTIONS, f"--user-data-dir={folder / 'profile'}", path.as_uri()],
        capture_output=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-2000:]
    output = Output(done.stdout.decode()).text
    assert output, "the page's script has raised"
    return json.loads(output)


def test_what_a_page_shows_when_one_points_at_it(engine: Any, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    recorded().to_html(page)
    seen = in_browser(page.read_text(encoding="utf-8"), POINTING, tmp_path)
    # Three runs, and of the one that is open: three phases, three names, seven attempts, two
    # pauses, one cancellation.
    assert len(seen["pointed"]) == 3 + 16
    assert [(tip, shown) for tip, shown in seen["pointed"] if shown != tip] == []
    assert seen["inside"]
    focused, shown = seen["focused"]
    assert focused == shown and seen["focusable"]
    assert seen["elsewhere"] is None and seen["escaped"] is None
    assert seen["opened"] == [True, True]


def test_nothing_runs_in_a_page_but_its_own_script(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    Timeline().to_html(page)
    text = page.read_text(encoding="utf-8").replace("</main>", INJECTED + "</main>")
    assert in_browser(text, TELLING, tmp_path) == [None, True]
    without = re.sub("<meta http-equiv=.*>", "", text)
    assert in_browser(without, TELLING, tmp_path) != [None, True]  # so they would have run


Graph = dict[str, list[str]]


def random_graph(seed: int, size: int) -> Graph:
    """Return a graph in which tasks depend on a few others, most of them added shortly before."""
    rng = random.Random(seed)
    graph: Graph = {}
    for number in range(size):
        near = rng.choice([3, 10, size])
        before = list(graph)[-near:]
        name = f"{number} " + "x" * rng.choice([0, 0, 5, 40])
        graph[name] = rng.sample(before, min(len(before), rng.choice([0, 1, 1, 2, 5])))
    return graph


GRAPHS: list[Graph] = [
    # Which was drawn as if prices depended on the user.
    {"Database": [], "User": ["Database"], "Prices": ["Database"], "Rates": ["Prices"]}
    | {"Loaded": ["User", "Rates"], "Answer": ["Loaded", "Database"]},
    {"alone": []},
    {str(number): [str(below) for below in range(number)] for number in range(12)},
    {str(number): ["0"] if number else [] for number in range(60)},  # in several rows
    {**{str(number): [] for number in range(60)}, "all": [str(number) for number in range(60)]},
    *(random_graph(seed, 5 * seed) for seed in range(1, 9)),
]


def test_an_arrow_passes_through_no_box_but_its_own(tmp_path: Path) -> None:
    page, pictures = "", []
    for graph in GRAPHS:
        builder = AsyncDagTaskProcessor[Any].builder()
        for name, above in graph.items():
            builder.add_task(join(name), depends_on=above)
        page = processor_page(builder.build(), "graph")
        picture = re.search("<svg.*</svg>", page, re.DOTALL)
        assert picture
        pictures.append(picture[0])
    page = page.replace(pictures[-1], "".join(pictures))
    seen = in_browser(page, FOLLOWING, tmp_path)
    for graph, picture in zip(GRAPHS, seen, strict=True):
        short = {name: f"{name[:43]}…" if len(name) > 44 else name for name in graph}
        expected = [([short[a]], [short[b]]) for b, above in graph.items() for a in above]
        assert sorted((start, end) for start, end, _ in picture["arrows"]) == sorted(expected)
        wrong = [arrow for arrow in picture["arrows"] if not {*arrow[2]} <= {*arrow[0], *arrow[1]}]
        assert wrong == []
        assert picture["over"] == 0
