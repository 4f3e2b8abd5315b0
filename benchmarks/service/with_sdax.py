"""The endpoint with sdax: the same functions, and where each of them stands."""

from __future__ import annotations

from typing import Any

from sdax import AsyncTaskProcessor, AsyncTaskProcessorBuilder, task, task_func

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


def builder() -> AsyncTaskProcessorBuilder[Context, Any]:
    """Return a builder that has the tasks of the endpoint."""
    return (
        AsyncTaskProcessor[Context]
        .builder()
        .add_task(task("Token", pre_execute=task_func(check_token)), level=1)
        .add_task(
            task(
                "RateLimit",
                pre_execute=task_func(take_place),
                post_execute=task_func(give_place_back, timeout=CLEANUP_LIMIT),
            ),
            level=1,
        )
        .add_task(task("Flags", pre_execute=task_func(load_flags, timeout=IO_LIMIT)), level=1)
        .add_task(task("Customer", pre_execute=task_func(load_customer, timeout=IO_LIMIT)), level=2)
        .add_task(task("Basket", pre_execute=task_func(load_basket, timeout=IO_LIMIT)), level=2)
        .add_task(
            task(
                "Order",
                pre_execute=task_func(begin_order, timeout=IO_LIMIT),
                execute=task_func(place_order, timeout=IO_LIMIT),
                post_execute=task_func(end_order, timeout=CLEANUP_LIMIT),
            ),
            level=3,
        )
    )


PROCESSOR = builder().build()


async def answer(ctx: Context) -> dict[str, Any]:
    """Answer one request."""
    await PROCESSOR.process_tasks(ctx)
    return ctx.answer
