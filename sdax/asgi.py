"""Cancel the work for a request when its client leaves (ASGI: Starlette, FastAPI, Litestar)."""

from __future__ import annotations

import asyncio
import inspect
import warnings
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeAlias, TypeVar

from .common.text import shown

__all__ = ["ClientDisconnectedError", "cancel_on_disconnect"]

T = TypeVar("T")

Receive: TypeAlias = Callable[[], Awaitable[Mapping[str, object]]]


class ClientDisconnectedError(Exception):
    """The client has left, and the work for it was cancelled and cleaned up.

    `cancel_on_disconnect` raises it. Its `__context__` is the `asyncio.CancelledError` of the work.
    Register a handler for it in your application. Otherwise the server logs it as an error:

    >>> @app.exception_handler(ClientDisconnectedError)
    ... async def nobody_is_left(request, error):
    ...     return Response(status_code=499)
    """

    def __init__(self, message: str = "the client has disconnected") -> None:
        super().__init__(message)


async def cancel_on_disconnect(receive: Receive, awaitable: Awaitable[T]) -> T:
    """Await `awaitable` and return its result, but cancel it if the client disconnects first.

    ASGI servers do not cancel a handler when its client hangs up. They only send a message, which
    `receive` returns. This function calls `receive` while the awaitable runs.

    - The client disconnects: the awaitable is cancelled. When it has cleaned up,
      `ClientDisconnectedError` is raised. If it returns a value or raises something else in spite
      of the cancellation, that value or exception counts.
    - The awaitable fails: its exception is raised unchanged.
    - The caller is cancelled: the awaitable is cancelled, and `asyncio.CancelledError` is raised,
      even if the client disconnects as well.
    - `receive` fails: the awaitable is cancelled, and the exception of `receive` is raised.

    Read the body of the request first. Nothing else may call `receive` until this function has
    returned. The unread parts of a body are dropped, with a `RuntimeWarning`, and code that reads
    the body afterwards waits for ever.

    The awaitable runs in the task of the caller. Nothing is left running.

    Raises `TypeError` if `receive` cannot be called or `awaitable` cannot be awaited, `ValueError`
    if `receive` returns other messages than those of an HTTP request, and `RuntimeError` outside an
    `asyncio.Task`.

    >>> @app.get("/orders/{user_id}")
    ... async def orders(user_id: int, request: Request):
    ...     ctx = OrderContext(user_id)
    ...     await cancel_on_disconnect(request.receive, processor.process_tasks(ctx))
    ...     return ctx.answer
    """
    caller = _checked(receive, awaitable)
    cancelling = caller.cancelling()
    watch = _Watch(caller, receive)
    del caller  # otherwise an exception would lead from the task to itself
    try:
        return await awaitable
    except asyncio.CancelledError:
        reason = watch.reason
        try:
            if reason is not None and watch.take_back() <= cancelling:
                raise reason
            raise
        finally:
            del reason
    finally:
        await watch.end()
        del watch  # which leads to the exception of a failed `receive`


class _Watch:
    """Cancels a task as soon as the client of its request has left."""

    __slots__ = ("_caller", "_watcher", "reason")

    def __init__(self, caller: asyncio.Task[object], receive: Receive) -> None:
        self._caller: asyncio.Task[object] | None = caller
        self.reason: BaseException | None = None  # why the caller was cancelled
        self._watcher = asyncio.create_task(_disconnection(receive), name="sdax:disconnection")
        # This is never called from inside the caller, even if an eager task has already ended.
        self._watcher.add_done_callback(self._cancel)

    def _cancel(self, watcher: asyncio.Task[None]) -> None:
        if self._caller is not None and not watcher.cancelled():
            self.reason = watcher.exception() or ClientDisconnectedError()
            self._caller.cancel(str(self.reason))

    def take_back(self) -> int:
        """Take back the cancellation. Return the number of other cancellations of the caller."""
        assert self._caller is not None
        self.reason = None
        return self._caller.uncancel()

    async def end(self) -> None:
        """Stop watching."""
        if self.reason is not None:
            self.take_back()
        self._caller = None
        if not self._watcher.done():
            self._watcher.cancel()
            await asyncio.wait([self._watcher])


async def _disconnection(receive: Receive) -> None:
    """Wait until the client has left."""
    while (kind := (message := await receive())["type"]) != "http.disconnect":
        if kind != "http.request":
            raise ValueError(
                f"cancel_on_disconnect takes the receive of an HTTP request, but it gave a "
                f"message of type {shown(kind)}"
            )
        if message.get("body") or message.get("more_body"):
            # Not in the log, because a client could fill it. Python shows a warning once.
            warnings.warn(
                "cancel_on_disconnect has dropped a part of the body of a request, because it "
                "calls receive; whoever reads the body now waits for ever, so read it before",
                RuntimeWarning,
                stacklevel=1,
            )


def _checked(receive: object, awaitable: object) -> asyncio.Task[object]:
    """Return the task of the caller, or refuse the arguments."""
    problem: Exception
    if not callable(receive):
        hint = "; did you mean its receive?" if hasattr(receive, "receive") else ""
        problem = TypeError(
            f"cancel_on_disconnect: receive must be the receive callable of ASGI, "
            f"got {shown(receive)}{hint}"
        )
    elif not inspect.isawaitable(awaitable):
        raise TypeError(
            f"cancel_on_disconnect: awaitable must be awaitable, such as "
            f"processor.process_tasks(ctx), got {shown(awaitable)}"
        )
    elif (caller := _current_task()) is not None:
        return caller
    else:
        problem = RuntimeError("cancel_on_disconnect must be awaited in an asyncio.Task")
    if asyncio.iscoroutine(awaitable):
        awaitable.close()
    raise problem


def _current_task() -> asyncio.Task[object] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:  # no loop of asyncio, but maybe one of trio
        return None
