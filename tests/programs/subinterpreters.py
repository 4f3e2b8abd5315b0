"""Sub-interpreters of a process whose main one has imported sdax: which engine each has, and
whether runs in several of them, one after another and at once in threads, do what they should."""

from __future__ import annotations

import sys
import threading
from importlib import import_module
from typing import Any

import sdax

PROGRAM = f"""
import sys
sys.path[:] = {sys.path!r}
import asyncio
import sdax

async def pause(ctx):
    await asyncio.sleep(0)
    ctx.append("work")

async def fail(ctx):
    await asyncio.sleep(0)
    raise ConnectionError

async def close(ctx):
    await asyncio.sleep(0)
    ctx.append("close")

processor = (
    sdax.AsyncTaskProcessor.builder()
    .add_task(sdax.AsyncTask("A", sdax.task_func(pause), None, sdax.task_func(close)), 1)
    .add_task(sdax.task("B", execute=sdax.task_func(fail, retries=1, initial_delay=0)), 2)
    .build()
)
for _ in range(20):
    events = []
    try:
        asyncio.run(processor.process_tasks(events))
    except sdax.SdaxExecutionError as error:
        assert error.failures[0].attempts == 2
    assert events == ["work", "close"]
"""
ON_PYTHON = f"""
import os
os.environ.pop("SDAX_REQUIRE_EXTENSIONS", None)
{PROGRAM}
"""
ON_PYTHON += "assert sdax.IMPLEMENTATION == 'python', sdax.IMPLEMENTATION\n"
REQUIRED = f"""
import os, sys
sys.path[:] = {sys.path!r}
os.environ["SDAX_REQUIRE_EXTENSIONS"] = "1"
try:
    import sdax
except ImportError as error:
    assert isinstance(error.__cause__, ImportError), error
else:
    raise AssertionError("the compiled engine was imported")
"""

interpreters: Any = import_module(
    "_interpreters" if sys.version_info >= (3, 13) else "_xxsubinterpreters"
)


def create(isolated: bool) -> Any:
    """Make an interpreter with a lock of its own (from Python 3.12 on), or one that shares it."""
    if sys.version_info >= (3, 13):
        return interpreters.create("isolated" if isolated else "legacy")
    return interpreters.create(isolated=isolated)


def run(program: str, isolated: bool) -> None:
    interpreter = create(isolated)
    try:
        failed = interpreters.run_string(interpreter, program)  # an exception, up to 3.12
        assert failed is None, failed.errdisplay
    finally:
        interpreters.destroy(interpreter)


def main() -> None:
    exec(PROGRAM, {})
    for isolated in (True, False, True):
        run(ON_PYTHON, isolated)
    if sdax.IMPLEMENTATION == "cython":
        for isolated in (True, False):
            run(REQUIRED, isolated)
    if sys.version_info >= (3, 12):  # before, asyncio itself is not made for it
        threads = [threading.Thread(target=run, args=(ON_PYTHON, True)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    exec(PROGRAM, {})
    print(sdax.IMPLEMENTATION)


main()
