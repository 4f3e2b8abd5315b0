"""`processor.replaced`: stubs in place of tasks, in the same shape."""

from __future__ import annotations

import asyncio
import pickle
from typing import Any
from unittest.mock import AsyncMock

import pytest

from conftest import Implementation
from helpers import failure_of, graph, nothing, one_loop
from sdax import (
    AsyncTask,
    AsyncTaskProcessor,
    Done,
    RunReport,
    TaskFunction,
    join,
    task,
    task_func,
    task_group_func,
    task_sync_func,
    task_thread_func,
)
from sdax.testing import run

pytestmark = one_loop


async def load_user(ctx: Any) -> str:
    await asyncio.sleep(0)
    return "a user"


async def take(ctx: Any) -> None:
    await asyncio.sleep(0)


async def load_stub(ctx: Any) -> str:
    return "a stub"


def in_levels(**options: Any) -> Any:
    builder: Any = AsyncTaskProcessor.builder(**options)
    return (
        builder.add_task(
            task("Database", pre_execute=task_func(take), post_execute=task_func(take)), 1
        )
        .add_task(task("User", pre_execute=task_func(load_user, timeout=2.0, retries=3)), 2)
        .add_task(task("Plain", execute=task_sync_func(lambda ctx: "plain")), 2)
        .add_task(join("Gate"), 3)
        .build()
    )


def in_graph(**options: Any) -> Any:
    return graph(
        task("Database", pre_execute=task_func(take), post_execute=task_func(take)),
        (task("User", pre_execute=task_func(load_user, timeout=2.0, retries=3)), ["Database"]),
        (task("Plain", execute=task_sync_func(lambda ctx: "plain")), ["User"]),
        (join("Gate"), ["Plain"]),
        **options,
    )


both_kinds = pytest.mark.parametrize("build", [in_levels, in_graph])


def values(report: RunReport[Any]) -> dict[str, list[Any]]:
    return {name: [phase.value for phase in phases] for name, phases in report.items()}


@both_kinds
async def test_a_function_takes_the_place_of_a_function(build: Any) -> None:
    processor = build()
    stubbed = processor.replaced({"User": load_stub})
    assert type(stubbed) is type(processor)
    assert str(stubbed) == str(processor)  # with the same limits
    report = await stubbed.process_tasks(None)
    assert report["User"].pre_execute.value == "a stub"
    assert (await processor.process_tasks(None))["User"].pre_execute.value == "a user"


@both_kinds
async def test_retries_stay_as_they_were(build: Any) -> None:
    stub = AsyncMock(side_effect=[ConnectionError("down"), "up"])
    processor = build().replaced({"User": task_func(stub, retries=1, initial_delay=0.0)})
    report = await processor.process_tasks(None)
    assert report["User"].pre_execute[:3] == ("succeeded", 2, "up")
    stub = AsyncMock(side_effect=ValueError("never retried"))
    await failure_of(build().replaced({"User": stub}))
    assert stub.await_count == 1


@both_kinds
async def test_done_succeeds_in_every_phase(build: Any) -> None:
    processor = build().replaced({"Database": Done("done"), "User": Done({"id": 7})})
    report = await processor.process_tasks(None)
    assert values(report)["Database"] == ["done", None, "done"]
    assert values(report)["User"] == [{"id": 7}, None, None]
    assert report["Database"].execute.state == "absent"


@both_kinds
async def test_a_task_takes_the_place_of_a_task(build: Any) -> None:
    stub = task("Database", execute=task_func(load_stub))
    report = await build().replaced({"Database": stub}).process_tasks(None)
    assert values(report)["Database"] == [None, "a stub", None]


@both_kinds
async def test_phases_are_replaced_one_by_one(build: Any) -> None:
    stubs = {"Database": {"pre_execute": load_stub, "post_execute": Done("closed")}}
    report = await build().replaced(stubs).process_tasks(None)
    assert values(report)["Database"] == ["a stub", None, "closed"]
    report = await build().replaced({"Database": {"pre_execute": load_stub}}).process_tasks(None)
    assert values(report)["Database"] == ["a stub", None, None]


@both_kinds
async def test_a_join_stays_one(build: Any) -> None:
    processor = build()
    report = await processor.replaced({"Gate": Done()}).process_tasks(None)
    assert values(report)["Gate"] == [None, None, None]
    assert processor.replaced({"Gate": join("Gate")}) == processor


async def test_a_plain_function_takes_the_place_of_a_plain_one() -> None:
    builder: Any = AsyncTaskProcessor.builder()
    builder.add_task(task("Plain", execute=task_sync_func(len)), 1)
    builder.add_task(task("Thread", execute=task_thread_func(len)), 1)
    stubs = {"Plain": lambda ctx: "plain", "Thread": lambda ctx: "no thread"}
    report = await builder.build().replaced(stubs).process_tasks("abc")
    assert values(report) == {"Plain": [None, "plain", None], "Thread": [None, "no thread", None]}
    report = await builder.build().replaced({"Plain": load_stub}).process_tasks("abc")
    assert values(report) == {"Plain": [None, "a stub", None], "Thread": [None, 3, None]}


async def test_a_function_with_a_group_is_replaced_by_one_with_a_group() -> None:
    async def fan_out(ctx: Any, group: asyncio.TaskGroup) -> str:
        return type(group).__name__

    builder: Any = AsyncTaskProcessor.builder()
    builder.add_task(task("Pages", execute=task_group_func(fan_out)), 1)
    report = await builder.build().replaced({"Pages": fan_out}).process_tasks(None)
    assert values(report) == {"Pages": [None, "SdaxTaskGroup", None]}


@both_kinds
def test_all_else_stays_as_it_was(engine: Implementation, build: Any) -> None:
    heard: list[Any] = []
    processor = build(max_concurrency=2, observer=heard.append)
    same = processor.replaced({})
    assert same == processor
    assert same.max_concurrency == 2
    run(processor.replaced({"User": load_stub}).process_tasks(None))
    assert heard
    if build is in_graph:
        assert build(execute_order="dependency").replaced({}).execute_order == "dependency"


def test_a_stubbed_processor_is_hashable_and_can_be_pickled() -> None:
    processor = AsyncTaskProcessor.builder().add_task(task("A", execute=task_func(nothing)), 1)
    stubbed = processor.build().replaced({"A": Done(["not hashable"])})
    copy = pickle.loads(pickle.dumps(stubbed))
    assert copy == stubbed
    assert hash(copy) == hash(stubbed)
    assert stubbed != processor.build().replaced({"A": Done(["another"])})


@pytest.mark.parametrize(
    ("stubs", "kind", "says"),
    [
        ({"Usr": load_stub}, ValueError, "no task named 'Usr'; did you mean 'User'?"),
        ({3: load_stub}, ValueError, "named 3; there are 'Database', 'User', 'Plain', 'Gate'"),
        (
            {"User": task("Usr", execute=task_func(nothing))},
            ValueError,
            "a task named 'Usr' cannot take the place of 'User'; give it the same name",
        ),
        (
            {"Database": load_stub},
            ValueError,
            "of task 'Database', which has pre_execute and post_execute; give an AsyncTask",
        ),
        ({"Gate": load_stub}, ValueError, "of task 'Gate', which has no phase; give an AsyncTask"),
        (
            {"User": {"pre_exec": load_stub}},
            ValueError,
            "task 'User' has no 'pre_exec'; did you mean 'pre_execute'?",
        ),
        ({"User": {"execute": load_stub}}, ValueError, "task 'User' has no 'execute'"),
        ({"Gate": {"execute": load_stub}}, ValueError, "no 'execute'; there are none"),
        ({"User": 7}, TypeError, "Done(value), or a mapping of phases to functions, got 7 for"),
        ({"User": {"pre_execute": "x"}}, TypeError, "got 'x' for pre_execute of task 'User'"),
        ([("User", load_stub)], TypeError, "replaced takes a mapping from names of tasks to"),
        (None, TypeError, "got None"),
    ],
)
@both_kinds
def test_what_cannot_take_a_place_is_refused(build: Any, stubs: Any, kind: Any, says: str) -> None:
    with pytest.raises(kind) as caught:
        build().replaced(stubs)
    assert says in str(caught.value)


def test_many_names_are_not_all_shown() -> None:
    builder = AsyncTaskProcessor.builder()
    for number in range(20):
        builder.add_task(AsyncTask(f"task {number}", execute=TaskFunction(nothing)), 1)
    with pytest.raises(ValueError, match=r"'task 7', \.\.\.$"):
        builder.build().replaced({"xyz": Done()})
