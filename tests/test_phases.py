"""Going through a run phase by phase, with `async with processor.open(ctx)`."""

from __future__ import annotations

import asyncio
import gc
from contextlib import suppress
from typing import Any

import pytest

from helpers import (
    Trace,
    build,
    counts_references,
    current,
    error_of,
    forever,
    nothing,
    solo,
    spawn,
    task,
    until,
    without_collector,
    without_factory,
)
from sdax import (
    AsyncDagTaskProcessor,
    AsyncPhaseRunner,
    PhaseId,
    SdaxExecutionError,
    State,
    TaskFunction,
)

PRE, EXECUTE, POST = PhaseId.PRE_EXEC, PhaseId.EXECUTE, PhaseId.POST_EXEC


def full(trace: Trace, number: int = 0) -> Any:
    """Two levels of tasks with every phase."""
    return build([trace.task("A", number=number)], [trace.task("B", number=number)])


def crooked(trace: Trace, number: int = 0) -> Any:
    """The same and a third task, as a graph that is no sequence of levels."""
    return (
        AsyncDagTaskProcessor.builder()
        .add_task(trace.task("A", number=number))
        .add_task(trace.task("B", number=number), ["A"])
        .add_task(trace.task("C", number=number))
        .build()
    )


async def in_block(run: AsyncPhaseRunner[Any, Any], times: int, error: Any = None) -> None:
    """Run so many phases in a block, then raise."""
    async with run:
        for _ in range(times):
            await run.run_next()
        if error is not None:
            raise error


def whole(caught: BaseException | None) -> SdaxExecutionError:
    assert isinstance(caught, SdaxExecutionError)
    return caught


# One phase after the other


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("make", [full, crooked])
async def test_run_next_runs_a_phase_and_says_whether_one_is_left(make: Any, number: int) -> None:
    trace = Trace()
    names = "AB" if make is full else "ABC"
    async with make(trace, number).open(None) as run:
        assert isinstance(run, AsyncPhaseRunner)
        assert (run.last_phase_id(), run.next_phase_id()) == (None, PRE)
        assert trace == []
        assert await run.run_next() is True
        assert (run.last_phase_id(), run.next_phase_id()) == (PRE, EXECUTE)
        assert {each.partition(" ")[0] for each in trace} == {f"{name}.pre" for name in names}
        trace.clear()
        assert await run.run_next() is True
        assert (run.last_phase_id(), run.next_phase_id()) == (EXECUTE, POST)
        assert {each.partition(" ")[0] for each in trace} == {f"{name}.execute" for name in names}
        trace.clear()
        assert await run.run_next() is False
        assert (run.last_phase_id(), run.next_phase_id()) == (POST, None)
        assert {each.partition(" ")[0] for each in trace} == {f"{name}.post" for name in names}
        trace.clear()
        assert await run.run_next() is False
        assert not run.has_failures()
        assert run.failures() == []
        run.raise_failures()
    assert trace == []


async def test_the_loop_of_the_documentation() -> None:
    seen = []
    async with full(Trace()).open(None) as run:
        while await run.run_next():
            seen.append(run.last_phase_id())
    assert seen == [PRE, EXECUTE]


def test_the_phase_ids_in_their_order() -> None:
    assert [*PhaseId] == [PRE, EXECUTE, POST]


async def test_the_functions_get_the_context_of_the_run() -> None:
    seen = []

    async def look(ctx: Any) -> None:
        seen.append(ctx)

    ctx = object()
    async with solo(look, look, look).open(ctx) as run:
        while await run.run_next():
            pass
    assert [each is ctx for each in seen] == [True] * 3


@pytest.mark.parametrize("processor", [build(), build([task("A", nothing)])], ids=["no", "one"])
async def test_phases_with_nothing_in_them_are_phases_still(processor: Any) -> None:
    async with processor.open(None) as run:
        assert [await run.run_next() for _ in range(3)] == [True, True, False]


async def test_other_code_may_run_in_between() -> None:
    """Nothing of the run goes on between its phases, however long that takes."""
    trace = Trace()
    async with full(trace, 1).open(None) as run:
        while await run.run_next():
            size = len(trace)
            await asyncio.sleep(0.001)
            assert len(trace) == size
            assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_two_runs_of_one_processor_do_not_meet() -> None:
    one, other = [], []

    async def note(ctx: list[str]) -> None:
        ctx.append("call")

    processor = solo(note, note, note)
    async with processor.open(one) as first, processor.open(other) as second:
        await first.run_next()
        await second.run_next()
        await first.run_next()
        assert (len(one), len(other)) == (2, 1)
    assert (len(one), len(other)) == (3, 2)


async def test_each_phase_may_be_run_by_another_asyncio_task() -> None:
    trace = Trace()
    async with full(trace, 1).open(None) as run:
        for left in (True, True, False):
            assert await asyncio.create_task(run.run_next()) is left
    assert len(trace) == 12


# Failures


async def test_a_failure_in_pre_execute_leads_to_the_cleanup() -> None:
    trace = Trace()
    error = ValueError("mine")
    processor = build(
        [task("A", nothing, trace.quick("execute"), trace.quick("A.post"))],
        [task("B", trace.failing("B", error), post=trace.quick("B.post"))],
        [task("C", nothing, post=trace.quick("C.post"))],
    )
    run = processor.open(None)
    async with run:
        assert await run.run_next() is True
        assert (run.last_phase_id(), run.next_phase_id()) == (PRE, POST)
        assert run.has_failures()
        assert run.failures() == [error]
        assert trace == ["B"]
        assert await run.run_next() is False
        assert trace == ["B", "B.post", "A.post"]
        with pytest.raises(SdaxExecutionError) as caught:
            run.raise_failures()
        assert caught.value.exceptions == (error,)
        try:
            await run.aclose()
        except SdaxExecutionError as failure:
            assert failure.exceptions == (error,)
            assert failure.report["A"].execute.state is State.SKIPPED
            assert failure.report["C"].post_execute.state is State.SKIPPED
        else:
            raise AssertionError("the failure was not raised")


async def test_a_failure_in_execute_leads_to_the_cleanup() -> None:
    trace = Trace()
    error = ValueError("mine")
    processor = build(
        [
            task("A", None, trace.failing("A", error, 1), trace.quick("A.post")),
            task("B", None, trace.waiting("B"), trace.quick("B.post")),
        ]
    )
    with pytest.raises(SdaxExecutionError) as caught:
        async with processor.open(None) as run:
            assert await run.run_next() is True
            assert not run.has_failures()
            assert await run.run_next() is True
            assert run.next_phase_id() is POST
            assert run.failures() == [error]
            assert trace == ["A", "B", "B cancelled"]
            assert await run.run_next() is False
    assert caught.value.exceptions == (error,)
    assert trace[3:] == ["A.post", "B.post"]


async def test_failures_of_all_phases_come_together_in_order() -> None:
    trace = Trace()
    errors = [ValueError(number) for number in range(3)]
    processor = build(
        [task("A", post=trace.failing("A", errors[2]))],
        [task("B", None, trace.failing("B", errors[0]), trace.failing("B.post", errors[1]))],
    )
    seen = []
    with pytest.raises(SdaxExecutionError) as caught:
        async with processor.open(None) as run:
            while await run.run_next():
                seen.append(run.failures())
            seen.append(run.failures())
    assert seen == [[], errors[:1], errors]
    assert [*caught.value.exceptions] == errors
    assert [failure.phase for failure in caught.value.failures] == [
        "execute", "post_execute", "post_execute"
    ]  # fmt: skip


async def test_what_failed_is_raised_even_if_the_block_has_looked_at_it() -> None:
    error = ValueError("mine")
    with pytest.raises(SdaxExecutionError) as caught:
        async with solo(Trace().failing("A", error)).open(None) as run:
            await run.run_next()
            assert run.has_failures()
            assert run.failures() == [error]
            with pytest.raises(SdaxExecutionError):
                run.raise_failures()
            run.failures().clear()
    assert caught.value.exceptions == (error,)


async def test_failures_raised_in_the_block_are_raised_once() -> None:
    """The exception of the body is the sdax one then: it is not its own context."""
    error = ValueError("mine")
    with pytest.raises(SdaxExecutionError) as caught:
        async with solo(Trace().failing("A", error)).open(None) as run:
            await run.run_next()
            run.raise_failures()
    assert caught.value.exceptions == (error,)
    assert caught.value.__context__ is not caught.value


async def test_failures_can_be_told_from_the_report() -> None:
    caught = await error_of(in_block(solo(nothing, Trace().failing("A", ValueError())).open(0), 2))
    report = whole(caught).report
    assert report is not None
    assert report["A"].pre_execute.state is State.SUCCEEDED
    assert report["A"].execute.state is State.FAILED


# Leaving the block


async def test_leaving_before_the_first_phase_does_nothing() -> None:
    trace = Trace()
    run = full(trace).open(None)
    async with run:
        pass
    assert trace == []
    with pytest.raises(RuntimeError):
        await run.run_next()
    assert trace == []


async def test_leaving_before_the_first_phase_by_an_exception() -> None:
    trace = Trace()
    error = ValueError()
    assert await error_of(in_block(full(trace).open(None), 0, error)) is error
    assert error.__context__ is None
    assert trace == []


@pytest.mark.parametrize("error", [None, ValueError("body"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("times", [1, 2, 3])
@pytest.mark.parametrize("make", [full, crooked])
async def test_leaving_early_runs_the_cleanup_and_nothing_else(
    make: Any, times: int, error: Any
) -> None:
    trace = Trace()
    assert await error_of(in_block(make(trace).open(None), times, error)) is error
    names = "AB" if make is full else "ACB"
    assert [label for label in trace if label.endswith("pre")] == [f"{n}.pre" for n in names]
    assert any(label.endswith("execute") for label in trace) == (times > 1)
    assert [label for label in trace if label.endswith("post")] == (
        ["B.post", "A.post"] if make is full else ["B.post", "C.post", "A.post"]
    )


async def test_leaving_after_a_failed_pre_execute_cleans_up_what_started() -> None:
    trace = Trace()
    error = ValueError("mine")
    processor = (
        AsyncDagTaskProcessor.builder()
        .add_task(task("A", nothing, post=trace.quick("A.post")))
        .add_task(task("B", trace.failing("B", error), post=trace.quick("B.post")), ["A"])
        .add_task(task("C", nothing, post=trace.quick("C.post")), ["B", "A"])
        .build()
    )
    caught = whole(await error_of(in_block(processor.open(None), 1)))
    assert caught.exceptions == (error,)
    assert trace == ["B", "B.post", "A.post"]


async def test_a_failure_of_the_cleanup_is_raised_by_leaving() -> None:
    error = ValueError("mine")
    run = solo(nothing, nothing, Trace().failing("A", error)).open(None)
    caught = whole(await error_of(in_block(run, 1)))
    assert caught.exceptions == (error,)
    assert caught.report is not None
    assert caught.report["A"].execute.state is State.SKIPPED
    assert caught.report["A"].execute.attempts == 0


@pytest.mark.parametrize(
    "body", [ValueError("body"), KeyboardInterrupt(), SystemExit(2), GeneratorExit()], ids=repr
)
async def test_an_exception_of_the_body_wins(body: BaseException) -> None:
    errors = [ValueError("execute"), ValueError("post")]
    trace = Trace()
    processor = solo(nothing, trace.failing("A", errors[0]), trace.failing("A.post", errors[1], 1))
    caught = await error_of(in_block(processor.open(None), 2, body))
    assert caught is body
    assert [*whole(caught.__context__).exceptions] == errors


async def test_what_the_body_was_handling_is_not_lost() -> None:
    """The failures go between the body's exception and what that was the context of."""
    processor = solo(nothing, None, Trace().failing("A", ValueError("mine")))
    earlier, body = KeyError("earlier"), ValueError("body")

    async def handle() -> None:
        async with processor.open(None) as run:
            await run.run_next()
            try:
                raise earlier
            except KeyError:
                raise body  # noqa: B904 (the context is what is tested)

    assert await error_of(handle()) is body
    contexts = []
    error: BaseException | None = body
    while (error := error.__context__) is not None:
        contexts.append(error)
    assert earlier in contexts
    assert any(isinstance(each, SdaxExecutionError) for each in contexts)


async def test_returning_out_of_the_block() -> None:
    trace = Trace()

    async def leave() -> str:
        async with full(trace).open(None) as run:
            while await run.run_next():
                return "value"
        raise AssertionError

    assert await leave() == "value"
    assert trace == ["A.pre", "B.pre", "B.post", "A.post"]


async def test_run_next_after_the_block_is_refused() -> None:
    run = full(Trace()).open(None)
    await in_block(run, 1)
    with pytest.raises(RuntimeError, match="run_next"):
        await run.run_next()
    assert run.last_phase_id() in (PRE, POST)


# aclose


async def test_aclose_does_what_leaving_does() -> None:
    trace = Trace()
    run = full(trace).open(None)
    await run.run_next()
    await run.aclose()
    assert trace == ["A.pre", "B.pre", "B.post", "A.post"]
    await run.aclose()
    assert len(trace) == 4
    with pytest.raises(RuntimeError):
        await run.run_next()


async def test_aclose_before_the_first_phase() -> None:
    trace = Trace()
    run = full(trace).open(None)
    await run.aclose()
    await run.aclose()
    with pytest.raises(RuntimeError):
        await run.run_next()
    assert trace == []


async def test_aclose_in_the_block_raises_and_leaving_does_not_again() -> None:
    error = ValueError("mine")
    async with solo(Trace().failing("A", error)).open(None) as run:
        await run.run_next()
        assert whole(await error_of(run.aclose())).exceptions == (error,)


# Cancellation and what is no Exception


@pytest.mark.parametrize("phase", [0, 1])
async def test_a_cancellation_during_run_next(phase: int) -> None:
    trace = Trace()
    functions: list[Any] = [nothing, nothing]
    functions[phase] = trace.waiting("waits")
    processor = build(
        [task("A", *functions, trace.pausing("A.post"))],
        [task("B", nothing, trace.quick("B.execute"), trace.quick("B.post"))],
    )
    seen = []

    async def body() -> None:
        async with processor.open(None) as run:
            try:
                while await run.run_next():
                    pass
            except asyncio.CancelledError:
                seen.extend([[*trace], run.last_phase_id(), run.next_phase_id()])
                raise

    caller = asyncio.get_running_loop().create_task(body())
    await until(lambda: "waits" in trace)
    caller.cancel()
    assert isinstance(await error_of(caller), asyncio.CancelledError)
    assert seen[0][-1] in ("waits cancelled", "B.execute")
    assert "waits cancelled" in seen[0]
    assert not any("post" in label for label in seen[0])
    assert seen[1:] == [[PRE, EXECUTE][phase], POST]
    cleanup = [label for label in trace if "post" in label]
    assert cleanup == (["B.post"] if phase else []) + ["A.post", "A.post done"]


async def test_a_cancellation_that_the_body_swallows() -> None:
    """The next phase is the cleanup then, and nothing has failed."""
    trace = Trace()
    processor = solo(nothing, trace.waiting("A"), trace.quick("A.post"))

    async def body() -> str:
        async with processor.open(None) as run:
            await run.run_next()
            with pytest.raises(asyncio.CancelledError):
                await run.run_next()
            assert not run.has_failures()
            assert await run.run_next() is False
        return "value"

    caller = asyncio.get_running_loop().create_task(body())
    await until(lambda: trace)
    caller.cancel()
    assert await caller == "value"
    assert trace == ["A", "A cancelled", "A.post"]


@pytest.mark.parametrize("times", [1, 2])
async def test_a_cancellation_during_the_cleanup_of_leaving(times: int) -> None:
    trace = Trace()
    processor = build(
        [task("A", nothing, nothing, trace.pausing("A", 3))],
        [task("B", nothing, nothing, trace.pausing("B", 3))],
    )
    caller = asyncio.get_running_loop().create_task(in_block(processor.open(None), times))
    await until(lambda: "B" in trace)
    caller.cancel()
    await until(lambda: "A" in trace)
    caller.cancel()
    assert isinstance(await error_of(caller), asyncio.CancelledError)
    assert trace == ["B", "B done", "A", "A done"]


async def test_a_cancellation_during_the_last_phase_is_remembered() -> None:
    trace = Trace()
    processor = solo(nothing, nothing, trace.pausing("A", 3))
    caller = asyncio.get_running_loop().create_task(in_block(processor.open(None), 3))
    await until(lambda: trace)
    caller.cancel()
    assert isinstance(await error_of(caller), asyncio.CancelledError)
    assert trace == ["A", "A done"]


async def test_a_cancellation_between_phases() -> None:
    trace = Trace()

    async def body() -> None:
        async with full(trace).open(None) as run:
            await run.run_next()
            await forever()

    caller = asyncio.get_running_loop().create_task(body())
    await until(lambda: "B.pre" in trace)
    caller.cancel()
    assert isinstance(await error_of(caller), asyncio.CancelledError)
    assert trace == ["A.pre", "B.pre", "B.post", "A.post"]


async def test_failures_of_a_cancelled_run_are_its_context_and_handled(
    loop_errors: list[dict[str, Any]],
) -> None:
    error = ValueError("mine")
    trace = Trace()
    processor = solo(nothing, trace.waiting("A"), trace.failing("A.post", error))
    caller = asyncio.get_running_loop().create_task(in_block(processor.open(None), 2))
    await until(lambda: trace)
    caller.cancel()
    caught = await error_of(caller)
    assert isinstance(caught, asyncio.CancelledError)
    assert [context["exception"].exceptions for context in loop_errors] == [(error,)]
    loop_errors.clear()


async def test_timeouts_around_the_block() -> None:
    trace = Trace()
    processor = solo(nothing, trace.waiting("A"), trace.pausing("A.post"))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await in_block(processor.open(None), 3)
    assert trace == ["A", "A cancelled", "A.post", "A.post done"]
    assert current().cancelling() == 0


@pytest.mark.parametrize("phase", [0, 1, 2])
@pytest.mark.parametrize("number", [0, 1])
async def test_what_is_no_exception_leaves_run_next(phase: int, number: int) -> None:
    trace = Trace()
    interrupt = KeyboardInterrupt()
    functions: list[Any] = [nothing, nothing, trace.quick("A.post")]
    functions[phase] = trace.failing("A", interrupt, number)
    processor = build(
        [task("B", nothing, nothing, trace.pausing("B.post"))], [task("A", *functions)]
    )
    seen = []

    async def body() -> None:
        async with processor.open(None) as run:
            for turn in range(3):
                try:
                    await run.run_next()
                except KeyboardInterrupt:
                    seen.append(turn)
                    raise

    assert await error_of(body()) is interrupt
    assert seen == [phase]
    assert trace[-1] == "B.post done"


async def test_what_is_no_exception_in_the_cleanup_of_leaving() -> None:
    trace = Trace()
    interrupt, error = KeyboardInterrupt(), ValueError("mine")
    processor = build(
        [task("A", nothing, post=trace.failing("A", error, 1))],
        [task("B", nothing, post=trace.failing("B", interrupt))],
    )
    caught = await error_of(in_block(processor.open(None), 1))
    assert caught is interrupt
    assert whole(caught.__context__).exceptions == (error,)
    assert trace == ["B", "A"]


# Misuse


async def test_two_at_once_are_refused() -> None:
    trace, event = Trace(), asyncio.Event()
    async with solo(trace.waiting("A", event)).open(None) as run:
        first = asyncio.get_running_loop().create_task(run.run_next())
        await until(lambda: trace)
        with pytest.raises(RuntimeError, match="run_next"):
            await run.run_next()
        event.set()
        assert await first is True
    assert trace == ["A", "A done"]


@pytest.mark.parametrize("phase", [0, 1, 2])
async def test_leaving_while_another_asyncio_task_runs_a_phase(phase: int) -> None:
    """Nothing runs on behind the block: what waits is cancelled, and cleanup awaited."""
    trace = Trace()
    functions: list[Any] = [nothing, nothing, trace.pausing("post", 2)]
    if phase < 2:
        functions[phase] = trace.waiting("waits")
    processor = solo(*functions)
    async with processor.open(None) as run:
        for _ in range(phase):
            await run.run_next()
        other = asyncio.get_running_loop().create_task(run.run_next())
        await until(lambda: trace)
    assert trace == (["waits", "waits cancelled"] if phase < 2 else []) + ["post", "post done"]
    await asyncio.wait([other])
    if error := other.exception():
        assert isinstance(error, RuntimeError)


async def test_a_cancellation_while_leaving_waits_for_another_asyncio_task() -> None:
    trace = Trace()
    processor = solo(nothing, trace.stubborn("A"), trace.pausing("post", 2))
    others = []

    async def body() -> None:
        async with processor.open(None) as run:
            await run.run_next()
            others.append(asyncio.get_running_loop().create_task(run.run_next()))
            await until(lambda: trace)

    caller = asyncio.get_running_loop().create_task(body())
    await until(lambda: "A" in trace)
    caller.cancel()
    assert isinstance(await error_of(caller), asyncio.CancelledError)
    assert trace == ["A", "A swallowed", "post", "post done"]
    await asyncio.wait(others)


async def test_failures_are_asked_for_before_and_after() -> None:
    run = full(Trace()).open(None)
    assert not run.has_failures()
    assert run.failures() == []
    run.raise_failures()
    await in_block(run, 3)
    assert not run.has_failures()
    run.raise_failures()


# What is left


@counts_references
async def test_no_reference_cycles_are_left() -> None:
    async def fails(ctx: Any) -> None:
        await asyncio.sleep(0)
        raise ValueError

    processors = [
        full(Trace(), 1),
        build(
            [task("A", nothing, fails, Trace().pausing("A.post"))],
            [task("B", nothing, Trace().waiting("B"), fails)],
        ),
        solo(fails, None, nothing),
    ]

    async def go(processor: Any, times: int, fail: bool) -> None:
        with suppress(SdaxExecutionError, LookupError):
            async with processor.open(None) as run:
                for _ in range(times):
                    await run.run_next()
                if fail:
                    raise LookupError

    async def all_ways() -> None:
        for processor in processors:
            for times in range(4):
                for fail in (False, True):
                    await go(processor, times, fail)

    await all_ways()
    with without_collector():
        await all_ways()
        assert gc.collect() == 0


@without_factory
async def test_phases_that_never_suspend_never_go_through_the_loop() -> None:
    went = []
    asyncio.get_running_loop().call_soon(went.append, 1)
    await in_block(full(Trace()).open(None), 3)
    await in_block(full(Trace()).open(None), 1)
    assert went == []


async def test_phase_by_phase_is_the_same_run() -> None:
    """The trace is that of `process_tasks`, with limits and places as well."""
    one, other = Trace(), Trace()

    def make(trace: Trace) -> Any:
        builder = AsyncDagTaskProcessor.builder(max_concurrency=2, execute_order="dependency")
        for n in range(6):
            phases = [TaskFunction(trace.pausing(f"{n}.{phase}", n), retries=1) for phase in "xyz"]
            builder.add_task(task(n, *phases), range(max(0, n - 2), n - n % 2))
        return builder.build()

    await spawn(make(one))
    await in_block(make(other).open(None), 3)
    assert one == other
    assert len(one) == 36


async def test_aclose_while_another_one_cleans_up_does_nothing() -> None:
    gate = asyncio.Event()
    trace = Trace()

    async def clean(ctx: Any) -> None:
        trace.append("begin")
        await gate.wait()
        trace.append("end")

    run = solo(nothing, post=clean).open(None)
    await run.run_next()
    first = asyncio.ensure_future(run.aclose())
    await until(lambda: trace == ["begin"])
    await run.aclose()
    assert trace == ["begin"]
    gate.set()
    await first
    assert trace == ["begin", "end"]


def test_values_of_the_phases() -> None:
    # Programs store them.
    assert [phase.value for phase in PhaseId] == [1, 2, 3]
