"""What is often written by mistake gets an error that says what was meant."""

from __future__ import annotations

import asyncio
import copy
import pickle
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from helpers import task as make_task
from sdax import (
    AsyncDagTaskProcessor,
    AsyncTaskProcessor,
    PhaseReport,
    State,
    TaskFunction,
    TaskReport,
    resource,
    task,
    task_func,
    task_sync_func,
)


async def function(ctx: Any) -> int:
    return 1


@asynccontextmanager
async def manager(ctx: Any) -> AsyncIterator[None]:
    yield


async def holding(ctx: Any) -> AsyncIterator[None]:
    yield


MANAGER = manager(None)
A = make_task("a", execute=function)
LEVELS: Any = AsyncTaskProcessor.builder()
GRAPH: Any = AsyncDagTaskProcessor.builder()
PROCESSOR: Any = LEVELS.add_task(A, level=1).build()
REPORT: Any = PROCESSOR._shared.plain_report
MADE_BY_HAND: Any = TaskReport(*[PhaseReport(State.ABSENT)] * 3)
ANY_TASK: Any = task
ANY_FUNC: Any = task_func

ATTEMPTS: list[tuple[Any, type[Exception], str]] = [
    (
        lambda: PROCESSOR.run,
        AttributeError,
        "AsyncTaskProcessor has no attribute 'run'; did you mean process_tasks(ctx)?",
    ),
    (
        lambda: GRAPH.build().execute,
        AttributeError,
        "AsyncDagTaskProcessor has no attribute 'execute'; did you mean process_tasks(ctx)?",
    ),
    (
        lambda: PROCESSOR.proces_tasks,
        AttributeError,
        "AsyncTaskProcessor has no attribute 'proces_tasks'; did you mean 'process_tasks'?",
    ),
    (lambda: PROCESSOR.xyz, AttributeError, "AsyncTaskProcessor has no attribute 'xyz'"),
    (
        lambda: LEVELS.process_tasks,
        AttributeError,
        "AsyncTaskProcessorBuilder has no attribute 'process_tasks'; did you forget .build()?",
    ),
    (
        lambda: GRAPH.process_tasks,
        AttributeError,
        "AsyncDagTaskProcessorBuilder has no attribute 'process_tasks'; did you forget .build()?",
    ),
    (
        lambda: REPORT["a"].value,
        AttributeError,
        "TaskReport has no attribute 'value'; each phase has its own, such as "
        "report[name].execute.value",
    ),
    (
        lambda: MADE_BY_HAND.state,
        AttributeError,
        "TaskReport has no attribute 'state'; each phase has its own, such as "
        "report[name].execute.state",
    ),
    (
        lambda: REPORT.value,
        AttributeError,
        "RunReport has no attribute 'value'; each phase of a task has its own, such as "
        "report[name].execute.value",
    ),
    (lambda: REPORT["b"], KeyError, "there is no task 'b'; there is 'a'"),
    (
        lambda: ANY_TASK("a", function),
        TypeError,
        "task: say in which phase the function of task 'a' is: pre_execute=, execute= or "
        "post_execute=",
    ),
    (
        lambda: ANY_TASK("a", run=function),
        TypeError,
        "task has no argument 'run'; there are 'name', 'pre_execute', 'execute', 'post_execute', "
        "'required'",
    ),
    (
        lambda: ANY_TASK("a", execute=function, timeout=2.0),
        TypeError,
        "task has no argument 'timeout', which belongs to a function: "
        "execute=task_func(..., timeout=...)",
    ),
    (
        lambda: ANY_FUNC(function, retry_on=(OSError,)),
        TypeError,
        "TaskFunction has no argument 'retry_on'; did you mean 'retryable_exceptions'?",
    ),
    (
        lambda: TaskFunction(function, max_retries=3),  # type: ignore[call-arg]
        TypeError,
        "TaskFunction has no argument 'max_retries'; did you mean 'retries'?",
    ),
    (
        lambda: task_sync_func(len, retrys=3),  # type: ignore[call-arg]
        TypeError,
        "TaskFunction has no argument 'retrys'; did you mean 'retries'?",
    ),
    (
        lambda: LEVELS.add_task(A, depends_on=("b",)),
        TypeError,
        "add_task: a task in levels has a level, not depends_on; for dependencies use "
        "AsyncDagTaskProcessor.builder()",
    ),
    (
        lambda: LEVELS.add_task(A, level=1, depends_on=("b",)),
        TypeError,
        "add_task: a task in levels has a level, not depends_on; for dependencies use "
        "AsyncDagTaskProcessor.builder()",
    ),
    (
        lambda: GRAPH.add_task(A, level=1),
        TypeError,
        "add_task: a task in a graph has depends_on, not a level; for levels use "
        "AsyncTaskProcessor.builder()",
    ),
    (
        lambda: GRAPH.add_task(A, 1),
        TypeError,
        "add_task: depends_on of task 'a' must be a collection of names, got 1; for levels use "
        "AsyncTaskProcessor.builder()",
    ),
    (
        lambda: AsyncTaskProcessor.builder(timeout=5),  # type: ignore[call-arg]
        TypeError,
        "a builder has no option 'timeout'; to limit a run, put asyncio.timeout() around "
        "process_tasks, and to limit a function, give it to task_func(..., timeout=...); it takes "
        "execute_order, max_concurrency, observer, on_failure, cleanup_timeout",
    ),
    (
        lambda: ANY_TASK("a", execute=function, level=1),
        TypeError,
        "task has no argument 'level', which belongs to a builder: add_task(task(...), level=...)",
    ),
    (
        lambda: ANY_TASK("a", execute=function, depends_on=("b",)),
        TypeError,
        "task has no argument 'depends_on', which belongs to a builder: add_task(task(...), "
        "depends_on=...)",
    ),
    (
        lambda: ANY_TASK(function, "a"),
        TypeError,
        "task: the name comes first, and the function has the name of its phase: "
        "task('a', execute=...)",
    ),
    (
        lambda: resource("a", holding, post_execute=function),  # type: ignore[call-arg]
        TypeError,
        "resource 'a' has no argument 'post_execute'; the code after the 'yield' is its "
        "post_execute",
    ),
    (
        lambda: resource("a", holding, level=1),  # type: ignore[call-arg]
        TypeError,
        "resource 'a' has no argument 'level'; it belongs to a builder: "
        "add_task(resource(...), level=...)",
    ),
    (
        lambda: resource("a", MANAGER),  # type: ignore[arg-type]
        TypeError,
        "resource 'a' takes an async generator function that yields once (async def ... yield), "
        f"or a function of the context that returns an async context manager; got {MANAGER!r}; "
        "each run needs one of its own, so pass a function that makes it, such as lambda ctx: ...",
    ),
    (
        lambda: GRAPH.add_task(A, depends_on=(make_task("b", execute=function),)),
        TypeError,
        "add_task: depends_on of task 'a' takes names of tasks, got a task; pass its name: "
        "depends_on=('b',)",
    ),
    (
        lambda: GRAPH.add_task(A, depends_on=make_task("b", execute=function)),
        TypeError,
        "add_task: depends_on of task 'a' takes names of tasks, got a task; pass its name: "
        "depends_on=('b',)",
    ),
    (
        lambda: LEVELS.add_task(function, level=1),
        TypeError,
        f"add_task: task must be an AsyncTask, got {function!r}; make one with "
        "task(name, execute=...)",
    ),
    (
        lambda: ANY_FUNC(task_func(function)),
        TypeError,
        "TaskFunction.function is a TaskFunction already; use it as it is, or make one with other "
        "limits with dataclasses.replace",
    ),
    (
        lambda: ANY_FUNC(function, limiter=asyncio.Semaphore),
        TypeError,
        "TaskFunction.limiter is the class <class 'asyncio.locks.Semaphore'>, which would make a "
        "limiter of its own for each attempt, and so limit nothing; pass an object that the "
        "attempts share, or a function of the context that returns one",
    ),
    (
        lambda: AsyncTaskProcessor(),  # type: ignore[call-arg]
        TypeError,
        "AsyncTaskProcessor is made by its builder: "
        "AsyncTaskProcessor.builder().add_task(...).build()",
    ),
    (
        lambda: AsyncDagTaskProcessor(),  # type: ignore[call-arg]
        TypeError,
        "AsyncDagTaskProcessor is made by its builder: "
        "AsyncDagTaskProcessor.builder().add_task(...).build()",
    ),
    (
        lambda: REPORT.a,
        AttributeError,
        "RunReport has no attribute 'a'; did you mean report['a']?",
    ),
]


@pytest.mark.parametrize(
    ("attempt", "kind", "message"),
    ATTEMPTS,
    ids=[message.partition(";")[0].partition(", got <")[0] for *_, message in ATTEMPTS],
)
def test_what_was_meant(attempt: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind) as caught:
        attempt()
    assert str(caught.value) == message
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_other_errors_are_as_they_are() -> None:
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'level'"):
        LEVELS.add_task(A)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'function'"):
        TaskFunction()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="must be callable"):
        TaskFunction(3)  # type: ignore[arg-type]


def test_nothing_else_has_changed() -> None:
    for value in (PROCESSOR, REPORT["a"], A, TaskFunction(function)):
        assert pickle.loads(pickle.dumps(value)) == value
        assert copy.copy(value) == value
        assert not hasattr(value, "missing")
    assert copy.deepcopy(PROCESSOR) == PROCESSOR
