"""Companions of sdax: libraries that functions use, with the servers and files that they need.

Each companion has a resource, which the task "owner" opens and closes, and an operation, which
other tasks do with it in each phase. In one phase the operation can be held up inside the library,
by what it waits for: a response, a lock, a thread, an item.
"""

from __future__ import annotations

import asyncio
import threading
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar

import anyio
import anyio.lowlevel

from helpers import PHASES, build, task

USERS = ("one", "two")

Key = tuple[str, str]  # a user and a phase


class Companion(ABC):
    """The context of one run: a resource, and what its users did with it."""

    needs: ClassVar[tuple[str, ...]] = ()  # modules which may be missing

    def __init__(self, held: str | None, folder: Path) -> None:
        self.held = held  # the phase in which the operation is held up
        self.folder = folder
        self.all_held = asyncio.Event()
        self.all_cancelled = asyncio.Event()
        self.go_on = asyncio.Event()
        self.number_held = 0
        self.calls: list[str] = []
        self.done: dict[Key, str] = {}
        self.cancelled: set[Key] = set()

    @asynccontextmanager
    async def surroundings(self) -> AsyncIterator[None]:
        """Keep up what is there before the run and after it: a server, say."""
        yield

    @abstractmethod
    async def open(self) -> None:
        """Acquire the resource."""

    @abstractmethod
    async def operate(self, user: str, phase: str) -> str:
        """Return `answer(user, phase)`, by way of the library."""

    @abstractmethod
    async def close(self) -> None:
        """Give the resource back."""

    async def let_go_on(self) -> None:
        """Let those go on that are held up, if they are still there."""
        self.go_on.set()

    @abstractmethod
    def left(self) -> object:
        """Return what has not been given back: something false, if nothing."""

    def hold(self) -> None:
        """Count one that is about to wait, in the event loop's thread."""
        self.number_held += 1
        if self.number_held == len(USERS):
            self.all_held.set()

    async def pass_through(self, phase: str) -> None:
        """Wait to be let go on, in the phase that is held up."""
        if phase == self.held:
            self.hold()
            await self.go_on.wait()


def answer(user: str, phase: str) -> str:
    """What an operation must return."""
    return f"{user} in {phase}"


def processor() -> Any:
    """One owner, and above it those who use what it has opened, in each phase."""

    async def open_resource(ctx: Companion) -> None:
        await ctx.open()
        ctx.calls.append("open")

    async def close_resource(ctx: Companion) -> None:
        await ctx.close()
        ctx.calls.append("close")

    def use(user: str, phase: str) -> Callable[[Companion], Awaitable[str]]:
        async def function(ctx: Companion) -> str:
            try:
                ctx.done[user, phase] = value = await ctx.operate(user, phase)
            except asyncio.CancelledError:
                ctx.cancelled.add((user, phase))
                if len(ctx.cancelled) == len(USERS):
                    ctx.all_cancelled.set()
                raise
            return value

        return function

    users = [task(user, *(use(user, phase) for phase in PHASES)) for user in USERS]
    return build([task("owner", open_resource, None, close_resource)], users)


class AnyIO(Companion):
    """A task group, a stream between its tasks, and scopes that time out inside."""

    async def open(self) -> None:
        self.limiter = anyio.CapacityLimiter(len(USERS))

    async def operate(self, user: str, phase: str) -> str:
        sender, receiver = anyio.create_memory_object_stream[str](0)

        async def send() -> None:
            async with sender:
                await self.pass_through(phase)
                await sender.send(answer(user, phase))

        async with self.limiter, receiver, anyio.create_task_group() as group:
            group.start_soon(send)
            with anyio.move_on_after(0) as scope:
                await anyio.sleep_forever()
            assert scope.cancelled_caught
            group.start_soon(anyio.sleep_forever)
            with anyio.fail_after(60):
                received = await receiver.receive()
            with anyio.CancelScope(shield=True):
                await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()
        return received

    async def close(self) -> None:
        await anyio.lowlevel.checkpoint()

    def left(self) -> object:
        return self.limiter.borrowed_tokens


class HTTPCompanion(Companion):
    """A client of a real HTTP server, which answers when it may."""

    @asynccontextmanager
    async def surroundings(self) -> AsyncIterator[None]:
        from aiohttp import web

        async def handle(request: web.Request) -> web.Response:
            user, phase = request.match_info["user"], request.match_info["phase"]
            await self.pass_through(phase)
            return web.Response(text=answer(user, phase))

        application = web.Application()
        application.router.add_get("/{user}/{phase}", handle)
        runner = web.AppRunner(application, shutdown_timeout=1)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            host, port = runner.addresses[0]
            self.url = f"http://{host}:{port}"
            yield
        finally:
            await runner.cleanup()
            # It awaits no connection whose client has gone, be it one that is still handled.
            for each in asyncio.all_tasks():
                if "RequestHandler.start" in repr(each.get_coro()):
                    await asyncio.wait([each])


class AioHTTP(HTTPCompanion):
    """A session of aiohttp, with its pool of connections."""

    needs = ("aiohttp",)

    async def open(self) -> None:
        import aiohttp

        self.session = aiohttp.ClientSession()

    async def operate(self, user: str, phase: str) -> str:
        async with self.session.get(f"{self.url}/{user}/{phase}") as response:
            return await response.text()

    async def close(self) -> None:
        await self.session.close()

    def left(self) -> object:
        return not self.session.closed


class HTTPX(HTTPCompanion):
    """A client of httpx, with its pool of connections, which waits for locks of anyio."""

    needs = ("aiohttp", "httpx")

    async def open(self) -> None:
        import httpx

        self.client = httpx.AsyncClient(base_url=self.url, trust_env=False)

    async def operate(self, user: str, phase: str) -> str:
        return (await self.client.get(f"/{user}/{phase}")).text

    async def close(self) -> None:
        await self.client.aclose()

    def left(self) -> object:
        return not self.client.is_closed


class ThreadCompanion(Companion):
    """Something that is done, and held up, in other threads."""

    def __init__(self, held: str | None, folder: Path) -> None:
        super().__init__(held, folder)
        self.loop = asyncio.get_running_loop()
        self.threads_go_on = threading.Event()

    def work(self, user: str, phase: str) -> str:
        if phase == self.held:
            self.loop.call_soon_threadsafe(self.hold)
            assert self.threads_go_on.wait(60)
        return answer(user, phase)

    async def let_go_on(self) -> None:
        self.threads_go_on.set()


class ToThread(ThreadCompanion):
    """`asyncio.to_thread`."""

    async def open(self) -> None:
        self.file = await asyncio.to_thread((self.folder / "file").open, "w")

    async def operate(self, user: str, phase: str) -> str:
        return await asyncio.to_thread(self.work, user, phase)

    async def close(self) -> None:
        await asyncio.to_thread(self.file.close)

    def left(self) -> object:
        return not self.file.closed


class AioSQLite(ThreadCompanion):
    """Two connections to one database, each with a thread of its own."""

    needs = ("aiosqlite",)

    async def open(self) -> None:
        import aiosqlite

        before = {*threading.enumerate()}
        self.connections: dict[str, Any] = {}
        for user in USERS:
            connection = await aiosqlite.connect(self.folder / "database", timeout=60)
            self.connections[user] = connection
            await connection.create_function("work", 2, self.work)
            await connection.execute("CREATE TABLE IF NOT EXISTS uses (user, phase)")
            await connection.commit()
        self.threads = {*threading.enumerate()} - before

    async def operate(self, user: str, phase: str) -> str:
        connection = self.connections[user]
        async with connection.execute("SELECT work(?, ?)", (user, phase)) as cursor:
            (value,) = await cursor.fetchone()
        await connection.execute("INSERT INTO uses VALUES (?, ?)", (user, phase))
        await connection.commit()
        return str(value)

    async def close(self) -> None:
        query = "SELECT user, phase FROM uses"
        rows = await self.connections["one"].execute_fetchall(query)
        assert {*rows} == {*self.done}
        for connection in self.connections.values():
            await connection.close()

    def left(self) -> object:
        for thread in self.threads:
            thread.join(60)  # it is told to end, and nothing awaits that
        return any(thread.is_alive() for thread in self.threads)


class SQLAlchemy(Companion):
    """An asynchronous engine of SQLAlchemy over aiosqlite, with its pool and its greenlets.

    What is held up is a transaction. (The pool itself waits for a query that is given up.)
    """

    needs = ("sqlalchemy", "greenlet", "aiosqlite")

    async def open(self) -> None:
        from sqlalchemy import text
        from sqlalchemy.ext.asyncio import create_async_engine

        url = f"sqlite+aiosqlite:///{self.folder / 'database'}"
        self.engine = create_async_engine(url, connect_args={"timeout": 60})
        async with self.engine.begin() as connection:
            await connection.execute(text("CREATE TABLE uses (user, phase)"))

    async def operate(self, user: str, phase: str) -> str:
        from sqlalchemy import text

        names = {"user": user, "phase": phase}
        async with self.engine.connect() as connection:
            value = await connection.scalar(text("SELECT :user || ' in ' || :phase"), names)
            await self.pass_through(phase)
            await connection.execute(text("INSERT INTO uses VALUES (:user, :phase)"), names)
            await connection.commit()
        return str(value)

    async def close(self) -> None:
        from sqlalchemy import text

        async with self.engine.connect() as connection:
            rows = await connection.execute(text("SELECT user, phase FROM uses"))
            assert {tuple(row) for row in rows} == {*self.done}
        await self.engine.dispose()

    def left(self) -> object:
        return self.engine.pool.checkedout()  # type: ignore[attr-defined]


class Sentry(Companion):
    """sentry-sdk, which has a task factory that names and wraps every coroutine."""

    needs = ("sentry_sdk",)

    @asynccontextmanager
    async def surroundings(self) -> AsyncIterator[None]:
        import sentry_sdk
        from sentry_sdk.integrations.asyncio import enable_asyncio_integration
        from sentry_sdk.transport import Transport

        class Kept(Transport):
            """Sends nothing."""

            def capture_envelope(self, envelope: Any) -> None:
                kept.append(envelope.get_transaction_event())

        kept: list[Any] = []
        loop = asyncio.get_running_loop()
        factory = loop.get_task_factory()
        sentry_sdk.init(
            dsn="http://public@127.0.0.1/1",
            transport=Kept,
            default_integrations=False,
            auto_enabling_integrations=False,
            traces_sample_rate=1.0,
        )
        try:
            enable_asyncio_integration()
            with sentry_sdk.start_transaction(name="run"):
                yield
        finally:
            loop.set_task_factory(factory)
            sentry_sdk.init()
        spans = [span["description"] for event in kept if event for span in event["spans"]]
        functions = [name for name in spans if "processor.<locals>" in name]
        assert len(functions) >= len(self.done)
        assert not [name for name in spans if "without __name__" in name]

    async def open(self) -> None:
        self.opened = True

    async def operate(self, user: str, phase: str) -> str:
        await self.pass_through(phase)
        return answer(user, phase)

    async def close(self) -> None:
        self.opened = False

    def left(self) -> object:
        return self.opened


class AsyncPG(Companion):
    """A pool of connections to a real PostgreSQL; a lock of the database holds them up."""

    needs = ("asyncpg",)
    server: ClassVar[str]  # the directory of its socket

    @asynccontextmanager
    async def surroundings(self) -> AsyncIterator[None]:
        import asyncpg

        options = {"host": self.server, "user": "sdax", "database": "postgres"}
        self.options = options
        self.other = await asyncpg.connect(**options)
        try:
            await self.other.execute("CREATE TABLE IF NOT EXISTS uses (user_name text, phase text)")
            await self.other.execute("TRUNCATE uses")
            await self.other.execute("SELECT pg_advisory_lock(1)")
            if self.held:
                watch = asyncio.create_task(self.watch_locks())
            yield
            if self.held:
                await watch
            rows = await self.other.fetch("SELECT user_name, phase FROM uses")
            assert {tuple(row) for row in rows} == {*self.done}
            clients = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'"
            while await self.other.fetchval(clients) > 1:
                pass  # the server takes its time to see that they have gone
        finally:
            await self.other.close()

    async def watch_locks(self) -> None:
        waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        while await self.other.fetchval(waiting) < len(USERS):
            pass
        self.all_held.set()

    async def open(self) -> None:
        import asyncpg

        self.pool = await asyncpg.create_pool(**self.options, min_size=1, max_size=len(USERS))

    async def operate(self, user: str, phase: str) -> str:
        async with self.pool.acquire() as connection, connection.transaction():
            await connection.execute("INSERT INTO uses VALUES ($1, $2)", user, phase)
            if phase == self.held:
                await connection.execute("SELECT pg_advisory_xact_lock_shared(1)")
            return str(await connection.fetchval("SELECT $1 || ' in ' || $2", user, phase))

    async def close(self) -> None:
        assert self.pool.get_idle_size() == self.pool.get_size()
        await self.pool.close()

    async def let_go_on(self) -> None:
        await self.other.execute("SELECT pg_advisory_unlock(1)")

    def left(self) -> object:
        return self.pool.get_size()


class Queue(Companion):
    """An `asyncio.Queue` as a pool of tokens, which may be empty."""

    async def open(self) -> None:
        self.pool: asyncio.Queue[str] = asyncio.Queue()
        self.empty: asyncio.Queue[str] = asyncio.Queue()
        self.pool.put_nowait("token")

    async def operate(self, user: str, phase: str) -> str:
        if phase == self.held:
            self.hold()
            await self.empty.get()
        token = await self.pool.get()
        try:
            await asyncio.sleep(0)
            return answer(user, phase)
        finally:
            self.pool.put_nowait(token)
            self.pool.task_done()

    async def close(self) -> None:
        assert await self.pool.get() == "token"
        self.pool.task_done()
        await self.pool.join()

    async def let_go_on(self) -> None:
        for _ in USERS:
            self.empty.put_nowait("token")

    def left(self) -> object:
        return self.pool.qsize()


class Barrier(Companion):
    """An `asyncio.Barrier` for the users, and another at which somebody is missing."""

    async def open(self) -> None:
        self.barrier = asyncio.Barrier(len(USERS))
        self.larger = asyncio.Barrier(len(USERS) + 1)

    async def operate(self, user: str, phase: str) -> str:
        if phase == self.held:
            self.hold()
            await self.larger.wait()
        async with self.barrier as position:
            assert position in range(len(USERS))
        return answer(user, phase)

    async def close(self) -> None:
        await self.barrier.abort()

    async def let_go_on(self) -> None:
        if self.larger.n_waiting:
            await self.larger.wait()

    def left(self) -> object:
        return self.larger.n_waiting or not self.barrier.broken


class ExitStack(Companion):
    """A `contextlib.AsyncExitStack` that outlives the functions which enter things into it."""

    async def open(self) -> None:
        self.events: list[str] = []
        self.stack = AsyncExitStack()
        await self.stack.enter_async_context(self.thing("the first"))

    @asynccontextmanager
    async def thing(self, name: str, phase: str = "") -> AsyncIterator[str]:
        self.events.append(name)
        try:
            await self.pass_through(phase)
            yield name
        finally:
            await asyncio.sleep(0)
            self.events.remove(name)

    async def operate(self, user: str, phase: str) -> str:
        async with AsyncExitStack() as own:
            await own.enter_async_context(self.thing(f"{user}'s", phase))
            return await self.stack.enter_async_context(self.thing(answer(user, phase)))

    async def close(self) -> None:
        assert self.events == ["the first", *(answer(*key) for key in self.done)]
        await self.stack.aclose()

    def left(self) -> object:
        return self.events


COMPANIONS: tuple[type[Companion], ...] = (
    AnyIO,
    AioHTTP,
    HTTPX,
    ToThread,
    AioSQLite,
    SQLAlchemy,
    Sentry,
    AsyncPG,
    Queue,
    Barrier,
    ExitStack,
)
