"""The services that the endpoint depends on, served over HTTP on a loopback port."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import NoReturn

from aiohttp import web
from yarl import URL


@asynccontextmanager
async def listening(application: web.Application) -> AsyncGenerator[URL, None]:
    """Serve an application on a free port of 127.0.0.1 for the length of a block."""
    # aiohttp leaves a handler running when its client has gone, unless told otherwise.
    runner = web.AppRunner(application, handler_cancellation=True, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0]
        yield URL.build(scheme="http", host=host, port=port)
    finally:
        await runner.cleanup()


# The services' answers depend on the user and on the request, so that the answer to another request
# is never taken for the right answer.


def flags_for(user_id: int, request: int) -> dict[str, bool]:
    """Return the flags of one user. One of them is on only for a share of the requests."""
    return {"discounts": user_id % 2 == 1, "new_checkout": request % 10 == 0}


def discount_for(user_id: int, request: int) -> int:
    """Tell the discount of one request, in percent."""
    return (3 * user_id + request) % 21


def faults_for(request: int) -> list[str]:
    """Tell how the first calls for one request fail, before one succeeds."""
    return ["busy"] * (request % 5 == 0) + ["drop"] * (request % 7 == 0)


class Upstream:
    """Feature flags, dependable until told to stall, and discounts, flaky in a repeatable way."""

    def __init__(self) -> None:
        self.stall = False
        self.stalled = asyncio.Event()
        self.faults: Counter[str] = Counter()
        self._discount_calls: Counter[int] = Counter()

    def application(self) -> web.Application:
        """Both services as one application."""
        application = web.Application()
        application.router.add_get("/flags", self.flags)
        application.router.add_post("/discounts", self.discounts)
        return application

    async def flags(self, request: web.Request) -> web.Response:
        """Answer ``GET /flags?user=…&request=…``."""
        if self.stall:
            await self._never()
        user_id, number = int(request.query["user"]), int(request.query["request"])
        return web.json_response(flags_for(user_id, number))

    async def discounts(self, request: web.Request) -> web.Response:
        """Answer ``POST /discounts`` with ``{"user": …, "request": …}``."""
        question = await request.json()
        user_id, number = question["user"], question["request"]
        faults, calls = faults_for(number), self._discount_calls[number]
        self._discount_calls[number] += 1
        if calls < len(faults):
            self.faults[faults[calls]] += 1
            if faults[calls] == "drop" and request.transport is not None:
                request.transport.abort()
            return web.json_response({"error": "busy"}, status=503)
        return web.json_response({"percent": discount_for(user_id, number)})

    async def _never(self) -> NoReturn:
        self.stalled.set()
        await asyncio.Event().wait()
        raise AssertionError("unreachable")
