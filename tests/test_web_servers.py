"""Runs inside of web servers: uvicorn with Starlette and FastAPI, and clients that leave."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from typing import Any

import pytest

from conftest import LoopKind
from helpers import PHASES, build, task
from sdax.asgi import ClientDisconnectedError, cancel_on_disconnect

try:
    from fastapi import Request as HttpRequest  # where FastAPI looks for it
except ImportError:
    HttpRequest = Any  # type: ignore[assignment,misc]

pytestmark = pytest.mark.loop_kinds("asyncio", "eager", "uvloop")

PRE, EXECUTE, POST = PHASES
PASSES = 50  # of the loop, while nothing happens for a tenth of a second: it makes a few


class Request:
    """The context of one run."""

    def __init__(self, held: str | None) -> None:
        self.held = held  # the phase that waits for ever
        self.is_held = asyncio.Event()
        self.is_closing = asyncio.Event()
        self.may_close = asyncio.Event()
        self.is_closed = asyncio.Event()
        self.has_ended = asyncio.Event()  # with the answer to nobody
        self.body: bytes | None = None
        self.handler: asyncio.Task[Any] | None = None
        self.events: list[str] = []

    async def work(self, phase: str) -> None:
        self.events.append(phase)
        if phase == self.held:
            self.is_held.set()
            await asyncio.get_running_loop().create_future()

    async def close(self) -> None:
        self.is_closing.set()
        await self.may_close.wait()
        self.events.append(POST)
        self.is_closed.set()


PROCESSOR = build(
    [
        task(
            "A",
            lambda request: request.work(PRE),
            lambda request: request.work(EXECUTE),
            lambda request: request.close(),
        ),
    ]
)


async def stream(request: Request) -> AsyncIterator[bytes]:
    yield b"begun "
    await PROCESSOR.process_tasks(request)
    yield b"done"


def with_starlette(request: Request, **options: Any) -> Any:
    from starlette.applications import Starlette
    from starlette.responses import PlainTextResponse, StreamingResponse
    from starlette.routing import Route

    async def answer_in_parts(_: Any) -> Any:
        return StreamingResponse(stream(request))

    async def answer(_: Any) -> Any:
        await PROCESSOR.process_tasks(request)
        return PlainTextResponse("begun done")

    async def answer_while_watching(http: Any) -> Any:
        if http.query_params.get("read"):
            request.body = await http.body()
        request.handler = asyncio.current_task()
        await cancel_on_disconnect(http.receive, PROCESSOR.process_tasks(request))
        return PlainTextResponse("begun done")

    async def answer_nobody(_: Any, error: Exception) -> Any:
        request.has_ended.set()
        return PlainTextResponse(str(error), status_code=499)

    return Starlette(
        routes=[
            Route("/stream", answer_in_parts),
            Route("/plain", answer),
            Route("/watched", answer_while_watching, methods=["GET", "POST"]),
        ],
        exception_handlers={ClientDisconnectedError: answer_nobody},
        **options,
    )


def with_starlette_and_middleware(request: Request) -> Any:
    """Two middlewares, of which each puts a `receive` of its own in place of the server's."""
    from starlette.middleware import Middleware
    from starlette.middleware.base import BaseHTTPMiddleware

    async def dispatch(http: Any, call_next: Any) -> Any:
        return await call_next(http)

    middleware = [Middleware(BaseHTTPMiddleware, dispatch=dispatch)] * 2
    return with_starlette(request, middleware=middleware)


def with_fastapi(request: Request) -> Any:
    from fastapi import Depends, FastAPI
    from fastapi.responses import PlainTextResponse, StreamingResponse

    application = FastAPI()

    async def dependency() -> AsyncIterator[Request]:
        yield request

    @application.exception_handler(ClientDisconnectedError)
    async def answer_nobody(_: Any, error: Exception) -> Any:
        request.has_ended.set()
        return PlainTextResponse(str(error), status_code=499)

    @application.api_route("/watched", methods=["GET", "POST"])
    async def answer_while_watching(http: HttpRequest) -> Any:
        if http.query_params.get("read"):
            request.body = await http.body()
        request.handler = asyncio.current_task()
        await cancel_on_disconnect(http.receive, PROCESSOR.process_tasks(request))
        return PlainTextResponse("begun done")

    given = Depends(dependency)

    @application.get("/stream")
    async def answer_in_parts(request: Any = given) -> Any:
        return StreamingResponse(stream(request))

    @application.get("/plain")
    async def answer(request: Any = given) -> Any:
        await PROCESSOR.process_tasks(request)
        return PlainTextResponse("begun done")

    return application


@asynccontextmanager
async def serving(application: Any) -> AsyncIterator[int]:
    """Serve an application with uvicorn, in this loop; give the port."""
    import uvicorn

    class Server(uvicorn.Server):
        def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override]
            return nullcontext()

    config = uvicorn.Config(application, "127.0.0.1", 0, log_level="critical", lifespan="off")
    server = Server(config)
    serve = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110 - it has no event for that
        await asyncio.sleep(0.01)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        await serve


class Client:
    """A client that can leave."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def leave(self) -> None:
        self.writer.close()
        await self.writer.wait_closed()


async def get(port: int, path: str, body: bytes = b"", length: int | None = None) -> Client:
    """Send a request with a body, or the beginning of a longer one."""
    client = Client(*await asyncio.open_connection("127.0.0.1", port))
    method, length = "POST" if body else "GET", len(body) if length is None else length
    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    client.writer.write(f"{head}Content-Length: {length}\r\n\r\n".encode() + body)
    return client


@pytest.fixture(params=[with_starlette, with_starlette_and_middleware, with_fastapi])
def framework(request: pytest.FixtureRequest) -> Callable[[Request], Any]:
    """One framework after the other, if it is there."""
    for name in ("uvicorn", request.param.__name__.split("_")[1]):
        try:
            importlib.import_module(name)
        except ImportError as error:
            pytest.skip(f"{name} cannot be imported: {error}")
    make: Callable[[Request], Any] = request.param
    return make


@pytest.mark.parametrize("path", ["/plain", "/stream", "/watched"])
async def test_a_run_in_a_request(framework: Any, path: str) -> None:
    request = Request(None)
    request.may_close.set()
    async with serving(framework(request)) as port:
        client = await get(port, path)
        answer = await client.reader.read()
        await client.leave()
    assert b"200 OK" in answer
    assert b"begun" in answer and b"done" in answer
    assert request.events == [PRE, EXECUTE, POST]


@pytest.mark.parametrize("held", [PRE, EXECUTE, POST])
async def test_a_client_that_leaves(framework: Any, held: str, loop_kind: LoopKind) -> None:
    """The run is cancelled, again and again, by the server; it cleans up and does not spin."""
    request = Request(held)
    async with serving(framework(request)) as port:
        client = await get(port, "/stream")
        await client.reader.readuntil(b"begun")
        await (request.is_closing if held == POST else request.is_held).wait()
        await client.leave()
        await request.is_closing.wait()
        if loop_kind.name != "uvloop":
            assert await passes_of_the_loop(0.1) < PASSES
        assert request.events == [PRE, EXECUTE][: PHASES.index(held) + 1]
        request.may_close.set()
        await request.is_closed.wait()
    assert request.events[-1] == POST


@pytest.mark.parametrize("held", [PRE, EXECUTE, POST])
async def test_a_client_that_leaves_a_watched_run(framework: Any, held: str) -> None:
    """The run is cancelled, cleans up, and only then the handler hears of it."""
    request = Request(held)
    async with serving(framework(request)) as port:
        client = await get(port, "/watched")
        await (request.is_closing if held == POST else request.is_held).wait()
        await client.leave()
        await request.is_closing.wait()
        assert request.handler is not None
        while not request.handler.cancelling():  # noqa: ASYNC110 - it has no event for that
            await asyncio.sleep(0.001)
        assert request.events == [PRE, EXECUTE][: PHASES.index(held) + 1]
        assert not request.has_ended.is_set()
        request.may_close.set()
        await request.has_ended.wait()
    assert request.events[-1] == POST


@pytest.mark.parametrize("path", ["/watched", "/watched?read=1"])
async def test_a_watched_run_of_a_request_with_a_body(framework: Any, path: str) -> None:
    """A body that was read before is whole; of one that nobody has read the rest is dropped."""
    request = Request(EXECUTE)
    body = b"x" * 1_000_000
    warned = nullcontext() if "read" in path else pytest.warns(RuntimeWarning, match="dropped")
    async with serving(framework(request)) as port:
        with warned:
            await run_and_leave(request, port, path, body)
    assert request.body == (body if "read" in path else None)


async def run_and_leave(
    request: Request, port: int, path: str, body: bytes, **options: Any
) -> None:
    client = await get(port, path, body, **options)
    await request.is_held.wait()
    await client.leave()
    request.may_close.set()
    await request.has_ended.wait()


async def test_a_client_that_leaves_in_the_middle_of_a_body(framework: Any) -> None:
    request = Request(EXECUTE)
    async with serving(framework(request)) as port:
        with pytest.warns(RuntimeWarning, match="dropped"):
            await run_and_leave(request, port, "/watched", b"x" * 1000, length=1_000_000)
    assert request.events == [PRE, EXECUTE, POST]


async def passes_of_the_loop(seconds: float) -> int:
    """Count how often the loop asks for what is ready while so much time passes."""
    selector: Any = asyncio.get_running_loop()._selector  # type: ignore[attr-defined]
    select, passes = selector.select, 0

    def count(timeout: float | None = None) -> Any:
        nonlocal passes
        passes += 1
        return select(timeout)

    selector.select = count
    try:
        await asyncio.sleep(seconds)
    finally:
        del selector.select
    return passes
