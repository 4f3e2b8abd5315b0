"""Functions with a task group of their own: a new one for each attempt."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from attempts import now, virtual_clock
from helpers import Broken, Trace, build, failure_of, forever, solo, task
from sdax import RetryableException, TaskFunction

pytestmark = pytest.mark.usefixtures("factors")


@virtual_clock
async def test_each_attempt_has_a_task_group_of_its_own() -> None:
    groups: list[Any] = []

    async def function(ctx: Any, group: Any) -> Any:
        groups.append(group)
        child = group.create_task(asyncio.sleep(1, "child"))
        if len(groups) == 1:
            raise RetryableException
        return await child

    report = await solo(
        TaskFunction(function, retries=1, has_task_group_argument=True)
    ).process_tasks("context")
    assert report["A"].pre_execute == ("succeeded", 2, "child", None)
    assert len(set(map(id, groups))) == 2
    assert all(isinstance(group, asyncio.TaskGroup) for group in groups)


@virtual_clock
async def test_children_are_awaited_before_an_attempt_ends() -> None:
    trace = Trace()

    async def child() -> None:
        await asyncio.sleep(3)
        trace.append("child")

    async def function(ctx: Any, group: Any) -> None:
        assert ctx == "context"
        group.create_task(child())

    await build(
        [task("A", TaskFunction(function, has_task_group_argument=True))],
        [task("B", trace.quick("B"))],
    ).process_tasks("context")
    assert trace == ["child", "B"]


@virtual_clock
async def test_a_failing_child_fails_the_attempt() -> None:
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


@virtual_clock
async def test_children_are_cancelled_with_their_attempt() -> None:
    trace = Trace()

    async def function(ctx: Any, group: Any) -> None:
        group.create_task(trace.waiting("child")(None))

    error = await failure_of(solo(TaskFunction(function, timeout=2, has_task_group_argument=True)))
    assert type(error.exceptions[0]) is TimeoutError
    assert trace == ["child", "child cancelled"]


@virtual_clock
async def test_a_child_that_fails_retryably_is_retried_by_the_leaves() -> None:
    calls: list[float] = []

    async def fail() -> None:
        raise ConnectionError

    async def function(ctx: Any, group: Any) -> None:
        calls.append(now())
        if len(calls) < 3:
            group.create_task(fail())

    await solo(TaskFunction(function, retries=2, has_task_group_argument=True)).process_tasks(None)
    assert calls == [0, 1, 3]
