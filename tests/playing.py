"""Plays workflows under a virtual clock, and writes down everything that can be seen of it."""

from __future__ import annotations

import asyncio
import gc
from asyncio import CancelledError
from collections import Counter
from collections.abc import Awaitable, Callable, Generator, Hashable, Iterator, Mapping
from contextlib import closing, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from types import ModuleType
from typing import Any, NamedTuple, TypeAlias
from unittest import mock
from weakref import WeakSet

import sdax.processor
from exceptions import make_exception
from helpers import COUNTS_REFERENCES
from reference import Graph, Reference
from sdax import (
    AsyncDagTaskProcessor,
    AsyncTask,
    AsyncTaskProcessor,
    SdaxExecutionError,
    TaskFunction,
    TaskReport,
    join,
)
from virtual_clock import PassCountingLoop, SteppingLoop
from workflows import (
    PHASES,
    Arrangement,
    Behaviour,
    CancelCaller,
    CancelOther,
    CancelSelf,
    Disturbance,
    Factory,
    Instant,
    Node,
    Retryable,
    Return,
    Script,
    Set,
    SetVariable,
    Shape,
    Sleep,
    Step,
    Wait,
    Workflow,
    Yield,
)

RANDOM_FACTOR = 0.75  # stands for what lies between 0.5 and 1.0
RESCUE = 2000.0  # from then on the player sets the events that no function has set

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
    what: str  # "call", "resume", "swallow", "return", "raise", "cancelled"
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
    problems: list[str] = field(default_factory=list)

    @property
    def failure(self) -> SdaxExecutionError | None:
        """The error of the run, be it what was raised or its context."""
        error = self.error
        if isinstance(error, SdaxExecutionError):
            return error
        context = error.__context__ if error is not None else None
        return context if isinstance(context, SdaxExecutionError) else None

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
    if workflow.is_graph:
        in_order = workflow.arrangement is Arrangement.GRAPH_IN_ORDER
        graph_builder = AsyncDagTaskProcessor.builder(
            execute_order="dependency" if in_order else "at once",
            max_concurrency=workflow.places,
        )
        for (task, _), node in zip(added, workflow.nodes, strict=True):
            graph_builder.add_task(task, node.depends_on)
        return graph_builder.build().process_tasks
    builder = AsyncTaskProcessor.builder(max_concurrency=workflow.places)
    for task, level in added:
        builder.add_task(task, level)
    return builder.build().process_tasks


def observe_reference(workflow: Workflow) -> tuple[Observation, Mapping[Place, float]]:
    """Play on the reference model; return also when functions failed."""
    models: list[Reference] = []
    observation = observe(workflow, partial(on_reference, models=models))
    return observation, models[0].failed_at  # type: ignore[return-value]


def on_reference(workflow: Workflow, added: Added, models: list[Reference] | None = None) -> Start:
    """Let `observe` play on the reference model; a model is made for each run."""
    graph = None
    if workflow.is_graph:
        in_order = workflow.arrangement is Arrangement.GRAPH_IN_ORDER
        graph = Graph({node.name: node.depends_on for node in workflow.nodes}, in_order)

    def start(ctx: Any) -> Awaitable[Mapping[Hashable, TaskReport]]:
        model = Reference(added, RANDOM_FACTOR, graph)
        if models is not None:
            models.append(model)
        return model.process_tasks(ctx)

    return start


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
        self.events: dict[int, asyncio.Event] = {}
        self.made: WeakSet[asyncio.Task[Any]] = WeakSet()  # by the task factory
        self.caller_was_cancelled = False
        self.waiting = False  # the caller, for the run
        self.interrupted = False
        self.progress: list[int] = []
        self.heard_by: int | None = None
        self.unchecked: list[tuple[Place, asyncio.Task[Any]]] = []  # have begun to suspend

    def play(self, disturbance: Disturbance) -> Observation:
        """Play the workflow with this disturbance in place of its own."""
        self.plays += 1
        if not COUNTS_REFERENCES and next(Player.all_plays) % 100 == 0:
            gc.collect()  # all_tasks() goes through those that are left over as well
        self.reset(disturbance)
        if isinstance(self.loop, SteppingLoop):
            self.loop.rewind()
        return self.loop.run_until_complete(self.observe())

    async def observe(self) -> Observation:
        loop = self.loop
        loop.set_exception_handler(lambda _, context: self.handled.append(context))
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
                self.waiting = False
                others = asyncio.all_tasks() - {asyncio.current_task(), self.observer}
                seen["tasks_left"] = sorted(task.get_name() for task in others)
                seen["over_at"] = loop.time()
                seen["variable"] = VARIABLE.get()
                seen["passes"] = loop.passes
                loop.before_pass = None

        async def call_within_limits() -> None:
            try:
                async with asyncio.timeout(self.disturbance.timeout):
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
            **seen,
        )
        # What was raised leads here by its traceback, and shall not find itself here.
        self.raised = []
        seen.clear()
        return observation

    def set_factory(self) -> None:
        def make(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> Any:
            task = asyncio.Task(coroutine, loop=loop, **options)
            self.made.add(task)
            return task

        if self.workflow.factory is Factory.PLAIN:
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

        def before_pass(number: int) -> None:
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
        functions = {
            phase: self.task_function(Place(node.name, phase), behaviour)
            for phase in PHASES
            if (behaviour := getattr(node, phase)) is not None
        }
        return AsyncTask(node.name, **functions) if functions else join(node.name)

    def task_function(self, place: Place, behaviour: Behaviour) -> TaskFunction[Any]:
        options: dict[str, Any] = {}
        if behaviour.retryable is Retryable.EVERYTHING:
            options["retryable_exceptions"] = Exception
        elif behaviour.retryable is Retryable.PREDICATE:
            options["retryable_exceptions"] = _is_connection_error
        return TaskFunction(
            self.function(place, behaviour),
            timeout=behaviour.timeout,
            retries=behaviour.retries,
            initial_delay=behaviour.initial_delay,
            backoff_factor=behaviour.backoff_factor,
            max_delay=behaviour.max_delay,
            has_task_group_argument=behaviour.shape is Shape.GROUP,
            **options,
        )

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
                    await self.take(step)
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
            if task.done():
                continue
            if task.get_name() != f"sdax:{place.name}:{place.phase}":
                self.problems.append(f"{place} is named {task.get_name()}")
            if task not in everything:
                self.problems.append(f"{place} is not in all_tasks()")
        self.unchecked.clear()

    async def take(self, step: Step) -> None:
        match step:
            case Yield(times):
                for _ in range(times):
                    await asyncio.sleep(0)
            case Sleep(seconds):
                await asyncio.sleep(seconds)
            case Wait(event):
                await self.events[event].wait()

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
                        other.cancel()
            case CancelCaller():
                self.caller_was_cancelled = True
                self.caller.cancel()

    def end(self, place: Place, attempt: int, script: Script) -> object:
        if isinstance(script.ending, Return):
            self.note(place, attempt, "return", script.ending.value)
            return script.ending.value
        error = make_exception(script.ending.error, f"{place.name}.{place.phase}#{attempt}")
        self.note(place, attempt, "raise", script.ending.error)
        self.raised.append(Raised(place, attempt, error))
        raise error

    def note(self, place: Place, attempt: int, what: str, detail: object = None) -> None:
        self.trace.append(Event(self.loop.time(), place, attempt, what, detail))


class _Awaitable:
    def __init__(self, awaited: Awaitable[object]) -> None:
        self.awaited = awaited

    def __await__(self) -> Generator[Any, Any, object]:
        return self.awaited.__await__()


def _is_connection_error(exception: Exception) -> bool:
    return isinstance(exception, ConnectionError)
