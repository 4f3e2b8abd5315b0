"""Small immutable values."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from reprlib import recursive_repr
from typing import Any, ClassVar, NoReturn, dataclass_transform

from .text import shown


@dataclass_transform(frozen_default=True)
class Frozen:
    """The base of small immutable values, which are equal if their fields are.

    A subclass names its attributes in `__slots__` and sets them once, in its `__init__`. The fields
    are in `__match_args__`: they are compared, hashed and shown. To change an attribute raises
    `FrozenInstanceError`.

    A frozen dataclass with slots behaves alike. But its methods are generated and compiled whenever
    its module is imported, which is most of the time that the import takes.

    >>> class Point(Frozen):
    ...     __slots__ = __match_args__ = ("x", "y")
    ...     def __init__(self, x: float, y: float) -> None:
    ...         self._set_once(x=x, y=y)
    """

    __slots__ = ()
    __match_args__: ClassVar[tuple[str, ...]] = ()

    def _set_once(self, **attributes: Any) -> None:
        for name, value in attributes.items():
            object.__setattr__(self, name, value)

    def _fields(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in self.__match_args__)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Frozen) or type(other) is not type(self):
            return NotImplemented
        return self._fields() == other._fields()

    def __hash__(self) -> int:
        return hash(self._fields())

    @recursive_repr()
    def __repr__(self) -> str:
        pairs = zip(self.__match_args__, self._fields(), strict=True)
        return (
            f"{type(self).__qualname__}({', '.join(f'{name}={value!r}' for name, value in pairs)})"
        )

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise FrozenInstanceError(f"{type(self).__name__} is immutable: cannot set {shown(name)}")

    def __delattr__(self, name: str) -> NoReturn:
        raise FrozenInstanceError(
            f"{type(self).__name__} is immutable: cannot delete {shown(name)}"
        )

    def __getstate__(self) -> Any:
        slots: tuple[str, ...] = self.__slots__
        return [getattr(self, name) for name in slots]

    def __setstate__(self, state: Any) -> None:
        self._set_once(**dict(zip(self.__slots__, state, strict=True)))
