"""`python -m sdax show` and `python -m sdax trace`, on modules in the current directory."""

from __future__ import annotations

import asyncio
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

import sdax
from sdax.__main__ import main

SHOP = """
import asyncio
from sdax import AsyncDagTaskProcessor, AsyncTaskProcessor, join, task, task_func

async def load(ctx):
    ctx.append("loaded")
    await asyncio.sleep(0)

async def break_down(ctx):
    await asyncio.sleep(0)
    raise ValueError("no stock of <this> & that")

builder = AsyncTaskProcessor.builder()
builder.add_task(task("User <b>", pre_execute=task_func(load, timeout=2.0, retries=3)), 1)
builder.add_task(task("Page", execute=task_func(load), post_execute=task_func(load)), 2)
levels = builder.build()
graph = (
    AsyncDagTaskProcessor.builder()
    .add_task(task("Page", execute=task_func(load)), depends_on=("Gate", ("User", 1)))
    .add_task(join("Gate"), depends_on=(("User", 1),))
    .add_task(task(("User", 1), pre_execute=task_func(load)))
    .build()
)
empty = AsyncTaskProcessor.builder().build()
bad = task("Bad", execute=task_func(break_down))
failing = AsyncTaskProcessor.builder().add_task(bad, 1).build()

class Holder:
    inner = levels

def make_context():
    return []

async def make_context_later():
    await asyncio.sleep(0)
    return []

def make_no_context():
    raise LookupError("no context today")
"""

BROKEN = {
    "syntax.py": "def f(:\n",
    "raising.py": "x = 1\nraise RuntimeError('first line\\nsecond line')\n",
    "leaving.py": "raise SystemExit(3)\n",
    "lacking.py": "import no_such_library\n",
    "package/__init__.py": "",
    "package/inner.py": "from shop import levels\n",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The current directory, with modules in it, which are forgotten afterwards."""
    for name, text in {"shop.py": SHOP, **BROKEN}.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.split(".")[0] in {"shop", "package"}:
            del sys.modules[name]


def command(*arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Run a command here, and return its status and what it printed."""
    status: Any = 0
    try:
        main(arguments)
    except SystemExit as end:
        status = end.code
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def well_formed(page: str) -> ElementTree.Element:
    """Return the picture of a page, which must be XML, and see that it loads nothing."""
    assert not re.search(r"""(?:src|href)=|url\((?!#)|@import|https?:""", page)
    (picture,) = re.findall(r"<svg.*</svg>", page, re.DOTALL)
    return ElementTree.fromstring(picture)


def test_without_a_command_it_tells_the_versions(capsys: pytest.CaptureFixture[str]) -> None:
    with asyncio.Runner() as runner:
        loop = type(runner.get_loop())
    lines = [
        f"sdax {sdax.__version__}",
        f"engine: {sdax.IMPLEMENTATION}",
        f"Python: {platform.python_implementation()} {platform.python_version()}",
        f"loop: {loop.__module__}.{loop.__qualname__}",
    ]
    assert command(capsys=capsys) == (0, "\n".join(lines) + "\n", "")


def test_show_as_text(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("show", "shop:levels", capsys=capsys) == (
        0,
        "2 levels, 2 tasks\n"
        "level 1\n"
        "  User <b>  pre_execute (timeout 2 s, 3 retries)\n"
        "level 2\n"
        "  Page  execute, post_execute\n",
        "",
    )


@pytest.mark.parametrize("name", ["shop:Holder.inner", "package.inner:levels"])
def test_names_may_have_dots(folder: Path, capsys: Any, name: str) -> None:
    status, printed, _ = command("show", name, capsys=capsys)
    assert (status, printed.split("\n")[0]) == (0, "2 levels, 2 tasks")


def test_show_for_mermaid(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, printed, _ = command("show", "shop:graph", "--format", "mermaid", capsys=capsys)
    assert status == 0
    assert printed == sys.modules["shop"].graph.to_mermaid()


@pytest.mark.parametrize(
    ("name", "tasks", "groups", "arrows"),
    [
        ("levels", ["User <b>", "Page"], ["level 1", "level 2"], 1),
        ("graph", ["('User', 1)", "Gate", "Page"], ["layer 1", "layer 2", "layer 3"], 3),
        ("empty", [], [], 0),
    ],
)
def test_show_as_a_page(
    folder: Path, capsys: Any, name: str, tasks: list[str], groups: list[str], arrows: int
) -> None:
    status, page, _ = command("show", f"shop:{name}", "--format", "html", capsys=capsys)
    assert status == 0
    picture = well_formed(page)
    texts = list(picture.iter("text"))
    assert [each.text for each in texts if each.get("class") == "task"] == tasks
    assert [each.text for each in texts if each.get("class") == "soft"] == groups
    assert len([each for each in picture.iter("path") if each.get("class") == "edge"]) == arrows
    assert f"<title>shop:{name}</title>" in page


def test_a_page_tells_in_which_order_execute_runs(folder: Path, capsys: Any) -> None:
    lines = [
        "from sdax import AsyncTaskProcessor, task",
        "async def work(ctx): ...",
        "builder = AsyncTaskProcessor.builder(execute_order='level')",
        "for number in (1, 2): builder.add_task(task(number, execute=work), number)",
        "processor = builder.build()",
    ]
    (folder / "package" / "ordered.py").write_text("\n".join(lines), encoding="utf-8")
    _, page, _ = command("show", "package.ordered:processor", "--format", "html", capsys=capsys)
    assert "2 levels, 2 tasks, execute level by level." in page
    assert "pre_execute goes down the levels, then execute does, and post_execute up again." in page


def test_what_depends_stands_below(folder: Path, capsys: Any) -> None:
    _, page, _ = command("show", "shop:graph", "--format", "html", capsys=capsys)
    places = {}
    for box in well_formed(page).iter("g"):
        _, y = re.findall(r"[\d.]+", box.get("transform", ""))
        name = box.find("text")
        assert name is not None
        places[name.text] = float(y)
    assert places["('User', 1)"] < places["Gate"] < places["Page"]


def test_many_tasks_stand_in_several_rows(folder: Path, capsys: Any) -> None:
    lines = [
        "from sdax import AsyncTaskProcessor, join",
        "builder = AsyncTaskProcessor.builder()",
        "for number in range(50): builder.add_task(join(number), 1)",
        "processor = builder.build()",
    ]
    Path("package/many.py").write_text("\n".join(lines), encoding="utf-8")
    _, page, _ = command("show", "package.many:processor", "--format", "html", capsys=capsys)
    picture = well_formed(page)
    boxes = [re.findall(r"[\d.]+", each.get("transform", "")) for each in picture.iter("g")]
    assert len({tuple(place) for place in boxes}) == 50
    assert len({y for _, y in boxes}) > 2
    assert float(picture.get("width", "")) < 1500


@pytest.mark.parametrize("make_context", ["make_context", "make_context_later"])
def test_trace(folder: Path, capsys: Any, engine: Any, make_context: str) -> None:
    status, printed, errors = command(
        "trace", "shop:levels", f"shop:{make_context}", "--html", "out.html", capsys=capsys
    )
    assert (status, errors) == (0, "")
    assert printed.startswith("run 1: succeeded")
    assert "critical path of run 1: 3 steps" in printed
    page = Path("out.html").read_text(encoding="utf-8")
    assert "<title>shop:levels</title>" in page
    assert "User &lt;b&gt;" in page


def test_trace_without_a_page(folder: Path, capsys: Any, engine: Any) -> None:
    before = sorted(folder.iterdir())
    status, printed, errors = command("trace", "shop:graph", "shop:make_context", capsys=capsys)
    assert (status, errors) == (0, "")
    assert "layer 3" in printed
    assert sorted(folder.iterdir()) == before


def test_a_failing_run_has_its_timeline_too(folder: Path, capsys: Any, engine: Any) -> None:
    status, printed, errors = command(
        "trace", "shop:failing", "shop:make_context", "--html", "out.html", capsys=capsys
    )
    assert status == 1
    assert printed.startswith("run 1: failed")
    assert "ValueError: no stock of <this> & that" in errors
    assert "in break_down" in errors
    assert "no stock of &lt;this&gt; &amp; that" in Path("out.html").read_text(encoding="utf-8")


def test_without_a_context_there_is_no_run(folder: Path, capsys: Any) -> None:
    status, printed, errors = command(
        "trace", "shop:levels", "shop:make_no_context", "--html", "out.html", capsys=capsys
    )
    assert (status, printed) == (1, "")
    assert "LookupError: no context today" in errors
    assert "in make_no_context" in errors
    assert not Path("out.html").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("show shop", "expected module:name, as in package.module:processor, got 'shop'"),
        ("show :levels", "expected module:name"),
        ("show shop:", "expected module:name"),
        ("show shap:levels", "there is no module shap, here or where"),
        ("show package.outer:x", "there is no module package.outer, here or where"),
        ("show shop:level", "module shop has no 'level'; did you mean levels?"),
        ("show shop:xyz", "has no 'xyz'; it has the processors levels, graph, empty, failing"),
        ("show shop:Holder.other", "shop:Holder has no 'other'"),
        ("show shop:builder", "of type AsyncTaskProcessorBuilder; did you forget .build()?"),
        ("show shop:make_context", "shop:make_context is no processor, but of type function"),
        ("show shop:Holder", "shop:Holder is no processor, but the class Holder"),
        ("show shop:__name__", "shop:__name__ is no processor, but of type str"),
        ("show syntax:x", "module syntax cannot be imported: SyntaxError: "),
        ("show raising:x", r"RuntimeError: first line\nsecond line (line 2 of "),
        ("show leaving:x", "module leaving cannot be imported: SystemExit: 3 (line 1 of "),
        ("show lacking:x", "ModuleNotFoundError: No module named 'no_such_library' (line 1 of "),
        ("show ..:x", "module .. cannot be imported: TypeError: "),
        ("trace shop:levels shop:graph", "shop:graph is no function that makes a context"),
        ("trace shop:levels shop:make_context --html no/x.html", "is in no directory that exists"),
        ("trace shop:levels shop:make_context --html package", "package is a directory; give"),
    ],
)
def test_one_line_says_what_is_wrong(folder: Path, capsys: Any, arguments: str, says: str) -> None:
    status, printed, errors = command(*arguments.split(), capsys=capsys)
    assert (status, printed) == (2, "")
    assert errors.startswith(f"python -m sdax {arguments.split()[0]}: ")
    assert errors.count("\n") == 1
    assert says in errors


@pytest.mark.skipif(sys.platform == "win32", reason="permissions differ")
def test_a_page_that_cannot_be_written(folder: Path, capsys: Any, engine: Any) -> None:
    Path("out.html").symlink_to(folder / "nowhere" / "x.html")
    status, _, errors = command(
        "trace", "shop:levels", "shop:make_context", "--html", "out.html", capsys=capsys
    )
    assert status == 2
    assert errors == (
        "python -m sdax trace: --html: out.html cannot be written: No such file or directory\n"
    )


def test_as_a_program(folder: Path) -> None:
    # -P leaves the current directory out of the path, and the output is no UTF-8.
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, "-P", "-m", "sdax", "show", "shop:levels", "--format", "html"],
        env=environment,
        capture_output=True,
        timeout=60,
        check=True,
    )
    assert "User &lt;b&gt;" in done.stdout.decode("utf-8")
    failed = subprocess.run(
        [sys.executable, "-P", "-m", "sdax", "trace", "shop:failing", "shop:make_context"],
        env=environment,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert failed.returncode == 1
    assert failed.stdout.decode("ascii").startswith("run 1: failed")
