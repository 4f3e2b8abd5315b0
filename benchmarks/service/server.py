"""The server process: one variant of the endpoint behind Starlette and uvicorn.

    python -m service.server MODULE.FUNCTION NAME [--loop uvloop]

The function answers a request: `by_hand.answer`, `with_sdax.answer` or one of `with_upstream`. The
database is where the environment's PGHOST, PGPORT, PGUSER, PGPASSWORD and PGDATABASE say, and
the secret that signs tokens is SERVICE_SECRET, in hexadecimal digits; the upstream service, for
those who ask it, is at SERVICE_UPSTREAM_PORT. Prints its loopback port when
it is ready, and serves until SIGTERM. `POST /orders` is the endpoint; `GET /state` counts what
became of requests, and `POST /take-all` says how many connections can be had at once.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from importlib import import_module

import asyncpg  # pyright: ignore[reportMissingTypeStubs]
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from .upstream import Upstream
from .work import (
    Context,
    NotFoundError,
    Service,
    TooManyRequestsError,
    UnauthorizedError,
)

POOL_SIZE = 16
ALL_FREE_WITHIN = 10.0  # seconds

STATUS_OF: dict[type[Exception], int] = {
    UnauthorizedError: 401,
    NotFoundError: 404,
    TooManyRequestsError: 429,
    TimeoutError: 504,
}


async def cancel_on_disconnect(request: Request, handler: asyncio.Task[object]) -> None:
    """Cancel the handler when the client has gone; uvicorn and Starlette let it go on."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    handler.cancel()


async def post_order(request: Request) -> Response:
    """Run the variant for one request."""
    service: Service = request.app.state.service
    handler = asyncio.current_task()
    assert handler is not None
    token = request.headers.get("authorization", "").removeprefix("Bearer ")
    service.in_flight += 1
    watcher = asyncio.ensure_future(cancel_on_disconnect(request, handler))
    try:
        answer = await request.app.state.answer(Context(service, token))
    except asyncio.CancelledError:
        if not watcher.done():
            raise
        handler.uncancel()
        service.cancelled += 1
        return Response(status_code=499)  # nobody is left to read it
    except Exception as error:
        cause = error
        while isinstance(cause, ExceptionGroup):
            cause = cause.exceptions[0]
        status = STATUS_OF.get(type(cause))
        if status is None:
            raise
        service.refused += 1
        return JSONResponse({"error": str(cause)}, status)
    finally:
        watcher.cancel()
        service.in_flight -= 1
    service.answered += 1
    return JSONResponse(answer)


async def get_state(request: Request) -> Response:
    """Say what became of all requests so far, and what they hold."""
    service: Service = request.app.state.service
    return JSONResponse(
        {
            "in_flight": service.in_flight,
            "answered": service.answered,
            "refused": service.refused,
            "cancelled": service.cancelled,
            "begun": service.begun,
            "cleaned_up": service.cleaned_up,
            "places_in_use": service.in_use.total(),
            "pool_limit": POOL_SIZE,
            "pool_size": service.pool.get_size(),
            "pool_idle": service.pool.get_idle_size(),
        }
    )


async def take_all(request: Request) -> Response:
    """Take as many connections as can be had at once, and give them back."""
    pool = request.app.state.service.pool
    taken = await asyncio.gather(
        *(pool.acquire(timeout=ALL_FREE_WITHIN) for _ in range(POOL_SIZE)), return_exceptions=True
    )
    free = [connection for connection in taken if not isinstance(connection, BaseException)]
    for connection in free:
        await pool.release(connection)
    return JSONResponse({"free": len(free)})


@asynccontextmanager
async def resources(args: argparse.Namespace, port: int, app: Starlette) -> AsyncGenerator[None]:
    """Open the pool, say that the server is ready, and close the pool in the end."""
    pool = await asyncpg.create_pool(
        min_size=POOL_SIZE, max_size=POOL_SIZE, server_settings={"application_name": args.name}
    )
    module, _, function = args.variant.partition(".")
    app.state.answer = getattr(import_module(f"service.{module}"), function)
    upstream = None
    if upstream_port := os.environ.get("SERVICE_UPSTREAM_PORT"):
        upstream = Upstream(int(upstream_port), args.name)
    app.state.service = Service(pool, bytes.fromhex(os.environ["SERVICE_SECRET"]), upstream)
    print(port, flush=True)
    yield
    if upstream is not None:
        upstream.close()
    pool.terminate()  # close() would wait for a connection that has leaked


def main() -> None:
    """Read the arguments and serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("variant", help="the function that answers, as MODULE.FUNCTION")
    parser.add_argument("name", help="what PostgreSQL shows for its connections")
    parser.add_argument("--loop", choices=["asyncio", "uvloop"], default="asyncio")
    args = parser.parse_args()
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        port = listener.getsockname()[1]
        app = Starlette(
            routes=[
                Route("/orders", post_order, methods=["POST"]),
                Route("/state", get_state),
                Route("/take-all", take_all, methods=["POST"]),
            ],
            lifespan=partial(resources, args, port),
        )
        config = uvicorn.Config(
            app, loop=args.loop, http="httptools", access_log=False, log_level="warning"
        )
        uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
