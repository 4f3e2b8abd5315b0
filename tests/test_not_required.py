"""Tasks that a run does not need: `required=False`."""

from __future__ import annotations

import asyncio
import logging
import pickle
from typing import Any

import pytest

from attempts import Flaky
from helpers import (
    Trace,
    before,
    error_of,
    failure_of,
    forever,
    graph,
    nothing,
    passes,
    soon_or_late,
    spawn,
    states,
    task,
    until,
)
from helpers import build as levels
from observing import Recorder
from sdax import AsyncTask, State, TaskCancelledError, TaskFunction, join
from sdax import task as make_task
from sdax.observe import RunFinished, TaskFinished, TaskSkipped

DOWN = ConnectionError("down")


@soon_or_late
async def test_its_failed_execute_stops_nothing(number: int) -> None:
    trace = Trace()
    report = await levels(
        [
            task("A", execute=trace.pausing("A", 3)),
            task(
                "B", None, trace.failing("B", DOWN, number), trace.quick("B.post"), required=False
            ),
            task("C", execute=trace.quick("C")),
        ]
    ).process_tasks(None)
    assert "A done" in trace and "C" in trace
    assert states(report) == {"A": "-+-", "B": "-F+", "C": "-+-"}
    assert report["B"].execute.exception is DOWN
    assert not report.ok
    assert [tuple(failure) for failure in report.failures] == [("B", "execute", 1, DOWN)]


@soon_or_late
async def test_after_a_failed_pre_execute_its_own_execute_is_skipped_and_it_cleans_up(
    number: int,
) -> None:
    trace = Trace()
    report = await levels(
        [
            task("A", trace.pausing("A", 2), trace.quick("A.execute")),
            task(
                "B",
                trace.failing("B", DOWN, number),
                trace.quick("B.execute"),
                trace.quick("B.post"),
                required=False,
            ),
        ],
        [task("C", trace.quick("C"), trace.quick("C.execute"), trace.quick("C.post"))],
    ).process_tasks(None)
    assert states(report) == {"A": "++-", "B": "Fs+", "C": "+++"}
    assert before(trace, "A", "B", "A done", "C", "A.execute", "C.execute", "C.post", "B.post")


@pytest.mark.parametrize("order", ["at once", "dependency"])
@soon_or_late
async def test_what_depends_on_it_runs(number: int, order: Any) -> None:
    trace = Trace()
    report = await graph(
        task("A", nothing, trace.quick("A.execute"), nothing),
        (
            task(
                "B",
                trace.failing("B", DOWN, number),
                trace.quick("B.execute"),
                trace.quick("B.post"),
                required=False,
            ),
            ["A"],
        ),
        (task("C", trace.pausing("C", 1), trace.quick("C.execute"), trace.quick("C.post")), ["B"]),
        (task("D", trace.quick("D"), trace.quick("D.execute"), nothing), ["A"]),
        (task("E", trace.quick("E"), trace.quick("E.execute"), nothing), ["C", "D"]),
        execute_order=order,
    ).process_tasks(None)
    assert states(report) == {"A": "+++", "B": "Fs+", "C": "+++", "D": "+++", "E": "+++"}
    assert before(trace, "B", "C", "C done", "E", "A.execute", "C.execute", "C.post", "B.post")
    assert "B.execute" not in trace


async def test_in_dependency_order_a_failed_execute_stops_nothing() -> None:
    trace = Trace()
    report = await graph(
        task("A", nothing, trace.failing("A", DOWN, 1), required=False),
        (task("B", None, trace.quick("B")), ["A"]),
        (task("C", None, trace.quick("C")), ["A", "B"]),
        execute_order="dependency",
    ).process_tasks(None)
    assert trace == ["A", "B", "C"]
    assert states(report) == {"A": "+F-", "B": "-+-", "C": "-+-"}


async def test_after_its_retries_and_after_its_timeout() -> None:
    failing = TaskFunction(Flaky(DOWN, DOWN, DOWN), retries=2, initial_delay=0)
    slow = TaskFunction(forever, timeout=0)
    report = await levels(
        [task("A", failing, required=False), task("B", execute=slow, required=False)]
    ).process_tasks(None)
    assert states(report) == {"A": "F--", "B": "-T-"}
    assert report["A"].pre_execute.attempts == 3
    assert [failure[:3] for failure in report.failures] == [
        ("A", "pre_execute", 3),
        ("B", "execute", 1),
    ]


async def test_a_retry_that_succeeds_is_no_failure() -> None:
    function = TaskFunction(Flaky(DOWN), retries=1, initial_delay=0)
    report = await levels([task("A", execute=function, required=False)]).process_tasks(None)
    assert report.ok and report.failures == ()


async def test_its_failing_cleanup_is_a_failure_of_the_run() -> None:
    trace = Trace()
    lost = OSError("lost")
    error = await failure_of(
        levels(
            [
                task("A", post=trace.quick("A.post")),
                task("B", trace.failing("B", DOWN), post=trace.failing("B", lost), required=False),
            ]
        )
    )
    assert error.exceptions == (lost,)
    assert [failure.exception for failure in error.report.failures] == [DOWN, lost]
    assert "A.post" in trace


async def test_a_failure_of_another_task_stops_the_run_as_ever() -> None:
    broken = ValueError("broken")
    error = await failure_of(
        levels(
            [
                task("A", Trace().failing("A", DOWN), nothing, required=False),
                task("B", Trace().failing("B", broken, 2), nothing),
                task("C", forever, nothing, required=False),
                task("D", Trace().spiteful("D", OSError()), required=False),
            ]
        )
    )
    assert error.exceptions == (broken,)
    assert [failure.name for failure in error.report.failures] == ["A", "B", "D"]
    assert states(error.report) == {"A": "Fs-", "B": "Fs-", "C": "Cs-", "D": "F--"}


@pytest.mark.parametrize("phase", ["pre", "execute"])
async def test_what_is_no_exception_stops_the_run_as_ever(phase: str) -> None:
    trace = Trace()
    interrupt = KeyboardInterrupt()
    functions = {phase: trace.failing("A", interrupt, 1), "post": trace.quick("A.post")}
    processor = levels([task("A", **functions, required=False), task("B", forever)])
    if phase == "execute":
        processor = levels([task("A", **functions, required=False), task("B", execute=forever)])
    assert await error_of(processor.process_tasks(None)) is interrupt
    assert trace == ["A", "A.post"]


async def test_a_cancellation_that_nobody_asked_for_is_such_a_failure_too() -> None:
    async def cancels_itself(ctx: Any) -> None:
        raise asyncio.CancelledError

    report = await levels(
        [task("A", execute=cancels_itself, required=False), task("B", execute=nothing)]
    ).process_tasks(None)
    assert states(report) == {"A": "-F-", "B": "-+-"}
    assert isinstance(report["A"].execute.exception, TaskCancelledError)


async def test_cancelling_the_caller_cancels_it_as_ever() -> None:
    trace = Trace()
    processor = levels(
        [
            task("A", trace.failing("A", DOWN), post=trace.quick("A.post"), required=False),
            task("B", trace.waiting("B"), post=trace.quick("B.post"), required=False),
        ],
        [task("C", nothing)],
    )
    run = spawn(processor)
    await until(lambda: "B" in trace)
    run.cancel()
    error = await error_of(run)
    assert isinstance(error, asyncio.CancelledError)
    assert error.__context__ is None  # what is not required is no failure of the run
    assert trace == ["A", "B", "B cancelled", "A.post", "B.post"]


@pytest.mark.parametrize("places", [1, 2])
async def test_with_few_places(places: int) -> None:
    trace = Trace()
    report = await levels(
        [
            task("A", trace.failing("A", DOWN, 2), nothing, required=False),
            task("B", trace.pausing("B", 2), nothing),
            task("C", trace.failing("C", DOWN), nothing, required=False),
            task("D", trace.pausing("D", 1), nothing),
        ],
        [task("E", trace.quick("E"))],
        max_concurrency=places,
    ).process_tasks(None)
    assert states(report) == {"A": "Fs-", "B": "++-", "C": "Fs-", "D": "++-", "E": "+--"}
    assert trace[-1] == "E"


async def test_the_level_above_opens_when_all_of_a_level_fail() -> None:
    trace = Trace()
    report = await levels(
        [task(n, trace.failing("", DOWN, n), required=False) for n in range(3)],
        [task("above", trace.quick("above"), trace.quick("executes"))],
        [task("bare", execute=nothing, post=trace.quick("cleans up"))],
    ).process_tasks(None)
    assert trace[3:] == ["above", "executes", "cleans up"]
    assert states(report)["bare"] == "-++"


async def test_a_level_of_such_tasks_alone_at_the_top() -> None:
    """What stands above it without a `pre_execute` has started."""
    trace = Trace()
    report = await levels(
        [task("A", trace.failing("A", DOWN, 1), required=False)],
        [task("B", execute=nothing, post=trace.quick("B"))],
    ).process_tasks(None)
    assert states(report) == {"A": "F--", "B": "-++"}


async def test_a_function_that_is_never_called_is_not_cleaned_up() -> None:
    """A task factory may make nothing to run it in."""
    trace = Trace()
    loop = asyncio.get_running_loop()

    def make(loop: Any, coroutine: Any, **options: Any) -> Any:
        if "A.pre" not in trace:
            trace.append("A.pre")
            raise MemoryError("no asyncio.Task")
        return asyncio.Task(coroutine, loop=loop, **options)

    processor = levels(
        [
            task("A", nothing, trace.quick("A"), trace.quick("A.post"), required=False),
            task("B", trace.quick("B"), post=trace.quick("B.post")),
        ]
    )
    factory = loop.get_task_factory()
    loop.set_task_factory(make)
    try:
        report = await processor.process_tasks(None)
    finally:
        loop.set_task_factory(factory)
    assert trace == ["A.pre", "B", "B.post"]
    assert states(report) == {"A": "Fss", "B": "+-+"}


async def test_the_logger_warns(caplog: pytest.LogCaptureFixture) -> None:
    processor = levels(
        [
            task("A", Trace().failing("A", DOWN), required=False),
            task("B", execute=nothing, required=False),
        ]
    )
    with caplog.at_level(logging.WARNING, "sdax"):
        await processor.process_tasks(None)
    (record,) = [each for each in caplog.records if each.name == "sdax"]
    assert record.levelno == logging.WARNING
    assert record.getMessage() == (
        "pre_execute of task 'A', which is not required, failed after 1 attempt: "
        "ConnectionError('down')"
    )


async def test_a_handler_that_raises_touches_nothing() -> None:
    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise ValueError("a handler")

    handler = Broken()
    logger = logging.getLogger("sdax")
    logger.addHandler(handler)
    try:
        report = await levels(
            [task("A", Trace().failing("A", DOWN), required=False)]
        ).process_tasks(None)
    finally:
        logger.removeHandler(handler)
    assert states(report) == {"A": "F--"}


async def test_observers_hear() -> None:
    recorder = Recorder()
    await levels(
        [task("A", Trace().failing("A", DOWN, 1), nothing, nothing, required=False)],
        [task("B", nothing)],
    ).process_tasks(None, observer=recorder)
    assert recorder.lines(TaskFinished, TaskSkipped, RunFinished) == [
        "A.pre failed after 1 ConnectionError",
        "B.pre succeeded after 1",
        "A.execute skipped because of A.pre",
        "A.post succeeded after 1",
        "run succeeded",
    ]
    failed = next(event for event in recorder if isinstance(event, TaskFinished))
    assert not failed.task.required


async def test_phase_by_phase() -> None:
    trace = Trace()
    processor = levels(
        [
            task("A", trace.failing("A", DOWN), trace.quick("A.ex"), nothing, required=False),
            task("B", nothing, trace.quick("B.ex"), nothing),
        ]
    )
    async with processor.open(None) as run:
        assert await run.run_next()
        assert not run.has_failures() and run.failures() == []
        while await run.run_next():
            pass
        run.raise_failures()
    assert trace == ["A", "B.ex"]


@pytest.mark.parametrize("observer", [None, Recorder()])
async def test_leaving_the_block_after_pre_execute(observer: Any) -> None:
    trace = Trace()
    processor = graph(
        task("A", trace.failing("A", DOWN), nothing, trace.quick("A.post"), required=False),
        (task("B", nothing, nothing, trace.quick("B.post")), ["A"]),
        (task("C", nothing, nothing, trace.quick("C.post")), ["A", "B"]),
        execute_order="dependency",
    )
    async with processor.open(None, observer=observer) as run:
        await run.run_next()
    assert trace == ["A", "C.post", "B.post", "A.post"]


def test_it_is_part_of_the_task() -> None:
    one, other = (task("A", nothing, required=required) for required in (True, False))
    assert one.required and not other.required
    assert one != other
    assert make_task("A", pre_execute=nothing, required=False) == other
    assert hash(make_task("A", pre_execute=nothing, required=False)) == hash(other)
    assert levels([one]) != levels([other])
    assert join("J").required


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_it_is_pickled(protocol: int) -> None:
    original = task("A", nothing, required=False)
    assert pickle.loads(pickle.dumps(original, protocol)) == original


def test_a_task_that_was_pickled_without_it_is_required() -> None:
    restored: AsyncTask[Any, Any] = AsyncTask.__new__(AsyncTask)
    restored.__setstate__(["A", TaskFunction(nothing), None, None])
    assert restored == task("A", nothing)


@pytest.mark.parametrize("value", [None, 0, "no"])
def test_anything_but_a_bool_is_refused(value: Any) -> None:
    with pytest.raises(TypeError, match="required of task 'A' must be a bool, got"):
        AsyncTask("A", execute=TaskFunction(nothing), required=value)


async def test_a_replaced_function_is_not_required_either() -> None:
    processor = levels([task("A", execute=nothing, required=False)])
    stubbed = processor.replaced({"A": Trace().failing("A", DOWN)})
    report = await stubbed.process_tasks(None)
    assert report["A"].execute.state is State.FAILED
    required = processor.replaced({"A": task("A", execute=Trace().failing("A", DOWN))})
    assert (await failure_of(required)).exceptions == (DOWN,)


async def test_a_deep_graph_of_such_failures() -> None:
    """A chain of tasks that fail at once: no recursion."""
    chain = [task(n, Trace().failing("", DOWN), required=False) for n in range(1500)]
    processor = graph(*((each, [n - 1] if n else []) for n, each in enumerate(chain)))
    logging.getLogger("sdax").disabled = True
    try:
        report = await processor.process_tasks(None)
    finally:
        logging.getLogger("sdax").disabled = False
    assert len(report.failures) == 1500
    await passes(1)
