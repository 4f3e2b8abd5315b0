"""The base of Dask, Ray and executors: inputs go to workers in batches."""

from __future__ import annotations

from asyncio import CancelledError, Task, TimerHandle
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Sequence
from typing import Any, Final, Protocol

from ..engine.exceptions import add_note
from .outcome import Outcomes, failed
from .progress import Progress
from .travel import WorkerLost, cannot_travel, dumps, unpack, unpack_error
from .worker import Job, Result

LINGER: Final = 0.05  # seconds that async inputs wait for more, until a batch is full
MOST_DEATHS: Final = 2  # of workers, until a batch is to blame


class WorkerDied(Exception):
    """A worker has ended while it had a batch.

    `is_blamed` is True if the cluster has tried the batch on several workers already.
    """

    def __init__(self, reason: BaseException, *, is_blamed: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.is_blamed = is_blamed


class ClusterLost(Exception):
    """The cluster takes nothing more. `reason` says why."""

    def __init__(self, reason: BaseException) -> None:
        super().__init__(reason)
        self.reason = reason


class Cluster(Protocol):
    """A cluster or an executor that runs batches."""

    async def open(self, data: bytes) -> None:
        """Make ready for a job, which is pickled."""

    def workers(self) -> int:
        """Return how many workers there are now."""
        raise NotImplementedError

    async def run(self, items: Sequence[bytes]) -> Result:
        """Run a batch.

        Raises `WorkerDied` or `ClusterLost`, or what else has kept it from being run.
        """
        raise NotImplementedError

    async def stop(self) -> None:
        """Cancel the runs on all workers, if that is possible, and wait for their cleanup."""

    async def close(self) -> None:
        """Take leave of the workers, when nothing is under way."""


class Batch:
    """Inputs that are together on their way."""

    def __init__(self, members: Sequence[tuple[int, Any]]) -> None:
        self.members = members
        self.deaths = 0
        self.is_alone = False  # one input, which nothing else runs beside


class BatchedOutcomes(Outcomes[Any, Any]):
    """The outcomes of runs on workers."""

    def __init__(
        self,
        inputs: Iterable[Any] | AsyncIterable[Any],
        cluster: Cluster,
        job: Job,
        *,
        batch_size: int,
        ahead: int,
        ordered: bool,
        progress: Progress | None,
    ) -> None:
        super().__init__(inputs, ordered=ordered, progress=progress)
        self._cluster = cluster
        self._job = job
        self._batch_size = batch_size
        self._ahead = ahead
        self._under_way: set[Task[None]] = set()
        self._again = deque[Batch]()  # whose workers have died
        self._suspects = deque[Batch]()  # inputs that may have ended a worker
        self._forming: list[tuple[int, Any]] = []  # async inputs, until they are a batch
        self._timer: TimerHandle | None = None
        self._stop_task: Task[None] | None = None

    async def _open(self) -> None:
        try:
            data = dumps(self._job)
        except Exception as error:
            raise TypeError(
                f"run_many cannot send its processor and functions to workers: {error}; functions "
                f"of modules travel by their names, those of a program or inside of other "
                f"functions need cloudpickle on both sides"
            ) from error
        try:
            await self._cluster.open(data)
        except BaseException:
            await self._cluster.close()
            raise

    def _room_left(self) -> int:
        limit = max(1, self._cluster.workers()) * self._ahead * self._batch_size
        return limit - self._occupied

    def _may_take(self) -> bool:
        return not (self._stopping or self._again or self._suspects)

    def _fill(self) -> None:
        while (
            self._iterator is not None
            and self._may_take()
            and self._room_left() >= self._batch_size
        ):
            members: list[tuple[int, Any]] = []
            try:
                while len(members) < self._batch_size:
                    item = next(self._iterator)
                    members.append((self._new_number(), item))
            except BaseException as error:
                self._source_ended(error)
            self._send(Batch(members))
        if self._fed is not None:
            self._have_room(self._may_take() and self._room_left() > 0)

    async def _feed(self, inputs: AsyncIterator[Any]) -> None:
        try:
            while self._takes:
                await self._room_for(lambda: self._may_take() and self._room_left() > 0)
                item = await anext(inputs)
                self._forming.append((self._new_number(), item))
                if len(self._forming) == self._batch_size:
                    self._send_formed()
                elif self._timer is None:
                    self._timer = self._loop.call_later(LINGER, self._send_formed)
        finally:
            self._send_formed()

    def _send_formed(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        members, self._forming = self._forming, []
        self._send(Batch(members))

    def _new_number(self) -> int:
        number = self._number
        self._number += 1
        self._occupied += 1
        return number

    def _send(self, batch: Batch) -> None:
        """Send a batch to the cluster. An input that cannot be pickled stays, with an error."""
        members: list[tuple[int, Any]] = []
        items: list[bytes] = []
        for number, item in batch.members:
            try:
                items.append(dumps(item))
                members.append((number, item))
            except Exception as reason:
                error = cannot_travel(f"input {number}", item, reason)
                self._put(failed(number, item, error))
        batch.members = members
        if members and not self._stopping:
            task = self._loop.create_task(self._run(batch, items))
            self._under_way.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: Task[None]) -> None:
        self._under_way.discard(task)
        self._send_what_waits()
        self._wake()

    def _send_what_waits(self) -> None:
        """Send again what workers have died of, suspects one at a time with nothing beside them."""
        while self._again:
            self._send(self._again.popleft())
        if self._suspects and not self._under_way:
            self._send(self._suspects.popleft())
        self._fill()

    async def _run(self, batch: Batch, items: list[bytes]) -> None:
        try:
            result = await self._cluster.run(items)
        except WorkerDied as died:
            self._worker_died(batch, died)
            return
        except ClusterLost as lost:
            self._lose(batch, lost.reason)
            self._source_ended(lost.reason)
            self._lose_what_waits(lost.reason)
            return
        except CancelledError as error:
            self._source_ended(error)
            return
        except BaseException as error:
            self._source_ended(error)
            return
        if result.outcomes is not None:
            pairs = zip(batch.members, result.outcomes, strict=True)
            for (number, item), data in pairs:
                if data:
                    self._put(unpack(data, number, item))
        if result.fatal is not None:
            culprit = None if result.culprit is None else batch.members[result.culprit]
            self._stop_with(unpack_error(result.fatal), culprit)
            if self._stopped_by is None:  # another batch of its worker was faster
                self._stopped_by = culprit
        elif result.broken is not None:
            broken = unpack_error(result.broken)
            add_note(broken, "a worker could not load the job, or enter its resources")
            self._source_ended(broken)

    def _worker_died(self, batch: Batch, died: WorkerDied) -> None:
        if self._stopping:
            return
        batch.deaths += 1
        is_blamed = died.is_blamed or batch.deaths >= MOST_DEATHS
        if not is_blamed:
            (self._suspects if batch.is_alone else self._again).append(batch)
        elif batch.is_alone:
            self._lose(batch, died.reason)
        else:
            for member in batch.members:
                suspect = Batch([member])
                suspect.is_alone = True
                self._suspects.append(suspect)

    def _lose(self, batch: Batch, reason: BaseException) -> None:
        for number, item in batch.members:
            error = WorkerLost(f"the worker of input {number} has ended: {reason}")
            error.__cause__ = reason
            self._put(failed(number, item, error))

    def _lose_what_waits(self, reason: BaseException) -> None:
        for batch in (*self._again, *self._suspects):
            self._lose(batch, reason)
        self._again.clear()
        self._suspects.clear()

    def _collect(self) -> None:
        pass

    def _is_busy(self) -> bool:
        return bool(
            self._under_way
            or self._again
            or self._suspects
            or self._forming
            or (self._stop_task is not None and not self._stop_task.done())
        )

    def _cancel(self) -> None:
        super()._cancel()
        self._again.clear()
        self._suspects.clear()
        self._forming.clear()
        if self._under_way:
            self._stop_task = self._loop.create_task(self._cluster.stop())
            self._stop_task.add_done_callback(lambda _: self._wake())

    def _abandon(self) -> None:
        super()._abandon()
        self._closing = self._loop.create_task(self._cluster.close())

    async def _close(self, exception: BaseException | None) -> None:
        try:
            await super()._close(exception)
            if self._stop_task is not None:
                await self._stop_task
        finally:
            await self._cluster.close()
            del exception
