"""Small immutable values: equal by their fields, and like frozen dataclasses otherwise."""

from __future__ import annotations

import copy
import pickle
from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from sdax import Done, Finish, Outcome, TaskFunction, resource, task_sync_func, task_thread_func
from sdax.hedging import hedged
from sdax.options import Options


def function(ctx: object) -> None: ...


async def other(ctx: object) -> None: ...


HALF = resource("R", function).pre_execute  # type: ignore[arg-type]  # only a run would call it

VALUES = [
    Done({"new": [1]}),
    Finish(("page", 1)),
    Outcome(True, False, (), None),
    Options(max_concurrency=2, cleanup_timeout=1.5),
    task_sync_func(function).function,
    task_thread_func(function, abandon_on_cancel=True).function,
    HALF and HALF.function,
    hedged(other, 0.5),
    TaskFunction(other, timeout=2.0, retries=1),
]


@pytest.fixture(params=VALUES, ids=lambda value: type(value).__name__)
def value(request: Any) -> Any:
    return request.param


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_and_copies_are_equal(value: Any, protocol: int) -> None:
    pickled = pickle.loads(pickle.dumps(value, protocol))
    for same in (pickled, copy.copy(value), copy.deepcopy(value)):
        assert same == value
        assert hash(same) == hash(value)
        assert repr(same) == repr(value)


def test_values_differ_by_class_and_fields(value: Any) -> None:
    assert [each for each in VALUES if each == value] == [value]
    assert value != "a value"
    assert value != tuple(getattr(value, name) for name in value.__match_args__)


def test_a_value_cannot_be_changed(value: Any) -> None:
    name = value.__match_args__[0]
    before = repr(value)
    with pytest.raises(FrozenInstanceError, match=f"is immutable: cannot set '{name}'"):
        setattr(value, name, None)
    with pytest.raises(FrozenInstanceError, match=name):
        delattr(value, name)
    with pytest.raises(AttributeError):
        value.unknown = 1
    assert repr(value) == before


def test_the_repr_names_each_field() -> None:
    assert repr(Done(3)) == "Done(value=3)"
    assert repr(Outcome(False, True, (), None)) == (
        "Outcome(failed=False, cancelled=True, failures=(), exception=None)"
    )


def test_a_value_can_contain_itself() -> None:
    members: list[Any] = []
    members.append(Done(members))
    assert repr(members) == "[Done(value=[...])]"
    assert repr(members[0]) == "Done(value=[...])"


def test_fields_in_patterns() -> None:
    match Finish("page"):
        case Finish(value):
            assert value == "page"
