"""A language for workflows: what a function does in each attempt, and what disturbs the run.

Everything is frozen, compares by value and has a `repr` that is Python, so that a workflow
found by a search can be pasted into a test.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import Enum
from typing import TypeAlias

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


class Scope(Enum):
    """What a function can wait inside of."""

    TIMEOUT = "an asyncio.timeout that does not expire"
    EXPIRED = "an asyncio.timeout that expires"
    GROUP = "an asyncio.TaskGroup"
    FAILED_GROUP = "an asyncio.TaskGroup whose task fails"
    MOVE_ON = "an anyio scope that is over before"
    ANYIO_GROUP = "an anyio task group"
    RUN = "a run of its own"


@dataclass(frozen=True, slots=True, repr=False)
class Within(_Brief):
    """Suspend for so many seconds inside of a scope, and go on after it."""

    scope: Scope
    seconds: float


@dataclass(frozen=True, slots=True, repr=False)
class Stubborn(_Brief):
    """Wait for a future whose `cancel()` raises. It is done after these seconds."""

    seconds: float


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


@dataclass(frozen=True, slots=True, repr=False)
class Meddle(_Brief):
    """Step the coroutine that the function itself runs in, or await it: both are refused."""

    by_await: bool = False


Instant: TypeAlias = Set | SetVariable | CancelSelf | CancelOther | CancelCaller | Meddle
Step: TypeAlias = Yield | Sleep | Wait | Within | Stubborn | Instant


@dataclass(frozen=True, slots=True, repr=False)
class Return(_Brief):
    """Return a value, or a `Finish` of it."""

    value: int | None = None
    finish: bool = False


class Error(Enum):
    """What a function can raise; `exceptions` makes it."""

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
    ASKING = "RetryableException that asks to wait for 2 s"
    # The zoo: what refuses to be handled, and what is more than one thing.
    FROZEN = "one that refuses every change"
    SLOTTED = "one of slots"
    SPEECHLESS = "one whose repr and str raise"
    INCOMPARABLE = "one whose == and hash raise"
    WITHOUT_NOTES = "one that takes no notes"
    ODD_NOTES = "one whose notes are no list"
    SHARED = "the one ConnectionError that all functions of a run raise"
    CYCLIC = "a ValueError in a circle of contexts"
    STOP_ASYNC_ITERATION = "StopAsyncIteration"
    CANCELLED_GROUP = "a group of nothing but CancelledErrors, nested"
    CANCELLED_SUBCLASS = "of a class derived from CancelledError"
    INTERRUPT_SUBCLASS = "of a class derived from KeyboardInterrupt"


ZOO = tuple(Error)[tuple(Error).index(Error.FROZEN) :]


@dataclass(frozen=True, slots=True, repr=False)
class Raise(_Brief):
    """Raise an exception, a new one each time, but for the one that is shared."""

    error: Error


@dataclass(frozen=True, slots=True, repr=False)
class RaiseAgain(_Brief):
    """At the end of a resource: raise what was thrown in at its `yield`, if anything was."""


@dataclass(frozen=True, slots=True, repr=False)
class YieldAgain(_Brief):
    """At the end of a resource: yield a second time, which is a failure."""


Ending: TypeAlias = Return | Raise | RaiseAgain | YieldAgain


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


IN_ANOTHER_TASK = (Shape.TASK, Shape.GROUP)
SHARED = -1.0  # a limiter that one function of the workflow at a time is inside of


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
    total_timeout: float | None = None
    asks: tuple[float | None, ...] = ()  # seconds, after each attempt; the last for all further
    limiter: float | None = None  # seconds that it takes to get in, or SHARED
    fallback: Script | None = None
    plain_fallback: bool = False  # it does everything in the call
    covers: Retryable | None = None  # the failures for which there is a fallback
    budgeted: bool = False  # the workflow's budget has to pay for retries

    def script(self, attempt: int) -> Script:
        """Return what attempt number `attempt`, from 1, does."""
        return self.scripts[min(attempt, len(self.scripts)) - 1]


@dataclass(frozen=True, slots=True, repr=False)
class Node(_Brief):
    """A task and its level, or, in a graph, what it depends on.

    The `pre_execute` and `post_execute` of a resource are the two halves of one function.
    """

    name: str
    level: int
    pre_execute: Behaviour | None = None
    execute: Behaviour | None = None
    post_execute: Behaviour | None = None
    depends_on: tuple[str, ...] = ()
    required: bool = True
    is_resource: bool = False


class Arrangement(Enum):
    """What orders the tasks."""

    LEVELS = "levels"
    LEVELS_IN_ORDER = "the same, in execute as well"
    GRAPH = "what they depend on"
    GRAPH_IN_ORDER = "what they depend on, in execute as well"


@dataclass(frozen=True, slots=True, repr=False)
class Disturbance(_Brief):
    """What comes from outside: cancellations of the caller, `asyncio.timeout` around the run."""

    cancel_at: tuple[float, ...] = ()
    cancel_at_pass: tuple[int, ...] = ()  # of the loop, the first of the run being 0
    timeout: float | None = None
    move_on: float | None = None  # an anyio scope around the run, which is over then
    heard_at_once: bool = False  # the caller's turn comes before that of all who are ready


class Factory(Enum):
    """The event loop's task factory."""

    NONE = "none"
    PLAIN = "one that makes an asyncio.Task"
    EAGER = "asyncio's eager one, where there is one"
    WRAPPING = "one that makes an asyncio.Task of a coroutine which awaits the one it is given"
    REFUSING = "one that makes each asyncio.Task of the run but the third"


WILLING = tuple(each for each in Factory if each is not Factory.REFUSING)


class Watcher(Enum):
    """Who observes the run, and hears what it cannot raise."""

    NONE = "nobody"
    QUIET = "an observer"
    RAISING = "an observer and an exception handler, which raise"


@dataclass(frozen=True, slots=True, repr=False)
class Workflow(_Brief):
    """Tasks, in the order in which they are added, and what surrounds the run."""

    nodes: tuple[Node, ...]
    disturbance: Disturbance = Disturbance()
    factory: Factory = Factory.NONE
    debug: bool = False  # asyncio's debug mode
    arrangement: Arrangement = Arrangement.LEVELS
    watcher: Watcher = Watcher.NONE
    places: int | None = None  # the most functions that may be suspended at a time
    keeps_going: bool = False  # after a failure
    budget: int = 0  # of retries; every second first attempt pays for one more

    @property
    def is_graph(self) -> bool:
        return self.arrangement in (Arrangement.GRAPH, Arrangement.GRAPH_IN_ORDER)

    @property
    def in_order(self) -> bool:
        """Whether `execute` follows the order of the tasks, too."""
        return self.arrangement in (Arrangement.LEVELS_IN_ORDER, Arrangement.GRAPH_IN_ORDER)

    def survives(self, name: str, phase: str) -> bool:
        """Return True if the run goes on when this function fails."""
        required = {node.name: node.required for node in self.nodes}
        return phase != PHASES[2] and (self.keeps_going or not required[name])

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
