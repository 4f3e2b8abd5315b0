"""What type checkers make of the public API: read by mypy, never run.

A mistake that must be rejected has a `type: ignore` with its code; mypy warns of any that it
does not need.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, assert_type

from sdax import (
    AsyncTask,
    AsyncTaskProcessor,
    PhaseReport,
    RunReport,
    SdaxExecutionError,
    SdaxTaskGroup,
    State,
    TaskFailure,
    TaskFunction,
    TaskReport,
    flatten_exceptions,
    join,
)


@dataclass
class Context:
    user: int = 0


@dataclass
class Other:
    name: str = ""


async def load(ctx: Context) -> int:
    return ctx.user


async def load_other(ctx: Other) -> None: ...


async def load_in_group(ctx: Context, group: SdaxTaskGroup) -> None:
    group.create_task(load(ctx))


def returns_a_future(ctx: Context) -> asyncio.Future[int]:
    return asyncio.get_running_loop().create_future()


def returns_no_awaitable(ctx: Context) -> int:
    return ctx.user


def functions() -> None:
    assert_type(TaskFunction(load), TaskFunction[Context])
    assert_type(TaskFunction(returns_a_future, 1.5, 2), TaskFunction[Context])
    TaskFunction(function=load_in_group, has_task_group_argument=True)
    TaskFunction(load, retryable_exceptions=(ValueError, KeyError))
    TaskFunction(load, retryable_exceptions=lambda error: isinstance(error, OSError))
    TaskFunction(returns_no_awaitable)  # type: ignore[arg-type]
    TaskFunction(5)  # type: ignore[arg-type]
    TaskFunction(load, timeout="5")  # type: ignore[arg-type]
    TaskFunction(load, retries=1.5)  # type: ignore[arg-type]
    TaskFunction(load, retryable_exceptions=5)  # type: ignore[arg-type]
    TaskFunction(load).timeout = 5  # type: ignore[misc]


def tasks() -> None:
    task = AsyncTask("A", TaskFunction(load), execute=TaskFunction(load))
    assert_type(task, AsyncTask[Context, str])
    assert_type(task.name, str)
    assert_type(join("A").name, str)
    AsyncTask(["A"], TaskFunction(load))  # type: ignore[type-var]
    AsyncTask("A", load)  # type: ignore[arg-type]
    task.name = "B"  # type: ignore[misc]


async def processors() -> None:
    task = AsyncTask("A", TaskFunction(load))
    processor: AsyncTaskProcessor[Context, str] = (
        AsyncTaskProcessor.builder().add_task(task, 1).add_task(level=2, task=join("B")).build()
    )
    report = await processor.process_tasks(Context())
    assert_type(report, RunReport[str])
    assert_type(report["A"], TaskReport)
    assert_type(report["A"].execute, PhaseReport)
    assert_type(report["A"].execute.state, State)
    assert_type(report["A"].execute.value, Any)
    report["A"] = report["B"]  # type: ignore[index]
    await processor.process_tasks(Other())  # type: ignore[arg-type]
    AsyncTaskProcessor.builder().add_task(task, "1")  # type: ignore[arg-type]
    AsyncTaskProcessor.builder().add_task("A", 1)  # type: ignore[arg-type]


async def errors(processor: AsyncTaskProcessor[Context, str]) -> None:
    try:
        await processor.process_tasks(Context())
    except SdaxExecutionError as error:
        assert_type(error.failures, tuple[TaskFailure, ...])
        assert_type(error.failures[0].exception, Exception)
        assert_type(error.leaf_exceptions(), list[BaseException])
        assert_type(flatten_exceptions(error), list[BaseException])
        assert_type(error.report, RunReport[Any] | None)
