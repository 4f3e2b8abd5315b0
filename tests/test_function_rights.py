"""What a function may rely on while it runs: an `asyncio.Task` and a context of its own."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import inspect
import io
import sys
import types
import weakref
from collections.abc import Callable, Generator
from typing import Any

import anyio
import pytest

from helpers import (
    PHASES,
    Trace,
    build,
    error_of,
    failure_of,
    forever,
    nothing,
    passes,
    solo,
    spawn,
    states,
    task,
    task_in,
    until,
)
from sdax import SdaxExecutionError, TaskCancelledError, TaskFunction

soon_or_late = pytest.mark.parametrize("number", [0, 1], ids=["at once", "suspended"])

LIMITS = pytest.mark.parametrize(
    "limits", [{}, {"timeout": 60.0, "retries": 1}], ids=["bare", "limited"]
)

var: contextvars.ContextVar[str] = contextvars.ContextVar("var", default="unset")


class Broken(Exception):
    """What functions here raise."""


def context_of(task: Any) -> contextvars.Context:
    context: contextvars.Context = task.get_context()
    return context


def current() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None
    return task


# A real asyncio.Task


@LIMITS
@pytest.mark.parametrize("phase", PHASES)
async def test_the_current_task_is_the_same_before_and_after_every_await(
    phase: str, limits: Any
) -> None:
    caller = current()
    seen: list[asyncio.Task[Any]] = []

    async def look(ctx: Any) -> None:
        first = current()
        assert isinstance(first, asyncio.Task)
        assert first is not caller
        assert not first.done()
        for _ in range(3):
            await asyncio.sleep(0)
            assert current() is first
        seen.append(first)

    await build(
        [task_in(phase, TaskFunction(look, **limits), name=name) for name in "ABC"]
    ).process_tasks(None)
    assert len(set(seen)) == 3
    assert all(each.done() for each in seen)
    assert current() is caller


@LIMITS
async def test_a_function_that_never_suspends_has_a_task_too(limits: Any) -> None:
    caller = current()

    async def look(ctx: Any) -> None:
        assert isinstance(current(), asyncio.Task)
        assert current() is not caller
        assert not current().done()

    function = TaskFunction(look, **limits)
    await solo(function, function, function).process_tasks(None)
    assert current() is caller


async def test_the_callable_itself_runs_in_the_task() -> None:
    seen: list[Any] = []

    def function(ctx: Any) -> Any:
        seen.append(current())
        return look()

    async def look() -> None:
        seen.append(current())
        await asyncio.sleep(0)
        seen.append(current())

    await solo(function).process_tasks(None)
    assert len(seen) == 3
    assert len(set(seen)) == 1


async def test_all_attempts_run_in_one_task() -> None:
    seen: list[Any] = []

    async def look(ctx: Any) -> None:
        seen.append(current())
        if len(seen) < 3:
            raise ConnectionError

    await solo(TaskFunction(look, retries=2, initial_delay=0)).process_tasks(None)
    assert len(set(seen)) == 1


async def test_names_and_all_tasks() -> None:
    named: list[tuple[str, bool]] = []

    async def look(ctx: Any) -> None:
        await asyncio.sleep(0)
        named.append((current().get_name(), current() in asyncio.all_tasks()))

    await build(
        [task("A", look, look, look), task(("b", 2), look)],
    ).process_tasks(None)
    assert named == [
        ("sdax:A:pre_execute", True),
        ("sdax:('b', 2):pre_execute", True),
        ("sdax:A:execute", True),
        ("sdax:A:post_execute", True),
    ]


async def test_names_before_the_first_await() -> None:
    names: list[str] = []

    async def look(ctx: Any) -> None:
        names.append(current().get_name())

    await solo(look, look, look).process_tasks(None)
    assert names == ["sdax:A:pre_execute", "sdax:A:execute", "sdax:A:post_execute"]


async def test_suspended_functions_are_in_all_tasks() -> None:
    gate = asyncio.Event()
    trace = Trace()

    before = asyncio.all_tasks()
    run = spawn(build([task(name, trace.waiting(name, gate)) for name in "ABC"]))
    await until(lambda: len(trace) == 3)
    new = asyncio.all_tasks() - before - {run}
    assert {each.get_name() for each in new} == {f"sdax:{name}:pre_execute" for name in "ABC"}
    gate.set()
    await run
    assert asyncio.all_tasks() == before


async def test_finished_functions_are_not_in_all_tasks() -> None:
    before = asyncio.all_tasks()
    await build([task(name, nothing) for name in "ABC"]).process_tasks(None)
    assert asyncio.all_tasks() == before


# Shared by nobody who could notice


def keep_it(kept: list[Any]) -> None:
    kept.append(current())


def keep_a_weak_reference(kept: list[Any]) -> None:
    kept.append(weakref.ref(current()))


def keep_a_weak_key(kept: list[Any]) -> None:
    kept.append(weakref.WeakKeyDictionary({current(): "mine"}))


def add_a_callback(kept: list[Any]) -> None:
    current().add_done_callback(kept.append)


def rename_it(kept: list[Any]) -> None:
    current().set_name("mine")


def cancel_it(kept: list[Any]) -> None:
    current().cancel()


def cancel_and_uncancel_it(kept: list[Any]) -> None:
    current().cancel()
    current().uncancel()


def cancel_it_twice_and_uncancel_it_once(kept: list[Any]) -> None:
    current().cancel()
    current().cancel()
    current().uncancel()


def set_an_attribute(kept: list[Any]) -> None:
    with contextlib.suppress(AttributeError):  # not every asyncio.Task allows it
        current().mine = True  # type: ignore[attr-defined]


def keep_its_coroutine(kept: list[Any]) -> None:
    kept.append(current().get_coro())


def keep_its_stack(kept: list[Any]) -> None:
    kept.append(current().get_stack())


def keep_a_timeout(kept: list[Any]) -> None:
    kept.append(asyncio.timeout(60))


def keep_a_bound_method(kept: list[Any]) -> None:
    kept.append(current().cancel)


TRACES = [
    keep_it,
    keep_a_weak_reference,
    keep_a_weak_key,
    add_a_callback,
    rename_it,
    cancel_it,
    cancel_and_uncancel_it,
    cancel_it_twice_and_uncancel_it_once,
    set_an_attribute,
    keep_its_coroutine,
    keep_its_stack,
    keep_a_timeout,
    keep_a_bound_method,
]


def same_task_as(kept: list[Any]) -> bool:
    """Tell whether the current asyncio.Task, or part of it, is what another function kept."""
    me = current()
    for each in kept:
        if each is me or each is me.get_coro():
            return True
        if isinstance(each, weakref.ref) and each() is me:
            return True
        if isinstance(each, weakref.WeakKeyDictionary) and me in each:
            return True
        if getattr(each, "__self__", None) is me:
            return True
    return False


@soon_or_late
@LIMITS
@pytest.mark.parametrize("leave_a_trace", TRACES)
async def test_the_next_function_has_another_task(
    leave_a_trace: Callable[[list[Any]], None], limits: Any, number: int
) -> None:
    kept: list[Any] = []
    looked: list[str] = []

    async def first(ctx: Any) -> None:
        leave_a_trace(kept)

    async def look(ctx: Any) -> None:
        me = current()
        assert not same_task_as(kept)
        assert me.cancelling() == 0
        assert me.get_name().startswith("sdax:")
        assert not hasattr(me, "mine")
        await passes(number)  # a cancellation that is on its way would arrive
        assert not me.done()
        # Nobody's callback has been called, or is to be called, for this one.
        assert me not in kept
        looked.append(me.get_name())

    # Beside it, above it, and in the later phases.
    await build(
        [
            task("A", TaskFunction(first, **limits), look, look),
            task("B", TaskFunction(look, **limits)),
            task("C", first),
        ],
        [task("D", look, first, look)],
    ).process_tasks(None)
    assert len(looked) == 5
    if leave_a_trace is add_a_callback:
        await until(lambda: len(kept) == 3)
        assert len(set(map(id, kept))) == 3
        assert all(isinstance(each, asyncio.Task) and each.done() for each in kept)


@soon_or_late
async def test_a_trace_left_after_a_failure(number: int) -> None:
    kept: list[Any] = []

    async def fail(ctx: Any) -> None:
        kept.append(current())
        raise Broken

    async def look(ctx: Any) -> None:
        assert current() is not kept[0]
        await passes(number)
        kept.append(current())

    error = await failure_of(build([task("A", fail, post=look), task("B", post=look)]))
    assert len(error.exceptions) == 1
    assert len(set(kept)) == 3


async def test_a_finished_function_leaves_a_finished_task() -> None:
    kept: list[asyncio.Task[Any]] = []

    async def keep(ctx: Any) -> None:
        kept.append(current())

    async def look(ctx: Any) -> None:
        # All but the one that called this here.
        await asyncio.sleep(0)
        assert kept[0].done()

    await build([task("A", keep)], [task("B", look)]).process_tasks(None)


async def test_awaiting_the_task_of_another_function() -> None:
    trace = Trace()
    kept: list[asyncio.Task[Any]] = []
    gate = asyncio.Event()

    async def first(ctx: Any) -> None:
        kept.append(current())
        await gate.wait()
        trace.append("first")

    async def second(ctx: Any) -> None:
        await asyncio.sleep(0)
        gate.set()
        await kept[0]
        trace.append("second")

    await build([task("A", first), task("B", second)]).process_tasks(None)
    assert trace == ["first", "second"]


@pytest.mark.skipif(sys.version_info < (3, 12), reason="Task.get_context is new in 3.12")
@soon_or_late
async def test_get_context_is_the_context_of_the_function(number: int) -> None:
    wrong: list[Any] = []

    def function(name: str) -> Any:
        async def set_and_look(ctx: Any) -> None:
            var.set(name)
            if context_of(current()).get(var) != name:
                wrong.append(name)
            await passes(number)
            if context_of(current()).get(var) != name:
                wrong.append(name)

        return set_and_look

    await build(
        [task(name, *(function(name + phase) for phase in PHASES)) for name in "ABC"]
    ).process_tasks(None)
    assert wrong == []


# asyncio's tools inside, before the first await too


@pytest.mark.virtual_clock
@soon_or_late
@LIMITS
async def test_timeout_inside(number: int, limits: Any) -> None:
    trace = Trace()

    async def function(ctx: Any) -> None:
        await passes(number)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3):
                await forever()
        trace.append("in time")
        assert current().cancelling() == 0
        await asyncio.sleep(0)

    function_limited = TaskFunction(function, **limits)
    report = await build(
        [
            task("A", *[function_limited] * 3),
            task("B", trace.pausing("B", 1)),
        ]
    ).process_tasks(None)
    assert trace.count("in time") == 3
    assert states(report) == {"A": "+++", "B": "+--"}


@pytest.mark.virtual_clock
@soon_or_late
async def test_a_timeout_inside_that_is_left_in_time(number: int) -> None:
    async def function(ctx: Any) -> None:
        async with asyncio.timeout(3):
            await passes(number)

    async def slow(ctx: Any) -> None:
        await asyncio.sleep(10)

    # The next functions of the same asyncio.Task, if it were the same, would be cancelled at 3.
    report = await solo(function, slow, slow).process_tasks(None)
    assert states(report) == {"A": "+++"}


@pytest.mark.virtual_clock
@soon_or_late
async def test_wait_for_inside(number: int) -> None:
    async def function(ctx: Any) -> str:
        await passes(number)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(forever(), 3)
        return await asyncio.wait_for(asyncio.sleep(1, "slept"), 3)

    report = await solo(function, function, function).process_tasks(None)
    assert report["A"].post_execute.value == "slept"


@soon_or_late
async def test_task_group_inside(number: int) -> None:
    trace = Trace()

    async def function(ctx: Any) -> list[str]:
        await passes(number)
        async with asyncio.TaskGroup() as group:
            children = [group.create_task(asyncio.sleep(0, name)) for name in "xy"]
        return [child.result() for child in children]

    async def failing(ctx: Any) -> None:
        await passes(number)
        with pytest.raises(ExceptionGroup):
            async with asyncio.TaskGroup() as group:
                group.create_task(trace.failing("child", Broken())(None))
                await forever()
        assert current().cancelling() == 0
        await asyncio.sleep(0)

    report = await build(
        [task("A", function, function, function), task("B", failing, failing, failing)]
    ).process_tasks(None)
    assert states(report) == {"A": "+++", "B": "+++"}
    assert report["A"].execute.value == ["x", "y"]


async def test_the_failure_of_a_task_group_inside_stays_one_member() -> None:
    broken = [Broken(1), Broken(2)]

    async def fail(error: Exception) -> None:
        await asyncio.sleep(0)
        raise error

    async def function(ctx: Any) -> None:
        async with asyncio.TaskGroup() as group:
            for error in broken:
                group.create_task(fail(error))

    error = await failure_of(solo(function))
    (member,) = error.exceptions
    assert type(member) is ExceptionGroup
    assert error.leaf_exceptions() == broken


@soon_or_late
async def test_shield_inside(number: int) -> None:
    trace = Trace()
    gate = asyncio.Event()
    shielded: list[Any] = []

    async def function(ctx: Any) -> None:
        await passes(number)
        shielded.append(asyncio.ensure_future(trace.waiting("child", gate)(None)))
        await asyncio.shield(shielded[0])

    run = spawn(solo(function))
    await until(lambda: trace)
    run.cancel()
    assert isinstance(await error_of(run), asyncio.CancelledError)
    gate.set()
    await shielded[0]
    assert trace == ["child", "child done"]


@soon_or_late
async def test_uncancel_inside(number: int) -> None:
    async def function(ctx: Any) -> str:
        await passes(number)
        current().cancel()
        try:
            await forever()
        except asyncio.CancelledError:
            assert current().uncancel() == 0
        await asyncio.sleep(0)
        async with asyncio.timeout(60):
            await asyncio.sleep(0)
        return "survived"

    report = await solo(function, function, function).process_tasks(None)
    assert [phase.value for phase in report["A"]] == ["survived"] * 3


@soon_or_late
async def test_anyio_inside(number: int) -> None:
    trace = Trace()

    async def function(ctx: Any) -> None:
        await passes(number)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await anyio.sleep_forever()
        assert scope.cancelled_caught
        with anyio.move_on_after(0) as scope:
            await anyio.sleep_forever()
        assert scope.cancelled_caught
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.sleep, 0)
            group.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            await anyio.lowlevel.checkpoint()
        assert current().cancelling() == 0
        trace.append("survived")

    report = await build(
        [task("A", function, function, function), task("B", function, nothing, function)]
    ).process_tasks(None)
    assert states(report) == {"A": "+++", "B": "+++"}
    assert trace == ["survived"] * 5


async def test_an_anyio_scope_around_a_run() -> None:
    trace = Trace()
    with anyio.move_on_after(0.001) as scope:
        await solo(trace.waiting("A"), post=trace.quick("post")).process_tasks(None)
    assert scope.cancelled_caught
    assert trace == ["A", "A cancelled", "post"]


# Context variables


@LIMITS
@soon_or_late
async def test_functions_see_what_the_caller_has_set(number: int, limits: Any) -> None:
    seen: list[str] = []

    async def look(ctx: Any) -> None:
        seen.append(var.get())
        await passes(number)
        seen.append(var.get())

    token = var.set("callers")
    try:
        function = TaskFunction(look, **limits)
        await build(
            [task("A", function, function, function)], [task("B", function, function, function)]
        ).process_tasks(None)
    finally:
        var.reset(token)
    assert seen == ["callers"] * 12


@LIMITS
@soon_or_late
async def test_what_a_function_sets_reaches_nobody_else(number: int, limits: Any) -> None:
    seen: list[str] = []

    def function(name: str) -> TaskFunction[Any]:
        async def set_and_look(ctx: Any) -> None:
            seen.append(var.get())
            var.set(name)
            await passes(number)
            seen.append(var.get())

        return TaskFunction(set_and_look, **limits)

    def member(name: str) -> Any:
        return task(name, *(function(f"{name} {phase}") for phase in PHASES))

    assert var.get() == "unset"
    await build([member("A"), member("B")], [member("C")]).process_tasks(None)
    assert var.get() == "unset"
    assert seen.count("unset") == 9
    assert sorted(set(seen) - {"unset"}) == sorted(
        f"{name} {phase}" for name in "ABC" for phase in PHASES
    )


@LIMITS
@soon_or_late
async def test_set_and_reset_across_awaits(number: int, limits: Any) -> None:
    async def set_and_reset(ctx: Any) -> None:
        await passes(number)
        token = var.set("mine")
        await passes(2)
        assert var.get() == "mine"
        # Raises ValueError when this is not the very same context.
        var.reset(token)
        assert var.get() == "unset"
        await asyncio.sleep(0)
        assert var.get() == "unset"

    function = TaskFunction(set_and_reset, **limits)
    await build([task(name, function, function, function) for name in "ABC"]).process_tasks(None)


async def test_children_and_callbacks_have_the_functions_context() -> None:
    seen: list[str] = []

    async def child() -> None:
        seen.append(f"child {var.get()}")

    async def function(ctx: Any) -> None:
        var.set("mine")
        asyncio.get_running_loop().call_soon(lambda: seen.append(f"callback {var.get()}"))
        await asyncio.create_task(child())
        await asyncio.sleep(0)

    await build([task("0", nothing), task("A", function)]).process_tasks(None)
    assert sorted(seen) == ["callback mine", "child mine"]


async def test_the_callable_itself_runs_in_the_context() -> None:
    seen: list[str] = []

    def function(ctx: Any) -> Any:
        var.set("by the callable")
        return look()

    async def look() -> None:
        seen.append(var.get())
        await asyncio.sleep(0)
        seen.append(var.get())

    await build([task("A", function), task("B", function)]).process_tasks(None)
    assert seen == ["by the callable"] * 4
    assert var.get() == "unset"


async def test_cancellation_and_timeout_arrive_in_the_functions_context() -> None:
    seen: list[str] = []

    async def look(ctx: Any) -> None:
        var.set("mine")
        try:
            await forever()
        finally:
            seen.append(var.get())

    async def fail(ctx: Any) -> None:
        await asyncio.sleep(0)
        raise Broken

    await failure_of(build([task("A", look), task("B", fail)]))
    await failure_of(solo(TaskFunction(look, timeout=0)))
    assert seen == ["mine", "mine"]


async def test_later_functions_see_the_callers_variables_as_they_were() -> None:
    # What the caller sets meanwhile, in another asyncio.Task with the same context, is too late.
    seen: list[str] = []
    gate = asyncio.Event()

    async def look(ctx: Any) -> None:
        seen.append(var.get())

    async def wait(ctx: Any) -> None:
        var.set("the driver's own")
        await gate.wait()

    context = contextvars.copy_context()
    context.run(var.set, "callers")
    processor = build([task("A", wait)], [task("B", look, look, look)])
    run = asyncio.get_running_loop().create_task(processor.process_tasks(None), context=context)
    await passes(3)
    context.run(var.set, "too late")
    gate.set()
    await run
    assert seen == ["callers"] * 3


# Task factories


class Recorder:
    """A task factory that notes what it makes."""

    def __init__(self, make: Any = None) -> None:
        self.made: list[asyncio.Task[Any]] = []
        self.make = make or (lambda loop, coro, **kw: asyncio.Task(coro, loop=loop, **kw))

    def __call__(self, loop: Any, coroutine: Any, **options: Any) -> Any:
        made = self.make(loop, coroutine, **options)
        self.made.append(made)
        return made


class OwnTask(asyncio.Task):  # type: ignore[type-arg]
    """What a task factory may make."""


# uvloop does not get along with eager task factories on every Python.
asyncio_only = pytest.mark.loop_kinds("asyncio", "debug")


async def awaited(coroutine: Any) -> None:
    await coroutine


@types.coroutine
def delegated(coroutine: Any) -> Generator[Any, Any, None]:
    yield from coroutine


@types.coroutine
def stepped(coroutine: Any) -> Generator[Any, Any, None]:
    """Step a coroutine by hand, as tools do that measure each step."""
    step = functools.partial(coroutine.send, None)
    while True:
        try:
            yielded = step()
        except StopIteration:
            return
        try:
            step = functools.partial(coroutine.send, (yield yielded))
        except BaseException as exception:
            step = functools.partial(coroutine.throw, exception)


def own_task_factories() -> list[Any]:
    def wrapping(wrap: Any) -> Any:
        # From Python 3.12 on an asyncio.Task takes no generator, not even as a coroutine.
        return lambda loop, coro, **kw: OwnTask(awaited(wrap(coro)), loop=loop, **kw)

    factories = [
        pytest.param(lambda loop, coro, **kw: OwnTask(coro, loop=loop, **kw), id="lazy"),
        *(pytest.param(wrapping(wrap), id=wrap.__name__) for wrap in (awaited, delegated, stepped)),
    ]
    if sys.version_info >= (3, 12):
        factories.append(pytest.param(asyncio.create_eager_task_factory(OwnTask), id="eager"))
    return factories


@asyncio_only
@pytest.mark.parametrize("make", own_task_factories())
@soon_or_late
async def test_a_task_factory_makes_the_task_of_every_function(make: Any, number: int) -> None:
    loop = asyncio.get_running_loop()
    recorder = Recorder(make)
    seen: list[Any] = []

    async def look(ctx: Any) -> None:
        me = current()
        assert type(me) is OwnTask
        assert me.get_name() == f"sdax:{ctx[len(seen)]}"
        seen.append(me)
        await passes(number)
        assert current() is me
        assert var.get() == "callers"

    names = [f"A:{PHASES[0]}", f"B:{PHASES[0]}", *(f"{name}:{PHASES[1]}" for name in "AB")]
    token = var.set("callers")
    loop.set_task_factory(recorder)
    try:
        await build([task("A", look, look), task("B", look, look)]).process_tasks(names)
    finally:
        loop.set_task_factory(None)
        var.reset(token)
    assert len(set(seen)) == 4
    assert recorder.made == seen


@asyncio_only
@pytest.mark.parametrize("make", own_task_factories())
async def test_failures_and_cancellation_with_a_task_factory(make: Any) -> None:
    loop = asyncio.get_running_loop()
    trace = Trace()
    loop.set_task_factory(make)
    try:
        error = await failure_of(
            build(
                [
                    task("A", trace.waiting("A"), post=trace.pausing("A.post")),
                    task("B", trace.failing("B", Broken(), 2), post=trace.quick("B.post")),
                    task("C", TaskFunction(trace.waiting("C"), timeout=60)),
                ]
            )
        )
        assert states(error.report) == {"A": "C-+", "B": "F-+", "C": "C--"}
        del trace[:]
        run = spawn(solo(trace.waiting("A"), post=trace.pausing("post")))
        await until(lambda: trace)
        run.cancel()
        assert isinstance(await error_of(run), asyncio.CancelledError)
        assert trace == ["A", "A cancelled", "post", "post done"]
        error = await failure_of(solo(TaskFunction(forever, timeout=0.001)))
        assert type(error.exceptions[0]) is TimeoutError
    finally:
        loop.set_task_factory(None)


@asyncio_only
async def test_a_lazy_factorys_function_cancelled_before_its_first_step_is_never_called() -> None:
    loop = asyncio.get_running_loop()
    trace = Trace()
    loop.set_task_factory(Recorder())
    try:
        error = await failure_of(
            build(
                [
                    task("A", trace.failing("A", Broken()), post=trace.quick("A.post")),
                    task("B", trace.quick("B"), post=trace.quick("B.post")),
                ]
            )
        )
    finally:
        loop.set_task_factory(None)
    assert trace == ["A", "A.post"]
    assert states(error.report) == {"A": "F-+", "B": "s-s"}


@asyncio_only
async def test_a_lazy_factorys_task_cancelled_by_other_code_before_its_first_step() -> None:
    loop = asyncio.get_running_loop()
    trace = Trace()
    recorder = Recorder()
    run = asyncio.Task(failure_of(solo(trace.quick("A"), post=trace.quick("A.post"))))
    loop.set_task_factory(recorder)
    try:
        await until(lambda: recorder.made)
        if not trace:
            recorder.made[0].cancel()
        error = await run
    finally:
        loop.set_task_factory(None)
    assert type(error.exceptions[0]) is TaskCancelledError
    assert trace == []


class RefusedError(Exception):
    """What a task factory raises that makes no more tasks."""


@asyncio_only
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("allowed", [0, 1])
@pytest.mark.parametrize("closes", [False, True])
async def test_a_task_factory_that_refuses(phase: str, allowed: int, closes: bool) -> None:
    loop = asyncio.get_running_loop()
    refused: list[RefusedError] = []
    made: list[Any] = []
    trace = Trace()

    def factory(loop: Any, coroutine: Any, **options: Any) -> Any:
        if phase in str(len(made)) or len(made) == allowed:
            made.append(None)
            refused.append(RefusedError())
            if closes:
                coroutine.close()
            raise refused[-1]
        made.append(asyncio.Task(coroutine, loop=loop, **options))
        return made[-1]

    loop.set_task_factory(factory)
    try:
        error = await failure_of(
            build([task_in(phase, trace.pausing(name, 3), name=name) for name in "ABC"])
        )
    finally:
        loop.set_task_factory(None)
    # A function that could not be called is a failure like any other.
    assert error.exceptions == tuple(refused)
    assert len(refused) == 1
    assert error.failures[0][:2] == ("AB"[allowed], phase)
    if phase == "post_execute":
        assert [event for event in trace if event.endswith("done")] == [
            f"{name} done" for name in "ABC" if name != "AB"[allowed]
        ]
    else:
        assert "C" not in trace


# Seen from outside


async def user_code(gate: asyncio.Event) -> None:
    await gate.wait()


async def test_repr_and_stack_show_the_users_code() -> None:
    gate = asyncio.Event()
    kept: list[asyncio.Task[Any]] = []

    def function(limits: Any) -> TaskFunction[Any]:
        async def users_function(ctx: Any) -> None:
            kept.append(current())
            await user_code(gate)

        return TaskFunction(users_function, **limits)

    run = spawn(
        build(
            [
                task("A", function({})),
                task("B", function({"timeout": 60.0})),
                task("0", nothing),
                task("C", function({})),
            ]
        )
    )
    await until(lambda: len(kept) == 3)
    await asyncio.sleep(0)
    for each in kept:
        assert "users_function" in repr(each)
        assert "test_function_rights.py" in repr(each)
        stack = each.get_stack()
        assert stack[0].f_code.co_name == "users_function"
        printed = io.StringIO()
        each.print_stack(file=printed)
        assert "await user_code(gate)" in printed.getvalue()
        coroutine: Any = each.get_coro()
        assert coroutine.cr_frame.f_code.co_name == "users_function"
        assert coroutine.cr_await.cr_code.co_name == "user_code"
        assert inspect.getcoroutinestate(coroutine) == inspect.CORO_SUSPENDED
        assert coroutine.__name__ == "users_function"
        assert coroutine.__qualname__.endswith("users_function")
    gate.set()
    await run


async def test_repr_of_tasks_at_any_time() -> None:
    kept: list[asyncio.Task[Any]] = []

    async def look(ctx: Any) -> None:
        kept.append(current())
        repr(current())
        current().get_stack()
        current().print_stack(file=io.StringIO())
        await asyncio.sleep(0)
        repr(current())
        current().print_stack(file=io.StringIO())

    async def quick(ctx: Any) -> None:
        kept.append(current())
        repr(current())

    await build(
        [task("A", look), task("B", quick), task("C", quick, TaskFunction(look, timeout=60))]
    ).process_tasks(None)
    await asyncio.sleep(0)
    for each in kept:
        repr(each)
        each.get_stack()
        each.print_stack(file=io.StringIO())


@pytest.mark.skipif(sys.version_info < (3, 14), reason="call graphs are new in 3.14")
async def test_call_graphs_show_the_caller_and_the_users_code() -> None:
    gate = asyncio.Event()
    kept: list[asyncio.Task[Any]] = []

    async def users_function(ctx: Any) -> None:
        kept.append(current())
        await user_code(gate)

    run = spawn(
        build(
            [
                task("0", nothing),
                task("A", users_function),
                task("B", TaskFunction(users_function, timeout=60)),
            ]
        )
    )
    await until(lambda: len(kept) == 2)
    await asyncio.sleep(0)
    for each in kept:
        graph = asyncio.capture_call_graph(each)  # type: ignore[attr-defined]
        assert graph is not None
        names = [entry.frame.f_code.co_name for entry in graph.call_stack]
        assert "users_function" in names
        assert "user_code" in names
        assert [awaiting.future for awaiting in graph.awaited_by] == [run]
    gate.set()
    await run
    assert not kept[0]._asyncio_awaited_by  # type: ignore[attr-defined]


# Callers without an asyncio.Task


def drive(coroutine: Any, done: Callable[[Any, BaseException | None], None]) -> None:
    """Run a coroutine in the running loop, but in no asyncio.Task."""

    def step(future: Any = None) -> None:
        try:
            yielded = coroutine.send(None)
        except StopIteration as stop:
            done(stop.value, None)
        except BaseException as error:
            done(None, error)
        else:
            if yielded is None:
                loop.call_soon(step)
            else:
                yielded._asyncio_future_blocking = False
                yielded.add_done_callback(step)

    loop = asyncio.get_running_loop()
    loop.call_soon(step)


@soon_or_late
async def test_a_caller_without_a_task(number: int) -> None:
    finished = asyncio.get_running_loop().create_future()
    callers: list[Any] = []
    trace = Trace()

    async def look(ctx: Any) -> None:
        callers.append(current())
        await passes(number)
        assert current() is callers[-1]

    async def by_hand() -> Any:
        assert asyncio.current_task() is None
        report = await build(
            [task("A", look, trace.pausing("A"), look)], [task("B", TaskFunction(look, timeout=60))]
        ).process_tasks(None)
        assert asyncio.current_task() is None
        return report

    drive(by_hand(), lambda value, error: finished.set_result((value, error)))
    report, error = await finished
    assert error is None
    assert states(report) == {"A": "+++", "B": "+--"}


async def test_a_failure_for_a_caller_without_a_task() -> None:
    finished = asyncio.get_running_loop().create_future()
    trace = Trace()
    processor = build(
        [
            task("A", trace.waiting("A"), post=trace.quick("post")),
            task("B", trace.failing("B", Broken(), 1)),
        ]
    )
    drive(processor.process_tasks(None), lambda value, error: finished.set_result((value, error)))
    report, error = await finished
    assert report is None
    assert isinstance(error, SdaxExecutionError)
    assert trace == ["A", "B", "A cancelled", "post"]


# Between the first step and the next pass of the loop: on Python 3.11 the loop has yet to hear
# what the function waits for.


class Window:
    """Functions that wait, each for a future of a certain kind, and how to end the waiting."""

    def __init__(self, kind: str) -> None:
        loop = asyncio.get_running_loop()
        self.trace = Trace()
        self.child: asyncio.Task[Any] | None = None
        if kind == "future":
            self.future: Any = loop.create_future()
        elif kind == "shared future":
            self.future = loop.create_future()
            self.child = asyncio.Task(self.wait())
        elif kind == "task":
            self.future = asyncio.Task(self.trace.waiting("owner")(None))
        elif kind == "gather":
            self.future = asyncio.gather(asyncio.Task(forever()), asyncio.Task(forever()))
        elif kind == "shield":
            self.inner = loop.create_future()
            self.future = asyncio.shield(self.inner)

    async def wait(self) -> None:
        await self.future

    async def function(self, ctx: Any) -> None:
        self.trace.append("called")
        try:
            await self.future
        except asyncio.CancelledError:
            self.trace.append("cancelled")
            raise


KINDS = pytest.mark.parametrize("kind", ["future", "shared future", "task", "gather", "shield"])


@KINDS
@LIMITS
@pytest.mark.parametrize("by", ["a sibling", "the caller", "itself"])
async def test_cancelled_between_the_first_step_and_the_next_pass(
    kind: str, by: str, limits: Any
) -> None:
    window = Window(kind)
    await passes(2)  # those who were there before wait already
    owned: list[asyncio.Task[Any]] = []

    async def own_and_wait(ctx: Any) -> None:
        owned.append(current())
        await window.function(ctx)

    async def act(ctx: Any) -> None:
        if by == "a sibling":
            raise Broken
        if by == "the caller":
            run.cancel()
        elif owned:
            owned[0].cancel()
        await passes(2)

    run = asyncio.Task(
        build(
            [
                task("A", TaskFunction(own_and_wait, **limits), post=window.trace.quick("post")),
                task("B", act),
            ]
        ).process_tasks(None)
    )
    error = await error_of(run)
    assert "cancelled" in window.trace
    assert window.trace[-1] == "post"
    # Whoever owns the future has been told, as it would have been by `await`.
    assert window.future.done()
    assert isinstance(await error_of(window.future), asyncio.CancelledError)
    if kind == "task":
        assert "owner cancelled" in window.trace
    if kind == "shield":
        assert not window.inner.done()
    if window.child is not None:
        assert isinstance(await error_of(window.child), asyncio.CancelledError)
    if by == "the caller":
        assert isinstance(error, asyncio.CancelledError)
    else:
        assert isinstance(error, SdaxExecutionError)
        kind_of_error = Broken if by == "a sibling" else TaskCancelledError
        assert [type(each) for each in error.exceptions] == [kind_of_error]


@pytest.mark.parametrize("how", ["result", "exception", "cancel"])
@LIMITS
async def test_a_future_done_between_the_first_step_and_the_next_pass(
    how: str, limits: Any
) -> None:
    future = asyncio.get_running_loop().create_future()
    broken = Broken()

    async def wait(ctx: Any) -> str:
        result: str = await future
        return result

    async def end(ctx: Any) -> None:
        if how == "result":
            future.set_result("value")
        elif how == "exception":
            future.set_exception(broken)
        else:
            future.cancel("given up")
        await passes(3)

    run = spawn(build([task("A", TaskFunction(wait, **limits)), task("B", end)]))
    if how == "result":
        assert (await run)["A"].pre_execute.value == "value"
        return
    error = await error_of(run)
    assert isinstance(error, SdaxExecutionError)
    assert type(error.exceptions[0]) is (Broken if how == "exception" else TaskCancelledError)
    assert states(error.report) == {"A": "F--", "B": "C--"}


async def test_one_future_for_several_functions_in_the_window() -> None:
    future = asyncio.get_running_loop().create_future()

    async def wait(ctx: Any) -> str:
        result: str = await future
        return result

    async def end(ctx: Any) -> None:
        future.set_result("value")

    limited = TaskFunction(wait, timeout=60)
    report = await build(
        [task("A", wait), task("B", wait), task("C", limited), task("D", end)]
    ).process_tasks(None)
    assert [report[name].pre_execute.value for name in "ABC"] == ["value"] * 3


async def test_a_future_done_and_its_function_cancelled_in_the_window() -> None:
    # The result is there, the cancellation is too: as everywhere in asyncio, it arrives.
    future = asyncio.get_running_loop().create_future()
    trace = Trace()

    async def wait(ctx: Any) -> None:
        try:
            await future
        except asyncio.CancelledError:
            trace.append("cancelled")
            raise

    async def end(ctx: Any) -> None:
        future.set_result("value")
        raise Broken

    error = await failure_of(build([task("A", wait), task("B", end)]))
    if trace:
        assert states(error.report) == {"A": "C--", "B": "F--"}
    else:
        assert states(error.report) == {"A": "s--", "B": "F--"}


@LIMITS
async def test_swallowed_in_the_window(limits: Any) -> None:
    trace = Trace()

    async def swallow(ctx: Any) -> None:
        try:
            await forever()
        except asyncio.CancelledError:
            trace.append("swallowed")
        await passes(2)
        trace.append("ended")

    async def fail(ctx: Any) -> None:
        raise Broken

    # With a task factory the first is suspended for a pass already.
    error = await failure_of(build([task("A", TaskFunction(swallow, **limits)), task("B", fail)]))
    assert states(error.report) == {"A": "+--", "B": "F--"}
    assert trace == ["swallowed", "ended"]


async def test_a_bare_yield_cancelled_in_the_window() -> None:
    trace = Trace()

    async def fail(ctx: Any) -> None:
        raise Broken

    await failure_of(build([task("A", trace.pausing("A")), task("B", fail)]))
    assert trace == ["A"]
