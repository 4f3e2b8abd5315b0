"""Resources: functions that are held from their set-up to their cleanup, in one `asyncio.Task`.

The `asyncio.Task` of a resource runs `hold`. That awaits a `Resource` where the user's function
yields: the engine takes this for the end of `pre_execute`, and has it go on as `post_execute`.
"""

from __future__ import annotations

import sys
from asyncio import AbstractEventLoop, CancelledError, Task, current_task, iscoroutine
from collections.abc import AsyncGenerator, Callable, Generator
from contextvars import Context, copy_context
from types import AsyncGeneratorType
from typing import Any, NoReturn

from ..common.groups import iter_leaves
from ..common.text import class_name, shown
from ..resources import TWO_FORMS
from .exceptions import chain, hide_engine
from .variables import Changes, changes_between, with_changes

if sys.version_info >= (3, 12):
    from asyncio.tasks import _swap_current_task  # type: ignore[attr-defined]
else:
    from asyncio.tasks import _current_tasks  # type: ignore[attr-defined]

    def _swap_current_task(loop: AbstractEventLoop, task: Task[Any] | None) -> Task[Any] | None:
        previous: Task[Any] | None = _current_tasks.pop(loop, None)
        if task is not None:
            _current_tasks[loop] = task
        return previous


class Resource:
    """A resource of one run, from its first attempt at set-up to the end of its cleanup.

    It is also what its `asyncio.Task` waits for while it is held. That takes it for a future,
    and gives it the callback that steps the `asyncio.Task`.
    """

    # Most resources do not change these. To set them for each resource would take longer.
    _asyncio_future_blocking = False
    _callback: Callable[[Resource], Any] | None = None
    _context: Context | None = None  # of the callback
    _cancelled: CancelledError | None = None  # by other code, and to be told
    _is_due = False  # while the asyncio.Task is on its way to wait
    _before: Context | None = None  # without what the set-up has set
    _left: Context | None = None  # by the attempt before this one
    _after: Context | None = None
    driver: Any = None  # while the resource is held
    value: Any = None  # which it has yielded
    thrown: BaseException | None = None  # to be raised at the yield
    broken = False  # while it was held
    spared = False  # by the end of the loop, once

    def __init__(self, loop: AbstractEventLoop, function: Any, name: Any) -> None:
        self._loop = loop
        self.function = function
        self.name = name

    # What an asyncio.Task asks of a future.

    def get_loop(self) -> AbstractEventLoop:
        """Return the loop of the run."""
        return self._loop

    def add_done_callback(
        self, callback: Callable[[Resource], Any], *, context: Context | None = None
    ) -> None:
        """Take what steps the `asyncio.Task`."""
        self._callback, self._context = callback, context
        if self._is_due:
            self._step_soon()

    def cancel(self, msg: Any = None) -> bool:
        """Hear that other code has cancelled the `asyncio.Task`."""
        if self._callback is None:
            return False
        cancelled = CancelledError() if msg is None else CancelledError(msg)
        self._step_soon()
        self._cancelled = cancelled
        return True

    def result(self) -> None:
        """Raise what the `asyncio.Task` must be told."""
        cancelled, self._cancelled = self._cancelled, None
        try:
            if cancelled is not None:
                raise cancelled
        finally:
            del cancelled

    def __await__(self) -> Generator[Any, None, None]:
        self._asyncio_future_blocking = True
        yield self

    def __repr__(self) -> str:
        return f"<the turn of resource {shown(self.name)} to be cleaned up>"

    # For `hold` and the engine.

    def go_on(self) -> None:
        """Step the `asyncio.Task`: here and now, if it waits already."""
        callback, context = self._callback, self._context
        self._is_due = True
        if callback is None or context is None:
            return
        current = None
        try:
            current = current_task(self._loop)
            if current is not None:  # else CPython 3.12.1 finds nothing to take away
                _swap_current_task(self._loop, None)
            context.run(self._step)
        except BaseException:
            if self._callback is not callback:
                raise
            self._step_soon()  # it was not even called: no room, or somebody else is in its context
        finally:
            if current is not None:
                _swap_current_task(self._loop, current)
            del current  # whose result may be an error that leads here

    def wait_on(self) -> Resource:
        """Return what to wait for once more."""
        self._asyncio_future_blocking = True
        return self

    def take_thrown(self) -> BaseException | None:
        """Return what must be raised at the `yield`."""
        thrown, self.thrown = self.thrown, None
        return thrown

    def _step(self) -> None:
        callback, self._callback, self._context = self._callback, None, None
        assert callback is not None
        callback(self)

    def _step_soon(self) -> None:
        assert self._callback is not None
        self._loop.call_soon(self._callback, self, context=self._context)
        self._callback = self._context = None

    def begin_attempt(self) -> None:
        """Keep the context variables as they are: what the set-up sets will be the difference."""
        now = copy_context()
        if self._before is None or self._left is None:
            self._before = now
        else:
            # If an observer has set something since the last attempt, it is not the function's.
            self._before = with_changes(self._before, changes_between(self._left, now))

    def attempt_failed(self) -> None:
        """Keep the context variables that a failed attempt has left."""
        self._left = copy_context()

    def has_yielded(self, value: Any) -> None:
        """Keep what the set-up has made."""
        self.value = value
        self._after = copy_context()

    def changes(self) -> Changes:
        """Return the context variables that the set-up has set."""
        before, after = self._before, self._after
        assert before is not None
        assert after is not None
        self._before = self._left = self._after = None
        return changes_between(before, after)


async def hold(resource: Resource, ctx: Any) -> None:
    """Run the function of a resource: up to its `yield`, and on from there when its turn comes.

    An exception that was thrown in at the `yield` is not raised again: the run has it already.
    """
    resource.begin_attempt()
    body: AsyncGenerator[Any, None]
    try:
        body = resource.function(ctx)
        if type(body) is not AsyncGeneratorType:
            body = as_generator(body, resource.name)
        async for value in body:
            resource.has_yielded(value)
            break
        else:
            raise RuntimeError(
                f"the function of resource {shown(resource.name)} must yield once, but it ended "
                f"without a 'yield'"
            )
    except BaseException:
        resource.attempt_failed()
        raise
    del value
    thrown: BaseException | None = None
    raised: BaseException | None = None
    has_ended = False
    try:
        try:
            await resource
            thrown = resource.take_thrown()
        except BaseException as exception:  # which other code throws into the coroutine
            resource.broken = True
            thrown = exception
        try:
            await (body.__anext__() if thrown is None else body.athrow(thrown))
        except StopAsyncIteration:
            has_ended = True
        except BaseException as exception:
            raised = exception
        if thrown is not None:
            hide_engine(thrown)
        if raised is not None:
            hide_engine(raised)
            if thrown is None or resource.broken or not _has_all_of(thrown, raised):
                raise raised
        elif not has_ended:
            await _refuse_another(resource, body, thrown)
        elif resource.broken:
            assert thrown is not None
            raise thrown
    finally:
        # The traceback of the exception leads here, so no name may lead back to it.
        del raised, thrown


def as_generator(returned: Any, name: Any) -> AsyncGenerator[Any, None]:
    """Return an async generator that enters the async context manager of a resource.

    Raises `TypeError` if that is what its function has not returned.
    """
    kind: Any = type(returned)
    if hasattr(kind, "__aenter__") and hasattr(kind, "__aexit__"):
        return _managed(returned)
    if iscoroutine(returned):
        returned.close()
    raise TypeError(
        f"resource {shown(name)} takes {TWO_FORMS}, but its function returned {shown(returned)} "
        f"of type {class_name(returned)}"
    )


async def _managed(manager: Any) -> AsyncGenerator[Any, None]:
    async with manager as value:
        yield value


async def _refuse_another(
    resource: Resource, body: AsyncGenerator[Any, None], thrown: BaseException | None
) -> NoReturn:
    error = RuntimeError(
        f"the function of resource {shown(resource.name)} must yield once, but it yielded again"
    )
    chain(error, thrown)
    try:
        raise error
    finally:
        del error, thrown
        await body.aclose()


def _has_all_of(thrown: BaseException, raised: BaseException) -> bool:
    """Return True if one exception has nothing in it but the other, or parts of it.

    Task groups put what is raised in their block into a group, and `except*` takes groups apart.
    """
    if raised is thrown:
        return True
    leaves = set(map(id, iter_leaves(thrown)))
    return all(id(leaf) in leaves for leaf in iter_leaves(raised))
