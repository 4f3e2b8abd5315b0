"""Runs that keep going after a failure: `on_failure="keep going"`."""

from __future__ import annotations

import asyncio
import pickle
from typing import Any

import pytest

from helpers import (
    Trace,
    before,
    error_of,
    failure_of,
    forever,
    nothing,
    soon_or_late,
    states,
    task,
    until,
)
from helpers import build as build_levels
from helpers import graph as build_graph
from observing import Recorder
from sdax import AsyncDagTaskProcessor, AsyncTaskProcessor, TaskCancelledError, TaskFunction
from sdax.observe import CancellationRequested, RunFinished, TaskSkipped

ONE = ValueError("one")
TWO = OSError("two")


def levels(*members: Any, **options: Any) -> Any:
    return build_levels(*members, on_failure="keep going", **options)


def graph(*added: Any, **options: Any) -> Any:
    return build_graph(*added, on_failure="keep going", **options)


@soon_or_late
async def test_the_rest_of_the_level_runs_and_what_is_above_is_skipped(number: int) -> None:
    trace = Trace()
    error = await failure_of(
        levels(
            [task("base", nothing, trace.quick("base"), trace.quick("base.post"))],
            [
                task("A", trace.failing("A", ONE, number), trace.quick("A.execute"), nothing),
                task("B", trace.pausing("B", 3), trace.pausing("B.execute"), nothing),
                task("C", trace.failing("C", TWO, 2), nothing, nothing),
                task("bare", execute=trace.quick("bare"), post=nothing),
            ],
            [task("above", trace.quick("above"), nothing, nothing)],
            [task("bare above", execute=trace.quick("bare above"), post=nothing)],
        )
    )
    assert error.exceptions == (ONE, TWO)
    assert states(error.report) == {
        "base": "+++",
        "A": "Fs+",
        "B": "+++",
        "C": "Fs+",
        "bare": "-++",
        "above": "sss",
        "bare above": "-ss",
    }
    assert before(trace, "B done", "base", "B.execute", "bare", "B.execute done", "base.post")


@soon_or_late
@pytest.mark.parametrize("order", ["at once", "dependency"])
async def test_every_other_branch_of_a_graph_runs(number: int, order: Any) -> None:
    trace = Trace()
    error = await failure_of(
        graph(
            task("root", nothing, trace.quick("root.execute"), trace.quick("root.post")),
            (task("A", trace.failing("A", ONE, number), nothing, trace.quick("A.post")), ["root"]),
            (task("A1", trace.quick("A1"), nothing, nothing), ["A"]),
            (task("A2", execute=trace.quick("A2"), post=nothing), ["A1"]),
            (task("B", trace.pausing("B", 2), trace.quick("B.execute"), nothing), ["root"]),
            (task("B1", trace.pausing("B1"), trace.quick("B1.execute"), nothing), ["B"]),
            (task("both", trace.quick("both"), nothing, nothing), ["A", "B1"]),
            execute_order=order,
        )
    )
    assert error.exceptions == (ONE,)
    assert states(error.report) == {
        "root": "+++",
        "A": "Fs+",
        "A1": "sss",
        "A2": "-ss",
        "B": "+++",
        "B1": "+++",
        "both": "sss",
    }
    assert before(trace, "B1 done", "root.execute", "B.execute", "B1.execute", "A.post")
    assert trace[-1] == "root.post"


@soon_or_late
async def test_a_failed_execute_stops_no_other(number: int) -> None:
    trace = Trace()
    processor = levels(
        [
            task("A", execute=trace.failing("A", ONE, number), post=trace.quick("A.post")),
            task("B", execute=trace.pausing("B", 2)),
        ],
        [task("C", nothing, trace.failing("C", TWO, 1))],
        [task("D", execute=trace.pausing("D", 3))],
    )
    error = await failure_of(processor)
    assert {*error.exceptions} == {ONE, TWO}
    assert states(error.report) == {"A": "-F+", "B": "-+-", "C": "+F-", "D": "-+-"}
    assert before(trace, "B done", "D done", "A.post")


async def test_execute_in_order_of_levels() -> None:
    trace = Trace()
    error = await failure_of(
        levels(
            [
                task("A", nothing, trace.failing("A", ONE), nothing),
                task("B", nothing, trace.pausing("B", 2), nothing),
            ],
            [task("C", nothing, trace.quick("C"), trace.quick("C.post"))],
            execute_order="level",
        )
    )
    assert states(error.report) == {"A": "+F+", "B": "+++", "C": "+s+"}
    assert trace == ["A", "B", "B done", "C.post"]


async def test_execute_in_order_of_dependencies() -> None:
    trace = Trace()
    error = await failure_of(
        graph(
            task("A", nothing, trace.failing("A", ONE, 1), nothing),
            task("B", nothing, trace.pausing("B", 2), nothing),
            (task("A1", nothing, trace.quick("A1"), nothing), ["A"]),
            (task("B1", nothing, trace.quick("B1"), nothing), ["B"]),
            (task("both", nothing, trace.quick("both"), nothing), ["A1", "B1"]),
            (task("bare", post=nothing), ["A"]),
            execute_order="dependency",
        )
    )
    assert states(error.report) == {
        "A": "+F+",
        "B": "+++",
        "A1": "+s+",
        "B1": "+++",
        "both": "+s+",
        "bare": "--+",
    }
    assert trace == ["A", "B", "B done", "B1"]


async def test_a_failed_pre_execute_and_then_execute_in_order() -> None:
    trace = Trace()
    error = await failure_of(
        levels(
            [task("A", trace.failing("A", ONE), nothing), task("B", nothing, trace.quick("B"))],
            [task("C", nothing, trace.quick("C"))],
            execute_order="level",
        )
    )
    assert states(error.report) == {"A": "Fs-", "B": "++-", "C": "ss-"}
    assert trace == ["A", "B"]


async def test_a_task_that_is_not_required_holds_up_nothing() -> None:
    trace = Trace()
    error = await failure_of(
        graph(
            task("A", trace.failing("A", ONE), required=False),
            (task("A1", trace.quick("A1"), nothing), ["A"]),
            (task("B", trace.failing("B", TWO), nothing), ["A"]),
            (task("B1", trace.quick("B1"), required=False), ["B"]),
            (task("B2", trace.quick("B2")), ["B1"]),
        )
    )
    assert error.exceptions == (TWO,)
    assert [failure.name for failure in error.report.failures] == ["A", "B"]
    assert states(error.report) == {"A": "F--", "A1": "++-", "B": "Fs-", "B1": "s--", "B2": "s--"}


@pytest.mark.parametrize("places", [1, 2])
async def test_with_few_places(places: int) -> None:
    trace = Trace()
    error = await failure_of(
        levels(
            [
                task("A", trace.failing("A", ONE, 2), nothing),
                task("B", trace.pausing("B", 1), trace.failing("B.execute", TWO, 1)),
                task("C", trace.pausing("C", 1), trace.pausing("C.execute", 1)),
                task("D", trace.quick("D"), trace.pausing("D.execute", 1)),
            ],
            [task("E", trace.quick("E"))],
            max_concurrency=places,
        )
    )
    assert error.exceptions == (ONE, TWO)
    assert states(error.report) == {"A": "Fs-", "B": "+F-", "C": "++-", "D": "++-", "E": "s--"}


async def test_every_started_task_cleans_up_and_all_failures_are_raised() -> None:
    lost = KeyError("lost")
    error = await failure_of(
        levels(
            [
                task("A", Trace().failing("A", ONE), post=Trace().failing("A.post", lost)),
                task("B", nothing, Trace().failing("B", TWO), nothing),
            ]
        )
    )
    assert error.exceptions == (ONE, TWO, lost)


async def test_after_a_timeout_and_after_retries() -> None:
    calls: list[int] = []

    async def always_down(ctx: Any) -> None:
        calls.append(1)
        raise ConnectionError

    error = await failure_of(
        levels(
            [
                task("A", TaskFunction(forever, timeout=0), nothing),
                task("B", TaskFunction(always_down, retries=2, initial_delay=0), nothing),
                task("C", nothing, nothing),
            ]
        )
    )
    assert states(error.report) == {"A": "Ts-", "B": "Fs-", "C": "++-"}
    assert len(calls) == 3


async def test_a_cancellation_that_nobody_asked_for_is_a_failure() -> None:
    async def cancels_itself(ctx: Any) -> None:
        raise asyncio.CancelledError

    error = await failure_of(levels([task("A", cancels_itself, nothing), task("B", nothing)]))
    assert isinstance(error.exceptions[0], TaskCancelledError)
    assert states(error.report) == {"A": "Fs-", "B": "+--"}


@pytest.mark.parametrize("phase", ["pre", "execute"])
async def test_what_is_no_exception_stops_the_run_as_ever(phase: str) -> None:
    trace = Trace()
    interrupt = KeyboardInterrupt()

    def member(name: str, function: Any) -> Any:
        return task(name, **{phase: function, "post": trace.quick(f"{name}.post")})

    processor = levels(
        [
            member("A", trace.failing("A", ONE)),
            member("B", trace.failing("B", interrupt, 1)),
            member("C", trace.waiting("C")),
        ]
    )
    error = await error_of(processor.process_tasks(None))
    assert error is interrupt
    assert error.__context__.exceptions == (ONE,)  # type: ignore[union-attr]
    assert trace == ["A", "B", "C", "C cancelled", "A.post", "B.post", "C.post"]


@pytest.mark.parametrize("phase", ["pre", "execute"])
async def test_cancelling_the_caller_stops_the_run_as_ever(phase: str) -> None:
    trace = Trace()
    recorder = Recorder()

    def member(name: str, function: Any) -> Any:
        return task(name, **{phase: function, "post": trace.quick(f"{name}.post")})

    processor = graph(
        member("A", trace.failing("A", ONE)),
        member("B", trace.waiting("B")),
        (member("A1", trace.quick("A1")), ["A"]),
        (member("B1", trace.quick("B1")), ["B"]),
        execute_order="dependency",
    )
    loop = asyncio.get_running_loop()
    run = loop.create_task(processor.process_tasks(None, observer=recorder))
    handled: list[Any] = []
    handler = loop.get_exception_handler()
    loop.set_exception_handler(lambda _, context: handled.append(context["exception"]))
    await until(lambda: "B" in trace)
    run.cancel()
    error = await error_of(run)
    loop.set_exception_handler(handler)
    assert isinstance(error, asyncio.CancelledError)
    (failure,) = handled
    assert failure is error.__context__ and failure.exceptions == (ONE,)
    assert "B cancelled" in trace and "A1" not in trace and "B1" not in trace
    first = {"pre": "pre", "execute": "execute"}[phase]
    lines = recorder.lines(CancellationRequested, TaskSkipped)
    assert lines[:3] == [
        f"{first} cancelled",
        f"A1.{first} skipped because of A.{first}",
        f"B1.{first} skipped",
    ]
    if phase == "execute":
        assert trace[-4:] == ["A1.post", "B1.post", "A.post", "B.post"]
    else:
        assert trace[-2:] == ["A.post", "B.post"]


async def test_observers_hear_because_of_what_each_task_is_skipped() -> None:
    recorder = Recorder()
    processor = graph(
        task("A", Trace().failing("A", ONE, 2), nothing),
        task("B", Trace().failing("B", TWO, 1), nothing),
        (task("A1", nothing, nothing), ["A"]),
        (task("B1", execute=nothing, post=nothing), ["B"]),
        (task("both", nothing), ["A1", "B1"]),
        (task("A2", nothing), ["A1"]),
    )
    with pytest.raises(ExceptionGroup):
        await processor.process_tasks(None, observer=recorder)
    assert recorder.lines(TaskSkipped, CancellationRequested, RunFinished) == [
        "A1.pre skipped because of A.pre",
        "both.pre skipped because of B.pre",  # which failed before A
        "A2.pre skipped because of A.pre",
        "A.execute skipped because of A.pre",
        "B.execute skipped because of B.pre",
        "A1.execute skipped because of A.pre",
        "B1.execute skipped because of B.pre",
        "B1.post skipped because of B.pre",
        "run failed SdaxExecutionError",
    ]


async def test_observers_hear_the_same_of_levels() -> None:
    recorder = Recorder()
    processor = levels(
        [
            task("A", Trace().failing("A", ONE, 2), nothing),
            task("B", Trace().failing("B", TWO, 1), nothing),
        ],
        [task("C", nothing, nothing)],
        [task("D", post=nothing)],
    )
    with pytest.raises(ExceptionGroup):
        await processor.process_tasks(None, observer=recorder)
    assert recorder.lines(TaskSkipped) == [
        "C.pre skipped because of B.pre",
        "A.execute skipped because of A.pre",
        "B.execute skipped because of B.pre",
        "C.execute skipped because of B.pre",
        "D.post skipped because of B.pre",
    ]


@pytest.mark.parametrize("observer", [None, Recorder()])
async def test_phase_by_phase(observer: Any) -> None:
    trace = Trace()
    processor = levels(
        [
            task("A", trace.failing("A", ONE), trace.quick("A.execute"), trace.quick("A.post")),
            task("B", nothing, trace.failing("B", TWO), trace.quick("B.post")),
        ],
        [task("C", nothing, trace.quick("C"), trace.quick("C.post"))],
    )
    with pytest.raises(ExceptionGroup) as caught:
        async with processor.open(None, observer=observer) as run:
            assert await run.run_next()
            assert run.failures() == [ONE]
            assert await run.run_next()
            assert run.failures() == [ONE, TWO]
            assert not await run.run_next()
    assert caught.value.exceptions == (ONE, TWO)
    assert trace == ["A", "B", "A.post", "B.post"]


@pytest.mark.parametrize("observer", [None, Recorder()])
@pytest.mark.parametrize("in_graph", [False, True])
async def test_leaving_the_block_after_pre_execute(in_graph: bool, observer: Any) -> None:
    trace = Trace()
    members = [
        task("A", trace.failing("A", ONE), nothing, trace.quick("A.post")),
        task("B", nothing, trace.quick("B.execute"), trace.quick("B.post")),
        task("C", nothing, trace.quick("C"), trace.quick("C.post")),
    ]
    if in_graph:
        extra = task("D", nothing, nothing, nothing)
        added = [members[0], members[1], (members[2], ["A"]), (extra, ["B"])]
        processor = graph(*added, execute_order="dependency")
    else:
        processor = levels(members[:2], members[2:])
    with pytest.raises(ExceptionGroup) as caught:
        async with processor.open(None, observer=observer) as run:
            await run.run_next()
    assert trace == ["A", "A.post", "B.post"]
    expected = {"A": "Fs+", "B": "+s+", "C": "sss"} | ({"D": "+s+"} if in_graph else {})
    assert states(caught.value.report) == expected  # type: ignore[attr-defined]


async def test_a_graph_that_is_a_sequence_of_levels() -> None:
    error = await failure_of(
        graph(
            task("A", Trace().failing("A", ONE), nothing),
            (task("B", nothing, nothing, nothing), ["A"]),
            (task("C", execute=nothing, post=nothing), ["B"]),
        )
    )
    assert states(error.report) == {"A": "Fs-", "B": "sss", "C": "-ss"}


async def test_a_run_without_failures_is_as_ever() -> None:
    trace = Trace()
    processor = levels([trace.task("A")], [trace.task("B", number=1)])
    report = await processor.process_tasks(None)
    assert report.ok
    assert states(report) == {"A": "+++", "B": "+++"}


async def test_cancel_is_the_default() -> None:
    trace = Trace()
    for options in ({}, {"on_failure": "cancel"}):
        processor = build_levels(
            [task("A", trace.failing("A", ONE, 1)), task("B", trace.waiting("B"))], **options
        )
        assert processor.on_failure == "cancel"
        assert (await failure_of(processor)).exceptions == (ONE,)


def test_it_is_part_of_the_processor() -> None:
    for one, other in (
        (build_levels([task("A", nothing)]), levels([task("A", nothing)])),
        (build_graph(task("A", nothing)), graph(task("A", nothing))),
    ):
        assert (one.on_failure, other.on_failure) == ("cancel", "keep going")
        assert one != other
        assert pickle.loads(pickle.dumps(other)) == other
        assert hash(pickle.loads(pickle.dumps(other))) == hash(other)
        assert other.replaced({}).on_failure == "keep going"


@pytest.mark.parametrize("value", [None, True, "keep-going", "ignore", 7])
@pytest.mark.parametrize("kind", [AsyncTaskProcessor, AsyncDagTaskProcessor])
def test_anything_else_is_refused(kind: Any, value: Any) -> None:
    with pytest.raises(ValueError, match="on_failure must be 'cancel' or 'keep going', got"):
        kind.builder(on_failure=value)
