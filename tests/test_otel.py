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
from opentelemetry.semconv.schemas import Schemas
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
    __version__,
    task_group_func,
    task_thread_func,
)
from sdax.observe import AttemptFinished, AttemptStarted, Event
from sdax.observe.otel import OpenTelemetryObserver

pytestmark = pytest.mark.loop_kinds("asyncio", "eager")


class Telemetry:
    """An observer, with the SDK behind it, and what came out."""

    def __init__(self, **options: Any) -> None:
        self.exporter = InMemorySpanExporter()
        self.tracer_provider = TracerProvider()
        self.tracer_provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = self.tracer_provider.get_tracer("tests")
        self.reader = InMemoryMetricReader()
        self.observer = OpenTelemetryObserver(
            tracer_provider=self.tracer_provider,
            meter_provider=MeterProvider(metric_readers=[self.reader]),
            **options,
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


async def test_a_span_for_the_run_and_each_function(telemetry: Telemetry) -> None:
    processor = build([task("A", passes_once, passes_once)], [task(("B", 2), nothing)])
    assert await telemetry.run(processor) is None
    assert telemetry.paths() == [
        "sdax.run > A.pre_execute",
        "sdax.run > ('B', 2).pre_execute",
        "sdax.run > A.execute",
        "sdax.run",
    ]
    assert {span.status.status_code for span in telemetry.spans} == {StatusCode.UNSET}
    assert {span.context.trace_id for span in telemetry.spans} == {
        telemetry.one("sdax.run").context.trace_id
    }
    assert facts(telemetry.one("sdax.run")) == {
        "sdax.task.count": 2,
        "sdax.state": "succeeded",
    }
    described = {"sdax.task.name": "A", "sdax.phase": "execute", "sdax.task.level": 1}
    assert facts(telemetry.one("A.execute")) == described | {
        "sdax.state": "succeeded",
        "sdax.attempt.count": 1,
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

    flaky_span = telemetry.one("Flaky.pre_execute")
    assert flaky_span.status.status_code is StatusCode.UNSET
    assert facts(flaky_span)["sdax.attempt.count"] == 2
    assert events(flaky_span) == ["sdax.retry"]
    seen = dict(flaky_span.events[0].attributes or {})
    assert 2.0 <= seen.pop("sdax.retry.delay") <= 4.0
    assert "in flaky" in seen.pop("exception.stacktrace")
    assert seen == {
        "sdax.attempt.number": 1,
        "error.type": "ConnectionError",
        "exception.type": "ConnectionError",
        "exception.message": "busy",
    }
    retry = telemetry.one("Flaky.pre_execute retry")
    assert telemetry.path(retry) == ["sdax.run", "Flaky.pre_execute", "Flaky.pre_execute retry"]
    assert facts(retry)["sdax.attempt.number"] == 2
    assert retry.status.status_code is StatusCode.UNSET

    slow = telemetry.one("Slow.execute")
    assert facts(slow)["sdax.state"] == "timed out"
    assert facts(slow)["error.type"] == "TimeoutError"
    assert slow.status.status_code is StatusCode.ERROR
    assert slow.status.description == "TimeoutError: timed out after 3 s"
    assert events(slow) == ["sdax.timeout", "exception"]
    assert slow.events[0].attributes == {"sdax.timeout": 3}

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
    assert facts(run)["error.type"] == "TimeoutError"
    assert run.events[1].attributes["exception.type"] == "sdax.errors.SdaxExecutionError"
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
    assert telemetry.count("sdax.run.active") == {(): 0}
    assert telemetry.count("sdax.task.retries") == {("pre_execute", "A", "ConnectionError"): 1}
    assert telemetry.count("sdax.task.failures") == {("execute", "A", "failed", "ValueError"): 3}
    (runs,) = telemetry.points("sdax.run.duration")
    assert runs.count == 3
    assert runs.attributes == {"sdax.state": "failed", "error.type": "ValueError"}
    assert {
        (point.attributes["sdax.phase"], point.attributes["sdax.state"]): point.count
        for point in telemetry.points("sdax.task.duration")
    } == {("pre_execute", "succeeded"): 3, ("execute", "failed"): 3}


@pytest.mark.virtual_clock
async def test_runs_in_flight_are_counted_while_they_are(telemetry: Telemetry) -> None:
    seen: list[float] = []

    async def look(ctx: Any) -> None:
        await asyncio.sleep(ctx)
        seen.extend(telemetry.count("sdax.run.active").values())

    processor = solo(look)
    await asyncio.gather(*(telemetry.run(processor, number) for number in (1, 2, 3)))
    assert seen == [3, 2, 1]
    assert telemetry.count("sdax.run.active") == {(): 0}


async def test_the_parent_is_what_is_current_in_the_caller(telemetry: Telemetry) -> None:
    processor = solo(passes_once)

    async def request(number: int) -> None:
        with telemetry.tracer.start_as_current_span(f"request {number}") as span:
            await telemetry.run(processor)
            assert trace.get_current_span() is span

    await asyncio.gather(*(request(number) for number in range(20)))
    paths = Counter(telemetry.paths())
    for number in range(20):
        assert paths[f"request {number} > sdax.run > A.pre_execute"] == 1


async def test_spans_made_inside_a_function_nest_under_it(telemetry: Telemetry) -> None:
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
    paths = Counter(path.removeprefix("sdax.run > ") for path in telemetry.paths())
    retry = "A.pre_execute > A.pre_execute retry"
    assert {path: number for path, number in paths.items() if " > " in path} == {
        "A.pre_execute > before": 1,
        "A.pre_execute > after": 1,
        "A.pre_execute > after > inner": 1,
        retry: 1,
        f"{retry} > before": 1,
        f"{retry} > after": 1,
        f"{retry} > after > inner": 1,
        "T.pre_execute > thread": 1,
        "G.pre_execute > child": 1,
    }


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
    assert len(telemetry.named("B.pre_execute")) == 1


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
    assert telemetry.count("sdax.run.active") == {(): 0}


@pytest.mark.loop_kinds("asyncio")
async def test_an_exception_that_cannot_be_shown(telemetry: Telemetry) -> None:
    class BrokenError(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

        __repr__ = __str__

    await telemetry.run(solo(Trace().failing("", BrokenError(), 1)))
    assert [span.name for span in telemetry.spans] == ["A.pre_execute", "sdax.run"]
    span = telemetry.one("A.pre_execute")
    assert span.status.status_code is StatusCode.ERROR
    assert "BrokenError object at 0x" in span.events[0].attributes["exception.message"]


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
    assert telemetry.count("sdax.run.active") == {(): 0}


async def test_phase_by_phase(telemetry: Telemetry) -> None:
    processor = solo(passes_once, passes_once, passes_once)
    async with processor.open(None, observer=telemetry.observer) as run:
        while await run.run_next():
            pass
    assert [len(telemetry.path(span)) for span in telemetry.spans] == [2, 2, 2, 1]
    assert telemetry.count("sdax.run.active") == {(): 0}


async def test_a_retry_that_fails_has_the_exception(telemetry: Telemetry) -> None:
    always = TaskFunction(Trace().failing("", ConnectionError("no")), retries=2, initial_delay=0)
    await telemetry.run(solo(always))
    function = telemetry.one("A.pre_execute")
    assert events(function) == ["sdax.retry", "sdax.retry"]
    told = ["exception.stacktrace" in (event.attributes or {}) for event in function.events]
    assert told == [True, False]  # the second is with the retry's span
    assert facts(function)["error.type"] == "ConnectionError"
    assert function.status.status_code is StatusCode.ERROR
    first, second = telemetry.named("A.pre_execute retry")
    assert [facts(span)["sdax.attempt.number"] for span in (first, second)] == [2, 3]
    for span in (first, second):
        assert events(span) == ["exception"]
        assert span.status.description == "ConnectionError: no"


# Which workflow.


def run_both(first: Telemetry, second: Telemetry) -> Any:
    processor = solo(passes_once, TaskFunction(Trace().failing("", ConnectionError()), retries=1))
    return asyncio.gather(first.run(processor), second.run(processor))


@pytest.mark.virtual_clock
async def test_a_name_and_attributes_say_which_workflow() -> None:
    checkout = Telemetry(name="checkout", attributes={"team": "shop", "tags": ["a", "b"]})
    await run_both(checkout, Telemetry())
    assert {span.name for span in checkout.spans} == {
        *("sdax.run checkout", "A.pre_execute", "A.execute", "A.execute retry"),
    }
    given = {"sdax.workflow.name": "checkout", "team": "shop", "tags": ("a", "b")}
    for span in checkout.spans:
        assert given.items() <= facts(span).items()
    for metric in (
        *("sdax.run.duration", "sdax.run.active", "sdax.task.duration"),
        *("sdax.task.retries", "sdax.task.failures"),
    ):
        points = checkout.points(metric)
        assert points
        for point in points:
            assert point.attributes["sdax.workflow.name"] == "checkout"
            assert point.attributes["team"] == "shop"
    assert [point.value for point in checkout.points("sdax.run.active")] == [0]


async def test_attributes_are_those_that_were_given_at_first() -> None:
    attributes: dict[str, Any] = {"team": "shop"}
    telemetry = Telemetry(attributes=attributes)
    attributes["team"] = "other"
    await telemetry.run(solo(nothing))
    assert facts(telemetry.one("sdax.run"))["team"] == "shop"


async def test_the_schema_is_one_that_exists(telemetry: Telemetry) -> None:
    await telemetry.run(solo(nothing))
    schemas = {str(schema.value) for schema in Schemas}
    data = telemetry.reader.get_metrics_data()
    (metrics,) = (scope for each in data.resource_metrics for scope in each.scope_metrics)
    for scope in (telemetry.one("sdax.run").instrumentation_scope, metrics.scope):
        assert (scope.name, scope.version) == ("sdax", __version__)
        assert scope.schema_url in schemas


# Not more than a backend can take.


async def test_a_run_has_only_so_many_spans() -> None:
    telemetry = Telemetry(max_spans=4)

    async def work(ctx: Any) -> None:
        with telemetry.tracer.start_as_current_span(f"inside {ctx.pop()}"):
            await passes(1)
        if not ctx:
            raise ValueError("the last one fails")

    await telemetry.run(build(*([task(number, work)] for number in range(5))), [4, 3, 2, 1, 0])
    paths = telemetry.paths()
    assert [path for path in paths if "inside" not in path] == [
        *("sdax.run > 0.pre_execute", "sdax.run > 1.pre_execute", "sdax.run > 2.pre_execute"),
        "sdax.run",
    ]
    assert [path for path in paths if "inside" in path] == [
        *(f"sdax.run > {number}.pre_execute > inside {number}" for number in range(3)),
        *("sdax.run > inside 3", "sdax.run > inside 4"),
    ]
    run = telemetry.one("sdax.run")
    assert facts(run)["sdax.spans.left_out"] == 2
    assert run.status.status_code is StatusCode.ERROR
    assert facts(run)["error.type"] == "ValueError"
    assert not trace.get_current_span().is_recording()
    assert sum(point.count for point in telemetry.points("sdax.task.duration")) == 5


@pytest.mark.virtual_clock
async def test_a_function_without_a_span_leaves_no_events_on_that_of_its_run() -> None:
    telemetry = Telemetry(max_spans=1)
    await telemetry.run(solo(TaskFunction(forever, timeout=1, retries=1)))
    assert [span.name for span in telemetry.spans] == ["sdax.run"]
    assert events(telemetry.one("sdax.run")) == ["sdax.cancellation", "exception"]
    assert facts(telemetry.one("sdax.run"))["sdax.spans.left_out"] == 2
    assert len(telemetry.count("sdax.task.retries")) == 1


async def test_a_function_has_the_exception_of_a_retry_that_has_no_span() -> None:
    telemetry = Telemetry(max_spans=2)
    always = TaskFunction(Trace().failing("", ConnectionError("no")), retries=1, initial_delay=0)
    await telemetry.run(solo(always))
    assert events(telemetry.one("A.pre_execute")) == ["sdax.retry", "exception"]
    assert facts(telemetry.one("sdax.run"))["sdax.spans.left_out"] == 1


@pytest.mark.loop_kinds("asyncio")
@pytest.mark.parametrize(("options", "spans"), [({}, 1_000), ({"max_spans": None}, 3_001)])
async def test_how_many_spans_a_large_run_has(options: dict[str, Any], spans: int) -> None:
    telemetry = Telemetry(**options)
    tasks = [task(number, nothing, nothing, nothing) for number in range(1_000)]
    await telemetry.run(build(tasks))
    assert len(telemetry.spans) == spans
    left_out = facts(telemetry.one("sdax.run")).get("sdax.spans.left_out", 0)
    assert spans + left_out == 3_001


@pytest.mark.parametrize(
    ("most", "names"),
    [(2, {"0": 1, "1": 1, "_OTHER": 3}), (None, dict.fromkeys("01234", 1)), (0, {None: 5})],
)
async def test_metrics_have_only_so_many_names_of_tasks(most: int | None, names: Any) -> None:
    telemetry = Telemetry(max_task_names=most)
    for _ in range(2):
        await telemetry.run(build(*([task(number, nothing)] for number in range(5))))
    assert {
        point.attributes.get("sdax.task.name"): point.count // 2
        for point in telemetry.points("sdax.task.duration")
    } == names


async def test_what_is_long_is_cut(telemetry: Telemetry) -> None:
    class LongError(Exception): ...

    async def deep(depth: int) -> None:
        if depth:
            return await deep(depth - 1)
        raise LongError("y" * 1_000_000) from KeyError("z" * 1_000_000)

    builder = AsyncDagTaskProcessor.builder()
    for number in range(50):
        builder.add_task(task(number, nothing))
    name = "x" * 1_000_000
    builder.add_task(task(name, nothing), depends_on=tuple(range(50)))
    builder.add_task(task("Deep", execute=lambda ctx: deep(50)), depends_on=(name,))
    await error_of(builder.build().process_tasks(None, observer=telemetry.observer))
    for span in telemetry.spans:
        assert len(span.name) < 300
        assert len(span.status.description or "") < 2_000
        for attributes in (span.attributes, *(event.attributes for event in span.events)):
            for key, value in (attributes or {}).items():
                assert len(str(value)) < (11_000 if key == "exception.stacktrace" else 2_000), key
    (span,) = (each for each in telemetry.spans if each.name.startswith("xxx"))
    assert span.name == "x" * 199 + "….pre_execute"
    assert facts(span)["sdax.task.depends_on"] == tuple(str(number) for number in range(20))
    assert facts(span)["sdax.task.dependency_count"] == 50
    (event,) = telemetry.one("Deep.execute").events
    stacktrace = event.attributes["exception.stacktrace"]
    assert stacktrace.startswith("KeyError: 'zzz")
    assert stacktrace.endswith("yyy\ntask 'Deep', execute, attempt 1 of 1\n")


async def test_a_thousand_failures_are_told_of_in_short(telemetry: Telemetry) -> None:
    answers = [ValueError(number) for number in range(1_000)]

    async def fail(ctx: Any) -> None:
        raise answers[ctx.pop()]

    ctx = list(range(1_000))
    error = await telemetry.run(build([task(number, post=fail) for number in range(1_000)]), ctx)
    assert isinstance(error, SdaxExecutionError)
    assert len(error.failures) == 1_000
    run = telemetry.one("sdax.run")
    assert facts(run)["error.type"] == "ValueError"
    assert (run.status.description or "").startswith("ValueError: 1000 failures, the first: ")
    (event,) = run.events
    assert len(event.attributes["exception.stacktrace"]) < 11_000
    assert "ValueError: 999\n" in event.attributes["exception.stacktrace"]
    assert "ValueError: 990\n" in event.attributes["exception.stacktrace"]
    assert "ValueError: 989\n" not in event.attributes["exception.stacktrace"]


# Where instrumentation is suppressed.


@pytest.mark.parametrize(
    "key",
    ["suppress_instrumentation", vars(context)["_SUPPRESS_INSTRUMENTATION_KEY"]],
    ids=["by its name", "by the key of the API"],
)
async def test_a_run_whose_instrumentation_is_suppressed(telemetry: Telemetry, key: str) -> None:
    retried = TaskFunction(Trace().failing("", ConnectionError()), retries=1, initial_delay=0)
    token = context.attach(context.set_value(key, True))
    await telemetry.run(solo(passes_once, retried, passes_once))
    context.detach(token)
    assert telemetry.spans == ()
    assert telemetry.reader.get_metrics_data() is None
    await telemetry.run(solo(passes_once))
    assert len(telemetry.spans) == 2


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
    assert telemetry.count("sdax.run.active") == {(): 0}
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
    assert set(by_trace.values()) == {4}
    assert len(by_trace) == 100
    assert telemetry.count("sdax.run.active") == {(): 0}
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
    assert sorted(by_name) == ["A.execute", "A.pre_execute", "sdax.run"]
    failed = by_name["A.execute"]
    assert failed.parent_span_id == by_name["sdax.run"].span_id
    assert failed.status.message == "ValueError: no"
    assert [event.name for event in failed.events] == ["exception"]
    attributes = {each.key: each.value for each in failed.attributes}
    assert attributes["error.type"].string_value == "ValueError"
    assert attributes["sdax.attempt.count"].int_value == 1
    assert sorted(collector.metrics) == [
        "sdax.run.active",
        "sdax.run.duration",
        "sdax.task.duration",
        "sdax.task.failures",
    ]
    duration = collector.metrics["sdax.run.duration"]
    assert duration.unit == "s"
    assert duration.histogram.data_points[0].count == 1
    assert 1.0 in duration.histogram.data_points[0].explicit_bounds
    assert not collector.metrics["sdax.run.active"].sum.is_monotonic


# Who may make one.


@pytest.mark.parametrize(
    ("argument", "kind", "says"),
    [
        ({"tracer_provider": "x"}, TypeError, "must be a TracerProvider or None, got 'x'"),
        ({"meter_provider": "x"}, TypeError, "must be a MeterProvider or None, got 'x'"),
        ({"name": 7}, TypeError, "name must be a str or None, got 7"),
        ({"name": ""}, ValueError, "name must not be empty; leave it out for none"),
        ({"attributes": "x"}, TypeError, "attributes must be a mapping or None, got 'x'"),
        ({"attributes": {7: "x"}}, TypeError, "attributes must have names of type str, got 7"),
        ({"attributes": {"a": None}}, TypeError, "attributes['a'] must be a str, bool, int or"),
        ({"attributes": {"a": [{}]}}, TypeError, "attributes['a'] must be a str, bool, int or"),
        ({"max_spans": 0}, ValueError, "max_spans must be at least 1, got 0"),
        ({"max_spans": True}, TypeError, "max_spans must be an integer or None, got True"),
        ({"max_task_names": -1}, ValueError, "max_task_names must be at least 0, got -1"),
        ({"max_task_names": 1.5}, TypeError, "max_task_names must be an integer or None, got 1.5"),
    ],
)
def test_refused(argument: dict[str, Any], kind: type[Exception], says: str) -> None:
    with pytest.raises(kind) as caught:
        OpenTelemetryObserver(**argument)
    assert says in str(caught.value)


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
    assert "pip install 'opentelemetry-api>=1.31'" in done.stdout
