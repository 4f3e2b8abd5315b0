"""The timeouts and pauses of a run: one timer, the loop's own clock, bounded memory."""

from __future__ import annotations

import asyncio
from contextvars import copy_context
from typing import Any

import pytest

from helpers import Trace, build, error_of, failure_of, forever, passes, solo, task
from sdax import State, TaskFunction
from sdax.engine.deadlines import FEWEST, Deadlines


class Waiter:
    serial = 0

    def expire(self) -> None:
        self.serial = 0


def test_moments_that_nobody_waits_for_are_forgotten() -> None:
    """Memory grows with those who wait, not with the attempts that they make."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        deadlines = Deadlines(loop, copy_context(), broken=pytest.fail)
        waiters = [Waiter() for _ in range(10)]
        for number in range(10_000):
            waiter = waiters[number % 10]
            waiter.serial = deadlines.add(loop.time() + 3600, waiter)
            assert len(deadlines._entries) <= FEWEST
        many = [Waiter() for _ in range(1000)]
        for waiter in many:
            waiter.serial = deadlines.add(loop.time() + 3600, waiter)
        assert len(deadlines._entries) == 1010
        deadlines.close()

    asyncio.run(main())


class OldDeadlines(Deadlines):
    """Those of a run that has set more timers than 32 bits can count."""

    __slots__ = ()

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._serial = 2**32


@pytest.mark.loop_kinds("asyncio")
@pytest.mark.virtual_clock
async def test_timers_are_counted_without_an_end(
    engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compiled engine keeps the number in an integer of C, which has 64 bits everywhere."""
    monkeypatch.setattr(engine.module, "Deadlines", OldDeadlines)
    trace = Trace()
    limited = TaskFunction(trace.waiting("A"), timeout=1.0, retries=2)
    error = await failure_of(solo(None, limited))
    assert trace == ["A", "A cancelled"] * 3
    assert error.report["A"].execute.state is State.TIMED_OUT


class JumpingLoop(asyncio.SelectorEventLoop):
    """A loop with a clock of its own."""

    now = 1000.0

    def time(self) -> float:
        return self.now


def test_timeouts_go_by_the_clock_of_the_loop(engine: Any) -> None:
    async def main() -> None:
        loop: Any = asyncio.get_running_loop()
        run = asyncio.ensure_future(
            error_of(solo(None, TaskFunction(forever, timeout=5.0)).process_tasks(None))
        )
        await passes(5)
        assert not run.done()
        loop.now += 6
        error = await run
        assert isinstance(error, ExceptionGroup)
        assert type(error.exceptions[0]) is TimeoutError

    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        runner.run(main())


def test_timeouts_go_by_a_clock_that_is_replaced(
    engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by freezegun or time-machine, after sdax was imported."""
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)

    async def main() -> None:
        nonlocal now
        run = asyncio.ensure_future(
            error_of(solo(None, TaskFunction(forever, timeout=5.0)).process_tasks(None))
        )
        await passes(5)
        assert not run.done()
        now += 6
        await passes(5)
        assert run.done()

    asyncio.run(main())


class FailingLoop(asyncio.SelectorEventLoop):
    """A loop that cannot tell the time, or set a timer, when it is told so."""

    fails: str | None = None

    def time(self) -> float:
        if self.fails == "time":
            self.fails = None
            raise OSError("no clock")
        return super().time()

    def call_at(self, *arguments: Any, **options: Any) -> Any:
        if self.fails == "call_at":
            self.fails = None
            raise OSError("no timer")
        return super().call_at(*arguments, **options)


@pytest.mark.parametrize("call", ["time", "call_at"])
@pytest.mark.parametrize("phase", ["pre", "execute", "post"])
def test_a_loop_without_a_clock(engine: Any, call: str, phase: str) -> None:
    """The function is called all the same, cleanup runs, and the error comes out."""
    trace = Trace()

    async def main() -> None:
        loop: Any = asyncio.get_running_loop()

        async def fail_from_now_on(ctx: Any) -> None:
            loop.fails = call

        limited = TaskFunction(trace.pausing("A"), timeout=60.0)
        processor = build(
            [task("last", post=trace.quick("last"))],
            [task("first", **{phase: fail_from_now_on}), task("A", **{phase: limited})],
        )
        error = await error_of(processor.process_tasks(None))
        assert isinstance(error, OSError)
        assert trace[0] == "A"
        assert trace[-1] == "last"

    with asyncio.Runner(loop_factory=FailingLoop) as runner:
        runner.run(main())
