"""A language for workflows: what a function does in each attempt, and what disturbs the run.

Everything is frozen, compares by value and has a `repr` that is Python, so that a workflow
found by a search can be pasted into a test.

`random_workflow` makes them at random. In a *settled* workflow no race is decided by how often
the event loop passes at one moment: times are unlike each other, and a function that has
suspended sleeps before it fails. So the contract says all there is to say about its outcome.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from enum import Enum
from random import Random
from typing import Protocol, TypeAlias, TypeVar

T = TypeVar("T")

PHASES = ("pre_execute", "execute", "post_execute")


class _Brief:
    """Shows itself as Python, without what is as usual."""

    __slots__ = ()

    def __repr__(self) -> str:
        shown = []
        by_name = False
        for each in fields(self):  # type: ignore[arg-type]
            value = getattr(self, each.name)
            if value == each.default:
                by_name = True
            else:
                text = str(value) if isinstance(value, Enum) else repr(value)
                shown.append(f"{each.name}={text}" if by_name else text)
        return f"{type(self).__name__}({', '.join(shown)})"


@dataclass(frozen=True, slots=True, repr=False)
class Yield(_Brief):
    """Suspend for so many passes of the loop, by `asyncio.sleep(0)`."""

    times: int = 1


@dataclass(frozen=True, slots=True, repr=False)
class Sleep(_Brief):
    """Suspend for so many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True, repr=False)
class Wait(_Brief):
    """Wait for an event that another function sets, or at last the player."""

    event: int


@dataclass(frozen=True, slots=True, repr=False)
class Set(_Brief):
    """Set an event."""

    event: int


@dataclass(frozen=True, slots=True, repr=False)
class SetVariable(_Brief):
    """Give the context variable a value."""

    value: int


@dataclass(frozen=True, slots=True, repr=False)
class CancelSelf(_Brief):
    """Cancel the `asyncio.Task` that the function runs in; felt at the next suspension."""


@dataclass(frozen=True, slots=True, repr=False)
class CancelOther(_Brief):
    """Cancel the `asyncio.Task` of another task's function in the same phase, if it has one."""

    name: str


@dataclass(frozen=True, slots=True, repr=False)
class CancelCaller(_Brief):
    """Cancel the `asyncio.Task` that awaits the run."""


Instant: TypeAlias = Set | SetVariable | CancelSelf | CancelOther | CancelCaller
Step: TypeAlias = Yield | Sleep | Wait | Instant


@dataclass(frozen=True, slots=True, repr=False)
class Return(_Brief):
    """Return a value."""

    value: int | None = None


class Error(Enum):
    """What a function can raise."""

    VALUE = "ValueError"
    CONNECTION = "ConnectionError"
    RETRYABLE = "RetryableException"
    TIMEOUT = "TimeoutError"
    RETRYABLE_GROUP = "a group of ConnectionError and a group of RetryableException"
    MIXED_GROUP = "a group of ConnectionError and ValueError"
    STOP_ITERATION = "StopIteration"
    CANCELLED = "CancelledError"
    KEYBOARD_INTERRUPT = "KeyboardInterrupt"
    SYSTEM_EXIT = "SystemExit"
    GENERATOR_EXIT = "GeneratorExit"
    FATAL = "a class of its own, derived from BaseException"
    FATAL_GROUP = "a group of such a one and ConnectionError"


@dataclass(frozen=True, slots=True, repr=False)
class Raise(_Brief):
    """Raise an exception, a new one each time."""

    error: Error


Ending: TypeAlias = Return | Raise


@dataclass(frozen=True, slots=True, repr=False)
class Script(_Brief):
    """One attempt: steps, then an ending; and instead of the rest, what a cancellation starts.

    Without `on_cancel` a cancellation goes through. With it, it is swallowed: the function may
    return, raise something else, or go on awaiting (until cancelled again, and so on).
    """

    steps: tuple[Step, ...] = ()
    ending: Ending = Return()
    on_cancel: Script | None = None


class Shape(Enum):
    """What the function is."""

    ASYNC_DEF = "an async def"
    AWAITABLE = "a function that returns an object with __await__"
    TASK = "a function that returns an asyncio.Task, which plays the script"
    GROUP = "an async def that plays its script in a child of the group that it is given"
    PLAIN = "a function that does everything in the call, and returns no awaitable"


class Retryable(Enum):
    """What a function's failures must be for another attempt."""

    DEFAULT = "as the library has it"
    EVERYTHING = "any Exception"
    PREDICATE = "what a predicate says, which knows ConnectionError"


@dataclass(frozen=True, slots=True, repr=False)
class Behaviour(_Brief):
    """A function: a script per attempt (the last one for all further ones), and its limits."""

    scripts: tuple[Script, ...] = (Script(),)
    shape: Shape = Shape.ASYNC_DEF
    timeout: float | None = None
    retries: int = 0
    initial_delay: float = 1.0
    backoff_factor: float = 2.0
    max_delay: float | None = None
    retryable: Retryable = Retryable.DEFAULT

    def script(self, attempt: int) -> Script:
        """Return what attempt number `attempt`, from 1, does."""
        return self.scripts[min(attempt, len(self.scripts)) - 1]


@dataclass(frozen=True, slots=True, repr=False)
class Node(_Brief):
    """A task and its level, or, in a graph, what it depends on."""

    name: str
    level: int
    pre_execute: Behaviour | None = None
    execute: Behaviour | None = None
    post_execute: Behaviour | None = None
    depends_on: tuple[str, ...] = ()


class Arrangement(Enum):
    """What orders the tasks."""

    LEVELS = "levels"
    GRAPH = "what they depend on"
    GRAPH_IN_ORDER = "the same, in execute as well"


@dataclass(frozen=True, slots=True, repr=False)
class Disturbance(_Brief):
    """What comes from outside: cancellations of the caller, `asyncio.timeout` around the run."""

    cancel_at: tuple[float, ...] = ()
    cancel_at_pass: tuple[int, ...] = ()  # of the loop, the first of the run being 0
    timeout: float | None = None
    heard_at_once: bool = False  # the caller's turn comes before that of all who are ready


class Factory(Enum):
    """The event loop's task factory."""

    NONE = "none"
    PLAIN = "one that makes an asyncio.Task"
    EAGER = "asyncio's eager one, where there is one"


@dataclass(frozen=True, slots=True, repr=False)
class Workflow(_Brief):
    """Tasks, in the order in which they are added, and what surrounds the run."""

    nodes: tuple[Node, ...]
    disturbance: Disturbance = Disturbance()
    factory: Factory = Factory.NONE
    debug: bool = False  # asyncio's debug mode
    arrangement: Arrangement = Arrangement.LEVELS
    places: int | None = None  # the most functions that may be suspended at a time

    @property
    def is_graph(self) -> bool:
        return self.arrangement is not Arrangement.LEVELS

    def ancestors(self) -> dict[str, set[str]]:
        """Return all that each task of a graph depends on, directly or not."""
        direct = {node.name: node.depends_on for node in self.nodes}
        found: dict[str, set[str]] = {}
        for name, names in direct.items():
            found[name] = set()
            left = [*names]
            while left:
                other = left.pop()
                if other not in found[name]:
                    found[name].add(other)
                    left += direct[other]
        return found


class Chooser(Protocol):
    """Where choices come from: a `random.Random` is one."""

    def randint(self, a: int, b: int, /) -> int: ...

    def choice(self, seq: Sequence[T], /) -> T: ...


def random_workflow(choose: Chooser, *, settled: bool) -> Workflow:
    """Make a workflow out of choices."""
    return _Author(choose, settled).workflow()


class _Author:
    def __init__(self, choose: Chooser, settled: bool) -> None:
        self.choose = choose
        self.settled = settled
        self.times = 0
        # A timeout of 0 races with all that happens before the first sleep, so that there is
        # nothing of that kind in a settled workflow that has one.
        self.zero_timeouts = self.one_in(6)
        arrangements = (Arrangement.LEVELS, *Arrangement)
        self.arrangement = self.choose.choice(arrangements)
        self.passes = not (settled and self.zero_timeouts)
        if settled and self.arrangement is not Arrangement.LEVELS:
            # What ends calls what waits for it at once, so that whatever is decided by passes,
            # wherever it happens, is a race with what is called at the same moment.
            self.passes = self.zero_timeouts = False
        # The one attempt in so many that fails.
        self.temper = self.choose.choice((2, 4, 12))
        self.names: tuple[str, ...] = ()

    def one_in(self, number: int) -> bool:
        return self.choose.randint(1, number) == number

    def seconds(self) -> float:
        """A time that no other time, nor a sum of others, is likely to equal.

        It has few enough bits for sums of some dozens of them to be exact.
        """
        whole = self.choose.choice((1, 1, 2, 3, 4, 6))
        if not self.settled:
            return float(whole)
        self.times += 1
        return whole + Random(self.times).getrandbits(29) / 2**30

    def workflow(self) -> Workflow:
        if self.arrangement is Arrangement.LEVELS:
            levels = (0,) if self.one_in(4) else (-3, 0, 7)
            self.names = tuple(f"T{number}" for number in range(self.choose.randint(1, 5)))
            nodes = tuple(self.node(name, self.choose.choice(levels)) for name in self.names)
        else:
            nodes = self.graph()
        factory = self.choose.choice((Factory.NONE, *Factory)) if self.one_in(3) else Factory.NONE
        disturbance, debug = self.disturbance(), self.one_in(30)
        places = self.choose.randint(1, 3) if not self.settled and self.one_in(4) else None
        return Workflow(nodes, disturbance, factory, debug, self.arrangement, places)

    def graph(self) -> tuple[Node, ...]:
        self.names = tuple(f"T{number}" for number in range(self.choose.randint(1, 7)))
        # Each may depend on whatever comes before it here, added earlier or later.
        order: list[str] = []
        for name in self.names:
            order.insert(self.choose.randint(0, len(order)) if self.one_in(3) else len(order), name)
        density = self.choose.choice((2, 3))
        nodes = []
        for name in self.names:
            earlier = order[: order.index(name)]
            depends_on = tuple(other for other in earlier if self.one_in(density))
            # Some do nothing in most phases, or in all of them.
            node = Node(name, 0) if self.one_in(6) else self.node(name, 0)
            nodes.append(replace(node, depends_on=depends_on))
        return tuple(nodes)

    def node(self, name: str, level: int) -> Node:
        phases = {phase: self.behaviour() for phase in PHASES if not self.one_in(3)}
        if not phases:
            phases["execute"] = self.behaviour()
        return Node(name, level, **phases)

    def disturbance(self) -> Disturbance:
        kind = self.choose.randint(0, 9)
        if kind == 7:
            return Disturbance(timeout=self.seconds())
        if kind == 8:
            return Disturbance(cancel_at=(self.seconds(),))
        if kind == 9 and (self.settled or self.one_in(3)):
            first = self.seconds()
            return Disturbance(cancel_at=(first, first + self.seconds()))
        if kind == 9:
            first = self.choose.randint(0, 20)
            if self.one_in(2):
                return Disturbance(cancel_at_pass=(first,))
            return Disturbance(cancel_at_pass=(first, first + self.choose.randint(0, 5)))
        return Disturbance()

    def behaviour(self) -> Behaviour:
        if self.one_in(3):
            # Most functions of most programs: nothing special.
            steps = self.steps(self.choose.randint(0, 1))
            if self.settled:
                steps = self.settle(steps, Return(), at_once=True)
            return Behaviour((Script(steps),))
        shapes = [Shape.ASYNC_DEF, Shape.AWAITABLE]
        if self.passes:
            shapes += Shape.TASK, Shape.GROUP
        shape = self.choose.choice(shapes) if self.one_in(2) else Shape.ASYNC_DEF
        if self.fails() and self.one_in(4):
            shape = Shape.PLAIN
        retries = self.choose.choice((0, 0, 0, 1, 2))
        behaviour = Behaviour(
            tuple(self.script(shape) for _ in range(self.choose.randint(1, retries + 1))),
            shape,
            timeout=self.timeout(),
            retries=retries,
        )
        if retries:
            behaviour = replace(
                behaviour,
                initial_delay=self.seconds() if self.settled or self.one_in(2) else 0,
                backoff_factor=self.choose.choice((2.0, 1, 0.5)),
                max_delay=self.seconds() if self.one_in(4) else None,
                retryable=self.choose.choice(tuple(Retryable)),
            )
        return behaviour

    def timeout(self) -> float | None:
        if self.zero_timeouts and self.one_in(4):
            return 0
        return self.seconds() if self.one_in(self.temper) else None

    def script(self, shape: Shape) -> Script:
        if shape is Shape.PLAIN:
            instants = tuple(self.instant() for _ in range(self.choose.randint(0, 1)))
            return Script(instants, self.ending(shape))
        ending = self.ending(shape)
        steps = self.steps(self.choose.randint(0, 3))
        if self.settled:
            at_once = shape not in (Shape.GROUP, Shape.TASK)
            steps = self.settle(steps, ending, at_once=at_once)
        return Script(steps, ending, self.on_cancel(shape, depth=1))

    def on_cancel(self, shape: Shape, depth: int) -> Script | None:
        if not self.one_in(3):
            return None
        ending = self.ending(shape)
        steps = self.steps(self.choose.randint(0, 2))
        if self.settled:
            steps = self.settle(steps, ending, at_once=True)
        return Script(steps, ending, self.on_cancel(shape, depth + 1) if depth < 3 else None)

    def steps(self, number: int) -> tuple[Step, ...]:
        return tuple(self.step() for _ in range(number))

    def step(self) -> Step:
        kind = self.choose.randint(0, 7)
        if kind < 3 and self.passes:
            return Yield(self.choose.randint(1, 3))
        if kind == 3 and self.passes:
            return Wait(self.choose.randint(0, 1))
        if kind in (4, 5):
            return self.instant()
        if kind == 6 and self.one_in(2) and self.fails():
            cancels: tuple[Instant, ...] = (
                CancelSelf(),
                CancelOther(self.choose.choice(self.names)),
                CancelCaller(),
            )
            return self.choose.choice(cancels)
        return Sleep(self.seconds())

    def instant(self) -> Instant:
        if self.passes and self.one_in(2):
            return Set(self.choose.randint(0, 1))
        return SetVariable(self.choose.randint(0, 9))

    def fails(self) -> bool:
        return self.one_in(self.temper)

    def ending(self, shape: Shape) -> Ending:
        if not self.fails():
            return Return(self.choose.choice((None, 1, 2)))
        if not self.one_in(3):
            return Raise(self.choose.choice((Error.VALUE, Error.CONNECTION, Error.RETRYABLE)))
        errors = [
            error
            for error in Error
            # asyncio lets some through the event loop when they leave an asyncio.Task of its
            # own; StopIteration means something else where a coroutine raises it.
            if not (
                (shape in (Shape.GROUP, Shape.TASK) and error in _UNFIT_FOR_TASKS)
                or (shape is not Shape.PLAIN and error is Error.STOP_ITERATION)
            )
        ]
        return Raise(self.choose.choice(errors))

    def settle(self, steps: tuple[Step, ...], ending: Ending, *, at_once: bool) -> tuple[Step, ...]:
        """Insert a sleep wherever a failure could come at the same moment as something else.

        `at_once`: it can fail before anything else can happen, if it does so before it
        suspends.
        """
        if CancelSelf() in steps and isinstance(ending, Return) and self.one_in(4):
            instant = (step for step in steps if isinstance(step, (Set, SetVariable)))
            return (*instant, CancelSelf())  # never felt
        settled: list[Step] = []
        alone = at_once  # nothing else can happen before the function's next suspension
        slept = False
        for step in steps:
            if isinstance(step, (CancelSelf, CancelOther, CancelCaller)):
                if not (alone and slept):
                    settled.append(Sleep(self.seconds()))
                settled += [step, Sleep(self.seconds())]
                alone = slept = True
                continue
            settled.append(step)
            if isinstance(step, Sleep):
                alone = slept = True
            elif not isinstance(step, SetVariable):
                alone = False
        if isinstance(ending, Raise) and not alone:
            settled.append(Sleep(self.seconds()))
        elif steps and isinstance(steps[-1], CancelSelf) and self.one_in(2):
            settled.pop()  # never felt
        return tuple(settled)


_UNFIT_FOR_TASKS = (Error.KEYBOARD_INTERRUPT, Error.SYSTEM_EXIT, Error.GENERATOR_EXIT)
