"""The helpers that make tasks and their functions, and the names under which they are found."""

from __future__ import annotations

import importlib
import pickle
from typing import Any, TypedDict

import pytest

import sdax
from helpers import PHASES, build, nothing, one_loop, solo, states, task_in
from sdax import (
    AsyncDagTaskProcessor,
    AsyncTask,
    AsyncTaskProcessor,
    SdaxTaskGroup,
    TaskFunction,
    join,
    task,
    task_func,
    task_group_func,
    task_group_task,
    task_sync_func,
    task_thread_func,
)

pytestmark = one_loop

LIMITS = {
    "timeout": 2.5,
    "retries": 3,
    "initial_delay": 0.25,
    "backoff_factor": 3.0,
    "retryable_exceptions": (KeyError,),
    "max_delay": 9.0,
}


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
    assert states(await solo(execute=copy).process_tasks(None)) == {"A": "-+-"}


@each_helper
@pytest.mark.parametrize("phase", PHASES)
async def test_each_is_for_any_phase(helper: Any, function: Any, phase: str) -> None:
    report = await build([task_in(phase, helper(function))]).process_tasks(None)
    assert getattr(report["A"], phase).state == "succeeded"


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
    with pytest.raises(TypeError, match=r"execute of task 'A' must be .* TaskFunction, got 5"):
        task("A", execute=5)  # type: ignore[arg-type]
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
