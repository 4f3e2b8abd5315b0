"""How deep the engines go into the call stack, and what they do near its end."""

from __future__ import annotations

from contextvars import Context, ContextVar
from sys import getrecursionlimit
from typing import Final

# A function is called on the stack of whoever starts it, up to this many runs inside of runs.
# Deeper ones are called by the event loop, as a `TaskGroup` does with all.
DEEPEST: Final = 16

# Frames that the engine takes beyond the recursion limit, to leave its work to the event loop.
ROOM: Final = 200

MOST_VAIN_ATTEMPTS: Final = 3  # to go on with a run in which nothing moves any more

_depth: Final[ContextVar[int]] = ContextVar("sdax_depth", default=0)


def refuse_endless(context: Context) -> None:
    """Raise a `RecursionError` if runs are nested as deep as function calls may be.

    Called once in each `DEEPEST` runs: deeper ones inherit the count in their context variables.
    """
    depth = context.get(_depth, 0) + DEEPEST
    if depth >= getrecursionlimit():
        raise RecursionError(
            f"more than {depth - DEEPEST} runs inside of each other: a function calls "
            f"process_tasks again and again, without an end"
        )
    context.run(_depth.set, depth)
