"""Resources: setup and cleanup of a task in one function."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextlib import AbstractAsyncContextManager, AsyncContextDecorator
from dataclasses import replace
from typing import Any, Final, Unpack

from .common.arguments import check_takes
from .common.checks import checked_number, is_async, is_async_generator, is_generator
from .common.generic import K, T
from .common.text import shown
from .functions import HoldingFunction, ResourceCleanUp, ResourceSetUp
from .tasks import AsyncTask, Function, Limits, TaskFunction

__all__ = ["resource"]

# The two forms that resource() takes, for messages.
TWO_FORMS: Final = (
    "an async generator function that yields once (async def ... yield), or a function of the "
    "context that returns an async context manager"
)

# Advice for limits that only work with a function that ends.
_INSTEAD: Final = {
    "limiter": "open it in the function, with 'async with', before or around the 'yield'",
    "fallback": "catch the exception in the function, and yield something else",
}


# Advice for arguments of other functions.
_ELSEWHERE: Final = {
    "pre_execute": "the code before the 'yield' is its pre_execute",
    "post_execute": "the code after the 'yield' is its post_execute",
    "level": "it belongs to a builder: add_task(resource(...), level=...)",
    "depends_on": "it belongs to a builder: add_task(resource(...), depends_on=...)",
}


def resource(
    name: K,
    function: HoldingFunction[T],
    *,
    execute: TaskFunction[T] | Function[T] | None = None,
    cleanup_timeout: float | None = None,
    required: bool = True,
    **limits: Unpack[Limits[T]],
) -> AsyncTask[T, K]:
    """Make a task of one function that sets something up, holds it, and cleans up after itself.

    - `function`: an async generator function of the context that yields once, or a function of
      the context that returns an async context manager. The code before the `yield` is the
      `pre_execute` of the task, and the code after it is the `post_execute`. The value that it
      yields (or that `__aenter__` returns) is the value of `pre_execute`.
    - `execute`: an async function or a `TaskFunction`, as for any task.
    - `cleanup_timeout`: seconds that the cleanup may take. None means no limit.
    - `required`: with False, a failed setup does not fail the run, as for any task.
    - `timeout`, `retries` and the other limits apply to the setup. A retry begins with a new
      generator.

    One `asyncio.Task` runs all of it, so cancel scopes and task groups may stay open across the
    `yield`. If the run succeeds, the function continues after its `yield`. If the run fails, an
    `SdaxExecutionError` of all failures so far is raised at the `yield`. If the run is cancelled, a
    `CancelledError` is raised there. So put the release into `finally` or `async with`. The
    function may catch the exception, but the run still fails. If the function raises another
    exception, its `post_execute` has failed. A setup that fails or is cancelled cleans up after
    itself, and nothing is cleaned up later.

    Raises `TypeError` for a function of another kind, and `ValueError` or `TypeError` for limits
    that cannot work, such as `limiter` and `fallback`.

    >>> async def database(ctx):
    ...     async with pool.acquire() as ctx.connection, ctx.connection.transaction():
    ...         yield
    >>> builder.add_task(resource("Database", database, timeout=2.0, retries=3), level=1)
    """
    _check(name, function)
    if cleanup_timeout is not None:
        field = f"cleanup_timeout of resource {shown(name)}"
        cleanup_timeout = checked_number(field, cleanup_timeout)
    for argument, instead in _ELSEWHERE.items():
        if argument in limits:
            raise TypeError(f"resource {shown(name)} has no argument {argument!r}; {instead}")
    for limit, instead in _INSTEAD.items():
        if limits.get(limit) is not None:
            raise ValueError(f"resource {shown(name)} takes no {limit}; {instead}")
    return AsyncTask(
        name,
        TaskFunction(ResourceSetUp(function), **limits),
        execute,
        TaskFunction(ResourceCleanUp(function), timeout=cleanup_timeout),
        required=required,
    )


def is_resource(task: AsyncTask[Any, Any]) -> bool:
    """Return True for a task that `resource` has made."""
    return task.pre_execute is not None and isinstance(task.pre_execute.function, ResourceSetUp)


def with_function(task: AsyncTask[T, K], function: HoldingFunction[T]) -> AsyncTask[T, K]:
    """Return a resource with the same limits and another function.

    Raises `TypeError` for a function that `resource` does not take.
    """
    assert task.pre_execute is not None
    assert task.post_execute is not None
    _check(task.name, function)
    return replace(
        task,
        pre_execute=replace(task.pre_execute, function=ResourceSetUp(function)),
        post_execute=replace(task.post_execute, function=ResourceCleanUp(function)),
    )


def _check(name: object, function: Any) -> None:
    """Raise `TypeError` if the function is certainly not one of the two forms."""
    if not is_async_generator(function) and (
        not callable(function)
        or is_async(function)
        or is_generator(function)
        or isinstance(function, AsyncContextDecorator)  # which would wrap the context
    ):
        raise TypeError(
            f"resource {shown(name)} takes {TWO_FORMS}; got {shown(function)}{_hint(function)}"
        )
    check_takes(f"the function of resource {shown(name)}", function, "ctx")


def _hint(function: Any) -> str:
    if is_generator(function):
        return "; define it with 'async def'"
    if is_async(function):
        return ", which has no 'yield'; yield what it has set up, or use it as a pre_execute"
    if isinstance(function, Awaitable):
        if asyncio.iscoroutine(function):
            function.close()
        return "; pass the function itself, without calling it"
    if isinstance(function, AbstractAsyncContextManager) or hasattr(function, "__anext__"):
        return (
            "; each run needs one of its own, so pass a function that makes it, such as "
            "lambda ctx: ..."
        )
    return ""
