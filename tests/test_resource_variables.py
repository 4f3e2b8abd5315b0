"""Context variables that the set-up of a resource sets, and who sees them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any

import pytest

from helpers import (
    Broken,
    Trace,
    build,
    current,
    error_of,
    failure_of,
    forever,
    graph,
    passes,
    soon_or_late,
    spawn,
    task,
    until,
    var,
)
from sdax import AsyncTaskProcessor, RetryableException, resource
from sdax.engine import variables
from sdax.engine.plan import Plan
from sdax.events import AttemptStarted, Event

other: ContextVar[Any] = ContextVar("other", default=None)


def setting(value: str, number: int = 0, variable: ContextVar[Any] = var) -> Any:
    """A resource that sets a variable, and resets it with its token."""

    async def held(ctx: Any) -> AsyncIterator[None]:
        await passes(number)
        token = variable.set(value)
        await passes(number)
        try:
            yield
        finally:
            await passes(number)
            assert variable.get() == value
            variable.reset(token)

    return held


class Seen(dict[str, str]):
    """What each function has seen in the variable."""

    def look(self, label: str, number: int = 0) -> Any:
        async def function(ctx: Any) -> None:
            self[label] = var.get()
            var.set(f"what {label} sets")
            await passes(number)

        return function

    def task(self, name: str, number: int = 0) -> Any:
        phases = ("pre", "execute", "post")
        return task(name, *(self.look(f"{name}.{phase}", number) for phase in phases))


@soon_or_late
async def test_higher_levels_and_execute_see_it(number: int) -> None:
    seen = Seen()
    processor = build(
        [seen.task("A", number)],
        [
            seen.task("B", number),
            resource("R", setting("R's", number), execute=seen.look("R")),
            seen.task("C", number),
        ],
        [seen.task("D", number)],
        [resource("S", setting("S's", number))],
        [seen.task("E", number)],
    )
    await processor.process_tasks(None)
    assert seen == {
        **{f"{name}.{phase}": "unset" for name in "ABC" for phase in ("pre", "post")},
        **{f"D.{phase}": "R's" for phase in ("pre", "post")},
        **{f"E.{phase}": "S's" for phase in ("pre", "post")},
        **{f"{name}.execute": "S's" for name in "ABCDE"},
        "R": "S's",
    }
    assert var.get() == "unset"


@soon_or_late
async def test_in_a_graph_what_depends_on_it_sees_it(number: int) -> None:
    seen = Seen()
    processor = graph(
        seen.task("A", number),
        (resource("R", setting("R's", number)), ["A"]),
        (seen.task("B", number), ["A"]),
        (seen.task("C", number), ["R", "A"]),
        (task("D", None, None, seen.look("D.post")), ["B", "C"]),
        (seen.task("E", number), ["D"]),
        (seen.task("F", number), ["B"]),
    )
    await processor.process_tasks(None)
    assert seen == {
        **{f"{name}.{phase}": "unset" for name in "ABF" for phase in ("pre", "post")},
        **{f"{name}.{phase}": "R's" for name in "CE" for phase in ("pre", "post")},
        "D.post": "R's",
        **{f"{name}.execute": "R's" for name in "ABCEF"},
    }


@pytest.mark.parametrize("delays", [(0, 3), (3, 0)])
async def test_the_order_of_completion_does_not_matter(delays: tuple[int, int]) -> None:
    seen = Seen()
    first, second = delays
    processor = build(
        [
            resource("R", setting("R's", first)),
            resource("S", setting("S's", second)),
            resource("T", setting("T's", 1, other)),
        ],
        [seen.task("A")],
    )
    await processor.process_tasks(None)
    assert set(seen.values()) == {"S's"}
    seen.clear()
    await graph(
        resource("S", setting("S's", second)),
        resource("R", setting("R's", first)),
        (resource("Q", setting("Q's")), ["S"]),
        (seen.task("A"), ["R", "Q"]),
        (seen.task("B"), ["R", "S"]),
    ).process_tasks(None)
    assert seen == {
        **{f"A.{phase}": "Q's" for phase in ("pre", "execute", "post")},
        **{f"B.{phase}": "R's" for phase in ("pre", "post")},
        "B.execute": "Q's",
    }


async def test_the_order_of_adding_does_not_matter() -> None:
    seen = Seen()
    await graph(
        (resource("Q", setting("Q's")), ["R"]),
        resource("R", setting("R's")),
        (seen.task("A"), ["Q", "R"]),
    ).process_tasks(None)
    assert set(seen.values()) == {"Q's"}


async def test_functions_of_a_level_get_copies_of_one_context(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[None] = []
    with_changes = variables.with_changes

    def count(*arguments: Any) -> Any:
        made.append(None)
        return with_changes(*arguments)

    monkeypatch.setattr(variables, "with_changes", count)
    seen = Seen()
    await build(
        [resource("R", setting("R's"))], [seen.task(str(number)) for number in range(10)]
    ).process_tasks(None)
    assert set(seen.values()) == {"R's"}
    assert len(made) == 1  # for the level, and for `execute`, which sees no more


@pytest.mark.loop_kinds("asyncio")
@pytest.mark.parametrize("seed", range(12))
async def test_each_sees_them_in_the_same_order(seed: int) -> None:
    """Of those that wait for no other, the one that was added first is applied first, whichever
    was set up first."""
    rng = random.Random(seed)
    names = list(range(12))
    rank = rng.sample(names, len(names))  # waits for lower ones alone
    needs: dict[int, set[int]] = {}
    for name in sorted(names, key=rank.__getitem__):
        direct = [each for each in names if rank[each] < rank[name] and rng.random() < 0.2]
        needs[name] = set(direct).union(*(needs[each] for each in direct))
    order: list[int] = []
    while len(order) < len(names):
        order.append(min(each for each in set(names).difference(order) if needs[each] <= {*order}))
    seen: dict[str, str] = {}

    def held(name: int) -> Any:
        async def function(ctx: Any) -> AsyncIterator[None]:
            seen[f"{name}"] = var.get()
            await passes(delays[name])
            var.set(str(name))
            yield

        return function

    async def look(ctx: Any) -> None:
        seen["execute"] = var.get()

    delays = [rng.randrange(4) for _ in names]
    await graph(
        *((resource(str(name), held(name)), [str(each) for each in needs[name]]) for name in names),
        task("X", None, look),
    ).process_tasks(None)
    last = {str(name): [each for each in order if each in needs[name]][-1:] for name in names}
    last["execute"] = order[-1:]
    assert seen == {name: str(each[0]) if each else "unset" for name, each in last.items()}


@pytest.mark.loop_kinds("asyncio")
@pytest.mark.parametrize("shape", ["wide", "deep", "graph"])
async def test_many_resources_that_set_variables(
    shape: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No level and no gate asks more than once about each of those before it."""
    asked: list[int] = []
    is_before = Plan.is_before

    def ask(plan: Plan, index: int, at: int) -> bool:
        asked.append(index)
        return is_before(plan, index, at)

    monkeypatch.setattr(Plan, "is_before", ask)
    seen = Seen()
    number = 40
    names = [f"R{each}" for each in range(number)]
    resources = [resource(name, setting(name)) for name in names]
    if shape == "graph":
        processor = graph(
            *((each, names[max(at - 2, 0) : max(at - 1, 0)]) for at, each in enumerate(resources)),
            (seen.task("A"), names),
        )
    else:
        levels = [resources] if shape == "wide" else [[each] for each in resources]
        processor = build(*levels, [seen.task("A")])
    await processor.process_tasks(None)
    assert set(seen.values()) == {names[-1]}
    assert len(asked) <= number * (number + 1) // 2


async def test_a_context_manager_may_set_it() -> None:
    seen = Seen()
    manager = asynccontextmanager(setting("R's"))
    await build([resource("R", manager)], [seen.task("A")]).process_tasks(None)
    assert set(seen.values()) == {"R's"}


async def test_what_is_set_back_is_not_seen() -> None:
    async def held(ctx: Any) -> AsyncIterator[None]:
        token = var.set("for a moment")
        await passes(1)
        var.reset(token)
        yield

    seen = Seen()
    await build([resource("R", held)], [seen.task("A")]).process_tasks(None)
    assert set(seen.values()) == {"unset"}


async def test_equal_values_that_are_not_the_same_are_told_apart() -> None:
    class Awkward:
        def __eq__(self, other: object) -> bool:
            raise Broken

        __hash__ = None  # type: ignore[assignment]

    values: list[Any] = []

    def set_to(value: Any) -> Any:
        async def held(ctx: Any) -> AsyncIterator[None]:
            other.set(value)
            yield

        return held

    async def look(ctx: Any) -> None:
        values.append(other.get())

    first, second, third = Awkward(), [], []  # type: ignore[var-annotated]
    await build(
        [resource("R", set_to(first))],
        [task("A", look)],
        [resource("S", set_to(second))],
        [task("B", look)],
        [resource("T", set_to(third))],
        [task("C", look)],
    ).process_tasks(None)
    assert [id(each) for each in values] == [id(first), id(second), id(third)]


@pytest.mark.virtual_clock
async def test_what_a_failed_attempt_has_set_too() -> None:
    attempts = 0

    async def held(ctx: Any) -> AsyncIterator[None]:
        nonlocal attempts
        attempts += 1
        var.set("the tenant")
        if attempts == 1:
            raise RetryableException
        yield

    seen = Seen()
    await build([resource("R", held, retries=1)], [seen.task("A")]).process_tasks(None)
    assert set(seen.values()) == {"the tenant"}


@pytest.mark.virtual_clock
async def test_what_an_observer_sets_for_an_attempt_is_the_attempts_own() -> None:
    attempts = 0

    async def held(ctx: Any) -> AsyncIterator[None]:
        nonlocal attempts
        attempts += 1
        assert var.get() == f"R, attempt {attempts}"
        if attempts == 1:
            raise RetryableException
        other.set("R's")
        yield

    async def look(ctx: Any) -> None:
        values.append((var.get(), other.get()))

    def observe(event: Event) -> None:
        if isinstance(event, AttemptStarted) and event.task.name == "R":
            var.set(f"R, attempt {event.attempt}")

    values: list[Any] = []
    builder = AsyncTaskProcessor.builder(observer=observe)
    builder.add_task(resource("R", held, retries=1), 1).add_task(task("A", look), 2)
    await builder.build().process_tasks(None)
    assert values == [("unset", "R's")]


@soon_or_late
async def test_cleanups_after_a_failure_see_it(number: int) -> None:
    seen = Seen()
    error = await failure_of(
        build(
            [resource("R", setting("R's", number)), seen.task("A")],
            [seen.task("B")],
            [task("C", Trace().failing("C", Broken()))],
        )
    )
    assert len(error.exceptions) == 1
    assert seen == {
        **{f"A.{phase}": "unset" for phase in ("pre", "post")},
        **{f"B.{phase}": "R's" for phase in ("pre", "post")},
    }


@pytest.mark.loop_kinds("asyncio")
async def test_functions_that_see_it_share_nothing() -> None:
    """What one of them sets, no other sees, and each has an asyncio.Task of its own."""
    tasks: list[Any] = []
    seen = Seen()

    async def look(ctx: Any) -> None:
        tasks.append(current())

    await build(
        [resource("R", setting("R's"))],
        [task(f"A{number}", look, seen.look(f"A{number}"), look) for number in range(5)],
    ).process_tasks(None)
    assert len(set(tasks)) == 10
    assert set(seen.values()) == {"R's"}


async def test_phase_by_phase() -> None:
    seen = Seen()
    processor = build([resource("R", setting("R's"))], [seen.task("A", 1)])
    async with processor.open(None) as run:
        while await run.run_next():
            assert var.get() == "unset"
    assert set(seen.values()) == {"R's"}


async def test_many_runs_at_once() -> None:
    def tenant(ctx: str) -> Any:
        return setting(ctx, 1)(ctx)

    values: list[tuple[str, str]] = []

    async def look(ctx: str) -> None:
        await passes(1)
        values.append((ctx, var.get()))

    processor = build([resource("R", tenant)], [task("A", look, look, look)])
    await asyncio.gather(*(processor.process_tasks(f"tenant {n}") for n in range(5)))
    assert all(ctx == value for ctx, value in values)
    assert len(values) == 15


async def test_a_run_inside_of_a_run_inherits_it() -> None:
    seen = Seen()
    inner = build([seen.task("I")])

    async def nested(ctx: Any) -> None:
        await inner.process_tasks(None)

    await build([resource("R", setting("R's"))], [task("A", None, nested)]).process_tasks(None)
    assert set(seen.values()) == {"R's"}


async def test_a_resource_that_breaks_sees_its_own() -> None:
    async def cancel_it(ctx: Any) -> None:
        (own,) = (each for each in asyncio.all_tasks() if each.get_name() == "sdax:R:resource")
        own.cancel()
        await forever()

    seen = Seen()
    run = spawn(
        build([resource("R", setting("R's", 1))], [seen.task("A"), task("B", None, cancel_it)])
    )
    await until(run.done)
    assert await error_of(run) is not None
    assert seen == dict.fromkeys(("A.pre", "A.execute", "A.post"), "R's")
