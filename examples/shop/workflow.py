"""The endpoint: one immutable workflow, built once, run for every request.

What each level takes or loads, and what its cleanup gives back:

    level 1   Database      take a connection of the pool, see that it lives   commit, give it back
              Token         check the signature of the user's token
    level 2   FeatureFlags  ask the flag service, for one second at most
              Discount      ask the discount service, again while it is busy
    level 3   Orders        read the user's orders
              Answer        (execute) compute the answer, write an audit row

Levels open upwards and are cleaned up downwards, whatever happens in between.
"""

import asyncio
import hashlib
import hmac
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import aiohttp
import aiosqlite
from aiohttp import web
from yarl import URL

from sdax import (
    AsyncTask,
    AsyncTaskProcessor,
    RetryableException,
    SdaxExecutionError,
    TaskFunction,
    resource,
)
from sdax.observe import Observer

from .store import Order, Pool

# ---------------------------------------------------------------- what requests share and own


@dataclass
class Trace:
    """What ran for one request, in order."""

    began: float = field(default_factory=time.perf_counter)
    events: list[tuple[float, str, str]] = field(default_factory=list)
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def note(self, label: str, what: str) -> None:
        """Add an event."""
        self.events.append((time.perf_counter() - self.began, label, what))

    def count(self, label: str, what: str) -> int:
        """Tell how often an event happened."""
        return sum(event[1:] == (label, what) for event in self.events)


@dataclass
class Service:
    """What all requests share."""

    secret: bytes
    pool: Pool
    http: aiohttp.ClientSession
    upstream: URL
    observers: tuple[Observer, ...] = ()  # of all runs
    traces: defaultdict[int, Trace] = field(default_factory=lambda: defaultdict(Trace))
    in_flight: int = 0
    peak: int = 0


@dataclass(frozen=True)
class Request:
    """One question: what does the owner of this token owe for all orders?"""

    number: int
    token: str


@dataclass(frozen=True)
class Reply:
    """One answer."""

    status: int
    body: dict[str, Any]


@dataclass(slots=True)
class Context:
    """What one run gathers. Runs share the processor, so whatever differs between them is here."""

    service: Service
    request: Request
    trace: Trace
    # The levels see to it that these are set before they are read.
    connection: aiosqlite.Connection = field(init=False)
    user_id: int = field(init=False)
    flags: dict[str, bool] = field(init=False)
    discount: int = field(init=False)
    orders: list[Order] = field(init=False)


# ---------------------------------------------------------------- the functions of the workflow

Step = Callable[[Context], Awaitable[Any]]


def traced(label: str) -> Callable[[Step], Step]:
    """Note in the request's trace when a function starts, and how each attempt ends."""

    def decorate(function: Step) -> Step:
        @wraps(function)
        async def attempt(ctx: Context) -> Any:
            ctx.trace.note(label, "starts")
            try:
                value = await function(ctx)
            except BaseException as error:
                ctx.trace.note(label, type(error).__name__)
                raise
            ctx.trace.note(label, "done")
            return value

        return attempt

    return decorate


class UnauthorizedError(Exception):
    """The token is not one that this service has signed."""


class NotFoundError(Exception):
    """There is nothing to answer with."""


def sign(secret: bytes, user_id: int) -> str:
    """Make the token of a user."""
    return f"{user_id}.{hmac.digest(secret, str(user_id).encode(), hashlib.sha256).hex()}"


async def database(ctx: Context) -> AsyncIterator[None]:
    """Lend the request a connection, in a transaction that ends as the run does."""
    async with ctx.service.pool.connection() as ctx.connection:
        ctx.trace.note("Database", "taken")
        try:
            await ctx.connection.execute_fetchall("SELECT 1")  # does it live?
            yield
            await ctx.connection.commit()
        finally:
            # A cancelled function has left its statement to the connection's thread. This waits
            # for it, and undoes what was not committed.
            await ctx.connection.rollback()
            ctx.trace.note("Database", "given back")


@traced("Token.pre_execute")
async def check_token(ctx: Context) -> None:
    """Find out who is asking. It never suspends, so it costs no asyncio.Task."""
    user_id = ctx.request.token.partition(".")[0]
    if not user_id.isdecimal():
        raise UnauthorizedError("malformed token")
    if not hmac.compare_digest(ctx.request.token, sign(ctx.service.secret, int(user_id))):
        raise UnauthorizedError("forged token")
    ctx.user_id = int(user_id)


@traced("FeatureFlags.pre_execute")
async def load_flags(ctx: Context) -> None:
    """Ask the flag service. The workflow gives it a second."""
    question = {"user": ctx.user_id, "request": ctx.request.number}
    async with ctx.service.http.get(ctx.service.upstream / "flags", params=question) as response:
        response.raise_for_status()
        ctx.flags = await response.json()


@traced("Discount.pre_execute")
async def load_discount(ctx: Context) -> None:
    """Ask the discount service. What is raised here decides whether it is asked again."""
    question = {"user": ctx.user_id, "request": ctx.request.number}
    # POST: a GET over a dropped connection would be repeated by aiohttp itself.
    async with ctx.service.http.post(ctx.service.upstream / "discounts", json=question) as response:
        if response.status == 503:
            raise RetryableException("the discount service is busy")
        response.raise_for_status()
        ctx.discount = (await response.json())["percent"]


@traced("Orders.pre_execute")
async def read_user_orders(ctx: Context) -> None:
    """Read the user's orders."""
    rows = await ctx.connection.execute_fetchall(
        "SELECT * FROM orders WHERE user_id = ? ORDER BY order_id", (ctx.user_id,)
    )
    ctx.orders = [Order(*row) for row in rows]
    if not ctx.orders:
        raise NotFoundError(f"user {ctx.user_id} has no orders")


@traced("Answer.execute")
async def answer(ctx: Context) -> dict[str, Any]:
    """Compute the answer; keep it in the audit table."""
    total = sum(order.quantity * order.unit_price_cents for order in ctx.orders)
    payable = total * (100 - ctx.discount) // 100 if ctx.flags["discounts"] else total
    await ctx.connection.execute(
        "INSERT INTO audit VALUES (?, ?, ?)", (ctx.request.number, ctx.user_id, payable)
    )
    return {
        "request": ctx.request.number,
        "user": ctx.user_id,
        "orders": [order.order_id for order in ctx.orders],
        "payable_cents": payable,
        "new_checkout": ctx.flags["new_checkout"],
    }


PROCESSOR = (
    AsyncTaskProcessor[Context]
    .builder()
    .add_task(
        level=1,
        # Cleanup is never cut short by a cancellation, so it brings its own limit.
        task=resource("Database", database, timeout=30.0, cleanup_timeout=30.0),
    )
    .add_task(level=1, task=AsyncTask(name="Token", pre_execute=TaskFunction(check_token)))
    .add_task(
        level=2,
        task=AsyncTask(name="FeatureFlags", pre_execute=TaskFunction(load_flags, timeout=1.0)),
    )
    .add_task(
        level=2,
        task=AsyncTask(
            name="Discount",
            pre_execute=TaskFunction(
                load_discount,
                timeout=1.0,
                retries=3,
                initial_delay=0.02,
                retryable_exceptions=(
                    TimeoutError,
                    RetryableException,
                    aiohttp.ClientConnectionError,
                ),
            ),
        ),
    )
    .add_task(
        level=3,
        task=AsyncTask(name="Orders", pre_execute=TaskFunction(read_user_orders, timeout=30.0)),
    )
    .add_task(level=3, task=AsyncTask(name="Answer", execute=TaskFunction(answer, timeout=30.0)))
    .build()
)


# ---------------------------------------------------------------- the endpoint

STATUS_OF: dict[type[Exception], int] = {
    UnauthorizedError: 401,
    NotFoundError: 404,
    TimeoutError: 504,
}


async def handle(service: Service, request: Request) -> Reply:
    """Answer one request; whatever happens, the workflow has given everything back by then."""
    trace = service.traces[request.number]
    service.in_flight += 1
    service.peak = max(service.peak, service.in_flight)
    try:
        ctx = Context(service, request, trace)
        report = await PROCESSOR.process_tasks(ctx, observer=service.observers)
    except SdaxExecutionError as failed:
        task, phase, attempts, error = failed.failures[0]
        reason = f"{task}.{phase}, attempt {attempts}: {type(error).__name__} {error}".rstrip()
        return Reply(STATUS_OF.get(type(error), 500), {"error": reason})
    except asyncio.CancelledError:
        # The client has gone. Cleanup is over by now, and nobody is left to be answered.
        trace.note("handle", "CancelledError")
        raise
    finally:
        service.in_flight -= 1
        trace.ended.set()
    attempts = report["Discount"].pre_execute.attempts
    return Reply(200, report["Answer"].execute.value | {"discount_attempts": attempts})


def application(service: Service) -> web.Application:
    """Make the endpoint available over HTTP."""

    async def get(request: web.Request) -> web.Response:
        token = request.headers["Authorization"].removeprefix("Bearer ")
        reply = await handle(service, Request(int(request.headers["X-Request-Id"]), token))
        return web.json_response(reply.body, status=reply.status)

    http = web.Application()
    http.router.add_get("/orders", get)
    return http
