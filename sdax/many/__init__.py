"""Many runs of one processor: on this event loop, on a cluster, or in a pool of processes.

>>> async with run_many(processor, inputs, make_context=Request, concurrency=200) as outcomes:
...     async for outcome in outcomes:
...         print(outcome.number, outcome.item, outcome.result())
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterable, Awaitable, Callable, Hashable, Iterable, Sized
from concurrent.futures import Executor
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, Final, TypedDict, TypeVar, Unpack, overload

from ..common.checks import checked_limit, explained, runs_later
from ..common.text import nearest, shortened, shown
from ..events import Observers
from ..options import checked_observers
from ..processor import TaskProcessor
from ..report import RunReport
from .local import LocalOutcomes
from .outcome import Outcome, Outcomes
from .progress import ManyObserver, Progress, split_observers
from .ray import RayCluster
from .travel import TravelError, WorkerLost, WorkerTraceback

if TYPE_CHECKING:
    from .batches import Cluster

__all__ = [
    "ManyObserver",
    "ManyOptions",
    "Outcome",
    "Outcomes",
    "Progress",
    "RayCluster",
    "TravelError",
    "WorkerLost",
    "WorkerTraceback",
    "run_many",
]

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)
Item = TypeVar("Item")
V = TypeVar("V")
R = TypeVar("R")

DEFAULT_CONCURRENCY: Final = 100
DEFAULT_BATCH_SIZE: Final = 50
DEFAULT_AHEAD: Final = 2

LONGEST: Final = 60  # characters of what is shown of a string


class ManyOptions(TypedDict, total=False):
    """The options of `run_many` that do not change the type of its outcomes, for functions that
    pass them on.

    >>> def run_orders(orders: Iterable[int], **options: Unpack[ManyOptions]):
    ...     return run_many(processor, orders, make_context=Order, **options)
    """

    concurrency: int
    ordered: bool
    observer: Observers | None
    on: Any
    batch_size: int
    ahead: int


def _no_such_option(_: object, named: dict[str, Any]) -> str | None:
    names = ["processor", "inputs", "make_context", "resources", "pick"]
    names += ManyOptions.__annotations__
    for name in named:
        if name not in names:
            return f"run_many has no argument {shown(name)}{nearest(name, names)}"
    return None


@overload
def run_many(
    processor: TaskProcessor[Item, K],
    inputs: Iterable[Item] | AsyncIterable[Item],
    *,
    make_context: None = None,
    pick: None = None,
    **options: Unpack[ManyOptions],
) -> Outcomes[Item, RunReport[K]]: ...


@overload
def run_many(
    processor: TaskProcessor[Item, K],
    inputs: Iterable[Item] | AsyncIterable[Item],
    *,
    make_context: None = None,
    pick: Callable[[Item, RunReport[K]], V],
    **options: Unpack[ManyOptions],
) -> Outcomes[Item, V]: ...


@overload
def run_many(
    processor: TaskProcessor[T, K],
    inputs: Iterable[Item] | AsyncIterable[Item],
    *,
    make_context: Callable[[Item], Awaitable[T]] | Callable[[Item], T],
    pick: None = None,
    **options: Unpack[ManyOptions],
) -> Outcomes[Item, RunReport[K]]: ...


@overload
def run_many(
    processor: TaskProcessor[T, K],
    inputs: Iterable[Item] | AsyncIterable[Item],
    *,
    make_context: Callable[[Item], Awaitable[T]] | Callable[[Item], T],
    pick: Callable[[T, RunReport[K]], V],
    **options: Unpack[ManyOptions],
) -> Outcomes[Item, V]: ...


@overload
def run_many(
    processor: TaskProcessor[T, K],
    inputs: Iterable[Item] | AsyncIterable[Item],
    *,
    make_context: Callable[[Item, R], Awaitable[T]] | Callable[[Item, R], T],
    resources: Callable[[], AbstractAsyncContextManager[R]],
    pick: None = None,
    **options: Unpack[ManyOptions],
) -> Outcomes[Item, RunReport[K]]: ...


@overload
def run_many(
    processor: TaskProcessor[T, K],
    inputs: Iterable[Item] | AsyncIterable[Item],
    *,
    make_context: Callable[[Item, R], Awaitable[T]] | Callable[[Item, R], T],
    resources: Callable[[], AbstractAsyncContextManager[R]],
    pick: Callable[[T, RunReport[K]], V],
    **options: Unpack[ManyOptions],
) -> Outcomes[Item, V]: ...


@explained(_no_such_option)
def run_many(
    processor: TaskProcessor[Any, Any],
    inputs: Iterable[Any] | AsyncIterable[Any],
    *,
    make_context: Callable[..., Any] | None = None,
    resources: Callable[[], AbstractAsyncContextManager[Any]] | None = None,
    pick: Callable[[Any, RunReport[Any]], Any] | None = None,
    concurrency: int = DEFAULT_CONCURRENCY,
    ordered: bool = False,
    observer: Observers | None = None,
    on: Any = None,
    batch_size: int = DEFAULT_BATCH_SIZE,
    ahead: int = DEFAULT_AHEAD,
) -> Outcomes[Any, Any]:
    """Run a processor once for each input, many at a time, and return the outcomes.

    Use it as `async with run_many(...) as outcomes`, and take the outcomes with `async for`.

    - `inputs`: any iterable or async iterable, but not a string or bytes. It may have no end. Runs
      begin when you ask for the first outcome. Then an input is taken when a place is free. An
      async generator is closed when you leave the block.
    - `make_context`: a function, async or not, that makes the context of a run from an input.
      Without it the input is the context. Its run sees the context variables that it sets.
    - `pick`: a function that gets the context and the report, and returns the `outcome.value`. By
      default that is the report.
    - `concurrency`: the number of inputs that may be active or have an outcome that is not taken.
      On a cluster, the number of active inputs on each worker. 100 by default.
    - `ordered`: True gives outcomes in the order of the inputs. False, the default, gives them in
      the order in which the runs end.
    - `observer`: called with the events of each run, as for `process_tasks`. A `ManyObserver`, such
      as `ProgressDisplay`, is told about inputs and outcomes instead.
    - `resources`: a function that returns an async context manager. It is entered once, or on a
      cluster once on each worker. Its value is the second argument of `make_context`.
    - `on`: None means this event loop. A `distributed.Client`, a `RayCluster` or an executor of
      `concurrent.futures` runs the processor there. See the documentation of many runs.
    - `batch_size` and `ahead`: the number of inputs that a worker gets together, 50 by default, and
      the number of such batches that each worker may have, 2 by default. They are only for clusters
      and executors.

    A failed run is an outcome with an `error`, and stops nothing. If `make_context` or `pick`
    raises, that is the error of its input. If `inputs` raises, the `async for` raises that when all
    runs have ended. `KeyboardInterrupt`, and anything else that is not an `Exception`, cancels all
    runs, waits for their cleanup, and is raised. `outcomes.stopped_by` is the input.

    Leaving the block early cancels the active runs and waits for their cleanup. Outcomes that you
    have not taken are dropped. `outcomes.take_no_more()` ends a job and loses none.

    Raises `TypeError` and `ValueError` for arguments of other kinds.

    >>> async with run_many(processor, orders, make_context=Order, ordered=True) as outcomes:
    ...     totals = [outcome.result() async for outcome in outcomes]
    """
    if not isinstance(processor, TaskProcessor):
        raise TypeError(f"run_many takes a processor, got {shown(processor)}; call build() first?")
    if not isinstance(inputs, (Iterable, AsyncIterable)):
        raise TypeError(f"inputs must be an iterable or an async iterable, got {shown(inputs)}")
    if isinstance(inputs, (str, bytes, bytearray)):
        raise TypeError(
            f"inputs must be an iterable of inputs, got {shortened(shown(inputs), LONGEST)}; pass "
            f"[inputs] if this is one input, or list(inputs) for its characters"
        )
    for name, function in (
        ("make_context", make_context),
        ("pick", pick),
        ("resources", resources),
    ):
        if function is not None and not callable(function):
            raise TypeError(f"{name} must be a function or None, got {shown(function)}")
    if pick is not None and runs_later(pick):
        raise TypeError(f"pick must be a plain function, got {shown(pick)}; define it with 'def'")
    if resources is not None and make_context is None:
        raise TypeError(
            "resources are passed to make_context: pass a function that takes (item, resources)"
        )
    if not isinstance(ordered, bool):
        raise TypeError(f"ordered must be True or False, got {shown(ordered)}")
    limits = {
        name: _checked(name, value)
        for name, value in (
            ("concurrency", concurrency),
            ("batch_size", batch_size),
            ("ahead", ahead),
        )
    }
    of_runs, of_many = (
        (None, []) if observer is None else split_observers(checked_observers(observer))
    )
    progress = Progress(len(inputs) if isinstance(inputs, Sized) else None, of_many)
    common: dict[str, Any] = {"ordered": ordered, "progress": progress if of_many else None}
    if on is None:
        return LocalOutcomes(
            processor,
            inputs,
            make_context,
            pick,
            (of_runs or None) if of_many else of_runs,
            concurrency=limits["concurrency"],
            resources=resources,
            **common,
        )
    if of_runs:
        raise TypeError(
            f"observer: {shown(of_runs[0])} cannot hear of runs in other processes; build the "
            f"processor with an observer that can be pickled"
        )
    from .batches import BatchedOutcomes
    from .worker import Job

    cluster = _cluster_of(on)
    silenced = None if of_runs is None or of_many else ()
    job = Job(processor, make_context, pick, resources, silenced, limits["concurrency"])
    common.update(batch_size=limits["batch_size"], ahead=limits["ahead"])
    return BatchedOutcomes(inputs, cluster, job, **common)


def _cluster_of(on: Any) -> Cluster:
    """Return what runs batches on what the user has given."""
    if isinstance(on, RayCluster):
        from .ray import RayActors

        return RayActors(on)
    distributed = sys.modules.get("distributed")
    if distributed is not None and isinstance(on, distributed.Client):
        from .dask import DaskWorkers

        return DaskWorkers(on)
    if isinstance(on, Executor):
        from .futures import ExecutorCluster

        return ExecutorCluster(on)
    raise TypeError(
        f"on must be None, a distributed.Client, a RayCluster or an executor of "
        f"concurrent.futures; got {shown(on)}"
    )


def _checked(name: str, value: Any) -> int:
    limit = checked_limit(name, value)
    if limit is None:
        raise TypeError(f"{name} must be an integer, got None")
    return limit
