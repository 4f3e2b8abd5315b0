"""Limiters: what each attempt at a function runs inside."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from aiolimiter import AsyncLimiter

from attempts import Flaky, now, virtual_clock
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
    spawn,
    states,
    task,
    task_in,
    until,
    var,
)
from sdax import (
    AsyncTask,
    AsyncTaskProcessor,
    Outcome,
    SdaxExecutionError,
    State,
    TaskFunction,
    task_func,
    task_group_func,
    task_outcome_func,
    task_sync_func,
    task_thread_func,
)
from sdax.engine import calls

pytestmark = pytest.mark.usefixtures("factors")


class Gate:
    """A limiter that writes down who goes in and out."""

    def __init__(self, *errors: BaseException) -> None:
        self.trace = Trace()
        self.errors = list(errors)

    async def __aenter__(self) -> None:
        self.trace.append("in")
        await asyncio.sleep(0)
        if self.errors:
            raise self.errors.pop(0)

    async def __aexit__(self, kind: Any, error: Any, traceback: Any) -> None:
        self.trace.append(f"out {kind.__name__ if kind else ''}".strip())


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("make", [asyncio.Semaphore, anyio.Semaphore, anyio.CapacityLimiter])
async def test_at_most_so_many(phase: str, make: Any) -> None:
    inside: list[int] = []
    running = 0

    async def function(ctx: Any) -> int:
        nonlocal running
        running += 1
        inside.append(running)
        await passes(3)
        running -= 1
        return 7

    limiter = make(2)
    functions = [TaskFunction(function, limiter=limiter) for _ in range(5)]
    tasks = [task_in(phase, each, name=name) for name, each in enumerate(functions)]
    report = await build(tasks).process_tasks(None)
    assert max(inside) == 2
    assert len(inside) == 5
    assert all(getattr(report[name], phase).value == 7 for name in range(5))


@virtual_clock
async def test_at_most_so_many_in_a_time() -> None:
    began: list[float] = []

    async def function(ctx: Any) -> None:
        began.append(now())

    limiter = AsyncLimiter(2, 10)
    limited = TaskFunction(function, limiter=limiter, timeout=1)
    await build([task(name, limited) for name in range(4)]).process_tasks(None)
    assert began == [0, 0, 5, 10]


async def test_a_cleanup_is_called_although_its_limiter_cannot_be_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trace = Trace()
    broken = MemoryError()
    look = calls.is_context_manager

    def fail_once(limiter: Any) -> bool:
        monkeypatch.setattr(calls, "is_context_manager", look)
        raise broken

    async def work(ctx: Any) -> None:
        monkeypatch.setattr(calls, "is_context_manager", fail_once)

    cleanup = TaskFunction(trace.quick("cleanup"), limiter=asyncio.Lock())
    error = await error_of(build([task("A", None, work, cleanup)]).process_tasks(None))
    assert error is broken
    assert trace == ["cleanup"]


@virtual_clock
@pytest.mark.parametrize("limit", ["total_timeout", "cleanup_timeout"])
@pytest.mark.parametrize("waits", [0, 2])
async def test_a_cleanup_is_called_although_its_limiter_lets_nobody_in(
    limit: str, waits: int
) -> None:
    """When its time is over, up to its first wait, so that a file is closed."""
    lock = asyncio.Lock()
    await lock.acquire()
    trace = Trace()

    async def cleanup(ctx: Any) -> str:
        trace.append("closed")
        try:
            await passes(waits)
        except asyncio.CancelledError:
            trace.append("cut off")
            await asyncio.sleep(1)  # nothing cuts it off again
            trace.append("ended")
            raise
        return "in time"

    builder = AsyncTaskProcessor[None].builder(
        cleanup_timeout=3 if limit == "cleanup_timeout" else None
    )
    function = TaskFunction(
        cleanup, limiter=lock, retries=3, total_timeout=3 if limit == "total_timeout" else None
    )
    run = spawn(builder.add_task(task("A", None, None, function), 1).build())
    if not waits:
        assert (await run)["A"].post_execute.value == "in time"
        assert trace == ["closed"]
        assert now() == 3
        return
    failure = await error_of(run)
    assert isinstance(failure, SdaxExecutionError)
    (error,) = failure.exceptions
    assert isinstance(error, TimeoutError)
    assert limit in str(error)
    assert trace == ["closed", "cut off", "ended"]
    assert now() == 4


@virtual_clock
async def test_a_plain_cleanup_is_called_although_its_limiter_lets_nobody_in() -> None:
    lock = asyncio.Lock()
    await lock.acquire()
    trace = Trace()
    cleanup = task_sync_func(trace.append, limiter=lock, total_timeout=3)
    report = await build([task("A", None, None, cleanup)]).process_tasks("closed")
    assert report.ok
    assert trace == ["closed"]
    assert now() == 3


@virtual_clock
async def test_what_is_no_cleanup_is_not_called_when_its_limiter_lets_nobody_in() -> None:
    lock = asyncio.Lock()
    await lock.acquire()
    trace = Trace()
    limits: Any = {"limiter": lock, "total_timeout": 3}
    both = (TaskFunction(trace.quick(each), **limits) for each in ("pre", "execute"))
    for each, function in zip(("pre_execute", "execute"), both, strict=True):
        processor = build([AsyncTask("A", **{each: function})])  # type: ignore[arg-type]
        await failure_of(processor)
    assert trace == []


async def test_runs_share_it() -> None:
    lock = asyncio.Lock()

    async def function(ctx: Any) -> bool:
        locked = lock.locked()
        await passes(2)
        return locked

    processor = solo(TaskFunction(function, limiter=lock))
    reports = await asyncio.gather(*(processor.process_tasks(None) for _ in range(3)))
    assert [each["A"].pre_execute.value for each in reports] == [True] * 3
    assert not lock.locked()


async def test_a_function_of_the_context_returns_it() -> None:
    trace = Trace()

    @asynccontextmanager
    async def place(ctx: Any) -> AsyncGenerator[None]:
        trace.append(f"in {ctx}")
        yield
        trace.append("out")

    flaky = Flaky(ConnectionError())
    function = TaskFunction(flaky, limiter=place, retries=1, initial_delay=0)
    report = await solo(function).process_tasks("ctx")
    assert report["A"].pre_execute[:3] == ("succeeded", 2, "done")
    # What was raised came through it.
    assert trace == ["in ctx", "in ctx", "out"]


@pytest.mark.parametrize(
    ("limiter", "kind", "message"),
    [
        (lambda ctx: 5, TypeError, "must return an async context manager, but it returned 5"),
        (lambda ctx: forever(), TypeError, "must return an async context manager, but .*coroutine"),
        (lambda ctx: 1 / 0, ZeroDivisionError, "division by zero"),
        (lambda ctx: Gate(Broken("closed")), Broken, "closed"),
    ],
)
async def test_one_that_fails(limiter: Any, kind: type[Exception], message: str) -> None:
    trace = Trace()
    error = await failure_of(solo(TaskFunction(trace.quick("A"), limiter=limiter)))
    with pytest.raises(kind, match=message):
        raise error.exceptions[0]
    assert trace == []


async def test_one_that_fails_is_tried_again() -> None:
    gate = Gate(ConnectionError())
    function = TaskFunction(Flaky(ConnectionError()), limiter=gate, retries=2, initial_delay=0)
    report = await solo(function).process_tasks(None)
    assert report["A"].pre_execute.attempts == 3
    assert gate.trace == ["in", "in", "out ConnectionError", "in", "out"]


@virtual_clock
async def test_the_wait_is_not_part_of_the_timeout() -> None:
    lock = asyncio.Lock()

    async def two_seconds(ctx: Any) -> None:
        await asyncio.sleep(2)

    function = TaskFunction(two_seconds, limiter=lock, timeout=3)
    await build([task(name, function) for name in range(5)]).process_tasks(None)
    assert now() == 10


@virtual_clock
async def test_the_timeout_begins_inside() -> None:
    function = TaskFunction(forever, limiter=asyncio.Semaphore(1), timeout=3, retries=1)
    error = await failure_of(build([task("A", function), task("B", function)]))
    assert [str(each) for each in error.exceptions] == ["timed out after 3 s"]
    # A from 0 to 3, B from 3 to 6, A, after its pause until 4, from 6 to 9.
    assert now() == 9
    assert error.report["A"].pre_execute[:2] == (State.TIMED_OUT, 2)


@virtual_clock
async def test_a_timeout_of_nothing_begins_inside() -> None:
    lock = asyncio.Lock()

    async def hold(ctx: Any) -> None:
        async with lock:
            await asyncio.sleep(5)

    async def never(ctx: Any) -> None:
        await forever()

    error = await failure_of(
        build([task("holder", hold), task("A", TaskFunction(never, limiter=lock, timeout=0))])
    )
    assert now() == 5
    assert states(error.report) == {"holder": "+--", "A": "T--"}


@virtual_clock
async def test_the_wait_of_a_retry_is_not_part_of_the_timeout() -> None:
    slots = asyncio.Semaphore(1)

    async def hold(ctx: Any) -> None:
        await asyncio.sleep(10)

    function = TaskFunction(Flaky(ConnectionError()), timeout=4, retries=1, limiter=slots)
    report = await build(
        [task("A", function), task("B", TaskFunction(hold, limiter=slots))]
    ).process_tasks(None)
    assert report["A"].pre_execute[:2] == (State.SUCCEEDED, 2)
    assert now() == 10


@virtual_clock
async def test_the_wait_is_part_of_the_total_timeout() -> None:
    lock = asyncio.Lock()
    await lock.acquire()
    trace = Trace()
    function = TaskFunction(trace.quick("A"), limiter=lock, timeout=60, total_timeout=3)
    error = await failure_of(solo(function))
    assert now() == 3
    assert trace == []
    assert str(error.exceptions[0]) == "timed out after total_timeout=3 s"
    # And inside of it, what is left of that.
    asyncio.get_running_loop().call_later(2, lock.release)
    function = TaskFunction(forever, limiter=lock, timeout=60, total_timeout=3)
    await failure_of(solo(function))
    assert now() == 6


@virtual_clock
async def test_the_wait_can_be_cancelled_at_once() -> None:
    lock = asyncio.Lock()
    await lock.acquire()
    trace = Trace()

    async def fail(ctx: Any) -> None:
        await asyncio.sleep(1)
        raise Broken

    waiting = TaskFunction(trace.quick("A"), limiter=lock, retries=3)
    error = await failure_of(build([task("A", waiting), task("B", fail)]))
    assert now() == 1
    assert states(error.report) == {"A": "C--", "B": "F--"}
    assert trace == []
    run = spawn(solo(waiting))
    await asyncio.sleep(0)
    run.cancel()
    assert isinstance(await error_of(run), asyncio.CancelledError)


async def test_the_pause_before_a_retry_is_outside() -> None:
    lock = asyncio.Lock()
    function = TaskFunction(Flaky(ConnectionError()), limiter=lock, retries=1, initial_delay=0.001)
    run = spawn(solo(function))
    await asyncio.sleep(0)
    await until(lambda: not lock.locked())
    await run


async def test_every_kind_of_function() -> None:
    gate = Gate()

    async def plain(ctx: Any) -> str:
        return "async"

    async def in_group(ctx: Any, group: Any) -> str:
        group.create_task(passes(1))
        return "group"

    processor = build(
        [
            task("async", task_func(plain, limiter=gate)),
            task("plain", task_sync_func(lambda ctx: "plain", limiter=gate)),
            task("thread", task_thread_func(lambda ctx: "thread", limiter=gate, timeout=60)),
            task("group", task_group_func(in_group, limiter=gate)),
            task("awaitable", task_func(lambda ctx: asyncio.sleep(0, "awaitable"), limiter=gate)),
        ]
    )
    report = await processor.process_tasks(None)
    assert {name: each.pre_execute.value for name, each in report.items()} == {
        name: name for name in report
    }
    assert sorted(gate.trace) == ["in"] * 5 + ["out"] * 5


@pytest.mark.parametrize(
    ("function", "kind", "message"),
    [
        (task_func(lambda ctx: 5, limiter=Gate()), TypeError, "must return an awaitable, but"),
        (task_sync_func(lambda ctx: passes(1), limiter=Gate()), TypeError, "is a plain function"),
    ],
)
async def test_what_a_function_must_not_return(
    function: Any, kind: type[Exception], message: str
) -> None:
    error = await failure_of(solo(function))
    with pytest.raises(kind, match=f"pre_execute of task 'A' {message}"):
        raise error.exceptions[0]


async def test_a_cleanup_that_takes_the_outcome() -> None:
    """It hears of what has failed while it waited."""
    limiter = asyncio.Semaphore(0)
    trace = Trace()
    broken = Broken(), Broken()

    async def finish(ctx: Any, outcome: Outcome) -> None:
        assert outcome.exception is not None
        assert tuple(failure.exception for failure in outcome.failures) == broken

    async def let_it_in(ctx: Any) -> None:
        try:
            raise broken[1]
        finally:
            limiter.release()

    processor = build(
        [
            task("A", None, None, task_outcome_func(finish, limiter=limiter)),
            task("B", None, trace.failing("B", broken[0]), let_it_in),
        ]
    )
    assert (await failure_of(processor)).exceptions == broken


@pytest.mark.parametrize("helper", [task_func, task_sync_func])
async def test_stop_iteration_is_a_failure_like_any_other(helper: Any) -> None:
    stop = StopIteration("A")

    def function(ctx: Any) -> None:
        raise stop

    error = await failure_of(solo(helper(function, limiter=Gate())))
    assert error.exceptions == (stop,)


async def test_where_the_function_runs() -> None:
    seen: list[Any] = []

    async def function(ctx: Any) -> None:
        seen.append(current())
        var.set("the function's")
        await asyncio.sleep(0)
        assert current() is seen[0]
        seen.append(current().get_coro().__qualname__)  # type: ignore[union-attr]

    await solo(TaskFunction(function, limiter=Gate())).process_tasks(None)
    assert seen[0].get_name() == "sdax:A:pre_execute"
    assert seen[0] is not current()
    assert var.get() == "unset"


@virtual_clock
async def test_a_failure_is_not_hidden_by_the_limiter() -> None:
    gate = Gate()
    broken = Broken()

    async def fail(ctx: Any) -> None:
        await asyncio.sleep(1)
        raise broken

    error = await failure_of(solo(TaskFunction(fail, limiter=gate)))
    assert error.exceptions == (broken,)
    assert broken.__traceback__ is not None
    assert broken.__traceback__.tb_frame.f_code is fail.__code__
    assert gate.trace == ["in", "out Broken"]
