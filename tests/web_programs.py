"""The programs of `docs/web.md` on real servers, and the services and clients around them."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from conftest import Implementation
from loopback import HOST, serving
from processes import SWITCHES
from test_documentation import ROOT, blocks_of

PAGE = ROOT / "docs" / "web.md"
PROGRAMS = {
    block.words[2]: block.text
    for block in blocks_of(PAGE)
    if block.words[:2] == ("python", "server")
}

SCHEMA = """
CREATE TABLE users (id integer PRIMARY KEY, name text NOT NULL);
CREATE TABLE stock (product text PRIMARY KEY, left_over integer NOT NULL);
CREATE TABLE orders (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    user_id integer NOT NULL REFERENCES users,
    product text NOT NULL REFERENCES stock,
    cents integer NOT NULL
);
INSERT INTO users VALUES (1, 'Ada');
INSERT INTO stock VALUES ('tea', 7);
"""

# Counts the requests in flight, keeps the statuses, and says how many connections are in use.
OBSERVED = """
import json
import {module} as program

in_flight = 0
statuses = []


async def app(scope, receive, send):
    global in_flight
    if scope["type"] != "http":
        return await program.app(scope, receive, send)
    if scope["path"] == "/state":
        pool = program.app.state.pool
        state = {{"in_flight": in_flight, "statuses": statuses}}
        state["in_use"] = pool.get_size() - pool.get_idle_size()
        body = json.dumps(state).encode()
        headers = [(b"content-length", b"%d" % len(body)), (b"content-type", b"application/json")]
        await send({{"type": "http.response.start", "status": 200, "headers": headers}})
        return await send({{"type": "http.response.body", "body": body}})

    async def noting(message):
        if message["type"] == "http.response.start":
            statuses.append(message["status"])
        await send(message)

    in_flight += 1
    try:
        await program.app(scope, receive, noting)
    finally:
        in_flight -= 1
"""

# The same for aiohttp, before the end of the program.
OBSERVED_IN_AIOHTTP = """
in_flight = 0
statuses = []


@web.middleware
async def note(request, handler):
    global in_flight
    if request.path == "/state":
        pool = app[POOL]
        in_use = pool.get_size() - pool.get_idle_size()
        return web.json_response({"in_flight": in_flight, "statuses": statuses, "in_use": in_use})
    in_flight += 1
    statuses.append(None)
    try:
        response = await handler(request)
        statuses[-1] = response.status
        return response
    finally:
        in_flight -= 1


async def get_state(request):
    raise AssertionError("the middleware answers")


app.middlewares.insert(0, note)
app.add_routes([web.get("/state", get_state)])

"""
MAIN = 'if __name__ == "__main__":'


class Reply(NamedTuple):
    """What a client got."""

    status: int
    body: Any


class Services:
    """The services that the programs call: each call is counted, and answered in its turn."""

    def __init__(self) -> None:
        self.calls = Counter[str]()
        self.answers: dict[str, list[str]] = {}
        self.is_held = asyncio.Event()
        self.may_go_on = asyncio.Event()

    def prepare(self, flags: str = "{}", prices: list[str] | str = "500") -> None:
        """Answer like this from now on; the last answer of a list stays.

        An answer is a body, a status of an error, "hang", or "hold": until `may_go_on`.
        """
        self.calls.clear()
        self.is_held.clear()
        self.may_go_on.clear()
        self.answers = {"flags": [flags], "prices": [prices] if isinstance(prices, str) else prices}

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        name = head.split()[1].decode().strip("/")
        self.calls[name] += 1
        answers = self.answers[name]
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        status = "200 OK"
        if answer in ("hang", "hold"):
            self.is_held.set()
            if answer == "hang":
                await reader.read()  # until the client gives up
                return
            await self.may_go_on.wait()
            answer = "500"
        elif answer.startswith("503"):
            status, answer = answer, "{}"
        writer.write(
            f"HTTP/1.1 {status}\r\nContent-Length: {len(answer)}\r\n"
            f"Content-Type: application/json\r\nConnection: close\r\n\r\n{answer}".encode()
        )
        await writer.drain()


class Server:
    """A server process, and what it says."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.port = 0
        self.said: list[str] = []
        self.reading = asyncio.create_task(self._read())
        self._listens = asyncio.Event()

    async def _read(self) -> None:
        assert self.process.stdout is not None
        while line := (await self.process.stdout.readline()).decode():
            self.said.append(line)
            if not self.port and (found := re.search(r"http://127\.0\.0\.1:(\d+)", line)):
                self.port = int(found[1])
                self._listens.set()
        self._listens.set()

    async def listens(self) -> None:
        """Wait until it listens; whoever connects earlier than it is ready waits."""
        await self._listens.wait()
        assert self.port, "".join(self.said)

    async def send(self, method: str, path: str, body: Any = None) -> Client:
        return await send(self.port, method, path, body)

    async def ask(self, method: str, path: str, body: Any = None) -> Reply:
        return await (await self.send(method, path, body)).reply()

    async def state(self) -> Any:
        return (await self.ask("GET", "/state")).body

    async def refuses(self) -> bool:
        """True if the server takes no connections any more."""
        try:
            _, writer = await asyncio.open_connection(HOST, self.port)
        except ConnectionError:
            return True
        writer.close()
        await writer.wait_closed()
        return False

    async def settled(self) -> Any:
        """The state when no request is in flight, and asyncpg has had the time to end its own work.

        It gives a connection back in the background if the task that had it is cancelled meanwhile.
        """
        state = await until(self.state, lambda state: state["in_flight"] == 0)
        with suppress(TimeoutError):
            async with asyncio.timeout(20):
                state = await until(self.state, lambda state: state["in_use"] == 0)
        return state


class Client:
    """A client that waits for its answer, or leaves."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def reply(self) -> Reply:
        answer = await self._reader.read()
        await self.leave()
        head, _, body = answer.partition(b"\r\n\r\n")
        text = body.decode()
        is_json = b"application/json" in head.lower()
        return Reply(int(head.split()[1]), json.loads(text) if is_json else text)

    async def leave(self) -> None:
        self._writer.close()
        await self._writer.wait_closed()


async def send(port: int, method: str, path: str, body: Any = None) -> Client:
    """Send a request."""
    text = "" if body is None else json.dumps(body)
    client = Client(*(streams := await asyncio.open_connection(HOST, port)))
    streams[1].write(
        f"{method} {path} HTTP/1.0\r\nHost: {HOST}\r\n"  # which knows no chunks
        f"Content-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n{text}".encode()
    )
    await streams[1].drain()
    return client


async def until(ask: Callable[[], Awaitable[Any]], right: Callable[[Any], bool]) -> Any:
    """Ask another process until the answer is right; every test has a watchdog."""
    while not right(answer := await ask()):  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    return answer


@asynccontextmanager
async def services() -> AsyncIterator[tuple[Services, dict[str, str]]]:
    """The services, and the environment that says where they are."""
    made = Services()
    async with serving(made.handle) as port:
        url = f"http://{HOST}:{port}"
        yield made, {"FLAGS_URL": f"{url}/flags", "PRICES_URL": f"{url}/prices"}


@asynccontextmanager
async def database(folder: str, name: str) -> AsyncIterator[tuple[Any, dict[str, str]]]:
    """A database with the tables: a connection to it, and the environment of its clients."""
    import asyncpg

    first = await asyncpg.connect(host=folder, user="sdax", database="postgres")
    await first.execute(f"CREATE DATABASE {name}")
    connection = await asyncpg.connect(host=folder, user="sdax", database=name)
    try:
        await connection.execute(SCHEMA)
        yield connection, {"PGHOST": folder, "PGUSER": "sdax", "PGDATABASE": name}
    finally:
        await connection.close()
        await first.execute(f"DROP DATABASE {name} WITH (FORCE)")
        await first.close()


@asynccontextmanager
async def program(
    arguments: list[str],
    folder: Path,
    engine: Implementation,
    environment: dict[str, str],
    programs: dict[str, str],
) -> AsyncIterator[Server]:
    """Run a server with the programs of the page, in a folder of its own."""
    for name, text in programs.items():
        observed = OBSERVED.format(module=name.removesuffix(".py"))
        if MAIN in text:
            observed = text.replace(MAIN, OBSERVED_IN_AIOHTTP + MAIN)
        (folder / name).write_text(text, encoding="utf-8")
        (folder / f"observed_{name}").write_text(observed, encoding="utf-8")
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *arguments,
        cwd=folder,
        env={
            **os.environ,
            **SWITCHES[engine.name],
            **environment,
            "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]),
            "PYTHONUNBUFFERED": "1",
            "NO_PROXY": "*",
            "PORT": "0",
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    server = Server(process)
    try:
        await server.listens()
        yield server
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        await server.reading
