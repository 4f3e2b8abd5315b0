"""Failures, timeouts and cancellations of a graph."""

from __future__ import annotations

import asyncio
import gc
from contextlib import suppress
from typing import Any

import pytest

from helpers import (
    Trace,
    before,
    counts_references,
    crooked,
    error_of,
    failure_of,
    forever,
    graph,
    nothing,
    spawn,
    states,
    task,
    until,
    without_collector,
)
from sdax import AsyncTask, SdaxExecutionError, TaskFunction, join


async def test_a_failed_pre_execute_stops_everything_else() -> None:
    trace = Trace()
    processor = graph(
        task("done", trace.quick("done"), nothing, trace.quick("done.post")),
        task("A", trace.failing("A", ValueError("A"), 3), nothing, trace.quick("A.post")),
        task("waits", trace.waiting("waits"), post=trace.quick("waits.post")),
        (task("next", trace.quick("next"), post=trace.quick("next.post")), ["A"]),
        (task("last", trace.quick("last"), post=trace.quick("last.post")), ["next", "done"]),
        (task("bare", execute=nothing, post=trace.quick("bare.post")), ["done"]),
        (task("not due", execute=nothing, post=trace.quick("not due.post")), ["waits"]),
    )
    error = await failure_of(processor)
    assert trace[:4] == ["done", "A", "waits", "waits cancelled"]
    assert sorted(trace[4:]) == ["A.post", "bare.post", "done.post", "waits.post"]
    assert before(trace, "bare.post", "done.post")
    assert [failure.name for failure in error.failures] == ["A"]
    assert states(error.report) == {
        "done": "+s+",
        "A": "Fs+",
        "waits": "C-+",
        "next": "s-s",
        "last": "s-s",
        "bare": "-s+",
        "not due": "-ss",
    }


async def test_started_without_pre_execute_means_that_the_dependencies_succeeded() -> None:
    """Through empty tasks too, and not through a task that was cancelled."""
    trace = Trace()
    processor = graph(
        task("A", trace.quick("A")),
        (join("J"), ["A"]),
        (task("through", post=trace.quick("through")), ["J"]),
        (task("further", post=trace.quick("further")), ["through", "A"]),
        task("F", trace.failing("F", ValueError(), 1)),
        (task("behind", post=trace.quick("behind")), ["F"]),
        (task("beside", post=trace.quick("beside")), ["behind", "A"]),
        task("root", post=trace.quick("root")),
    )
    error = await failure_of(processor)
    assert trace[:2] == ["A", "F"]
    assert sorted(trace[2:]) == ["further", "root", "through"]
    assert before(trace, "further", "through")
    assert states(error.report)["behind"] == states(error.report)["beside"] == "--s"


async def test_siblings_not_yet_called_are_never_called() -> None:
    trace = Trace()
    processor = graph(
        task("A", trace.failing("A", ValueError())),
        task("B", trace.quick("B"), post=trace.quick("B.post")),
        (task("C", trace.quick("C"), post=trace.quick("C.post")), ["A"]),
        (task("D", trace.quick("D"), post=trace.quick("D.post")), ["A", "B"]),
    )
    await failure_of(processor)
    assert trace == ["A"]


async def test_a_cancelled_task_that_returns_opens_nothing() -> None:
    trace = Trace()
    processor = graph(
        task("A", trace.stubborn("A"), post=trace.quick("A.post")),
        task("F", trace.failing("F", ValueError(), 1)),
        (task("B", trace.quick("B"), post=trace.quick("B.post")), ["A"]),
        (task("C", post=trace.quick("C.post")), ["A", "F"]),
    )
    error = await failure_of(processor)
    assert trace == ["A", "F", "A swallowed", "A.post"]
    assert states(error.report) == {"A": "+-+", "F": "F--", "B": "s-s", "C": "--s"}


async def test_a_failed_cleanup_holds_nothing_up() -> None:
    trace = Trace()
    errors = [ValueError(str(number)) for number in range(3)]
    processor = graph(
        task("A", post=trace.failing("A", errors[2])),
        (task("B", post=trace.failing("B", errors[0])), ["A"]),
        (task("C", post=trace.failing("C", errors[1], 5)), ["A"]),
        (task("D", post=trace.pausing("D")), ["B"]),
        task("E", post=trace.pausing("E", 9)),
    )
    error = await failure_of(processor)
    assert [*error.exceptions] == errors
    assert trace == ["C", "D", "E", "D done", "B", "A", "E done"]


async def test_cleanup_passes_over_what_is_not_due() -> None:
    """What nobody cleans up counts as cleaned up, for what it depends on."""
    trace = Trace()
    processor = graph(
        task("A", trace.quick("A"), post=trace.quick("A.post")),
        (task("B", trace.pausing("B"), post=trace.pausing("B.post")), ["A"]),
        (task("F", trace.failing("F", ValueError(), 3)), ["B"]),
        (task("X", trace.quick("X"), post=trace.quick("X.post")), ["F", "A"]),
        (task("Y", trace.quick("Y"), post=trace.quick("Y.post")), ["X", "B"]),
    )
    await failure_of(processor)
    assert trace == ["A", "B", "B done", "F", "B.post", "B.post done", "A.post"]


async def test_a_retry_holds_up_what_depends_on_it() -> None:
    trace = Trace()
    outcomes = iter([ConnectionError(), ConnectionError(), None])

    async def flaky(ctx: Any) -> None:
        trace.append("flaky")
        if error := next(outcomes):
            raise error

    processor = graph(
        task("A", TaskFunction(flaky, retries=2, initial_delay=0)),
        (task("B", trace.quick("B")), ["A"]),
        task("C", trace.pausing("C")),
        (task("D", trace.quick("D")), ["B", "C"]),
    )
    report = await processor.process_tasks(None)
    assert trace.count("flaky") == 3
    assert before(trace, "flaky", "C", "C done", "D")
    assert before(trace[::-1], "D", "B", "flaky")
    assert report["A"].pre_execute.attempts == 3


@pytest.mark.virtual_clock
async def test_a_timeout_in_the_middle() -> None:
    trace = Trace()
    processor = graph(
        task("A", nothing, post=trace.quick("A")),
        (task("B", TaskFunction(forever, timeout=2), post=trace.quick("B")), ["A"]),
        (task("C", trace.waiting("C"), post=trace.quick("C.post")), ["A"]),
        (task("D", nothing, post=trace.quick("D")), ["B"]),
    )
    error = await failure_of(processor)
    assert states(error.report) == {"A": "+-+", "B": "T-+", "C": "C-+", "D": "s-s"}
    assert trace == ["C", "C cancelled", "B", "C.post", "A"]


@pytest.mark.parametrize("phase", ["pre_execute", "execute"])
@pytest.mark.parametrize("order", ["at once", "dependency"])
async def test_cancelling_the_caller(phase: str, order: Any) -> None:
    trace = Trace()

    def waits(name: str) -> AsyncTask[Any, Any]:
        function = TaskFunction(trace.waiting(name))
        return AsyncTask(
            name, post_execute=TaskFunction(trace.pausing(f"{name}.post")), **{phase: function}
        )

    processor = graph(
        task("A", nothing, nothing, trace.pausing("A.post")),
        (waits("B"), ["A"]),
        (waits("C"), ["A"]),
        (task("D", nothing, nothing, trace.quick("D.post")), ["B"]),
        execute_order=order,
    )
    run = spawn(processor)
    await until(lambda: {"B", "C"} <= {*trace})
    run.cancel()
    error = await error_of(run)
    assert isinstance(error, asyncio.CancelledError)
    cleanups = [label for label in trace if label.endswith("post")]
    if phase == "execute":
        assert cleanups == ["C.post", "D.post", "B.post", "A.post"]
    else:
        assert cleanups == ["B.post", "C.post", "A.post"]
    assert {"B cancelled", "C cancelled", "A.post done"} <= {*trace}


async def test_cancelling_the_caller_interrupts_no_cleanup() -> None:
    trace = Trace()
    processor = graph(
        task("A", post=trace.pausing("A", 3)),
        (task("B", post=trace.pausing("B", 3)), ["A"]),
        (task("C", post=trace.pausing("C", 5)), ["A"]),
        (task("D", post=trace.pausing("D", 1)), ["B"]),
    )
    run = spawn(processor)
    await until(lambda: "B" in trace)
    run.cancel()
    assert isinstance(await error_of(run), asyncio.CancelledError)
    assert {f"{name} done" for name in "ABCD"} <= {*trace}


@pytest.mark.parametrize("phase", ["pre", "execute", "post"])
async def test_what_is_no_exception(phase: str) -> None:
    trace = Trace()
    interrupt = KeyboardInterrupt()
    functions = {"pre": nothing, "execute": nothing, "post": trace.quick("B.post")}
    functions[phase] = trace.failing("B", interrupt, 1)
    processor = graph(
        task("A", nothing, nothing, trace.quick("A.post")),
        (task("B", **functions), ["A"]),
        (task("C", nothing, nothing, trace.quick("C.post")), ["B"]),
        (task("D", nothing, nothing, trace.quick("D.post")), ["A"]),
    )
    assert await error_of(processor.process_tasks(None)) is interrupt
    assert ("C.post" in trace) == (phase != "pre")
    assert before(trace, "D.post", "A.post")


async def test_errors_that_leave_a_graph_are_its_functions_own() -> None:
    error = ValueError("mine")
    processor = crooked(
        task("A", nothing), task("B", Trace().failing("B", error, 1)), task("C", nothing)
    )
    caught = await failure_of(processor)
    assert caught.exceptions == (error,)
    assert error.__notes__ == ["task 'B', pre_execute, attempt 1 of 1"]


@counts_references
async def test_a_run_of_a_graph_leaves_no_cycles() -> None:
    processor = crooked(
        *(task(n, nothing, nothing, Trace().pausing("")) for n in range(4)),
        execute_order="dependency",
    )
    failing = crooked(
        task("A", nothing), task("B", Trace().failing("B", ValueError(), 1)), task("C", nothing)
    )

    async def both() -> None:
        await processor.process_tasks(None)
        with suppress(SdaxExecutionError):
            await failing.process_tasks(None)

    await both()
    with without_collector():
        await both()
        assert gc.collect() == 0
