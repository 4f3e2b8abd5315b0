"""The task group that a function can ask for."""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from types import TracebackType
from typing import Any, Self


class SdaxTaskGroup(asyncio.TaskGroup):
    """The task group that a function with `has_task_group_argument` gets, new for each attempt.

    It is an `asyncio.TaskGroup`: what is created in it is awaited before the attempt ends,
    cancelled with it, and fails it.
    """

    if sys.version_info < (3, 13):

        async def __aenter__(self) -> Self:
            await super().__aenter__()
            self._cancelling = current_task().cancelling()
            return self

        async def __aexit__(
            self,
            kind: type[BaseException] | None,
            exception: BaseException | None,
            traceback: TracebackType | None,
        ) -> None:
            try:
                await super().__aexit__(kind, exception, traceback)
            except BaseExceptionGroup:
                # Up to Python 3.12 a group may leave behind the cancellation by which a failed
                # child stopped the function, and it would hit the next attempt.
                task = current_task()
                if self._parent_cancel_requested:  # type: ignore[attr-defined]
                    if task.cancelling() > self._cancelling:
                        task.uncancel()
                    if task.cancelling() == self._cancelling:
                        # Or else it is somebody else's as well.
                        await let_cancellation_arrive(task)
                raise
            finally:
                del exception, traceback


def current_task() -> asyncio.Task[Any]:
    """Return the `asyncio.Task` that a group is used in: there always is one."""
    task = asyncio.current_task()
    assert task is not None
    return task


async def let_cancellation_arrive(task: asyncio.Task[Any]) -> None:
    """Take a cancellation that is on its way to the current `asyncio.Task`, if there is one."""
    if task._must_cancel:  # type: ignore[attr-defined]
        with suppress(asyncio.CancelledError):  # pragma: no cover (3.12)
            await asyncio.sleep(0)
