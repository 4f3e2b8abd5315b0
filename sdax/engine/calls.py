"""Around the call of a user's function: what both engines share and do rarely."""

from __future__ import annotations

import inspect
from asyncio import CancelledError, Task, sleep
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from types import CodeType, CoroutineType
from typing import Any, NoReturn

from ..common.checks import SPLIT_GENERATOR
from ..common.frozen import Frozen
from ..common.text import class_name, shown
from ..limits import is_context_manager, refuse_made_limiter
from .group import SdaxTaskGroup
from .work import FUNCTION, KIND, USERS_NAME


class WithTaskGroup(Frozen):
    """Makes a function of the context alone: each call gets a task group of its own."""

    __slots__ = __match_args__ = ("function",)

    function: Callable[[Any, SdaxTaskGroup], Awaitable[Any]]

    def __init__(self, function: Callable[[Any, SdaxTaskGroup], Awaitable[Any]]) -> None:
        self._set_once(function=function)

    async def __call__(self, ctx: Any) -> Any:
        async with SdaxTaskGroup() as group:
            return await self.function(ctx, group)


class StoppedError(Exception):
    """Carries a `StopIteration` out of a coroutine, which would make a `RuntimeError` of it."""

    def __init__(self, stop: StopIteration) -> None:
        super().__init__(stop)
        self.stop = stop


def limited_call(
    limiter: Any,
    work: tuple[Any, ...],
    name: Any,
    phase: str,
    task: Any,
    let_in: Callable[..., tuple[Any, ...]],
    owed: Callable[..., tuple[Any, ...] | None],
    ctx: Any,
) -> Coroutine[Any, Any, Any]:
    """Call a function inside its limiter, in this `asyncio.Task`.

    `let_in` is called when the limiter has let it in. It begins the timeout, and returns the
    arguments of the function. `owed` is called when a cancellation has ended the wait. It returns
    the arguments if the function is called in spite of that, outside of the limiter: it is then
    cancelled where it waits first.
    """
    # Looked at here, because what fails inside of the coroutine has failed the attempt. There,
    # nothing of ours is called before the function.
    is_made = is_context_manager(limiter)
    inside = _call_inside(limiter, is_made, work, name, phase, task, let_in, owed, ctx)
    return _named(inside, work[USERS_NAME])


async def _call_inside(
    limiter: Any,
    is_made: bool,
    work: Any,
    name: Any,
    phase: str,
    task: Any,
    let_in: Any,
    owed: Any,
    ctx: Any,
) -> Any:
    if not is_made:
        limiter = limiter(ctx)
    kind = type(limiter)
    try:
        enter, leave = kind.__aenter__, kind.__aexit__
    except AttributeError:
        refuse_made_limiter(limiter)
    is_in = False
    arguments: Any = None
    try:
        await enter(limiter)
        is_in = True
    except CancelledError:
        try:
            arguments = owed()
        except BaseException as broken:  # it could not even be called
            arguments = owed(broken)
        if arguments is None:
            raise
    try:
        try:
            if is_in:
                arguments = let_in()
            else:
                task.uncancel()  # of the request that has ended the wait
                task.cancel()
        except BaseException as broken:  # it could not even be called
            arguments = (let_in if is_in else owed)(broken)
        let_in = owed = None  # they lead to the run
        try:
            returned = work[FUNCTION](*arguments)
        except StopIteration as stop:
            raise StoppedError(stop) from None
        finally:
            del arguments  # an outcome leads to failures
        if work[KIND] is True:
            if type(returned) is CoroutineType:
                refuse_coroutine(returned, name, phase)
            value = returned
        else:
            if type(returned) is not CoroutineType:
                returned = as_coroutine(returned, name, phase)
            value = await returned
    except BaseException as error:
        if not is_in or not await leave(limiter, type(error), error, error.__traceback__):
            raise
        return None
    else:
        if is_in:
            await leave(limiter, None, None, None)
        return value
    finally:
        if not is_in and task._must_cancel:  # it has not waited
            with suppress(CancelledError):
                await sleep(0)


def fallback_call(
    function: Any, exception: BaseException, name: str, ctx: Any
) -> Coroutine[Any, Any, Any]:
    """Call a fallback, async or not, with what it is to cover."""
    return _named(_call_fallback(function, exception, ctx), name)


async def _call_fallback(function: Any, exception: BaseException, ctx: Any) -> Any:
    try:
        value = function(ctx, exception)
    except StopIteration as stop:
        raise StoppedError(stop) from None
    finally:
        del exception  # the traceback of what is raised leads here
    return await value if inspect.isawaitable(value) else value


def _named(coroutine: Coroutine[Any, Any, Any], name: str) -> Coroutine[Any, Any, Any]:
    """Have a coroutine of ours show the user's name."""
    shown_as: Any = coroutine
    shown_as.__qualname__ = name
    shown_as.__name__ = name.rpartition(".")[2]
    return coroutine


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


def cancel(task: Task[Any], broken: Callable[[BaseException], None]) -> None:
    """Cancel an `asyncio.Task`, also where the future that it waits for refuses to be cancelled.

    `broken` gets what that future raises. The task is then woken up with a cancelled future in
    its place, as asyncio would wake it.
    """
    requests = None
    try:
        requests = task.cancelling()
        task.cancel()
    except BaseException as error:
        broken(error)
        try:
            if requests is None or task.cancelling() == requests:  # it was not even asked
                task.cancel()
            else:
                _wake_up_cancelled(task)
        except BaseException as another:
            broken(another)


def _wake_up_cancelled(task: Any) -> None:
    loop, waiter = task.get_loop(), task._fut_waiter
    cancelled = loop.create_future()
    cancelled.cancel()
    callbacks: list[tuple[Any, Any]] = list(waiter._callbacks or [])
    for callback, context in callbacks:
        # The callback that asyncio.Task has made, in C or in Python, to go on when it is done.
        if getattr(callback, "__self__", None) is task:
            waiter.remove_done_callback(callback)
            loop.call_soon(callback, cancelled, context=context)


def name_of(call: Any) -> str:
    """Return the name of the user's function behind what the engine calls."""
    function = _innermost(call)
    name = getattr(function, "__qualname__", None)
    return name if isinstance(name, str) else type(function).__qualname__


def code_of(call: Any) -> CodeType | None:
    """Return the code of the user's function behind what the engine calls, if it has any."""
    code = getattr(_innermost(call), "__code__", None)
    return code if isinstance(code, CodeType) else None


def _innermost(call: Any) -> Any:
    """Return the user's function: inside of our own helpers, and of `functools.partial`."""
    for _ in range(100):
        inner = getattr(call, "func", None) or getattr(call, "function", None)
        if hasattr(call, "__qualname__") or not callable(inner):
            break
        call = inner
    return call


async def _await(awaitable: Awaitable[Any]) -> Any:
    return await awaitable
