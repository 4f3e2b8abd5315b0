"""`sdax.testing` in the tests of users: pytest, its plugins, unittest, with warnings as errors."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import Implementation
from processes import SWITCHES

pytestmark = pytest.mark.one_engine

SHOP = """
import asyncio
from sdax import AsyncTaskProcessor, task, task_func

class Request:
    def __init__(self):
        self.free = 1

async def take(ctx):
    ctx.free -= 1
    await asyncio.sleep(0.01)
    ctx.taken = True

async def take_well(ctx):
    await asyncio.sleep(0.01)
    ctx.free -= 1
    ctx.taken = True

async def give_back(ctx):
    if getattr(ctx, "taken", False):
        ctx.free += 1

def gives_back(run):
    assert run.context.free == 1

wrong = AsyncTaskProcessor.builder().add_task(level=1, task=task(
    "Database",
    pre_execute=task_func(take, timeout=1.0), post_execute=task_func(give_back))).build()
good = wrong.replaced({"Database": {"pre_execute": take_well}})
"""

TESTS = """
import pytest
from sdax.testing import explore
import shop

def test_wrong():
    explore(shop.wrong, context=shop.Request, check=shop.gives_back)

def test_good():
    explore(shop.good, context=shop.Request, check=shop.gives_back)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "shop.py").write_text(SHOP, encoding="utf-8")
    (tmp_path / "test_shop.py").write_text(TESTS, encoding="utf-8")
    return tmp_path


def python(
    folder: Path, engine: Implementation, *arguments: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run Python in a folder, with every warning an error."""
    return subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(folder), *filter(None, sys.path)]),
            **SWITCHES[engine.name],
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def run_pytest(
    folder: Path, engine: Implementation, *arguments: str, plugins: str = "-p sdax"
) -> str:
    """Run pytest on the folder's tests, with these plugins or with all that are installed."""
    done = python(
        folder,
        engine,
        *["-m", "pytest", "-p", "no:cacheprovider", *plugins.split(), *arguments],
        PYTEST_DISABLE_PLUGIN_AUTOLOAD="" if plugins == WITH_OTHERS else "1",
    )
    assert done.stderr == ""
    return done.stdout


ALONE = "-p sdax"
WITH_OTHERS = "-o asyncio_default_fixture_loop_scope=function"  # all that is installed


@pytest.mark.parametrize("plugins", [ALONE, WITH_OTHERS], ids=["alone", "with others"])
def test_a_finding_and_the_summary(folder: Path, engine: Implementation, plugins: str) -> None:
    printed = run_pytest(folder, engine, plugins=plugins)
    assert "1 failed, 1 passed in " in printed, printed
    # The test fails where it explores, and not somewhere inside of sdax.
    assert "\ntest_shop.py:7: ScheduleFailed\n" in printed
    assert "E           ctx.free -= 1" not in printed
    assert "E           await asyncio.sleep(0.01)\n" in printed.replace("    await", "await")
    *_, summary = printed.split("= sdax explorations =")
    assert "test_shop.py::test_wrong: 4 schedules, 1 finding, " in summary
    assert "test_shop.py::test_good: 15 schedules, every single disturbance, " in summary


@pytest.mark.one_python
def test_the_last_line_repeats_it(folder: Path, engine: Implementation) -> None:
    printed = run_pytest(folder, engine)
    (line,) = re.findall(r"E +pytest (.*)", printed)
    test, option = line.split(" ", 1)
    assert (test, option) == (
        "test_shop.py::test_wrong",
        "--sdax-replay='Database.pre_execute#1@1:cancel'",
    )
    again = run_pytest(folder, engine, test, option.replace("'", ""))
    assert "1 failed" in again
    assert "test_wrong: Database.pre_execute#1@1:cancel replayed, 1 finding, " in again
    good = run_pytest(folder, engine, "test_shop.py::test_good", option.replace("'", ""))
    assert "1 passed" in good


@pytest.mark.one_python
def test_each_exploration_of_a_test_has_its_replay(folder: Path, engine: Implementation) -> None:
    (folder / "test_shop.py").write_text(
        TESTS + "    explore(shop.wrong, context=shop.Request, check=shop.gives_back)\n",
        encoding="utf-8",
    )
    printed = run_pytest(folder, engine, "-k", "good")
    replay = "[2] Database.pre_execute#1@1:cancel"
    assert f"test_shop.py::test_good --sdax-replay='{replay}'" in printed
    again = run_pytest(folder, engine, "-k", "good", f"--sdax-replay={replay}")
    assert "test_good: 15 schedules, every single disturbance, " in again
    assert "test_good: Database.pre_execute#1@1:cancel replayed, 1 finding, " in again


@pytest.mark.one_python
def test_a_name_that_does_not_exist(folder: Path, engine: Implementation) -> None:
    printed = run_pytest(folder, engine, "--sdax-replay=Dtabase.pre_execute#1@1:cancel")
    assert "ValueError: there is no function 'Dtabase.pre_execute'; did you mean 'Da" in printed


@pytest.mark.one_python
def test_options_of_the_command_line(folder: Path, engine: Implementation) -> None:
    printed = run_pytest(folder, engine, "-k", "good", "--sdax-schedules=5")
    assert "test_good: cut off at 5 of at least 12: NOT exhaustive, " in printed
    printed = run_pytest(folder, engine, "-k", "good", "--sdax-disturbances=2")
    assert "every one and every two disturbances, " in printed
    printed = run_pytest(folder, engine, "-k", "good", "--sdax-schedules=5", "--sdax-seed=1")
    assert "cut off at 5 of at least " in printed
    done = python(folder, engine, "-m", "pytest", "--sdax-schedules=many")
    assert done.returncode == 4
    assert "argument --sdax-schedules: invalid int value: 'many'" in done.stderr


MARKED = """
import pytest
from sdax.testing import explore
import shop

pytestmark = pytest.mark.sdax(max_schedules=4, faults=("cancel",))

@pytest.mark.sdax(max_schedules=3)
def test_marked():
    explore(shop.good, context=shop.Request, check=shop.gives_back)

def test_argument():
    explore(shop.good, context=shop.Request, check=shop.gives_back, max_schedules=2)

@pytest.mark.sdax(max_schdules=3)
def test_mistaken():
    explore(shop.good, context=shop.Request, check=shop.gives_back)
"""


@pytest.mark.one_python
def test_a_mark_gives_options(folder: Path, engine: Implementation) -> None:
    (folder / "test_shop.py").write_text(MARKED, encoding="utf-8")
    printed = run_pytest(folder, engine, "--strict-markers")
    assert "test_marked: cut off at 3 of at least 5: " in printed
    assert "test_argument: cut off at 2 of at least 5: " in printed
    assert "explore has no option 'max_schdules'; did you mean 'max_schedules'?" in printed
    printed = run_pytest(folder, engine, "--sdax-schedules=4", "-k", "not mistaken")
    assert printed.count("cut off at 4 of at least ") == 2


@pytest.mark.one_python
def test_a_mark_takes_names(folder: Path, engine: Implementation) -> None:
    (folder / "test_shop.py").write_text(
        TESTS.replace("def test_good", "@pytest.mark.sdax(3)\ndef test_good"), encoding="utf-8"
    )
    printed = run_pytest(folder, engine, "-k", "good")
    assert "TypeError: @pytest.mark.sdax takes options by name, got (3,)" in printed


def test_under_xdist(folder: Path, engine: Implementation) -> None:
    plugins = "-p sdax -p xdist"
    printed = run_pytest(folder, engine, "-n", "2", "--sdax-schedules=10", plugins=plugins)
    assert "1 failed, 1 passed" in printed
    *_, summary = printed.split("= sdax explorations =")
    assert "test_shop.py::test_wrong: 4 schedules, 1 finding, " in summary
    assert "test_shop.py::test_good: cut off at 10 of at least " in summary


@pytest.mark.one_python
def test_in_a_fixture_of_a_test(folder: Path, engine: Implementation) -> None:
    (folder / "test_shop.py").write_text(
        TESTS.replace("def test_good():\n    ", "@pytest.fixture\ndef explored():\n    ")
        + "\ndef test_after(explored):\n    pass\n",
        encoding="utf-8",
    )
    printed = run_pytest(folder, engine, "-k", "after")
    assert "test_shop.py::test_after: 15 schedules, every single disturbance, " in printed


LAZY = """
import sys

def test_nothing_is_imported():
    assert [name for name in sys.modules if name.partition(".")[0] == "sdax"] == []
    assert "_sdax_pytest" in sys.modules

def test_sdax_is_imported_as_it_is():
    import sdax.testing
    found = [module for name, module in sys.modules.items() if name.startswith("sdax")]
    assert len(found) > 10
    assert "AssertionRewritingHook" not in {type(each.__loader__).__name__ for each in found}
"""


def test_the_plugin_imports_nothing_until_it_is_used(folder: Path, engine: Implementation) -> None:
    (folder / "test_shop.py").write_text(LAZY, encoding="utf-8")
    for plugins in ALONE, WITH_OTHERS:
        printed = run_pytest(folder, engine, plugins=plugins)
        assert "2 passed" in printed
        assert "sdax explorations" not in printed


def test_the_plugin_is_found(folder: Path, engine: Implementation) -> None:
    """As it is installed, without being named."""
    printed = run_pytest(folder, engine, "-k", "good", plugins=WITH_OTHERS)
    assert "1 passed" in printed
    assert "test_good: 15 schedules, every single disturbance, " in printed


def test_without_the_plugin(folder: Path, engine: Implementation) -> None:
    printed = run_pytest(folder, engine, plugins="")
    assert "1 failed, 1 passed" in printed
    assert "explore(..., replay='Database.pre_execute#1@1:cancel')" in printed


UNITTEST = """
import unittest
from sdax.testing import explore
import shop

class TestShop(unittest.TestCase):
    def test_wrong(self):
        explore(shop.wrong, context=shop.Request, check=shop.gives_back)

    def test_good(self):
        explore(shop.good, context=shop.Request, check=shop.gives_back)

if __name__ == "__main__":
    unittest.main()
"""


def test_with_unittest(folder: Path, engine: Implementation) -> None:
    (folder / "test_unit.py").write_text(UNITTEST, encoding="utf-8")
    done = python(folder, engine, "-m", "unittest", "test_unit")
    assert "Ran 2 tests" in done.stderr
    assert "FAILED (failures=1)" in done.stderr
    assert "explore(..., replay='Database.pre_execute#1@1:cancel')" in done.stderr
    printed = run_pytest(folder, engine, "test_unit.py")
    assert "test_unit.py::TestShop::test_wrong --sdax-replay=" in printed


ASYNCIO = """
import asyncio
import pytest
from sdax.testing import VirtualClockLoop, explore
import shop

{fixture}

@pytest.mark.{mark}
async def test_an_hour_passes():
    await asyncio.sleep(3600)
    assert asyncio.get_running_loop().time() >= 3600
    assert type(asyncio.get_running_loop()) is VirtualClockLoop

@pytest.mark.{mark}
async def test_to_explore_in_a_loop_is_refused():
    with pytest.raises(RuntimeError, match="plain function: def, not async def"):
        explore(shop.good, context=shop.Request, check=shop.gives_back)

def test_beside_it():
    explore(shop.good, context=shop.Request, check=shop.gives_back)
"""

ANYIO = """
@pytest.fixture
def anyio_backend():
    return "asyncio", {"loop_factory": VirtualClockLoop}
"""

PYTEST_ASYNCIO = """
def pytest_asyncio_loop_factories(config, item):
    from sdax.testing import VirtualClockLoop
    return {"virtual": VirtualClockLoop}
"""


def test_the_clock_with_anyio(folder: Path, engine: Implementation) -> None:
    text = ASYNCIO.format(fixture=ANYIO, mark="anyio")
    (folder / "test_shop.py").write_text(text, encoding="utf-8")
    assert "3 passed" in run_pytest(folder, engine, plugins="-p sdax -p anyio")


@pytest.mark.parametrize("mode", ["strict", "auto"])
def test_the_clock_with_pytest_asyncio(folder: Path, engine: Implementation, mode: str) -> None:
    text = ASYNCIO.format(fixture="", mark="asyncio")
    (folder / "test_shop.py").write_text(text, encoding="utf-8")
    (folder / "conftest.py").write_text(PYTEST_ASYNCIO, encoding="utf-8")
    options = f"-o asyncio_default_fixture_loop_scope=function --asyncio-mode={mode}"
    printed = run_pytest(folder, engine, *options.split(), plugins="-p sdax -p asyncio")
    assert "3 passed" in printed


@pytest.mark.one_python
def test_junit_has_the_count(folder: Path, engine: Implementation) -> None:
    run_pytest(folder, engine, "-k", "good", "--junit-xml=out.xml")
    assert 'name="sdax" value="15 schedules, every' in (folder / "out.xml").read_text()


@pytest.mark.one_python
def test_assertions_in_checks_are_explained(folder: Path, engine: Implementation) -> None:
    (folder / "test_shop.py").write_text(
        TESTS.replace("check=shop.gives_back", "check=check", 1)
        + "\ndef check(run):\n    assert run.context.free == 1\n",
        encoding="utf-8",
    )
    printed = run_pytest(folder, engine, "-k", "wrong")
    assert "E   " in printed
    assert re.search(r"the check failed: AssertionError: assert 0 == 1", printed)


def test_what_pytest_is_told_can_be_read_by_machines() -> None:
    """The property is a plain text, which xdist can send."""
    assert json.loads(json.dumps(("sdax", "15 schedules"))) == ["sdax", "15 schedules"]
