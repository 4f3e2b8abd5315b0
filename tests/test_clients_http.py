"""What httpx and aiohttp raise, against servers on loopback: what is temporary, and until when."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from loopback import HOST, Call, against, answering, certified, hang_up, keep_silent, response
from sdax.clients import is_temporary, retry_after


def httpx_call(path: str = "/", scheme: str = "http", **options: Any) -> Call:
    httpx = pytest.importorskip("httpx")
    options = {"timeout": 60, "trust_env": False, **options}

    async def call(port: int) -> None:
        if options.get("proxy") == "itself":
            options["proxy"] = f"http://{HOST}:{port}"
        async with httpx.AsyncClient(**options) as client:
            answer = await client.get(f"{scheme}://{HOST}:{port}{path}", follow_redirects=True)
            answer.raise_for_status()

    return call


def aiohttp_call(path: str = "/", scheme: str = "http", **options: Any) -> Call:
    aiohttp = pytest.importorskip("aiohttp")
    if "timeout" in options:
        options["timeout"] = aiohttp.ClientTimeout(total=options["timeout"])

    async def call(port: int) -> None:
        if options.get("proxy") == "itself":
            options["proxy"] = f"http://{HOST}:{port}"
        async with aiohttp.ClientSession() as session:
            url = f"{scheme}://{HOST}:{port}{path}"
            async with session.get(url, **options) as answer:
                answer.raise_for_status()
                await answer.json()

    return call


both_http_clients = pytest.mark.parametrize(
    "client", [httpx_call, aiohttp_call], ids=["httpx", "aiohttp"]
)


@both_http_clients
@pytest.mark.parametrize("status", [408, 425, 429, 500, 501, 502, 503, 504, 599])
def test_http_statuses_that_pass(client: Any, status: int) -> None:
    error = against(answering(response(status)), client())
    assert str(status) in str(error)
    assert is_temporary(error)
    assert not isinstance(error, (TimeoutError, ConnectionError))


@both_http_clients
@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 410, 422, 428, 431, 451])
def test_http_statuses_that_do_not(client: Any, status: int) -> None:
    error = against(answering(response(status)), client())
    assert str(status) in str(error)
    assert not is_temporary(error)


@both_http_clients
def test_http_connections(client: Any) -> None:
    assert is_temporary(against(None, client()))
    assert is_temporary(against(answering(b""), client()))
    cut = response(200, body=b"123")[:-1]
    assert is_temporary(against(answering(cut), client()))
    cut = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n12"
    assert is_temporary(against(answering(cut), client()))


@both_http_clients
def test_http_timeouts(client: Any) -> None:
    assert is_temporary(against(answering(None), client(timeout=0.01)))


@both_http_clients
def test_http_names_that_are_not_found(client: Any) -> None:
    async def resolve(*args: Any, **options: Any) -> Any:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    async def call(port: int) -> None:
        asyncio.get_running_loop().getaddrinfo = resolve  # type: ignore[method-assign]
        await client(path="@sdax.invalid:1/")(port)

    assert is_temporary(against(None, call))


@both_http_clients
def test_http_answers_that_are_wrong(client: Any) -> None:
    zipped = response(200, ["Content-Encoding: gzip"], b"not zipped")
    assert not is_temporary(against(answering(zipped), client()))
    circle = response(302, ["Location: /"])
    assert not is_temporary(against(answering(circle), client()))


@both_http_clients
@pytest.mark.parametrize(("status", "temporary"), [(502, True), (407, False)])
def test_http_proxies(client: Any, status: int, temporary: bool) -> None:
    call = client(scheme="https", proxy="itself")
    error = against(answering(response(status, body=b"")), call)
    assert is_temporary(error) is temporary


@both_http_clients
def test_http_certificates(client: Any) -> None:
    call = client(scheme="https")
    error = against(answering(b""), call, ssl=certified())
    assert "certificate" in str(error).lower()
    assert not is_temporary(error)
    # What breaks off before there is a certificate is a broken connection.
    hung_up = against(hang_up, call)
    assert is_temporary(hung_up)


def test_aiohttp_fingerprints() -> None:
    aiohttp = pytest.importorskip("aiohttp")
    call = aiohttp_call(scheme="https", ssl=aiohttp.Fingerprint(b"\0" * 32))
    error = against(answering(response(200)), call, ssl=certified())
    assert type(error).__name__ == "ServerFingerprintMismatch"
    assert not is_temporary(error)


def test_aiohttp_types_of_content() -> None:
    error = against(answering(response(200)), aiohttp_call())
    assert type(error).__name__ == "ContentTypeError"
    assert not is_temporary(error)


def test_aiohttp_timeouts_of_its_own() -> None:
    aiohttp = pytest.importorskip("aiohttp")

    async def call(port: int) -> None:
        timeout = aiohttp.ClientTimeout(sock_read=0.01)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            await session.get(f"http://{HOST}:{port}/")

    error = against(answering(None), call)
    assert type(error).__name__ == "SocketTimeoutError"
    assert is_temporary(error)


def test_httpx_pools_that_are_empty() -> None:
    httpx = pytest.importorskip("httpx")
    taken = asyncio.Event()

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        taken.set()
        await keep_silent(reader, writer)

    async def call(port: int) -> None:
        limits = httpx.Limits(max_connections=1)
        timeout = httpx.Timeout(60, pool=0.01)
        url = f"http://{HOST}:{port}/"
        async with httpx.AsyncClient(limits=limits, timeout=timeout, trust_env=False) as client:
            first = asyncio.create_task(client.get(url))
            await taken.wait()
            try:
                await client.get(url)
            finally:
                first.cancel()
                await asyncio.wait([first])

    error = against(take, call)
    assert type(error).__name__ == "PoolTimeout"
    assert is_temporary(error)


def test_httpx_mistakes() -> None:
    assert not is_temporary(against(None, httpx_call(scheme="gopher")))


def test_subclasses_that_users_make() -> None:
    httpx = pytest.importorskip("httpx")

    class ShopError(httpx.HTTPStatusError):  # type: ignore[name-defined, misc]
        pass

    for status, temporary in ((503, True), (404, False)):
        answer = httpx.Response(status, headers={"retry-after": "4"})
        error = ShopError("", request=httpx.Request("GET", "http://a"), response=answer)
        assert is_temporary(error) is temporary
        assert retry_after(error) == 4


DATE = "Date: Sun, 06 Nov 1994 08:49:37 GMT"


@both_http_clients
@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ([], None),
        (["Retry-After: 7"], 7.0),
        (["RETRY-AFTER:  0 "], 0.0),
        (["retry-after: 1.5"], 1.5),
        ([DATE, "Retry-After: Sun, 06 Nov 1994 08:50:37 GMT"], 60.0),
        ([DATE, "Retry-After: Sunday, 06-Nov-94 08:50:38 GMT"], 61.0),
        ([DATE, "Retry-After: Sun Nov  6 08:50:39 1994"], 62.0),
        ([DATE, "Retry-After: Sun, 06 Nov 1994 08:49:30 GMT"], 0.0),
        (["Retry-After: Sun, 06 Nov 1994 08:49:30 GMT"], 0.0),
        (["Retry-After: -1"], None),
        (["Retry-After: soon"], None),
        (["Retry-After: 1, 2"], None),
        ([f"Retry-After: {'9' * 400}"], None),
        (["Date: today", "Retry-After: Sun, 06 Nov 1994 08:49:30 GMT"], None),
        (["Retry-After:"], None),
        (["X-Retry-After: 5"], None),
    ],
)
def test_http_asks_to_wait(client: Any, headers: list[str], seconds: float | None) -> None:
    error = against(answering(response(503, headers)), client())
    assert retry_after(error) == seconds


@both_http_clients
def test_http_asks_to_wait_by_this_clock(client: Any) -> None:
    headers = ["Retry-After: Fri, 31 Dec 9999 23:59:59 GMT"]
    error = against(answering(response(429, headers)), client())
    seconds = retry_after(error)
    assert seconds is not None
    assert 1e10 < seconds < 1e12


@both_http_clients
def test_http_without_an_answer_asks_for_nothing(client: Any) -> None:
    assert retry_after(against(None, client())) is None
