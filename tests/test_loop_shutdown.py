"""The end of the event loop, which cancels every task: cleanups that are under way go on."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from typing import Any

import pytest

from conftest import Implementation
from helpers import Trace, build, passes, task
from processes import PROGRAMS, SWITCHES
from sdax import TaskFunction, resource

LOOPS = pytest.mark.parametrize("uv", [False, True], ids=["asyncio", "uvloop"])


def make_loop(uv: bool) -> asyncio.AbstractEventLoop:
    if uv:
        return pytest.importorskip("uvloop").new_event_loop()  # type: ignore[no-any-return]
    return asyncio.new_event_loop()


def run_server(processor: Any, uv: bool, before_the_end: int = 2) -> asyncio.Task[Any]:
    """Do what a server does that stops: cancel the request, and return while it cleans up."""

    async def server() -> asyncio.Task[Any]:
        request = asyncio.ensure_future(processor.process_tasks(None))
        await passes(3)
        request.cancel()
        await passes(before_the_end)
        return request

    with asyncio.Runner(loop_factory=lambda: make_loop(uv)) as runner:
        return runner.run(server())


def closing(trace: Trace, label: str, **limits: Any) -> TaskFunction[Any]:
    async def close(ctx: Any) -> None:
        trace.append(label)
        try:
            for _ in range(3):
                await asyncio.sleep(0.01)
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            trace.append(f"{label} cut short")
            raise
        trace.append(f"{label} done")

    return TaskFunction(close, **limits)


@LOOPS
@pytest.mark.parametrize("limits", [{}, {"timeout": 60.0}], ids=["bare", "limited"])
def test_a_cleanup_goes_on(engine: Any, uv: bool, limits: dict[str, Any]) -> None:
    trace = Trace()
    processor = build(
        [task("A", trace.waiting("A"), None, closing(trace, "A.post", **limits))],
    )
    request = run_server(processor, uv)
    assert trace == ["A", "A cancelled", "A.post", "A.post done"]
    assert request.cancelled()


@LOOPS
def test_the_cleanups_that_follow_run_as_well(engine: Any, uv: bool) -> None:
    trace = Trace()
    processor = build(
        [task("A", None, None, closing(trace, "A.post"))],
        [task("B", None, None, closing(trace, "B.post"))],
        [task("C", trace.waiting("C"))],
    )
    run_server(processor, uv)
    assert trace[2:] == ["B.post", "B.post done", "A.post", "A.post done"]


@LOOPS
def test_what_runs_when_the_loop_ends_is_cancelled_and_cleaned_up(engine: Any, uv: bool) -> None:
    trace = Trace()
    processor = build([task("A", trace.waiting("A"), None, closing(trace, "A.post"))])

    async def server() -> None:
        trace.requests = [asyncio.ensure_future(processor.process_tasks(None))]  # type: ignore[attr-defined]
        await passes(3)

    with asyncio.Runner(loop_factory=lambda: make_loop(uv)) as runner:
        runner.run(server())
    assert trace == ["A", "A cancelled", "A.post", "A.post done"]


def test_a_timeout_of_its_own_still_ends_a_cleanup(engine: Any) -> None:
    """What a cleanup cancels itself is no end of the loop."""
    trace = Trace()

    async def close(ctx: Any) -> None:
        trace.append("close")
        try:
            async with asyncio.timeout(0.01):
                await asyncio.sleep(3600)
        except TimeoutError:
            trace.append("in time")

    async def main() -> None:
        request = asyncio.ensure_future(
            build([task("A", trace.waiting("A"), None, close)]).process_tasks(None)
        )
        await passes(3)
        request.cancel()
        await asyncio.wait([request])

    asyncio.run(main())
    assert trace[2:] == ["close", "in time"]


def test_a_second_request_to_end_is_obeyed(engine: Any) -> None:
    """The shelter holds once: whoever cancels the function again means it."""
    trace = Trace()
    processor = build([task("A", trace.waiting("A"), None, closing(trace, "A.post"))])

    async def main() -> None:
        request = asyncio.ensure_future(processor.process_tasks(None))
        await passes(3)
        request.cancel()
        await passes(3)
        (own,) = (each for each in asyncio.all_tasks() if each.get_name().startswith("sdax:"))
        for each in (request, own):
            each.cancel()
        await passes(1)
        own.cancel()
        await asyncio.wait([request])

    with asyncio.Runner() as runner:
        runner.get_loop().set_exception_handler(lambda loop, context: None)
        runner.run(main())
    assert "A.post cut short" in trace


@LOOPS
def test_the_cleanups_of_all_runs_go_on(engine: Any, uv: bool) -> None:
    trace = Trace()
    processor = build([task("A", trace.waiting("A"), None, closing(trace, "A.post"))])

    async def server() -> None:
        requests = [asyncio.ensure_future(processor.process_tasks(None)) for _ in range(3)]
        await passes(3)
        for request in requests:
            request.cancel()
        await passes(2)

    with asyncio.Runner(loop_factory=lambda: make_loop(uv)) as runner:
        runner.run(server())
    assert trace.count("A.post done") == 3
    assert trace.count("A.post cut short") == 0


@pytest.mark.parametrize("observer", [None, lambda event: None], ids=["bare", "observed"])
def test_the_cleanup_of_a_broken_resource_goes_on(engine: Any, observer: Any) -> None:
    """It goes on if it began after the caller was cancelled, before and after its turn."""
    for interrupted, due in [(True, False), (True, True), (False, True)]:
        trace = Trace()
        assert run_broken(trace, observer, interrupted, due).cancelled()
        end = "done" if interrupted else "cut short"
        case = f"{interrupted=}, {due=}, {trace}"
        assert trace.count("R done") == (end == "done"), case
        assert trace.count("R cut short") == (end != "done"), case


def run_broken(trace: Trace, observer: Any, interrupted: bool, due: bool) -> asyncio.Task[Any]:
    """Break a resource before or after the caller is cancelled, and end the loop before or after
    its cleanup is due."""

    async def held(ctx: Any) -> Any:
        try:
            yield
        finally:
            await closing(trace, "R").function(ctx)

    async def main() -> asyncio.Task[Any]:
        leave = asyncio.Event()

        async def stay(ctx: Any) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                await leave.wait()

        processor = build([resource("R", held)], [task("A", stay)])
        request = asyncio.ensure_future(processor.process_tasks(None, observer=observer))
        await passes(3)
        (own,) = (each for each in asyncio.all_tasks() if each.get_name() == "sdax:R:resource")
        for each in (request, own) if interrupted else (own, request):
            each.cancel()
            await passes(2)
        assert trace == ["R"]
        if due:
            leave.set()
            await passes(6)
        return request

    with asyncio.Runner() as runner:
        runner.get_loop().set_exception_handler(lambda loop, context: None)
        return runner.run(main())


@pytest.mark.skipif(sys.platform == "win32", reason="signals of Unix")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_resource_under_uvicorn_is_closed_after_a_signal(
    engine: Implementation, name: str
) -> None:
    pytest.importorskip("uvicorn")
    command = [sys.executable, str(PROGRAMS / "served_resource.py"), name]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        **SWITCHES[engine.name],
    }
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stdout is not None
            port = int(server.stdout.readline())
            with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
                client.sendall(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
                assert server.stdout.readline() == "at work\n"
                server.send_signal(signal.Signals[name])
                said, errors = server.communicate(timeout=60)
        finally:
            server.kill()
    assert (said, errors, server.returncode) == ("cancelled\nclosed True\n", "", 0)
