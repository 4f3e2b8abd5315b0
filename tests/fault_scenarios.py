"""Small workflows of every kind, for `faults`: each makes a run, and tells what it did."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple, TypeAlias

from failing_calls import CountedTask, called_by_engine
from helpers import PHASES, build, current, error_of, forever, graph, task
from sdax import (
    AsyncTask,
    AsyncTaskProcessor,
    Finish,
    RetryBudget,
    SdaxTaskGroup,
    TaskFunction,
    resource,
    task_sync_func,
)

PRE, EXECUTE, POST = PHASES

Act: TypeAlias = Callable[[], Awaitable[Any]]
Error: TypeAlias = BaseException | None
Caller: TypeAlias = Callable[[], Awaitable[Any]]
Factory: TypeAlias = Callable[..., Any]


class Event(NamedTuple):
    """A function began or ended."""

    task: str
    phase: str
    what: str


@dataclass
class Journal:
    """What happened in one run, and what a scenario asks of its surroundings."""

    loop: asyncio.AbstractEventLoop
    events: list[Event] = field(default_factory=list)
    raised: list[BaseException] = field(default_factory=list)  # by functions, for good
    told: list[BaseException | None] = field(default_factory=list)  # to another than the caller
    acquires: set[str] = field(default_factory=set)  # the tasks that have a pre_execute
    cleanups: dict[str, int] = field(default_factory=dict)  # the attempts that each may take
    cut: list[str] = field(default_factory=list)  # cleanups that came to no end of their own
    timers: list[asyncio.TimerHandle] = field(default_factory=list)
    cancels: int = 0  # of the caller
    caller: asyncio.Task[Any] | None = None

    def function(self, name: str, phase: str, act: Act) -> Callable[[Any], Awaitable[Any]]:
        async def function(ctx: object) -> Any:
            self.events.append(Event(name, phase, "begins"))
            try:
                return await act()
            finally:
                self.events.append(Event(name, phase, "ends"))

        return function

    def task(self, name: str, phases: str = "pep", **acts: Any) -> AsyncTask[Any, Any]:
        """Make a task: what its functions do, by phase, and what they do otherwise, a pass.

        What a function does may be a pair, with the limits of its `TaskFunction`.
        """
        functions = {}
        for phase, letter in zip(PHASES, phases, strict=True):
            if letter == ".":
                continue
            act = acts.get(phase, a_pass)
            act, limits = act if isinstance(act, tuple) else (act, {})
            if phase == POST and "timeout" not in limits:
                act = self.uncut(name, act)
            functions[phase] = TaskFunction(self.function(name, phase, act), **limits)
            if phase == PRE:
                self.acquires.add(name)
            elif phase == POST:
                self.cleanups[name] = 1 + limits.get("retries", 0)
        return AsyncTask(name, **functions)

    def resource(
        self, name: str, set_up: Act | None = None, clean_up: Act | None = None, **limits: Any
    ) -> AsyncTask[Any, Any]:
        """Make a resource: what its two halves do, otherwise a pass each."""
        begin = self.function(name, PRE, set_up or a_pass)
        end = self.function(name, POST, self.uncut(name, clean_up or a_pass))
        self.acquires.add(name)
        self.cleanups[name] = 1

        async def hold(ctx: object) -> AsyncIterator[str]:
            try:
                await begin(ctx)
                yield name
            finally:
                await end(ctx)

        return resource(name, hold, **limits)

    def uncut(self, name: str, act: Act) -> Act:
        """Do something that nothing may cut short."""

        async def watched() -> Any:
            try:
                return await act()
            except (asyncio.CancelledError, GeneratorExit):
                self.cut.append(name)
                raise

        return watched

    def fails(self, error: BaseException, first: Act | None = None) -> Act:
        """Raise, be it after something else."""

        async def act() -> None:
            if first is not None:
                await first()
            self.raised.append(error)
            raise error

        return act

    def flaky(self, first: Act | None = None) -> Act:
        """Raise in the first attempt, what may be retried."""
        attempts = iter([True])

        async def act() -> None:
            if first is not None:
                await first()
            if next(attempts, False):
                raise ConnectionError("the first attempt")

        return act

    def answers(self, error: BaseException | None) -> Act:
        """Wait, and answer the cancellation with an exception, or swallow it."""

        async def act() -> None:
            try:
                await forever()
            except asyncio.CancelledError:
                if error is not None:
                    self.raised.append(error)
                    raise error from None

        return act

    def at(self, when: float, do: Callable[[], Any]) -> None:
        """Do something at this time of the loop."""
        self.timers.append(self.loop.call_at(when, do))

    def cancel(self) -> None:
        """Cancel the caller."""
        assert self.caller is not None
        if not self.caller.done():
            self.cancels += 1
            self.caller.cancel()

    def end_loop(self) -> None:
        """Cancel every task, as `asyncio.run()` does at its end."""
        self.cancels += 1
        for each in asyncio.all_tasks(self.loop):
            each.cancel()

    def disturb(self, method: str, *arguments: Any) -> None:
        """Close the coroutine of a function, or throw into it, and tell what that raises."""
        names = {each.get_name(): each for each in asyncio.all_tasks(self.loop)}
        if "sdax:A:execute" not in names:
            return
        coroutine: Any = names["sdax:A:execute"].get_coro()
        for _ in range(2):  # what has failed before it did anything may be done again
            try:
                getattr(coroutine, method)(*arguments)
            except BaseException as error:
                self.told.append(error)
            if Event("A", EXECUTE, "ends") in self.events:
                break

    def observer(self) -> Callable[[Any], None]:
        @called_by_engine
        def observe(event: Any) -> None:
            pass

        return observe


@dataclass(frozen=True)
class Scenario:
    """A workflow, and who calls it: `prepare` builds it and returns the call."""

    name: str
    prepare: Callable[[Journal], Caller]
    factory: Factory | None = None
    goes_on: bool = False  # the run, when its caller is gone


async def at_once() -> None:
    pass


async def a_pass() -> None:
    await asyncio.sleep(0)


def sleeps(seconds: float) -> Act:
    async def act() -> None:
        await asyncio.sleep(seconds)

    return act


async def waits() -> None:
    await forever()


async def cancels_itself() -> None:
    current().cancel()
    await asyncio.sleep(0)


RETRIES = {"retries": 2, "initial_delay": 2.0}


@dataclass(frozen=True)
class Runs:
    """A call of `process_tasks`."""

    processor: AsyncTaskProcessor[Any, Any]
    observer: Any = None
    reported: Journal | None = None  # which is to hear of failures that nobody is raised

    def __call__(self) -> Awaitable[Any]:
        called = self.processor.process_tasks(None, observer=self.observer)
        return called if self.reported is None else self.told(called, self.reported)

    async def told(self, called: Awaitable[Any], journal: Journal) -> None:
        report = await called
        journal.told += [failure.exception for failure in report.failures]


def success(journal: Journal) -> Runs:
    make = journal.task
    return Runs(
        build(
            [make("A"), make("B", "pe.", execute=at_once)],
            [make("C", pre_execute=at_once, execute=sleeps(1), post_execute=at_once)],
            [make("D", ".ep", post_execute=sleeps(1))],
        )
    )


def plain_functions(journal: Journal) -> Runs:
    @called_by_engine
    def plain(ctx: object) -> int:
        return 1

    @called_by_engine
    def awaitable(ctx: object) -> _Awaitable:
        return _Awaitable()

    @called_by_engine
    def coroutine(ctx: object) -> Awaitable[None]:
        return a_pass()

    return Runs(
        build(
            [journal.task("A"), task("B", task_sync_func(plain), coroutine, awaitable)],
            [task("C", coroutine, awaitable, task_sync_func(plain)), journal.task("D")],
        )
    )


class _Awaitable:
    def __await__(self) -> Generator[Any, Any, None]:
        return a_pass().__await__()


def no_awaitable(journal: Journal) -> Runs:
    return Runs(build([journal.task("A"), task("B", lambda ctx: 1)]))


def fails_in(phase: str, first: Act | None) -> Callable[[Journal], Caller]:
    def prepare(journal: Journal) -> Runs:
        fails = journal.fails(ValueError("A"), first)
        return Runs(
            build(
                [journal.task("0")],
                [
                    journal.task("waiting", **({phase: waits} if phase != POST else {})),
                    journal.task("A", **{phase: fails}),
                    journal.task("uncalled"),
                ],
                [journal.task("above")],
            )
        )

    return prepare


def two_failures(journal: Journal) -> Runs:
    return Runs(
        build(
            [
                journal.task("A", execute=journal.answers(OSError("A"))),
                journal.task("B", execute=journal.answers(None)),
                journal.task("C", post_execute=journal.fails(KeyError("C"), a_pass)),
                journal.task("D", execute=journal.fails(ValueError("D"), sleeps(1))),
            ]
        )
    )


def fatal(journal: Journal) -> Runs:
    return Runs(
        build(
            [
                journal.task("A", execute=journal.answers(SystemExit("A"))),
                journal.task("B", execute=journal.answers(OSError("B"))),
                journal.task("C", execute=journal.fails(KeyboardInterrupt("C"), a_pass)),
            ]
        )
    )


def cancels_self(journal: Journal) -> Runs:
    return Runs(build([journal.task("A", execute=cancels_itself), journal.task("B")]))


def times_out(journal: Journal) -> Runs:
    return Runs(
        build(
            [
                journal.task("A", execute=(waits, {"timeout": 1.0})),
                journal.task("B", execute=(waits, {"timeout": 5.0})),
                journal.task("C", pre_execute=(a_pass, {"timeout": 1.0})),
            ]
        )
    )


def times_out_at_once(journal: Journal) -> Runs:
    return Runs(build([journal.task("A", execute=(waits, {"timeout": 0})), journal.task("B")]))


def cleanup_times_out(journal: Journal) -> Runs:
    limits = {"timeout": 1.0, **RETRIES}
    return Runs(build([journal.task("A", post_execute=(waits, limits)), journal.task("B")]))


def retries(journal: Journal) -> Runs:
    limits = {"timeout": 4.0, **RETRIES}
    return Runs(
        build(
            [
                journal.task("A", pre_execute=(journal.flaky(), RETRIES)),
                journal.task("B", pre_execute=(journal.flaky(a_pass), limits)),
            ],
            [
                journal.task("C", execute=(journal.flaky(a_pass), RETRIES)),
                journal.task("D", post_execute=(journal.flaky(), limits)),
            ],
        )
    )


def retries_at_once(journal: Journal) -> Runs:
    limits = {"retries": 1, "initial_delay": 0}
    return Runs(build([journal.task("A", pre_execute=(journal.flaky(), limits))]))


def retries_run_out(journal: Journal) -> Runs:
    fails = journal.fails(ConnectionError("A"))
    return Runs(build([journal.task("A", execute=(fails, RETRIES)), journal.task("B")]))


def asks_a_predicate(journal: Journal) -> Runs:
    @called_by_engine
    def predicate(error: Exception) -> bool:
        return isinstance(error, ConnectionError)

    limits = {"retries": 1, "retryable_exceptions": predicate}
    return Runs(build([journal.task("A", execute=(journal.flaky(), limits)), journal.task("B")]))


def pause_is_cancelled(journal: Journal) -> Runs:
    limits = {"retries": 1, "initial_delay": 100.0}
    return Runs(
        build(
            [
                journal.task("A", execute=(journal.flaky(a_pass), limits)),
                journal.task("B", execute=journal.fails(ValueError("B"), sleeps(1))),
            ]
        )
    )


def falls_back(journal: Journal) -> Runs:
    @called_by_engine
    async def cover(ctx: object, error: Exception) -> int:
        await a_pass()
        return 1

    @called_by_engine
    def cover_at_once(ctx: object, error: Exception) -> int:
        return 1

    limits = {"retries": 1, "initial_delay": 1.0, "fallback": cover, "timeout": 60.0}
    return Runs(
        build(
            [
                journal.task("A", execute=(is_down, limits)),
                journal.task("B", pre_execute=(is_down, {"fallback": cover_at_once})),
            ]
        )
    )


async def is_down() -> None:
    await a_pass()
    raise ConnectionError("each attempt")


def has_limiter(journal: Journal) -> Runs:
    limits = {
        "limiter": asyncio.Lock(),
        "timeout": 60.0,
        "retries": 1,
        "retry_budget": RetryBudget(),
    }
    return Runs(
        build(
            [
                journal.task("A", pre_execute=(journal.flaky(a_pass), limits)),
                journal.task("B", pre_execute=(a_pass, limits), post_execute=(a_pass, limits)),
            ]
        )
    )


def has_limiter_of_the_context(journal: Journal) -> Runs:
    held = SimpleNamespace(lock=asyncio.Lock())
    # A function in C, because what a limiter itself raises is no failure of the engine's.
    limits = {"limiter": partial(getattr, held, "lock"), "total_timeout": 60.0}
    cleaned = journal.task("A", pre_execute=(a_pass, limits), post_execute=(a_pass, limits))
    return Runs(build([cleaned, journal.task("B", execute=(a_pass, limits))]))


def has_limiter_that_lets_nobody_in(journal: Journal) -> Runs:
    limits = {"limiter": asyncio.Semaphore(0), "total_timeout": 5.0}
    cleaned = journal.task("A", pre_execute=at_once, post_execute=(at_once, limits))
    return Runs(build([cleaned, journal.task("B")]))


def runs_out_of_time(journal: Journal) -> Runs:
    flaky = journal.flaky(a_pass)

    async def act() -> None:
        await flaky()
        await forever()

    limits = {"retries": 2, "initial_delay": 1.0, "total_timeout": 5.0}
    return Runs(build([journal.task("A", execute=(act, limits)), journal.task("B")]))


def few_places(journal: Journal) -> Runs:
    builder = AsyncTaskProcessor.builder(max_concurrency=1)
    for name in "ABC":
        builder.add_task(journal.task(name), 1)
    return Runs(builder.build())


def few_places_and_a_failure(journal: Journal) -> Runs:
    builder = AsyncTaskProcessor.builder(max_concurrency=2)
    builder.add_task(journal.task("A"), 1)
    builder.add_task(journal.task("B", pre_execute=journal.fails(ValueError("B"), a_pass)), 1)
    for name in "CD":
        builder.add_task(journal.task(name), 1)
    return Runs(builder.build())


def in_graph(order: str, fails: str = "") -> Callable[[Journal], Runs]:
    def prepare(journal: Journal) -> Runs:
        failing = {fails: journal.fails(ValueError("C"), a_pass)} if fails else {}
        return Runs(
            graph(
                journal.task("A"),
                (journal.task("B", pre_execute=sleeps(1)), ["A"]),
                (journal.task("C", **failing), ["A"]),
                (journal.task("D", ".ep"), ["B"]),
                (journal.task("E", "p.p"), ["B", "C"]),
                execute_order=order,
            )
        )

    return prepare


def spared(phase: str, first: Act | None) -> Callable[[Journal], Runs]:
    """A task that is not required fails, which nobody is raised."""

    async def fails() -> None:
        if first is not None:
            await first()
        raise LookupError("not required")

    def prepare(journal: Journal) -> Runs:
        return Runs(
            graph(
                journal.task("A"),
                (replace(journal.task("B", **{phase: fails}), required=False), ["A"]),
                (journal.task("C"), ["A"]),
                (journal.task("D", ".ep"), ["B"]),
                (journal.task("E", "p.p"), ["B", "C"]),
                execute_order="dependency",
            ),
            reported=journal,
        )

    return prepare


def spared_in_levels(journal: Journal) -> Runs:
    async def fails() -> None:
        raise LookupError("not required")

    failing = replace(journal.task("A", pre_execute=fails), required=False)
    return Runs(build([failing, journal.task("B")], [journal.task("C", ".ep")]), reported=journal)


def keeps_going(phase: str, first: Act | None) -> Callable[[Journal], Runs]:
    def prepare(journal: Journal) -> Runs:
        return Runs(
            graph(
                journal.task("A", **{phase: journal.fails(ValueError("A"), first)}),
                journal.task("B", **{phase: journal.fails(OSError("B"), sleeps(1))}),
                (journal.task("C"), ["A"]),
                (journal.task("D", ".ep"), ["B"]),
                journal.task("E", pre_execute=sleeps(2)),
                (journal.task("F"), ["A", "E"]),
                (journal.task("G"), ["E"]),
                execute_order="dependency",
                on_failure="keep going",
            )
        )

    return prepare


def keeps_going_in_levels(journal: Journal) -> Runs:
    return Runs(
        build(
            [
                journal.task("A", pre_execute=journal.fails(ValueError("A"))),
                journal.task("B", execute=journal.fails(OSError("B"), a_pass)),
            ],
            [journal.task("C")],
            on_failure="keep going",
        )
    )


def finishes(phase: str, first: Act) -> Callable[[Journal], Runs]:
    async def finish() -> Any:
        await first()
        return Finish(7)

    def prepare(journal: Journal) -> Runs:
        return Runs(
            build(
                [journal.task("0")],
                [
                    journal.task("waiting", **{phase: waits}),
                    journal.task("A", **{phase: finish}),
                    journal.task("uncalled"),
                ],
                [journal.task("above")],
            )
        )

    return prepare


def with_resources(
    set_up: Act | None = None, clean_up: Error = None, execute: Error = None
) -> Callable[[Journal], Runs]:
    """Each resource has a level of its own: one that fails cleans up beside its siblings."""

    def prepare(journal: Journal) -> Runs:
        ends = journal.fails(clean_up, a_pass) if clean_up else a_pass
        works = journal.fails(execute, a_pass) if execute else a_pass
        return Runs(
            build(
                [journal.resource("A", at_once, at_once, timeout=60.0)],
                [journal.resource("B", set_up, ends, cleanup_timeout=60.0)],
                [journal.task("C", execute=works), journal.task("D", "pe.", execute=sleeps(1))],
            )
        )

    return prepare


def resource_breaks(journal: Journal) -> Runs:
    """A scope of the resource expires while it is held."""

    async def hold(ctx: object) -> AsyncIterator[None]:
        async with asyncio.timeout(1):
            yield

    return Runs(
        build(
            [journal.resource("A")],
            [resource("B", hold)],
            [journal.task("C", execute=sleeps(2))],
        )
    )


def resources_cancelled_at(when: float) -> Callable[[Journal], Runs]:
    def prepare(journal: Journal) -> Runs:
        journal.at(when, journal.cancel)
        return with_resources(sleeps(1))(journal)

    return prepare


def observed(prepare: Callable[[Journal], Runs]) -> Callable[[Journal], Runs]:
    """Let an observer hear of what another scenario does."""
    return lambda journal: replace(prepare(journal), observer=journal.observer())


def phase_by_phase(journal: Journal) -> Caller:
    processor = build([journal.task("A"), journal.task("B", pre_execute=at_once)])

    async def call() -> None:
        async with processor.open(None) as run:
            while await run.run_next():
                pass

    return call


def left_early(phases: int, error: Exception | None) -> Callable[[Journal], Caller]:
    def prepare(journal: Journal) -> Caller:
        processor = build([journal.task("A"), journal.task("B", pre_execute=at_once)])

        async def call() -> None:
            async with processor.open(None) as run:
                for _ in range(phases):
                    await run.run_next()
                if error is not None:
                    raise error

        return call

    return prepare


def opened_and_failed(journal: Journal) -> Caller:
    fails = journal.fails(ValueError("A"), a_pass)
    processor = build([journal.task("A", execute=fails), journal.task("B", execute=waits)])

    async def call() -> None:
        async with processor.open(None, observer=journal.observer()) as run:
            while await run.run_next():
                run.raise_failures()

    return call


def closed_by_another(journal: Journal) -> Caller:
    processor = build([journal.task("A", execute=waits), journal.task("B")])

    async def call() -> None:
        run = processor.open(None)
        other = None
        try:
            await run.run_next()
            other = asyncio.create_task(error_of(run.run_next()), name="the test's own")
            await asyncio.sleep(1)
        finally:
            try:
                await run.aclose()
            finally:
                journal.told.append(other and await other)

    return call


def cancelled_at(when: float, *, fails: bool = False) -> Callable[[Journal], Runs]:
    def prepare(journal: Journal) -> Runs:
        answer = journal.answers(ValueError("B")) if fails else waits
        journal.at(when, journal.cancel)
        journal.at(when + 0.25, journal.cancel)
        return Runs(
            build(
                [journal.task("A", pre_execute=sleeps(1), post_execute=sleeps(1))],
                [journal.task("B", execute=answer), journal.task("C", execute=sleeps(2))],
            )
        )

    return prepare


def loop_ends(journal: Journal) -> Runs:
    def stop() -> None:
        # A cleanup that began before is not sheltered from the end of the loop.
        if all(event.phase != POST for event in journal.events):
            journal.cancel()
            journal.at(1, journal.end_loop)

    journal.at(0.5, stop)
    limits = {"timeout": 5.0, **RETRIES}
    return Runs(
        build(
            [
                journal.task("A", execute=waits, post_execute=sleeps(2)),
                journal.task("B", post_execute=(sleeps(2), limits)),
            ]
        )
    )


def in_other_hands(method: str, *arguments: Any) -> Callable[[Journal], Runs]:
    def prepare(journal: Journal) -> Runs:
        journal.at(0.5, lambda: journal.disturb(method, *arguments))
        return Runs(build([journal.task("A", execute=waits), journal.task("B", execute=waits)]))

    return prepare


def within_a_timeout(journal: Journal) -> Caller:
    processor = build([journal.task("A", execute=waits), journal.task("B")])

    async def call() -> None:
        async with asyncio.timeout(1):
            await processor.process_tasks(None)

    return call


def with_a_group(journal: Journal) -> Runs:
    async def fan_out(ctx: Any, group: SdaxTaskGroup) -> None:
        for _ in range(2):
            group.create_task(asyncio.sleep(1))

    grouped = TaskFunction(fan_out, has_task_group_argument=True, timeout=5.0)
    return Runs(build([journal.task("A"), task("B", execute=grouped)]))


def nested(fails: bool) -> Callable[[Journal], Runs]:
    def prepare(journal: Journal) -> Runs:
        act = journal.fails(ValueError("inner"), a_pass) if fails else a_pass
        inner = build([journal.task("inner A", execute=act), journal.task("inner B")])

        async def run_inner() -> None:
            await inner.process_tasks(None)

        return Runs(build([journal.task("A", execute=run_inner), journal.task("B")]))

    return prepare


def caller_is_closed(journal: Journal) -> Caller:
    processor = build([journal.task("A", execute=waits), journal.task("B", post_execute=sleeps(1))])

    async def call() -> None:
        coroutine = processor.process_tasks(None)
        stepping = coroutine.__await__()
        future = next(stepping)
        future._asyncio_future_blocking = False
        for _ in range(5):
            await asyncio.sleep(0)
        coroutine.close()

    return call


def plain_factory(loop: Any, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
    return asyncio.Task(coroutine, loop=loop, **options)


def wrapping_factory(loop: Any, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
    async def wrap() -> Any:
        return await coroutine

    return asyncio.Task(wrap(), loop=loop, **options)


def eager_factory(loop: Any, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
    return asyncio.Task(
        coroutine,
        loop=loop,
        eager_start=True,  # type: ignore[call-arg]
        **options,
    )


def counting_factory(loop: Any, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
    return CountedTask(coroutine, loop=loop, **options)


def _with_factories() -> Iterable[Scenario]:
    factories: list[tuple[str, Factory]] = [
        ("a plain task factory", plain_factory),
        ("a wrapping task factory", wrapping_factory),
        ("a factory of a class of its own", counting_factory),
    ]
    if sys.version_info >= (3, 12):
        factories.append(("asyncio's eager factory", asyncio.eager_task_factory))
        factories.append(("an eager factory", eager_factory))
    prepared = {
        "success": success,
        "a failure": fails_in(EXECUTE, a_pass),
        "a failure before siblings begin": fails_in(PRE, None),
        "a cancellation": cancelled_at(1.5),
        "resources": with_resources(),
    }
    for factory_name, factory in factories:
        for name, prepare in prepared.items():
            yield Scenario(f"{factory_name}, {name}", prepare, factory)
    yield Scenario("a factory of a class of its own, times out", times_out, counting_factory)
    yield Scenario("a factory of a class of its own, retries", retries, counting_factory)


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("success", success),
        Scenario("plain functions and awaitables", plain_functions),
        Scenario("a function that returns no awaitable", no_awaitable),
        *(
            Scenario(f"a failure in {phase}, {when}", fails_in(phase, first))
            for phase in PHASES
            for when, first in (("at once", None), ("suspended", a_pass))
        ),
        Scenario("failures while others are cancelled", two_failures),
        Scenario("two that are no Exception", fatal),
        Scenario("a function that cancels itself", cancels_self),
        Scenario("a timeout", times_out),
        Scenario("a timeout of 0", times_out_at_once),
        Scenario("a cleanup that times out, again and again", cleanup_times_out),
        Scenario("retries", retries),
        Scenario("a retry at once", retries_at_once),
        Scenario("retries that run out", retries_run_out),
        Scenario("a predicate", asks_a_predicate),
        Scenario("a pause that is cancelled", pause_is_cancelled),
        Scenario("a fallback", falls_back),
        Scenario("a limiter", has_limiter),
        Scenario("a limiter of the context", has_limiter_of_the_context),
        Scenario("a limiter that lets nobody in", has_limiter_that_lets_nobody_in),
        Scenario("all attempts take too long", runs_out_of_time),
        Scenario("few places", few_places),
        Scenario("few places and a failure", few_places_and_a_failure),
        Scenario("a graph", in_graph("at once")),
        Scenario("a graph in order", in_graph("dependency")),
        Scenario("a graph that fails in pre_execute", in_graph("at once", PRE)),
        Scenario("a graph that fails in execute", in_graph("dependency", EXECUTE)),
        Scenario("a graph that fails in post_execute", in_graph("at once", POST)),
        *(
            Scenario(f"{what} in {phase}, {when}", make(phase, first))
            for what, make in (("not required", spared), ("keep going", keeps_going))
            for phase in (PRE, EXECUTE)
            for when, first in (("at once", None), ("suspended", a_pass))
        ),
        *(
            Scenario(f"Finish in {phase}, {when}", finishes(phase, first))
            for phase in (PRE, EXECUTE)
            for when, first in (("at once", at_once), ("suspended", a_pass))
        ),
        Scenario("not required, in levels", spared_in_levels),
        Scenario("keep going, in levels", keeps_going_in_levels),
        Scenario("observed, not required", observed(spared(PRE, None))),
        Scenario("observed, keep going", observed(keeps_going(PRE, a_pass))),
        Scenario("observed, Finish", observed(finishes(EXECUTE, a_pass))),
        Scenario("observed, success", observed(success)),
        Scenario("observed, a failure", observed(fails_in(PRE, a_pass))),
        Scenario("observed, failures while others are cancelled", observed(two_failures)),
        Scenario("observed, two that are no Exception", observed(fatal)),
        Scenario("observed, a timeout", observed(times_out)),
        Scenario("observed, retries", observed(retries)),
        Scenario("observed, a pause that is cancelled", observed(pause_is_cancelled)),
        Scenario("observed, a fallback", observed(falls_back)),
        Scenario("observed, all attempts take too long", observed(runs_out_of_time)),
        Scenario("observed, a cancellation", observed(cancelled_at(1.5, fails=True))),
        Scenario("resources", with_resources()),
        Scenario("resources, a failure", with_resources(execute=ValueError("C"))),
        Scenario("resources, a cleanup that fails", with_resources(clean_up=OSError("B"))),
        Scenario("resources, Ctrl-C in a cleanup", with_resources(clean_up=KeyboardInterrupt("B"))),
        Scenario("resources, one that breaks while it is held", resource_breaks),
        Scenario("resources, a cancellation of a set-up", resources_cancelled_at(0.5)),
        Scenario("resources, a cancellation", resources_cancelled_at(1.5)),
        Scenario("observed, resources", observed(with_resources())),
        Scenario("phase by phase", phase_by_phase),
        Scenario("phase by phase, left after one", left_early(1, None)),
        Scenario("phase by phase, left after two", left_early(2, None)),
        Scenario("phase by phase, a block that raises", left_early(1, LookupError("block"))),
        Scenario("phase by phase, a failure", opened_and_failed),
        Scenario("phase by phase, closed by another", closed_by_another),
        Scenario("a cancellation in pre_execute", cancelled_at(0.5)),
        Scenario("a cancellation in execute", cancelled_at(1.5)),
        Scenario("a cancellation, and a failure", cancelled_at(1.5, fails=True)),
        Scenario("a cancellation in post_execute", cancelled_at(3.5)),
        Scenario("a loop that ends", loop_ends),
        Scenario("a coroutine that other code closes", in_other_hands("close")),
        Scenario("a coroutine that other code throws into", in_other_hands("throw", OSError)),
        Scenario("within a timeout", within_a_timeout),
        Scenario("a function with a group", with_a_group),
        Scenario("a run inside of a run", nested(fails=False)),
        Scenario("a run inside of a run that fails", nested(fails=True)),
        Scenario("a caller that is closed", caller_is_closed, goes_on=True),
        *_with_factories(),
    )
}
