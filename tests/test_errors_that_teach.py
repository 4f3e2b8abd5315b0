"""What is often written by mistake gets an error that says what was meant."""

from __future__ import annotations

import copy
import pickle
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
    task,
    task_func,
    task_sync_func,
)


async def function(ctx: Any) -> int:
    return 1


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
]


@pytest.mark.parametrize(
    ("attempt", "kind", "message"),
    ATTEMPTS,
    ids=[message.partition(";")[0] for *_, message in ATTEMPTS],
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
