"""What counts as a failure, and what functions may return."""

from __future__ import annotations

import asyncio
import re
from types import coroutine
from typing import Any

import pytest

from helpers import (
    PHASES,
    Broken,
    Trace,
    build,
    current,
    failure_of,
    nothing,
    passes,
    solo,
    soon_or_late,
    task,
    task_in,
)
from sdax import TaskFunction


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize(
    "returned",
    [None, 42, "text", [1], nothing],
    ids=["None", "int", "str", "list", "function"],
)
async def test_a_function_must_return_an_awaitable(phase: str, returned: Any) -> None:
    trace = Trace()
    error = await failure_of(
        build([task_in(phase, lambda ctx: returned, name=("name", 1))], [trace.task("B", "post")])
    )
    (exception,) = error.exceptions
    assert type(exception) is TypeError
    message = re.escape(f"{phase} of task ('name', 1) must return an awaitable")
    assert re.match(message, str(exception))
    assert f"of type {type(returned).__name__}; define it with 'async def'" in str(exception)
    assert "task_sync_func" in str(exception)
    assert "task_thread_func" in str(exception)
    assert trace == (["B.post"] if phase != "pre_execute" else [])


async def async_generator(ctx: Any) -> Any:
    yield 1


def generator(ctx: Any) -> Any:
    yield 1


@pytest.mark.parametrize("made_by", [generator, async_generator])
async def test_a_generator_is_no_awaitable(made_by: Any) -> None:
    # Which function makes it cannot be seen when the TaskFunction is built.
    error = await failure_of(solo(lambda ctx: made_by(ctx)))
    (exception,) = error.exceptions
    assert type(exception) is TypeError
    assert f"of type {made_by.__name__}; a phase cannot be a generator" in str(exception)


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("limits", [{}, {"timeout": 5.0}], ids=["bare", "limited"])
@pytest.mark.parametrize(
    "kind", [Broken, StopIteration, StopAsyncIteration, asyncio.InvalidStateError]
)
async def test_a_callable_that_raises(phase: str, limits: Any, kind: type[Exception]) -> None:
    broken = kind("from the callable")

    def function(ctx: Any) -> Any:
        raise broken

    error = await failure_of(build([task_in(phase, TaskFunction(function, **limits))]))
    assert error.exceptions == (broken,)


async def test_stop_iteration_out_of_a_coroutine() -> None:
    async def function(ctx: Any) -> None:
        raise StopIteration("value")

    error = await failure_of(solo(function))
    (exception,) = error.exceptions
    assert type(exception) is RuntimeError
    assert isinstance(exception.__cause__, StopIteration)


@soon_or_late
async def test_stop_iteration_out_of_a_future(number: int) -> None:
    # Not even a StopIteration that an awaitable raises by hand looks like a result.
    class Awaitable:
        def __await__(self) -> Any:
            if number:
                yield
            raise StopIteration("value")

    error = await failure_of(solo(lambda ctx: Awaitable()))
    assert type(error.exceptions[0]) is RuntimeError


@soon_or_late
async def test_stop_async_iteration_out_of_a_coroutine(number: int) -> None:
    broken = StopAsyncIteration()
    error = await failure_of(solo(Trace().failing("A", broken, number)))
    assert error.exceptions == (broken,)


async def test_a_coroutine_that_was_awaited_already() -> None:
    coroutine_object = nothing(None)
    await coroutine_object
    error = await failure_of(solo(lambda ctx: coroutine_object))
    assert type(error.exceptions[0]) is RuntimeError
    assert "cannot reuse already awaited coroutine" in str(error.exceptions[0])


@soon_or_late
async def test_an_awaitable_that_yields_nonsense(number: int) -> None:
    @coroutine
    def nonsense(ctx: Any) -> Any:
        for _ in range(number):
            yield
        yield 42

    error = await failure_of(solo(nonsense))
    (exception,) = error.exceptions
    assert type(exception) is RuntimeError
    assert str(exception) == "Task got bad yield: 42"


@soon_or_late
async def test_a_future_of_another_loop(number: int) -> None:
    other = asyncio.new_event_loop()
    try:
        foreign = other.create_future()

        async def function(ctx: Any) -> None:
            await passes(number)
            await foreign

        error = await failure_of(solo(function))
    finally:
        other.close()
    (exception,) = error.exceptions
    assert type(exception) is RuntimeError
    assert "attached to a different loop" in str(exception)


@soon_or_late
async def test_awaiting_its_own_task(number: int) -> None:
    async def function(ctx: Any) -> None:
        await passes(number)
        await current()

    error = await failure_of(solo(function))
    (exception,) = error.exceptions
    assert type(exception) is RuntimeError
    assert "cannot await on itself" in str(exception)


# What functions may return


async def test_awaitables_of_all_kinds() -> None:
    loop = asyncio.get_running_loop()

    class Custom:
        def __await__(self) -> Any:
            return (yield from asyncio.sleep(0, "custom").__await__())

    class Finished:
        def __await__(self) -> Any:
            return iter(())

    @coroutine
    def generator_based(ctx: Any) -> Any:
        yield
        return "generator"

    done = loop.create_future()
    done.set_result("done")
    pending = loop.create_future()
    loop.call_soon(pending.set_result, "pending")
    report = await build(
        [
            task("custom", lambda ctx: Custom()),
            task("finished", lambda ctx: Finished()),
            task("generator", generator_based),
            task("done", lambda ctx: done),
            task("pending", lambda ctx: pending),
            task("task", lambda ctx: loop.create_task(asyncio.sleep(0, "task"))),
            task("gather", lambda ctx: asyncio.gather(asyncio.sleep(0, 1), asyncio.sleep(0, 2))),
        ]
    ).process_tasks(None)
    assert {name: phases.pre_execute.value for name, phases in report.items()} == {
        "custom": "custom",
        "finished": None,
        "generator": "generator",
        "done": "done",
        "pending": "pending",
        "task": "task",
        "gather": [1, 2],
    }


@pytest.mark.parametrize("suspended", [False, True])
async def test_a_future_that_holds_an_exception(suspended: bool) -> None:
    broken = Broken()
    loop = asyncio.get_running_loop()
    future = loop.create_future()
    if suspended:
        loop.call_soon(future.set_exception, broken)
    else:
        future.set_exception(broken)
    error = await failure_of(solo(lambda ctx: future))
    assert error.exceptions == (broken,)
