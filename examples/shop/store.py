"""Orders from a CSV file, a SQLite file made of them, and a pool of connections to it."""

import asyncio
import csv
import sqlite3
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import aiosqlite

SCHEMA = """
CREATE TABLE orders (
    order_id INTEGER PRIMARY KEY,
    user_id INTEGER NOT NULL,
    item TEXT NOT NULL,
    quantity INTEGER NOT NULL,
    unit_price_cents INTEGER NOT NULL,
    ordered_on TEXT NOT NULL
);
CREATE INDEX orders_by_user ON orders (user_id);
CREATE TABLE audit (request INTEGER PRIMARY KEY, user_id INTEGER, payable_cents INTEGER);
PRAGMA journal_mode = WAL;
"""


class Order(NamedTuple):
    """One line of the CSV file, one row of the table."""

    order_id: int
    user_id: int
    item: str
    quantity: int
    unit_price_cents: int
    ordered_on: str


def read_orders(path: Path) -> list[Order]:
    """Read every order of the CSV file."""
    with path.open(newline="", encoding="utf-8") as file:
        return [
            Order(
                int(row["order_id"]),
                int(row["user_id"]),
                row["item"],
                int(row["quantity"]),
                int(row["unit_price_cents"]),
                row["ordered_on"],
            )
            for row in csv.DictReader(file)
        ]


def create_database(path: Path, orders: list[Order]) -> None:
    """Create the SQLite file and fill it."""
    with closing(sqlite3.connect(path)) as database:
        database.executescript(SCHEMA)
        with database:
            database.executemany("INSERT INTO orders VALUES (?, ?, ?, ?, ?, ?)", orders)


class Pool:
    """A few connections, lent to one request at a time each."""

    def __init__(self, path: Path, size: int) -> None:
        self.size = size
        self.lent: set[aiosqlite.Connection] = set()
        self._path = path
        self._idle: asyncio.LifoQueue[aiosqlite.Connection] = asyncio.LifoQueue()

    async def __aenter__(self) -> Self:
        for _ in range(self.size):
            # Many requests write at the same time, and SQLite lets one of them write at a time.
            connection = await aiosqlite.connect(self._path, timeout=30.0)
            self._idle.put_nowait(connection)
            await connection.execute("PRAGMA synchronous = NORMAL")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # Also those that are still lent: an open connection keeps its thread and the program alive.
        while not self._idle.empty():
            self.lent.add(self._idle.get_nowait())
        for connection in self.lent:
            await connection.close()

    async def take(self) -> aiosqlite.Connection:
        """Wait for a free connection. The caller must give it back."""
        connection = await self._idle.get()
        self.lent.add(connection)
        return connection

    @asynccontextmanager
    async def connection(self) -> AsyncGenerator[aiosqlite.Connection, None]:
        """Lend a connection for as long as the block runs."""
        connection = await self.take()
        try:
            yield connection
        finally:
            self.give_back(connection)

    def give_back(self, connection: aiosqlite.Connection) -> None:
        """Give back a connection. Twice is an error, because two requests would share it."""
        self.lent.remove(connection)
        self._idle.put_nowait(connection)
