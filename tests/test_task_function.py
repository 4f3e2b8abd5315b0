"""What `TaskFunction` takes, and which limits it refuses."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import dataclasses
import functools
import math
import pickle
import re
import threading
import types
from typing import Any

import anyio
import pytest

from attempts import Flaky
from helpers import PHASES, nothing, solo
from sdax import (
    AsyncTask,
    Limits,
    RetryableException,
    RetryBudget,
    TaskFunction,
    task,
    task_func,
    task_group_func,
    task_sync_func,
    task_thread_func,
)


def generator(*_: Any) -> Any:
    yield


async def async_generator(*_: Any) -> Any:
    yield


def seconds(error: Exception) -> float:
    return 1.0


def half_of_a_manager(method: str) -> Any:
    return type("Half", (), {method: nothing})()


def cover(*_: Any) -> str:
    return "in its place"


async def with_group(ctx: Any, group: Any) -> None:
    """Return at once."""


async def with_outcome(ctx: Any, outcome: Any) -> None:
    """Return at once."""


@pytest.mark.parametrize(
    ("limits", "kind", "message"),
    [
        ({"timeout": -1}, ValueError, "TaskFunction.timeout must be finite .* negative, got -1"),
        ({"timeout": math.nan}, ValueError, "timeout must be finite and not negative, got nan"),
        ({"timeout": math.inf}, ValueError, "timeout must be finite and not negative, got inf"),
        ({"timeout": "5"}, TypeError, "TaskFunction.timeout must be a number, got '5'"),
        ({"timeout": True}, TypeError, "timeout must be a number, got True"),
        ({"timeout": 10**400}, ValueError, "timeout must be finite and not negative, got 1000"),
        ({"retries": -1}, ValueError, "TaskFunction.retries must not be negative, got -1"),
        ({"retries": 1.0}, TypeError, "TaskFunction.retries must be an integer, got 1.0"),
        ({"retries": True}, TypeError, "retries must be an integer, got True"),
        ({"retries": None}, TypeError, "retries must be an integer, got None"),
        ({"retries": "3"}, TypeError, "retries must be an integer, got '3'"),
        ({"initial_delay": -0.5}, ValueError, "initial_delay must be finite and not negative"),
        ({"initial_delay": math.nan}, ValueError, "initial_delay must be finite and .* got nan"),
        ({"initial_delay": math.inf}, ValueError, "initial_delay must be finite and .* got inf"),
        ({"initial_delay": None}, TypeError, "initial_delay must be a number, got None"),
        ({"backoff_factor": 0}, ValueError, "backoff_factor must be greater than 0, got 0"),
        ({"backoff_factor": -0.0}, ValueError, "backoff_factor must be greater than 0, got -0.0"),
        ({"backoff_factor": -2}, ValueError, "TaskFunction.backoff_factor must be .* got -2"),
        ({"backoff_factor": math.nan}, ValueError, "TaskFunction.backoff_factor must .* got nan"),
        ({"backoff_factor": math.inf}, ValueError, "TaskFunction.backoff_factor .* got inf"),
        ({"backoff_factor": 2j}, TypeError, "backoff_factor must be a number, got 2j"),
        ({"max_delay": -1}, ValueError, "TaskFunction.max_delay must be finite .* got -1"),
        ({"max_delay": math.nan}, ValueError, "max_delay must be finite .* got nan"),
        ({"max_delay": math.inf}, ValueError, "max_delay must be finite .* got inf"),
        ({"max_delay": []}, TypeError, r"max_delay must be a number, got \[\]"),
        (
            {"retries": 1, "retryable_exceptions": ()},
            ValueError,
            "TaskFunction.retryable_exceptions is empty, so retries=1 could never happen",
        ),
        (
            {"retryable_exceptions": (ValueError, "KeyError")},
            TypeError,
            "retryable_exceptions must hold subclasses of Exception, got 'KeyError'",
        ),
        (
            {"retryable_exceptions": (KeyboardInterrupt,)},
            TypeError,
            "subclasses of Exception, got <class 'KeyboardInterrupt'>",
        ),
        (
            {"retryable_exceptions": asyncio.CancelledError},
            TypeError,
            "subclasses of Exception, got <class 'asyncio.exceptions.CancelledError'>",
        ),
        (
            {"retryable_exceptions": (int,)},
            TypeError,
            "subclasses of Exception, got <class 'int'>",
        ),
        ({"retryable_exceptions": None}, TypeError, "retryable_exceptions must be .* got None"),
        ({"retryable_exceptions": 5}, TypeError, "retryable_exceptions must be .* got 5"),
        (
            {"retries": 1, "retryable_exceptions": Flaky()},
            TypeError,
            "retryable_exceptions must be a plain predicate.* got <.*Flaky",
        ),
        (
            {"has_task_group_argument": 1},
            TypeError,
            "has_task_group_argument must be a bool, got 1",
        ),
        ({"total_timeout": -1}, ValueError, "total_timeout must be finite and not .* got -1"),
        ({"total_timeout": math.nan}, ValueError, "total_timeout must be finite .* got nan"),
        ({"total_timeout": math.inf}, ValueError, "total_timeout must be finite .* got inf"),
        ({"total_timeout": True}, TypeError, "total_timeout must be a number, got True"),
        (
            {"total_timeout": 0, "retries": 2},
            ValueError,
            "total_timeout is 0, so retries=2 could never happen",
        ),
        ({"retry_after": 2.0}, TypeError, "retry_after must be a function .* got 2.0"),
        ({"retry_after": nothing}, TypeError, "retry_after must be a plain function"),
        ({"limiter": half_of_a_manager("__aenter__")}, TypeError, "limiter must be an async"),
        ({"limiter": half_of_a_manager("__aexit__")}, TypeError, "limiter must be an async"),
        ({"limiter": 5}, TypeError, "limiter must be an async context manager.* got 5$"),
        (
            {"limiter": threading.Lock()},
            TypeError,
            r"limiter must be an async context .*\('async with', not 'with'\)",
        ),
        ({"limiter": nothing}, TypeError, "limiter must be .* decorate it with contextlib"),
        (
            {"limiter": contextlib.asynccontextmanager(async_generator)()},
            TypeError,
            "limiter is .*which can be entered only once; pass the function that returns it",
        ),
        ({"fallback": 0}, TypeError, "fallback must be a function .* got 0; for a fixed value"),
        ({"fallback": generator}, TypeError, "fallback must be .* without 'yield', got <function"),
        (
            {"fallback": async_generator},
            TypeError,
            "fallback must be .* without 'yield', got <function",
        ),
        (
            {"fallback_exceptions": OSError},
            ValueError,
            "fallback_exceptions is .*OSError.*, but there is no fallback; pass fallback=",
        ),
        (
            {"fallback": cover, "fallback_exceptions": "OSError"},
            TypeError,
            "fallback_exceptions must be a tuple of exception types or a predicate, got 'OSE",
        ),
        (
            {"fallback": cover, "fallback_exceptions": [KeyboardInterrupt]},
            TypeError,
            "fallback_exceptions must hold subclasses of Exception, got <class 'Keyboard",
        ),
        (
            {"fallback": cover, "fallback_exceptions": nothing},
            TypeError,
            "fallback_exceptions must be a plain predicate",
        ),
        (
            {"fallback": cover, "fallback_exceptions": ()},
            ValueError,
            "fallback could never be called, because no exception is named",
        ),
        (
            {"fallback": cover, "retryable_exceptions": ()},
            ValueError,
            "fallback could never be called, because no exception is named",
        ),
        ({"retry_budget": 0.2}, TypeError, "retry_budget must be a RetryBudget, got 0.2"),
    ],
)
def test_refused_limits(limits: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message) as caught:
        TaskFunction(nothing, **limits)
    assert type(caught.value) is kind


@pytest.mark.parametrize("function", [None, 5, "name"])
def test_a_function_must_be_callable(function: Any) -> None:
    message = f"TaskFunction.function must be callable with the context, got {function!r}"
    with pytest.raises(TypeError, match=re.escape(message)):
        TaskFunction(function)


def test_a_coroutine_in_place_of_its_function() -> None:
    # It is closed: no warning that it was never awaited, which would be an error here.
    with pytest.raises(TypeError, match="pass the function itself, without calling it"):
        TaskFunction(nothing(None))  # type: ignore[arg-type]


def test_limits_in_their_order() -> None:
    def predicate(error: Exception) -> bool:
        return True

    budget = RetryBudget()
    semaphore = asyncio.Semaphore()
    function = TaskFunction(
        with_group, 1, 2, 3, 4, predicate, True, 5, 6, seconds, semaphore, cover, OSError, budget
    )
    assert function == TaskFunction(
        function=with_group,
        timeout=1,
        retries=2,
        initial_delay=3,
        backoff_factor=4,
        retryable_exceptions=predicate,
        has_task_group_argument=True,
        max_delay=5,
        total_timeout=6,
        retry_after=seconds,
        limiter=semaphore,
        fallback=cover,
        fallback_exceptions=(OSError,),
        retry_budget=budget,
    )
    assert hash(function) != hash(TaskFunction(nothing))


def test_defaults() -> None:
    function: TaskFunction[Any] = TaskFunction(nothing)
    assert (function.timeout, function.retries, function.initial_delay) == (None, 0, 1.0)
    assert (function.backoff_factor, function.max_delay) == (2.0, None)
    assert function.retryable_exceptions == (TimeoutError, ConnectionError, RetryableException)
    assert function.has_task_group_argument is False
    assert (function.total_timeout, function.retry_after, function.limiter) == (None, None, None)
    assert (function.fallback, function.fallback_exceptions) == (None, None)
    assert function.retry_budget is None


@pytest.mark.parametrize("kinds", [[ValueError], {ValueError}, frozenset({ValueError}), ValueError])
def test_retryable_exceptions_become_a_tuple(kinds: Any) -> None:
    function: TaskFunction[Any] = TaskFunction(nothing, retryable_exceptions=kinds)
    assert function.retryable_exceptions == (ValueError,)
    hash(function)


class Unhashable(contextlib.nullcontext[None]):
    __hash__ = None  # type: ignore[assignment]


@pytest.mark.parametrize(
    "limiter",
    [
        asyncio.Semaphore(),
        anyio.CapacityLimiter(1),
        Unhashable(),
        lambda ctx: ctx.limiter,
        contextlib.asynccontextmanager(async_generator),
    ],
)
def test_limiters(limiter: Any) -> None:
    function: TaskFunction[Any] = TaskFunction(nothing, limiter=limiter)
    assert function.limiter is limiter
    assert function == TaskFunction(nothing, limiter=limiter)
    assert function != TaskFunction(nothing)
    hash(function)


@pytest.mark.parametrize("helper", [task_func, task_sync_func, task_thread_func, task_group_func])
def test_helpers_take_every_limit(helper: Any) -> None:
    limits: dict[str, Any] = {
        "timeout": 1,
        "retries": 2,
        "total_timeout": 6,
        "retry_after": seconds,
        "limiter": asyncio.Semaphore(),
        "fallback": cover,
        "fallback_exceptions": OSError,
        "retry_budget": RetryBudget(),
    }
    assert set(limits) < set(Limits.__annotations__)
    plain = helper in (task_sync_func, task_thread_func)
    called = with_group if helper is task_group_func else cover if plain else nothing
    function = helper(called, **limits)
    for field, value in {**limits, "fallback_exceptions": (OSError,)}.items():
        assert getattr(function, field) == value
    fields = {each.name for each in dataclasses.fields(TaskFunction)}
    arguments = {"has_task_group_argument", "has_outcome_argument"}
    assert fields - set(Limits.__annotations__) == {"function", *arguments}


def test_no_fallback_for_a_cleanup() -> None:
    function = TaskFunction(nothing, fallback=cover)
    task("A", pre_execute=function, execute=function)
    with pytest.raises(ValueError, match="post_execute of task 'A' must not have a fallback"):
        task("A", post_execute=function)
    with pytest.raises(
        ValueError, match="takes the outcome is a cleanup, and must not have a fallb"
    ):
        TaskFunction(with_outcome, fallback=cover, has_outcome_argument=True)


def test_what_a_fallback_covers() -> None:
    function = TaskFunction(nothing, fallback=cover)
    assert function.is_covered(ConnectionError())
    assert not function.is_covered(KeyError())
    function = TaskFunction(nothing, fallback=cover, fallback_exceptions=KeyError)
    assert not function.is_covered(ConnectionError())
    assert function.is_covered(KeyError())
    assert function.is_covered(ExceptionGroup("", [KeyError(), KeyError()]))
    assert not function.is_covered(asyncio.CancelledError())
    assert not TaskFunction(nothing).is_covered(ConnectionError())


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickle_of_limits(protocol: int) -> None:
    function = TaskFunction(
        nothing,
        retries=2,
        total_timeout=6,
        retry_after=seconds,
        fallback=cover,
        fallback_exceptions=(ConnectionError, TimeoutError),
    )
    again = pickle.loads(pickle.dumps(function, protocol))
    assert again == function
    assert hash(again) == hash(function)
    budget = RetryBudget(ratio=0.5)
    functions = [TaskFunction(nothing, retry_budget=budget), TaskFunction(nothing, 1)]
    again, plain = pickle.loads(pickle.dumps(functions, protocol))
    assert again.retry_budget.ratio == 0.5
    assert plain == TaskFunction(nothing, 1)


def test_pickle_of_an_earlier_version() -> None:
    function = TaskFunction(nothing, 1, 2)
    state = function.__getstate__()
    for field in ("total_timeout", "limiter", "fallback"):
        del state[field]
    again = object.__new__(TaskFunction)
    again.__setstate__(state)
    assert again == function


@pytest.mark.parametrize(
    ("asked", "kind"),
    [("2", TypeError), (True, TypeError), (math.nan, ValueError), ([], TypeError)],
)
def test_seconds_that_an_exception_cannot_ask_for(asked: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind, match=r"RetryableException\.retry_after must be a number"):
        RetryableException(retry_after=asked)


def test_an_exception_that_asks_to_wait() -> None:
    error = RetryableException("busy", retry_after=2)
    assert (str(error), error.args, error.retry_after) == ("busy", ("busy",), 2.0)
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert (again.args, again.retry_after) == (("busy",), 2.0)
    assert RetryableException("busy").retry_after is None
    assert RetryableException(retry_after=-1).retry_after == -1.0
    assert RetryableException(retry_after=10**400).retry_after == math.inf
    assert RetryableException(retry_after=-(10**400)).retry_after == -math.inf


# Generator functions


class Generator:
    """A callable object that makes a generator."""

    def __call__(self, *_: Any) -> Any:
        yield


class AsyncGenerator:
    """A callable object that makes an async generator."""

    async def __call__(self, *_: Any) -> Any:
        yield

    async def method(self, *_: Any) -> Any:
        yield


GENERATORS = [
    generator,
    async_generator,
    Generator(),
    AsyncGenerator(),
    AsyncGenerator().method,
    functools.partial(generator, 1),
    functools.partial(functools.partial(async_generator, 1), 2),
    functools.partial(AsyncGenerator(), 1),
]


@pytest.mark.parametrize("function", GENERATORS)
@pytest.mark.parametrize(
    "make", [TaskFunction, task_func, task_group_func, task_sync_func, task_thread_func]
)
def test_a_generator_function_is_refused(make: Any, function: Any) -> None:
    with pytest.raises(TypeError, match="is a generator function") as caught:
        make(function)
    assert repr(function) in str(caught.value)
    assert "what stands after it into post_execute" in str(caught.value)


@pytest.mark.parametrize("phase", PHASES)
def test_a_task_refuses_a_generator_function(phase: str) -> None:
    with pytest.raises(TypeError, match=f"{phase} of task 'A'.* is a generator function"):
        AsyncTask("A", **{phase: async_generator})  # type: ignore[arg-type]


async def test_a_generator_function_that_can_be_awaited_is_accepted() -> None:
    @types.coroutine
    def function(ctx: Any) -> Any:
        yield
        return ctx

    report = await solo(function).process_tasks("value")
    assert report["A"].pre_execute.value == "value"
