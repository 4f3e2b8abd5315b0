"""Tasks in a dependency graph: what each waits for."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from helpers import (
    Trace,
    before,
    build,
    crooked,
    failure_of,
    graph,
    spawn,
    states,
    task,
    until,
    without_factory,
)
from sdax import AsyncDagTaskProcessor, AsyncTask, join


def diamond(trace: Trace, number: int = 0, phases: str = "pre execute post") -> Any:
    return graph(
        trace.task("A", phases, number),
        (trace.task("B", phases, number), ["A"]),
        (trace.task("C", phases, number), ["A"]),
        (trace.task("D", phases, number), ["B", "C"]),
    )


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
