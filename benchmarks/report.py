"""Turn the measurements in benchmarks/results/ into RESULTS.md, its pictures and README's table.

    python benchmarks/report.py

Reads what the suites write with `--benchmark-json` and what published.py adds, and service.json
if it is there.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from measurements import ENGINES, Measurement, Run, read_runs, unique
from sdax.bench.contestants import BASELINE

BENCHMARKS = Path(__file__).parent
RESULTS = BENCHMARKS / "results"
BEGIN, END = "<!-- speed:begin -->", "<!-- speed:end -->"

HEAD = """\
# Results

Written by `python benchmarks/report.py` out of the files in benchmarks/results/; each chapter
names the command that has measured it. `make results` runs all of them for one Python.

A **work** is so many levels of so many functions: 100 x 10 are 100 levels of 10. The functions
return at once, or `sleep(0)`, which suspends for one pass of the event loop, or wait for 1 ms.
What is over in a moment is done several times in a row and timed together, as `sdax/bench/work.py`
says, so that the start and the end of an event loop do not count. A number in a column of
contestants says **how many times as fast as one `asyncio.TaskGroup` per level** it is; 1 is as
fast, and less than 1 is slower. Each contestant is checked before its time counts: that it has
called every function once, and none before its turn.

- *gather* is `asyncio.gather`, *eager* a `TaskGroup` on a loop with asyncio's eager task factory
  (Python 3.12 and newer), *eager tasks* such tasks alone, with nobody to look after the rest when
  one fails, *one by one* plain sequential awaits without any structure, the floor.
- Where 500 run at once, `asyncio.gather` starts them for all alike.
- Where a suite was run several times, as is said there, a ratio is the median of theirs.
- Garbage is collected before a measurement and not in it. trio's times include `trio.run()`.
- Empty cells: the contestant cannot do the work, or was not measured.
"""

SHORT = """\
How many times as fast as one `asyncio.TaskGroup` per level each engine is, on asyncio's own loop,
by version of CPython; less than 1 is slower. Measured with `pytest benchmarks/`. A work is so many
levels of so many functions, which return at once, `sleep(0)`, or wait for 1 ms; in "500 at once",
where `asyncio.gather` starts the runs for all alike, its own tasks are part of the time.
"""


def markdown(rows: Iterable[Sequence[str]]) -> str:
    """Return a table; the first row is its head."""
    head, *body = rows
    rule = ["---", *["--:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, rule, *body))


def number(value: float | None) -> str:
    """Return a number with two or three digits that mean something."""
    if value is None:
        return ""
    if value >= 10:
        return f"{value:.0f}" if value >= 100 else f"{value:.1f}"
    return f"{value:.2f}"


def ratios(measurements: Sequence[Measurement]) -> str:
    """Return the table of works and contestants of one Python and one loop."""
    own = [each for each in measurements if each.contestant != BASELINE]
    names = unique(each.contestant for each in own)
    best = {(each.work, each.contestant): each for each in reversed(measurements)}
    rows = [["work", f"{BASELINE} ns", *names]]
    for work in unique(each.work for each in measurements):
        cells = [best.get((work, name)) for name in names]
        base = best[work, BASELINE]
        rows.append(
            [
                work,
                f"{base.nanoseconds:.0f}",
                *(number(each.ratio if each else None) for each in cells),
            ]
        )
    return markdown(rows)


def per_function(measurements: Sequence[Measurement], *, memory: bool) -> str:
    """Return a table of nanoseconds per function, and of the bytes that a run takes at most."""
    names = unique(each.contestant for each in measurements)
    best = {(each.work, each.contestant): each for each in reversed(measurements)}
    columns = [*(f"{name} ns" for name in names), *(f"{name} B" for name in names if memory)]
    rows = [["work", *columns]]
    for work in unique(each.work for each in measurements):
        cells = [best.get((work, name)) for name in names]
        times = ["" if each is None else f"{each.nanoseconds:.0f}" for each in cells]
        peaks = [
            ""
            if each is None or each.peak_bytes is None
            else f"{each.peak_bytes / each.functions:.0f}"
            for each in cells
        ]
        rows.append([work, *times, *(peaks if memory else [])])
    return markdown(rows)


def short_table(runs: Sequence[Run]) -> str:
    """Return the table that README shows: sdax alone, asyncio's own loop, every Python."""
    found = {
        (each.python, each.work, each.contestant): each.ratio
        for run in runs
        for each in run.measurements
        if (each.table, each.loop) == ("work", "asyncio") and each.contestant in ENGINES
    }
    pythons = unique(python for python, _, _ in found)
    rows = [["work", *(f"{python} {name[5:]}" for python in pythons for name in ENGINES)]]
    for work in unique(work for _, work, _ in found):
        cells = [found.get((python, work, name)) for python in pythons for name in ENGINES]
        rows.append([work, *map(number, cells)])
    return f"{SHORT}\n{markdown(rows)}"


def service_table(rows: Sequence[Any]) -> Iterator[str]:
    """Return the chapter of a real service."""
    columns = {
        "python": "Python",
        "variant": "endpoint",
        "requests_per_second": "requests/s",
        "p50_ms": "50 % ms",
        "p99_ms": "99 % ms",
        "p999_ms": "99.9 % ms",
    }
    yield "## A real service\n"
    yield from (f"`{command}`:\n" for command in unique(row["command"] for row in rows))
    shown = [
        [each if isinstance(each := row[key], str) else number(each) for key in columns]
        for row in rows
    ]
    yield markdown([list(columns.values()), *shown]) + "\n"


def many_tables(many: dict[str, Any]) -> Iterator[str]:
    """Return the chapter of many runs."""
    yield "## Many runs\n"
    if here := many.get("here"):
        yield (
            "`python benchmarks/many.py here`: 500 at a time, three phases in each task, on "
            "asyncio's own loop. Microseconds of processor time for each input, the best of "
            "several rounds, and the median of how many times as fast as by hand. That is a "
            "semaphore, a `TaskGroup` for each level and `asyncio.gather`.\n"
        )
        head = ["Python", "engine", "work", "contestant", "µs", "times as fast"]
        keys = ("python", "engine", "work", "contestant")
        rows = [
            [*(row[key] for key in keys), number(row["microseconds"]), number(row["ratio"])]
            for row in here
        ]
        yield markdown([head, *rows]) + "\n"
    if million := many.get("million"):
        yield (
            "`python benchmarks/many.py million`: a million inputs of 3-2-2, at once, after ten "
            "thousand.\n"
        )
        rows = [
            [f"{row['inputs']:,}", number(row["microseconds"]), number(row["megabytes"])]
            for row in (*million[:2], million[len(million) // 2], million[-1])
        ]
        yield markdown([["inputs", "µs each", "MB in memory"], *rows]) + "\n"
        yield "![Memory of a million inputs](many-memory.svg)\n"
    if clusters := many.get("clusters"):
        yield (
            "`python benchmarks/many.py clusters`: two local processes. Each input is 5 tasks, "
            "0.4 ms of processor time and 4 ms of waiting. Medians, and the median ratio to plain "
            "asyncio in the same round.\n"
        )
        rows = [
            [row["python"], row["contestant"], f"{row['per_second']:,.0f}", number(row["ratio"])]
            for row in clusters
        ]
        yield markdown([["Python", "contestant", "inputs/s", "ratio"], *rows]) + "\n"


def chapters(
    runs: Sequence[Run], service: Sequence[Any], many: dict[str, Any] | None = None
) -> Iterator[str]:
    """Return the chapters of RESULTS.md."""
    yield HEAD
    yield "## In short\n"
    yield f"{BEGIN}\n{short_table(runs)}\n{END}\n"
    yield "![How many times as fast as TaskGroup](ratio.svg)\n"
    for python in unique(run.python for run in runs):
        of_python = [run for run in runs if run.python == python]
        merged = [each for run in of_python for each in run.measurements]
        yield f"## CPython {python}\n"
        yield "\n".join(f"- {run.about}" for run in of_python) + "\n"
        for loop in unique(each.loop for each in merged):
            yield f"### Works, {loop}\n"
            yield ratios([each for each in merged if (each.table, each.loop) == ("work", loop)])
            yield ""
        yield "### Growth: time and peak memory per function\n"
        growth = [each for each in merged if each.table == "growth"]
        yield per_function(growth, memory=True) + "\n"
        yield "### Making a processor, or another library's graph, per task\n"
        build = [each for each in merged if each.table == "build"]
        yield per_function(build, memory=False) + "\n"
        if observed := [each for each in merged if each.table == "observed"]:
            yield "### Being observed, by observers that do nothing, per function\n"
            yield per_function(observed, memory=False) + "\n"
    yield "## Growth, drawn\n"
    yield "![Time and memory per function](growth.svg)\n"
    if service:
        yield from service_table(service)
    if many:
        yield from many_tables(many)


def between_markers(text: str) -> str:
    """Return the short table of README or RESULTS.md."""
    return text.partition(BEGIN)[2].partition(END)[0]


def results(directory: Path) -> str:
    """Return what RESULTS.md has to say of a directory of results."""
    path = directory / "service.json"
    service = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    path = directory / "many.json"
    many = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return "\n".join(chapters(read_runs(directory), service, many))


def main() -> None:
    """Write everything."""
    from pictures import draw, draw_many  # needs matplotlib

    text = results(RESULTS)
    (BENCHMARKS / "RESULTS.md").write_text(text, encoding="utf-8")
    readme = BENCHMARKS.parent / "README.md"
    before, _, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    readme.write_text(f"{before}{BEGIN}{between_markers(text)}{END}{after}", encoding="utf-8")
    draw(read_runs(RESULTS), BENCHMARKS)
    draw_many(RESULTS / "many.json", BENCHMARKS)


if __name__ == "__main__":
    main()
