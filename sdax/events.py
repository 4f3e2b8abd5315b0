"""What an observer hears of a run.

An observer is a function of one argument, or an object to be called like one: it is called with
each event as it happens. `match` tells the events apart:

>>> def observer(event: Event) -> None:
...     match event:
...         case TaskFinished(task=task, phase=phase, state=state):
...             print(task.name, phase, state)
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from itertools import count
from typing import Any, Final, NamedTuple, Protocol, TypeAlias, TypeVar

from .common.checks import runs_later
from .common.text import shown, shown_fields
from .report import RunReport
from .states import State

_numbers: Final = count(1)

E = TypeVar("E", bound=tuple[Any, ...])


def _event(kind: type[E]) -> type[E]:
    """Have events equal none of another kind, and show any exception.

    They are tuples, which look at their members alone. (A frozen dataclass would do all this, and
    takes three times as long to make.)
    """

    def equal(self: E, other: object) -> object:
        if not isinstance(other, tuple):
            return NotImplemented
        return type(other) is kind and tuple.__eq__(self, other)

    setattr(kind, "__eq__", equal)  # noqa: B010
    setattr(kind, "__ne__", object.__ne__)  # noqa: B010
    setattr(kind, "__repr__", shown_fields)  # noqa: B010
    return kind


class ObservedRun:
    """One run, as its events name it: equal to itself alone.

    `number` is one that no other run of this process has. `processor` and `ctx` are those of
    `process_tasks`, `tasks` all tasks of the processor, in the order in which they were added.
    Each event of the run has this object.
    """

    __slots__ = ("__weakref__", "ctx", "number", "processor", "tasks")

    def __init__(self, processor: Any, ctx: Any, tasks: tuple[TaskInfo, ...]) -> None:
        self.number = next(_numbers)
        self.processor = processor
        self.ctx = ctx
        self.tasks = tasks

    def __repr__(self) -> str:
        return f"<ObservedRun {self.number} of {self.processor!r}>"


class TaskInfo(NamedTuple):
    """A task of the run's processor: its name, its level, or else what it depends on, and whether
    it is `required`."""

    name: Hashable
    level: int | None
    depends_on: tuple[Hashable, ...] | None
    required: bool = True


class Cause(NamedTuple):
    """Why functions were cancelled or skipped: this task failed in this phase, or `finished` the
    run in it, by returning `Finish`."""

    task: TaskInfo
    phase: str
    finished: bool = False


@_event
class RunStarted(NamedTuple):
    """A run begins. Comes in the caller's context, before its variables are copied: what is set
    in them here, every function sees, and the caller too."""

    run: ObservedRun


@_event
class RunFinished(NamedTuple):
    """A run is over, its last cleanup done. Comes in the caller's context.

    `state` is `SUCCEEDED`, `FAILED` or `CANCELLED`, `exception` what the caller gets: None after
    a success, and where the block of an `open` has swallowed what `run_next` raised. `report` is
    None only when nobody waits for the run any more, because its coroutine was closed: then its
    cleanup is still under way, and its events come after this one.
    """

    run: ObservedRun
    state: State
    exception: BaseException | None
    report: RunReport[Any] | None


@_event
class PhaseStarted(NamedTuple):
    """A phase of the run begins: its first function is about to be called. Comes in the context
    of that function, and only if there is one."""

    run: ObservedRun
    phase: str


@_event
class PhaseFinished(NamedTuple):
    """A phase of the run is over: every function that it called has ended. Comes in the context
    of the one that ended last."""

    run: ObservedRun
    phase: str


@_event
class TaskStarted(NamedTuple):
    """The function of a task in a phase is about to be called for the first time."""

    run: ObservedRun
    task: TaskInfo
    phase: str


@_event
class TaskFinished(NamedTuple):
    """The function of a task in a phase has ended for good, after so many attempts, of which the
    call of its fallback is not one.

    `cause` says why a `CANCELLED` one was cancelled; None is the cancellation of the caller. A
    function whose `asyncio.Task` the loop's task factory did not make, or which other code
    cancelled before its first step, was never called: it has this event alone. The failure of a
    task that is not `required`, in `pre_execute` or `execute`, is not the run's.
    """

    run: ObservedRun
    task: TaskInfo
    phase: str
    attempts: int
    state: State
    value: Any
    exception: BaseException | None
    cause: Cause | None


@_event
class TaskSkipped(NamedTuple):
    """The function of a task in a phase will not be called.

    `cause` is the failure because of which, or the function that ended the run; None is the
    cancellation of the caller, or a run by phases that was left before it came to this one. If a
    task depends on several failures, it is the one that came first. It is the task's own
    `pre_execute` if that has failed and the run has gone on.
    """

    run: ObservedRun
    task: TaskInfo
    phase: str
    cause: Cause | None


@_event
class AttemptStarted(NamedTuple):
    """An attempt begins, the first, 1, included. What is set in the context variables here, the
    function sees, in this attempt and in later ones; neither a sibling nor the caller does."""

    run: ObservedRun
    task: TaskInfo
    phase: str
    attempt: int


@_event
class AttemptSuspended(NamedTuple):
    """The function waits for something: the loop has its turn."""

    run: ObservedRun
    task: TaskInfo
    phase: str
    attempt: int


@_event
class AttemptResumed(NamedTuple):
    """The function goes on after a suspension."""

    run: ObservedRun
    task: TaskInfo
    phase: str
    attempt: int


@_event
class AttemptFinished(NamedTuple):
    """An attempt has ended: `state` is `SUCCEEDED`, `FAILED`, `TIMED_OUT` or `CANCELLED`. `value`
    is what the function returned, a `Finish` included."""

    run: ObservedRun
    task: TaskInfo
    phase: str
    attempt: int
    state: State
    value: Any
    exception: BaseException | None


@_event
class RetryScheduled(NamedTuple):
    """An attempt has failed, and another one follows after `delay` seconds."""

    run: ObservedRun
    task: TaskInfo
    phase: str
    attempt: int
    delay: float
    exception: BaseException


@_event
class RetrySuppressed(NamedTuple):
    """An attempt has failed in a way that deserves another one, and there is none.

    `reason` says why: `retry_after`, `total_timeout` or the retry budget.
    """

    run: ObservedRun
    task: TaskInfo
    phase: str
    attempt: int
    reason: str
    exception: BaseException


@_event
class FellBack(NamedTuple):
    """The last attempt has failed for good, and the fallback is about to be called.

    The call is told as one more attempt, whose number is `attempts` + 1. `exception` is what the
    fallback covers up.
    """

    run: ObservedRun
    task: TaskInfo
    phase: str
    attempts: int
    exception: BaseException


@_event
class TimeoutExpired(NamedTuple):
    """An attempt has taken longer than it may, and is now cancelled.

    `timeout` are the seconds that it had: its timeout, or what was left of `total_timeout`.
    """

    run: ObservedRun
    task: TaskInfo
    phase: str
    attempt: int
    timeout: float


@_event
class CancellationRequested(NamedTuple):
    """All functions of the phase that are suspended are now cancelled; no more are called.

    `cause` is the failure that asks for it, or the function that ended the run by returning
    `Finish`; None is the cancellation of the caller. Where the
    loop's task factory starts each function later, this may come before `PhaseStarted`: the
    phase has called none yet, and perhaps never will.
    """

    run: ObservedRun
    phase: str
    cause: Cause | None


Event: TypeAlias = (
    RunStarted
    | RunFinished
    | PhaseStarted
    | PhaseFinished
    | TaskStarted
    | TaskFinished
    | TaskSkipped
    | AttemptStarted
    | AttemptSuspended
    | AttemptResumed
    | AttemptFinished
    | RetryScheduled
    | RetrySuppressed
    | FellBack
    | TimeoutExpired
    | CancellationRequested
)


class Observer(Protocol):
    """Whatever can be called with an event. It is called in the context of the function that the
    event is about, and must not block. An `Exception` that it raises is logged, and never touches
    the run. Anything else, such as Ctrl-C, stops the run, which cleans up and raises it."""

    def __call__(self, event: Event, /) -> object:
        """Hear of an event."""


Observers: TypeAlias = Observer | Iterable[Observer]


def checked_observers(observer: Any) -> tuple[Observer, ...]:
    """Return the observers that were given, one or several.

    Raises `TypeError` for what cannot be called with an event.
    """
    observers: tuple[Any, ...]
    if callable(observer) or not isinstance(observer, Iterable) or isinstance(observer, str):
        observers = (observer,)
    else:
        observers = tuple(observer)
    for one in observers:
        if not callable(one):
            raise TypeError(f"observer must be callable with an event, got {shown(one)}")
        if isinstance(one, type):
            raise TypeError(
                f"observer must be callable with an event, got the class {shown(one)}, which "
                f"would make an object of each; did you mean {one.__name__}()?"
            )
        if runs_later(one):
            raise TypeError(
                f"observer must be a plain function, for nobody awaits or iterates what it "
                f"returns, got {shown(one)}; define it with 'def', without 'yield'"
            )
    return observers
