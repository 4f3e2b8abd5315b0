"""The states of phases, and the reports of tasks and phases."""

# There is no `from __future__ import annotations` here. With it, Python compiles the annotation of
# each field of a named tuple whenever this module is imported.

from collections.abc import Collection, Hashable, Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, NoReturn, cast

from .common.checks import no_attribute
from .common.frozen import Frozen
from .common.generic import V_co
from .common.text import nearest, shown, shown_fields


class State(StrEnum):
    """The state of one phase of a task after a run."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    TIMED_OUT = "timed out"
    CANCELLED = "cancelled"
    SKIPPED = "skipped"  # there is a function, and it was not called
    ABSENT = "absent"  # there is no function


FAILURES: Final = (State.FAILED, State.TIMED_OUT)


class PhaseReport(NamedTuple, Generic[V_co]):
    """The result of one phase of a task: state, attempts, and the value or exception.

    `value` is None unless the phase succeeded. `exception` is the `Exception` that it failed with.
    A `KeyboardInterrupt`, or anything else that is not an `Exception`, is raised and not kept here.
    `attempts_failed` are the exceptions of all earlier attempts. `fell_back` is True if the
    fallback was called. If the fallback succeeded, `value` is its return value, and `exception` is
    the exception of the last attempt.

    A report cannot know the type of a function's value, but you can declare it:

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
    """The result of a task, phase by phase."""

    pre_execute: PhaseReport
    execute: PhaseReport
    post_execute: PhaseReport


def explain_attribute(self: object, name: str) -> NoReturn:
    """Raise an error that says where the attributes of a phase are.

    Python calls this only for missing attributes.
    """
    if isinstance(self, Mapping) and not name.startswith("_") and name in self:
        raise no_attribute(self, name, {name: f"; did you mean report[{shown(name)}]?"})
    what = "each phase" if isinstance(self, TaskReport) else "each phase of a task"
    where = f"; {what} has its own, such as report[name].execute.{name}"
    raise no_attribute(self, name, dict.fromkeys(PhaseReport._fields, where))


if not TYPE_CHECKING:  # or type checkers would accept every attribute
    TaskReport.__getattr__ = explain_attribute


class TaskFailure(NamedTuple):
    """One failure of a run: the task, the phase, the number of attempts and the exception."""

    name: Hashable
    phase: str
    attempts: int
    exception: Exception

    def __repr__(self) -> str:
        return shown_fields(self)


class Outcome(Frozen):
    """How a run has gone so far: what `task_outcome_func` gives to a cleanup.

    - `failed`: whether something has failed. Cleanups that have failed before this one count.
    - `cancelled`: whether the run was cut short: by a cancellation of its caller, by an exception
      out of the block of `open`, or by a `BaseException` such as `SystemExit`.
    - `failures`: `(name, phase, attempts, exception)` of each failure, in order.
    - `exception`: what a resource gets at its `yield`: a `CancelledError` if the run was cut
      short, an `SdaxExecutionError` of all failures so far if it failed, or None if all is well.

    `sdax.many.Outcome` is another class: what became of one input of `sdax.many.run_many`. In a
    module that needs both, write `from sdax import many` and `many.Outcome`.

    >>> async def finish(ctx, outcome):
    ...     await (ctx.session.rollback() if outcome.exception else ctx.session.commit())
    """

    __slots__ = __match_args__ = ("failed", "cancelled", "failures", "exception")

    failed: bool
    cancelled: bool
    failures: tuple[TaskFailure, ...]
    exception: BaseException | None

    def __init__(
        self,
        failed: bool,
        cancelled: bool,
        failures: tuple[TaskFailure, ...],
        exception: BaseException | None,
    ) -> None:
        self._set_once(failed=failed, cancelled=cancelled, failures=failures, exception=exception)


class Durations(NamedTuple):
    """The seconds of a run, and of each of its phases that has begun."""

    run: float
    phases: Mapping[str, float]


class UnknownTaskError(KeyError):
    """A `KeyError` for an unknown task name. Its text suggests similar names."""

    def __init__(self, name: Hashable, names: Collection[Hashable] = ()) -> None:
        super().__init__(name)
        self._names = names

    def __str__(self) -> str:
        name = self.args[0]
        return f"there is no task {shown(name)}{nearest(name, self._names)}"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self.args  # there may be many names, not all of them picklable
