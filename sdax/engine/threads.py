"""Calls of blocking functions in threads."""

from __future__ import annotations

from asyncio import AbstractEventLoop, CancelledError, get_running_loop, shield
from asyncio import Future as LoopFuture
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from threading import Thread
from typing import Any, Final, TypeAlias

DROPPED: Final = "the executor has cancelled the call"

Job: TypeAlias = list[tuple[Future[Any], Callable[[], Any]]]


async def call_in_thread(
    function: Callable[[Any], Any], ctx: Any, executor: Executor | None, abandon_on_cancel: bool
) -> Any:
    """Call `function(ctx)` in a thread of `executor` (None means the event loop's executor).

    A call that has begun cannot be stopped. So a cancellation waits until the call ends, and is
    raised then. If the call failed meanwhile, its failure is raised instead: it must not be
    lost. With `abandon_on_cancel` a cancellation does not wait, and what the call returns or
    raises is dropped. A call that still waits for a thread is given up, and never made.
    """
    loop = get_running_loop()
    call = _Call(function)
    work: Future[Any]
    work = _in_loops_executor(loop, call, ctx) if executor is None else executor.submit(call, ctx)
    ended: LoopFuture[None] = loop.create_future()
    work.add_done_callback(partial(_tell, loop, ended))
    cancellation = failure = None
    try:
        while not ended.done():
            try:
                await shield(ended)
            except CancelledError as error:
                if work.cancel() or (abandon_on_cancel and not work.done()):
                    raise
                if cancellation is None:
                    cancellation = error
        failure = CancelledError(DROPPED) if work.cancelled() else work.exception()
        if failure is not None:
            raise failure
        if cancellation is not None:
            raise cancellation
        return work.result()
    finally:
        # The traceback of what is raised leads to this frame. Let no name lead back.
        del cancellation, failure, work


class OwnThreads(Executor):
    """Makes each call at once, in a new thread that ends with the call.

    If no thread can be started, an `urgent` call runs in the thread that asks for it.
    """

    def __init__(self, name: str, *, urgent: bool) -> None:
        self._name = name
        self._urgent = urgent

    def submit(self, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        work: Future[Any] = Future()
        work.set_running_or_notify_cancel()  # nothing keeps it from being called any more
        perform = partial(_perform, [(work, partial(call, *args, **kwargs))])
        try:
            # Not a daemon: the interpreter must not exit in the middle of a cleanup.
            Thread(target=perform, name=self._name, daemon=False).start()
        except RuntimeError:
            if not self._urgent:
                raise
            perform()
        return work


class _Call:
    """Calls a function in a copy of the context variables. An executor may pickle the call for
    another process, which does not get the variables."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self._function = function
        self._context = copy_context()

    def __call__(self, ctx: Any) -> Any:
        return self._context.run(self._function, ctx)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Call, (self._function,)


def _in_loops_executor(loop: AbstractEventLoop, call: _Call, ctx: Any) -> Future[Any]:
    # The future that the loop returns is cancelled at once, even if the call has begun.
    work: Future[Any] = Future()
    job: Job = [(work, partial(call, ctx))]
    taken = loop.run_in_executor(None, _perform, job)
    taken.add_done_callback(partial(_settle, work))
    return work


def _perform(job: Job) -> None:
    """Make a call, unless it was cancelled before.

    An executor keeps its argument, and the traceback of a failure leads to the executor. So take
    the future out of the argument: the failure must not lead to itself.
    """
    work, call = job.pop()
    if not (work.running() or work.set_running_or_notify_cancel()):
        return
    try:
        work.set_result(call())
    except BaseException as error:
        work.set_exception(error)
        del work


def _settle(work: Future[Any], taken: LoopFuture[None]) -> None:
    """End the future of a call that the loop's executor has dropped."""
    failure = None if taken.cancelled() else taken.exception()
    if failure is None:
        work.cancel()
    elif not work.done():
        work.set_exception(failure)


def _tell(loop: AbstractEventLoop, ended: LoopFuture[None], work: Future[Any]) -> None:
    with suppress(RuntimeError):  # the loop is closed, and nobody waits
        loop.call_soon_threadsafe(ended.set_result, None)
