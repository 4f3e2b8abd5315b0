"""Tasks, builders and processors: what they refuse, and what never changes."""

from __future__ import annotations

import asyncio
import copy
import inspect
import pickle
import re
from dataclasses import FrozenInstanceError
from functools import partial
from typing import Any

import pytest
from frozendict import frozendict

import sdax
from helpers import Broken, Trace, build, failure_of, nothing, one_loop, passes, solo, task
from sdax import (
    AsyncTask,
    AsyncTaskProcessor,
    RetryableException,
    SdaxExecutionError,
    TaskFunction,
    hedged,
    join,
)

pytestmark = one_loop

builder = AsyncTaskProcessor.builder


async def double(ctx: list[Any]) -> int:
    """Is picklable, as a function of a module."""
    await asyncio.sleep(0)
    ctx.append("double")
    return 2 * len(ctx)


async def in_a_group(ctx: list[Any], group: Any) -> None:
    ctx.append("in a group")


# What add_task takes


async def test_arguments_by_name_in_either_order() -> None:
    trace = Trace()
    await (
        builder()
        .add_task(level=2, task=trace.task("B", "pre"))
        .add_task(task=trace.task("A", "pre"), level=1)
        .add_task(trace.task("C", "pre"), 3)
        .build()
        .process_tasks(ctx=None)
    )
    assert trace == ["A.pre", "B.pre", "C.pre"]


def test_add_task_returns_the_builder() -> None:
    started = builder()
    assert started.add_task(join("A"), 1) is started


@pytest.mark.parametrize("name", ["A", 1, None, ("a", 1), frozenset({1}), object(), 1.5])
async def test_any_hashable_is_a_name(name: Any) -> None:
    report = await build([task(name, nothing)]).process_tasks(None)
    assert list(report) == [name]


@pytest.mark.parametrize("level", [True, False, None, 1.0, "1", 1j])
def test_refused_levels(level: Any) -> None:
    message = f"add_task: level of task 'A' must be an integer, got {level!r}"
    with pytest.raises(TypeError, match=re.escape(message)):
        builder().add_task(join("A"), level)


@pytest.mark.parametrize("wrong", [None, "A", nothing, TaskFunction(nothing)])
def test_refused_tasks(wrong: Any) -> None:
    message = f"add_task: task must be an AsyncTask, got {wrong!r}"
    with pytest.raises(TypeError, match=re.escape(message)):
        builder().add_task(wrong, 1)


@pytest.mark.parametrize("level", [1, 2])
async def test_a_name_used_twice(level: int) -> None:
    trace = Trace()
    started = builder().add_task(trace.task("A", "pre"), 1)
    with pytest.raises(ValueError, match="there is a task named 'A' already, at level 1"):
        started.add_task(task("A", nothing), level)
    # What was refused was not added.
    await started.build().process_tasks(None)
    assert trace == ["A.pre"]


@pytest.mark.parametrize("refused", [(None, 1), (join("A"), None)])
async def test_a_builder_survives_what_it_refuses(refused: Any) -> None:
    started = builder()
    with pytest.raises(TypeError):
        started.add_task(*refused)
    assert list(await started.add_task(join("A"), 1).build().process_tasks(None)) == ["A"]


async def test_an_empty_processor_does_nothing() -> None:
    processor = builder().build()
    report = await processor.process_tasks(None)
    assert len(report) == 0
    assert processor.levels == {}


# AsyncTask


def test_a_task_without_phases() -> None:
    message = "task 'A' has no phase; .* or make an empty node with join\\('A'\\)"
    with pytest.raises(ValueError, match=message):
        AsyncTask("A")


def test_join_makes_a_task_without_phases() -> None:
    node = join("A")
    assert isinstance(node, AsyncTask)
    assert (node.name, node.pre_execute, node.execute, node.post_execute) == ("A", None, None, None)
    assert node == join("A")
    assert hash(node) == hash(join("A"))


def test_an_unhashable_name() -> None:
    with pytest.raises(TypeError, match=r"AsyncTask.name must be hashable, got \['A'\]"):
        AsyncTask(["A"], TaskFunction(nothing))  # type: ignore[type-var]


@pytest.mark.parametrize("phase", ["pre_execute", "execute", "post_execute"])
@pytest.mark.parametrize("wrong", [5, "name", (nothing,)])
def test_a_phase_that_is_no_task_function(phase: str, wrong: Any) -> None:
    message = f"{phase} of task 'A' must be an async function or a TaskFunction, got {wrong!r}"
    with pytest.raises(TypeError, match=re.escape(message)):
        AsyncTask("A", **{phase: wrong})


@pytest.mark.parametrize("make", [AsyncTask, sdax.task])
@pytest.mark.parametrize("phase", ["pre_execute", "execute", "post_execute"])
async def test_a_function_without_a_wrapper(make: Any, phase: str) -> None:
    called: list[Any] = []

    async def function(ctx: Any) -> str:
        called.append(ctx)
        return "value"

    made = make("A", **{phase: function})
    assert getattr(made, phase) == TaskFunction(function)
    assert made == make("A", **{phase: TaskFunction(function)})
    assert hash(made) == hash(make("A", **{phase: function}))
    assert pickle.loads(pickle.dumps(make("A", **{phase: nothing}))) == make(
        "A", **{phase: nothing}
    )
    report = await build([made]).process_tasks("ctx")
    assert getattr(report["A"], phase).value == "value"
    assert called == ["ctx"]


def test_a_function_that_was_called_by_mistake() -> None:
    with pytest.raises(TypeError, match=r"execute of task 'A' .*; pass the function itself"):
        AsyncTask("A", execute=nothing(None))  # type: ignore[arg-type]


async def generates(ctx: Any) -> Any:
    yield ctx


def test_a_generator_function_without_a_wrapper() -> None:
    with pytest.raises(TypeError, match=r"execute of task 'A': .* is a generator function"):
        AsyncTask("A", execute=generates)


async def test_every_callable_may_be_a_function_without_a_wrapper() -> None:
    async def double(factor: int, ctx: int) -> int:
        return factor * ctx

    one = AsyncTask("A", partial(double, 3), lambda ctx: double(5, ctx), hedged(nothing, 60))
    report = await build([one]).process_tasks(2)
    assert [phase.value for phase in report["A"]] == [6, 10, None]


def test_phases_in_their_order() -> None:
    one, two, three = (TaskFunction(nothing, timeout=number) for number in (1, 2, 3))
    assert AsyncTask("A", one, two, three) == AsyncTask(
        name="A", pre_execute=one, execute=two, post_execute=three
    )


# Nothing changes


def things() -> list[Any]:
    function = TaskFunction(double)
    return [function, AsyncTask("A", function), join("B"), solo(function)]


@pytest.mark.parametrize("index", range(4))
def test_immutable(index: int) -> None:
    thing = things()[index]
    names = ["added_later", *(name for name in dir(thing) if not name.startswith("__"))]
    for name in names:
        with pytest.raises((AttributeError, TypeError)):
            setattr(thing, name, None)
        with pytest.raises((AttributeError, TypeError)):
            delattr(thing, name)
    assert thing == things()[index]


def test_the_error_of_a_frozen_dataclass() -> None:
    with pytest.raises(FrozenInstanceError, match=r"TaskFunction is immutable: .* 'timeout'"):
        TaskFunction(nothing).timeout = 5  # type: ignore[misc]
    with pytest.raises(AttributeError, match=r"AsyncTaskProcessor is immutable: .* 'levels'"):
        solo(nothing).levels = {}


@pytest.mark.parametrize("index", range(4))
def test_equal_and_hashable(index: int) -> None:
    one, other = things()[index], things()[index]
    assert one == other
    assert hash(one) == hash(other)
    assert len({one, other}) == 1
    assert one != "something else"


def test_different_processors() -> None:
    different = [
        builder().build(),
        solo(double),
        solo(None, double),
        solo(TaskFunction(double, timeout=1)),
        build([task("B", double)]),
        build([], [task("A", double)]),
        build([task("A", double), join("B")]),
    ]
    assert len(set(different)) == len(different)


def test_type_parameters_at_run_time() -> None:
    function = TaskFunction[list[Any]](double)
    member = AsyncTask[list[Any], str]("A", function)
    processor = AsyncTaskProcessor[list[Any], str].builder().add_task(member, 1).build()
    assert processor.levels == {1: (member,)}


def test_levels() -> None:
    a, b, c = join("A"), join("B"), join("C")
    levels = builder().add_task(c, 7).add_task(a, -1).add_task(b, 7).build().levels
    assert type(levels) is frozendict
    assert levels == {-1: (a,), 7: (c, b)}
    assert list(levels) == [-1, 7]


def test_repr() -> None:
    assert repr(build([join("A"), join("B")])) == "<AsyncTaskProcessor: 2 tasks, 1 level>"
    assert repr(build([join("A")], [join("B")])) == "<AsyncTaskProcessor: 2 tasks, 2 levels>"
    assert repr(build([join("A")])) == "<AsyncTaskProcessor: 1 task, 1 level>"
    assert repr(build()) == "<AsyncTaskProcessor: 0 tasks, 0 levels>"


async def test_repr_of_a_report(engine: Any) -> None:
    assert repr(await build([join("A")]).process_tasks(None)) == "<RunReport of 1 task>"
    assert repr(await build([join(1), join(2)]).process_tasks(None)) == "<RunReport of 2 tasks>"


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
async def test_pickle(protocol: int) -> None:
    processor = build(
        [task("A", double), join("B")],
        [task("C", None, TaskFunction(double, timeout=5, retries=3))],
        [task("D", TaskFunction(in_a_group, has_task_group_argument=True))],
    )
    again = pickle.loads(pickle.dumps(processor, protocol))
    assert again == processor
    assert hash(again) == hash(processor)
    ctx: list[Any] = []
    report = await again.process_tasks(ctx)
    assert ctx == ["double", "in a group", "double"]
    assert report["A"].pre_execute.value == 2
    for member in (join("A"), AsyncTask("A", TaskFunction(double)), TaskFunction(double, 1, 2)):
        assert pickle.loads(pickle.dumps(member, protocol)) == member


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "retryable",
    [
        # Names of Python 3 alone: protocols up to 2 write them as those of Python 2.
        (TimeoutError, ConnectionError, RetryableException),
        (BrokenPipeError, FileNotFoundError, ModuleNotFoundError, Broken),
        (OSError,),
        str.isdigit,
    ],
)
def test_pickle_of_what_is_retryable(protocol: int, retryable: Any) -> None:
    function = TaskFunction(double, retryable_exceptions=retryable)
    again = pickle.loads(pickle.dumps(function, protocol))
    assert again == function
    assert again.retryable_exceptions == retryable


@pytest.mark.parametrize("make_copy", [copy.copy, copy.deepcopy])
async def test_copies(make_copy: Any) -> None:
    for thing in things():
        assert make_copy(thing) == thing
    assert list(await make_copy(solo(double)).process_tasks([])) == ["A"]


def test_a_processor_of_local_functions_is_not_picklable() -> None:
    with pytest.raises((pickle.PicklingError, AttributeError)):
        pickle.dumps(solo(Trace().quick("A")))


async def test_building_again() -> None:
    trace = Trace()
    started = builder().add_task(trace.task("A", "pre"), 1)
    first = started.build()
    levels = first.levels
    second = started.add_task(trace.task("B", "pre"), 1).build()
    third = started.build()
    await first.process_tasks(None)
    assert trace == ["A.pre"]
    assert first.levels is levels
    assert list(levels) == [1]
    assert len(levels[1]) == 1
    await second.process_tasks(None)
    assert trace == ["A.pre", "A.pre", "B.pre"]
    assert third == second != first


async def test_builders_share_nothing() -> None:
    builder().add_task(join("A"), 1)
    assert list(await builder().add_task(join("B"), 1).build().process_tasks(None)) == ["B"]


async def test_a_task_in_several_processors() -> None:
    trace = Trace()
    shared = trace.task("A", "pre")
    await build([shared]).process_tasks(None)
    await build([join("B")], [shared]).process_tasks(None)
    assert trace == ["A.pre"] * 2


# Many runs


async def test_a_run_after_another() -> None:
    trace = Trace()
    processor = build([trace.task("A", number=1)])
    for _ in range(3):
        await processor.process_tasks(None)
    assert (
        trace
        == [
            event
            for name in ("pre", "execute", "post")
            for event in (f"A.{name}", f"A.{name} done")
        ]
        * 3
    )


class Request:
    """What each of many concurrent runs has for itself."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.events: list[str] = []


def request_processor() -> Any:
    def function(event: str) -> TaskFunction[Any]:
        async def note(ctx: Request) -> int:
            ctx.events.append(event)
            await passes(ctx.number % 3)
            if event == "B.execute" and ctx.number % 7 == 0:
                raise ValueError(ctx.number)
            return ctx.number

        return TaskFunction(note, timeout=60 if event.startswith("B") else None)

    return build(
        *(
            [task(name, *(function(f"{name}.{phase}") for phase in ("pre", "execute", "post")))]
            for name in "ABC"
        )
    )


async def check_request(processor: Any, number: int) -> None:
    request = Request(number)
    if number % 7 == 0:
        error = await failure_of(processor, request)
        assert [str(exception) for exception in error.exceptions] == [str(number)]
        report = error.report
        assert report is not None
    else:
        report = await processor.process_tasks(request)
        assert report["C"].execute.value == number
    assert request.events[:3] == ["A.pre", "B.pre", "C.pre"]
    assert request.events[-3:] == ["C.post", "B.post", "A.post"]
    assert report["A"].post_execute.value == number


async def test_many_concurrent_runs() -> None:
    processor = request_processor()
    async with asyncio.TaskGroup() as group:
        for number in range(200):
            group.create_task(check_request(processor, number))


# process_tasks


def test_process_tasks_is_a_coroutine_function(engine: Any) -> None:
    assert inspect.iscoroutinefunction(AsyncTaskProcessor.process_tasks)
    coroutine = solo(nothing).process_tasks(None)
    assert inspect.iscoroutine(coroutine)
    coroutine.close()


async def test_nothing_runs_before_it_is_awaited() -> None:
    trace = Trace()
    coroutine = solo(trace.quick("A")).process_tasks(None)
    await asyncio.sleep(0)
    assert trace == []
    await coroutine
    assert trace == ["A"]


def test_without_a_running_loop(engine: Any) -> None:
    with pytest.raises(RuntimeError, match="no running event loop"):
        solo(nothing).process_tasks(None).send(None)


async def test_the_context_is_required() -> None:
    with pytest.raises(TypeError, match="ctx"):
        solo(nothing).process_tasks()


async def test_a_failed_run_changes_nothing_for_the_next() -> None:
    async def fail_if_asked(ctx: bool) -> None:
        await asyncio.sleep(0)
        if ctx:
            raise ValueError

    processor = solo(fail_if_asked, nothing, nothing)
    with pytest.raises(SdaxExecutionError):
        await processor.process_tasks(True)
    await processor.process_tasks(False)


@pytest.mark.parametrize("kind", [AsyncTaskProcessor, sdax.AsyncDagTaskProcessor])
def test_options_that_no_builder_has_made(kind: Any) -> None:
    with pytest.raises(ValueError, match=r"must be Options, .* got 'nonsense'"):
        kind((), "nonsense")
