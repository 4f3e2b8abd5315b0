"""Load at a fixed rate: requests begin when they are due, whether or not others were answered.

So a slow answer does not keep the next request back, as it does with wrk, and the latencies are
those that users who know nothing of each other would see.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from itertools import cycle

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def offer(port: int, tokens: Sequence[str], rate: float, seconds: float) -> list[float]:
    """Send `rate` requests per second for `seconds`. Return the latencies in seconds, each measured
    from the time at which the request was due.

    Raises a group of `RuntimeError`s if requests are not answered with success.
    """
    loop = asyncio.get_running_loop()
    free: deque[Connection] = deque()
    latencies: list[float] = []
    token = cycle(tokens)
    begin = loop.time()
    async with asyncio.TaskGroup() as group:
        for number in range(int(rate * seconds)):
            due = begin + number / rate
            await asyncio.sleep(max(0.0, due - loop.time()))
            group.create_task(_request(port, next(token), due, free, latencies))
    for _, writer in free:
        writer.close()
        await writer.wait_closed()
    return latencies


async def _request(
    port: int, token: str, due: float, free: deque[Connection], latencies: list[float]
) -> None:
    # In turn, and not one that the server has closed because nobody used it.
    while free and free[0][0].at_eof():
        free.popleft()[1].close()
    reader, writer = free.popleft() if free else await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(
            f"POST /orders HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {token}\r\n"
            f"Content-Length: 0\r\n\r\n".encode()
        )
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = head.partition("content-length:")[2].partition("\r\n")[0]
        body = await reader.readexactly(int(length))
        latencies.append(asyncio.get_running_loop().time() - due)
        if not head.startswith("http/1.1 200 "):
            raise RuntimeError(f"a request was not answered with success: {head}{body.decode()}")
    except BaseException:
        writer.close()
        raise
    free.append((reader, writer))
