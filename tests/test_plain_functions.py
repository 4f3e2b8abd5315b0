"""Plain functions, which the engine calls itself."""

from __future__ import annotations

import asyncio
import functools
import time
from itertools import pairwise
from typing import Any

import pytest

from helpers import (
    PHASES,
    Trace,
    build,
    current,
    error_of,
    failure_of,
    nothing,
    solo,
    task_in,
    var,
    without_factory,
)
from sdax import (
    RetryableException,
    TaskCancelledError,
    task,
    task_func,
    task_sync_func,
    task_thread_func,
)


def plain(ctx: Any) -> Any:
    return ctx


@pytest.mark.parametrize("limits", [{}, {"retries": 1}, {"timeout": 5}], ids=str)
@pytest.mark.parametrize("phase", PHASES)
async def test_the_value_of_a_plain_function(phase: str, limits: Any) -> None:
    function = task_sync_func(lambda ctx: ctx["value"] + 1, **limits)
    report = await build([task_in(phase, function)]).process_tasks({"value": 4})
    assert getattr(report["A"], phase)[:4] == ("succeeded", 1, 5, None)


async def test_a_plain_function_is_called_without_a_coroutine() -> None:
    """Its caller is the engine: no frame of a coroutine, of sdax or not, lies between."""
    between = []

    def look(ctx: Any) -> None:
        task = asyncio.current_task()
        assert task is not None
        between.append(getattr(task.get_coro(), "cr_frame", None))

    await build([task("A", pre_execute=task_sync_func(look), execute=task_sync_func(look))]
    ).process_tasks(None)  # fmt: skip
    assert between == [None, None]


async def test_a_plain_function_has_an_asyncio_task_and_the_callers_variables() -> None:
    var.set("the caller's")
    seen = []

    def look(ctx: Any) -> None:
        seen.append((current().get_name(), var.get()))
        var.set("a function's")

    processor = build([task(n, execute=task_sync_func(look)) for n in range(3)])
    await processor.process_tasks(None)
    assert seen == [(f"sdax:{n}:execute", "the caller's") for n in range(3)]
    assert var.get() == "the caller's"


@without_factory
async def test_plain_functions_never_go_through_the_loop() -> None:
    went = []
    asyncio.get_running_loop().call_soon(went.append, 1)
    function = task_sync_func(plain)
    processor = build(
        *([task((n, i), pre_execute=function, post_execute=function) for i in "ab"] for n in "xy")
    )
    await processor.process_tasks(None)
    assert went == []


async def test_plain_functions_keep_the_order_among_others() -> None:
    trace = Trace()
    processor = build(
        [
            task("A", execute=task_sync_func(lambda ctx: trace.append("A"))),
            task("B", execute=task_func(trace.pausing("B"))),
            task("C", execute=task_sync_func(lambda ctx: trace.append("C"))),
            task("D", execute=task_func(trace.quick("D"))),
        ]
    )
    await processor.process_tasks(None)
    assert trace == ["A", "B", "C", "D", "B done"]


@pytest.mark.parametrize("phase", PHASES)
async def test_a_plain_function_that_fails(phase: str) -> None:
    error = ValueError("mine")

    def fail(ctx: Any) -> None:
        raise error

    caught = await failure_of(build([task_in(phase, task_sync_func(fail))]))
    assert caught.exceptions == (error,)
    assert error.__notes__ == [f"task 'A', {phase}, attempt 1 of 1"]
    assert [*caught.failures] == [("A", phase, 1, error)]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), GeneratorExit()], ids=repr)
async def test_a_plain_function_that_raises_what_is_no_exception(error: BaseException) -> None:
    def fail(ctx: Any) -> None:
        raise error

    assert await error_of(solo(execute=task_sync_func(fail)).process_tasks(None)) is error


@pytest.mark.parametrize("limits", [{}, {"retries": 1}], ids=str)
async def test_stop_iteration_of_a_plain_function_is_a_failure(limits: Any) -> None:
    def fail(ctx: Any) -> None:
        raise StopIteration(1)

    caught = await failure_of(solo(execute=task_sync_func(fail, **limits)))
    assert isinstance(caught.exceptions[0], StopIteration)


async def test_a_cancelled_error_of_a_plain_function_is_a_failure() -> None:
    def fail(ctx: Any) -> None:
        raise asyncio.CancelledError

    caught = await failure_of(solo(execute=task_sync_func(fail)))
    assert isinstance(caught.exceptions[0], TaskCancelledError)


@pytest.mark.parametrize("phase", PHASES)
async def test_a_plain_function_is_retried(phase: str) -> None:
    outcomes = iter([ConnectionError(), RetryableException(), None])

    def flaky(ctx: Any) -> str:
        if error := next(outcomes):
            raise error
        return "value"

    function = task_sync_func(flaky, retries=5, initial_delay=0)
    report = await build([task_in(phase, function)]).process_tasks(None)
    assert getattr(report["A"], phase)[:4] == ("succeeded", 3, "value", None)


async def test_retries_of_a_plain_function_end() -> None:
    calls = []

    def fail(ctx: Any) -> None:
        calls.append(1)
        raise ConnectionError(len(calls))

    caught = await failure_of(solo(execute=task_sync_func(fail, retries=2, initial_delay=0)))
    assert str(caught.exceptions[0]) == "3"
    assert [failure.attempts for failure in caught.failures] == [3]


@pytest.mark.virtual_clock
async def test_a_plain_function_waits_between_attempts() -> None:
    loop = asyncio.get_running_loop()
    times = []

    def fail(ctx: Any) -> None:
        times.append(loop.time())
        raise ConnectionError

    began = loop.time()
    function = task_sync_func(fail, retries=2, initial_delay=4, backoff_factor=1)
    await failure_of(solo(execute=function))
    assert len(times) == 3
    assert all(2 <= late - soon <= 4 for soon, late in pairwise(times))
    assert times[0] == began


@pytest.mark.parametrize("limits", [{}, {"retries": 2}, {"timeout": 5}], ids=str)
async def test_a_plain_function_that_returns_a_coroutine_is_refused(limits: Any) -> None:
    calls = []

    def asynchronous(ctx: Any) -> Any:
        calls.append(1)
        return nothing(ctx)

    caught = await failure_of(solo(execute=task_sync_func(asynchronous, **limits)))
    (error,) = caught.exceptions
    assert type(error) is TypeError
    assert "'A'" in str(error)
    assert "execute" in str(error)
    assert calls == [1]


async def test_what_is_awaitable_but_no_coroutine_is_a_value() -> None:
    future = asyncio.get_running_loop().create_future()
    report = await solo(execute=task_sync_func(lambda ctx: future)).process_tasks(None)
    assert report["A"].execute.value is future
    future.cancel()


class AsyncCallable:
    async def __call__(self, ctx: Any) -> None:
        """Do nothing."""

    async def method(self, ctx: Any) -> None:
        """Do nothing."""


@pytest.mark.parametrize("helper", [task_sync_func, task_thread_func])
@pytest.mark.parametrize(
    "function",
    [nothing, functools.partial(nothing), AsyncCallable().method, AsyncCallable()],
    ids=["function", "partial", "method", "object"],
)
def test_an_async_function_is_refused_as_a_plain_one(helper: Any, function: Any) -> None:
    with pytest.raises(TypeError, match="task_func") as caught:
        helper(function)
    assert helper.__name__ in str(caught.value)


async def test_a_class_of_such_objects_is_a_plain_function() -> None:
    class Context(AsyncCallable):
        def __init__(self, ctx: Any) -> None:
            self.ctx = ctx

    report = await solo(execute=task_sync_func(Context)).process_tasks(None)
    assert type(report["A"].execute.value) is Context


async def test_a_timeout_cannot_interrupt_a_plain_function() -> None:
    function = task_sync_func(lambda ctx: time.sleep(0.02) or "value", timeout=0.001)
    report = await solo(execute=function).process_tasks(None)
    assert report["A"].execute.value == "value"


async def test_a_plain_function_that_cancels_its_own_asyncio_task() -> None:
    """Nothing can be cancelled in it any more, nor is the next function touched."""
    trace = Trace()

    def cancel(ctx: Any) -> None:
        current().cancel()

    processor = build(
        [
            task("A", execute=task_sync_func(cancel)),
            task("B", execute=task_func(trace.pausing("B"))),
        ]
    )
    await processor.process_tasks(None)
    assert trace == ["B", "B done"]


def test_a_plain_function_may_also_be_awaited() -> None:
    """What was made of it is a `TaskFunction` like any other, whose function may be called."""
    made: Any = task_sync_func(plain)
    with asyncio.Runner() as runner:
        assert runner.run(made.function(7)) == 7
