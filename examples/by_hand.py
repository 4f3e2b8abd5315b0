"""The same as ``quickstart.py``, written with asyncio alone, with the same promises.

README shows this file from below its imports. Run it with ``python examples/by_hand.py``.
"""

import asyncio

from quickstart import Request, answer, load_theme, load_user


async def load_user_with_retries(request: Request) -> None:
    for pause in (1.0, 2.0, None):
        try:
            async with asyncio.timeout(2):
                await load_user(request)
                return
        except (TimeoutError, ConnectionError):
            if pause is None:
                raise
        await asyncio.sleep(pause)


async def load_theme_if_possible(request: Request) -> None:
    try:
        async with asyncio.timeout(1):
            await load_theme(request)
    except Exception as error:
        print("  without a theme:", error)


async def disconnect(request: Request) -> None:
    print("  released", request.connection)
    request.connection = None


async def disconnect_in_any_case(request: Request) -> None:
    cleanup = asyncio.create_task(disconnect(request))
    cancelled = None
    while not cleanup.done():
        try:
            await asyncio.shield(cleanup)  # a second cancellation must not lose the connection
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled


async def process(request: Request) -> None:
    request.connection = "connection 1"
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(load_user_with_retries(request))
            group.create_task(load_theme_if_possible(request))
        await answer(request)
    finally:
        await disconnect_in_any_case(request)


async def main() -> None:
    for user_id in (1, 3):
        print("request of user", user_id)
        try:
            await process(Request(user_id))
        except* KeyError:
            print("  404: no such user")


if __name__ == "__main__":
    asyncio.run(main())
