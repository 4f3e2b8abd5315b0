"""A service under uvicorn, whose requests hold a resource. A signal ends it.

    served_resource.py SIGTERM

It prints its port, and what happens to the resource.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import uvicorn

from sdax import AsyncTaskProcessor, resource


async def connection(ctx: object) -> AsyncIterator[None]:
    own = asyncio.current_task()
    try:
        yield
    except asyncio.CancelledError:
        print("cancelled", flush=True)
        raise
    finally:
        await asyncio.sleep(0.01)
        await asyncio.sleep(0.01)
        print("closed", asyncio.current_task() is own, flush=True)


async def work(ctx: object) -> None:
    print("at work", flush=True)
    await asyncio.get_running_loop().create_future()


PROCESSOR = (
    AsyncTaskProcessor[object]
    .builder()
    .add_task(resource("connection", connection, execute=work), level=1)
    .build()
)


async def app(scope: Any, receive: Any, send: Any) -> None:
    await PROCESSOR.process_tasks(None)


async def main(name: str) -> None:
    # asyncio.run() ends the loop in order after Ctrl-C, and now after this signal as well.
    signal.signal(signal.Signals[name], signal.getsignal(signal.SIGINT))
    config = uvicorn.Config(
        app, port=0, lifespan="off", log_level="critical", timeout_graceful_shutdown=0
    )
    socket = config.bind_socket()
    socket.listen()
    print(socket.getsockname()[1], flush=True)
    await uvicorn.Server(config).serve(sockets=[socket])
    await asyncio.get_running_loop().create_future()  # the signal comes again, to the program


with suppress(KeyboardInterrupt):
    asyncio.run(main(sys.argv[1]))
