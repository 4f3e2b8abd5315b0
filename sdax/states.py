"""What may become of the phases of tasks, and how it is told."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, NoReturn, cast

from .common.checks import no_attribute
from .common.generic import V_co
from .common.text import nearest, shown, shown_fields


class State(StrEnum):
    """What became of one phase of a task."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    TIMED_OUT = "timed out"
    CANCELLED = "cancelled"
    SKIPPED = "skipped"  # it has a function, which was not called
    ABSENT = "absent"  # it has no function


FAILURES: Final = (State.FAILED, State.TIMED_OUT)


class PhaseReport(NamedTuple, Generic[V_co]):
    """What became of one phase of a task: state, attempts made, and what it returned or raised.

    `value` is None unless the phase succeeded; `exception` is what failed it, an `Exception`
    (what is no `Exception`, such as `KeyboardInterrupt`, is raised and not kept here).
    `attempts_failed` are the exceptions of the attempts before the last, and before the one that
    succeeded. `fell_back` is True if the fallback was called: if it succeeded, `value` is what it
    returned, and `exception` is that of the last attempt, which it covers up.

    A report cannot know which type a function's value has, but you can say it:

    >>> user: PhaseReport[User] = report["User"].pre_execute
    >>> user.value.name
    """

    state: State
    attempts: int = 0
    value: V_co = cast(V_co, None)
    exception: BaseException | None = None
    attempts_failed: tuple[Exception, ...] = ()
    fell_back: bool = False

    def __repr__(self) -> str:
        return shown_fields(self)


class TaskReport(NamedTuple):
    """What became of a task, phase by phase."""

    pre_execute: PhaseReport
    execute: PhaseReport
    post_execute: PhaseReport


def explain_attribute(self: object, name: str) -> NoReturn:
    """Say where the attributes of a phase are; Python asks for nothing that is there."""
    what = "each phase" if isinstance(self, TaskReport) else "each phase of a task"
    where = f"; {what} has its own, such as report[name].execute.{name}"
    raise no_attribute(self, name, dict.fromkeys(PhaseReport._fields, where))


if not TYPE_CHECKING:  # or every attribute would be right
    TaskReport.__getattr__ = explain_attribute


class TaskFailure(NamedTuple):
    """One failure of a run: which task, in which phase, after how many attempts, and why."""

    name: Hashable
    phase: str
    attempts: int
    exception: Exception

    def __repr__(self) -> str:
        return shown_fields(self)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run has gone so far: what `task_outcome_func` gives to a cleanup.

    - `failed`: whether something has failed. Cleanups that have failed before this one count.
    - `cancelled`: whether the run was cut short: by a cancellation of its caller, by an exception
      out of the block of `open`, or by what is not an `Exception`, such as `SystemExit`.
    - `failures`: `(name, phase, attempts, exception)` of each failure, in order.
    - `exception`: what a resource gets at its `yield`: a `CancelledError` if the run was cut
      short, an `SdaxExecutionError` of all failures so far if it failed, or None if all is well.

    >>> async def finish(ctx, outcome):
    ...     await (ctx.session.rollback() if outcome.exception else ctx.session.commit())
    """

    failed: bool
    cancelled: bool
    failures: tuple[TaskFailure, ...]
    exception: BaseException | None


class Durations(NamedTuple):
    """How many seconds a run took, and each of its phases that has begun."""

    run: float
    phases: Mapping[str, float]


class UnknownTaskError(KeyError):
    """A `KeyError` for the name of a task that is not there; it says which names are near."""

    def __init__(self, name: Hashable, names: Collection[Hashable] = ()) -> None:
        super().__init__(name)
        self._names = names

    def __str__(self) -> str:
        name = self.args[0]
        return f"there is no task {shown(name)}{nearest(name, self._names)}"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self.args  # names may be many, and not picklable
