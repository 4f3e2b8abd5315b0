"""Other libraries that do some of the same, if they are installed (the extra `bench-peers`).

anyio, trio and quattro have task groups, for levels by hand. asyncinject, async-dag and Hamilton
run a graph of functions. Here each function depends on all functions of the level before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any

from sdax.bench.contestants import Contestant, by_hand
from sdax.bench.work import PRE, Function, Job, Library, Once, Work


def peers() -> list[Contestant]:
    """Return the installed contestants."""
    found: list[Contestant] = []
    for make in (_anyio, _trio, _quattro, _asyncinject, _async_dag, _hamilton):
        with suppress(ImportError):
            found.append(make())
    return found


def _anyio() -> Contestant:
    anyio: Any = import_module("anyio")

    async def together(functions: Sequence[Function], ctx: Any) -> None:
        async with anyio.create_task_group() as group:
            for function in functions:
                group.start_soon(function, ctx)

    return Contestant("anyio", by_hand(together, _limit(anyio.fail_after)))


def _trio() -> Contestant:
    trio: Any = import_module("trio")

    async def together(functions: Sequence[Function], ctx: Any) -> None:
        async with trio.open_nursery() as nursery:
            for function in functions:
                nursery.start_soon(function, ctx)

    async def all_at_once(runs: Sequence[Callable[[], Any]]) -> None:
        async with trio.open_nursery() as nursery:
            for run in runs:
                nursery.start_soon(run)

    library = Library(trio.sleep, trio.sleep_forever, all_at_once, lambda _, run: trio.run(run))
    make = by_hand(together, _limit(trio.fail_after), library)
    return Contestant("trio", make, library=library)


def _quattro() -> Contestant:
    quattro: Any = import_module("quattro")

    async def together(functions: Sequence[Function], ctx: Any) -> None:
        async with quattro.TaskGroup() as group:
            for function in functions:
                group.create_task(function(ctx))

    return Contestant("quattro", by_hand(together, _limit(quattro.fail_after)))


def _asyncinject() -> Contestant:
    registry: Any = import_module("asyncinject").Registry

    def make(job: Job) -> Once:
        functions = list(_graph(job))
        names = [function.__name__ for function in functions]
        graph = registry(*functions)

        async def once(ctx: Any) -> None:
            await graph.resolve_multi(names, results={"ctx": ctx})

        return once

    return Contestant("asyncinject", make, _is_graph_work, builds=True)


def _async_dag() -> Contestant:
    build_dag: Any = import_module("async_dag").build_dag

    def make(job: Job) -> Once:
        with build_dag() as manager:
            before: list[Any] = []
            for level in job.pre:
                before = [
                    manager.add_node(_ignoring_more(function), manager.parameter_node, *before)
                    for function in level
                ]
        run: Once = manager.invoke
        return run

    return Contestant("async-dag", make, _is_graph_work, builds=True)


def _hamilton() -> Contestant:
    driver: Any = import_module("hamilton.async_driver")
    base: Any = import_module("hamilton.base")
    utils: Any = import_module("hamilton.ad_hoc_utils")
    import_module("hamilton.telemetry").disable_telemetry()

    def make(job: Job) -> Once:
        functions = list(_graph(job))
        names = [function.__name__ for function in functions]
        module = utils.create_temporary_module(*functions)
        graph = driver.AsyncDriver({}, module, result_builder=base.DictResult())

        async def once(ctx: Any) -> None:
            await graph.execute(names, inputs={"ctx": ctx})

        return once

    # It goes through the graph recursively.
    return Contestant(
        "hamilton",
        make,
        lambda work: _is_graph_work(work) and len(work.shape) <= 100,
        builds=True,
    )


def _is_graph_work(work: Work) -> bool:
    has_limits = work.timeout or work.retries or work.total_timeout or not work.required
    return work.phases == (PRE,) and not (has_limits or work.fails)


def _limit(fail_after: Any) -> Callable[[Function, float], Function]:
    """Return a function that adds a timeout, from a context manager for timeouts."""

    def limit(function: Function, seconds: float) -> Function:
        async def limited(ctx: Any) -> Any:
            with fail_after(seconds):
                return await function(ctx)

        return limited

    return limit


def _ignoring_more(function: Function) -> Callable[..., Any]:
    async def node(ctx: Any, *before: object) -> Any:
        return await function(ctx)

    return node


def _graph(job: Job) -> Iterator[Any]:
    """Return functions as people write them, with arguments named after their dependencies."""
    before = ""
    for level, functions in enumerate(job.pre):
        names = [f"task_{level}_{number}" for number in range(len(functions))]
        for name, function in zip(names, functions, strict=True):
            namespace: dict[str, Any] = {"function": function}
            source = f"async def {name}(ctx: object{before}) -> object: return await function(ctx)"
            exec(source, namespace)
            yield namespace[name]
        before = "".join(f", {name}: object" for name in names)
