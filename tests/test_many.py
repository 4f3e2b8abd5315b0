"""Many runs on this event loop."""

from __future__ import annotations

import asyncio
import gc
import inspect
import subprocess
import sys
import traceback
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from helpers import (
    Broken,
    Trace,
    build,
    counts_references,
    current,
    error_of,
    forever,
    one_loop,
    passes,
    solo,
    task,
    until,
    var,
    without_collector,
    without_factory,
)
from sdax import RunReport, SdaxExecutionError, State, TaskCancelledError
from sdax.events import Event, RunFinished, RunStarted
from sdax.many import ManyOptions, Outcome, Outcomes, Progress, RayCluster, run_many

KINDS = pytest.mark.parametrize("kind", ["plain", "async"])


def given(kind: str, items: Any) -> Any:
    """Inputs of both kinds."""
    if kind == "plain":
        return items

    async def inputs() -> AsyncIterator[Any]:
        for item in items:
            yield item

    return inputs()


def numbers() -> Iterator[int]:
    """Inputs without an end."""
    number = 0
    while True:
        yield number
        number += 1


async def square(ctx: Any) -> Any:
    return ctx * ctx


def squared(ctx: Any, report: RunReport[Any]) -> Any:
    return report["A"].execute.value


async def values(processor: Any, inputs: Any, **options: Any) -> list[Any]:
    async with run_many(processor, inputs, **options) as outcomes:
        return [outcome.value async for outcome in outcomes]


class Gates:
    """Runs that wait each until it is let go, and what is under way."""

    def __init__(self) -> None:
        self.opened: dict[Any, asyncio.Event] = {}
        self.begun: list[Any] = []
        self.cleaned: list[Any] = []
        self.cancelled: list[Any] = []
        self.processor = solo(None, self.execute, self.post)

    async def execute(self, ctx: Any) -> Any:
        self.begun.append(ctx)
        try:
            await self.opened.setdefault(ctx, asyncio.Event()).wait()
        except asyncio.CancelledError:
            self.cancelled.append(ctx)
            raise
        return ctx

    async def post(self, ctx: Any) -> None:
        await passes(3)
        self.cleaned.append(ctx)

    def let_go(self, ctx: Any) -> None:
        self.opened.setdefault(ctx, asyncio.Event()).set()


# Outcomes.


@KINDS
@pytest.mark.parametrize("number", [0, 2], ids=["at once", "suspended"])
async def test_each_input_has_its_outcome(kind: str, number: int) -> None:
    trace = Trace()
    processor = build(
        [task("L", trace.pausing("pre", number), None, trace.pausing("post", number))],
        [task("A", execute=square)],
    )
    seen: dict[int, Outcome[int, Any]] = {}
    async with run_many(processor, given(kind, range(100)), concurrency=7) as outcomes:
        async for outcome in outcomes:
            assert outcome.number not in seen
            seen[outcome.number] = outcome
    assert sorted(seen) == list(range(100))
    for number, outcome in seen.items():
        assert outcome.item == number
        assert outcome.error is None
        assert outcome.value is outcome.report
        assert outcome.result()["A"].execute.value == number * number
    assert trace.count("post") == 100


@one_loop
@pytest.mark.one_engine
async def test_without_inputs_there_is_no_outcome() -> None:
    assert await values(solo(execute=square), []) == []


@one_loop
async def test_a_run_that_reports_nothing_but_successes_shares_its_report() -> None:
    reports = await values(build(), range(3))
    assert reports[0] is reports[1] is reports[2]


async def test_outcomes_come_as_runs_end() -> None:
    gates = Gates()
    async with run_many(gates.processor, list("abc")) as outcomes:
        taking = asyncio.ensure_future(anext(outcomes))
        await until(lambda: len(gates.begun) == 3)
        for letter in "cab":
            gates.let_go(letter)
            outcome = await taking
            assert outcome.item == letter
            taking = asyncio.ensure_future(anext(outcomes))
        assert isinstance(await error_of(taking), StopAsyncIteration)


@KINDS
async def test_or_in_the_order_of_the_inputs(kind: str) -> None:
    gates = Gates()
    taken = []
    async with run_many(gates.processor, given(kind, list("abcd")), ordered=True) as outcomes:
        asyncio.get_running_loop().call_later(0.01, lambda: [gates.let_go(each) for each in "dcba"])
        async for outcome in outcomes:
            taken.append((outcome.number, outcome.item))
    assert taken == list(enumerate("abcd"))


@one_loop
@pytest.mark.one_engine
async def test_order_holds_back_what_comes_early_in_its_place() -> None:
    gates = Gates()
    async with run_many(gates.processor, numbers(), ordered=True, concurrency=3) as outcomes:
        taking = asyncio.ensure_future(anext(outcomes))
        await until(lambda: len(gates.begun) == 3)
        gates.let_go(1)
        gates.let_go(2)
        await passes(20)
        assert gates.begun == [0, 1, 2]
        gates.let_go(0)
        assert (await taking).number == 0
        assert [(await anext(outcomes)).number for _ in range(2)] == [1, 2]


@one_loop
async def test_pick_says_what_is_kept() -> None:
    processor = solo(execute=square)
    async with run_many(processor, [3], pick=squared) as outcomes:
        (outcome,) = [each async for each in outcomes]
    assert outcome.value == outcome.result() == 9
    assert outcome.report is not None
    assert outcome.report["A"].execute.value == 9


@one_loop
@pytest.mark.one_engine
@pytest.mark.parametrize(
    "error", [Broken("a"), StopIteration(1), asyncio.CancelledError()], ids=repr
)
async def test_an_error_of_pick_is_that_of_its_input(error: BaseException) -> None:
    def pick(ctx: Any, report: Any) -> Any:
        if ctx == 1:
            raise error
        return ctx

    async with run_many(solo(execute=square), range(3), pick=pick, ordered=True) as outcomes:
        first, second, third = [each async for each in outcomes]
    assert (first.value, third.value) == (0, 2)
    if isinstance(error, asyncio.CancelledError):
        assert isinstance(second.error, TaskCancelledError)
        assert second.error.__cause__ is error
    else:
        assert second.error is error


@one_loop
@pytest.mark.one_engine
async def test_a_pick_that_returns_a_coroutine_is_refused() -> None:
    async with run_many(solo(execute=square), [3], pick=lambda ctx, _: square(ctx)) as outcomes:
        (outcome,) = [each async for each in outcomes]
    assert isinstance(outcome.error, TypeError)
    assert str(outcome.error).startswith("pick must be a plain function, but it returned <corou")
    assert outcome.report is None


@one_loop
@pytest.mark.one_engine
@pytest.mark.parametrize("is_cleared", [False, True], ids=["frames", "cleared frames"])
async def test_each_result_raises_with_the_same_traceback(is_cleared: bool) -> None:
    """Also where the error of `pick` is that of another outcome."""
    inner = solo(None, None, Trace().failing("A", Broken()))
    async with run_many(inner, [0]) as outcomes:
        (failed,) = [each async for each in outcomes]

    def pick(ctx: Any, report: Any) -> Any:
        return failed.result()

    async with run_many(solo(execute=square), [0], pick=pick) as outcomes:
        (outcome,) = [each async for each in outcomes]
    raised = []
    for _ in range(3):
        with pytest.raises(SdaxExecutionError) as caught:
            outcome.result()
        raised.append([frame.name for frame in caught.traceback])
        if is_cleared:
            traceback.clear_frames(caught.tb)
    own = "test_each_result_raises_with_the_same_traceback"
    assert raised == [[own, "result", "pick", "result"]] * 3


def test_an_outcome_says_what_it_is() -> None:
    outcome: Outcome[str, int] = Outcome(3, "a", 9, None, None)
    assert repr(outcome) == "Outcome(number=3, item='a', value=9, report=None, error=None)"


# Failures.


@one_loop
async def test_a_failed_run_is_an_outcome_and_stops_nothing() -> None:
    cleaned = []

    async def fail_sometimes(ctx: Any) -> int:
        await passes(ctx % 3)
        if ctx % 2:
            raise Broken(ctx)
        return ctx

    async def clean(ctx: Any) -> None:
        cleaned.append(ctx)

    processor = solo(fail_sometimes, None, clean)
    async with run_many(processor, range(20), ordered=True) as outcomes:
        ended = [each async for each in outcomes]
    assert sorted(cleaned) == list(range(20))
    for outcome in ended:
        if outcome.number % 2:
            error = outcome.error
            assert isinstance(error, SdaxExecutionError)
            assert [failure.exception.args for failure in error.failures] == [(outcome.item,)]
            assert outcome.value is None
            assert outcome.report is error.report
            assert error.report["A"].pre_execute.state == State.FAILED
            with pytest.raises(SdaxExecutionError) as caught:
                outcome.result()
            assert caught.value is error
        else:
            assert outcome.result()["A"].pre_execute.value == outcome.item


@one_loop
async def test_an_unasked_cancellation_is_a_failure() -> None:
    async def give_up(ctx: Any) -> None:
        await passes(1)
        raise asyncio.CancelledError

    async with run_many(solo(execute=give_up), [1]) as outcomes:
        (outcome,) = [each async for each in outcomes]
    assert isinstance(outcome.error, SdaxExecutionError)
    assert isinstance(outcome.error.exceptions[0], TaskCancelledError)


@KINDS
@pytest.mark.parametrize("error", [Broken("inputs"), asyncio.CancelledError("inputs")], ids=repr)
async def test_an_error_of_the_inputs_comes_after_the_runs(kind: str, error: BaseException) -> None:
    def items() -> Iterator[int]:
        yield from range(5)
        raise error

    taken = []
    gates = Gates()
    asyncio.get_running_loop().call_later(0.01, lambda: [gates.let_go(each) for each in range(5)])
    with pytest.raises(type(error)) as caught:
        async with run_many(gates.processor, given(kind, items())) as outcomes:
            async for outcome in outcomes:
                taken.append(outcome.item)
    assert caught.value is error
    assert sorted(taken) == list(range(5))
    assert current().cancelling() == 0


# Contexts.


async def make_async(item: Any) -> Any:
    return [item]


async def make_slowly(item: Any) -> Any:
    await passes(item % 3)
    return [item]


@one_loop
@pytest.mark.parametrize(
    "make",
    [lambda item: [item], make_async, make_slowly, lambda item: make_slowly(item)],
    ids=["plain", "async", "suspended", "returned"],
)
async def test_a_context_is_made_of_each_input(make: Any) -> None:
    got = await values(
        solo(execute=square_of_first),
        range(9),
        make_context=make,
        pick=lambda ctx, report: (ctx, report["A"].execute.value),
        ordered=True,
    )
    assert got == [([number], number * number) for number in range(9)]


async def square_of_first(ctx: Any) -> Any:
    await passes(ctx[0] % 2)
    return ctx[0] * ctx[0]


@one_loop
@pytest.mark.parametrize("how", ["plain", "async", "suspended"])
async def test_an_error_of_make_context_is_that_of_its_input(how: str) -> None:
    error = Broken("no such order")

    def make(item: int) -> int:
        if item == 1:
            raise error
        return item

    async def make_later(item: int) -> int:
        await passes(2 if how == "suspended" else 0)
        return make(item)

    async with run_many(
        solo(execute=square), range(3), make_context=make if how == "plain" else make_later
    ) as outcomes:
        ended = sorted([each async for each in outcomes], key=lambda each: each.number)
    assert [each.error for each in ended] == [None, error, None]
    assert ended[1].report is None
    assert ended[1].item == 1


async def test_runs_see_the_variables_of_whoever_opened_the_block() -> None:
    async def read(ctx: Any) -> str:
        seen = var.get()
        var.set("changed")
        return seen

    processor = solo(None, read)
    var.set("opened")
    async with run_many(processor, range(4), concurrency=1, pick=squared) as outcomes:
        var.set("later")
        assert [each.value async for each in outcomes] == ["opened"] * 4
        assert var.get() == "later"


@pytest.mark.parametrize("how", ["plain", "async"])
async def test_a_run_sees_the_variables_that_its_make_context_sets(how: str) -> None:
    def make(item: str) -> str:
        assert var.get() == "opened"
        var.set(item)
        return item

    async def make_later(item: str) -> str:
        await passes(1)
        return make(item)

    async def read(ctx: Any) -> str:
        await passes(1)
        return var.get()

    var.set("opened")
    make_context: Any = make if how == "plain" else make_later
    got = await values(
        solo(execute=read), list("abc"), make_context=make_context, pick=squared, ordered=True
    )
    assert got == ["a", "b", "c"]
    assert var.get() == "opened"


@one_loop
@pytest.mark.one_engine
async def test_resources_are_entered_once() -> None:
    events: list[Any] = []

    @asynccontextmanager
    async def pool() -> AsyncIterator[str]:
        events.append("opened")
        try:
            yield "pool"
        finally:
            events.append("closed")

    def make(item: int, resources: str) -> tuple[int, str]:
        return item, resources

    async def make_later(item: int, resources: str) -> tuple[int, str]:
        return item, resources

    async def note(ctx: Any) -> None:
        events.append(ctx)

    for function in (make, make_later):
        events.clear()
        processor = solo(None, None, note)
        await values(processor, range(2), make_context=function, resources=pool)
        assert events == ["opened", (0, "pool"), (1, "pool"), "closed"]


@one_loop
async def test_resources_are_closed_after_the_cleanup() -> None:
    gates = Gates()
    left = []

    @asynccontextmanager
    async def pool() -> AsyncIterator[None]:
        try:
            yield
        finally:
            left.extend(gates.cleaned)

    with pytest.raises(Broken):
        async with run_many(
            gates.processor, list("ab"), make_context=lambda item, _: item, resources=pool
        ) as outcomes:
            taking = asyncio.ensure_future(anext(outcomes))
            await until(lambda: len(gates.begun) == 2)
            taking.cancel()
            await asyncio.wait([taking])
            raise Broken
    assert sorted(left) == ["a", "b"]


@one_loop
async def test_what_leaves_the_block_keeps_its_traceback() -> None:
    @asynccontextmanager
    async def pool() -> AsyncIterator[None]:
        yield

    def fail() -> None:
        raise Broken

    async def interrupt(ctx: Any) -> None:
        await passes(1)
        raise KeyboardInterrupt

    with_pool: dict[str, Any] = {"make_context": lambda item, _: item, "resources": pool}
    for function, kind, raising in (
        (square, Broken, "fail"),
        (interrupt, KeyboardInterrupt, "interrupt"),
    ):
        frames: list[list[str]] = []
        for options in ({}, with_pool):
            with pytest.raises(kind) as caught:
                async with run_many(solo(None, None, function), [1], **options) as outcomes:
                    async for _ in outcomes:
                        fail()
            frames.append([frame.name for frame in caught.traceback])
        assert frames[0] == frames[1]
        assert frames[0][-1] == raising


# Places.


@KINDS
async def test_no_more_inputs_are_taken_than_there_are_places(kind: str) -> None:
    gates = Gates()
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in numbers():
            taken.append(number)
            yield number

    async with run_many(gates.processor, given(kind, items()), concurrency=4) as outcomes:
        for number in range(10):
            gates.let_go(number)
            outcome = await anext(outcomes)
            assert outcome.item == number
            await passes(10)
            # One more may have been asked for by what makes the inputs async, none is taken.
            assert taken == list(range(number + 5))
            assert len(gates.begun) == number + 5


@one_loop
@pytest.mark.one_engine
@KINDS
async def test_outcomes_that_nobody_has_taken_hold_their_places(kind: str) -> None:
    begun: list[int] = []

    async def note(ctx: int) -> None:
        begun.append(ctx)
        await passes(ctx % 2)

    async with run_many(solo(None, note), given(kind, numbers()), concurrency=3) as outcomes:
        for taken in range(1, 8):
            await anext(outcomes)
            await passes(20)
            assert len(begun) == taken + 3


async def test_the_loop_goes_on_beside_runs_that_never_suspend() -> None:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    ticking = asyncio.ensure_future(tick())
    await values(solo(execute=square), range(500))
    assert ticks > 5
    ticking.cancel()
    await asyncio.wait([ticking])


async def test_an_endless_loop_of_such_runs_can_be_cancelled() -> None:
    async def consume() -> None:
        async with run_many(solo(execute=square), numbers()) as outcomes:
            async for _ in outcomes:
                pass

    consuming = asyncio.ensure_future(consume())
    await passes(3)
    consuming.cancel()
    await asyncio.wait([consuming])
    assert consuming.cancelled()


@without_factory
async def test_a_run_has_no_asyncio_task_of_its_own() -> None:
    gates = Gates()
    async with run_many(gates.processor, range(50)) as outcomes:
        taking = asyncio.ensure_future(anext(outcomes))
        await until(lambda: len(gates.begun) == 50)
        names = [each.get_name() for each in asyncio.all_tasks() - {current(), taking}]
        assert names == ["sdax:A:execute"] * 50
        gates.let_go(0)
        assert (await taking).item == 0


# Leaving early.


class Left(Exception):
    """What the block is left with."""


async def expire(limit: asyncio.Timeout, is_time: Callable[[], bool]) -> None:
    """Let a timeout expire when it is time."""
    await until(is_time)
    limit.reschedule(asyncio.get_running_loop().time())


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        ("plain", "break"),
        ("async", "break"),
        ("plain", "exception"),
        ("plain", "cancellation"),
        ("async", "cancellation"),
        ("plain", "timeout"),
    ],
)
async def test_leaving_early_cancels_and_cleans_up(kind: str, how: str) -> None:
    gates = Gates()
    gates.let_go(0)

    async def consume() -> None:
        async with run_many(gates.processor, given(kind, numbers()), concurrency=5) as outcomes:
            async for outcome in outcomes:
                assert outcome.item == 0
                if how == "break":
                    break
                if how == "exception":
                    raise Left

    if how == "timeout":
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(None) as limit:
                ending = asyncio.ensure_future(expire(limit, lambda: len(gates.begun) == 6))
                await consume()
        await ending
    elif how == "exception":
        with pytest.raises(Left):
            await consume()
    else:
        consuming = asyncio.ensure_future(consume())
        if how == "cancellation":
            await until(lambda: len(gates.begun) == 6)
            consuming.cancel()
        await asyncio.wait([consuming])
        assert consuming.cancelled() == (how == "cancellation")
    # A place that is free only then may not have been taken by then, and a task factory may not
    # have begun what was.
    assert gates.begun in ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5])
    assert sorted(gates.cancelled) == gates.begun[1:]
    assert set(gates.begun) <= set(gates.cleaned) <= {0, 1, 2, 3, 4, 5}
    assert len(gates.cleaned) == len(set(gates.cleaned))
    assert current().cancelling() == 0


async def test_a_second_cancellation_does_not_interrupt_the_cleanup() -> None:
    gates = Gates()

    async def consume() -> None:
        async with run_many(gates.processor, list("abc")) as outcomes:
            async for _ in outcomes:
                pass

    consuming = asyncio.ensure_future(consume())
    await until(lambda: len(gates.begun) == 3)
    for _ in range(4):
        consuming.cancel()
        await passes(1)
    await asyncio.wait([consuming])
    assert consuming.cancelled()
    assert sorted(gates.cleaned) == ["a", "b", "c"]


async def test_a_cancellation_during_the_cleanup_after_a_break_is_raised() -> None:
    gates = Gates()
    gates.let_go("a")

    async def consume() -> None:
        async with run_many(gates.processor, list("abc")) as outcomes:
            async for _ in outcomes:
                break

    consuming = asyncio.ensure_future(consume())
    await until(lambda: len(gates.cancelled) == 2)
    consuming.cancel()
    await asyncio.wait([consuming])
    assert consuming.cancelled()
    assert sorted(gates.cleaned) == ["a", "b", "c"]


@pytest.mark.parametrize("stage", ["make_context", "execute"])
async def test_what_is_made_is_cancelled_too(stage: str) -> None:
    trace: list[Any] = []

    async def make(item: Any) -> Any:
        if stage == "make_context":
            try:
                await forever()
            finally:
                trace.append("not made")
        return item

    async def post(ctx: Any) -> None:
        trace.append("cleaned")

    processor = solo(None, forever, post)
    async with run_many(processor, ["a"], make_context=make) as outcomes:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(outcomes), 0.01)
    assert trace == (["not made"] if stage == "make_context" else ["cleaned"])


@KINDS
async def test_nothing_is_lost_when_a_wait_is_cancelled(kind: str) -> None:
    gates = Gates()
    async with run_many(gates.processor, given(kind, range(3))) as outcomes:
        for _ in range(3):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.001):
                    await anext(outcomes)
        assert gates.cancelled == []
        for number in range(3):
            gates.let_go(number)
        assert [each.item async for each in outcomes] == [0, 1, 2]


@one_loop
@pytest.mark.one_engine
async def test_an_async_generator_is_closed() -> None:
    closed: list[str] = []

    async def inputs() -> AsyncIterator[int]:
        try:
            for number in numbers():
                yield number
        finally:
            await passes(2)
            closed.append("closed")

    async with run_many(solo(execute=square), inputs(), concurrency=2) as outcomes:
        async for _ in outcomes:
            break
    assert closed == ["closed"]


@one_loop
@pytest.mark.one_engine
async def test_what_is_not_taken_is_left_in_the_inputs() -> None:
    items = iter(range(10))
    async with run_many(solo(execute=square), items, concurrency=2) as outcomes:
        await anext(outcomes)
    assert list(items) == [3, 4, 5, 6, 7, 8, 9]


@one_loop
async def test_the_loop_hears_of_failed_outcomes_that_nobody_took(
    loop_errors: list[dict[str, Any]],
) -> None:
    async def fail(ctx: Any) -> None:
        raise Broken(ctx)

    async with run_many(solo(execute=fail), range(5), ordered=True) as outcomes:
        await anext(outcomes)
    heard = loop_errors.pop()
    assert "before 4 outcomes with an error were taken" in heard["message"]
    assert heard["exception"].exceptions[0].args == (1,)


@one_loop
async def test_the_loop_hears_of_failures_of_cancelled_runs(
    loop_errors: list[dict[str, Any]],
) -> None:
    async def fail(ctx: Any) -> None:
        raise Broken(ctx)

    async with run_many(solo(None, forever, fail), ["a"]) as outcomes:
        with suppress(TimeoutError):
            await asyncio.wait_for(anext(outcomes), 0.01)
    heard = loop_errors.pop()
    assert "a run that was cancelled had 1 failure" in heard["message"]


@KINDS
async def test_inputs_can_be_ended_while_runs_go_on(kind: str) -> None:
    gates = Gates()
    async with run_many(gates.processor, given(kind, numbers()), concurrency=3) as outcomes:
        taking = asyncio.ensure_future(anext(outcomes))
        await until(lambda: len(gates.begun) == 3)
        outcomes.take_no_more()
        await passes(3)
        for number in range(3):
            gates.let_go(number)
        taken = [await taking, *[each async for each in outcomes]]
    assert sorted(each.item for each in taken) == gates.begun == [0, 1, 2]
    assert gates.cancelled == []


@KINDS
async def test_runs_can_be_stopped_without_losing_what_has_ended(kind: str) -> None:
    gates = Gates()
    seen = []
    async with run_many(gates.processor, given(kind, numbers()), concurrency=3) as outcomes:
        taking = asyncio.ensure_future(anext(outcomes))
        await until(lambda: len(gates.begun) == 3)
        gates.let_go(0)
        await until(lambda: gates.cleaned)
        outcomes.stop()
        outcomes.stop()
        seen = [await taking, *[each async for each in outcomes]]
        assert len(gates.cleaned) == 3
    assert [each.item for each in seen] == [0]
    assert gates.begun == [0, 1, 2]
    assert sorted(gates.cancelled) == [1, 2]


@one_loop
@without_factory
async def test_a_run_whose_context_was_made_does_not_begin_after_the_stop() -> None:
    gates = Gates()
    made = []

    async def make(item: int) -> int:
        await passes(1)
        made.append(item)
        return item

    async with run_many(gates.processor, [0], make_context=make) as outcomes:
        taking = asyncio.ensure_future(anext(outcomes, None))
        await until(lambda: made)
        outcomes.stop()
        assert await taking is None
    assert gates.begun == []


@one_loop
@pytest.mark.one_engine
@KINDS
@pytest.mark.parametrize("end", [Outcomes.stop, Outcomes.take_no_more])
async def test_ended_before_the_first_there_is_no_outcome(
    kind: str, end: Callable[[Outcomes[Any, Any]], None]
) -> None:
    async with run_many(solo(execute=square), given(kind, numbers())) as outcomes:
        end(outcomes)
        assert [each async for each in outcomes] == []


@one_loop
@pytest.mark.one_engine
@KINDS
async def test_a_block_that_asks_for_nothing_is_told(kind: str) -> None:
    gates = Gates()
    with pytest.warns(RuntimeWarning, match="so no run has begun; write 'async for outc") as caught:
        async with run_many(gates.processor, given(kind, range(3))):
            await passes(5)
    assert gates.begun == []
    (warning,) = caught
    assert warning.filename == __file__


@one_loop
@pytest.mark.one_engine
@pytest.mark.parametrize("how", ["took", "ended", "raised"])
async def test_other_blocks_are_not_warned_of(how: str) -> None:
    with suppress(LookupError):
        async with run_many(solo(execute=square), numbers()) as outcomes:
            if how == "took":
                await anext(outcomes)
            elif how == "ended":
                outcomes.take_no_more()
            else:
                raise LookupError


@one_loop
@pytest.mark.one_engine
@pytest.mark.parametrize("how", ["for", "with", "await"])
async def test_what_is_written_without_async_is_told(how: str) -> None:
    many: Any = run_many(solo(execute=square), range(3))
    with pytest.raises(TypeError, match=r"write 'async with run_many.* 'async for outcome in"):
        if how == "for":
            for _ in many:
                pass
        elif how == "with":
            with many:
                pass
        else:
            await many


# What is not an Exception.


@pytest.mark.parametrize(
    ("kind", "where"),
    [
        ("plain", "execute"),
        ("plain", "make_context"),
        ("plain", "async make_context"),
        ("plain", "pick"),
        ("plain", "inputs"),
        ("async", "inputs"),
        ("async", "execute"),
    ],
)
async def test_keyboard_interrupt_stops_everything_and_is_raised(where: str, kind: str) -> None:
    error = KeyboardInterrupt(where)
    gates = Gates()

    def check(place: str, item: Any) -> Any:
        if place == where and item == 3:
            raise error
        return item

    async def execute(ctx: Any) -> None:
        await passes(2)
        check("execute", ctx)
        if ctx != 3:
            await gates.execute(ctx)

    async def make_async(item: Any) -> Any:
        await passes(1)
        return check(where, item)

    make: Callable[[Any], Any] = lambda item: check("make_context", item)  # noqa: E731
    items = (check("inputs", number) for number in numbers())
    processor = solo(None, execute, gates.post)
    with pytest.raises(KeyboardInterrupt) as caught:
        async with run_many(
            processor,
            given(kind, items),
            concurrency=5,
            make_context=make_async if where == "async make_context" else make,
            pick=lambda ctx, report: check("pick", ctx),
        ) as outcomes:
            async for _ in outcomes:
                pass
    assert caught.value is error
    assert outcomes.stopped_by == (None if where == "inputs" else (3, 3))
    assert sorted(gates.cancelled) == sorted(gates.begun)
    assert set(gates.begun) <= set(gates.cleaned)


@one_loop
async def test_outcomes_of_runs_that_ended_before_still_come() -> None:
    gates = Gates()
    together = asyncio.Barrier(3)

    async def execute(ctx: int) -> None:
        if ctx == 3:
            await gates.execute(ctx)
        await together.wait()
        await passes(1)
        if ctx == 1:
            raise SystemExit

    seen = []
    with pytest.raises(SystemExit):
        async with run_many(solo(None, execute), range(4)) as outcomes:
            async for outcome in outcomes:
                seen.append(outcome.item)
    assert sorted(seen) == [0, 2]
    assert gates.cancelled == [3]
    assert outcomes.stopped_by == (1, 1)


@without_factory
@pytest.mark.parametrize("how", ["plain", "isolated"])
async def test_nothing_begins_while_the_interrupted_run_cleans_up(how: str) -> None:
    error = KeyboardInterrupt()
    trace = []

    async def execute(ctx: int) -> None:
        trace.append(f"begun {ctx}")
        raise error

    async def post(ctx: int) -> None:
        await passes(3)
        trace.append(f"cleaned {ctx}")

    make = None if how == "plain" else int
    with pytest.raises(KeyboardInterrupt) as caught:
        async with run_many(solo(None, execute, post), range(5), make_context=make) as outcomes:
            await anext(outcomes)
    assert caught.value is error
    assert outcomes.stopped_by == (0, 0)
    assert trace == ["begun 0", "cleaned 0"]


async def test_it_stops_everything_while_the_block_does_something_else() -> None:
    error = KeyboardInterrupt()
    gates = Gates()
    gates.let_go(0)

    async def execute(ctx: Any) -> None:
        if ctx == 2:
            await passes(5)
            raise error
        await gates.execute(ctx)

    with pytest.raises(KeyboardInterrupt) as caught:
        async with run_many(solo(None, execute, gates.post), range(3)) as outcomes:
            await anext(outcomes)
            await until(lambda: len(gates.cleaned) == 2)
    assert caught.value is error


async def test_an_interrupt_that_comes_after_another_one_is_its_context() -> None:
    errors = [KeyboardInterrupt("first"), SystemExit("second")]
    met = asyncio.Barrier(2)

    async def execute(ctx: int) -> None:
        await met.wait()
        await passes(1)
        raise errors[ctx]

    with pytest.raises((KeyboardInterrupt, SystemExit)) as caught:
        async with run_many(solo(None, execute), range(2), concurrency=2) as outcomes:
            await anext(outcomes)
    (second,) = (error for error in errors if error is not caught.value)
    found: list[Any] = [caught.value]
    while found[-1] is not None:
        found.append(found[-1].__context__)
    assert second in found


# Who takes them.


@one_loop
@pytest.mark.one_engine
async def test_one_at_a_time_takes_outcomes() -> None:
    gates = Gates()
    async with run_many(gates.processor, ["a"]) as outcomes:
        taking = asyncio.ensure_future(anext(outcomes))
        await until(lambda: gates.begun)
        with pytest.raises(RuntimeError, match="waits for the next outcome"):
            await anext(outcomes)
        gates.let_go("a")
        assert (await taking).item == "a"


@one_loop
@pytest.mark.one_engine
async def test_outcomes_are_taken_inside_of_the_block() -> None:
    many = run_many(solo(execute=square), range(3))
    with pytest.raises(RuntimeError, match="async with"):
        await anext(many)
    async with many:
        pass
    with pytest.raises(RuntimeError, match="its block was left"):
        await anext(many)
    with pytest.raises(RuntimeError, match="opened once"):
        async with many:
            pass


async def test_many_runs_inside_of_a_run() -> None:
    inner = solo(execute=square)

    async def outer(ctx: int) -> int:
        return sum(await values(inner, range(ctx), pick=squared, concurrency=2))

    got = await values(solo(execute=outer), range(6), pick=squared, ordered=True)
    assert got == [0, 0, 1, 5, 14, 30]


@one_loop
async def test_inside_of_an_except_block_functions_see_no_exception() -> None:
    async def look(ctx: Any) -> Any:
        return sys.exception()

    try:
        raise Broken
    except Broken:
        assert await values(solo(execute=look), range(3), pick=squared) == [None] * 3


@without_factory
async def test_a_coroutine_that_is_closed_leaves_runs_to_clean_up_alone() -> None:
    gates = Gates()

    async def consume() -> None:
        async with run_many(gates.processor, list("ab")) as outcomes:
            async for _ in outcomes:
                pass

    coroutine = consume()
    coroutine.send(None)
    assert gates.begun == ["a", "b"]
    coroutine.close()
    await until(lambda: len(gates.cleaned) == 2)


def test_the_end_of_the_loop_waits_for_cleanups(engine: Any) -> None:
    """`asyncio.run()` cancels every task at its end, those of cleanups too."""
    trace = Trace()

    async def post(ctx: Any) -> None:
        for _ in range(3):
            await asyncio.sleep(0.01)
        trace.append(f"cleaned {ctx}")

    processor = solo(None, forever, post)

    async def consume() -> None:
        async with run_many(processor, list("abc")) as outcomes:
            async for _ in outcomes:
                pass

    async def main() -> None:
        consuming = asyncio.ensure_future(consume())
        await passes(3)
        consuming.cancel()
        await passes(3)

    asyncio.run(main())
    assert sorted(trace) == ["cleaned a", "cleaned b", "cleaned c"]


# Observers.


async def test_observers_hear_of_each_run() -> None:
    heard: list[Event] = []

    async def maybe(ctx: int) -> None:
        await passes(ctx)
        if ctx == 1:
            raise Broken

    def hear(event: Event) -> None:
        if isinstance(event, RunStarted):
            var.set("run")
        elif isinstance(event, RunFinished):
            assert var.get() == "run"
        heard.append(event)

    var.set("opened")
    async with run_many(solo(execute=maybe), range(3), observer=hear) as outcomes:
        taken = [each async for each in outcomes]
    assert var.get() == "opened"
    started = [each.run.ctx for each in heard if isinstance(each, RunStarted)]
    ended = {each.run.ctx: each for each in heard if isinstance(each, RunFinished)}
    assert started == [0, 1, 2]
    assert [ended[ctx].state for ctx in range(3)] == ["succeeded", "failed", "succeeded"]
    assert {each.item: each.error for each in taken} == {
        ctx: ended[ctx].exception for ctx in range(3)
    }


@one_loop
async def test_cancelled_runs_are_told_as_such() -> None:
    states = []

    def hear(event: Event) -> None:
        if isinstance(event, RunFinished):
            states.append(event.state)

    async with run_many(solo(execute=forever), range(2), observer=hear) as outcomes:
        with suppress(TimeoutError):
            await asyncio.wait_for(anext(outcomes), 0.01)
    assert states == ["cancelled", "cancelled"]


class Counts:
    """A `ManyObserver`."""

    def __init__(self) -> None:
        self.seen: list[tuple[int | None, int, int, bool]] = []

    def __call__(self, event: Event) -> None:
        raise AssertionError("it does not hear of the events of runs")

    def many_changed(self, progress: Progress) -> None:
        self.seen.append((progress.total, progress.done, progress.failed, progress.is_over))


@one_loop
@pytest.mark.one_engine
async def test_who_follows_many_runs_hears_counts() -> None:
    async def maybe(ctx: int) -> None:
        if ctx == 1:
            raise Broken

    counts = Counts()
    await values(solo(execute=maybe), range(3), observer=counts)
    assert counts.seen == [
        (3, 0, 0, False),
        (3, 1, 0, False),
        (3, 2, 1, False),
        (3, 3, 1, False),
        (3, 3, 1, True),
    ]
    counts = Counts()
    await values(solo(execute=square), iter([1]), observer=counts)
    assert counts.seen[-1] == (None, 1, 0, True)


@one_loop
@pytest.mark.one_engine
async def test_one_that_fails_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    class Bad(Counts):
        def many_changed(self, progress: Progress) -> None:
            raise Broken("display")

    counts = Counts()
    got = await values(solo(execute=square), [1, 2], observer=[Bad(), counts])
    assert len(got) == 2
    assert len(counts.seen) == 4
    assert len(caplog.records) == 1


# What is left.


@counts_references
async def test_nothing_is_kept_of_what_was_taken() -> None:
    class Item:
        pass

    seen: list[weakref.ref[Any]] = []

    def items() -> Iterator[Item]:
        for _ in range(50):
            item = Item()
            seen.append(weakref.ref(item))
            yield item

    async def maybe(ctx: Any) -> None:
        await passes(len(seen) % 2)
        if len(seen) % 3 == 0:
            raise Broken

    with without_collector():
        async with run_many(solo(execute=maybe), items(), concurrency=4) as outcomes:
            async for outcome in outcomes:
                del outcome
                assert sum(each() is not None for each in seen) <= 5
        assert [each() for each in seen] == [None] * 50


@counts_references
async def test_no_cycle_is_left(loop_errors: list[dict[str, Any]]) -> None:
    async def maybe(ctx: int) -> None:
        await passes(ctx % 3)
        if ctx % 2:
            raise Broken

    processor = solo(execute=maybe)

    async def once() -> None:
        async with run_many(
            processor, range(20), make_context=make_slowly_plain, concurrency=4
        ) as outcomes:
            async for outcome in outcomes:
                is_last = outcome.number == 15
                # A function that fails at once is called on the stack of this function, which its
                # traceback leads to.
                del outcome
                if is_last:
                    break

    await once()
    loop_errors.clear()
    with without_collector():
        await once()
        loop_errors.clear()
        await passes(2)
        assert gc.collect() == 0


async def make_slowly_plain(item: int) -> int:
    await passes(item % 2)
    return item


# Bad arguments.


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"processor": build}, TypeError, "run_many takes a processor"),
        ({"inputs": 3}, TypeError, "inputs must be an iterable or an async iterable, got 3"),
        ({"inputs": "abc"}, TypeError, r"inputs must be .* got 'abc'; pass \[inputs\] if this is"),
        ({"inputs": b"a" * 99}, TypeError, r"got b'a{57}…; pass .* or list\(inputs\) for its char"),
        ({"inputs": bytearray()}, TypeError, r"got bytearray\(b''\); pass"),
        ({"max_concurrency": 2}, TypeError, "'max_concurrency'; did you mean 'concurrency'\\?"),
        ({"xyz": 2}, TypeError, "no argument 'xyz'; there are 'processor', 'inputs'"),
        ({"make_context": 3}, TypeError, "make_context must be a function or None, got 3"),
        ({"pick": 3}, TypeError, "pick must be a function or None, got 3"),
        ({"pick": square}, TypeError, "pick must be a plain function"),
        ({"resources": list}, TypeError, "resources are passed to make_context"),
        ({"concurrency": 0}, ValueError, "concurrency must be at least 1, got 0"),
        ({"concurrency": None}, TypeError, "concurrency must be an integer, got None"),
        ({"concurrency": 1.5}, TypeError, "concurrency must be an integer"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        ({"ahead": 0}, ValueError, "ahead must be at least 1, got 0"),
        ({"ordered": 1}, TypeError, "ordered must be True or False, got 1"),
        ({"observer": 3}, TypeError, "observer must be callable"),
        ({"on": 3}, TypeError, "on must be"),
    ],
    ids=lambda each: next(iter(each)) if isinstance(each, dict) else "",
)
@pytest.mark.one_engine
def test_bad_arguments_are_refused(
    engine: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    arguments = {"processor": solo(execute=square), "inputs": [], **options}
    with pytest.raises(error, match=message):
        run_many(**arguments)


def test_arguments_that_are_missing_are_told_by_python() -> None:
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'inputs'"):
        run_many(solo(execute=square))  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"workers": 0}, ValueError, "workers must be at least 1, got 0"),
        ({"workers": "two"}, TypeError, "workers must be an integer or None"),
        ({"options": 3}, TypeError, "options must be a mapping or None, got 3"),
    ],
)
def test_bad_options_of_a_cluster_are_refused(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        RayCluster(**options)


def test_a_cluster_says_what_it_is() -> None:
    assert repr(RayCluster(2, options={"num_cpus": 2})) == (
        "RayCluster(workers=2, options={'num_cpus': 2})"
    )


def test_the_options_that_helpers_pass_on_are_those_of_run_many() -> None:
    parameters = inspect.signature(run_many).parameters
    ours = {name for name in parameters if parameters[name].kind == inspect.Parameter.KEYWORD_ONLY}
    assert ours - {"make_context", "pick", "resources"} == set(ManyOptions.__annotations__)


def test_nothing_is_imported_until_asked_for() -> None:
    code = (
        "import sys, sdax; assert 'sdax.many' not in sys.modules; import sdax.many; "
        "unwanted = {'dask', 'distributed', 'ray', 'multiprocessing', 'cloudpickle'}; "
        "assert not unwanted & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
