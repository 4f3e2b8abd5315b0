"""The package itself: what it exports, ships and says of itself."""

from __future__ import annotations

import asyncio
import importlib
import importlib.resources
import inspect
import os
import pkgutil
import re
import runpy
import shutil
import subprocess
import sys
import types
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import pytest

import sdax
import sdax.observe
import sdax.testing
from helpers import current, nothing, solo

ROOT = Path(sdax.__file__).parent.parent
PUBLIC = [
    "AsyncTask",
    "AsyncTaskProcessor",
    "RetryableException",
    "RunReport",
    "SdaxExecutionError",
    "TaskCancelledError",
    "TaskFunction",
    "__version__",
    "flatten_exceptions",
]


packages = pytest.mark.parametrize(
    "package", [sdax, sdax.observe, sdax.testing], ids=lambda package: package.__name__
)


def modules() -> list[str]:
    """All modules of the package; the compiled engine may not be there."""
    found = [module.name for module in pkgutil.walk_packages(sdax.__path__, "sdax.")]
    return ["sdax", *(name for name in found if name != "sdax.__main__")]


# Imports each module into a process that has none of the package yet. What the standard library and
# others have loaded stays. The compiled engine cannot be imported twice. Garbage collections would
# take half of the time.
IMPORT_EACH = """
import gc, importlib, sys
gc.disable()
sys.path[:0] = {path!r}
for name in {names!r}:
    for loaded in [each for each in sys.modules if each.split(".")[0] == "sdax"]:
        del sys.modules[loaded]
    try:
        importlib.import_module(name)
    except BaseException as error:
        error.add_note("while importing " + name)
        raise
"""


@pytest.mark.parametrize("switch", ["", "1"], ids=["the compiled engine", "all others"])
def test_every_module_imports_by_itself_without_a_warning(switch: str) -> None:
    names = [name for name in modules() if name != "sdax._core"] if switch else ["sdax"]
    assert not switch or len(names) > 50
    # -I shuts out the environment of Python, and with it the place where sdax is.
    done = subprocess.run(
        [
            *(sys.executable, "-I", "-W", "error", "-c"),
            IMPORT_EACH.format(path=[str(ROOT), *site_packages()], names=names),
        ],
        env={**os.environ, "SDAX_NO_EXTENSIONS": switch},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_testing_is_imported_only_when_it_is_asked_for() -> None:
    code = f"import sys; sys.path[:0] = {[str(ROOT), *site_packages()]!r}; import sdax.observe; "
    code += "import sdax.__main__; print([name for name in sys.modules if 'sdax.testing' in name])"
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "[]\n"


def test_an_import_loads_only_what_every_run_needs() -> None:
    code = f"import asyncio, sys; sys.path[:0] = {[str(ROOT), *site_packages()]!r}; "
    code += "before = set(sys.modules); import sdax; print(*(set(sys.modules) - before))"
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    loaded = set(done.stdout.split())
    assert "sdax.processor" in loaded
    asked_for = {"asgi", "bench", "clients", "commands", "diagram", "many", "observe", "testing"}
    assert not loaded & {f"sdax.{name}" for name in asked_for}
    assert not loaded & {"difflib", "frozendict", "json", "random", "unicodedata"}


def site_packages() -> list[str]:
    import frozendict

    return [str(Path(frozendict.__file__).parent.parent)]


@packages
def test_public_names(package: Any) -> None:
    if package is sdax:
        assert set(PUBLIC) <= set(sdax.__all__)
    assert len(set(package.__all__)) == len(package.__all__)
    for name in package.__all__:
        assert getattr(package, name) is not None
    visible = {
        name
        for name, value in vars(package).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert visible == set(package.__all__) - {"__version__"}


@packages
def test_public_things_are_documented(package: Any) -> None:
    for name in package.__all__:
        thing = getattr(package, name)
        if inspect.isclass(thing) or inspect.isfunction(thing):
            assert thing.__doc__, name
            assert thing.__module__.startswith("sdax."), name


def test_py_typed_is_shipped() -> None:
    assert importlib.resources.files("sdax").joinpath("py.typed").is_file()


def test_version_and_implementation() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+)?", sdax.__version__)
    assert sdax.IMPLEMENTATION in ("python", "cython")
    run_class = importlib.import_module("sdax._impl").Run
    expected = {"python": "sdax._core_py", "cython": "sdax._core"}
    assert run_class.__module__ == expected[sdax.IMPLEMENTATION]


@pytest.mark.parametrize("switch", ["", "0", "false", "1"])
@pytest.mark.parametrize("installed", [True, False])
def test_choice_of_the_engine(installed: bool, switch: str, monkeypatch: Any) -> None:
    monkeypatch.setenv("SDAX_REQUIRE_EXTENSIONS", switch)
    monkeypatch.delenv("SDAX_NO_EXTENSIONS", raising=False)
    monkeypatch.delitem(sys.modules, "sdax._impl")  # for it to run again
    monkeypatch.setitem(sys.modules, "sdax._core", types.SimpleNamespace(Run="compiled"))
    if not installed:
        monkeypatch.setitem(sys.modules, "sdax._core", None)  # which is an ImportError
    if not installed and switch == "1":
        with pytest.raises(ImportError, match="SDAX_REQUIRE_EXTENSIONS") as caught:
            runpy.run_module("sdax._impl")
        assert isinstance(caught.value.__cause__, ImportError)
        return
    chosen = runpy.run_module("sdax._impl")
    if installed:
        assert (chosen["Run"], chosen["IMPLEMENTATION"]) == ("compiled", "cython")
    else:
        assert chosen["Run"] is importlib.import_module("sdax._core_py").Run
        assert chosen["IMPLEMENTATION"] == "python"


def test_a_module_without_an_engine_is_broken(monkeypatch: Any) -> None:
    monkeypatch.delenv("SDAX_REQUIRE_EXTENSIONS", raising=False)
    monkeypatch.delenv("SDAX_NO_EXTENSIONS", raising=False)
    monkeypatch.delitem(sys.modules, "sdax._impl")
    monkeypatch.setitem(sys.modules, "sdax._core", types.ModuleType("sdax._core"))
    with pytest.warns(RuntimeWarning, match="cannot import name 'Run'"):
        chosen = runpy.run_module("sdax._impl")
    assert chosen["IMPLEMENTATION"] == "python"


SAY_WHICH = "import sdax; print(sdax.IMPLEMENTATION)"


class Copy:
    """A copy of the package with another compiled engine, or with none."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        source = Path(str(sdax.__file__)).parent
        ignored = shutil.ignore_patterns("_core.*", "__pycache__")
        shutil.copytree(source, folder / "sdax", ignore=ignored)

    def add(self, name: str, content: str) -> None:
        file = self.folder / "sdax" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(content, encoding="utf-8")

    def run(self, *arguments: str, **switches: str) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join([str(self.folder), *filter(None, sys.path)])
        environment = {**os.environ, "PYTHONPATH": path, "SDAX_NO_EXTENSIONS": ""}
        environment |= {"SDAX_REQUIRE_EXTENSIONS": "", **switches}
        return subprocess.run(
            # Without site, which would add what finds modules of an editable installation.
            [sys.executable, "-S", *arguments],
            env=environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


def test_no_compiled_engine_is_no_reason_for_a_warning(tmp_path: Path) -> None:
    done = Copy(tmp_path).run("-W", "error", "-c", SAY_WHICH)
    assert (done.stdout, done.stderr) == ("python\n", "")


BROKEN = {
    f"_core{EXTENSION_SUFFIXES[0]}": "no library",
    "_core.py": "from .calls import what_an_earlier_version_had",
    "_core/__init__.py": "len(5)",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_compiled_engine_is_warned_of_once(name: str, tmp_path: Path) -> None:
    broken = Copy(tmp_path)
    broken.add(name, BROKEN[name])
    (tmp_path / "user.py").write_text(SAY_WHICH + "\nimport sdax.processor\n", encoding="utf-8")
    done = broken.run("user.py")
    assert (done.returncode, done.stdout) == (0, "python\n")
    assert done.stderr.count("RuntimeWarning: sdax uses its Python engine") == 1
    assert "user.py:1:" in done.stderr  # it is told where sdax is imported
    assert "Error: " in done.stderr  # the reason
    without = broken.run("-W", "error", "user.py", SDAX_NO_EXTENSIONS="1")
    assert (without.stdout, without.stderr) == ("python\n", "")
    required = broken.run("user.py", SDAX_REQUIRE_EXTENSIONS="1")
    assert "ImportError: SDAX_REQUIRE_EXTENSIONS is set" in required.stderr


def public_members(thing: type) -> dict[str, Any]:
    return {name: value for name, value in vars(thing).items() if not name.startswith("_")}


def test_the_engine_is_documented(engine: Any) -> None:
    assert engine.module.__doc__
    assert engine.module.Run.__doc__
    for name in ("start", "cancel"):
        assert getattr(engine.module.Run, name).__doc__


def test_engines_have_the_same_face(engine: Any) -> None:
    reference = importlib.import_module("sdax._core_py")
    assert inspect.getdoc(engine.module.Run) == inspect.getdoc(reference.Run)
    assert engine.module.Run.__name__ == "Run"
    for name in ("start", "cancel"):
        ours, theirs = getattr(engine.module.Run, name), getattr(reference.Run, name)
        assert inspect.getdoc(ours) == inspect.getdoc(theirs), name
    for name in ("loop", "waiter", "values", "record", "over"):
        assert hasattr(engine.module.Run, name), name


async def test_the_engine_under_test_is_the_one_that_runs(engine: Any) -> None:
    used: list[str] = []

    async def look(ctx: Any) -> None:
        await asyncio.sleep(0)
        used.append(type(current().get_coro()).__module__)

    await solo(look).process_tasks(None)
    assert used == [engine.module.__name__]


def test_no_engine_runs_by_accident() -> None:
    # Without the fixture `engine` a test would pass on whatever is installed.
    with pytest.raises(pytest.fail.Exception, match="must use the fixture 'engine'"):
        asyncio.run(solo(nothing).process_tasks(None))
