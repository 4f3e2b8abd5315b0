"""Whatever a user's exception refuses, it passes through unharmed."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
from contextlib import suppress
from typing import Any, NoReturn

import pytest

from attempts import Flaky
from exceptions import Incomparable
from helpers import (
    Broken,
    Trace,
    build,
    counts_references,
    error_of,
    failure_of,
    forever,
    passes,
    solo,
    soon_or_late,
    spawn,
    states,
    task,
    without_collector,
)
from sdax import SdaxExecutionError, TaskFunction


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    """An exception whose attributes cannot be set, not even its traceback."""

    code: str


class Shy(Exception):
    """An exception that shows, compares and hashes nothing, and takes no notes."""

    __slots__ = ()

    def _refuse(self, *_: Any) -> NoReturn:
        raise RuntimeError("leave me alone")

    __repr__ = __str__ = __eq__ = __hash__ = __setattr__ = add_note = _refuse  # type: ignore[assignment]
    with_traceback = __reduce_ex__ = _refuse  # type: ignore[assignment]


class Disguised(Exception):
    """An exception that has no class."""

    @property
    def __class__(self) -> Any:  # type: ignore[override]
        raise RuntimeError("none of your business")


class _NoInstances(type):
    def __instancecheck__(cls, instance: Any) -> bool:
        raise RuntimeError("ask somebody else")


class Untested(Exception, metaclass=_NoInstances):
    """An exception whose class does not say what its instances are."""


KINDS: list[Any] = [lambda: Frozen("NoSuchKey"), Shy, Disguised, Untested]
KIND_NAMES = ["frozen", "shy", "disguised", "untested"]


@pytest.mark.parametrize("make", KINDS, ids=KIND_NAMES)
@pytest.mark.parametrize("phase", ["pre", "execute", "post"])
@soon_or_late
async def test_it_comes_out(make: Any, phase: str, number: int) -> None:
    trace = Trace()
    original = make()
    function = trace.failing("A", original, number)
    error = await failure_of(
        build([task("A", **{phase: function})], [task("B", None, None, trace.quick("B.post"))])
    )
    assert error.exceptions[0] is original
    assert error.failures[0].exception is original
    assert trace.count("B.post") == (phase != "pre")
    assert states(error.report)["A"].count("F") == 1


@pytest.mark.parametrize("make", KINDS, ids=KIND_NAMES)
@soon_or_late
async def test_it_is_retried(make: Any, number: int) -> None:
    originals = [make(), make()]
    function = Flaky(*originals, suspend=bool(number))
    limits = TaskFunction(function, retries=2, initial_delay=0.0, retryable_exceptions=(Exception,))
    report = await solo(None, limits).process_tasks(None)
    assert report["A"].execute.attempts == 3


async def test_a_class_to_retry_that_does_not_say_what_its_instances_are() -> None:
    """As a predicate that raises: that is the failure, and what was asked about is its context."""
    raised = Broken()
    limits = {"retries": 1, "initial_delay": 0, "retryable_exceptions": (Untested,)}
    error = await failure_of(solo(None, TaskFunction(Flaky(raised), **limits)))
    assert str(error.exceptions[0]) == "ask somebody else"
    assert error.exceptions[0].__context__ is raised


@pytest.mark.parametrize("make", KINDS, ids=KIND_NAMES)
async def test_it_leaves_a_block(make: Any) -> None:
    trace = Trace()
    original = make()
    body: Any = None
    try:
        async with build([task("A", trace.quick("A"), None, trace.quick("post"))]).open(
            None
        ) as run:
            await run.run_next()
            raise original
    except Exception as error:
        body = error
    assert body is original
    assert trace == ["A", "post"]


@soon_or_late
async def test_an_exception_that_many_runs_share(number: int) -> None:
    """One note for one place: what is logged does not grow with the runs."""
    lost = ConnectionError("connection lost")

    async def request(ctx: Any) -> None:
        await passes(number)
        raise lost

    processor = solo(None, request)
    for _ in range(20):
        await failure_of(processor)
    assert lost.__notes__ == ["task 'A', execute, attempt 1 of 1"]
    for name in range(100):
        await failure_of(build([task(name, None, request)]))
    assert len(lost.__notes__) == 10


@pytest.mark.parametrize("depth", [1, 3])
async def test_a_group_of_cancellations_is_a_cancellation(depth: int) -> None:
    """`except* CancelledError: raise` makes a group of what it re-raises."""

    async def listen(ctx: Any) -> None:
        try:
            await forever()
        except asyncio.CancelledError as error:
            group = BaseExceptionGroup("", [error])
            for _ in range(depth - 1):
                group = BaseExceptionGroup("", [group, asyncio.CancelledError()])
            raise group from None

    trace = Trace()
    error = await failure_of(
        build(
            [
                task("A", None, listen, trace.quick("post")),
                task("B", None, trace.failing("B", Broken(), 1)),
            ]
        )
    )
    assert states(error.report) == {"A": "-C+", "B": "-F-"}
    run = spawn(build([task("A", None, listen, trace.quick("post"))]))
    await passes(2)
    run.cancel()
    assert type(await error_of(run)) is asyncio.CancelledError


@pytest.mark.virtual_clock
async def test_a_group_of_cancellations_after_a_timeout() -> None:
    async def listen(ctx: Any) -> None:
        try:
            await forever()
        except* asyncio.CancelledError:
            raise

    function = TaskFunction(listen, timeout=1.0, retries=1, initial_delay=0.0)
    error = await failure_of(solo(None, function))
    assert type(error.exceptions[0]) is TimeoutError
    assert error.failures[0].attempts == 2


async def test_a_group_of_cancellations_that_nobody_asked_for() -> None:
    async def raises(ctx: Any) -> None:
        raise BaseExceptionGroup("", [asyncio.CancelledError("mine")])

    error = await failure_of(solo(None, raises))
    assert type(error.exceptions[0]).__name__ == "TaskCancelledError"
    assert isinstance(error.exceptions[0].__cause__, BaseExceptionGroup)


async def test_a_fallback_that_times_out_after_what_cannot_be_asked_anything() -> None:
    async def fallback(ctx: Any, error: Exception) -> None:
        await forever()

    original = Incomparable()
    function = TaskFunction(
        Trace().failing("A", original),
        timeout=0.01,
        fallback=fallback,
        fallback_exceptions=Incomparable,
    )
    error = await failure_of(solo(None, function))
    assert isinstance(error.exceptions[0], TimeoutError)
    assert error.exceptions[0].__context__ is original


async def test_contexts_that_lead_in_a_circle() -> None:
    first, second = KeyError("first"), KeyError("second")
    first.__context__ = second
    second.__context__ = first

    async def close(ctx: Any) -> None:
        raise Broken

    async with asyncio.timeout(30):
        try:
            async with solo(None, None, close).open(None) as run:
                await run.run_next()
                raise first
        except KeyError as error:
            assert error is first


async def test_a_failure_that_the_block_raises_again() -> None:
    """The other failures are its context; the circle with itself is not closed."""
    first, second = Broken("first"), Broken("second")

    async def block(processor: Any) -> None:
        async with processor.open(None) as run:
            while await run.run_next():
                pass
            assert len(run.failures()) == 2
            raise run.failures()[0]

    async def fail(ctx: BaseException) -> None:
        raise ctx

    processor = build(
        [
            task("A", None, None, lambda ctx: fail(first)),
            task("B", None, None, lambda ctx: fail(second)),
        ]
    )
    error: Any = None
    try:
        await block(processor)
    except Broken as raised:
        error = raised
    assert error is first
    group = error.__context__
    assert isinstance(group, SdaxExecutionError)
    assert group.exceptions == (second,)


@counts_references
@pytest.mark.parametrize("how", ["first", "each"])
async def test_a_failure_that_the_block_raises_again_closes_no_circle(how: str) -> None:
    """Neither what was raised nor the run leads to itself: no garbage is left to collect."""

    async def fail(ctx: Any) -> None:
        raise Broken

    processor = build([task("A", None, fail), task("B", None, None, fail)])

    async def block() -> None:
        failure: Any = None
        try:
            async with processor.open(None) as run:
                while await run.run_next():
                    pass
                if how == "first":
                    raise run.failures()[0]
                for failure in run.failures():
                    raise failure
        finally:
            del failure  # or its own traceback would lead to it

    async def call() -> None:
        with suppress(Broken):
            await block()

    await call()
    with without_collector():
        await call()
        assert gc.collect() == 0
