"""The coroutine of a suspended function, closed or thrown into by other code.

asyncio's own tasks hear of it when what they wait for comes, and wait for ever where the coroutine
has given that up. Here the `asyncio.Task` is cancelled, so that the run comes to its end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from helpers import (
    PHASES,
    Trace,
    bare_or_limited,
    build,
    current,
    error_of,
    failure_of,
    passes,
    solo,
    soon_or_late,
    spawn,
    states,
    task,
    task_in,
    until,
)
from sdax import SdaxExecutionError, TaskCancelledError, TaskFunction


class ThrownError(Exception):
    """What other code throws into a function."""


def close(coroutine: Any) -> None:
    coroutine.close()


def throw(coroutine: Any) -> None:
    with pytest.raises(ThrownError):  # as it leaves the function
        coroutine.throw(ThrownError())


disturbed = pytest.mark.parametrize("disturb", [close, throw])


async def wait_for_event() -> None:
    await asyncio.Event().wait()


async def sleep() -> None:
    await asyncio.sleep(3600)


async def wait_for_future() -> None:
    await asyncio.get_running_loop().create_future()


async def pass_for_long() -> None:
    await passes(100)


async def failure_of_a_plain_task(disturb: Callable[[Any], None]) -> BaseException:
    """What becomes of an `asyncio.Task` in a group, once what it waits for has come."""
    gate = asyncio.get_running_loop().create_future()

    async def wait() -> None:
        await gate

    with pytest.raises(ExceptionGroup) as caught:
        async with asyncio.TaskGroup() as group:
            child = group.create_task(wait())
            await passes(2)
            disturb(child.get_coro())
            gate.set_result(None)
    return caught.value.exceptions[0]


@disturbed
@bare_or_limited
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("wait", [wait_for_event, sleep, wait_for_future, pass_for_long])
async def test_it_is_a_failure(
    wait: Callable[[], Any], phase: str, limits: Any, disturb: Callable[[Any], None]
) -> None:
    trace = Trace()
    kept: list[asyncio.Task[Any]] = []

    async def function(ctx: Any) -> None:
        kept.append(current())
        try:
            await wait()
        finally:
            trace.append("A ended")

    cleanup = None if phase == "post_execute" else trace.pausing("cleanup")
    run = spawn(
        build(
            [task("0", post=trace.quick("last"))],
            [task_in(phase, TaskFunction(function, **limits), post=cleanup)],
        )
    )
    await until(lambda: kept)
    await asyncio.sleep(0)
    disturb(kept[0].get_coro())
    assert trace == ["A ended"]
    error = await error_of(run)
    assert isinstance(error, SdaxExecutionError)
    (failure,) = error.failures
    assert failure[:3] == ("A", phase, 1)
    expected = await failure_of_a_plain_task(disturb)
    assert type(failure.exception) is type(expected) is RuntimeError
    assert failure.exception.args == expected.args
    assert trace[1:] == [*(["cleanup", "cleanup done"] if cleanup else []), "last"]
    assert kept[0].done()


@disturbed
@pytest.mark.parametrize("phase", PHASES[:2])
async def test_siblings_are_cancelled(phase: str, disturb: Callable[[Any], None]) -> None:
    trace = Trace()
    kept: list[asyncio.Task[Any]] = []

    async def function(ctx: Any) -> None:
        kept.append(current())
        await wait_for_event()

    run = spawn(
        build(
            [
                task_in(phase, function, name="A", post=trace.quick("A.post")),
                task_in(phase, trace.waiting("B"), name="B", post=trace.quick("B.post")),
            ]
        )
    )
    await until(lambda: kept and trace)
    await asyncio.sleep(0)
    disturb(kept[0].get_coro())
    assert isinstance(await error_of(run), SdaxExecutionError)
    assert trace == ["B", "B cancelled", "A.post", "B.post"]


@disturbed
async def test_by_a_sibling(disturb: Callable[[Any], None]) -> None:
    trace = Trace()
    kept: list[asyncio.Task[Any]] = []

    async def function(ctx: Any) -> None:
        kept.append(current())
        await wait_for_event()

    async def sibling(ctx: Any) -> None:
        await until(lambda: kept)
        await asyncio.sleep(0)
        disturb(kept[0].get_coro())
        trace.append("B")

    error = await failure_of(
        build([task("A", function, post=trace.quick("post")), task("B", sibling)])
    )
    assert [type(each) for each in error.exceptions] == [RuntimeError]
    assert states(error.report) == {"A": "F-+", "B": "+--"}
    assert trace == ["B", "post"]


async def test_thrown_where_it_is_swallowed() -> None:
    # The function goes on to wait for what its asyncio.Task does not know: it is cancelled there.
    trace = Trace()
    kept: list[asyncio.Task[Any]] = []

    async def function(ctx: Any) -> None:
        kept.append(current())
        with suppress(ThrownError):
            await wait_for_event()
        await trace.waiting("again")(ctx)

    run = spawn(solo(function, post=trace.quick("post")))
    await until(lambda: kept)
    await asyncio.sleep(0)
    kept[0].get_coro().throw(ThrownError())  # type: ignore[union-attr]
    error = await error_of(run)
    assert isinstance(error, SdaxExecutionError)
    assert [type(each) for each in error.exceptions] == [TaskCancelledError]
    assert trace == ["again", "again cancelled", "post"]


async def test_closed_where_that_is_ignored() -> None:
    trace = Trace()
    kept: list[asyncio.Task[Any]] = []

    async def function(ctx: Any) -> None:
        kept.append(current())
        with suppress(GeneratorExit):
            await wait_for_event()
        await trace.waiting("again")(ctx)

    run = spawn(solo(function, post=trace.quick("post")))
    await until(lambda: kept)
    await asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="ignored GeneratorExit"):
        kept[0].get_coro().close()  # type: ignore[union-attr]
    error = await error_of(run)
    assert isinstance(error, SdaxExecutionError)
    assert [type(each) for each in error.exceptions] == [TaskCancelledError]
    assert trace == ["again", "again cancelled", "post"]


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("how", ["close", "throw"])
async def test_while_it_waits_for_a_retry(phase: str, how: str) -> None:
    # No function runs that could be closed: the wait ends, and with it the attempts.
    broken = ConnectionError()
    kept: list[asyncio.Task[Any]] = []

    async def function(ctx: Any) -> None:
        kept.append(current())
        raise broken

    limits: Any = {"retries": 3, "initial_delay": 3600}
    run = spawn(build([task_in(phase, TaskFunction(function, **limits))]))
    await until(lambda: kept)
    await asyncio.sleep(0)
    coroutine: Any = kept[0].get_coro()
    if how == "close":
        coroutine.close()
    else:
        with pytest.raises(RuntimeError, match="already awaited"):
            coroutine.throw(ThrownError())
    error = await error_of(run)
    assert isinstance(error, SdaxExecutionError)
    assert error.failures[0][:3] == ("A", phase, 1)
    assert error.exceptions == (broken,)
    assert len(kept) == 1


@soon_or_late
async def test_by_the_function_itself(number: int) -> None:
    # As everywhere, what runs can neither be closed nor thrown into.
    trace = Trace()

    async def function(ctx: Any) -> None:
        await passes(number)
        coroutine: Any = current().get_coro()
        with pytest.raises(ValueError, match="already executing"):
            coroutine.close()
        with pytest.raises(ValueError, match="already executing"):
            coroutine.throw(ThrownError())
        await asyncio.sleep(0)
        trace.append("A")

    await solo(function, post=trace.quick("post")).process_tasks(None)
    assert trace == ["A", "post"]


@soon_or_late
async def test_by_the_function_itself_again_and_again(number: int) -> None:
    # Python 3.11 and 3.12 take a part of a running coroutine's code for what it awaits, as soon as
    # that code has been run a certain number of times: nobody may let them look.
    async def function(ctx: Any) -> None:
        await passes(number)
        coroutine: Any = current().get_coro()
        for _ in range(3000):
            with pytest.raises(ValueError, match="already executing"):
                coroutine.close()
            with pytest.raises(ValueError, match="already executing"):
                coroutine.throw(ThrownError())

    await solo(function).process_tasks(None)


@soon_or_late
async def test_sent_to_by_the_function_itself(number: int) -> None:
    async def function(ctx: Any) -> None:
        await passes(number)
        coroutine: Any = current().get_coro()
        with pytest.raises(ValueError, match="already executing"):
            coroutine.send(None)
        await asyncio.sleep(0)

    await solo(function).process_tasks(None)


async def test_after_its_end() -> None:
    kept: list[asyncio.Task[Any]] = []

    async def function(ctx: Any) -> None:
        kept.append(current())
        await asyncio.sleep(0)

    await solo(function).process_tasks(None)
    kept[0].get_coro().close()  # type: ignore[union-attr]


async def test_its_own_coroutine_closed_behind_all_backs() -> None:
    # Nobody hears of it, in asyncio's tasks neither, before what it waited for comes.
    trace = Trace()
    gate = asyncio.get_running_loop().create_future()
    made: list[Any] = []

    async def wait() -> None:
        trace.append("A")
        await gate

    def function(ctx: Any) -> Any:
        made.append(wait())
        return made[0]

    run = spawn(solo(function, post=trace.quick("post")))
    await until(lambda: trace)
    await asyncio.sleep(0)
    made[0].close()
    gate.set_result(None)
    error = await error_of(run)
    assert isinstance(error, SdaxExecutionError)
    expected = await failure_of_a_plain_task(close)
    assert [type(each) for each in error.exceptions] == [type(expected)]
    assert error.exceptions[0].args == expected.args
    assert trace == ["A", "post"]


async def test_its_own_coroutine_closed_for_good(loop_errors: list[Any]) -> None:
    # What it waited for never comes: a cancellation ends the run, as one ends a task group.
    trace = Trace()
    made: list[Any] = []

    async def wait() -> None:
        trace.append("A")
        await wait_for_event()

    def function(ctx: Any) -> Any:
        made.append(wait())
        return made[0]

    run = spawn(solo(function, post=trace.quick("post")))
    await until(lambda: trace)
    await asyncio.sleep(0)
    made[0].close()
    run.cancel()
    assert isinstance(await error_of(run), asyncio.CancelledError)
    assert trace == ["A", "post"]
    (failure,) = loop_errors.pop()["exception"].exceptions
    assert type(failure) is RuntimeError


async def test_whether_it_runs() -> None:
    running: list[bool] = []

    async def look(ctx: Any) -> None:
        coroutine: Any = current().get_coro()
        running.append(coroutine.cr_running)
        await asyncio.sleep(0)
        running.append(coroutine.cr_running)

    await solo(look).process_tasks(None)
    assert running == [True, True]


@soon_or_late
async def test_what_it_says_when_it_is_sent_to(number: int) -> None:
    async def function(ctx: Any) -> None:
        await passes(number)
        coroutine: Any = current().get_coro()
        with pytest.raises(ValueError, match=r"^coroutine already executing$"):
            coroutine.send(None)

    await solo(function).process_tasks(None)
