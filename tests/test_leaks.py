"""Memory and references over many runs, each path in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from conftest import Implementation
from helpers import counts_references

# What a run of each path may end with is not looked at here, only what it leaves behind.
PROGRAM = """
import asyncio, gc, sys
from importlib import import_module
import sdax.processor
from sdax import AsyncTask, AsyncTaskProcessor, SdaxExecutionError, TaskFunction, task_group_func

sdax.processor.Run = import_module(sys.argv[1]).Run
CTX, MESSAGE = object(), "".join(["mes", "sage"])

async def value(ctx):
    return CTX

async def pause(ctx):
    await asyncio.sleep(0)
    return CTX

async def fail(ctx):
    raise ConnectionError(MESSAGE)

async def fail_late(ctx):
    await asyncio.sleep(0)
    raise ConnectionError(MESSAGE)

async def forever(ctx):
    await asyncio.get_running_loop().create_future()

async def in_a_group(ctx, group):
    group.create_task(pause(ctx))

limits = {"retries": 1, "initial_delay": 0}
PATHS = {
    "success": [value, pause],
    "failure": [forever, fail],
    "late failure": [forever, fail_late],
    "cancel": [forever, pause],
    "timeout": [TaskFunction(forever, timeout=0), pause],
    "retry": [TaskFunction(fail, **limits), TaskFunction(fail_late, **limits)],
    "group": [task_group_func(in_a_group), value],
}
functions = [f if isinstance(f, TaskFunction) else TaskFunction(f) for f in PATHS[sys.argv[2]]]
builder = AsyncTaskProcessor.builder()
for level in range(2):
    for number, function in enumerate(functions):
        task = AsyncTask((level, number), function, TaskFunction(value), TaskFunction(pause))
        builder.add_task(task, level)
processor = builder.build()

async def runs(number):
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    for _ in range(number):
        run = asyncio.ensure_future(processor.process_tasks(CTX))
        if sys.argv[2] == "cancel":
            await asyncio.sleep(0)
            run.cancel()
        try:
            str(await run)
        except (SdaxExecutionError, asyncio.CancelledError) as error:
            repr(error)
        del run

def measure():
    gc.collect()
    return sys.getallocatedblocks(), sys.getrefcount(CTX), sys.getrefcount(MESSAGE)

asyncio.run(runs(200))
before = measure()
asyncio.run(runs(1000))
print(*(after - earlier for after, earlier in zip(measure(), before)))
"""


@counts_references
@pytest.mark.parametrize(
    "path", ["success", "failure", "late failure", "cancel", "timeout", "retry", "group"]
)
def test_a_thousand_runs_leave_nothing(engine: Implementation, path: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, engine.module.__name__, path],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    blocks, contexts, messages = map(int, done.stdout.split())
    assert contexts == 0
    assert messages == 0
    assert blocks < 500  # a block for every second run would be a leak; caches grow by less
