"""`cancel_on_disconnect`: what becomes of the work, of the caller and of what is raised."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import weakref
from collections.abc import Mapping
from typing import Any

import pytest

from helpers import Broken, counts_references, current, solo, until, without_collector
from sdax.asgi import ClientDisconnectedError, cancel_on_disconnect

GONE = {"type": "http.disconnect"}
BODY = {"type": "http.request", "body": b"", "more_body": False}


class Client:
    """The other end of `receive`."""

    def __init__(self, *messages: Mapping[str, Any] | Exception) -> None:
        self.messages = asyncio.Queue[Mapping[str, Any] | Exception]()
        for each in messages:
            self.messages.put_nowait(each)

    async def receive(self) -> Mapping[str, Any]:
        message = await self.messages.get()
        if isinstance(message, Exception):
            raise message
        return message

    def leave(self) -> None:
        self.messages.put_nowait(GONE)


class Work:
    """Work that waits until it is told to go on, and then cleans up until it is told to end."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.may_end = asyncio.Event()
        self.cleaning = asyncio.Event()
        self.may_clean = asyncio.Event()
        self.may_clean.set()
        self.task: asyncio.Task[Any] | None = None
        self.is_clean = False

    async def do(self) -> str:
        self.task = current()
        self.begun.set()
        try:
            await self.may_end.wait()
        finally:
            self.cleaning.set()
            while not self.may_clean.is_set():
                try:
                    await self.may_clean.wait()
                except asyncio.CancelledError:
                    continue
            self.is_clean = True
        return "done"


async def test_the_result() -> None:
    client, work = Client(BODY), Work()
    work.may_end.set()
    assert await cancel_on_disconnect(client.receive, work.do()) == "done"
    assert work.task is current()
    assert current().cancelling() == 0


async def test_work_that_never_suspends() -> None:
    async def at_once() -> str:
        return "done"

    assert await cancel_on_disconnect(Client(GONE).receive, at_once()) == "done"
    await asyncio.sleep(0)  # a cancellation that came too late would arrive here
    assert current().cancelling() == 0


@pytest.mark.parametrize("as_task", [False, True], ids=["coroutine", "task"])
async def test_the_client_leaves(as_task: bool) -> None:
    client, work = Client(BODY, BODY), Work()
    work.may_clean.clear()
    awaitable: Any = asyncio.create_task(work.do()) if as_task else work.do()
    request = asyncio.create_task(cancel_on_disconnect(client.receive, awaitable))
    await work.begun.wait()
    client.leave()
    await work.cleaning.wait()
    assert not request.done()
    work.may_clean.set()
    with pytest.raises(ClientDisconnectedError, match=r"^the client has disconnected$") as caught:
        await request
    assert work.is_clean
    assert isinstance(caught.value.__context__, asyncio.CancelledError)
    assert request.cancelling() == 0
    assert not request.cancelled()


async def test_the_client_has_left_before() -> None:
    work = Work()
    with pytest.raises(ClientDisconnectedError):
        await cancel_on_disconnect(Client(GONE).receive, work.do())
    assert work.is_clean


async def test_a_run_cleans_up_and_its_failures_are_not_lost(loop_errors: Any) -> None:
    client, work = Client(), Work()

    async def fail(_: Any) -> None:
        raise Broken("the cleanup")

    processor = solo(None, lambda _: work.do(), fail)
    request = asyncio.create_task(
        cancel_on_disconnect(client.receive, processor.process_tasks(None))
    )
    await work.begun.wait()
    client.leave()
    with pytest.raises(ClientDisconnectedError) as caught:
        await request
    cancelled = caught.value.__context__
    assert cancelled is not None
    assert isinstance(cancelled.__context__, ExceptionGroup)
    assert len(loop_errors) == 1
    loop_errors.clear()


async def test_the_work_fails() -> None:
    async def fail() -> None:
        await asyncio.sleep(0)
        raise Broken("the work")

    with pytest.raises(Broken, match="the work"):
        await cancel_on_disconnect(Client(BODY).receive, fail())


async def test_the_cleanup_fails_when_the_client_has_left() -> None:
    client, begun = Client(), asyncio.Event()

    async def fail() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            raise Broken("the cleanup")

    request = asyncio.create_task(cancel_on_disconnect(client.receive, fail()))
    await begun.wait()
    client.leave()
    with pytest.raises(Broken, match="the cleanup"):
        await request
    assert request.cancelling() == 0


async def test_work_that_ends_in_spite_of_the_cancellation() -> None:
    client, begun = Client(), asyncio.Event()

    async def stubborn() -> int:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0)
        return current().cancelling()

    async def handler() -> tuple[int, int]:
        inside = await cancel_on_disconnect(client.receive, stubborn())
        await asyncio.sleep(0)
        return inside, current().cancelling()

    request = asyncio.create_task(handler())
    await begun.wait()
    client.leave()
    assert await request == (1, 0)


@pytest.mark.parametrize("first", ["work", "client"])
async def test_the_client_leaves_when_the_work_ends(first: str) -> None:
    """In the same pass of the loop; either may win, and nothing is left of the other."""
    client, work = Client(), Work()

    async def handler() -> str:
        try:
            return await cancel_on_disconnect(client.receive, work.do())
        finally:
            await asyncio.sleep(0)
            assert current().cancelling() == 0

    request = asyncio.create_task(handler())
    await work.begun.wait()
    for each in ("work", "client") if first == "work" else ("client", "work"):
        (work.may_end.set if each == "work" else client.leave)()
    with contextlib.suppress(ClientDisconnectedError):
        assert await request == "done"
    assert work.is_clean


@pytest.mark.parametrize("client_first", [True, False])
async def test_the_caller_is_cancelled_as_well(client_first: bool) -> None:
    client, work = Client(), Work()
    work.may_clean.clear()
    request = asyncio.create_task(cancel_on_disconnect(client.receive, work.do()))
    await work.begun.wait()
    if client_first:
        client.leave()
        await work.cleaning.wait()
        request.cancel()
    else:
        request.cancel()
        await work.cleaning.wait()
        client.leave()
    await asyncio.sleep(0)
    work.may_clean.set()
    with pytest.raises(asyncio.CancelledError):
        await request
    assert work.is_clean
    assert request.cancelled()


async def test_a_timeout_around_it() -> None:
    work = Work()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await cancel_on_disconnect(Client(BODY).receive, work.do())
    assert work.is_clean
    assert current().cancelling() == 0


async def test_a_scope_of_anyio_around_it() -> None:
    anyio = pytest.importorskip("anyio")
    client, work = Client(), Work()
    with anyio.move_on_after(0.01) as scope:
        await cancel_on_disconnect(client.receive, work.do())
    assert scope.cancelled_caught

    async def hang_up() -> None:
        await work.begun.wait()
        client.leave()

    work = Work()
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as group:
            group.start_soon(hang_up)
            with pytest.raises(ClientDisconnectedError):
                await cancel_on_disconnect(client.receive, work.do())
    assert not scope.cancelled_caught
    assert current().cancelling() == 0


async def test_receive_fails() -> None:
    work = Work()
    with pytest.raises(Broken, match="receive"):
        await cancel_on_disconnect(Client(BODY, Broken("receive")).receive, work.do())
    assert work.is_clean
    assert current().cancelling() == 0


@pytest.mark.parametrize(
    "message",
    [{**BODY, "body": b"an order"}, {**BODY, "more_body": True}],
)
async def test_a_body_that_nobody_can_read_any_more(message: dict[str, Any]) -> None:
    client, work = Client(message, BODY), Work()
    with pytest.warns(RuntimeWarning, match=r"dropped a part of the body .* so read it before"):
        request = asyncio.create_task(cancel_on_disconnect(client.receive, work.do()))
        await until(client.messages.empty)
    work.may_end.set()
    assert await request == "done"


@pytest.mark.parametrize("message", [BODY, {"type": "http.request"}])
async def test_nothing_is_said_of_an_empty_body(message: dict[str, Any]) -> None:
    client, work = Client(message), Work()
    request = asyncio.create_task(cancel_on_disconnect(client.receive, work.do()))
    await until(client.messages.empty)
    work.may_end.set()
    assert await request == "done"


async def test_messages_of_a_websocket_are_refused() -> None:
    work = Work()
    message = "takes the receive of an HTTP request, but it gave a message of type 'websocket.rec"
    with pytest.raises(ValueError, match=message):
        await cancel_on_disconnect(Client({"type": "websocket.receive"}).receive, work.do())
    assert work.is_clean


async def test_what_is_refused() -> None:
    client, work = Client(), Work()
    with pytest.raises(TypeError, match=r"callable of ASGI, got <.*>; did you mean its receive\?$"):
        await cancel_on_disconnect(client, work.do())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"callable of ASGI, got 3$"):
        await cancel_on_disconnect(3, work.do())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"such as processor\.process_tasks\(ctx\), got <b"):
        await cancel_on_disconnect(client.receive, work.do)  # type: ignore[arg-type]


def test_outside_of_a_task() -> None:
    async def nothing() -> None: ...

    async def receive() -> Any: ...

    with pytest.raises(RuntimeError, match=r"in an asyncio\.Task"):
        cancel_on_disconnect(receive, nothing()).send(None)


# The exception of an eager task leads to its creator, and so to itself, without sdax as well.
@counts_references
@pytest.mark.loop_kinds("asyncio", "debug", "factory", "uvloop")
@pytest.mark.parametrize("ending", ["the client leaves", "receive fails", "the work fails"])
async def test_nothing_leads_to_itself(ending: str) -> None:
    class Marked:
        pass

    async def work(mark: Marked) -> None:
        if ending == "the work fails":
            raise Broken(mark)
        await asyncio.Event().wait()

    async def receive() -> Mapping[str, Any]:
        if ending == "receive fails":
            raise Broken("receive")
        return GONE

    async def handler() -> None:
        await cancel_on_disconnect(receive, work(marks.pop()))

    with without_collector():
        marks = [Marked()]
        reference = weakref.ref(marks[0])
        request = asyncio.create_task(handler())
        with contextlib.suppress(ClientDisconnectedError, Broken):
            await request
        del request
        await asyncio.sleep(0)
        assert reference() is None


def test_it_is_not_imported_until_asked_for() -> None:
    program = "import sys, sdax; sys.exit('sdax.asgi' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
