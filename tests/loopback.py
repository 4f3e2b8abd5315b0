"""Servers on loopback, for clients of every kind: such as answer, and such as do not."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

HOST = "127.0.0.1"
CERTIFICATE = Path(__file__).with_name("certificate.pem")  # signed by itself, so nobody trusts it

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
Call = Callable[[int], Awaitable[Any]]  # of a client, with the port of a server


@asynccontextmanager
async def serving(handle: Handler, **options: Any) -> AsyncIterator[int]:
    """A server that handles each connection like this; yields its port."""
    handlers = set[asyncio.Task[Any]]()

    async def until_it_ends(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        current = asyncio.current_task()
        assert current is not None
        handlers.add(current)
        with suppress(OSError, EOFError, asyncio.CancelledError):  # the client may be gone
            await handle(reader, writer)
        writer.close()

    server = await asyncio.start_server(until_it_ends, HOST, 0, **options)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for each in handlers:
            each.cancel()  # an exception may keep its connection open
        if handlers:
            await asyncio.wait(handlers)


def refusing_port() -> int:
    """A port at which nobody listens."""
    with socket.create_server((HOST, 0)) as listener:
        return int(listener.getsockname()[1])


def answering(answer: bytes | None) -> Handler:
    """Read a request of HTTP and answer it; with None, wait until the client gives up."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        for line in head.lower().splitlines():
            if line.startswith(b"content-length:"):
                await reader.readexactly(int(line.partition(b":")[2]))
        if answer is None:
            await reader.read()
        else:
            writer.write(answer)
            await writer.drain()

    return handle


def response(status: int, headers: Iterable[str] = (), body: bytes = b"{}") -> bytes:
    """An answer of HTTP, after which the connection ends."""
    lines = [f"HTTP/1.1 {status} Said", f"Content-Length: {len(body)}", "Connection: close"]
    return "\r\n".join([*lines, *headers, "", ""]).encode() + body


async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Close the connection when the first byte comes."""
    await reader.read(1)


async def keep_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Wait until the client gives up."""
    await reader.read()


def certified() -> ssl.SSLContext:
    """TLS with a certificate that nobody trusts."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    return context


async def raised_by(call: Awaitable[Any]) -> Exception:
    """What a call raises, which must raise something."""
    try:
        await call
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def against(handle: Handler | None, call: Call, **options: Any) -> Exception:
    """What a client raises against a server like this, or, with None, against none."""

    async def main() -> Exception:
        if handle is None:
            return await raised_by(call(refusing_port()))
        async with serving(handle, **options) as port:
            return await raised_by(call(port))

    return asyncio.run(main())
