"""The `asyncio.Task` of a function: a real one, of its own as far as anybody can tell."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from helpers import (
    PHASES,
    Broken,
    Trace,
    bare_or_limited,
    build,
    current,
    failure_of,
    nothing,
    passes,
    solo,
    soon_or_late,
    spawn,
    task,
    task_in,
    until,
    var,
)
from sdax import TaskFunction

# A real asyncio.Task


@bare_or_limited
@pytest.mark.parametrize("phase", PHASES)
async def test_the_current_task_is_the_same_before_and_after_every_await(
    phase: str, limits: Any
) -> None:
    caller = current()
    seen: list[asyncio.Task[Any]] = []

    async def look(ctx: Any) -> None:
        first = current()
        assert isinstance(first, asyncio.Task)
        assert first is not caller
        assert not first.done()
        for _ in range(3):
            await asyncio.sleep(0)
            assert current() is first
        seen.append(first)

    await build(
        [task_in(phase, TaskFunction(look, **limits), name=name) for name in "ABC"]
    ).process_tasks(None)
    assert len(set(seen)) == 3
    assert all(each.done() for each in seen)
    assert current() is caller


@bare_or_limited
async def test_a_function_that_never_suspends_has_a_task_too(limits: Any) -> None:
    caller = current()

    async def look(ctx: Any) -> None:
        assert isinstance(current(), asyncio.Task)
        assert current() is not caller
        assert not current().done()

    function = TaskFunction(look, **limits)
    await solo(function, function, function).process_tasks(None)
    assert current() is caller


async def test_the_callable_itself_runs_in_the_task() -> None:
    seen: list[Any] = []

    def function(ctx: Any) -> Any:
        seen.append(current())
        return look()

    async def look() -> None:
        seen.append(current())
        await asyncio.sleep(0)
        seen.append(current())

    await solo(function).process_tasks(None)
    assert len(seen) == 3
    assert len(set(seen)) == 1


async def test_all_attempts_run_in_one_task() -> None:
    seen: list[Any] = []

    async def look(ctx: Any) -> None:
        seen.append(current())
        if len(seen) < 3:
            raise ConnectionError

    await solo(TaskFunction(look, retries=2, initial_delay=0)).process_tasks(None)
    assert len(set(seen)) == 1


async def test_names_and_all_tasks() -> None:
    named: list[tuple[str, bool]] = []

    async def look(ctx: Any) -> None:
        await asyncio.sleep(0)
        named.append((current().get_name(), current() in asyncio.all_tasks()))

    await build(
        [task("A", look, look, look), task(("b", 2), look)],
    ).process_tasks(None)
    assert named == [
        ("sdax:A:pre_execute", True),
        ("sdax:('b', 2):pre_execute", True),
        ("sdax:A:execute", True),
        ("sdax:A:post_execute", True),
    ]


async def test_names_before_the_first_await() -> None:
    names: list[str] = []

    async def look(ctx: Any) -> None:
        names.append(current().get_name())

    await solo(look, look, look).process_tasks(None)
    assert names == ["sdax:A:pre_execute", "sdax:A:execute", "sdax:A:post_execute"]


async def test_suspended_functions_are_in_all_tasks() -> None:
    gate = asyncio.Event()
    trace = Trace()

    before = asyncio.all_tasks()
    run = spawn(build([task(name, trace.waiting(name, gate)) for name in "ABC"]))
    await until(lambda: len(trace) == 3)
    new = asyncio.all_tasks() - before - {run}
    assert {each.get_name() for each in new} == {f"sdax:{name}:pre_execute" for name in "ABC"}
    gate.set()
    await run
    assert asyncio.all_tasks() == before


async def test_finished_functions_are_not_in_all_tasks() -> None:
    before = asyncio.all_tasks()
    await build([task(name, nothing) for name in "ABC"]).process_tasks(None)
    assert asyncio.all_tasks() == before


# Shared by nobody who could notice


def keep_it(kept: list[Any]) -> None:
    kept.append(current())


def keep_a_weak_reference(kept: list[Any]) -> None:
    kept.append(weakref.ref(current()))


def keep_a_weak_key(kept: list[Any]) -> None:
    kept.append(weakref.WeakKeyDictionary({current(): "mine"}))


def add_a_callback(kept: list[Any]) -> None:
    current().add_done_callback(kept.append)


def rename_it(kept: list[Any]) -> None:
    current().set_name("mine")


def cancel_it(kept: list[Any]) -> None:
    current().cancel()


def cancel_and_uncancel_it(kept: list[Any]) -> None:
    current().cancel()
    current().uncancel()


def cancel_it_twice_and_uncancel_it_once(kept: list[Any]) -> None:
    current().cancel()
    current().cancel()
    current().uncancel()


def cancel_and_uncancel_it_with_a_message(kept: list[Any]) -> None:
    current().cancel("mine")
    current().uncancel()


def say_who_awaits_it(kept: list[Any]) -> None:
    if sys.version_info >= (3, 14):
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        asyncio.future_add_to_awaited_by(current(), waiter)


def set_an_attribute(kept: list[Any]) -> None:
    with contextlib.suppress(AttributeError):  # not every asyncio.Task allows it
        current().mine = True  # type: ignore[attr-defined]


def keep_its_coroutine(kept: list[Any]) -> None:
    kept.append(current().get_coro())


def keep_its_stack(kept: list[Any]) -> None:
    kept.append(current().get_stack())


def keep_a_timeout(kept: list[Any]) -> None:
    kept.append(asyncio.timeout(60))


def keep_a_bound_method(kept: list[Any]) -> None:
    kept.append(current().cancel)


TRACES = [
    keep_it,
    keep_a_weak_reference,
    keep_a_weak_key,
    add_a_callback,
    rename_it,
    cancel_it,
    cancel_and_uncancel_it,
    cancel_it_twice_and_uncancel_it_once,
    cancel_and_uncancel_it_with_a_message,
    say_who_awaits_it,
    set_an_attribute,
    keep_its_coroutine,
    keep_its_stack,
    keep_a_timeout,
    keep_a_bound_method,
]


def same_task_as(kept: list[Any]) -> bool:
    """Tell whether the current asyncio.Task, or part of it, is what another function kept."""
    me = current()
    for each in kept:
        if each is me or each is me.get_coro():
            return True
        if isinstance(each, weakref.ref) and each() is me:
            return True
        if isinstance(each, weakref.WeakKeyDictionary) and me in each:
            return True
        if getattr(each, "__self__", None) is me:
            return True
    return False


@soon_or_late
@bare_or_limited
@pytest.mark.parametrize("leave_a_trace", TRACES)
async def test_the_next_function_has_another_task(
    leave_a_trace: Callable[[list[Any]], None], limits: Any, number: int
) -> None:
    kept: list[Any] = []
    looked: list[str] = []

    async def first(ctx: Any) -> None:
        leave_a_trace(kept)

    async def look(ctx: Any) -> None:
        me = current()
        assert not same_task_as(kept)
        assert me.cancelling() == 0
        assert me.get_name().startswith("sdax:")
        assert not hasattr(me, "mine")
        if sys.version_info >= (3, 14):
            graph = asyncio.capture_call_graph()
            assert graph is not None
            assert not graph.awaited_by
        await passes(number)  # a cancellation that is on its way would arrive
        assert not me.done()
        # Nobody's callback has been called, or is to be called, for this one.
        assert me not in kept
        looked.append(me.get_name())

    # Beside it, above it, and in the later phases.
    await build(
        [
            task("A", TaskFunction(first, **limits), look, look),
            task("B", TaskFunction(look, **limits)),
            task("C", first),
        ],
        [task("D", look, first, look)],
    ).process_tasks(None)
    assert len(looked) == 5
    if leave_a_trace is add_a_callback:
        await until(lambda: len(kept) == 3)
        assert len(set(map(id, kept))) == 3
        assert all(isinstance(each, asyncio.Task) and each.done() for each in kept)


@soon_or_late
async def test_a_trace_left_after_a_failure(number: int) -> None:
    kept: list[Any] = []

    async def fail(ctx: Any) -> None:
        kept.append(current())
        raise Broken

    async def look(ctx: Any) -> None:
        assert current() is not kept[0]
        await passes(number)
        kept.append(current())

    error = await failure_of(build([task("A", fail, post=look), task("B", post=look)]))
    assert len(error.exceptions) == 1
    assert len(set(kept)) == 3


async def test_a_finished_function_leaves_a_finished_task() -> None:
    kept: list[asyncio.Task[Any]] = []

    async def keep(ctx: Any) -> None:
        kept.append(current())

    async def look(ctx: Any) -> None:
        # All but the one that called this here.
        await asyncio.sleep(0)
        assert kept[0].done()

    await build([task("A", keep)], [task("B", look)]).process_tasks(None)


async def test_awaiting_the_task_of_another_function() -> None:
    trace = Trace()
    kept: list[asyncio.Task[Any]] = []
    gate = asyncio.Event()

    async def first(ctx: Any) -> None:
        kept.append(current())
        await gate.wait()
        trace.append("first")

    async def second(ctx: Any) -> None:
        await asyncio.sleep(0)
        gate.set()
        await kept[0]
        trace.append("second")

    await build([task("A", first), task("B", second)]).process_tasks(None)
    assert trace == ["first", "second"]


@pytest.mark.skipif(sys.version_info < (3, 12), reason="Task.get_context is new in 3.12")
@soon_or_late
async def test_get_context_is_the_context_of_the_function(number: int) -> None:
    wrong: list[Any] = []

    def function(name: str) -> Any:
        async def set_and_look(ctx: Any) -> None:
            var.set(name)
            if current().get_context().get(var) != name:
                wrong.append(name)
            await passes(number)
            if current().get_context().get(var) != name:
                wrong.append(name)

        return set_and_look

    await build(
        [task(name, *(function(name + phase) for phase in PHASES)) for name in "ABC"]
    ).process_tasks(None)
    assert wrong == []


async def test_counts_that_change_by_the_same_number() -> None:
    """One reference more and one weak reference fewer are two traces, not none."""
    kept: list[Any] = []

    async def keeps(ctx: Any) -> None:
        asyncio.tasks._unregister_task(current())  # type: ignore[attr-defined]
        kept.append(current())

    async def other(ctx: Any) -> None:
        kept.append(current())

    await build([task("A", keeps), task("B", other)]).process_tasks(None)
    assert kept[0] is not kept[1]
