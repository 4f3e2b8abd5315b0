"""The endpoint: one immutable workflow, built once, run for every request.

Each level takes or loads something, and its cleanup gives it back:

    level 1   Database      take a connection of the pool, see that it lives     give it back
              Token         check the signature of the user's token
    level 2   FeatureFlags  ask the flag service, for one second at most
              Discount      ask the discount service, again while it is busy
    level 3   Orders        open a cursor on the user's orders and read them     close it
              Answer        (execute) compute the answer, write an audit row

Levels open upwards and are always cleaned up downwards.
"""

import hashlib
import hmac
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import aiosqlite
from aiohttp import web
from yarl import URL

from sdax import (
    AsyncTaskProcessor,
    RetryableException,
    SdaxExecutionError,
    resource,
    task,
    task_func,
)
from sdax.clients import is_temporary
from sdax.observe import Observer

from .store import Order, Pool

log = logging.getLogger("shop")

# ---------------------------------------------------------------- what requests share and own


@dataclass
class Service:
    """The things that all requests share."""

    secret: bytes
    pool: Pool
    http: aiohttp.ClientSession
    upstream: URL
    observers: tuple[Observer, ...] = ()  # of all runs


@dataclass(frozen=True)
class Request:
    """A question: how much does the owner of this token owe for all orders?"""

    number: int
    token: str


@dataclass(frozen=True)
class Reply:
    """An answer."""

    status: int
    body: dict[str, Any]


@dataclass(slots=True)
class Context:
    """The data of one run. Runs share the processor, so everything that differs is here."""

    service: Service
    request: Request
    # The order of the levels guarantees that these are set before they are read.
    connection: aiosqlite.Connection = field(init=False)
    user_id: int = field(init=False)
    flags: dict[str, bool] = field(init=False)
    discount: int = field(init=False)
    orders: list[Order] = field(init=False)


# ---------------------------------------------------------------- the functions of the workflow


class RefusedError(Exception):
    """A request that is at fault itself. The client may read the text."""

    status = 400


class UnauthorizedError(RefusedError):
    """This service has not signed the token."""

    status = 401


class NotFoundError(RefusedError):
    """There is nothing to answer with."""

    status = 404


def sign(secret: bytes, user_id: int) -> str:
    """Make the token of a user."""
    return f"{user_id}.{hmac.digest(secret, str(user_id).encode(), hashlib.sha256).hex()}"


async def database(ctx: Context) -> AsyncIterator[None]:
    """Lend the request a connection. Its transaction is committed if the run succeeds."""
    async with ctx.service.pool.connection() as ctx.connection:
        try:
            await ctx.connection.execute_fetchall("SELECT 1")  # does it live?
            yield
            await ctx.connection.commit()
        finally:
            # After a cancellation, the connection's thread may still run a statement. This waits
            # for it, and undoes everything that was not committed.
            await ctx.connection.rollback()


async def check_token(ctx: Context) -> None:
    """Find the user. It never waits, so it needs no asyncio.Task."""
    user_id = ctx.request.token.partition(".")[0]
    if not user_id.isdecimal():
        raise UnauthorizedError("malformed token")
    if not hmac.compare_digest(ctx.request.token, sign(ctx.service.secret, int(user_id))):
        raise UnauthorizedError("forged token")
    ctx.user_id = int(user_id)


async def load_flags(ctx: Context) -> None:
    """Ask the flag service. The workflow gives it a second."""
    question = {"user": ctx.user_id, "request": ctx.request.number}
    async with ctx.service.http.get(ctx.service.upstream / "flags", params=question) as response:
        response.raise_for_status()
        ctx.flags = await response.json()


async def load_discount(ctx: Context) -> None:
    """Ask the discount service. If it is busy or the connection breaks, it is asked again."""
    question = {"user": ctx.user_id, "request": ctx.request.number}
    # POST: a GET over a dropped connection would be repeated by aiohttp itself.
    async with ctx.service.http.post(ctx.service.upstream / "discounts", json=question) as response:
        if response.status == 503:
            raise RetryableException("the discount service is busy")
        response.raise_for_status()
        ctx.discount = (await response.json())["percent"]


async def read_user_orders(ctx: Context) -> None:
    """Read the user's orders."""
    rows = await ctx.connection.execute_fetchall(
        "SELECT * FROM orders WHERE user_id = ? ORDER BY order_id", (ctx.user_id,)
    )
    ctx.orders = [Order(*row) for row in rows]
    if not ctx.orders:
        raise NotFoundError(f"user {ctx.user_id} has no orders")


async def answer(ctx: Context) -> dict[str, Any]:
    """Compute the answer and write it into the audit table."""
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
        # A cancellation does not interrupt cleanup, so it has a limit of its own.
        resource("Database", database, timeout=30.0, cleanup_timeout=30.0),
        level=1,
    )
    .add_task(task("Token", pre_execute=check_token), level=1)
    .add_task(task("FeatureFlags", pre_execute=task_func(load_flags, timeout=1.0)), level=2)
    .add_task(
        task(
            "Discount",
            pre_execute=task_func(
                load_discount,
                timeout=1.0,
                retries=3,
                initial_delay=0.02,
                retryable_exceptions=is_temporary,
            ),
        ),
        level=2,
    )
    .add_task(
        task("Orders", pre_execute=task_func(read_user_orders, timeout=30.0)),
        level=3,
    )
    .add_task(task("Answer", execute=task_func(answer, timeout=30.0)), level=3)
    .build()
)


# ---------------------------------------------------------------- the endpoint


async def handle(service: Service, request: Request) -> Reply:
    """Answer one request. When this returns, the workflow has given everything back.

    If the client hangs up, this is cancelled, because nobody needs an answer then.
    """
    ctx = Context(service, request)
    try:
        report = await PROCESSOR.process_tasks(ctx, observer=service.observers)
    except SdaxExecutionError as error:
        return answer_failure(request, error)
    attempts = report["Discount"].pre_execute.attempts
    return Reply(200, report["Answer"].execute.value | {"discount_attempts": attempts})


def answer_failure(request: Request, error: SdaxExecutionError) -> Reply:
    """Tell the client only what it may know. The rest goes to the log."""
    for name, phase, attempts, exception in error.failures:
        log.info("%d: %s.%s, attempt %d: %r", request.number, name, phase, attempts, exception)
    if (refused := error.first(RefusedError)) is not None:
        return Reply(refused.status, {"error": str(refused)})
    if is_temporary(error):
        return Reply(503, {"error": "a service does not answer; try again later"})
    return Reply(500, {"error": "internal error"})


def application(service: Service) -> web.Application:
    """Make the endpoint available over HTTP."""

    async def get(request: web.Request) -> web.Response:
        token = request.headers["Authorization"].removeprefix("Bearer ")
        reply = await handle(service, Request(int(request.headers["X-Request-Id"]), token))
        return web.json_response(reply.body, status=reply.status)

    http = web.Application()
    http.router.add_get("/orders", get)
    return http
