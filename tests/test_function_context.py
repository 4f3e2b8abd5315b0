"""The context variables that a function sees and sets."""

from __future__ import annotations

import asyncio
import contextvars
import sys
from typing import Any

import pytest

from helpers import (
    PHASES,
    Broken,
    bare_or_limited,
    build,
    error_of,
    failure_of,
    forever,
    nothing,
    passes,
    solo,
    soon_or_late,
    spawn,
    task,
    var,
)
from sdax import TaskFunction


@bare_or_limited
@soon_or_late
async def test_functions_see_what_the_caller_has_set(number: int, limits: Any) -> None:
    seen: list[str] = []

    async def look(ctx: Any) -> None:
        seen.append(var.get())
        await passes(number)
        seen.append(var.get())

    token = var.set("callers")
    try:
        function = TaskFunction(look, **limits)
        await build(
            [task("A", function, function, function)], [task("B", function, function, function)]
        ).process_tasks(None)
    finally:
        var.reset(token)
    assert seen == ["callers"] * 12


@bare_or_limited
@soon_or_late
async def test_what_a_function_sets_reaches_nobody_else(number: int, limits: Any) -> None:
    seen: list[str] = []

    def function(name: str) -> TaskFunction[Any]:
        async def set_and_look(ctx: Any) -> None:
            seen.append(var.get())
            var.set(name)
            await passes(number)
            seen.append(var.get())

        return TaskFunction(set_and_look, **limits)

    def member(name: str) -> Any:
        return task(name, *(function(f"{name} {phase}") for phase in PHASES))

    assert var.get() == "unset"
    await build([member("A"), member("B")], [member("C")]).process_tasks(None)
    assert var.get() == "unset"
    assert seen.count("unset") == 9
    assert sorted(set(seen) - {"unset"}) == sorted(
        f"{name} {phase}" for name in "ABC" for phase in PHASES
    )


@bare_or_limited
@soon_or_late
async def test_set_and_reset_across_awaits(number: int, limits: Any) -> None:
    async def set_and_reset(ctx: Any) -> None:
        await passes(number)
        token = var.set("mine")
        await passes(2)
        assert var.get() == "mine"
        # Raises ValueError when this is not the very same context.
        var.reset(token)
        assert var.get() == "unset"
        await asyncio.sleep(0)
        assert var.get() == "unset"

    function = TaskFunction(set_and_reset, **limits)
    await build([task(name, function, function, function) for name in "ABC"]).process_tasks(None)


async def test_children_and_callbacks_have_the_functions_context() -> None:
    seen: list[str] = []

    async def child() -> None:
        seen.append(f"child {var.get()}")

    async def function(ctx: Any) -> None:
        var.set("mine")
        asyncio.get_running_loop().call_soon(lambda: seen.append(f"callback {var.get()}"))
        await asyncio.create_task(child())
        await asyncio.sleep(0)

    await build([task("0", nothing), task("A", function)]).process_tasks(None)
    assert sorted(seen) == ["callback mine", "child mine"]


async def test_the_callable_itself_runs_in_the_context() -> None:
    seen: list[str] = []

    def function(ctx: Any) -> Any:
        var.set("by the callable")
        return look()

    async def look() -> None:
        seen.append(var.get())
        await asyncio.sleep(0)
        seen.append(var.get())

    await build([task("A", function), task("B", function)]).process_tasks(None)
    assert seen == ["by the callable"] * 4
    assert var.get() == "unset"


async def test_cancellation_and_timeout_arrive_in_the_functions_context() -> None:
    seen: list[str] = []

    async def look(ctx: Any) -> None:
        var.set("mine")
        try:
            await forever()
        finally:
            seen.append(var.get())

    async def fail(ctx: Any) -> None:
        await asyncio.sleep(0)
        raise Broken

    await failure_of(build([task("A", look), task("B", fail)]))
    await failure_of(solo(TaskFunction(look, timeout=0)))
    assert seen == ["mine", "mine"]


async def test_later_functions_see_the_callers_variables_as_they_were() -> None:
    # What the caller sets meanwhile, in another asyncio.Task with the same context, is too late.
    seen: list[str] = []
    gate = asyncio.Event()

    async def look(ctx: Any) -> None:
        seen.append(var.get())

    async def wait(ctx: Any) -> None:
        var.set("the driver's own")
        await gate.wait()

    context = contextvars.copy_context()
    context.run(var.set, "callers")
    processor = build([task("A", wait)], [task("B", look, look, look)])
    run = asyncio.get_running_loop().create_task(processor.process_tasks(None), context=context)
    await passes(3)
    context.run(var.set, "too late")
    gate.set()
    await run
    assert seen == ["callers"] * 3


@pytest.mark.virtual_clock
async def test_what_a_future_sets_when_it_is_cancelled_reaches_no_function() -> None:
    seen: list[str] = []

    class Request(asyncio.Future[None]):
        def cancel(self, msg: Any = None) -> bool:
            var.set("by a future")
            return super().cancel(msg)

    async def slow(ctx: Any) -> None:
        try:
            await Request()
        finally:
            seen.append(var.get())

    async def close(ctx: Any) -> None:
        seen.append(var.get())

    await failure_of(
        build(
            [task("A", None, TaskFunction(slow, timeout=1.0), close)],
            [task("B", None, None, close)],
        )
    )
    assert seen == ["unset"] * 3


@soon_or_late
async def test_no_function_sees_the_exception_that_its_caller_handles(number: int) -> None:
    seen: list[Any] = []

    async def function(ctx: Any) -> None:
        seen.append(sys.exc_info()[1])
        await passes(number)
        raise Broken

    try:
        raise KeyError("handled by the caller")
    except KeyError:
        error = await failure_of(build([task("A", None, function, nothing)]))
    assert error.exceptions[0].__context__ is None
    assert seen == [None]


@soon_or_late
async def test_no_cleanup_sees_the_cancellation(number: int) -> None:
    seen: list[Any] = []

    async def close(ctx: Any) -> None:
        seen.append(sys.exc_info()[1])
        await passes(number)

    run = spawn(build([task("A", forever, None, close)]))
    await passes(3)
    run.cancel()
    await error_of(run)
    assert seen == [None]
