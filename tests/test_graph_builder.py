"""Building graphs: what stays as it is, and what is refused."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from frozendict import frozendict

from helpers import build, graph, nothing, states, task
from sdax import (
    AsyncDagTaskProcessor,
    AsyncDagTaskProcessorBuilder,
    AsyncTaskProcessor,
    AsyncTaskProcessorBuilder,
    TaskFunction,
    join,
)
from sdax.sdax_core import AsyncDagLevelAdapterBuilder


def test_all_names_for_a_builder() -> None:
    assert type(AsyncTaskProcessor.graph_builder()) is AsyncDagTaskProcessorBuilder
    assert type(AsyncDagTaskProcessor.builder()) is AsyncDagTaskProcessorBuilder
    for builder in (AsyncTaskProcessor.builder(), AsyncTaskProcessor.elevator_builder()):
        assert isinstance(builder, AsyncTaskProcessorBuilder)
        assert isinstance(builder, AsyncDagLevelAdapterBuilder)
    builder = AsyncTaskProcessor.graph_builder(execute_order="dependency", max_concurrency=3)
    assert builder.build() != AsyncTaskProcessor.graph_builder().build()
    assert builder.build() == AsyncDagTaskProcessor.builder(
        execute_order="dependency", max_concurrency=3
    ).build()  # fmt: skip


def test_add_task_returns_the_builder_and_takes_names_in_any_order() -> None:
    builder = AsyncDagTaskProcessor.builder()
    assert builder.add_task(task("A", nothing)) is builder
    assert builder.add_task(depends_on=("A",), task=task("B", nothing)) is builder
    assert builder.build().dependencies == {"A": (), "B": ("A",)}


def test_what_is_built_stays_as_it_is() -> None:
    builder = AsyncDagTaskProcessor.builder().add_task(task("A", nothing))
    first, same = builder.build(), builder.build()
    second = builder.add_task(task("B", nothing), depends_on=["A"]).build()
    assert first == same
    assert hash(first) == hash(same)
    assert [*first.tasks] == ["A"]
    assert [*second.tasks] == ["A", "B"]
    assert first != second


def test_a_list_that_changes_later() -> None:
    names = ["A"]
    builder = AsyncDagTaskProcessor.builder()
    builder.add_task(task("A", nothing)).add_task(task("B", nothing), names)
    names.append("unknown")
    assert builder.build().dependencies["B"] == ("A",)


def test_a_processor_cannot_be_changed() -> None:
    processor = graph(task("A", nothing), (task("B", nothing), ["A"]))
    for name in ("tasks", "dependencies", "anything"):
        with pytest.raises(AttributeError, match=name):
            setattr(processor, name, None)
        with pytest.raises(AttributeError, match=name):
            delattr(processor, name)
    with pytest.raises(TypeError):
        processor.tasks["C"] = None
    with pytest.raises(TypeError):
        processor.dependencies["B"] = ()
    assert not hasattr(processor, "__dict__")


def test_names_that_are_not_there() -> None:
    processor = graph(task("User", nothing), (task("Flags", nothing), ["User"]))
    for mapping in (processor.tasks, processor.dependencies):
        assert isinstance(mapping, frozendict)
        assert pickle.loads(pickle.dumps(mapping)) == mapping
        assert mapping.get("Usr") is None
        with pytest.raises(KeyError, match="there is no task 'Usr'; did you mean") as caught:
            mapping["Usr"]
        assert caught.value.args == ("Usr",)


def test_equality_and_hash() -> None:
    a, b = task("A", nothing), task("B", nothing)
    one, other = graph(a, (b, ["A"])), graph(a, (b, ["A"]))
    assert one == other
    assert len({one, other}) == 1
    for different in (
        graph(a, b),
        graph(a, (b, ["A"]), execute_order="dependency"),
        graph(a, (b, ["A"]), max_concurrency=1),
        graph(a),
        build([a], [b]),
    ):
        assert one != different


def test_repr() -> None:
    processor = graph(task("A", nothing), (task("B", nothing), ["A"]), (join("C"), ["A", "B"]))
    assert repr(processor) == "<AsyncDagTaskProcessor: 3 tasks, 3 dependencies>"
    assert repr(graph(join("A"))) == "<AsyncDagTaskProcessor: 1 task, 0 dependencies>"
    assert repr(graph(join("A"), (join("B"), ["A"]))) == (
        "<AsyncDagTaskProcessor: 2 tasks, 1 dependency>"
    )


def test_subclasses_of_a_processor_build_themselves_or_the_base() -> None:
    class Mine(AsyncDagTaskProcessor[Any, Any]):
        pass

    assert isinstance(Mine.builder().build(), AsyncDagTaskProcessor)


async def test_a_pickled_graph_runs() -> None:
    processor = graph(
        task("A", nothing),
        (task("B", nothing, nothing), ["A"]),
        (task("C", nothing), ["A", "B"]),
        (join("J"), ["C"]),
        execute_order="dependency",
        max_concurrency=2,
    )
    copy = pickle.loads(pickle.dumps(processor))
    assert copy == processor
    assert hash(copy) == hash(processor)
    assert copy.dependencies == processor.dependencies
    assert states(await copy.process_tasks(None)) == {
        "A": "+--", "B": "++-", "C": "+--", "J": "---"
    }  # fmt: skip


# What is refused


def refused(kind: type[Exception], *added: Any, **options: Any) -> str:
    """Return the message with which building is refused."""
    with pytest.raises(kind) as caught:
        graph(*added, **options)
    assert type(caught.value) is kind
    return str(caught.value)


def test_an_unknown_dependency_is_refused() -> None:
    message = refused(ValueError, task("A", nothing), (task("B", nothing), ["A", ("x", 1)]))
    assert "'B'" in message
    assert "('x', 1)" in message
    message = refused(ValueError, task("User", nothing), (task("Flags", nothing), ["Usr"]))
    assert message.endswith("; did you mean 'User'?")


def test_a_dependency_on_itself_is_refused() -> None:
    message = refused(ValueError, task("A", nothing), (task("B", nothing), ["A", "B"]))
    assert "'B'" in message
    assert "itself" in message


def test_a_cycle_is_refused_and_shown_as_a_path() -> None:
    message = refused(
        ValueError,
        task("root", nothing),
        (task("before", nothing), ["A"]),
        (task("A", nothing), ["root", "C"]),
        (task("B", nothing), ["A"]),
        (task("C", nothing), ["B", "root"]),
        (task("after", nothing), ["C"]),
    )
    path = "'A' -> 'C' -> 'B' -> 'A'"
    turned = ("'C' -> 'B' -> 'A' -> 'C'", "'B' -> 'A' -> 'C' -> 'B'")
    assert path in message or any(other in message for other in turned)
    for other in ("root", "before", "after"):
        assert other not in message
    assert "cycle" in message


def test_a_cycle_of_two_with_names_of_two_kinds() -> None:
    message = refused(ValueError, (task(1, nothing), [("B", 2)]), (task(("B", 2), nothing), [1]))
    assert "1 -> ('B', 2) -> 1" in message or "('B', 2) -> 1 -> ('B', 2)" in message


def test_a_cycle_of_empty_tasks() -> None:
    assert "cycle" in refused(ValueError, (join("A"), ["B"]), (join("B"), ["A"]))


def test_a_cycle_beside_a_graph_that_is_fine() -> None:
    fine = [task("X", nothing), (task("Y", nothing), ["X"])]
    message = refused(ValueError, *fine, (join("A"), ["B", "Y"]), (join("B"), ["A"]))
    assert "'X'" not in message
    assert "'Y'" not in message


@pytest.mark.parametrize("wrong", ["B", b"B", None, 3])
def test_what_is_no_collection_is_refused(wrong: Any) -> None:
    """A string above all: its letters are names, too."""
    message = refused(TypeError, task("B", nothing), (task("A", nothing), wrong))
    assert "'A'" in message
    assert repr(wrong) in message


def test_a_name_that_cannot_be_one_is_refused() -> None:
    message = refused(TypeError, task("B", nothing), (task("A", nothing), ["B", ["C"]]))
    assert "'A'" in message
    assert "['C']" in message


def test_a_name_used_twice_is_refused() -> None:
    builder = AsyncDagTaskProcessor.builder().add_task(task("A", nothing))
    with pytest.raises(ValueError, match="'A'"):
        builder.add_task(task("A", nothing, nothing), depends_on=())
    assert len(builder.build().tasks) == 1


@pytest.mark.parametrize("wrong", [None, "A", nothing, TaskFunction(nothing)])
def test_what_is_no_task_is_refused(wrong: Any) -> None:
    assert repr(wrong) in refused(TypeError, (wrong, []))


@pytest.mark.parametrize("wrong", ["levels", "", None, "DEPENDENCY", True, 0])
def test_a_bad_execute_order_is_refused(wrong: Any) -> None:
    message = refused(ValueError, execute_order=wrong)
    assert "execute_order" in message
    assert repr(wrong) in message


def test_an_unhashable_execute_order_is_refused_like_any_other() -> None:
    assert "execute_order" in refused(ValueError, execute_order=["dependency"])


@pytest.mark.parametrize(
    ("wrong", "kind"),
    [(0, ValueError), (-1, ValueError), (True, TypeError), (1.0, TypeError), ("2", TypeError)],
)
@pytest.mark.parametrize(
    "builder",
    [
        AsyncTaskProcessor.builder,
        AsyncTaskProcessor.graph_builder,
        AsyncTaskProcessor.elevator_builder,
        AsyncDagTaskProcessor.builder,
    ],
)
def test_a_bad_max_concurrency_is_refused(builder: Any, wrong: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind, match="max_concurrency") as caught:
        builder(max_concurrency=wrong)
    assert repr(wrong) in str(caught.value)
