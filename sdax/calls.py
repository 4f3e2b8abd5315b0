"""Around the call of a user's function: what both engines share and do rarely."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from types import CoroutineType
from typing import Any, NoReturn

from .checks import SPLIT_GENERATOR
from .group import SdaxTaskGroup
from .text import class_name, shown


@dataclass(frozen=True, slots=True)
class WithTaskGroup:
    """Makes a function of the context alone: each call gets a task group of its own."""

    function: Callable[[Any, SdaxTaskGroup], Awaitable[Any]]

    async def __call__(self, ctx: Any) -> Any:
        async with SdaxTaskGroup() as group:
            return await self.function(ctx, group)


def as_coroutine(returned: Any, name: Any, phase: str) -> Coroutine[Any, Any, Any]:
    """Make a coroutine of whatever a function returned, or refuse it with a `TypeError`."""
    if inspect.isawaitable(returned):
        return _await(returned)
    if inspect.isgenerator(returned) or inspect.isasyncgen(returned):
        hint = SPLIT_GENERATOR
    else:
        hint = (
            "define it with 'async def', or pass it to task_sync_func, or to task_thread_func if "
            "it blocks"
        )
    raise TypeError(
        f"{phase} of task {shown(name)} must return an awaitable, but its function returned "
        f"{shown(returned)} of type {class_name(returned)}; {hint}"
    )


def refuse_coroutine(returned: Coroutine[Any, Any, Any], name: Any, phase: str) -> NoReturn:
    """Refuse, with a `TypeError`, the coroutine that a plain function has returned."""
    returned.close()
    raise TypeError(
        f"{phase} of task {shown(name)} is a plain function, but it returned {shown(returned)}; "
        f"make it with task_func"
    )


def refuse_running(coroutine: CoroutineType[Any, Any, Any]) -> None:
    """Refuse to touch a coroutine that runs, with the `ValueError` that it would raise itself.

    Asked itself to close or to throw, on Python 3.11 and 3.12, it may crash the interpreter.
    """
    if coroutine.cr_running:
        raise ValueError("coroutine already executing")


async def _await(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


def hide_engine(exception: BaseException) -> None:
    """Drop the engine's frames off a traceback: it starts at the user's function then, and
    holds no frame that knows the run, which would be a reference cycle."""
    traceback = exception.__traceback__
    while traceback is not None and _is_ours(traceback.tb_frame.f_globals.get("__name__")):
        traceback = traceback.tb_next
    exception.__traceback__ = traceback


def _is_ours(module: object) -> bool:
    return isinstance(module, str) and module.partition(".")[0] == __package__
