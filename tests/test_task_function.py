"""What `TaskFunction` takes, and which limits it refuses."""

from __future__ import annotations

import asyncio
import functools
import math
import re
import types
from typing import Any

import pytest

from attempts import Flaky
from helpers import PHASES, nothing, solo
from sdax import (
    AsyncTask,
    RetryableException,
    TaskFunction,
    task_func,
    task_group_func,
    task_sync_func,
    task_thread_func,
)


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

    function = TaskFunction(nothing, 1, 2, 3, 4, predicate, True, 5)
    assert function == TaskFunction(
        function=nothing,
        timeout=1,
        retries=2,
        initial_delay=3,
        backoff_factor=4,
        retryable_exceptions=predicate,
        has_task_group_argument=True,
        max_delay=5,
    )


def test_defaults() -> None:
    function: TaskFunction[Any] = TaskFunction(nothing)
    assert (function.timeout, function.retries, function.initial_delay) == (None, 0, 1.0)
    assert (function.backoff_factor, function.max_delay) == (2.0, None)
    assert function.retryable_exceptions == (TimeoutError, ConnectionError, RetryableException)
    assert function.has_task_group_argument is False


@pytest.mark.parametrize("kinds", [[ValueError], {ValueError}, frozenset({ValueError}), ValueError])
def test_retryable_exceptions_become_a_tuple(kinds: Any) -> None:
    function: TaskFunction[Any] = TaskFunction(nothing, retryable_exceptions=kinds)
    assert function.retryable_exceptions == (ValueError,)
    hash(function)


# Generator functions


def generator(*_: Any) -> Any:
    yield


async def async_generator(*_: Any) -> Any:
    yield


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
    with pytest.raises(TypeError, match=f"{phase} of task 'A' is a generator function"):
        AsyncTask("A", **{phase: async_generator})  # type: ignore[arg-type]


async def test_a_generator_function_that_can_be_awaited_is_accepted() -> None:
    @types.coroutine
    def function(ctx: Any) -> Any:
        yield
        return ctx

    report = await solo(function).process_tasks("value")
    assert report["A"].pre_execute.value == "value"
