"""What asyncpg and psycopg raise, against a real PostgreSQL, and against what is none."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any

import pytest

from loopback import HOST, against, certified, keep_silent, raised_by, refusing_port
from sdax.clients import is_temporary, retry_after


@pytest.fixture(params=["asyncpg", "psycopg"])
def connect(request: pytest.FixtureRequest, postgresql: str) -> Any:
    """Connect to the real server, with one client after the other."""
    client = pytest.importorskip(request.param)
    options: dict[str, Any] = {"host": postgresql, "user": "sdax"}
    if request.param == "asyncpg":

        async def connect_with_asyncpg(database: str = "postgres", **others: Any) -> Any:
            return await client.connect(**{**options, "database": database, **others})

        return connect_with_asyncpg

    async def connect_with_psycopg(database: str = "postgres", **others: Any) -> Any:
        connection = client.AsyncConnection
        return await connection.connect(
            **{**options, "dbname": database, **others}, autocommit=True
        )

    return connect_with_psycopg


@pytest.mark.parametrize(
    ("sqlstate", "temporary"),
    [
        *((state, True) for state in ("08000", "08006", "08P01", "40001", "40P01", "53100")),
        *((state, True) for state in ("53300", "57P01", "57P02", "57P03", "57P77")),
        *((state, False) for state in ("57014", "40002", "42601", "23505", "55P03", "28P01")),
        *((state, False) for state in ("22012", "0A000", "XX000")),
    ],
)
def test_sqlstates(connect: Any, sqlstate: str, temporary: bool) -> None:
    async def query() -> None:
        connection = await connect()
        try:
            await connection.execute(
                f"DO $$ BEGIN RAISE EXCEPTION 'A' USING errcode = '{sqlstate}'; END $$"
            )
        finally:
            await connection.close()

    error = asyncio.run(raised_by(query()))
    assert getattr(error, "sqlstate", None) == sqlstate
    assert is_temporary(error) is temporary
    assert retry_after(error) is None


def test_a_deadlock(connect: Any) -> None:
    async def main() -> None:
        connections = await connect(), await connect()
        try:
            for number, connection in enumerate(connections):
                await connection.execute("SET deadlock_timeout = '1ms'")
                await connection.execute("BEGIN")
                await connection.execute(f"SELECT pg_advisory_xact_lock({number})")
            results = await asyncio.gather(
                connections[0].execute("SELECT pg_advisory_xact_lock(1)"),
                connections[1].execute("SELECT pg_advisory_xact_lock(0)"),
                return_exceptions=True,
            )
        finally:
            for connection in connections:
                await connection.close()
        (error,) = (each for each in results if isinstance(each, Exception))
        assert "deadlock" in str(error)
        assert is_temporary(error)

    asyncio.run(main())


def test_postgresql_refuses_connections(connect: Any) -> None:
    async def main() -> None:
        assert is_temporary(await raised_by(connect(host=HOST, port=refusing_port())))
        for wrong in ({"database": "missing"}, {"user": "missing"}):
            error = await raised_by(connect(**wrong))
            assert "does not exist" in str(error)
            assert not is_temporary(error)

    asyncio.run(main())


def test_postgresql_has_no_connection_left(connect: Any) -> None:
    async def main() -> None:
        connections = []

        async def take_all() -> None:
            while True:
                connections.append(await connect())

        try:
            error = await raised_by(take_all())
        finally:
            for connection in connections:
                await connection.close()
        assert "too many clients" in str(error)
        assert is_temporary(error)

    asyncio.run(main())


@pytest.mark.parametrize("busy", [True, False], ids=["busy", "idle"])
def test_postgresql_ends_a_connection(connect: Any, busy: bool) -> None:
    others = "pid <> pg_backend_pid() AND backend_type = 'client backend'"

    async def main() -> None:
        victim, other = await connect(), await connect()
        try:
            query = asyncio.ensure_future(victim.execute("SELECT pg_sleep(60)")) if busy else None
            await other.execute(
                f"""DO $$ BEGIN
                    {
                    "WHILE NOT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event = 'PgSleep')"
                    " LOOP PERFORM pg_stat_clear_snapshot(); END LOOP;"
                    if busy
                    else ""
                }
                    PERFORM pg_terminate_backend(pid, 60000) FROM pg_stat_activity WHERE {others};
                END $$"""
            )
            if query is not None:
                assert is_temporary(await raised_by(query))
            else:
                await connection_lost(victim)
                assert is_temporary(await raised_by(victim.execute("SELECT 1")))
            again = await raised_by(victim.execute("SELECT 1"))
            assert "closed" in str(again)
            assert is_temporary(again)
        finally:
            await victim.close()
            await other.close()

    async def connection_lost(connection: Any) -> None:
        """Let asyncpg see that the server has ended the connection; psycopg sees it when asked."""
        if "asyncpg" in connect.__name__ and not connection.is_closed():
            lost = asyncio.Event()
            connection.add_termination_listener(lambda _: lost.set())
            await lost.wait()

    asyncio.run(main())


def test_postgresql_does_not_answer(connect: Any) -> None:
    async def call(port: int) -> None:
        # libpq takes no less than two seconds.
        limit = {"timeout": 0.01} if "asyncpg" in connect.__name__ else {"connect_timeout": 2}
        await connect(host=HOST, port=port, **limit)

    assert is_temporary(against(keep_silent, call))


async def start_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer as PostgreSQL does that is not ready."""
    size = int.from_bytes(await reader.readexactly(4), "big")
    if size == 8:  # whether it speaks TLS, or GSS
        await reader.readexactly(4)
        writer.write(b"N")
        size = int.from_bytes(await reader.readexactly(4), "big")
    await reader.readexactly(size - 4)
    fields = b"SFATAL\0VFATAL\0C57P03\0Mthe database system is starting up\0\0"
    writer.write(b"E" + (len(fields) + 4).to_bytes(4, "big") + fields)
    await writer.drain()


def test_postgresql_is_starting_up(connect: Any) -> None:
    async def call(port: int) -> None:
        await connect(host=HOST, port=port)

    error = against(start_up, call)
    assert "starting up" in str(error)
    assert is_temporary(error)


def test_postgresql_with_a_wrong_certificate(connect: Any) -> None:
    async def call(port: int) -> None:
        if "asyncpg" in connect.__name__:
            await connect(host=HOST, port=port, ssl=ssl.create_default_context())
        else:
            options = {"sslmode": "verify-full", "sslrootcert": "system"}
            await connect(host=HOST, port=port, **options)

    async def speak_tls(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(8)
        writer.write(b"S")
        await writer.drain()
        await writer.start_tls(certified())

    error = against(speak_tls, call)
    assert "certificate verify failed" in str(error)
    assert not is_temporary(error)


def test_psycopg_pools(postgresql: str) -> None:
    pools = pytest.importorskip("psycopg_pool")

    async def main() -> None:
        options = {"host": postgresql, "user": "sdax", "dbname": "postgres"}
        pool = pools.AsyncConnectionPool(kwargs=options, min_size=1, max_size=1, open=False)
        await pool.open()
        async with pool.connection():
            assert is_temporary(await raised_by(pool.getconn(timeout=0.01)))
        await pool.close()
        assert not is_temporary(await raised_by(pool.getconn()))

    asyncio.run(main())


def test_psycopg_pipelines_that_are_aborted(postgresql: str) -> None:
    psycopg = pytest.importorskip("psycopg")

    async def main() -> None:
        options = {"host": postgresql, "user": "sdax", "dbname": "postgres"}
        errors = []
        async with (
            await psycopg.AsyncConnection.connect(**options, autocommit=True) as connection,
            connection.pipeline(),
        ):
            for query in ("SELECT nonsense", "SELECT 1"):
                cursor = await connection.execute(query)
                errors.append(await raised_by(cursor.fetchone()))
        names = [type(error).__name__ for error in errors]
        assert names == ["UndefinedColumn", "PipelineAborted"]
        assert not any(map(is_temporary, errors))

    asyncio.run(main())
