"""Load from another process: wrk, which keeps so many connections busy for so many seconds.

A connection sends its next request when it has the answer to the last. So latency is that of a
server that is fully used, and grows with the number of connections.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from .launch import Server

SCRIPT = Path(__file__).with_name("requests.lua")


@dataclass(frozen=True)
class Load:
    """Who sends what: the tokens of the requests, one to a line, and the open connections."""

    tokens: Path
    connections: int

    def command(self, server: Server, seconds: int) -> list[str]:
        """Return wrk's command line."""
        return [
            *(program(), "-t1", f"-c{self.connections}", f"-d{seconds}s", "--timeout=30s"),
            *("-s", str(SCRIPT), f"{server.url}/orders", "--", str(self.tokens)),
        ]


@dataclass(frozen=True)
class Round:
    """What one round of load has measured."""

    requests_per_second: float
    p50_ms: float
    p99_ms: float
    p999_ms: float


def program() -> str:
    """Return the path of wrk; raise `SystemExit` if it is not installed."""
    found = shutil.which("wrk")
    if found is None:
        raise SystemExit("wrk is not installed: none on PATH; on Debian: apt-get install wrk")
    return found


def version() -> str:
    """Return wrk's version."""
    # wrk -v ends with status 1, after "wrk debian/4.1.0-3+b2 [epoll] Copyright ..."
    said = subprocess.run([program(), "-v"], stdout=subprocess.PIPE, text=True, check=False).stdout
    return said.split()[1].removeprefix("debian/")


def measure(load: Load, server: Server, seconds: int) -> Round:
    """Load the server, and wait until it is idle again.

    Raises `SystemExit` if any request was not answered with success.
    """
    said = subprocess.check_output(load.command(server, seconds), text=True)
    server.settle()  # for wrk hangs up on what is in flight at the end
    result: dict[str, int] = json.loads(said.splitlines()[-1])
    if result["errors"] or not result["requests"]:
        raise SystemExit(f"{server.variant.name}: not every request succeeded:\n{said}")
    return Round(
        requests_per_second=result["requests"] / result["microseconds"] * 1e6,
        p50_ms=result["p50"] / 1000,
        p99_ms=result["p99"] / 1000,
        p999_ms=result["p999"] / 1000,
    )
