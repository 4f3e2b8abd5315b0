"""Functions as reprs, stacks and call graphs show them: the users' code."""

from __future__ import annotations

import asyncio
import inspect
import io
import sys
from pathlib import Path
from typing import Any

import pytest

from helpers import build, current, nothing, spawn, task, until
from sdax import TaskFunction


async def user_code(gate: asyncio.Event) -> None:
    await gate.wait()


async def test_repr_and_stack_show_the_users_code() -> None:
    gate = asyncio.Event()
    kept: list[asyncio.Task[Any]] = []

    def function(limits: Any) -> TaskFunction[Any]:
        async def users_function(ctx: Any) -> None:
            kept.append(current())
            await user_code(gate)

        return TaskFunction(users_function, **limits)

    run = spawn(
        build(
            [
                task("A", function({})),
                task("B", function({"timeout": 60.0})),
                task("0", nothing),
                task("C", function({})),
            ]
        )
    )
    await until(lambda: len(kept) == 3)
    await asyncio.sleep(0)
    for each in kept:
        assert "users_function" in repr(each)
        assert Path(__file__).name in repr(each)
        stack = each.get_stack()
        assert stack[0].f_code.co_name == "users_function"
        printed = io.StringIO()
        each.print_stack(file=printed)
        assert "await user_code(gate)" in printed.getvalue()
        coroutine: Any = each.get_coro()
        assert coroutine.cr_frame.f_code.co_name == "users_function"
        assert coroutine.cr_await.cr_code.co_name == "user_code"
        assert inspect.getcoroutinestate(coroutine) == inspect.CORO_SUSPENDED
        assert coroutine.__name__ == "users_function"
        assert coroutine.__qualname__.endswith("users_function")
    gate.set()
    await run


async def test_repr_of_tasks_at_any_time() -> None:
    kept: list[asyncio.Task[Any]] = []

    async def look(ctx: Any) -> None:
        kept.append(current())
        repr(current())
        current().get_stack()
        current().print_stack(file=io.StringIO())
        await asyncio.sleep(0)
        repr(current())
        current().print_stack(file=io.StringIO())

    async def quick(ctx: Any) -> None:
        kept.append(current())
        repr(current())

    await build(
        [task("A", look), task("B", quick), task("C", quick, TaskFunction(look, timeout=60))]
    ).process_tasks(None)
    await asyncio.sleep(0)
    for each in kept:
        repr(each)
        each.get_stack()
        each.print_stack(file=io.StringIO())


@pytest.mark.skipif(sys.version_info < (3, 14), reason="call graphs are new in 3.14")
async def test_call_graphs_show_the_caller_and_the_users_code() -> None:
    gate = asyncio.Event()
    kept: list[asyncio.Task[Any]] = []

    async def users_function(ctx: Any) -> None:
        kept.append(current())
        await user_code(gate)

    run = spawn(
        build(
            [
                task("0", nothing),
                task("A", users_function),
                task("B", TaskFunction(users_function, timeout=60)),
            ]
        )
    )
    await until(lambda: len(kept) == 2)
    await asyncio.sleep(0)
    for each in kept:
        graph = asyncio.capture_call_graph(each)  # type: ignore[attr-defined]
        assert graph is not None
        names = [entry.frame.f_code.co_name for entry in graph.call_stack]
        assert "users_function" in names
        assert "user_code" in names
        assert [awaiting.future for awaiting in graph.awaited_by] == [run]
    gate.set()
    await run
    assert not kept[0]._asyncio_awaited_by  # type: ignore[attr-defined]
