"""Task functions, and the tasks that users make of them."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from dataclasses import dataclass, fields
from typing import (
    TYPE_CHECKING,
    Any,
    Final,
    Generic,
    Literal,
    TypeAlias,
    TypedDict,
    Unpack,
    cast,
    overload,
)

from .budget import RetryBudget
from .common.arguments import check_takes
from .common.checks import (
    SPLIT_GENERATOR,
    USE_RESOURCE,
    checked_number,
    checked_seconds,
    explained,
    is_async,
    is_async_generator,
    is_generator,
)
from .common.frozen import Frozen
from .common.generic import K, K_co, KeyedByDefault, T, T_contra
from .common.text import nearest, shown
from .engine.group import SdaxTaskGroup
from .functions import (
    PlainFunction,
    ResourceCleanUp,
    ResourceSetUp,
    ThreadFunction,
)
from .limits import (
    Fallback,
    Limiter,
    Retryable,
    RetryAfter,
    are_of,
    check_budget,
    check_fallback,
    check_limiter,
    check_retry_after,
    checked_kinds,
    pickled_kinds,
    unpickled_kinds,
)
from .states import Outcome

__all__ = [
    "AsyncTask",
    "Limits",
    "RetryableException",
    "SdaxTaskGroup",
    "TaskFunction",
    "join",
    "task",
    "task_func",
    "task_group_func",
    "task_group_task",
    "task_outcome_func",
    "task_sync_func",
    "task_thread_func",
]

Function: TypeAlias = Callable[[T], Awaitable[Any]]
GroupFunction: TypeAlias = Callable[[T, "SdaxTaskGroup"], Awaitable[Any]]
OutcomeFunction: TypeAlias = Callable[[T, Outcome], Awaitable[Any]]

_KINDS = ("retryable_exceptions", "fallback_exceptions")

_TWO_ARGUMENTS: Final = (
    "; use task_outcome_func if it also takes the outcome of the run, or task_group_func if it "
    "also takes a task group"
)


class RetryableException(Exception):
    """Raise this, or a subclass, to ask for another attempt.

    It is one of the exceptions that `TaskFunction` retries by default. `retry_after` is the minimum
    number of seconds to wait. None, the default, means the usual delay. A negative number means
    that there must be no further attempt. Raises `TypeError` or `ValueError` if `retry_after` is
    not a number.

    >>> async def fetch(ctx):
    ...     raise RetryableException("the service is starting", retry_after=2.0)
    """

    retry_after: float | None = None

    def __init__(self, *args: object, retry_after: float | None = None) -> None:
        super().__init__(*args)
        if retry_after is not None:
            self.retry_after = checked_seconds("RetryableException.retry_after", retry_after)


RETRYABLE_BY_DEFAULT: tuple[type[Exception], ...] = (
    TimeoutError,
    ConnectionError,
    RetryableException,
)

# The names of limits in other libraries.
_LIMIT_ELSEWHERE: Final = {
    "attempts": "retries",
    "backoff": "backoff_factor",
    "delay": "initial_delay",
    "max_retries": "retries",
    "retry": "retries",
    "retry_on": "retryable_exceptions",
}


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class TaskFunction(Frozen, Generic[T_contra]):
    """One phase of a task: a function with its timeout, retries and other limits.

    - `function`: takes the context and returns an awaitable. Usually it is an `async def`.
    - `timeout`: seconds that one attempt may take. None means no limit. 0 expires at the first
      `await` that really waits.
    - `retries`: the number of attempts that may follow the first one.
    - `initial_delay`, `backoff_factor`, `max_delay`: the delay in seconds before retry k
      (0, 1, 2 ...) is `min(max_delay, initial_delay * backoff_factor**k)` times a random
      number between 0.5 and 1.0. `max_delay=None` means no limit.
    - `retryable_exceptions`: exception types that are retried, or a plain function that gets the
      exception and returns True or False. A group is retried if all its leaves are retryable.
    - `has_task_group_argument`: call `function(ctx, group)` with an `SdaxTaskGroup`.
    - `total_timeout`: seconds that all attempts and the pauses between them may take together,
      from the first call. If the next pause would reach it, there is no further attempt.
    - `retry_after`: a function that gets the exception before a retry and returns the seconds that
      the service asks to wait, or None for the usual delay (see `sdax.clients.retry_after`). If the
      number is negative, more than `max_delay`, or more than the rest of `total_timeout`, there is
      no further attempt. After such a delay the backoff starts again at `initial_delay`.
    - `limiter`: an async context manager, such as an `asyncio.Semaphore`, or a function of the
      context that returns one. Each attempt runs inside it. The wait for it counts for
      `total_timeout`, but not for `timeout`.
    - `fallback`: an async or plain function of the context and the exception. It is called once,
      when the last attempt has failed, and its return value is the value of the phase. `timeout`
      limits it. It is never called after a cancellation, and not allowed in `post_execute`.
    - `fallback_exceptions`: the exceptions for which the fallback is called, in the form of
      `retryable_exceptions`, which is the default.
    - `retry_budget`: a `RetryBudget`. Each first attempt deposits and each retry withdraws. If
      nothing is left, there is no further attempt.
    - `has_outcome_argument`: call `function(ctx, outcome)` with an `Outcome`, which says how the
      run has gone. Only `post_execute` can use it.

    The order is `fallback(total_timeout(retries(limiter(timeout(function)))))`.

    Raises `TypeError` or `ValueError`, with the field and the value, for a limit that cannot work
    and for a generator function.

    >>> TaskFunction(fetch_user, timeout=2.0, retries=3, initial_delay=0.1, total_timeout=5.0)
    """

    function: Function[T_contra] | GroupFunction[T_contra] | OutcomeFunction[T_contra]
    timeout: float | None = None
    retries: int = 0
    initial_delay: float = 1.0
    backoff_factor: float = 2.0
    retryable_exceptions: Retryable = RETRYABLE_BY_DEFAULT
    has_task_group_argument: bool = False
    max_delay: float | None = None
    total_timeout: float | None = None
    retry_after: RetryAfter | None = None
    limiter: Limiter[T_contra] | None = None
    fallback: Fallback[T_contra] | None = None
    fallback_exceptions: Retryable | None = None
    retry_budget: RetryBudget | None = None
    has_outcome_argument: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.function, TaskFunction):
            raise TypeError(
                "TaskFunction.function is a TaskFunction already; use it as it is, or make one "
                "with other limits with dataclasses.replace"
            )
        if not callable(self.function):
            raise TypeError(
                f"TaskFunction.function must be callable with the context, "
                f"got {shown(self.function)}{_hint_if_called(self.function)}"
            )
        if is_generator(self.function):
            raise _generator_refused("TaskFunction.function", self.function)
        for name in ("has_task_group_argument", "has_outcome_argument"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(
                    f"TaskFunction.{name} must be a bool, got {shown(getattr(self, name))}"
                )
        if self.has_task_group_argument and self.has_outcome_argument:
            raise ValueError(
                "TaskFunction: a function takes a task group or the outcome, and not both; open "
                "an asyncio.TaskGroup in the function that takes the outcome"
            )
        self._check_arguments()
        set_once = object.__setattr__
        for name in ("timeout", "max_delay", "total_timeout"):
            if getattr(self, name) is not None:
                self._set_number(name)
        for name in ("initial_delay", "backoff_factor"):
            self._set_number(name)
        if self.backoff_factor == 0:
            raise ValueError(
                f"TaskFunction.backoff_factor must be greater than 0, got {self.backoff_factor!r}"
            )
        if isinstance(self.retries, bool) or not isinstance(self.retries, int):
            raise TypeError(f"TaskFunction.retries must be an integer, got {shown(self.retries)}")
        set_once(self, "retries", int.__pos__(self.retries))
        if self.retries < 0:
            raise ValueError(
                f"TaskFunction.retries must not be negative, got {shown(self.retries)}"
            )
        retryable = checked_kinds("TaskFunction.retryable_exceptions", self.retryable_exceptions)
        set_once(self, "retryable_exceptions", retryable)
        if self.retries and retryable == ():
            raise ValueError(
                f"TaskFunction.retryable_exceptions is empty, so retries={shown(self.retries)} "
                f"could never happen; name an exception type or leave retries at 0"
            )

        self._check_limits_over_all_attempts()

    def _check_arguments(self) -> None:
        if isinstance(self.function, PlainFunction):
            return  # a run calls the function inside, which was checked
        field = "TaskFunction.function"
        if self.has_task_group_argument:
            check_takes(field, self.function, "ctx", "group")
        elif self.has_outcome_argument:
            check_takes(field, self.function, "ctx", "outcome")
        else:
            check_takes(field, self.function, "ctx", if_one_more=_TWO_ARGUMENTS)

    def _check_limits_over_all_attempts(self) -> None:
        if self.total_timeout == 0 and self.retries:
            raise ValueError(
                f"TaskFunction.total_timeout is 0, so retries={shown(self.retries)} could never "
                f"happen; give it some seconds or leave retries at 0"
            )
        for given, check in (
            (self.retry_after, check_retry_after),
            (self.limiter, check_limiter),
            (self.fallback, check_fallback),
            (self.retry_budget, check_budget),
        ):
            if given is not None:
                check(given)
        if self.fallback_exceptions is not None:
            kinds = checked_kinds("TaskFunction.fallback_exceptions", self.fallback_exceptions)
            object.__setattr__(self, "fallback_exceptions", kinds)
            if self.fallback is None:
                raise ValueError(
                    f"TaskFunction.fallback_exceptions is {shown(kinds)}, but there is no "
                    f"fallback; pass fallback=, a function of the context and the exception"
                )
        if self.fallback is not None and self.has_outcome_argument:
            raise ValueError(
                "TaskFunction: a function that takes the outcome is a cleanup, and must not have a "
                "fallback: it could only hide that something was not released"
            )
        if self.fallback is not None and self._covered() == ():
            raise ValueError(
                "TaskFunction.fallback could never be called, because no exception is named for "
                "it; name an exception type in fallback_exceptions"
            )

    def _set_number(self, name: str) -> None:
        number = checked_number(f"TaskFunction.{name}", getattr(self, name))
        object.__setattr__(self, name, number)

    def __hash__(self) -> int:
        # without the limiter, which may not be hashable
        return hash(tuple(getattr(self, e.name) for e in fields(self) if e.name != "limiter"))

    def __getstate__(self) -> dict[str, Any]:
        state = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: pickled_kinds(v) if name in _KINDS else v for name, v in state.items()}

    def __setstate__(self, state: Any) -> None:
        # The pickle of an earlier version has fewer fields.
        state = {field.name: field.default for field in fields(self)} | state
        for name, value in state.items():
            set_to = unpickled_kinds(value) if name in _KINDS else value
            object.__setattr__(self, name, set_to)

    def _covered(self) -> Any:
        kinds = self.fallback_exceptions
        return self.retryable_exceptions if kinds is None else kinds

    def is_retryable(self, exception: BaseException) -> bool:
        """Return True if the exception is retried while attempts are left."""
        kinds: Any = self.retryable_exceptions
        return are_of(kinds, exception, "TaskFunction.retryable_exceptions")

    def is_covered(self, exception: BaseException) -> bool:
        """Return True if there is a fallback and it is called for this exception."""
        if self.fallback is None:
            return False
        if self.fallback_exceptions is None:
            return self.is_retryable(exception)
        kinds: Any = self.fallback_exceptions
        return are_of(kinds, exception, "TaskFunction.fallback_exceptions")

    def backoff(self, retry: int) -> float:
        """Return the seconds before retry number `retry` (from 0), without the random factor.

        Raises `TypeError` if `retry` is not an integer, and `ValueError` if it is negative.
        """
        if not isinstance(retry, int):
            raise TypeError(f"backoff takes the number of a retry, got {shown(retry)}")
        if retry < 0:
            raise ValueError(f"backoff takes 0, 1, 2 ..., got {shown(retry)}")
        if not self.initial_delay:
            return 0.0
        try:
            growth = float(self.backoff_factor) ** retry
        except OverflowError:
            growth = math.inf  # which PyPy returns without an error
        longest = math.inf if self.max_delay is None else float(self.max_delay)
        return min(longest, self.initial_delay * growth)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class AsyncTask(Frozen, KeyedByDefault, Generic[T_contra, K_co]):
    """A named unit of work with up to three phases, each a `TaskFunction` or an async function.

    `name` can be any hashable object, and is unique in its processor. `pre_execute` prepares,
    `execute` works and `post_execute` cleans up. `post_execute` runs for every task that has
    started, even if the task failed or was cancelled. Then `pre_execute` may have done only part of
    its work. For setup and cleanup in one function, see `resource`. You can pass a function without
    limits directly. It becomes a `TaskFunction`.

    With `required=False`, the run does not need this task. If its `pre_execute` or `execute` fails,
    everything else continues, and tasks that depend on it must work without it. After a failed
    `pre_execute`, its own `execute` is skipped and its cleanup runs as usual. The failure is in the
    report and in the log. If its cleanup fails, the run fails.

    Raises `TypeError` for an unhashable name, for a phase that is not a function and for a
    `required` that is not a bool, and `ValueError` for a task with no phase at all.

    >>> AsyncTask("Database", pre_execute=TaskFunction(connect, timeout=2.0), post_execute=close)
    """

    name: K_co
    pre_execute: TaskFunction[T_contra] | None = None
    execute: TaskFunction[T_contra] | None = None
    post_execute: TaskFunction[T_contra] | None = None
    required: bool = True

    if TYPE_CHECKING:

        def __init__(
            self,
            name: K_co,
            pre_execute: TaskFunction[T_contra] | Function[T_contra] | None = None,
            execute: TaskFunction[T_contra] | Function[T_contra] | None = None,
            post_execute: TaskFunction[T_contra] | Function[T_contra] | None = None,
            required: bool = True,
        ) -> None: ...

    def __post_init__(self) -> None:
        try:
            hash(self.name)
        except Exception as error:
            raise TypeError(f"AsyncTask.name must be hashable, got {shown(self.name)}") from error
        if not isinstance(self.required, bool):
            raise TypeError(
                f"required of task {shown(self.name)} must be a bool, got {shown(self.required)}"
            )
        given = {
            "pre_execute": self.pre_execute,
            "execute": self.execute,
            "post_execute": self.post_execute,
        }
        phases = {phase: _as_task_function(self.name, phase, each) for phase, each in given.items()}
        for phase, function in phases.items():
            object.__setattr__(self, phase, function)
        cleanup = phases["post_execute"]
        if cleanup is not None and cleanup.fallback is not None:
            raise ValueError(
                f"post_execute of task {shown(self.name)} must not have a fallback, got "
                f"{shown(cleanup.fallback)}: it could only hide that something was not released"
            )
        _check_halves(self.name, phases)
        if not any(phases.values()) and type(self) is not _Join:
            raise ValueError(
                f"task {shown(self.name)} has no phase; give it a pre_execute, an execute or a "
                f"post_execute, or make an empty node with join({shown(self.name)})"
            )

    def __getstate__(self) -> list[Any]:
        return [getattr(self, each.name) for each in fields(self)]

    def __setstate__(self, state: Any) -> None:
        object.__setattr__(self, "required", True)  # earlier versions do not have it
        for each, value in zip(fields(self), state, strict=False):
            object.__setattr__(self, each.name, value)


def _check_halves(name: Any, phases: dict[str, TaskFunction[Any] | None]) -> None:
    """Refuse half of a resource, and an outcome in a phase before the last."""
    functions = {phase: each and each.function for phase, each in phases.items()}
    for phase in ("pre_execute", "execute"):
        function = phases[phase]
        if function is not None and function.has_outcome_argument:
            raise ValueError(
                f"{phase} of task {shown(name)} cannot take the outcome of the run, because the "
                f"run has not ended then; only post_execute can"
            )
    halves = {
        phase: function
        for phase, function in functions.items()
        if isinstance(function, (ResourceSetUp, ResourceCleanUp))
    }
    first, last = functions["pre_execute"], functions["post_execute"]
    if halves and not (
        isinstance(first, ResourceSetUp)
        and isinstance(last, ResourceCleanUp)
        and first.function == last.function
        and functions["execute"] not in halves.values()
    ):
        raise ValueError(
            f"task {shown(name)} has a part of a resource as its {' and '.join(halves)}; setup "
            f"and cleanup of a resource belong together, so make the task with "
            f"resource({shown(name)}, ...)"
        )


def _as_task_function(name: Any, phase: str, function: Any) -> TaskFunction[Any] | None:
    if function is None or isinstance(function, TaskFunction):
        return function
    if not callable(function):
        raise TypeError(
            f"{phase} of task {shown(name)} must be an async function or a TaskFunction, "
            f"got {shown(function)}{_hint_if_called(function)}"
        )
    try:
        return TaskFunction(cast("Function[Any]", function))
    except TypeError as error:
        raise TypeError(f"{phase} of task {shown(name)}: {error}") from None


def _hint_if_called(function: Any) -> str:
    """Return advice about a function that was called by mistake, and close its coroutine."""
    if not isinstance(function, Awaitable):
        return ""
    if asyncio.iscoroutine(function):
        function.close()
    return "; pass the function itself, without calling it"


class _Join(AsyncTask[Any, K_co]):
    """A task without phases. Other tasks can depend on it."""

    __slots__ = ()


class Limits(TypedDict, Generic[T], total=False):
    """The keyword arguments of `task_func` and the other helpers: fields of `TaskFunction`.

    Use this type in helpers of your own:

    >>> def call_service(function: Callable[[T], Awaitable[Any]], **limits: Unpack[Limits[T]]):
    ...     limits.setdefault("timeout", 2.0)
    ...     return task_func(function, **limits)
    """

    timeout: float | None
    retries: int
    initial_delay: float
    backoff_factor: float
    retryable_exceptions: Retryable
    max_delay: float | None
    total_timeout: float | None
    retry_after: RetryAfter | None
    limiter: Limiter[T] | None
    fallback: Fallback[T] | None
    fallback_exceptions: Retryable | None
    retry_budget: RetryBudget | None


@overload
def task_func(
    function: Function[T],
    *,
    has_outcome_argument: Literal[False] = False,
    **limits: Unpack[Limits[T]],
) -> TaskFunction[T]: ...


@overload
def task_func(
    function: OutcomeFunction[T],
    *,
    has_outcome_argument: Literal[True],
    **limits: Unpack[Limits[T]],
) -> TaskFunction[T]: ...


def task_func(
    function: Function[T] | OutcomeFunction[T],
    *,
    has_outcome_argument: bool = False,
    **limits: Unpack[Limits[T]],
) -> TaskFunction[T]:
    """Make a `TaskFunction` of an async function. It takes the arguments of `TaskFunction`.

    >>> task_func(fetch_user, timeout=2.0, retries=3)
    """
    return TaskFunction(function, has_outcome_argument=has_outcome_argument, **limits)


def task_outcome_func(function: OutcomeFunction[T], **limits: Unpack[Limits[T]]) -> TaskFunction[T]:
    """Make a `TaskFunction` of an async function that takes the context and an `Outcome`.

    It is only for `post_execute`. The outcome says how the run has gone so far.

    >>> async def finish(ctx, outcome):
    ...     await (ctx.session.rollback() if outcome.exception else ctx.session.commit())
    >>> task("Session", pre_execute=begin, post_execute=task_outcome_func(finish, timeout=5.0))
    """
    return TaskFunction(function, has_outcome_argument=True, **limits)


def task_sync_func(function: Callable[[T], Any], **limits: Unpack[Limits[T]]) -> TaskFunction[T]:
    """Make a `TaskFunction` of a plain, fast function.

    It runs in the event loop and blocks it, and a timeout cannot interrupt it.

    >>> task_sync_func(lambda ctx: ctx.user_id is not None)
    """
    _check_plain("task_sync_func", function)
    return TaskFunction(PlainFunction(function), **limits)


def task_thread_func(
    function: Callable[[T], Any],
    *,
    abandon_on_cancel: bool = False,
    executor: Executor | None = None,
    **limits: Unpack[Limits[T]],
) -> TaskFunction[T]:
    """Make a `TaskFunction` of a blocking function. It runs in a thread.

    The function sees the context variables. A thread cannot be stopped. So after a timeout or a
    cancellation, the run waits until the function returns. With `abandon_on_cancel=True` the run
    does not wait. The function continues in its thread, and its result or exception is lost.

    - `executor`: a `concurrent.futures.Executor` that runs the function. The time in its queue
      counts for `timeout`. An executor with other processes must be able to pickle the function,
      the context and the result. Context variables are not passed on to another process.
    - Without an executor, a cleanup and a function with a timeout get a new thread for each call,
      named `sdax:<task>:<phase>`, so that nothing else can delay them. All other functions share
      the threads of the event loop's default executor, as with `asyncio.to_thread`. If no thread
      can be started, a cleanup runs in the event loop.

    Raises `TypeError` for an async or a generator function, and if `executor` is not an executor.

    >>> task_thread_func(read_file, timeout=5.0)
    """
    _check_plain("task_thread_func", function)
    if not isinstance(abandon_on_cancel, bool):
        raise TypeError(
            f"task_thread_func: abandon_on_cancel must be a bool, got {shown(abandon_on_cancel)}"
        )
    if executor is not None and not isinstance(executor, Executor):
        raise TypeError(
            f"task_thread_func: executor must be a concurrent.futures.Executor or None, "
            f"got {shown(executor)}"
        )
    return TaskFunction(ThreadFunction(function, abandon_on_cancel, executor), **limits)


def task_group_func(function: GroupFunction[T], **limits: Unpack[Limits[T]]) -> TaskFunction[T]:
    """Make a `TaskFunction` of an async function that takes the context and a task group.

    Each attempt gets a new group. The attempt waits for the tasks that the function creates in it.
    If the attempt is cancelled, they are cancelled too. If a task of the group fails, the attempt
    fails.

    >>> async def fan_out(ctx, group):
    ...     for url in ctx.urls:
    ...         group.create_task(fetch(url))
    >>> task_group_func(fan_out, retries=2)
    """
    return TaskFunction(function, has_task_group_argument=True, **limits)


task_group_task = task_group_func


def _no_such_limit(_: object, named: dict[str, Any]) -> str | None:
    names = [field.name for field in fields(TaskFunction)]
    for name in named:
        if name not in names:
            meant = _LIMIT_ELSEWHERE.get(name)
            hint = f"; did you mean {meant!r}?" if meant else nearest(name, names)
            return f"TaskFunction has no argument {shown(name)}{hint}"
    return None


def _no_such_phase(given: tuple[Any, ...], named: dict[str, Any]) -> str | None:
    if len(given) > 1:
        if callable(given[0]) and isinstance(given[1], str):
            return (
                f"task: the name comes first, and the function has the name of its phase: "
                f"task({shown(given[1])}, execute=...)"
            )
        return (
            f"task: say in which phase the function of task {shown(given[0])} is: pre_execute=, "
            f"execute= or post_execute="
        )
    names = [field.name for field in fields(AsyncTask)]
    for name in named:
        if name in Limits.__annotations__:
            return (
                f"task has no argument {shown(name)}, which belongs to a function: "
                f"execute=task_func(..., {name}=...)"
            )
        if name in ("level", "depends_on"):
            return (
                f"task has no argument {shown(name)}, which belongs to a builder: "
                f"add_task(task(...), {name}=...)"
            )
        if name not in names:
            return f"task has no argument {shown(name)}{nearest(name, names)}"
    return None


@explained(_no_such_phase)
def task(
    name: K,
    *,
    pre_execute: TaskFunction[T] | Function[T] | None = None,
    execute: TaskFunction[T] | Function[T] | None = None,
    post_execute: TaskFunction[T] | Function[T] | None = None,
    required: bool = True,
) -> AsyncTask[T, K]:
    """Make a task with at least one phase.

    Each phase is an async function, or a function with limits (`task_func`). With
    `required=False`, the run continues without the task if it fails (see `AsyncTask`).

    >>> task("Flags", execute=load_flags, required=False)
    >>> task("User", pre_execute=task_func(load_user, timeout=2.0), post_execute=forget_user)
    """
    return AsyncTask(name, pre_execute, execute, post_execute, required)


def join(name: K) -> AsyncTask[Any, K]:
    """Make a task without phases, on which other tasks can depend.

    >>> builder.add_task(join("all loaded"), depends_on=("Users", "Flags"))
    """
    return _Join(name)


def _check_plain(helper: str, function: Any) -> None:
    if not callable(function):
        raise TypeError(f"{helper} takes a function of the context, got {shown(function)}")
    if is_async(function):
        raise TypeError(
            f"{helper} takes a plain function, but {shown(function)} is defined with 'async def'; "
            f"use task_func"
        )

    if is_generator(function):
        raise _generator_refused(f"the function of {helper}", function)
    check_takes(f"the function of {helper}", function, "ctx")


def _generator_refused(what: str, function: object) -> TypeError:
    hint = USE_RESOURCE if is_async_generator(function) else SPLIT_GENERATOR
    return TypeError(f"{what} is a generator function, {shown(function)}: {hint}")


setattr(TaskFunction, "__init__", explained(_no_such_limit)(TaskFunction.__init__))  # noqa: B010

# On Python 3.11, the __setattr__ that dataclass() generates for frozen classes with slots raises a
# TypeError when typing sets __orig_class__, as in TaskFunction[Context](...).
for _frozen in (TaskFunction, AsyncTask):
    setattr(_frozen, "__setattr__", Frozen.__setattr__)  # noqa: B010
