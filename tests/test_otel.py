"""Spans and metrics of runs, made and exported by the real OpenTelemetry SDK."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import gzip
import http.server
import logging
import subprocess
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from opentelemetry import context, trace
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from helpers import (
    Trace,
    build,
    counts_references,
    error_of,
    forever,
    nothing,
    passes,
    solo,
    task,
    until,
    without_collector,
)
from sdax import (
    AsyncDagTaskProcessor,
    AsyncTask,
    SdaxExecutionError,
    TaskFunction,
    task_group_func,
    task_thread_func,
)
from sdax.observe import AttemptFinished, AttemptStarted, Event
from sdax.observe.otel import OpenTelemetryObserver


class Telemetry:
    """An observer, with the SDK behind it, and what came out."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.tracer_provider = TracerProvider()
        self.tracer_provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = self.tracer_provider.get_tracer("tests")
        self.reader = InMemoryMetricReader()
        self.observer = OpenTelemetryObserver(
            tracer_provider=self.tracer_provider,
            meter_provider=MeterProvider(metric_readers=[self.reader]),
        )

    @property
    def spans(self) -> Sequence[ReadableSpan]:
        return self.exporter.get_finished_spans()

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.spans if span.name == name]

    def one(self, name: str) -> ReadableSpan:
        (span,) = self.named(name)
        return span

    def paths(self) -> list[str]:
        """Each span, as the names from the root down to it, in the order in which they ended."""
        return [" > ".join(self.path(span)) for span in self.spans]

    def path(self, span: ReadableSpan) -> list[str]:
        by_id = {each.context.span_id: each for each in self.spans}
        if span.parent is None:
            return [span.name]
        return [*self.path(by_id[span.parent.span_id]), span.name]

    def points(self, name: str) -> list[Any]:
        data = self.reader.get_metrics_data()
        return [
            point
            for resource in ([] if data is None else data.resource_metrics)
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        ]

    def count(self, name: str) -> dict[tuple[Any, ...], float]:
        """The values of a counter, by its attributes."""
        return {tuple(point.attributes.values()): point.value for point in self.points(name)}

    async def run(self, processor: Any, ctx: Any = None) -> BaseException | None:
        return await error_of(processor.process_tasks(ctx, observer=self.observer))


@pytest.fixture
def telemetry(caplog: pytest.LogCaptureFixture) -> Iterator[Telemetry]:
    """What is logged, as by a span that is ended twice or a context that cannot be detached,
    fails the test."""
    yield Telemetry()
    logged = [record for record in caplog.get_records("call") if record.name != "asyncio"]
    assert [each.getMessage() for each in logged if each.levelno >= logging.WARNING] == []


def facts(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def events(span: ReadableSpan) -> list[str]:
    return [event.name for event in span.events]


async def test_a_span_for_the_run_each_function_and_each_attempt(telemetry: Telemetry) -> None:
    processor = build([task("A", passes_once, passes_once)], [task(("B", 2), nothing)])
    assert await telemetry.run(processor) is None
    assert telemetry.paths() == [
        "sdax.run > A.pre_execute > A.pre_execute attempt",
        "sdax.run > A.pre_execute",
        "sdax.run > ('B', 2).pre_execute > ('B', 2).pre_execute attempt",
        "sdax.run > ('B', 2).pre_execute",
        "sdax.run > A.execute > A.execute attempt",
        "sdax.run > A.execute",
        "sdax.run",
    ]
    assert {span.status.status_code for span in telemetry.spans} == {StatusCode.UNSET}
    assert {span.context.trace_id for span in telemetry.spans} == {
        telemetry.one("sdax.run").context.trace_id
    }
    assert facts(telemetry.one("sdax.run")) == {"sdax.tasks": 2, "sdax.state": "succeeded"}
    described = {"sdax.task.name": "A", "sdax.phase": "execute", "sdax.task.level": 1}
    assert facts(telemetry.one("A.execute")) == described | {
        "sdax.state": "succeeded",
        "sdax.attempts": 1,
    }
    assert facts(telemetry.one("A.execute attempt")) == described | {
        "sdax.state": "succeeded",
        "sdax.attempt": 1,
    }
    for span in telemetry.spans:
        if span.parent is not None:
            (parent,) = (e for e in telemetry.spans if e.context.span_id == span.parent.span_id)
            assert parent.start_time <= span.start_time <= span.end_time <= parent.end_time


async def passes_once(ctx: Any) -> None:
    await asyncio.sleep(0)


async def test_a_graph_says_what_depends_on_what(telemetry: Telemetry) -> None:
    builder = AsyncDagTaskProcessor.builder(observer=telemetry.observer)
    builder.add_task(task(7, nothing)).add_task(task("B", nothing), depends_on=(7,))
    await builder.build().process_tasks(None)
    assert facts(telemetry.one("7.pre_execute"))["sdax.task.depends_on"] == ()
    assert facts(telemetry.one("B.pre_execute"))["sdax.task.depends_on"] == ("7",)
    assert "sdax.task.level" not in facts(telemetry.one("B.pre_execute"))


@pytest.mark.virtual_clock
async def test_failures_retries_timeouts_and_cancellations(telemetry: Telemetry) -> None:
    answers: list[BaseException | None] = [ConnectionError("busy"), None]

    async def flaky(ctx: Any) -> None:
        if error := answers.pop(0):
            raise error

    processor = build(
        [task("Flaky", TaskFunction(flaky, retries=1, initial_delay=4.0))],
        [
            task("Slow", execute=TaskFunction(forever, timeout=3)),
            task("Other", execute=forever, post=nothing),
        ],
    )
    error = await telemetry.run(processor)
    assert isinstance(error, SdaxExecutionError)

    first, second = telemetry.named("Flaky.pre_execute attempt")
    assert facts(first)["error.type"] == "ConnectionError"
    assert first.status.status_code is StatusCode.ERROR
    assert first.status.description == "ConnectionError('busy')"
    assert events(first) == ["exception"]
    assert first.events[0].attributes["exception.type"] == "ConnectionError"
    assert first.events[0].attributes["exception.message"] == "busy"
    assert "in flaky" in first.events[0].attributes["exception.stacktrace"]
    assert facts(second)["sdax.attempt"] == 2
    assert second.status.status_code is StatusCode.UNSET

    flaky_span = telemetry.one("Flaky.pre_execute")
    assert flaky_span.status.status_code is StatusCode.UNSET
    assert facts(flaky_span)["sdax.attempts"] == 2
    assert events(flaky_span) == ["sdax.retry"]
    assert 2.0 <= flaky_span.events[0].attributes["sdax.retry.delay"] <= 4.0

    slow, slow_attempt = telemetry.one("Slow.execute"), telemetry.one("Slow.execute attempt")
    for span in (slow, slow_attempt):
        assert facts(span)["sdax.state"] == "timed out"
        assert facts(span)["error.type"] == "TimeoutError"
        assert span.status.status_code is StatusCode.ERROR
    assert events(slow_attempt) == ["sdax.timeout", "exception"]
    assert slow_attempt.events[0].attributes["sdax.timeout"] == 3

    other = telemetry.one("Other.execute")
    assert other.status.status_code is StatusCode.UNSET
    assert facts(other)["sdax.state"] == "cancelled"
    assert facts(other)["sdax.cause.task"] == "Slow"
    assert facts(other)["sdax.cause.phase"] == "execute"
    assert "error.type" not in facts(other)

    run = telemetry.one("sdax.run")
    assert events(run) == ["sdax.cancellation", "exception"]
    assert run.events[0].attributes == {
        "sdax.phase": "execute",
        "sdax.cause.task": "Slow",
        "sdax.cause.phase": "execute",
    }
    assert facts(run)["error.type"] == "sdax.errors.SdaxExecutionError"
    assert run.status.status_code is StatusCode.ERROR
    assert telemetry.one("Other.post_execute").status.status_code is StatusCode.UNSET


async def test_the_metrics(telemetry: Telemetry) -> None:
    answers: list[BaseException | None] = [ConnectionError(), None, None, None]

    async def flaky(ctx: Any) -> None:
        if error := answers.pop(0):
            raise error

    retried = TaskFunction(flaky, retries=1, initial_delay=0)
    processor = build([task("A", retried, Trace().failing("", ValueError("no")))])
    for _ in range(3):
        await telemetry.run(processor)
    assert telemetry.count("sdax.active_runs") == {(): 0}
    assert telemetry.count("sdax.task.retries") == {("A", "pre_execute", "ConnectionError"): 1}
    assert telemetry.count("sdax.task.failures") == {("A", "execute", "failed", "ValueError"): 3}
    (runs,) = telemetry.points("sdax.run.duration")
    assert runs.count == 3
    assert runs.attributes == {
        "sdax.state": "failed",
        "error.type": "sdax.errors.SdaxExecutionError",
    }
    assert {
        (point.attributes["sdax.phase"], point.attributes["sdax.state"]): point.count
        for point in telemetry.points("sdax.task.duration")
    } == {("pre_execute", "succeeded"): 3, ("execute", "failed"): 3}


@pytest.mark.virtual_clock
async def test_runs_in_flight_are_counted_while_they_are(telemetry: Telemetry) -> None:
    seen: list[float] = []

    async def look(ctx: Any) -> None:
        await asyncio.sleep(ctx)
        seen.extend(telemetry.count("sdax.active_runs").values())

    processor = solo(look)
    await asyncio.gather(*(telemetry.run(processor, number) for number in (1, 2, 3)))
    assert seen == [3, 2, 1]
    assert telemetry.count("sdax.active_runs") == {(): 0}


async def test_the_parent_is_what_is_current_in_the_caller(telemetry: Telemetry) -> None:
    processor = solo(passes_once)

    async def request(number: int) -> None:
        with telemetry.tracer.start_as_current_span(f"request {number}") as span:
            await telemetry.run(processor)
            assert trace.get_current_span() is span

    await asyncio.gather(*(request(number) for number in range(20)))
    paths = Counter(telemetry.paths())
    for number in range(20):
        assert paths[f"request {number} > sdax.run > A.pre_execute > A.pre_execute attempt"] == 1


async def test_spans_made_inside_a_function_nest_under_its_attempt(telemetry: Telemetry) -> None:
    @contextmanager
    def query(name: str) -> Iterator[None]:
        with telemetry.tracer.start_as_current_span(name):
            yield

    async def plain(ctx: Any) -> None:
        with query("before"):
            await passes(2)
        with query("after"), query("inner"):
            await passes(1)
        if not ctx:
            ctx.append("failed")
            raise ConnectionError

    def in_thread(ctx: Any) -> None:
        with query("thread"):
            pass

    async def child() -> None:
        with query("child"):
            await passes(1)

    async def in_group(ctx: Any, group: Any) -> None:
        group.create_task(child())

    processor = build(
        [
            task("A", TaskFunction(plain, retries=1, initial_delay=0)),
            AsyncTask("T", task_thread_func(in_thread)),
            AsyncTask("G", task_group_func(in_group)),
        ]
    )
    assert await telemetry.run(processor, []) is None
    attempts = {span.context.span_id: span for span in telemetry.spans if "attempt" in span.name}
    inside = [
        (span.name, attempts[span.parent.span_id])
        for span in telemetry.spans
        if span.parent is not None and span.parent.span_id in attempts
    ]
    seen = Counter((name, each.name, facts(each)["sdax.attempt"]) for name, each in inside)
    assert seen == {
        ("before", "A.pre_execute attempt", 1): 1,
        ("after", "A.pre_execute attempt", 1): 1,
        ("before", "A.pre_execute attempt", 2): 1,
        ("after", "A.pre_execute attempt", 2): 1,
        ("thread", "T.pre_execute attempt", 1): 1,
        ("child", "G.pre_execute attempt", 1): 1,
    }
    assert len(telemetry.named("inner")) == 2


async def test_no_span_stays_current_after_an_attempt(telemetry: Telemetry) -> None:
    current: list[tuple[type, bool]] = []

    def look(event: Event) -> None:
        if isinstance(event, (AttemptStarted, AttemptFinished)):
            current.append((type(event), trace.get_current_span().is_recording()))

    answers = [ConnectionError(), None]

    async def flaky(ctx: Any) -> None:
        await passes(1)
        if error := answers.pop(0):
            raise error

    processor = solo(TaskFunction(flaky, retries=1, initial_delay=0))
    await processor.process_tasks(None, observer=(telemetry.observer, look))
    assert current == [(AttemptStarted, True), (AttemptFinished, False)] * 2
    assert not trace.get_current_span().is_recording()


async def test_a_function_that_leaves_a_span_of_its_own_current(telemetry: Telemetry) -> None:
    async def careless(ctx: Any) -> None:
        left = telemetry.tracer.start_span("left")
        context.attach(trace.set_span_in_context(left))
        await passes(1)
        assert trace.get_current_span() is left

    async def in_a_context_of_its_own(ctx: Any) -> None:
        await asyncio.create_task(passes(1), context=contextvars.Context())

    await telemetry.run(build([task("A", careless), task("B", in_a_context_of_its_own)]))
    assert telemetry.one("sdax.run").status.status_code is StatusCode.UNSET
    assert len(telemetry.named("B.pre_execute attempt")) == 1


async def test_a_cancelled_caller(telemetry: Telemetry) -> None:
    processor = solo(forever, post=nothing)
    run = asyncio.create_task(processor.process_tasks(None, observer=telemetry.observer))
    await passes(2)
    run.cancel()
    await asyncio.wait([run])
    span = telemetry.one("sdax.run")
    assert facts(span)["sdax.state"] == "cancelled"
    assert events(span) == ["sdax.cancellation"]
    assert span.status.status_code is StatusCode.UNSET
    assert facts(telemetry.one("A.pre_execute"))["sdax.state"] == "cancelled"
    assert telemetry.count("sdax.active_runs") == {(): 0}


@pytest.mark.loop_kinds("asyncio")
async def test_every_span_ends_whatever_an_exception_does(
    telemetry: Telemetry, caplog: pytest.LogCaptureFixture
) -> None:
    class BrokenError(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

        __repr__ = __str__

    await telemetry.run(solo(Trace().failing("", BrokenError(), 1)))
    assert [span.name for span in telemetry.spans] == [
        "A.pre_execute attempt",
        "A.pre_execute",
        "sdax.run",
    ]
    assert telemetry.one("A.pre_execute").status.status_code is StatusCode.ERROR
    (event,) = telemetry.one("A.pre_execute attempt").events
    assert "BrokenError object" in str((event.attributes or {})["exception.message"])
    assert caplog.records == []


async def test_what_a_broken_task_factory_gets(telemetry: Telemetry) -> None:
    loop = asyncio.get_running_loop()

    def factory(loop: Any, coroutine: Any, **options: Any) -> Any:
        coroutine.close()
        raise MemoryError("no more tasks")

    before = loop.get_task_factory()
    loop.set_task_factory(factory)
    try:
        await telemetry.run(solo(passes_once))
    finally:
        loop.set_task_factory(before)
    span = telemetry.one("A.pre_execute")
    assert facts(span)["error.type"] == "MemoryError"
    assert events(span) == ["exception"]
    assert telemetry.count("sdax.active_runs") == {(): 0}


async def test_phase_by_phase(telemetry: Telemetry) -> None:
    processor = solo(passes_once, passes_once, passes_once)
    async with processor.open(None, observer=telemetry.observer) as run:
        while await run.run_next():
            pass
    assert [len(telemetry.path(span)) for span in telemetry.spans] == [3, 2, 3, 2, 3, 2, 1]
    assert telemetry.count("sdax.active_runs") == {(): 0}


# Nothing is left.


class Ctx:
    """A context that can be referred to weakly."""


@counts_references
async def test_nothing_is_kept_of_a_run(telemetry: Telemetry) -> None:
    async def run() -> weakref.ref[Ctx]:
        ctx = Ctx()
        await telemetry.run(solo(passes_once), ctx)
        return weakref.ref(ctx)

    with without_collector():
        reference = await run()
        await asyncio.sleep(0)
        assert reference() is None


@counts_references
async def test_a_run_that_nobody_waits_for_any_more(telemetry: Telemetry) -> None:
    cleaned = Trace()

    async def abandon() -> weakref.ref[Ctx]:
        ctx = Ctx()
        processor = solo(passes_once, forever, cleaned.pausing("post", 3))
        coroutine = processor.process_tasks(ctx, observer=telemetry.observer)
        coroutine.send(None)
        await passes(3)
        coroutine.close()
        return weakref.ref(ctx)

    reference = await abandon()
    assert facts(telemetry.one("sdax.run"))["sdax.state"] == "cancelled"
    assert telemetry.count("sdax.active_runs") == {(): 0}
    await until(lambda: "post done" in cleaned)
    await passes(3)
    assert facts(telemetry.one("A.post_execute"))["sdax.state"] == "succeeded"
    gc.collect()
    assert reference() is None


def test_many_runs_in_many_threads(engine: Any, telemetry: Telemetry) -> None:
    processor = solo(passes_once, Trace().pausing("", 3), passes_once)

    async def many() -> None:
        await asyncio.gather(*(telemetry.run(processor, Ctx()) for _ in range(25)))

    threads = [threading.Thread(target=lambda: asyncio.run(many())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    by_trace = Counter(span.context.trace_id for span in telemetry.spans)
    assert set(by_trace.values()) == {7}
    assert len(by_trace) == 100
    assert telemetry.count("sdax.active_runs") == {(): 0}
    gc.collect()
    assert not [each for each in gc.get_objects() if type(each) is Ctx]


# Over the network.


class Collector:
    """What a real exporter sends over HTTP, decoded."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.metrics: dict[str, Any] = {}

    def take(self, path: str, body: bytes) -> None:
        if path == "/v1/traces":
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                for scope in resource.scope_spans:
                    assert scope.scope.name == "sdax"
                    self.spans += scope.spans
        else:
            assert path == "/v1/metrics"
            for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics:
                for scope in resource.scope_metrics:
                    self.metrics |= {metric.name: metric for metric in scope.metrics}


@contextmanager
def collecting() -> Iterator[tuple[Collector, str]]:
    """Receive OTLP over HTTP, at the URL."""
    collector = Collector()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            collector.take(self.path, body)
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield collector, f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_exported_to_a_collector(engine: Any) -> None:
    with collecting() as (collector, url):
        tracer_provider = TracerProvider()
        exporter = OTLPSpanExporter(f"{url}/v1/traces")
        tracer_provider.add_span_processor(BatchSpanProcessor(exporter))
        meter_provider = MeterProvider(
            [PeriodicExportingMetricReader(OTLPMetricExporter(f"{url}/v1/metrics"))]
        )
        observer = OpenTelemetryObserver(
            tracer_provider=tracer_provider, meter_provider=meter_provider
        )
        processor = solo(passes_once, Trace().failing("", ValueError("no"), 1))
        with pytest.raises(SdaxExecutionError):
            asyncio.run(processor.process_tasks(None, observer=observer))
        tracer_provider.shutdown()
        meter_provider.shutdown()

    by_name = {span.name: span for span in collector.spans}
    assert sorted(by_name) == sorted(
        ["A.execute", "A.execute attempt", "A.pre_execute", "A.pre_execute attempt", "sdax.run"]
    )
    attempt = by_name["A.execute attempt"]
    assert attempt.parent_span_id == by_name["A.execute"].span_id
    assert by_name["A.execute"].parent_span_id == by_name["sdax.run"].span_id
    assert attempt.status.message == "ValueError('no')"
    assert [event.name for event in attempt.events] == ["exception"]
    attributes = {each.key: each.value for each in attempt.attributes}
    assert attributes["error.type"].string_value == "ValueError"
    assert attributes["sdax.attempt"].int_value == 1
    assert sorted(collector.metrics) == [
        "sdax.active_runs",
        "sdax.run.duration",
        "sdax.task.duration",
        "sdax.task.failures",
    ]
    duration = collector.metrics["sdax.run.duration"]
    assert duration.unit == "s"
    assert duration.histogram.data_points[0].count == 1
    assert 1.0 in duration.histogram.data_points[0].explicit_bounds
    assert not collector.metrics["sdax.active_runs"].sum.is_monotonic


# Who may make one.


@pytest.mark.parametrize("name", ["tracer_provider", "meter_provider"])
def test_refused(name: str) -> None:
    with pytest.raises(TypeError) as caught:
        OpenTelemetryObserver(**{name: "here"})
    assert str(caught.value).startswith(f"{name} must be a ")
    assert str(caught.value).endswith("Provider or None, got 'here'")


async def test_without_providers_the_global_ones_are_used() -> None:
    # Which do nothing, unless somebody has set others.
    await solo(passes_once).process_tasks(None, observer=OpenTelemetryObserver())


def test_without_opentelemetry_the_error_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        "import sdax.observe\n"
        "try: import sdax.observe.otel\n"
        "except ImportError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert "pip install 'sdax[otel]'" in done.stdout
