"""A small workflow: a connection, two calls side by side, and an answer.

README shows this file from the imports on. Run it with ``python examples/quickstart.py``.
``by_hand.py`` does the same without sdax.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

from sdax import AsyncTaskProcessor, resource, task, task_func


@dataclass
class Request:
    user_id: int
    connection: str | None = None
    user: str | None = None
    theme: str = "plain"


async def connection(request: Request) -> AsyncIterator[None]:
    request.connection = "connection 1"
    try:
        yield  # the other tasks run now
    finally:
        print("  released", request.connection)
        request.connection = None


async def load_user(request: Request) -> None:
    await asyncio.sleep(0.02)  # a query, with the connection
    request.user = {1: "Ada", 2: "Grace"}[request.user_id]


async def load_theme(request: Request) -> None:
    await asyncio.sleep(0.01)  # a request over HTTP
    raise ConnectionError("the theme service is down")


async def answer(request: Request) -> None:
    print(f"  200: hello {request.user}, in {request.theme}")


processor = (
    AsyncTaskProcessor[Request]
    .builder()
    .add_task(resource("Connection", connection), level=1)
    .add_task(task("User", pre_execute=task_func(load_user, timeout=2, retries=2)), level=2)
    .add_task(task("Theme", pre_execute=task_func(load_theme, timeout=1), required=False), level=2)
    .add_task(task("Answer", execute=answer), level=3)
    .build()
)


async def main() -> None:
    for user_id in (1, 3):
        print("request of user", user_id)
        try:
            await processor.process_tasks(Request(user_id))
        except* KeyError:
            print("  404: no such user")


if __name__ == "__main__":
    asyncio.run(main())
