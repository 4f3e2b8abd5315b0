"""The endpoint as one writes it by hand: a `TaskGroup` for each level of several functions, and a
`finally` for each cleanup, both with a limit in time.

One promise of sdax it does not make: a second cancellation, while a cleanup waits, interrupts it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from .work import (
    CLEANUP_LIMIT,
    IO_LIMIT,
    Context,
    begin_order,
    check_token,
    end_order,
    give_place_back,
    load_basket,
    load_customer,
    load_flags,
    place_order,
    take_place,
)


async def answer(
    ctx: Context, *more: Callable[[Context], Coroutine[Any, Any, None]]
) -> dict[str, Any]:
    """Answer one request, with more functions in level 2 if there are any."""
    try:
        async with asyncio.timeout(IO_LIMIT), asyncio.TaskGroup() as level:
            level.create_task(check_token(ctx))
            level.create_task(take_place(ctx))
            level.create_task(load_flags(ctx))
        async with asyncio.timeout(IO_LIMIT), asyncio.TaskGroup() as level:
            level.create_task(load_customer(ctx))
            level.create_task(load_basket(ctx))
            for function in more:
                level.create_task(function(ctx))
        try:
            async with asyncio.timeout(IO_LIMIT):
                await begin_order(ctx)
            async with asyncio.timeout(IO_LIMIT):
                await place_order(ctx)
        finally:
            async with asyncio.timeout(CLEANUP_LIMIT):
                await end_order(ctx)
    finally:
        async with asyncio.timeout(CLEANUP_LIMIT):
            await give_place_back(ctx)
    return ctx.answer
