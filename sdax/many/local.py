"""Many runs on this event loop, started and awaited without an `asyncio.Task` for each."""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, suppress
from contextvars import Context, copy_context
from inspect import isawaitable
from types import CoroutineType
from typing import Any, Final, cast

from .._impl import Run
from ..common.checks import is_async
from ..engine.exceptions import hide_engine, is_cancellation, is_exception, set_cause, traceback_of
from ..engine.outcome import conclude, hear_out, report_of
from ..errors import SdaxExecutionError
from ..events import Observers
from ..limits import answer
from ..processor import AsyncTaskProcessor, TaskProcessor, parts_of
from ..report import RunReport
from ..tasks import AsyncTask, TaskFunction
from .outcome import Outcome, Outcomes, failed, make_outcome, unasked_cancellation
from .progress import Progress

NO_CONTEXT: Final = object()


class Slot:
    """An input that is under way: what its run has in place of a future to wake."""

    __slots__ = (
        "context",
        "ctx",
        "is_cancelled",
        "is_over",
        "item",
        "number",
        "preparing",
        "run",
        "runs",
    )

    def __init__(self, runs: Runs, number: int, item: Any, context: Context | None) -> None:
        self.runs = runs
        self.number = number
        self.item = item
        self.context = context  # of its own, or None
        self.ctx: Any = NO_CONTEXT
        self.run: Any = None
        self.preparing = False  # the run is that of an async `make_context`
        self.is_over = False
        self.is_cancelled = False

    def done(self) -> bool:
        """Return True if the run has said that it has ended. The engine asks."""
        return self.is_over

    def cancelled(self) -> bool:
        """Return True if its caller was cancelled, and will say so soon. The engine asks."""
        return self.runs.is_interrupted()

    def set_result(self, _: None) -> None:
        """Take note that the run has ended. The engine may be in the middle of its own work."""
        self.is_over = True
        self.runs.ended.append(self)
        self.runs.wake()


class Runs:
    """Runs of one processor, each for an input.

    `start` begins a run, and returns its outcome if the run has ended immediately. Otherwise `wake`
    is called when the run has ended, in the middle of a step of the engine. Then somebody calls
    `collect`, which passes the outcome to `put`. An exception that is not an `Exception` goes to
    `stop_with`, with the number of the input and the input. That run has no outcome, and neither
    has a cancelled run. `dropped` gets the number of the input, when the run has cleaned up.
    """

    def __init__(
        self,
        processor: TaskProcessor[Any, Any],
        make_context: Callable[..., Any] | None,
        pick: Callable[[Any, Any], Any] | None,
        observer: Observers | None,
        *,
        put: Callable[[Outcome[Any, Any]], None],
        stop_with: Callable[[BaseException, tuple[int, Any]], None],
        wake: Callable[[], None],
        is_interrupted: Callable[[], bool],
        dropped: Callable[[int], None] = lambda number: None,
    ) -> None:
        self._make_run, self._report, observers = parts_of(processor, observer)
        self._make_context = make_context
        self._pick = pick
        self._put = put
        self._stop_with = stop_with
        self._dropped = dropped
        self.wake = wake
        self.is_interrupted = is_interrupted
        self.under_way: dict[Slot, None] = {}
        self.ended: list[Slot] = []  # whose outcomes are not yet put
        self._context = copy_context()
        # Each input has a context of its own where anything of the user's is called in it.
        self._isolated = make_context is not None or pick is not None or bool(observers)
        self._is_async = make_context is not None and is_async(make_context)
        self._make_preparation: Callable[[Slot], Run] | None = None

    def start(self, number: int, item: Any) -> Outcome[Any, Any] | None:
        """Begin the run of an input. Return its outcome if it has ended."""
        slot = None
        try:
            if self._isolated:
                slot = Slot(self, number, item, self._context.copy())
                self._open(slot)
                return self._outcome_of(slot) if slot.is_over else None
            run = self._context.run(self._make_run, item)
            if run.start() and run.record is None and run.fatal is None:
                values = run.values
                report = self._report if values is None else report_of(run, None)
                return make_outcome((number, item, report, report, None))
            slot = Slot(self, number, item, None)
            self._keep(slot, run)
            return self._outcome_of(slot) if slot.is_over else None
        except BaseException as error:
            return self._failed(number, item, error)

    def collect(self) -> None:
        """Put the outcomes of runs that have ended."""
        while self.ended:
            ended, self.ended = self.ended, []
            for slot in ended:
                outcome = self._outcome_of(slot)
                if outcome is not None:
                    self._put(outcome)
                del outcome

    def cancel(self, slots: Iterable[Slot]) -> None:
        """Cancel runs. They clean up, and have no outcome. A run that has ended keeps its own."""
        for slot in slots:
            if slot.preparing or not slot.is_over:
                slot.is_cancelled = True
                slot.run.cancel()

    def abandon(self) -> None:
        """Cancel all runs. The loop's exception handler gets their failures."""
        self.cancel(self.under_way)
        for slot in self.under_way:
            hear_out(slot.run)
        self.under_way.clear()

    def close(self) -> None:
        """Forget what leads back here."""
        self._make_preparation = None

    def _open(self, slot: Slot) -> None:
        """Make the context, and begin the run, or begin the run that makes the context."""
        assert slot.context is not None
        if self._make_context is None:
            slot.ctx = slot.item
        elif self._is_async:
            slot.preparing = True
        else:
            slot.ctx = slot.context.run(self._make_context, slot.item)
            slot.preparing = type(slot.ctx) is CoroutineType or isawaitable(slot.ctx)
        slot.context.run(self._begin, slot)

    def _begin(self, slot: Slot) -> None:
        run = self._preparation(slot) if slot.preparing else self._make_run(slot.ctx)
        run.start()
        self._keep(slot, run)

    def _keep(self, slot: Slot, run: Run) -> None:
        """Take note of a run that has started."""
        slot.run = run
        slot.is_over = run.over
        if not run.over:
            run.waiter = slot  # type: ignore[assignment]
            self.under_way[slot] = None
            if run.fatal is not None:  # it cleans up, and nothing begins meanwhile
                self._stop_with(run.fatal, (slot.number, slot.item))

    def _preparation(self, slot: Slot) -> Run:
        """Return the run that makes a context: its functions may be async, and are cancelled."""
        if self._make_preparation is None:
            builder = AsyncTaskProcessor[Slot].builder()
            make_context = TaskFunction(self._await_context)
            builder.add_task(AsyncTask("make_context", pre_execute=make_context), 0)
            self._make_preparation = parts_of(builder.build(), ()).make_run
        return self._make_preparation(slot)

    async def _await_context(self, slot: Slot) -> None:
        assert self._make_context is not None
        made, slot.ctx = slot.ctx, NO_CONTEXT
        if made is NO_CONTEXT:
            made = self._make_context(slot.item)
        slot.ctx = await made if isawaitable(made) else made
        slot.context = copy_context()  # with what the function has set

    def _outcome_of(self, slot: Slot) -> Outcome[Any, Any] | None:
        """Return the outcome of a run that has ended, if it has one.

        If this run has made a context, the next run begins with it. Its outcome comes later.
        """
        try:
            self.under_way.pop(slot, None)
            run, slot.run = slot.run, None
            if slot.is_cancelled:
                self._conclude_cancelled(slot, run)
                self._dropped(slot.number)
                return None
            report = self._conclude(slot, run)
            if slot.preparing:
                slot.preparing = False
                assert slot.context is not None
                slot.context.run(self._begin, slot)
                return self._outcome_of(slot) if slot.is_over else None
            value: Any = report
            if self._pick is not None:
                assert slot.context is not None
                value = slot.context.run(self._pick, slot.ctx, report)
                if type(value) is CoroutineType:  # of which nobody would tell that it never ran
                    answer(value, "pick")
            return make_outcome((slot.number, slot.item, value, report, None))
        except SdaxExecutionError as error:
            if slot.preparing:
                return self._failed(slot.number, slot.item, error.failures[0].exception)
            return self._failed(slot.number, slot.item, error)
        except BaseException as error:
            return self._failed(slot.number, slot.item, error)

    def _conclude(self, slot: Slot, run: Run) -> RunReport[Any]:
        """Return the report of a run, or raise what has failed it."""
        if run.record is None and run.fatal is None:
            return self._report if run.values is None else report_of(run, None)
        if slot.context is None:
            return conclude(run, None)
        return slot.context.run(conclude, run, None)

    def _conclude_cancelled(self, slot: Slot, run: Run) -> None:
        """Have observers and the loop's exception handler hear of a run that was cancelled."""
        context = self._context.copy() if slot.context is None else slot.context
        with suppress(CancelledError):
            context.run(conclude, run, CancelledError())

    def _failed(self, number: int, item: Any, error: BaseException) -> Outcome[Any, Any] | None:
        """Return the outcome of an error, unless the error stops everything."""
        try:
            hide_engine(error)
            if is_cancellation(error):  # which nobody asked for
                unasked = unasked_cancellation()
                set_cause(unasked, error)
                return failed(number, item, unasked)
            if is_exception(error):
                return failed(number, item, error)  # type: ignore[arg-type]
            self._stop_with(error, (number, item))
            self._dropped(number)
            return None
        finally:
            del error


class LocalOutcomes(Outcomes[Any, Any]):
    """The outcomes of runs on this event loop."""

    def __init__(
        self,
        processor: TaskProcessor[Any, Any],
        inputs: Iterable[Any] | AsyncIterable[Any],
        make_context: Callable[..., Any] | None,
        pick: Callable[[Any, Any], Any] | None,
        observer: Observers | None,
        *,
        concurrency: int,
        ordered: bool,
        resources: Callable[[], AbstractAsyncContextManager[Any]] | None,
        progress: Progress | None,
    ) -> None:
        super().__init__(inputs, ordered=ordered, progress=progress)
        self._processor = processor
        self._make_context = make_context
        self._pick = pick
        self._observer = observer
        self._concurrency = concurrency
        self._resources = resources
        self._opened: AbstractAsyncContextManager[Any] | None = None
        self._runs: Runs | None = None  # while the block is open
        self._start: Callable[[int, Any], Outcome[Any, Any] | None] = cast(Any, None)
        self._collecting = False  # the loop is about to call `_collect_soon`

    async def _open(self) -> None:
        make_context = self._make_context
        if self._resources is not None:
            manager = self._resources()
            resources = await manager.__aenter__()
            self._opened = manager
            if make_context is not None:
                make_context = with_resources(make_context, resources)
        self._runs = Runs(
            self._processor,
            make_context,
            self._pick,
            self._observer,
            put=self._put,
            stop_with=self._stop_with,
            wake=self._run_ended,
            is_interrupted=self._is_interrupted,
        )
        self._start = self._runs.start

    def _fill(self) -> None:
        while self._occupied < self._concurrency and self._iterator is not None:
            try:
                item = next(self._iterator)
            except BaseException as error:
                self._source_ended(error)
                return
            self._accept(item)
        if self._fed is not None:
            self._have_room(self._occupied < self._concurrency)

    async def _feed(self, inputs: AsyncIterator[Any]) -> None:
        while self._takes:
            await self._room_for(lambda: self._occupied < self._concurrency)
            self._accept(await anext(inputs))
            if self._finished:
                self._wake()

    def _accept(self, item: Any) -> None:
        number = self._number
        self._number += 1
        self._occupied += 1
        outcome = self._start(number, item)
        if outcome is not None:
            self._put(outcome)
        del outcome

    def _run_ended(self) -> None:
        waiter = self._waiter
        if waiter is not None:  # who collects when it wakes up
            if not waiter.done():
                waiter.set_result(None)
        elif not self._collecting:
            self._collecting = True
            self._loop.call_soon(self._collect_soon)

    def _collect_soon(self) -> None:
        self._collecting = False
        self._collect()
        if self._finished:
            self._wake()

    def _collect(self) -> None:
        if self._runs is not None and self._runs.ended:
            self._runs.collect()

    def _is_busy(self) -> bool:
        return self._runs is not None and bool(self._runs.under_way)

    def _cancel(self) -> None:
        super()._cancel()
        if self._runs is not None:
            self._runs.cancel(list(self._runs.under_way))

    def _abandon(self) -> None:
        super()._abandon()
        self._let_go(abandoned=True)

    def _let_go(self, *, abandoned: bool = False) -> None:
        """Drop what leads back here."""
        runs, self._runs = self._runs, None
        self._start = cast(Any, None)
        if runs is not None:
            if abandoned:
                runs.abandon()
            runs.close()

    async def _close(self, exception: BaseException | None) -> None:
        opened, self._opened = self._opened, None
        try:
            self._let_go()
            await super()._close(exception)
        finally:
            if opened is not None:
                if exception is None:
                    await opened.__aexit__(None, None, None)
                else:  # contextlib sets the traceback that it gets
                    await opened.__aexit__(type(exception), exception, traceback_of(exception))
            del exception


def with_resources(make_context: Callable[..., Any], resources: Any) -> Callable[..., Any]:
    """Return a function of the item alone."""
    if is_async(make_context):

        async def make_async(item: Any) -> Any:
            return await make_context(item, resources)

        return make_async

    def make(item: Any) -> Any:
        return make_context(item, resources)

    return make
