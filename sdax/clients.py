"""The exceptions of the usual clients: can another attempt help, and when?

httpx, aiohttp, asyncpg, psycopg, redis, botocore and grpc have their own exceptions, and most of
them are neither a `ConnectionError` nor a `TimeoutError`. This module knows the names of their
classes, so it imports none of these libraries.

>>> from sdax.clients import is_temporary, retry_after
>>> task_func(load_user, retries=3, retryable_exceptions=is_temporary)
"""

from __future__ import annotations

import errno
import math
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final, TypeAlias

from .common.checks import checked_seconds
from .common.groups import iter_leaves
from .common.text import shown

__all__ = ["is_temporary", "retry_after"]


def is_temporary(exception: BaseException) -> bool:
    """Return True if the reason for an exception is temporary, so that a retry can succeed.

    `TimeoutError`, `ConnectionError`, `RetryableException` and an `OSError` of the network are
    temporary. For httpx, aiohttp, asyncpg, psycopg, redis, botocore and grpc, these are temporary
    too:

    - connections that fail or break, and timeouts;
    - the HTTP statuses 408, 425, 429 and 500 to 599, and AWS's error codes for throttling;
    - the SQLSTATEs 08 (connection), 40001 and 40P01 (serialization, deadlock), 53 (resources) and
      57P (shutdown);
    - Redis that is loading, or whose cluster is changing;
    - gRPC's UNAVAILABLE, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED and ABORTED, unless the server asks
      not to be called again.

    Everything else is not temporary: other HTTP statuses, wrong passwords, invalid certificates. A
    group is temporary if all its leaves are. If an attribute of the exception raises, that error
    is ignored. Raises `TypeError` if the argument is not an exception.

    >>> task_func(load_user, retries=3, retryable_exceptions=is_temporary)
    """
    _check("is_temporary", exception)
    return all(_ask(_TEMPORARY, leaf) is True for leaf in iter_leaves(exception))


def retry_after(exception: BaseException) -> float | None:
    """Return the seconds that an answer asks to wait before the next attempt, or None.

    It reads the header `Retry-After` (seconds, or a date) of httpx, aiohttp and botocore, AWS's
    `x-amz-retry-after`, gRPC's trailers (`grpc-retry-pushback-ms`, and the `RetryInfo` of
    `grpc-status-details-bin`), and the `retry_after` of a `RetryableException`. It compares a date
    with the answer's own `Date`, so different clocks do no harm. The result is negative if a gRPC
    server asks not to be called again. For a group it is the largest of the leaves, or negative if
    one of them is.

    If an attribute of the exception raises, that error is ignored. Raises `TypeError` if the
    argument is not an exception.

    >>> try:
    ...     response = (await client.get("/user")).raise_for_status()
    ... except httpx.HTTPStatusError as error:
    ...     print("the service asks to wait", retry_after(error), "seconds")
    """
    _check("retry_after", exception)
    found = [_ask(_ASKED_FOR, leaf) for leaf in iter_leaves(exception)]
    waits = [float(each) for each in found if each is not None]
    return min(waits) if any(each < 0 for each in waits) else max(waits, default=None)


def _check(function: str, exception: object) -> None:
    if not isinstance(exception, BaseException):
        raise TypeError(f"{function} takes an exception, got {shown(exception)}")


# The key of a class is its package and its name. Its answer, or the function that gives it, is also
# valid for subclasses without an answer of their own.
Answers: TypeAlias = Mapping[tuple[str, str], Any]


def _ask(answers: Answers, exception: BaseException) -> Any:
    """Return the answer of the exception's nearest known class, or None if there is none."""
    try:
        for kind in type(exception).__mro__:
            known = answers.get((kind.__module__.partition(".")[0], kind.__name__))
            if known is not None:
                return known(exception) if callable(known) else known
    except Exception:  # from an attribute: such an exception has no answer
        return None
    return None


# The system and the network.

_NETWORK: Final = {
    getattr(errno, name)
    for name in (
        "EADDRNOTAVAIL",
        "ECONNABORTED",
        "ECONNREFUSED",
        "ECONNRESET",
        "EHOSTDOWN",
        "EHOSTUNREACH",
        "ENETDOWN",
        "ENETRESET",
        "ENETUNREACH",
        "EPIPE",
        "ETIMEDOUT",
    )
    if hasattr(errno, name)
}


def _os_error(error: Any) -> bool:
    if error.errno is not None:
        return error.errno in _NETWORK
    if error.__cause__ is not None:  # anyio has the reason for each address here
        return is_temporary(error.__cause__)
    text = str(error)  # asyncio: "Multiple exceptions: [Errno 111] ..., [Errno 113] ..."
    numbers = re.findall(r"\[Errno (\d+)\]", text) if text.startswith("Multiple exc") else []
    return bool(numbers) and all(int(number) in _NETWORK for number in numbers)


def _unless_certificate(error: BaseException) -> bool:
    """A broken connection is temporary. An invalid certificate will be invalid next time too."""
    seen: set[int] = set()
    reason: BaseException | None = error
    while reason is not None and id(reason) not in seen:
        if type(reason).__name__ == "SSLCertVerificationError":
            return False
        seen.add(id(reason))
        reason = reason.__context__ if reason.__cause__ is None else reason.__cause__
    return True


# HTTP.


def _temporary_status(status: object) -> bool:
    return isinstance(status, int) and (status in (408, 425, 429) or 500 <= status <= 599)


def _proxy_error(error: Any) -> bool:
    """httpx gives a proxy's status at the beginning of a text: "502 Bad Gateway"."""
    status = re.match(r"\d{3}\b", str(error))
    return status is not None and _temporary_status(int(status[0]))


def _payload_error(error: Any) -> bool:
    """An aiohttp body is incomplete, or its compression is wrong."""
    return type(error.__cause__).__name__ != "ContentEncodingError"


def _asked_in(headers: Mapping[Any, Any]) -> float | None:
    values = {str(name).lower(): str(value).strip() for name, value in headers.items()}
    if (milliseconds := _number(values.get("x-amz-retry-after", ""))) is not None:
        return milliseconds / 1000
    text = values.get("retry-after")
    if text is None:
        return None
    if (seconds := _number(text)) is not None:
        return seconds
    now = values.get("date")
    wait = _date(text) - (datetime.now(UTC) if now is None else _date(now))
    return max(0.0, wait.total_seconds())


def _number(text: str) -> float | None:
    if not re.fullmatch(r"[0-9]+(\.[0-9]+)?", text):
        return None
    number = float(text)
    return number if math.isfinite(number) else None


def _date(text: str) -> datetime:
    date = parsedate_to_datetime(text)
    return date if date.tzinfo else date.replace(tzinfo=UTC)  # HTTP has no other zone


# PostgreSQL.


def _temporary_sqlstate(error: Any) -> bool:
    state = error.sqlstate
    return isinstance(state, str) and (
        state.startswith(("08", "53", "57P")) or state in ("40001", "40P01")
    )


def _closed_by_server(error: Any) -> bool:
    """asyncpg's message for an idle connection that the server closed."""
    return str(error) == "connection is closed"


# The messages of a server that refuses a connection. libpq gives no SQLSTATE for them.
_REFUSES_FOR_NOW: Final = re.compile(
    r"too many (clients|connections)|connection slots|database system is|terminating connection"
    r"|no more connections|query_wait_timeout"
)


def _psycopg_error(error: Any) -> bool:
    if error.sqlstate is not None:
        return _temporary_sqlstate(error)
    text = str(error)
    if "FATAL:" in text:
        return _REFUSES_FOR_NOW.search(text) is not None
    return "certificate verify failed" not in text


# AWS.

# botocore retries these in its own mode "standard", with any HTTP status.
_AWS_CODES: Final = frozenset(
    (
        "BandwidthLimitExceeded",
        "EC2ThrottledException",
        "LimitExceededException",
        "PriorRequestNotComplete",
        "ProvisionedThroughputExceededException",
        "RequestLimitExceeded",
        "RequestThrottled",
        "RequestThrottledException",
        "RequestTimeout",
        "RequestTimeoutException",
        "SlowDown",
        "ThrottledException",
        "Throttling",
        "ThrottlingException",
        "TooManyRequestsException",
        "TransactionInProgressException",
    )
)


def _aws_error(error: Any) -> bool:
    answer = error.response
    return answer.get("Error", {}).get("Code") in _AWS_CODES or _temporary_status(
        answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
    )


# gRPC.

_GRPC_CODES: Final = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "ABORTED")
_FOR_GOOD: Final = ("larger than max", "CERTIFICATE_VERIFY_FAILED")  # in the library's own text


def _grpc_error(error: Any) -> bool:
    if error.code().name not in _GRPC_CODES or (_pushback(_trailers(error)) or 0) < 0:
        return False
    details = error.details() or ""
    return not any(text in details for text in _FOR_GOOD)


def _asked_by_grpc(error: Any) -> float | None:
    trailers = _trailers(error)
    pushback = _pushback(trailers)
    return _delay_of(trailers.get("grpc-status-details-bin", b"")) if pushback is None else pushback


def _trailers(error: Any) -> dict[str, Any]:
    return dict(error.trailing_metadata() or ())


def _pushback(trailers: Mapping[str, Any]) -> float | None:
    text = trailers.get("grpc-retry-pushback-ms")
    if text is None:
        return None
    milliseconds = _number(text)
    # gRPC's rule: negative or not readable means no retry.
    return -1.0 if milliseconds is None else milliseconds / 1000


def _delay_of(status: bytes) -> float | None:
    """Return the seconds of the `google.rpc.RetryInfo` in a `google.rpc.Status`, if it has one."""
    for number, detail in _fields(status):
        if number == 3:
            parts = dict(_fields(detail))
            if parts.get(1, b"").endswith(b"/google.rpc.RetryInfo"):
                delay = dict(_fields(dict(_fields(parts.get(2, b""))).get(1, b"")))
                seconds: int = delay.get(1, 0)
                negative = seconds >= 1 << 63  # as protobuf writes it, which makes no sense here
                return None if negative else float(seconds + delay.get(2, 0) / 1e9)
    return None


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Yield number and value, an integer or bytes, of each field in protobuf's wire format.

    Raises `IndexError` or `KeyError` if the bytes are not in that format.
    """
    position = 0

    def integer() -> int:
        nonlocal position
        value = shift = 0
        while True:
            byte = message[position]
            position += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while position < len(message):
        number, kind = divmod(integer(), 8)
        if kind == 0:
            yield number, integer()
        else:
            size = integer() if kind == 2 else {1: 8, 5: 4}[kind]
            yield number, message[position : position + size]
            position += size


_TEMPORARY: Final[dict[tuple[str, str], bool | Callable[[Any], bool]]] = {
    ("builtins", "ConnectionError"): True,
    ("builtins", "OSError"): _os_error,
    ("builtins", "TimeoutError"): True,
    ("sdax", "RetryableException"): True,
    ("socket", "gaierror"): True,
    ("ssl", "SSLCertVerificationError"): False,
    ("httpx", "HTTPStatusError"): lambda error: _temporary_status(error.response.status_code),
    ("httpx", "NetworkError"): _unless_certificate,
    ("httpx", "ProxyError"): _proxy_error,
    ("httpx", "RemoteProtocolError"): True,
    ("httpx", "TimeoutException"): True,
    ("aiohttp", "ClientConnectionError"): True,
    ("aiohttp", "ClientConnectorCertificateError"): False,
    ("aiohttp", "ClientPayloadError"): _payload_error,
    ("aiohttp", "ClientResponseError"): lambda error: _temporary_status(error.status),
    ("aiohttp", "ServerFingerprintMismatch"): False,
    ("asyncpg", "InterfaceError"): _closed_by_server,
    ("asyncpg", "PostgresError"): _temporary_sqlstate,
    ("asyncpg", "TargetServerAttributeNotMatched"): True,
    ("psycopg", "OperationalError"): _psycopg_error,
    ("psycopg", "PipelineAborted"): False,
    ("psycopg_pool", "PoolClosed"): False,
    ("redis", "AuthenticationError"): False,
    ("redis", "AuthorizationError"): False,
    ("redis", "ClusterDownError"): True,
    ("redis", "ConnectionError"): _unless_certificate,
    ("redis", "ExternalAuthProviderError"): False,
    ("redis", "TimeoutError"): True,
    ("redis", "TryAgainError"): True,
    ("botocore", "ClientError"): _aws_error,
    ("botocore", "ConnectionClosedError"): True,
    ("botocore", "ConnectionError"): _unless_certificate,
    ("botocore", "IncompleteReadError"): True,
    ("botocore", "ReadTimeoutError"): True,
    ("botocore", "ResponseStreamingError"): True,
    ("grpc", "RpcError"): _grpc_error,
}


def _own_word(error: Any) -> float | None:
    asked = error.retry_after
    return None if asked is None else checked_seconds("retry_after", asked)


_ASKED_FOR: Final[dict[tuple[str, str], Callable[[Any], float | None]]] = {
    ("sdax", "RetryableException"): _own_word,
    ("httpx", "HTTPStatusError"): lambda error: _asked_in(error.response.headers),
    ("aiohttp", "ClientResponseError"): lambda error: _asked_in(error.headers or {}),
    ("botocore", "ClientError"): lambda error: _asked_in(
        error.response["ResponseMetadata"]["HTTPHeaders"]
    ),
    ("grpc", "RpcError"): _asked_by_grpc,
}
