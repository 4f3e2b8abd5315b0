"""An API endpoint on a real database and real services, and each way a request can end.

The endpoint is ``shop/workflow.py``. This program gives it a SQLite file made from
``data/orders.csv``, and two services on loopback ports. It draws the run of a success, of failures,
of a timeout and of a client that hangs up. Then it answers 1,000 requests at once on one processor
and checks every answer. Every connection must be back in the pool.

Run it with ``python examples/endpoint.py``. It needs aiohttp and aiosqlite. In a clone,
``pip install ".[examples]"`` installs them.
"""

import asyncio
import secrets
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp
from yarl import URL

from sdax.observe import Event, RunFinished, Timeline
from shop.store import Order, Pool, create_database, read_orders
from shop.upstream import Upstream, discount_for, faults_for, flags_for, listening
from shop.workflow import Reply, Request, Service, application, handle, sign

ORDERS_CSV = Path(__file__).parent / "data" / "orders.csv"
REQUESTS = 1_000
CONNECTIONS = 16


def check(right: bool, message: str) -> None:
    """End the program with a message if something is wrong."""
    if not right:
        raise SystemExit(f"endpoint.py: {message}")


def expected_body(number: int, user_id: int, orders: list[Order]) -> dict[str, Any]:
    """Compute the answer from the CSV file and the services' rules, without SQL, HTTP or sdax."""
    own = [order for order in orders if order.user_id == user_id]
    payable = sum(order.quantity * order.unit_price_cents for order in own)
    flags = flags_for(user_id, number)
    if flags["discounts"]:
        payable = payable * (100 - discount_for(user_id, number)) // 100
    return {
        "request": number,
        "user": user_id,
        "orders": sorted(order.order_id for order in own),
        "payable_cents": payable,
        "new_checkout": flags["new_checkout"],
        "discount_attempts": len(faults_for(number)) + 1,
    }


async def ask(endpoint: URL, request: Request) -> Reply:
    """Ask the endpoint over HTTP."""
    headers = {"Authorization": f"Bearer {request.token}", "X-Request-Id": str(request.number)}
    async with (
        aiohttp.ClientSession() as http,
        http.get(endpoint / "orders", headers=headers) as response,
    ):
        return Reply(response.status, await response.json())


async def ask_and_hang_up(endpoint: URL, request: Request, moment: asyncio.Event) -> None:
    """Send a request over a TCP connection, and close the connection before the answer."""
    _, writer = await asyncio.open_connection(endpoint.host, endpoint.port)
    writer.write(
        f"GET /orders HTTP/1.1\r\nHost: {endpoint.host}\r\n"
        f"Authorization: Bearer {request.token}\r\n"
        f"X-Request-Id: {request.number}\r\n\r\n".encode()
    )
    await asyncio.wait_for(moment.wait(), 30.0)
    writer.close()
    await writer.wait_closed()


async def show_each_ending(service: Service, upstream: Upstream, orders: list[Order]) -> None:
    """Show one request for each way in which a request can end."""
    timeline, ended = Timeline(), asyncio.Event()

    def note_end(event: Event) -> None:
        if isinstance(event, RunFinished):
            ended.set()

    def show(title: str, outcome: str) -> None:
        print(f"\n{title}\n{timeline.runs[-1]}\n  => {outcome}")
        check(not service.pool.lent, f"a connection is missing after: {title}")

    service = replace(service, observers=(timeline, note_end))
    token, stranger = sign(service.secret, 101), sign(service.secret, 999)
    async with listening(application(service)) as endpoint:

        async def show_reply(title: str, request: Request, status: int) -> Reply:
            reply = await ask(endpoint, request)
            show(title, f"{reply.status} {reply.body}")
            check(reply.status == status, f"request {request.number}: not {status}")
            return reply

        title = "A success: the discount service is busy, then drops the connection, then answers"
        reply = await show_reply(title, Request(35, token), 200)
        check(reply.body == expected_body(35, 101, orders), "a wrong answer to request 35")
        await show_reply("A failure in level 1: a forged token", Request(1, token[:-1] + "_"), 401)
        await show_reply("A failure in level 3: no orders", Request(2, stranger), 404)

        upstream.stall = True
        await show_reply("A timeout: the flag service does not answer", Request(3, token), 503)

        upstream.stalled.clear()
        ended.clear()
        await ask_and_hang_up(endpoint, Request(4, token), moment=upstream.stalled)
        await asyncio.wait_for(ended.wait(), 30.0)
        upstream.stall = False
        show("A client that hangs up: the run is cancelled", "nobody to answer")
        check(timeline.runs[-1].state == "cancelled", "the run of request 4 was not cancelled")


async def serve_at_once(service: Service, upstream: Upstream, orders: list[Order]) -> None:
    """Serve many requests at once on the one processor, and check every answer."""
    users = sorted({order.user_id for order in orders})
    asked = {number: users[number % len(users)] for number in range(1_000, 1_000 + REQUESTS)}
    upstream.faults.clear()
    began = time.perf_counter()
    replies = await asyncio.gather(
        *(
            handle(service, Request(number, sign(service.secret, user_id)))
            for number, user_id in asked.items()
        )
    )
    seconds = time.perf_counter() - began

    for (number, user_id), reply in zip(asked.items(), replies, strict=True):
        right = Reply(200, expected_body(number, user_id, orders))
        check(reply == right, f"request {number}: got {reply}, expected {right}")
    faults = Counter(fault for number in asked for fault in faults_for(number))
    check(upstream.faults == faults, f"faults met: {upstream.faults}, expected {faults}")
    check(not service.pool.lent, f"{len(service.pool.lent)} connections were not given back")
    left = [task for task in asyncio.all_tasks() if task.get_name().startswith("sdax:")]
    check(not left, f"still running: {left}")
    print(
        f"\n{len(replies):,} requests at once on one processor and {service.pool.size} "
        f"connections, in {seconds:.1f} s: every answer belongs to its request, "
        f"{faults.total()} retries, every connection given back"
    )


async def check_audit(service: Service, answered: int) -> None:
    """Check that there is one audit row for each answer, and no other row."""
    connection = await service.pool.take()
    rows = await connection.execute_fetchall("SELECT count(*) FROM audit")
    service.pool.give_back(connection)
    check(list(rows) == [(answered,)], f"{rows} audit rows for {answered} answers")


async def main(database: Path, orders: list[Order]) -> None:
    """Start the services, show each ending, serve 1,000 requests at once."""
    upstream = Upstream()
    async with (
        listening(upstream.application()) as upstream_url,
        Pool(database, CONNECTIONS) as pool,
        aiohttp.ClientSession() as http,
    ):
        service = Service(secrets.token_bytes(), pool, http, upstream_url)
        await show_each_ending(service, upstream, orders)
        await serve_at_once(service, upstream, orders)
        await check_audit(service, answered=1 + REQUESTS)


if __name__ == "__main__":
    with TemporaryDirectory(prefix="sdax-endpoint-") as folder:
        orders = read_orders(ORDERS_CSV)
        create_database(Path(folder) / "orders.sqlite", orders)
        asyncio.run(main(Path(folder) / "orders.sqlite", orders))
