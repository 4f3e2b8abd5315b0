"""What shows of limits over all attempts: in outlines, timelines, spans and on terminals."""

from __future__ import annotations

import asyncio
import io
import json
from pathlib import Path
from typing import Any

import pytest

from attempts import Flaky
from helpers import build, one_loop, task
from sdax import RetryBudget, RunReport, TaskFunction
from sdax.clients import retry_after
from sdax.observe import Timeline

pytestmark = [one_loop, pytest.mark.usefixtures("factors")]


def cached(ctx: Any, error: Exception) -> str:
    return "cached"


def processor() -> Any:
    budget = RetryBudget(0, 0)
    offers = Flaky(ConnectionError("down"))
    function = TaskFunction(offers, retries=2, retry_budget=budget, fallback=cached)
    return build([task("Offers", None, function)])


def test_an_outline_shows_them() -> None:
    function = TaskFunction(
        Flaky(),
        timeout=1,
        retries=2,
        retry_after=retry_after,
        total_timeout=2.5,
        limiter=asyncio.Lock(),
        retry_budget=RetryBudget(),
        fallback=cached,
    )
    text = "timeout 1 s, 2 retries, retry after, 2.5 s in all, limiter, retry budget, fallback"
    shown = build([task("A", function)])
    assert str(shown).splitlines()[-1] == f"  A  pre_execute ({text})"
    assert "retry after, 2#46;5 s in all, limiter, retry budget, fallback" in shown.to_mermaid()


async def run_with(*observers: Any) -> RunReport[Any]:
    report: RunReport[Any] = await processor().process_tasks(None, observer=observers)
    return report


REASON = "no further attempt: its retry budget is spent"


async def test_a_timeline_shows_them(tmp_path: Path) -> None:
    timeline = Timeline()
    await run_with(timeline)
    (run,) = timeline.runs
    (span,) = run.functions
    assert span.fell_back
    assert span.tries == 1
    first, fallback = span.attempts
    assert (first.suppressed, first.covers) == ("its retry budget is spent", None)
    assert (fallback.suppressed, fallback.covers) == (None, "ConnectionError('down')")
    text = timeline.to_text(width=200)
    assert f"Offers.execute, attempt 1: failed: ConnectionError('down'); {REASON}" in text
    assert "Offers.execute falls back, to cover ConnectionError('down')" in text
    assert "↷ fallback" in text or "f fallback" in text
    assert "execute Offers, fallback :" in run.to_mermaid()
    trace = json.dumps(timeline.to_chrome_trace())
    assert '"name": "fallback"' in trace
    assert '"suppressed": "its retry budget is spent"' in trace
    assert '"attempts": 1' in trace
    timeline.to_html(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "falls back" in page
    assert "pause of" not in page
    assert "(fallback)" in str(run.critical_path())


async def test_spans_and_counters_show_them() -> None:
    pytest.importorskip("opentelemetry.sdk")
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from sdax.observe.otel import OpenTelemetryObserver

    exporter, reader = InMemorySpanExporter(), InMemoryMetricReader()
    traces, meters = TracerProvider(), MeterProvider([reader])
    traces.add_span_processor(SimpleSpanProcessor(exporter))
    await run_with(OpenTelemetryObserver(tracer_provider=traces, meter_provider=meters))
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert set(spans) == {"sdax.run", "Offers.execute", "Offers.execute fallback"}
    function = spans["Offers.execute"]
    assert [event.name for event in function.events] == ["sdax.retry.suppressed", "sdax.fallback"]
    suppressed, fallback = (dict(event.attributes or {}) for event in function.events)
    assert suppressed["sdax.retry.reason"] == "its retry budget is spent"
    assert fallback["error.type"] == "ConnectionError"
    assert function.status.is_unset
    data: Any = reader.get_metrics_data()
    metrics = data.resource_metrics[0].scope_metrics[0].metrics
    (counter,) = (each for each in metrics if each.name == "sdax.task.fallbacks")
    (point,) = counter.data.data_points
    assert point.value == 1
    assert point.attributes["sdax.task.name"] == "Offers"
    meters.shutdown()


async def test_progress_shows_them() -> None:
    rich = pytest.importorskip("rich.console")
    from sdax.observe.progress import ProgressDisplay

    written = io.StringIO()
    console = rich.Console(file=written, width=200)
    await run_with(ProgressDisplay(console=console))
    text = written.getvalue()
    assert f"Offers.execute failed: ConnectionError('down'); {REASON}" in text
    assert "Offers.execute falls back, to cover ConnectionError('down')" in text
    assert "1 fallback" in text
