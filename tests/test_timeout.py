"""How long an attempt may take.

Times are exact: the clock is virtual.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from attempts import Flaky, now, sleep_for_ten, virtual_clock
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
)
from sdax import (
    RetryableException,
    SdaxExecutionError,
    State,
    TaskCancelledError,
    TaskFunction,
)

pytestmark = pytest.mark.usefixtures("factors")


@virtual_clock
@pytest.mark.parametrize("phase", PHASES)
async def test_timeout(phase: str) -> None:
    trace = Trace()
    error = await failure_of(
        build(
            [
                task_in(phase, TaskFunction(trace.waiting("A"), timeout=3)),
                task_in(phase, sleep_for_ten, name="B"),
            ]
        )
    )
    assert trace == ["A", "A cancelled"]
    (exception,) = error.exceptions
    assert type(exception) is TimeoutError
    assert type(exception.__cause__) is asyncio.CancelledError
    assert states(error.report)["A"] == {0: "T--", 1: "-T-", 2: "--T"}[PHASES.index(phase)]
    # In cleanup nothing else is cancelled.
    assert now() == (10 if phase == "post_execute" else 3)


@virtual_clock
async def test_no_timeout_by_default() -> None:
    async def slow(ctx: Any) -> None:
        await asyncio.sleep(10**6)

    await solo(slow).process_tasks(None)
    assert now() == 10**6


@virtual_clock
async def test_what_ends_in_time_does_not_time_out() -> None:
    function = TaskFunction(sleep_for_ten, timeout=10.5)
    report = await solo(function, function, function).process_tasks(None)
    assert states(report) == {"A": "+++"}
    assert now() == 30


@pytest.mark.parametrize("timeout", [0, 0.0, 0.001])
async def test_timeouts_on_the_real_clock(timeout: float) -> None:
    error = await failure_of(solo(TaskFunction(forever, timeout=timeout)))
    assert type(error.exceptions[0]) is TimeoutError


@pytest.mark.parametrize("timeout", [10**9, 1e300])
async def test_timeouts_too_far_away_for_a_clock(timeout: float) -> None:
    report = await solo(TaskFunction(Trace().pausing("A"), timeout=timeout)).process_tasks(None)
    assert states(report) == {"A": "+--"}


async def test_timeout_of_zero_expires_at_the_first_suspension() -> None:
    trace = Trace()

    async def function(ctx: Any) -> None:
        trace.append("called")
        try:
            await asyncio.sleep(0)
            trace.append("never")
        finally:
            trace.append("ended")

    error = await failure_of(solo(TaskFunction(function, timeout=0)))
    assert type(error.exceptions[0]) is TimeoutError
    assert trace == ["called", "ended"]


async def test_timeout_of_zero_leaves_alone_what_never_suspends() -> None:
    async def function(ctx: Any) -> Any:
        done = asyncio.get_running_loop().create_future()
        done.set_result("done")
        return await done

    report = await solo(*[TaskFunction(function, timeout=0)] * 3).process_tasks(None)
    assert report["A"].execute.value == "done"


@virtual_clock
async def test_time_before_the_first_suspension_counts() -> None:
    trace = Trace()

    async def function(ctx: Any) -> None:
        asyncio.get_running_loop().advance(5)  # type: ignore[attr-defined]
        trace.append("computed")
        await asyncio.sleep(1)
        trace.append("never")

    error = await failure_of(solo(TaskFunction(function, timeout=3)))
    assert type(error.exceptions[0]) is TimeoutError
    assert trace == ["computed"]


@virtual_clock
async def test_time_without_a_suspension_is_never_a_timeout() -> None:
    async def function(ctx: Any) -> None:
        asyncio.get_running_loop().advance(5)  # type: ignore[attr-defined]

    assert states(await solo(TaskFunction(function, timeout=3)).process_tasks(None)) == {"A": "+--"}


@virtual_clock
async def test_each_of_many_timeouts_has_its_own_time() -> None:
    ended: list[tuple[Any, float]] = []

    def function(name: int) -> Any:
        async def wait(ctx: Any) -> None:
            try:
                await forever()
            finally:
                ended.append((name, now()))

        return TaskFunction(wait, timeout=name)

    # In cleanup, so that none stops the others; added in no order.
    error = await failure_of(
        build([task(name, post=function(name)) for name in (3, 1, 4, 5, 9, 2, 6)])
    )
    assert ended == [(name, float(name)) for name in (1, 2, 3, 4, 5, 6, 9)]
    assert [failure.name for failure in error.failures] == [1, 2, 3, 4, 5, 6, 9]


@virtual_clock
async def test_a_later_and_nearer_timeout_is_not_late() -> None:
    async def second(ctx: Any) -> None:
        await forever()

    error = await failure_of(
        build(
            [task("low", post=TaskFunction(second, timeout=1))],
            [
                task("slow", post=TaskFunction(sleep_for_ten, timeout=100)),
                task("high", post=TaskFunction(sleep_for_ten, timeout=50)),
            ],
        )
    )
    assert [failure.name for failure in error.failures] == ["low"]
    assert now() == 11


@virtual_clock
async def test_a_timeout_that_is_swallowed_is_a_success() -> None:
    trace = Trace()
    report = await solo(TaskFunction(trace.stubborn("A", "value"), timeout=3)).process_tasks(None)
    assert trace == ["A", "A swallowed"]
    assert report["A"].pre_execute[:3] == ("succeeded", 1, "value")


@virtual_clock
async def test_a_timeout_answered_with_another_exception() -> None:
    broken = Broken()
    error = await failure_of(solo(TaskFunction(Trace().spiteful("A", broken), timeout=3)))
    assert error.exceptions == (broken,)
    assert states(error.report) == {"A": "F--"}


@virtual_clock
async def test_what_follows_a_timeout_is_awaited() -> None:
    async def slow_to_end(ctx: Any) -> None:
        try:
            await forever()
        finally:
            await asyncio.sleep(4)

    error = await failure_of(solo(TaskFunction(slow_to_end, timeout=3)))
    assert type(error.exceptions[0]) is TimeoutError
    assert now() == 7


@virtual_clock
async def test_a_timeout_is_over_with_its_function() -> None:
    # The next function of the same task has its own limit, or none.
    async def short(ctx: Any) -> None:
        await asyncio.sleep(1)

    report = await solo(TaskFunction(short, timeout=2), sleep_for_ten).process_tasks(None)
    assert states(report) == {"A": "++-"}


@virtual_clock
@pytest.mark.parametrize("observer", [None, lambda event: None], ids=["plain", "observed"])
async def test_a_timer_that_a_loop_inside_of_the_function_fires(observer: Any) -> None:
    """nest_asyncio lets a function run the loop, and so the timers, while it runs itself."""
    loop: Any = asyncio.get_running_loop()

    async def work(ctx: Any) -> None:
        await passes(1)
        (timer,) = (each for each in loop._scheduled if not each.cancelled())
        loop.advance(timer.when() - loop.time())
        timer._run()
        timer.cancel()
        await forever()

    trace = Trace()
    limited = TaskFunction(work, timeout=3)
    processor = build([task("A", None, limited, trace.quick("cleanup"))])
    error = await error_of(processor.process_tasks(None, observer=observer))
    assert isinstance(error, SdaxExecutionError)
    (exception,) = error.exceptions
    assert type(exception) is TimeoutError
    assert trace == ["cleanup"]
    assert now() == 3


@virtual_clock
@pytest.mark.parametrize("inner", [1, 5])
async def test_a_timeout_of_asyncios_inside(inner: int) -> None:
    trace = Trace()

    async def function(ctx: Any) -> None:
        try:
            async with asyncio.timeout(inner):
                await forever()
        except TimeoutError:
            trace.append("inner")
            await forever()

    error = await failure_of(solo(TaskFunction(function, timeout=3)))
    assert type(error.exceptions[0]) is TimeoutError
    assert now() == 3
    assert trace == (["inner"] if inner == 1 else [])


@virtual_clock
async def test_two_timeouts_at_once() -> None:
    async def function(ctx: Any) -> None:
        async with asyncio.timeout(3):
            await forever()

    error = await failure_of(solo(TaskFunction(function, timeout=3)))
    assert type(error.exceptions[0]) is TimeoutError


@virtual_clock
async def test_wait_for_inside() -> None:
    async def function(ctx: Any) -> None:
        await asyncio.wait_for(forever(), 2)

    error = await failure_of(solo(TaskFunction(function, timeout=3)))
    assert type(error.exceptions[0]) is TimeoutError
    assert states(error.report) == {"A": "F--"}  # the function's own, not the attempt's
    assert now() == 2


@virtual_clock
async def test_a_timeout_after_the_failure_of_a_sibling() -> None:
    # Cancelled by its sibling, it takes its time to end: the timeout changes nothing.
    trace = Trace()

    async def slow_to_end(ctx: Any) -> None:
        try:
            await forever()
        finally:
            try:
                await asyncio.sleep(10)
            finally:
                trace.append(f"ended at {now()}")

    async def fail(ctx: Any) -> None:
        await asyncio.sleep(1)
        raise Broken

    error = await failure_of(
        build([task("A", TaskFunction(slow_to_end, timeout=3)), task("B", fail)])
    )
    assert [type(exception) for exception in error.exceptions] == [Broken]
    assert states(error.report) == {"A": "C--", "B": "F--"}
    assert trace == ["ended at 3.0"]


@virtual_clock
async def test_a_timeout_together_with_the_failure_of_a_sibling() -> None:
    loop = asyncio.get_running_loop()
    gate = loop.create_future()

    async def fail(ctx: Any) -> None:
        await gate

    async def main() -> SdaxExecutionError:
        return await failure_of(
            build([task("B", fail), task("A", TaskFunction(forever, timeout=3))])
        )

    # The same pass of the loop, whichever timer comes first.
    broken = Broken()
    loop.call_at(3, gate.set_exception, broken)
    error = await main()
    assert error.failures[0].exception is broken or error.failures[0].name == "A"
    assert broken in error.exceptions or states(error.report)["B"] == "C--"
    assert states(error.report)["A"] in ("T--", "C--")
    assert "F--" in states(error.report).values() or "T--" in states(error.report).values()
    gate.exception()


@virtual_clock
async def test_a_timeout_together_with_a_cancellation_of_other_code() -> None:
    owned: list[asyncio.Task[Any]] = []

    async def function(ctx: Any) -> None:
        owned.append(current())
        try:
            await forever()
        finally:
            owned[0].cancel()

    # asyncio.timeout() tells its own cancellation from another by count, and lets that through.
    error = await failure_of(solo(TaskFunction(function, timeout=3)))
    assert type(error.exceptions[0]) is TaskCancelledError


@virtual_clock
async def test_the_count_of_cancellations_is_given_back() -> None:
    counts: list[int] = []

    async def function(ctx: Any) -> None:
        counts.append(current().cancelling())
        await forever()

    await failure_of(solo(TaskFunction(function, timeout=3, retries=2)))
    assert counts == [0, 0, 0]


@virtual_clock
async def test_a_cancellation_swallowed_before_counts_as_in_asyncio() -> None:
    async def swallow() -> None:
        current().cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await forever()

    trace = Trace()

    async def ours(ctx: Any) -> None:
        trace.append("called")
        if len(trace) == 1:
            await swallow()
            raise RetryableException
        await forever()

    error = await failure_of(solo(TaskFunction(ours, timeout=1, retries=1)))
    assert len(trace) == 2
    # What asyncio.timeout() makes of it too, but for the first releases of 3.11.
    assert type(error.exceptions[0]) is TimeoutError


@virtual_clock
# Not with eager tasks: on Python 3.12 the group itself cancels what its own function awaits next.
@pytest.mark.loop_kinds("asyncio", "debug", "factory")
@pytest.mark.parametrize("retried", [False, True])
async def test_a_task_group_that_leaves_its_cancellation_behind(retried: bool) -> None:
    """Up to Python 3.12, a failed child leaves `cancelling()` at 1: a timeout stays a timeout."""
    calls = 0

    async def fail() -> None:
        raise ConnectionError("replica down")

    async def load(ctx: Any) -> str:
        nonlocal calls
        calls += 1
        if calls == 2:
            return "loaded"
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(fail())
        except* ConnectionError:
            await forever()
        raise AssertionError

    function = TaskFunction(load, timeout=1, retries=int(retried))
    if retried:
        report = await solo(None, function).process_tasks(None)
        assert report["A"].execute[:3] == (State.SUCCEEDED, 2, "loaded")
    else:
        error = await failure_of(solo(None, function))
        assert type(error.exceptions[0]) is TimeoutError
        assert states(error.report) == {"A": "-T-"}


@virtual_clock
@pytest.mark.parametrize("delay", [0, 1])
async def test_a_task_group_whose_cancellation_is_still_to_come(delay: float) -> None:
    """A child that fails before its group waits: the request does not reach the next attempt."""
    calls: list[float] = []

    async def load(ctx: Any) -> str:
        calls.append(asyncio.get_running_loop().time())
        if len(calls) == 2:
            await asyncio.sleep(0)
            return "loaded"
        current().cancel()
        raise ConnectionError("replica down")

    function = TaskFunction(load, retries=1, initial_delay=delay)
    report = await solo(None, function).process_tasks(None)
    assert report["A"].execute[:3] == (State.SUCCEEDED, 2, "loaded")
    assert calls == [0, delay]


@virtual_clock
async def test_a_timeout_while_a_cancellation_of_other_code_is_handled() -> None:
    async def function(ctx: Any) -> None:
        try:
            await forever()
        finally:
            await forever()

    run = asyncio.ensure_future(failure_of(solo(None, TaskFunction(function, timeout=3))))
    await passes(2)
    (owned,) = (each for each in asyncio.all_tasks() if each.get_name() == "sdax:A:execute")
    owned.cancel()
    error = await run
    assert type(error.exceptions[0]) is TimeoutError


@virtual_clock
async def test_timeouts_in_cleanup_after_a_cancellation(loop_errors: list[Any]) -> None:
    run = spawn(solo(forever, post=TaskFunction(forever, timeout=4)))
    await passes(2)
    run.cancel()
    error = await error_of(run)
    assert isinstance(error, asyncio.CancelledError)
    assert now() == 4
    (failure,) = loop_errors.pop()["exception"].exceptions
    assert type(failure) is TimeoutError


# With retries


@virtual_clock
@pytest.mark.parametrize("phase", PHASES)
async def test_a_timeout_bounds_each_attempt(phase: str) -> None:
    calls: list[float] = []

    async def function(ctx: Any) -> None:
        calls.append(now())
        await forever()

    error = await failure_of(
        build([task_in(phase, TaskFunction(function, timeout=5, retries=2, initial_delay=1))])
    )
    # 5 seconds each, and delays of 1 and 2.
    assert calls == [0, 6, 13]
    assert now() == 18
    assert error.failures[0].attempts == 3
    assert type(error.exceptions[0]) is TimeoutError
    assert getattr(error.report["A"], phase).state == "timed out"  # type: ignore[index]


@virtual_clock
async def test_a_timeout_that_is_not_retryable() -> None:
    function = TaskFunction(forever, timeout=5, retries=2, retryable_exceptions=(ValueError,))
    error = await failure_of(solo(function))
    assert error.failures[0].attempts == 1
    assert now() == 5


@virtual_clock
async def test_an_attempt_in_time_after_one_that_timed_out() -> None:
    trace = Trace()

    async def function(ctx: Any) -> str:
        trace.append("called")
        await asyncio.sleep(10 if len(trace) == 1 else 2)
        return "in time"

    report = await solo(TaskFunction(function, timeout=5, retries=1)).process_tasks(None)
    assert report["A"].pre_execute[:4] == ("succeeded", 2, "in time", None)
    assert now() == 5 + 1 + 2


@virtual_clock
async def test_a_failure_after_an_attempt_that_timed_out() -> None:
    broken = Broken()
    trace = Trace()

    async def function(ctx: Any) -> None:
        trace.append("called")
        if len(trace) == 1:
            await forever()
        raise broken

    error = await failure_of(solo(TaskFunction(function, timeout=5, retries=1)))
    assert error.failures == (("A", "pre_execute", 2, broken),)
    assert states(error.report) == {"A": "F--"}


@virtual_clock
async def test_a_timeout_of_zero_is_retried() -> None:
    trace = Trace()

    async def function(ctx: Any) -> None:
        trace.append("called")
        if len(trace) < 3:
            await asyncio.sleep(0)

    function_of_zero = TaskFunction(function, timeout=0, retries=2)
    await solo(function_of_zero).process_tasks(None)
    assert now() == 1 + 2


@virtual_clock
async def test_the_pause_before_a_retry_is_no_part_of_an_attempt() -> None:
    flaky = Flaky(RetryableException())
    await solo(TaskFunction(flaky, timeout=1, retries=1, initial_delay=100)).process_tasks(None)
    assert flaky.calls == [0, 100]
