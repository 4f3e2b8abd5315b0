"""Context variables that resources set, and who sees them."""

from __future__ import annotations

from contextvars import Context, ContextVar, copy_context
from gc import get_referents
from typing import Any, Final, TypeAlias

from ..common.order import EXECUTE
from .plan import Plan

Changes: TypeAlias = dict[ContextVar[Any], Any]

_MISSING: Final = object()


def changes_between(before: Context, after: Context) -> Changes:
    """Return the variables that have another value, or have one at last, with this value."""
    if _KNOWS_MAPPINGS and _mapping(before) is _mapping(after):
        return {}
    return {
        variable: value
        for variable, value in after.items()
        if before.get(variable, _MISSING) is not value
    }


def with_changes(context: Context, changes: Changes) -> Context:
    """Return a copy of a context with other values of variables."""
    copy = context.copy()
    copy.run(_set, changes)
    return copy


def _set(changes: Changes) -> None:
    for variable, value in changes.items():
        variable.set(value)


def _mapping(context: Context) -> Any:
    """Return what holds the variables of a context that nobody is in: each change replaces it."""
    return get_referents(context)[-1]


def _knows_mappings() -> bool:
    """Return True if this Python keeps the variables of a context where they are looked for."""
    variable: ContextVar[int] = ContextVar("variable")
    one = with_changes(copy_context(), {variable: 1})
    other = with_changes(one, {variable: 2})
    found = [get_referents(each)[-1:] for each in (one, one.copy(), other)]
    return all(found) and found[0][0] is found[1][0] and found[0][0] is not found[2][0]


_KNOWS_MAPPINGS: Final = _knows_mappings()


class Contexts:
    """The contexts of a run in which resources have set variables.

    A function sees what was set by the resources on which it waited: those of lower levels, or
    those that its task depends on. A cleanup sees what its set-up saw, and `execute` everything.
    """

    __slots__ = ("_base", "_changes", "_made", "_plan")

    def __init__(self, plan: Plan, base: Context) -> None:
        self._plan = plan
        self._base = base
        self._changes: dict[int, Changes] = {}  # by resource
        self._made: dict[int, Context] = {}  # by stage or gate

    def add(self, index: int, changes: Changes) -> None:
        """Take note of what the set-up of a resource has set."""
        self._changes[index] = changes
        self._made.clear()

    def of(self, number: int, index: int) -> Context:
        """Return the context of which a function gets a copy."""
        at = -1 if number == EXECUTE else self._plan.starts_with[index]
        context = self._made.get(at)
        if context is None:
            context = self._base
            for resource in self._in_order():
                if at < 0 or self._plan.is_before(resource, at):
                    context = with_changes(context, self._changes[resource])
            self._made[at] = context
        return context

    def _in_order(self) -> list[int]:
        """Return the resources so that each comes after those on which it has waited."""
        left = sorted(self._changes)
        order: list[int] = []
        while left:
            first = next(one for one in left if not any(self._waits(one, other) for other in left))
            left.remove(first)
            order.append(first)
        return order

    def _waits(self, index: int, other: int) -> bool:
        return self._plan.is_before(other, self._plan.starts_with[index])
