"""Very many runs of one processor at the same time, of every kind that there is."""

from __future__ import annotations

import asyncio
import gc
import sys
from typing import Any

import pytest

from helpers import amount, build, counts_references, forever, one_loop, passes, task
from sdax import RunReport, SdaxExecutionError, TaskFunction

pytestmark = pytest.mark.undisturbed

RUNS = amount(2_000, 10_000)


class Request:
    """The context of one run: its kind, and what its functions have written down."""

    __slots__ = ("events", "kind", "number", "run")

    run: asyncio.Task[Any]

    def __init__(self, number: int) -> None:
        self.number = number
        self.kind = KINDS[number % len(KINDS)]
        self.events: list[str] = []


OPENED = ["open low", "open high"]
CLOSED = ["close high", "close low"]
# What a run of each kind writes down, and what comes of it.
EXPECTED: dict[str, tuple[list[str], type[Any]]] = {
    "success": ([*OPENED, "work", *CLOSED], RunReport),
    "failure": ([*OPENED, *CLOSED], SdaxExecutionError),
    "failure to open": (["open low", *CLOSED], SdaxExecutionError),
    "failure to close": ([*OPENED, "work", *CLOSED], SdaxExecutionError),
    "timeout": ([*OPENED, *CLOSED], SdaxExecutionError),
    "retry": ([*OPENED, "again", "work", *CLOSED], RunReport),
    "cancel": ([*OPENED, *CLOSED], asyncio.CancelledError),
    "cancel twice": ([*OPENED, *CLOSED], asyncio.CancelledError),
    "cancel, failure to close": ([*OPENED, *CLOSED], asyncio.CancelledError),
}
KINDS = tuple(EXPECTED)


class Load:
    """A processor, and the gate at which all of its runs wait for each other."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.waiting = 0
        work = TaskFunction(
            self.work, timeout=60, retries=1, initial_delay=0, retryable_exceptions=ConnectionError
        )
        self.processor = build(
            [task("low", self.open_low, None, self.close_low)],
            [task("high", self.open_high, work, self.close_high)],
            [task("late", None, TaskFunction(self.wait, timeout=0), None)],
        )

    async def open_low(self, ctx: Request) -> int:
        ctx.events.append("open low")
        self.waiting += 1
        await self.gate.wait()
        return ctx.number

    async def open_high(self, ctx: Request) -> int:
        if ctx.kind == "failure to open":
            raise ValueError(ctx.number)
        ctx.events.append("open high")
        return ctx.number

    async def work(self, ctx: Request) -> int:
        if ctx.kind == "failure":
            raise ValueError(ctx.number)
        if ctx.kind == "retry" and ctx.events[-1] != "again":
            ctx.events.append("again")
            raise ConnectionError(ctx.number)
        if ctx.kind.startswith("cancel"):
            asyncio.get_running_loop().call_soon(ctx.run.cancel)
            await forever()
        if ctx.kind == "timeout":
            await forever()
        await asyncio.sleep(0)
        ctx.events.append("work")
        return ctx.number

    async def wait(self, ctx: Request) -> None:
        if ctx.kind == "timeout":
            await forever()

    async def close_high(self, ctx: Request) -> int:
        ctx.events.append("close high")
        if ctx.kind == "cancel twice":
            ctx.run.cancel()
        await asyncio.sleep(0)
        return ctx.number

    async def close_low(self, ctx: Request) -> int:
        await asyncio.sleep(0)
        ctx.events.append("close low")
        if ctx.kind.endswith("failure to close"):
            raise ValueError(ctx.number)
        return ctx.number

    async def run(self, number: int) -> None:
        """Have so many runs at the same time, and check each of them."""
        loop = asyncio.get_running_loop()
        requests = [Request(each) for each in range(number)]
        for request in requests:
            request.run = loop.create_task(self.processor.process_tasks(request))
        await passes(2)
        assert self.waiting == number
        self.gate.set()
        await asyncio.wait([request.run for request in requests])
        for request in requests:
            self.check(request)

    def check(self, request: Request) -> None:
        events, kind = EXPECTED[request.kind]
        assert request.events == events, request.kind
        run = request.run
        if run.cancelled():
            assert kind is asyncio.CancelledError
            return
        error = run.exception()
        report: Any = run.result() if error is None else error.report  # type: ignore[attr-defined]
        assert type(error or report) is kind, request.kind
        for phases in (report["low"], report["high"]):
            for phase in phases:
                assert phase.value in (None, request.number)
        if isinstance(error, SdaxExecutionError) and request.kind != "timeout":
            assert [str(each) for each in error.exceptions] == [str(request.number)]


@pytest.mark.loop_kinds("asyncio", "uvloop")
async def test_very_many_runs_at_once(loop_errors: list[Any]) -> None:
    await Load().run(RUNS)
    cancelled = sum(Request(number).kind == "cancel, failure to close" for number in range(RUNS))
    assert len(loop_errors) == cancelled  # nobody awaits what else went wrong in those
    loop_errors.clear()


@counts_references
@one_loop
async def test_memory_is_back_where_it_was(loop_errors: list[Any]) -> None:
    async def blocks_after(number: int) -> int:
        await Load().run(number)
        loop_errors.clear()
        await asyncio.sleep(0)
        gc.collect()
        return sys.getallocatedblocks()

    await blocks_after(100)
    before = await blocks_after(100)
    assert await blocks_after(5000) - before < 1000  # one for every fifth run would be a leak
