"""The variants, and a server process for each of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

BENCHMARKS = Path(__file__).parent.parent
SETTLES_WITHIN = 60.0  # seconds, more than all limits of a request
STOPS_WITHIN = 30.0  # seconds


@dataclass(frozen=True)
class Variant:
    """One way to write the endpoint, and the engine of sdax that it needs."""

    name: str
    answer: str  # the function, as MODULE.FUNCTION of this package
    engine: str | None = None

    @property
    def switches(self) -> dict[str, str]:
        """The environment that chooses the engine."""
        return {
            "SDAX_NO_EXTENSIONS": "1" if self.engine == "python" else "",
            "SDAX_REQUIRE_EXTENSIONS": "1" if self.engine == "cython" else "",
        }


BY_HAND = Variant("by hand", "by_hand.answer")
COMPILED = Variant("sdax (compiled)", "with_sdax.answer", "cython")
PYTHON = Variant("sdax (python)", "with_sdax.answer", "python")
VARIANTS = (BY_HAND, COMPILED, PYTHON)


@dataclass(frozen=True)
class Server:
    """A running server process."""

    variant: Variant
    port: int

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def ask(self, method: str, path: str, token: str = "") -> tuple[int, Any]:
        """Send a request; return status and body."""
        headers = {"Authorization": f"Bearer {token}"}
        request = urllib.request.Request(self.url + path, method=method, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    def state(self) -> dict[str, Any]:
        """Return what the server says of itself."""
        state: dict[str, Any] = self.ask("GET", "/state")[1]
        return state

    def settle(self) -> dict[str, Any]:
        """Wait until no request is in flight, and return the state.

        Raises `SystemExit` if requests do not end, which is a defect.
        """
        deadline = time.monotonic() + SETTLES_WITHIN
        while (state := self.state())["in_flight"]:
            if time.monotonic() > deadline:
                raise SystemExit(f"{self.variant.name}: requests do not end: {state}")
            time.sleep(0.01)
        return state


@contextmanager
def serving(variant: Variant, environment: dict[str, str], loop: str) -> Generator[Server]:
    """Start a server process, and stop it in the end.

    Raises `SystemExit` if it does not start, or has written anything to its error output: a
    warning or an exception there is a defect.
    """
    with TemporaryFile("w+", encoding="utf-8") as errors:
        with subprocess.Popen(
            [sys.executable, "-m", "service.server", variant.answer, variant.name, "--loop", loop],
            cwd=BENCHMARKS,
            env={**os.environ, **variant.switches, **environment},
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as process:
            try:
                assert process.stdout is not None
                port = process.stdout.readline()
                if port:
                    yield Server(variant, int(port))
            finally:
                process.terminate()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(STOPS_WITHIN)
                process.kill()
        errors.seek(0)
        said = errors.read()
        if said or not port:
            raise SystemExit(f"the server of {variant.name!r} wrote:\n{said}")


@contextmanager
def pinned(processors: set[int]) -> Generator[None]:
    """Start what is started inside on these processors only, where the system can do that."""
    if not processors:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, processors)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def shared_out() -> tuple[set[int], set[int]]:
    """Return a processor for the server under load, and those for all else; both are empty if
    there is nothing to share out."""
    if not hasattr(os, "sched_getaffinity"):
        return set(), set()
    first, *others = sorted(os.sched_getaffinity(0))
    return ({first}, set(others)) if others else (set(), set())
