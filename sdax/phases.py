"""A run phase by phase."""

from __future__ import annotations

from asyncio import CancelledError, Future, current_task, get_running_loop
from collections.abc import Callable
from contextlib import suppress
from enum import Enum
from types import TracebackType
from typing import Any, Final, Generic, Self

from ._impl import Run
from .common.generic import K, KeyedByDefault, T
from .common.order import EXECUTE, POST, PRE
from .common.text import shown
from .engine.exceptions import set_traceback, traceback_of
from .engine.outcome import (
    add_lost,
    conclude,
    hear_out,
    new_waiter,
    raise_failures,
    raise_fatal,
    see_through,
    shield,
)
from .engine.stack import MOST_VAIN_ATTEMPTS


class PhaseId(Enum):
    """The phases of a run, in their order."""

    PRE_EXEC = 1
    EXECUTE = 2
    POST_EXEC = 3


_PHASE_IDS: Final = {PRE: PhaseId.PRE_EXEC, EXECUTE: PhaseId.EXECUTE, POST: PhaseId.POST_EXEC}


class AsyncPhaseRunner(KeyedByDefault, Generic[T, K]):
    """One run, phase by phase. `processor.open(ctx)` returns it, for `async with`.

    If you leave the block before the first phase, nothing happens. If you leave it later, also by
    an exception, it skips the phases that have not begun, runs the due cleanup and raises the
    failures, even if you already read them. If the block raised an exception, that exception is
    raised, with the failures as its context.

    >>> async with processor.open(ctx) as run:
    ...     while await run.run_next():
    ...         print(run.last_phase_id(), "is done")
    """

    def __init__(self, ctx: T, make_run: Callable[[], Run]) -> None:
        if not callable(make_run):
            raise TypeError(
                f"an AsyncPhaseRunner is made by processor.open(ctx); got {shown(make_run)} in "
                f"place of a function that makes a run"
            )
        self.ctx = ctx
        self._make_run = make_run
        self._run: Run | None = None
        self._last: int | None = None
        self._next: int | None = PRE
        self._running: Future[None] | None = None
        self._closed = False
        self._abandoned = False  # its coroutine was closed, so it cannot await anything

    async def run_next(self) -> bool:
        """Run the next phase completely, and return True if another phase follows.

        Failures are kept until the block is left, see `has_failures`. After a failed
        `pre_execute` the next phase is the cleanup, unless the run keeps going. After a function
        that returned `Finish` the next phase is the cleanup too.

        Raises `RuntimeError` after the block was left, and while another call runs. Raises
        `asyncio.CancelledError` if the caller is cancelled, when all functions of the phase have
        ended.
        """
        if self._closed:
            raise RuntimeError("run_next: the run is closed; open another one")
        if self._running is not None:
            raise RuntimeError("run_next: a phase of this run is running already")
        following = self._following()
        if following is None:
            return False
        running = get_running_loop().create_future()
        if self._run is None:
            self._run = self._make_run()
        run = self._run
        self._running = running
        try:
            interruption = await _run_phase(run, following)
        except GeneratorExit:
            self._abandoned = True
            raise
        finally:
            self._running = None
            self._last = following
            if following == PRE:
                self._next = POST if run.aborted else EXECUTE
            else:
                self._next = POST if following == EXECUTE else None
            try:
                running.set_result(None)
            except BaseException as error:
                run.break_down(error)
                running.set_result(None)  # nothing else would wake up a waiting task
        try:
            raise_fatal(run)
            if interruption is not None:
                raise interruption
        finally:
            del interruption
        return self._next is not None

    def next_phase_id(self) -> PhaseId | None:
        """Return the phase that `run_next` would run, or None after the last."""
        following = self._following()
        return None if following is None else _PHASE_IDS[following]

    def last_phase_id(self) -> PhaseId | None:
        """Return the phase that ran last, or None before the first."""
        return None if self._last is None else _PHASE_IDS[self._last]

    def has_failures(self) -> bool:
        """Return True if anything has failed so far."""
        return bool(self.failures())

    def failures(self) -> list[Exception]:
        """Return the exceptions of all failures of the run so far, in the order in which they
        failed: not those of tasks that are not required."""
        record = self._run and self._run.record
        return [failure.exception for failure in record.failures] if record else []

    def raise_failures(self) -> None:
        """Raise an `SdaxExecutionError` of all failures so far, if there are any."""
        if self._run is not None:
            raise_failures(self._run)

    async def aclose(self) -> None:
        """Do the same as leaving the block. A second call does nothing."""
        await self._close(None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            await self._close(exception)
        finally:
            del exception, traceback

    async def _close(self, body: BaseException | None) -> None:
        run = self._run
        first = not self._closed
        is_own = False
        if run is not None and self._running is not None:
            try:
                is_own = run.runs_in(current_task())
            except BaseException as error:
                run.break_down(error)
                is_own = run.runs_in(current_task())
        if is_own:
            raise RuntimeError(
                "aclose: called by a function of this run, which would wait for itself; call it "
                "where the run was opened"
            )
        self._closed = True
        if run is None or not first:
            return
        interruption = None
        try:
            for _ in range(MOST_VAIN_ATTEMPTS):
                try:
                    interruption = await self._end(run, failed=body is not None) or interruption
                    break
                except GeneratorExit:
                    raise
                except BaseException as error:
                    run.break_down(error)
            if self._abandoned:
                return
            if interruption is not None or run.record is not None or run.fatal is not None:
                _conclude_block(run, interruption, body)
        finally:
            del body, interruption

    async def _end(self, run: Run, *, failed: bool) -> BaseException | None:
        """Wait for the running phase, if there is one, and for the cleanup.

        Returns the first exception that came meanwhile, or None. A second call continues where the
        first was interrupted.
        """
        interruption = None
        try:
            while self._running is not None:  # in another asyncio.Task, which waits for the run
                interruption = await self._stop_phase(run, self._running) or interruption
            if self._abandoned:
                self._clean_up_alone(run)
            elif self._last != POST:
                run.skip_execute()
                if failed:  # by an exception of the block
                    run.cut_short()
                late = await _run_phase(run, POST)
                interruption = interruption or late
                del late
                self._last, self._next = POST, None
            return interruption
        finally:
            del interruption

    async def _stop_phase(self, run: Run, running: Future[None]) -> BaseException | None:
        """Cancel the phase that runs in another asyncio.Task, and wait for it.

        Returns an exception that came meanwhile, or None.
        """
        run.cancel()
        came: BaseException | None = None
        try:
            await _shielded(run, running)
        except GeneratorExit:
            # This coroutine cannot await anything. The cleanup follows when the phase has ended.
            running.add_done_callback(lambda _: self._clean_up_alone(run))
            raise
        except BaseException as exception:
            came = exception
        try:
            if came is not None and not running.done():
                with shield():
                    while not running.done():
                        with suppress(CancelledError):
                            await _shielded(run, running)
            return came
        finally:
            del came

    def _clean_up_alone(self, run: Run) -> None:
        """Begin the cleanup, which then continues by itself."""
        if self._last != POST:
            run.skip_execute()
            run.start(POST)
        hear_out(run)

    def _following(self) -> int | None:
        """Return the next phase: after a resource has broken between two phases, the cleanup."""
        if self._next == EXECUTE and self._run is not None and self._run.aborted:
            self._next = POST
        return self._next


async def _run_phase(run: Run, number: int) -> BaseException | None:
    """Run up to and including a phase. Return the first exception that came meanwhile, or None."""
    interruption: BaseException | None = None
    try:
        try:
            run.start(number)
        except BaseException as error:  # it was not even called
            run.break_down(error)
            run.start(number)
        while not run.over:
            try:
                await new_waiter(run)
            except BaseException as exception:
                interruption = exception
            if interruption is not None:
                await see_through(run, interruption)
        return interruption
    finally:
        del interruption


def _conclude_block(
    run: Run, interruption: BaseException | None, body: BaseException | None
) -> None:
    """Raise the exception of the run.

    An exception of the block gets its context, and the block raises it again, because a coroutine
    cannot raise a `StopIteration`.
    """
    traceback = None if body is None else traceback_of(body)
    try:
        conclude(run, interruption or body)
    except BaseException as error:
        if run.record is not None or run.fatal is not None:
            add_lost(run, error, interruption)
        if error is not body:
            raise
        set_traceback(error, traceback)
    finally:
        del interruption, body, traceback


async def _shielded(run: Run, future: Future[Any]) -> None:
    """Wait for a future without cancelling it when this wait is cancelled."""
    waiter = future.get_loop().create_future()

    def wake(_: Future[Any]) -> None:
        try:
            if not waiter.done():
                waiter.set_result(None)
        except BaseException as error:
            run.break_down(error)
            if not waiter.done():
                waiter.set_result(None)  # nobody else would wake up who waits

    future.add_done_callback(wake)
    await waiter
