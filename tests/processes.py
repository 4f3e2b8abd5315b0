"""Programs of the tests, each in a Python process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from conftest import Implementation

PROGRAMS = Path(__file__).parent / "programs"
SWITCHES = {
    "python": {"SDAX_NO_EXTENSIONS": "1", "SDAX_REQUIRE_EXTENSIONS": ""},
    "compiled": {"SDAX_NO_EXTENSIONS": "", "SDAX_REQUIRE_EXTENSIONS": "1"},
}


def run_python(
    arguments: Sequence[str], engine: Implementation, *, environment: dict[str, str] | None = None
) -> str:
    """Run Python with these arguments and the engine that is under test; return what it prints.

    To end with another status than 0, or to write anything to stderr, is a failure.
    """
    done = subprocess.run(
        [sys.executable, *arguments],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            **SWITCHES[engine.name],
            **(environment or {}),
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


def run_program(
    name: str, *arguments: str, engine: Implementation, options: Sequence[str] = ()
) -> str:
    """Run one of `tests/programs` like that."""
    return run_python([*options, str(PROGRAMS / f"{name}.py"), *arguments], engine)
