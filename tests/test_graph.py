"""Tasks in a dependency graph: what each waits for, what is refused, and how large it may be."""

from __future__ import annotations

import asyncio
import gc
import pickle
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import pytest

from conftest import Implementation
from helpers import (
    Trace,
    build,
    counts_references,
    error_of,
    failure_of,
    forever,
    nothing,
    spawn,
    states,
    task,
    until,
    without_factory,
)
from sdax import (
    AsyncDagTaskProcessor,
    AsyncDagTaskProcessorBuilder,
    AsyncTask,
    AsyncTaskProcessor,
    AsyncTaskProcessorBuilder,
    SdaxExecutionError,
    TaskFunction,
    join,
)
from sdax.sdax_core import AsyncDagLevelAdapterBuilder

Added = tuple[AsyncTask[Any, Any], Iterable[Any]]


def graph(*added: Added | AsyncTask[Any, Any], **options: Any) -> Any:
    """A processor of tasks, each alone or with what it depends on."""
    builder = AsyncDagTaskProcessor.builder(**options)
    for each in added:
        builder.add_task(*(each if isinstance(each, tuple) else (each,)))
    return builder.build()


def crooked(*tasks: AsyncTask[Any, Any], **options: Any) -> Any:
    """A chain that is no sequence of levels, for each task depends on the last two."""
    names = [each.name for each in tasks]
    return graph(
        *((each, names[max(0, i - 2) : i]) for i, each in enumerate(tasks)),
        (task("bystander", execute=nothing), names[:1]),
        **options,
    )


def before(trace: list[str], *labels: str) -> bool:
    """Tell whether the labels are in the trace, in this order."""
    places = [trace.index(label) for label in labels]
    return places == sorted(places)


def diamond(trace: Trace, number: int = 0, phases: str = "pre execute post") -> Any:
    return graph(
        trace.task("A", phases, number),
        (trace.task("B", phases, number), ["A"]),
        (trace.task("C", phases, number), ["A"]),
        (trace.task("D", phases, number), ["B", "C"]),
    )


# What starts when


async def test_a_task_starts_once_its_own_dependencies_succeeded() -> None:
    trace, slow = Trace(), asyncio.Event()
    processor = graph(
        task("slow", trace.waiting("slow", slow)),
        task("A", trace.pausing("A")),
        (task("B", trace.pausing("B")), ["A"]),
        (task("C", trace.pausing("C")), ["A", "B"]),
        (task("after slow", trace.quick("after slow")), ["slow"]),
    )
    run = spawn(processor)
    await until(lambda: "C done" in trace)
    assert "after slow" not in trace
    slow.set()
    await run
    assert trace == [
        "slow", "A", "A done", "B", "B done", "C", "C done", "slow done", "after slow"
    ]  # fmt: skip


async def test_it_waits_for_every_one_of_them() -> None:
    trace = Trace()
    events = {name: asyncio.Event() for name in "ABC"}
    processor = graph(
        *(task(name, trace.waiting(name, event)) for name, event in events.items()),
        (task("last", trace.quick("last")), events),
        (task("other", trace.quick("other")), ["A"]),
    )
    run = spawn(processor)
    for name in "BCA":
        await until(lambda: {*"ABC"} <= {*trace})
        assert "last" not in trace
        events[name].set()
        await until(lambda name=name: f"{name} done" in trace)
    await run
    assert trace.count("last") == 1
    assert before(trace, "A done", "last", "other")


async def test_diamond() -> None:
    trace = Trace()
    await diamond(trace).process_tasks(None)
    assert trace == [
        *(f"{name}.pre" for name in "ABCD"),
        *(f"{name}.execute" for name in "ABCD"),
        *(f"{name}.post" for name in "DBCA"),
    ]


async def test_a_diamond_that_suspends() -> None:
    trace = Trace()
    await diamond(trace, number=2).process_tasks(None)
    assert trace == [
        "A.pre", "A.pre done", "B.pre", "C.pre", "B.pre done", "C.pre done", "D.pre", "D.pre done",
        *(f"{name}.execute" for name in "ABCD"),
        *(f"{name}.execute done" for name in "ABCD"),
        "D.post", "D.post done", "B.post", "C.post", "B.post done", "C.post done",
        "A.post", "A.post done",
    ]  # fmt: skip


async def test_execute_waits_for_every_pre_execute() -> None:
    trace, event = Trace(), asyncio.Event()
    processor = graph(
        task("A", trace.quick("A.pre"), trace.quick("A.execute")),
        (task("B", trace.waiting("B.pre", event), trace.quick("B.execute")), ["A"]),
        (task("C", None, trace.quick("C.execute")), ["A"]),
        task("D", trace.quick("D.pre")),
    )
    run = spawn(processor)
    await until(lambda: {"B.pre", "D.pre"} <= {*trace})
    assert not any(label.endswith("execute") for label in trace)
    event.set()
    await run
    assert trace[-3:] == ["A.execute", "B.execute", "C.execute"]


async def test_execute_is_concurrent_whatever_depends_on_what() -> None:
    trace, event = Trace(), asyncio.Event()
    processor = graph(
        (task("C", None, trace.quick("C")), ["A", "B"]),
        (task("B", None, trace.waiting("B", event)), ["A"]),
        task("A", None, trace.waiting("A", event)),
    )
    run = spawn(processor)
    await until(lambda: len(trace) == 3)
    event.set()
    await run
    assert trace == ["C", "B", "A", "B done", "A done"]


@pytest.mark.parametrize("order", ["at once", "dependency"])
async def test_cleanup_starts_once_all_that_depends_on_it_cleaned_up(order: Any) -> None:
    trace, slow = Trace(), asyncio.Event()
    processor = graph(
        task("A", post=trace.quick("A")),
        (task("B", post=trace.quick("B")), ["A"]),
        (task("slow", post=trace.waiting("slow", slow)), ["A"]),
        (task("C", post=trace.pausing("C")), ["B"]),
        execute_order=order,
    )
    run = spawn(processor)
    await until(lambda: "B" in trace)
    assert "A" not in trace
    slow.set()
    await run
    assert trace == ["slow", "C", "C done", "B", "slow done", "A"]


async def test_tasks_without_a_phase_pass_the_turn_on() -> None:
    """However the empty ones are linked, what they stand between stays in order."""
    trace, event = Trace(), asyncio.Event()
    processor = graph(
        task("A", trace.waiting("A", event), post=trace.quick("A.post")),
        (join("J1"), ["A"]),
        (join("J2"), ["A", "J1"]),
        (join("J3"), []),
        (task("B", trace.quick("B"), post=trace.pausing("B.post")), ["J2", "J3"]),
        (task("C", trace.quick("C"), post=trace.quick("C.post")), ["J3"]),
    )
    run = spawn(processor)
    await until(lambda: "C" in trace)
    assert "B" not in trace
    event.set()
    report = await run
    assert trace == ["A", "C", "A done", "B", "B.post", "C.post", "B.post done", "A.post"]
    assert states(report)["J1"] == "---"


async def test_a_join_of_many() -> None:
    trace = Trace()
    processor = graph(
        *(task(f"A{n}", trace.pausing(f"A{n}", n)) for n in range(5)),
        (join("all"), [f"A{n}" for n in range(5)]),
        *((task(f"B{n}", trace.quick(f"B{n}")), ["all"]) for n in range(3)),
        (task("C", trace.quick("C")), ["B0"]),
    )
    await processor.process_tasks(None)
    assert trace[-4:] == ["B0", "B1", "B2", "C"]
    assert {label for label in trace[:-4] if "done" in label} == {f"A{n} done" for n in range(5)}


@pytest.mark.parametrize("empty", [graph(), graph(join("A")), graph(join("A"), (join("B"), ["A"]))])
async def test_a_graph_that_does_nothing(empty: Any) -> None:
    report = await empty.process_tasks(None)
    assert {*states(report).values()} <= {"---"}


async def test_what_opens_together_is_called_in_the_order_of_adding() -> None:
    trace = Trace()
    processor = graph(
        (task("E", trace.quick("E")), ["Z", "X"]),
        (task("D", trace.quick("D")), ["Z"]),
        task("Y", trace.quick("Y")),
        (task("C", trace.quick("C")), ["X", "Z"]),
        task("X", trace.quick("X")),
        (task("B", trace.quick("B")), ["X", "Z", "Y"]),
        task("Z", trace.pausing("Z")),
        (task("A", trace.quick("A")), ["Z"]),
    )
    await processor.process_tasks(None)
    assert trace == ["Y", "X", "Z", "Z done", "E", "D", "C", "B", "A"]


async def test_tasks_may_be_added_before_what_they_depend_on() -> None:
    trace = Trace()
    processor = graph(
        (trace.task("D", number=1), ["C", "A"]),
        (trace.task("C", number=1), ["B"]),
        (trace.task("B", number=1), ["A"]),
        trace.task("A", number=1),
    )
    await processor.process_tasks(None)
    assert [label for label in trace if label.endswith(("pre", "post"))] == [
        *(f"{name}.pre" for name in "ABCD"),
        *(f"{name}.post" for name in "DCBA"),
    ]


async def test_names_of_any_kind_in_one_graph() -> None:
    trace = Trace()
    names = ["A", ("shard", 1), 7, None, frozenset({1}), b"b", 2.5]
    tasks = [task(name, trace.quick(repr(name)), post=trace.quick("post")) for name in names]
    report = await crooked(*tasks).process_tasks(None)
    assert trace[: len(names)] == [repr(name) for name in names]
    assert report["shard", 1].pre_execute.attempts == 1
    assert [*report][:-1] == names


@pytest.mark.parametrize(
    "depends_on",
    [list, tuple, set, dict.fromkeys, iter, lambda names: (name for name in names)],
    ids=["list", "tuple", "set", "dict", "iterator", "generator"],
)
async def test_depends_on_is_any_collection_and_says_a_name_twice_in_vain(depends_on: Any) -> None:
    trace = Trace()
    processor = graph(
        trace.task("A", number=1),
        (trace.task("B"), depends_on(["A", "A"])),
        trace.task("C", number=3),
    )
    await processor.process_tasks(None)
    assert before(trace, "A.pre done", "B.pre", "C.pre done", "B.post", "A.post")
    assert trace.count("B.pre") == 1


# Execute in dependency order


async def test_execute_in_dependency_order() -> None:
    trace, slow = Trace(), asyncio.Event()
    processor = graph(
        (task("B", None, trace.quick("B")), ["A"]),
        task("A", None, trace.pausing("A")),
        task("slow", None, trace.waiting("slow", slow)),
        (task("C", None, trace.quick("C"), trace.quick("C.post")), ["B", "slow"]),
        (join("J"), ["B"]),
        (task("D", None, trace.quick("D")), ["J"]),
        execute_order="dependency",
    )
    run = spawn(processor)
    await until(lambda: "D" in trace)
    assert trace == ["A", "slow", "A done", "B", "D"]
    slow.set()
    await run
    assert trace[5:] == ["slow done", "C", "C.post"]


async def test_execute_in_dependency_order_still_waits_for_every_pre_execute() -> None:
    trace = Trace()
    processor = graph(
        trace.task("A", "pre execute"),
        (trace.task("B", "pre execute", 2), ["A"]),
        trace.task("C", "pre execute", 5),
        execute_order="dependency",
    )
    await processor.process_tasks(None)
    assert before(trace, "B.pre done", "C.pre done", "A.execute", "C.execute", "C.execute done")
    assert before(trace, "A.execute", "B.execute")


async def test_a_failed_execute_stops_what_depends_on_it_and_cleans_up_everything() -> None:
    trace = Trace()
    processor = graph(
        task("A", None, trace.quick("A"), trace.quick("A.post")),
        (task("B", None, trace.failing("B", ValueError(), 2), trace.quick("B.post")), ["A"]),
        (task("C", None, trace.waiting("C"), trace.quick("C.post")), ["A"]),
        (task("D", None, trace.quick("D"), trace.quick("D.post")), ["B"]),
        task("E", post=trace.quick("E.post")),
        execute_order="dependency",
    )
    error = await failure_of(processor)
    assert trace == [
        "A", "B", "C", "C cancelled", "C.post", "D.post", "E.post", "B.post", "A.post"
    ]  # fmt: skip
    assert states(error.report) == {
        "A": "-++", "B": "-F+", "C": "-C+", "D": "-s+", "E": "--+"
    }  # fmt: skip


# Failure and cancellation


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


async def test_many_runs_at_once() -> None:
    traces = [Trace() for _ in range(20)]

    async def note(ctx: Trace) -> None:
        ctx.append("call")
        await asyncio.sleep(0)

    processor = crooked(*(task(n, note, note, note) for n in range(4)))
    await asyncio.gather(*(processor.process_tasks(trace) for trace in traces))
    assert [len(trace) for trace in traces] == [12] * 20


@without_factory
async def test_a_graph_of_functions_that_never_suspend_never_goes_through_the_loop() -> None:
    passes = []
    asyncio.get_running_loop().call_soon(passes.append, 1)
    trace = Trace()
    await diamond(trace).process_tasks(None)
    await crooked(*(trace.task(name) for name in "XYZ")).process_tasks(None)
    assert len(trace) == 21
    assert passes == []


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
    gc.collect()
    gc.disable()
    try:
        await both()
        assert gc.collect() == 0
    finally:
        gc.enable()


# What says the same


async def test_a_graph_that_says_the_same_as_levels() -> None:
    """Joins or every single dependency, levels or not: the trace is one."""

    def tasks(trace: Trace) -> list[list[AsyncTask[Any, Any]]]:
        return [[trace.task(f"{n}.{i}", number=i) for i in range(3)] for n in range(4)]

    traces = {name: Trace() for name in ("levels", "edges", "joins")}
    levels = build(*tasks(traces["levels"]))

    edges = AsyncDagTaskProcessor.builder()
    below: tuple[str, ...] = ()
    for members in tasks(traces["edges"]):
        for each in members:
            edges.add_task(each, below)
        below = tuple(each.name for each in members)

    joins = AsyncDagTaskProcessor.builder()
    joined: tuple[Any, ...] = ()
    for number, members in enumerate(tasks(traces["joins"])):
        for each in members:
            joins.add_task(each, joined)
        joins.add_task(join(number), [each.name for each in members])
        joined = (number,)

    for processor in (levels, edges.build(), joins.build()):
        await processor.process_tasks(None)
    assert traces["edges"] == traces["levels"]
    assert traces["joins"] == traces["levels"]
    assert len(traces["levels"]) == 4 * 3 * 3 + 4 * 2 * 3


# Builders


def test_all_names_for_a_builder() -> None:
    assert type(AsyncTaskProcessor.graph_builder()) is AsyncDagTaskProcessorBuilder
    assert type(AsyncDagTaskProcessor.builder()) is AsyncDagTaskProcessorBuilder
    for builder in (AsyncTaskProcessor.builder(), AsyncTaskProcessor.elevator_builder()):
        assert isinstance(builder, AsyncTaskProcessorBuilder)
        assert isinstance(builder, AsyncDagLevelAdapterBuilder)
    builder = AsyncTaskProcessor.graph_builder(execute_order="dependency", max_concurrency=3)
    assert builder.build() != AsyncTaskProcessor.graph_builder().build()
    assert builder.build() == AsyncDagTaskProcessor.builder(
        execute_order="dependency", max_concurrency=3
    ).build()  # fmt: skip


def test_add_task_returns_the_builder_and_takes_names_in_any_order() -> None:
    builder = AsyncDagTaskProcessor.builder()
    assert builder.add_task(task("A", nothing)) is builder
    assert builder.add_task(depends_on=("A",), task=task("B", nothing)) is builder
    assert builder.build().dependencies == {"A": (), "B": ("A",)}


def test_what_is_built_stays_as_it_is() -> None:
    builder = AsyncDagTaskProcessor.builder().add_task(task("A", nothing))
    first, same = builder.build(), builder.build()
    second = builder.add_task(task("B", nothing), depends_on=["A"]).build()
    assert first == same
    assert hash(first) == hash(same)
    assert [*first.tasks] == ["A"]
    assert [*second.tasks] == ["A", "B"]
    assert first != second


def test_a_list_that_changes_later() -> None:
    names = ["A"]
    builder = AsyncDagTaskProcessor.builder()
    builder.add_task(task("A", nothing)).add_task(task("B", nothing), names)
    names.append("unknown")
    assert builder.build().dependencies["B"] == ("A",)


def test_a_processor_cannot_be_changed() -> None:
    processor = graph(task("A", nothing), (task("B", nothing), ["A"]))
    for name in ("tasks", "dependencies", "anything"):
        with pytest.raises(AttributeError, match=name):
            setattr(processor, name, None)
        with pytest.raises(AttributeError, match=name):
            delattr(processor, name)
    with pytest.raises(TypeError):
        processor.tasks["C"] = None
    with pytest.raises(TypeError):
        processor.dependencies["B"] = ()
    assert not hasattr(processor, "__dict__")


def test_equality_and_hash() -> None:
    a, b = task("A", nothing), task("B", nothing)
    one, other = graph(a, (b, ["A"])), graph(a, (b, ["A"]))
    assert one == other
    assert len({one, other}) == 1
    for different in (
        graph(a, b),
        graph(a, (b, ["A"]), execute_order="dependency"),
        graph(a, (b, ["A"]), max_concurrency=1),
        graph(a),
        build([a], [b]),
    ):
        assert one != different


def test_repr() -> None:
    processor = graph(task("A", nothing), (task("B", nothing), ["A"]), (join("C"), ["A", "B"]))
    assert repr(processor) == "<AsyncDagTaskProcessor: 3 tasks, 3 dependencies>"


def test_subclasses_of_a_processor_build_themselves_or_the_base() -> None:
    class Mine(AsyncDagTaskProcessor[Any, Any]):
        pass

    assert isinstance(Mine.builder().build(), AsyncDagTaskProcessor)


async def test_a_pickled_graph_runs() -> None:
    processor = graph(
        task("A", nothing),
        (task("B", nothing, nothing), ["A"]),
        (task("C", nothing), ["A", "B"]),
        (join("J"), ["C"]),
        execute_order="dependency",
        max_concurrency=2,
    )
    copy = pickle.loads(pickle.dumps(processor))
    assert copy == processor
    assert hash(copy) == hash(processor)
    assert copy.dependencies == processor.dependencies
    assert states(await copy.process_tasks(None)) == {
        "A": "+--", "B": "++-", "C": "+--", "J": "---"
    }  # fmt: skip


# What is refused


def refused(kind: type[Exception], *added: Any, **options: Any) -> str:
    """Return the message with which building is refused."""
    with pytest.raises(kind) as caught:
        graph(*added, **options)
    assert type(caught.value) is kind
    return str(caught.value)


def test_an_unknown_dependency_is_refused() -> None:
    message = refused(ValueError, task("A", nothing), (task("B", nothing), ["A", ("x", 1)]))
    assert "'B'" in message
    assert "('x', 1)" in message


def test_a_dependency_on_itself_is_refused() -> None:
    message = refused(ValueError, task("A", nothing), (task("B", nothing), ["A", "B"]))
    assert "'B'" in message
    assert "itself" in message


def test_a_cycle_is_refused_and_shown_as_a_path() -> None:
    message = refused(
        ValueError,
        task("root", nothing),
        (task("before", nothing), ["A"]),
        (task("A", nothing), ["root", "C"]),
        (task("B", nothing), ["A"]),
        (task("C", nothing), ["B", "root"]),
        (task("after", nothing), ["C"]),
    )
    path = "'A' -> 'C' -> 'B' -> 'A'"
    turned = ("'C' -> 'B' -> 'A' -> 'C'", "'B' -> 'A' -> 'C' -> 'B'")
    assert path in message or any(other in message for other in turned)
    for other in ("root", "before", "after"):
        assert other not in message
    assert "cycle" in message


def test_a_cycle_of_two_with_names_of_two_kinds() -> None:
    message = refused(ValueError, (task(1, nothing), [("B", 2)]), (task(("B", 2), nothing), [1]))
    assert "1 -> ('B', 2) -> 1" in message or "('B', 2) -> 1 -> ('B', 2)" in message


def test_a_cycle_of_empty_tasks() -> None:
    assert "cycle" in refused(ValueError, (join("A"), ["B"]), (join("B"), ["A"]))


def test_a_cycle_beside_a_graph_that_is_fine() -> None:
    fine = [task("X", nothing), (task("Y", nothing), ["X"])]
    message = refused(ValueError, *fine, (join("A"), ["B", "Y"]), (join("B"), ["A"]))
    assert "'X'" not in message
    assert "'Y'" not in message


@pytest.mark.parametrize("wrong", ["B", b"B", None, 3])
def test_what_is_no_collection_is_refused(wrong: Any) -> None:
    """A string above all: its letters are names, too."""
    message = refused(TypeError, task("B", nothing), (task("A", nothing), wrong))
    assert "'A'" in message
    assert repr(wrong) in message


def test_a_name_that_cannot_be_one_is_refused() -> None:
    message = refused(TypeError, task("B", nothing), (task("A", nothing), ["B", ["C"]]))
    assert "'A'" in message
    assert "['C']" in message


def test_a_name_used_twice_is_refused() -> None:
    builder = AsyncDagTaskProcessor.builder().add_task(task("A", nothing))
    with pytest.raises(ValueError, match="'A'"):
        builder.add_task(task("A", nothing, nothing), depends_on=())
    assert len(builder.build().tasks) == 1


@pytest.mark.parametrize("wrong", [None, "A", nothing, TaskFunction(nothing)])
def test_what_is_no_task_is_refused(wrong: Any) -> None:
    assert repr(wrong) in refused(TypeError, (wrong, []))


@pytest.mark.parametrize("wrong", ["levels", "", None, "DEPENDENCY", True, 0])
def test_a_bad_execute_order_is_refused(wrong: Any) -> None:
    message = refused(ValueError, execute_order=wrong)
    assert "execute_order" in message
    assert repr(wrong) in message


def test_an_unhashable_execute_order_is_refused_like_any_other() -> None:
    assert "execute_order" in refused(ValueError, execute_order=["dependency"])


@pytest.mark.parametrize(
    ("wrong", "kind"),
    [(0, ValueError), (-1, ValueError), (True, TypeError), (1.0, TypeError), ("2", TypeError)],
)
@pytest.mark.parametrize(
    "builder",
    [
        AsyncTaskProcessor.builder,
        AsyncTaskProcessor.graph_builder,
        AsyncTaskProcessor.elevator_builder,
        AsyncDagTaskProcessor.builder,
    ],
)
def test_a_bad_max_concurrency_is_refused(builder: Any, wrong: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind, match="max_concurrency") as caught:
        builder(max_concurrency=wrong)
    assert repr(wrong) in str(caught.value)


# Large ones


BUILT: dict[str, Any] = {}


async def count_a_call(ctx: list[int]) -> None:
    ctx[0] += 1


def calls_of(name: str, make: Any) -> int:
    """Run a large graph, built once for both engines, and return how many functions it called."""
    if name not in BUILT:
        BUILT[name] = make(TaskFunction(count_a_call))
    calls = [0]
    asyncio.run(BUILT[name].process_tasks(calls))
    return calls[0]


@pytest.mark.parametrize("step", [1, 2], ids=["straight", "crooked"])
def test_a_chain_of_100_000(engine: Implementation, step: int) -> None:
    number = 100_000

    def make(function: TaskFunction[Any]) -> Any:
        builder = AsyncDagTaskProcessor.builder()
        for n in range(number):
            builder.add_task(AsyncTask(n, function, None, function), range(max(0, n - step), n))
        return builder.build()

    assert calls_of(f"chain {step}", make) == 2 * number


def test_a_thousand_layers_of_a_hundred(engine: Implementation) -> None:
    def make(function: TaskFunction[Any]) -> Any:
        builder = AsyncDagTaskProcessor.builder()
        below: tuple[Any, ...] = ()
        for layer in range(1000):
            names = tuple((layer, n) for n in range(100))
            for name in names:
                builder.add_task(AsyncTask(name, function), below)
            below = names
        return builder.build()

    assert calls_of("layers", make) == 100_000


def test_a_thousand_crooked_layers_of_a_hundred(engine: Implementation) -> None:
    """Each task depends on some of the layer below, and the layer on two of what is below that."""

    def make(function: TaskFunction[Any]) -> Any:
        builder = AsyncDagTaskProcessor.builder(execute_order="dependency")
        for n in range(100_000):
            below = n - n % 100 - 100
            names = [below + (n * k) % 100 for k in (1, 7, 13)] if below >= 0 else []
            if below >= 100:
                names.append(below - 1)
            builder.add_task(AsyncTask(n, function, None, function), names)
        return builder.build()

    assert calls_of("crooked layers", make) == 200_000


def test_one_that_many_depend_on_and_one_that_depends_on_many(engine: Implementation) -> None:
    number = 50_000

    def make(function: TaskFunction[Any]) -> Any:
        builder = AsyncDagTaskProcessor.builder()
        builder.add_task(AsyncTask("last", function, None, function), range(number))
        builder.add_task(AsyncTask("first", function, None, function))
        for n in range(number):
            builder.add_task(AsyncTask(n, function, None, function), ["first"])
        builder.add_task(AsyncTask("beside", function), ["first", 0])
        return builder.build()

    assert calls_of("hub", make) == 2 * number + 5


def test_a_long_cycle_is_refused_without_recursion() -> None:
    number = 20_000
    builder = AsyncDagTaskProcessor.builder()
    for n in range(number):
        builder.add_task(join(n), [(n + 1) % number])
    with pytest.raises(ValueError, match="cycle"):
        builder.build()


def test_empty_tasks_in_a_long_chain(engine: Implementation) -> None:
    def make(function: TaskFunction[Any]) -> Any:
        builder = AsyncDagTaskProcessor.builder()
        builder.add_task(AsyncTask(0, function, None, function))
        for n in range(1, 100_000):
            builder.add_task(join(n), range(max(0, n - 2), n))
        return builder.add_task(AsyncTask("end", function, None, function), [n]).build()

    assert calls_of("empty", make) == 4
