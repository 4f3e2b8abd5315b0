"""Functions as reprs, stacks and call graphs show them: the users' code."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import inspect
import io
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from helpers import build, current, error_of, nothing, passes, solo, spawn, task, until
from sdax import (
    TaskFunction,
    resource,
    task_func,
    task_group_func,
    task_sync_func,
    task_thread_func,
)


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


async def test_both_engines_name_the_states_of_a_driver_alike() -> None:
    drivers: dict[str, Any] = {}
    seen: list[str] = []

    async def suspends(ctx: Any) -> None:
        drivers["suspended"] = current().get_coro()
        seen.append(drivers["suspended"].state)
        await asyncio.Event().wait()

    async def fails_once(ctx: Any) -> None:
        if "pausing" not in drivers:
            drivers["pausing"] = current().get_coro()
            raise ConnectionError

    async def held(ctx: Any) -> AsyncIterator[None]:
        drivers["holding"] = current().get_coro()
        yield

    retried = TaskFunction(fails_once, retries=1, initial_delay=3600.0)
    tasks = [resource("R", held), task("A", suspends), task("B", retried)]
    run = spawn(build(tasks))
    await until(lambda: len(drivers) == 3)
    assert {name: driver.state for name, driver in drivers.items()} == {
        name: name for name in drivers
    }
    run.cancel()
    await error_of(run)
    assert seen == ["stepping"]
    assert {driver.state for driver in drivers.values()} == {"ended"}


async def test_a_driver_is_new_until_the_factorys_task_calls_it() -> None:
    made: list[str] = []

    def factory(loop: Any, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
        if hasattr(coroutine, "state"):
            made.append(coroutine.state)
        return asyncio.Task(coroutine, loop=loop, **options)

    asyncio.get_running_loop().set_task_factory(factory)
    await build([task("A", nothing)]).process_tasks(None)
    assert made == ["new"]


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


async def kept_at_once(ctx: Any) -> None:
    ctx.append(current())


async def kept_later(ctx: Any) -> None:
    ctx.append(current())
    await asyncio.sleep(0)


def kept_plainly(ctx: Any) -> None:
    ctx.append(current())


@pytest.mark.parametrize("function", [kept_at_once, kept_later, kept_plainly])
@pytest.mark.parametrize("timeout", [None, 60])
async def test_a_task_that_is_done_still_shows_its_function(function: Any, timeout: Any) -> None:
    """In debug mode, asyncio says by that what has blocked the loop."""
    if sys.version_info[:2] == (3, 12) and function is not kept_later:
        pytest.skip("CPython 3.12.1 crashes if such a task is asked for its coroutine")
    kept: list[asyncio.Task[Any]] = []
    wrap = task_sync_func if function is kept_plainly else task_func
    await build([task("A", None, wrap(function, timeout=timeout))]).process_tasks(kept)
    await asyncio.sleep(0)
    (done,) = kept
    assert done.done()
    coroutine: Any = done.get_coro()
    if sys.version_info >= (3, 12) and function is not kept_later and coroutine is None:
        return  # asyncio itself forgets it, if the task has ended in its first step
    name = function.__name__
    assert coroutine.__qualname__ == coroutine.__name__ == name
    assert f"coro=<{name}" in repr(done)
    assert coroutine.cr_frame is None
    if function is not kept_plainly:
        assert coroutine.cr_code is function.__code__


def plain_function(ctx: Any) -> None:
    ctx.append(repr(current()))


async def user_code_in_a_group(gate: asyncio.Event, group: Any) -> None:
    await gate.wait()


class Callable:
    async def __call__(self, ctx: Any) -> None:
        pass


@pytest.mark.loop_kinds("asyncio")
@pytest.mark.parametrize(
    ("function", "name"),
    [
        (TaskFunction(user_code), "user_code"),
        (task_sync_func(plain_function), "plain_function"),
        (task_thread_func(plain_function), "plain_function"),
        (task_group_func(user_code_in_a_group), "user_code_in_a_group"),
        (TaskFunction(functools.partial(user_code)), "user_code"),
        (TaskFunction(Callable()), "Callable"),
    ],
    ids=["async", "plain", "thread", "group", "partial", "object"],
)
@pytest.mark.parametrize("limits", [{}, {"timeout": 60.0}], ids=["bare", "limited"])
async def test_a_task_factory_sees_the_functions_name(
    function: TaskFunction[Any], name: str, limits: dict[str, Any]
) -> None:
    """Tools name what they trace by the coroutine, when the `asyncio.Task` is made."""
    seen: list[Any] = []

    def factory(loop: Any, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
        made = asyncio.Task(coroutine, loop=loop, **options)
        if "sdax" in type(coroutine).__module__ or type(coroutine).__name__ == "Driver":
            seen.append((coroutine.__qualname__, coroutine.__name__))
            repr(made)
            made.get_stack()
        return made

    asyncio.get_running_loop().set_task_factory(factory)
    processor = build([task("A", dataclasses.replace(function, **limits))])
    await error_of(processor.process_tasks(None))
    assert seen == [(name, name)]


async def test_a_plain_function_is_not_shown_as_the_one_before() -> None:
    shown: list[str] = []
    processor = build(
        [task("A", nothing), task("B", task_sync_func(plain_function)), task("C", nothing)]
    )
    await processor.process_tasks(shown)
    assert "plain_function" in shown[0]
    assert "nothing" not in shown[0]


@pytest.mark.virtual_clock
@pytest.mark.loop_kinds("asyncio")
async def test_a_pause_is_not_shown_as_the_attempt_before() -> None:
    attempts: list[asyncio.Task[Any]] = []

    async def fail_once(ctx: Any) -> None:
        attempts.append(current())
        await asyncio.sleep(0)
        if len(attempts) == 1:
            raise ConnectionError

    run = spawn(solo(None, TaskFunction(fail_once, retries=1)))
    await until(lambda: attempts)
    assert "fail_once() running at" in repr(attempts[0])
    await passes(3)  # and the pause has begun
    shown: Any = attempts[0].get_coro()
    assert (shown.cr_frame, shown.cr_await) == (None, None)
    assert "running at" not in repr(attempts[0])
    assert attempts[0].get_stack() == []
    await run
    assert len(attempts) == 2


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


@pytest.mark.skipif(sys.version_info < (3, 14), reason="call graphs are new in 3.14")
@pytest.mark.parametrize("limits", [{}, {"cleanup_timeout": 60.0}], ids=["bare", "limited"])
async def test_call_graphs_show_who_waits_for_a_resource(limits: dict[str, Any]) -> None:
    """The caller waits for its two halves, and not while it is held."""
    gates = [asyncio.Event() for _ in range(3)]
    kept: list[Any] = []

    async def held(ctx: Any) -> Any:
        kept.append(current())
        await gates[0].wait()
        yield
        await gates[2].wait()

    async def wait(ctx: Any) -> None:
        await gates[1].wait()

    run = spawn(build([resource("R", held, **limits), task("A", None, wait)]))
    for gate, awaited_by in zip(gates, ({run}, set(), {run}), strict=True):
        await passes(3)
        assert (kept[0]._asyncio_awaited_by or set()) == awaited_by
        gate.set()
    await run
    assert not kept[0]._asyncio_awaited_by
