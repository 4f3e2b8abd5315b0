"""Resources in runs of every kind: phase by phase, observed, of many at once, and ended early."""

from __future__ import annotations

import asyncio
import gc
import inspect
import sys
import weakref
from collections.abc import AsyncIterator
from contextlib import suppress
from itertools import product
from typing import Any

import pytest

from helpers import (
    Broken,
    Trace,
    amount,
    build,
    counts_references,
    current,
    error_of,
    failure_of,
    forever,
    nothing,
    passes,
    soon_or_late,
    spawn,
    task,
    until,
    without_collector,
)
from observing import OUTLINE, Recorder, broken_rules, called, in_phase, run_of
from sdax import (
    AsyncDagTaskProcessor,
    AsyncTaskProcessor,
    Done,
    Finish,
    PhaseId,
    SdaxExecutionError,
    State,
    resource,
)

MANY = amount(2_000, 10_000)

# --- phase by phase


@soon_or_late
async def test_phase_by_phase(number: int) -> None:
    trace = Trace()
    processor = build([resource("R", trace.holding("R", number), execute=trace.quick("x"))])
    async with processor.open(None) as run:
        await run.run_next()
        assert trace == ["R up"]
        assert any(each.get_name() == "sdax:R:resource" for each in asyncio.all_tasks())
        await run.run_next()
        await passes(3)
        assert trace == ["R up", "x"]
        await run.run_next()
        assert trace == ["R up", "x", "R ok", "R down"]


async def test_the_block_is_left_early() -> None:
    trace = Trace()
    processor = build([resource("R", trace.holding("R", 1), execute=trace.quick("x"))])
    async with processor.open(None) as run:
        await run.run_next()
    assert trace == ["R up", "R ok", "R down"]


@pytest.mark.parametrize("kind", [Broken, KeyboardInterrupt, asyncio.CancelledError])
async def test_the_block_is_left_by_an_exception(kind: type[BaseException]) -> None:
    trace = Trace()
    processor = build([resource("R", trace.holding("R", 1))])
    with pytest.raises(kind):
        async with processor.open(None) as run:
            await run.run_next()
            raise kind
    assert trace == ["R up", "R CancelledError", "R down"]


async def test_it_breaks_between_two_phases() -> None:
    trace = Trace()

    async def held(ctx: Any) -> AsyncIterator[None]:
        ctx["own"] = current()
        yield

    ctx: dict[str, Any] = {}
    processor = build([resource("R", held)], [trace.task("A")])
    with pytest.raises(SdaxExecutionError):
        async with processor.open(ctx) as run:
            await run.run_next()
            assert not run.has_failures()
            ctx["own"].cancel()
            await passes(3)
            assert run.has_failures()
            assert run.next_phase_id() is PhaseId.POST_EXEC
            await run.run_next()
    assert trace == ["A.pre", "A.post"]


async def test_it_breaks_before_the_cleanup() -> None:
    trace = Trace()

    async def held(ctx: Any) -> AsyncIterator[None]:
        ctx["own"] = current()
        yield

    ctx: dict[str, Any] = {}
    processor = build([resource("R", held)], [trace.task("A")])
    with pytest.raises(SdaxExecutionError):
        async with processor.open(ctx) as run:
            await run.run_next()
            await run.run_next()
            ctx["own"].cancel()
            await passes(3)
            assert await run.run_next() is False
    assert trace == ["A.pre", "A.execute", "A.post"]


async def test_a_resource_may_not_close_its_run() -> None:
    ctx: dict[str, Any] = {}

    async def held(ctx: Any) -> AsyncIterator[None]:
        yield
        with pytest.raises(RuntimeError, match="called by a function of this run"):
            await ctx["run"].aclose()

    async with build([resource("R", held)]).open(ctx) as run:
        ctx["run"] = run
        while await run.run_next():
            pass


# --- observers, reports and pictures


@soon_or_late
async def test_observers_hear_of_two_functions(number: int) -> None:
    events = Recorder()
    await build([resource("R", Trace().holding("R", number), execute=nothing)]).process_tasks(
        None, observer=events
    )
    assert broken_rules(events) == []
    steps = ("suspended", "resumed") * number
    assert events.lines() == run_of(
        *in_phase("pre", *called("R.pre", "succeeded", *steps)),
        *in_phase("execute", *called("R.execute")),
        *in_phase("post", *called("R.post", "succeeded", *steps)),
    )


@soon_or_late
async def test_observers_hear_of_a_set_up_that_fails(number: int) -> None:
    async def held(ctx: Any) -> AsyncIterator[None]:
        await passes(number)
        raise Broken
        yield

    events = Recorder()
    run = build([resource("R", held)], [task("A", nothing)]).process_tasks(None, observer=events)
    assert await error_of(run) is not None
    assert broken_rules(events) == []
    assert events.lines(*OUTLINE)[-2:] == [
        "A.pre skipped because of R.pre",
        "R.post skipped because of R.pre",
    ]


@soon_or_late
async def test_observers_hear_of_one_that_breaks(number: int) -> None:
    async def held(ctx: Any) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await passes(number)

    async def cancel_it(ctx: Any) -> None:
        (own,) = (each for each in asyncio.all_tasks() if each.get_name() == "sdax:R:resource")
        own.cancel()
        await forever()

    events = Recorder()
    run = build([resource("R", held)], [task("A", None, cancel_it, nothing)])
    assert await error_of(run.process_tasks(None, observer=events)) is not None
    assert broken_rules(events) == []
    assert events.lines(*OUTLINE)[1:] == [
        "R.post failed after 1 TaskCancelledError",
        "execute cancelled because of R.post",
        "A.execute cancelled after 1 because of R.post",
        "A.post succeeded after 1",
    ]


@pytest.mark.virtual_clock
async def test_a_cleanup_that_takes_too_long_is_observed_too() -> None:
    async def held(ctx: Any) -> AsyncIterator[None]:
        yield
        await forever()

    events = Recorder()
    run = build([resource("R", held, cleanup_timeout=1.0)])
    await error_of(run.process_tasks(None, observer=events))
    assert broken_rules(events) == []
    assert "R.post timed out after 1 TimeoutError" in events.lines(*OUTLINE)[-1]


def test_outlines_and_diagrams_show_both_halves(engine: Any) -> None:
    made: Any = resource(
        "R", Trace().holding("R"), execute=nothing, timeout=2.0, retries=3, cleanup_timeout=5.0
    )
    shown = "pre_execute (timeout 2 s, 3 retries), execute, post_execute (timeout 5 s)"
    for processor in (build([made]), AsyncDagTaskProcessor.builder().add_task(made).build()):
        assert shown in str(processor)
        assert "pre_execute (timeout 2 s, 3 retries), execute" in processor.to_mermaid()


# --- replaced


async def test_replaced_by_another_resource() -> None:
    trace = Trace()
    processor = build([resource("R", trace.holding("R"), execute=trace.quick("x"), timeout=60.0)])
    replaced = processor.replaced({"R": trace.holding("S", 0, 5)})
    report = await replaced.process_tasks(None)
    assert trace == ["S up", "x", "S ok", "S down"]
    assert report["R"].pre_execute.value == 5
    made = replaced.levels[1][0]
    assert made.pre_execute is not None
    assert made.pre_execute.timeout == 60.0
    assert replaced == build(
        [resource("R", trace.holding("S"), execute=made.execute, timeout=60.0)]
    ).replaced({"R": made})


async def test_replaced_by_nothing() -> None:
    trace = Trace()
    processor = build([resource("R", trace.holding("R"))])
    report = await processor.replaced({"R": Done(5)}).process_tasks(None)
    assert trace == []
    assert report["R"].pre_execute.value == 5
    report = await processor.replaced({"R": resource("R", trace.holding("S"))}).process_tasks(None)
    assert trace == ["S up", "S ok", "S down"]


async def test_its_execute_may_be_replaced_alone() -> None:
    trace = Trace()
    processor = build([resource("R", trace.holding("R"), execute=trace.quick("x"))])
    await processor.replaced({"R": {"execute": trace.quick("y")}}).process_tasks(None)
    assert trace == ["R up", "y", "R ok", "R down"]
    with pytest.raises(ValueError, match="setup and cleanup of a resource belong together"):
        processor.replaced({"R": {"pre_execute": nothing}})
    with pytest.raises(TypeError, match="an async generator function that yields once"):
        processor.replaced({"R": nothing})


# --- many, and nothing left


async def test_many_at_once() -> None:
    trace = Trace()
    held_at_once = 0

    async def held(ctx: Any) -> AsyncIterator[None]:
        yield
        trace.append("down")

    async def look(ctx: Any) -> None:
        nonlocal held_at_once
        held_at_once = sum("resource" in each.get_name() for each in asyncio.all_tasks())

    builder = AsyncTaskProcessor.builder()
    for number in range(MANY):
        builder.add_task(resource(number, held), 1)
    builder.add_task(task("look", None, look), 2)
    report = await builder.build().process_tasks(None)
    assert held_at_once == MANY
    assert len(trace) == MANY
    assert report.ok


async def test_thousands_of_levels() -> None:
    trace = Trace()
    builder = AsyncTaskProcessor.builder()
    for number in range(MANY // 5):
        builder.add_task(resource(number, trace.holding(str(number))), number)
    await builder.build().process_tasks(None)
    assert trace[: MANY // 5] == [f"{number} up" for number in range(MANY // 5)]
    assert trace[MANY // 5 :: 2] == [f"{number} ok" for number in reversed(range(MANY // 5))]


@counts_references
@soon_or_late
async def test_nothing_is_left_of_it(number: int) -> None:
    alive: weakref.WeakSet[Kept] = weakref.WeakSet()

    class Kept:
        def __init__(self) -> None:
            alive.add(self)

    async def held(ctx: Any) -> AsyncIterator[Kept]:
        kept = Kept()
        await passes(number)
        try:
            yield kept
        finally:
            await passes(number)

    trace = Trace()

    def failing(kind: type[BaseException]) -> Any:
        async def fail(ctx: Any) -> None:
            await passes(number)
            raise kind

        return fail

    async def failing_later(ctx: Any) -> AsyncIterator[Kept]:
        async for each in held(ctx):
            yield each
        raise Broken

    async def failing_first(ctx: Any) -> AsyncIterator[Kept]:
        async for _ in held(ctx):
            raise Broken
        yield Kept()

    async def yielding_again(ctx: Any) -> AsyncIterator[Kept]:
        async for each in held(ctx):
            yield each
        yield Kept()

    async def breaking(ctx: Any) -> AsyncIterator[Kept]:
        asyncio.get_running_loop().call_soon(current().cancel)
        async for each in held(ctx):
            yield each

    async def finishing(ctx: Any) -> Any:
        await passes(number)
        return Finish(None)

    last = (nothing, failing(Broken), failing(KeyboardInterrupt), finishing)
    endings = [(held, execute) for execute in last]
    for function in (failing_first, failing_later, yielding_again):
        endings += [(function, nothing), (function, failing(Broken))]
    endings.append((breaking, trace.waiting("X")))
    with without_collector():
        for function, execute in endings:
            limits: Any = {"retries": 1, "retryable_exceptions": Broken, "initial_delay": 0}
            processor = build([resource("R", function, **limits)], [task("A", None, execute)])
            await error_of(processor.process_tasks(None))
            await passes(2)
            assert not alive, (function, execute)
        run = spawn(build([resource("R", held)], [task("A", None, trace.waiting("A"))]))
        await until(lambda: "A" in trace)
        run.cancel()
        await error_of(run)
        del run
        await passes(2)
        assert not alive
        assert gc.collect() == 0


async def test_tracebacks_show_the_users_code_alone() -> None:
    broken = Broken()
    told: list[list[str]] = []

    async def held(ctx: Any) -> AsyncIterator[None]:
        try:
            yield
        except SdaxExecutionError as error:
            raise broken from error

    async def never(ctx: Any) -> AsyncIterator[None]:
        raise broken
        yield

    class Manager:
        def __init__(self, ctx: Any) -> None:
            self.ctx = ctx

        async def __aenter__(self) -> None:
            if self.ctx == "never":
                raise broken

        async def __aexit__(self, kind: Any, error: Any, traceback: Any) -> None:
            told.extend(files(each) for each in (traceback, error.__traceback__))
            told.append(files(sys.exc_info()[2]))
            raise broken from error

    def files(traceback: Any) -> list[str]:
        found = []
        while traceback is not None:
            found.append(traceback.tb_frame.f_code.co_filename)
            traceback = traceback.tb_next
        return found

    for function, seen in ((held, [__file__]), (Manager, [])):
        processor = build([resource("R", function, execute=Trace().failing("x", Broken()))])
        await failure_of(processor)
        assert files(broken.__traceback__) == [__file__]
        assert isinstance(broken.__cause__, SdaxExecutionError)
        assert broken.__context__ is broken.__cause__
        assert files(broken.__cause__.__traceback__) == seen
        broken.__traceback__ = None
    assert told == [[], [], []]
    for function in (never, Manager):
        await failure_of(build([resource("R", function)]), "never")
        assert files(broken.__traceback__) == [__file__]
        broken.__traceback__ = None


# --- the end of the loop, and other hands


@pytest.mark.parametrize("uv", [False, True], ids=["asyncio", "uvloop"])
def test_the_end_of_the_loop_leaves_it_until_its_turn(engine: Any, uv: bool) -> None:
    trace = Trace()
    processor = build(
        [resource("R", trace.holding("R", 2))],
        [task("A", None, trace.waiting("A"), trace.pausing("A.post", 3))],
    )

    async def server() -> None:
        trace.request = asyncio.ensure_future(processor.process_tasks(None))  # type: ignore[attr-defined]
        await until(lambda: "A" in trace)

    factory = None
    if uv:
        factory = pytest.importorskip("uvloop").new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(server())
    assert trace == [
        *("R up", "A", "A cancelled", "A.post", "A.post done"),
        *("R CancelledError", "R down"),
    ]


def test_the_end_of_the_loop_between_two_phases(engine: Any) -> None:
    trace = Trace()

    async def request() -> None:
        async with build([resource("R", trace.holding("R", 1))]).open(None) as run:
            await run.run_next()
            await forever()

    async def server() -> None:
        trace.request = asyncio.ensure_future(request())  # type: ignore[attr-defined]
        await until(lambda: "R up" in trace)
        await passes(5)

    asyncio.run(server())
    assert trace == ["R up", "R CancelledError", "R down"]


async def test_the_coroutine_of_the_run_is_closed(loop_errors: list[Any]) -> None:
    trace = Trace()
    processor = build([resource("R", trace.holding("R", 1))], [task("A", None, trace.waiting("A"))])
    run: Any = processor.process_tasks(None)
    run.send(None)
    await until(lambda: "A" in trace)
    run.close()
    await until(lambda: "R down" in trace)
    await passes(2)
    assert trace == ["R up", "A", "A cancelled", "R CancelledError", "R down"]


async def test_other_code_closes_its_coroutine_while_it_is_held() -> None:
    trace = Trace()

    async def held(ctx: Any) -> AsyncIterator[None]:
        try:
            yield
        finally:
            trace.append("down")

    async def close_it(ctx: Any) -> None:
        (own,) = (each for each in asyncio.all_tasks() if each.get_name() == "sdax:R:resource")
        own.get_coro().close()
        await forever()

    error = await failure_of(build([resource("R", held)], [task("A", None, close_it)]))
    assert len(error.exceptions) == 1
    assert trace == ["down"]
    assert error.report["R"].post_execute.state is State.FAILED


async def test_other_code_throws_into_its_coroutine_while_it_is_held() -> None:
    trace = Trace()

    async def throw(ctx: Any) -> None:
        (own,) = (each for each in asyncio.all_tasks() if each.get_name() == "sdax:R:resource")
        coroutine: Any = own.get_coro()
        with suppress(Broken):
            coroutine.throw(Broken())
        await forever()

    error = await failure_of(build([resource("R", trace.holding("R"))], [task("A", None, throw)]))
    assert [type(each) for each in error.exceptions] == [RuntimeError]
    assert trace == ["R up", "R Broken", "R down"]


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with 3.12")
@pytest.mark.loop_kinds("eager")
async def test_under_the_eager_factory() -> None:
    trace = Trace()
    await build([resource("R", trace.holding("R", 1))]).process_tasks(None)
    assert trace == ["R up", "R ok", "R down"]


@pytest.mark.loop_kinds("asyncio")
@pytest.mark.parametrize("wait", [0, 1])
async def test_a_factory_that_wraps_the_coroutine(wait: int) -> None:
    trace = Trace()

    def wrap(loop: Any, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
        async def await_it() -> Any:
            return await coroutine

        plain = inspect.iscoroutine(coroutine)
        return asyncio.Task(coroutine if plain else await_it(), loop=loop, **options)

    loop = asyncio.get_running_loop()
    loop.set_task_factory(wrap)
    try:
        processor = build([resource("R", trace.holding("R", wait))], [trace.task("A")])
        await processor.process_tasks(None)
        assert trace == ["R up", "A.pre", "A.execute", "A.post", "R ok", "R down"]
    finally:
        loop.set_task_factory(None)


@pytest.mark.loop_kinds("asyncio")
async def test_a_factory_whose_task_gives_up_while_it_is_held() -> None:
    trace = Trace()

    def wrap(loop: Any, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
        class Stepper:
            def __await__(self) -> Any:
                steps = coroutine.__await__()
                with suppress(StopIteration):
                    while True:
                        yield next(steps)  # and nothing that is thrown in gets there

        async def give_up() -> Any:
            try:
                await Stepper()
            finally:
                trace.append("gave up")

        plain = inspect.iscoroutine(coroutine)
        return asyncio.Task(coroutine if plain else give_up(), loop=loop, **options)

    loop = asyncio.get_running_loop()
    loop.set_task_factory(wrap)

    async def cancel_it(ctx: Any) -> None:
        (own,) = (each for each in asyncio.all_tasks() if each.get_name() == "sdax:R:resource")
        own.cancel()
        await forever()

    try:
        error = await failure_of(
            build([resource("R", trace.holding("R"))], [task("A", None, cancel_it)])
        )
        assert len(error.exceptions) == 1
        assert trace[:4] == ["R up", "gave up", "R GeneratorExit", "R down"]
    finally:
        loop.set_task_factory(None)


@counts_references
@soon_or_late
@pytest.mark.loop_kinds("asyncio", "factory")
@pytest.mark.every_loop
async def test_nothing_is_left_of_one_whose_coroutine_other_code_ends(number: int) -> None:
    async def held(ctx: Any) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await passes(number)

    def close(coroutine: Any) -> None:
        with suppress(RuntimeError):  # it awaits all the same
            coroutine.close()

    def throw(coroutine: Any) -> None:
        with suppress(Broken):
            coroutine.throw(Broken())

    async def disturb(end: Any) -> None:
        (own,) = (each for each in asyncio.all_tasks() if each.get_name().startswith("sdax:R:"))
        end(own.get_coro())

    # In the cleanup a task factory starts it later, and its turn has come before that.
    with without_collector():
        for end, phase in product((close, throw), ("execute", "post")):
            other = task("A", **{phase: disturb})
            run = spawn(build([other, resource("R", held)]), end)
            await asyncio.wait([run])
            assert run.exception()
            del run
            await passes(2)
            assert gc.collect() == 0, (end, phase)
