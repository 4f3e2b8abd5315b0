"""What happens when the caller of `process_tasks` is cancelled."""

from __future__ import annotations

import asyncio
import gc
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from helpers import (
    PHASES,
    Broken,
    Trace,
    build,
    counts_references,
    current,
    error_of,
    forever,
    nothing,
    passes,
    solo,
    spawn,
    task,
    task_in,
    until,
)
from sdax import SdaxExecutionError, TaskFunction

RUN_CANCELLED = "sdax: a run that was cancelled had "  # and then what


async def cancelled(run: asyncio.Task[Any], *args: Any) -> asyncio.CancelledError:
    """Cancel a run and wait for what it raises."""
    run.cancel(*args)
    error = await error_of(run)
    assert type(error) is asyncio.CancelledError
    assert run.cancelled()
    return error


@pytest.mark.parametrize("phase", PHASES[:2])
async def test_a_cancelled_run_cleans_up(phase: str) -> None:
    trace = Trace()
    run = spawn(
        build(
            [trace.task("low", "pre post")],
            [
                task_in(phase, trace.waiting("A"), post=trace.quick("A.post")),
                task_in(phase, trace.waiting("B"), name="B", post=trace.pausing("B.post", 2)),
            ],
            [trace.task("high", "pre post")],
        )
    )
    await until(lambda: "B" in trace)
    await cancelled(run)
    high = ["high.post"] if phase == "execute" else []
    assert [event for event in trace if not event.startswith("high.pre")] == [
        *("low.pre", "A", "B", "A cancelled", "B cancelled"),
        *high,
        *("A.post", "B.post", "B.post done", "low.post"),
    ]


async def test_suspended_functions_are_awaited_before_cleanup() -> None:
    trace = Trace()

    async def slow_to_end(ctx: Any) -> None:
        trace.append("A")
        try:
            await forever()
        finally:
            await passes(3)
            trace.append("ended")

    run = spawn(solo(slow_to_end, post=trace.quick("post")))
    await until(lambda: trace)
    await cancelled(run)
    assert trace == ["A", "ended", "post"]


async def test_the_message_of_the_cancellation_is_kept() -> None:
    messages: list[Any] = []

    async def catch() -> None:
        try:
            await solo(forever, post=Trace().pausing("post")).process_tasks(None)
        except asyncio.CancelledError as error:
            messages.append(error.args)
            raise

    run = asyncio.get_running_loop().create_task(catch())
    await passes(2)
    await cancelled(run, "the client has gone")
    assert messages == [("the client has gone",)]


async def test_a_run_cancelled_before_it_starts_calls_nothing() -> None:
    trace = Trace()
    # Whatever the loop's task factory: this caller starts in a later pass.
    run = asyncio.Task(build([trace.task("A")]).process_tasks(None))
    run.cancel()
    assert isinstance(await error_of(run), asyncio.CancelledError)
    assert trace == []


async def test_cancellation_while_nothing_is_pending_in_a_level() -> None:
    # The caller is cancelled by a function, before `process_tasks` has suspended.
    trace = Trace()
    caller: list[asyncio.Task[Any]] = []

    async def cancel_caller(ctx: Any) -> None:
        trace.append("A")
        caller[0].cancel()

    async def main() -> None:
        caller.append(current())
        await build(
            [task("A", cancel_caller, post=trace.quick("A.post"))],
            [task("B", trace.waiting("B"), post=trace.quick("B.post"))],
        ).process_tasks(None)

    error = await error_of(asyncio.get_running_loop().create_task(main()))
    assert isinstance(error, asyncio.CancelledError)
    assert trace in (
        ["A", "B", "B cancelled", "B.post", "A.post"],
        ["A", "A.post"],  # with a task factory the caller is suspended when A is called
    )


# During cleanup


async def test_cleanup_is_not_interrupted() -> None:
    trace = Trace()
    gate = asyncio.Event()
    run = spawn(
        build(
            [task("A", post=trace.pausing("A.post", 3))],
            [
                task("B", post=trace.waiting("B.post", gate)),
                task("C", post=trace.pausing("C.post", 3)),
            ],
        )
    )
    await until(lambda: "B.post" in trace)
    run.cancel()
    await passes(3)
    assert not run.done()
    assert "A.post" not in trace
    gate.set()
    assert isinstance(await error_of(run), asyncio.CancelledError)
    assert not [event for event in trace if event.endswith("cancelled")]
    assert trace[-2:] == ["A.post", "A.post done"]


@pytest.mark.parametrize("phase", PHASES)
async def test_further_cancellations_are_remembered_and_not_obeyed(phase: str) -> None:
    trace = Trace()
    counts: list[int] = []
    if phase == "post_execute":
        second_level = [task("B", post=trace.pausing("B.post", 3))]
    else:
        second_level = [task_in(phase, forever, name="B", post=trace.pausing("B.post", 3))]
    processor = build([task("A", post=trace.pausing("A.post", 3))], second_level)

    async def main() -> None:
        try:
            await processor.process_tasks(None)
        except asyncio.CancelledError as error:
            counts.append(current().cancelling())
            assert error.args == ("first",)
            raise

    run = asyncio.get_running_loop().create_task(main())
    await passes(2)
    run.cancel("first")
    for number in range(2):
        await passes(1)
        run.cancel(f"further {number}")
    assert isinstance(await error_of(run), asyncio.CancelledError)
    assert counts == [3]
    assert trace == ["B.post", "B.post done", "A.post", "A.post done"]


async def test_a_cancellation_in_every_pass_of_the_loop() -> None:
    trace = Trace()
    run = spawn(build(*([trace.task(name, number=2)] for name in "ABC")))
    await until(lambda: "C.pre" in trace)
    while not run.done():
        run.cancel()
        await asyncio.sleep(0)
    assert run.cancelled()
    posts = [event for event in trace if ".post" in event]
    assert posts == [f"{name}.post{done}" for name in "CBA" for done in ("", " done")]


async def test_siblings_are_cancelled_once() -> None:
    # A second cancellation of the caller does not cut short what a function does on its way out.
    trace = Trace()

    async def slow_to_end(ctx: Any) -> None:
        trace.append("A")
        try:
            await forever()
        except asyncio.CancelledError:
            await passes(4)
            trace.append(f"ended, {current().cancelling()}")
            raise

    run = spawn(solo(slow_to_end))
    await until(lambda: trace)
    for _ in range(2):
        run.cancel()
        await passes(2)
    assert isinstance(await error_of(run), asyncio.CancelledError)
    assert trace == ["A", "ended, 1"]


# Together with other things


@pytest.mark.parametrize("order", ["result first", "cancel first"])
@pytest.mark.parametrize("phase", PHASES)
async def test_a_cancellation_together_with_completion(order: str, phase: str) -> None:
    trace = Trace()
    gate = asyncio.get_running_loop().create_future()

    async def last(ctx: Any) -> None:
        trace.append("last")
        await gate

    run = spawn(build([task_in(phase, last, post=None), trace.task("B", "post")]))
    await until(lambda: "last" in trace)
    if order == "result first":
        gate.set_result(None)
        run.cancel()
    else:
        run.cancel()
        if not gate.cancelled():
            gate.set_result(None)
    error = await error_of(run)
    assert isinstance(error, asyncio.CancelledError)
    assert trace.count("B.post") == 1


@pytest.mark.parametrize("wait", range(1, 8))
async def test_a_cancellation_in_any_pass_of_the_loop(wait: int) -> None:
    trace = Trace()
    run = spawn(
        build(
            [trace.task("A", "pre post", number=1)],
            [trace.task("B", "pre execute post", number=1)],
        )
    )
    await passes(wait)
    if run.done():
        await run
    else:
        run.cancel()
        # As with any asyncio.Task, a cancellation that arrives is never lost.
        assert isinstance(await error_of(run), asyncio.CancelledError)
    started = [event[0] for event in trace if event.endswith("pre")]
    assert sorted(event[0] for event in trace if event.endswith("post done")) == started


@pytest.mark.parametrize("phase", PHASES[:2])
async def test_failures_of_a_cancelled_run(phase: str, loop_errors: list[Any]) -> None:
    trace = Trace()
    first, second = Broken(1), Broken(2)
    run = spawn(
        build(
            [task("low", post=trace.failing("low.post", second))],
            [task_in(phase, trace.spiteful("A", first), post=trace.quick("A.post"))],
        )
    )
    await until(lambda: "A" in trace)
    error = await cancelled(run)
    assert trace == ["A", "A.post", "low.post"]
    context = error.__context__
    while not isinstance(context, SdaxExecutionError):  # asyncio.Task may raise one of its own
        assert isinstance(context, asyncio.CancelledError)
        context = context.__context__
    assert context.exceptions == (first, second)
    assert context.report is not None
    assert [reported["message"] for reported in loop_errors] == [
        f"{RUN_CANCELLED}2 failures as well: {phase} of task 'A', post_execute of task 'low'"
    ]
    assert loop_errors[0]["exception"] is context
    loop_errors.clear()


async def test_the_message_about_many_failures_is_short(loop_errors: list[Any]) -> None:
    failing = Trace().failing("", Broken())
    low = [task("x" * 1000 if number == 2 else number, post=failing) for number in range(100)]
    run = spawn(build(low, [task("A", forever)]))
    await passes(2)
    await cancelled(run)
    (reported,) = loop_errors
    assert reported["message"] == (
        f"{RUN_CANCELLED}100 failures as well: post_execute of task 0, post_execute of task 1, "
        f"post_execute of task '{'x' * 58}…, post_execute of task 3 and 96 more"
    )
    loop_errors.clear()


async def test_the_very_error_has_the_failures_as_its_context(loop_errors: list[Any]) -> None:
    seen: list[BaseException | None] = []

    async def main() -> None:
        try:
            await solo(Trace().spiteful("A", Broken())).process_tasks(None)
        except asyncio.CancelledError as error:
            seen.append(error.__context__)
            raise

    run = asyncio.get_running_loop().create_task(main())
    await passes(2)
    await cancelled(run)
    assert len(loop_errors) == 1
    assert seen == [loop_errors.pop()["exception"]]


@pytest.mark.parametrize("order", ["failure first", "cancel first"])
async def test_a_cancellation_together_with_a_failure(order: str, loop_errors: list[Any]) -> None:
    broken = Broken()
    gate = asyncio.get_running_loop().create_future()
    trace = Trace()

    async def function(ctx: Any) -> None:
        trace.append("A")
        await gate

    run = spawn(build([task("A", function, post=trace.quick("A.post"))]))
    await until(lambda: trace)
    await asyncio.sleep(0)
    if order == "failure first":
        gate.set_exception(broken)
        run.cancel()
    else:
        run.cancel()
        gate.set_exception(broken)
    assert isinstance(await error_of(run), asyncio.CancelledError)
    assert trace == ["A", "A.post"]
    # Cancelled first, asyncio throws that into the function, and it never sees the exception.
    expected = [(broken,)] if order == "failure first" else []
    assert [context["exception"].exceptions for context in loop_errors] == expected
    loop_errors.clear()


async def test_what_is_no_exception_wins_over_a_cancellation() -> None:
    trace = Trace()
    fatal = SystemExit(3)
    raised: list[BaseException | None] = []

    async def main() -> None:
        # An asyncio.Task would let a SystemExit through to the loop.
        processor = solo(trace.spiteful("A", fatal), post=trace.quick("post"))
        raised.append(await error_of(processor.process_tasks(None)))

    run = asyncio.get_running_loop().create_task(main())
    await until(lambda: "A" in trace)
    run.cancel()
    await run
    assert raised == [fatal]
    assert trace == ["A", "post"]


# asyncio's own ways of cancelling


@pytest.mark.virtual_clock
@pytest.mark.parametrize("phase", PHASES)
async def test_asyncio_timeout_around_a_run(phase: str) -> None:
    trace = Trace()
    loop = asyncio.get_running_loop()

    async def slow(ctx: Any) -> None:
        trace.append("slow")
        await asyncio.sleep(10)

    async def cleanup(ctx: Any) -> None:
        await asyncio.sleep(1)
        trace.append("cleaned up")

    processor = build([task("low", post=cleanup)], [task_in(phase, slow)])
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(5):
            await processor.process_tasks(None)
    assert trace == ["slow", "cleaned up"]
    # A slow cleanup goes on to its end; anything else is cut off at 5.
    assert loop.time() == (11 if phase == "post_execute" else 6)
    assert current().cancelling() == 0


@pytest.mark.virtual_clock
async def test_wait_for_around_a_run() -> None:
    trace = Trace()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(
            solo(trace.waiting("A"), post=trace.pausing("post", 3)).process_tasks(None), 5
        )
    assert trace == ["A", "A cancelled", "post", "post done"]
    assert current().cancelling() == 0


async def test_a_run_in_a_task_group_whose_other_task_fails() -> None:
    trace = Trace()
    broken = Broken()

    async def fail() -> None:
        await until(lambda: "A" in trace)
        raise broken

    with pytest.raises(ExceptionGroup) as caught:
        async with asyncio.TaskGroup() as group:
            group.create_task(
                solo(trace.waiting("A"), post=trace.pausing("post", 3)).process_tasks(None)
            )
            group.create_task(fail())
    assert caught.value.exceptions == (broken,)
    assert trace == ["A", "A cancelled", "post", "post done"]


async def test_a_failing_run_in_a_task_group() -> None:
    trace = Trace()
    with pytest.raises(ExceptionGroup) as caught:
        async with asyncio.TaskGroup() as group:
            group.create_task(solo(Trace().failing("A", Broken(), 1)).process_tasks(None))
            other = solo(trace.waiting("B"), post=trace.quick("post"))
            group.create_task(other.process_tasks(None))
    (error,) = caught.value.exceptions
    assert isinstance(error, SdaxExecutionError)
    assert trace == ["B", "B cancelled", "post"]


async def test_a_shielded_run_goes_on() -> None:
    trace = Trace()
    gate = asyncio.Event()
    run = spawn(solo(trace.waiting("A", gate)))

    async def wait() -> None:
        await asyncio.shield(run)

    waiting = asyncio.get_running_loop().create_task(wait())
    await until(lambda: trace)
    await cancelled(waiting)
    gate.set()
    await run
    assert trace == ["A", "A done"]


async def test_a_nested_run_is_cancelled_with_the_outer_one() -> None:
    trace = Trace()
    inner = build([task("inner", trace.waiting("inner"), post=trace.pausing("inner.post", 2))])

    async def run_inner(ctx: Any) -> None:
        await inner.process_tasks(ctx)

    run = spawn(solo(run_inner, post=trace.quick("outer.post")))
    await until(lambda: "inner" in trace)
    await cancelled(run)
    assert trace == ["inner", "inner cancelled", "inner.post", "inner.post done", "outer.post"]


@pytest.mark.parametrize("phase", PHASES[:2])
@pytest.mark.parametrize("order", [1, -1], ids=["caller first", "functions first"])
async def test_all_tasks_of_the_loop_are_cancelled(phase: str, order: int) -> None:
    # As asyncio.run does when its main task is over, in no particular order.
    trace = Trace()
    processor = build(
        [
            task_in(phase, trace.waiting("A"), post=trace.pausing("A.post")),
            task_in(phase, trace.waiting("B"), name="B", post=trace.pausing("B.post")),
        ]
    )
    run = spawn(processor)
    await until(lambda: "B" in trace)
    everything = asyncio.all_tasks() - {asyncio.current_task()}
    assert len(everything) == 3
    for each in sorted(everything, key=lambda each: each is not run)[::order]:
        each.cancel()
    assert isinstance(await error_of(run), asyncio.CancelledError)
    assert sorted(trace[2:4]) == ["A cancelled", "B cancelled"]
    assert trace[4:] == ["A.post", "B.post", "A.post done", "B.post done"]


def test_asyncio_run_cancels_what_its_main_task_leaves_behind(engine: Any) -> None:
    trace = Trace()

    async def main() -> None:
        global _kept  # the loop holds asyncio.Tasks weakly
        _kept = spawn(solo(trace.waiting("A"), post=trace.pausing("post", 3)))
        await until(lambda: trace)

    asyncio.run(main())
    assert trace == ["A", "A cancelled", "post", "post done"]


_kept: Any = None


@pytest.fixture
def heeded_ctrl_c() -> Iterator[None]:
    """Have Python heed SIGINT, which shells ignore for what they start in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_is_a_cancellation(engine: Any, heeded_ctrl_c: None) -> None:
    trace = Trace()

    async def interrupt(ctx: Any) -> None:
        trace.append("interrupted")
        signal.raise_signal(signal.SIGINT)
        await forever()

    processor = build([task("A", post=trace.pausing("A.post"))], [task("B", interrupt)])
    with pytest.raises(KeyboardInterrupt):
        asyncio.run(processor.process_tasks(None))
    assert trace == ["interrupted", "A.post", "A.post done"]


# Of single functions, by the run


async def test_futures_of_cancelled_functions_are_cancelled_as_await_would() -> None:
    loop = asyncio.get_running_loop()
    future = loop.create_future()
    child = loop.create_task(forever())
    trace = Trace()

    async def await_future(ctx: Any) -> None:
        await future

    async def await_child(ctx: Any) -> None:
        await child

    run = spawn(
        build([task("A", await_future), task("B", await_child), task("C", trace.waiting("C"))])
    )
    await until(lambda: trace)
    await asyncio.sleep(0)
    await cancelled(run)
    assert future.cancelled()
    assert child.cancelled()


async def test_a_level_without_functions_does_not_swallow_a_cancellation() -> None:
    trace = Trace()
    run = spawn(build([task("A", nothing)], [task("B", post=nothing)], [trace.task("C", number=1)]))
    await until(lambda: "C.pre" in trace)
    await cancelled(run)
    assert "C.post done" in trace


async def test_a_swallowed_cancellation_still_ends_the_run() -> None:
    # The function has succeeded; the caller was cancelled all the same.
    trace = Trace()
    run = spawn(
        build(
            [task("A", trace.stubborn("A"), trace.quick("execute"), trace.quick("A.post"))],
            [trace.task("B")],
        )
    )
    await until(lambda: trace)
    await cancelled(run)
    assert trace == ["A", "A swallowed", "A.post"]


@pytest.mark.virtual_clock
async def test_cleanup_bounds_itself_with_its_own_timeout() -> None:
    trace = Trace()
    processor = build(
        [task("A", post=trace.quick("A.post"))],
        [task("B", forever, post=TaskFunction(trace.waiting("B.post"), timeout=3))],
    )
    loop_errors: list[Any] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: loop_errors.append(context["message"]))
    run = spawn(processor)
    await passes(2)
    run.cancel()
    assert isinstance(await error_of(run), asyncio.CancelledError)
    assert trace == ["B.post", "B.post cancelled", "A.post"]
    assert loop.time() == 3
    assert loop_errors == [f"{RUN_CANCELLED}1 failure as well: post_execute of task 'B'"]


# A caller that is closed


async def test_a_caller_that_is_closed() -> None:
    # Without a caller nobody hears of the end, but what is due is still done.
    trace = Trace()
    coroutine = solo(trace.waiting("A"), post=trace.pausing("post", 2)).process_tasks(None)
    coroutine.send(None)
    await until(lambda: trace)
    coroutine.close()
    await until(lambda: "post done" in trace)
    await passes(2)
    assert trace == ["A", "A cancelled", "post", "post done"]


@counts_references
@pytest.mark.parametrize("limits", [{}, {"retries": 2}, {"timeout": 60}])
def test_cleanup_that_is_dropped_with_its_loop(engine: Any, limits: Any) -> None:
    # It gets a GeneratorExit, as every coroutine that will never go on; nothing more is called.
    trace = Trace()

    async def waits(ctx: Any) -> None:
        trace.append("B.post")
        try:
            await forever()
        except BaseException as error:
            trace.append(repr(error))
            raise

    async def abandon() -> None:
        cleanup = (
            [task("A", post=trace.quick("A.post"))],
            [task("B", post=TaskFunction(waits, **limits))],
        )
        coroutine = build(*cleanup).process_tasks(None)
        coroutine.send(None)
        await until(lambda: trace)
        coroutine.close()

    loop = asyncio.new_event_loop()
    told: list[str] = []
    loop.set_exception_handler(lambda _, context: told.append(context["message"]))
    loop.run_until_complete(abandon())
    loop.close()
    gc.collect()
    assert trace == ["B.post", "GeneratorExit()"]
    assert told == ["Task was destroyed but it is pending!"]
