"""Hedged functions: a second call beside one that is slow, of which nothing is left."""

from __future__ import annotations

import asyncio
import gc
import pickle
import weakref
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, NoReturn

import pytest

from attempts import now, virtual_clock
from helpers import (
    Broken,
    counts_references,
    current,
    error_of,
    failure_of,
    forever,
    nothing,
    passes,
    solo,
    until,
    var,
    without_collector,
)
from sdax import TaskFunction, hedged, task_func

pytestmark = pytest.mark.filterwarnings("error")


class Calls:
    """A function whose calls do what they are told, one after another; it notes what happens.

    A call is a number of seconds to wait before it returns its own number, or a pair: seconds, and
    what to raise then.
    """

    def __init__(self, *calls: Any, slow_to_end: int = 0) -> None:
        self.calls = list(calls)
        self.slow_to_end = slow_to_end  # passes of the loop, after a cancellation
        self.events: list[tuple[float, str]] = []
        self.started = 0

    def note(self, event: str) -> None:
        self.events.append((now(), event))

    async def __call__(self, ctx: Any) -> int:
        number = self.started
        self.started += 1
        call = self.calls[number]
        seconds, error = call if isinstance(call, tuple) else (call, None)
        self.note(f"{number} starts")
        try:
            if seconds is not None:
                await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            await passes(self.slow_to_end)
            self.note(f"{number} cancelled")
            raise
        if error is not None:
            self.note(f"{number} raises")
            raise error
        self.note(f"{number} returns")
        return number


async def run(function: Callable[[Any], Awaitable[Any]], ctx: Any = None) -> Any:
    """What the function returns in a run."""
    report = await solo(None, TaskFunction(function)).process_tasks(ctx)
    return report["A"].execute.value


@virtual_clock
async def test_a_call_that_is_fast_enough_stays_alone() -> None:
    calls = Calls(0.9)
    assert await run(hedged(calls, 1.0)) == 0
    assert calls.events == [(0, "0 starts"), (0.9, "0 returns")]


@virtual_clock
async def test_a_second_call_wins() -> None:
    calls = Calls(10, 1, slow_to_end=3)
    assert await run(hedged(calls, 2.0)) == 1
    assert calls.events == [
        (0, "0 starts"),
        (2, "1 starts"),
        (3, "1 returns"),
        (3, "0 cancelled"),  # and it has ended before anything else goes on
    ]


@virtual_clock
async def test_the_first_call_wins_over_a_second_one() -> None:
    calls = Calls(3, 10)
    assert await run(hedged(calls, 2.0)) == 0
    assert calls.events[1:] == [(2, "1 starts"), (3, "0 returns"), (3, "1 cancelled")]


@virtual_clock
async def test_so_many_calls_and_no_more() -> None:
    calls = Calls(*[10] * 4)
    assert await run(hedged(calls, 2.0, attempts=4)) == 0
    starts = [(0, "0 starts"), (2, "1 starts"), (4, "2 starts"), (6, "3 starts")]
    assert calls.events[:4] == starts
    assert sorted(calls.events[4:]) == [
        (10, "0 returns"),
        *((10, f"{number} cancelled") for number in (1, 2, 3)),
    ]


@virtual_clock
async def test_there_may_never_be_a_second_call() -> None:
    calls = Calls(100)
    assert await run(hedged(calls, 1.0, attempts=1)) == 0
    assert calls.started == 1


@virtual_clock
async def test_two_calls_at_once() -> None:
    calls = Calls(5, 3)
    assert await run(hedged(calls, 0)) == 1
    assert calls.events[:2] == [(0, "0 starts"), (0, "1 starts")]


@virtual_clock
@pytest.mark.parametrize("seconds", [None, 1], ids=["at once", "suspended"])
async def test_a_failure_has_the_next_call_started_at_once(seconds: int | None) -> None:
    failed_at = seconds or 0
    calls = Calls((seconds, Broken()), 10, 1)
    assert await run(hedged(calls, 2.0, attempts=3)) == 2
    assert calls.events == [
        (0, "0 starts"),
        (failed_at, "0 raises"),
        (failed_at, "1 starts"),
        (failed_at + 2, "2 starts"),  # the delay is that after the last call
        (failed_at + 3, "2 returns"),
        (failed_at + 3, "1 cancelled"),
    ]


@virtual_clock
async def test_a_failure_leaves_the_other_calls_alone() -> None:
    calls = Calls(5, (1, Broken()))
    assert await run(hedged(calls, 2.0)) == 0
    assert calls.events[-1] == (5, "0 returns")


@virtual_clock
async def test_the_first_failure_is_raised_and_the_others_are_notes() -> None:
    first, second, third = Broken("first"), ValueError("second"), OSError("third")
    calls = Calls((10, third), (1, first), (1, second))
    error = await failure_of(solo(hedged(calls, 2.0, attempts=3)))
    assert error.exceptions == (first,)
    assert first.__notes__[:2] == [
        "hedged: another call raised ValueError('second')",
        "hedged: another call raised OSError('third')",
    ]
    assert first.__context__ is None
    assert not hasattr(second, "__notes__")


async def test_a_failure_shows_the_functions_frames() -> None:
    async def fail(ctx: Any) -> None:
        await asyncio.sleep(0)
        raise Broken

    error = (await failure_of(solo(hedged(fail, 0, attempts=2)))).exceptions[0]
    assert error.__traceback__ is not None
    assert error.__traceback__.tb_frame.f_code.co_name == "fail"


class Frozen(Exception):
    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(name)

    def add_note(self, note: str) -> NoReturn:
        raise RuntimeError

    def __repr__(self) -> NoReturn:
        raise RuntimeError

    def __bool__(self) -> NoReturn:
        raise RuntimeError


@pytest.mark.parametrize("seconds", [None, 0])
async def test_exceptions_that_allow_nothing(seconds: int | None) -> None:
    first, second = Frozen(), Frozen()
    function = hedged(Calls((seconds, first), (seconds, second)), 5)
    assert await error_of(function(None)) is first


async def test_an_exception_that_all_calls_and_runs_share() -> None:
    shared = Broken("shared")
    for _ in range(3):
        assert await error_of(hedged(Calls(*[(0, shared)] * 3), 5, attempts=3)(None)) is shared
    assert shared.__notes__ == ["hedged: another call raised Broken('shared')"]


@virtual_clock
async def test_a_timeout_bounds_all_calls_together() -> None:
    calls = Calls(10, 10, 10, 1)
    function = TaskFunction(hedged(calls, 2.0), timeout=5, retries=2, initial_delay=1)
    report = await solo(function).process_tasks(None)
    assert report["A"].pre_execute[:3] == ("succeeded", 2, 3)
    ended = [event for at, event in calls.events if at == 5]
    assert ended == ["0 cancelled", "1 cancelled"]
    assert [event for _, event in calls.events[4:]] == [
        *("2 starts", "3 starts", "3 returns", "2 cancelled")
    ]


@virtual_clock
async def test_a_retry_begins_anew(factors: Any) -> None:
    calls = Calls(*[(1, TimeoutError())] * 2, (1, Broken()), 1)
    function = TaskFunction(hedged(calls, 5), retries=1, initial_delay=10)
    report = await solo(function).process_tasks(None)
    assert report["A"].pre_execute[:3] == ("succeeded", 2, 3)
    assert [at for at, event in calls.events if "starts" in event] == [0, 1, 12, 13]


# Cancellation.


@virtual_clock
async def test_cancelling_the_caller_cancels_all_calls_and_waits_for_them() -> None:
    calls = Calls(10, 10, slow_to_end=5)
    waits = asyncio.ensure_future(hedged(calls, 1.0, attempts=3)(None))
    await asyncio.sleep(1.5)
    waits.cancel("of the caller")
    await passes(2)
    waits.cancel("again")  # which makes nothing end earlier, and nothing be cancelled twice
    error = await error_of(waits)
    assert isinstance(error, asyncio.CancelledError)
    assert error.__context__ is None  # but not those that the calls were cancelled with
    assert sorted(calls.events[2:]) == [(1.5, "0 cancelled"), (1.5, "1 cancelled")]
    assert len(asyncio.all_tasks()) == 1


@virtual_clock
async def test_cancelling_a_run() -> None:
    calls = Calls(10, 10)
    cleaned_up: list[str] = []

    async def clean_up(ctx: Any) -> None:
        cleaned_up.extend(event for _, event in calls.events)

    processor = solo(hedged(calls, 1.0), post=clean_up)
    running = asyncio.ensure_future(processor.process_tasks(None))
    await asyncio.sleep(1.5)
    running.cancel()
    assert isinstance(await error_of(running), asyncio.CancelledError)
    assert {*cleaned_up} >= {"0 cancelled", "1 cancelled"}


@pytest.mark.parametrize("fails", [False, True])
async def test_a_call_that_ends_just_as_the_caller_is_cancelled(fails: bool) -> None:
    gate = asyncio.Event()
    started: list[None] = []

    async def function(ctx: Any) -> None:
        started.append(None)
        await gate.wait()
        if fails:
            raise Broken

    waits = asyncio.ensure_future(hedged(function, 60.0, attempts=3)(None))
    await until(lambda: started)
    await passes(2)
    gate.set()
    waits.cancel()
    assert isinstance(await error_of(waits), asyncio.CancelledError)
    assert len(started) == 1
    gc.collect()  # which would find an asyncio.Task whose exception nobody has retrieved


async def test_the_first_of_two_interrupts_is_raised() -> None:
    first, second = KeyboardInterrupt("first"), KeyboardInterrupt("second")
    calls: list[None] = []

    async def function(ctx: Any) -> None:
        calls.append(None)
        if len(calls) == 2:
            raise first
        try:
            await forever()
        finally:
            raise second

    assert await error_of(hedged(function, 0.0)(None)) is first


@virtual_clock
async def test_cancelled_while_the_others_end() -> None:
    calls = Calls(10, 0.5, slow_to_end=5)
    waits = asyncio.ensure_future(hedged(calls, 1.0)(None))
    await asyncio.sleep(1.5)
    await until(lambda: calls.events[-1] == (1.5, "1 returns"))
    waits.cancel()
    assert isinstance(await error_of(waits), asyncio.CancelledError)
    assert calls.events[-1] == (1.5, "0 cancelled")


@virtual_clock
async def test_a_cancellation_comes_before_a_success() -> None:
    async def stubborn(ctx: Any) -> str:
        try:
            await forever()
        except asyncio.CancelledError:
            return "swallowed"

    waits = asyncio.ensure_future(hedged(stubborn, 1.0)(None))
    await asyncio.sleep(0.5)
    waits.cancel()
    assert isinstance(await error_of(waits), asyncio.CancelledError)


@virtual_clock
async def test_failures_are_not_lost_when_the_caller_is_cancelled() -> None:
    async def spiteful(ctx: Any) -> None:
        try:
            await forever()
        except asyncio.CancelledError:
            raise Broken("in the end") from None

    waits = asyncio.ensure_future(hedged(spiteful, 1.0)(None))
    await asyncio.sleep(1.5)
    waits.cancel()
    error = await error_of(waits)
    assert isinstance(error, asyncio.CancelledError)
    context = error.__context__
    assert isinstance(context, Broken)
    assert context.__notes__ == ["hedged: another call raised Broken('in the end')"]


@virtual_clock
async def test_what_the_others_raise_after_a_success_is_nobodys() -> None:
    async def spiteful(ctx: list[int]) -> str:
        ctx.append(1)
        if len(ctx) == 2:
            return "wins"
        try:
            await forever()
        except asyncio.CancelledError:
            raise Broken from None

    assert await run(hedged(spiteful, 1.0), []) == "wins"


async def test_a_call_that_fails_after_the_caller_was_cancelled_is_the_last_one() -> None:
    goes_on = asyncio.Event()
    started: list[int] = []

    async def fail(ctx: Any) -> None:
        started.append(1)
        await goes_on.wait()
        raise Broken

    waits = asyncio.ensure_future(hedged(fail, 60)(None))
    await until(lambda: started)
    goes_on.set()  # the call is about to go on, and to fail
    waits.cancel()
    assert isinstance(await error_of(waits), asyncio.CancelledError)
    assert len(started) == 1


@pytest.mark.parametrize("begun", [True, False], ids=["begun", "before its first step"])
async def test_a_call_that_others_cancel_has_failed(begun: bool) -> None:
    calls = Calls(60, 0) if begun else Calls(0, 0)
    waits = asyncio.ensure_future(hedged(calls, 60)(None))

    def its_calls() -> list[asyncio.Task[Any]]:
        return [each for each in asyncio.all_tasks() if each.get_name() == "hedged:Calls"]

    if begun:
        await until(lambda: calls.started)
    else:
        await until(its_calls)  # which on some loops begin at once
    (call,) = its_calls()
    call.cancel()
    assert await waits == calls.started - 1


async def test_all_calls_are_cancelled_by_others() -> None:
    def cancel_it(ctx: Any) -> Any:
        current().cancel()
        return asyncio.sleep(0)

    error = await failure_of(solo(hedged(cancel_it, 60, attempts=3)))
    assert "was cancelled, but not by its run" in str(error.exceptions[0])


async def test_a_coroutine_that_is_closed_cancels_its_calls() -> None:
    calls = Calls(60)
    coroutine = hedged(calls, 60)(None)
    waits = asyncio.ensure_future(coroutine)
    await until(lambda: calls.started)
    coroutine.close()
    await until(lambda: calls.events[-1][1] == "0 cancelled")
    assert isinstance(await error_of(waits), RuntimeError)  # asyncio's own, of a closed coroutine


# What is no Exception.


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit, BaseException])
@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "suspended"])
async def test_what_is_no_exception_is_raised_by_the_run(
    kind: type[BaseException], at_once: bool
) -> None:
    error = kind("A")
    cleaned_up: list[bool] = []
    started: list[int] = []

    async def fail(ctx: Any) -> None:
        started.append(1)
        if len(started) == 1:
            try:
                await forever()
            finally:
                started.append(-1)
        if not at_once:
            await asyncio.sleep(0)
        raise error

    async def clean_up(ctx: Any) -> None:
        cleaned_up.append(-1 in started)

    processor = solo(hedged(fail, 0), post=clean_up)
    caught = await error_of(processor.process_tasks(None))
    assert caught is error
    assert cleaned_up == [True]


async def test_what_is_no_exception_comes_before_a_success() -> None:
    async def interrupts(ctx: list[int]) -> str:
        ctx.append(1)
        if len(ctx) == 2:
            return "wins"
        try:
            await forever()
        finally:
            raise KeyboardInterrupt

    assert isinstance(await error_of(hedged(interrupts, 0)([])), KeyboardInterrupt)


# What a call may rely on.


async def test_each_call_has_a_task_of_its_own() -> None:
    seen: list[asyncio.Task[Any]] = [current()]

    async def look(ctx: Any) -> None:
        seen.append(current())
        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            group.create_task(passes(1))
        assert current() is seen[-1]
        seen.append(current())
        raise Broken

    await failure_of(solo(hedged(look, 60)))
    assert len({*seen}) == 3
    assert all(type(each) is asyncio.Task for each in seen)
    assert seen[1].get_name().endswith(".look")
    assert seen[1].get_name().startswith("hedged:")


async def test_context_variables() -> None:
    seen: list[str] = []

    async def look(ctx: Any) -> None:
        seen.append(var.get())
        var.set("of a call")
        await asyncio.sleep(0)
        raise Broken

    async def around(ctx: Any) -> None:
        var.set("of the function")
        await error_of(hedged(look, 60, attempts=3)(ctx))
        seen.append(var.get())

    await solo(around).process_tasks(None)
    assert seen == ["of the function"] * 4


@virtual_clock
async def test_context_variables_of_a_call_that_starts_later() -> None:
    seen: list[str] = []

    async def look(ctx: Any) -> None:
        seen.append(var.get())
        var.set("of a call")
        await asyncio.sleep(5)

    token = var.set("of the caller")
    try:
        await hedged(look, 1.0, attempts=3)(None)
    finally:
        var.reset(token)
    assert seen == ["of the caller"] * 3


async def test_the_context_is_the_very_object() -> None:
    seen: list[Any] = []

    async def look(ctx: Any) -> None:
        seen.append(ctx)

    ctx = object()
    await run(hedged(look, 1), ctx)
    assert seen == [ctx]


async def test_a_function_that_returns_a_future() -> None:
    def soon(ctx: str) -> asyncio.Future[str]:
        future = asyncio.get_running_loop().create_future()
        future.get_loop().call_soon(future.set_result, ctx)
        return future

    assert await run(hedged(soon, 60), "value") == "value"


async def test_a_function_that_returns_nothing_awaitable() -> None:
    def plain(ctx: Any) -> int:
        return 5

    error = (await failure_of(solo(hedged(plain, 60)))).exceptions[0]
    assert isinstance(error, TypeError)
    assert "hedged takes an async function" in str(error)
    assert "plain" in str(error)
    assert "returned 5" in str(error)


async def test_hedged_in_hedged() -> None:
    calls = Calls((0, Broken()), (0, Broken()), (0, Broken()), 0)
    assert await run(hedged(hedged(calls, 60), 60)) == 3


async def test_many_calls_that_fail_at_once() -> None:
    calls = Calls(*[(None, Broken())] * 2000, 0)
    assert await hedged(calls, 60, attempts=2001)(None) == 2000


@pytest.mark.loop_kinds("asyncio")
async def test_a_task_factory_that_fails() -> None:
    loop = asyncio.get_running_loop()
    failures: list[Any] = [Broken("first"), None, Broken("third")]

    def factory(loop: Any, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
        if failures and (failure := failures.pop(0)) is not None:
            raise failure
        return asyncio.Task(coroutine, loop=loop, **options)

    loop.set_task_factory(factory)
    calls = Calls((0, Broken("second")), 0)
    try:
        error = await error_of(hedged(calls, 60, attempts=3)(None))
    finally:
        loop.set_task_factory(None)
    assert str(error) == "first"
    assert error is not None
    assert len(error.__notes__) == 2


def test_outside_of_a_run() -> None:
    async def answer(ctx: int) -> int:
        await asyncio.sleep(0)
        return ctx + 1

    assert asyncio.run(hedged(answer, 60)(1)) == 2


# What is left.


class Failure(Exception):
    """Notes when it is gone."""

    def __init__(self, gone: list[Any]) -> None:
        gone.append(weakref.ref(self))


class Answer:
    """Does the same."""

    def __init__(self, gone: list[Any]) -> None:
        gone.append(weakref.ref(self))


@counts_references
@pytest.mark.parametrize("fails", [False, True])
async def test_no_reference_cycles(fails: bool) -> None:
    gone: list[Any] = []

    async def call(ctx: Any) -> Any:
        await asyncio.sleep(0)
        if fails or len(gone) < 2:
            raise Failure(gone)
        return Answer(gone)

    with without_collector():
        with suppress(Failure):
            await hedged(call, 60, attempts=3)(None)
        await passes(2)
        assert [each() for each in gone] == [None] * 3


@counts_references
@virtual_clock
async def test_no_reference_cycles_after_a_cancellation() -> None:
    gone: list[Any] = []

    async def call(ctx: Any) -> None:
        try:
            await forever()
        except asyncio.CancelledError:
            raise Failure(gone) from None

    with without_collector():
        waits = asyncio.ensure_future(hedged(call, 1.0)(None))
        await asyncio.sleep(1.5)
        waits.cancel()
        with suppress(asyncio.CancelledError):
            await waits
        del waits
        await passes(2)
        assert [each() for each in gone] == [None, None]


# Making one.


async def picklable(ctx: int) -> int:
    await asyncio.sleep(0)
    return ctx


async def test_picklable_when_the_function_is() -> None:
    function = task_func(hedged(picklable, 0.5, attempts=3), timeout=60)
    again = pickle.loads(pickle.dumps(function))
    assert again == function
    assert hash(again) == hash(function)
    assert (await solo(again).process_tasks(7))["A"].pre_execute.value == 7


def test_how_it_is_shown() -> None:
    assert repr(hedged(len, 0.5)) == (  # type: ignore[arg-type]
        "_Hedged(function=<built-in function len>, delay=0.5, attempts=2)"
    )


async def generator(ctx: Any) -> Any:
    yield ctx


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((5, 1.0), TypeError, r"hedged: function must be callable with the context, got 5"),
        ((TaskFunction(nothing), 1.0), TypeError, r"must be callable with the context, got TaskF"),
        ((generator, 1.0), TypeError, r"must be an async function without 'yield', got <function"),
        ((nothing, -1), ValueError, r"hedged: delay must be finite and not negative, got -1"),
        ((nothing, float("nan")), ValueError, r"hedged: delay must be finite .*, got nan"),
        ((nothing, "1"), TypeError, r"hedged: delay must be a number, got '1'"),
        ((nothing, None), TypeError, r"hedged: delay must be a number, got None"),
        ((nothing, 1, 0), ValueError, r"hedged: attempts must be at least 1, got 0"),
        ((nothing, 1, 1.5), TypeError, r"hedged: attempts must be an integer"),
        ((nothing, 1, True), TypeError, r"hedged: attempts must be an integer"),
        ((nothing, 1, None), TypeError, r"hedged: attempts must be an integer, got None"),
    ],
)
def test_what_is_refused(arguments: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        hedged(*arguments)
