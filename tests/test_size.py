"""Large processors, and nothing left after any run."""

from __future__ import annotations

import asyncio
import gc
import sys
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from helpers import (
    PHASES,
    Trace,
    amount,
    build,
    can_freeze,
    counts_references,
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
from sdax import AsyncTask, AsyncTaskProcessor, RetryableException, SdaxExecutionError, TaskFunction

pytestmark = pytest.mark.undisturbed

MANY = amount(10_000, 100_000)

one_loop = pytest.mark.loop_kinds("asyncio")
with_factory_too = pytest.mark.loop_kinds("asyncio", "factory")


async def count(ctx: list[int]) -> None:
    ctx[0] += 1


async def suspend_and_count(ctx: list[int]) -> None:
    await asyncio.sleep(0)
    ctx[0] += 1


def large(function: Any, number: int, levels: int, phases: int = 1) -> Any:
    """A processor of so many tasks, dealt out to the levels."""
    builder = AsyncTaskProcessor.builder()
    task_function = TaskFunction(function)
    for index in range(number):
        builder.add_task(AsyncTask(index, *[task_function] * phases), index % levels)
    return builder.build()


@pytest.fixture
def low_recursion_limit() -> Iterator[None]:
    """Leave little room for recursion of any kind."""
    limit = sys.getrecursionlimit()
    depth = 0
    frame: Any = sys._getframe()
    while frame is not None:
        depth += 1
        frame = frame.f_back
    sys.setrecursionlimit(depth + 150)
    yield
    sys.setrecursionlimit(limit)


@one_loop
@pytest.mark.parametrize("function", [count, suspend_and_count], ids=["at once", "suspended"])
@pytest.mark.parametrize("levels", [1, MANY], ids=["one level", "levels of one"])
async def test_many_tasks(function: Any, levels: int, low_recursion_limit: None) -> None:
    counter = [0]
    report = await large(function, MANY, levels).process_tasks(counter)
    assert counter == [MANY]
    assert len(report) == MANY


@with_factory_too
@pytest.mark.parametrize("function", [count, suspend_and_count], ids=["at once", "suspended"])
@pytest.mark.parametrize("levels", [1, 2000], ids=["one level", "levels of one"])
async def test_all_phases_of_many_tasks(
    function: Any, levels: int, low_recursion_limit: None
) -> None:
    counter = [0]
    await large(function, 2000, levels, 3).process_tasks(counter)
    assert counter == [6000]


@with_factory_too
@pytest.mark.parametrize("levels", [1, 2000], ids=["one level", "levels of one"])
async def test_many_failures(levels: int, low_recursion_limit: None) -> None:
    builder = AsyncTaskProcessor.builder()
    cleanup = TaskFunction(Trace().failing("", ValueError()))
    for index in range(2000):
        builder.add_task(AsyncTask(index, None, None, cleanup), index % levels)
    with pytest.raises(SdaxExecutionError) as caught:
        await builder.build().process_tasks(None)
    assert len(caught.value.exceptions) == 2000
    assert len(caught.value.failures) == 2000


@one_loop
async def test_many_suspended_functions_are_cancelled(low_recursion_limit: None) -> None:
    run = spawn(large(forever, 5000, 1))
    await passes(3)
    assert len(asyncio.all_tasks()) > 5000
    run.cancel()
    assert isinstance(await error_of(run), asyncio.CancelledError)


@one_loop
async def test_many_attempts(low_recursion_limit: None) -> None:
    calls = [0]

    async def flaky(ctx: Any) -> None:
        calls[0] += 1
        if calls[0] <= 5000:
            raise RetryableException

    await solo(TaskFunction(flaky, retries=5000, initial_delay=0)).process_tasks(None)
    assert calls == [5001]


@pytest.mark.virtual_clock
@one_loop
async def test_many_timeouts(low_recursion_limit: None) -> None:
    builder = AsyncTaskProcessor.builder()
    for index in range(2000):
        builder.add_task(AsyncTask(index, post_execute=TaskFunction(forever, timeout=index % 7)), 1)
    with pytest.raises(SdaxExecutionError) as caught:
        await builder.build().process_tasks(None)
    assert len(caught.value.exceptions) == 2000
    assert asyncio.get_running_loop().time() == 6


@one_loop
async def test_memory_of_suspended_functions() -> None:
    """No more than an asyncio.Task and 1 KiB for each."""
    tracemalloc = pytest.importorskip("tracemalloc")
    number = 5000
    processor = large(forever, number, 1)

    async def measure(start: Any) -> int:
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        started = start()
        await passes(3)
        used = tracemalloc.get_traced_memory()[0] - before
        for each in started:
            each.cancel()
        await asyncio.wait(started)
        return used

    tracemalloc.start()
    try:
        raw = await measure(lambda: [asyncio.create_task(forever()) for _ in range(number)])
        ours = await measure(lambda: [spawn(processor)])
    finally:
        tracemalloc.stop()
    # `raw` has an asyncio.Task and a suspended coroutine for each, so this asks for more.
    assert ours <= raw + number * 1024


@one_loop
async def test_memory_of_a_run_that_waits(engine: Any) -> None:
    """Beyond the function that it waits in, a run of 7 tasks takes less than 1 KiB, and a fifth
    more on the Python engine."""
    tracemalloc = pytest.importorskip("tracemalloc")
    number = 1000
    builder = AsyncTaskProcessor.builder()
    builder.add_task(AsyncTask("waits", execute=TaskFunction(forever)), 0)
    for index in range(6):
        builder.add_task(AsyncTask(index, execute=TaskFunction(nothing)), 0)
    processor = builder.build()
    many = large(forever, number, 1)

    async def measure(start: Any) -> int:
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        runs = start()
        for run in runs:
            run.send(None)
        used = tracemalloc.get_traced_memory()[0] - before
        for run in runs:
            run.close()
        await passes(3)
        return used

    tracemalloc.start()
    try:
        functions = await measure(lambda: [many.process_tasks(None)])
        runs = await measure(lambda: [processor.process_tasks(None) for _ in range(number)])
    finally:
        tracemalloc.stop()
    assert runs - functions < number * {"compiled": 1024, "python": 1229}[engine.name]


@one_loop
@pytest.mark.parametrize("at_once", [True, False], ids=["one level", "levels of one"])
async def test_memory_is_linear(at_once: bool) -> None:
    tracemalloc = pytest.importorskip("tracemalloc")
    peaks = []
    for number in (2000, 4000, 8000):
        processor = large(suspend_and_count, number, 1 if at_once else number)
        tracemalloc.start()
        try:
            await processor.process_tasks([0])
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    tables = 2**18  # asyncio's own, of all tasks and of what is ready, which grow by leaps
    assert peaks[1] < 2.5 * peaks[0] + tables
    assert peaks[2] < 2.5 * peaks[1] + tables


# Nothing left: every path through a run, with the garbage collector switched off


class Context:
    """The context of a run whose end is watched."""


class Broken(Exception):
    """It takes along whatever its traceback leads to."""


async def fail(ctx: Any) -> None:
    raise Broken


async def fail_late(ctx: Any) -> None:
    await asyncio.sleep(0)
    raise Broken


async def interrupt(ctx: Any) -> None:
    raise KeyboardInterrupt


async def interrupt_late(ctx: Any) -> None:
    await asyncio.sleep(0)
    raise KeyboardInterrupt


async def cancel_itself(ctx: Any) -> None:
    asyncio.current_task().cancel()  # type: ignore[union-attr]
    await forever()


async def spite(ctx: Any) -> None:
    try:
        await forever()
    finally:
        raise Broken


async def pause(ctx: Any) -> None:
    await asyncio.sleep(0)


def not_awaitable(ctx: Any) -> Any:
    return 5


def retried_once() -> TaskFunction[Any]:
    calls: list[int] = []

    async def flaky(ctx: Any) -> None:
        calls.append(1)
        await asyncio.sleep(0)
        if len(calls) < 2:
            raise RetryableException

    return TaskFunction(flaky, retries=1, initial_delay=0)


def always_retried(delay: float) -> TaskFunction[Any]:
    async def flaky(ctx: Any) -> None:
        raise RetryableException

    return TaskFunction(flaky, retries=2, initial_delay=delay)


PATHS: dict[str, Any] = {
    "success": nothing,
    "suspended": pause,
    "value": Trace().quick("", "value"),
    "in time": TaskFunction(pause, timeout=60),
    "failure": fail,
    "late failure": fail_late,
    "not awaitable": not_awaitable,
    "KeyboardInterrupt": interrupt,
    "late KeyboardInterrupt": interrupt_late,
    "cancels itself": cancel_itself,
    "timeout": TaskFunction(forever, timeout=0),
    "real timeout": TaskFunction(forever, timeout=0.001),
    "answered timeout": TaskFunction(spite, timeout=0),
    "retried": retried_once(),
    "retries used up": always_retried(0),
    "failure with limits": TaskFunction(fail_late, timeout=60, retries=1),
}


class Left(list[Any]):
    """What only the garbage collector can take away."""

    def __enter__(self) -> Left:
        gc.disable()
        if can_freeze():
            gc.freeze()  # what there was before is none of our business, and slow to look through
        gc.set_debug(gc.DEBUG_SAVEALL)
        return self

    def __exit__(self, *_: object) -> None:
        try:
            gc.collect()
            self.extend(map(type, gc.garbage))
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()


@counts_references
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("path", PATHS)
async def test_nothing_is_left(phase: str, path: str) -> None:
    processor = build(
        [task("low", nothing, nothing, nothing)],
        [
            task_in(phase, pause, name="before"),
            task_in(phase, PATHS[path]),
            task_in(phase, pause, name="after"),
        ],
    )
    with Left() as left:
        ctx = Context()
        gone = weakref.ref(ctx)
        # The error is looked at and dropped, as a caller would.
        raised = type(await error_of(processor.process_tasks(ctx)))
        del ctx
        await passes(3)
        assert gone() is None
    assert left == []
    succeeds = path in ("success", "suspended", "value", "in time", "retried")
    assert (raised is type(None)) is succeeds


# Not with asyncio's eager task factory: whatever raises in the first step of an asyncio.Task that
# it makes leads, by the frames, to the local variable of create_task() that has the asyncio.Task.
@pytest.mark.loop_kinds("asyncio", "debug", "factory", "uvloop")
@counts_references
async def test_nothing_is_left_of_a_failure_in_an_asyncio_task_of_its_own() -> None:
    processor = build([task("A", fail, nothing)], [task("B", fail_late)])
    with Left() as left:
        run = spawn(processor)
        with pytest.raises(SdaxExecutionError):
            await run
        del run
        await passes(2)
    assert left == []


@counts_references
async def test_nothing_is_left_of_an_error_with_a_traceback() -> None:
    processor = solo(fail_late, post=fail)
    with Left() as left:
        errors = []
        with pytest.raises(SdaxExecutionError):
            await processor.process_tasks(None)
        try:
            await processor.process_tasks(None)
        except SdaxExecutionError as error:
            errors.append(weakref.ref(error.exceptions[0]))
        await asyncio.sleep(0)
        assert errors[0]() is None
    assert left == []


@counts_references
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("path", ["waiting", "spite", "waiting with limits", "between attempts"])
async def test_nothing_is_left_of_a_cancelled_run(
    phase: str, path: str, loop_errors: list[Any]
) -> None:
    functions: dict[str, Any] = {
        "waiting": forever,
        "spite": spite,
        "waiting with limits": TaskFunction(forever, timeout=60, retries=1),
        "between attempts": always_retried(60),
    }
    function = functions[path]
    if phase == "post_execute":
        function = TaskFunction(forever, timeout=0.001)  # or it would never end
    processor = build([task_in(phase, function), task("B", nothing, nothing, pause)])
    with Left() as left:
        ctx = Context()
        gone = weakref.ref(ctx)
        run = spawn(processor, ctx)
        await passes(3)
        run.cancel()
        assert isinstance(await error_of(run), asyncio.CancelledError)
        loop_errors.clear()
        del run, ctx
        await passes(3)
        assert gone() is None
    assert left == []


@counts_references
async def test_nothing_is_left_of_a_closed_caller() -> None:
    processor = solo(forever, post=pause)
    with Left() as left:
        ctx = Context()
        gone = weakref.ref(ctx)
        coroutine = processor.process_tasks(ctx)
        coroutine.send(None)
        await passes(2)
        coroutine.close()
        del coroutine, ctx
        await until(lambda: gone() is None)
    assert left == []


@counts_references
async def test_nothing_is_left_of_a_function_that_was_never_called() -> None:
    with Left() as left:
        await error_of(build([task("A", fail), task("B", nothing)]).process_tasks(None))
        await passes(2)
    assert left == []


@counts_references
@pytest.mark.loop_kinds("asyncio", "debug", "eager")
async def test_runs_that_never_suspend_pile_nothing_up() -> None:
    """Whoever runs one after another without suspending gives the loop no chance to clear up."""
    seen: list[weakref.ref[Any]] = []

    async def look(ctx: None) -> None:
        seen.append(weakref.ref(asyncio.current_task()))

    processor = solo(execute=look)
    for _ in range(10):
        await processor.process_tasks(None)
    assert [task() for task in seen] == [None] * 10


@counts_references
async def test_a_processor_is_no_cycle() -> None:
    with Left() as left:
        processor = build([task("A", nothing, pause, nothing)], [task("B", nothing)])
        gone = [weakref.ref(processor)] if hasattr(processor, "__weakref__") else []
        await processor.process_tasks(None)
        del processor
        await asyncio.sleep(0)
        assert all(each() is None for each in gone)
    assert left == []


@counts_references
async def test_objects_do_not_add_up() -> None:
    processor = build(
        [task("A", nothing, pause, nothing), task("B", TaskFunction(pause, timeout=60, retries=1))]
    )

    async def run(number: int) -> int:
        for _ in range(number):
            await processor.process_tasks(None)
        await passes(3)
        gc.collect()
        return len(gc.get_objects())

    await run(50)
    before = await run(5)
    assert await run(100) - before < 50


@pytest.mark.parametrize(
    ("is_free_threaded", "version", "can"),
    [
        (None, (3, 11, 0), True),
        (0, (3, 13, 0), True),
        (1, (3, 13, 0), False),
        (1, (3, 13, 1), True),
    ],
)
def test_no_freezing_where_that_crashes(
    is_free_threaded: int | None, version: Any, can: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sysconfig.get_config_var", {"Py_GIL_DISABLED": is_free_threaded}.get)
    monkeypatch.setattr(sys, "version_info", version)
    assert can_freeze() == (can and hasattr(gc, "freeze"))
