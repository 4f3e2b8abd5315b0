"""Many runs on a Dask cluster."""

from __future__ import annotations

import asyncio
from asyncio import CancelledError, Task
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, Final, TypeVar
from uuid import uuid4

from distributed import Client, KilledWorker, Worker, WorkerPlugin, get_worker
from distributed.client import FutureCancelledError

from .batches import ClusterLost, WorkerDied
from .worker import HostThread, Result

V = TypeVar("V")

SECONDS_BETWEEN_COUNTS: Final = 1.0  # of workers


class HostPlugin(WorkerPlugin):
    """A job on a Dask worker: its runs have an event loop in a thread of their own.

    Dask's `async` tasks run on the worker's own loop beside its heartbeats: a function that blocks
    would make the scheduler give the worker up.
    """

    def __init__(self, job: str, data: bytes) -> None:
        self.name = job
        self.data = data
        self.host: HostThread | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"name": self.name, "data": self.data, "host": None}

    def setup(self, worker: Worker) -> None:
        """Begin, on a worker."""
        self.host = HostThread(self.data)

    async def stop(self) -> None:
        """Cancel all runs, and wait for their cleanup."""
        if self.host is not None:
            await asyncio.wrap_future(self.host.stop())

    async def teardown(self, worker: Worker) -> None:
        """End, because the job has ended or the worker closes."""
        host, self.host = self.host, None
        if host is not None:
            try:
                await asyncio.wrap_future(host.close())
            finally:
                await asyncio.to_thread(host.end)


async def run_batch(job: str, items: Sequence[bytes]) -> Result:
    """Run a batch: a task of Dask's, which only waits."""
    plugin: Any = get_worker().plugins.get(job)
    if plugin is None or plugin.host is None:
        return Result()  # the job has ended
    running = plugin.host.run(items)
    waiting = asyncio.wrap_future(running)
    try:
        return await asyncio.shield(waiting)
    except CancelledError:
        # The worker closes: its runs clean up before anything else goes on.
        waiting.cancel()
        with suppress(CancelledError):
            await waiting
        raise


async def stop_job(job: str, dask_worker: Worker) -> None:
    """Cancel the runs of a job on a worker, and wait for their cleanup."""
    plugin: Any = dask_worker.plugins.get(job)
    if plugin is not None:
        await plugin.stop()


class DaskWorkers:
    """The workers of a Dask cluster.

    Everything asked of the client is asked on its own event loop.
    """

    def __init__(self, client: Client) -> None:
        self._client: Any = client  # of which not all has annotations
        self._job = f"sdax-{uuid4().hex}"
        self._batches = 0
        self._workers = 1
        self._counting: Task[None] | None = None
        self._is_registered = False

    async def open(self, data: bytes) -> None:
        """Send the job to all workers, also to those that come later."""
        plugin = HostPlugin(self._job, data)
        self._is_registered = True
        await self._ask(lambda: self._client.register_plugin(plugin, name=self._job))
        await self._count()
        self._counting = asyncio.get_running_loop().create_task(self._keep_counting())

    def workers(self) -> int:
        """Return how many workers there were a moment ago."""
        return self._workers

    async def run(self, items: Sequence[bytes]) -> Result:
        """Run a batch on a worker that Dask chooses, and on others if that dies."""
        self._batches += 1
        key = f"{self._job}-{self._batches}"
        try:
            return await self._ask(lambda: self._submit(key, items))
        except KilledWorker as error:
            raise WorkerDied(error, is_blamed=True) from error
        except FutureCancelledError as error:
            is_open = self._client.status == "running"
            reason = error if is_open else RuntimeError("the Dask client is closed")
            raise ClusterLost(reason) from error

    async def stop(self) -> None:
        """Cancel the runs on all workers, and wait for their cleanup.

        To cancel a future of Dask's does not stop what runs.
        """
        if self._client.status == "running":
            await self._ask(lambda: self._client.run(stop_job, self._job, on_error="ignore"))

    async def close(self) -> None:
        """Take the job from the workers."""
        counting, self._counting = self._counting, None
        if counting is not None:
            counting.cancel()
            await asyncio.wait([counting])
        if self._is_registered and self._client.status == "running":
            self._is_registered = False
            await self._ask(lambda: self._client.unregister_worker_plugin(self._job))

    async def _submit(self, key: str, items: Sequence[bytes]) -> Result:
        future = self._client.submit(run_batch, self._job, items, key=key, pure=False)
        try:
            result: Result = await future
            return result
        finally:
            future.release()

    async def _count(self) -> None:
        cores = await self._ask(self._client.nthreads)
        self._workers = len(cores)

    async def _keep_counting(self) -> None:
        while True:
            await asyncio.sleep(SECONDS_BETWEEN_COUNTS)
            with suppress(OSError):
                await self._count()

    async def _ask(self, call: Callable[[], Awaitable[V]]) -> V:
        """Call a method of the client on the client's loop, and await what it returns."""
        client: Any = self._client
        loop = client.loop.asyncio_loop
        if loop is asyncio.get_running_loop():
            return await call()
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(_await(call), loop))


async def _await(call: Callable[[], Awaitable[V]]) -> V:
    return await call()
