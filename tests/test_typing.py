"""Types, as mypy and pyright see them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import sdax
from test_documentation import PYTHON, chain_of

pytestmark = pytest.mark.one_python

SNIPPETS = Path(__file__).with_name("typing_snippets.py")


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the snippets, and those examples of the documentation that have types."""
    folder = tmp_path_factory.mktemp("programs")
    shutil.copy(SNIPPETS, folder)
    typed = [block for block in PYTHON if "typed" in block.words]
    assert typed
    for block in typed:
        name = f"{block.page.stem}_{block.line}.py".replace("-", "_")
        text = "".join(each.text for each in chain_of(block))
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def test_mypy_accepts_what_is_right_and_rejects_what_is_wrong(
    programs: Path, tmp_path: Path
) -> None:
    pytest.importorskip("mypy", reason="mypy is not among the requirements of the tests")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--strict", "--warn-unused-ignores"),
            # As with an installed package: what checks sdax itself is `make types`.
            "--follow-imports=silent",
            *("--config-file", os.devnull, "--cache-dir", str(tmp_path), str(programs)),
        ],
        env={**os.environ, "MYPYPATH": str(Path(sdax.__file__).parent.parent)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.stdout.startswith("Success"), done.stdout + done.stderr


def test_pyright_accepts_what_is_right_and_rejects_what_is_wrong(programs: Path) -> None:
    pytest.importorskip("pyright", reason="pyright is not among the requirements of the tests")
    command = [sys.executable, "-m", "pyright"]
    there = subprocess.run([*command, "--version"], capture_output=True, timeout=300, check=False)
    if there.returncode:
        pytest.skip("pyright is installed, but cannot run: it may want to download itself")
    settings = {
        "extraPaths": [str(Path(sdax.__file__).parent.parent)],
        "typeCheckingMode": "strict",
        "reportUnnecessaryTypeIgnoreComment": "error",
        # Where a mistake is, or Any was meant, there is more that is not known.
        "reportUnknownArgumentType": False,
        "reportUnknownMemberType": False,
        "reportUnknownVariableType": False,
    }
    # pyright only looks at what is below its configuration
    (programs / "pyrightconfig.json").write_text(json.dumps(settings), encoding="utf-8")
    done = subprocess.run(
        [*command, "--outputjson", "--project", str(programs), "--pythonpath", sys.executable],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.stdout.startswith("{"), done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["generalDiagnostics"] == []
    assert found["summary"]["filesAnalyzed"] == len([*programs.glob("*.py")])
