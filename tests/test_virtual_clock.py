"""The clock that jumps: `sdax.testing.run` and `VirtualClockLoop`."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from conftest import Implementation
from helpers import solo
from sdax import task_thread_func
from sdax.testing import DeadlockError, OutsideWorldError, VirtualClockLoop, run


def test_an_hour_passes_at_once() -> None:
    began = time.monotonic()

    async def main() -> tuple[str, float]:
        loop = asyncio.get_running_loop()
        started = loop.time()
        result = await asyncio.sleep(3600, "done")
        return result, loop.time() - started

    assert run(main()) == ("done", 3600.0)
    assert time.monotonic() - began < 600


def test_a_timeout_and_a_sleep_end_in_their_order() -> None:
    async def main() -> list[str]:
        ended: list[str] = []

        async def sleep(seconds: float) -> None:
            await asyncio.sleep(seconds)
            ended.append(f"slept {seconds}")

        with pytest.raises(TimeoutError):
            async with asyncio.timeout(10):
                await asyncio.gather(sleep(9), sleep(1), sleep(11))
        return ended

    assert run(main()) == ["slept 1", "slept 9"]


def test_it_is_a_loop_factory() -> None:
    with asyncio.Runner(loop_factory=VirtualClockLoop) as runner:
        loop = runner.get_loop()
        assert isinstance(loop, VirtualClockLoop)
        runner.run(asyncio.sleep(7))
        assert loop.time() == 7.0
        loop.advance(0.5)
        assert loop.time() == 7.5


def test_what_would_wait_for_ever_is_told_with_its_place() -> None:
    async def wait_for_nothing() -> None:
        await asyncio.get_running_loop().create_future()

    async def main() -> None:
        await asyncio.create_task(wait_for_nothing(), name="the one that waits")

    with pytest.raises(DeadlockError) as caught:
        run(main())
    first, *lines = str(caught.value).splitlines()
    assert first == "everything waits for ever, and no timer is set"
    (line,) = (line for line in lines if line.startswith("  the one that waits"))
    assert "test_virtual_clock.py, line " in line
    assert "in wait_for_nothing: await asyncio.get_running_loop().create_future()" in line


async def ask_for_a_thread() -> None:
    await asyncio.to_thread(print)


async def ask_for_a_connection() -> None:
    await asyncio.open_connection("127.0.0.1", 9)


async def ask_for_a_host() -> None:
    await asyncio.get_running_loop().getaddrinfo("localhost", 80)


async def ask_for_a_server() -> None:
    await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)


async def ask_for_a_process() -> None:
    await asyncio.create_subprocess_exec("true")


async def ask_for_a_socket() -> None:
    one, other = socket.socketpair()
    with one, other:
        one.setblocking(False)
        await asyncio.get_running_loop().sock_recv(one, 1)


async def ask_for_a_file_descriptor() -> None:
    one, other = socket.socketpair()
    with one, other:
        asyncio.get_running_loop().add_reader(one, print)


async def ask_for_a_selector() -> None:
    one, other = socket.socketpair()
    with one, other:
        asyncio.get_running_loop()._add_reader(one, print)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("ask", "what"),
    [
        (ask_for_a_thread, "a thread"),
        (ask_for_a_connection, "a connection"),
        (ask_for_a_host, "the name of a host"),
        (ask_for_a_server, "a server"),
        (ask_for_a_process, "a process"),
        (ask_for_a_socket, "a socket"),
        (ask_for_a_file_descriptor, "a file descriptor"),
        (ask_for_a_selector, "a file descriptor"),
    ],
)
def test_the_outside_world_is_refused(ask: Callable[[], Awaitable[None]], what: str) -> None:
    async def main() -> None:
        await asyncio.create_task(ask(), name="the asking one")  # type: ignore[arg-type]

    with pytest.raises(OutsideWorldError) as caught:
        run(main())
    message = str(caught.value)
    assert message.startswith(f"the asking one asks for {what} (")
    assert f"in {ask.__name__}: " in message  # type: ignore[attr-defined]
    assert "processor.replaced" in message
    assert "clock='real'" in message


def test_a_function_of_a_processor_is_named(engine: Implementation) -> None:
    processor = solo(execute=task_thread_func(lambda ctx: None))
    with pytest.raises(ExceptionGroup) as caught:
        run(processor.process_tasks(None))
    (error,) = caught.value.exceptions
    assert isinstance(error, OutsideWorldError)
    assert str(error).startswith("sdax:A:execute asks for a thread; ")


@pytest.mark.parametrize("limits", [{}, {"timeout": 60.0}], ids=["bare", "limited"])
def test_a_cleanup_in_a_thread_is_refused(engine: Implementation, limits: Any) -> None:
    """Which has a thread of its own, that the loop is not asked for."""
    release = threading.Event()
    processor = solo(post=task_thread_func(lambda ctx: release.wait(), **limits))
    try:
        with pytest.raises(OutsideWorldError, match=r"perhaps for a thread \(sdax:A:post_execute"):
            run(processor.process_tasks(None))
    finally:
        release.set()


def test_a_thread_that_calls_back_ends_the_run() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        thread = threading.Thread(
            target=lambda: loop.call_soon_threadsafe(print), name="a thread of its own"
        )
        thread.start()
        thread.join()
        await asyncio.sleep(1)

    with pytest.raises(OutsideWorldError, match="thread a thread of its own calls back"):
        run(main())


def test_waiting_for_a_thread_is_no_deadlock() -> None:
    release = threading.Event()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        threading.Thread(target=release.wait, name="slow", daemon=True).start()
        await future

    try:
        with pytest.raises(OutsideWorldError, match=r"perhaps for a thread \(slow\)"):
            run(main())
    finally:
        release.set()


def test_the_loop_calls_itself_from_its_own_thread() -> None:
    async def main() -> str:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[str] = loop.create_future()
        loop.call_soon_threadsafe(future.set_result, "called")
        return await future

    assert run(main()) == "called"


def test_a_run_inside_of_a_loop_is_refused() -> None:
    async def main() -> Any:
        return run(asyncio.sleep(0))

    with pytest.raises(RuntimeError, match=r"cannot be called in a running one.*def, not async"):
        run(main())
