"""The examples and the programs of the documentation, disturbed at each of their points."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import io
import itertools
import json
import secrets
import sqlite3
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from conftest import Implementation
from sdax.processor import TaskProcessor
from sdax.testing import ScheduleFailed, VirtualClockLoop, explorations, explore
from test_documentation import PYTHON, ROOT, Block

EXPLORED_ELSEWHERE = ("mistakes.md", "testing.md")


@pytest.fixture(autouse=True)
def _examples_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Other tests have modules of the same names."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(ROOT / "examples")
    yield
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in ("pipeline", "quickstart", "shop"):
            del sys.modules[name]


# ------------------------------------------------------------- the programs of the documentation


def program_of(block: Block) -> list[Block]:
    """Return the blocks that run one after another, of which this is the last."""
    before = PYTHON[: PYTHON.index(block)]
    chain = [block]
    while "continued" in chain[0].words:
        chain.insert(0, before.pop())
    return chain


PROGRAMS = [
    block
    for block in PYTHON
    if block.page.name not in EXPLORED_ELSEWHERE
    and not any("threads" in each.words for each in program_of(block))
    and "process_tasks" in block.text
]


def runs_of(block: Block, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, Any]]:
    """Run a program; return its processors, each with the context that its first run began with."""
    runs: list[tuple[Any, Any]] = []
    process_tasks = TaskProcessor.process_tasks

    async def noting(self: Any, ctx: Any, **options: Any) -> Any:
        if not any(processor is self for processor, _ in runs):
            runs.append((self, copy.deepcopy(ctx)))
        return await process_tasks(self, ctx, **options)

    names: dict[str, Any] = {"__name__": "__main__"}
    with monkeypatch.context() as patched:
        patched.setattr(TaskProcessor, "process_tasks", noting)
        patched.setattr(asyncio.events, "new_event_loop", VirtualClockLoop)
        patched.chdir(ROOT)
        for each in program_of(block):
            exec(each.compiled(), names)
    return runs


@pytest.mark.parametrize("block", PROGRAMS, ids=str)
def test_programs_of_the_documentation(
    engine: Implementation, monkeypatch: pytest.MonkeyPatch, block: Block
) -> None:
    """All but what bounds their awaits: most have no timeouts, which have their own chapter."""
    with contextlib.redirect_stdout(io.StringIO()):
        found: list[ScheduleFailed] = []
        for processor, ctx in runs_of(block, monkeypatch):
            found += explorations(
                processor,
                context=partial(copy.deepcopy, ctx),
                check=lambda run: run.error is None or True,
                faults=("cancel", "fail", "cancel again"),
                max_schedules=100,  # one has a thousand tasks
            )
    assert bool(found) == ("mistake" in block.words), found


def test_there_are_programs() -> None:
    assert len(PROGRAMS) > 20


# ------------------------------------------------------------------------------ the quickstart


def test_the_quickstart(engine: Implementation) -> None:
    import quickstart

    with contextlib.redirect_stdout(io.StringIO()):
        explore(
            quickstart.processor,
            context=lambda: quickstart.Request(1),
            check=lambda run: run.context.connection is None,
            faults=("cancel", "fail", "cancel again", "interrupt"),
        )


# --------------------------------------------------------------------------------- the pipeline


@pytest.mark.parametrize("which", ["in_levels", "as_graph"])
def test_the_pipeline(engine: Implementation, tmp_path: Path, which: str) -> None:
    """Real files, in threads that a cancellation waits for."""
    import pipeline

    results = itertools.count()

    def new_sales() -> Any:
        return pipeline.Sales(tmp_path / f"{next(results)}.json")

    def check(run: Any) -> None:
        assert not run.context.partial_result.exists()
        if run.error is None:
            assert json.loads(run.context.result.read_text(encoding="utf-8"))

    processor = getattr(pipeline, which)()
    explored = explore(
        processor, context=new_sales, check=check, clock="real", faults=("cancel", "fail")
    )
    assert explored.schedules > 50


# ------------------------------------------------------------------------------------- the shop


@contextmanager
def real_services() -> Iterator[Any]:
    """Serve flags and discounts over HTTP, in a loop and a thread of their own."""
    from shop.upstream import Upstream, listening

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    serving = listening(Upstream().application())
    try:
        yield asyncio.run_coroutine_threadsafe(serving.__aenter__(), loop).result(60)
        asyncio.run_coroutine_threadsafe(serving.__aexit__(None, None, None), loop).result(60)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()


async def everything_is_back(run: Any) -> None:
    """Every connection is idle and has no transaction; an answer has left its row."""
    pool, request = run.context.service.pool, run.context.request
    assert not pool.lent
    connections = [await pool.take() for _ in range(pool.size)]
    assert not any(each.in_transaction for each in connections)
    question = "SELECT count(*) FROM audit WHERE request = ?"
    ((rows,),) = await connections[0].execute_fetchall(question, (request.number,))
    for each in connections:
        pool.give_back(each)
    assert rows == 1 if run.error is None else rows in (0, 1)


def shop_database(folder: Path) -> tuple[Path, list[Any]]:
    from shop.store import create_database, read_orders

    orders = read_orders(ROOT / "examples" / "data" / "orders.csv")
    path = folder / "orders.sqlite"
    create_database(path, orders)
    return path, orders


def requests_without_faults() -> Iterator[int]:
    """Numbers for which the services neither are busy nor drop a connection."""
    return itertools.count(1, 35)


def test_the_shop_on_a_real_database_and_real_services(
    engine: Implementation, tmp_path: Path
) -> None:
    import aiohttp

    from shop.store import Pool
    from shop.workflow import PROCESSOR, Context, Request, Service, sign

    path, _ = shop_database(tmp_path)
    numbers = requests_without_faults()
    secret = secrets.token_bytes()

    with real_services() as url:

        @asynccontextmanager
        async def new_request() -> AsyncIterator[Context]:
            async with Pool(path, 2) as pool, aiohttp.ClientSession() as http:
                service = Service(secret, pool, http, url)
                request = Request(next(numbers), sign(secret, 101))
                yield Context(service, request)

        explored = explore(
            PROCESSOR,
            context=new_request,
            check=everything_is_back,
            clock="real",
            faults=("cancel", "fail", "interrupt"),
        )
    assert explored.schedules > 80


class ModelConnection:
    """A real SQLite database behind calls that take a while, as those of a thread do."""

    def __init__(self, make: Callable[[], sqlite3.Connection]) -> None:
        self.database = make()

    @property
    def in_transaction(self) -> bool:
        return self.database.in_transaction

    async def execute(self, sql: str, values: Any = ()) -> ModelCursor:
        await asyncio.sleep(0.001)
        return ModelCursor(self.database.execute(sql, values))

    async def execute_fetchall(self, sql: str, values: Any = ()) -> list[Any]:
        return await (await self.execute(sql, values)).fetchall()

    async def commit(self) -> None:
        await asyncio.sleep(0.001)
        self.database.commit()

    async def rollback(self) -> None:
        await asyncio.sleep(0.001)
        self.database.rollback()

    async def close(self) -> None:
        self.database.close()


class ModelCursor:
    def __init__(self, cursor: sqlite3.Cursor) -> None:
        self.cursor = cursor

    async def fetchall(self) -> list[Any]:
        await asyncio.sleep(0.001)
        return self.cursor.fetchall()

    async def close(self) -> None:
        await asyncio.sleep(0.001)
        self.cursor.close()


class ModelAnswer:
    """What a service answers, after a while."""

    status = 200

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    async def __aenter__(self) -> ModelAnswer:
        await asyncio.sleep(0.01)
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    def raise_for_status(self) -> None:
        pass

    async def json(self) -> Any:
        await asyncio.sleep(0.01)
        return self.answer


class ModelHttp:
    def get(self, url: Any, params: Any) -> ModelAnswer:
        return ModelAnswer({"discounts": True, "new_checkout": False})

    def post(self, url: Any, json: Any) -> ModelAnswer:
        return ModelAnswer({"percent": 10})


def test_a_model_of_the_shop(engine: Implementation, tmp_path: Path) -> None:
    """Every fault, for nothing takes any time: timeouts, too, and a second cancellation."""
    from yarl import URL

    from shop.store import SCHEMA, Pool
    from shop.workflow import PROCESSOR, Context, Request, Service, sign

    class ModelPool(Pool):
        async def __aenter__(self) -> Any:
            for _ in range(self.size):
                self._idle.put_nowait(ModelConnection(self.connect))  # type: ignore[arg-type]
            return self

        def connect(self) -> sqlite3.Connection:
            database = sqlite3.connect("file:shop?mode=memory&cache=shared", uri=True)
            with contextlib.suppress(sqlite3.OperationalError):  # the first one makes the tables
                database.executescript(SCHEMA)
                database.execute("INSERT INTO orders VALUES (1, 101, 'tea', 2, 250, '2026-01-01')")
                database.commit()
            return database

    secret = b"secret"

    @asynccontextmanager
    async def new_request() -> AsyncIterator[Context]:
        async with ModelPool(tmp_path, 2) as pool:
            http: Any = ModelHttp()
            service = Service(secret, pool, http, URL("http://model"))
            request = Request(1, sign(secret, 101))
            yield Context(service, request)

    explored = explore(
        PROCESSOR,
        context=new_request,
        check=everything_is_back,
        faults=("cancel", "fail", "hang", "cancel again", "interrupt"),
    )
    assert explored.exhaustive
    assert explored.schedules > 150
