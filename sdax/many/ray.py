"""Many runs on a Ray cluster."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from ..common.checks import checked_limit
from ..common.text import shown
from .batches import ClusterLost, WorkerDied
from .worker import Host, Result


class RayCluster:
    """Actors of the Ray cluster of this program, for `run_many(..., on=RayCluster())`.

    - `workers`: the number of actors. The default is the number of CPUs of the cluster.
    - `options`: arguments of Ray's `options()` of an actor, such as `num_cpus` and `runtime_env`.
      An actor asks for one CPU unless they say otherwise.

    Call `ray.init()` first, with the address of the cluster.

    Raises `TypeError` and `ValueError` for arguments of other kinds.

    >>> ray.init()
    >>> async with run_many(processor, inputs, on=RayCluster(workers=4)) as outcomes: ...
    """

    def __init__(
        self, workers: int | None = None, *, options: Mapping[str, Any] | None = None
    ) -> None:
        if options is not None and not isinstance(options, Mapping):
            raise TypeError(f"options must be a mapping or None, got {shown(options)}")
        self.workers = checked_limit("workers", workers)
        self.options = dict(options or {})

    def __repr__(self) -> str:
        return f"RayCluster(workers={self.workers}, options={self.options})"


class HostActor:
    """A job on a worker of Ray's: an async actor, whose event loop is the one of the runs."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._host: Host | None = None

    async def ready(self) -> None:
        """Answer."""

    async def run(self, items: Sequence[bytes]) -> Result:
        """Run a batch: see `Host.run`."""
        if self._host is None:
            self._host = Host(self._data)
        return await self._host.run(items)

    async def stop(self) -> None:
        """Cancel all runs: see `Host.stop`."""
        if self._host is not None:
            await self._host.stop()

    async def close(self) -> None:
        """Stop, and leave the resources: see `Host.close`."""
        if self._host is not None:
            await self._host.close()


class _Actor:
    """An actor, and how many batches it has.

    It may have to wait until the cluster has room for it. It gets no batch before it has begun. So
    an actor that has not begun can be killed, and no cleanup is lost.
    """

    def __init__(self, handle: Any) -> None:
        self.handle = handle
        self.batches = 0
        self.has_begun = False
        self.error: Exception | None = None  # why it never will
        self.beginning = asyncio.ensure_future(self._begin())

    async def _begin(self) -> None:
        from ray.exceptions import RayError

        try:
            await self.handle.ready.remote()
            self.has_begun = True
        except RayError as error:  # an error of its environment is not a RayActorError
            self.error = error

    async def ask(self, method: str) -> None:
        """Call a method of an actor that may have died."""
        with suppress(_actor_error()):
            await getattr(self.handle, method).remote()

    async def kill(self) -> None:
        """End it."""
        import ray

        ray.kill(self.handle)
        self.beginning.cancel()
        await asyncio.wait([self.beginning])


class RayActors:
    """The actors of one `run_many`. If an actor dies, another one replaces it."""

    def __init__(self, cluster: RayCluster) -> None:
        self._cluster = cluster
        self._actors: list[_Actor] = []
        self._data = b""
        self._stopped = False

    async def open(self, data: bytes) -> None:
        """Start the actors."""
        self._data = data
        number = self._cluster.workers
        if number is None:
            number = max(1, int(_resources().get("CPU", 1)))
        self._actors = [self._new_actor() for _ in range(number)]

    def workers(self) -> int:
        """Return how many actors have begun."""
        return sum(actor.has_begun for actor in self._actors)

    async def run(self, items: Sequence[bytes]) -> Result:
        """Run a batch on the actor that has the fewest."""
        actor = await self._first_of_all()
        actor.batches += 1
        try:
            result: Result = await actor.handle.run.remote(items)
            return result
        except _actor_error() as error:
            if actor in self._actors and not self._stopped:
                self._actors[self._actors.index(actor)] = self._new_actor()
            raise WorkerDied(error) from error
        finally:
            actor.batches -= 1

    async def _first_of_all(self) -> _Actor:
        """Return the actor that has the fewest batches, when one has begun."""
        while True:
            begun = [actor for actor in self._actors if actor.has_begun]
            if begun:
                return min(begun, key=lambda each: each.batches)
            waiting = [each.beginning for each in self._actors if not each.beginning.done()]
            if not waiting:
                reasons = [each.error for each in self._actors if each.error is not None]
                raise ClusterLost(reasons[0] if reasons else RuntimeError("there are no actors"))
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)

    async def stop(self) -> None:
        """Cancel the runs of all actors, and wait for their cleanup."""
        self._stopped = True
        begun = [actor for actor in self._actors if actor.has_begun]
        others = [actor for actor in self._actors if not actor.has_begun]
        self._actors = begun
        await asyncio.gather(
            *(actor.ask("stop") for actor in begun), *(actor.kill() for actor in others)
        )

    async def close(self) -> None:
        """End the actors."""
        actors, self._actors = self._actors, []
        await asyncio.gather(*(actor.ask("close") for actor in actors if actor.has_begun))
        await asyncio.gather(*(actor.kill() for actor in actors))

    def _new_actor(self) -> _Actor:
        import ray

        # Calls are many at a time: they only wait for runs, which have a limit of their own.
        options = {"num_cpus": 1, "max_concurrency": 1000, **self._cluster.options}
        return _Actor(ray.remote(HostActor).options(**options).remote(self._data))


def _resources() -> dict[str, float]:
    import ray

    resources: Any = ray.cluster_resources  # which has no annotations
    found: dict[str, float] = resources()
    return found


def _actor_error() -> type[Exception]:
    """Return what Ray raises if an actor has died."""
    from ray.exceptions import RayActorError

    return RayActorError
