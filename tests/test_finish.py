"""Functions that end a run early, with success: they return `Finish`."""

from __future__ import annotations

import asyncio
import pickle
from typing import Any

import pytest

import sdax
from attempts import Flaky
from helpers import (
    Trace,
    build,
    error_of,
    failure_of,
    graph,
    nothing,
    passes,
    solo,
    soon_or_late,
    states,
    task,
    until,
)
from observing import Recorder
from sdax import (
    Done,
    Finish,
    RunReport,
    TaskFunction,
    hedged,
    task_group_func,
    task_sync_func,
    task_thread_func,
)
from sdax.observe import (
    AttemptFinished,
    CancellationRequested,
    RunFinished,
    TaskFinished,
    TaskSkipped,
)


def finishing(trace: Trace, label: str, value: Any = None, number: int = 0) -> Any:
    return (
        trace.pausing(label, number, Finish(value)) if number else trace.quick(label, Finish(value))
    )


@soon_or_late
async def test_in_execute(number: int) -> None:
    trace = Trace()
    report = await build(
        [
            task("A", nothing, trace.waiting("A"), trace.quick("A.post")),
            task("B", nothing, finishing(trace, "B", 42, number), trace.quick("B.post")),
            task("C", nothing, trace.waiting("C"), trace.quick("C.post")),
        ],
    ).process_tasks(None)
    assert report.finished_by == "B"
    assert report["B"].execute.value == 42
    assert report.ok and report.failures == ()
    called = "C" if number else "s"
    assert states(report) == {"A": "+C+", "B": "+++", "C": f"+{called}+"}
    assert trace[-3:] == ["A.post", "B.post", "C.post"]
    assert "A cancelled" in trace


@soon_or_late
async def test_in_pre_execute(number: int) -> None:
    trace = Trace()
    report = await build(
        [
            task("A", trace.waiting("A"), trace.quick("A.execute"), trace.quick("A.post")),
            task("B", finishing(trace, "B", 42, number), trace.quick("B.execute"), nothing),
        ],
        [task("C", trace.quick("C"), trace.quick("C.execute"), trace.quick("C.post"))],
    ).process_tasks(None)
    assert report.finished_by == "B"
    assert report["B"].pre_execute.value == 42
    assert states(report) == {"A": "Cs+", "B": "+s+", "C": "sss"}
    assert trace[-2:] == ["A cancelled", "A.post"]


@soon_or_late
@pytest.mark.parametrize("order", ["at once", "dependency"])
async def test_in_a_graph(number: int, order: Any) -> None:
    trace = Trace()
    report = await graph(
        task("A", nothing, nothing, trace.quick("A.post")),
        (task("B", finishing(trace, "B", 1, number), nothing, trace.quick("B.post")), ["A"]),
        (task("C", trace.waiting("C"), nothing, trace.quick("C.post")), ["A"]),
        (task("D", trace.quick("D"), nothing, trace.quick("D.post")), ["B"]),
        (task("bare", execute=trace.quick("bare"), post=trace.quick("bare.post")), ["B"]),
        execute_order=order,
    ).process_tasks(None)
    called = "C" if number else "s"
    started = "+" if number else "s"
    assert states(report) == {
        "A": "+s+",
        "B": "+s+",
        "C": f"{called}s{started}",
        "D": "sss",
        "bare": "-ss",
    }
    assert "bare.post" not in trace and trace[-1] == "A.post"


async def test_in_dependency_order() -> None:
    trace = Trace()
    report = await graph(
        task("A", nothing, finishing(trace, "A", None, 1), nothing),
        (task("B", nothing, trace.quick("B"), nothing), ["A"]),
        (task("C", nothing, trace.quick("C"), nothing), ["A", "B"]),
        execute_order="dependency",
    ).process_tasks(None)
    assert states(report) == {"A": "+++", "B": "+s+", "C": "+s+"}
    assert report.finished_by == "A"
    assert report["A"].execute.value is None


async def test_the_first_one_wins_and_a_later_one_is_a_plain_value() -> None:
    trace = Trace()
    report = await build(
        [
            task("A", execute=trace.stubborn("A", Finish("late"))),
            task("B", execute=finishing(trace, "B", "first", 1)),
            task("C", execute=trace.stubborn("C", "plain")),
        ]
    ).process_tasks(None)
    assert report.finished_by == "B"
    assert [report[name].execute.value for name in "ABC"] == ["late", "first", "plain"]
    assert states(report) == {"A": "-+-", "B": "-+-", "C": "-+-"}


async def test_one_that_comes_after_a_failure_is_a_plain_value() -> None:
    trace = Trace()
    broken = ValueError("broken")
    error = await failure_of(
        build(
            [
                task("A", execute=trace.stubborn("A", Finish("late"))),
                task("B", execute=trace.failing("B", broken, 1)),
            ]
        )
    )
    assert error.exceptions == (broken,)
    assert error.report.finished_by is None
    assert error.report["A"].execute.value == "late"


async def test_one_that_comes_after_a_cancellation_is_a_plain_value() -> None:
    trace = Trace()
    processor = build([task("A", execute=trace.stubborn("A", Finish(1)), post=trace.quick("post"))])
    run = asyncio.get_running_loop().create_task(processor.process_tasks(None))
    await until(lambda: trace)
    run.cancel()
    assert isinstance(await error_of(run), asyncio.CancelledError)
    assert trace == ["A", "A swallowed", "post"]


async def test_a_failure_of_a_sibling_on_the_way_is_the_runs() -> None:
    trace = Trace()
    broken = ValueError("broken")
    error = await failure_of(
        build(
            [
                task("A", execute=trace.spiteful("A", broken), post=trace.quick("A.post")),
                task("B", execute=finishing(trace, "B", 42, 1)),
            ]
        )
    )
    assert error.exceptions == (broken,)
    assert error.report.finished_by == "B"
    assert error.report["B"].execute.value == 42
    assert trace[-1] == "A.post"


async def test_a_failure_of_a_cleanup_is_the_runs() -> None:
    lost = OSError("lost")
    error = await failure_of(solo(finishing(Trace(), "", 1), nothing, Trace().failing("", lost)))
    assert error.exceptions == (lost,)
    assert error.report.finished_by == "A"


async def test_a_sibling_that_is_not_required_may_fail_on_the_way() -> None:
    report = await build(
        [
            task("A", execute=Trace().spiteful("A", ValueError()), required=False),
            task("B", execute=finishing(Trace(), "B", 42, 1)),
        ]
    ).process_tasks(None)
    assert report.finished_by == "B"
    assert not report.ok


async def test_what_is_no_exception_on_the_way_is_raised() -> None:
    interrupt = KeyboardInterrupt()
    trace = Trace()
    processor = build(
        [
            task("A", execute=trace.spiteful("A", interrupt), post=trace.quick("A.post")),
            task("B", execute=finishing(trace, "B", 42, 1)),
        ]
    )
    assert await error_of(processor.process_tasks(None)) is interrupt
    assert trace[-1] == "A.post"


async def test_a_cancellation_on_the_way_is_raised_after_the_cleanup() -> None:
    trace = Trace()
    processor = build([task("A", finishing(trace, "A", 1), post=trace.pausing("post", 3))])
    run = asyncio.get_running_loop().create_task(processor.process_tasks(None))
    await until(lambda: "post" in trace)
    run.cancel()
    assert isinstance(await error_of(run), asyncio.CancelledError)
    assert trace[-1] == "post done"


@pytest.mark.parametrize("limits", [{}, {"timeout": 5.0, "retries": 2}])
async def test_returned_by_a_cleanup_it_is_a_failure(limits: Any) -> None:
    trace = Trace()
    error = await failure_of(
        build(
            [
                task("A", post=TaskFunction(finishing(trace, "A", 5, 1), **limits)),
                task("B", post=trace.pausing("B", 3)),
            ]
        )
    )
    (raised,) = error.exceptions
    assert isinstance(raised, TypeError)
    assert str(raised) == (
        "post_execute of task 'A' returned Finish(value=5), but only a pre_execute or an execute "
        "can finish a run; return the value itself"
    )
    assert states(error.report) == {"A": "--F", "B": "--+"}
    assert error.report.finished_by is None
    assert trace.count("A") == 1 and "B done" in trace


@pytest.mark.parametrize("phase", ["pre", "execute"])
async def test_by_a_task_that_is_not_required(phase: str) -> None:
    trace = Trace()
    report = await build(
        [
            task("A", **{phase: finishing(trace, "A", 7, 1)}, required=False),
            task("B", **{phase: trace.waiting("B")}),
        ]
    ).process_tasks(None)
    assert report.finished_by == "A"
    assert "B cancelled" in trace


async def test_in_a_run_that_keeps_going() -> None:
    trace = Trace()
    broken = ValueError("broken")
    error = await failure_of(
        build(
            [
                task("A", trace.failing("A", broken), nothing, trace.quick("A.post")),
                task("B", finishing(trace, "B", 1, 1), trace.quick("B.execute"), nothing),
                task("C", trace.waiting("C"), nothing, trace.quick("C.post")),
            ],
            on_failure="keep going",
        )
    )
    assert error.exceptions == (broken,)
    assert error.report.finished_by == "B"
    assert states(error.report) == {"A": "Fs+", "B": "+s+", "C": "Cs+"}


async def test_after_retries() -> None:
    class Finishing(Flaky):
        async def __call__(self, ctx: Any) -> Any:
            return Finish(await super().__call__(ctx))

    function = TaskFunction(Finishing(ConnectionError()), retries=1, initial_delay=0)
    report = await build(
        [task("A", execute=function), task("B", execute=Trace().waiting("B"))]
    ).process_tasks(None)
    assert report.finished_by == "A"
    assert report["A"].execute[:3] == ("succeeded", 2, "done")


@pytest.mark.parametrize("places", [1, 2])
async def test_with_few_places(places: int) -> None:
    trace = Trace()
    report = await build(
        [
            task("A", execute=finishing(trace, "A", 1, 2)),
            task("B", execute=trace.waiting("B")),
            task("C", execute=trace.quick("C")),
        ],
        max_concurrency=places,
    ).process_tasks(None)
    assert report.finished_by == "A"
    assert states(report) == {"A": "-+-", "B": f"-{'s' if places == 1 else 'C'}-", "C": "-s-"}


async def test_by_any_kind_of_function() -> None:
    async def finish(ctx: Any) -> Any:
        return Finish(1)

    async def finish_with_group(ctx: Any, group: Any) -> Any:
        group.create_task(passes(2))
        return Finish(1)

    functions = [
        finish,
        task_sync_func(lambda ctx: Finish(1)),
        task_group_func(finish_with_group),
        TaskFunction(hedged(finish, 5.0)),
    ]
    for function in functions:
        report = await build(
            [task("A", execute=function), task("B", execute=Trace().waiting("B"))]
        ).process_tasks(None)
        assert report.finished_by == "A"
        assert report["A"].execute.value == 1
    stubbed = solo(execute=nothing).replaced({"A": Done(Finish(2))})
    assert (await stubbed.process_tasks(None)).finished_by == "A"


async def test_by_a_thread() -> None:
    report = await solo(execute=task_thread_func(lambda ctx: Finish(1))).process_tasks(None)
    assert report.finished_by == "A"


async def test_a_run_inside_of_a_run_ends_alone() -> None:
    inner = solo(execute=finishing(Trace(), "", 1))
    trace = Trace()

    async def run_inner(ctx: Any) -> Any:
        return (await inner.process_tasks(None)).finished_by

    report = await build(
        [task("outer", execute=run_inner), task("B", execute=trace.pausing("B", 2))]
    ).process_tasks(None)
    assert report.finished_by is None
    assert report["outer"].execute.value == "A"
    assert trace[-1] == "B done"


@pytest.mark.parametrize("phase", ["pre", "execute"])
async def test_phase_by_phase(phase: str) -> None:
    trace = Trace()
    processor = build(
        [
            task("A", **{phase: finishing(trace, "A", 1, 1), "post": trace.quick("A.post")}),
            task("B", trace.waiting("B") if phase == "pre" else nothing, trace.waiting("B")),
        ]
    )
    phases: list[Any] = []
    recorder = Recorder()
    async with processor.open(None, observer=recorder) as run:
        while await run.run_next():
            phases.append(run.last_phase_id())
        phases.append(run.last_phase_id())
        assert not run.has_failures()
    names = [each.name for each in phases]
    assert names == (["PRE_EXEC"] + (["EXECUTE"] if phase == "execute" else []) + ["POST_EXEC"])
    assert trace[-2:] == ["B cancelled", "A.post"]
    (end,) = [event for event in recorder if isinstance(event, RunFinished)]
    assert end.state == "succeeded"


async def test_leaving_the_block_after_it() -> None:
    trace = Trace()
    processor = solo(finishing(trace, "A", 1), trace.quick("execute"), trace.quick("post"))
    async with processor.open(None) as run:
        await run.run_next()
    assert trace == ["A", "post"]


async def test_observers_hear() -> None:
    recorder = Recorder()
    processor = build(
        [
            task("A", nothing, Trace().waiting("A"), nothing),
            task("B", nothing, finishing(Trace(), "B", 5, 1)),
        ],
    )
    report = await processor.process_tasks(None, observer=recorder)
    kinds = (CancellationRequested, TaskSkipped, TaskFinished, RunFinished)
    assert recorder.lines(*kinds)[2:] == [
        "B.execute succeeded after 1 = 5",
        "execute cancelled because of B.execute",
        "A.execute cancelled after 1 because of B.execute",
        "A.post succeeded after 1",
        "run succeeded",
    ]
    (requested,) = [each for each in recorder if isinstance(each, CancellationRequested)]
    assert requested.cause is not None and requested.cause.finished
    values = [each.value for each in recorder if isinstance(each, AttemptFinished)]
    assert Finish(5) in values
    assert report.duration is not None and report.finished_by == "B"


async def test_observers_hear_of_what_is_skipped() -> None:
    recorder = Recorder()
    processor = build([task("A", finishing(Trace(), "A"), nothing)], [task("B", nothing)])
    await processor.process_tasks(None, observer=recorder)
    assert recorder.lines(TaskSkipped) == [
        "B.pre skipped because of A.pre",
        "A.execute skipped because of A.pre",
    ]


async def test_the_report_shows_it() -> None:
    report = await solo(execute=finishing(Trace(), "", 1)).process_tasks(None)
    assert str(report).startswith("1 task: 1 succeeded, finished by A\n")
    assert (await solo(execute=nothing).process_tasks(None)).finished_by is None


async def test_the_report_is_pickled() -> None:
    processor = solo(execute=finishing(Trace(), "", 1))
    report: RunReport[Any] = await processor.process_tasks(None)
    restored = pickle.loads(pickle.dumps(report))
    assert restored.finished_by == "A"
    assert str(restored) == str(report)


def test_what_it_is() -> None:
    assert "Finish" in sdax.__all__
    assert Finish(1) == Finish(1) != Finish(2)
    assert repr(Finish("x")) == "Finish(value='x')"
    assert hash(Finish(1)) == hash(Finish(1))
    assert pickle.loads(pickle.dumps(Finish([1]))) == Finish([1])
    with pytest.raises(AttributeError):
        Finish(1).value = 2  # type: ignore[misc]
    with pytest.raises(TypeError, match="cannot be subclassed"):
        type("Mine", (Finish,), {})
