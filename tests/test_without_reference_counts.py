"""The Python engine where nobody can count references, as on PyPy; shown on CPython."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from helpers import counts_references

# As on PyPy, asyncio is all Python too. The tests' own tools get the count back.
PROGRAM = """
import sys
getrefcount = sys.getrefcount
del sys.getrefcount
sys.modules["_asyncio"] = None
import asyncio
import sdax._core_py
sys.getrefcount = getrefcount

async def function(ctx):
    ctx.add(asyncio.current_task())

async def tasks_of_ten_functions():
    from sdax import AsyncTask, AsyncTaskProcessor, TaskFunction
    builder = AsyncTaskProcessor.builder()
    for name in range(10):
        builder.add_task(AsyncTask(name, TaskFunction(function)), 1)
    await builder.build().process_tasks(seen := set())
    return len(seen)

assert asyncio.run(tasks_of_ten_functions()) == 10
import pytest
sys.exit(pytest.main(sys.argv[1:]))
"""


@counts_references
def test_it_passes_the_tests_with_an_asyncio_task_for_each_function() -> None:
    here = Path(__file__).parent
    files = [here / "test_order.py", here / "test_cancellation.py"]
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            PROGRAM,
            "-q",
            "-n0",
            "--engine=python",
            # The program has imported sdax before pytest, whose plugin it has.
            "-Wignore:Module already imported:pytest.PytestAssertRewriteWarning",
            *files,
        ],
        cwd=here.parent,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "SDAX_NO_EXTENSIONS": "1",
            "SDAX_REQUIRE_EXTENSIONS": "",
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed in " in done.stdout
