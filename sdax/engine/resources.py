"""Resources: functions that are held from their set-up to their cleanup, in one `asyncio.Task`.

The `asyncio.Task` of a resource runs `hold`. That awaits a `Resource` where the user's function
yields: the engine takes this for the end of `pre_execute`, and has it go on as `post_execute`.
"""

from __future__ import annotations

import sys
from asyncio import AbstractEventLoop, CancelledError, Task, current_task, iscoroutine, timeout
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextvars import Context, copy_context
from sys import get_asyncgen_hooks, set_asyncgen_hooks
from types import AsyncGeneratorType
from typing import Any, NoReturn

from ..common.groups import iter_leaves
from ..common.text import class_name, shown
from ..resources import TWO_FORMS
from .exceptions import chain, hide_engine, put_after
from .variables import Changes, changes_between, with_changes

if sys.version_info >= (3, 12):
    from asyncio.tasks import _swap_current_task  # type: ignore[attr-defined]

    def take_current_task(loop: AbstractEventLoop) -> Task[Any] | None:
        """Have no `asyncio.Task` be the current one, and return which was."""
        current = current_task(loop)
        if current is not None:  # else CPython 3.12.1 finds nothing to take away
            _swap_current_task(loop, None)
        return current

    put_current_task: Callable[[AbstractEventLoop, Task[Any]], object] = _swap_current_task
else:
    from asyncio.tasks import _current_tasks  # type: ignore[attr-defined]

    def take_current_task(loop: AbstractEventLoop) -> Task[Any] | None:
        """Have no `asyncio.Task` be the current one, and return which was."""
        return _current_tasks.pop(loop, None)  # type: ignore[no-any-return]

    put_current_task: Callable[[AbstractEventLoop, Task[Any]], object] = _current_tasks.__setitem__


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
    _left: Context | None = None  # by the attempt before this one
    driver: Any = None  # while the resource is held
    value: Any = None  # which it has yielded
    ask: Callable[[], BaseException | None] | None = None  # what to raise at the yield
    thrown: BaseException | None = None  # by what breaks it
    broken = False  # while it was held
    postponed = False  # its cleanup, to the next pass of the loop
    limit: float | None = None  # of its cleanup, in seconds, if that comes before its turn
    cut_off: str | None = None  # what to say if the limit is one of the run
    spared = False  # by the end of the loop, once

    def __init__(self, loop: AbstractEventLoop, function: Any, name: Any) -> None:
        self._loop = loop
        self._before: Context | None = copy_context()  # without what the set-up will set
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
        self._callback = self._context = None
        if self._cancelled is not None:
            cancelled, self._cancelled = self._cancelled, None
            try:
                raise cancelled
            finally:
                del cancelled

    def __await__(self) -> Generator[Any, None, None]:
        self._asyncio_future_blocking = True
        yield self

    def __repr__(self) -> str:
        return f"<the turn of resource {shown(self.name)} to be cleaned up>"

    # For `hold` and the engine.

    def go_on(self, soon: bool = False) -> None:
        """Step the `asyncio.Task`: now, if it waits already, or in its turn of the loop."""
        callback, context = self._callback, self._context
        self._is_due = True
        if callback is None or context is None:
            return
        if soon:
            self._step_soon()
            return
        current = None
        try:
            current = take_current_task(self._loop)
            context.run(callback, self)
        except BaseException as error:
            if self._callback is not callback:
                raise
            self._step_soon()  # it was not even called
            if type(error) is not RuntimeError:  # which somebody else in its context leads to
                raise
        finally:
            if current is not None:
                try:
                    put_current_task(self._loop, current)
                except BaseException:
                    put_current_task(self._loop, current)
                    raise
            del current  # whose result may be an error that leads here

    def is_waiting(self) -> bool:
        """Return True if its `asyncio.Task` can be stepped."""
        return self._callback is not None

    def _step_soon(self) -> None:
        assert self._callback is not None
        self._loop.call_soon(self._callback, self, context=self._context)
        self._callback = self._context = None

    def take_thrown(self) -> BaseException | None:
        """Return what must be raised at the `yield`."""
        thrown, ask = self.thrown, self.ask
        self.thrown = self.ask = None
        if thrown is not None:
            return thrown
        return CancelledError() if ask is None else ask()

    def begin_again(self) -> None:
        """Keep the context variables as they are before another attempt."""
        assert self._before is not None
        if self._left is not None:
            # If an observer has set something since the last attempt, it is not the function's.
            since = changes_between(self._left, copy_context())
            self._before = with_changes(self._before, since)

    def attempt_failed(self) -> None:
        """Keep the context variables that a failed attempt has left."""
        self._left = copy_context()

    def changes(self) -> Changes:
        """Return the context variables that the set-up has set, as it has just ended."""
        before, self._before, self._left = self._before, None, None
        assert before is not None
        return changes_between(before, copy_context())


def first_step(body: AsyncGenerator[Any, None]) -> Awaitable[Any]:
    """Return the first step of an async generator of which the loop is to know nothing.

    `shutdown_asyncgens()` of the loop would close it in another `asyncio.Task`.
    """
    hooks = get_asyncgen_hooks()
    try:
        set_asyncgen_hooks(None, None)
        return body.__anext__()
    finally:
        set_asyncgen_hooks(*hooks)


async def hold(resource: Resource, ctx: Any) -> None:
    """Run the function of a resource: up to its `yield`, and on from there when its turn comes.

    An exception that was thrown in at the `yield` is not raised again: the run has it already.
    """
    body: AsyncGenerator[Any, None]
    has_ended = False
    try:
        body = resource.function(ctx)
        if type(body) is not AsyncGeneratorType:
            body = as_generator(body, resource.name)
        try:
            resource.value = await first_step(body)
        except StopAsyncIteration:
            has_ended = True
        if has_ended:
            raise RuntimeError(
                f"the function of resource {shown(resource.name)} must yield once, but it ended "
                f"without a 'yield'"
            )
    except BaseException:
        resource.attempt_failed()
        raise
    thrown: BaseException | None = None
    raised: BaseException | None = None
    following: Awaitable[Any] | None = None  # which keeps what it throws
    try:
        try:
            await resource
            thrown = resource.take_thrown()
        except BaseException as exception:  # which other code throws into the coroutine
            resource.broken = True
            thrown = exception
        try:
            if resource.limit is None:
                try:
                    following = body.__anext__() if thrown is None else body.athrow(thrown)
                except BaseException as broken:  # it was not even called
                    resource.broken = True
                    thrown = broken
                    following = body.athrow(broken)
                await following
            else:
                assert thrown is not None  # by what has broken it
                await _throw_within(resource, body, thrown)
        except StopAsyncIteration:
            has_ended = True
        except BaseException as exception:
            raised = exception
        try:
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
        except BaseException as error:
            if raised is not None and error is not raised:
                put_after(error, raised)  # a call of the engine has failed
            raise
    finally:
        # The traceback of the exception leads here, so no name may lead back to it.
        del raised, thrown, following


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


async def _throw_within(
    resource: Resource, body: AsyncGenerator[Any, None], thrown: BaseException
) -> None:
    seconds = resource.limit
    bound = timeout(seconds)
    try:
        async with bound:
            await body.athrow(thrown)
    except TimeoutError as error:
        if bound.expired():
            error.args = (resource.cut_off or f"timed out after {seconds} s",)
            if error.__cause__ is not None:
                hide_engine(error.__cause__)
        raise
    finally:
        del thrown  # whose traceback leads here


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
