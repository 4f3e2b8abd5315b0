"""Type variables with defaults: `AsyncTask[Context]` alone, without the type of its name."""

from __future__ import annotations

import sys
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import TypeVar
elif sys.version_info >= (3, 13):
    from typing import TypeVar
else:
    from typing import TypeVar as PlainTypeVar

    def TypeVar(name: str, *, default: Any, **options: Any) -> Any:  # noqa: N802
        return PlainTypeVar(name, **options)


T = TypeVar("T", default=Any)
K = TypeVar("K", bound=Hashable, default=Any)
T_contra = TypeVar("T_contra", contravariant=True, default=Any)
K_co = TypeVar("K_co", bound=Hashable, covariant=True, default=Any)
V_co = TypeVar("V_co", covariant=True, default=Any)


class KeyedByDefault:
    """Makes the second type argument of a class optional at run time: `AsyncTask[Context]`.

    It is needed on Pythons whose type variables have no defaults.
    """

    __slots__ = ()

    if not TYPE_CHECKING and sys.version_info < (3, 13):

        def __class_getitem__(cls, parameters: Any) -> Any:
            if not isinstance(parameters, tuple):
                parameters = (parameters, Any)
            return super().__class_getitem__(parameters)
