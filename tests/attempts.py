"""What the tests of attempts are written in: functions that fail as told, and exact times."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

virtual_clock = pytest.mark.virtual_clock

suspended_or_not = pytest.mark.parametrize("suspend", [False, True], ids=["at once", "suspended"])


def now() -> float:
    """The time of the running loop."""
    return asyncio.get_running_loop().time()


class Flaky:
    """A function that fails as it is told, then succeeds; it notes when it was called."""

    def __init__(self, *errors: BaseException, suspend: bool = False) -> None:
        self.errors = list(errors)
        self.suspend = suspend
        self.calls: list[float] = []

    async def __call__(self, ctx: Any) -> str:
        self.calls.append(now())
        if self.suspend:
            await asyncio.sleep(0)
        if self.errors:
            raise self.errors.pop(0)
        return "done"


async def sleep_for_ten(ctx: Any) -> None:
    """Take ten seconds."""
    await asyncio.sleep(10)
