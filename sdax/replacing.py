"""Stubs instead of tasks, for tests of a workflow without its services."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, TypeAlias

from .common.arguments import check_takes
from .common.checks import is_async
from .common.frozen import Frozen
from .common.order import PHASES
from .common.text import nearest, shown
from .functions import PlainFunction, ThreadFunction
from .resources import is_resource, with_function
from .tasks import AsyncTask, TaskFunction

Task: TypeAlias = AsyncTask[Any, Any]


class Done(Frozen):
    """A replacement for a task, or one of its phases, that succeeds immediately with a value.

    See `processor.replaced`.

    >>> processor.replaced({"Flags": Done({"new_page": True})})
    """

    __slots__ = __match_args__ = ("value",)

    value: Any

    def __init__(self, value: Any = None) -> None:
        self._set_once(value=value)

    def __call__(self, ctx: Any) -> Any:
        """Return the value."""
        return self.value

    def __hash__(self) -> int:
        return hash(Done)  # a processor is hashable, and the value may not be


Function: TypeAlias = Callable[..., Any] | TaskFunction[Any] | Done
Stub: TypeAlias = Task | Function | Mapping[str, Function]

_TAKES: Final = (
    "an AsyncTask of the same name, a function or TaskFunction, Done(value), or a mapping of "
    "phases to functions"
)


def replaced_tasks(tasks: Sequence[Task], stubs: Any) -> Iterator[Task]:
    """Yield these tasks, with stubs instead of those that have one.

    Raises `TypeError` or `ValueError`, naming the task, for a stub that cannot replace it.
    """
    if not isinstance(stubs, Mapping):
        raise TypeError(
            f"replaced takes a mapping from names of tasks to {_TAKES}, got {shown(stubs)}"
        )
    names = [task.name for task in tasks]
    for name in stubs:
        if name not in names:
            raise ValueError(
                f"replaced: there is no task named {shown(name)}{nearest(name, names)}"
            )
    for task in tasks:
        yield _replaced(task, stubs[task.name], names) if task.name in stubs else task


def _replaced(task: Task, stub: Stub, names: Sequence[Hashable]) -> Task:
    if isinstance(stub, AsyncTask):
        if stub.name != task.name:
            raise ValueError(
                f"replaced: a task named {shown(stub.name)} cannot take the place of "
                f"{shown(task.name)}; give it the same name"
            )
        return stub
    phases: dict[str, Any] = {
        phase: function for phase in PHASES if (function := getattr(task, phase)) is not None
    }
    functions: Mapping[str, Any]
    if is_resource(task) and not isinstance(stub, (Done, Mapping, TaskFunction)):
        return with_function(task, stub)
    if isinstance(stub, Done):
        functions = dict.fromkeys(phases, stub)
    elif isinstance(stub, Mapping):
        functions = stub
    elif len(phases) == 1:
        functions = dict.fromkeys(phases, stub)
    else:
        has = " and ".join(phases) or "no phase"
        raise ValueError(
            f"replaced: one function cannot take the place of task {shown(task.name)}, which has "
            f"{has}; give an AsyncTask, Done(value), or {{phase: function}}, got {shown(stub)}"
        )
    for phase in functions:
        if phase not in phases:
            raise ValueError(
                f"replaced: task {shown(task.name)} has no {shown(phase)}"
                f"{nearest(phase, list(phases))}"
            )
    changes: dict[str, Any] = {
        phase: _function(phases[phase], function, f"{phase} of task {shown(task.name)}")
        for phase, function in functions.items()
    }
    return replace(task, **changes)


def _function(old: TaskFunction[Any], stub: Any, place: str) -> TaskFunction[Any]:
    if isinstance(stub, TaskFunction):
        return stub
    if isinstance(stub, Done):
        return TaskFunction(PlainFunction(stub))
    if not callable(stub):
        raise TypeError(f"replaced takes {_TAKES}, got {shown(stub)} for {place}")
    if isinstance(old.function, (PlainFunction, ThreadFunction)) and not is_async(stub):
        check_takes(f"replaced: the function for {place}", stub, "ctx")
        stub = PlainFunction(stub)
    try:
        return replace(old, function=stub)
    except TypeError as error:
        raise TypeError(f"replaced: {place}: {error}") from None
