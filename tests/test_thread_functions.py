"""Blocking functions, each call in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from helpers import (
    PHASES,
    build,
    error_of,
    failure_of,
    nothing,
    passes,
    solo,
    spawn,
    states,
    task_in,
    var,
)
from sdax import task, task_func, task_thread_func


@pytest.mark.parametrize("phase", PHASES)
async def test_a_thread_function_runs_in_another_thread(phase: str) -> None:
    function = task_thread_func(lambda ctx: (ctx, threading.get_ident()))
    report = await build([task_in(phase, function)]).process_tasks("context")
    ctx, thread = getattr(report["A"], phase).value
    assert ctx == "context"
    assert thread != threading.get_ident()


async def test_a_blocking_function_does_not_block_the_loop() -> None:
    freed = threading.Event()

    async def free(ctx: Any) -> None:
        await passes(2)
        freed.set()

    processor = build(
        [
            task("blocks", execute=task_thread_func(lambda ctx: freed.wait(5))),
            task("frees", execute=task_func(free)),
        ]
    )
    report = await processor.process_tasks(None)
    assert report["blocks"].execute.value is True


async def test_thread_functions_run_at_the_same_time() -> None:
    barrier = threading.Barrier(3, timeout=5)
    processor = build(
        [task(n, execute=task_thread_func(lambda ctx: barrier.wait())) for n in "abc"]
    )
    report = await processor.process_tasks(None)
    assert sorted(each.execute.value for each in report.values()) == [0, 1, 2]


async def test_context_variables_are_carried_into_the_thread_and_not_back() -> None:
    var.set("the caller's")

    def look(ctx: Any) -> str:
        seen = var.get()
        var.set("the thread's")
        return seen

    processor = build([task(n, execute=task_thread_func(look)) for n in "ab"])
    report = await processor.process_tasks(None)
    assert {each.execute.value for each in report.values()} == {"the caller's"}
    assert var.get() == "the caller's"


async def test_a_thread_function_that_fails_is_retried() -> None:
    outcomes = iter([ConnectionError(), None])

    def flaky(ctx: Any) -> str:
        if error := next(outcomes):
            raise error
        return "value"

    function = task_thread_func(flaky, retries=1, initial_delay=0)
    report = await solo(execute=function).process_tasks(None)
    assert report["A"].execute == ("succeeded", 2, "value", None)


async def test_the_error_of_a_thread_function_is_its_own() -> None:
    error = ValueError("mine")

    def fail(ctx: Any) -> None:
        raise error

    assert (await failure_of(solo(execute=task_thread_func(fail)))).exceptions == (error,)


async def test_a_coroutine_out_of_a_thread_is_refused() -> None:
    error = await failure_of(solo(execute=task_thread_func(lambda ctx: nothing(ctx))))
    (refused,) = error.exceptions
    assert type(refused) is TypeError
    assert str(refused).startswith("the function of a thread must be a plain one, but it returned")
    assert str(refused).endswith("use task_func")


async def test_a_timeout_gives_a_thread_up() -> None:
    freed = threading.Event()
    try:
        caught = await failure_of(
            solo(execute=task_thread_func(lambda ctx: freed.wait(8), timeout=0.01))
        )
        assert not freed.is_set()
    finally:
        freed.set()
    assert states(caught.report) == {"A": "-T-"}


async def test_a_cancellation_gives_a_thread_up() -> None:
    began, freed = threading.Event(), threading.Event()

    def block(ctx: Any) -> None:
        began.set()
        freed.wait(8)

    run = spawn(solo(execute=task_thread_func(block)))
    try:
        await asyncio.to_thread(began.wait, 5)
        run.cancel()
        assert isinstance(await error_of(run), asyncio.CancelledError)
        assert not freed.is_set()
    finally:
        freed.set()
