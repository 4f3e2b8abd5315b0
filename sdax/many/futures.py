"""Many runs on an executor of `concurrent.futures`: a pool of processes, `mpi4py.futures`, loky."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor, Executor
from functools import partial
from multiprocessing.util import Finalize
from typing import Any, Final
from uuid import uuid4

from .batches import ClusterLost
from .worker import HostThread, Result

_hosts: Final[dict[str, HostThread]] = {}  # of this process, by job
_stopped: Final[set[str]] = set()  # jobs that were started in this process
_lock: Final = threading.Lock()

SECONDS_FOR_CLOSING: Final = 30.0  # when the worker's process ends


class ExecutorCluster:
    """An executor, which finishes each batch that it has begun.

    Its workers are processes: each runs its inputs on an event loop in a thread of its own. The
    resources of a job are left when the process ends. (The threads of a `ThreadPoolExecutor` are
    one worker.)
    """

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._job = uuid4().hex
        self._data = b""
        self._futures: set[Any] = set()

    async def open(self, data: bytes) -> None:
        """Keep the job, which goes with each batch: nobody knows which worker takes it."""
        self._data = data

    def workers(self) -> int:
        """Return how many workers the executor may have."""
        number: Any = getattr(self._executor, "_max_workers", None)
        return number if isinstance(number, int) else (os.cpu_count() or 1)

    async def run(self, items: Sequence[bytes]) -> Result:
        """Run a batch."""
        try:
            future = self._executor.submit(run_batch, self._job, self._data, items)
        except RuntimeError as error:  # broken or shut down
            raise ClusterLost(error) from error
        self._futures.add(future)
        try:
            return await asyncio.wrap_future(future)
        except BrokenExecutor as error:
            raise ClusterLost(error) from error
        except asyncio.CancelledError:
            if future.cancelled():
                return Result()
            raise
        finally:
            self._futures.discard(future)

    async def stop(self) -> None:
        """Take back the batches that have not begun."""
        for future in list(self._futures):
            future.cancel()
        with _lock:
            _stopped.add(self._job)
            host = _hosts.get(self._job)
        if host is not None:  # a ThreadPoolExecutor
            await asyncio.wrap_future(host.stop())

    async def close(self) -> None:
        """Leave the resources, if they are in this process."""
        _stopped.discard(self._job)
        host = _hosts.pop(self._job, None)
        if host is not None:
            try:
                await asyncio.wrap_future(host.close())
            finally:
                await asyncio.to_thread(host.end)


def run_batch(job: str, data: bytes, items: Sequence[bytes]) -> Result:
    """Run a batch, on a worker."""
    with _lock:
        if job in _stopped:
            return Result()
        host = _hosts.get(job)
        if host is None:
            host = _hosts[job] = HostThread(data)
            Finalize(None, partial(_close, job), exitpriority=100)
    return host.run(items).result()


def _close(job: str) -> None:
    host = _hosts.pop(job, None)
    if host is not None:
        host.close().result(SECONDS_FOR_CLOSING)
