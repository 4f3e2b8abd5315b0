"""Exploring workflows that go on after failures, or end early."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from helpers import build, failure_of, graph, task
from sdax import Finish, TaskFunction
from sdax.testing import disturbed, explore, run


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.getLogger("sdax").disabled = True
    yield
    logging.getLogger("sdax").disabled = False


class Shop:
    """A context whose connections must all be closed."""

    def __init__(self) -> None:
        self.opened: list[str] = []


def member(name: str, **options: Any) -> Any:
    async def acquire(ctx: Shop) -> None:
        await asyncio.sleep(1)
        ctx.opened.append(name)

    async def work(ctx: Shop) -> Any:
        await asyncio.sleep(1)
        return Finish(name) if name == "finishes" else None

    async def release(ctx: Shop) -> None:
        if name in ctx.opened:
            ctx.opened.remove(name)

    functions = (TaskFunction(function, timeout=5.0) for function in (acquire, work))
    return task(name, *functions, release, **options)


def spared() -> Any:
    return build([member("A", required=False), member("B")], [member("C")])


def kept_going() -> Any:
    added = [member("A"), member("B"), (member("C"), ["A"]), (member("D"), ["A", "B"])]
    return graph(*added, on_failure="keep going")


def finished() -> Any:
    return build([member("A"), member("finishes")], [member("C")])


def everything_is_closed(explored: Any) -> bool:
    return explored.context.opened == []


@pytest.mark.parametrize("make", [spared, kept_going, finished])
def test_it_finds_nothing_in_what_is_right(make: Any, engine: Any) -> None:
    exploration = explore(make(), context=Shop, check=everything_is_closed)
    assert exploration.schedules > 20


def test_a_disturbed_task_that_is_not_required(engine: Any) -> None:
    report = run(disturbed(spared(), "A.pre_execute#1@1:fail always").process_tasks(Shop()))
    assert not report.ok and report["C"].execute.state == "succeeded"


def test_a_disturbed_run_that_keeps_going(engine: Any) -> None:
    down = disturbed(kept_going(), "A.pre_execute#1@1:fail always")
    error = run(failure_of(down, Shop()))
    assert error.report["B"].execute.state == "succeeded"
    assert error.report["C"].pre_execute.state == "skipped"
