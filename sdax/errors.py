"""The exceptions that a run raises, for both engines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, Self, TypeAlias, TypeVar

from .common.groups import flatten_exceptions, iter_leaves
from .common.text import brief_exception, shortened, shown
from .report import RunReport, report_of_nothing
from .states import TaskFailure

if TYPE_CHECKING:
    Matcher: TypeAlias = (
        type[BaseException] | tuple[type[BaseException], ...] | Callable[[Exception], bool]
    )

E = TypeVar("E", bound=BaseException)

LONGEST_REASON: Final = 200  # characters of an exception in the text of an error


class TaskCancelledError(Exception):
    """A function was cancelled, or cancelled itself, although the run did not ask for it.

    The task did not succeed, so this is a failure. `__cause__` is the original
    `asyncio.CancelledError`.
    """


class SdaxExecutionError(ExceptionGroup[Exception]):
    """The error of a failed run. It is raised after the last cleanup.

    `exceptions` are the original exception objects that the functions raised, flat, in the order
    in which they failed. An exception group that a function raised stays one member. `failures`
    has the task and the phase of each, and `report` has the result of every task.

    `except*`, `split` and `subgroup` return groups of this type. For a subclass they return groups
    of the subclass with the same attributes. They do not call its constructor, and neither do
    copies and pickles, so it can take other arguments.

    >>> try:
    ...     await processor.process_tasks(ctx)
    ... except SdaxExecutionError as error:
    ...     for name, phase, attempts, exception in error.failures:
    ...         print(f"{name} failed in {phase}: {exception!r}")
    """

    _failures: tuple[TaskFailure, ...] = ()
    _report: RunReport[Any] | None = None

    def __new__(cls, message: str, exceptions: Sequence[Exception], /) -> Self:
        # Python 3.14 calls the repr of any other sequence, which may fail.
        given: object = exceptions
        if isinstance(given, Sequence) and type(given) not in (list, tuple):
            exceptions = tuple(given)
        return super().__new__(cls, message, exceptions)

    @classmethod
    def from_failures(
        cls, failures: Sequence[TaskFailure], report: RunReport[Any] | None
    ) -> SdaxExecutionError:
        """Make the error of a run from its failures.

        Raises `TypeError` for anything but `TaskFailure`s, and `ValueError` if there are none.
        """
        for failure in failures:
            if not isinstance(failure, TaskFailure):
                raise TypeError(f"from_failures takes TaskFailures, got {shown(failure)}")
        if not failures:
            raise ValueError("from_failures takes at least one TaskFailure, got none")
        first = failures[0]
        message = f"{first.phase} of task {shown(first.name)} failed"
        if len(failures) > 1:
            message = f"{len(failures)} failures, the first: {message}"
        error = cls(message, [failure.exception for failure in failures])
        error._failures = tuple(failures)
        error._report = report
        return error

    @property
    def failures(self) -> tuple[TaskFailure, ...]:
        """`(name, phase, attempts, exception)` of each member, in the order of `exceptions`."""
        return self._failures

    @property
    def report(self) -> RunReport[Any]:
        """The report of the run. For a group made by hand, it is a report without tasks."""
        return report_of_nothing() if self._report is None else self._report

    def __str__(self) -> str:
        """Return the message with the number of members, and the first exception in short."""
        reason = brief_exception(next(iter_leaves(self)))
        return f"{super().__str__()}: {shortened(reason, LONGEST_REASON)}"

    def __repr__(self) -> str:
        members = ", ".join(map(shown, self.exceptions))
        return f"{type(self).__name__}({shown(self.message)}, [{members}])"

    def first(self, kind: type[E]) -> E | None:
        """Return the first member that is a `kind`, or None. It also looks inside groups.

        An exception handler can use it to answer by type. Raises `TypeError` if `kind` is not an
        exception class.

        >>> except SdaxExecutionError as error:
        ...     if (missing := error.first(NotFoundError)) is not None:
        ...         return Response(404, str(missing))
        """
        given: object = kind
        if not (isinstance(given, type) and issubclass(given, BaseException)):
            raise TypeError(f"first takes an exception class, got {shown(kind)}")
        waiting: list[BaseException] = list(reversed(self.exceptions))
        while waiting:
            member = waiting.pop()
            if isinstance(member, kind):
                return member
            if isinstance(member, BaseExceptionGroup):
                waiting += reversed(member.exceptions)
        return None

    def derive(self, excs: Sequence[Exception], /) -> SdaxExecutionError:  # type: ignore[override]
        """Make a group of the same type with some of the members (see `ExceptionGroup`)."""
        error = _without_constructor(type(self), self.message, excs)
        left = list(self._failures)
        found = (_take_failure(member, left) for member in excs)
        failures = tuple(failure for failure in found if failure is not None)
        attributes = {name: value for name, value in vars(self).items() if name != "__notes__"}
        vars(error).update(attributes, _failures=failures)
        return error

    def __reduce__(self) -> tuple[Any, ...]:
        members = list(self.exceptions)
        return _without_constructor, (type(self), self.message, members), dict(vars(self))

    def __setstate__(self, state: dict[str, Any] | None, /) -> None:
        vars(self).update(state or {})  # without __setattr__, which a subclass may define

    if TYPE_CHECKING:
        # The same type as from `derive`. Nothing says this of a group of another type.

        def subgroup(  # type: ignore[override]
            self, matcher_value: Matcher, /
        ) -> Self | None: ...

        def split(  # type: ignore[override]
            self, matcher_value: Matcher, /
        ) -> tuple[Self | None, Self | None]: ...

    def leaf_exceptions(self) -> list[BaseException]:
        """Return the single exceptions, including those inside groups that functions raised."""
        return flatten_exceptions(self)


def _without_constructor(
    kind: type[SdaxExecutionError], message: str, members: Sequence[Exception]
) -> SdaxExecutionError:
    return SdaxExecutionError.__new__(kind, message, members)


def _take_failure(member: Exception, left: list[TaskFailure]) -> TaskFailure | None:
    for position, failure in enumerate(left):
        if failure.exception is member:
            return left.pop(position)
    # After split(), a member that is a group is a new object. Its leaves identify it.
    leaves = {id(leaf) for leaf in iter_leaves(member)}
    for failure in left:
        if leaves.issubset(id(leaf) for leaf in iter_leaves(failure.exception)):
            return failure._replace(exception=member)
    return None
