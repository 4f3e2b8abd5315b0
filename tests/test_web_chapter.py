"""The chapter "Web services": its programs on real servers, with a real PostgreSQL, on bad days."""

from __future__ import annotations

import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from conftest import Implementation
from web_programs import PAGE, PROGRAMS, Reply, Server, Services, database, program, services, until

pytestmark = [
    pytest.mark.loop_kinds("asyncio"),
    pytest.mark.skipif(sys.platform == "win32", reason="signals and sockets of Unix"),
]

for _module in ("asyncpg", "fastapi", "httpx", "starlette", "uvicorn"):
    pytest.importorskip(_module)

TEA = {"user_id": 1, "product": "tea"}
UVICORN = ["-m", "uvicorn", "--port", "0", "--no-access-log"]


# A busy machine may take long. So nothing may time out where the table does not say so.
PATIENT_APP = PROGRAMS["app.py"]
for _short, _long in {
    "asyncio.timeout(0.5)": "asyncio.timeout(3)",
    "timeout=0.5,": "timeout=30,",
    "timeout=2.0)": "timeout=30)",
    " timeout=2.0,": " timeout=30,",
    "httpx.AsyncClient()": "httpx.AsyncClient(timeout=30)",
}.items():
    assert _short in PATIENT_APP
    PATIENT_APP = PATIENT_APP.replace(_short, _long)
PATIENT = {**PROGRAMS, "app.py": PATIENT_APP}


class World(NamedTuple):
    """A server, what it needs, and ways to look at both."""

    server: Server
    services: Services
    database: Any

    async def busy_sessions(self) -> int:
        """The sessions of the server that are not idle."""
        return await self.sessions("AND state <> 'idle'")

    async def sessions(self, which: str = "") -> int:
        return int(
            await self.database.fetchval(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
                f"AND pid <> pg_backend_pid() {which}"
            )
        )

    async def waiting(self) -> int:
        """The sessions that wait for a lock."""
        return int(await self.database.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"))

    @asynccontextmanager
    async def orders_are_locked(self) -> AsyncIterator[None]:
        """Nobody can write an order until the end of the block."""
        async with self.database.transaction():
            await self.database.execute("LOCK TABLE orders IN ACCESS EXCLUSIVE MODE")
            yield


@asynccontextmanager
async def world(
    folder: Path,
    postgresql: str,
    engine: Implementation,
    *arguments: str,
    programs: dict[str, str] = PATIENT,
) -> AsyncIterator[World]:
    async with (
        database(postgresql, f"web_{engine.name}") as (connection, where_it_is),
        services() as (made, where_they_are),
        program(
            [*arguments], folder, engine, {**where_it_is, **where_they_are}, programs
        ) as server,
    ):
        yield World(server, made, connection)


class Row(NamedTuple):
    """A row of the table."""

    situation: str
    status: str
    answer: str
    flags: int
    prices: int
    orders: int
    in_use: str

    def __str__(self) -> str:
        return f"| {' | '.join(map(str, self))} |"


def table_of_the_page() -> dict[str, str]:
    """The rows of the page, by what happens."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    first = lines.index("| what happens | status | answer | flags | prices | orders | in use |") + 2
    rows = lines[first : lines.index("", first)]
    return {row.split(" | ")[0].removeprefix("| "): row for row in rows}


TABLE = table_of_the_page()


def check(*rows: Row) -> None:
    """Compare what was seen with the table of the page."""
    assert [str(each) for each in rows] == [TABLE[each.situation] for each in rows]


async def outcome(world: World, situation: str, reply: Reply | None) -> Row:
    """What a request has left, when it has ended in the server."""
    state = await world.server.settled()
    busy = await until(world.busy_sessions, lambda number: number == 0)
    status = str(state["statuses"][-1]) + ("" if reply else ", to nobody")
    in_use = f"{state['in_use']}, {busy}"
    return await row(world, situation, status, reply, in_use)


async def row(world: World, situation: str, status: str, reply: Reply | None, in_use: str) -> Row:
    calls = world.services.calls
    orders = await world.database.fetchval("SELECT count(*) FROM orders")
    await world.database.execute("TRUNCATE orders RESTART IDENTITY")
    answer = "none" if reply is None else answer_of(reply)
    return Row(situation, status, answer, calls["flags"], calls["prices"], orders, in_use)


def answer_of(reply: Reply) -> str:
    if not isinstance(reply.body, dict):
        return str(reply.body)
    return str(reply.body.get("detail") or f"order {reply.body['order']}")


async def asked(world: World, situation: str, body: Any = TEA, **answers: Any) -> Row:
    """Send a request, and wait for its answer."""
    world.services.prepare(**answers)
    return await outcome(world, situation, await world.server.ask("POST", "/orders", body))


async def hung_up_in_a_call(world: World, situation: str) -> Row:
    world.services.prepare(prices="hang")
    client = await world.server.send("POST", "/orders", TEA)
    await world.services.is_held.wait()
    await client.leave()
    return await outcome(world, situation, None)


async def hung_up_in_a_query(world: World, situation: str) -> Row:
    world.services.prepare()
    async with world.orders_are_locked():
        client = await world.server.send("POST", "/orders", TEA)
        await until(world.waiting, lambda number: number == 1)
        await client.leave()
        found = await world.server.settled()  # although the table is still locked
    assert found["in_use"] == 0
    return await outcome(world, situation, None)


async def rows_of_requests(world: World) -> list[Row]:
    down = "503 Service Unavailable"
    return [
        await asked(world, "All is well"),
        await asked(world, "No such user", {**TEA, "user_id": 2}),
        await asked(world, "No such product", {**TEA, "product": "gold"}),
        await asked(world, "The flags service is down", flags=down),
        await asked(world, "The flags service hangs", flags="hang"),
        await asked(world, "The price service answers 503 twice", prices=[down, down, "500"]),
        await asked(world, "The price service is down", prices=down),
        await hung_up_in_a_call(world, "The client hangs up during the call of the price service"),
        await hung_up_in_a_query(world, "The client hangs up while the order waits for a lock"),
    ]


async def terminated_in_a_call(world: World, situation: str) -> Row:
    """SIGTERM while a service makes the request wait, which then goes on."""
    world.services.prepare(prices="hold")
    client = await world.server.send("POST", "/orders", TEA)
    await world.services.is_held.wait()
    world.server.process.send_signal(signal.SIGTERM)
    await until(world.server.refuses, bool)
    world.services.may_go_on.set()
    reply = await client.reply()
    return await after_the_end(world, situation, reply)


async def terminated_in_a_query(world: World, situation: str) -> Row:
    """SIGTERM while a lock makes the request wait, for longer than the grace period."""
    world.services.prepare()
    async with world.orders_are_locked():
        client = await world.server.send("POST", "/orders", TEA)
        await until(world.waiting, lambda number: number == 1)
        world.server.process.send_signal(signal.SIGTERM)
        reply = await client.reply()
        await world.server.process.wait()
    return await after_the_end(world, situation, reply)


async def after_the_end(world: World, situation: str, reply: Reply) -> Row:
    await world.server.process.wait()
    sessions = await until(world.sessions, lambda number: number == 0)
    return await row(world, situation, str(reply.status), reply, f"none, {sessions}")


SERVE = (*UVICORN, "observed_app:app", "--timeout-graceful-shutdown")


async def test_requests(engine: Implementation, tmp_path: Path, postgresql: str) -> None:
    async with world(tmp_path, postgresql, engine, *SERVE, "30") as there:
        check(*await rows_of_requests(there))
        check(await terminated_in_a_call(there, "SIGTERM, and the request ends in time"))
        assert "Traceback" not in "".join(there.server.said)


@pytest.mark.one_engine
async def test_timeouts_and_a_short_grace_period(
    engine: Implementation, tmp_path: Path, postgresql: str
) -> None:
    async with world(tmp_path, postgresql, engine, *SERVE, "1", programs=PROGRAMS) as there:
        check(await asked(there, "The price service hangs", prices="hang"))
        check(await terminated_in_a_query(there, "SIGTERM, and the request takes too long"))


def test_every_row_is_looked_for() -> None:
    text = Path(__file__).read_text(encoding="utf-8")
    assert [each for each in TABLE if f'"{each}"' not in text] == []


@pytest.mark.one_engine
@pytest.mark.parametrize(
    ("framework", "arguments"),
    [
        ("starlette", (*UVICORN, "observed_with_starlette:app")),
        ("litestar", (*UVICORN, "observed_with_litestar:app")),
        ("aiohttp", ("observed_with_aiohttp.py",)),
    ],
    ids=["starlette", "litestar", "aiohttp"],
)
async def test_other_frameworks(
    engine: Implementation,
    tmp_path: Path,
    postgresql: str,
    framework: str,
    arguments: tuple[str, ...],
) -> None:
    """They answer as the table says, but nobody sees the status for a client that has gone."""
    pytest.importorskip(framework)
    async with world(tmp_path, postgresql, engine, *arguments) as there:
        rows = await rows_of_requests(there)
        assert "Traceback" not in "".join(there.server.said)
    for each in rows:
        to_nobody = each.status.endswith(", to nobody")
        check(each._replace(status="499, to nobody") if to_nobody else each)


@pytest.mark.one_engine
async def test_gunicorn(engine: Implementation, tmp_path: Path, postgresql: str) -> None:
    """The worker of the page, with a shorter grace period, cancels what takes too long."""
    pytest.importorskip("gunicorn")
    pytest.importorskip("uvicorn_worker")
    programs = {**PATIENT, "workers.py": PROGRAMS["workers.py"].replace("20", "1")}
    serve = ["-m", "gunicorn", "--bind", "127.0.0.1:0", "--no-control-socket", "observed_app:app"]
    serve += ["--worker-class", "workers.Worker", "--graceful-timeout", "30"]
    async with world(tmp_path, postgresql, engine, *serve, programs=programs) as there:
        check(await asked(there, "All is well"))
        check(await terminated_in_a_query(there, "SIGTERM, and the request takes too long"))


@pytest.mark.one_engine
async def test_without_cancel_on_disconnect(
    engine: Implementation, tmp_path: Path, postgresql: str
) -> None:
    """The server lets the run go on: the order of a client that has gone is written."""
    watched = "cancel_on_disconnect(request.receive, ORDER.process_tasks(order))"
    text = PATIENT_APP.replace(watched, "ORDER.process_tasks(order)")
    assert text != PATIENT_APP
    programs = {"app.py": text}
    async with world(tmp_path, postgresql, engine, *SERVE, "30", programs=programs) as there:
        there.services.prepare(prices="hold")
        client = await there.server.send("POST", "/orders", TEA)
        await there.services.is_held.wait()
        await client.leave()
        there.services.may_go_on.set()
        assert (await outcome(there, "", None)).orders == 1


@pytest.mark.one_engine
async def test_a_cleanup_that_nobody_waits_for(
    engine: Implementation, tmp_path: Path, postgresql: str
) -> None:
    """After a grace period uvicorn ends, although the cleanup of a cancelled run goes on."""
    text = PATIENT_APP.replace("await pool.close()", "pool.terminate()")
    hang = "log.error('the cleanup begins'); await asyncio.Event().wait()"
    held = "as order.connection:\n        "
    hanging = f"{held}try:\n            yield\n        finally:\n            {hang}\n"
    for short, long in {f"{held}yield": hanging, ", cleanup_timeout=5.0": ""}.items():
        assert text.count(short) == 1
        text = text.replace(short, long)
    serve = (*SERVE, "1")
    async with world(tmp_path, postgresql, engine, *serve, programs={"app.py": text}) as there:
        there.services.prepare()
        async with there.orders_are_locked():
            client = await there.server.send("POST", "/orders", TEA)
            await until(there.waiting, lambda number: number == 1)
            there.server.process.send_signal(signal.SIGTERM)
            assert await there.server.process.wait() == -signal.SIGTERM
            await client.leave()
        await there.server.reading
    assert "the cleanup begins" in "".join(there.server.said)


async def test_two_tasks_on_one_connection(engine: Implementation, postgresql: str) -> None:
    """What the page says of a connection that tasks of one level share."""
    import asyncpg

    from helpers import build, failure_of, task

    async def query(connection: Any) -> None:
        await connection.fetchval("SELECT 1")

    connection = await asyncpg.connect(host=postgresql, user="sdax", database="postgres")
    try:
        both = build([task("A", query), task("B", query)])
        error = await failure_of(both, connection)
    finally:
        await connection.close()
    message = str(error.exceptions[0])
    assert isinstance(error.exceptions[0], asyncpg.InterfaceError)
    assert f"InterfaceError: {message}" in " ".join(PAGE.read_text(encoding="utf-8").split())
