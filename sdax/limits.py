"""The limits of a `TaskFunction`: their types, and the checks that refuse wrong values."""

from __future__ import annotations

import asyncio
import builtins
import inspect
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, NoReturn, TypeAlias

from .budget import RetryBudget
from .common.arguments import check_takes
from .common.checks import is_generator, runs_later
from .common.generic import T
from .common.groups import iter_leaves
from .common.text import shown

Predicate: TypeAlias = Callable[[Exception], bool]
Kinds: TypeAlias = tuple[type[Exception], ...] | Predicate  # as a TaskFunction keeps them
Retryable: TypeAlias = tuple[type[Exception], ...] | type[Exception] | Predicate
RetryAfter: TypeAlias = Callable[[Exception], float | None]
Limiter: TypeAlias = (
    AbstractAsyncContextManager[Any, Any] | Callable[[T], AbstractAsyncContextManager[Any, Any]]
)
Fallback: TypeAlias = Callable[[T, Exception], Any]

_LIMITER: Final = "an async context manager, or a function of the context that returns one"


def checked_kinds(field: str, kinds: Any) -> Kinds:
    """Return exception types as a tuple, or a predicate.

    Raises `TypeError`, with the name of the field, for anything else.
    """
    if isinstance(kinds, type):
        kinds = (kinds,)
    elif isinstance(kinds, (list, set, frozenset)):
        kinds = tuple(kinds)
    if isinstance(kinds, tuple):
        for kind in kinds:
            if not (isinstance(kind, type) and issubclass(kind, Exception)):
                raise TypeError(f"{field} must hold subclasses of Exception, got {shown(kind)}")
        return kinds
    if callable(kinds):
        if runs_later(kinds):
            raise TypeError(
                f"{field} must be a plain predicate, because nothing awaits or iterates what it "
                f"returns, got {shown(kinds)}; define it with 'def', without 'yield'"
            )
        check_takes(field, kinds, "exc")
        return kinds  # type: ignore[no-any-return]
    raise TypeError(
        f"{field} must be a tuple of exception types or a predicate, got {shown(kinds)}"
    )


def are_of(kinds: Kinds, exception: BaseException, field: str) -> bool:
    """Return True if an exception is of these kinds. In a group, all leaves must be."""
    if not isinstance(kinds, tuple):
        # There is no generator here, because a StopIteration of the predicate would be lost in it.
        for leaf in iter_leaves(exception):
            if not isinstance(leaf, Exception) or not answer(
                kinds(leaf), f"the predicate of {field}"
            ):
                return False
        return True
    if isinstance(exception, kinds):
        return True
    if not isinstance(exception, BaseExceptionGroup):
        return False
    return all(isinstance(leaf, kinds) for leaf in iter_leaves(exception))


def answer(given: Any, function: str) -> Any:
    """Return the answer of a user's function. Raises `TypeError` for a coroutine."""
    if asyncio.iscoroutine(given):
        given.close()
        raise TypeError(f"{function} must be a plain function, but it returned {shown(given)}")
    return given


def check_retry_after(function: Any) -> None:
    """Raise `TypeError` if this cannot return the seconds before a retry."""
    if not callable(function):
        raise TypeError(
            f"TaskFunction.retry_after must be a function that gets the exception and returns "
            f"seconds or None, got {shown(function)}"
        )
    if runs_later(function):
        raise TypeError(
            f"TaskFunction.retry_after must be a plain function, because nothing awaits or "
            f"iterates what it returns, got {shown(function)}"
        )
    check_takes("TaskFunction.retry_after", function, "exc")


def is_context_manager(limiter: Any) -> bool:
    """Return True if `async with` accepts it."""
    kind = type(limiter)
    return hasattr(kind, "__aenter__") and hasattr(kind, "__aexit__")


def check_limiter(limiter: Any) -> None:
    """Raise `TypeError` if this cannot limit the attempts of a function."""
    if inspect.isasyncgen(getattr(limiter, "gen", None)):  # of contextlib.asynccontextmanager
        raise TypeError(
            f"TaskFunction.limiter is {shown(limiter)}, which can be entered only once; pass the "
            f"function that returns it, without calling it"
        )
    if is_context_manager(limiter):
        return
    if isinstance(limiter, type):
        raise TypeError(
            f"TaskFunction.limiter is the class {shown(limiter)}, which would make a limiter of "
            f"its own for each attempt, and so limit nothing; pass an object that the attempts "
            f"share, or a function of the context that returns one"
        )
    if not callable(limiter):
        plain = " ('async with', not 'with')" if hasattr(type(limiter), "__enter__") else ""
        raise TypeError(f"TaskFunction.limiter must be {_LIMITER}, got {shown(limiter)}{plain}")
    if runs_later(limiter):
        raise TypeError(
            f"TaskFunction.limiter must be {_LIMITER}, got {shown(limiter)}; define it with 'def' "
            f"without 'yield', or decorate it with contextlib.asynccontextmanager"
        )
    check_takes("TaskFunction.limiter", limiter, "ctx")


def limiter_of(limiter: Any, ctx: Any) -> Any:
    """Return the context manager for one attempt."""
    if is_context_manager(limiter):
        return limiter
    made = limiter(ctx)
    if not is_context_manager(made):
        refuse_made_limiter(made)
    return made


def refuse_made_limiter(made: Any) -> NoReturn:
    """Refuse, with a `TypeError`, what a function returned that is a limiter."""
    if asyncio.iscoroutine(made):
        made.close()
    raise TypeError(
        f"the function that is TaskFunction.limiter must return an async context manager, but "
        f"it returned {shown(made)}"
    )


def check_fallback(function: Any) -> None:
    """Raise `TypeError` if this cannot be called in place of a failed function."""
    if not callable(function):
        raise TypeError(
            f"TaskFunction.fallback must be a function of the context and the exception, "
            f"got {shown(function)}; for a fixed value write 'lambda ctx, exc: value'"
        )
    if is_generator(function):
        raise TypeError(
            f"TaskFunction.fallback must be an async or a plain function without 'yield', "
            f"got {shown(function)}"
        )
    check_takes("TaskFunction.fallback", function, "ctx", "exc")


def check_budget(budget: Any) -> None:
    """Raise `TypeError` if this is not a `RetryBudget`."""
    if not isinstance(budget, RetryBudget):
        raise TypeError(f"TaskFunction.retry_budget must be a RetryBudget, got {shown(budget)}")


# Pickle's protocols 0 to 2 turn TimeoutError and ConnectionError into OSError. So the state of a
# TaskFunction has the names of built-in exceptions.


def pickled_kinds(kinds: Any) -> Any:
    """Return kinds of exceptions in a form that every protocol of pickle keeps."""
    return tuple(map(_name_if_built_in, kinds)) if isinstance(kinds, tuple) else kinds


def unpickled_kinds(kinds: Any) -> Any:
    """Return the kinds that were passed to `pickled_kinds`."""
    if not isinstance(kinds, tuple):
        return kinds
    return tuple(vars(builtins)[kind] if isinstance(kind, str) else kind for kind in kinds)


def _name_if_built_in(kind: type[Exception]) -> type[Exception] | str:
    return kind.__name__ if vars(builtins).get(kind.__name__) is kind else kind
