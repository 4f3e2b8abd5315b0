"""A function's first step, and what happens between it and the next pass of the loop.

On Python 3.11 the first step is kept from the loop: a driver stands in for its `call_soon` then.
"""

from __future__ import annotations

import asyncio
import contextvars
import sys
from collections.abc import Callable
from types import MethodType
from typing import Any
from weakref import WeakSet

import pytest

from helpers import (
    Broken,
    Trace,
    bare_or_limited,
    build,
    current,
    error_of,
    failure_of,
    forever,
    passes,
    spawn,
    states,
    task,
    until,
)
from sdax import SdaxExecutionError, TaskCancelledError, TaskFunction

pytestmark = pytest.mark.every_loop


class Window:
    """Functions that wait, each for a future of a certain kind, and how to end the waiting."""

    def __init__(self, kind: str) -> None:
        loop = asyncio.get_running_loop()
        self.trace = Trace()
        self.child: asyncio.Task[Any] | None = None
        if kind == "future":
            self.future: Any = loop.create_future()
        elif kind == "shared future":
            self.future = loop.create_future()
            self.child = asyncio.Task(self.wait())
        elif kind == "task":
            self.future = asyncio.Task(self.trace.waiting("owner")(None))
        elif kind == "gather":
            self.future = asyncio.gather(asyncio.Task(forever()), asyncio.Task(forever()))
        elif kind == "shield":
            self.inner = loop.create_future()
            self.future = asyncio.shield(self.inner)

    async def wait(self) -> None:
        await self.future

    async def function(self, ctx: Any) -> None:
        self.trace.append("called")
        try:
            await self.future
        except asyncio.CancelledError:
            self.trace.append("cancelled")
            raise


KINDS = pytest.mark.parametrize("kind", ["future", "shared future", "task", "gather", "shield"])


@KINDS
@bare_or_limited
@pytest.mark.parametrize("by", ["a sibling", "the caller", "itself"])
async def test_cancelled_between_the_first_step_and_the_next_pass(
    kind: str, by: str, limits: Any
) -> None:
    window = Window(kind)
    await passes(2)  # those who were there before wait already
    owned: list[asyncio.Task[Any]] = []

    async def own_and_wait(ctx: Any) -> None:
        owned.append(current())
        await window.function(ctx)

    async def act(ctx: Any) -> None:
        if by == "a sibling":
            raise Broken
        if by == "the caller":
            run.cancel()
        elif owned:
            owned[0].cancel()
        await passes(2)

    run = asyncio.Task(
        build(
            [
                task("A", TaskFunction(own_and_wait, **limits), post=window.trace.quick("post")),
                task("B", act),
            ]
        ).process_tasks(None)
    )
    error = await error_of(run)
    assert "cancelled" in window.trace
    assert window.trace[-1] == "post"
    # Whoever owns the future has been told, as it would have been by `await`.
    assert window.future.done()
    assert isinstance(await error_of(window.future), asyncio.CancelledError)
    if kind == "task":
        assert "owner cancelled" in window.trace
    if kind == "shield":
        assert not window.inner.done()
    if window.child is not None:
        assert isinstance(await error_of(window.child), asyncio.CancelledError)
    if by == "the caller":
        assert isinstance(error, asyncio.CancelledError)
    else:
        assert isinstance(error, SdaxExecutionError)
        kind_of_error = Broken if by == "a sibling" else TaskCancelledError
        assert [type(each) for each in error.exceptions] == [kind_of_error]


@pytest.mark.parametrize("how", ["result", "exception", "cancel"])
@bare_or_limited
async def test_a_future_done_between_the_first_step_and_the_next_pass(
    how: str, limits: Any
) -> None:
    future = asyncio.get_running_loop().create_future()
    broken = Broken()

    async def wait(ctx: Any) -> str:
        result: str = await future
        return result

    async def end(ctx: Any) -> None:
        if how == "result":
            future.set_result("value")
        elif how == "exception":
            future.set_exception(broken)
        else:
            future.cancel("given up")
        await passes(3)

    run = spawn(build([task("A", TaskFunction(wait, **limits)), task("B", end)]))
    if how == "result":
        assert (await run)["A"].pre_execute.value == "value"
        return
    error = await error_of(run)
    assert isinstance(error, SdaxExecutionError)
    assert type(error.exceptions[0]) is (Broken if how == "exception" else TaskCancelledError)
    assert states(error.report) == {"A": "F--", "B": "C--"}


async def test_one_future_for_several_functions_in_the_window() -> None:
    future = asyncio.get_running_loop().create_future()

    async def wait(ctx: Any) -> str:
        result: str = await future
        return result

    async def end(ctx: Any) -> None:
        future.set_result("value")

    limited = TaskFunction(wait, timeout=60)
    report = await build(
        [task("A", wait), task("B", wait), task("C", limited), task("D", end)]
    ).process_tasks(None)
    assert [report[name].pre_execute.value for name in "ABC"] == ["value"] * 3


async def test_a_future_done_and_its_function_cancelled_in_the_window() -> None:
    # The result is there, the cancellation is too: as everywhere in asyncio, it arrives.
    future = asyncio.get_running_loop().create_future()
    trace = Trace()

    async def wait(ctx: Any) -> None:
        try:
            await future
        except asyncio.CancelledError:
            trace.append("cancelled")
            raise

    async def end(ctx: Any) -> None:
        future.set_result("value")
        raise Broken

    error = await failure_of(build([task("A", wait), task("B", end)]))
    if trace:
        assert states(error.report) == {"A": "C--", "B": "F--"}
    else:
        assert states(error.report) == {"A": "s--", "B": "F--"}


@bare_or_limited
async def test_swallowed_in_the_window(limits: Any) -> None:
    trace = Trace()

    async def swallow(ctx: Any) -> None:
        try:
            await forever()
        except asyncio.CancelledError:
            trace.append("swallowed")
        await passes(2)
        trace.append("ended")

    async def fail(ctx: Any) -> None:
        raise Broken

    # With a task factory the first is suspended for a pass already.
    error = await failure_of(build([task("A", TaskFunction(swallow, **limits)), task("B", fail)]))
    assert states(error.report) == {"A": "+--", "B": "F--"}
    assert trace == ["swallowed", "ended"]


async def test_a_bare_yield_cancelled_in_the_window() -> None:
    trace = Trace()

    async def fail(ctx: Any) -> None:
        raise Broken

    await failure_of(build([task("A", trace.pausing("A")), task("B", fail)]))
    assert trace == ["A"]


class Recording:
    """In place of a loop's `call_soon`; no descriptor, so not even a method in a class."""

    def __init__(self, call_soon: Callable[..., Any]) -> None:
        self.call_soon = call_soon
        self.calls = 0

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self.calls += 1
        return self.call_soon(*arguments, **options)


async def all_in_order(trace: Trace) -> None:
    """Run functions that suspend and that do not, one after another."""
    go = asyncio.Event()
    first = task("A", trace.waiting("A", go))
    run = spawn(build([first], [task("B", trace.quick("B"), post=trace.pausing("C"))]))
    await until(lambda: "A" in trace)
    assert trace == ["A"]
    go.set()
    assert states(await run) == {"A": "+--", "B": "+-+"}
    assert trace == ["A", "A done", "B", "C", "C done"]


async def test_the_loop_keeps_its_call_soon() -> None:
    loop = asyncio.get_running_loop()
    await all_in_order(Trace())
    assert "call_soon" not in vars(loop)


@pytest.mark.parametrize("how", ["function", "method"])
async def test_a_loop_that_was_given_another_call_soon(how: str) -> None:
    loop = asyncio.get_running_loop()
    recording = Recording(loop.call_soon)
    own: Any = recording
    if how == "method":
        own = MethodType(lambda _, *arguments, **options: recording(*arguments, **options), loop)
    loop.call_soon = own  # type: ignore[method-assign]
    try:
        await all_in_order(Trace())
        assert vars(loop)["call_soon"] is own
        assert recording.calls
    finally:
        del loop.call_soon


@pytest.mark.loop_kinds("asyncio", "debug")
async def test_a_class_of_loops_that_was_given_another_call_soon(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = asyncio.get_running_loop()
    recording = Recording(loop.call_soon)
    monkeypatch.setattr(type(loop), "call_soon", recording)
    await all_in_order(Trace())
    assert recording.calls
    assert "call_soon" not in vars(loop)


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="an asyncio.Task starts eagerly there")
async def test_call_soon_while_an_asyncio_task_is_made() -> None:
    # As a finalizer or a signal handler may: asyncio.Task() adds itself to a WeakSet, in Python.
    loop = asyncio.get_running_loop()
    context = contextvars.copy_context()
    asked: list[int] = []
    called: list[int] = []

    def call_soon(frame: Any, event: str, argument: Any) -> None:
        if frame.f_code is not WeakSet.add.__code__:
            return
        for given in (None, context):
            asked.append(len(asked))
            loop.call_soon(called.append, asked[-1], context=given)

    tracing = sys.gettrace()
    sys.settrace(call_soon)
    try:
        await build(
            [task(name, Trace().pausing(name)) for name in "ABC"], [task("D", Trace().quick("D"))]
        ).process_tasks(None)
    finally:
        sys.settrace(tracing)
    await passes(1)
    assert asked
    assert called == asked


class CountingLoop(asyncio.SelectorEventLoop):
    """A loop whose `call_soon` is a property, which no attribute hides."""

    asked = 0

    @property
    def call_soon(self) -> Any:  # type: ignore[override]
        self.asked += 1
        return super().call_soon


def test_a_loop_whose_call_soon_is_a_property(engine: Any) -> None:
    trace = Trace()
    with asyncio.Runner(loop_factory=CountingLoop) as runner:
        processor = build([trace.task("A", number=1)], [trace.task("B")])
        report = runner.run(processor.process_tasks(None))
    assert states(report) == {"A": "+++", "B": "+++"}
