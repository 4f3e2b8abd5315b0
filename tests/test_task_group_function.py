"""Functions with a task group of their own: a new one for each attempt."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from attempts import virtual_clock
from helpers import (
    PHASES,
    Broken,
    Trace,
    build,
    error_of,
    failure_of,
    forever,
    nothing,
    solo,
    spawn,
    states,
    task_in,
    until,
)
from sdax import RetryableException, SdaxTaskGroup, TaskFunction, task, task_func, task_group_func


async def test_the_group_is_an_asyncio_one_of_our_type() -> None:
    seen = []

    async def look(ctx: Any, group: SdaxTaskGroup) -> str:
        seen.append(group)
        return "value"

    report = await solo(execute=task_group_func(look)).process_tasks(None)
    assert type(seen[0]) is SdaxTaskGroup
    assert isinstance(seen[0], asyncio.TaskGroup)
    assert report["A"].execute.value == "value"


async def test_each_attempt_has_a_new_group() -> None:
    groups = []

    async def flaky(ctx: Any, group: SdaxTaskGroup) -> None:
        groups.append(group)
        if len(groups) < 3:
            raise ConnectionError

    function = task_group_func(flaky, retries=2, initial_delay=0)
    report = await solo(execute=function).process_tasks(None)
    assert len({id(group) for group in groups}) == 3
    assert report["A"].execute.attempts == 3


@pytest.mark.parametrize("phase", PHASES)
async def test_what_is_created_in_the_group_is_awaited_before_the_attempt_ends(phase: str) -> None:
    trace = Trace()

    async def fan_out(ctx: Any, group: SdaxTaskGroup) -> None:
        trace.append("call")
        for n in range(3):
            group.create_task(trace.pausing(f"child {n}", n)(ctx))
        trace.append("return")

    processor = build([task_in(phase, task_group_func(fan_out))])
    after = task("Z", **{phase: task_func(trace.quick("next level"))})
    if phase == "pre_execute":
        processor = build([task_in(phase, task_group_func(fan_out))], [after])
    elif phase == "post_execute":
        processor = build([after], [task_in(phase, task_group_func(fan_out))])
    await processor.process_tasks(None)
    assert {f"child {n} done" for n in range(3)} <= {*trace}
    if phase != "execute":
        assert trace[-1] == "next level"


async def test_a_failed_child_fails_the_attempt() -> None:
    trace = Trace()
    error = ValueError("mine")

    async def fan_out(ctx: Any, group: SdaxTaskGroup) -> None:
        group.create_task(trace.failing("fails", error, 1)(ctx))
        group.create_task(trace.waiting("waits")(ctx))

    caught = await failure_of(solo(execute=task_group_func(fan_out)))
    (member,) = caught.exceptions
    assert isinstance(member, ExceptionGroup)
    assert member.exceptions == (error,)
    assert "waits cancelled" in trace


@virtual_clock
async def test_a_failed_child_cancels_the_function_too() -> None:
    broken = Broken()

    async def fail() -> None:
        await asyncio.sleep(1)
        raise broken

    async def function(ctx: Any, group: Any) -> None:
        group.create_task(fail())
        await forever()

    error = await failure_of(solo(TaskFunction(function, has_task_group_argument=True)))
    (member,) = error.exceptions
    assert type(member) is ExceptionGroup
    assert member.exceptions == (broken,)
    assert error.leaf_exceptions() == [broken]


async def test_a_failed_child_is_retried_like_any_failure() -> None:
    attempts = []

    async def fan_out(ctx: Any, group: SdaxTaskGroup) -> str:
        attempts.append(group)
        if len(attempts) < 3:
            group.create_task(Trace().failing("", ConnectionError(), 1)(ctx))
            group.create_task(Trace().failing("", RetryableException(), 1)(ctx))
        return "value"

    function = task_group_func(fan_out, retries=2, initial_delay=0)
    report = await solo(execute=function).process_tasks(None)
    assert report["A"].execute[:4] == ("succeeded", 3, "value", None)


async def test_a_group_with_one_failure_that_cannot_be_retried_is_not() -> None:
    attempts = []

    async def fan_out(ctx: Any, group: SdaxTaskGroup) -> None:
        attempts.append(group)
        group.create_task(Trace().failing("", ConnectionError(), 1)(ctx))
        group.create_task(Trace().failing("", ValueError(), 1)(ctx))

    await failure_of(solo(execute=task_group_func(fan_out, retries=2, initial_delay=0)))
    assert len(attempts) == 1


@pytest.mark.virtual_clock
async def test_a_timeout_cancels_what_is_in_the_group() -> None:
    trace = Trace()

    async def fan_out(ctx: Any, group: SdaxTaskGroup) -> None:
        group.create_task(trace.waiting("child")(ctx))

    function = task_group_func(fan_out, timeout=3, retries=1, initial_delay=0)
    caught = await failure_of(solo(execute=function))
    assert trace == ["child", "child cancelled"] * 2
    assert states(caught.report) == {"A": "-T-"}


@pytest.mark.parametrize("limits", [{}, {"retries": 2}, {"timeout": 5}], ids=str)
async def test_a_cancellation_cancels_what_is_in_the_group(limits: Any) -> None:
    trace = Trace()

    async def fan_out(ctx: Any, group: SdaxTaskGroup) -> None:
        group.create_task(trace.waiting("child")(ctx))
        await forever()

    run = spawn(solo(execute=task_group_func(fan_out, **limits)))
    await until(lambda: trace)
    run.cancel()
    assert isinstance(await error_of(run), asyncio.CancelledError)
    assert trace == ["child", "child cancelled"]


async def test_a_failed_sibling_cancels_what_is_in_the_group() -> None:
    trace = Trace()

    async def fan_out(ctx: Any, group: SdaxTaskGroup) -> None:
        group.create_task(trace.waiting("child")(ctx))

    processor = build(
        [
            task("A", execute=task_group_func(fan_out)),
            task("B", execute=task_func(trace.failing("B", ValueError(), 2))),
        ]
    )
    error = await failure_of(processor)
    assert "child cancelled" in trace
    assert states(error.report) == {"A": "-C-", "B": "-F-"}


async def test_a_group_is_closed_after_its_attempt() -> None:
    groups = []

    async def leak(ctx: Any, group: SdaxTaskGroup) -> None:
        groups.append(group)

    await solo(execute=task_group_func(leak)).process_tasks(None)
    late = nothing(None)
    with pytest.raises(RuntimeError):
        groups[0].create_task(late)
    late.close()
