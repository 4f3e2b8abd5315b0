"""What a failure stops, what it does not stop, and what is raised in the end."""

from __future__ import annotations

import asyncio
import re
from types import coroutine
from typing import Any

import pytest

from helpers import (
    PHASES,
    Trace,
    build,
    error_of,
    failure_of,
    forever,
    nothing,
    passes,
    solo,
    states,
    task,
    task_in,
    until,
    without_factory,
)
from sdax import SdaxExecutionError, TaskCancelledError, TaskFunction

# After how many passes of the loop a function fails: before and after its first suspension.
soon_or_late = pytest.mark.parametrize("number", [0, 1], ids=["at once", "suspended"])

FATAL = [KeyboardInterrupt, SystemExit, GeneratorExit, type("OwnFatal", (BaseException,), {})]


class Broken(Exception):
    """What functions here raise."""


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


# What counts as a failure


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize(
    "returned",
    [None, 42, "text", [1], nothing],
    ids=["None", "int", "str", "list", "function"],
)
async def test_a_function_must_return_an_awaitable(phase: str, returned: Any) -> None:
    trace = Trace()
    error = await failure_of(
        build([task_in(phase, lambda ctx: returned, name=("name", 1))], [trace.task("B", "post")])
    )
    (exception,) = error.exceptions
    assert type(exception) is TypeError
    message = re.escape(f"{phase} of task ('name', 1) must return an awaitable")
    assert re.match(message, str(exception))
    assert type(returned).__name__ in str(exception)
    assert trace == (["B.post"] if phase != "pre_execute" else [])


async def test_an_async_generator_is_no_awaitable() -> None:
    async def generator(ctx: Any) -> Any:
        yield 1

    error = await failure_of(solo(generator))
    (exception,) = error.exceptions
    assert type(exception) is TypeError
    assert "async_generator" in str(exception)


async def test_a_plain_generator_is_no_awaitable() -> None:
    def generator(ctx: Any) -> Any:
        yield

    error = await failure_of(solo(generator))
    (exception,) = error.exceptions
    assert type(exception) is TypeError
    assert "a generator" in str(exception)


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("limits", [{}, {"timeout": 5.0}], ids=["bare", "limited"])
@pytest.mark.parametrize(
    "kind", [Broken, StopIteration, StopAsyncIteration, asyncio.InvalidStateError]
)
async def test_a_callable_that_raises(phase: str, limits: Any, kind: type[Exception]) -> None:
    broken = kind("from the callable")

    def function(ctx: Any) -> Any:
        raise broken

    error = await failure_of(build([task_in(phase, TaskFunction(function, **limits))]))
    assert error.exceptions == (broken,)


async def test_stop_iteration_out_of_a_coroutine() -> None:
    async def function(ctx: Any) -> None:
        raise StopIteration("value")

    error = await failure_of(solo(function))
    (exception,) = error.exceptions
    assert type(exception) is RuntimeError
    assert isinstance(exception.__cause__, StopIteration)


@soon_or_late
async def test_stop_iteration_out_of_a_future(number: int) -> None:
    # Not even a StopIteration that an awaitable raises by hand looks like a result.
    class Awaitable:
        def __await__(self) -> Any:
            if number:
                yield
            raise StopIteration("value")

    error = await failure_of(solo(lambda ctx: Awaitable()))
    assert type(error.exceptions[0]) is RuntimeError


@soon_or_late
async def test_stop_async_iteration_out_of_a_coroutine(number: int) -> None:
    broken = StopAsyncIteration()
    error = await failure_of(solo(Trace().failing("A", broken, number)))
    assert error.exceptions == (broken,)


async def test_a_coroutine_that_was_awaited_already() -> None:
    coroutine_object = nothing(None)
    await coroutine_object
    error = await failure_of(solo(lambda ctx: coroutine_object))
    assert type(error.exceptions[0]) is RuntimeError
    assert "cannot reuse already awaited coroutine" in str(error.exceptions[0])


@soon_or_late
async def test_an_awaitable_that_yields_nonsense(number: int) -> None:
    @coroutine
    def nonsense(ctx: Any) -> Any:
        for _ in range(number):
            yield
        yield 42

    error = await failure_of(solo(nonsense))
    (exception,) = error.exceptions
    assert type(exception) is RuntimeError
    assert str(exception) == "Task got bad yield: 42"


@soon_or_late
async def test_a_future_of_another_loop(number: int) -> None:
    other = asyncio.new_event_loop()
    try:
        foreign = other.create_future()

        async def function(ctx: Any) -> None:
            await passes(number)
            await foreign

        error = await failure_of(solo(function))
    finally:
        other.close()
    (exception,) = error.exceptions
    assert type(exception) is RuntimeError
    assert "attached to a different loop" in str(exception)


@soon_or_late
async def test_awaiting_its_own_task(number: int) -> None:
    async def function(ctx: Any) -> None:
        await passes(number)
        await asyncio.current_task()  # type: ignore[misc]

    error = await failure_of(solo(function))
    (exception,) = error.exceptions
    assert type(exception) is RuntimeError
    assert "cannot await on itself" in str(exception)


# What functions may return


async def test_awaitables_of_all_kinds() -> None:
    loop = asyncio.get_running_loop()

    class Custom:
        def __await__(self) -> Any:
            return (yield from asyncio.sleep(0, "custom").__await__())

    class Finished:
        def __await__(self) -> Any:
            return iter(())

    @coroutine
    def generator_based(ctx: Any) -> Any:
        yield
        return "generator"

    done = loop.create_future()
    done.set_result("done")
    pending = loop.create_future()
    loop.call_soon(pending.set_result, "pending")
    report = await build(
        [
            task("custom", lambda ctx: Custom()),
            task("finished", lambda ctx: Finished()),
            task("generator", generator_based),
            task("done", lambda ctx: done),
            task("pending", lambda ctx: pending),
            task("task", lambda ctx: loop.create_task(asyncio.sleep(0, "task"))),
            task("gather", lambda ctx: asyncio.gather(asyncio.sleep(0, 1), asyncio.sleep(0, 2))),
        ]
    ).process_tasks(None)
    assert {name: phases.pre_execute.value for name, phases in report.items()} == {
        "custom": "custom",
        "finished": None,
        "generator": "generator",
        "done": "done",
        "pending": "pending",
        "task": "task",
        "gather": [1, 2],
    }


@pytest.mark.parametrize("suspended", [False, True])
async def test_a_future_that_holds_an_exception(suspended: bool) -> None:
    broken = Broken()
    loop = asyncio.get_running_loop()
    future = loop.create_future()
    if suspended:
        loop.call_soon(future.set_exception, broken)
    else:
        future.set_exception(broken)
    error = await failure_of(solo(lambda ctx: future))
    assert error.exceptions == (broken,)


# A CancelledError that nobody asked for


@pytest.mark.parametrize("phase", PHASES)
@soon_or_late
async def test_a_raised_cancelled_error(phase: str, number: int) -> None:
    trace = Trace()
    original = asyncio.CancelledError("mine")
    error = await failure_of(
        build(
            [
                task_in(phase, trace.failing("A", original, number)),
                task_in(phase, trace.pausing("B", 3), name="B"),
            ],
            [trace.task("C", "post")],
        )
    )
    (exception,) = error.exceptions
    assert type(exception) is TaskCancelledError
    assert exception.__cause__ is original
    assert re.match(f"{phase} of task 'A' was cancelled, but not by its run", str(exception))
    assert error.failures == (("A", phase, 1, exception),)
    assert states(error.report)["A"].count("F") == 1
    if phase == "post_execute":
        assert trace.count("B done") == 1


@pytest.mark.parametrize("phase", PHASES)
@soon_or_late
async def test_a_function_that_cancels_itself(phase: str, number: int) -> None:
    async def function(ctx: Any) -> None:
        await passes(number)
        asyncio.current_task().cancel("by myself")  # type: ignore[union-attr]
        await forever()

    error = await failure_of(build([task_in(phase, function)]))
    (exception,) = error.exceptions
    assert type(exception) is TaskCancelledError
    assert type(exception.__cause__) is asyncio.CancelledError
    assert exception.__cause__.args == ("by myself",)


@pytest.mark.parametrize("phase", PHASES)
async def test_other_code_that_cancels_the_task_of_a_function(phase: str) -> None:
    trace = Trace()
    owned: list[asyncio.Task[Any]] = []

    async def function(ctx: Any) -> None:
        owned.append(asyncio.current_task())  # type: ignore[arg-type]
        await forever()

    run = asyncio.get_running_loop().create_task(
        failure_of(
            build(
                [
                    task_in(phase, function),
                    task_in(phase, trace.pausing("B", 4), name="B"),
                    trace.task("C", "post"),
                ]
            )
        )
    )
    await until(lambda: owned and "B" in trace)
    owned[0].cancel("from outside")
    error = await run
    (exception,) = error.exceptions
    assert type(exception) is TaskCancelledError
    assert exception.__cause__.args == ("from outside",)  # type: ignore[union-attr]
    assert [failure[:3] for failure in error.failures] == [("A", phase, 1)]
    # In cleanup nothing else is cancelled; elsewhere it is a failure like any other.
    assert ("B done" in trace) is (phase == "post_execute")
    assert "C.post" in trace


async def test_a_cancelled_future_fails_the_function_that_awaits_it() -> None:
    loop = asyncio.get_running_loop()
    future = loop.create_future()
    loop.call_soon(future.cancel, "given up")
    error = await failure_of(solo(lambda ctx: future))
    assert type(error.exceptions[0]) is TaskCancelledError


async def test_a_function_that_survives_a_cancellation_of_its_own_has_succeeded() -> None:
    async def function(ctx: Any) -> str:
        asyncio.current_task().cancel()  # type: ignore[union-attr]
        try:
            await forever()
        except asyncio.CancelledError:
            return "survived"
        raise AssertionError

    report = await solo(function, function, function).process_tasks(None)
    assert states(report) == {"A": "+++"}
    assert report["A"].execute.value == "survived"


async def test_a_cancellation_that_comes_too_late_to_arrive() -> None:
    async def function(ctx: Any) -> str:
        await asyncio.sleep(0)
        asyncio.current_task().cancel()  # type: ignore[union-attr]
        return "done"

    report = await solo(function, function, function).process_tasks(None)
    assert states(report) == {"A": "+++"}


# What is no Exception


@pytest.mark.parametrize("kind", FATAL)
@pytest.mark.parametrize("phase", PHASES)
@soon_or_late
async def test_what_is_no_exception(kind: Any, phase: str, number: int) -> None:
    trace = Trace()
    fatal = kind("stop")
    error = await error_of(
        build(
            [trace.task("low")],
            [
                task_in(phase, trace.waiting("waiting") if phase != PHASES[2] else nothing),
                task_in(phase, trace.failing("fatal", fatal, number), name="fatal"),
                task_in(phase, trace.pausing("after", 3), name="after"),
                trace.task("cleanup", "post"),
            ],
            [trace.task("high")],
        ).process_tasks(None)
    )
    assert error is fatal
    assert error.__context__ is None
    assert error.__notes__ == [f"task 'fatal', {phase}, attempt 1 of 1"]
    posts = [event for event in trace if event.endswith("post")]
    if phase == "pre_execute":
        assert posts == ["cleanup.post", "low.post"]
        assert "waiting cancelled" in trace
        assert not [event for event in trace if event.endswith("execute")]
    else:
        assert posts == ["high.post", "cleanup.post", "low.post"]
    if phase == "execute":
        assert "waiting cancelled" in trace
    assert ("after done" in trace) is (phase == "post_execute")
    assert asyncio.current_task().cancelling() == 0  # type: ignore[union-attr]


@pytest.mark.parametrize("phase", PHASES)
async def test_other_failures_are_the_context_of_what_is_no_exception(phase: str) -> None:
    trace = Trace()
    fatal = KeyboardInterrupt()
    broken, later = Broken(1), Broken(2)
    other = trace.spiteful("A", broken) if phase != PHASES[2] else trace.failing("A", broken, 2)
    error = await error_of(
        build(
            [task("later", post=trace.failing("later", later))],
            [
                task_in(phase, other),
                task_in(phase, trace.failing("B", fatal, 1), name="B"),
            ],
        ).process_tasks(None)
    )
    assert error is fatal
    context = error.__context__
    assert type(context) is SdaxExecutionError
    assert context.exceptions == (broken, later)
    assert [failure.name for failure in context.failures] == ["A", "later"]
    assert context.report is not None


async def test_the_first_of_several_that_are_no_exceptions(loop_errors: list[Any]) -> None:
    trace = Trace()
    first, second, third = KeyboardInterrupt(), SystemExit(), KeyboardInterrupt()
    error = await error_of(
        build(
            [task("C", post=trace.failing("C", third))],
            [
                task("A", trace.spiteful("A", second)),
                task("B", trace.failing("B", first, 1)),
            ],
        ).process_tasks(None)
    )
    assert error is first
    # The others are not lost.
    assert [context["exception"] for context in loop_errors] == [second, third]
    assert all("KeyboardInterrupt" in context["message"] for context in loop_errors)
    loop_errors.clear()


async def test_a_group_that_is_no_exception() -> None:
    group = BaseExceptionGroup("several", [Broken(), KeyboardInterrupt()])
    assert await error_of(solo(Trace().failing("A", group)).process_tasks(None)) is group


async def test_what_is_no_exception_out_of_a_callable() -> None:
    fatal = KeyboardInterrupt()

    def function(ctx: Any) -> Any:
        raise fatal

    trace = Trace()
    assert await error_of(solo(function, post=trace.quick("post")).process_tasks(None)) is fatal
    assert trace == ["post"]


async def test_what_is_no_exception_after_a_failure() -> None:
    broken, fatal = Broken(), SystemExit(3)
    error = await error_of(
        solo(Trace().failing("A", broken), post=Trace().failing("A", fatal)).process_tasks(None)
    )
    assert error is fatal
    assert isinstance(error.__context__, SdaxExecutionError)
    assert error.__context__.exceptions == (broken,)


# What is left


@pytest.mark.parametrize("phase", PHASES)
@soon_or_late
async def test_the_caller_is_as_it_was(phase: str, number: int) -> None:
    current = asyncio.current_task()
    assert current is not None
    error = await failure_of(
        build(
            [
                task_in(phase, Trace().failing("A", Broken(), number)),
                task_in(phase, Trace().pausing("B", 3), name="B"),
            ]
        )
    )
    assert isinstance(error, SdaxExecutionError)
    assert current.cancelling() == 0
    await asyncio.sleep(0)  # no CancelledError is on its way
    async with asyncio.timeout(60):
        await asyncio.sleep(0)


async def test_a_count_of_cancellations_that_the_caller_had_is_kept() -> None:
    current = asyncio.current_task()
    assert current is not None
    current.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.sleep(0)
    assert current.cancelling() == 1
    with pytest.raises(SdaxExecutionError):
        await solo(Trace().failing("A", Broken(), 1)).process_tasks(None)
    assert current.cancelling() == 1
    await solo(Trace().pausing("A")).process_tasks(None)
    assert current.uncancel() == 0


async def test_two_runs_in_one_caller_after_a_failure() -> None:
    trace = Trace()
    processor = build(
        [task("A", trace.waiting("A")), task("B", trace.failing("B", Broken(), 1))],
    )
    for _ in range(2):
        await failure_of(processor)
    assert trace == ["A", "B", "A cancelled"] * 2


@without_factory
async def test_a_failure_that_never_suspends_never_goes_through_the_loop() -> None:
    passed: list[bool] = []
    asyncio.get_running_loop().call_soon(passed.append, True)
    await failure_of(
        build([task("A", nothing, post=nothing)], [task("B", Trace().failing("B", Broken()))])
    )
    assert passed == []
    await asyncio.sleep(0)


async def test_tracebacks_show_the_functions_frames() -> None:
    def raises() -> None:
        raise Broken

    async def sync_part(ctx: Any) -> None:
        raises()

    async def suspended(ctx: Any) -> None:
        await asyncio.sleep(0)
        raises()

    def callable_part(ctx: Any) -> Any:
        raises()

    for function in (sync_part, suspended, callable_part):
        for timeout in (None, 60):
            error = await failure_of(solo(TaskFunction(function, timeout)))
            traceback = error.exceptions[0].__traceback__
            names = []
            while traceback is not None:
                names.append(traceback.tb_frame.f_code.co_name)
                traceback = traceback.tb_next
            assert names == [function.__name__, "raises"]


async def test_exceptions_are_not_chained_to_each_other() -> None:
    first, second = Broken(1), Broken(2)
    error = await failure_of(
        build(
            [task("A", Trace().failing("A", first), post=Trace().failing("A", second))],
        )
    )
    assert error.exceptions == (first, second)
    assert first.__context__ is None
    assert second.__context__ is None
    assert error.__context__ is None
    assert error.__cause__ is None


async def test_an_exception_that_the_caller_is_handling_is_its_context_alone() -> None:
    outer, inner = Broken("outer"), Broken("inner")
    try:
        raise outer
    except Broken:
        error = await failure_of(solo(Trace().failing("A", inner, 1)))
    assert error.__context__ is outer
