"""Attempts, and the pauses between them, that are cancelled."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from attempts import Flaky, now, virtual_clock
from helpers import (
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
    until,
)
from sdax import RetryableException, SdaxExecutionError, State, TaskFunction
from sdax.events import TaskFinished

pytestmark = pytest.mark.usefixtures("factors")


@virtual_clock
@pytest.mark.parametrize("limits", [{"initial_delay": 100}, {"initial_delay": 0}])
async def test_cancelled_while_waiting_for_a_retry(limits: dict[str, Any]) -> None:
    errors = [RetryableException(number) for number in range(100)]
    trace = Trace()
    flaky = Flaky(*errors)
    finished: list[Any] = []

    def observer(event: Any) -> None:
        if isinstance(event, TaskFinished):
            finished.append(event)

    processor = solo(TaskFunction(flaky, retries=1000, **limits), post=trace.quick("post"))
    run = asyncio.ensure_future(processor.process_tasks(None, observer=observer))
    await until(lambda: flaky.calls)
    await asyncio.sleep(0)
    run.cancel()
    error = await error_of(run)
    assert isinstance(error, asyncio.CancelledError)
    assert now() == 0
    # The function is cancelled, and what its last attempt raised is not lost.
    last = errors[len(flaky.calls) - 1]
    event = finished[0]
    assert (event.state, event.attempts) == (State.CANCELLED, len(flaky.calls))
    assert event.exception is last
    assert trace == ["post"]


@virtual_clock
async def test_cancelled_while_what_returned_no_awaitable_waits_for_a_retry() -> None:
    calls: list[Any] = []
    trace = Trace()
    function: Any = TaskFunction(
        calls.append,  # type: ignore[arg-type]
        retries=1,
        initial_delay=100,
        retryable_exceptions=TypeError,
    )
    run = spawn(solo(function, post=trace.quick("post")))
    await until(lambda: calls)
    await asyncio.sleep(0)
    run.cancel()
    assert isinstance(await error_of(run), asyncio.CancelledError)
    assert trace == ["post"]


@virtual_clock
async def test_a_sibling_fails_while_one_waits_for_a_retry() -> None:
    last, broken = RetryableException(), Broken()

    async def fail(ctx: Any) -> None:
        await asyncio.sleep(5)
        raise broken

    flaky = Flaky(last)
    error = await failure_of(
        build([task("A", TaskFunction(flaky, retries=1, initial_delay=100)), task("B", fail)])
    )
    assert now() == 5
    assert error.exceptions == (broken,)
    assert error.report is not None
    assert error.report["A"].pre_execute[:4] == (State.CANCELLED, 1, None, last)
    assert len(flaky.calls) == 1


@virtual_clock
async def test_other_code_cancels_while_one_waits_for_a_retry() -> None:
    owned: list[asyncio.Task[Any]] = []
    last = RetryableException()

    async def function(ctx: Any) -> None:
        owned.append(current())
        raise last

    run = asyncio.get_running_loop().create_task(
        failure_of(solo(TaskFunction(function, retries=1, initial_delay=100)))
    )
    await until(lambda: owned)
    await passes(2)
    owned[0].cancel()
    error = await run
    assert now() == 0
    assert error.exceptions == (last,)
    assert len(owned) == 1


@virtual_clock
async def test_a_wait_after_a_timeout_is_cancelled() -> None:
    broken = Broken()

    async def fail(ctx: Any) -> None:
        await asyncio.sleep(5)
        raise broken

    error = await failure_of(
        build(
            [
                task("A", TaskFunction(forever, timeout=1, retries=1, initial_delay=100)),
                task("B", fail),
            ]
        )
    )
    assert now() == 5
    assert error.exceptions == (broken,)
    assert states(error.report) == {"A": "C--", "B": "F--"}
    assert error.report is not None
    assert isinstance(error.report["A"].pre_execute.exception, TimeoutError)


@pytest.mark.parametrize("by", ["a sibling", "the caller"])
async def test_a_cancelled_attempt_is_never_retried(by: str, loop_errors: list[Any]) -> None:
    # Not even if it answers the cancellation with what would be retried.
    trace = Trace()
    error = RetryableException()
    limits: dict[str, Any] = {"retries": 5, "retryable_exceptions": lambda error: True}
    gate = asyncio.Event()

    async def fail(ctx: Any) -> None:
        await gate.wait()
        raise Broken

    run = spawn(
        build(
            [
                task("A", TaskFunction(trace.waiting("A"), **limits)),
                task("B", TaskFunction(trace.spiteful("B", error), **limits)),
                task("C", fail),
            ]
        )
    )
    await until(lambda: "B" in trace)
    await asyncio.sleep(0)
    if by == "a sibling":
        gate.set()
    else:
        run.cancel()
    raised = await error_of(run)
    if by == "the caller":
        assert isinstance(raised, asyncio.CancelledError)
        raised = loop_errors.pop()["exception"]
    assert isinstance(raised, SdaxExecutionError)
    assert raised.exceptions[-1] is error
    assert trace == ["A", "B", "A cancelled"]
    assert states(raised.report) == {"A": "C--", "B": "F--", "C": "F--" if gate.is_set() else "C--"}


@virtual_clock
async def test_cleanup_is_retried_after_a_failure_and_a_cancellation() -> None:
    flaky = Flaky(RetryableException(), RetryableException())
    cleanup = TaskFunction(flaky, retries=2)
    await failure_of(solo(Trace().failing("A", Broken()), post=cleanup))
    assert flaky.calls == [0, 1, 3]

    flaky = Flaky(RetryableException(), RetryableException())
    run = spawn(solo(forever, post=TaskFunction(flaky, retries=2, initial_delay=10)))
    await passes(2)
    run.cancel()
    await until(lambda: flaky.calls)
    # Not even the pause before a retry is cut short in cleanup.
    await passes(2)
    run.cancel()
    assert isinstance(await error_of(run), asyncio.CancelledError)
    assert flaky.calls == [3, 13, 33]


@virtual_clock
async def test_a_failing_cleanup_does_not_keep_another_from_its_retries() -> None:
    flaky = Flaky(RetryableException())

    async def fail_later(ctx: Any) -> None:
        await asyncio.sleep(5)
        raise Broken

    error = await failure_of(
        build(
            [
                task("A", post=Trace().failing("A", Broken())),
                task("B", post=TaskFunction(flaky, retries=1, initial_delay=10)),
                task("C", post=fail_later),
            ]
        )
    )
    assert flaky.calls == [0, 10]
    assert states(error.report) == {"A": "--F", "B": "--+", "C": "--F"}


@virtual_clock
async def test_an_attempt_that_is_cancelled_after_an_earlier_one_timed_out() -> None:
    async def fails_later(ctx: Any) -> None:
        await asyncio.sleep(3)
        raise Broken

    slow = TaskFunction(forever, timeout=2, retries=1, initial_delay=0)
    error = await error_of(
        build([task("A", execute=slow), task("B", execute=fails_later)]).process_tasks(None)
    )
    assert isinstance(error, SdaxExecutionError)
    assert [failure.name for failure in error.failures] == ["B"]
    assert error.report["A"].execute.state is State.CANCELLED
    assert error.report["A"].execute.attempts == 2
