"""The endpoint's requests, observed: a timeline page, OpenTelemetry spans and the critical path.

The endpoint is the endpoint of ``endpoint.py``. It answers three requests. For the first, a service
is busy and then drops the connection. The second has a forged token. For the third, a service does
not answer. A timeline records all of them. OpenTelemetry makes metrics and spans, with the spans of
the HTTP client below them.

Run it with ``python examples/observed.py [page.html]``. It needs aiohttp, aiosqlite and
opentelemetry-sdk. In a clone, ``pip install ".[examples]"`` installs them.
"""

import asyncio
import secrets
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from types import SimpleNamespace

import aiohttp
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode, Tracer

from sdax.observe import Timeline
from sdax.observe.otel import OpenTelemetryObserver
from shop.store import Pool, create_database, read_orders
from shop.upstream import Upstream, listening
from shop.workflow import Request, Service, handle, sign

ORDERS_CSV = Path(__file__).parent / "data" / "orders.csv"
PAGE = Path(gettempdir()) / "sdax-observed.html"


def check(right: bool, message: str) -> None:
    """End the program with a message if something is wrong."""
    if not right:
        raise SystemExit(f"observed.py: {message}")


def client_spans(tracer: Tracer) -> aiohttp.TraceConfig:
    """Make a span of each request of an HTTP client, as libraries for that do."""

    async def begin(
        _: aiohttp.ClientSession,
        request: SimpleNamespace,
        asked: aiohttp.TraceRequestStartParams,
    ) -> None:
        request.span = tracer.start_span(f"{asked.method} {asked.url.path}", kind=SpanKind.CLIENT)

    async def end(
        _: aiohttp.ClientSession, request: SimpleNamespace, got: aiohttp.TraceRequestEndParams
    ) -> None:
        request.span.set_attribute("http.response.status_code", got.response.status)
        request.span.end()

    async def fail(
        _: aiohttp.ClientSession,
        request: SimpleNamespace,
        got: aiohttp.TraceRequestExceptionParams,
    ) -> None:
        request.span.set_attribute("error.type", type(got.exception).__name__)
        request.span.set_status(StatusCode.ERROR, repr(got.exception))
        request.span.end()

    config = aiohttp.TraceConfig()
    config.on_request_start.append(begin)
    config.on_request_end.append(end)
    config.on_request_exception.append(fail)
    return config


def tree(spans: Sequence[ReadableSpan], parent: int | None, depth: int = 1) -> Iterator[str]:
    """Yield a line for each span, those below it indented."""
    for span in sorted(spans, key=lambda span: span.start_time or 0):
        if (span.parent and span.parent.span_id) == parent:
            assert span.context and span.start_time and span.end_time
            failed = span.status.status_code is StatusCode.ERROR
            status = f"ERROR {(span.attributes or {}).get('error.type')}" if failed else ""
            milliseconds = (span.end_time - span.start_time) / 1e6
            name = "  " * depth + span.name
            yield f"{name:<46}{milliseconds:8.1f} ms  {status}".rstrip()
            yield from tree(spans, span.context.span_id, depth + 1)


async def serve(service: Service, upstream: Upstream, tracer: Tracer) -> None:
    """Answer the three requests, each below a span as an HTTP server would make it."""
    token = sign(service.secret, 101)
    for request, status, stalls in (
        (Request(35, token), 200, False),
        (Request(1, token[:-1] + "_"), 401, False),
        (Request(3, token), 503, True),
    ):
        upstream.stall = stalls
        with tracer.start_as_current_span("GET /orders", kind=SpanKind.SERVER) as span:
            reply = await handle(service, request)
            span.set_attribute("http.response.status_code", reply.status)
        check(reply.status == status, f"request {request.number}: not {status} but {reply}")


def counted(reader: InMemoryMetricReader) -> Iterator[str]:
    """Yield a line for each of the counters' values."""
    data = reader.get_metrics_data()
    assert data is not None
    for metric in data.resource_metrics[0].scope_metrics[0].metrics:
        for point in metric.data.data_points:
            if metric.name in ("sdax.task.retries", "sdax.task.failures"):
                of = point.attributes or {}
                place = f"{of['sdax.task.name']!s}.{of['sdax.phase']!s} {of['error.type']!s}"
                yield f"  {metric.name:<21}{place:<72}{getattr(point, 'value', '')}"


async def main(database: Path, page: Path) -> None:
    """Start the services, answer the requests, and show what was observed."""
    exporter = InMemorySpanExporter()
    tracer_provider = TracerProvider()
    tracer_provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = tracer_provider.get_tracer("observed")
    reader = InMemoryMetricReader()
    timeline = Timeline()
    telemetry = OpenTelemetryObserver(
        name="orders",
        tracer_provider=tracer_provider,
        meter_provider=MeterProvider(metric_readers=[reader]),
    )
    upstream = Upstream()
    async with (
        listening(upstream.application()) as upstream_url,
        Pool(database, 2) as pool,
        aiohttp.ClientSession(trace_configs=[client_spans(tracer)]) as http,
    ):
        observers = (timeline, telemetry)
        service = Service(secrets.token_bytes(), pool, http, upstream_url, observers)
        await serve(service, upstream, tracer)

    spans = exporter.get_finished_spans()
    lines = list(tree(spans, None))
    check(len(lines) == len(spans), "a span has a parent that was not exported")
    print("Spans of the three requests")
    print(*lines, sep="\n")
    print("\nCounters")
    print(*counted(reader), sep="\n")
    print("\nThe first request: a service is busy, then drops the connection, then answers")
    print(timeline.runs[0])
    print()
    path = timeline.runs[0].critical_path()
    print(path)
    check("Discount" in [step.name for step in path.steps], "nobody waited for the retries")
    timeline.to_html(page, title="Three requests")
    print(f"\nThe page of all three: {page}")


if __name__ == "__main__":
    page = Path(sys.argv[1]) if len(sys.argv) > 1 else PAGE
    with TemporaryDirectory(prefix="sdax-observed-") as folder:
        create_database(Path(folder) / "orders.sqlite", read_orders(ORDERS_CSV))
        asyncio.run(main(Path(folder) / "orders.sqlite", page))
