"""`sdax.testing.explore`: where a workflow is disturbed, how, and what is checked."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Generator
from contextlib import asynccontextmanager
from typing import Any

import pytest

import sdax
from exploring import (
    Context,
    all_back,
    anything,
    found,
    give_back,
    pause,
    pooled,
    schedules,
    take,
)
from helpers import build, graph, nothing, solo, task
from sdax import (
    RetryableException,
    SdaxExecutionError,
    TaskFunction,
    task_func,
    task_group_func,
    task_sync_func,
)
from sdax.testing import InjectedError, explorations, explore

pytestmark = pytest.mark.usefixtures("engine")

CANCEL = {"faults": ("cancel",)}
FAIL = {"faults": ("fail",)}
HANG = {"faults": ("hang",)}


# ------------------------------------------------------------------------------- the context


def test_a_new_context_for_each_schedule() -> None:
    made: list[Context] = []

    def make() -> Context:
        made.append(Context())
        return made[-1]

    exploration = explore(pooled(), context=make, check=all_back)
    assert exploration.schedules == 23
    # The undisturbed run is made three times: twice to compare, and once at the end.
    assert len(made) == 25
    assert len({id(each.pool) for each in made}) == 25


def test_a_context_may_be_made_in_the_loop() -> None:
    async def make() -> Context:
        await asyncio.sleep(1)
        return Context()

    assert explore(pooled(), context=make, check=all_back).schedules == 23


@pytest.mark.parametrize("later", [False, True], ids=["at once", "awaited"])
def test_a_context_manager_is_left_after_the_check(later: bool) -> None:
    log: list[str] = []

    @asynccontextmanager
    async def opened() -> AsyncIterator[Context]:
        log.append("made")
        yield Context()
        await asyncio.sleep(0.1)
        log.append("left")

    async def opened_later() -> Any:
        return opened()

    def check(run: Any) -> bool:
        log.append("checked")
        return all_back(run)

    exploration = explore(pooled(), context=opened_later if later else opened, check=check)
    assert exploration.schedules == 23
    assert log.count("made") == log.count("left") == 25
    assert log.count("checked") == 24  # it is not asked about a cleanup that never ends
    assert " ".join(log).startswith("made checked left made checked left made")


def test_what_a_context_raises_when_it_is_left_is_a_finding() -> None:
    @asynccontextmanager
    async def opened() -> AsyncIterator[Context]:
        ctx = Context()
        yield ctx
        assert ctx.pool.free == 2, "a connection is missing"

    (finding, *_) = found(pooled(take, nothing, task("Late", pause)), anything, context=opened)
    assert finding.schedule == ""
    (problem,) = finding.problems
    assert problem.startswith(
        "the context raised when it was left: AssertionError: a connection is missing"
    )
    assert isinstance(finding.__cause__, AssertionError)


def test_a_context_that_cannot_be_left_is_a_finding() -> None:
    @asynccontextmanager
    async def opened() -> AsyncIterator[Context]:
        ctx = Context()
        yield ctx
        if ctx.pool.free != 2:
            await asyncio.get_running_loop().create_future()

    async def keep_for_itself(ctx: Context) -> None:
        connection = await ctx.pool.acquire()
        await asyncio.sleep(1)
        ctx.connection = connection

    (finding, *_) = found(pooled(keep_for_itself), anything, context=opened)
    assert finding.schedule == "Database.pre_execute#1@2:cancel"
    (problem,) = finding.problems
    assert problem.startswith("to leave the context waits for ever:\n  sdax.testing waits at ")
    assert "in opened: await asyncio.get_running_loop().create_future()" in problem


def test_what_the_factory_raises_comes_through() -> None:
    def make() -> Context:
        raise OSError("no disk")

    with pytest.raises(OSError, match="no disk"):
        explore(pooled(), context=make, check=all_back)


def test_an_error_of_an_async_factory_comes_through() -> None:
    @asynccontextmanager
    async def opened() -> AsyncIterator[Context]:
        raise OSError("no disk")
        yield Context()

    with pytest.raises(OSError, match="no disk"):
        explore(pooled(), context=opened, check=all_back)


async def _coroutine() -> Context:
    return Context()


def _generator() -> Generator[Context, None, None]:
    yield Context()


async def _async_generator() -> AsyncIterator[Context]:
    yield Context()


@pytest.mark.parametrize(
    ("arguments", "kind", "says"),
    [
        ({"context": Context()}, TypeError, "context must be a function that makes a new context"),
        ({"context": _generator}, TypeError, "decorate it with contextlib.asynccontextmanager"),
        ({"context": _async_generator}, TypeError, "decorate it with contextlib.asynccontext"),
        ({"check": True}, TypeError, "check must be a function of an ExploredRun, got True"),
        ({"processor": nothing}, TypeError, "explore takes a processor, got <function nothing"),
        (
            {"processor": sdax.AsyncTaskProcessor.builder()},
            TypeError,
            "did you forget .build()?",
        ),
        ({"faults": "cancel"}, TypeError, "got 'cancel'; did you mean ('cancel',)?"),
        ({"faults": 3}, TypeError, "faults must be a collection of names, got 3"),
        ({"faults": ["cncel"]}, ValueError, "no fault 'cncel'; did you mean 'cancel'?"),
        ({"disturbances": 3}, ValueError, "disturbances must be 1 or 2, got 3"),
        ({"clock": "sundial"}, ValueError, "clock must be 'virtual' or 'real', got 'sundial'"),
        ({"max_schedules": 0}, ValueError, "max_schedules must be at least 1, got 0"),
        ({"max_schedules": None}, TypeError, "max_schedules must be an integer, got None"),
        ({"seconds": -1}, ValueError, "seconds must be finite and not negative, got -1"),
        ({"seed": "x"}, TypeError, "seed must be an integer or None, got 'x'"),
        ({"jitter": 0.4}, ValueError, "jitter must be from 0.5 to 1.0, got 0.4"),
        ({"jitters": 1}, TypeError, "no option 'jitters'; did you mean 'jitter'?"),
        ({"replay": 3}, TypeError, "a schedule is a text such as"),
    ],
)
def test_what_cannot_be_explored_is_refused(arguments: Any, kind: Any, says: str) -> None:
    sound = {"processor": pooled(), "context": Context, "check": all_back}
    for function in (explore, explorations):
        with pytest.raises(kind) as caught:
            function(**{**sound, **arguments})
        assert says in str(caught.value)


def test_a_coroutine_is_no_context() -> None:
    with pytest.raises(TypeError, match="got <coroutine object _coroutine"):
        explore(pooled(), context=_coroutine(), check=all_back)  # type: ignore[arg-type]


async def test_in_a_running_loop_it_is_refused() -> None:
    for function in (explore, explorations):
        with pytest.raises(RuntimeError, match=r"cannot be called in a running one.*not async def"):
            function(pooled(), context=Context, check=all_back)


# -------------------------------------------------------------------------------- the points


def test_the_points_of_a_function() -> None:
    async def two_awaits(ctx: Context) -> None:
        await asyncio.sleep(1)
        await asyncio.sleep(0)

    assert schedules(solo(two_awaits), **CANCEL) == [
        "A.pre_execute#1@1:cancel",
        "A.pre_execute#1@1+:cancel",
        "A.pre_execute#1@2:cancel",
        "A.pre_execute#1@2+:cancel",
        "A.pre_execute#1@return:cancel",
    ]


def test_points_come_in_the_order_of_the_run() -> None:
    processor = build(
        [task("A", pause, None, nothing)],
        [task("B", None, nothing), task("C", task_sync_func(lambda ctx: None))],
    )
    assert schedules(processor, **CANCEL) == [
        "A.pre_execute#1@1:cancel",
        "A.pre_execute#1@1+:cancel",
        "A.pre_execute#1@return:cancel",
        "C.pre_execute#1@return:cancel",
        "B.execute#1@return:cancel",
        "A.post_execute#1@return:cancel",
    ]


def test_points_of_a_graph() -> None:
    processor = graph(
        task("top", pause), (task("left", nothing), ["top"]), (task("right", nothing), ["top"])
    )
    assert schedules(processor, **CANCEL) == [
        "top.pre_execute#1@1:cancel",
        "top.pre_execute#1@1+:cancel",
        "top.pre_execute#1@return:cancel",
        "left.pre_execute#1@return:cancel",
        "right.pre_execute#1@return:cancel",
    ]


class Awaitable_:  # noqa: N801
    def __await__(self) -> Generator[Any, Any, None]:
        yield from asyncio.sleep(0).__await__()


def make_awaitable(ctx: Any) -> Awaitable[None]:
    return Awaitable_()


def make_task(ctx: Any) -> Awaitable[None]:
    return asyncio.get_running_loop().create_task(pause(ctx))


async def in_a_group(ctx: Any, group: asyncio.TaskGroup) -> None:
    group.create_task(pause(ctx))


async def in_async_iteration(ctx: Any) -> None:
    async def numbers() -> AsyncIterator[int]:
        await asyncio.sleep(1)
        yield 1

    async for _ in numbers():
        pass


@pytest.mark.parametrize("function", [make_awaitable, make_task])
def test_what_a_function_has_returned_may_fail(function: Any) -> None:
    assert "A.pre_execute#1@1:fail" in schedules(solo(function), **FAIL)


@pytest.mark.parametrize(
    "function",
    [make_awaitable, make_task, task_group_func(in_a_group), in_async_iteration],
    ids=["awaitable", "task", "group", "async iteration"],
)
def test_each_kind_of_function_has_its_awaits(function: Any) -> None:
    assert schedules(solo(function), **CANCEL) == [
        "A.pre_execute#1@1:cancel",
        "A.pre_execute#1@1+:cancel",
        "A.pre_execute#1@return:cancel",
    ]


def test_what_a_driven_function_returns_is_the_value() -> None:
    async def value(ctx: Any) -> str:
        return "value"

    processor = build([task("A", value), task("B", task_sync_func(lambda ctx: "plain"))])
    values: list[Any] = []

    def check(run: Any) -> None:
        if not run.schedule:
            values.append([phases.pre_execute.value for phases in run.report.values()])

    explore(processor, context=Context, check=check)
    assert values == [["value", "plain"]] * 3


def test_names_that_look_alike_are_told_apart() -> None:
    processor = build([task("1", nothing), task(1, nothing), task(("a", 2), nothing)])
    assert schedules(processor, **CANCEL) == [
        "1.pre_execute#1@return:cancel",
        "1 (2).pre_execute#1@return:cancel",
        "('a', 2).pre_execute#1@return:cancel",
    ]


class Handing:
    """Hands one connection from one to the next: it is in nobody's hands in between."""

    def __init__(self) -> None:
        self.free = 1
        self.waiters: list[asyncio.Future[object]] = []

    def come_back(self, loop: asyncio.AbstractEventLoop) -> None:
        self.free -= 1
        self.waiters.pop().set_result("connection")


def test_what_is_lost_between_its_coming_and_the_going_on_is_found() -> None:
    async def wait_for_connection(ctx: Any) -> None:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[object] = loop.create_future()
        ctx.waiters.append(future)
        timer = loop.call_later(1, ctx.come_back, loop)
        try:
            ctx.connection = await future
        except asyncio.CancelledError:
            timer.cancel()
            raise

    async def bring_back(ctx: Any) -> None:
        if getattr(ctx, "connection", None):
            ctx.free += 1

    processor = solo(wait_for_connection, None, bring_back)
    findings = found(processor, lambda run: run.context.free == 1, context=Handing, **CANCEL)
    assert [each.schedule for each in findings] == ["A.pre_execute#1@1+:cancel"]


@pytest.mark.parametrize("at", ["1", "1+", "2", "2+"])
def test_a_cancellation_is_heard_where_it_should_be(at: str) -> None:
    async def note(ctx: Context) -> None:
        for number in (1, 2, 3):
            try:
                await asyncio.sleep(0 if number == 1 else 1)
            except asyncio.CancelledError:
                ctx.notes.append(f"cancelled at {number}")
                raise
            ctx.notes.append(number)

    def check(run: Any) -> None:
        seen.append(run.context.notes)

    seen: list[Any] = []
    explore(solo(note), context=Context, check=check, replay=f"A.pre_execute#1@{at}:cancel")
    waits_at = int(at[0])
    assert seen[-1] == [*range(1, waits_at), f"cancelled at {waits_at}"]


def test_whoever_runs_beside_it_is_where_it_was() -> None:
    """Cancelled when A has returned: B has not gone on meanwhile."""

    async def wait(ctx: Context) -> None:
        try:
            await asyncio.sleep(0.1)
            await asyncio.sleep(0.1)
        except asyncio.CancelledError:
            ctx.notes.append("B is cancelled")
            raise
        ctx.notes.append("B returns")

    seen: list[Any] = []
    explore(
        build([task("A", pause), task("B", wait)]),
        context=Context,
        check=lambda run: seen.append(run.context.notes),
        replay="A.pre_execute#1@return:cancel",
    )
    assert seen == [["B returns"], ["B returns"], ["B is cancelled"]]


# -------------------------------------------------------------------------------- the faults


def test_a_failure_at_each_place() -> None:
    assert schedules(solo(pause), **FAIL) == [
        "A.pre_execute#1@call:fail",
        "A.pre_execute#1@call:fail unexpectedly",
        "A.pre_execute#1@1:fail",
        "A.pre_execute#1@1:fail unexpectedly",
        "A.pre_execute#1@return:fail",
        "A.pre_execute#1@return:fail unexpectedly",
    ]


def test_with_retries_it_fails_once_and_always() -> None:
    retried = task_func(nothing, retries=2, initial_delay=1.0)
    attempts: dict[str, Any] = {}

    def check(run: Any) -> None:
        attempts[run.schedule] = run.report["A"].pre_execute[:2]

    explore(solo(retried), context=Context, check=check, **FAIL)
    assert attempts == {
        "": ("succeeded", 1),
        "A.pre_execute#1@call:fail": ("succeeded", 2),
        "A.pre_execute#1@call:fail always": ("failed", 3),
        "A.pre_execute#1@call:fail unexpectedly": ("failed", 1),
        "A.pre_execute#1@return:fail": ("succeeded", 2),
        "A.pre_execute#1@return:fail always": ("failed", 3),
        "A.pre_execute#1@return:fail unexpectedly": ("failed", 1),
    }


class NeedsTwoError(Exception):
    """Wants two arguments, and cannot be shown without them."""

    def __init__(self, request: object, response: object) -> None:
        self.request = request

    def __str__(self) -> str:
        return f"{self.request}"


class FinalError(Exception):
    def __init_subclass__(cls) -> None:
        raise TypeError("nothing may be below it")


def by_status(error: Exception) -> bool:
    return error.status >= 500  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize(
    ("retryable", "expected", "unexpected"),
    [
        ((TimeoutError, ConnectionError), "InjectedConnectionError", "InjectedError"),
        (RetryableException, "InjectedRetryableException", "InjectedError"),
        (NeedsTwoError, "InjectedNeedsTwoError", "InjectedError"),
        ((FinalError, KeyError), "InjectedKeyError", "InjectedError"),
        (Exception, "InjectedConnectionError", None),
        (FinalError, None, "InjectedError"),
        (lambda error: isinstance(error, TimeoutError), "InjectedTimeoutError", "InjectedError"),
        (lambda error: not isinstance(error, ValueError), "InjectedConnectionError", "InjectedVal"),
        (by_status, None, None),
    ],
)
def test_the_exceptions_fit_what_is_retried(retryable: Any, expected: Any, unexpected: Any) -> None:
    raised: dict[str, str] = {}

    def check(run: Any) -> None:
        if run.error is not None:
            (error,) = run.error.exceptions
            assert isinstance(error, InjectedError)
            assert str(error).startswith("injected at A.execute#1@")
            raised[run.schedule.rpartition(":")[2]] = repr(error)

    function = TaskFunction(nothing, retryable_exceptions=retryable)
    explore(solo(None, function), context=Context, check=check, **FAIL)
    assert ("fail" in raised) == (expected is not None)
    assert ("fail unexpectedly" in raised) == (unexpected is not None)
    assert raised.get("fail", "").startswith(expected or "")
    assert raised.get("fail unexpectedly", "").startswith(unexpected or "")


def test_what_cannot_be_raised_cannot_be_replayed() -> None:
    function = TaskFunction(nothing, retryable_exceptions=Exception)
    with pytest.raises(SdaxExecutionError, match="failed") as caught:
        sdax.testing.run(
            sdax.testing.disturbed(
                solo(function), "A.pre_execute#1@call:fail unexpectedly"
            ).process_tasks(None)
        )
    (error,) = caught.value.exceptions
    assert str(error) == "A.pre_execute is retried after any exception that is known here"


def test_a_cleanup_fails_only_where_a_retry_can_mend_it() -> None:
    assert schedules(solo(None, None, pause), **FAIL) == []
    retried = task_func(pause, retries=1)
    assert schedules(solo(None, None, retried), **FAIL) == [
        "A.post_execute#1@call:fail",
        "A.post_execute#1@1:fail",
        "A.post_execute#1@return:fail",
    ]


def test_a_cleanup_fails_for_good_only_on_request() -> None:
    assert schedules(solo(None, None, nothing), faults=("fail cleanup",)) == [
        "A.post_execute#1@call:fail",
        "A.post_execute#1@call:fail unexpectedly",
        "A.post_execute#1@return:fail",
        "A.post_execute#1@return:fail unexpectedly",
    ]
    retried = task_func(nothing, retries=1)
    assert schedules(solo(None, None, retried), faults=("fail cleanup",)) == [
        "A.post_execute#1@call:fail",
        "A.post_execute#1@call:fail always",
        "A.post_execute#1@call:fail unexpectedly",
        "A.post_execute#1@return:fail",
        "A.post_execute#1@return:fail always",
        "A.post_execute#1@return:fail unexpectedly",
    ]


async def wait_for_an_event(ctx: Context) -> None:
    event = asyncio.Event()
    asyncio.get_running_loop().call_soon(event.set)
    await event.wait()


async def get_from_a_queue(ctx: Context) -> None:
    queue: asyncio.Queue[int] = asyncio.Queue()
    asyncio.get_running_loop().call_soon(queue.put_nowait, 1)
    await queue.get()


async def leave_a_group(ctx: Context) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(pause(ctx))


async def wait_for_tasks(ctx: Context) -> None:
    await asyncio.wait([asyncio.get_running_loop().create_task(pause(ctx))])


async def run_another(ctx: Context) -> None:
    await solo(pause).process_tasks(None)


@pytest.mark.parametrize(
    "function",
    [wait_for_an_event, get_from_a_queue, leave_a_group, wait_for_tasks, run_another],
    ids=lambda function: function.__name__,
)
def test_no_exception_comes_where_none_can(function: Any) -> None:
    assert not [each for each in schedules(solo(function), **FAIL) if "@1" in each]
    assert "A.pre_execute#1@1:cancel" in schedules(solo(function), **CANCEL)


async def gather(ctx: Context) -> None:
    await asyncio.gather(pause(ctx), pause(ctx))


async def await_a_task(ctx: Context) -> None:
    await asyncio.get_running_loop().create_task(pause(ctx))


async def wait_for(ctx: Context) -> None:
    await asyncio.wait_for(pause(ctx), 1)


@pytest.mark.parametrize(
    "function", [gather, await_a_task, wait_for], ids=lambda function: function.__name__
)
def test_a_failing_await_leaves_nothing_running(function: Any) -> None:
    fails = "A.pre_execute#1@1:fail" in schedules(solo(function), **FAIL)
    assert fails == (function is not wait_for or sys.version_info >= (3, 12))
    findings = found(solo(function), anything, faults=("cancel", "fail"))
    if function is wait_for and sys.version_info < (3, 12):
        # It swallows a cancellation that comes together with the result.
        (finding,) = findings
        assert finding.schedule == "A.pre_execute#1@1+:cancel"
        assert "was cancelled, and returned as if nothing had happened" in finding.problems[0]
    else:
        assert findings == []


def test_a_failure_and_a_cancellation_at_once() -> None:
    async def stubborn(ctx: Context) -> None:
        async def slow() -> None:
            try:
                await asyncio.sleep(10)
            except asyncio.CancelledError:
                await asyncio.sleep(1)
                raise

        running = asyncio.get_running_loop().create_task(slow())
        await asyncio.sleep(0)
        await running

    async def wait(ctx: Context) -> None:
        await asyncio.sleep(0.5)

    def check(run: Any) -> None:
        raised.append(type(run.error).__name__)

    raised: list[str] = []
    # While what A awaits still takes its time to end, B has the caller cancelled.
    schedule = "A.pre_execute#1@2:fail, B.pre_execute#1@1+:cancel"
    explore(
        build([task("A", stubborn), task("B", wait)]),
        context=Context,
        check=check,
        replay=schedule,
    )
    assert raised[-1] == "CancelledError"


def test_a_hanging_await_that_a_timeout_bounds() -> None:
    limited = task_func(take, timeout=5.0)
    times: dict[str, float] = {}

    def check(run: Any) -> bool:
        times[run.schedule] = run.time
        return all_back(run)

    explore(pooled(limited, task_func(give_back, timeout=5.0)), context=Context, check=check)
    assert times["Database.pre_execute#1@1:hang"] == 5.0
    # Nobody can help what becomes of a connection when its release never ends.
    assert "Database.post_execute#1@1:hang" not in times


def test_a_hanging_attempt_may_be_retried() -> None:
    async def flaky(ctx: Context) -> None:
        await asyncio.sleep(0.5)
        ctx.notes.append("done")

    retried = task_func(flaky, timeout=1.0, retries=1, initial_delay=1.0)
    exploration = explore(
        solo(None, retried),
        context=Context,
        check=lambda run: run.error is not None or run.context.notes == ["done"],
        **HANG,
    )
    assert exploration.schedules == 2


def test_a_hanging_cleanup_that_is_retried_must_give_back() -> None:
    careless = task_func(give_back, timeout=1.0, retries=1, initial_delay=0.1)
    limited = task_func(take, timeout=1.0)
    (finding,) = found(pooled(limited, careless), **HANG)
    assert finding.schedule == "Database.post_execute#1@1:hang"
    assert finding.problems == ("the check returned False",)


def test_an_await_that_nothing_bounds_is_a_finding() -> None:
    findings = found(pooled(task_func(take), task_func(give_back)), **HANG)
    assert [each.schedule for each in findings] == [
        "Database.pre_execute#1@1:hang",
        "Database.post_execute#1@1:hang",
    ]
    first, second = findings[0].problems
    assert first == (
        "nothing bounds Database.pre_execute: give it a timeout, or leave out the fault hang if "
        "its callers bound the run"
    )
    assert findings[1].problems[0] == "nothing bounds Database.post_execute: give it a timeout"
    assert second.startswith(
        "the run waits for ever:\n  Database.pre_execute, attempt 1, waits at its 1st await, "
    )
    assert "exploring.py, line " in second
    assert "give it a timeout" not in second  # as the first problem says
    assert findings[0].run is None


async def bounded_inside(ctx: Context) -> None:
    try:
        async with asyncio.timeout(1):
            await asyncio.sleep(0.1)
    except TimeoutError:
        ctx.notes.append("timed out")


def test_a_timeout_inside_of_the_function_bounds_as_well() -> None:
    notes: dict[str, Any] = {}

    def check(run: Any) -> None:
        notes[run.schedule] = run.context.notes

    explore(solo(bounded_inside), context=Context, check=check, **HANG)
    assert notes == {"": [], "A.pre_execute#1@1:hang": ["timed out"]}


async def gather_for_a_second(ctx: Context) -> None:
    async def swallow() -> None:
        try:
            await asyncio.sleep(0.1)
        except asyncio.CancelledError:
            ctx.notes.append("swallowed inside")

    async with asyncio.timeout(1):
        await asyncio.get_running_loop().create_task(swallow())


def test_what_is_awaited_ends_when_the_hanging_is_cancelled() -> None:
    """As without sdax: who swallows the cancellation of what is awaited goes on."""
    notes: list[Any] = []

    def check(run: Any) -> None:
        assert run.error is None or run.schedule
        notes.append(run.context.notes)

    explore(
        solo(gather_for_a_second),
        context=Context,
        check=check,
        replay="A.pre_execute#1@1:hang",
    )
    assert notes[-1] == []  # it had ended long before


@pytest.mark.parametrize("swallows", [False, True])
def test_what_is_awaited_hears_of_the_timeout(swallows: bool) -> None:
    """As without sdax: whoever awaits an `asyncio.Task` waits for its end, however that is."""

    async def slow(ctx: Context) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            ctx.notes.append("heard")
            if not swallows:
                raise

    async def await_another(ctx: Context) -> None:
        await asyncio.get_running_loop().create_task(slow(ctx))
        ctx.notes.append("went on")

    notes: list[Any] = []
    found(
        solo(task_func(await_another, timeout=5.0)),
        lambda run: notes.append(run.context.notes),
        replay="A.pre_execute#1@1:hang",
    )
    assert notes[-1] == (["heard", "went on"] if swallows else ["heard"])


def test_an_interrupt_comes_only_on_request() -> None:
    assert not [each for each in schedules(pooled()) if "interrupt" in each]
    errors: dict[str, Any] = {}

    def check(run: Any) -> bool:
        errors[run.schedule] = type(run.error).__mro__[1]
        return all_back(run)

    explore(pooled(), context=Context, check=check, faults=("interrupt",))
    assert errors == {
        "": object,
        "Database.pre_execute#1@call:interrupt": KeyboardInterrupt,
        "Database.pre_execute#1@1+:interrupt": KeyboardInterrupt,
        "Database.pre_execute#1@return:interrupt": KeyboardInterrupt,
    }


def test_a_second_cancellation_at_every_later_point() -> None:
    both = schedules(pooled(), faults=("cancel", "cancel again"))
    first = schedules(pooled(), **CANCEL)
    again = [each for each in both if each not in first]
    assert "Database.pre_execute#1@1:cancel" in both
    # A schedule that has a finding already gets no second disturbance.
    assert again == []

    played: list[str] = []
    explore(
        pooled(),
        context=Context,
        check=lambda run: played.append(run.schedule) or all_back(run),  # type: ignore[func-returns-value]
        faults=("cancel", "cancel again"),
    )
    assert "Database.pre_execute#1@return:cancel, Database.post_execute#1@1:cancel" in played
    assert len(played) == 3 + 6 + 8


def test_two_disturbances() -> None:
    played: list[str] = []
    exploration = explore(
        pooled(task_func(take, timeout=1.0), task_func(nothing, retries=1, initial_delay=0.1)),
        context=Context,
        check=lambda run: played.append(run.schedule),  # type: ignore[func-returns-value]
        disturbances=2,
    )
    pairs = [each for each in played if ", " in each]
    assert len(pairs) == len(set(pairs)) == 32
    assert exploration.schedules == len(played) - 2
    assert exploration.exhaustive
    retried = task_func(nothing, retries=2, initial_delay=0.1)
    assert explore(solo(retried), context=Context, check=anything, disturbances=2).exhaustive
    # Singles come first, and cleanup's failures are among the second ones.
    assert played.index(pairs[0]) > max(
        played.index(each) for each in played[:-1] if each not in pairs
    )
    assert "Database.pre_execute#1@1:cancel, Database.post_execute#1@call:fail" in pairs
    assert "Database.pre_execute#1@1:fail, Database.post_execute#1@return:cancel" in pairs
