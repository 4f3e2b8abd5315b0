"""Functions that cannot be called with the arguments of a run are refused when they are given."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from typing import Any
from unittest.mock import AsyncMock, MagicMock, Mock, create_autospec

import pytest

from helpers import build, nothing, solo
from sdax import (
    AsyncTask,
    AsyncTaskProcessor,
    hedged,
    resource,
    task,
    task_func,
    task_group_func,
    task_outcome_func,
    task_sync_func,
    task_thread_func,
)
from sdax.common.arguments import check_takes

ANY: Any = task_func
HEDGED: Any = hedged(nothing, delay=1.0)


async def no_arguments() -> None:
    """Return at once."""


async def with_two(ctx: Any, outcome: Any) -> None:
    """Return at once."""


async def generator(ctx: Any, other: Any) -> Any:
    yield


class Service:
    async def load(self, ctx: Any) -> None:
        """Return at once."""

    async def __call__(self, ctx: Any, other: Any) -> None:
        """Return at once."""


def no_offers(ctx: Any) -> list[Any]:
    return []


def never() -> bool:
    return False


TWO = (
    "; use task_outcome_func if it also takes the outcome of the run, or task_group_func if it "
    "also takes a task group"
)
# What is built, and the end of the message. "FUNCTION" stands for the function in it.
REFUSED: list[tuple[Callable[[], Any], str]] = [
    (
        lambda: ANY(nothing, fallback=no_offers),
        "TaskFunction.fallback must take (ctx, exc), got FUNCTION no_offers, which takes (ctx)",
    ),
    (
        lambda: ANY(nothing, fallback=lambda: 0),
        "TaskFunction.fallback must take (ctx, exc), got FUNCTION <lambda>, which takes ()",
    ),
    (
        lambda: ANY(nothing, retries=1, retryable_exceptions=never),
        "TaskFunction.retryable_exceptions must take (exc), got FUNCTION never, which takes ()",
    ),
    (
        lambda: ANY(nothing, fallback=Mock(), fallback_exceptions=never),
        "TaskFunction.fallback_exceptions must take (exc), got FUNCTION never, which takes ()",
    ),
    (
        lambda: ANY(nothing, retry_after=lambda ctx, exc: 1),
        "TaskFunction.retry_after must take (exc), got FUNCTION <lambda>, which takes (ctx, exc)",
    ),
    (
        lambda: ANY(nothing, limiter=never),
        "TaskFunction.limiter must take (ctx), got FUNCTION never, which takes ()",
    ),
    (
        lambda: hedged(with_two, delay=1.0),  # type: ignore[arg-type]
        "hedged: function must take (ctx), got FUNCTION with_two, which takes (ctx, outcome)",
    ),
    (
        lambda: ANY(no_arguments),
        "TaskFunction.function must take (ctx), got FUNCTION no_arguments, which takes ()",
    ),
    (
        lambda: task("A", post_execute=with_two),  # type: ignore[arg-type]
        f"post_execute of task 'A': TaskFunction.function must take (ctx), got FUNCTION with_two, "
        f"which takes (ctx, outcome){TWO}",
    ),
    (
        lambda: task("A", execute=Service.load),  # type: ignore[arg-type]
        "execute of task 'A': TaskFunction.function must take (ctx), got FUNCTION Service.load, "
        "which takes (self, ctx); pass the method of an object, and not of its class",
    ),
    (
        lambda: task_outcome_func(nothing),  # type: ignore[arg-type]
        "TaskFunction.function must take (ctx, outcome), got FUNCTION nothing, which takes (ctx)",
    ),
    (
        lambda: task_group_func(nothing),  # type: ignore[arg-type]
        "TaskFunction.function must take (ctx, group), got FUNCTION nothing, which takes (ctx)",
    ),
    (
        lambda: task_group_func(HEDGED),  # type: ignore[arg-type]
        "TaskFunction.function must take (ctx, group), got _Hedged(function=FUNCTION nothing, "
        "delay=1.0, attempts=2), which takes (ctx)",
    ),
    (
        lambda: task_sync_func(never),  # type: ignore[arg-type]
        "the function of task_sync_func must take (ctx), got FUNCTION never, which takes ()",
    ),
    (
        lambda: task_thread_func(never),  # type: ignore[arg-type]
        "the function of task_thread_func must take (ctx), got FUNCTION never, which takes ()",
    ),
    (
        lambda: resource("A", generator),  # type: ignore[arg-type]
        "the function of resource 'A' must take (ctx), got FUNCTION generator, which takes "
        "(ctx, other)",
    ),
    (
        lambda: resource("A", never),  # type: ignore[arg-type]
        "the function of resource 'A' must take (ctx), got FUNCTION never, which takes ()",
    ),
    (
        lambda: AsyncTaskProcessor.builder(observer=never),  # type: ignore[arg-type]
        "observer must take (event), got FUNCTION never, which takes ()",
    ),
    (
        lambda: solo(nothing).open(None, observer=[print, never]),  # type: ignore[list-item]
        "observer must take (event), got FUNCTION never, which takes ()",
    ),
    (
        lambda: solo(nothing).replaced({"A": no_arguments}),
        "replaced: pre_execute of task 'A': TaskFunction.function must take (ctx), got FUNCTION "
        "no_arguments, which takes ()",
    ),
    (
        lambda: build([AsyncTask("A", task_group_func(with_two))]).replaced({"A": nothing}),
        "replaced: pre_execute of task 'A': TaskFunction.function must take (ctx, group), got "
        "FUNCTION nothing, which takes (ctx)",
    ),
]


@pytest.mark.parametrize(("make", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_it_is_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(TypeError) as caught:
        make()
    shown = re.sub(r"<function (\S*<locals>\.)?(\S+) at \w+>", r"FUNCTION \2", str(caught.value))
    assert shown == message


class WithStatic:
    @staticmethod
    def __call__(ctx: Any) -> None:
        """Return at once."""


class WithClassMethod:
    @classmethod
    def __call__(cls, ctx: Any) -> None:
        """Return at once."""


@functools.wraps(never)
def wrapper(*args: Any) -> None:
    """Return at once."""


def every_kind(first: Any, /, second: Any, third: Any = 3, *, fourth: Any = 4) -> None:
    """Return at once."""


def required_by_name(ctx: Any, *, flag: bool) -> None:
    """Return at once."""


def collects(*args: Any, **kwargs: Any) -> None:
    """Return at once."""


def collects_names(ctx: Any, /, **kwargs: Any) -> None:
    """Return at once."""


partial = functools.partial
JUDGED: list[Any] = [
    nothing, no_arguments, with_two, generator, Service(), Service().load, Service.load, never,
    no_offers, Mock(), MagicMock(), AsyncMock(), wrapper, every_kind,
    required_by_name, collects, collects_names, HEDGED,
    lambda ctx=1: ctx, lambda a, b=2, *c, d=4: a,
    partial(every_kind, 1), partial(every_kind, 1, 2), partial(every_kind, 1, 2, 3),
    partial(every_kind, 1, 2, 3, 4), partial(every_kind, second=2), partial(every_kind, third=3),
    partial(every_kind, first=1), partial(every_kind, fourth=1), partial(every_kind, other=1),
    partial(required_by_name, flag=True), partial(required_by_name, ctx=1),
    partial(collects, 1, a=2), partial(collects_names, ctx=1), partial(Service.load, None),
    partial(Service(), 1), partial(Service().load, ctx=1), partial(partial(with_two, 1), 2),
    partial(partial(with_two, outcome=1), outcome=2), partial(never, None), partial(Mock(), 1),
]  # fmt: skip
ACCEPTED: list[Any] = [
    create_autospec(nothing), functools.lru_cache(never), len, dict, Service, "".join, WithStatic(),
    WithClassMethod(), WithStatic, partial(len), partial(dict, 1), partial(partial, never),
]  # fmt: skip


def is_refused(function: Any, count: int) -> bool:
    try:
        check_takes("it", function, *"abc"[:count])
    except TypeError:
        return True
    return False


def test_it_says_the_same_as_a_call() -> None:
    for function in JUDGED:
        for count in range(4):
            try:
                returned = function(*range(count))
            except TypeError:
                fails = True
            else:
                fails = False
                if inspect.iscoroutine(returned):
                    returned.close()
            assert is_refused(function, count) is fails, (function, count)


def test_nothing_is_known_of_other_functions() -> None:
    for function in ACCEPTED:
        assert not any(is_refused(function, count) for count in range(4)), function


@pytest.mark.skipif(not hasattr(functools, "Placeholder"), reason="new in Python 3.14")
def test_nothing_is_known_of_a_partial_with_places() -> None:
    place = functools.Placeholder  # type: ignore[attr-defined, unused-ignore]
    check_takes("it", partial(with_two, place, 1), "ctx")


def test_what_is_judged() -> None:
    """The functions that are written in Python, also in a method, an object or a partial."""

    def parameters(function: Any) -> str:
        with pytest.raises(TypeError) as caught:
            check_takes("it", function, *"123456789")
        return str(caught.value).rpartition("which takes ")[2]

    assert parameters(every_kind) == "(first, second, third=..., *, fourth=...)"
    assert parameters(partial(every_kind, 1, fourth=2)) == "(second, third=..., *)"
    assert parameters(required_by_name) == "(ctx, *, flag)"
    assert parameters(collects_names) == "(ctx, **kwargs)"
    assert parameters(Service()) == "(ctx, other)"
    assert parameters(Service().load) == "(ctx)"
    assert parameters(partial(partial(with_two, 1), outcome=2)) == "()"
    with pytest.raises(TypeError, match=r"which takes \(a, \*args, b, \*\*kwargs\)$"):
        check_takes("it", lambda a, *args, b, **kwargs: None, "ctx")
