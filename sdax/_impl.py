"""Chooses the engine when sdax is imported.

The compiled one where it is installed, else the Python one. `SDAX_NO_EXTENSIONS=1` asks for the
Python engine, `SDAX_REQUIRE_EXTENSIONS=1` makes a missing compiled one an `ImportError`; an
empty value, `0` and `false` mean off.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

__all__ = ["IMPLEMENTATION", "Run"]


def _is_on(switch: str) -> bool:
    return os.environ.get(switch, "").strip().lower() not in ("", "0", "false")


if TYPE_CHECKING:
    from ._core_py import Run

    IMPLEMENTATION: str
elif _is_on("SDAX_NO_EXTENSIONS"):
    from ._core_py import Run

    IMPLEMENTATION = "python"
else:
    try:
        from ._core import Run

        IMPLEMENTATION = "cython"
    except ImportError as error:
        if _is_on("SDAX_REQUIRE_EXTENSIONS"):
            raise ImportError(
                "SDAX_REQUIRE_EXTENSIONS is set, but the compiled engine sdax._core cannot be "
                "imported; with a C compiler, this builds it: "
                "pip install --no-cache-dir --no-binary sdax --force-reinstall sdax"
            ) from error
        from ._core_py import Run

        IMPLEMENTATION = "python"
