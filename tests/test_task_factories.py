"""The loop's task factory makes the `asyncio.Task` of every function."""

from __future__ import annotations

import asyncio
import functools
import sys
import types
from collections.abc import Generator
from typing import Any

import pytest

from helpers import (
    PHASES,
    Broken,
    Trace,
    build,
    current,
    error_of,
    failure_of,
    forever,
    passes,
    solo,
    soon_or_late,
    spawn,
    states,
    task,
    task_in,
    until,
    var,
)
from sdax import TaskCancelledError, TaskFunction


class Recorder:
    """A task factory that notes what it makes."""

    def __init__(self, make: Any = None) -> None:
        self.made: list[asyncio.Task[Any]] = []
        self.make = make or (lambda loop, coro, **kw: asyncio.Task(coro, loop=loop, **kw))

    def __call__(self, loop: Any, coroutine: Any, **options: Any) -> Any:
        made = self.make(loop, coroutine, **options)
        self.made.append(made)
        return made


class OwnTask(asyncio.Task):  # type: ignore[type-arg]
    """What a task factory may make."""


# uvloop does not get along with eager task factories on every Python.
asyncio_only = pytest.mark.loop_kinds("asyncio", "debug")


async def awaited(coroutine: Any) -> None:
    await coroutine


@types.coroutine
def delegated(coroutine: Any) -> Generator[Any, Any, None]:
    yield from coroutine


@types.coroutine
def stepped(coroutine: Any) -> Generator[Any, Any, None]:
    """Step a coroutine by hand, as tools do that measure each step."""
    step = functools.partial(coroutine.send, None)
    while True:
        try:
            yielded = step()
        except StopIteration:
            return
        try:
            step = functools.partial(coroutine.send, (yield yielded))
        except BaseException as exception:
            step = functools.partial(coroutine.throw, exception)


def own_task_factories() -> list[Any]:
    def wrapping(wrap: Any) -> Any:
        # From Python 3.12 on an asyncio.Task takes no generator, not even as a coroutine.
        return lambda loop, coro, **kw: OwnTask(awaited(wrap(coro)), loop=loop, **kw)

    factories = [
        pytest.param(lambda loop, coro, **kw: OwnTask(coro, loop=loop, **kw), id="lazy"),
        *(pytest.param(wrapping(wrap), id=wrap.__name__) for wrap in (awaited, delegated, stepped)),
    ]
    if sys.version_info >= (3, 12):
        factories.append(pytest.param(asyncio.create_eager_task_factory(OwnTask), id="eager"))
    return factories


@asyncio_only
@pytest.mark.parametrize("make", own_task_factories())
@soon_or_late
async def test_a_task_factory_makes_the_task_of_every_function(make: Any, number: int) -> None:
    loop = asyncio.get_running_loop()
    recorder = Recorder(make)
    seen: list[Any] = []

    async def look(ctx: Any) -> None:
        me = current()
        assert type(me) is OwnTask
        assert me.get_name() == f"sdax:{ctx[len(seen)]}"
        seen.append(me)
        await passes(number)
        assert current() is me
        assert var.get() == "callers"

    names = [f"A:{PHASES[0]}", f"B:{PHASES[0]}", *(f"{name}:{PHASES[1]}" for name in "AB")]
    token = var.set("callers")
    loop.set_task_factory(recorder)
    try:
        await build([task("A", look, look), task("B", look, look)]).process_tasks(names)
    finally:
        loop.set_task_factory(None)
        var.reset(token)
    assert len(set(seen)) == 4
    assert recorder.made == seen


@asyncio_only
@pytest.mark.parametrize("make", own_task_factories())
async def test_failures_and_cancellation_with_a_task_factory(make: Any) -> None:
    loop = asyncio.get_running_loop()
    trace = Trace()
    loop.set_task_factory(make)
    try:
        error = await failure_of(
            build(
                [
                    task("A", trace.waiting("A"), post=trace.pausing("A.post")),
                    task("B", trace.failing("B", Broken(), 2), post=trace.quick("B.post")),
                    task("C", TaskFunction(trace.waiting("C"), timeout=60)),
                ]
            )
        )
        assert states(error.report) == {"A": "C-+", "B": "F-+", "C": "C--"}
        del trace[:]
        run = spawn(solo(trace.waiting("A"), post=trace.pausing("post")))
        await until(lambda: trace)
        run.cancel()
        assert isinstance(await error_of(run), asyncio.CancelledError)
        assert trace == ["A", "A cancelled", "post", "post done"]
        error = await failure_of(solo(TaskFunction(forever, timeout=0.001)))
        assert type(error.exceptions[0]) is TimeoutError
    finally:
        loop.set_task_factory(None)


@asyncio_only
async def test_a_lazy_factorys_function_cancelled_before_its_first_step_is_never_called() -> None:
    loop = asyncio.get_running_loop()
    trace = Trace()
    loop.set_task_factory(Recorder())
    try:
        error = await failure_of(
            build(
                [
                    task("A", trace.failing("A", Broken()), post=trace.quick("A.post")),
                    task("B", trace.quick("B"), post=trace.quick("B.post")),
                ]
            )
        )
    finally:
        loop.set_task_factory(None)
    assert trace == ["A", "A.post"]
    assert states(error.report) == {"A": "F-+", "B": "s-s"}


@asyncio_only
async def test_a_lazy_factorys_task_cancelled_by_other_code_before_its_first_step() -> None:
    loop = asyncio.get_running_loop()
    trace = Trace()
    recorder = Recorder()
    run = asyncio.Task(failure_of(solo(trace.quick("A"), post=trace.quick("A.post"))))
    loop.set_task_factory(recorder)
    try:
        await until(lambda: recorder.made)
        if not trace:
            recorder.made[0].cancel()
        error = await run
    finally:
        loop.set_task_factory(None)
    assert type(error.exceptions[0]) is TaskCancelledError
    assert trace == []


class RefusedError(Exception):
    """What a task factory raises that makes no more tasks."""


@asyncio_only
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("allowed", [0, 1])
@pytest.mark.parametrize("closes", [False, True])
async def test_a_task_factory_that_refuses(phase: str, allowed: int, closes: bool) -> None:
    loop = asyncio.get_running_loop()
    refused: list[RefusedError] = []
    made: list[Any] = []
    trace = Trace()

    def factory(loop: Any, coroutine: Any, **options: Any) -> Any:
        if phase in str(len(made)) or len(made) == allowed:
            made.append(None)
            refused.append(RefusedError())
            if closes:
                coroutine.close()
            raise refused[-1]
        made.append(asyncio.Task(coroutine, loop=loop, **options))
        return made[-1]

    loop.set_task_factory(factory)
    try:
        error = await failure_of(
            build([task_in(phase, trace.pausing(name, 3), name=name) for name in "ABC"])
        )
    finally:
        loop.set_task_factory(None)
    # A function that could not be called is a failure like any other.
    assert error.exceptions == tuple(refused)
    assert len(refused) == 1
    assert error.failures[0][:2] == ("AB"[allowed], phase)
    if phase == "post_execute":
        # A cleanup that is due is tried once more.
        assert {event for event in trace if event.endswith("done")} == {
            f"{name} done" for name in "ABC"
        }
        assert len(made) == 4
    else:
        assert "C" not in trace
