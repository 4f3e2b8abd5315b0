"""What a timeline records, and the charts, traces and pages that it makes of it."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import html
import json
import re
import threading
import weakref
from base64 import b64encode
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from helpers import Trace, build, error_of, forever, nothing, one_loop, passes, solo, task, until
from sdax import AsyncTaskProcessor, SdaxExecutionError, State, TaskFunction, task_sync_func
from sdax.common.text import cells
from sdax.observe import Timeline
from sdax.observe.critical_path import divided
from sdax.observe.gantt import can_show_unicode
from sdax.observe.times import seconds

pytestmark = one_loop

NASTY = [
    "<script>alert('x')</script>",
    'a"b',
    "section A",
    "title: x; y",
    "顧客",
    "\ud800",
    ("a", 1),
]


async def fails(ctx: Any) -> None:
    await asyncio.sleep(0.01)
    raise ValueError("no such <user> & co")


class Flaky:
    """Fails once, times out once, and returns."""

    def __init__(self) -> None:
        self.calls = 0

    async def __call__(self, ctx: Any) -> None:
        self.calls += 1
        if self.calls == 1:
            raise ConnectionError("reset")
        if self.calls == 2:
            await forever()


def eventful() -> Any:
    """A run with a success, a retry, a timeout, a failure, a cancellation, and what is skipped."""
    flaky = TaskFunction(Flaky(), timeout=0.01, retries=2, initial_delay=0.001)
    return (
        AsyncTaskProcessor.builder()
        .add_task(task("Steady", nothing, forever, nothing), 1)
        .add_task(task("Flaky", flaky), 1)
        .add_task(task("Failing", None, fails), 2)
        .build()
    )


async def record(processor: Any, timeline: Timeline) -> None:
    error = await error_of(processor.process_tasks(None, observer=timeline))
    assert error is None or isinstance(error, SdaxExecutionError)


async def test_what_is_recorded(engine: Any) -> None:
    timeline = Timeline()
    await record(eventful(), timeline)
    (run,) = timeline.runs
    assert (run.number, run.state, run.is_over) == (1, State.FAILED, True)
    states = {(span.task.name, span.phase): span.state for span in run.functions}
    assert states == {
        ("Steady", "pre_execute"): State.SUCCEEDED,
        ("Flaky", "pre_execute"): State.SUCCEEDED,
        ("Steady", "execute"): State.CANCELLED,
        ("Failing", "execute"): State.FAILED,
        ("Steady", "post_execute"): State.SUCCEEDED,
    }
    flaky, _ = run.by_task["Flaky"][0], run.by_task["Steady"]
    assert [attempt.state for attempt in flaky.attempts] == [
        State.FAILED,
        State.TIMED_OUT,
        State.SUCCEEDED,
    ]
    assert [attempt.timeout for attempt in flaky.attempts] == [None, 0.01, None]
    assert flaky.attempts[0].exception == "ConnectionError('reset')"
    (cancelled,) = (span for span in run.functions if span.state is State.CANCELLED)
    assert cancelled.cause is not None and cancelled.cause.task.name == "Failing"
    assert [phase.phase for phase in run.phases] == ["pre_execute", "execute", "post_execute"]
    for span in run.functions:
        assert span.end is not None and run.end is not None
        assert run.start <= span.start <= span.end <= run.end
        for attempt in span.attempts:
            assert attempt.end is not None
            assert span.start <= attempt.start <= attempt.end <= span.end
            assert 0 <= attempt.busy <= attempt.end - attempt.start


async def test_a_timeline_keeps_neither_contexts_nor_exceptions(engine: Any) -> None:
    class Ctx:
        pass

    class Problem(Exception):
        pass

    async def raises(ctx: Any) -> None:
        raise Problem

    timeline, ctx = Timeline(), Ctx()
    processor = AsyncTaskProcessor.builder().add_task(task("A", raises), 1).build()
    error = await error_of(processor.process_tasks(ctx, observer=timeline))
    assert isinstance(error, SdaxExecutionError)
    left = weakref.ref(ctx), weakref.ref(error.exceptions[0])
    del ctx, error
    gc.collect()
    assert [each() for each in left] == [None, None]
    assert timeline.runs[0].exception is not None


async def test_only_the_latest_runs_are_kept(engine: Any) -> None:
    timeline = Timeline(max_runs=3)
    processor = AsyncTaskProcessor.builder(observer=timeline).add_task(task("A", nothing), 1)
    built = processor.build()
    for _ in range(5):
        await built.process_tasks(None)
    assert [run.number for run in timeline.runs] == [3, 4, 5]
    assert "3 runs: 3 succeeded (2 earlier runs not kept); " in timeline.to_text(200)


async def test_runs_are_counted_by_how_they_ended(engine: Any, tmp_path: Path) -> None:
    timeline = Timeline(max_runs=3)
    await record(solo(nothing), timeline)
    await record(solo(nothing), timeline)
    await record(solo(Trace().failing("", ValueError())), timeline)
    run = asyncio.create_task(solo(forever).process_tasks(None, observer=timeline))
    await passes(2)
    how = "3 runs: 1 succeeded, 1 failed, 1 under way (1 earlier run not kept)"
    found = every_format(timeline, tmp_path)
    assert how in timeline.to_text(200)
    assert how in found["page"]
    run.cancel()
    assert isinstance(await error_of(run), asyncio.CancelledError)


async def test_a_long_exception_is_cut(engine: Any) -> None:
    timeline = Timeline()
    await record(solo(Trace().failing("", ValueError("x" * 400 + "end"))), timeline)
    (function,) = timeline.runs[0].functions
    assert function.exception is not None
    assert function.exception.startswith("ValueError('xxx")
    assert len(function.exception) == 300 and function.exception.endswith("x…")


def test_a_timeline_in_short(engine: Any) -> None:
    timeline = Timeline()
    assert repr(timeline) == "<Timeline of 0 runs>"
    asyncio.run(record(solo(nothing), timeline))
    assert repr(timeline) == "<Timeline of 1 run>"


@pytest.mark.parametrize(
    ("wrong", "kind"), [(0, ValueError), (True, TypeError), ("many", TypeError)]
)
def test_a_bad_max_runs_is_refused(wrong: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind, match="max_runs must be"):
        Timeline(max_runs=wrong)


async def test_max_runs_may_be_any_number(engine: Any) -> None:
    timeline = Timeline(max_runs=10**30)
    await solo(nothing).process_tasks(None, observer=timeline)
    assert len(timeline.runs) == 1


def test_runs_of_several_threads_at_once(engine: Any) -> None:
    timeline = Timeline()

    async def many() -> None:
        await asyncio.gather(*(record(eventful(), timeline) for _ in range(10)))

    threads = [threading.Thread(target=asyncio.run, args=(many(),)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    runs = timeline.runs
    assert sorted(run.number for run in runs) == list(range(1, 31))
    assert set(Counter(run.thread for run in runs).values()) == {10}
    assert all(len(run.functions) == 5 and run.state is State.FAILED for run in runs)
    check_trace(timeline.to_chrome_trace())


# Of what is not the usual run, in every format


def every_format(timeline: Timeline, directory: Path) -> dict[str, str]:
    trace, page = check_trace(timeline.to_chrome_trace()), written(timeline, directory)
    assert Tags(page).open == []
    return {
        "text": timeline.to_text(100),
        "mermaid": timeline.to_mermaid(),
        "trace": json.dumps(trace, ensure_ascii=False),
        "page": html.unescape(page),
    }


async def test_a_run_that_is_under_way(engine: Any, tmp_path: Path) -> None:
    timeline = Timeline()
    found: dict[str, str] = {}

    async def looks(ctx: Any) -> None:
        await passes(2)
        found.update(every_format(timeline, tmp_path))
        raise ValueError("seen enough")

    pausing = TaskFunction(Trace().failing("", ConnectionError("reset")), retries=1)
    processor = build([task("Looks", looks), task("Waits", forever), task("Pauses", pausing)])
    await record(processor, timeline)
    assert "run 1: under way" in found["text"]
    retry = "Pauses.pre_execute, attempt 1: failed: ConnectionError('reset'); again in"
    assert retry in found["text"] and retry in found["page"]
    assert "pre_execute Waits (under way) :active" in found["mermaid"]
    assert '"state": "under way"' in found["trace"]
    assert "Waits.pre_execute is under way" in found["page"]
    assert "Pauses.pre_execute: in the pause before a retry" in found["page"]


async def test_a_run_that_is_left_early(engine: Any, tmp_path: Path) -> None:
    timeline = Timeline()
    async with solo(nothing, nothing, nothing).open(None, observer=timeline) as run:
        await run.run_next()
    found = every_format(timeline, tmp_path)
    for name in ("text", "page"):
        assert "execute of A skipped, because the caller ended the run early" in found[name]
    assert "execute A (skipped) :done, milestone" in found["mermaid"]
    assert "A.execute skipped, because the caller ended the run early" in found["trace"]


async def test_a_run_that_nobody_waits_for_any_more(engine: Any, tmp_path: Path) -> None:
    timeline, trace = Timeline(), Trace()
    processor = solo(trace.waiting("pre"), post=trace.pausing("post", 3))
    coroutine = processor.process_tasks(None, observer=timeline)
    coroutine.send(None)
    await until(lambda: trace)
    coroutine.close()
    (left,) = timeline.runs
    assert left.state is State.CANCELLED and not left.is_over
    await until(lambda: "post done" in trace)
    await until(lambda: timeline.runs[0].is_over)
    (run,) = timeline.runs
    # It has taken as long as its cleanup, of which nobody has heard.
    assert run.end is not None and run.end == run.phases[-1].end
    assert "run 1: cancelled" in every_format(timeline, tmp_path)["text"]


async def test_a_function_that_no_task_was_made_for(engine: Any, tmp_path: Path) -> None:
    def refuses(loop: Any, coroutine: Any, **options: Any) -> Any:
        raise RuntimeError("no more tasks")

    timeline = Timeline()
    loop = asyncio.get_running_loop()
    before = loop.get_task_factory()
    loop.set_task_factory(refuses)
    try:
        await record(solo(nothing), timeline)
    finally:
        loop.set_task_factory(before)
    (function,) = timeline.runs[0].functions
    assert (function.state, function.attempts) == (State.FAILED, ())
    for text in every_format(timeline, tmp_path).values():
        assert "failed" in text


async def test_very_many_of_everything(engine: Any, tmp_path: Path) -> None:
    timeline = Timeline(max_runs=2)
    error = ValueError()
    levels = [[task(number, nothing, post=Trace().failing("", error))] for number in range(60)]
    for _ in range(4):
        await record(build(*levels), timeline)
    found = every_format(timeline, tmp_path)
    assert "\n  (and 20 more)\n" in found["text"] + "\n"
    assert "2 earlier runs not kept" in found["page"]
    path = timeline.critical_path()
    for most, table in [(20, str(path)), (100, found["page"])]:
        shown, left = divided(path, most)
        assert 0 < len(shown) <= most and len(shown) + len(left) == 120
        assert min(step.hold for step in shown) >= max(step.hold for step in left)
        assert f"{len(left)} shorter steps in total" in table


# Text


async def test_a_chart_in_text(engine: Any) -> None:
    timeline = Timeline()
    await record(eventful(), timeline)
    text = timeline.to_text(100, ascii=False)
    assert all(mark in text for mark in "▒█✗◷⊘")
    assert "execute cancelled, because Failing.execute failed" in text
    assert "Flaky.pre_execute, attempt 1: failed: ConnectionError('reset'); again in" in text
    assert "Flaky.pre_execute, attempt 2: timed out after 10.0 ms" in text
    lines = text.splitlines()
    assert [line for line in lines if line.startswith("level")] == ["level 1", "level 2"]
    assert timeline.to_text(100, ascii=True).isascii()


@pytest.mark.parametrize(
    ("time", "text"),
    [
        (0.0, "0 s"),
        (1234.0, "1,234 s"),
        (100.4, "100 s"),
        (99.94, "99.9 s"),
        (9.996, "10.0 s"),
        (9.994, "9.99 s"),
        (0.0123, "12.3 ms"),
        (1e-9, "0.00 µs"),
    ],
)
def test_a_time_in_text(time: float, text: str) -> None:
    assert seconds(time) == text


@pytest.mark.parametrize(("encoding", "can"), [("utf-8", True), ("ascii", False), ("odd", False)])
def test_whether_standard_output_can_show_the_marks(
    encoding: str, can: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout", SimpleNamespace(encoding=encoding))
    assert can_show_unicode() is can


@pytest.mark.parametrize("width", [0, 41, 60, 79, 100, 200])
async def test_a_chart_in_text_is_as_wide_as_it_may_be(engine: Any, width: int) -> None:
    async def fails_at_length(ctx: Any) -> None:
        raise ValueError("顧客" * 30, "no such thing " * 3, "x" * 90)

    def failing(*names: str) -> Any:
        return build([task(name, fails_at_length) for name in names])

    texts: list[str] = []
    both = Timeline()
    for processor in (eventful(), failing("A", "a name " * 9), failing("顧客" * 20)):
        timeline = Timeline()
        await record(processor, timeline)
        await record(processor, both)
        texts.append(timeline.to_text(width, ascii=False))
    texts.append(both.to_text(width, ascii=False))
    widest = max(cells(line) for text in texts for line in text.splitlines())
    assert max(width, 41) - 3 <= widest <= max(width, 41)
    assert all("✗ failed" in text for text in texts)
    assert "x" * 90 in "".join(texts[2].split())


def recorded_wait(duration: float) -> Timeline:
    """Record a run of so many seconds, on a clock of its own."""
    now = [0.0]

    def passing(ctx: Any) -> None:
        now[0] = duration

    timeline = Timeline(clock=lambda: now[0])
    asyncio.run(record(build([task("A", task_sync_func(passing))]), timeline))
    return timeline


@pytest.mark.parametrize("duration", [3e-6, 123e-6, 0.2, 0.31, 1.0, 9.99, 5000.0])
@pytest.mark.parametrize("width", [41, 60, 80, 100, 200])
def test_an_axis_has_several_marks_which_do_not_touch(
    width: int, duration: float, engine: Any
) -> None:
    axis = recorded_wait(duration).to_text(width, ascii=False).splitlines()[1]
    marks = re.findall(r"\|(?:0|[\d.]+ [mµ]?s)(?=  |$)|[\d.]+ [mµ]?s\|$", axis)
    assert len(marks) >= (2 if width < 80 else 3)
    assert cells(axis) <= width


@pytest.mark.parametrize("duration", [3e-6, 0.2, 0.31, 1.0, 9.99])
def test_every_line_of_a_page_has_its_time(duration: float, engine: Any, tmp_path: Path) -> None:
    page = written(recorded_wait(duration), tmp_path)
    tags = Tags(page)
    (lines,) = re.findall('<div class="lines">(<b .*)</div>', page)
    assert tags.classes["tick"] == lines.count("<b ")
    assert ('last tick" style="right:0.000%"' in page) == (duration not in (0.31, 9.99))


async def test_names_of_every_kind_stay_on_their_lines(engine: Any, tmp_path: Path) -> None:
    builder = AsyncTaskProcessor[Any, Any].builder()
    for name in NASTY:
        builder.add_task(task(name, nothing), 1)
    timeline = Timeline()
    await record(builder.build(), timeline)
    rows = timeline.to_text(100, ascii=False).splitlines()
    assert len(rows) == 1 + 1 + 1 + len(NASTY) + 1
    page = written(timeline, tmp_path)
    assert "<script>alert" not in page
    tags = Tags(page)
    assert tags.count["script"] == 1
    assert NASTY[0] in tags.text
    json.dumps(check_trace(timeline.to_chrome_trace()))


def test_a_timeline_of_nothing(tmp_path: Path) -> None:
    timeline = Timeline()
    assert str(timeline) == "no runs"
    assert timeline.to_chrome_trace()["traceEvents"] == []
    assert timeline.to_mermaid().startswith("gantt\n")
    assert "No run was recorded" in written(timeline, tmp_path)


# Chrome's trace event format

FIELDS = {
    "M": {"ph", "name", "pid", "tid", "args"},
    "X": {"ph", "name", "cat", "ts", "dur", "pid", "tid", "args"},
    "i": {"ph", "name", "cat", "ts", "pid", "tid", "s"},
}


def check_trace(trace: dict[str, Any]) -> dict[str, Any]:
    """Check a trace against the format, and that slices of a thread nest."""
    assert trace == json.loads(json.dumps(trace))
    assert set(trace) == {"traceEvents", "displayTimeUnit"}
    open_slices: dict[tuple[int, int], list[float]] = {}
    for event in trace["traceEvents"]:
        assert set(event) - {"cname"} == FIELDS[event["ph"]]
        assert isinstance(event["pid"], int) and isinstance(event["tid"], int)
        assert isinstance(event["name"], str) and event["name"]
        if event["ph"] == "i":
            assert event["s"] in ("t", "p")
        if event["ph"] == "X":
            assert event["ts"] >= 0 and event["dur"] >= 0
            start, end = round(event["ts"] * 1000), round((event["ts"] + event["dur"]) * 1000)
            ends = open_slices.setdefault((event["pid"], event["tid"]), [])
            while ends and ends[-1] <= start:
                ends.pop()
            assert not ends or end <= ends[-1], event
            ends.append(end)
    return trace


async def test_a_trace(engine: Any) -> None:
    timeline = Timeline()
    await record(eventful(), timeline)
    events = check_trace(timeline.to_chrome_trace())["traceEvents"]
    names = {e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert names == {"phases", "Steady", "Flaky", "Failing"}
    orders = [e for e in events if e["name"] == "thread_sort_index"]
    assert len(orders) == 4
    assert all(e["args"]["sort_index"] == e["tid"] for e in orders)
    (run,) = (e for e in events if e.get("cat") == "run")
    assert run["dur"] == pytest.approx(timeline.runs[-1].duration * 1e6, abs=0.01)
    attempts = [e for e in events if e["ph"] == "X" and e["cat"] == "attempt"]
    assert len(attempts) == 7
    (failed,) = (e for e in events if e.get("cat") == "task" and e.get("cname") == "terrible")
    assert failed["args"]["exception"] == "ValueError('no such <user> & co')"
    (cancelled,) = (e for e in events if e.get("cat") == "cancellation")
    assert cancelled["name"] == "execute cancelled, because Failing.execute failed"


# The page


class Tags(HTMLParser):
    """The tags of a page, which must be closed in order, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.count: Counter[str] = Counter()
        self.classes: Counter[str] = Counter()
        self.text = ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.count[tag] += 1
        self.classes.update((dict(attrs).get("class") or "").split())
        assert not {"src", "srcset"} & {name for name, _ in attrs}
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def written(timeline: Timeline, directory: Path) -> str:
    timeline.to_html(directory / "page.html")
    return (directory / "page.html").read_text(encoding="utf-8")


def test_the_policy_of_a_page_allows_its_own_script_alone(tmp_path: Path) -> None:
    page = written(Timeline(), tmp_path)
    (script,) = re.findall("<script>(.*)</script>", page, re.DOTALL)
    digest = b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = re.findall('"Content-Security-Policy" content="(.*)"', page)
    assert policy.split("; ") == [
        "default-src 'none'",
        f"script-src 'sha256-{digest}'",
        "style-src 'unsafe-inline'",
        "base-uri 'none'",
        "form-action 'none'",
    ]
    assert page.index("Content-Security-Policy") < page.index("<title>")


async def test_a_page(engine: Any, tmp_path: Path) -> None:
    timeline = Timeline()
    await record(eventful(), timeline)
    page = written(timeline, tmp_path)
    assert "http:" not in page and "https:" not in page
    tags = Tags(page)
    assert "execute cancelled, because Failing.execute failed" in tags.text
    assert "ValueError('no such <user> & co')" in tags.text
    assert "Critical path" in tags.text
    assert "held the run" in tags.text
    assert all(tags.classes[name] for name in ("failed", "timed-out", "cancelled", "pause"))
    assert tags.classes["badge"] > 3


async def test_many_runs_in_every_format(engine: Any, tmp_path: Path) -> None:
    timeline = Timeline()
    processor = AsyncTaskProcessor.builder().add_task(task("A", nothing), 1).build()
    for _ in range(300):
        await record(processor, timeline)
    assert len(timeline.to_text(100).splitlines()) < 60
    assert timeline.to_mermaid().count("\n") < 250
    tags = Tags(written(timeline, tmp_path))
    assert tags.count["details"] == 300
    assert len({e["pid"] for e in check_trace(timeline.to_chrome_trace())["traceEvents"]}) == 300
