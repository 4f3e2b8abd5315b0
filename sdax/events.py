"""The events of a run, which observers get.

An observer is a function of one argument, or an object that can be called like that. It is called
with each event as it happens. Use `match` to select events:

>>> def observer(event: Event) -> None:
...     match event:
...         case TaskFinished(task=task, phase=phase, state=state):
...             print(task.name, phase, state)
"""

# There is no `from __future__ import annotations` here. With it, Python compiles the annotation of
# each field of a named tuple whenever this module is imported.

from collections.abc import Hashable, Iterable
from itertools import count
from typing import Any, Final, NamedTuple, Protocol, TypeAlias, TypeVar

from .common.text import shown_fields
from .report import RunReport
from .states import State

_numbers: Final = count(1)

E = TypeVar("E", bound=tuple[Any, ...])


def _event(kind: type[E]) -> type[E]:
    """Make events of different kinds unequal, and make an event show any exception.

    Events are tuples, and plain tuples compare only their members. A frozen dataclass would do all
    this, but takes three times as long to create.
    """

    def equal(self: E, other: object) -> object:
        if not isinstance(other, tuple):
            return NotImplemented
        return type(other) is kind and tuple.__eq__(self, other)

    setattr(kind, "__eq__", equal)  # noqa: B010
    setattr(kind, "__ne__", object.__ne__)  # noqa: B010
    setattr(kind, "__repr__", shown_fields)  # noqa: B010
    return kind


class TaskInfo(NamedTuple):
    """A task of the processor: its name, its level or its dependencies, and if it is `required`."""

    name: Hashable
    level: int | None
    depends_on: tuple[Hashable, ...] | None
    required: bool = True


class ObservedRun:
    """One run. Each event of the run has this object, which is equal only to itself.

    `number` is unique in this process. `processor` and `ctx` belong to the call of
    `process_tasks`. `tasks` are all tasks of the processor, in the order in which they were added.
    """

    __slots__ = ("__weakref__", "ctx", "number", "processor", "tasks")

    def __init__(self, processor: Any, ctx: Any, tasks: tuple[TaskInfo, ...]) -> None:
        self.number = next(_numbers)
        self.processor = processor
        self.ctx = ctx
        self.tasks = tasks

    def __repr__(self) -> str:
        return f"<ObservedRun {self.number} of {self.processor!r}>"


class Cause(NamedTuple):
    """Why a function was cancelled or skipped: this task failed in this phase, or it ended the run
    by returning `Finish`. In the second case `finished` is True."""

    task: TaskInfo
    phase: str
    finished: bool = False


@_event
class RunStarted(NamedTuple):
    """A run begins. The observer is called in the caller's context, before its variables are
    copied. If it sets a context variable here, every function sees it, and the caller too."""

    run: ObservedRun


@_event
class RunFinished(NamedTuple):
    """A run has ended, including its last cleanup. The observer is called in the caller's context.

    `state` is `SUCCEEDED`, `FAILED` or `CANCELLED`. `exception` is the exception that the caller
    gets. It is None after a success, and if the block of an `open` has swallowed the exception of
    `run_next`. `report` is None only if nobody waits for the run any more, because its coroutine
    was closed. Then its cleanup still runs, and the events of the cleanup follow this event.
    """

    run: ObservedRun
    state: State
    exception: BaseException | None
    report: RunReport[Any] | None


@_event
class PhaseStarted(NamedTuple):
    """A phase of the run begins: its first function will be called next. The observer is called in
    the context of that function. A phase without functions does not have this event."""

    run: ObservedRun
    phase: str


@_event
class PhaseFinished(NamedTuple):
    """A phase of the run has ended, with all functions that it called. The observer is called in
    the context of the last function that ended."""

    run: ObservedRun
    phase: str


@_event
class TaskStarted(NamedTuple):
    """The function of a task in a phase will now be called for the first time."""

    run: ObservedRun
    task: TaskInfo
    phase: str


@_event
class TaskFinished(NamedTuple):
    """The function of a task in a phase has ended, after its last attempt.

    `attempts` is the number of attempts, without the call of its fallback. `cause` says why a
    `CANCELLED` function was cancelled. None means that the caller was cancelled. Some functions are
    never called, because the loop's task factory did not make their `asyncio.Task`, or because
    other code cancelled it before its first step. They have only this event. If a task is not
    `required`, its failure in `pre_execute` or `execute` is not a failure of the run.
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

    `cause` is the failure that is the reason, or the function that ended the run. None means that
    the caller was cancelled, or that the block of an `open` ended before this phase. If a task
    depends on several failures, the first one is the cause. If the task's own `pre_execute` failed
    and the run continued, that failure is the cause.
    """

    run: ObservedRun
    task: TaskInfo
    phase: str
    cause: Cause | None


@_event
class AttemptStarted(NamedTuple):
    """An attempt begins. The first attempt is number 1. If the observer sets a context variable
    here, the function sees it in this attempt and in later ones. Nothing else sees it."""

    run: ObservedRun
    task: TaskInfo
    phase: str
    attempt: int


@_event
class AttemptSuspended(NamedTuple):
    """The function waits for something, and the event loop continues with other work."""

    run: ObservedRun
    task: TaskInfo
    phase: str
    attempt: int


@_event
class AttemptResumed(NamedTuple):
    """The function continues after it has waited."""

    run: ObservedRun
    task: TaskInfo
    phase: str
    attempt: int


@_event
class AttemptFinished(NamedTuple):
    """An attempt has ended. `state` is `SUCCEEDED`, `FAILED`, `TIMED_OUT` or `CANCELLED`. `value`
    is the return value of the function, which may be a `Finish`."""

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
    """An attempt has failed with a retryable exception, but there is no further attempt.

    `reason` says why: `retry_after`, `total_timeout`, `cleanup_timeout` or the retry budget.
    """

    run: ObservedRun
    task: TaskInfo
    phase: str
    attempt: int
    reason: str
    exception: BaseException


@_event
class FellBack(NamedTuple):
    """The last attempt has failed, and the fallback will now be called.

    The call of the fallback has the events of one more attempt, with the number `attempts` + 1.
    `exception` is the exception of the last attempt.
    """

    run: ObservedRun
    task: TaskInfo
    phase: str
    attempts: int
    exception: BaseException


@_event
class TimeoutExpired(NamedTuple):
    """An attempt has taken longer than it may, and is now cancelled.

    `timeout` is the number of seconds that it had: its timeout, or the rest of `total_timeout`.
    """

    run: ObservedRun
    task: TaskInfo
    phase: str
    attempt: int
    timeout: float


@_event
class CancellationRequested(NamedTuple):
    """All waiting functions of the phase are now cancelled, and no more functions are called.

    `cause` is the failure that is the reason, or the function that ended the run by returning
    `Finish`. None means that the caller was cancelled. If the loop's task factory starts each
    function later, this event may come before `PhaseStarted`. Then the phase has not called a
    function yet, and may never call one.
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
    """A function that can be called with an event. It is called in the context of the function that
    the event is about, and must not block. If it raises an `Exception`, that is logged, and the run
    does not change. Any other exception, such as Ctrl-C, stops the run, which cleans up and raises
    it."""

    def __call__(self, event: Event, /) -> object:
        """Take an event."""


Observers: TypeAlias = Observer | Iterable[Observer]
