"""Resources made of what people hold: cancel scopes, task groups, sessions, transactions, spans."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from helpers import Broken, Trace, build, current, error_of, failure_of, passes, task
from sdax import SdaxExecutionError, State, resource

anyio = pytest.importorskip("anyio")

fails_or_not = pytest.mark.parametrize("fails", [False, True], ids=["commit", "roll back"])


async def fail(ctx: Any) -> None:
    await passes(1)
    raise Broken


# --- anyio


async def test_an_anyio_task_group_across_the_yield() -> None:
    trace = Trace()

    async def held(ctx: Any) -> AsyncIterator[Any]:
        send, receive = anyio.create_memory_object_stream(10)

        async def read() -> None:
            async with receive:
                async for item in receive:
                    trace.append(item)

        async with anyio.create_task_group() as group:
            group.start_soon(read)
            ctx.send = send
            async with send:
                yield
            trace.append("sent")

    async def work(ctx: Any) -> None:
        await ctx.send.send("item")
        await passes(2)

    processor = build([resource("Client", held)], [task("A", work, work)])
    await processor.process_tasks(SimpleNamespace())
    assert trace == ["item", "item", "sent"]
    trace.clear()
    failing = build([resource("Client", held)], [task("A", work, fail)])
    error = await failure_of(failing, SimpleNamespace())  # type: ignore[arg-type]
    assert [type(each) for each in error.exceptions] == [Broken]


async def test_an_anyio_reader_that_dies() -> None:
    trace = Trace()

    async def held(ctx: Any) -> AsyncIterator[None]:
        async def read() -> None:
            await ctx.wait()
            raise Broken

        async with anyio.create_task_group() as group:
            group.start_soon(read)
            try:
                yield
            finally:
                trace.append(f"down, {current().cancelling() > 0}")

    async def work(ctx: Any) -> None:
        ctx.set()
        await trace.waiting("work")(ctx)

    error = await error_of(
        build([resource("Client", held)], [task("A", None, work)]).process_tasks(asyncio.Event())
    )
    assert isinstance(error, SdaxExecutionError)
    (group,) = error.exceptions
    assert isinstance(group, ExceptionGroup)
    assert isinstance(group.exceptions[0], Broken)
    assert trace == ["work", "down, True", "work cancelled"]
    assert current().cancelling() == 0


@pytest.mark.virtual_clock
@pytest.mark.parametrize("scope", ["fail_after", "move_on_after"])
async def test_an_anyio_scope_that_expires(scope: str) -> None:
    trace = Trace()

    async def held(ctx: Any) -> AsyncIterator[None]:
        with getattr(anyio, scope)(5):
            yield

    error = await failure_of(build([resource("R", held)], [task("A", None, trace.waiting("A"))]))
    assert len(error.exceptions) == 1
    assert isinstance(error.exceptions[0], TimeoutError) == (scope == "fail_after")
    assert error.report["R"].post_execute.state is State.FAILED
    assert trace == ["A", "A cancelled"]


async def test_an_anyio_scope_that_is_left_in_time() -> None:
    async def held(ctx: Any) -> AsyncIterator[None]:
        with anyio.fail_after(3600), anyio.CancelScope() as inner:
            yield
            inner.cancel()
            await anyio.sleep(3600)

    assert (await build([resource("R", held)]).process_tasks(None)).ok


@pytest.mark.parametrize("kind", ["anyio", "asyncio"])
async def test_a_run_that_anyio_or_asyncio_cancels(kind: str) -> None:
    trace = Trace()

    async def held(ctx: Any) -> AsyncIterator[None]:
        async with anyio.create_task_group(), asyncio.TaskGroup():
            try:
                yield
            except asyncio.CancelledError:
                await passes(3)
                trace.append("down")
                raise

    processor = build([resource("R", held)], [task("A", None, trace.waiting("A"))])
    if kind == "anyio":
        with anyio.move_on_after(0.01):
            await processor.process_tasks(None)
    else:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await processor.process_tasks(None)
    assert trace == ["A", "A cancelled", "down"]


async def test_an_exit_stack() -> None:
    trace = Trace()

    async def held(ctx: Any) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            for name in "AB":
                await stack.enter_async_context(asynccontextmanager(trace.holding(name))(ctx))
            stack.callback(trace.append, "callback")
            yield

    await build([resource("R", held)]).process_tasks(None)
    assert trace == ["A up", "B up", "callback", "B ok", "B down", "A ok", "A down"]
    trace.clear()
    error = await failure_of(build([resource("R", held, execute=fail)]))
    assert [type(each) for each in error.exceptions] == [Broken]
    assert trace[3:] == [
        *("B SdaxExecutionError", "B down", "A SdaxExecutionError", "A down"),
    ]


# --- databases


@fails_or_not
@pytest.mark.loop_kinds("asyncio", "uvloop")
async def test_a_sqlalchemy_session(fails: bool, tmp_path: Path) -> None:
    pytest.importorskip("aiosqlite")
    sqlalchemy = pytest.importorskip("sqlalchemy.ext.asyncio")
    text = pytest.importorskip("sqlalchemy").text
    engine = sqlalchemy.create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/shop.db")
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE orders (number INTEGER)"))

    async def session(ctx: Any) -> AsyncIterator[None]:
        async with sqlalchemy.AsyncSession(engine) as ctx.session, ctx.session.begin():
            yield

    async def order(ctx: Any) -> None:
        await ctx.session.execute(text("INSERT INTO orders VALUES (1)"))

    last = [task("Last", None, fail)] if fails else []
    processor = build([resource("Session", session)], [task("Order", order), *last])
    error = await error_of(processor.process_tasks(SimpleNamespace()))
    assert (error is not None) == fails
    async with engine.connect() as connection:
        rows = (await connection.execute(text("SELECT * FROM orders"))).all()
    await engine.dispose()
    assert len(rows) == (not fails)


@fails_or_not
@pytest.mark.loop_kinds("asyncio", "uvloop")
async def test_an_asyncpg_transaction(fails: bool, postgresql: str) -> None:
    asyncpg = pytest.importorskip("asyncpg")
    options = {"host": postgresql, "user": "sdax", "database": "postgres"}

    async def transaction(ctx: Any) -> AsyncIterator[None]:
        async with ctx.pool.acquire() as ctx.connection, ctx.connection.transaction():
            yield

    async def order(ctx: Any) -> None:
        await ctx.connection.execute("INSERT INTO held VALUES (1)")

    async with asyncpg.create_pool(**options, min_size=1, max_size=2) as pool:
        await pool.execute("DROP TABLE IF EXISTS held; CREATE TABLE held (number INTEGER)")
        last = [task("Last", None, fail)] if fails else []
        processor = build(
            [resource("Database", transaction, timeout=30.0, cleanup_timeout=30.0)],
            [task("Order", order), *last],
        )
        error = await error_of(processor.process_tasks(SimpleNamespace(pool=pool)))
        assert (error is not None) == fails
        assert await pool.fetchval("SELECT count(*) FROM held") == (not fails)
        assert pool.get_size() == pool.get_idle_size()
        await pool.execute("DROP TABLE held")


# --- clients, spans, logs


@pytest.mark.loop_kinds("asyncio", "uvloop")
async def test_an_httpx_client() -> None:
    httpx = pytest.importorskip("httpx")

    async def answer(reader: Any, writer: Any) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]

    async def fetch(ctx: Any) -> str:
        return str((await ctx.client.get("/")).text)

    async def client(ctx: Any) -> AsyncIterator[None]:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as ctx.client:
            yield

    ctx = SimpleNamespace()
    report = await build(
        [resource("Client", client)], [task(name, fetch) for name in "AB"]
    ).process_tasks(ctx)  # type: ignore[arg-type]
    assert [report[name].pre_execute.value for name in "AB"] == ["ok", "ok"]
    assert ctx.client.is_closed
    ctx = SimpleNamespace()
    await error_of(
        build([resource("Client", client)], [task("A", fail)]).process_tasks(ctx)  # type: ignore[arg-type]
    )
    assert ctx.client.is_closed
    server.close()
    await server.wait_closed()


@pytest.mark.parametrize("observed", [False, True])
@fails_or_not
async def test_an_opentelemetry_span_held_open(fails: bool, observed: bool) -> None:
    sdk = pytest.importorskip("opentelemetry.sdk.trace")
    memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
    simple = pytest.importorskip("opentelemetry.sdk.trace.export").SimpleSpanProcessor
    from sdax.observe.otel import OpenTelemetryObserver

    exporter = memory.InMemorySpanExporter()
    provider = sdk.TracerProvider()
    provider.add_span_processor(simple(exporter))
    tracer = provider.get_tracer("test")

    async def span(ctx: Any) -> AsyncIterator[None]:
        with tracer.start_as_current_span("order"):
            yield

    async def work(ctx: Any) -> None:
        with tracer.start_as_current_span("work"):
            await passes(1)

    last = [task("Last", None, fail)] if fails else []
    processor = build([resource("Span", span)], [task("A", work, work, work), *last])
    observer = OpenTelemetryObserver(tracer_provider=provider) if observed else None
    error = await error_of(processor.process_tasks(None, observer=observer))
    assert (error is not None) == fails
    spans = exporter.get_finished_spans()
    (order,) = (each for each in spans if each.name == "order")
    inner = [each for each in spans if each.name == "work"]
    assert len(inner) == 3
    if not observed:
        assert all(each.parent.span_id == order.context.span_id for each in inner)
    assert order.status.is_ok != fails
    assert order.end_time >= max(each.end_time for each in inner)


async def test_the_context_variables_of_structlog() -> None:
    structlog = pytest.importorskip("structlog")
    seen: list[dict[str, Any]] = []

    async def request(ctx: Any) -> AsyncIterator[None]:
        with structlog.contextvars.bound_contextvars(request=7):
            yield

    async def look(ctx: Any) -> None:
        seen.append(structlog.contextvars.get_contextvars())

    await build(
        [resource("Request", request), task("Before", look)], [task("A", look, look, look)]
    ).process_tasks(None)
    assert seen == [{}, *[{"request": 7}] * 3]
    assert structlog.contextvars.get_contextvars() == {}
