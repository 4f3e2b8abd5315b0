"""What users describe: task functions and the tasks made of them."""

from __future__ import annotations

import asyncio
import builtins
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Executor
from contextlib import AbstractAsyncContextManager
from dataclasses import FrozenInstanceError, dataclass, fields
from typing import (
    TYPE_CHECKING,
    Any,
    Generic,
    Literal,
    TypeAlias,
    TypedDict,
    Unpack,
    cast,
    overload,
)

from .common.checks import (
    SPLIT_GENERATOR,
    USE_RESOURCE,
    checked_number,
    is_async,
    is_async_generator,
    is_generator,
    runs_later,
)
from .common.generic import K, K_co, KeyedByDefault, T, T_contra
from .common.groups import iter_leaves
from .common.text import shown
from .engine.group import SdaxTaskGroup
from .engine.threads import call_in_thread
from .states import Outcome

__all__ = [
    "AsyncTask",
    "Limits",
    "PlainFunction",
    "ResourceCleanUp",
    "ResourceSetUp",
    "RetryableException",
    "SdaxTaskGroup",
    "TaskFunction",
    "ThreadFunction",
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
# An async generator function that yields once, or what returns an async context manager.
HoldingFunction: TypeAlias = Callable[
    [T], AsyncIterator[Any] | AbstractAsyncContextManager[Any, Any]
]
Retryable: TypeAlias = tuple[type[Exception], ...] | type[Exception] | Callable[[Exception], bool]


class RetryableException(Exception):
    """Raise this, or a subclass, to ask for another attempt.

    It is one of the exceptions that `TaskFunction` retries by default:

    >>> async def fetch(ctx):
    ...     raise RetryableException("the service is starting")
    """


RETRYABLE_BY_DEFAULT: tuple[type[Exception], ...] = (
    TimeoutError,
    ConnectionError,
    RetryableException,
)


@dataclass(frozen=True, slots=True)
class TaskFunction(Generic[T_contra]):
    """One phase of a task: a function, and how often and how long to try it.

    - `function`: takes the context and returns an awaitable (an `async def`, as a rule).
    - `timeout`: seconds that one attempt may take; None means no limit, 0 expires at the
      attempt's first suspension.
    - `retries`: how many more attempts may follow the first.
    - `initial_delay`, `backoff_factor`, `max_delay`: the delay in seconds before retry k
      (0, 1, 2 ...) is `min(max_delay, initial_delay * backoff_factor**k)` times a random
      number between 0.5 and 1.0; `max_delay=None` sets no bound.
    - `retryable_exceptions`: exception types that earn another attempt, or a plain predicate
      that is asked with the exception. A group is retried when all its leaves are.
    - `has_task_group_argument`: call `function(ctx, group)` with an `SdaxTaskGroup`.
    - `has_outcome_argument`: call `function(ctx, outcome)` with an `Outcome`, which says how the
      run has gone; for `post_execute` alone.

    Raises `TypeError` or `ValueError`, with the field and the value, for what cannot work, such
    as a generator function.

    >>> TaskFunction(fetch_user, timeout=2.0, retries=3, initial_delay=0.1)
    """

    function: Function[T_contra] | GroupFunction[T_contra] | OutcomeFunction[T_contra]
    timeout: float | None = None
    retries: int = 0
    initial_delay: float = 1.0
    backoff_factor: float = 2.0
    retryable_exceptions: Retryable = RETRYABLE_BY_DEFAULT
    has_task_group_argument: bool = False
    max_delay: float | None = None
    has_outcome_argument: bool = False

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise TypeError(
                f"TaskFunction.function must be callable with the context, "
                f"got {shown(self.function)}{_hint_if_called(self.function)}"
            )
        if is_generator(self.function):
            raise _generator_refused("TaskFunction.function", self.function)
        for field in ("has_task_group_argument", "has_outcome_argument"):
            if not isinstance(getattr(self, field), bool):
                raise TypeError(
                    f"TaskFunction.{field} must be a bool, got {shown(getattr(self, field))}"
                )
        if self.has_task_group_argument and self.has_outcome_argument:
            raise ValueError(
                "TaskFunction: a function takes a task group or the outcome, and not both; open "
                "an asyncio.TaskGroup in the function that takes the outcome"
            )
        set_once = object.__setattr__
        for field in ("timeout", "max_delay"):
            if getattr(self, field) is not None:
                self._set_number(field)
        for field in ("initial_delay", "backoff_factor"):
            self._set_number(field)
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
        retryable = _checked_retryable(self.retryable_exceptions)
        set_once(self, "retryable_exceptions", retryable)
        if self.retries and retryable == ():
            raise ValueError(
                f"TaskFunction.retryable_exceptions is empty, so retries={shown(self.retries)} "
                f"could never happen; name an exception type or leave retries at 0"
            )

    def _set_number(self, field: str) -> None:
        number = checked_number(f"TaskFunction.{field}", getattr(self, field))
        object.__setattr__(self, field, number)

    # Pickle's protocols 0 to 2 make an OSError of TimeoutError and of ConnectionError. So the
    # state has the exceptions that are built in by their names.

    def __getstate__(self) -> dict[str, Any]:
        state = {field.name: getattr(self, field.name) for field in fields(self)}
        kinds = self.retryable_exceptions
        if isinstance(kinds, tuple):
            state["retryable_exceptions"] = tuple(_name_if_built_in(kind) for kind in kinds)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        kinds = state["retryable_exceptions"]
        if isinstance(kinds, tuple):
            kinds = tuple(vars(builtins)[k] if isinstance(k, str) else k for k in kinds)
        for name, value in {**state, "retryable_exceptions": kinds}.items():
            object.__setattr__(self, name, value)

    def is_retryable(self, exception: BaseException) -> bool:
        """Tell whether the exception earns another attempt, were one left."""
        kinds = self.retryable_exceptions
        if not isinstance(kinds, tuple):
            # No generator here: a StopIteration of the predicate's would not get through.
            for leaf in iter_leaves(exception):
                if not isinstance(leaf, Exception) or not _answer(kinds(leaf)):
                    return False
            return True
        if isinstance(exception, kinds):
            return True
        if not isinstance(exception, BaseExceptionGroup):
            return False
        return all(isinstance(leaf, kinds) for leaf in iter_leaves(exception))

    def backoff(self, retry: int) -> float:
        """Return the seconds before retry number `retry` (from 0), before the random factor.

        Raises `TypeError` for what is no integer, and `ValueError` for a negative one.
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


@dataclass(frozen=True, slots=True)
class AsyncTask(KeyedByDefault, Generic[T_contra, K_co]):
    """A named unit of work with up to three phases, each a `TaskFunction` or an async function.

    `name` is any hashable and unique in its processor. `pre_execute` acquires, `execute`
    works, `post_execute` gives back: it runs for every task that has started, whatever became
    of it, so it must cope with a `pre_execute` that got only half way. A function without limits
    may be given as it is; it becomes a `TaskFunction`.

    Raises `TypeError` for an unhashable name or a phase that is not a function, and `ValueError`
    for a task with no phase at all.

    >>> AsyncTask("Database", pre_execute=TaskFunction(connect, timeout=2.0), post_execute=close)
    """

    name: K_co
    pre_execute: TaskFunction[T_contra] | None = None
    execute: TaskFunction[T_contra] | None = None
    post_execute: TaskFunction[T_contra] | None = None

    if TYPE_CHECKING:

        def __init__(
            self,
            name: K_co,
            pre_execute: TaskFunction[T_contra] | Function[T_contra] | None = None,
            execute: TaskFunction[T_contra] | Function[T_contra] | None = None,
            post_execute: TaskFunction[T_contra] | Function[T_contra] | None = None,
        ) -> None: ...

    def __post_init__(self) -> None:
        try:
            hash(self.name)
        except Exception as error:
            raise TypeError(f"AsyncTask.name must be hashable, got {shown(self.name)}") from error
        given = {
            "pre_execute": self.pre_execute,
            "execute": self.execute,
            "post_execute": self.post_execute,
        }
        phases = {phase: _as_task_function(self.name, phase, each) for phase, each in given.items()}
        for phase, function in phases.items():
            object.__setattr__(self, phase, function)
        _check_halves(self.name, phases)
        if not any(phases.values()) and type(self) is not _Join:
            raise ValueError(
                f"task {shown(self.name)} has no phase; give it a pre_execute, an execute or a "
                f"post_execute, or make an empty node with join({shown(self.name)})"
            )


def _check_halves(name: Any, phases: dict[str, TaskFunction[Any] | None]) -> None:
    """Refuse one half of a resource without the other, and an outcome where there is none yet."""
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
            f"task {shown(name)} has a part of a resource as its {' and '.join(halves)}; set-up "
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
    """Say what to do about a function that was called by mistake, and close its coroutine."""
    if not isinstance(function, Awaitable):
        return ""
    if asyncio.iscoroutine(function):
        function.close()
    return "; pass the function itself, without calling it"


class _Join(AsyncTask[Any, K_co]):
    """A task with no phase: it orders others and does nothing itself."""

    __slots__ = ()


class Limits(TypedDict, total=False):
    """The keyword arguments that `task_func` and its kin share: the fields of `TaskFunction`.

    It is a type for helpers of your own:

    >>> def call_service(function: Callable[[T], Awaitable[Any]], **limits: Unpack[Limits]):
    ...     limits.setdefault("timeout", 2.0)
    ...     return task_func(function, **limits)
    """

    timeout: float | None
    retries: int
    initial_delay: float
    backoff_factor: float
    retryable_exceptions: Retryable
    max_delay: float | None


@dataclass(frozen=True, slots=True)
class PlainFunction(Generic[T_contra]):
    """What `task_sync_func` gives to `TaskFunction`: the engine calls `function` itself."""

    function: Callable[[T_contra], Any]

    async def __call__(self, ctx: T_contra) -> Any:
        return self.function(ctx)


@dataclass(frozen=True, slots=True)
class ThreadFunction(Generic[T_contra]):
    """What `task_thread_func` gives to `TaskFunction`: `function` is called in a thread."""

    function: Callable[[T_contra], Any]
    abandon_on_cancel: bool = False
    executor: Executor | None = None

    async def __call__(self, ctx: T_contra) -> Any:
        value = await call_in_thread(self.function, ctx, self.executor, self.abandon_on_cancel)
        if asyncio.iscoroutine(value):
            value.close()
            raise TypeError(
                f"the function of a thread must be a plain one, but it returned {shown(value)}; "
                f"use task_func"
            )
        return value


@dataclass(frozen=True, slots=True)
class ResourceSetUp(Generic[T_contra]):
    """What `resource` gives to `pre_execute`: the engine runs `function` up to its `yield`."""

    function: HoldingFunction[T_contra]

    def __call__(self, ctx: T_contra) -> Any:
        raise TypeError(f"only a run can set up a resource, {shown(self.function)}")


@dataclass(frozen=True, slots=True)
class ResourceCleanUp(Generic[T_contra]):
    """What `resource` gives to `post_execute`: the engine goes on after the `yield`."""

    function: HoldingFunction[T_contra]

    def __call__(self, ctx: T_contra) -> Any:
        raise TypeError(f"only a run can clean up a resource, {shown(self.function)}")


@overload
def task_func(
    function: Function[T],
    *,
    has_outcome_argument: Literal[False] = False,
    **limits: Unpack[Limits],
) -> TaskFunction[T]: ...


@overload
def task_func(
    function: OutcomeFunction[T],
    *,
    has_outcome_argument: Literal[True],
    **limits: Unpack[Limits],
) -> TaskFunction[T]: ...


def task_func(
    function: Function[T] | OutcomeFunction[T],
    *,
    has_outcome_argument: bool = False,
    **limits: Unpack[Limits],
) -> TaskFunction[T]:
    """Make a `TaskFunction` of an async function; keyword arguments as `TaskFunction`'s.

    >>> task_func(fetch_user, timeout=2.0, retries=3)
    """
    return TaskFunction(function, has_outcome_argument=has_outcome_argument, **limits)


def task_outcome_func(function: OutcomeFunction[T], **limits: Unpack[Limits]) -> TaskFunction[T]:
    """Make a `TaskFunction` of an async function that takes the context and an `Outcome`.

    It is for `post_execute` alone: the outcome says how the run has gone until then.

    >>> async def finish(ctx, outcome):
    ...     await (ctx.session.rollback() if outcome.exception else ctx.session.commit())
    >>> task("Session", pre_execute=begin, post_execute=task_outcome_func(finish, timeout=5.0))
    """
    return TaskFunction(function, has_outcome_argument=True, **limits)


def task_sync_func(function: Callable[[T], Any], **limits: Unpack[Limits]) -> TaskFunction[T]:
    """Make a `TaskFunction` of a plain function: called in the event loop, without a coroutine.

    For what is quick: it holds up everything else, and a timeout cannot interrupt it.

    >>> task_sync_func(lambda ctx: ctx.user_id is not None)
    """
    _check_plain("task_sync_func", function)
    return TaskFunction(PlainFunction(function), **limits)


def task_thread_func(
    function: Callable[[T], Any],
    *,
    abandon_on_cancel: bool = False,
    executor: Executor | None = None,
    **limits: Unpack[Limits],
) -> TaskFunction[T]:
    """Make a `TaskFunction` of a blocking function: run in a thread, with the context variables.

    A thread cannot be stopped. So a timeout or a cancellation waits until the function returns,
    and only then the run goes on. With `abandon_on_cancel=True` the run does not wait: the
    function runs on by itself, and what it returns or raises is lost.

    - `executor`: a `concurrent.futures.Executor` that runs the function. The time in its queue
      counts for `timeout`. An executor that uses other processes must be able to pickle the
      function, the context and the result; context variables stay behind.
    - Without an executor, a cleanup and a function with a timeout each get a new thread for each
      call, named `sdax:<task>:<phase>`, so that nothing else can hold them up. All other
      functions share the threads of the event loop's default executor, as `asyncio.to_thread`
      does. If no thread can be started, a cleanup runs in the event loop.

    Raises `TypeError` for an async or a generator function and for what is not an executor.

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


def task_group_func(function: GroupFunction[T], **limits: Unpack[Limits]) -> TaskFunction[T]:
    """Make a `TaskFunction` of an async function that takes the context and a task group.

    The group is new for each attempt. What the function creates in it is awaited before the
    attempt ends and cancelled with it; its failure fails the attempt.

    >>> async def fan_out(ctx, group):
    ...     for url in ctx.urls:
    ...         group.create_task(fetch(url))
    >>> task_group_func(fan_out, retries=2)
    """
    return TaskFunction(function, has_task_group_argument=True, **limits)


task_group_task = task_group_func


def task(
    name: K,
    *,
    pre_execute: TaskFunction[T] | Function[T] | None = None,
    execute: TaskFunction[T] | Function[T] | None = None,
    post_execute: TaskFunction[T] | Function[T] | None = None,
) -> AsyncTask[T, K]:
    """Make a task with at least one phase: an async function, or one with limits (`task_func`).

    >>> task("Flags", execute=load_flags)
    >>> task("User", pre_execute=task_func(load_user, timeout=2.0), post_execute=forget_user)
    """
    return AsyncTask(name, pre_execute, execute, post_execute)


def join(name: K) -> AsyncTask[Any, K]:
    """Make an empty task on purpose: a node that others can depend on.

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


def _generator_refused(what: str, function: object) -> TypeError:
    hint = USE_RESOURCE if is_async_generator(function) else SPLIT_GENERATOR
    return TypeError(f"{what} is a generator function, {shown(function)}: {hint}")


def _refuse_change(self: object, name: str, value: object) -> None:
    raise FrozenInstanceError(f"{type(self).__name__} is immutable: cannot set {shown(name)}")


# What dataclass() generates for frozen classes with slots fails with a TypeError on Python 3.11
# where typing sets __orig_class__, as in TaskFunction[Context](...).
for _frozen in (
    TaskFunction,
    AsyncTask,
    PlainFunction,
    ThreadFunction,
    ResourceSetUp,
    ResourceCleanUp,
):
    setattr(_frozen, "__setattr__", _refuse_change)  # noqa: B010


def _answer(answer: Any) -> Any:
    """Return what a predicate said, but for a coroutine, which is always true and says nothing."""
    if asyncio.iscoroutine(answer):
        answer.close()
        raise TypeError(
            f"the predicate of TaskFunction.retryable_exceptions must be a plain function, but it "
            f"returned {shown(answer)}"
        )
    return answer


def _name_if_built_in(kind: type[Exception]) -> type[Exception] | str:
    return kind.__name__ if vars(builtins).get(kind.__name__) is kind else kind


def _checked_retryable(
    retryable: Any,
) -> tuple[type[Exception], ...] | Callable[[Exception], bool]:
    if isinstance(retryable, type):
        retryable = (retryable,)
    elif isinstance(retryable, (list, set, frozenset)):
        retryable = tuple(retryable)
    if isinstance(retryable, tuple):
        for kind in retryable:
            if not (isinstance(kind, type) and issubclass(kind, Exception)):
                raise TypeError(
                    f"TaskFunction.retryable_exceptions must hold subclasses of Exception, "
                    f"got {shown(kind)}"
                )
        return retryable
    if callable(retryable):
        if runs_later(retryable):
            raise TypeError(
                f"TaskFunction.retryable_exceptions must be a plain predicate, for nobody awaits "
                f"or iterates what it returns, got {shown(retryable)}; define it with 'def', "
                f"without 'yield'"
            )
        return retryable  # type: ignore[no-any-return]
    raise TypeError(
        f"TaskFunction.retryable_exceptions must be a tuple of exception types or a "
        f"predicate, got {shown(retryable)}"
    )
