"""The endpoint when it asks an upstream service as well, in level 2: by hand, with sdax, hedged."""

from __future__ import annotations

import os
from typing import Any

from sdax import hedged, task, task_func

from . import by_hand
from .with_sdax import builder
from .work import IO_LIMIT, Context, ask_credit, check_credit

HEDGED_AFTER = float(os.environ.get("SERVICE_HEDGED_AFTER", "0.06"))  # seconds

ask_credit_hedged = hedged(ask_credit, HEDGED_AFTER)


async def load_credit(ctx: Context) -> None:
    """Ask once."""
    check_credit(ctx, await ask_credit(ctx))


async def load_credit_hedged(ctx: Context) -> None:
    """Ask again beside the first time, when that is slow."""
    check_credit(ctx, await ask_credit_hedged(ctx))


async def answer_by_hand(ctx: Context) -> dict[str, Any]:
    """Answer one request, by hand."""
    return await by_hand.answer(ctx, load_credit)


PLAIN = builder().add_task(
    task("Credit", pre_execute=task_func(load_credit, timeout=IO_LIMIT)), level=2
).build()  # fmt: skip
HEDGED = builder().add_task(
    task("Credit", pre_execute=task_func(load_credit_hedged, timeout=IO_LIMIT)), level=2
).build()  # fmt: skip


async def answer_with_sdax(ctx: Context) -> dict[str, Any]:
    """Answer one request, with sdax."""
    await PLAIN.process_tasks(ctx)
    return ctx.answer


async def answer_hedged(ctx: Context) -> dict[str, Any]:
    """Answer one request, with sdax and a hedged call."""
    await HEDGED.process_tasks(ctx)
    return ctx.answer
