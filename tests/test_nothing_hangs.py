"""A run ends and cleans up, whatever is raised where it should not be."""

from __future__ import annotations

import asyncio
import sys
from functools import partial
from typing import Any, NoReturn

import pytest

from helpers import (
    Broken,
    Function,
    Trace,
    build,
    current,
    error_of,
    failure_of,
    graph,
    nothing,
    passes,
    soon_or_late,
    spawn,
    states,
    task,
    without_factory,
)
from sdax import AsyncTask, SdaxExecutionError, TaskFunction
from sdax.engine import outcome

asyncio_alone = pytest.mark.loop_kinds("asyncio")


class Stubborn(asyncio.Future[None]):
    """A future that cannot be cancelled."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def cancel(self, msg: Any = None) -> bool:
        raise self.error


@asyncio_alone
@pytest.mark.parametrize("error", [OSError("sent already"), SystemExit(3)], ids=repr)
async def test_a_future_that_cannot_be_cancelled(error: BaseException) -> None:
    trace = Trace()

    async def stubborn(ctx: Any) -> None:
        trace.append("stubborn")
        try:
            await Stubborn(error)
        finally:
            trace.append("stubborn ends")

    processor = build(
        [
            task("A", None, stubborn, trace.quick("A.post")),
            task("B", None, trace.waiting("B"), trace.quick("B.post")),
            task("C", None, trace.failing("C", Broken(), 1)),
        ]
    )
    assert await error_of(processor.process_tasks(None)) is error
    assert trace.count("stubborn ends") == trace.count("B cancelled") == 1
    assert trace[-2:] == ["A.post", "B.post"]
    assert isinstance(error.__context__, SdaxExecutionError)


@pytest.mark.virtual_clock
async def test_a_timeout_of_a_future_that_cannot_be_cancelled() -> None:
    trace = Trace()
    error = OSError("sent already")

    async def stubborn(ctx: Any) -> None:
        await Stubborn(error)

    processor = build([task("A", None, TaskFunction(stubborn, timeout=1.0), trace.quick("post"))])
    assert await error_of(processor.process_tasks(None)) is error
    assert trace == ["post"]


@pytest.mark.virtual_clock
async def test_a_cleanup_after_a_cancellation_that_waits_for_such_a_future() -> None:
    """The timeout of the cleanup wakes it up, and the run waits for its end."""
    trace = Trace()
    error = OSError("sent already")

    async def stubborn(ctx: Any) -> None:
        try:
            await Stubborn(error)
        except asyncio.CancelledError:
            trace.append("woken")
            await asyncio.sleep(1)
            trace.append("ends")
            raise

    post = TaskFunction(stubborn, timeout=1.0)
    processor = build([task("A", None, trace.waiting("A"), post)])
    run = spawn(processor)
    await passes(2)
    run.cancel()
    assert await error_of(run) is error
    assert trace == ["A", "A cancelled", "woken", "ends"]


@pytest.mark.parametrize("phase", ["execute", "post_execute"])
async def test_a_loop_handler_that_raises(phase: str, loop_errors: list[dict[str, Any]]) -> None:
    """A second fatal error is told to the handler, which may end the program for it."""
    trace = Trace()
    first, second = KeyboardInterrupt("first"), KeyboardInterrupt("second")
    handled = RuntimeError("out of the handler")

    def handler(loop: Any, context: Any) -> None:
        raise handled

    asyncio.get_running_loop().set_exception_handler(handler)
    processor = build(
        [
            AsyncTask("A", **{phase: TaskFunction(trace.failing("A", first, 1))}),
            AsyncTask("B", **{phase: TaskFunction(trace.failing("B", second, 1))}),
        ],
        [task("C", None, None, trace.quick("C.post"))],
    )
    assert await error_of(processor.process_tasks(None)) is first
    assert trace.count("C.post") == 1


class Unlimited(TaskFunction[Any]):
    """Limits whose delay cannot be computed."""

    __slots__ = ()

    def backoff(self, retry: int) -> float:
        return self.initial_delay / 0


class Nonsense(TaskFunction[Any]):
    """Limits whose delay is not a number of seconds."""

    __slots__ = ()

    def backoff(self, retry: int) -> float:
        return float("nan")


@soon_or_late
@pytest.mark.parametrize(
    ("limits", "kind"), [(Unlimited, ZeroDivisionError), (Nonsense, ValueError)]
)
async def test_a_backoff_that_raises(
    limits: type[TaskFunction[Any]], kind: type[Exception], number: int
) -> None:
    trace = Trace()
    original = ConnectionError("first")
    function = limits(trace.failing("A", original, number), retries=2)
    error = await failure_of(build([task("A", None, function, trace.quick("post"))]))
    (exception,) = error.exceptions
    assert type(exception) is kind
    assert exception.__context__ is original
    assert trace == ["A", "post"]


def _wrapping(loop: Any, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
    async def traced() -> Any:
        return await coroutine

    return asyncio.Task(traced(), loop=loop, **options)


@asyncio_alone
async def test_a_wrapping_factory_and_a_failure_before_a_first_step() -> None:
    trace = Trace()
    asyncio.get_running_loop().set_task_factory(_wrapping)
    error = await failure_of(
        build(
            [
                task("A", None, trace.failing("A", Broken()), trace.quick("A.post")),
                task("B", None, trace.quick("B"), trace.quick("B.post")),
            ]
        )
    )
    assert trace == ["A", "A.post", "B.post"]
    assert states(error.report) == {"A": "-F+", "B": "-s+"}


@asyncio_alone
async def test_a_wrapper_that_gives_its_coroutine_up() -> None:
    trace = Trace()

    def giving_up(loop: Any, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
        async def impatient() -> None:
            if coroutine.__qualname__ == "Trace.waiting.<locals>.function":
                coroutine.send(None)
            else:
                await coroutine

        return asyncio.Task(impatient(), loop=loop, **options)

    asyncio.get_running_loop().set_task_factory(giving_up)
    error = await error_of(
        build([task("A", None, trace.waiting("A"), trace.quick("post"))]).process_tasks(None)
    )
    assert isinstance(error, SdaxExecutionError)
    assert "ended without waiting" in str(error.exceptions[0])
    assert trace.count("A") == 1


@asyncio_alone
@pytest.mark.skipif(sys.version_info < (3, 12), reason="asyncio's eager tasks came with 3.12")
@pytest.mark.parametrize("phase", ["pre_execute", "execute", "post_execute"])
@soon_or_late
async def test_an_eager_factory_that_raises_after_the_start(phase: str, number: int) -> None:
    trace = Trace()
    refusal = RuntimeError("the registry is full")

    def factory(loop: Any, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
        made = asyncio.Task(coroutine, loop=loop, eager_start=True, **options)
        if "A" in trace and "refused" not in trace:
            trace.append("refused")
            raise refusal
        return made

    asyncio.get_running_loop().set_task_factory(factory)
    processor = build(
        [AsyncTask("A", **{phase: TaskFunction(trace.pausing("A", number))})],
        [task("B", None, None, trace.quick("B.post"))],
        [task("C", trace.quick("C"))],
    )
    assert await error_of(processor.process_tasks(None)) is refusal
    assert trace.count("A") == 1
    assert trace.count("B.post") == (phase != "pre_execute" or not number)


async def test_a_function_that_awaits_its_own_coroutine() -> None:
    seen: list[Any] = []

    async def own(ctx: Any) -> None:
        coroutine: Any = current().get_coro()
        for use in (coroutine.__await__, lambda: coroutine.send(None), lambda: next(coroutine)):
            with pytest.raises(ValueError, match="already executing"):
                use()
            seen.append(use)
        with pytest.raises(ValueError, match="coroutine already executing"):
            await coroutine
        await passes(ctx)
        with pytest.raises(ValueError, match="coroutine already executing"):
            await coroutine

    for number in (0, 1):
        await build([task("A", None, own, nothing)]).process_tasks(number)
    assert len(seen) == 6


def _deep(frames: int, function: Any) -> Any:
    return function() if frames == 0 else _deep(frames - 1, function)


def _stack() -> int:
    frame, depth = sys._getframe(), 0
    while frame := frame.f_back:  # type: ignore[assignment]
        depth += 1
    return depth


class Counting:
    """Counts set-ups and cleanups, by name."""

    def __init__(self) -> None:
        self.opened: list[Any] = []
        self.closed: list[Any] = []

    def task(self, name: Any, execute: Function = nothing) -> AsyncTask[Any, Any]:
        async def open_(ctx: Any) -> None:
            self.opened.append(name)

        async def close(ctx: Any) -> None:
            self.closed.append(name)

        return task(name, open_, execute, close)

    def all_closed(self) -> bool:
        """Return True if all that was opened was closed, and nothing twice."""
        closed = set(self.closed)
        return closed.issuperset(self.opened) and len(closed) == len(self.closed)


@asyncio_alone
@pytest.mark.parametrize("chain", ["levels", "graph"])
async def test_a_run_near_the_recursion_limit(chain: str) -> None:
    """Whatever is opened is closed, however few frames are left."""
    ends = set[str]()
    for left in range(60):
        counting = Counting()
        tasks = [counting.task(name) for name in "ABC"]
        if chain == "levels":
            processor: Any = build(tasks[:2], tasks[2:])
        else:
            processor = graph(tasks[0], (tasks[1], ["A"]), (tasks[2], ["A", "B"]))
        coroutine = processor.process_tasks(None)
        frames = sys.getrecursionlimit() - _stack() - left - 5
        try:
            _deep(frames, partial(coroutine.send, None))
            for _ in range(100):
                await asyncio.sleep(0)
                coroutine.send(None)
            raise AssertionError(f"with {left} frames left, it hangs")
        except StopIteration:
            ends.add("success")
        except RecursionError:
            ends.add("no frame")
        except ExceptionGroup:
            ends.add("failure")
        coroutine.close()
        assert counting.all_closed(), left
    assert "success" in ends


def nested(depth: int, leaf: Function, trace: list[int]) -> Any:
    """A run inside of a run, so many times."""

    async def visit(ctx: Any) -> Any:
        if depth == 0:
            return await leaf(ctx)
        return await nested(depth - 1, leaf, trace).process_tasks(ctx)

    async def close(ctx: Any) -> None:
        trace.append(depth)

    return build([task(depth, nothing, visit, close)])


@pytest.mark.parametrize("depth", [10, 40, 250])
@soon_or_late
async def test_runs_inside_of_runs(depth: int, number: int) -> None:
    trace: list[int] = []
    deepest = 0

    async def leaf(ctx: Any) -> None:
        nonlocal deepest
        deepest = _stack()
        await passes(number)

    await nested(depth, leaf, trace).process_tasks(None)
    assert trace == [*range(depth + 1)]
    assert deepest < _stack() + 300


@without_factory
async def test_a_failure_inside_of_many_runs() -> None:
    trace: list[int] = []
    original = Broken("no such leaf")

    async def leaf(ctx: Any) -> None:
        raise original

    error: Any = await failure_of(nested(200, leaf, trace))
    assert trace == [*range(201)]
    assert error.leaf_exceptions() == [original]


@asyncio_alone
async def test_runs_without_an_end() -> None:
    counting = Counting()

    async def again(ctx: Any) -> None:
        await build([counting.task(ctx + 1, again)]).process_tasks(ctx + 1)

    error = await error_of(build([counting.task(0, again)]).process_tasks(0))
    while isinstance(error, BaseExceptionGroup):
        (error,) = error.exceptions
    assert isinstance(error, RecursionError)
    assert "runs inside of each other" in str(error)
    assert counting.all_closed()
    assert len(counting.opened) > 100


async def test_what_an_observer_stops() -> None:
    """An observer's `KeyboardInterrupt`, at any event, stops the run, cleans up and comes out."""
    events = 0
    kinds: list[str] = []

    def count(event: Any) -> None:
        nonlocal events
        events += 1

    def processor(trace: Trace) -> Any:
        return build(
            [task("A", trace.quick("A"), trace.pausing("A.execute"), trace.pausing("A.post"))],
            [
                task(
                    "B", TaskFunction(trace.pausing("B"), timeout=60.0), None, trace.quick("B.post")
                )
            ],
        )

    await processor(Trace()).process_tasks(None, observer=count)
    for number in range(events):
        stop = KeyboardInterrupt(str(number))
        seen = 0
        trace = Trace()

        def observer(event: Any, number: int = number, stop: BaseException = stop) -> None:
            nonlocal seen
            seen += 1
            if seen == number + 1:
                kinds.append(type(event).__name__)
                raise stop

        error = await error_of(processor(trace).process_tasks(None, observer=observer))
        assert error is stop, kinds[-1]
        assert trace.count("A") == trace.count("A.post"), kinds[-1]
        assert trace.count("B") <= trace.count("B.post"), kinds[-1]
    assert set(kinds) >= {"RunStarted", "TaskStarted", "AttemptResumed", "RunFinished"}


@asyncio_alone
@pytest.mark.parametrize("called", ["_see_through", "new_waiter"])
async def test_a_cancellation_for_which_there_is_no_room(
    called: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = Trace()
    full = MemoryError()
    original = getattr(outcome, called)

    def no_room_at_first(*arguments: Any) -> NoReturn:
        monkeypatch.setattr(outcome, called, original)
        raise full

    monkeypatch.setattr(outcome, called, no_room_at_first)
    run = spawn(build([task("A", None, trace.waiting("A"), trace.pausing("post"))]))
    await passes(2)
    run.cancel()
    assert await error_of(run) is full
    assert trace == ["A", "A cancelled", "post", "post done"]
