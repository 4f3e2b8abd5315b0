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

    __slots__ = ("_base", "_changes", "_last", "_made", "_order", "_plan")

    def __init__(self, plan: Plan, base: Context) -> None:
        self._plan = plan
        self._base = base
        self._changes: dict[int, Changes] = {}  # by resource
        self._order: list[int] = []  # resources, each after those on which it has waited
        # By stage or gate: the context, and the last resource whose changes are in it. All of
        # these resources are set up before the stage or gate opens.
        self._made: dict[int, tuple[Context, int]] = {}
        self._last: tuple[list[int], Context] = ([], base)  # context made, and for which resources

    def add(self, index: int, changes: Changes) -> None:
        """Take note of what the set-up of a resource has set."""
        self._changes[index] = changes
        # Nothing has waited for it yet, so the others stay where they are.
        _, last = self._at(self._plan.starts_with[index])
        order = self._order
        place = 0 if last < 0 else order.index(last) + 1
        while place < len(order) and order[place] < index:
            place += 1
        order.insert(place, index)

    def of(self, number: int, index: int) -> Context:
        """Return the context of which a function gets a copy."""
        return self._at(-1 if number == EXECUTE else self._plan.starts_with[index])[0]

    def _at(self, at: int) -> tuple[Context, int]:
        made = self._made.get(at)
        if made is None:
            is_before = self._plan.is_before
            seen = [one for one in self._order if at < 0 or is_before(one, at)]
            made = self._made[at] = self._context_of(seen), seen[-1] if seen else -1
        return made

    def _context_of(self, resources: list[int]) -> Context:
        """Return a context with the changes of these resources, which are in their order."""
        known, context = self._last
        if resources[: len(known)] != known:
            known, context = [], self._base
        changes: Changes = {}
        for resource in resources[len(known) :]:
            changes.update(self._changes[resource])
        if changes:
            context = with_changes(context, changes)
        self._last = resources, context
        return context
