"""A caller inside of anyio's scopes, which cancel again in each pass of the loop."""

from __future__ import annotations

import asyncio
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from helpers import Trace, build, passes, task


def counting_passes() -> list[int]:
    """Count the passes of the running loop, in the list's only item."""
    loop: Any = asyncio.get_running_loop()
    counted = [0]
    run_once = loop._run_once

    def counting() -> None:
        counted[0] += 1
        run_once()

    loop._run_once = counting
    return counted


@pytest.mark.loop_kinds("asyncio", "debug", "factory", "eager")
@pytest.mark.parametrize("how", ["whole", "phase by phase"])
async def test_no_pass_without_work(how: str) -> None:
    trace = Trace()
    release = asyncio.Event()
    processor = build([task("A", trace.waiting("A"), None, trace.waiting("post", release))])
    counted = counting_passes()
    try:
        with anyio.CancelScope() as scope:
            asyncio.get_running_loop().call_later(0.01, scope.cancel)
            asyncio.get_running_loop().call_later(0.1, release.set)
            if how == "whole":
                await processor.process_tasks(None)
            else:
                async with processor.open(None) as run:
                    while await run.run_next():
                        pass
    finally:
        del asyncio.get_running_loop()._run_once  # type: ignore[attr-defined]
    assert scope.cancelled_caught
    assert trace == ["A", "A cancelled", "post", "post done"]
    assert counted[0] < 50


@pytest.mark.loop_kinds("asyncio", "uvloop")
async def test_a_deadline_around_a_run() -> None:
    trace = Trace()
    processor = build([task("A", trace.waiting("A"), None, trace.pausing("post", 3))])
    with anyio.move_on_after(0.01) as scope:
        await processor.process_tasks(None)
    assert scope.cancelled_caught
    assert trace[-1] == "post done"


async def test_a_task_group_around_runs() -> None:
    trace = Trace()
    processor = build([task("A", trace.waiting("A"), None, trace.pausing("post", 3))])
    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(processor.process_tasks, None)
        await passes(3)
        group.cancel_scope.cancel()
    assert trace.count("post done") == 3


async def test_scopes_inside_of_a_function() -> None:
    trace = Trace()

    async def function(ctx: Any) -> None:
        with anyio.move_on_after(0):
            await anyio.sleep(60)
        await anyio.lowlevel.checkpoint()
        trace.append("went on")

    await build([task("A", function, function, function)]).process_tasks(None)
    assert trace == ["went on"] * 3
