"""A service that the endpoint asks for a customer's credit limit; some of its answers take long.

    python -m service.upstream --seconds 0.02 --share 0.02 --factor 20 --seed 1

It serves on a loopback port, which it prints. A request is a line, "WHO CUSTOMER", and so is the
answer. It counts the requests of each WHO; the answer to "WHO ?" is their number.
"""

from __future__ import annotations

import argparse
import asyncio
from collections import Counter
from contextlib import suppress
from random import Random


class Upstream:
    """A client, with the connections that are free at the moment."""

    def __init__(self, port: int, who: str) -> None:
        self._port = port
        self._who = who
        self._free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def ask(self, what: object) -> int:
        """Send a request, and return the answer."""
        if self._free:
            reader, writer = self._free.pop()
        else:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            writer.write(f"{self._who} {what}\n".encode())
            line = await reader.readline()
            if not line:
                raise ConnectionError("the upstream service has hung up")
        except BaseException:
            writer.close()  # the answer may still come
            raise
        self._free.append((reader, writer))
        return int(line)

    def close(self) -> None:
        """Close the connections that are free."""
        while self._free:
            self._free.pop()[1].close()


def credit_of(customer_id: int) -> int:
    """Return the credit limit of a customer, in cents."""
    return 1_000 * customer_id


async def serve(seconds: float, share: float, factor: float, seed: int) -> None:
    """Answer after `seconds`. For a `share` of the requests, wait `factor` times as long."""
    random = Random(seed)
    asked = Counter[str]()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):  # a client may not wait for the answer
            while line := await reader.readline():
                who, _, what = line.decode().strip().rpartition(" ")
                if what == "?":
                    answer = asked[who]
                else:
                    asked[who] += 1
                    await asyncio.sleep(seconds * (factor if random.random() < share else 1))
                    answer = credit_of(int(what))
                writer.write(f"{answer}\n".encode())
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def main() -> None:
    """Read the arguments and serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--share", type=float, required=True)
    parser.add_argument("--factor", type=float, required=True)
    parser.add_argument("--seed", type=int, required=True)
    args = parser.parse_args()
    with suppress(KeyboardInterrupt):
        asyncio.run(serve(args.seconds, args.share, args.factor, args.seed))


if __name__ == "__main__":
    main()
