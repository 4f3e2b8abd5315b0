"""Functions that return at once share an `asyncio.Task`, where nobody could tell."""

from __future__ import annotations

import asyncio
import importlib
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import pytest

from conftest import ENGINES, Implementation
from helpers import build
from sdax import AsyncTaskProcessor, TaskFunction, task
from sdax.engine import sharing

pytestmark = pytest.mark.every_loop

VARIABLE: ContextVar[int] = ContextVar("variable")

by_loop = pytest.mark.loop_kinds("asyncio", "debug", "eager")  # no factory, and not in C


@contextmanager
def counted_tasks() -> Iterator[list[None]]:
    """Count the futures that are made, tasks among them: each asks the loop for its debug mode."""
    loop = asyncio.get_running_loop()
    made: list[None] = []
    original = loop.get_debug

    def get_debug() -> bool:
        made.append(None)
        return original()

    loop.get_debug = get_debug  # type: ignore[method-assign]
    try:
        yield made
    finally:
        del loop.get_debug


async def at_once(ctx: Any) -> None:
    """Return without suspending."""


def ten(**limits: Any) -> AsyncTaskProcessor[Any, Any]:
    function = TaskFunction(at_once, **limits)
    return build([task(number, execute=function) for number in range(10)])


@by_loop
@pytest.mark.parametrize("limits", [{}, {"timeout": 60.0}, {"retries": 2}], ids=str)
async def test_ten_functions_share_one(limits: dict[str, Any]) -> None:
    with counted_tasks() as made:
        await ten(**limits).process_tasks(None)
    assert len(made) == 1


@by_loop
async def test_with_context_variables_set() -> None:
    VARIABLE.set(1)
    with counted_tasks() as made:
        await ten().process_tasks(None)
    assert len(made) == 1


@by_loop
async def test_functions_with_a_timeout_and_without_share_one() -> None:
    functions = [TaskFunction(at_once, timeout=60.0 if number % 2 else None) for number in range(9)]
    with counted_tasks() as made:
        tasks = [task(number, execute=each) for number, each in enumerate(functions)]
        await build(tasks).process_tasks(None)
    assert len(made) == 1


@by_loop
@pytest.mark.parametrize("name", sharing._TRACES)
async def test_a_trace_ends_it(name: str) -> None:
    leave = sharing._TRACES[name]
    kept: list[object] = []
    takes_context = name == "a reference to its context"
    if takes_context and sys.version_info < (3, 12):
        pytest.skip("a task shows its context from Python 3.12 on")

    async def touch(ctx: Any) -> None:
        mine: Any = asyncio.current_task()
        if leave is not None and mine is not None:
            # The context is the one that this function runs in.
            current: Any = type("Current", (), {"run": staticmethod(lambda call: call())})
            kept.append(leave(mine, mine.get_context() if takes_context else current))

    tasks = [task("touching", execute=touch), *(task(n, execute=at_once) for n in range(3))]
    with counted_tasks() as made:
        try:
            await build(tasks).process_tasks(None)
        except* Exception as group:
            kept.append(group)
    assert (len(made) == 1) is (leave is None)


def test_every_trace_is_seen(engine: Implementation) -> None:
    assert list(sharing._hidden(engine.module.traces)) == []


def test_a_hidden_trace_is_told(engine: Implementation) -> None:
    looked_at = 0

    def blind(task: Any, context: Any) -> object:
        nonlocal looked_at
        seen = list(engine.module.traces(task, context))
        looked_at = len(seen)
        seen[position] = None
        return seen

    message = r"an asyncio.Task of its own.* engine does not see"
    position = 0
    while position == 0 or position < looked_at:
        with pytest.warns(RuntimeWarning, match=message):
            assert not sharing.may_share("blind", blind)
        position += 1
    assert looked_at >= 6


def test_counts_that_change_by_themselves(recwarn: pytest.WarningsRecorder) -> None:
    numbers = iter(range(1000))
    assert not sharing.may_share("restless", lambda task, context: next(numbers))
    assert "does not see that nothing has happened" in str(recwarn.pop(RuntimeWarning).message)


def test_never_without_the_gil(monkeypatch: pytest.MonkeyPatch) -> None:
    traces = importlib.import_module(ENGINES["python"]).traces
    assert sharing.may_share("Python", traces)
    monkeypatch.setattr(sys, "_is_gil_enabled", lambda: False, raising=False)
    assert not sharing.may_share("Python", traces)


@pytest.mark.parametrize("engine_name", ENGINES)
def test_the_switch(engine_name: str) -> None:
    program = (
        "import sdax.engine.sharing as sharing, sys, importlib\n"
        f"engine = importlib.import_module({ENGINES[engine_name]!r})\n"
        "print(sharing.may_share('an', engine.traces))"
    )
    for value, answer in (("1", "False"), ("0", "True")):
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={"SDAX_NO_TASK_SHARING": value, "PATH": ""},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == answer
