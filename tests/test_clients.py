"""What is temporary, and until when: exceptions of Python's own, of users, and in a run.

The exceptions of each client are in `test_clients_http.py`, `test_clients_postgresql.py` and
`test_clients_redis_aws_grpc.py`.
"""

from __future__ import annotations

import asyncio
import errno
import io
import socket
import ssl
import subprocess
import sys
from typing import Any, NoReturn

import pytest

from helpers import Broken, failure_of, one_loop, solo
from loopback import HOST, answering, refusing_port, response, serving
from sdax import RetryableException, TaskFunction
from sdax.clients import is_temporary, retry_after

pytestmark = one_loop


class Asks(RetryableException):
    pass


@pytest.mark.parametrize(
    "error",
    [
        TimeoutError(),
        TimeoutError("of a library"),
        ConnectionResetError(errno.ECONNRESET, "A"),
        BrokenPipeError(),
        RetryableException(),
        Asks(),
        OSError(errno.ENETUNREACH, "Network is unreachable"),
        OSError(errno.EHOSTUNREACH, "No route to host"),
        OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address"),
        socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"),
        OSError("Multiple exceptions: [Errno 111] Connect call failed, [Errno 113] No route"),
    ],
    ids=repr,
)
def test_what_may_pass(error: Exception) -> None:
    assert is_temporary(error)
    assert retry_after(error) is None


@pytest.mark.parametrize(
    "error",
    [
        Exception(),
        ValueError("503"),
        Broken(),
        OSError(errno.ENOSPC, "No space left on device"),
        FileNotFoundError(errno.ENOENT, "No such file"),
        PermissionError(errno.EACCES, "Permission denied"),
        OSError("said a library"),
        OSError("Multiple exceptions: [Errno 111] Connect call failed, [Errno 13] Permission"),
        OSError("Multiple exceptions: none of them known"),
        ssl.SSLCertVerificationError("certificate verify failed"),
        asyncio.CancelledError(),
        KeyboardInterrupt(),
        GeneratorExit(),
    ],
    ids=repr,
)
def test_what_does_not_pass(error: BaseException) -> None:
    assert not is_temporary(error)
    assert retry_after(error) is None


def test_refused_by_every_address() -> None:
    port = refusing_port()
    asked: list[Any] = []

    async def resolve(*args: Any, **options: Any) -> Any:
        asked.append(args)
        kind = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "")
        return [(*kind, ("127.0.0.1", port)), (*kind, ("127.0.0.2", port))]

    async def main() -> None:
        asyncio.get_running_loop().getaddrinfo = resolve  # type: ignore[method-assign]
        with pytest.raises(OSError, match="Multiple exceptions") as caught:
            await asyncio.open_connection("example.invalid", port)
        assert type(caught.value) is OSError
        assert is_temporary(caught.value)

    asyncio.run(main())
    assert asked


def test_refused_with_anyio() -> None:
    anyio = pytest.importorskip("anyio")

    async def main() -> None:
        with pytest.raises(OSError, match="All connection attempts failed") as caught:
            await anyio.connect_tcp(HOST, refusing_port())
        assert is_temporary(caught.value)
        caught.value.__cause__ = Broken()
        assert not is_temporary(caught.value)

    asyncio.run(main())


def test_groups() -> None:
    group = ExceptionGroup("", [TimeoutError(), ExceptionGroup("", [ConnectionError()])])
    assert is_temporary(group)
    assert not is_temporary(ExceptionGroup("", [TimeoutError(), ValueError()]))
    assert not is_temporary(BaseExceptionGroup("", [TimeoutError(), KeyboardInterrupt()]))
    assert retry_after(group) is None


def test_what_an_exception_of_sdax_asks_for() -> None:
    assert retry_after(RetryableException("busy")) is None
    assert retry_after(RetryableException("busy", retry_after=2)) == 2.0
    assert retry_after(RetryableException("busy", retry_after=-1)) == -1.0
    group = [RetryableException(retry_after=2), ExceptionGroup("", [RetryableException()])]
    assert retry_after(ExceptionGroup("", group)) == 2.0

    class OddError(RetryableException):
        retry_after = "soon"  # type: ignore[assignment]

    assert retry_after(OddError()) is None


def test_groups_that_ask_to_wait() -> None:
    httpx = pytest.importorskip("httpx")
    grpc = pytest.importorskip("grpc")

    def http_error(seconds: int) -> Exception:
        answer = httpx.Response(503, headers={"Retry-After": str(seconds)})
        request = httpx.Request("GET", "http://example.invalid")
        return httpx.HTTPStatusError("A", request=request, response=answer)  # type: ignore[no-any-return]

    trailers = grpc.aio.Metadata(("grpc-retry-pushback-ms", "-1"))
    refuses = grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), trailers)
    asking = ExceptionGroup("", [http_error(5), TimeoutError(), http_error(7)])
    assert retry_after(asking) == 7
    assert is_temporary(asking)
    refused = ExceptionGroup("", [asking, refuses])
    assert retry_after(refused) == -1
    assert not is_temporary(refused)


def like(package: str, name: str, base: type = Exception, **attributes: Any) -> Any:
    """A class that is taken for one of a client."""
    return type(name, (base,), {"__module__": package, **attributes})


def raises(*args: Any) -> NoReturn:
    raise RuntimeError


KNOWN = [
    ("httpx", "HTTPStatusError"),
    ("httpx", "ProxyError"),
    ("aiohttp.client_exceptions", "ClientResponseError"),
    ("asyncpg.exceptions", "PostgresError"),
    ("asyncpg.exceptions", "InterfaceError"),
    ("psycopg", "OperationalError"),
    ("botocore.exceptions", "ClientError"),
    ("grpc", "RpcError"),
]


@pytest.mark.parametrize(("package", "name"), KNOWN, ids=lambda name: name)
@pytest.mark.parametrize(
    "value",
    [
        property(raises),
        raises,
        None,
        503,
        "503",
        {},
        {"Error": None},
        {"ResponseMetadata": {"HTTPStatusCode": "503", "HTTPHeaders": None}},
        io.BytesIO(),
    ],
    ids=[
        "raising property",
        "function",
        "None",
        "number",
        "text",
        "empty",
        "no error",
        "no headers",
        "file",
    ],
)
def test_attributes_that_are_not_what_they_should_be(package: str, name: str, value: Any) -> None:
    names = ("response", "status", "headers", "sqlstate", "code", "details", "trailing_metadata")
    odd = like(package, name, **dict.fromkeys(names, value))()
    # A status of aiohttp's, and a failure of psycopg's for which the server gave no SQLSTATE.
    sound = {("ClientResponseError", "503"), ("OperationalError", "None")}
    assert is_temporary(odd) is ((name, repr(value)) in sound)
    assert retry_after(odd) is None


@pytest.mark.parametrize(("package", "name"), KNOWN, ids=lambda name: name)
def test_exceptions_that_can_say_nothing(package: str, name: str) -> None:
    mute = like(package, name, __str__=raises, __repr__=raises, __bool__=raises, __eq__=raises)()
    assert not is_temporary(mute)
    assert retry_after(mute) is None


def test_classes_that_hide_where_they_are_from() -> None:
    class Hiding(type):
        @property
        def __module__(cls) -> Any:
            raise RuntimeError

    for hidden in (Hiding("A", (ConnectionError,), {})(), like(None, "A", ConnectionError)()):  # type: ignore[arg-type]
        assert not is_temporary(hidden)
        assert retry_after(hidden) is None


def test_reasons_that_go_round_in_circles() -> None:
    circle = like("httpx", "NetworkError")()
    circle.__context__ = Broken()
    circle.__context__.__context__ = circle
    assert is_temporary(circle)
    turning = OSError("A")
    turning.__cause__ = OSError("B")
    turning.__cause__.__cause__ = turning
    assert not is_temporary(turning)


@pytest.mark.parametrize("function", [is_temporary, retry_after])
@pytest.mark.parametrize("value", [None, 503, "timeout", TimeoutError, object()])
def test_what_is_not_an_exception(function: Any, value: Any) -> None:
    with pytest.raises(TypeError, match=f"{function.__name__} takes an exception, got"):
        function(value)


def test_no_client_is_imported() -> None:
    code = (
        "import sys, sdax.clients; sdax.clients.is_temporary(TimeoutError())\n"
        "clients = 'httpx aiohttp asyncpg psycopg redis botocore grpc google'.split()\n"
        "assert not set(clients) & set(sys.modules), set(clients) & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


async def test_in_a_run() -> None:
    httpx = pytest.importorskip("httpx")
    statuses = [503, 429, 200]

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await answering(response(statuses.pop(0)))(reader, writer)

    async def get(url: str) -> int:
        async with httpx.AsyncClient(trust_env=False) as client:
            answer = await client.get(url)
            answer.raise_for_status()
            return int(answer.status_code)

    function = TaskFunction(get, retries=3, initial_delay=0, retryable_exceptions=is_temporary)
    async with serving(handle) as port:
        url = f"http://{HOST}:{port}/"
        report = await solo(function).process_tasks(url)
        assert report["A"].pre_execute[:3] == ("succeeded", 3, 200)
        statuses.append(404)
        error = await failure_of(solo(function), url)
    assert error.failures[0].attempts == 1
