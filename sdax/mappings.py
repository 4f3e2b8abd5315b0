"""The read-only mappings of a processor."""

from __future__ import annotations

from typing import Any, NoReturn

from frozendict import frozendict

from .states import UnknownTaskError


class ByName(frozendict[Any, Any]):
    """A mapping from the names of tasks, which suggests similar names for an unknown name."""

    def __missing__(self, name: Any) -> NoReturn:
        raise UnknownTaskError(name, self)
