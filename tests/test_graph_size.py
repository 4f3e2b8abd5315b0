"""Graphs of very many tasks: a hundred thousand in `make proof`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from conftest import Implementation
from helpers import amount
from sdax import AsyncDagTaskProcessor, AsyncTask, TaskFunction, join

MANY = amount(10_000, 100_000)
BUILT: dict[str, Any] = {}


@pytest.fixture(scope="module", autouse=True)
def _nothing_large_stays() -> Iterator[None]:
    """Spare later tests' garbage collections the graphs."""
    yield
    BUILT.clear()


async def count_a_call(ctx: list[int]) -> None:
    ctx[0] += 1


def calls_of(name: str, make: Any) -> int:
    """Run a large graph, built once for both engines, and return how many functions it called."""
    if name not in BUILT:
        BUILT[name] = make(TaskFunction(count_a_call))
    calls = [0]
    asyncio.run(BUILT[name].process_tasks(calls))
    return calls[0]


@pytest.mark.parametrize("step", [1, 2], ids=["straight", "crooked"])
def test_a_long_chain(engine: Implementation, step: int) -> None:
    number = MANY

    def make(function: TaskFunction[Any]) -> Any:
        builder = AsyncDagTaskProcessor.builder()
        for n in range(number):
            builder.add_task(AsyncTask(n, function, None, function), range(max(0, n - step), n))
        return builder.build()

    assert calls_of(f"chain {step}", make) == 2 * number


def test_layers_of_a_hundred(engine: Implementation) -> None:
    def make(function: TaskFunction[Any]) -> Any:
        builder = AsyncDagTaskProcessor.builder()
        below: tuple[Any, ...] = ()
        for layer in range(MANY // 100):
            names = tuple((layer, n) for n in range(100))
            for name in names:
                builder.add_task(AsyncTask(name, function), below)
            below = names
        return builder.build()

    assert calls_of("layers", make) == MANY


def test_crooked_layers_of_a_hundred(engine: Implementation) -> None:
    """Each task depends on some of the layer below, and the layer on two of what is below that."""

    def make(function: TaskFunction[Any]) -> Any:
        builder = AsyncDagTaskProcessor.builder(execute_order="dependency")
        for n in range(MANY):
            below = n - n % 100 - 100
            names = [below + (n * k) % 100 for k in (1, 7, 13)] if below >= 0 else []
            if below >= 100:
                names.append(below - 1)
            builder.add_task(AsyncTask(n, function, None, function), names)
        return builder.build()

    assert calls_of("crooked layers", make) == 2 * MANY


def test_one_that_many_depend_on_and_one_that_depends_on_many(engine: Implementation) -> None:
    number = MANY // 2

    def make(function: TaskFunction[Any]) -> Any:
        builder = AsyncDagTaskProcessor.builder()
        builder.add_task(AsyncTask("last", function, None, function), range(number))
        builder.add_task(AsyncTask("first", function, None, function))
        for n in range(number):
            builder.add_task(AsyncTask(n, function, None, function), ["first"])
        builder.add_task(AsyncTask("beside", function), ["first", 0])
        return builder.build()

    assert calls_of("hub", make) == 2 * number + 5


def test_a_long_cycle_is_refused_without_recursion() -> None:
    number = MANY // 5
    builder = AsyncDagTaskProcessor.builder()
    for n in range(number):
        builder.add_task(join(n), [(n + 1) % number])
    with pytest.raises(ValueError, match="cycle"):
        builder.build()


def test_empty_tasks_in_a_long_chain(engine: Implementation) -> None:
    def make(function: TaskFunction[Any]) -> Any:
        builder = AsyncDagTaskProcessor.builder()
        builder.add_task(AsyncTask(0, function, None, function))
        for n in range(1, MANY):
            builder.add_task(join(n), range(max(0, n - 2), n))
        return builder.add_task(AsyncTask("end", function, None, function), [n]).build()

    assert calls_of("empty", make) == 4
