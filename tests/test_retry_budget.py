"""Retry budgets that functions share."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from attempts import Flaky, virtual_clock
from helpers import Broken, build, error_of, failure_of, forever, nothing, solo, spawn, task
from observing import Recorder
from sdax import RetryBudget, TaskFunction
from sdax.observe import RetrySuppressed

pytestmark = pytest.mark.usefixtures("factors")


def budget_of(retries: float, ratio: float = 0.0) -> RetryBudget:
    """A budget of so many retries, and this much more for each first attempt; for ever."""
    return RetryBudget(ratio, min_per_second=retries / 1e9, ttl=1e9)


def balance(budget: RetryBudget) -> float:
    return round(budget.balance, 6)


@virtual_clock
async def test_functions_and_runs_share_it() -> None:
    budget = budget_of(3)
    flaky = [Flaky(ConnectionError(), ConnectionError()) for _ in range(2)]
    functions = [TaskFunction(each, retries=2, retry_budget=budget) for each in flaky]
    events = Recorder()
    processor = build([task("A", functions[0])], [task("B", functions[1])])
    error: Any = await error_of(processor.process_tasks(None, observer=events))
    assert [len(each.calls) for each in flaky] == [3, 2]
    (failure,) = error.exceptions
    assert "no further attempt: its retry budget is spent" in failure.__notes__
    (suppressed,) = (event for event in events if isinstance(event, RetrySuppressed))
    assert (suppressed.task.name, suppressed.attempt) == ("B", 2)
    assert (suppressed.reason, suppressed.exception) == ("its retry budget is spent", failure)
    # The next run has none left either.
    again = Flaky(ConnectionError())
    await failure_of(solo(TaskFunction(again, retries=2, retry_budget=budget)))
    assert len(again.calls) == 1


async def test_first_attempts_deposit() -> None:
    budget = budget_of(0, ratio=0.5)
    plain = TaskFunction(nothing, retry_budget=budget)
    await build([task("A", plain), task("B", plain, plain)]).process_tasks(None)
    assert balance(budget) == 1.5
    # A failure is an attempt as well.
    await failure_of(solo(TaskFunction(Flaky(Broken()), retry_budget=budget)))
    assert balance(budget) == 2
    flaky = Flaky(ConnectionError())
    await solo(TaskFunction(flaky, retries=1, initial_delay=0, retry_budget=budget)).process_tasks(
        None
    )
    assert balance(budget) == 1.5  # a deposit, and a withdrawal


@pytest.mark.parametrize("limits", [{}, {"timeout": 60}])
async def test_a_cancelled_attempt_counts_for_nothing(limits: Any) -> None:
    budget = budget_of(1, ratio=1)
    run = spawn(solo(TaskFunction(forever, retries=1, retry_budget=budget, **limits)))
    await asyncio.sleep(0)
    run.cancel()
    await error_of(run)
    assert balance(budget) == 1


@virtual_clock
@pytest.mark.parametrize("wait", [50, 0])
async def test_a_retry_that_is_cancelled_is_given_back(wait: float) -> None:
    # Either in the pause before it, or while it is made.
    budget = budget_of(1)

    async def once(ctx: Any) -> None:
        if balance(budget):
            raise ConnectionError
        await forever()

    run = spawn(solo(TaskFunction(once, retries=1, initial_delay=wait, retry_budget=budget)))
    await asyncio.sleep(1)
    assert balance(budget) == 0
    run.cancel()
    await error_of(run)
    assert balance(budget) == 1


async def test_a_budget_that_is_broken() -> None:
    def clock() -> float:
        if broken:
            raise Broken
        return 0.0

    broken = False
    budget = RetryBudget(clock=clock)
    broken = True
    error = await error_of(solo(TaskFunction(nothing, retry_budget=budget)).process_tasks(None))
    assert isinstance(error, Broken)
