"""The side of a worker: the runs of one `run_many`, on one event loop."""

from __future__ import annotations

import asyncio
import threading
from asyncio import AbstractEventLoop, CancelledError, Future, Task
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future as ThreadFuture
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any, Final, NamedTuple, TypeVar

from ..common.text import shown
from ..processor import TaskProcessor
from .local import Runs, with_resources
from .outcome import Outcome, unasked_cancellation
from .travel import TravelError, loads, pack, pack_error

V = TypeVar("V")

MOST_IN_A_ROW: Final = 64  # inputs begun before the loop gets a turn


class Job(NamedTuple):
    """The data of a `run_many` for a worker."""

    processor: TaskProcessor[Any, Any]
    make_context: Callable[..., Any] | None
    pick: Callable[[Any, Any], Any] | None
    resources: Callable[[], AbstractAsyncContextManager[Any]] | None
    observer: tuple[()] | None  # None are the processor's own
    concurrency: int


class Result(NamedTuple):
    """The answer of a worker for a batch: the packed outcomes, or why there are none."""

    outcomes: list[bytes] | None = None  # those that there are, if there is something fatal
    fatal: bytes | None = None  # an exception that stops everything
    culprit: int | None = None  # the place in this batch of the input that raised it
    broken: bytes | None = None  # the job cannot run on this worker
    # If all are None, the worker was told to stop.


class _Batch:
    """Inputs that came together."""

    def __init__(self, loop: AbstractEventLoop, items: Sequence[bytes]) -> None:
        self.items = items
        self.outcomes: list[bytes] = [b""] * len(items)
        self.left = len(items)
        self.is_cancelled = False
        self.ended: Future[None] = loop.create_future()

    def put(self, place: int, outcome: bytes) -> None:
        """Take in the outcome of an input, or an empty one if its run was cancelled."""
        self.outcomes[place] = outcome
        self.left -= 1
        if not self.left:
            self.ended.set_result(None)


class Host:
    """The runs of one job on one worker, all on one event loop, in batches that overlap.

    As many runs are under way as the job's `concurrency` says, whatever batches they are of.
    Resources are entered for the first batch. `close` cancels all runs, waits for their cleanup,
    and leaves the resources.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._loop = asyncio.get_running_loop()
        self._opening: Task[None] | None = None
        self._manager: AbstractAsyncContextManager[Any] | None = None
        self._runs: Runs | None = None
        self._concurrency = 0
        self._batches: dict[_Batch, None] = {}
        self._waiting = deque[tuple[_Batch, int]]()  # inputs that have no place
        self._where: dict[int, tuple[_Batch, int]] = {}  # by number, those that have one
        self._numbers = 0
        self._scheduled = False
        self._fatal: BaseException | None = None
        self._culprit: tuple[_Batch, int] | None = None  # the input that raised it
        self._stopped = False

    async def run(self, items: Sequence[bytes]) -> Result:
        """Run a batch. A cancellation cancels its runs, waits for their cleanup, and is raised."""
        if self._stopped:
            return Result()
        if self._runs is None:
            if self._opening is None or self._opening.done():  # it has failed
                self._opening = self._loop.create_task(self._open())
            opening = self._opening
            await asyncio.wait([opening])
            if self._stopped:
                return Result()
            if opening.cancelled():
                return Result(broken=pack_error(unasked_cancellation()))
            if error := opening.exception():
                return Result(broken=pack_error(error))
        batch = _Batch(self._loop, items)
        self._batches[batch] = None
        self._waiting.extend((batch, place) for place in range(len(items)))
        self._look()
        try:
            await asyncio.shield(batch.ended)
        except CancelledError:
            self._cancel(batch)
            await _until_done(batch.ended)
            raise
        finally:
            del self._batches[batch]
        if self._fatal is not None:
            where, place = self._culprit or (None, None)
            culprit = place if where is batch else None
            return Result(batch.outcomes, pack_error(self._fatal), culprit)
        return Result() if batch.is_cancelled else Result(outcomes=batch.outcomes)

    async def stop(self) -> None:
        """Cancel all runs, wait for their cleanup, and run nothing more."""
        self._stopped = True
        if self._opening is not None:
            self._opening.cancel()  # or a batch may wait for ever
        batches = list(self._batches)
        self._cancel_all()
        for batch in batches:
            await _until_done(batch.ended)

    async def close(self) -> None:
        """Stop, and leave the resources."""
        await self.stop()
        if self._opening is not None:
            await asyncio.wait([self._opening])
        runs, self._runs = self._runs, None
        if runs is not None:
            runs.close()
        manager, self._manager = self._manager, None
        if manager is not None:
            await manager.__aexit__(None, None, None)

    async def _open(self) -> None:
        job: Job = loads(self._data)
        make_context = job.make_context
        if job.resources is not None:
            manager = job.resources()
            resources = await manager.__aenter__()
            self._manager = manager
            if make_context is not None:
                make_context = with_resources(make_context, resources)
        self._concurrency = job.concurrency
        self._runs = Runs(
            job.processor,
            make_context,
            job.pick,
            job.observer,
            put=self._put,
            stop_with=self._stop_with,
            wake=self._schedule,
            is_interrupted=lambda: self._stopped,
            dropped=self._dropped,
        )

    def _schedule(self) -> None:
        """Have the loop look after what has ended, and what can begin."""
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._look_scheduled)

    def _look_scheduled(self) -> None:
        self._scheduled = False
        self._look()

    def _look(self) -> None:
        runs = self._runs
        if runs is None:
            return
        runs.collect()
        begun = 0
        while self._waiting and len(runs.under_way) < self._concurrency:
            if begun == MOST_IN_A_ROW:
                self._schedule()
                return
            begun += 1
            self._begin(runs, *self._waiting.popleft())

    def _begin(self, runs: Runs, batch: _Batch, place: int) -> None:
        try:
            item = loads(batch.items[place])
        except Exception as error:
            message = f"the input cannot be loaded on the worker: {shown(error)}"
            batch.put(place, pack_error(TravelError(message)))
            return
        number = self._numbers
        self._numbers += 1
        self._where[number] = batch, place
        outcome = runs.start(number, item)
        if outcome is not None:
            self._put(outcome)
        del outcome  # a traceback may lead here

    def _put(self, outcome: Outcome[Any, Any]) -> None:
        batch, place = self._where.pop(outcome.number)
        batch.put(place, pack(outcome))

    def _dropped(self, number: int) -> None:
        batch, place = self._where.pop(number)
        batch.is_cancelled = True
        batch.put(place, b"")

    def _cancel(self, batch: _Batch) -> None:
        """Cancel the runs of a batch, and begin no more of it."""
        batch.is_cancelled = True
        mine = [each for each in self._waiting if each[0] is batch]
        self._waiting = deque(each for each in self._waiting if each[0] is not batch)
        for _, place in mine:
            batch.put(place, b"")
        if self._runs is not None:
            slots = list(self._runs.under_way)
            self._runs.cancel(each for each in slots if self._where[each.number][0] is batch)

    def _stop_with(self, error: BaseException, by: tuple[int, Any]) -> None:
        if self._fatal is None:
            self._fatal = error
            self._culprit = self._where[by[0]]
        self._stopped = True
        self._loop.call_soon(self._cancel_all)

    def _cancel_all(self) -> None:
        for batch in list(self._batches):
            self._cancel(batch)


async def _until_done(future: Future[None]) -> None:
    """Wait for a future, whatever cancels the wait."""
    while not future.done():
        with suppress(CancelledError):
            await asyncio.wait([future])


class LoopThread:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self._started = threading.Event()
        self._loop: Any = None
        # A daemon: a worker that ends must not wait for functions that never do.
        self._thread = threading.Thread(target=self._run, name="sdax:worker", daemon=True)
        self._thread.start()
        self._started.wait()

    def _run(self) -> None:
        with asyncio.Runner() as runner:
            self._loop = runner.get_loop()
            self._loop.call_soon(self._started.set)
            self._loop.run_forever()

    def call(self, coroutine: Coroutine[Any, Any, V]) -> ThreadFuture[V]:
        """Run a coroutine on the loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def end(self) -> None:
        """End the loop, and wait for the thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()


class HostThread:
    """A `Host` on an event loop in a thread of its own."""

    def __init__(self, data: bytes) -> None:
        self._thread = LoopThread()
        self._host = self._thread.call(_new_host(data)).result()

    def run(self, items: Sequence[bytes]) -> ThreadFuture[Result]:
        """Run a batch: see `Host.run`."""
        return self._thread.call(self._host.run(items))

    def stop(self) -> ThreadFuture[None]:
        """Cancel all runs: see `Host.stop`."""
        return self._thread.call(self._host.stop())

    def close(self) -> ThreadFuture[None]:
        """Stop, and leave the resources: see `Host.close`."""
        return self._thread.call(self._host.close())

    def end(self) -> None:
        """End the thread, after `close`."""
        self._thread.end()


async def _new_host(data: bytes) -> Host:
    return Host(data)
