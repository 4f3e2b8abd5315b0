"""`python -m sdax`: which sdax is this?"""

from __future__ import annotations

import asyncio
import platform
import sys

from . import IMPLEMENTATION, __version__


def main() -> None:
    """Print the versions of sdax and Python, the engine and the event loop."""
    with asyncio.Runner() as runner:
        loop = type(runner.get_loop())
    print(f"sdax {__version__}")
    print(f"engine: {IMPLEMENTATION}")
    print(f"Python: {platform.python_implementation()} {sys.version.split()[0]}")
    print(f"loop: {loop.__module__}.{loop.__qualname__}")


if __name__ == "__main__":
    main()
