"""Retry budgets: how many retries so many first attempts pay for, and for how long."""

from __future__ import annotations

import copy
import math
import pickle
import threading
import time
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdax import RetryBudget


class Clock:
    """Says what it is told to say."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def budget_of(ratio: float, min_per_second: float, ttl: float = 10.0) -> tuple[RetryBudget, Clock]:
    clock = Clock()
    return RetryBudget(ratio, min_per_second, ttl, clock=clock), clock


def withdrawn(budget: RetryBudget, tries: int = 1000) -> int:
    """Withdraw as often as is allowed, and say how often that was."""
    return sum(budget.try_withdraw() for _ in range(tries))


def deposit(budget: RetryBudget, number: int) -> None:
    for _ in range(number):
        budget.deposit()


def test_the_defaults() -> None:
    budget = RetryBudget()
    assert (budget.ratio, budget.min_per_second, budget.ttl) == (0.2, 10.0, 10.0)
    assert budget.clock is time.monotonic
    assert repr(budget) == "RetryBudget(ratio=0.2, min_per_second=10.0, ttl=10.0)"


@pytest.mark.parametrize(
    ("ratio", "attempts", "retries"),
    [
        (0.2, 100, 20),
        (0.2, 4, 0),
        (0.1, 10, 1),
        (1 / 3, 3, 1),
        (0.7, 10, 7),
        (2.0, 5, 10),
        (0, 9, 0),
    ],
)
def test_first_attempts_pay_for_retries(ratio: float, attempts: int, retries: int) -> None:
    budget, _ = budget_of(ratio, 0)
    assert withdrawn(budget) == 0
    deposit(budget, attempts)
    assert budget.balance == pytest.approx(ratio * attempts)
    assert withdrawn(budget) == retries
    assert not budget.try_withdraw()
    assert budget.balance < 1


def test_what_is_allowed_in_any_case() -> None:
    budget, clock = budget_of(0, 10)
    assert budget.balance == 100
    assert withdrawn(budget) == 100
    clock.now += 9  # in tenths of the ten seconds, the last of which is under way
    assert withdrawn(budget) == 0
    clock.now += 1
    assert withdrawn(budget) == 100
    budget, clock = budget_of(0, 0.5)
    assert withdrawn(budget) == 5


def test_both_together() -> None:
    budget, _ = budget_of(0.5, 1)
    deposit(budget, 6)
    assert withdrawn(budget) == 13


def test_what_is_given_back() -> None:
    budget, clock = budget_of(0, 0.3)
    assert withdrawn(budget) == 3
    clock.now += 5
    budget.give_back()
    assert withdrawn(budget) == 1
    clock.now += 9  # that one still counts
    assert withdrawn(budget) == 2
    clock.now += 100
    budget.give_back()  # nothing that still counts
    assert withdrawn(budget) == 3


def test_deposits_expire() -> None:
    budget, clock = budget_of(1, 0)
    for _ in range(10):
        deposit(budget, 2)
        clock.now += 1
    assert budget.balance == 18  # what was deposited ten seconds ago counts no more
    clock.now += 4
    assert budget.balance == 10
    clock.now += 100
    assert budget.balance == 0


def test_a_withdrawal_counts_as_long_as_a_deposit() -> None:
    budget, clock = budget_of(1, 0)
    deposit(budget, 5)
    clock.now += 6
    assert withdrawn(budget) == 5
    clock.now += 6  # what was deposited has expired, what was withdrawn has not
    deposit(budget, 3)
    assert withdrawn(budget) == 0
    assert budget.balance == 0
    clock.now += 6
    assert withdrawn(budget) == 3


def test_a_clock_that_goes_backwards() -> None:
    budget, clock = budget_of(1, 0)
    deposit(budget, 1)
    clock.now -= 500
    deposit(budget, 1)
    assert withdrawn(budget) == 2


def test_one_retry_is_given_back_at_a_time() -> None:
    budget, clock = budget_of(1, 0)
    deposit(budget, 3)
    assert budget.try_withdraw()
    clock.now += budget.ttl / 2
    assert budget.try_withdraw()
    budget.give_back()
    assert budget.balance == 2


def test_a_thread_that_read_the_clock_earlier() -> None:
    budget, clock = budget_of(1, 0)
    deposit(budget, 1)
    clock.now -= 500
    deposit(budget, 1)
    clock.now += 500
    assert withdrawn(budget) == 2


class Model:
    """The same, in the simplest way: a list of what was done, and when."""

    def __init__(self, ratio: int, min_per_second: int, ttl: int) -> None:
        self.ratio, self.reserve, self.ttl = ratio, min_per_second * ttl, ttl
        self.done: list[tuple[int, int]] = []

    def left(self, now: int) -> int:
        slices = [(math.floor((now * 10) / self.ttl) - at, change) for at, change in self.done]
        return self.reserve + sum(change for age, change in slices if age < 10)

    def add(self, now: int, change: int) -> None:
        self.done.append((math.floor((now * 10) / self.ttl), change))


STEPS = st.lists(st.sampled_from(["deposit", "withdraw", 1, 3, 20]), max_size=60)


@settings(deadline=None, database=None, derandomize=True)
@given(st.sampled_from([0, 1, 2]), st.integers(0, 2), st.sampled_from([1, 10, 20]), STEPS)
def test_as_the_model_says(ratio: int, min_per_second: int, ttl: int, steps: Any) -> None:
    clock = Clock()
    clock.now = 0
    budget = RetryBudget(ratio, min_per_second, ttl, clock=clock)
    model = Model(ratio, min_per_second, ttl)
    for step in steps:
        now = int(clock.now)
        if step == "deposit":
            budget.deposit()
            model.add(now, ratio)
        elif step == "withdraw":
            allowed = model.left(now) >= 1
            assert budget.try_withdraw() is allowed
            model.add(now, -allowed)
        else:
            clock.now += step
        assert budget.balance == max(0, model.left(int(clock.now)))


def test_threads_share_it() -> None:
    budget, _ = budget_of(0.5, 0)
    allowed: list[int] = []
    threads = 8
    begin = threading.Barrier(threads)

    def work() -> None:
        begin.wait(60)
        deposit(budget, 1000)
        begin.wait(60)
        allowed.append(withdrawn(budget, 2000))

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert sum(allowed) == threads * 500
    assert not budget.try_withdraw()


def pickled(budget: RetryBudget) -> RetryBudget:
    return pickle.loads(pickle.dumps(budget))  # type: ignore[no-any-return]


@pytest.mark.parametrize("make", [pickled, copy.copy, copy.deepcopy])
def test_a_copy_is_a_budget_of_its_own(make: Callable[[RetryBudget], RetryBudget]) -> None:
    budget = RetryBudget(0.5, 1, 2)
    assert withdrawn(budget) == 2
    again = make(budget)
    assert repr(again) == repr(budget)
    assert again.clock is budget.clock
    assert withdrawn(again) == 2
    assert again != budget


def test_what_shared_a_budget_shares_one_after_pickle() -> None:
    budget = RetryBudget()
    one, other = pickle.loads(pickle.dumps((budget, budget)))
    assert one is other


def test_a_budget_equals_itself_alone() -> None:
    budget = RetryBudget()
    assert budget == budget
    assert budget != RetryBudget()
    assert len({budget, RetryBudget()}) == 2


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        RetryBudget().ratio = 5  # type: ignore[misc]


@pytest.mark.parametrize("field", ["ratio", "min_per_second", "ttl"])
@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (-1, ValueError, "must be finite and not negative, got -1"),
        (math.nan, ValueError, "must be finite and not negative, got nan"),
        (math.inf, ValueError, "must be finite and not negative, got inf"),
        ("1", TypeError, "must be a number, got '1'"),
        (True, TypeError, "must be a number, got True"),
        (None, TypeError, "must be a number, got None"),
    ],
)
def test_settings_that_cannot_work(
    field: str, value: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"RetryBudget.{field} {message}"):
        RetryBudget(**{field: value})


def test_other_settings_that_cannot_work() -> None:
    with pytest.raises(ValueError, match=r"RetryBudget.ttl must be greater than 0, got 0\.0"):
        RetryBudget(ttl=0.0)
    with pytest.raises(TypeError, match=r"RetryBudget.clock must be a function .*, got 5"):
        RetryBudget(clock=5)  # type: ignore[arg-type]


@pytest.mark.parametrize("setting", [5e-324, 1e308, 10**300])
def test_extreme_settings(setting: float) -> None:
    budget, clock = budget_of(setting, setting, setting)
    deposit(budget, 100)
    clock.now += 1e300
    assert budget.try_withdraw() is (setting > 1)
    assert budget.balance >= 0
