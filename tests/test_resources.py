"""Resources: set-up and cleanup in one function and one asyncio.Task, told how the run went."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from helpers import (
    Broken,
    Trace,
    build,
    current,
    error_of,
    failure_of,
    forever,
    graph,
    nothing,
    passes,
    soon_or_late,
    spawn,
    task,
    until,
)
from sdax import (
    AsyncDagTaskProcessor,
    AsyncTaskProcessor,
    Finish,
    RetryableException,
    SdaxExecutionError,
    State,
    TaskCancelledError,
    TaskFunction,
    resource,
    task_func,
    task_outcome_func,
)

# --- 1: what it is made of


@soon_or_late
async def test_it_is_set_up_before_and_cleaned_up_after_everything_else(number: int) -> None:
    trace = Trace()
    processor = build(
        [resource("R", trace.holding("R", number), execute=trace.quick("R.execute"))],
        [trace.task("A")],
    )
    report = await processor.process_tasks(None)
    assert trace == [
        "R up",
        "A.pre",
        "R.execute",
        "A.execute",
        "A.post",
        "R ok",
        "R down",
    ]
    assert [each.state for each in report["R"]] == [State.SUCCEEDED] * 3


@soon_or_late
async def test_what_it_yields_is_the_value_of_pre_execute(number: int) -> None:
    report = await build([resource("R", Trace().holding("R", number, 42))]).process_tasks(None)
    assert report["R"].pre_execute.value == 42
    assert report["R"].post_execute.value is None
    assert report["R"].execute.state is State.ABSENT


@soon_or_late
async def test_it_may_be_an_async_context_manager(number: int) -> None:
    trace = Trace()

    class Manager:
        def __init__(self, ctx: Any) -> None:
            trace.append(f"made with {ctx}")

        async def __aenter__(self) -> int:
            await passes(number)
            return 42

        async def __aexit__(self, kind: Any, error: Any, traceback: Any) -> None:
            trace.append(f"exit with {kind}, {type(error).__name__}")
            await passes(number)

    report = await build([resource("R", Manager)]).process_tasks("ctx")
    assert report["R"].pre_execute.value == 42
    await failure_of(build([resource("R", Manager, execute=trace.failing("x", Broken()))]))
    assert trace == [
        "made with ctx",
        "exit with None, NoneType",
        "made with None",
        "x",
        f"exit with {SdaxExecutionError}, SdaxExecutionError",
    ]


async def test_it_may_be_a_function_of_contextlib() -> None:
    trace = Trace()
    processor = build([resource("R", asynccontextmanager(trace.holding("R", 1, 42)))])
    report = await processor.process_tasks(None)
    assert report["R"].pre_execute.value == 42
    assert trace == ["R up", "R ok", "R down"]


@pytest.mark.parametrize(
    ("returned", "shown"),
    [(None, "None of type NoneType"), (5, "5 of type int"), ([], "[] of type list")],
)
async def test_what_returns_something_else_fails(returned: Any, shown: str) -> None:
    error = await failure_of(build([resource("R", lambda ctx: returned)]))
    assert isinstance(error.exceptions[0], TypeError)
    message = str(error.exceptions[0])
    assert message.startswith("resource 'R' takes an async generator function that yields once")
    assert f"its function returned {shown}" in message


async def test_what_returns_a_coroutine_fails_and_closes_it() -> None:
    error = await failure_of(build([resource("R", lambda ctx: nothing(ctx))]))  # type: ignore[arg-type, return-value]
    assert "its function returned <coroutine" in str(error.exceptions[0])


async def test_what_raises_before_it_returns_anything_fails() -> None:
    def fail(ctx: Any) -> Any:
        raise StopIteration(5)

    error = await failure_of(build([resource("R", fail)]))
    assert isinstance(error.exceptions[0], RuntimeError)
    assert isinstance(error.exceptions[0].__cause__, StopIteration)


# --- 2: one asyncio.Task


@soon_or_late
async def test_one_task_from_the_first_line_to_the_last(number: int) -> None:
    seen: list[asyncio.Task[Any]] = []
    names: list[str] = []

    def look() -> None:
        seen.append(current())
        names.append(current().get_name())

    async def held(ctx: Any) -> AsyncIterator[None]:
        look()
        await passes(number)
        look()
        yield
        look()
        await passes(number)
        look()

    held_names: list[str] = []
    others: list[Any] = []

    async def look_around(ctx: Any) -> None:
        others.append(current())
        held_names.extend(sorted(each.get_name() for each in asyncio.all_tasks()))

    await build(
        [task("B", look_around), resource("R", held), task("C", look_around)],
        [task("A", look_around, look_around, look_around)],
    ).process_tasks(None)
    assert len(set(seen)) == 1
    assert not set(seen) & set(others)
    assert names == ["sdax:R:pre_execute"] * 2 + ["sdax:R:post_execute"] * 2
    assert held_names.count("sdax:R:resource") == 3 + (not number)


async def test_what_it_waits_for_says_what_that_is() -> None:
    shown: list[str] = []

    async def look(ctx: Any) -> None:
        shown.extend(repr(each) for each in asyncio.all_tasks() if "resource" in each.get_name())

    await build([resource("R", Trace().holding("R"), execute=look)]).process_tasks(None)
    assert "wait_for=<the turn of resource 'R' to be cleaned up>" in shown[0]
    assert "Trace.holding.<locals>.function" in shown[0]


@soon_or_late
async def test_while_it_is_held_it_takes_no_place(number: int) -> None:
    trace = Trace()
    builder = AsyncTaskProcessor.builder(max_concurrency=1)
    for name in "RS":
        builder.add_task(resource(name, trace.holding(name, number)), 1)
    builder.add_task(trace.task("A", number=2), 2)
    builder.add_task(trace.task("B", number=2), 2)
    await builder.build().process_tasks(None)
    assert trace == [
        *("R up", "S up", "A.pre", "A.pre done", "B.pre", "B.pre done"),
        *("A.execute", "A.execute done", "B.execute", "B.execute done"),
        *("A.post", "A.post done", "B.post", "B.post done"),
        *("R ok", "R down", "S ok", "S down"),
    ]


async def test_a_cleanup_that_suspends_takes_a_place() -> None:
    trace = Trace()
    builder = AsyncTaskProcessor.builder(max_concurrency=1)
    builder.add_task(resource("R", trace.holding("R", 2)), 1)
    builder.add_task(trace.task("A"), 1)
    builder.add_task(trace.task("B"), 2)
    await builder.build().process_tasks(None)
    assert trace[-4:] == ["B.post", "R ok", "R down", "A.post"]


async def test_no_function_notices_the_cleanup_before_it() -> None:
    seen: dict[str, Any] = {}

    async def held(ctx: Any) -> AsyncIterator[None]:
        yield
        seen["R"] = asyncio.all_tasks()
        assert current() in seen["R"]

    async def first(ctx: Any) -> None:
        seen["first"] = id(current())

    async def last(ctx: Any) -> None:
        if seen["first"] in map(id, seen["R"]):  # not ended meanwhile
            assert id(current()) != seen["first"]
        assert current().get_name() == "sdax:last:post_execute"

    await build(
        [resource("R", held), task("last", None, None, last)], [task("first", None, None, first)]
    ).process_tasks(None)


async def test_the_loop_does_not_close_it_in_another_task() -> None:
    own: list[asyncio.Task[Any]] = []

    async def held(ctx: Any) -> AsyncIterator[None]:
        own.append(current())
        try:
            yield
        finally:
            own.append(current())

    async def execute(ctx: Any) -> None:
        await asyncio.get_running_loop().shutdown_asyncgens()
        assert len(own) == 1

    await build([resource("R", held, execute=execute)]).process_tasks(None)
    assert own[0] is own[1]


async def test_scopes_may_stay_open_across_the_yield() -> None:
    trace = Trace()

    async def held(ctx: Any) -> AsyncIterator[None]:
        async with asyncio.timeout(3600), asyncio.TaskGroup() as group:
            child = group.create_task(forever())
            yield
            child.cancel()
        trace.append(f"cancelling {current().cancelling()}")

    processor = build([resource("R", held)], [trace.task("A", number=1)])
    await processor.process_tasks(None)
    assert trace[-1] == "cancelling 0"
    error = await failure_of(
        build([resource("R", held)], [task("A", trace.failing("A", Broken()))])
    )
    assert [type(each) for each in error.exceptions] == [Broken]


# --- 3: a set-up that fails


@soon_or_late
async def test_a_set_up_that_fails_cleans_up_after_itself(number: int) -> None:
    trace = Trace()

    async def held(ctx: Any) -> AsyncIterator[None]:
        try:
            await passes(number)
            raise Broken
            yield
        finally:
            trace.append("undone")

    error = await failure_of(
        build([resource("R", held, execute=nothing), trace.task("A")], [trace.task("B")])
    )
    assert [type(each) for each in error.exceptions] == [Broken]
    assert trace == (["undone"] if not number else ["A.pre", "undone"]) + (["A.post"] * number)
    report = error.report["R"]
    assert [each.state for each in report] == [State.FAILED, State.SKIPPED, State.SKIPPED]


async def test_a_set_up_that_is_cancelled_cleans_up_after_itself() -> None:
    trace = Trace()

    async def held(ctx: Any) -> AsyncIterator[None]:
        try:
            await forever()
            yield
        finally:
            await passes(1)
            trace.append("undone")

    error = await failure_of(
        build([resource("R", held), task("A", trace.failing("A", Broken(), 1))])
    )
    assert trace == ["A", "undone"]
    report = error.report["R"]
    assert [report.pre_execute.state, report.post_execute.state] == [
        State.CANCELLED,
        State.SKIPPED,
    ]
    trace.clear()
    run = spawn(build([resource("R", held)]))
    await passes(2)
    run.cancel()
    assert isinstance(await error_of(run), asyncio.CancelledError)
    assert trace == ["undone"]


async def test_a_set_up_that_never_yields_fails() -> None:
    async def held(ctx: Any) -> AsyncIterator[None]:
        if ctx is not None:
            yield

    error = await failure_of(build([resource("R", held)]))
    assert str(error.exceptions[0]) == (
        "the function of resource 'R' must yield once, but it ended without a 'yield'"
    )
    assert error.exceptions[0].__context__ is None


@pytest.mark.virtual_clock
@soon_or_late
async def test_a_retry_begins_a_new_generator(number: int) -> None:
    trace = Trace()
    attempts = 0

    async def held(ctx: Any) -> AsyncIterator[int]:
        nonlocal attempts
        attempts += 1
        trace.append(f"up {attempts}")
        try:
            await passes(number)
            if attempts < 3:
                raise RetryableException
            yield attempts
        finally:
            trace.append("down")

    report = await build(
        [resource("R", held, retries=3, initial_delay=1.0)], [trace.task("A", "pre")]
    ).process_tasks(None)
    assert trace == ["up 1", "down", "up 2", "down", "up 3", "A.pre", "down"]
    assert report["R"].pre_execute[:3] == (State.SUCCEEDED, 3, 3)
    assert report["R"].post_execute[:2] == (State.SUCCEEDED, 1)


@pytest.mark.virtual_clock
async def test_a_timeout_bounds_one_attempt_at_set_up_alone() -> None:
    trace = Trace()

    async def held(ctx: Any) -> AsyncIterator[None]:
        trace.append("up")
        await asyncio.sleep(2.0 if trace.count("up") == 1 else 0.5)
        yield
        await asyncio.sleep(100.0)
        trace.append("down")

    async def last(ctx: Any) -> None:
        await asyncio.sleep(100.0)

    report = await build([resource("R", held, timeout=1.0, retries=1, execute=last)]).process_tasks(
        None
    )
    assert trace == ["up", "up", "down"]
    assert report["R"].pre_execute.attempts == 2
    error = await failure_of(build([resource("R", held, timeout=0.1)]))
    assert error.report["R"].pre_execute.state is State.TIMED_OUT
    assert error.report["R"].post_execute.state is State.SKIPPED


# --- 4: how the run went


@soon_or_late
async def test_all_failures_so_far_are_raised_at_the_yield(number: int) -> None:
    first, second, third = Broken(1), Broken(2), Broken(3)
    caught: list[BaseException] = []

    async def held(ctx: Any) -> AsyncIterator[None]:
        try:
            yield
        except BaseException as error:
            caught.append(error)
            raise

    trace = Trace()
    error = await failure_of(
        build(
            [resource("R", held)],
            [resource("S", held), task("A", None, None, trace.failing("A.post", third, number))],
            [
                task("B", None, trace.failing("B", first, number)),
                task("C", None, trace.spiteful("C", second)),
            ],
        )
    )
    assert set(error.exceptions) == {first, second, third} if number else {first, third}
    inner, outer = caught
    assert isinstance(inner, SdaxExecutionError)
    assert isinstance(outer, SdaxExecutionError)
    assert third not in inner.exceptions
    assert outer.exceptions == error.exceptions
    assert outer.failures == error.failures
    assert outer.report["B"].execute.state is State.FAILED
    assert inner is not outer


async def test_a_cancellation_is_raised_at_the_yield() -> None:
    trace = Trace()
    run = spawn(
        build([resource("R", trace.holding("R", 1))], [task("A", None, trace.waiting("A"))])
    )
    await until(lambda: "A" in trace)
    run.cancel()
    assert isinstance(await error_of(run), asyncio.CancelledError)
    assert trace == ["R up", "A", "A cancelled", "R CancelledError", "R down"]


async def test_a_cancelled_run_with_failures_is_cancelled(loop_errors: list[Any]) -> None:
    trace = Trace()
    caught: list[BaseException] = []

    async def held(ctx: Any) -> AsyncIterator[None]:
        try:
            yield
        except asyncio.CancelledError as error:
            caught.append(error)

    run = spawn(build([resource("R", held)], [task("A", None, trace.spiteful("A", Broken()))]))
    await until(lambda: "A" in trace)
    run.cancel()
    assert isinstance(await error_of(run), asyncio.CancelledError)
    (error,) = caught
    assert isinstance(error.__context__, SdaxExecutionError)
    assert len(loop_errors) == 1
    loop_errors.clear()


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
async def test_what_is_no_exception_is_a_cancellation_there(kind: type[BaseException]) -> None:
    trace = Trace()
    processor = build([resource("R", trace.holding("R"))], [task("A", trace.failing("A", kind()))])
    assert type(await error_of(processor.process_tasks(None))) is kind
    assert trace == ["R up", "A", "R CancelledError", "R down"]


@soon_or_late
async def test_a_failure_cannot_be_swallowed(number: int) -> None:
    trace = Trace()

    async def held(ctx: Any) -> AsyncIterator[None]:
        try:
            yield
        except SdaxExecutionError:
            await passes(number)
            trace.append("swallowed")

    broken = Broken()
    processor = build(
        [resource("R", trace.holding("R"))],
        [resource("S", held)],
        [task("A", trace.failing("A", broken))],
    )
    error = await failure_of(processor)
    assert error.exceptions == (broken,)
    assert trace == ["R up", "A", "swallowed", "R SdaxExecutionError", "R down"]
    assert error.report["S"].post_execute.state is State.SUCCEEDED


@soon_or_late
async def test_another_exception_is_a_failure_of_its_cleanup(number: int) -> None:
    other = LookupError()

    async def held(ctx: Any) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await passes(number)
            raise other

    broken = Broken()
    error = await failure_of(
        build([resource("R", held)], [task("A", Trace().failing("A", broken))])
    )
    assert error.exceptions == (broken, other)
    thrown = other.__context__
    assert isinstance(thrown, SdaxExecutionError)
    assert thrown.exceptions == (broken,)
    assert error.failures[1][:3] == ("R", "post_execute", 1)
    error = await failure_of(build([resource("R", held)]))
    assert error.exceptions == (other,)


async def in_a_group(ctx: Any) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as group:
        group.create_task(nothing(None))
        yield


async def taken_apart(ctx: Any) -> AsyncIterator[None]:
    try:
        yield
    except* LookupError:
        pass


async def one_of_them(ctx: Any) -> AsyncIterator[None]:
    try:
        yield
    except SdaxExecutionError as error:
        raise error.exceptions[0] from None


@pytest.mark.parametrize("held", [in_a_group, taken_apart, one_of_them])
async def test_what_the_run_has_already_is_not_another(held: Any) -> None:
    trace = Trace()
    broken = [Broken(), LookupError()]
    error = await failure_of(
        build(
            [resource("R", held)],
            [
                task("A", None, None, trace.failing("A", broken[0])),
                task("B", None, None, trace.failing("B", broken[1])),
            ],
        )
    )
    assert list(error.exceptions) == broken
    assert error.report["R"].post_execute.state is State.SUCCEEDED


async def test_a_group_with_something_else_in_it_is_another() -> None:
    other = LookupError()

    async def fail_late() -> None:
        try:
            await forever()
        finally:
            raise other

    async def held(ctx: Any) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            group.create_task(fail_late())
            await passes(1)
            yield

    broken = Broken()
    error = await failure_of(
        build([resource("R", held)], [task("A", Trace().failing("A", broken))])
    )
    assert error.exceptions[0] is broken
    group = error.exceptions[1]
    assert isinstance(group, ExceptionGroup)
    assert other in group.exceptions


@pytest.mark.parametrize("fails", [False, True])
@soon_or_late
async def test_a_second_yield_is_a_failure(number: int, fails: bool) -> None:
    trace = Trace()

    async def held(ctx: Any) -> AsyncIterator[None]:
        try:
            with suppress(SdaxExecutionError):
                yield
            await passes(number)
            yield
        finally:
            await passes(3)  # of the loop, which the run waits for
            trace.append("closed")

    last = [task("A", trace.failing("A", Broken()) if fails else nothing)]
    error = await failure_of(build([resource("R", held)], last))
    assert str(error.exceptions[-1]) == (
        "the function of resource 'R' must yield once, but it yielded again"
    )
    assert isinstance(error.exceptions[-1].__context__, SdaxExecutionError) == fails
    assert error.failures[-1][:2] == ("R", "post_execute")
    assert trace[-1] == "closed"


@pytest.mark.parametrize("kind", [StopAsyncIteration, StopIteration, GeneratorExit])
@pytest.mark.parametrize("fails", [False, True])
async def test_odd_exceptions_of_the_second_half(kind: Any, fails: bool) -> None:
    async def held(ctx: Any) -> AsyncIterator[None]:
        try:
            yield
        finally:
            raise kind

    class Manager:
        def __init__(self, ctx: Any) -> None:
            pass

        async def __aenter__(self) -> None:
            pass

        async def __aexit__(self, *error: object) -> None:
            raise kind

    last = [task("A", Trace().failing("A", Broken()) if fails else nothing)]
    for function in (held, Manager):
        error = await error_of(build([resource("R", function)], last).process_tasks(None))
        if kind is GeneratorExit:
            assert type(error) is kind
            continue
        assert isinstance(error, SdaxExecutionError)
        assert len(error.exceptions) == 1 + fails
        assert isinstance(error.exceptions[-1], RuntimeError)
        assert isinstance(error.exceptions[-1].__cause__, kind)


# --- 5: bounds, and what holds for every cleanup


@pytest.mark.virtual_clock
@pytest.mark.parametrize("fails", [False, True])
async def test_cleanup_timeout_bounds_what_comes_after_the_yield(fails: bool) -> None:
    trace = Trace()

    async def held(ctx: Any) -> AsyncIterator[None]:
        await asyncio.sleep(5.0)
        try:
            yield
        finally:
            try:
                await asyncio.sleep(5.0)
            finally:
                trace.append("down")

    last = task("A", Trace().failing("A", Broken(), 1) if fails else nothing)
    error = await failure_of(build([resource("R", held, cleanup_timeout=1.0)], [last]))
    assert isinstance(error.exceptions[-1], TimeoutError)
    assert str(error.exceptions[-1]) == "timed out after 1.0 s"
    assert error.report["R"].post_execute.state is State.TIMED_OUT
    assert error.report["R"].pre_execute.state is State.SUCCEEDED
    assert trace == ["down"]


@pytest.mark.parametrize("level", [1, 2])
@pytest.mark.parametrize("number", [0, 1, 2])
async def test_its_cleanup_comes_in_the_order_of_adding(level: int, number: int) -> None:
    """Also where the end of its own set-up is what opens it."""
    trace = Trace()
    last = [] if level == 1 else [trace.task("C")]
    await build(
        [
            trace.task("A"),
            resource("R", trace.holding("R", number)),
            resource("S", trace.holding("S", number)),
            trace.task("B"),
        ],
        last,
    ).process_tasks(None)
    turns = [event for event in trace if event in ("A.post", "R ok", "S ok", "B.post")]
    assert turns == ["A.post", "R ok", "S ok", "B.post"]


async def test_in_a_graph_nobody_waits_for_one_whose_set_up_has_failed() -> None:
    trace = Trace()

    async def failing(ctx: Any) -> AsyncIterator[None]:
        await passes(2)
        raise Broken
        yield

    builder = AsyncDagTaskProcessor.builder()
    builder.add_task(trace.task("A"))
    builder.add_task(trace.task("B"))
    builder.add_task(resource("R", failing), depends_on=["A"])
    error = await failure_of(builder.build())
    assert trace == ["A.pre", "B.pre", "A.post", "B.post"]
    assert error.report["R"].post_execute.state is State.SKIPPED


async def test_cleanups_come_in_their_order() -> None:
    trace = Trace()
    processor = graph(
        resource("A", trace.holding("A", 1)),
        (resource("B", trace.holding("B", 1)), ["A"]),
        (task("C", None, None, trace.quick("C.post")), ["B"]),
        (resource("D", trace.holding("D", 2)), ["A"]),
        (task("E", None, None, trace.quick("E.post")), ["D", "B"]),
    )
    await processor.process_tasks(None)
    assert trace[:3] == ["A up", "B up", "D up"]
    assert trace[-2:] == ["A ok", "A down"]
    for before, after in (("C.post", "B ok"), ("E.post", "B ok"), ("E.post", "D ok")):
        assert trace.index(before) < trace.index(after)
    assert len(trace) == 11


async def test_a_cancellation_never_cuts_the_second_half_short() -> None:
    trace = Trace()
    run = spawn(
        build([resource("R", trace.holding("R", 3))], [resource("S", trace.holding("S", 3))])
    )
    await until(lambda: "S ok" in trace)
    run.cancel()
    await passes(1)
    run.cancel()
    assert isinstance(await error_of(run), asyncio.CancelledError)
    assert trace == ["R up", "S up", "S ok", "S down", "R CancelledError", "R down"]


async def test_the_second_half_is_not_being_cancelled() -> None:
    requests: list[int] = []

    async def held(ctx: Any) -> AsyncIterator[None]:
        try:
            yield
        finally:
            requests.append(current().cancelling())
            async with asyncio.timeout(3600):
                await passes(1)

    trace = Trace()
    processor = build([resource("R", held)], [task("A", None, trace.waiting("A"))])
    run = spawn(processor)
    await until(lambda: "A" in trace)
    run.cancel()
    assert isinstance(await error_of(run), asyncio.CancelledError)
    await failure_of(build([resource("R", held)], [task("A", trace.failing("A", Broken()))]))
    assert requests == [0, 0]


async def test_every_run_has_its_own() -> None:
    trace = Trace()
    processor = build([resource("R", trace.holding("R", 1), execute=trace.pausing("x", 2))])
    await asyncio.gather(*(processor.process_tasks(None) for _ in range(3)))
    assert trace.count("R up") == trace.count("R ok") == 3


# --- 6: what breaks while it is held


async def with_a_reader(ctx: Any) -> AsyncIterator[None]:
    async def read() -> None:
        await ctx["event"].wait()
        raise ctx["error"]

    async with asyncio.TaskGroup() as group:
        group.create_task(read())
        try:
            yield
        finally:
            ctx["trace"].append("R down")
            await passes(2)
            ctx["trace"].append("R down, done")


@pytest.mark.parametrize("phase", ["pre", "execute"])
async def test_a_resource_that_breaks_stops_the_run(phase: str) -> None:
    trace = Trace()
    broken = Broken()
    ctx = {"event": asyncio.Event(), "error": broken, "trace": trace}
    waiting = {phase: trace.waiting("A")}
    processor = build(
        [resource("R", with_a_reader), trace.task("B", "post")],
        [task("A", post=trace.quick("A.post"), **waiting)],  # type: ignore[arg-type]
        [trace.task("C")] if phase == "pre" else [],
    )
    run = spawn(processor, ctx)
    await until(lambda: "A" in trace)
    ctx["event"].set()
    error = await error_of(run)
    assert isinstance(error, SdaxExecutionError)
    (group,) = error.exceptions
    assert isinstance(group, ExceptionGroup)
    assert group.exceptions == (broken,)
    assert error.failures[0][:3] == ("R", "post_execute", 1)
    assert trace == ["A", "R down", "R down, done", "A cancelled", "A.post", "B.post"]
    report = error.report
    assert report["R"].pre_execute.state is State.SUCCEEDED
    assert report["R"].post_execute.state is State.FAILED
    assert report["A"][0 if phase == "pre" else 1].state is State.CANCELLED


@pytest.mark.parametrize("fails", [False, True])
async def test_cleanup_timeout_bounds_the_cleanup_of_one_that_breaks(fails: bool) -> None:
    async def held(ctx: Any) -> AsyncIterator[None]:
        asyncio.get_running_loop().call_soon(current().cancel)
        try:
            yield
        finally:
            if fails:
                raise TimeoutError
            await forever()

    trace = Trace()
    error = await failure_of(
        build([resource("R", held, cleanup_timeout=0.01)], [task("A", trace.waiting("A"))])
    )
    (failure,) = error.exceptions
    assert isinstance(failure, TimeoutError)
    assert str(failure) == ("" if fails else "timed out after 0.01 s")
    assert trace == ["A", "A cancelled"]


@pytest.mark.parametrize("passed", [3, 6])
async def test_a_resource_that_breaks_during_the_cleanup_of_others(passed: int) -> None:
    trace = Trace()
    broken = Broken()
    ctx = {"event": asyncio.Event(), "error": broken, "trace": trace}
    processor = build(
        [resource("R", with_a_reader)], [task("A", None, None, trace.pausing("A", passed + 1))]
    )
    run = spawn(processor, ctx)
    await until(lambda: "A" in trace)
    ctx["event"].set()
    error = await error_of(run)
    assert isinstance(error, SdaxExecutionError)
    (group,) = error.exceptions
    assert isinstance(group, ExceptionGroup)
    assert group.exceptions == (broken,)
    assert sorted(trace) == ["A", "A done", "R down", "R down, done"]


@soon_or_late
@pytest.mark.parametrize("swallows", [False, True])
async def test_other_code_that_cancels_it_breaks_it(number: int, swallows: bool) -> None:
    trace = Trace()

    async def held(ctx: Any) -> AsyncIterator[None]:
        try:
            yield
        except asyncio.CancelledError as error:
            trace.append(f"cancelled {error}, {current().cancelling()}")
            await passes(number)
            if not swallows:
                raise

    async def cancel_it(ctx: Any) -> None:
        for each in asyncio.all_tasks():
            if each.get_name() == "sdax:R:resource":
                each.cancel("enough")
        await forever()

    error = await failure_of(build([resource("R", held)], [task("A", None, cancel_it)]))
    assert [type(each) for each in error.exceptions] == [TaskCancelledError]
    assert isinstance(error.exceptions[0].__cause__, asyncio.CancelledError)
    assert "post_execute of task 'R' was cancelled, but not by its run" in str(error.exceptions[0])
    assert trace == ["cancelled enough, 1"]
    assert error.report["A"].execute.state is State.CANCELLED


@pytest.mark.virtual_clock
async def test_a_timeout_around_the_yield_breaks_it() -> None:
    trace = Trace()

    async def held(ctx: Any) -> AsyncIterator[None]:
        async with asyncio.timeout(5.0):
            try:
                yield
            finally:
                trace.append("down")

    error = await failure_of(build([resource("R", held)], [task("A", None, trace.waiting("A"))]))
    assert [type(each) for each in error.exceptions] == [TimeoutError]
    assert trace == ["A", "down", "A cancelled"]


async def test_what_is_no_exception_breaks_the_run_as_well() -> None:
    async def held(ctx: Any) -> AsyncIterator[None]:
        try:
            yield
        finally:
            raise SystemExit(3)

    async def cancel_it(ctx: Any) -> None:
        (own,) = (each for each in asyncio.all_tasks() if each.get_name() == "sdax:R:resource")
        own.cancel()
        await forever()

    trace = Trace()
    processor = build([resource("R", held), trace.task("B", "post")], [task("A", None, cancel_it)])
    assert isinstance(await error_of(processor.process_tasks(None)), SystemExit)
    assert trace == ["B.post"]


async def test_the_callers_cancellation_does_not_touch_it_before_its_turn() -> None:
    trace = Trace()
    processor = build(
        [resource("R", trace.holding("R"))],
        [task("A", None, trace.waiting("A"), trace.pausing("A.post", 3))],
    )
    run = spawn(processor)
    await until(lambda: "A" in trace)
    run.cancel()
    await until(lambda: "A.post" in trace)
    run.cancel()
    assert isinstance(await error_of(run), asyncio.CancelledError)
    assert trace[2:] == [
        "A cancelled",
        "A.post",
        "A.post done",
        "R CancelledError",
        "R down",
    ]


async def test_what_breaks_as_its_turn_comes_is_cleaned_up_once() -> None:
    trace = Trace()

    async def cancel_it(ctx: Any) -> None:
        (own,) = (each for each in asyncio.all_tasks() if each.get_name() == "sdax:R:resource")
        own.cancel()
        trace.append("cancel")

    processor = build([resource("R", trace.holding("R", 1))], [task("A", None, None, cancel_it)])
    error = await failure_of(processor)
    assert [type(each) for each in error.exceptions] == [TaskCancelledError]
    assert trace == ["R up", "cancel", "R CancelledError", "R down"]


# --- the outcome, without a generator


@soon_or_late
async def test_a_cleanup_that_takes_the_outcome(number: int) -> None:
    outcomes: list[Any] = []

    async def finish(ctx: Any, outcome: Any) -> str:
        await passes(number)
        outcomes.append(outcome)
        return "finished"

    trace = Trace()
    made = TaskFunction(finish, has_outcome_argument=True)
    report = await build([task("R", None, None, made)]).process_tasks(None)
    assert report["R"].post_execute.value == "finished"
    broken = Broken()
    await failure_of(
        build([task("R", None, trace.failing("R", broken), task_outcome_func(finish, timeout=60))])
    )
    run = spawn(
        build(
            [
                task(
                    "R",
                    None,
                    trace.waiting("A"),
                    task_func(finish, has_outcome_argument=True, retries=1),
                )
            ]
        )
    )
    await until(lambda: "A" in trace)
    run.cancel()
    assert isinstance(await error_of(run), asyncio.CancelledError)
    well, failed, cancelled = outcomes
    assert (well.failed, well.cancelled, well.failures, well.exception) == (False, False, (), None)
    assert (failed.failed, failed.cancelled) == (True, False)
    assert [each.exception for each in failed.failures] == [broken]
    assert isinstance(failed.exception, SdaxExecutionError)
    assert (cancelled.failed, cancelled.cancelled, cancelled.failures) == (False, True, ())
    assert isinstance(cancelled.exception, asyncio.CancelledError)


async def test_cleanups_that_take_the_same_outcome_share_what_is_noted() -> None:
    # A copy for each would make a level of them take quadratic time and memory.
    noted: list[Any] = []

    async def finish(ctx: Any, outcome: Any) -> None:
        noted.append(outcome.exception.report._phases)

    asks = task_outcome_func(finish)
    trace = Trace()
    later = Broken()
    await failure_of(
        build(
            [task("last", None, None, asks)],
            [
                task("A", None, trace.failing("A", Broken()), asks),
                task("B", None, None, asks),
                task("C", None, None, trace.failing("C.post", later)),
            ],
        )
    )
    first, second, last = noted
    assert first is second
    assert last is not first
    assert len(last) == len(first) + 1


async def test_a_function_of_the_outcome_must_return_an_awaitable() -> None:
    made: Any = TaskFunction(lambda ctx, outcome: 5, has_outcome_argument=True)  # type: ignore
    error = await failure_of(build([task("R", None, None, made)]))
    assert "post_execute of task 'R' must return an awaitable" in str(error.exceptions[0])


# --- tasks that are not required, and runs that end early or keep going


@soon_or_late
async def test_one_that_is_not_required(number: int) -> None:
    trace = Trace()

    async def held(ctx: Any) -> AsyncIterator[None]:
        await passes(number)
        raise Broken
        yield

    report = await build(
        [resource("R", held, execute=nothing, required=False)], [trace.task("A")]
    ).process_tasks(None)
    assert trace == ["A.pre", "A.execute", "A.post"]
    assert [each.state for each in report["R"]] == [State.FAILED, State.SKIPPED, State.SKIPPED]


@soon_or_late
async def test_its_value_may_end_the_run(number: int) -> None:
    trace = Trace()
    processor = build([resource("R", trace.holding("R", number, Finish(7)))], [trace.task("A")])
    report = await processor.process_tasks(None)
    assert trace == ["R up", "R ok", "R down"]
    assert report["R"].pre_execute.value == 7
    assert report.finished_by == "R"


@soon_or_late
async def test_a_run_that_keeps_going_tells_it_of_failures(number: int) -> None:
    trace = Trace()
    builder = AsyncTaskProcessor.builder(on_failure="keep going")
    builder.add_task(resource("R", trace.holding("R", number), execute=trace.quick("x")), 1)
    builder.add_task(task("A", trace.failing("A", Broken(), number)), 2)
    error = await error_of(builder.build().process_tasks(None))
    assert isinstance(error, SdaxExecutionError)
    assert trace == ["R up", "A", "x", "R SdaxExecutionError", "R down"]
