"""Functions that use what programs use beside asyncio: in all phases, to the end, and cancelled.

Real servers, files and threads; where one cannot be had, the test is skipped and says why.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from companions import COMPANIONS, USERS, AsyncPG, Companion, answer, processor
from helpers import PHASES, error_of, spawn, until

PRE, EXECUTE, POST = PHASES
EVERYTHING = {(user, phase) for user in USERS for phase in PHASES}
PROCESSOR = processor()


def open_sockets() -> set[int]:
    """Return the numbers of the sockets that this process has, where the system shows them."""
    found = set()
    with suppress(FileNotFoundError):
        for path in Path("/dev/fd").iterdir():
            with suppress(OSError):  # the one by which they were listed
                if stat.S_ISSOCK(os.fstat(int(path.name)).st_mode):
                    found.add(int(path.name))
    return found


@pytest.fixture(params=COMPANIONS)
def companion(request: pytest.FixtureRequest) -> type[Companion]:
    """One companion after the other, with what it needs."""
    kind: type[Companion] = request.param
    for name in kind.needs:
        try:
            importlib.import_module(name)
        except ImportError as error:
            pytest.skip(f"{name} cannot be imported: {error}")
    if kind is AsyncPG:
        AsyncPG.server = request.getfixturevalue("postgresql")
    return kind


async def run_to_the_end(ctx: Companion) -> None:
    report = await PROCESSOR.process_tasks(ctx)
    for user in USERS:
        assert [phase.value for phase in report[user]] == [answer(user, each) for each in PHASES]


async def cancel_midway(ctx: Companion) -> None:
    run = spawn(PROCESSOR, ctx)
    await ctx.all_held.wait()
    run.cancel()
    if ctx.held == POST:
        run.cancel()
        await asyncio.sleep(0)
        assert not ctx.cancelled
    else:
        await ctx.all_cancelled.wait()
    await ctx.let_go_on()
    assert isinstance(await error_of(run), asyncio.CancelledError)


@pytest.mark.loop_kinds("asyncio", "eager", "uvloop")
@pytest.mark.parametrize("held", [None, *PHASES], ids=lambda held: f"held-{held}")
async def test_a_companion(companion: Any, held: str | None, tmp_path: Path) -> None:
    sockets = open_sockets()
    ctx = companion(held, tmp_path)
    async with ctx.surroundings():
        await (cancel_midway(ctx) if held else run_to_the_end(ctx))
        assert ctx.calls == ["open", "close"]
        assert not ctx.left()
    cancelled = {(user, held) for user in USERS} if held in (PRE, EXECUTE) else set()
    skipped = {(user, EXECUTE) for user in USERS} if held == PRE else set()
    assert ctx.cancelled == cancelled
    assert ctx.done == {key: answer(*key) for key in EVERYTHING - cancelled - skipped}
    await until(lambda: open_sockets() == sockets)
