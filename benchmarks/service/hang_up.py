"""Clients that hang up half-way, and what must be left afterwards: nothing.

To stop every request at a known place, the table that it needs there is locked until the requests
wait for it, and their connections are closed, every other one abruptly. Then wrk is killed in the
middle of its load, which closes connections wherever requests happen to be.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from .database import Database
from .launch import Server
from .load import Load

TABLES = ("flags", "customers", "orders")  # one for each level
GIVEN_UP_AFTER = 60.0  # seconds
KILLS = 20  # of wrk, at most, until one of them meets a request in its course


@dataclass(frozen=True)
class Aftermath:
    """What is left after so many clients have hung up."""

    hung_up: int
    leaked_connections: int
    skipped_cleanups: int
    busy_backends: int  # PostgreSQL's, for the server's pool: a statement or a transaction is open


async def hang_up_at_every_level(server: Server, database: Database, load: Load) -> Aftermath:
    """Hang up on requests in each level and under load, and look at what is left.

    Raises `SystemExit` if anything is, or if requests are not cancelled.
    """
    before = await asyncio.to_thread(server.settle)
    connection = await database.connect()
    try:
        # At first at what the load before has left, for wrk hangs up when its time is over. Locking
        # a table after a leak could wait for ever for the transaction that leaked.
        await _look(server, connection, before["cancelled"])
        for table in TABLES:
            await _hang_up_at(table, server, connection, load)
            await _look(server, connection, before["cancelled"])
        await _kill_load(server, load)
        return await _look(server, connection, before["cancelled"])
    finally:
        await connection.close()


async def _look(server: Server, connection: Any, cancelled_before: int) -> Aftermath:
    """Look at what is left, and raise `SystemExit` if anything is."""
    state = await asyncio.to_thread(server.settle)
    _, taken = await asyncio.to_thread(server.ask, "POST", "/take-all")
    pool = await asyncio.to_thread(server.state)
    skipped = sum(state["begun"].values()) - sum(state["cleaned_up"].values())
    left = Aftermath(
        hung_up=state["cancelled"] - cancelled_before,
        leaked_connections=max(
            pool["pool_limit"] - taken["free"], pool["pool_size"] - pool["pool_idle"]
        ),
        skipped_cleanups=skipped + state["places_in_use"],
        busy_backends=await connection.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1 AND state <> 'idle'",
            server.variant.name,
        ),
    )
    if left.leaked_connections or left.skipped_cleanups or left.busy_backends:
        raise SystemExit(f"{server.variant.name}: clients that hung up left something: {left}")
    return left


async def _hang_up_at(table: str, server: Server, connection: Any, load: Load) -> None:
    """Hang up on requests that wait for the table, or for a connection to ask it."""
    before = await asyncio.to_thread(server.settle)
    tokens = load.tokens.read_text(encoding="utf-8").split()[: load.connections]
    async with connection.transaction():
        await connection.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
        writers = [await _send(server, token) for token in tokens]

        async def all_wait() -> bool:
            waiting: int = await connection.fetchval(
                "SELECT count(*) FROM pg_locks WHERE NOT granted"
            )
            in_flight: int = (await asyncio.to_thread(server.state))["in_flight"]
            limit: int = before["pool_limit"]
            return waiting >= min(len(tokens), limit) and in_flight == len(tokens)

        await _until(all_wait, f"{server.variant.name}: requests do not wait for {table}")
        for number, writer in enumerate(writers):
            if number % 2:
                linger: Any = writer.get_extra_info("socket")
                linger.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.close()

        async def all_ended() -> bool:
            # While the table is still locked: cleanup must not depend on what is stuck.
            state = await asyncio.to_thread(server.state)
            cancelled: int = state["cancelled"] - before["cancelled"]
            return cancelled == len(tokens) and state["in_flight"] == 0

        await _until(all_ended, f"{server.variant.name}: hung up at {table}, and not cancelled")


async def _kill_load(server: Server, load: Load) -> None:
    """Kill wrk in the middle of its load, again if every request had just been answered."""
    for _ in range(KILLS):
        before = await asyncio.to_thread(server.settle)

        async def is_busy(answered: int = before["answered"] + 10 * load.connections) -> bool:
            state = await asyncio.to_thread(server.state)
            return bool(state["answered"] > answered)

        command = load.command(server, seconds=600)
        wrk = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.DEVNULL)
        try:
            await _until(is_busy, f"{server.variant.name}: wrk gets no answers")
        finally:
            wrk.kill()
            await wrk.wait()
        state = await asyncio.to_thread(server.settle)
        if state["cancelled"] > before["cancelled"]:
            return
    raise SystemExit(
        f"{server.variant.name}: wrk was killed {KILLS} times, and no request was cancelled"
    )


async def _send(server: Server, token: str) -> asyncio.StreamWriter:
    """Send a request on a connection of its own."""
    _, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(
        f"POST /orders HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {token}\r\n"
        f"Content-Length: 0\r\n\r\n".encode()
    )
    await writer.drain()
    return writer


async def _until(condition: Callable[[], Awaitable[bool]], complaint: str) -> None:
    """Wait for a condition that another process brings about."""
    try:
        async with asyncio.timeout(GIVEN_UP_AFTER):
            while not await condition():  # noqa: ASYNC110
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise SystemExit(complaint) from None
