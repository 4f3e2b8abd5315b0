"""What observers hear of a run that is gone through phase by phase."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from helpers import (
    Trace,
    build,
    current,
    error_of,
    forever,
    nothing,
    passes,
    solo,
    task,
    until,
    without_factory,
)
from observing import OUTLINE, Recorder, broken_rules, called, in_phase, run_of
from sdax import SdaxExecutionError, State
from sdax.observe import PhaseFinished, RunFinished


async def test_phase_by_phase() -> None:
    events = Recorder()
    async with solo(nothing, nothing, nothing).open(None, observer=events) as run:
        assert events == []
        while await run.run_next():
            assert isinstance(events[-1], PhaseFinished)
        assert events.lines(RunFinished) == []
    assert broken_rules(events) == []
    assert events.lines() == run_of(
        *in_phase("pre", *called("A.pre")),
        *in_phase("execute", *called("A.execute")),
        *in_phase("post", *called("A.post")),
    )


async def test_left_before_the_first_phase() -> None:
    events = Recorder()
    async with solo(nothing).open(None, observer=events):
        pass
    assert events == []


async def test_left_after_the_first_phase() -> None:
    events = Recorder()
    async with solo(nothing, nothing, nothing).open(None, observer=events) as run:
        await run.run_next()
    assert broken_rules(events) == []
    assert events.lines(*OUTLINE) == [
        "A.pre succeeded after 1",
        "A.execute skipped",
        "A.post succeeded after 1",
    ]


async def test_left_by_an_exception() -> None:
    events = Recorder()
    error = LookupError("of the block")
    with pytest.raises(LookupError) as caught:
        async with solo(nothing, nothing, nothing).open(None, observer=events) as run:
            await run.run_next()
            raise error
    assert caught.value is error
    assert error.__context__ is None
    last = events[-1]
    assert isinstance(last, RunFinished)
    assert (last.state, last.exception) == (State.FAILED, error)


async def test_a_failure_that_the_block_has_seen() -> None:
    events = Recorder()
    trace = Trace()
    processor = solo(trace.failing("", ValueError()), nothing, nothing)
    with pytest.raises(SdaxExecutionError) as caught:
        async with processor.open(None, observer=events) as run:
            while await run.run_next():
                assert run.has_failures()
    assert broken_rules(events) == []
    assert events[-1].exception is caught.value  # type: ignore[union-attr]


# Blocks that swallow, are closed, or raise what a coroutine cannot.


def end_of(events: Recorder) -> tuple[State, BaseException | None]:
    (end,) = (event for event in events if isinstance(event, RunFinished))
    return end.state, end.exception


async def test_a_block_that_swallows_what_is_no_exception() -> None:
    events = Recorder()
    interrupted = Trace().failing("", KeyboardInterrupt())
    async with solo(interrupted, nothing, nothing).open(None, observer=events) as run:
        assert isinstance(await error_of(run.run_next()), KeyboardInterrupt)
    assert end_of(events) == (State.FAILED, None)
    assert events.lines(*OUTLINE)[0] == "A.pre failed after 1 KeyboardInterrupt"


async def test_a_block_that_swallows_its_cancellation() -> None:
    events = Recorder()
    async with solo(forever, nothing, nothing).open(None, observer=events) as run:
        asyncio.get_running_loop().call_soon(current().cancel)
        assert isinstance(await error_of(run.run_next()), asyncio.CancelledError)
        current().uncancel()
    assert end_of(events) == (State.CANCELLED, None)
    assert events.lines(*OUTLINE)[0] == "pre cancelled"


@without_factory
@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("phase", ["pre", "execute", "post"])
async def test_a_coroutine_that_is_closed_in_a_phase(phase: str, number: int) -> None:
    trace = Trace()
    gate = asyncio.Event()
    functions = {"post": trace.pausing("cleanup", number), phase: trace.waiting("waits", gate)}
    processor = build([task("A", **functions), task("B", post=trace.quick("B.post"))])
    for observed in (True, False):
        events = Recorder()
        trace.clear()

        async def block(observers: tuple[Any, ...]) -> None:
            async with processor.open(None, observer=observers) as run:
                while await run.run_next():
                    pass

        coroutine = block((events,) if observed else ())
        coroutine.send(None)
        coroutine.close()
        if phase == "post":
            gate.set()
        done = "waits done" if phase == "post" else "cleanup done" if number else "cleanup"
        await until(lambda wanted=done: wanted in trace)
        await passes(3)
        gate.clear()
        assert trace.count("B.post") == 1
        if observed:
            state, exception = end_of(events)
            assert state is State.CANCELLED
            assert isinstance(exception, GeneratorExit)
            assert events.lines()[-1] == "post finished"


async def test_a_block_that_raises_stop_iteration() -> None:
    failing = Trace().failing("", ValueError())
    for processor, fails in ((solo(nothing, nothing, nothing), False), (solo(failing), True)):
        for observers in (Recorder(), ()):
            run = processor.open(None, observer=observers)
            await run.__aenter__()
            await run.run_next()
            error = StopIteration("of the block")
            left = await run.__aexit__(StopIteration, error, None)
            assert not left
            assert isinstance(error.__context__, SdaxExecutionError) is fails
            if isinstance(observers, Recorder):
                assert end_of(observers) == (State.FAILED, error)


async def test_the_traceback_of_an_exception_of_the_block_is_its_own() -> None:
    for observers in (Recorder(), ()):
        with pytest.raises(LookupError) as caught:
            async with solo(nothing).open(None, observer=observers) as run:
                await run.run_next()
                raise LookupError
        assert [entry.path.name for entry in caught.traceback] == [__file__.rpartition("/")[2]]
