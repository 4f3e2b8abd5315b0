"""The outcome of one input, and the base of all ways to run many, which gives the outcomes."""

from __future__ import annotations

import asyncio
import warnings
from asyncio import Future, Task
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from enum import Enum
from inspect import isasyncgen
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, NoReturn, Self, TypeVar, cast

from ..common.text import counted, shown_fields
from ..engine.exceptions import chain, is_cancellation, is_exception, set_traceback, traceback_of
from ..engine.outcome import PASS, shield
from ..errors import TaskCancelledError
from ..report import RunReport
from .progress import Progress

I_co = TypeVar("I_co", covariant=True)
V_co = TypeVar("V_co", covariant=True)

# The number of outcomes that are taken in a row before the event loop gets a turn.
MOST_IN_A_ROW: Final = 64


class Outcome(NamedTuple, Generic[I_co, V_co]):
    """The outcome of one input.

    - `number`: its position among the inputs, from 0.
    - `item`: the input itself.
    - `value`: the return value of `pick`, by default the report. None after a failure.
    - `report`: the report of the run. None if there was no run. On a cluster with a `pick`, the
      report stays on the worker unless the run has failed, and this is None.
    - `error`: None, or why there is no value. After a failed run it is an `SdaxExecutionError`.
      Otherwise it is the exception of `make_context` or `pick`.

    `sdax.Outcome` is another class: what a cleanup gets, to see how its own run has gone so far.

    >>> async for outcome in outcomes:
    ...     if outcome.error is not None:
    ...         print(f"{outcome.item} failed: {outcome.error}")
    """

    number: int
    item: I_co
    value: V_co
    report: RunReport[Any] | None
    error: Exception | None

    def result(self) -> V_co:
        """Return the value, or raise the error if there is one."""
        error = self.error
        if error is None:
            return self.value
        own = id(self)  # by which the next call knows the frame of this one
        try:
            set_traceback(error, _without_calls(error, own))
            raise error
        finally:
            del self, error  # the traceback of what is raised leads here

    def __repr__(self) -> str:
        return shown_fields(self)


def _without_calls(error: Exception, own: int) -> TracebackType | None:
    """Return the traceback of an outcome's error without what earlier calls of `result` added."""
    traceback = added = traceback_of(error)
    while added is not None:
        frame = added.tb_frame
        # Frames may have been cleared. The error of `pick` may be that of another outcome.
        if frame.f_code is Outcome.result.__code__ and frame.f_locals.get("own", own) == own:
            return added.tb_next
        added = added.tb_next
    return traceback


def unasked_cancellation() -> TaskCancelledError:
    """Return the error for what was cancelled, but not by `run_many`."""
    return TaskCancelledError("cancelled, although nobody asked for it")


def failed(number: int, item: Any, error: Exception) -> Outcome[Any, Any]:
    """Return the outcome of an input that failed. The error of a run has its report."""
    report = getattr(error, "report", None)
    if not isinstance(report, RunReport):
        report = None
    return Outcome(number, item, None, report, error)


# Without a call of a Python function, unlike `Outcome(...)`.
def make_outcome(
    fields: tuple[int, Any, Any, RunReport[Any] | None, Exception | None],
) -> Outcome[Any, Any]:
    """Return an outcome of these fields."""
    made: Outcome[Any, Any] = tuple.__new__(Outcome, fields)
    return made


class _State(Enum):
    NEW = "is not open: use it as 'async with run_many(...) as outcomes'"
    OPEN = "is open"
    LEFT = "is closed: its block was left"


class Outcomes(Generic[I_co, V_co]):
    """The outcomes of `run_many`, as they come: an asynchronous context manager that gives
    itself, and an asynchronous iterator for its block.

    One `asyncio.Task` at a time takes outcomes. Nothing is lost if a wait for the next one is
    cancelled, by `asyncio.timeout()` for example. Leaving the block before the last outcome
    cancels the runs that are under way and waits for their cleanup.
    """

    def __init__(
        self,
        inputs: Iterable[Any] | AsyncIterable[Any],
        *,
        ordered: bool,
        progress: Progress | None,
    ) -> None:
        self._state = _State.NEW
        self._inputs: Any = inputs
        self._ordered = ordered
        self._progress = progress
        self._loop: asyncio.AbstractEventLoop = cast(Any, None)
        self._finished = deque[Outcome[Any, Any]]()  # that can be taken
        self._early: dict[int, Outcome[Any, Any]] = {}  # that wait for an earlier one
        self._next_number = 0  # of those in order
        self._occupied = 0  # places: inputs whose outcomes are not taken
        self._waiter: Future[None] | None = None  # of whoever waits for an outcome
        self._in_a_row = MOST_IN_A_ROW
        self._shaken = False  # cancelled once more while it waits, in this pass of the loop
        self._number = 0  # of the next input
        self._iterator: Iterator[Any] | None = None  # of inputs that are not async
        self._feeder: Task[None] | None = None  # takes those that are
        self._fed: AsyncIterator[Any] | None = None  # until it has begun
        self._room: Future[None] | None = None  # that it waits for
        self._takes = True  # inputs
        self._stopping = False
        self._source_error: BaseException | None = None
        self._fatal: BaseException | None = None  # will be raised before anything else
        self._stopped_by: tuple[int, Any] | None = None  # the number and the input that raised it
        self._is_asked = False  # for an outcome

    def __aiter__(self) -> AsyncIterator[Outcome[I_co, V_co]]:
        return self

    async def __anext__(self) -> Outcome[I_co, V_co]:
        """Return the next outcome.

        Raises what `inputs` has raised, once all runs have ended. `KeyboardInterrupt`, and anything
        else that is not an `Exception`, cancels all runs, which clean up. It is raised after the
        outcomes of runs that had ended before.
        """
        if self._finished and self._in_a_row:
            self._in_a_row -= 1
            return self._take()
        return await self._next()

    @property
    def stopped_by(self) -> tuple[int, I_co] | None:
        """The number and the input whose function has stopped everything, with an exception like
        `SystemExit` that is not an `Exception`. Otherwise None.

        >>> try:
        ...     async with run_many(processor, orders) as outcomes:
        ...         async for outcome in outcomes:
        ...             ...
        ... except SystemExit:
        ...     print(f"stopped by {outcomes.stopped_by}")
        """
        return self._stopped_by

    def take_no_more(self) -> None:
        """Take no more inputs: the outcomes of those that were taken still come.

        For a program that is asked to end. Pass it to `loop.add_signal_handler`, and no outcome
        of a run that has begun is lost.
        """
        self._is_asked = True
        self._end_inputs()
        self._wake()

    def stop(self) -> None:
        """Cancel the active runs, which clean up: the outcomes of those that have ended still come.

        For a program that is asked to end soon. An executor finishes the batches that it has begun.
        """
        self._is_asked = True
        if not self._stopping:
            self._cancel()
        self._wake()

    async def __aenter__(self) -> Self:
        if self._state is not _State.NEW:
            raise RuntimeError("run_many is opened once; call it again for another block")
        self._loop = asyncio.get_running_loop()
        inputs, self._inputs = self._inputs, None
        if isinstance(inputs, AsyncIterable):
            self._fed = aiter(inputs)
        else:
            self._iterator = iter(inputs)
        await self._open()
        self._state = _State.OPEN
        if self._progress is not None:
            self._progress.begin()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._state = _State.LEFT
            if isinstance(exception, GeneratorExit):
                self._abandon()  # nothing can be awaited any more
            else:
                await self._leave(exception)
                if exception is None and not self._is_asked:
                    warnings.warn(
                        "run_many was left before an outcome was asked for, so no run has begun; "
                        "write 'async for outcome in outcomes:' in its block",
                        RuntimeWarning,
                        stacklevel=2,
                    )
        finally:
            if self._progress is not None:
                self._progress.end()
            del exception, traceback

    if not TYPE_CHECKING:  # type checkers refuse these without help

        def _refuse(self) -> NoReturn:
            raise TypeError(
                "run_many gives its outcomes asynchronously: write 'async with run_many(...) as "
                "outcomes:' and in it 'async for outcome in outcomes:'"
            )

        __iter__ = __enter__ = __await__ = _refuse

        def __exit__(self, *_) -> None:
            """Make `with` get as far as `__enter__`."""

    # Methods of each way to run many.

    async def _open(self) -> None:
        """Prepare. The block's `asyncio.Task` calls this."""
        raise NotImplementedError

    def _fill(self) -> None:
        """Take inputs that are not async, as places are free."""
        raise NotImplementedError

    async def _feed(self, inputs: AsyncIterator[Any]) -> None:
        """Take async inputs, as places come free, to the end."""
        raise NotImplementedError

    def _collect(self) -> None:
        """Put the outcomes of what has ended."""
        raise NotImplementedError

    def _is_busy(self) -> bool:
        """Return True if anything is under way."""
        raise NotImplementedError

    def _cancel(self) -> None:
        """Take no more inputs, and cancel what is under way."""
        self._stopping = True
        self._end_inputs()

    def _abandon(self) -> None:
        """Cancel what is under way, and leave it to itself."""
        if not self._stopping:
            self._cancel()

    async def _close(self, exception: BaseException | None) -> None:
        """Close what was opened, when nothing is under way any more."""
        if isasyncgen(self._fed):
            await self._fed.aclose()

    # What they share.

    # Functions are called on the stack of what follows, so a traceback leads to its frames, which
    # live as long as the error: no name may be left there that leads to an outcome.

    def _take(self) -> Outcome[Any, Any]:
        self._occupied -= 1
        self._fill()
        return self._finished.popleft()

    def _put(self, outcome: Outcome[Any, Any]) -> None:
        """Take in an outcome, to be taken in its turn."""
        if self._progress is not None:
            self._progress.add(outcome.error)
        if not self._ordered:
            self._finished.append(outcome)
            return
        early = self._early
        early[outcome.number] = outcome
        while (following := early.pop(self._next_number, None)) is not None:
            self._finished.append(following)
            self._next_number += 1

    def _end_inputs(self) -> None:
        self._iterator = None
        if self._feeder is not None and self._takes:
            self._feeder.cancel()
        self._takes = False

    def _have_room(self, is_room: bool) -> None:
        """Have async inputs taken, if there is room."""
        if self._feeder is None:
            if self._takes and self._fed is not None:
                self._feeder = self._loop.create_task(self._take_async(self._fed))
                self._feeder.set_name("sdax:inputs")
        elif is_room and self._room is not None and not self._room.done():
            self._room.set_result(None)

    async def _room_for(self, is_room: Callable[[], bool]) -> None:
        """Wait for room."""
        while not is_room():
            self._room = self._loop.create_future()
            await self._room

    async def _take_async(self, inputs: AsyncIterator[Any]) -> None:
        try:
            await self._feed(inputs)
        except BaseException as error:
            self._source_ended(error)
        finally:
            self._wake()

    def _source_ended(self, error: BaseException) -> None:
        """Take note of what ends the inputs: nothing is left, or they have failed."""
        try:
            self._iterator = None
            if issubclass(type(error), (StopIteration, StopAsyncIteration)) or not self._takes:
                return
            if is_exception(error) or is_cancellation(error):
                self._source_error = error
            else:
                self._stop_with(error)
        finally:
            del error

    def _is_fed(self) -> bool:
        """Return True if async inputs are being taken."""
        return self._feeder is not None and not self._feeder.done()

    def _wake(self) -> None:
        """Have whoever waits look again."""
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _stop_with(self, error: BaseException, by: tuple[int, Any] | None = None) -> None:
        """Keep an exception that stops everything. It is raised when all runs have ended. `by` is
        the number and the input that raised it."""
        try:
            if self._fatal is None:
                self._fatal = error
                self._stopped_by = by
                if not self._stopping:
                    self._cancel()
                self._wake()
            else:
                chain(self._fatal, error)
        finally:
            del error

    async def _next(self) -> Outcome[I_co, V_co]:
        self._is_asked = True
        if self._state is not _State.OPEN:
            raise RuntimeError(f"run_many {self._state.value}")
        if self._waiter is not None:
            raise RuntimeError("another asyncio.Task waits for the next outcome of this run_many")
        while True:
            if not self._in_a_row:
                await PASS
                self._in_a_row = MOST_IN_A_ROW
            self._collect()
            self._fill()
            if self._fatal is not None:
                await self._stop()
                if not self._finished:
                    self._raise_fatal()
            if self._finished:
                return self._take()
            if self._iterator is None and not self._is_fed() and not self._is_busy():
                self._raise_source_error()
                raise StopAsyncIteration
            await self._wait()

    async def _wait(self) -> None:
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None
            self._in_a_row = MOST_IN_A_ROW

    def _raise_source_error(self) -> None:
        error, self._source_error = self._source_error, None
        try:
            if error is not None:
                raise error
        finally:
            del error

    def _raise_fatal(self) -> None:
        error, self._fatal = self._fatal, None
        try:
            if error is not None:
                raise error
        finally:
            del error

    async def _leave(self, exception: BaseException | None) -> None:
        came = None
        try:
            self._collect()
            came = await self._stop()
            self._tell_of_untaken()
            await self._close(exception)
            self._raise_fatal()
            if came is not None and not is_cancellation(exception):
                raise came
        finally:
            del exception, came

    async def _stop(self) -> BaseException | None:
        """Cancel the active runs and wait for them. Return an exception that came meanwhile."""
        came: BaseException | None = None
        try:
            if not self._stopping:
                self._cancel()
            if not (self._is_fed() or self._is_busy()):
                return None
            with shield():
                while self._is_fed() or self._is_busy():
                    try:
                        await self._wait()
                    except GeneratorExit:
                        self._abandon()
                        raise
                    except BaseException as exception:
                        came = came or exception
                        self._shaken = True
                        self._loop.call_soon(self._settle)
                    self._collect()
            return came
        finally:
            del came

    def _settle(self) -> None:
        self._shaken = False

    def _is_interrupted(self) -> bool:
        """Return True if whoever waits was cancelled in this pass of the loop, and has not yet
        said so to the runs."""
        waiter = self._waiter
        return self._shaken or (waiter is not None and waiter.cancelled())

    def _tell_of_untaken(self) -> None:
        """Have the loop's exception handler hear of errors that nobody will see."""
        left = [*self._finished, *self._early.values()]
        self._finished.clear()
        self._early.clear()
        lost = [outcome for outcome in left if outcome.error is not None]
        if lost:
            count = counted(len(lost), "outcome")
            self._loop.call_exception_handler(
                {
                    "message": f"sdax: run_many was left before {count} with an error "
                    f"{'was' if len(lost) == 1 else 'were'} taken; this is the error of input "
                    f"{lost[0].number}",
                    "exception": lost[0].error,
                }
            )
