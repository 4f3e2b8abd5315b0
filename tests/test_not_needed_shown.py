"""What shows a run or a processor, of tasks that are not required, keep going and `Finish`."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from rich.console import Console

from helpers import Trace, build, graph, nothing, one_loop, task
from sdax import Finish
from sdax.commands.processor_page import processor_page
from sdax.observe import EventLogger, Timeline
from sdax.observe.otel import OpenTelemetryObserver
from sdax.observe.progress import ProgressDisplay

pytestmark = one_loop

DOWN = ConnectionError("down")


def spared() -> Any:
    return build(
        [
            task("A", Trace().failing("", DOWN, 1), nothing, required=False),
            task("B", Trace().pausing("", 3), Trace().pausing("", 1)),
        ]
    )


def kept_going() -> Any:
    return graph(
        task("A", Trace().failing("", DOWN, 1), nothing),
        (task("A1", nothing), ["A"]),
        task("B", Trace().pausing("", 3), Trace().pausing("", 1)),
        (task("B1", Trace().pausing("", 1), Trace().pausing("", 2)), ["B"]),
        on_failure="keep going",
    )


def finished() -> Any:
    return build(
        [
            task("A", nothing, Trace().waiting("")),
            task("B", nothing, Trace().pausing("", 2, Finish(7))),
        ]
    )


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.getLogger("sdax").setLevel(logging.ERROR)
    yield
    logging.getLogger("sdax").setLevel(logging.NOTSET)


async def timeline_of(processor: Any) -> Timeline:
    timeline = Timeline()
    try:
        await processor.process_tasks(None, observer=timeline)
    except ExceptionGroup:
        assert processor.on_failure == "keep going"
    return timeline


async def test_a_timeline_of_a_task_that_is_not_required(tmp_path: Path) -> None:
    timeline = await timeline_of(spared())
    (run,) = timeline.runs
    assert run.state == "succeeded"
    drawn = " ".join(str(run).split())
    assert "A.pre_execute, which is not required, failed: ConnectionError('down')" in drawn
    assert "execute of A skipped, because A.pre_execute failed" in drawn
    assert "pre_execute A (failed, not required)" in run.to_mermaid().replace("#44;", ",")
    (traced,) = [
        event["args"]
        for event in timeline.to_chrome_trace()["traceEvents"]
        if event.get("args", {}).get("exception") and event["cat"] == "task"
    ]
    assert traced["required"] is False
    timeline.to_html(tmp_path / "timeline.html")
    page = (tmp_path / "timeline.html").read_text(encoding="utf-8")
    assert "A.pre_execute, which is not required, failed" in page


async def test_a_timeline_of_a_run_that_keeps_going() -> None:
    (run,) = (await timeline_of(kept_going())).runs
    assert run.state == "failed" and run.keeps_going
    drawn = " ".join(str(run).split())
    assert "pre_execute of A1 skipped, because A.pre_execute failed" in drawn


async def test_a_timeline_of_a_run_that_was_finished() -> None:
    (run,) = (await timeline_of(finished())).runs
    assert run.state == "succeeded"
    drawn = " ".join(str(run).split())
    assert "execute cancelled, because B.execute finished the run" in drawn
    assert "A.execute cancelled, because B.execute finished the run" in drawn
    assert "B.execute finished the run" in run.to_mermaid().replace("#46;", ".")


def test_outlines() -> None:
    levels = build([task("A", nothing, required=False), task("B", nothing)])
    assert str(levels).splitlines() == [
        "1 level, 2 tasks",
        "level 1",
        "  A  pre_execute, not required",
        "  B  pre_execute",
    ]
    assert str(kept_going()).splitlines()[0] == (
        "4 tasks, 2 dependencies, execute all at once, keeps going after a failure"
    )
    assert str(build(on_failure="keep going", max_concurrency=2)) == (
        "0 levels, 0 tasks, keeps going after a failure, at most 2 at a time"
    )


def test_flowcharts() -> None:
    assert "<br>pre_execute, execute, not required" in spared().to_mermaid()
    assert "title: execute all at once, keeps going after a failure" in kept_going().to_mermaid()
    assert "keeps going" not in spared().to_mermaid()


def test_pages() -> None:
    assert processor_page(spared(), "shop").count("not required") >= 1
    assert "keeps going after a failure" in processor_page(kept_going(), "shop")


async def test_the_event_logger(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "sdax"):
        await spared().process_tasks(None, observer=EventLogger())
        await finished().process_tasks(None, observer=EventLogger())
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "cause='B'.execute (finished the run)" in caplog.text


async def test_progress() -> None:
    shown = io.StringIO()
    display = ProgressDisplay(console=Console(file=shown, force_terminal=False, width=200))
    await spared().process_tasks(None, observer=display)
    await finished().process_tasks(None, observer=display)
    with pytest.raises(ExceptionGroup):
        await kept_going().process_tasks(None, observer=display)
    assert "A.pre_execute, not required, failed after" in shown.getvalue()
    assert "succeeded, finished by B, after" in shown.getvalue()
    assert "skipped: A1.pre_execute" in shown.getvalue()


async def test_opentelemetry() -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    observer = OpenTelemetryObserver(tracer_provider=provider)
    await spared().process_tasks(None, observer=observer)
    await finished().process_tasks(None, observer=observer)
    spans = exporter.get_finished_spans()
    failed = next(span for span in spans if span.name == "A.pre_execute")
    assert failed.attributes["sdax.task.required"] is False  # type: ignore[index]
    assert not failed.status.is_ok
    first, second = [span for span in spans if span.name == "sdax.run"]
    assert first.status.is_unset and second.status.is_unset
    assert "sdax.finished_by" not in first.attributes  # type: ignore[operator]
    assert second.attributes["sdax.finished_by"] == "B"  # type: ignore[index]
    cancelled = next(
        span
        for span in spans
        if span.name == "A.execute" and "sdax.cause.task" in span.attributes  # type: ignore[operator]
    )
    assert cancelled.attributes["sdax.cause.task"] == "B"  # type: ignore[index]
