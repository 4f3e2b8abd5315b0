"""Outlines and Mermaid diagrams of processors; what Mermaid makes of them, Mermaid itself says."""

from __future__ import annotations

import asyncio
import html
import json
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from helpers import amount, nothing
from sdax import AsyncDagTaskProcessor, AsyncTask, AsyncTaskProcessor, TaskFunction, join
from sdax.observe import Timeline

PLAIN = TaskFunction(nothing)


class Colour(Enum):
    RED = 1


@dataclass(frozen=True)
class Rows:
    """A name whose `repr` has several lines."""

    def __repr__(self) -> str:
        return "Rows(\n  1\n)"


NASTY_NAMES: list[Any] = [
    *(
        "",
        " ",
        "  two  spaces  ",
        "two words",
        "end",
        "END",
        "graph",
        "subgraph",
        "default",
        "o",
        "x",
    ),
    *(
        'say "hello"',
        "it's",
        "`code`",
        '"`markdown`"',
        "**bold** _slanted_",
        "__init__",
        "~~gone~~",
    ),
    *("[a]", "(a)", "{a}", "<a>", "a]b", 'a"]b', "((a", "{{a", "[/a/]", "a|b|", "a>b", "<br>"),
    *("#", "a#b", "a;b", "#35;", "#quot;", "&amp;", "&", "a & b", "@{ shape: rect }", "a:::b"),
    *("%%", "%% comment", "%%{init: {}}%%", "---", "a --> b", "a -.-> b", "== b", "\\", "a\\nb"),
    *("style: a#b; c", "classDef: a#b;", "click a", "linkStyle 0", "style t0 fill", "$$x^2$$"),
    *("1. first", "- item", "# heading", "> quote", "    indented", "fa:fa-user", "line: 2.5"),
    *("two\nlines", "a\r\nb", "\ttab", "\x00", "\x7f", "\u2028", "\ud800", "﻿", "a\u0301"),
    *("Überprüfung", "顧客", "заказ", "عميل", "🙂", "ﬂ°°35¶ß", "ﬂ°quot¶ß", "\u00a0"),
    *(("users", 1), ('"', "]", ";"), ((), None), 5, -1, 2.5, None, b"\xff", Colour.RED, Rows()),
    *(frozenset({1}), "x" * 300),
]


def in_levels(names: list[Any]) -> AsyncTaskProcessor[Any, Any]:
    builder = AsyncTaskProcessor[Any, Any].builder()
    for position, name in enumerate(names):
        builder.add_task(AsyncTask(name, PLAIN), level=position % 3 - 1)
    return builder.build()


def in_graph(names: list[Any]) -> AsyncDagTaskProcessor[Any, Any]:
    """Each name depends on one or two before it."""
    builder = AsyncDagTaskProcessor[Any, Any].builder()
    for position, name in enumerate(names):
        builder.add_task(AsyncTask(name, PLAIN), {names[i] for i in (position // 2, 0) if position})
    return builder.build()


def small_graph(**options: Any) -> AsyncDagTaskProcessor[Any, Any]:
    return (
        AsyncDagTaskProcessor[Any, Any]
        .builder(**options)
        .add_task(AsyncTask("Report", execute=PLAIN), depends_on=["Users", ("orders", 7), "Users"])
        .add_task(AsyncTask("Users", TaskFunction(nothing, timeout=2, retries=3), PLAIN, PLAIN))
        .add_task(AsyncTask(("orders", 7), PLAIN), depends_on=("Users",))
        .add_task(join("done"), depends_on=("Report",))
        .build()
    )


# Outlines


def test_outline_of_levels() -> None:
    processor = (
        AsyncTaskProcessor.builder()
        .add_task(AsyncTask("UserData", execute=PLAIN), level=2)
        .add_task(AsyncTask("Authentication", PLAIN, None, TaskFunction(nothing, timeout=5)), 1)
        .add_task(AsyncTask("FeatureFlags", TaskFunction(nothing, timeout=2.5, retries=3)), 1)
        .build()
    )
    assert str(processor) == (
        "2 levels, 3 tasks\n"
        "level 1\n"
        "  Authentication  pre_execute, post_execute (timeout 5 s)\n"
        "  FeatureFlags    pre_execute (timeout 2.5 s, 3 retries)\n"
        "level 2\n"
        "  UserData  execute"
    )
    assert repr(processor) == "<AsyncTaskProcessor: 3 tasks, 2 levels>"


def test_outline_of_a_graph() -> None:
    assert str(small_graph()) == (
        "4 tasks, 4 dependencies, execute all at once\n"
        "  Report         execute      depends on Users, ('orders', 7)\n"
        "  Users          pre_execute (timeout 2 s, 3 retries), execute, post_execute\n"
        "  ('orders', 7)  pre_execute  depends on Users\n"
        "  done           (no phase)   depends on Report"
    )


def test_outline_and_diagram_of_levels_say_that_execute_has_no_levels() -> None:
    processor = (
        AsyncTaskProcessor.builder(max_concurrency=2)
        .add_task(AsyncTask("A", execute=PLAIN), level=1)
        .add_task(AsyncTask("B", execute=PLAIN), level=2)
        .build()
    )
    first, *_ = str(processor).splitlines()
    assert first == "2 levels, 2 tasks, execute all at once, at most 2 at a time"
    assert processor.to_mermaid().startswith(
        "---\ntitle: execute all at once\n---\nflowchart TD\n    subgraph level0"
    )


@pytest.mark.parametrize("order", ["at once", "dependency"])
def test_one_execute_has_no_order(order: Any) -> None:
    processor = (
        AsyncDagTaskProcessor.builder(execute_order=order)
        .add_task(AsyncTask("A", PLAIN))
        .add_task(AsyncTask("B", execute=PLAIN), depends_on=("A",))
        .build()
    )
    first, *_ = str(processor).splitlines()
    assert first == "2 tasks, 1 dependency"
    assert processor.to_mermaid().startswith("flowchart TD\n")


@pytest.mark.parametrize("order", ["at once", "level"])
def test_outline_tells_no_order_of_what_has_none(order: Any) -> None:
    one = AsyncTask("A", PLAIN, PLAIN)
    builder = AsyncTaskProcessor.builder(execute_order=order)
    builder.add_task(one, 1).add_task(join("C"), 2)
    assert str(builder.build()).splitlines()[0] == "2 levels, 2 tasks"
    graph = AsyncDagTaskProcessor.builder().add_task(one).add_task(join("C"), ["A"]).build()
    assert str(graph).splitlines()[0] == "2 tasks, 1 dependency"


def test_names_of_wide_characters_are_aligned() -> None:
    assert str(in_levels(["顧客", "x", "é", "abcd"])).splitlines()[2:4] == [
        "  顧客  pre_execute",
        "  abcd  pre_execute",
    ]


def test_outline_tells_how_the_processor_runs() -> None:
    first, *_ = str(small_graph(execute_order="dependency", max_concurrency=3)).splitlines()
    assert first == "4 tasks, 4 dependencies, execute in dependency order, at most 3 at a time"
    order: Any
    for order, told in (
        ("at once", "execute all at once"),
        ("level", "execute level by level"),
    ):
        builder = AsyncTaskProcessor.builder(execute_order=order, max_concurrency=3)
        builder.add_task(AsyncTask("A", execute=PLAIN), 1).add_task(AsyncTask("B", None, PLAIN), 2)
        first, *_ = str(builder.build()).splitlines()
        assert first == f"2 levels, 2 tasks, {told}, at most 3 at a time"
    builder = AsyncTaskProcessor.builder(max_concurrency=1)
    first, *_ = str(builder.add_task(join("A"), 1).build()).splitlines()
    assert first == "1 level, 1 task, at most 1 at a time"


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"timeout": 0}, " (timeout 0 s)"),
        ({"timeout": 0.1}, " (timeout 0.1 s)"),
        ({"timeout": 3600.0}, " (timeout 3600 s)"),
        ({"timeout": 10_000_000}, " (timeout 10000000 s)"),
        ({"retries": 1}, " (1 retry)"),
        ({"initial_delay": 5}, ""),
    ],
)
def test_limits_in_an_outline(limits: dict[str, Any], expected: str) -> None:
    task = AsyncTask("A", execute=TaskFunction(nothing, **limits))
    processor = AsyncTaskProcessor.builder().add_task(task, 1).build()
    assert str(processor).splitlines()[-1] == "  A  execute" + expected


def test_outline_of_nothing() -> None:
    assert str(AsyncTaskProcessor.builder().build()) == "0 levels, 0 tasks"
    assert str(AsyncDagTaskProcessor.builder().build()) == "0 tasks, 0 dependencies"


def test_a_name_never_breaks_an_outline_into_more_lines() -> None:
    assert len(str(in_graph(NASTY_NAMES)).splitlines()) == 1 + len(NASTY_NAMES)
    assert len(str(in_levels(NASTY_NAMES)).splitlines()) == 1 + 3 + len(NASTY_NAMES)


def test_a_long_name_does_not_push_the_others_aside() -> None:
    lines = str(in_graph(["A", "B" * 1000])).splitlines()
    assert lines[1] == f"  {'A':60}  pre_execute"
    assert lines[2] == f"  {'B' * 1000}  pre_execute  depends on A"


# Mermaid


def test_diagram_of_levels() -> None:
    processor = (
        AsyncTaskProcessor.builder()
        .add_task(AsyncTask("load_user", PLAIN, PLAIN), level=5)
        .add_task(AsyncTask("Authentication", TaskFunction(nothing, timeout=5)), level=-1)
        .build()
    )
    assert processor.to_mermaid() == (
        "flowchart TD\n"
        '    subgraph level0["level -1"]\n'
        '        t0["Authentication<br>pre_execute (timeout 5 s)"]\n'
        "    end\n"
        '    subgraph level1["level 5"]\n'
        '        t1["load_user<br>pre_execute, execute"]\n'
        "    end\n"
        "    level0 --> level1\n"
    )


def test_diagram_of_a_graph() -> None:
    assert small_graph().to_mermaid() == (
        "---\n"
        "title: execute all at once\n"
        "---\n"
        "flowchart TD\n"
        '    t0["Report<br>execute"]\n'
        '    t1["Users<br>pre_execute (timeout 2 s, 3 retries), execute, post_execute"]\n'
        "    t2[\"('orders', 7)<br>pre_execute\"]\n"
        '    t3["done<br>(no phase)"]\n'
        "    t1 --> t0\n"
        "    t2 --> t0\n"
        "    t1 --> t2\n"
        "    t0 --> t3\n"
    )


LABEL = re.compile(r'^ +t\d+\["(.*)"\]$', re.MULTILINE)


@pytest.mark.parametrize("make", [in_levels, in_graph])
def test_nothing_that_mermaid_could_take_for_syntax_is_left_of_a_name(make: Any) -> None:
    labels = LABEL.findall(make(NASTY_NAMES).to_mermaid())
    assert len(labels) == len(NASTY_NAMES)
    for label in labels:
        name, separator, phases = label.rpartition("<br>")
        assert (separator, phases) == ("<br>", "pre_execute")
        left = re.sub(r"#\d+;", "", name)
        assert not set(left) & set('"`#;:<>&%{}[]|\\*~-.\n\r\t')


# The real Mermaid

BUNDLE = re.compile(r"package/dist/(chunks/mermaid\.esm\.min/.*|mermaid\.esm\.min)\.mjs")
CHECK = """
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const home = process.argv[2];
const { JSDOM } = createRequire(home + "/node_modules/")("jsdom");
globalThis.window = new JSDOM("").window;
globalThis.document = window.document;
const bundle = pathToFileURL(home + "/package/dist/mermaid.esm.min.mjs");
const { default: mermaid } = await import(bundle);

const found = [];
for (const text of JSON.parse(readFileSync(0, "utf8"))) {
  try {
    await mermaid.parse(text);
    const { db } = await mermaid.mermaidAPI.getDiagramFromText(text);
    found.push(db.getTasks ? { bars: db.getTasks().map((task) => task.task) } : {
      labels: [...db.getVertices().values()].map((vertex) => [vertex.id, vertex.text]),
      edges: db.getEdges().map((edge) => [edge.start, edge.end]),
      levels: db.getSubGraphs().map((graph) => [graph.title, [...graph.nodes].sort()]),
    });
  } catch (error) {
    found.push({ error: String(error) });
  }
}
console.log(JSON.stringify(found));
"""


class Mermaid:
    """Mermaid's own parser, under node."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def parse(self, texts: list[str]) -> list[dict[str, Any]]:
        """Return what the parser found in each text: labels, edges and levels, or an error."""
        script = self.home / "check.mjs"
        script.write_text(CHECK, encoding="utf-8")
        done = subprocess.run(
            ["node", str(script), str(self.home)],
            input=json.dumps(texts).encode(),
            capture_output=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode()
        found: list[dict[str, Any]] = json.loads(done.stdout)
        return found


@pytest.fixture(scope="session")
def mermaid() -> Iterator[Mermaid]:
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("there is no node with npm to run Mermaid's own parser")
    # Not among pytest's own directories, which stay for a while: this one is large.
    with TemporaryDirectory(prefix="mermaid-", ignore_cleanup_errors=True) as name:
        home = Path(name)
        for command in (
            ["install", "--no-save", "--no-audit", "--no-fund", "--prefix", name, "jsdom@26"],
            ["pack", "mermaid@11"],
        ):
            done = subprocess.run(
                [npm, *command, "--prefer-offline"],
                cwd=home,
                capture_output=True,
                text=True,
                timeout=300,
                check=False,
            )
            if done.returncode:
                pytest.skip(f"npm cannot {command[0]} {command[-1]}: {done.stderr.strip()[-300:]}")
        # What browsers load has all that it depends on in it, and is a small part of the package.
        (package,) = home.glob("mermaid-*.tgz")
        with tarfile.open(package) as files:
            wanted = [each for each in files if BUNDLE.fullmatch(each.name)]
            files.extractall(home, wanted, filter="data")
        yield Mermaid(home)


def drawn_names() -> list[list[Any]]:
    """Draw lists of names, the same for each run of the tests: one node process takes them all."""
    marks = st.sampled_from([*"\"'`#;:<>[](){}|&%@-=.~*_\\/ \n", "end", "%%{", "-->", "style", "°"])
    texts = st.text(max_size=8) | st.lists(marks | st.text(max_size=2), max_size=8).map("".join)
    names = texts | st.tuples(texts, st.integers() | texts)
    drawn: list[list[Any]] = []

    @settings(
        max_examples=amount(40, 150),
        database=None,
        deadline=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(names, max_size=6, unique=True))
    def draw(each: list[Any]) -> None:
        drawn.append(each)

    draw()
    return drawn


def as_shown(name: Any) -> str:
    text = name if isinstance(name, str) else repr(name)
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text) or "''"


def as_read(label: str) -> str:
    """Return the text that Mermaid shows, from the form in which it keeps it until then."""
    name, *_ = label.rpartition("<br>")
    return html.unescape(re.sub("ﬂ°°([0-9]+)¶ß", r"&#\1;", name))


@pytest.mark.one_python
def test_mermaid_itself_reads_every_diagram(mermaid: Mermaid) -> None:
    cases = [[], *([name] for name in NASTY_NAMES), NASTY_NAMES, *drawn_names()]
    graphs = mermaid.parse([in_graph(names).to_mermaid() for names in cases])
    for names, found in zip(cases, graphs, strict=True):
        assert "error" not in found, (names, found)
        labels = {node: as_read(label) for node, label in found["labels"]}
        assert labels == {f"t{i}": as_shown(name) for i, name in enumerate(names)}
        expected = {(f"t{j}", f"t{i}") for i in range(1, len(names)) for j in {i // 2, 0}}
        assert {tuple(edge) for edge in found["edges"]} == expected
        assert len(found["edges"]) == len(expected)


@pytest.mark.one_python
def test_mermaid_itself_reads_a_title(mermaid: Mermaid) -> None:
    (found,) = mermaid.parse([small_graph(execute_order="dependency").to_mermaid()])
    assert len(found["labels"]) == len(found["edges"]) == 4


@pytest.mark.one_python
def test_mermaid_itself_reads_every_diagram_of_levels(mermaid: Mermaid) -> None:
    cases = [[], *([name] for name in NASTY_NAMES), NASTY_NAMES, *drawn_names()]
    for names, found in zip(
        cases, mermaid.parse([in_levels(names).to_mermaid() for names in cases]), strict=True
    ):
        assert "error" not in found, (names, found)
        levels = in_levels(names).levels
        assert [title for title, _ in found["levels"]] == [f"level {level}" for level in levels]
        labels = {node: as_read(label) for node, label in found["labels"]}
        shown = [[as_shown(task.name) for task in tasks] for tasks in levels.values()]
        for expected, (_, nodes) in zip(shown, found["levels"], strict=True):
            assert sorted(labels[node] for node in nodes) == sorted(expected)
        steps = [(f"level{i}", f"level{i + 1}") for i in range(len(levels) - 1)]
        assert [tuple(edge) for edge in found["edges"]] == steps


@pytest.mark.one_python
def test_mermaid_itself_reads_the_order_of_execute(mermaid: Mermaid) -> None:
    levels = AsyncTaskProcessor.builder(execute_order="level")
    levels.add_task(AsyncTask("A", execute=PLAIN), 1).add_task(AsyncTask("B", execute=PLAIN), 2)
    graph = small_graph(execute_order="dependency")
    for drawn, title, number in (
        (levels.build().to_mermaid(), "execute level by level", 1),
        (graph.to_mermaid(), "execute in dependency order", 4),
    ):
        assert drawn.startswith(f"---\ntitle: {title}\n---\nflowchart TD\n")
        (found,) = mermaid.parse([drawn])
        assert "error" not in found, found
        assert len(found["edges"]) == number


@pytest.mark.one_engine
@pytest.mark.one_python
def test_mermaid_itself_reads_every_gantt(mermaid: Mermaid, engine: Any) -> None:
    texts: list[str] = []
    cases = [*([name] for name in NASTY_NAMES), NASTY_NAMES]
    for names in cases:
        timeline = Timeline()
        asyncio.run(in_graph(names).process_tasks(None, observer=timeline))
        texts.append(timeline.to_mermaid())
    for names, found in zip(cases, mermaid.parse(texts), strict=True):
        assert "error" not in found, (names, found)
        bars = [as_read(f"{bar}<br>").strip() for bar in found["bars"]]
        assert sorted(bars) == sorted(f"pre_execute {as_shown(name)}".strip() for name in names)


@pytest.mark.one_python
def test_mermaid_itself_refuses_what_is_wrong(mermaid: Mermaid) -> None:
    """The check itself: a name that is not escaped does not pass."""
    unescaped = ['t0["a"]b"]', "t0[a (b)]", "end --> t0"]
    found = mermaid.parse([f"flowchart TD\n    {line}\n" for line in unescaped])
    assert all("error" in each for each in found)
