"""What one request does: the functions that every variant calls, and the state that they share.

The endpoint places an order for everything in a customer's basket:

    level 1   Token       check the signature of the customer's token
              RateLimit   take one of the token's few places               give it back
              Flags       read the feature flags (query)
    level 2   Customer    read the customer (query)
              Basket      read the basket (query)
    level 3   Order       take a connection, begin a transaction           roll back what was not
                          insert the order and commit (execute)            committed, release

Each query takes a connection of its own from the pool, with asyncpg's defaults. A cleanup may run
although its function got only part of the way, or was never called.
"""

from __future__ import annotations

import hashlib
import hmac
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from .upstream import Upstream, credit_of

PLACES = 10  # requests of one token in flight at a time
IO_LIMIT = 10.0  # seconds, for all that waits for the database
CLEANUP_LIMIT = 10.0  # seconds, for each cleanup


class UnauthorizedError(Exception):
    """The token is not one that this service has signed."""


class TooManyRequestsError(Exception):
    """The token has all its places in use."""


class NotFoundError(Exception):
    """There is no such customer."""


@dataclass
class Service:
    """What all requests share, and the count of what became of them."""

    pool: Any  # an asyncpg pool
    secret: bytes
    upstream: Upstream | None = None
    in_use: Counter[str] = field(default_factory=Counter[str])  # places, by token
    in_flight: int = 0
    answered: int = 0
    refused: int = 0
    cancelled: int = 0
    begun: Counter[str] = field(default_factory=Counter[str])  # tasks that have a cleanup
    cleaned_up: Counter[str] = field(default_factory=Counter[str])


@dataclass(slots=True)
class Context:
    """What one request gathers."""

    service: Service
    token: str
    # Cleanup reads these, and may do so before anything has set them.
    due: set[str] = field(default_factory=set[str])
    has_place: bool = False
    connection: Any = None
    committed: bool = False
    # The levels see to it that these are set before they are read.
    customer_id: int = field(init=False)
    flags: set[str] = field(init=False)
    discount_percent: int = field(init=False)
    basket: list[tuple[str, int, int]] = field(init=False)
    answer: dict[str, Any] = field(init=False)

    def begin(self, task: str) -> None:
        """Note that a task with a cleanup has started."""
        self.due.add(task)
        self.service.begun[task] += 1

    def clean_up(self, task: str) -> None:
        """Note that the cleanup of a task runs."""
        if task in self.due:
            self.due.remove(task)
            self.service.cleaned_up[task] += 1


def sign(secret: bytes, customer_id: int) -> str:
    """Make the token of a customer."""
    digest = hmac.digest(secret, str(customer_id).encode(), hashlib.sha256)
    return f"{customer_id}.{digest.hex()}"


async def check_token(ctx: Context) -> None:
    """Find out who is asking."""
    customer_id = ctx.token.partition(".")[0]
    if not customer_id.isdecimal():
        raise UnauthorizedError("malformed token")
    if not hmac.compare_digest(ctx.token, sign(ctx.service.secret, int(customer_id))):
        raise UnauthorizedError("forged token")
    ctx.customer_id = int(customer_id)


async def take_place(ctx: Context) -> None:
    """Take one of the token's places."""
    ctx.begin("RateLimit")
    if ctx.service.in_use[ctx.token] >= PLACES:
        raise TooManyRequestsError(f"{PLACES} requests are in flight")
    ctx.service.in_use[ctx.token] += 1
    ctx.has_place = True


async def give_place_back(ctx: Context) -> None:
    """Give the place back."""
    ctx.clean_up("RateLimit")
    if ctx.has_place:
        ctx.has_place = False
        ctx.service.in_use[ctx.token] -= 1


async def load_flags(ctx: Context) -> None:
    """Read the feature flags."""
    rows = await ctx.service.pool.fetch("SELECT name FROM flags WHERE enabled")
    ctx.flags = {name for (name,) in rows}


async def load_customer(ctx: Context) -> None:
    """Read the customer."""
    row = await ctx.service.pool.fetchrow(
        "SELECT discount_percent FROM customers WHERE customer_id = $1", ctx.customer_id
    )
    if row is None:
        raise NotFoundError(f"no customer {ctx.customer_id}")
    (ctx.discount_percent,) = row


async def load_basket(ctx: Context) -> None:
    """Read the basket."""
    rows = await ctx.service.pool.fetch(
        "SELECT product, quantity, price_cents FROM baskets WHERE customer_id = $1 "
        "ORDER BY product",
        ctx.customer_id,
    )
    ctx.basket = [(product, quantity, price) for product, quantity, price in rows]


async def ask_credit(ctx: Context) -> int:
    """Ask the upstream service for the customer's credit limit."""
    assert ctx.service.upstream is not None
    return await ctx.service.upstream.ask(ctx.customer_id)


def check_credit(ctx: Context, limit: int) -> None:
    """Refuse what is not the customer's limit."""
    if limit != credit_of(ctx.customer_id):
        raise ValueError(f"the credit limit of customer {ctx.customer_id} is not {limit}")


async def begin_order(ctx: Context) -> None:
    """Take a connection, and begin a transaction on it."""
    ctx.begin("Order")
    # Nothing is awaited between taking it and keeping it where the cleanup will look.
    ctx.connection = await ctx.service.pool.acquire()
    await ctx.connection.execute("BEGIN")


async def place_order(ctx: Context) -> None:
    """Insert the order, commit, and say what was ordered."""
    cents = sum(quantity * price for _, quantity, price in ctx.basket)
    if "discounts" in ctx.flags:
        cents = cents * (100 - ctx.discount_percent) // 100
    await ctx.connection.execute(
        "INSERT INTO orders (customer_id, cents) VALUES ($1, $2)", ctx.customer_id, cents
    )
    await ctx.connection.execute("COMMIT")
    ctx.committed = True
    ctx.answer = {
        "customer": ctx.customer_id,
        "products": [product for product, _, _ in ctx.basket],
        "cents": cents,
    }


async def end_order(ctx: Context) -> None:
    """Undo what was not committed, and release the connection."""
    ctx.clean_up("Order")
    connection, ctx.connection = ctx.connection, None
    if connection is None:
        return
    try:
        if not ctx.committed:
            await connection.execute("ROLLBACK")
    finally:
        await ctx.service.pool.release(connection)
