"""What type checkers make of the public API: read by mypy and pyright, never run.

A mistake that must be rejected has a `type: ignore` with mypy's code; both checkers complain of
any that they do not need.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Unpack, assert_type

import sdax
from sdax import (
    AsyncDagTaskProcessor,
    AsyncDagTaskProcessorBuilder,
    AsyncPhaseRunner,
    AsyncTask,
    AsyncTaskProcessor,
    AsyncTaskProcessorBuilder,
    Done,
    Finish,
    Limits,
    PhaseId,
    PhaseReport,
    RetryableException,
    RetryBudget,
    RunReport,
    SdaxExecutionError,
    SdaxTaskGroup,
    State,
    TaskFailure,
    TaskFunction,
    TaskReport,
    flatten_exceptions,
    hedged,
    join,
    resource,
    task,
    task_func,
    task_group_func,
    task_group_task,
    task_outcome_func,
    task_sync_func,
    task_thread_func,
)
from sdax.clients import retry_after
from sdax.many import ManyOptions, Outcome, Outcomes, run_many
from sdax.testing import (
    Exploration,
    ExploredRun,
    ScheduleFailed,
    disturbed,
    explorations,
    explore,
    run,
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
    one = AsyncTask("A", TaskFunction(load), execute=TaskFunction(load))
    assert_type(one, AsyncTask[Context, str])
    assert_type(one.name, str)
    assert_type(join("A").name, str)
    AsyncTask(["A"], TaskFunction(load))  # type: ignore[type-var]
    assert_type(AsyncTask("A", load, post_execute=TaskFunction(load)), AsyncTask[Context, str])
    assert_type(AsyncTask("A", load).pre_execute, TaskFunction[Context] | None)
    AsyncTask("A", returns_no_awaitable)  # type: ignore[arg-type]
    one.name = "B"  # type: ignore[misc]


async def hold(ctx: Context) -> AsyncIterator[int]:
    yield ctx.user


@asynccontextmanager
async def manage(ctx: Context) -> AsyncGenerator[int, None]:
    yield ctx.user


async def finish(ctx: Context, outcome: sdax.Outcome) -> None:
    assert_type(outcome.failures, tuple[TaskFailure, ...])


def resources() -> None:
    assert_type(resource("A", hold, timeout=1.0, retries=2), AsyncTask[Context, str])
    assert_type(resource("A", manage, cleanup_timeout=1.0), AsyncTask[Context, str])
    assert_type(resource(7, hold, execute=load), AsyncTask[Context, int])
    AsyncTaskProcessor[Context].builder(cleanup_timeout=5.0).add_task(resource("A", hold), 1)
    resource("A", load)  # type: ignore[arg-type]
    resource("A", hold, retrys=1)  # type: ignore[call-arg]
    task_func(hold)  # type: ignore[arg-type]
    assert_type(task_outcome_func(finish, timeout=1.0), TaskFunction[Context])
    assert_type(task_func(finish, has_outcome_argument=True), TaskFunction[Context])
    task_func(finish)  # type: ignore[arg-type]
    task_outcome_func(load)  # type: ignore[arg-type]


def helpers() -> None:
    assert_type(task_func(load, timeout=1.0, retries=2), TaskFunction[Context])
    assert_type(task_sync_func(returns_no_awaitable, timeout=1), TaskFunction[Context])
    assert_type(task_thread_func(returns_no_awaitable), TaskFunction[Context])
    task_thread_func(returns_no_awaitable, abandon_on_cancel=True, executor=ThreadPoolExecutor())
    assert_type(task_group_func(load_in_group, max_delay=2.0), TaskFunction[Context])
    assert_type(task_group_task(load_in_group), TaskFunction[Context])
    assert_type(task("A", execute=task_func(load)), AsyncTask[Context, str])
    assert_type(join("A"), AsyncTask[Any, str])
    task_func(returns_no_awaitable)  # type: ignore[arg-type]
    task_func(load_in_group)  # type: ignore[arg-type]
    task_func(load, 5)  # type: ignore[call-overload]
    task_func(load, time_out=5)  # type: ignore[call-overload]
    task_sync_func(returns_no_awaitable, retries="1")  # type: ignore[arg-type]
    task_thread_func(returns_no_awaitable, timeout="5")  # type: ignore[arg-type]
    task_thread_func(returns_no_awaitable, executor=4)  # type: ignore[arg-type]
    task_group_func(load)  # type: ignore[arg-type]
    task(execute=task_func(load))  # type: ignore[call-arg]
    assert_type(task("A", execute=load, post_execute=task_func(load)), AsyncTask[Context, str])
    assert_type(task("A", execute=hedged(load, 0.5)), AsyncTask[Context, str])
    task("A", execute=returns_no_awaitable)  # type: ignore[arg-type]
    task(["A"], execute=task_func(load))  # type: ignore[type-var]


def hedging() -> None:
    assert_type(hedged(load, 0.5), Callable[[Context], Coroutine[Any, Any, int]])
    assert_type(TaskFunction(hedged(load, delay=1, attempts=3)), TaskFunction[Context])
    hedged(returns_no_awaitable, 0.5)  # type: ignore[arg-type]
    hedged(load, "0.5")  # type: ignore[arg-type]
    hedged(load)  # type: ignore[call-arg]


def budgets() -> None:
    budget = RetryBudget(0.1, min_per_second=5, ttl=20.0)
    assert_type(budget.try_withdraw(), bool)
    assert_type(budget.balance, float)
    RetryBudget(ratio="0.1")  # type: ignore[arg-type]
    RetryBudget(0.1, 5, 20, lambda: 0.0)  # type: ignore[call-arg]
    budget.ratio = 0.5  # type: ignore[misc]


async def processors() -> None:
    one = AsyncTask("A", TaskFunction(load))
    processor: AsyncTaskProcessor[Context, str] = (
        AsyncTaskProcessor.builder().add_task(one, 1).add_task(level=2, task=join("B")).build()
    )
    report = await processor.process_tasks(Context())
    assert_type(report, RunReport[str])
    assert_type(report["A"], TaskReport)
    assert_type(report["A"].execute, PhaseReport)
    assert_type(report["A"].execute.state, State)
    assert_type(report["A"].execute.value, Any)
    assert_type(report.ok, bool)
    assert_type(report.failures, tuple[TaskFailure, ...])
    assert_type(report.duration, float | None)
    assert_type(report.counts, dict[State, int])
    report["A"] = report["B"]  # type: ignore[index]
    await processor.process_tasks(Other())  # type: ignore[arg-type]
    AsyncTaskProcessor.builder().add_task(one, "1")  # type: ignore[arg-type]
    AsyncTaskProcessor.builder().add_task("A", 1)  # type: ignore[arg-type]


async def processors_of_a_context() -> None:
    one = task("A", execute=task_func(load))
    processor = (
        AsyncTaskProcessor[Context].builder().add_task(one, 1).add_task(join("B"), 2).build()
    )
    assert_type(processor, AsyncTaskProcessor[Context, Any])
    await processor.process_tasks(Context())
    await processor.process_tasks("wrong")  # type: ignore[arg-type]
    await processor.process_tasks(None)  # type: ignore[arg-type]
    processor.open("wrong")  # type: ignore[arg-type]
    other = task("C", execute=task_func(load_other))
    AsyncTaskProcessor[Context].builder().add_task(other, 1)  # type: ignore[arg-type]
    bare = task("D", execute=load_other)
    AsyncTaskProcessor[Context].builder().add_task(bare, 1)  # type: ignore[arg-type]
    AsyncTaskProcessor[Context].builder(execute_order="level")
    AsyncTaskProcessor[Context].builder(execute_order="dependency")  # type: ignore[arg-type]


async def processors_of_a_context_and_a_key() -> None:
    one = task("A", execute=task_func(load))
    builder = AsyncTaskProcessor[Context, str].builder(max_concurrency=5)
    assert_type(builder, AsyncTaskProcessorBuilder[Context, str])
    assert_type(builder.add_task(one, 1).build(), AsyncTaskProcessor[Context, str])
    elevator = AsyncTaskProcessor[Context, str].elevator_builder()
    assert_type(elevator, AsyncTaskProcessorBuilder[Context, str])
    builder.add_task(task("B", execute=task_func(load_other)), 1)  # type: ignore[arg-type]
    builder.add_task(task(5, execute=task_func(load)), 1)  # type: ignore[arg-type]
    builder.add_task(one, depends_on=("B",))  # type: ignore[call-arg]
    AsyncTaskProcessor[Context, str].builder(max_concurrency="5")  # type: ignore[arg-type]


async def graphs() -> None:
    one = task("A", execute=task_func(load))
    of_context = AsyncDagTaskProcessor[Context].builder()
    assert_type(of_context.add_task(one).build(), AsyncDagTaskProcessor[Context, Any])
    of_context.add_task(task("B", execute=task_func(load_other)))  # type: ignore[arg-type]

    builder = AsyncDagTaskProcessor[Context, str].builder(execute_order="dependency")
    assert_type(builder, AsyncDagTaskProcessorBuilder[Context, str])
    by_other_name = AsyncTaskProcessor[Context, str].graph_builder(max_concurrency=5)
    assert_type(by_other_name, AsyncDagTaskProcessorBuilder[Context, str])
    processor = builder.add_task(one).add_task(join("B"), depends_on=["A"]).build()
    assert_type(processor, AsyncDagTaskProcessor[Context, str])
    assert_type(processor.tasks["A"], AsyncTask[Context, str])
    assert_type(processor.dependencies["B"], tuple[str, ...])
    assert_type(processor.to_mermaid(), str)
    assert_type(await processor.process_tasks(Context()), RunReport[str])

    builder.add_task(task("C", execute=task_func(load_other)))  # type: ignore[arg-type]
    builder.add_task(task(5, execute=task_func(load)))  # type: ignore[arg-type]
    builder.add_task(join("D"), depends_on=(5,))  # type: ignore[arg-type]
    builder.add_task(join("D"), depends_on=5)  # type: ignore[arg-type]
    builder.add_task(join("D"), level=1)  # type: ignore[call-arg]
    builder.add_task("D")  # type: ignore[arg-type]
    processor.tasks["A"] = one  # type: ignore[index]
    await processor.process_tasks(Other())  # type: ignore[arg-type]
    AsyncDagTaskProcessor[Context].builder(execute_order="levels")  # type: ignore[arg-type]


async def phases(processor: AsyncDagTaskProcessor[Context, str]) -> None:
    async with processor.open(Context()) as run:
        assert_type(run, AsyncPhaseRunner[Context, str])
        assert_type(run.ctx, Context)
        assert_type(await run.run_next(), bool)
        assert_type(run.next_phase_id(), PhaseId | None)
        assert_type(run.last_phase_id(), PhaseId | None)
        assert_type(run.failures(), list[Exception])
    processor.open(Other())  # type: ignore[arg-type]


def values(report: RunReport[str]) -> None:
    number: PhaseReport[int] = report["A"].execute
    assert_type(number.value, int)
    assert_type(report["A"].execute, PhaseReport[Any])
    wrong: PhaseReport[str] = number  # type: ignore[assignment]
    print(wrong)


def helper_of_a_users_own(
    function: Callable[[Context], Awaitable[Any]], **limits: Unpack[Limits[Context]]
) -> TaskFunction[Context]:
    limits.setdefault("timeout", 2.0)
    limits.setdefault("time_out", 2.0)  # type: ignore[typeddict-item]
    return task_func(function, **limits)


def helper_for_any_context(
    function: Callable[[Context], Awaitable[Any]], **limits: Unpack[Limits]
) -> TaskFunction[Context]:
    return task_func(function, **limits)


def cover(ctx: Context, error: Exception) -> int:
    return 1


async def cover_later(ctx: Context, error: Exception) -> int:
    return 1


def cover_other(ctx: Other, error: Exception) -> int:
    return 1


def limits_over_all_attempts(semaphore: asyncio.Semaphore, budget: RetryBudget) -> None:
    assert_type(
        TaskFunction(load, total_timeout=5, limiter=semaphore, retry_budget=budget, fallback=cover),
        TaskFunction[Context],
    )
    assert_type(
        task_func(load, fallback=cover_later, fallback_exceptions=OSError), TaskFunction[Context]
    )
    assert_type(task_func(load, fallback=lambda ctx, error: None), TaskFunction[Context])
    assert_type(task_func(load, limiter=lambda ctx: semaphore), TaskFunction[Context])
    assert_type(task_func(load, retry_after=retry_after), TaskFunction[Context])
    task_func(load, retry_after=5)  # type: ignore[call-overload]
    task_func(load, limiter=5)  # type: ignore[call-overload]
    task_func(load, fallback=load)  # type: ignore[arg-type]
    task_func(load, retry_budget=0.2)  # type: ignore[call-overload]
    TaskFunction[Context](load, fallback=cover_other)  # type: ignore[arg-type]
    raise RetryableException("busy", retry_after=2.0)


async def groups(processor: AsyncTaskProcessor[Context, str]) -> None:
    try:
        await processor.process_tasks(Context())
    except* ConnectionError as group:
        print(group.failures)  # type: ignore[attr-defined]
        assert isinstance(group, SdaxExecutionError)
        assert_type(group.failures, tuple[TaskFailure, ...])
        assert_type(group.report, RunReport[Any])


async def errors(processor: AsyncTaskProcessor[Context, str]) -> None:
    try:
        await processor.process_tasks(Context())
    except SdaxExecutionError as error:
        assert_type(error.failures, tuple[TaskFailure, ...])
        assert_type(error.failures[0].exception, Exception)
        assert_type(error.leaf_exceptions(), list[BaseException])
        assert_type(flatten_exceptions(error), list[BaseException])
        assert_type(error.report, RunReport[Any])
        assert_type(error.report["A"], TaskReport)
        assert_type(error.first(ValueError), ValueError | None)
        matched, rest = error.split(ConnectionError)
        assert_type(matched, SdaxExecutionError | None)
        assert_type(rest, SdaxExecutionError | None)
        assert_type(error.subgroup((OSError, KeyError)), SdaxExecutionError | None)
        assert_type(error.subgroup(lambda each: bool(each.args)), SdaxExecutionError | None)
        error.first(5)  # type: ignore[arg-type]
        error.first(int)  # type: ignore[type-var]


def stubs(levels: AsyncTaskProcessor[Context, str], graph: AsyncDagTaskProcessor[Context]) -> None:
    assert_type(levels.replaced({"User": load}), AsyncTaskProcessor[Context, str])
    assert_type(graph.replaced({"User": Done(7)}), AsyncDagTaskProcessor[Context])
    levels.replaced({"User": {"pre_execute": load, "execute": task_func(load)}})
    levels.replaced({"User": task("User", execute=task_func(load))})
    levels.replaced({7: load})  # type: ignore[dict-item]
    levels.replaced({"User": 7})  # type: ignore[dict-item]
    assert_type(disturbed(levels, "User.execute#1@1:fail"), AsyncTaskProcessor[Context, str])


async def look_up(ctx: Context) -> Finish[int] | None:
    return Finish(ctx.user) if ctx.user else None


def not_needed(report: RunReport[str]) -> None:
    assert_type(report.finished_by, str | None)
    assert_type(Finish(7), Finish[int])
    assert_type(Finish("x").value, str)
    maybe = task("Cache", pre_execute=look_up, required=False)
    assert_type(maybe, AsyncTask[Context, str])
    assert_type(maybe.required, bool)
    AsyncTask("Cache", execute=task_func(look_up), required=False)
    task("Cache", execute=load, required="no")  # type: ignore[arg-type]
    levels = AsyncTaskProcessor[Context, str].builder(on_failure="keep going").build()
    graph = AsyncDagTaskProcessor[Context, str].builder(on_failure="cancel").build()
    assert levels.on_failure == "keep going" or graph.on_failure == "cancel"
    AsyncTaskProcessor[Context].builder(on_failure="ignore")  # type: ignore[arg-type]


async def make_context() -> Context:
    return Context()


@asynccontextmanager
async def open_context() -> AsyncGenerator[Context, None]:
    yield Context()


async def check_later(explored: ExploredRun[Context]) -> bool:
    return explored.context.user == 0


def explored(levels: AsyncTaskProcessor[Context, str]) -> None:
    found = explore(levels, context=Context, check=lambda run: run.context.user == 0)
    assert_type(found, Exploration)
    assert_type(found.schedules, int)
    explore(levels, context=make_context, check=check_later, clock="real", max_schedules=7)
    explore(levels, context=open_context, check=lambda run: None, faults=["cancel"])
    for finding in explorations(levels, context=Context, check=check_later, disturbances=2):
        assert_type(finding, ScheduleFailed)
    explore(levels, context=Context, check=check_later, clock="sundial")  # type: ignore[arg-type]
    explore(levels, context=Other, check=check_later)  # type: ignore[arg-type]
    assert_type(run(make_context()), Context)
    run(make_context)  # type: ignore[arg-type]


@dataclass
class Item:
    number: int


def context_of(item: Item) -> Context:
    return Context(item.number)


async def context_later(item: Item) -> Context:
    return Context(item.number)


def context_with(item: Item, pool: list[str]) -> Context:
    return Context(item.number)


@asynccontextmanager
async def open_pool() -> AsyncGenerator[list[str], None]:
    yield []


def user_of(ctx: Context, report: RunReport[str]) -> int:
    return ctx.user


async def many(processor: AsyncTaskProcessor[Context, str], items: list[Item]) -> None:
    async with run_many(processor, [Context()]) as reports:
        async for outcome in reports:
            assert_type(outcome, Outcome[Context, RunReport[str]])
            assert_type(outcome.result(), RunReport[str])
    async with run_many(processor, items, make_context=context_of, pick=user_of) as users:
        async for picked in users:
            assert_type(picked.item, Item)
            assert_type(picked.value, int)
            assert_type(picked.error, Exception | None)
    async with run_many(processor, items, make_context=context_later) as later:
        assert_type(await anext(later), Outcome[Item, RunReport[str]])
    async with run_many(
        processor, items, make_context=context_with, resources=open_pool, pick=user_of
    ) as pooled:
        assert_type(await anext(pooled), Outcome[Item, int])
    run_many(processor, items)  # type: ignore[misc]
    run_many(processor, [Context()], limit=3)  # type: ignore[call-overload]


def many_with_options(
    processor: AsyncTaskProcessor[Context], items: list[Item], **options: Unpack[ManyOptions]
) -> Outcomes[Item, int]:
    options.setdefault("concurrency", 7)
    return run_many(processor, items, make_context=context_of, pick=user_of, **options)
