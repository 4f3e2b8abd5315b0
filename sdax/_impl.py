"""Chooses the engine when sdax is imported.

It uses the compiled engine if it is installed, and otherwise the Python engine. If the compiled
engine is installed but cannot be imported, there is a `RuntimeWarning`. `SDAX_NO_EXTENSIONS=1`
selects the Python engine. With `SDAX_REQUIRE_EXTENSIONS=1`, a missing compiled engine is an
`ImportError`. An empty value, `0` and `false` mean off.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from .engine.switches import is_on

__all__ = ["IMPLEMENTATION", "Run"]


def _is_expected(error: Exception) -> bool:
    """Return True if the compiled engine is not installed, or this is a sub-interpreter."""
    if isinstance(error, ModuleNotFoundError):
        return error.name == f"{__package__}._core"
    # CPython and Cython both refuse sub-interpreters, each with its own message.
    return isinstance(error, ImportError) and "interpreter" in str(error).lower()


if TYPE_CHECKING:
    from ._core_py import Run

    IMPLEMENTATION: str
elif is_on("SDAX_NO_EXTENSIONS"):
    from ._core_py import Run

    IMPLEMENTATION = "python"
else:
    try:
        from ._core import Run

        IMPLEMENTATION = "cython"
    except Exception as error:
        if is_on("SDAX_REQUIRE_EXTENSIONS"):
            raise ImportError(
                "SDAX_REQUIRE_EXTENSIONS is set, but the compiled engine sdax._core cannot be "
                "imported. Install a C compiler, and run this in a clone of sdax: "
                "pip install --no-cache-dir --force-reinstall ."
            ) from error
        if not _is_expected(error):
            warnings.warn(
                f"sdax uses its Python engine, which is slower, because the compiled engine "
                f"sdax._core cannot be imported ({type(error).__name__}: {error}). Install sdax "
                f"again, or set SDAX_NO_EXTENSIONS=1 to use the Python engine without this warning",
                RuntimeWarning,
                stacklevel=3,
            )
        from ._core_py import Run

        IMPLEMENTATION = "python"
