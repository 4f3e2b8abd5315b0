"""What shows a run takes any exception and any value, whatever these refuse."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from rich.console import Console

from exceptions import ZOO, Frozen, Nameless
from helpers import Broken, Trace, build, failure_of, one_loop, solo, task
from sdax import (
    PhaseReport,
    RunReport,
    SdaxExecutionError,
    State,
    TaskFailure,
    TaskFunction,
    TaskReport,
    flatten_exceptions,
)
from sdax.common.text import class_name, module_name, one_line, shown
from sdax.observe import AttemptFinished, EventLogger, RetryScheduled, TaskFinished, Timeline
from sdax.observe.otel import OpenTelemetryObserver
from sdax.observe.progress import ProgressDisplay
from sdax.table import table_of

pytestmark = one_loop


@pytest.fixture(params=ZOO)
def difficult(request: pytest.FixtureRequest) -> Exception:
    return ZOO[request.param]()


class Replacing:
    """An observer that passes events on, with another exception and value in each that has one.

    So what is shown of a run is seen apart from what the engine does with its exceptions.
    """

    def __init__(self, observer: Any, exception: Exception) -> None:
        self.observer = observer
        self.exception = exception

    def __call__(self, event: Any) -> None:
        if isinstance(getattr(event, "exception", None), Broken):
            event = event._replace(exception=self.exception)
        if isinstance(event, (AttemptFinished, TaskFinished)):
            event = event._replace(value=self.exception)
        self.observer(event)


def failing() -> Any:
    """A processor with a retry, a failure and a cancellation."""
    limits = {"retries": 1, "initial_delay": 0, "retryable_exceptions": Broken}
    return build(
        [
            task("A", TaskFunction(Trace().failing("", Broken(), 1), **limits)),
            task("B", Trace().waiting("B")),
        ],
        [task("C", Trace().quick("C"))],
    )


async def observe(observer: Any, exception: Exception, caplog: Any) -> None:
    """Run it with the observer, which must hear of everything without failing."""
    error = await failure_of_observed(Replacing(observer, exception))
    assert type(error.exceptions[0]) is Broken
    # Not asyncio's: in debug mode it warns of what a busy machine takes long for.
    ours = [each for each in caplog.records if each.name == "sdax"]
    assert [each for each in ours if each.levelno >= logging.WARNING] == []


async def failure_of_observed(observer: Any) -> SdaxExecutionError:
    with pytest.raises(SdaxExecutionError) as caught:
        await failing().process_tasks(None, observer=observer)
    return caught.value


@pytest.mark.one_engine
async def test_the_log(difficult: Exception, caplog: Any) -> None:
    caplog.set_level(logging.DEBUG, "sdax")
    await observe(EventLogger(), difficult, caplog)
    lines = [record.getMessage() for record in caplog.records if record.name == "sdax"]
    assert len([line for line in lines if line.startswith("AttemptFinished")]) == 3
    assert all(line.isprintable() for line in lines)


@pytest.mark.one_engine
async def test_the_timeline(difficult: Exception, caplog: Any, tmp_path: Path) -> None:
    timeline = Timeline()
    await observe(timeline, difficult, caplog)
    assert "A.pre_execute failed, after 2 attempts" in timeline.to_text(200)
    assert "failed" in timeline.to_mermaid()
    timeline.to_html(tmp_path / "page.html")
    assert "A.pre_execute" in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "A.pre_execute" in json.dumps(timeline.to_chrome_trace())


@pytest.mark.one_engine
async def test_spans(difficult: Exception, caplog: Any) -> None:
    await check_spans(difficult, caplog)


@pytest.mark.one_engine
async def test_spans_of_an_exception_without_a_name(caplog: Any) -> None:
    await check_spans(Nameless(), caplog)


async def check_spans(difficult: Exception, caplog: Any) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    await observe(OpenTelemetryObserver(tracer_provider=provider), difficult, caplog)
    spans = exporter.get_finished_spans()
    failed = [span for span in spans if span.name in ("A.pre_execute", "A.pre_execute retry")]
    assert len(failed) == 2
    for span in failed:
        assert (span.attributes or {})["error.type"] == f"exceptions.{class_name(difficult)}"
    # What is retried is in the event of the retry.
    assert {event.name for span in failed for event in span.events} == {"exception", "sdax.retry"}


@pytest.mark.one_engine
@pytest.mark.parametrize("terminal", [True, False])
async def test_progress(difficult: Exception, terminal: bool, caplog: Any) -> None:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=200)
    await observe(ProgressDisplay(console=console), difficult, caplog)
    written = console.file.getvalue()  # type: ignore[attr-defined]
    assert "A.pre_execute failed after " in written
    assert len(written) < 10_000


def test_the_table_of_a_report(difficult: Exception) -> None:
    absent = PhaseReport(State.ABSENT)
    failed = TaskReport(absent, PhaseReport(State.FAILED, 1, None, difficult), absent)
    returned = TaskReport(PhaseReport(State.SUCCEEDED, 1, difficult), absent, absent)
    lines = table_of({"A": failed, "B": returned}).splitlines()
    assert len(lines) == 4
    assert class_name(difficult) in lines[2]
    assert all(len(line) < 150 and line.isprintable() for line in lines)
    assert repr(failed).startswith("TaskReport(pre_execute=PhaseReport(state=<State.ABSENT")


@pytest.mark.one_engine
async def test_an_error(difficult: Exception) -> None:
    failure = TaskFailure("A", "execute", 1, difficult)
    report: RunReport[Any] = await solo(Trace().quick("")).process_tasks(None)
    error = SdaxExecutionError.from_failures([failure, failure], report)
    assert repr(error) == (
        "SdaxExecutionError(\"2 failures, the first: execute of task 'A' failed\", "
        f"[{shown(difficult)}, {shown(difficult)}])"
    )
    message = "2 failures, the first: execute of task 'A' failed (2 sub-exceptions): "
    (leaf, *_) = flatten_exceptions(difficult)
    assert str(error).startswith(message + class_name(leaf)[:199])
    assert str(error).isprintable()
    assert len(str(error)) <= len(message) + 200
    assert repr(failure) == (
        f"TaskFailure(name='A', phase='execute', attempts=1, exception={shown(difficult)})"
    )
    matched, rest = error.split(ZOO_KINDS)
    assert rest is None
    assert matched is not None
    assert [each is difficult for each in matched.exceptions] == [True, True]
    assert error.leaf_exceptions()[1] is difficult
    derived: Any = error.derive([difficult])
    assert len(derived.failures) == 1


ZOO_KINDS = tuple(ZOO.values())


@pytest.mark.one_engine
async def test_events(difficult: Exception) -> None:
    seen: list[Any] = []
    await failure_of_observed(Replacing(seen.append, difficult))
    (scheduled,) = [event for event in seen if isinstance(event, RetryScheduled)]
    assert f"exception={shown(difficult)})" in repr(scheduled)


def test_a_name_may_be_difficult() -> None:
    for make in ZOO.values():
        name = make()
        assert one_line(name).isprintable()


def test_the_name_of_a_class_that_does_not_tell_it() -> None:
    assert class_name(Nameless()) == "Nameless"
    assert module_name(Nameless()) == "exceptions"
    assert class_name(Frozen()) == "Frozen"
    failed = PhaseReport(State.FAILED, 1, None, Nameless())
    assert table_of({"A": TaskReport(failed, failed, failed)}).endswith("  Nameless")


async def test_a_failure_that_refuses_notes_and_texts() -> None:
    for kind in ("no text", "no notes", "odd notes", "odd strings", "incomparable"):
        difficult = ZOO[kind]()
        error = await failure_of(solo(Trace().failing("A", difficult)))
        assert error.exceptions[0] is difficult
        assert str(error.report).startswith("1 task: 1 failed")
