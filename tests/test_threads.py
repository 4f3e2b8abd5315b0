"""One processor in several event loops: in threads, in processes, and in sub-interpreters."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextvars import ContextVar
from typing import Any

import pytest

from conftest import Implementation
from helpers import build, error_of, forever, passes, spawn, task
from processes import run_program
from sdax import (
    AsyncDagTaskProcessor,
    AsyncTask,
    AsyncTaskProcessor,
    RetryBudget,
    SdaxExecutionError,
    TaskFunction,
    resource,
    task_func,
    task_sync_func,
)
from sdax.events import ObservedRun

THREADS = 8
RUNS = 200  # in each thread, at the same time
KINDS = ("success", "failure", "cancel", "timeout", "retry")


class Request:
    """The context of one run: its thread's number, its own, and what was written down."""

    def __init__(self, thread: int, number: int) -> None:
        self.thread = thread
        self.number = number
        self.kind = KINDS[number % len(KINDS)]
        self.threads: set[int] = set()
        self.events: list[str] = []

    def note(self, event: str) -> tuple[int, int]:
        self.threads.add(threading.get_ident())
        self.events.append(event)
        return self.thread, self.number


async def acquire(ctx: Request) -> tuple[int, int]:
    await passes(ctx.number % 3)
    return ctx.note("acquire")


async def work(ctx: Request) -> tuple[int, int]:
    await asyncio.sleep(0)
    if ctx.kind == "retry" and "retry" not in ctx.events:
        ctx.note("retry")
        raise ConnectionError
    if ctx.kind == "failure":
        raise ValueError(ctx.thread, ctx.number)
    if ctx.kind == "cancel":
        await forever()
    return ctx.note("work")


async def stall(ctx: Request) -> None:
    if ctx.kind == "timeout":
        await forever()


async def release(ctx: Request) -> tuple[int, int]:
    await asyncio.sleep(0)
    return ctx.note("release")


TASKS = [
    task("A", acquire, None, release),
    task("B", acquire, TaskFunction(work, timeout=60, retries=1, initial_delay=0), release),
    task("C", None, TaskFunction(stall, timeout=0.001), None),
]


def in_levels() -> Any:
    return build(*([each] for each in TASKS))


def in_a_graph() -> Any:
    builder = AsyncDagTaskProcessor.builder(execute_order="dependency")
    return builder.add_task(TASKS[0]).add_task(TASKS[1], ("A",)).add_task(TASKS[2]).build()


async def check_run(processor: Any, request: Request) -> None:
    run = spawn(processor, request)
    if request.kind == "cancel":
        await passes(8)
        run.cancel()
    error = await error_of(run)
    assert request.threads == {threading.get_ident()}
    assert request.events[-2:] == ["release", "release"]
    assert request.events.count("acquire") == 2
    if request.kind == "cancel":
        assert isinstance(error, asyncio.CancelledError)
        return
    report = run.result() if error is None else getattr(error, "report", None)
    mine = (request.thread, request.number)
    assert report["A"].pre_execute.value == report["B"].post_execute.value == mine
    if request.kind in ("success", "retry"):
        assert error is None
        assert report["B"].execute.value == mine
    else:
        assert isinstance(error, SdaxExecutionError)
        (member,) = error.exceptions
        assert isinstance(member, TimeoutError) or member.args == mine


def in_threads(number: int, main: Callable[[int], Coroutine[Any, Any, None]]) -> None:
    """Run `main` in `number` threads at the same time, each with its own event loop."""
    errors: list[BaseException] = []
    ready = threading.Barrier(number)

    def work(thread: int) -> None:
        ready.wait()
        try:
            asyncio.run(main(thread))
        except BaseException as error:
            errors.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # as many switches between the threads as can be had
    try:
        threads = [threading.Thread(target=work, args=(each,)) for each in range(number)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert errors == []


@pytest.mark.parametrize("make", [in_levels, in_a_graph])
def test_eight_loops_in_eight_threads(engine: Implementation, make: Any) -> None:
    processor = make()

    async def main(thread: int) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(RUNS):
                group.create_task(check_run(processor, Request(thread, number)))

    in_threads(THREADS, main)


caller: ContextVar[tuple[int, int]] = ContextVar("caller")


def test_four_threads_share_all_that_a_processor_has(engine: Implementation) -> None:
    """Everything that several runs write at once: a retry budget, the observers, the numbers of
    runs, what is made for the first observed run, and an exception that all of them raise."""
    number_of_threads, runs = 4, 50
    budget = RetryBudget(ratio=1, min_per_second=0, clock=lambda: 0.0)
    shared = ValueError("of all runs")
    events: list[tuple[ObservedRun, str]] = []

    async def connection(ctx: Request) -> AsyncIterator[int]:
        await asyncio.sleep(0)
        yield ctx.number
        ctx.note("closed")

    async def load(ctx: Request) -> tuple[int, int]:
        if ctx.number % 2 and "retry" not in ctx.events:
            ctx.note("retry")
            raise ConnectionError
        await asyncio.sleep(0)
        return caller.get()

    def set_variable(ctx: Request) -> None:
        caller.set((-1, -1))  # which nobody else may see

    async def fail(ctx: Request) -> None:
        await asyncio.sleep(0)
        raise shared

    builder = AsyncTaskProcessor.builder(
        max_concurrency=3, observer=lambda event: events.append((event.run, type(event).__name__))
    )
    processor = (
        builder.add_task(resource("Connection", connection), level=0)
        .add_task(task("Set", task_sync_func(set_variable)), level=1)
        .add_task(task("Load", task_func(load, retries=1, initial_delay=0, retry_budget=budget)), 1)
        .add_task(AsyncTask("Fail", execute=fail, required=False), level=1)
        .build()
    )

    async def run(thread: int, number: int) -> None:
        request = Request(thread, number)
        caller.set((thread, number))
        report = await processor.process_tasks(request)
        assert report["Connection"].pre_execute.value == number
        assert report["Load"].pre_execute.value == (thread, number)
        assert report["Load"].pre_execute.attempts == 1 + number % 2
        assert report["Fail"].execute.exception is shared
        assert request.events == ["retry"] * (number % 2) + ["closed"]
        assert request.threads == {threading.get_ident()}

    async def main(thread: int) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(runs):
                group.create_task(run(thread, number))

    in_threads(number_of_threads, main)
    began = [each for each, kind in events if kind == "RunStarted"]
    assert len({each.number for each in began}) == len(began) == number_of_threads * runs
    assert Counter(kind for _, kind in events)["RetryScheduled"] == len(began) / 2
    assert all(each.tasks == began[0].tasks for each in began)
    assert budget.balance == len(began) / 2  # each deposited one, and half have withdrawn one


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
def test_a_processor_in_a_forked_process(engine: Implementation) -> None:
    assert run_program("fork", "fork", engine=engine) == "done\n"


def test_a_processor_in_a_spawned_process(engine: Implementation) -> None:
    assert run_program("fork", "spawn", engine=engine) == "done\n"


@pytest.mark.undisturbed
@pytest.mark.skipif(sys.implementation.name != "cpython", reason="sub-interpreters are CPython's")
def test_sub_interpreters_run_on_the_python_engine(engine: Implementation) -> None:
    name = {"compiled": "cython", "python": "python"}[engine.name]
    assert run_program("subinterpreters", engine=engine) == f"{name}\n"
