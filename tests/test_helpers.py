"""The helpers that make tasks and their functions, and the names under which they are found."""

from __future__ import annotations

import asyncio
import functools
import importlib
import pickle
import threading
import time
from contextvars import ContextVar
from itertools import pairwise
from typing import Any, TypedDict

import pytest

import sdax
from helpers import (
    Trace,
    build,
    error_of,
    failure_of,
    forever,
    nothing,
    passes,
    spawn,
    states,
    task_in,
    until,
    without_factory,
)
from sdax import (
    AsyncDagTaskProcessor,
    AsyncTask,
    AsyncTaskProcessor,
    RetryableException,
    SdaxTaskGroup,
    TaskCancelledError,
    TaskFunction,
    join,
    task,
    task_func,
    task_group_func,
    task_group_task,
    task_sync_func,
    task_thread_func,
)

PHASES = ("pre_execute", "execute", "post_execute")
LIMITS = {
    "timeout": 2.5,
    "retries": 3,
    "initial_delay": 0.25,
    "backoff_factor": 3.0,
    "retryable_exceptions": (KeyError,),
    "max_delay": 9.0,
}

VARIABLE: ContextVar[str] = ContextVar("VARIABLE", default="nobody's")


class Context(TypedDict):
    value: int


async def takes_group(ctx: Any, group: SdaxTaskGroup) -> None:
    """Use no group."""


def plain(ctx: Any) -> Any:
    return ctx


HELPERS = {
    task_func: nothing,
    task_sync_func: plain,
    task_thread_func: plain,
    task_group_func: takes_group,
}
each_helper = pytest.mark.parametrize(
    ("helper", "function"), HELPERS.items(), ids=[helper.__name__ for helper in HELPERS]
)


def one(function: TaskFunction[Any], phase: str = "execute") -> Any:
    """A processor of the task "A", which has this function alone."""
    return build([task_in(phase, function)])


# All of them


@each_helper
def test_each_makes_a_task_function(helper: Any, function: Any) -> None:
    made = helper(function)
    assert type(made) is TaskFunction
    assert made.timeout is None
    assert made.retries == 0
    assert made == helper(function)
    assert hash(made) == hash(helper(function))
    assert made.has_task_group_argument == (helper is task_group_func)


@each_helper
def test_each_takes_the_limits_by_name(helper: Any, function: Any) -> None:
    made = helper(function, **LIMITS)
    assert {name: getattr(made, name) for name in LIMITS} == LIMITS


@each_helper
@pytest.mark.parametrize(
    "wrong", [{"timeout": -1}, {"retries": 1.5}, {"backoff_factor": 0}, {"initial_delay": "1"}]
)
def test_each_refuses_what_a_task_function_refuses(helper: Any, function: Any, wrong: Any) -> None:
    ((field, value),) = wrong.items()
    with pytest.raises((TypeError, ValueError), match=field) as caught:
        helper(function, **wrong)
    assert repr(value) in str(caught.value)


@each_helper
def test_each_refuses_limits_that_it_does_not_know(helper: Any, function: Any) -> None:
    with pytest.raises(TypeError, match="retrys"):
        helper(function, retrys=3)
    with pytest.raises(TypeError):
        helper(function, 2.5)


@each_helper
def test_each_refuses_what_cannot_be_called(helper: Any, function: Any) -> None:
    with pytest.raises(TypeError, match="42"):
        helper(42)


@each_helper
async def test_a_coroutine_in_place_of_a_function_is_refused(helper: Any, function: Any) -> None:
    coroutine = nothing(None)
    with pytest.raises(TypeError, match="coroutine"):
        helper(coroutine)
    coroutine.close()


@each_helper
async def test_what_each_makes_can_be_pickled(helper: Any, function: Any) -> None:
    made = helper(function, retries=2)
    copy = pickle.loads(pickle.dumps(made))
    assert copy == made
    assert states(await one(copy).process_tasks(None)) == {"A": "-+-"}


@each_helper
@pytest.mark.parametrize("phase", PHASES)
async def test_each_is_for_any_phase(helper: Any, function: Any, phase: str) -> None:
    report = await one(helper(function), phase).process_tasks(None)
    assert getattr(report["A"], phase).state == "succeeded"


# Plain functions


@pytest.mark.parametrize("limits", [{}, {"retries": 1}, {"timeout": 5}], ids=str)
@pytest.mark.parametrize("phase", PHASES)
async def test_the_value_of_a_plain_function(phase: str, limits: Any) -> None:
    function = task_sync_func(lambda ctx: ctx["value"] + 1, **limits)
    report = await one(function, phase).process_tasks(Context(value=4))
    assert getattr(report["A"], phase) == ("succeeded", 1, 5, None)


async def test_a_plain_function_is_called_without_a_coroutine() -> None:
    """Its caller is the engine: no frame of a coroutine, of sdax or not, lies between."""
    between = []

    def look(ctx: Any) -> None:
        task = asyncio.current_task()
        assert task is not None
        between.append(getattr(task.get_coro(), "cr_frame", None))

    await build([task("A", pre_execute=task_sync_func(look), execute=task_sync_func(look))]
    ).process_tasks(None)  # fmt: skip
    assert between == [None, None]


async def test_a_plain_function_has_an_asyncio_task_and_the_callers_variables() -> None:
    VARIABLE.set("the caller's")
    seen = []

    def look(ctx: Any) -> None:
        current = asyncio.current_task()
        assert current is not None
        seen.append((current.get_name(), VARIABLE.get()))
        VARIABLE.set("a function's")

    processor = build([task(n, execute=task_sync_func(look)) for n in range(3)])
    await processor.process_tasks(None)
    assert seen == [(f"sdax:{n}:execute", "the caller's") for n in range(3)]
    assert VARIABLE.get() == "the caller's"


@without_factory
async def test_plain_functions_never_go_through_the_loop() -> None:
    went = []
    asyncio.get_running_loop().call_soon(went.append, 1)
    function = task_sync_func(plain)
    processor = build(
        *([task((n, i), pre_execute=function, post_execute=function) for i in "ab"] for n in "xy")
    )
    await processor.process_tasks(None)
    assert went == []


async def test_plain_functions_keep_the_order_among_others() -> None:
    trace = Trace()
    processor = build(
        [
            task("A", execute=task_sync_func(lambda ctx: trace.append("A"))),
            task("B", execute=task_func(trace.pausing("B"))),
            task("C", execute=task_sync_func(lambda ctx: trace.append("C"))),
            task("D", execute=task_func(trace.quick("D"))),
        ]
    )
    await processor.process_tasks(None)
    assert trace == ["A", "B", "C", "D", "B done"]


@pytest.mark.parametrize("phase", PHASES)
async def test_a_plain_function_that_fails(phase: str) -> None:
    error = ValueError("mine")

    def fail(ctx: Any) -> None:
        raise error

    caught = await failure_of(one(task_sync_func(fail), phase))
    assert caught.exceptions == (error,)
    assert error.__notes__ == [f"task 'A', {phase}, attempt 1 of 1"]
    assert [*caught.failures] == [("A", phase, 1, error)]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), GeneratorExit()], ids=repr)
async def test_a_plain_function_that_raises_what_is_no_exception(error: BaseException) -> None:
    def fail(ctx: Any) -> None:
        raise error

    assert await error_of(one(task_sync_func(fail)).process_tasks(None)) is error


@pytest.mark.parametrize("limits", [{}, {"retries": 1}], ids=str)
async def test_stop_iteration_of_a_plain_function_is_a_failure(limits: Any) -> None:
    def fail(ctx: Any) -> None:
        raise StopIteration(1)

    caught = await failure_of(one(task_sync_func(fail, **limits)))
    assert isinstance(caught.exceptions[0], StopIteration)


async def test_a_cancelled_error_of_a_plain_function_is_a_failure() -> None:
    def fail(ctx: Any) -> None:
        raise asyncio.CancelledError

    caught = await failure_of(one(task_sync_func(fail)))
    assert isinstance(caught.exceptions[0], TaskCancelledError)


@pytest.mark.parametrize("phase", PHASES)
async def test_a_plain_function_is_retried(phase: str) -> None:
    outcomes = iter([ConnectionError(), RetryableException(), None])

    def flaky(ctx: Any) -> str:
        if error := next(outcomes):
            raise error
        return "value"

    function = task_sync_func(flaky, retries=5, initial_delay=0)
    report = await one(function, phase).process_tasks(None)
    assert getattr(report["A"], phase) == ("succeeded", 3, "value", None)


async def test_retries_of_a_plain_function_end() -> None:
    calls = []

    def fail(ctx: Any) -> None:
        calls.append(1)
        raise ConnectionError(len(calls))

    caught = await failure_of(one(task_sync_func(fail, retries=2, initial_delay=0)))
    assert str(caught.exceptions[0]) == "3"
    assert [failure.attempts for failure in caught.failures] == [3]


@pytest.mark.virtual_clock
async def test_a_plain_function_waits_between_attempts() -> None:
    loop = asyncio.get_running_loop()
    times = []

    def fail(ctx: Any) -> None:
        times.append(loop.time())
        raise ConnectionError

    began = loop.time()
    await failure_of(one(task_sync_func(fail, retries=2, initial_delay=4, backoff_factor=1)))
    assert len(times) == 3
    assert all(2 <= late - soon <= 4 for soon, late in pairwise(times))
    assert times[0] == began


@pytest.mark.parametrize("limits", [{}, {"retries": 2}, {"timeout": 5}], ids=str)
async def test_a_plain_function_that_returns_a_coroutine_is_refused(limits: Any) -> None:
    calls = []

    def asynchronous(ctx: Any) -> Any:
        calls.append(1)
        return nothing(ctx)

    caught = await failure_of(one(task_sync_func(asynchronous, **limits)))
    (error,) = caught.exceptions
    assert type(error) is TypeError
    assert "'A'" in str(error)
    assert "execute" in str(error)
    assert calls == [1]


async def test_what_is_awaitable_but_no_coroutine_is_a_value() -> None:
    future = asyncio.get_running_loop().create_future()
    report = await one(task_sync_func(lambda ctx: future)).process_tasks(None)
    assert report["A"].execute.value is future
    future.cancel()


class AsyncCallable:
    async def __call__(self, ctx: Any) -> None:
        """Do nothing."""

    async def method(self, ctx: Any) -> None:
        """Do nothing."""


@pytest.mark.parametrize("helper", [task_sync_func, task_thread_func])
@pytest.mark.parametrize(
    "function",
    [nothing, functools.partial(nothing), AsyncCallable().method, AsyncCallable()],
    ids=["function", "partial", "method", "object"],
)
def test_an_async_function_is_refused_as_a_plain_one(helper: Any, function: Any) -> None:
    with pytest.raises(TypeError, match="task_func") as caught:
        helper(function)
    assert helper.__name__ in str(caught.value)


async def test_a_class_of_such_objects_is_a_plain_function() -> None:
    class Context(AsyncCallable):
        def __init__(self, ctx: Any) -> None:
            self.ctx = ctx

    report = await one(task_sync_func(Context)).process_tasks(None)
    assert type(report["A"].execute.value) is Context


async def test_a_timeout_cannot_interrupt_a_plain_function() -> None:
    function = task_sync_func(lambda ctx: time.sleep(0.02) or "value", timeout=0.001)
    report = await one(function).process_tasks(None)
    assert report["A"].execute.value == "value"


async def test_a_plain_function_that_cancels_its_own_asyncio_task() -> None:
    """Nothing can be cancelled in it any more, nor is the next function touched."""
    trace = Trace()

    def cancel(ctx: Any) -> None:
        current = asyncio.current_task()
        assert current is not None
        current.cancel()

    processor = build(
        [
            task("A", execute=task_sync_func(cancel)),
            task("B", execute=task_func(trace.pausing("B"))),
        ]
    )
    await processor.process_tasks(None)
    assert trace == ["B", "B done"]


def test_a_plain_function_may_also_be_awaited() -> None:
    """What was made of it is a `TaskFunction` like any other, whose function may be called."""
    made: Any = task_sync_func(plain)
    with asyncio.Runner() as runner:
        assert runner.run(made.function(7)) == 7


# Functions in threads


@pytest.mark.parametrize("phase", PHASES)
async def test_a_thread_function_runs_in_another_thread(phase: str) -> None:
    function = task_thread_func(lambda ctx: (ctx, threading.get_ident()))
    report = await one(function, phase).process_tasks("context")
    ctx, thread = getattr(report["A"], phase).value
    assert ctx == "context"
    assert thread != threading.get_ident()


async def test_a_blocking_function_does_not_block_the_loop() -> None:
    freed = threading.Event()

    async def free(ctx: Any) -> None:
        await passes(2)
        freed.set()

    processor = build(
        [
            task("blocks", execute=task_thread_func(lambda ctx: freed.wait(5))),
            task("frees", execute=task_func(free)),
        ]
    )
    report = await processor.process_tasks(None)
    assert report["blocks"].execute.value is True


async def test_thread_functions_run_at_the_same_time() -> None:
    barrier = threading.Barrier(3, timeout=5)
    processor = build(
        [task(n, execute=task_thread_func(lambda ctx: barrier.wait())) for n in "abc"]
    )
    report = await processor.process_tasks(None)
    assert sorted(each.execute.value for each in report.values()) == [0, 1, 2]


async def test_context_variables_are_carried_into_the_thread_and_not_back() -> None:
    VARIABLE.set("the caller's")

    def look(ctx: Any) -> str:
        seen = VARIABLE.get()
        VARIABLE.set("the thread's")
        return seen

    processor = build([task(n, execute=task_thread_func(look)) for n in "ab"])
    report = await processor.process_tasks(None)
    assert {each.execute.value for each in report.values()} == {"the caller's"}
    assert VARIABLE.get() == "the caller's"


async def test_a_thread_function_that_fails_is_retried() -> None:
    outcomes = iter([ConnectionError(), None])

    def flaky(ctx: Any) -> str:
        if error := next(outcomes):
            raise error
        return "value"

    report = await one(task_thread_func(flaky, retries=1, initial_delay=0)).process_tasks(None)
    assert report["A"].execute == ("succeeded", 2, "value", None)


async def test_the_error_of_a_thread_function_is_its_own() -> None:
    error = ValueError("mine")

    def fail(ctx: Any) -> None:
        raise error

    assert (await failure_of(one(task_thread_func(fail)))).exceptions == (error,)


async def test_a_timeout_gives_a_thread_up() -> None:
    freed = threading.Event()
    try:
        caught = await failure_of(one(task_thread_func(lambda ctx: freed.wait(8), timeout=0.01)))
        assert not freed.is_set()
    finally:
        freed.set()
    assert states(caught.report) == {"A": "-T-"}


async def test_a_cancellation_gives_a_thread_up() -> None:
    began, freed = threading.Event(), threading.Event()

    def block(ctx: Any) -> None:
        began.set()
        freed.wait(8)

    run = spawn(one(task_thread_func(block)))
    try:
        await asyncio.to_thread(began.wait, 5)
        run.cancel()
        assert isinstance(await error_of(run), asyncio.CancelledError)
        assert not freed.is_set()
    finally:
        freed.set()


# Functions with a task group


async def test_the_group_is_an_asyncio_one_of_our_type() -> None:
    seen = []

    async def look(ctx: Any, group: SdaxTaskGroup) -> str:
        seen.append(group)
        return "value"

    report = await one(task_group_func(look)).process_tasks(None)
    assert type(seen[0]) is SdaxTaskGroup
    assert isinstance(seen[0], asyncio.TaskGroup)
    assert report["A"].execute.value == "value"


async def test_each_attempt_has_a_new_group() -> None:
    groups = []

    async def flaky(ctx: Any, group: SdaxTaskGroup) -> None:
        groups.append(group)
        if len(groups) < 3:
            raise ConnectionError

    report = await one(task_group_func(flaky, retries=2, initial_delay=0)).process_tasks(None)
    assert len({id(group) for group in groups}) == 3
    assert report["A"].execute.attempts == 3


@pytest.mark.parametrize("phase", PHASES)
async def test_what_is_created_in_the_group_is_awaited_before_the_attempt_ends(phase: str) -> None:
    trace = Trace()

    async def fan_out(ctx: Any, group: SdaxTaskGroup) -> None:
        trace.append("call")
        for n in range(3):
            group.create_task(trace.pausing(f"child {n}", n)(ctx))
        trace.append("return")

    processor = build([task_in(phase, task_group_func(fan_out))])
    after = task("Z", **{phase: task_func(trace.quick("next level"))})
    if phase == "pre_execute":
        processor = build([task_in(phase, task_group_func(fan_out))], [after])
    elif phase == "post_execute":
        processor = build([after], [task_in(phase, task_group_func(fan_out))])
    await processor.process_tasks(None)
    assert {f"child {n} done" for n in range(3)} <= {*trace}
    if phase != "execute":
        assert trace[-1] == "next level"


async def test_a_failed_child_fails_the_attempt() -> None:
    trace = Trace()
    error = ValueError("mine")

    async def fan_out(ctx: Any, group: SdaxTaskGroup) -> None:
        group.create_task(trace.failing("fails", error, 1)(ctx))
        group.create_task(trace.waiting("waits")(ctx))

    caught = await failure_of(one(task_group_func(fan_out)))
    (member,) = caught.exceptions
    assert isinstance(member, ExceptionGroup)
    assert member.exceptions == (error,)
    assert "waits cancelled" in trace


async def test_a_failed_child_is_retried_like_any_failure() -> None:
    attempts = []

    async def fan_out(ctx: Any, group: SdaxTaskGroup) -> str:
        attempts.append(group)
        if len(attempts) < 3:
            group.create_task(Trace().failing("", ConnectionError(), 1)(ctx))
            group.create_task(Trace().failing("", RetryableException(), 1)(ctx))
        return "value"

    report = await one(task_group_func(fan_out, retries=2, initial_delay=0)).process_tasks(None)
    assert report["A"].execute == ("succeeded", 3, "value", None)


async def test_a_group_with_one_failure_that_cannot_be_retried_is_not() -> None:
    attempts = []

    async def fan_out(ctx: Any, group: SdaxTaskGroup) -> None:
        attempts.append(group)
        group.create_task(Trace().failing("", ConnectionError(), 1)(ctx))
        group.create_task(Trace().failing("", ValueError(), 1)(ctx))

    await failure_of(one(task_group_func(fan_out, retries=2, initial_delay=0)))
    assert len(attempts) == 1


@pytest.mark.virtual_clock
async def test_a_timeout_cancels_what_is_in_the_group() -> None:
    trace = Trace()

    async def fan_out(ctx: Any, group: SdaxTaskGroup) -> None:
        group.create_task(trace.waiting("child")(ctx))

    function = task_group_func(fan_out, timeout=3, retries=1, initial_delay=0)
    caught = await failure_of(one(function))
    assert trace == ["child", "child cancelled"] * 2
    assert states(caught.report) == {"A": "-T-"}


@pytest.mark.parametrize("limits", [{}, {"retries": 2}, {"timeout": 5}], ids=str)
async def test_a_cancellation_cancels_what_is_in_the_group(limits: Any) -> None:
    trace = Trace()

    async def fan_out(ctx: Any, group: SdaxTaskGroup) -> None:
        group.create_task(trace.waiting("child")(ctx))
        await forever()

    run = spawn(one(task_group_func(fan_out, **limits)))
    await until(lambda: trace)
    run.cancel()
    assert isinstance(await error_of(run), asyncio.CancelledError)
    assert trace == ["child", "child cancelled"]


async def test_a_failed_sibling_cancels_what_is_in_the_group() -> None:
    trace = Trace()

    async def fan_out(ctx: Any, group: SdaxTaskGroup) -> None:
        group.create_task(trace.waiting("child")(ctx))

    processor = build(
        [
            task("A", execute=task_group_func(fan_out)),
            task("B", execute=task_func(trace.failing("B", ValueError(), 2))),
        ]
    )
    error = await failure_of(processor)
    assert "child cancelled" in trace
    assert states(error.report) == {"A": "-C-", "B": "-F-"}


async def test_a_group_is_closed_after_its_attempt() -> None:
    groups = []

    async def leak(ctx: Any, group: SdaxTaskGroup) -> None:
        groups.append(group)

    await one(task_group_func(leak)).process_tasks(None)
    late = nothing(None)
    with pytest.raises(RuntimeError):
        groups[0].create_task(late)
    late.close()


# Tasks


def test_task_makes_a_task() -> None:
    function = task_func(nothing)
    made = task("A", pre_execute=function, execute=function, post_execute=function)
    assert made == AsyncTask("A", function, function, function)
    assert type(made) is AsyncTask
    assert task(name=("k", 1), execute=function).name == ("k", 1)


def test_task_refuses_what_a_task_refuses() -> None:
    with pytest.raises(ValueError, match="join"):
        task("A")
    with pytest.raises(TypeError, match="hashable"):
        task(["A"], execute=task_func(nothing))  # type: ignore[type-var]
    with pytest.raises(TypeError, match="TaskFunction"):
        task("A", execute=nothing)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        task("A", task_func(nothing))  # type: ignore[misc]


async def test_join_makes_an_empty_node() -> None:
    node = join(("all", 1))
    assert isinstance(node, AsyncTask)
    assert node.name == ("all", 1)
    assert node.pre_execute is node.execute is node.post_execute is None
    assert node == join(("all", 1))
    assert hash(node) == hash(join(("all", 1)))
    assert pickle.loads(pickle.dumps(node)) == node
    report = await build([node], [task("A", execute=task_func(nothing))]).process_tasks(None)
    assert states(report) == {("all", 1): "---", "A": "-+-"}


# Names, and parameters of types


def test_aliases() -> None:
    assert task_group_task is task_group_func
    assert sdax.AsyncDagLevelAdapterBuilder is not None


@pytest.mark.parametrize(
    ("module", "names"),
    [
        (
            "sdax.sdax_core",
            "AsyncDagLevelAdapterBuilder AsyncDagTaskProcessor AsyncDagTaskProcessorBuilder "
            "AsyncPhaseRunner AsyncTask AsyncTaskProcessor AsyncTaskProcessorBuilder PhaseId "
            "SdaxExecutionError SdaxTaskGroup TaskFunction flatten_exceptions join",
        ),
        (
            "sdax.tasks",
            "AsyncTask RetryableException SdaxTaskGroup TaskFunction join task task_func "
            "task_group_func task_group_task task_sync_func task_thread_func",
        ),
    ],
)
def test_earlier_names_are_those_of_the_package(module: str, names: str) -> None:
    found = importlib.import_module(module)
    for name in names.split():
        assert getattr(found, name) is getattr(sdax, name)


def test_everything_that_the_package_names_is_there() -> None:
    assert sorted(sdax.__all__) == sorted({*sdax.__all__})
    for name in sdax.__all__:
        assert hasattr(sdax, name)
    core = importlib.import_module("sdax.sdax_core")
    for name in core.__all__:
        assert hasattr(core, name)


@pytest.mark.parametrize("parameters", [Context, (Context, str)], ids=["context", "and name"])
async def test_types_may_be_given_at_run_time(parameters: Any) -> None:
    function = TaskFunction[Context](nothing)
    assert function == TaskFunction(nothing)
    made = AsyncTask[parameters]("A", execute=function)
    assert made == AsyncTask("A", execute=function)
    for processor in (AsyncTaskProcessor, AsyncDagTaskProcessor):
        builder = processor[parameters].builder()
        arguments = (1,) if processor is AsyncTaskProcessor else ()
        built = builder.add_task(made, *arguments).build()
        assert states(await built.process_tasks(Context(value=1))) == {"A": "-+-"}
    for name in ("graph_builder", "elevator_builder"):
        assert getattr(AsyncTaskProcessor[parameters], name)().build() is not None
    for builder_class in (
        sdax.AsyncTaskProcessorBuilder,
        sdax.AsyncDagTaskProcessorBuilder,
        sdax.AsyncDagLevelAdapterBuilder,
    ):
        assert builder_class[parameters]().build() is not None
    assert sdax.AsyncPhaseRunner[parameters] is not None
