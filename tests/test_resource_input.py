"""What `resource` and the helpers for outcomes take, and what they refuse."""

from __future__ import annotations

import asyncio
import contextlib
import pickle
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from helpers import nothing
from sdax import (
    AsyncTask,
    TaskFunction,
    resource,
    task,
    task_func,
    task_outcome_func,
    task_sync_func,
    task_thread_func,
)

TWO_FORMS = (
    "an async generator function that yields once (async def ... yield), or a function of the "
    "context that returns an async context manager"
)


async def held(ctx: Any) -> AsyncIterator[None]:
    yield


@contextlib.asynccontextmanager
async def managed(ctx: Any) -> AsyncIterator[None]:
    yield


class Manager:
    def __init__(self, ctx: Any) -> None:
        self.ctx = ctx

    async def __aenter__(self) -> None:
        pass

    async def __aexit__(self, *error: object) -> None:
        pass


class Generating:
    async def __call__(self, ctx: Any) -> AsyncIterator[None]:
        yield


@pytest.mark.parametrize("function", [held, managed, Manager, Generating(), partial(held)])
def test_it_takes_two_forms(function: Any) -> None:
    made = resource("Database", function)
    assert type(made) is AsyncTask
    assert made.name == "Database"
    assert made.execute is None
    assert made.pre_execute is not None
    assert made.post_execute is not None


def test_limits_are_those_of_the_set_up() -> None:
    made = resource("A", held, execute=nothing, cleanup_timeout=5, timeout=2.0, retries=3)
    assert made.pre_execute is not None
    assert made.post_execute is not None
    assert (made.pre_execute.timeout, made.pre_execute.retries) == (2.0, 3)
    assert (made.post_execute.timeout, made.post_execute.retries) == (5, 0)
    assert made.execute == TaskFunction(nothing)


def a_generator(ctx: Any) -> Iterator[None]:
    yield


@pytest.mark.parametrize(
    ("function", "hint"),
    [
        (5, "got 5"),
        (None, "got None"),
        (nothing, "which has no 'yield'; yield what it has set up, or use it as a pre_execute"),
        (a_generator, "define it with 'async def'"),
        (contextlib.nullcontext(), "pass a function that makes it, such as lambda ctx: ..."),
        (held(None), "pass a function that makes it, such as lambda ctx: ..."),
    ],
)
def test_other_functions_are_refused(function: Any, hint: str) -> None:
    with pytest.raises(TypeError, match=re.escape(TWO_FORMS)) as caught:
        resource("Database", function)
    assert "resource 'Database'" in str(caught.value)
    assert str(caught.value).endswith(hint)


class Later:
    def __await__(self) -> Iterator[None]:
        yield


@pytest.mark.parametrize("make", [lambda: nothing(None), Later], ids=["coroutine", "awaitable"])
def test_a_coroutine_in_place_of_its_function(make: Any) -> None:
    with pytest.raises(TypeError, match="pass the function itself, without calling it"):
        resource("A", make())


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf")])
def test_a_cleanup_timeout_that_cannot_be(seconds: float) -> None:
    with pytest.raises(ValueError, match=f"cleanup_timeout of resource 'A' .* got {seconds}"):
        resource("A", held, cleanup_timeout=seconds)
    with pytest.raises(TypeError, match="cleanup_timeout of resource 'A' must be a number"):
        resource("A", held, cleanup_timeout="5")  # type: ignore[arg-type]


@pytest.mark.parametrize("helper", [TaskFunction, task_func, task_sync_func, task_thread_func])
@pytest.mark.parametrize("function", [held, a_generator])
def test_a_generator_function_elsewhere_is_told_of_resource(helper: Any, function: Any) -> None:
    with pytest.raises(TypeError, match=re.escape("resource(name, function)")):
        helper(function)
    with pytest.raises(TypeError, match=re.escape("resource(name, function)")):
        task("A", execute=function)


def test_half_a_resource_is_refused() -> None:
    made = resource("A", held, execute=nothing)
    other = resource("B", managed)
    for phases in (
        {"pre_execute": made.pre_execute},
        {"execute": made.pre_execute},
        {"post_execute": made.post_execute},
        {"pre_execute": made.pre_execute, "post_execute": nothing},
        {"pre_execute": made.pre_execute, "post_execute": other.post_execute},
        {"pre_execute": made.post_execute, "post_execute": made.pre_execute},
    ):
        with pytest.raises(ValueError, match=r"make the task with resource\('C', ...\)"):
            task("C", **phases)  # type: ignore[arg-type]
    assert replace(made, execute=None) == resource("A", held)


def test_it_is_a_value() -> None:
    made = resource("A", held, execute=nothing, timeout=1.0)
    assert made == resource("A", held, execute=nothing, timeout=1.0)
    assert hash(made) == hash(resource("A", held, execute=nothing, timeout=1.0))
    assert made != resource("A", managed, execute=nothing, timeout=1.0)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(made, protocol)) == made


def test_its_halves_are_called_by_runs_alone() -> None:
    made: Any = resource("A", held)
    with pytest.raises(TypeError, match="only a run can set up a resource"):
        made.pre_execute.function(None)
    with pytest.raises(TypeError, match="only a run can clean up a resource"):
        made.post_execute.function(None)


async def finish(ctx: Any, outcome: Any) -> None:
    pass


def test_a_function_of_the_outcome() -> None:
    made = task_outcome_func(finish, timeout=5.0)
    assert made == task_func(finish, has_outcome_argument=True, timeout=5.0)
    assert made == TaskFunction(finish, timeout=5.0, has_outcome_argument=True)
    assert task("A", post_execute=made).post_execute is made


@pytest.mark.parametrize("phase", ["pre_execute", "execute"])
def test_there_is_no_outcome_before_the_cleanup(phase: str) -> None:
    with pytest.raises(ValueError, match=f"{phase} of task 'A' cannot take the outcome"):
        task("A", **{phase: task_outcome_func(finish)})  # type: ignore[arg-type]


def test_a_function_takes_a_group_or_the_outcome() -> None:
    with pytest.raises(ValueError, match="a task group or the outcome, and not both"):
        TaskFunction(finish, has_task_group_argument=True, has_outcome_argument=True)
    with pytest.raises(TypeError, match="has_outcome_argument must be a bool, got 1"):
        TaskFunction(finish, has_outcome_argument=1)  # type: ignore[arg-type]


@pytest.mark.parametrize("limit", ["limiter", "fallback"])
def test_limits_that_need_a_function_which_ends(limit: str) -> None:
    given: Any = {limit: finish if limit == "fallback" else asyncio.Semaphore(1)}
    with pytest.raises(ValueError, match=f"resource 'A' takes no {limit}; "):
        resource("A", held, **given)
