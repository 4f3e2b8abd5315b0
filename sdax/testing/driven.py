"""Replaces functions of a processor, and what their limits call, by functions that are driven."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Final

from ..common.order import PHASES, POST, PRE
from ..engine.calls import WithTaskGroup, fallback_call, name_of
from ..functions import PlainFunction, ResourceCleanUp, ResourceSetUp
from ..limits import limiter_of
from ..resources import is_resource, with_function
from ..tasks import AsyncTask, TaskFunction
from .driving import (
    DrivenFunction,
    DrivenHalf,
    DrivenManager,
    DrivenPlainFunction,
    DrivenResource,
    DrivenSetUp,
)
from .points import ENTER, EXIT, FALLBACK, QUESTIONS, labels_of, limits_of

_CLEANUP: Final = PHASES[POST]


class DrivenLimiter(DrivenResource):
    """The limiter of a function: entering and leaving it are driven."""

    def __init__(self, limits: TaskFunction[Any], name: Any, label: str) -> None:
        limiter: Any = limits.limiter
        super().__init__(
            limiter,
            DrivenHalf(DrivenPlace.enter, limits, name, f"{label}.{ENTER}"),
            DrivenHalf(DrivenPlace.leave, limits, name, f"{label}.{EXIT}"),
        )

    def __call__(self, ctx: Any) -> DrivenPlace:
        return DrivenPlace(self, ctx)


class DrivenPlace(DrivenManager):
    """The place of one attempt in a driven limiter: an async context manager."""

    async def enter(self) -> Any:
        """Wait until the limiter lets the attempt in."""
        self.manager = limiter_of(self.of.function, self.ctx)
        return await type(self.manager).__aenter__(self.manager)


class DrivenFallback(DrivenFunction):
    """A fallback, which may be async or not."""

    def call(self, *arguments: Any) -> Any:
        """Begin a call of the fallback."""
        ctx, exception = arguments
        try:
            return fallback_call(self.function, exception, name_of(self.function), ctx)
        finally:
            del arguments, exception  # the traceback leads here


def driven(tasks: Iterable[AsyncTask[Any, Any]]) -> dict[Any, AsyncTask[Any, Any]]:
    """Return tasks, by name, whose functions are driven."""
    tasks = list(tasks)
    labels = labels_of([task.name for task in tasks])
    found = {}
    for task in tasks:
        label = labels[task.name]
        functions = _driven_phases(task, label)
        if is_resource(task):
            task = with_function(task, _driven_resource(task, label))
            assert task.pre_execute is not None
            functions[PHASES[PRE]] = _with_driven_limits(
                task.pre_execute, task.name, f"{label}.{PHASES[PRE]}"
            )
        found[task.name] = replace(task, **functions)
    return found


def _driven_phases(task: AsyncTask[Any, Any], label: str) -> dict[str, Any]:
    return {
        phase: _driven(function, task.name, f"{label}.{phase}")
        for phase in PHASES
        if (function := getattr(task, phase)) is not None
        and not isinstance(function.function, (ResourceSetUp, ResourceCleanUp))
    }


def _driven_resource(task: AsyncTask[Any, Any], label: str) -> DrivenResource:
    set_up, clean_up = task.pre_execute, task.post_execute
    assert set_up is not None
    assert clean_up is not None
    function: Any = set_up.function
    function = function.function
    if isinstance(function, DrivenResource):
        raise _disturbed_already()
    return DrivenResource(
        function,
        DrivenSetUp(DrivenManager.enter, set_up, task.name, f"{label}.{PHASES[PRE]}"),
        DrivenFunction(DrivenManager.leave, clean_up, task.name, f"{label}.{_CLEANUP}"),
    )


def _disturbed_already() -> TypeError:
    return TypeError(
        "the processor is disturbed already; name all of its faults in one text, with commas"
    )


def _driven(function: TaskFunction[Any], name: Any, label: str) -> TaskFunction[Any]:
    call: Any = function.function
    if isinstance(call, DrivenFunction) or isinstance(
        getattr(call, "function", None), DrivenFunction
    ):
        raise _disturbed_already()
    if isinstance(call, PlainFunction):
        call = PlainFunction(DrivenPlainFunction(call.function, function, name, label))
    else:
        if function.has_task_group_argument:
            call = WithTaskGroup(call)  # so that the end of the group is seen too
        call = DrivenFunction(call, function, name, label)
    limited = _with_driven_limits(function, name, label)
    return replace(limited, function=call, has_task_group_argument=False)


def _with_driven_limits(limits: TaskFunction[Any], name: Any, label: str) -> TaskFunction[Any]:
    changed: dict[str, Any] = {}
    for limit in limits_of(limits):
        if limit == ENTER:
            changed["limiter"] = DrivenLimiter(limits, name, label)
        elif limit == FALLBACK:
            fallback: Any = limits.fallback
            changed[limit] = DrivenFallback(fallback, limits, name, f"{label}.{limit}")
        elif limit in QUESTIONS:
            asked = getattr(limits, limit)
            changed[limit] = DrivenPlainFunction(asked, limits, name, f"{label}.{limit}")
    return replace(limits, **changed)
