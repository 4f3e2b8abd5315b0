"""The commands of `python -m sdax`, on modules in the current directory."""

from __future__ import annotations

import asyncio
import os
import platform
import re
import shlex
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
    "rude.py": "def __getattr__(name):\n    raise LookupError(f'nobody may ask for {name}')\n",
    "package/__init__.py": "",
    "package/inner.py": "from shop import levels\n",
}


EXPLORE = "explore shop:levels shop:make_context shop:load"


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
    assert (
        "pre_execute and then execute run level by level along the arrows, and post_execute "
        "against them." in page
    )


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


EXPLORED = """
import asyncio
import random
from sdax import AsyncTaskProcessor, task, task_func, task_thread_func

class Request:
    free = 1

async def new_request():
    return Request()

async def take(ctx):
    ctx.free -= 1
    await asyncio.sleep(1)
    ctx.taken = True

async def give_back(ctx):
    if getattr(ctx, "taken", False):
        ctx.free += 1

database = task(
    "Database", pre_execute=task_func(take, timeout=5.0), post_execute=task_func(give_back)
)
wrong = AsyncTaskProcessor.builder().add_task(database, 1).build()

async def take_well(ctx):
    await asyncio.sleep(1)
    ctx.free -= 1
    ctx.taken = True

async def take_some_time(ctx):
    await asyncio.sleep(random.random())

good = wrong.replaced({"Database": {"pre_execute": take_well}})
threaded = wrong.replaced({"Database": {"pre_execute": task_thread_func(print)}})
random_ = wrong.replaced({"Database": {"pre_execute": take_some_time}})

one_for_all = Request()

def the_same_request():
    one_for_all.free = 1
    return one_for_all

def gives_back(run):
    return run.context.free == 1

"""


@pytest.fixture
def explored(folder: Path) -> Path:
    (folder / "package" / "requests.py").write_text(EXPLORED, encoding="utf-8")
    return folder


def explore_command(which: str, *options: str) -> list[str]:
    names = [which, "new_request", "gives_back"]
    return ["explore", *(f"package.requests:{name}" for name in names), *options]


def test_explore(explored: Path, capsys: Any, engine: Any) -> None:
    options = ["--faults", "cancel"]
    status, printed, errors = command(*explore_command("good", *options), capsys=capsys)
    assert (status, errors) == (0, "")
    assert re.fullmatch(r"5 schedules, every single disturbance \(cancel\), \d+\.\d s\n", printed)


def test_explore_prints_what_is_found(explored: Path, capsys: Any, engine: Any) -> None:
    status, printed, errors = command(*explore_command("wrong"), capsys=capsys)
    assert (status, errors) == (1, "")
    assert printed.startswith("After Database.pre_execute#1@1:cancel: the check returned False\n")
    assert "package/requests.py, line 14, in take\n" in printed
    found = re.findall(r"^After (.*): the check", printed, re.MULTILINE)
    assert len(found) == len(set(found)) > 3
    assert printed.count("The report:") == 3  # of those that are told in full
    *_, last = printed.splitlines()
    assert f"{len(found)} findings" in last
    (line, *_) = re.findall(r"To repeat it:\n    (.*)", printed)
    replay = "--replay=Database.pre_execute#1@1:cancel"
    assert shlex.split(line) == ["python", "-m", "sdax", *explore_command("wrong", replay)]
    status, again, _ = command(*explore_command("wrong", replay), capsys=capsys)
    assert status == 1
    assert again.startswith(printed.split("To repeat it")[0])


def test_options_of_explore(explored: Path, capsys: Any, engine: Any) -> None:
    status, printed, _ = command(
        *explore_command("good", "--schedules", "4", "--seed", "1", "--disturbances", "2"),
        capsys=capsys,
    )
    assert (status, printed[:20]) == (0, "cut off at 4 of at l")
    status, printed, _ = command(
        *explore_command("good", "--real-clock", "--faults", "fail", "--schedules", "3"),
        capsys=capsys,
    )
    assert (status, printed[:20]) == (0, "cut off at 3 of at l")


def test_a_finding_in_the_undisturbed_run(explored: Path, capsys: Any, engine: Any) -> None:
    names = ["package.requests:good", "package.requests:new_request", "shop:make_no_context"]
    status, printed, _ = command("explore", *names, "--real-clock", capsys=capsys)
    assert status == 1
    assert printed.startswith("In the undisturbed run: the check failed: TypeError: ")
    assert f"To repeat it:\n    python -m sdax explore {' '.join(names)} --real-clock\n" in printed


def test_what_cannot_be_explored(explored: Path, capsys: Any, engine: Any) -> None:
    never = "Database.pre_execute#1@7:fail"
    status, printed, errors = command(*explore_command("good", "--replay", never), capsys=capsys)
    assert (status, printed) == (2, "")
    assert "python -m sdax explore: the run never came to Database.pre_execute#1@7" in errors
    for which, says in {
        "threaded": "sdax:Database:pre_execute asks for a thread; ",
        "random_": "two undisturbed runs differ at event 3:\n",
    }.items():
        status, printed, errors = command(*explore_command(which), capsys=capsys)
        assert (status, printed) == (1, "")
        assert errors.startswith(f"python -m sdax explore: {says}")
    names = [f"package.requests:{name}" for name in ("good", "the_same_request", "gives_back")]
    status, printed, errors = command("explore", *names, capsys=capsys)
    assert (status, printed) == (2, "")
    assert "python -m sdax explore: context must make a new context for each run" in errors
    names = ["package.requests:good", "shop:make_no_context", "package.requests:gives_back"]
    status, printed, errors = command("explore", *names, capsys=capsys)
    assert (status, printed) == (1, "")
    assert errors.startswith("Traceback ")
    assert "LookupError: no context today" in errors


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
        ("show shop:make_context", "shop:make_context is not a processor, but of type function"),
        ("show shop:Holder", "shop:Holder is not a processor, but the class Holder"),
        ("show shop:__name__", "shop:__name__ is not a processor, but of type str"),
        ("show syntax:x", "module syntax cannot be imported: SyntaxError: "),
        ("show raising:x", r"RuntimeError: first line\nsecond line (line 2 of "),
        ("show leaving:x", "module leaving cannot be imported: SystemExit: 3 (line 1 of "),
        ("show lacking:x", "ModuleNotFoundError: No module named 'no_such_library' (line 1 of "),
        ("show shop:levels.x", "shop:levels has no 'x'"),
        ("show shop:builder.x", "shop:builder has no 'x'"),
        (
            "show rude:x",
            "module rude cannot give 'x': LookupError: nobody may ask for x (line 2 of ",
        ),
        ("trace shop:levels rude:x", "module rude cannot give 'x': LookupError: nobody may ask"),
        ("show ..:x", "module .. cannot be imported: TypeError: "),
        ("trace shop:levels shop:graph", "shop:graph is not a function that makes a context"),
        (
            "explore shop:levels shop:make_context shop:graph",
            "not a function that checks a run, but of",
        ),
        ("explore shop:levels shop:graph shop:load", "is not a function that makes a context, but"),
        (f"{EXPLORE} --faults cncel", "faults: there is no fault 'cncel'; did you mean 'cancel'"),
        (f"{EXPLORE} --disturbances 3", "disturbances must be 1 or 2, got 3"),
        (f"{EXPLORE} --replay Page.execute#1@x:fail", "does not name a disturbance; write task"),
        (f"{EXPLORE} --replay Pge.execute#1@1:fail", "no function 'Pge.execute'; did you mean"),
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


NOWHERE = "out.html cannot be written: No such file or directory\n"


@pytest.mark.skipif(sys.platform == "win32", reason="permissions differ")
@pytest.mark.parametrize(("name", "status"), [("levels", 2), ("failing", 1)])
def test_a_page_that_cannot_be_written(
    folder: Path, capsys: Any, engine: Any, name: str, status: int
) -> None:
    Path("out.html").symlink_to(folder / "nowhere" / "x.html")
    ended, printed, errors = command(
        "trace", f"shop:{name}", "shop:make_context", "--html", "out.html", capsys=capsys
    )
    assert ended == status
    assert printed.startswith("run 1: ")
    assert errors.endswith(f"python -m sdax trace: --html: {NOWHERE}")
    assert ("no stock of" in errors) == (name == "failing")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_page_on_a_full_disk(folder: Path, capsys: Any, engine: Any) -> None:
    status, printed, errors = command(
        "trace", "shop:levels", "shop:make_context", "--html", "/dev/full", capsys=capsys
    )
    assert status == 2
    assert printed.startswith("run 1: succeeded")
    assert errors == (
        "python -m sdax trace: --html: /dev/full cannot be written: No space left on device\n"
    )


def test_an_interrupted_run_stays_one_when_its_page_cannot_be_written(
    folder: Path, capsys: Any, engine: Any
) -> None:
    text = "def interrupt(ctx): raise KeyboardInterrupt\n"
    lines = [
        "from sdax import AsyncTaskProcessor, task, task_sync_func",
        text,
        "processor = AsyncTaskProcessor.builder()",
        ".add_task(task('A', execute=task_sync_func(interrupt)), 1).build()",
    ]
    Path("package/ends.py").write_text("\n".join(lines[:2]) + "".join(lines[2:]), encoding="utf-8")
    Path("out.html").symlink_to(folder / "nowhere" / "x.html")
    with pytest.raises(KeyboardInterrupt):
        command(
            *("trace", "package.ends:processor", "shop:make_context", "--html", "out.html"),
            capsys=capsys,
        )
    assert capsys.readouterr().err.endswith(NOWHERE)


EVERY_COMMAND = [
    "",
    "--version",
    "--help",
    "show --help",
    "show shop:levels",
    "show shop:graph --format mermaid",
    "show shop:levels --format html",
    "trace shop:levels shop:make_context --html out.html",
    "bench --seconds 0.1 --only 3-2-2",
]


def run_program(arguments: str, stdout: Any, *options: str, **environment: str) -> Any:
    """Run a command in a Python of its own."""
    return subprocess.run(
        [sys.executable, "-P", *options, "-m", "sdax", *arguments.split()],
        env={**os.environ, **environment},
        stdout=stdout,
        stderr=subprocess.PIPE,
        timeout=60,
        check=False,
    )


@pytest.mark.one_python
@pytest.mark.parametrize(
    ("arguments", "unbuffered"),
    [
        *((arguments, "") for arguments in EVERY_COMMAND),
        *((arguments, "1") for arguments in EVERY_COMMAND[3:8:2]),
    ],
)
def test_a_command_whose_output_nobody_reads(folder: Path, arguments: str, unbuffered: str) -> None:
    reads, writes = os.pipe()
    os.close(reads)
    try:
        done = run_program(arguments, writes, PYTHONUNBUFFERED=unbuffered)
    finally:
        os.close(writes)
    assert (done.returncode, done.stderr) == (141, b"")
    assert Path("out.html").exists() == arguments.startswith("trace")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.one_python
@pytest.mark.parametrize("arguments", EVERY_COMMAND)
def test_a_command_whose_output_cannot_be_written(folder: Path, arguments: str) -> None:
    with Path("/dev/full").open("wb") as full:
        done = run_program(arguments, full)
    says = b"python -m sdax: standard output takes no more: No space left on device\n"
    assert (done.returncode, done.stderr) == (2, says)


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("--version", capsys=capsys) == (0, f"sdax {sdax.__version__}\n", "")


def test_a_diagram_is_utf_8_whatever_the_output_is(folder: Path) -> None:
    text = SHOP.replace("User <b>", "Müller")
    (folder / "shop.py").write_text(text, encoding="utf-8")
    done = run_program(
        "show shop:levels --format mermaid", subprocess.PIPE, PYTHONIOENCODING="cp1252"
    )
    assert done.returncode == 0
    assert "Müller" in done.stdout.decode("utf-8")


def test_a_benchmark_is_checked_without_assertions_too() -> None:
    code = (
        "from sdax.bench.contestants import Contestant, Loop\n"
        "from sdax.bench.work import SELECTION\n"
        "import asyncio\n"
        "async def nothing(ctx): pass\n"
        "lazy = Contestant('lazy', lambda job: nothing)\n"
        "loop = asyncio.new_event_loop()\n"
        "try: lazy.checked(loop, SELECTION[3])\n"
        "except AssertionError as error: print('found', error)\n"
        "loop.close()\n"
    )
    done = subprocess.run(
        [sys.executable, "-O", "-c", code],
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=True,
    )
    assert done.stdout.startswith("found 3-2-2: missing ")


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
