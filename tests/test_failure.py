"""What a failure stops, and what it does not stop."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from helpers import (
    PHASES,
    Broken,
    Trace,
    build,
    failure_of,
    forever,
    nothing,
    passes,
    soon_or_late,
    states,
    task,
    task_in,
    until,
    without_factory,
)

# In pre_execute


@soon_or_late
async def test_failing_pre_execute(number: int) -> None:
    trace = Trace()
    broken = Broken()
    error = await failure_of(
        build(
            [trace.task("lower")],
            [
                task("waiting", trace.waiting("waiting"), post=trace.quick("waiting.post")),
                task("done", trace.quick("done"), trace.quick("done.execute")),
                task("bad", trace.failing("bad", broken, number), post=trace.quick("bad.post")),
            ],
            [trace.task("higher")],
        )
    )
    assert error.exceptions == (broken,)
    assert trace == [
        *("lower.pre", "waiting", "done", "bad", "waiting cancelled"),
        *("waiting.post", "bad.post", "lower.post"),
    ]
    assert states(error.report) == {
        "lower": "+s+",
        "waiting": "C-+",
        "done": "+s-",
        "bad": "F-+",
        "higher": "sss",
    }


@soon_or_late
async def test_siblings_not_yet_called_are_never_called(number: int) -> None:
    trace = Trace()
    error = await failure_of(
        build(
            [
                task("A", trace.failing("A", Broken(), number), post=trace.quick("A.post")),
                task("B", trace.waiting("B"), post=trace.quick("B.post")),
            ],
        )
    )
    if number:
        assert trace == ["A", "B", "B cancelled", "A.post", "B.post"]
        assert states(error.report) == {"A": "F-+", "B": "C-+"}
    else:
        # B has not started, so there is nothing to clean up.
        assert trace == ["A", "A.post"]
        assert states(error.report) == {"A": "F-+", "B": "s-s"}


async def test_siblings_are_awaited_before_cleanup() -> None:
    trace = Trace()

    async def slow_to_end(ctx: Any) -> None:
        try:
            await forever()
        finally:
            await passes(3)
            trace.append("ended")

    await failure_of(
        build(
            [
                task("A", slow_to_end, post=trace.quick("A.post")),
                task("B", trace.failing("B", Broken(), 1)),
            ]
        )
    )
    assert trace == ["B", "ended", "A.post"]


async def test_without_pre_execute_a_task_starts_when_its_level_opens() -> None:
    trace = Trace()
    error = await failure_of(
        build(
            [task("below", post=trace.quick("below.post"))],
            [
                task("failing", trace.failing("failing", Broken())),
                task("beside", post=trace.quick("beside.post")),
                task("works", execute=trace.quick("works"), post=trace.quick("works.post")),
            ],
            [task("above", post=trace.quick("above.post"))],
        )
    )
    assert trace == ["failing", "beside.post", "works.post", "below.post"]
    assert states(error.report) == {
        "below": "--+",
        "failing": "F--",
        "beside": "--+",
        "works": "-s+",
        "above": "--s",
    }


@pytest.mark.parametrize("failing_level", [1, 2, 3, 4])
async def test_cleanup_of_opened_levels_only(failing_level: int) -> None:
    trace = Trace()
    levels = []
    for level in (1, 2, 3, 4):
        if level == failing_level:
            failing = trace.failing("bad", Broken())
            levels.append([task("bad", failing, post=trace.quick("bad.post"))])
        else:
            # Odd levels have functions to call first, even ones open without.
            pre = trace.quick(f"{level}.pre") if level % 2 else None
            levels.append([task(level, pre, post=trace.quick(f"{level}.post"))])
    await failure_of(build(*levels))
    posts = [event for event in trace if event.endswith("post")]
    expected = [f"{level}.post" for level in range(failing_level - 1, 0, -1)]
    assert posts == ["bad.post", *expected]


@without_factory
async def test_a_failure_that_never_suspends_never_goes_through_the_loop() -> None:
    passed: list[bool] = []
    asyncio.get_running_loop().call_soon(passed.append, True)
    await failure_of(
        build([task("A", nothing, post=nothing)], [task("B", Trace().failing("B", Broken()))])
    )
    assert passed == []
    await asyncio.sleep(0)


# In execute


@soon_or_late
async def test_failing_execute(number: int) -> None:
    trace = Trace()
    error = await failure_of(
        build(
            [task("A", trace.quick("A.pre"), trace.waiting("A"), trace.quick("A.post"))],
            [task("B", None, trace.failing("B", Broken(), number), trace.quick("B.post"))],
            [task("C", None, trace.quick("C"), trace.quick("C.post"))],
        )
    )
    called = ["C"] if number else []
    assert trace == [
        *("A.pre", "A", "B", *called, "A cancelled"),
        *("C.post", "B.post", "A.post"),
    ]
    c = "-++" if number else "-s+"
    assert states(error.report) == {"A": "+C+", "B": "-F+", "C": c}


# In post_execute


@soon_or_late
async def test_failing_post_execute_stops_nothing(number: int) -> None:
    trace = Trace()
    first, second = Broken(1), Broken(2)
    gate = asyncio.Event()

    async def release(ctx: Any) -> None:
        gate.set()

    error = await failure_of(
        build(
            [task("open", post=release), task("last", post=trace.failing("last", second, number))],
            [
                task("waiting", post=trace.pausing("waiting", 3)),
                task("failing", post=trace.failing("failing", first, number)),
                task("after", post=trace.quick("after")),
            ],
        )
    )
    assert gate.is_set()
    assert trace == ["waiting", "failing", "after", "waiting done", "last"]
    assert error.exceptions == (first, second)
    assert states(error.report) == {
        "open": "--+",
        "last": "--F",
        "waiting": "--+",
        "failing": "--F",
        "after": "--+",
    }


async def test_failing_cleanup_after_failing_pre_execute() -> None:
    trace = Trace()
    errors = [Broken(number) for number in range(3)]
    error = await failure_of(
        build(
            [task("A", trace.quick("A"), post=trace.failing("A.post", errors[2]))],
            [task("B", trace.failing("B", errors[0]), post=trace.failing("B.post", errors[1]))],
        )
    )
    assert error.exceptions == tuple(errors)
    assert [failure[:3] for failure in error.failures] == [
        ("B", "pre_execute", 1),
        ("B", "post_execute", 1),
        ("A", "post_execute", 1),
    ]
    assert trace == ["A", "B", "B.post", "A.post"]


@pytest.mark.parametrize("phase", PHASES)
@soon_or_late
async def test_due_cleanups_run_exactly_once(phase: str, number: int) -> None:
    trace = Trace()
    failing = trace.failing("A", Broken(), number)
    members = [task_in(phase, failing)]
    members += [trace.task(name, number=number) for name in ("B", "C")]
    await failure_of(build([trace.task("low")], members, [trace.task("high")]))
    posts = [event for event in trace if event.endswith(".post")]
    assert len(posts) == len(set(posts))
    started = {event[: -len(".pre")] for event in trace if event.endswith(".pre")}
    assert {post[: -len(".post")] for post in posts} == started


# What siblings make of their cancellation


@pytest.mark.parametrize("phase", PHASES[:2])
async def test_what_a_sibling_raises_while_cancelled_is_a_failure(phase: str) -> None:
    trace = Trace()
    first, second = Broken(1), Broken(2)
    error = await failure_of(
        build(
            [
                task_in(phase, trace.spiteful("A", second), post=trace.quick("A.post")),
                task_in(phase, trace.failing("B", first, 1), name="B"),
            ]
        )
    )
    assert error.exceptions == (first, second)
    assert trace == ["A", "B", "A.post"]
    assert states(error.report)["A"].count("F") == 1


@pytest.mark.parametrize("phase", PHASES[:2])
async def test_a_sibling_that_swallows_its_cancellation_has_succeeded(phase: str) -> None:
    trace = Trace()
    error = await failure_of(
        build(
            [
                task_in(phase, trace.stubborn("A", "value"), post=trace.quick("A.post")),
                task_in(phase, trace.failing("B", Broken(), 1), name="B"),
            ]
        )
    )
    assert len(error.exceptions) == 1
    assert trace == ["A", "B", "A swallowed", "A.post"]
    assert error.report is not None
    assert getattr(error.report["A"], phase)[:3] == ("succeeded", 1, "value")


async def test_a_sibling_that_goes_on_after_its_cancellation_is_awaited() -> None:
    trace = Trace()
    gate = asyncio.Event()

    async def goes_on(ctx: Any) -> None:
        while not gate.is_set():
            try:
                await gate.wait()
            except asyncio.CancelledError:
                trace.append("cancelled")

    failing = task("B", trace.failing("B", Broken(), 1))
    run = asyncio.get_running_loop().create_task(
        failure_of(build([task("A", goes_on, post=trace.quick("A.post")), failing]))
    )
    await until(lambda: "cancelled" in trace)
    await passes(3)
    assert trace == ["B", "cancelled"]
    gate.set()
    await run
    assert trace == ["B", "cancelled", "A.post"]


async def test_several_failures_in_the_order_in_which_they_happened() -> None:
    trace = Trace()
    early, late, last = Broken("early"), Broken("late"), Broken("last")

    async def ends_late(ctx: Any) -> None:
        try:
            await forever()
        finally:
            await passes(3)
            raise last

    error = await failure_of(
        build(
            [
                task("A", ends_late),
                task("B", trace.spiteful("B", late)),
                task("C", trace.failing("C", early, 1)),
            ]
        )
    )
    assert error.exceptions == (early, late, last)
    assert [failure.name for failure in error.failures] == ["C", "B", "A"]


async def test_two_failures_in_one_pass_of_the_loop() -> None:
    gate = asyncio.Event()
    errors = {"A": Broken("A"), "B": Broken("B")}

    def failing(name: str) -> Any:
        async def function(ctx: Any) -> None:
            await gate.wait()
            raise errors[name]

        return function

    async def open_gate(ctx: Any) -> None:
        await asyncio.sleep(0)
        gate.set()

    error = await failure_of(
        build([task("A", failing("A")), task("B", failing("B")), task("C", open_gate)])
    )
    # B was cancelled when its turn had come: what asyncio makes of that decides.
    assert error.exceptions[0] is errors["A"]
    assert states(error.report)["B"] in ("C--", "F--")
