"""At most so many functions of a run are suspended at a time; the others wait, in order."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import pytest

from helpers import (
    PHASES,
    Trace,
    amount,
    error_of,
    failure_of,
    graph,
    nothing,
    passes,
    spawn,
    states,
    task,
    until,
)
from sdax import AsyncTask, AsyncTaskProcessor, TaskFunction, task_sync_func

MANY = amount(2_000, 10_000)


def limited(limit: int | None, *levels: Iterable[AsyncTask[Any, Any]]) -> Any:
    """A processor of levels with so many places."""
    builder = AsyncTaskProcessor.builder(max_concurrency=limit)
    for level, tasks in enumerate(levels):
        for each in tasks:
            builder.add_task(each, level)
    return builder.build()


class Crowd:
    """Functions that count how many of them are suspended."""

    def __init__(self) -> None:
        self.now = self.most = self.calls = 0
        self.called: list[Any] = []

    def member(self, label: Any, number: int = 1) -> Any:
        async def function(ctx: Any) -> None:
            self.calls += 1
            self.called.append(label)
            self.now += 1
            self.most = max(self.most, self.now)
            try:
                await passes(number)
            finally:
                self.now -= 1

        return function


@pytest.mark.parametrize("limit", [1, 2, 5, 7, 8, 100, None])
@pytest.mark.parametrize("phase", PHASES)
async def test_never_more_than_so_many(phase: str, limit: int | None) -> None:
    crowd = Crowd()
    functions = [TaskFunction(crowd.member(n, 1 + n * 5 % 7)) for n in range(7)]
    tasks = [AsyncTask(n, **{phase: function}) for n, function in enumerate(functions)]
    await limited(limit, tasks).process_tasks(None)
    assert crowd.most == min(limit or 7, 7)
    assert crowd.called == [*range(7)]


async def test_places_are_taken_as_they_come_free() -> None:
    trace = Trace()
    events = [asyncio.Event() for _ in range(5)]
    tasks = [task(n, None, trace.waiting(str(n), event)) for n, event in enumerate(events)]
    run = spawn(limited(2, tasks))
    await until(lambda: len(trace) == 2)
    await passes(5)
    assert trace == ["0", "1"]
    events[1].set()
    await until(lambda: "2" in trace)
    await passes(5)
    assert trace == ["0", "1", "1 done", "2"]
    events[0].set()
    events[2].set()
    await until(lambda: "4" in trace)
    for event in events:
        event.set()
    await run
    assert trace[4:8] in (["0 done", "3", "2 done", "4"], ["0 done", "2 done", "3", "4"])


async def test_those_that_do_not_suspend_take_no_place() -> None:
    trace, event = Trace(), asyncio.Event()
    processor = limited(
        2,
        [
            task("A", trace.waiting("A", event)),
            *(task(n, trace.quick(str(n))) for n in range(3)),
            task("plain", task_sync_func(lambda ctx: trace.append("plain"))),
            task("B", trace.waiting("B", event)),
            task("C", trace.quick("C")),
        ],
    )
    run = spawn(processor)
    await until(lambda: "B" in trace)
    await passes(3)
    assert trace == ["A", "0", "1", "2", "plain", "B"]
    event.set()
    await run
    assert "C" in trace


async def test_a_level_waits_for_those_that_had_no_place() -> None:
    trace = Trace()
    first = [task(n, trace.pausing(str(n), 2), post=trace.quick("post")) for n in range(5)]
    await limited(2, first, [task("last", trace.quick("last"))]).process_tasks(None)
    assert trace.index("last") == 10
    assert trace[11:] == ["post"] * 5


async def test_one_place_means_one_after_another() -> None:
    trace = Trace()
    tasks = [trace.task(name, number=2) for name in "ABC"]
    await limited(1, tasks).process_tasks(None)
    assert trace == [
        f"{name}.{phase}{done}"
        for phase in ("pre", "execute", "post")
        for name in "ABC"
        for done in ("", " done")
    ]


async def test_each_run_has_places_of_its_own() -> None:
    async def function(ctx: Crowd) -> None:
        await ctx.member(0, 3)(None)

    processor = limited(2, [task(n, None, function) for n in range(6)])
    crowds = [Crowd() for _ in range(5)]
    await asyncio.gather(*(processor.process_tasks(crowd) for crowd in crowds))
    assert [(crowd.most, crowd.calls) for crowd in crowds] == [(2, 6)] * 5


@pytest.mark.parametrize("limit", [1, 2, 3])
@pytest.mark.parametrize("order", ["at once", "dependency"])
async def test_graphs(limit: int, order: Any) -> None:
    crowd = Crowd()

    def phases(n: int) -> AsyncTask[Any, Any]:
        return task(n, *(crowd.member((phase, n), 1 + n * 3 % 5) for phase in range(3)))

    added = [(phases(n), [k for k in (n - 2, n - 5) if k >= 0]) for n in range(12)]
    processor = graph(*added, execute_order=order, max_concurrency=limit)
    await processor.process_tasks(None)
    assert crowd.most <= limit
    assert crowd.calls == len({*crowd.called}) == 36
    places = {each: number for number, each in enumerate(crowd.called)}
    for n, (_, depends_on) in enumerate(added):
        for other in depends_on:
            assert places[0, other] < places[0, n]
            assert places[2, other] > places[2, n]
            if order == "dependency":
                assert places[1, other] < places[1, n]


async def test_in_a_graph_what_opened_first_is_called_first() -> None:
    trace, event = Trace(), asyncio.Event()
    processor = graph(
        (task("opened later", trace.quick("opened later")), ["B"]),
        task("A", trace.waiting("A", event)),
        task("B", trace.pausing("B", 3)),
        task("C", trace.pausing("C")),
        task("D", trace.pausing("D")),
        max_concurrency=2,
    )
    run = spawn(processor)
    await until(lambda: "B done" in trace)
    assert trace == ["A", "B", "B done"] or trace == ["A", "B", "B done", "C"]
    await until(lambda: "opened later" in trace)
    event.set()
    await run
    called = [label for label in trace if "done" not in label]
    assert called == ["A", "B", "C", "D", "opened later"]


async def test_an_open_gate_does_not_jump_the_limit() -> None:
    """A function that ends without suspending opens much, and takes no place itself."""
    crowd = Crowd()
    added: list[Any] = [task("root", nothing)]
    added += [(task(n, crowd.member(n, 2), None, crowd.member(n, 2)), ["root"]) for n in range(9)]
    added += [(task("x", crowd.member("x")), [0, "root"])]
    await graph(*added, max_concurrency=3).process_tasks(None)
    assert crowd.most == 3
    assert crowd.calls == 19


@pytest.mark.virtual_clock
async def test_a_pause_before_a_retry_holds_its_place() -> None:
    trace = Trace()
    loop = asyncio.get_running_loop()
    times: dict[str, float] = {}

    async def fail_once(ctx: Any) -> None:
        trace.append("A")
        if trace.count("A") == 1:
            raise ConnectionError
        times["A"] = loop.time()

    async def other(ctx: Any) -> None:
        times["B"] = loop.time()

    began = loop.time()
    processor = limited(
        1,
        [
            task("A", None, TaskFunction(fail_once, retries=1, initial_delay=10)),
            task("B", None, other),
        ],
    )
    await processor.process_tasks(None)
    assert times["A"] >= began + 5
    assert times["B"] >= times["A"]


@pytest.mark.virtual_clock
async def test_a_timeout_frees_its_place() -> None:
    trace = Trace()
    limits = {"timeout": 1, "retries": 1, "initial_delay": 1}
    tasks = [
        task(n, post=TaskFunction(trace.waiting(str(n)), **limits))  # type: ignore[arg-type]
        for n in range(3)
    ]
    error = await failure_of(limited(1, tasks))
    assert trace == [f"{n}{what}" for n in "012" for what in ("", " cancelled") * 2]
    assert states(error.report) == dict.fromkeys(range(3), "--T")


@pytest.mark.parametrize("phase", ["pre_execute", "execute"])
@pytest.mark.parametrize("crooked", [False, True])
async def test_after_a_failure_the_rest_is_never_called(phase: str, crooked: bool) -> None:
    trace = Trace()
    error = ValueError("mine")
    functions = [trace.waiting("0"), trace.failing("1", error, 1)]
    functions += [trace.quick(str(n)) for n in range(2, 6)]
    tasks = [
        AsyncTask(
            n,
            post_execute=TaskFunction(trace.quick(f"{n}.post")),
            **{phase: TaskFunction(function)},
        )
        for n, function in enumerate(functions)
    ]
    if crooked:
        processor = graph(*tasks[:5], (tasks[5], [0, 1]), task("x", nothing), max_concurrency=2)
    else:
        processor = limited(2, tasks)
    caught = await failure_of(processor)
    assert caught.exceptions == (error,)
    assert trace[:3] == ["0", "1", "0 cancelled"]
    due = range(2) if phase == "pre_execute" else range(6)
    assert sorted(trace[3:]) == [f"{n}.post" for n in due]
    for n in range(2, 6):
        assert getattr(caught.report[n], phase).state == "skipped"  # type: ignore[index]


async def test_a_failed_cleanup_frees_its_place() -> None:
    trace = Trace()
    tasks = [task(n, post=trace.failing(str(n), ValueError(n), n % 2)) for n in range(6)]
    error = await failure_of(limited(1, tasks))
    assert trace == [str(n) for n in range(6)]
    assert [each.args[0] for each in error.exceptions] == [*range(6)]


async def test_who_swallows_a_cancellation_keeps_its_place_and_frees_it() -> None:
    trace = Trace()
    tasks = [
        task("A", None, trace.stubborn("A"), trace.pausing("A.post")),
        task("B", None, trace.failing("B", ValueError(), 1), trace.pausing("B.post")),
        task("C", None, trace.quick("C"), trace.pausing("C.post")),
    ]
    await failure_of(limited(2, tasks))
    assert trace == [
        "A", "B", "A swallowed",
        "A.post", "B.post", "A.post done", "C.post", "B.post done", "C.post done",
    ] or trace == [
        "A", "B", "A swallowed",
        "A.post", "B.post", "A.post done", "B.post done", "C.post", "C.post done",
    ]  # fmt: skip


@pytest.mark.parametrize("phase", PHASES)
async def test_cancelling_the_caller(phase: str) -> None:
    """What had no place is never called; but every cleanup is."""
    trace = Trace()
    tasks = [AsyncTask(n, **{phase: TaskFunction(trace.pausing(str(n), 4))}) for n in range(5)]
    run = spawn(limited(2, tasks))
    await until(lambda: len(trace) == 2)
    run.cancel()
    assert isinstance(await error_of(run), asyncio.CancelledError)
    called = [label for label in trace if "done" not in label]
    assert called == ([str(n) for n in range(5)] if phase == "post_execute" else ["0", "1"])


async def test_what_is_no_exception() -> None:
    trace = Trace()
    interrupt = KeyboardInterrupt()
    tasks = [
        task("A", None, trace.waiting("A"), trace.pausing("A.post")),
        task("B", None, trace.failing("B", interrupt, 1), trace.pausing("B.post")),
        task("C", None, trace.quick("C"), trace.pausing("C.post")),
    ]
    assert await error_of(limited(2, tasks).process_tasks(None)) is interrupt
    assert "C" not in trace
    assert {"A.post done", "B.post done", "C.post done"} <= {*trace}


@pytest.mark.loop_kinds("asyncio")
@pytest.mark.parametrize("phase", PHASES)
async def test_thousands_with_ten_places(phase: str) -> None:
    crowd = Crowd()
    function = TaskFunction(crowd.member("all"))
    processor = limited(10, [AsyncTask(n, **{phase: function}) for n in range(MANY)])
    await processor.process_tasks(None)
    assert crowd.most == 10
    assert crowd.calls == MANY


async def test_thousands_that_never_suspend_with_one_place() -> None:
    calls = []
    function = task_sync_func(calls.append)
    processor = limited(1, [task(n, function, function) for n in range(MANY)])
    await processor.process_tasks(None)
    assert len(calls) == 2 * MANY


async def test_every_second_one_suspends() -> None:
    """Who goes on in the loop calls those that do not suspend, without piling up calls."""
    crowd = Crowd()
    functions = [TaskFunction(crowd.member("slow")), TaskFunction(nothing)]
    processor = limited(3, [task(n, None, functions[n % 2]) for n in range(MANY)])
    await processor.process_tasks(None)
    # Under a task factory also who is yet to take a first step has a place.
    assert crowd.most in (2, 3)
    assert crowd.calls == MANY // 2


async def test_phase_by_phase() -> None:
    crowd = Crowd()
    tasks = [task(n, *(crowd.member(n, 2) for _ in range(3))) for n in range(6)]
    async with limited(2, tasks).open(None) as run:
        while await run.run_next():
            assert crowd.now == 0
    assert crowd.most == 2
    assert crowd.called == [*range(6)] * 3
