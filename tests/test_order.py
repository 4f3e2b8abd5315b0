"""In which order functions are called, when nothing goes wrong."""

from __future__ import annotations

import asyncio
import pickle
from typing import Any

import pytest

from helpers import (
    PHASES,
    Broken,
    Trace,
    before,
    build,
    failure_of,
    nothing,
    passes,
    solo,
    spawn,
    states,
    task,
    task_in,
    until,
    without_factory,
)
from sdax import AsyncTask, AsyncTaskProcessor, TaskFunction, join


@pytest.mark.parametrize("number", [0, 1, 3], ids=lambda number: f"{number} suspensions")
async def test_phases_and_levels(number: int) -> None:
    trace = Trace()
    await build(
        [trace.task("A", number=number)],
        [trace.task("B", number=number)],
        [trace.task("C", number=number)],
    ).process_tasks(None)
    assert [event for event in trace if not event.endswith("done")] == [
        *("A.pre", "B.pre", "C.pre"),
        *("A.execute", "B.execute", "C.execute"),
        *("C.post", "B.post", "A.post"),
    ]


@pytest.mark.parametrize("number", [0, 1])
async def test_functions_are_called_in_the_order_of_adding(number: int) -> None:
    trace = Trace()
    # Added alternately: `execute` knows no levels, so it follows the order of adding.
    builder = AsyncTaskProcessor.builder()
    for name, level in (("C", 2), ("A", 1), ("D", 2), ("B", 1)):
        builder.add_task(trace.task(name, number=number), level)
    await builder.build().process_tasks(None)
    assert [event for event in trace if not event.endswith("done")] == [
        *("A.pre", "B.pre", "C.pre", "D.pre"),
        *("C.execute", "A.execute", "D.execute", "B.execute"),
        *("C.post", "D.post", "A.post", "B.post"),
    ]


async def test_levels_may_have_any_sign_and_gaps() -> None:
    trace = Trace()
    builder = AsyncTaskProcessor.builder()
    for level in (10**30, 3, -7, 0):
        builder.add_task(trace.task(str(level), "pre post"), level)
    await builder.build().process_tasks(None)
    assert trace == [
        *("-7.pre", "0.pre", "3.pre", f"{10**30}.pre"),
        *(f"{10**30}.post", "3.post", "0.post", "-7.post"),
    ]


async def test_a_level_waits_for_all_of_the_level_below() -> None:
    trace = Trace()
    gate = asyncio.Event()
    run = spawn(
        build(
            [
                task("quick", trace.quick("quick")),
                task("slow", trace.waiting("slow", gate)),
                task("pausing", trace.pausing("pausing")),
            ],
            [task("next", trace.quick("next"))],
        )
    )
    await until(lambda: "pausing done" in trace)
    await asyncio.sleep(0)
    assert "next" not in trace
    gate.set()
    await run
    assert trace[-2:] == ["slow done", "next"]


async def test_execute_waits_for_the_last_level() -> None:
    trace = Trace()
    gate = asyncio.Event()
    run = spawn(
        build(
            [task("A", trace.quick("A.pre"), trace.quick("A.execute"))],
            [task("B", trace.waiting("B.pre", gate))],
        )
    )
    await until(lambda: "B.pre" in trace)
    await asyncio.sleep(0)
    gate.set()
    await run
    assert trace == ["A.pre", "B.pre", "B.pre done", "A.execute"]


async def test_post_execute_waits_for_the_level_above() -> None:
    trace = Trace()
    gate = asyncio.Event()
    run = spawn(
        build(
            [task("A", post=trace.quick("A.post"))],
            [task("B", post=trace.waiting("B.post", gate)), task("C", post=trace.quick("C.post"))],
        )
    )
    await until(lambda: "C.post" in trace)
    await asyncio.sleep(0)
    assert "A.post" not in trace
    gate.set()
    await run
    assert trace[-2:] == ["B.post done", "A.post"]


@pytest.mark.parametrize("phase", PHASES)
async def test_a_level_runs_concurrently(phase: str) -> None:
    meeting = asyncio.Barrier(3)

    async def meet(ctx: Any) -> None:
        async with meeting:
            pass

    await build([task_in(phase, meet, name=name) for name in "ABC"]).process_tasks(None)


async def test_execute_of_all_levels_runs_concurrently() -> None:
    meeting = asyncio.Barrier(3)

    async def meet(ctx: Any) -> None:
        async with meeting:
            pass

    await build(*([task(name, execute=meet)] for name in "ABC")).process_tasks(None)


async def test_every_function_gets_the_context_itself() -> None:
    class Context:
        """It can neither be compared nor copied."""

        __hash__ = None  # type: ignore[assignment]

        def __eq__(self, other: object) -> bool:
            raise AssertionError

        def __reduce_ex__(self, protocol: Any) -> Any:
            raise AssertionError

    got: list[Any] = []

    async def take(ctx: Any) -> None:
        got.append(ctx)

    ctx = Context()
    await solo(take, TaskFunction(take, timeout=5, retries=1), take).process_tasks(ctx)
    assert len(got) == 3
    assert all(each is ctx for each in got)


async def test_none_is_a_context() -> None:
    got: list[Any] = []

    async def take(ctx: Any) -> None:
        got.append(ctx)

    await solo(take).process_tasks(None)
    assert got == [None]


async def test_tasks_without_some_phases() -> None:
    trace = Trace()
    await build(
        [trace.task("A", "pre"), trace.task("B", "post")],
        [join("nothing")],
        [trace.task("C", "execute")],
        [trace.task("D", "pre post")],
    ).process_tasks(None)
    assert trace == ["A.pre", "D.pre", "C.execute", "D.post", "B.post"]


async def test_a_processor_of_nodes_does_nothing() -> None:
    report = await build([join("A")], [join("B")]).process_tasks(None)
    assert list(report) == ["A", "B"]


@without_factory
@pytest.mark.parametrize("limits", [{}, {"timeout": 5, "retries": 2}], ids=["bare", "limited"])
async def test_functions_that_never_suspend_never_go_through_the_loop(
    limits: dict[str, Any],
) -> None:
    passed: list[bool] = []
    asyncio.get_running_loop().call_soon(passed.append, True)
    seen: list[bool] = []

    async def look(ctx: Any) -> None:
        done = asyncio.get_running_loop().create_future()
        done.set_result(None)
        await done
        seen.append(bool(passed))

    function = TaskFunction(look, **limits)
    await build(
        *(
            [AsyncTask(f"{level}{name}", function, function, function) for name in "ABC"]
            for level in range(3)
        )
    ).process_tasks(None)
    assert seen == [False] * 27
    assert passed == []
    await asyncio.sleep(0)


@without_factory
async def test_a_function_runs_to_its_first_suspension_when_its_turn_comes() -> None:
    trace = Trace()
    passed: list[bool] = []
    asyncio.get_running_loop().call_soon(passed.append, True)

    async def look(ctx: Any) -> None:
        trace.append("B before" if not passed else "B too late")
        await asyncio.sleep(0)
        trace.append("B after" if passed else "B too early")

    await build([task("A", trace.pausing("A")), task("B", look)]).process_tasks(None)
    assert trace == ["A", "B before", "A done", "B after"]


@without_factory
async def test_the_next_level_starts_where_the_last_one_ended() -> None:
    trace = Trace()
    gate = asyncio.get_running_loop().create_future()

    async def last(ctx: Any) -> None:
        await gate
        # Runs after this callback of the loop, whatever that still does.
        asyncio.get_running_loop().call_soon(trace.append, "next callback")

    run = spawn(build([task("A", last)], [trace.task("B")]))
    await asyncio.sleep(0)
    gate.set_result(None)
    await run
    assert trace == ["B.pre", "B.execute", "B.post", "next callback"]


async def test_a_run_inside_a_function_of_the_same_processor() -> None:
    trace = Trace()

    async def descend(depth: int) -> None:
        trace.append(f"in {depth}")
        if depth:
            await processor.process_tasks(depth - 1)
        trace.append(f"out {depth}")

    async def pause(depth: int) -> None:
        await asyncio.sleep(0)

    processor = build([task("A", pause, descend, pause)], [task("B", descend)])
    await processor.process_tasks(1)
    # B calls it in level 2, A in `execute`.
    assert trace == [
        *("in 1", "in 0", "out 0", "in 0", "out 0", "out 1"),
        *("in 1", "in 0", "out 0", "in 0", "out 0", "out 1"),
    ]


@pytest.mark.parametrize("number", [0, 1])
async def test_each_function_is_called_once(number: int) -> None:
    trace = Trace()
    names = [f"{level}-{index}" for level in range(5) for index in range(5)]
    await build(
        *(
            [trace.task(name, number=number) for name in names if name[0] == str(level)]
            for level in range(5)
        )
    ).process_tasks(None)
    called = [event for event in trace if not event.endswith("done")]
    assert sorted(called) == sorted(
        f"{name}.{phase}" for name in names for phase in ("pre", "execute", "post")
    )


# Execute level by level


def in_level_order(*levels: list[AsyncTask[Any, Any]], **options: Any) -> Any:
    builder = AsyncTaskProcessor.builder(execute_order="level", **options)
    for level, tasks in enumerate(levels, 1):
        for member in tasks:
            builder.add_task(member, level)
    return builder.build()


@pytest.mark.parametrize("number", [0, 1, 3], ids=lambda number: f"{number} suspensions")
async def test_execute_level_by_level(number: int) -> None:
    trace = Trace()
    tasks = [[trace.task(name, number=number) for name in names] for names in ("A", "BC", "D")]
    report = await in_level_order(*tasks).process_tasks(None)
    assert [event for event in trace if not event.endswith("done")] == [
        *("A.pre", "B.pre", "C.pre", "D.pre"),
        *("A.execute", "B.execute", "C.execute", "D.execute"),
        *("D.post", "B.post", "C.post", "A.post"),
    ]
    if number:
        assert before(trace, "A.execute done", "B.execute", "C.execute", "B.execute done")
        assert before(trace, "C.execute done", "D.execute")
    assert {*states(report).values()} == {"+++"}


async def test_execute_of_a_level_waits_for_the_slowest_below() -> None:
    trace = Trace()
    gate = asyncio.Event()
    run = spawn(
        in_level_order(
            [task("A", execute=trace.waiting("A", gate)), task("B", execute=trace.quick("B"))],
            [task("C", execute=trace.quick("C"))],
        )
    )
    await until(lambda: "B" in trace)
    await passes(5)
    assert "C" not in trace
    gate.set()
    await run
    assert trace == ["A", "B", "A done", "C"]


async def test_levels_without_an_execute_hold_nothing_up() -> None:
    trace = Trace()
    await in_level_order(
        [task("A", trace.quick("A.pre"))],
        [task("B", execute=trace.quick("B"))],
        [join("C")],
        [task("D", execute=trace.quick("D"))],
    ).process_tasks(None)
    assert trace == ["A.pre", "B", "D"]


async def test_a_failed_execute_leaves_out_that_of_higher_levels() -> None:
    trace = Trace()
    error = await failure_of(
        in_level_order(
            [task("A", nothing, trace.failing("A", Broken(), 1), trace.quick("A.post"))],
            [task("B", nothing, trace.quick("B"), trace.quick("B.post"))],
        )
    )
    assert trace == ["A", "B.post", "A.post"]
    assert states(error.report) == {"A": "+F+", "B": "+s+"}


async def test_execute_level_by_level_phase_by_phase_and_observed() -> None:
    trace = Trace()
    processor = in_level_order([trace.task("A", number=1)], [trace.task("B", number=1)])
    async with processor.open(None, observer=id) as run:
        while await run.run_next():
            pass
    assert before(trace, "A.execute done", "B.execute")


async def test_execute_level_by_level_with_few_places() -> None:
    trace = Trace()
    low = [trace.task(name, "execute", number=1) for name in "ABC"]
    await in_level_order(low, [trace.task("D", "execute")], max_concurrency=2).process_tasks(None)
    assert before(trace, "B.execute", "A.execute done", "C.execute", "C.execute done", "D.execute")


def test_processors_with_an_order_of_execute() -> None:
    one = task("A", execute=nothing)
    at_once = AsyncTaskProcessor.builder().add_task(one, 1).build()
    by_level = AsyncTaskProcessor.elevator_builder(execute_order="level").add_task(one, 1).build()
    assert (at_once.execute_order, by_level.execute_order) == ("at once", "level")
    assert at_once != by_level
    assert pickle.loads(pickle.dumps(by_level)) == by_level
    assert hash(pickle.loads(pickle.dumps(by_level))) == hash(by_level)


@pytest.mark.parametrize("wrong", ["dependency", "levels", None, True, ["level"], ""])
def test_a_bad_execute_order_is_refused(wrong: Any) -> None:
    for make in (AsyncTaskProcessor.builder, AsyncTaskProcessor.elevator_builder):
        with pytest.raises(
            ValueError, match="execute_order must be 'at once' or 'level'"
        ) as caught:
            make(execute_order=wrong)
        assert f"got {wrong!r}" in str(caught.value)
