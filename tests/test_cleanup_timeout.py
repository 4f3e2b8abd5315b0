"""`cleanup_timeout` of a builder: a bound on all cleanup of a run together."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import AsyncIterator
from typing import Any

import pytest

from helpers import (
    Broken,
    Trace,
    current,
    error_of,
    forever,
    nothing,
    spawn,
    task,
    until,
)
from observing import OUTLINE, Recorder, broken_rules
from sdax import (
    AsyncDagTaskProcessor,
    AsyncTaskProcessor,
    RetryBudget,
    SdaxExecutionError,
    State,
    TaskFunction,
    resource,
    task_func,
    task_sync_func,
)
from sdax.observe import Event, RetrySuppressed

pytestmark = pytest.mark.virtual_clock

CUT = "cut off by cleanup_timeout: all cleanup of the run had 5.0 s"


def bounded(*levels: Any, **options: Any) -> AsyncTaskProcessor[Any, Any]:
    builder: Any = AsyncTaskProcessor.builder(cleanup_timeout=5.0, **options)
    for level, tasks in enumerate(levels):
        for each in tasks:
            builder.add_task(each, level)
    made: AsyncTaskProcessor[Any, Any] = builder.build()
    return made


def sleeping(seconds: float, trace: Trace | None = None) -> Any:
    async def sleep(ctx: Any) -> None:
        await asyncio.sleep(seconds)
        if trace is not None:
            trace.append(f"slept {seconds}")

    return sleep


async def failed(processor: AsyncTaskProcessor[Any, Any]) -> SdaxExecutionError:
    error = await error_of(processor.process_tasks(None))
    assert isinstance(error, SdaxExecutionError)
    return error


async def test_what_is_done_in_time_is_left_alone() -> None:
    trace = Trace()
    processor = bounded(
        [task("A", None, None, sleeping(2.0, trace))],
        [task("B", sleeping(100.0), sleeping(100.0), sleeping(2.5, trace))],
    )
    assert (await processor.process_tasks(None)).ok
    assert trace == ["slept 2.5", "slept 2.0"]


async def test_all_levels_together() -> None:
    began = asyncio.get_running_loop().time()
    error = await failed(
        bounded(
            [task("A", None, None, sleeping(1.0)), task("B", None, None, sleeping(4.0))],
            [task("C", sleeping(10.0), None, sleeping(3.0))],
        )
    )
    assert asyncio.get_running_loop().time() == began + 10.0 + 5.0
    assert [failure[:3] for failure in error.failures] == [("B", "post_execute", 1)]
    assert isinstance(error.exceptions[0], TimeoutError)
    assert str(error.exceptions[0]) == CUT
    assert error.report["B"].post_execute.state is State.TIMED_OUT


@pytest.mark.parametrize("is_graph", [False, True])
async def test_what_has_not_begun_has_no_time_beyond_its_first_suspension(is_graph: bool) -> None:
    trace = Trace()

    async def give_back(ctx: Any) -> None:
        trace.append("given back")
        await asyncio.sleep(0)
        trace.append("never")

    tasks = [
        task("A", nothing, None, give_back),
        task("B", nothing, None, trace.quick("B.post")),
        task("C", nothing, None, task_sync_func(lambda ctx: trace.append("C.post"))),
        task("D", nothing, None, sleeping(10.0)),
    ]
    builder: Any
    if is_graph:
        builder = AsyncDagTaskProcessor.builder(cleanup_timeout=5.0)
        for each, on in zip(tasks, ((), ("A",), ("A", "B"), ("A", "B", "C")), strict=True):
            builder.add_task(each, depends_on=on)
        builder.add_task(task("E", nothing), depends_on=("A",))
        processor = builder.build()
    else:
        processor = bounded(*([each] for each in tasks))
    error = await failed(processor)
    assert trace == ["C.post", "B.post", "given back"]
    assert [failure.name for failure in error.failures] == ["D", "A"]
    assert [str(each) for each in error.exceptions] == [CUT, CUT]


async def test_a_shorter_timeout_of_its_own_comes_first() -> None:
    error = await failed(
        bounded(
            [
                task("A", None, None, TaskFunction(sleeping(9.0), timeout=1.0)),
                task("B", None, None, TaskFunction(sleeping(9.0), timeout=9.0)),
            ]
        )
    )
    assert [str(each) for each in error.exceptions] == ["timed out after 1.0 s", CUT]


async def test_retries_end_with_it() -> None:
    trace = Trace()
    flaky = trace.failing("A.post", ConnectionError())
    made = task_func(flaky, retries=9, initial_delay=8.0, backoff_factor=1.0)
    error = await failed(bounded([task("A", None, None, made)]))
    assert 1 <= len(trace) <= 2
    assert isinstance(error.exceptions[0], ConnectionError)
    trace.clear()
    hanging = task_func(sleeping(60.0), retries=9, initial_delay=0.0)
    error = await failed(bounded([task("A", None, None, hanging)]))
    assert error.failures[0].attempts == 1
    assert str(error.exceptions[0]) == CUT


async def test_a_resource_is_cut_off_too() -> None:
    trace = Trace()

    async def held(ctx: Any) -> AsyncIterator[None]:
        await asyncio.sleep(60.0)
        try:
            yield
        finally:
            try:
                await forever()
            finally:
                trace.append(f"down, {current().cancelling()}")

    error = await failed(bounded([resource("R", held)], [resource("S", held, cleanup_timeout=1.0)]))
    assert trace == ["down, 1", "down, 1"]
    assert [str(each) for each in error.exceptions] == ["timed out after 1.0 s", CUT]


async def test_what_swallows_it_has_succeeded() -> None:
    trace = Trace()
    report = await bounded([task("A", None, None, trace.stubborn("A.post"))]).process_tasks(None)
    assert report["A"].post_execute.state is State.SUCCEEDED
    assert trace == ["A.post", "A.post swallowed"]


async def test_a_cancelled_run_is_bounded_as_well(loop_errors: list[Any]) -> None:
    trace = Trace()
    processor = bounded([task("A", None, trace.waiting("A"), trace.waiting("A.post"))])
    run = spawn(processor)
    await until(lambda: "A" in trace)
    run.cancel()
    assert isinstance(await error_of(run), asyncio.CancelledError)
    assert trace == ["A", "A cancelled", "A.post", "A.post cancelled"]
    assert "1 failure as well: post_execute of task 'A'" in loop_errors.pop()["message"]


async def test_observers_hear_of_it() -> None:
    events = Recorder()
    processor = bounded([task("A", None, None, sleeping(9.0))], [task("B", None, None, nothing)])
    await error_of(processor.process_tasks(None, observer=events))
    assert broken_rules(events) == []
    assert events.lines(*OUTLINE)[-1] == "A.post timed out after 1 TimeoutError"


async def test_each_run_begins_anew() -> None:
    processor = bounded([task("A", None, None, sleeping(4.0))])
    for _ in range(3):
        assert (await processor.process_tasks(None)).ok


async def test_with_max_concurrency() -> None:
    trace = Trace()
    processor = bounded(
        [task(name, None, None, trace.waiting(name)) for name in "ABC"], max_concurrency=1
    )
    error = await failed(processor)
    assert len(error.exceptions) == 3
    assert trace == ["A", "A cancelled", "B", "B cancelled", "C", "C cancelled"]


async def test_failures_of_the_work_come_first() -> None:
    error = await failed(bounded([task("A", None, Trace().failing("A", Broken()), sleeping(9.0))]))
    assert [type(each) for each in error.exceptions] == [Broken, TimeoutError]


@pytest.mark.parametrize("kind", [AsyncTaskProcessor, AsyncDagTaskProcessor])
def test_the_option(kind: Any) -> None:
    processor = kind.builder(cleanup_timeout=30).build()
    assert processor.cleanup_timeout == 30
    assert str(processor).endswith("cleanup within 30 s")
    assert kind.builder().build().cleanup_timeout is None
    assert processor != kind.builder().build()
    assert pickle.loads(pickle.dumps(processor)) == processor
    for wrong in (-1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"cleanup_timeout must be finite .* got {wrong}"):
            kind.builder(cleanup_timeout=wrong)
    with pytest.raises(TypeError, match="cleanup_timeout must be a number, got '5'"):
        kind.builder(cleanup_timeout="5")


@pytest.mark.loop_kinds("asyncio")
async def test_zero_leaves_what_returns_at_once() -> None:
    trace = Trace()
    builder: Any = AsyncTaskProcessor.builder(cleanup_timeout=0)
    builder.add_task(task("A", None, None, trace.quick("A")), 1)
    builder.add_task(task("B", None, None, trace.waiting("B")), 1)
    error = await failed(builder.build())
    assert trace == ["A", "B", "B cancelled"]
    assert len(error.exceptions) == 1


@pytest.mark.parametrize("delay", [60.0, 5.0])
async def test_a_retry_that_would_come_too_late(delay: float) -> None:
    """It is told, as that of any other limit, and no budget pays for it."""
    budget = RetryBudget()
    events: list[Event] = []
    limits: Any = {"retries": 3, "initial_delay": 2 * delay, "retry_budget": budget}
    function = TaskFunction(Trace().failing("A", ConnectionError()), **limits)
    processor = bounded([task("A", None, None, function)])
    balance = budget.balance
    error = await error_of(processor.process_tasks(None, observer=events.append))
    assert isinstance(error, SdaxExecutionError)
    reason = "the pause before it would reach cleanup_timeout=5 s"
    (failure,) = error.failures
    assert failure.attempts == 1
    assert f"no further attempt: {reason}" in failure.exception.__notes__
    assert [each.reason for each in events if isinstance(each, RetrySuppressed)] == [reason]
    assert budget.balance >= balance


async def test_a_retry_after_the_time_for_cleanup_is_over() -> None:
    function = TaskFunction(sleeping(6.0), retries=3, initial_delay=0)
    error = await failed(bounded([task("A", None, None, function)]))
    (failure,) = error.failures
    assert str(failure.exception) == CUT
    reason = "the pause before it would reach cleanup_timeout=5 s"
    assert f"no further attempt: {reason}" in failure.exception.__notes__


@pytest.mark.parametrize("own", [None, 3.0, 60.0])
async def test_a_resource_that_breaks(own: float | None) -> None:
    """It cannot keep the run for ever, and the others have their own time."""
    trace = Trace()

    async def broken(ctx: Any) -> AsyncIterator[None]:
        asyncio.get_running_loop().call_later(1.0, current().cancel)
        try:
            yield
        finally:
            trace.append("breaks")
            await forever(ctx)

    processor = bounded(
        [resource("Broken", broken, cleanup_timeout=own)],
        [task("A", None, forever, sleeping(4.0, trace))],
    )
    error = await failed(processor)
    assert trace == ["breaks", "slept 4.0"]
    (failure,) = error.failures
    assert failure.phase == "post_execute"
    assert str(failure.exception) == ("timed out after 3.0 s" if own == 3.0 else CUT)
    assert asyncio.get_running_loop().time() == 1.0 + (own if own == 3.0 else 5.0) + 4.0


async def test_a_resource_that_breaks_during_cleanup() -> None:
    """It has what is left."""

    async def broken(ctx: Any) -> AsyncIterator[None]:
        asyncio.get_running_loop().call_later(3.0, current().cancel)
        try:
            yield
        finally:
            await forever(ctx)

    error = await failed(
        bounded([resource("Broken", broken)], [task("A", None, None, sleeping(100.0))])
    )
    assert [str(each.exception) for each in error.failures] == [CUT, CUT]
    assert asyncio.get_running_loop().time() == 5.0
