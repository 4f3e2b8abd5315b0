"""Nothing that a function raises is lost: it comes out, is a context, or the loop hears of it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from helpers import (
    Broken,
    Trace,
    build,
    current,
    error_of,
    passes,
    task,
)
from sdax import SdaxExecutionError
from sdax.engine import outcome


def contexts(error: BaseException | None) -> list[BaseException]:
    """An exception and its contexts, one after another."""
    found = []
    while error is not None:
        found.append(error)
        error = error.__context__
    return found


@pytest.mark.parametrize("how", ["whole", "phase by phase"])
async def test_failures_beside_a_fatal_one(how: str) -> None:
    """Of a cleanup after a cancellation."""
    trace = Trace()
    broken, out = Broken("cleanup failed"), KeyboardInterrupt("out")
    processor = build(
        [
            task("A", trace.waiting("A"), None, trace.failing("A.post", broken, 2)),
            task("B", trace.waiting("B"), None, trace.failing("B.post", out)),
        ]
    )

    async def caller() -> BaseException | None:
        if how == "whole":
            return await error_of(processor.process_tasks(None))
        try:
            async with processor.open(None) as run:
                while await run.run_next():
                    pass
        except BaseException as error:
            return error
        return None

    running = asyncio.create_task(caller())
    await passes(2)
    running.cancel()
    await passes(1)
    running.cancel()
    first, second, *_ = contexts(await running)
    assert first is out
    assert isinstance(second, SdaxExecutionError)
    assert second.exceptions == (broken,)


@pytest.mark.parametrize("handled", [False, True])
@pytest.mark.parametrize("cancelled", [False, True])
async def test_contexts_where_the_caller_handles_an_exception(
    handled: bool, cancelled: bool
) -> None:
    broken, out = Broken("cleanup failed"), KeyboardInterrupt("out")
    reason = KeyError("why the caller cleans up")

    async def fail(ctx: Any) -> None:
        raise broken

    async def leave(ctx: Any) -> None:
        await asyncio.sleep(0)
        if cancelled:
            ctx.cancel()  # in the pass in which the run ends
        raise out

    processor = build([task("A", None, None, fail), task("B", None, None, leave)])

    async def caller() -> BaseException | None:
        if not handled:
            return await error_of(processor.process_tasks(current()))
        try:
            raise reason
        except KeyError:
            return await error_of(processor.process_tasks(current()))

    found = contexts(await asyncio.create_task(caller()))
    assert found[0] is out
    assert isinstance(found[1], SdaxExecutionError)
    assert found[1].exceptions == (broken,)
    assert (reason in found) == handled


@pytest.mark.parametrize("error", [Broken("cleanup failed"), SystemExit(3)], ids=repr)
async def test_failures_after_the_caller_is_closed(
    error: BaseException, loop_errors: list[dict[str, Any]]
) -> None:
    trace = Trace()
    processor = build([task("A", trace.waiting("A"), None, trace.failing("post", error, 1))])
    coroutine: Any = processor.process_tasks(None)
    coroutine.send(None)
    await passes(1)
    coroutine.close()
    await passes(5)
    assert trace == ["A", "A cancelled", "post"]
    (context,) = loop_errors
    loop_errors.clear()
    assert "nobody awaits" in context["message"]
    raised = context["exception"]
    assert raised is error or raised.exceptions == (error,)


async def test_all_failures_after_the_caller_is_closed(loop_errors: list[dict[str, Any]]) -> None:
    trace = Trace()
    broken, out = Broken("cleanup failed"), SystemExit("out")
    processor = build(
        [
            task("A", trace.waiting("A"), None, trace.failing("A.post", broken)),
            task("B", None, None, trace.failing("B.post", out)),
        ]
    )
    coroutine: Any = processor.process_tasks(None)
    coroutine.send(None)
    await passes(1)
    coroutine.close()
    await passes(5)
    first, second = contexts(loop_errors.pop()["exception"])
    assert first is out
    assert isinstance(second, SdaxExecutionError)
    assert second.exceptions == (broken,)


async def test_success_after_the_caller_is_closed() -> None:
    trace = Trace()
    coroutine: Any = build(
        [task("A", trace.waiting("A"), None, trace.quick("post"))]
    ).process_tasks(None)
    coroutine.send(None)
    await passes(1)
    coroutine.close()
    await passes(5)
    assert trace == ["A", "A cancelled", "post"]


async def test_a_caller_closed_while_it_leaves_the_block() -> None:
    """The phase of another asyncio.Task ends, and the cleanup goes on by itself."""
    trace = Trace()
    run = build([task("A", trace.stubborn("A"), None, trace.pausing("post"))]).open(None)
    other = asyncio.create_task(run.run_next())
    await passes(2)
    closing: Any = run.aclose()
    closing.send(None)
    closing.close()
    await passes(5)
    assert trace == ["A", "A swallowed", "post", "post done"]
    await error_of(other)


@pytest.mark.parametrize("phase", ["pre", "execute", "post"])
async def test_a_function_cannot_close_its_own_run(phase: str) -> None:
    trace = Trace()

    async def closes(ctx: list[Any]) -> None:
        await passes(ctx[1])
        with pytest.raises(RuntimeError, match="aclose: called by a function of this run"):
            await ctx[0].aclose()
        trace.append("refused")

    for number in (0, 1):
        processor = build([task("A", **{phase: closes})])
        ctx: list[Any] = [None, number]
        async with processor.open(ctx) as run:
            ctx[0] = run
            while await run.run_next():
                pass
    assert trace == ["refused", "refused"]


async def test_failures_of_a_cancelled_run_are_told_to_the_loop(
    loop_errors: list[dict[str, Any]],
) -> None:
    """Also when the handler itself stops the program: that comes out."""
    trace = Trace()
    stop = KeyboardInterrupt("the handler's")

    def handler(loop: Any, context: Any) -> None:
        raise stop

    asyncio.get_running_loop().set_exception_handler(handler)
    broken = Broken("cleanup failed")
    run = asyncio.ensure_future(
        error_of(
            build(
                [task("A", trace.waiting("A"), None, trace.failing("post", broken))]
            ).process_tasks(None)
        )
    )
    await passes(2)
    run.cancel()
    found = contexts(await run)
    assert found[0] is stop
    assert any(isinstance(each, asyncio.CancelledError) for each in found)
    assert any(isinstance(each, SdaxExecutionError) for each in found)


@pytest.mark.loop_kinds("asyncio")
@pytest.mark.parametrize("cancelled", [False, True])
async def test_failures_of_a_run_whose_error_cannot_be_made(
    monkeypatch: pytest.MonkeyPatch, cancelled: bool
) -> None:
    trace = Trace()
    broken, full = Broken("cleanup failed"), MemoryError()

    def no_room(*arguments: Any) -> None:
        raise full

    monkeypatch.setattr(outcome, "_failures", no_room)
    processor = build([task("A", trace.pausing("A"), None, trace.failing("post", broken))])
    run = asyncio.ensure_future(error_of(processor.process_tasks(None)))
    await passes(2)
    if cancelled:
        run.cancel()
    first, *others = contexts(await run)
    assert first is full
    assert [type(each) for each in others] == [
        ExceptionGroup,
        *[asyncio.CancelledError] * cancelled,
    ]
    assert others[0].exceptions == (broken,)  # type: ignore[attr-defined]


@pytest.mark.loop_kinds("asyncio")
@pytest.mark.parametrize("breaks", [False, True])
async def test_failures_of_a_run_whose_error_cannot_be_raised(
    monkeypatch: pytest.MonkeyPatch, breaks: bool
) -> None:
    trace = Trace()
    broken, first, second = Broken("cleanup failed"), MemoryError("first"), MemoryError("second")
    see_through = outcome._see_through

    def no_room_at_first(*arguments: Any) -> None:
        monkeypatch.setattr(outcome, "_see_through", see_through)
        raise first

    def no_room(*arguments: Any) -> None:
        raise second

    monkeypatch.setattr(outcome, "raise_with_context", no_room)
    if breaks:
        monkeypatch.setattr(outcome, "_see_through", no_room_at_first)
    cleanup = trace.quick("post") if breaks else trace.failing("post", broken)
    processor = build([task("A", trace.pausing("A"), None, cleanup)])
    run = asyncio.ensure_future(error_of(processor.process_tasks(None)))
    await passes(1)
    if breaks:
        run.cancel()
    found = contexts(await run)
    assert found[0] is second
    if breaks:
        assert first in found
    else:
        assert isinstance(found[1], SdaxExecutionError)
        assert found[1].exceptions == (broken,)
