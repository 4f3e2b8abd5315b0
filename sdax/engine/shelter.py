"""Cleanups that the end of the event loop must not cut short.

`asyncio.run()` ends by cancelling every task once, those of cleanups as well, and then waits for
all of them. A cleanup that a cancelled caller waits for is sheltered: its `asyncio.Task` waits for
a future that stands for the function's own, which stays as it is when the task is cancelled.
"""

from __future__ import annotations

from asyncio import AbstractEventLoop, Future, Task, all_tasks
from collections.abc import Callable, Collection
from functools import partial
from typing import Any, Final
from weakref import WeakSet

_ending: Final = WeakSet[AbstractEventLoop]()  # found to end in this pass


def sheltered(loop: AbstractEventLoop, future: Any, broken: Callable[[BaseException], None]) -> Any:
    """Return a future that is done when the given one is, for an `asyncio.Task` to wait for.

    `broken` is called with what is raised meanwhile. The given future is returned where it cannot
    be sheltered.
    """
    for _ in range(2):
        try:
            if not getattr(future, "_asyncio_future_blocking", False):
                return future  # a bare yield, or what asyncio.Task refuses
            outer = loop.create_future()
            future.add_done_callback(partial(_release, outer, broken))
            future._asyncio_future_blocking = False
            outer._asyncio_future_blocking = True
            return outer
        except BaseException as error:
            broken(error)
    return future


def _release(outer: Future[None], broken: Callable[[BaseException], None], _: Any) -> None:
    try:
        if not outer.done():
            outer.set_result(None)
    except BaseException as error:
        broken(error)
        if not outer.done():
            outer.set_result(None)  # nobody else would let the task go on


def is_ending(loop: AbstractEventLoop, ours: Collection[Task[Any]]) -> bool:
    """Return True if every task of the loop is being cancelled, but for those of a run."""
    if loop in _ending:
        return True
    if not all(task.cancelling() for task in all_tasks(loop) if task not in ours):
        return False
    # Cleanups of this run may not count as cancelled any more when another run asks.
    _ending.add(loop)
    loop.call_soon(_ending.discard, loop)
    return True
