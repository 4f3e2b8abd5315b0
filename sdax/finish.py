"""Ending a run early, with success."""

from __future__ import annotations

from typing import Any, Generic, NoReturn, final

from .common.frozen import Frozen
from .common.generic import V_co


@final
class Finish(Frozen, Generic[V_co]):
    """Return this from a `pre_execute` or an `execute` to end the run early, with success.

    The waiting functions are cancelled and awaited, nothing more is called, and every task that
    started cleans up. Then the report is returned. Its `finished_by` is the name of the task, and
    `value` is the value of the phase that returned this. The first `Finish` counts. If the run has
    already stopped for any reason, a `Finish` is a plain value. If a `post_execute` returns it,
    that is a failure, a `TypeError`.

    >>> async def look_up(ctx):
    ...     if (page := await ctx.cache.get(ctx.url)) is not None:
    ...         return Finish(page)
    """

    __slots__ = __match_args__ = ("value",)

    value: V_co

    def __init__(self, value: V_co) -> None:
        self._set_once(value=value)

    def __getstate__(self) -> dict[str, Any]:
        return {"value": self.value}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._set_once(**state)

    def __init_subclass__(cls, **_: Any) -> NoReturn:
        raise TypeError("Finish cannot be subclassed; its value can be any object")
