"""The kinds of functions that a run does not call and await as they are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from contextlib import AbstractAsyncContextManager
from typing import Any, Generic, TypeAlias

from .common.frozen import Frozen
from .common.generic import T, T_contra
from .common.text import shown
from .engine.threads import call_in_thread

# An async generator function that yields once, or a function that returns an async context manager.
HoldingFunction: TypeAlias = Callable[
    [T], AsyncIterator[Any] | AbstractAsyncContextManager[Any, Any]
]


class PlainFunction(Frozen, Generic[T_contra]):
    """The `TaskFunction.function` of `task_sync_func`. The engine calls `function` directly."""

    __slots__ = __match_args__ = ("function",)

    function: Callable[[T_contra], Any]

    def __init__(self, function: Callable[[T_contra], Any]) -> None:
        self._set_once(function=function)

    async def __call__(self, ctx: T_contra) -> Any:
        return self.function(ctx)


class ThreadFunction(Frozen, Generic[T_contra]):
    """The `TaskFunction.function` of `task_thread_func`. It calls `function` in a thread."""

    __slots__ = __match_args__ = ("function", "abandon_on_cancel", "executor")

    function: Callable[[T_contra], Any]
    abandon_on_cancel: bool
    executor: Executor | None

    def __init__(
        self,
        function: Callable[[T_contra], Any],
        abandon_on_cancel: bool = False,
        executor: Executor | None = None,
    ) -> None:
        self._set_once(function=function, abandon_on_cancel=abandon_on_cancel, executor=executor)

    async def __call__(self, ctx: T_contra) -> Any:
        value = await call_in_thread(self.function, ctx, self.executor, self.abandon_on_cancel)
        if asyncio.iscoroutine(value):
            value.close()
            raise TypeError(
                f"the function of a thread must be a plain one, but it returned {shown(value)}; "
                f"use task_func"
            )
        return value


class ResourceSetUp(Frozen, Generic[T_contra]):
    """The `pre_execute` of a `resource`. The engine runs `function` up to its `yield`."""

    __slots__ = __match_args__ = ("function",)

    function: HoldingFunction[T_contra]

    def __init__(self, function: HoldingFunction[T_contra]) -> None:
        self._set_once(function=function)

    def __call__(self, ctx: T_contra) -> Any:
        raise TypeError(f"only a run can set up a resource, {shown(self.function)}")


class ResourceCleanUp(Frozen, Generic[T_contra]):
    """The `post_execute` of a `resource`. The engine continues after the `yield`."""

    __slots__ = __match_args__ = ("function",)

    function: HoldingFunction[T_contra]

    def __init__(self, function: HoldingFunction[T_contra]) -> None:
        self._set_once(function=function)

    def __call__(self, ctx: T_contra) -> Any:
        raise TypeError(f"only a run can clean up a resource, {shown(self.function)}")
