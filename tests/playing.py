"""Plays workflows under a virtual clock, and writes down everything that can be seen of it."""

from __future__ import annotations

import asyncio
import gc
import inspect
import logging
import sys
from asyncio import CancelledError
from collections import Counter
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
    Hashable,
    Iterator,
    Mapping,
)
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import count
from types import ModuleType
from typing import Any, NamedTuple, NoReturn, TypeAlias
from unittest import mock
from weakref import WeakSet

import anyio

import sdax.processor
from exceptions import RefusedError, StubbornError, make_exception
from helpers import COUNTS_REFERENCES
from reference import Reference
from sdax import (
    AsyncDagTaskProcessor,
    AsyncTask,
    AsyncTaskProcessor,
    Finish,
    RetryBudget,
    SdaxExecutionError,
    TaskFunction,
    TaskReport,
    join,
    resource,
)
from sdax.observe import Observer
from sdax.options import OnFailure
from virtual_clock import DeadlockError, PassCountingLoop, SpinningError, SteppingLoop
from workflows import (
    PHASES,
    SHARED,
    Behaviour,
    CancelCaller,
    CancelOther,
    CancelSelf,
    Disturbance,
    Error,
    Factory,
    Instant,
    Meddle,
    Node,
    RaiseAgain,
    Retryable,
    Return,
    Scope,
    Script,
    Set,
    SetVariable,
    Shape,
    Sleep,
    Step,
    Stubborn,
    Wait,
    Watcher,
    Within,
    Workflow,
    Yield,
    YieldAgain,
)

RANDOM_FACTOR = 0.75  # stands for what lies between 0.5 and 1.0
RESCUE = 2000.0  # from then on the player sets the events that no function has set
IDLE = 50  # passes of the loop in which nothing is done, one after another: there is no such run

VARIABLE: ContextVar[object] = ContextVar("VARIABLE", default="nobody's")

Added: TypeAlias = list[tuple[AsyncTask[Any, Any], int]]
Start: TypeAlias = Callable[[Any], Awaitable[Mapping[Hashable, TaskReport]]]


class Place(NamedTuple):
    """A function: the name of its task, and its phase."""

    name: str
    phase: str


class Event(NamedTuple):
    """Something that a function did, or that was done to it."""

    time: float
    place: Place
    attempt: int
    what: str  # "call", "resume", "swallow", "return", "finish", "raise", "cancelled"
    detail: object = None


class Raised(NamedTuple):
    """An exception that left an attempt."""

    place: Place
    attempt: int
    exception: BaseException


@dataclass
class Observation:
    """What was seen of one run."""

    trace: list[Event]
    raised: list[Raised]
    error: BaseException | None  # what process_tasks raised
    outcome: BaseException | None  # the same, as it left a timeout around it
    report: Mapping[Hashable, TaskReport] | None
    handled: list[dict[str, Any]]  # calls of the loop's exception handler
    over_at: float
    cancelling: int
    tasks_left: list[str]
    timers_left: list[str]
    variable: object
    passes: int
    caller_was_cancelled: bool  # by a function
    interrupted: bool  # cancelled from outside, while it waited for the run
    progress: list[int]  # how many events there were before each pass
    heard_by: int | None  # the pass in which the caller hears of a cancellation, in its turn
    broken: set[str] = field(default_factory=set)  # resources, while they were held
    refused: bool = False  # an asyncio.Task, by the factory
    problems: list[str] = field(default_factory=list)
    gave_up: bool = False  # for it does not end

    @property
    def failure(self) -> SdaxExecutionError | None:
        """The error of the run, be it what was raised or its context."""
        error = self.error
        if isinstance(error, SdaxExecutionError):
            return error
        context = error.__context__ if error is not None else None
        return context if isinstance(context, SdaxExecutionError) else None

    @property
    def finished_by(self) -> Hashable | None:
        """Who has ended the run early, as the report says."""
        report = self.report if self.failure is None else self.failure.report
        return getattr(report, "finished_by", None)

    def calls(self) -> list[Event]:
        return [event for event in self.trace if event.what == "call"]

    def last_events(self) -> dict[Place, Event]:
        """The last event of each function."""
        return {event.place: event for event in self.trace}


def observe(workflow: Workflow, prepare: Callable[[Workflow, Added], Start]) -> Observation:
    """Play a workflow with whatever `prepare` makes of its tasks."""
    with closing(PassCountingLoop()) as loop:
        loop.set_debug(workflow.debug)
        return Player(workflow, prepare, loop).play(workflow.disturbance)


@contextmanager
def using(engine: ModuleType) -> Iterator[None]:
    """Have processors run on this engine, with its random factor fixed."""

    def fixed(low: float, high: float) -> float:
        assert (low, high) == (0.5, 1.0)
        return RANDOM_FACTOR

    with (
        mock.patch.object(sdax.processor, "Run", engine.Run),
        mock.patch("sdax.engine.attempts.uniform", fixed),
    ):
        yield


def on_engine(workflow: Workflow, added: Added) -> Start:
    """Let `observe` play on the engine that `sdax.processor` has at the moment."""
    observer = _observer(workflow.watcher)
    on_failure: OnFailure = "keep going" if workflow.keeps_going else "cancel"
    if workflow.is_graph:
        graph_builder = AsyncDagTaskProcessor.builder(
            execute_order="dependency" if workflow.in_order else "at once",
            max_concurrency=workflow.places,
            on_failure=on_failure,
        )
        for (task, _), node in zip(added, workflow.nodes, strict=True):
            graph_builder.add_task(task, node.depends_on)
        return partial(graph_builder.build().process_tasks, observer=observer)
    builder = AsyncTaskProcessor.builder(
        execute_order="level" if workflow.in_order else "at once",
        max_concurrency=workflow.places,
        on_failure=on_failure,
    )
    for task, level in added:
        builder.add_task(task, level)
    return partial(builder.build().process_tasks, observer=observer)


def _observer(watcher: Watcher) -> Observer | None:
    if watcher is Watcher.NONE:
        return None
    heard = count()

    def observe(event: object) -> None:
        if next(heard) % 3 == 0 and watcher is Watcher.RAISING:
            raise ValueError("an observer")

    return observe


def observe_reference(workflow: Workflow) -> tuple[Observation, Mapping[Place, float]]:
    """Play on the reference model; return also when functions failed."""
    models: list[Reference] = []
    observation = observe(workflow, partial(on_reference, models=models))
    return observation, models[0].failed_at  # type: ignore[return-value]


def on_reference(workflow: Workflow, added: Added, models: list[Reference] | None = None) -> Start:
    """Let `observe` play on the reference model; a model is made for each run."""
    graph = None
    if workflow.is_graph:
        graph = {node.name: node.depends_on for node in workflow.nodes}

    def start(ctx: Any) -> Awaitable[Mapping[Hashable, TaskReport]]:
        model = Reference(added, RANDOM_FACTOR, graph, workflow.in_order, workflow.keeps_going)
        if models is not None:
            models.append(model)
        return model.process_tasks(ctx)

    return start


@contextmanager
def silent(name: str) -> Iterator[None]:
    """Have a logger say nothing."""
    logger = logging.getLogger(name)
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = False


class Player:
    """Plays a workflow on a loop: once, or, if that is a `SteppingLoop`, as often as one likes."""

    all_plays = count(1)

    def __init__(
        self,
        workflow: Workflow,
        prepare: Callable[[Workflow, Added], Start],
        loop: PassCountingLoop,
    ) -> None:
        self.workflow = workflow
        self.loop = loop
        self.ctx = object()
        self.plays = 0
        # It pays as it should within one play, and all expires before the next.
        allowed = workflow.budget / 1e9
        self.budget = RetryBudget(0.5, allowed, 1e9, clock=lambda: self.plays * 1e10)
        self.reset(Disturbance())
        self.start = prepare(workflow, [(self.task(node), node.level) for node in workflow.nodes])

    def reset(self, disturbance: Disturbance) -> None:
        self.disturbance = disturbance
        self.trace: list[Event] = []
        self.raised: list[Raised] = []
        self.problems: list[str] = []
        self.handled: list[dict[str, Any]] = []
        self.attempts: Counter[Place] = Counter()
        self.owners: dict[asyncio.Task[Any], Place] = {}
        self.held: dict[str, asyncio.Task[Any]] = {}  # resources
        self.broken: set[str] = set()
        self.events: dict[int, asyncio.Event] = {}
        self.made: WeakSet[asyncio.Task[Any]] = WeakSet()  # by the task factory
        self.caller_was_cancelled = False
        self.waiting = False  # the caller, for the run
        self.interrupted = False
        self.progress: list[int] = []
        self.heard_by: int | None = None
        self.gave_up = False
        self.refused = False
        self.semaphore = asyncio.Semaphore(1)
        self.shared_error = make_exception(Error.SHARED, "")
        self.unchecked: list[tuple[Place, asyncio.Task[Any]]] = []  # have begun to suspend

    def play(self, disturbance: Disturbance) -> Observation:
        """Play the workflow with this disturbance in place of its own."""
        self.plays += 1
        if not COUNTS_REFERENCES and next(Player.all_plays) % 100 == 0:
            gc.collect()  # all_tasks() goes through those that are left over as well
        self.reset(disturbance)
        if isinstance(self.loop, SteppingLoop):
            self.loop.rewind()
        try:
            with silent("sdax"), silent("asyncio"):  # of observers and handlers that raise
                return self.loop.run_until_complete(self.observe())
        except DeadlockError:
            return self.give_up("it hangs: nothing is ready, and no timer is set")
        except SpinningError:
            return self.give_up(f"it spins: {IDLE} passes of the loop in which nothing was done")

    def give_up(self, problem: str) -> Observation:
        """Return what there is to be seen of a run that does not end."""
        for task in asyncio.all_tasks(self.loop):
            task._log_destroy_pending = False  # type: ignore[attr-defined]
        observation = Observation(
            trace=self.trace,
            raised=self.raised,
            error=None,
            outcome=None,
            report=None,
            handled=self.handled,
            over_at=self.loop.time(),
            cancelling=0,
            tasks_left=[],
            timers_left=[],
            variable=None,
            passes=self.loop.next_pass,
            caller_was_cancelled=self.caller_was_cancelled,
            interrupted=self.interrupted,
            progress=self.progress,
            heard_by=self.heard_by,
            broken=self.broken,
            refused=self.refused,
            problems=[*self.problems, problem],
            gave_up=True,
        )
        # What is left of it shall complain now, while nobody listens.
        self.gave_up = True
        self.owners.clear()
        self.held.clear()
        self.unchecked.clear()
        del self.caller, self.observer, task
        self.loop.forget()
        with mock.patch.object(sys, "unraisablehook", lambda _: None):
            gc.collect()
        return observation

    def handle(self, _: object, context: dict[str, Any]) -> None:
        self.handled.append(context)
        if self.workflow.watcher is Watcher.RAISING:
            raise ValueError("a handler")

    async def observe(self) -> Observation:
        loop = self.loop
        loop.set_exception_handler(self.handle)
        seen: dict[str, Any] = {"error": None, "report": None}

        async def call() -> None:
            VARIABLE.set("the caller's")
            self.waiting = True
            try:
                seen["report"] = await self.start(self.ctx)
            except BaseException as error:
                seen["error"] = error
                raise
            finally:
                if not self.gave_up:
                    look_around()

        def look_around() -> None:
            self.waiting = False
            others = asyncio.all_tasks() - {asyncio.current_task(), self.observer}
            seen["tasks_left"] = sorted(task.get_name() for task in others)
            seen["over_at"] = loop.time()
            seen["variable"] = VARIABLE.get()
            seen["passes"] = loop.next_pass
            loop.before_pass = None

        async def call_within_limits() -> None:
            try:
                async with asyncio.timeout(self.disturbance.timeout):
                    with self.scope():
                        await call()
            except BaseException as error:
                # Here, and not in who awaits this: asyncio lets some through the event loop.
                seen["outcome"] = error

        self.observer = asyncio.current_task()
        caller = self.caller = loop.create_task(call_within_limits())
        self.set_factory()
        timers = self.disturb(caller)
        await asyncio.wait([caller])
        loop.set_task_factory(None)
        for timer in timers:
            timer.cancel()
        seen.setdefault("outcome", None)
        seen["cancelling"] = caller.cancelling()
        seen["timers_left"] = [
            repr(timer)
            for timer in loop._scheduled  # type: ignore[attr-defined]
            if not timer.cancelled()
        ]
        if "over_at" not in seen:  # cancelled before its first step
            seen |= {"tasks_left": [], "over_at": 0.0, "variable": None, "passes": 0}
        # Whatever complains when it is dropped shall do so now.
        self.owners.clear()
        self.held.clear()
        self.unchecked.clear()
        del caller, self.caller, self.observer
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        observation = Observation(
            trace=self.trace,
            raised=self.raised,
            handled=self.handled,
            problems=self.problems,
            caller_was_cancelled=self.caller_was_cancelled,
            interrupted=self.interrupted,
            progress=self.progress,
            heard_by=self.heard_by,
            broken=self.broken,
            refused=self.refused,
            **seen,
        )
        # What was raised leads here by its traceback, and shall not find itself here.
        self.raised = []
        seen.clear()
        return observation

    def scope(self) -> AbstractContextManager[object]:
        """Return what is around the call besides a timeout."""
        seconds = self.disturbance.move_on
        return nullcontext() if seconds is None else anyio.move_on_after(seconds)

    def set_factory(self) -> None:
        def make(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> Any:
            task = asyncio.Task(coroutine, loop=loop, **options)
            self.made.add(task)
            return task

        makes = count(1)

        def refuse(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> Any:
            run = getattr(coroutine, "run", None)  # of a driver. Functions make tasks and runs, too
            if run is not None and run.ctx is self.ctx and next(makes) == 3:
                self.refused = True
                raise RefusedError
            return make(loop, coroutine, **options)

        def wrap(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> Any:
            async def await_it() -> Any:
                return await coroutine

            # A coroutine would complain, if its asyncio.Task is cancelled before it begins.
            is_plain = inspect.iscoroutine(coroutine)
            return make(loop, coroutine if is_plain else await_it(), **options)

        if self.workflow.factory is Factory.WRAPPING:
            self.loop.set_task_factory(wrap)
        elif self.workflow.factory is Factory.REFUSING:
            self.loop.set_task_factory(refuse)
        elif self.workflow.factory is Factory.PLAIN:
            self.loop.set_task_factory(make)
        elif self.workflow.factory is Factory.EAGER:
            self.loop.set_task_factory(getattr(asyncio, "eager_task_factory", None))

    def disturb(self, caller: asyncio.Task[None]) -> list[asyncio.TimerHandle]:
        disturbance = self.disturbance

        def cancel() -> None:
            self.interrupted = self.interrupted or self.waiting
            queued = self.loop.queued
            caller.cancel()
            if disturbance.heard_at_once and self.loop.queued > queued:
                self.loop.put_last_first()

        idle, before = 0, (0, 0.0)

        def before_pass(number: int) -> None:
            nonlocal idle, before
            now = (len(self.trace), self.loop.time())
            idle, before = idle + 1 if now == before else 0, now
            if idle > IDLE:
                raise SpinningError
            self.progress.append(len(self.trace))
            if self.unchecked:
                self.check_suspended()
            for wanted in disturbance.cancel_at_pass:
                if wanted == number:
                    if self.heard_by is None:
                        self.heard_by = number + self.loop.queued
                    cancel()

        self.loop.before_pass = before_pass
        timers = [self.loop.call_at(when, cancel) for when in disturbance.cancel_at]
        for number in range(2):
            event = self.events[number] = asyncio.Event()
            timers.append(self.loop.call_at(RESCUE + 100 * number, event.set))
        return timers

    def task(self, node: Node) -> AsyncTask[Any, Any]:
        if node.is_resource:
            return self.resource(node)
        functions = {
            phase: self.task_function(Place(node.name, phase), behaviour)
            for phase in PHASES
            if (behaviour := getattr(node, phase)) is not None
        }
        if not functions:
            return join(node.name)
        return AsyncTask(node.name, **functions, required=node.required)

    def resource(self, node: Node) -> AsyncTask[Any, Any]:
        assert node.pre_execute is not None
        assert node.post_execute is not None
        execute = None
        if node.execute is not None:
            execute = self.task_function(Place(node.name, "execute"), node.execute)
        return resource(
            node.name,
            self.holding(node),
            execute=execute,
            cleanup_timeout=node.post_execute.timeout,
            required=node.required,
            **self.limits(Place(node.name, "pre_execute"), node.pre_execute),
        )

    def task_function(self, place: Place, behaviour: Behaviour) -> TaskFunction[Any]:
        return TaskFunction(
            self.function(place, behaviour),
            has_task_group_argument=behaviour.shape is Shape.GROUP,
            **self.limits(place, behaviour),
        )

    def limits(self, place: Place, behaviour: Behaviour) -> dict[str, Any]:
        options: dict[str, Any] = {
            "timeout": behaviour.timeout,
            "retries": behaviour.retries,
            "initial_delay": behaviour.initial_delay,
            "backoff_factor": behaviour.backoff_factor,
            "max_delay": behaviour.max_delay,
            "total_timeout": behaviour.total_timeout,
        }
        if behaviour.retryable is Retryable.EVERYTHING:
            options["retryable_exceptions"] = Exception
        elif behaviour.retryable is Retryable.PREDICATE:
            options["retryable_exceptions"] = _is_connection_error
        if behaviour.asks:
            options["retry_after"] = partial(self.asked, place, behaviour)
        if behaviour.limiter is not None:
            options["limiter"] = partial(self.limiter, behaviour)
        if behaviour.fallback is not None:
            options["fallback"] = self.fallback(place, behaviour)
        if behaviour.covers is not None:
            options["fallback_exceptions"] = {
                Retryable.DEFAULT: OSError,
                Retryable.EVERYTHING: Exception,
                Retryable.PREDICATE: _is_connection_error,
            }[behaviour.covers]
        if behaviour.budgeted:
            options["retry_budget"] = self.budget
        return options

    def asked(self, place: Place, behaviour: Behaviour, error: Exception) -> float | None:
        return behaviour.asks[min(self.attempts[place], len(behaviour.asks)) - 1]

    def limiter(self, behaviour: Behaviour, ctx: object) -> Any:
        seconds = behaviour.limiter
        assert seconds is not None
        return self.semaphore if seconds == SHARED else _Door(seconds)

    def holding(self, node: Node) -> Callable[[Any], AsyncIterator[object]]:
        set_up, clean_up = (Place(node.name, phase) for phase in (PHASES[0], PHASES[2]))
        assert node.pre_execute is not None
        assert node.post_execute is not None
        begin = self.function(set_up, node.pre_execute)
        script = node.post_execute.script(1)

        async def function(ctx: object) -> AsyncIterator[object]:
            value = await begin(ctx)
            task: Any = asyncio.current_task()
            thrown: BaseException | None = None
            self.held[node.name] = task
            if task._must_cancel:
                self.broken.add(node.name)
            try:
                try:
                    yield value
                except GeneratorExit:
                    raise  # the player has given up
                except BaseException as error:
                    thrown = error
                del self.held[node.name]
                if asyncio.current_task() is not task:
                    self.problems.append(f"{clean_up} was moved to another asyncio.Task")
                if self.owners.get(task) == set_up:
                    self.owners[task] = clean_up
                self.attempts[clean_up] += 1
                attempt = self.attempts[clean_up]
                heard = (VARIABLE.get(), task.cancelling(), _heard(thrown))
                self.note(clean_up, attempt, "call", heard)
                left = await self.play_script(clean_up, attempt, script, own_task=True)
                if isinstance(left, RaiseAgain) and thrown is not None:
                    raise thrown
                if isinstance(left, YieldAgain):
                    yield value
            finally:
                del thrown, task  # whose traceback leads here

        return function

    def fallback(self, place: Place, behaviour: Behaviour) -> Callable[..., Any]:
        script = behaviour.fallback
        assert script is not None

        def begin(ctx: object, error: object) -> int:
            self.attempts[place] += 1
            task = asyncio.current_task()
            assert task is not None
            if ctx is not self.ctx or not isinstance(error, Exception):
                self.problems.append(f"the fallback of {place} was called with {ctx!r}, {error!r}")
            attempt = self.attempts[place]
            self.note(place, attempt, "call", (VARIABLE.get(), task.cancelling()))
            return attempt

        async def play(ctx: object, error: object) -> object:
            attempt = begin(ctx, error)
            return await self.play_script(place, attempt, script, own_task=True)

        def play_at_once(ctx: object, error: object) -> object:
            attempt = begin(ctx, error)
            for step in script.steps:
                self.take_instantly(place, step)
            return self.end(place, attempt, script)

        return play_at_once if behaviour.plain_fallback else play

    def function(self, place: Place, behaviour: Behaviour) -> Callable[..., Any]:
        def begin(ctx: object) -> tuple[int, Script]:
            self.attempts[place] += 1
            attempt = self.attempts[place]
            task = asyncio.current_task()
            assert task is not None
            if ctx is not self.ctx:
                self.problems.append(f"{place} was called with {ctx!r}")
            if self.workflow.factory is Factory.PLAIN and task not in self.made:
                self.problems.append(f"{place} runs in {task}, which the factory did not make")
            self.note(place, attempt, "call", (VARIABLE.get(), task.cancelling()))
            return attempt, behaviour.script(attempt)

        async def play(ctx: object) -> object:
            attempt, script = begin(ctx)
            return await self.play_script(place, attempt, script, own_task=True)

        def make_awaitable(ctx: object) -> _Awaitable:
            return _Awaitable(play(ctx))

        async def play_in_child(ctx: object, group: asyncio.TaskGroup) -> None:
            attempt, script = begin(ctx)
            group.create_task(self.play_script(place, attempt, script, own_task=False))

        def make_task(ctx: object) -> asyncio.Task[object]:
            attempt, script = begin(ctx)
            return self.loop.create_task(self.play_script(place, attempt, script, own_task=False))

        def play_at_once(ctx: object) -> object:
            attempt, script = begin(ctx)
            for step in script.steps:
                self.take_instantly(place, step)
            return self.end(place, attempt, script)

        functions: dict[Shape, Callable[..., Any]] = {
            Shape.ASYNC_DEF: play,
            Shape.AWAITABLE: make_awaitable,
            Shape.TASK: make_task,
            Shape.GROUP: play_in_child,
            Shape.PLAIN: play_at_once,
        }
        return functions[behaviour.shape]

    async def play_script(
        self, place: Place, attempt: int, script: Script, *, own_task: bool
    ) -> object:
        # Its id alone: to keep an asyncio.Task, be it in the frame of a traceback, is to be
        # noticed by an engine that would give it to the next function.
        own = id(asyncio.current_task())
        while True:
            try:
                for step in script.steps:
                    if isinstance(step, Instant):
                        self.take_instantly(place, step)
                        continue
                    if own_task and self.will_suspend(step):
                        self.check_owner(place)
                    await self.take(place, attempt, step)
                    if id(asyncio.current_task()) != own:
                        self.problems.append(f"{place} was moved to another asyncio.Task")
                    self.note(place, attempt, "resume")
            except CancelledError as error:
                if script.on_cancel is None:
                    self.note(place, attempt, "cancelled")
                    self.raised.append(Raised(place, attempt, error))
                    raise
                self.note(place, attempt, "swallow")
            else:
                return self.end(place, attempt, script)
            script = script.on_cancel

    def will_suspend(self, step: Step) -> bool:
        return not (isinstance(step, Wait) and self.events[step.event].is_set())

    def check_owner(self, place: Place) -> None:
        """Check, at a suspension, that the function has an `asyncio.Task` of its own."""
        task = asyncio.current_task()
        assert task is not None
        if self.owners.setdefault(task, place) != place:
            self.problems.append(f"{place} shares an asyncio.Task with {self.owners[task]}")
        if self.plays == 1:  # for it takes long, and has nothing to do with the disturbance
            self.unchecked.append((place, task))

    def check_suspended(self) -> None:
        everything = asyncio.all_tasks(self.loop)
        for place, task in self.unchecked:
            if task.done() or place.name in self.held or place.name in self.broken:
                continue
            if task.get_name() != f"sdax:{place.name}:{place.phase}":
                self.problems.append(f"{place} is named {task.get_name()}")
            # Before Python 3.14, asyncio forgets a task whose first step breaks over that.
            stubborn = sys.version_info < (3, 14) and any(
                each.place == place and isinstance(each.exception, StubbornError)
                for each in self.raised
            )
            if task not in everything and not stubborn:
                self.problems.append(f"{place} is not in all_tasks()")
        self.unchecked.clear()

    async def wait_stubbornly(self, place: Place, attempt: int, seconds: float) -> None:
        error = StubbornError(f"{place.name}.{place.phase}#{attempt}")

        def refuse() -> NoReturn:
            self.raised.append(Raised(place, attempt, error))
            raise error

        future = _StubbornFuture(refuse, self.loop)
        timer = self.loop.call_later(seconds, future.set_result, None)
        try:
            await future
        finally:
            timer.cancel()

    async def take(self, place: Place, attempt: int, step: Step) -> None:
        match step:
            case Yield(times):
                for _ in range(times):
                    await asyncio.sleep(0)
            case Sleep(seconds):
                await asyncio.sleep(seconds)
            case Wait(event):
                await self.events[event].wait()
            case Within(scope, seconds):
                await _wait_within(scope, seconds)
            case Stubborn(seconds):
                await self.wait_stubbornly(place, attempt, seconds)

    def take_instantly(self, place: Place, step: Step) -> None:
        match step:
            case Set(event):
                self.events[event].set()
            case SetVariable(value):
                VARIABLE.set(value)
            case CancelSelf():
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
            case CancelOther(name):
                wanted = Place(name, place.phase)
                for other, owner in self.owners.items():
                    if owner == wanted:
                        if self.held.get(name) is other:
                            self.broken.add(name)
                        with suppress(StubbornError):
                            other.cancel()
            case CancelCaller():
                self.caller_was_cancelled = True
                self.caller.cancel()
            case Meddle(by_await):
                _meddle(by_await)

    def end(self, place: Place, attempt: int, script: Script) -> object:
        if isinstance(script.ending, Return):
            value = script.ending.value
            self.note(place, attempt, "finish" if script.ending.finish else "return", value)
            return Finish(value) if script.ending.finish else value
        if isinstance(script.ending, (RaiseAgain, YieldAgain)):
            self.note(place, attempt, "return")
            return script.ending
        error = make_exception(script.ending.error, f"{place.name}.{place.phase}#{attempt}")
        if script.ending.error is Error.SHARED:
            error = self.shared_error
        self.note(place, attempt, "raise", script.ending.error)
        self.raised.append(Raised(place, attempt, error))
        raise error

    def note(self, place: Place, attempt: int, what: str, detail: object = None) -> None:
        self.trace.append(Event(self.loop.time(), place, attempt, what, detail))


def _heard(thrown: BaseException | None) -> object:
    """Return what a resource hears at its `yield`, and of how many failures."""
    context = None if thrown is None else thrown.__context__
    failed = thrown if isinstance(thrown, SdaxExecutionError) else context
    number = len(failed.failures) if isinstance(failed, SdaxExecutionError) else 0
    return None if thrown is None else (type(thrown), number)


async def _wait_within(scope: Scope, seconds: float) -> None:
    match scope:
        case Scope.TIMEOUT:
            async with asyncio.timeout(2 * seconds):
                await asyncio.sleep(seconds)
        case Scope.EXPIRED:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await asyncio.sleep(2 * seconds)
        case Scope.GROUP:
            async with asyncio.TaskGroup() as group:
                group.create_task(asyncio.sleep(seconds))
        case Scope.FAILED_GROUP:
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(_fail_after(seconds))
                    await asyncio.sleep(2 * seconds)
            except* LookupError:
                pass
        case Scope.MOVE_ON:
            with anyio.move_on_after(seconds):
                await anyio.sleep(2 * seconds)
        case Scope.ANYIO_GROUP:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(anyio.sleep, seconds)
        case Scope.RUN:
            await _nested(seconds).process_tasks(None)


async def _fail_after(seconds: float) -> None:
    await asyncio.sleep(seconds)
    raise LookupError


@cache
def _nested(seconds: float) -> AsyncTaskProcessor[Any, Any]:
    async def sleep(ctx: object) -> None:
        await asyncio.sleep(seconds)

    async def nothing(ctx: object) -> None:
        pass

    builder = AsyncTaskProcessor.builder()
    for name in "AB":
        phases = (TaskFunction(nothing), TaskFunction(sleep), TaskFunction(nothing))
        builder.add_task(AsyncTask(name, *phases), 1)
    return builder.build()


def _meddle(by_await: bool) -> None:
    task = asyncio.current_task()
    assert task is not None
    coroutine: Any = task.get_coro()
    with suppress(ValueError):  # already executing
        if by_await:
            next(coroutine.__await__())
        else:
            coroutine.send(None)
        raise AssertionError("a coroutine that runs was stepped")


class _StubbornFuture(asyncio.Future[None]):
    def __init__(self, refuse: Callable[[], NoReturn], loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop=loop)
        self.refuse = refuse

    def cancel(self, msg: Any = None) -> bool:
        self.refuse()


class _Door:
    """A limiter that takes so many seconds to get in."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    async def __aenter__(self) -> None:
        if self.seconds:
            await asyncio.sleep(self.seconds)

    async def __aexit__(self, *_: object) -> None:
        pass


class _Awaitable:
    def __init__(self, awaited: Awaitable[object]) -> None:
        self.awaited = awaited

    def __await__(self) -> Generator[Any, Any, object]:
        return self.awaited.__await__()


def _is_connection_error(exception: Exception) -> bool:
    return isinstance(exception, ConnectionError)
