"""What redis, botocore and grpc raise, against servers on loopback that speak their protocols."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Awaitable, Callable
from functools import cache
from typing import Any

import pytest

from loopback import (
    HOST,
    Call,
    Handler,
    against,
    answering,
    certified,
    hang_up,
    keep_silent,
    raised_by,
    refusing_port,
    response,
)
from sdax.clients import is_temporary, retry_after

# Redis.


def redis_call(**options: Any) -> Call:
    asyncio_redis = pytest.importorskip("redis.asyncio")
    backoff = pytest.importorskip("redis.backoff")
    retry = pytest.importorskip("redis.asyncio.retry")

    async def call(port: int) -> None:
        no_retries = retry.Retry(backoff.NoBackoff(), 0)
        client = asyncio_redis.Redis(host=HOST, port=port, retry=no_retries, **options)
        try:
            await client.get("key")
        finally:
            await client.aclose()

    return call


def saying(answer: bytes) -> Handler:
    """Answer every command but those of the connection itself with this."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():  # "*2", "$3", "GET", "$3", "key"
            words = []
            for _ in range(int(line[1:])):
                size = int((await reader.readline())[1:])
                words.append((await reader.readexactly(size + 2))[:-2])
            own = words[0].upper() == b"GET"
            writer.write((answer if own else b"+OK") + b"\r\n")
            await writer.drain()

    return handle


@pytest.mark.parametrize(
    ("answer", "name", "temporary"),
    [
        ("-LOADING Redis is loading the dataset in memory", "BusyLoadingError", True),
        ("-TRYAGAIN Multiple keys request during rehashing of slot", "TryAgainError", True),
        ("-CLUSTERDOWN Hash slot not served", "ClusterDownError", True),
        ("-MASTERDOWN Link with MASTER is down", "MasterDownError", True),
        ("-ERR max number of clients reached", "ConnectionError", True),
        ("-ERR unknown command", "ResponseError", False),
        ("-WRONGTYPE Operation against a key", "ResponseError", False),
        ("-READONLY You can't write against a read only replica", "ReadOnlyError", False),
        ("-OOM command not allowed", "OutOfMemoryError", False),
        ("-WRONGPASS invalid username-password pair", "AuthenticationError", False),
        ("-NOAUTH Authentication required.", "AuthenticationError", False),
        ("-NOPERM this user has no permissions", "NoPermissionError", False),
        ("?", "InvalidResponse", False),
    ],
)
def test_redis_answers(answer: str, name: str, temporary: bool) -> None:
    error = against(saying(answer.encode()), redis_call(protocol=2))
    assert name in [kind.__name__ for kind in type(error).__mro__]
    assert is_temporary(error) is temporary
    assert retry_after(error) is None


def test_redis_connections() -> None:
    assert is_temporary(against(None, redis_call()))
    assert is_temporary(against(hang_up, redis_call()))


def test_redis_timeouts() -> None:
    assert is_temporary(against(keep_silent, redis_call(socket_timeout=0.01)))


def test_redis_certificates() -> None:
    error = against(keep_silent, redis_call(ssl=True), ssl=certified())
    assert "certificate verify failed" in str(error)
    assert not is_temporary(error)


# AWS.


@cache
def aws_session() -> Any:
    """One for all: each reads botocore's descriptions of the services anew."""
    import botocore.session

    return botocore.session.Session()


def aws_call(use: Callable[[Any], object], scheme: str = "http", **options: Any) -> Call:
    config = pytest.importorskip("botocore.config")
    pytest.importorskip("botocore.session")
    options = {"retries": {"total_max_attempts": 1}, "proxies": {}, **options}

    def call(port: int) -> None:
        client = aws_session().create_client(
            "s3" if use is read_object else "dynamodb",
            region_name="us-east-1",
            endpoint_url=f"{scheme}://{HOST}:{port}",
            aws_access_key_id="key",
            aws_secret_access_key="secret",
            config=config.Config(**options),
        )
        try:
            use(client)
        finally:
            client.close()

    async def call_in_a_thread(port: int) -> None:
        await asyncio.to_thread(call, port)

    return call_in_a_thread


def list_tables(client: Any) -> None:
    client.list_tables()


def read_object(client: Any) -> None:
    client.get_object(Bucket="bucket", Key="key")["Body"].read()


def aws_response(status: int, code: str, *headers: str) -> bytes:
    return response(status, headers, b'{"__type": "example#%s", "message": "A"}' % code.encode())


@pytest.mark.parametrize(
    ("status", "code", "temporary"),
    [
        (500, "InternalServerError", True),
        (503, "ServiceUnavailable", True),
        (429, "Unheard", True),
        (400, "ThrottlingException", True),
        (400, "ProvisionedThroughputExceededException", True),
        (400, "ValidationException", False),
        (400, "ResourceNotFoundException", False),
        (403, "AccessDeniedException", False),
    ],
)
def test_aws_answers(status: int, code: str, temporary: bool) -> None:
    error = against(answering(aws_response(status, code)), aws_call(list_tables))
    assert code in str(error)
    assert is_temporary(error) is temporary
    assert retry_after(error) is None


def test_aws_codes_are_those_that_botocore_retries() -> None:
    standard = pytest.importorskip("botocore.retries.standard")
    codes = {
        *standard.ThrottledRetryableChecker._THROTTLED_ERROR_CODES,
        *standard.TransientRetryableChecker._TRANSIENT_ERROR_CODES,
    }
    for code in codes:
        error = against(answering(aws_response(400, code)), aws_call(list_tables))
        assert is_temporary(error), code


def test_aws_connections() -> None:
    pytest.importorskip("botocore")
    assert is_temporary(against(None, aws_call(list_tables)))
    assert is_temporary(against(hang_up, aws_call(list_tables)))
    proxies = {"http": f"http://{HOST}:{refusing_port()}"}
    assert is_temporary(against(None, aws_call(list_tables, proxies=proxies)))


def test_aws_bodies_that_are_cut_short() -> None:
    cut = response(200, body=b"123456")[:-1]
    error = against(answering(cut), aws_call(read_object))
    assert type(error).__name__ == "ResponseStreamingError"
    assert is_temporary(error)


def test_aws_bodies_that_are_shorter_than_they_say() -> None:
    streams = pytest.importorskip("botocore.response")
    body = streams.StreamingBody(io.BytesIO(b"12345"), 6)
    assert is_temporary(asyncio.run(raised_by(asyncio.to_thread(body.read))))


def test_aws_timeouts() -> None:
    assert is_temporary(against(keep_silent, aws_call(list_tables, read_timeout=0.01)))


def test_aws_certificates() -> None:
    error = against(keep_silent, aws_call(list_tables, scheme="https"), ssl=certified())
    assert "certificate verify failed" in str(error)
    assert not is_temporary(error)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        (["Retry-After: 7"], 7.0),
        (["X-Amz-Retry-After: 1500"], 1.5),
        (["Retry-After: 7", "x-amz-retry-after: 1500"], 1.5),
        (["Retry-After: 7", "x-amz-retry-after: soon"], 7.0),
    ],
)
def test_aws_asks_to_wait(headers: list[str], seconds: float) -> None:
    answer = aws_response(503, "ServiceUnavailable", *headers)
    assert retry_after(against(answering(answer), aws_call(list_tables))) == seconds


# gRPC.

Method = Callable[[bytes, Any], Awaitable[bytes]]


def grpc_error(method: Method | None, request: bytes = b"", timeout: float = 60) -> Any:
    """What a call raises, against a server with this method, or, with None, against none."""
    grpc = pytest.importorskip("grpc")

    class Service(grpc.GenericRpcHandler):  # type: ignore[name-defined, misc]
        def service(self, details: Any) -> Any:
            return grpc.unary_unary_rpc_method_handler(method)

    async def main() -> Any:
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((Service(),))
        port = server.add_insecure_port(f"{HOST}:0")
        if method is None:
            port = refusing_port()
        else:
            await server.start()
        try:
            async with grpc.aio.insecure_channel(f"{HOST}:{port}") as channel:
                call = channel.unary_unary("/service/method")
                return await raised_by(call(request, timeout=timeout))
        finally:
            await server.stop(None)

    return asyncio.run(main())


def aborting(code: str, *trailers: tuple[str, str | bytes]) -> Method:
    async def method(request: bytes, context: Any) -> bytes:
        import grpc

        context.set_trailing_metadata(trailers)
        await context.abort(getattr(grpc.StatusCode, code), "details")
        raise AssertionError

    return method


@pytest.mark.parametrize(
    ("code", "temporary"),
    [
        ("UNAVAILABLE", True),
        ("RESOURCE_EXHAUSTED", True),
        ("ABORTED", True),
        ("DEADLINE_EXCEEDED", True),
        ("NOT_FOUND", False),
        ("INTERNAL", False),
        ("UNKNOWN", False),
        ("UNAUTHENTICATED", False),
        ("CANCELLED", False),
    ],
)
def test_grpc_answers(code: str, temporary: bool) -> None:
    error = grpc_error(aborting(code))
    assert error.code().name == code
    assert is_temporary(error) is temporary
    assert retry_after(error) is None


def test_grpc_connections() -> None:
    assert is_temporary(grpc_error(None))


def test_grpc_timeouts() -> None:
    async def wait(request: bytes, context: Any) -> bytes:
        return await asyncio.get_running_loop().create_future()

    assert is_temporary(grpc_error(wait, timeout=0.01))


def test_grpc_messages_that_are_too_large() -> None:
    error = grpc_error(aborting("OK"), request=b"A" * (5 << 20))
    assert error.code().name == "RESOURCE_EXHAUSTED"
    assert not is_temporary(error)


def test_grpc_certificates() -> None:
    grpc = pytest.importorskip("grpc")

    async def call(port: int) -> None:
        credentials = grpc.ssl_channel_credentials()
        async with grpc.aio.secure_channel(f"{HOST}:{port}", credentials) as channel:
            await channel.unary_unary("/service/method")(b"", timeout=60)

    error: Any = against(keep_silent, call, ssl=certified())
    assert error.code().name == "UNAVAILABLE"
    assert not is_temporary(error)


def test_grpc_of_threads() -> None:
    grpc = pytest.importorskip("grpc")
    with grpc.insecure_channel(f"{HOST}:{refusing_port()}") as channel:
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/service/method")(b"")
        assert is_temporary(caught.value)
        assert retry_after(caught.value) is None
    assert not is_temporary(grpc.RpcError())


@pytest.mark.parametrize(
    ("pushback", "seconds"), [("1500", 1.5), ("0", 0.0), ("-1", -1.0), ("soon", -1.0)]
)
def test_grpc_pushes_back(pushback: str, seconds: float) -> None:
    error = grpc_error(aborting("UNAVAILABLE", ("grpc-retry-pushback-ms", pushback)))
    assert retry_after(error) == seconds
    assert is_temporary(error) is (seconds >= 0)


def retry_info(seconds: int, nanos: int, code: int = 14) -> bytes:
    any_pb2 = pytest.importorskip("google.protobuf.any_pb2")
    details_pb2 = pytest.importorskip("google.rpc.error_details_pb2")
    status_pb2 = pytest.importorskip("google.rpc.status_pb2")
    status = status_pb2.Status(code=code, message="a message")
    status.details.add().Pack(details_pb2.DebugInfo(detail="before it"))
    info = details_pb2.RetryInfo()
    info.retry_delay.seconds, info.retry_delay.nanos = seconds, nanos
    status.details.add().Pack(info)
    status.details.append(any_pb2.Any())
    return bytes(status.SerializeToString())


@pytest.mark.parametrize(
    ("seconds", "nanos", "wanted"),
    [(3, 500_000_000, 3.5), (0, 0, 0.0), (10**9, 0, 1e9), (0, 1, 1e-9), (-1, 0, None)],
)
def test_grpc_says_when(seconds: int, nanos: int, wanted: float | None) -> None:
    trailer = ("grpc-status-details-bin", retry_info(seconds, nanos))
    assert retry_after(grpc_error(aborting("UNAVAILABLE", trailer))) == wanted


def test_grpc_pushback_comes_before_what_the_service_says() -> None:
    trailers = ("grpc-status-details-bin", retry_info(3, 0)), ("grpc-retry-pushback-ms", "500")
    assert retry_after(grpc_error(aborting("UNAVAILABLE", *trailers))) == 0.5


def test_grpc_details_that_cannot_be_read() -> None:
    sound = retry_info(3, 500_000_000)
    for length in range(len(sound)):
        error = grpc_error_with(sound[:length])
        assert retry_after(error) in (None, 0.0, 3.0, 3.5)
        assert is_temporary(error)
    for nonsense in (b"\xff" * 20, b"\x1b", b"\x0f\x01", b"\x19\x01", b"\x1a\x05ABCDE"):
        error = grpc_error_with(nonsense)
        assert retry_after(error) is None
        assert is_temporary(error)


def grpc_error_with(details: bytes) -> Exception:
    grpc = pytest.importorskip("grpc")
    trailers = grpc.aio.Metadata(("grpc-status-details-bin", details))
    return grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), trailers)
