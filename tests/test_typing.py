"""Types, as mypy sees them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import sdax

SNIPPETS = Path(__file__).with_name("typing_snippets.py")


def test_mypy_accepts_what_is_right_and_rejects_what_is_wrong(tmp_path: Path) -> None:
    pytest.importorskip("mypy", reason="mypy is not among the requirements of the tests")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--strict", "--warn-unused-ignores"),
            *("--config-file", os.devnull, "--cache-dir", str(tmp_path), str(SNIPPETS)),
        ],
        env={**os.environ, "MYPYPATH": str(Path(sdax.__file__).parent.parent)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.stdout.startswith("Success"), done.stdout + done.stderr
