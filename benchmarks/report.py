"""Write RESULTS.md, its pictures and README's table from the measurements in benchmarks/results/.

    python benchmarks/report.py

It reads the files that the suites write with `--benchmark-json` and that published.py adds, and
those of throughput.py, tail_latency.py, hedging.py and many.py as far as they exist.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

from measurements import ENGINES, OTHERS, Measurement, Run, read_runs, unique
from sdax.bench.contestants import BASELINE

BENCHMARKS = Path(__file__).parent
RESULTS = BENCHMARKS / "results"
BEGIN, END = "<!-- speed:begin -->", "<!-- speed:end -->"

HEAD = """\
# Results

`python benchmarks/report.py` writes this page from the files in benchmarks/results/. Each chapter
names the command that measured it. `make results` runs all of them for one Python.

Row names are levels x functions per level: 100 x 10 means 100 levels of 10 functions. The functions
return immediately unless the name says `sleep(0)`, which suspends for one pass of the event loop,
or 1 ms. Short runs are repeated and timed together, as `sdax/bench/work.py` says, so that the start
and the end of an event loop do not count. A number in a column of contestants is the **speed
compared with one `asyncio.TaskGroup` per level**: 2.0 means twice as fast, below 1 means slower.
Each contestant is checked before its time counts: it must call every function once, and none too
early.

- *gather* is `asyncio.gather`. *eager* is a `TaskGroup` on a loop with asyncio's eager task factory
  (Python 3.12 and newer). *eager tasks* are such tasks alone: if one fails, the others just run on.
  *one by one* calls the functions one after another, without any structure. It is the lower limit.
- Where 500 run at once, `asyncio.gather` starts them for all contestants.
- The contestants of a work take turns (`benchmarks/turns.py`), so that a slow phase of the machine
  meets all of them. A ratio is the median of the ratios of all turns. Where a suite ran several
  times, and the page says so, it is the median of its runs.
- *Spread* is how far a ratio may be from this median. Half of the turns of a run are nearer. With
  several runs, it covers all of them. Results from before contestants took turns have the ratio of
  the shortest times, and the spread of their runs.
- Garbage is collected between turns and not during one. trio's times include `trio.run()`.
- An empty cell means that the contestant cannot do this or was not measured.
"""

SHORT = """\
Speed compared with one `asyncio.TaskGroup` per level, on asyncio's own loop, by version of CPython:
2.0 means twice as fast, below 1 means slower. Measured with `pytest benchmarks/`. Row names are
levels x functions per level (3-2-2: three levels with 3, 2 and 2 functions). The functions return
immediately unless the name says `sleep(0)` or 1 ms.
"""

AT_ONCE = """\
In "500 at once", `asyncio.gather` starts the runs for all contestants, and its own tasks are part
of the time.
"""

README_WORKS = (
    "1 ms, 3-2-2",
    "sleep(0), 100 x 10",
    "3-2-2",
    "100 x 10",
    "1 x 1000, timeout",
    "1 of 1000 fails",
)


def markdown(rows: Iterable[Sequence[str]]) -> str:
    """Return a table. The first row is its head."""
    head, *body = rows
    rule = ["---", *["--:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, rule, *body))


def number(value: float | None) -> str:
    """Return a number with two or three significant digits."""
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


def spread(measurements: Sequence[Measurement]) -> str:
    """Return a sentence about the spread of these ratios, or nothing if it is not known."""
    own = [each for each in measurements if each.contestant != BASELINE]
    known = [(each.spread, each.work, each.contestant) for each in own if each.spread]
    if not known:
        return ""
    most, work, contestant = max(known)
    middle = median(value for value, _, _ in known)
    return (
        f"Spread: {middle:.1%} in the median of these ratios, and at most {most:.0%} "
        f"({contestant}, {work})."
    )


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
    """Return the table of RESULTS.md's first chapter: sdax alone, asyncio's own loop, all works."""
    found = _speeds(runs)
    return f"{SHORT}{AT_ONCE}\n{_speed_rows(found, unique(work for _, work, _ in found))}"


def readme_table(runs: Sequence[Run]) -> str:
    """Return the table of README: the same, of a few works."""
    return f"{SHORT}\n{_speed_rows(_speeds(runs), README_WORKS)}"


Speeds: TypeAlias = dict[tuple[str, str, str], float | None]


def _speeds(runs: Sequence[Run]) -> Speeds:
    return {
        (each.python, each.work, each.contestant): each.ratio
        for run in runs
        for each in run.measurements
        if (each.table, each.loop) == ("work", "asyncio") and each.contestant in ENGINES
    }


def _speed_rows(found: Speeds, works: Iterable[str]) -> str:
    pythons = unique(python for python, _, _ in found)
    rows = [["work", *(f"{python} {name[5:]}" for python in pythons for name in ENGINES)]]
    for work in works:
        cells = [found.get((python, work, name)) for python in pythons for name in ENGINES]
        rows.append([work, *map(number, cells)])
    return markdown(rows)


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


def tail_table(rows: Sequence[Any]) -> Iterator[str]:
    """Return the chapter of an upstream service that is slow now and then."""
    yield "## Slow answers\n"
    yield (
        "The same endpoint, which also asks an upstream service. That takes 20 ms to answer, and "
        "20 times as long for 2 % of the requests. `hedged` makes a second call after 60 ms.\n"
    )
    yield from (f"`{command}`:\n" for command in unique(row["command"] for row in rows))
    head = ["Python", "loop", "endpoint", "requests", "50 % ms", "99 % ms", "99.9 % ms", "calls"]
    shown = [
        [
            *(row["python"], row["loop"], row["variant"], f"{row['requests']:,}"),
            *(f"{row[key]:.0f}" for key in ("p50_ms", "p99_ms", "p999_ms")),
            f"{row['calls']:.3f}",
        ]
        for row in rows
    ]
    yield markdown([head, *shown]) + "\n"


def hedging_table(rows: Sequence[Any]) -> Iterator[str]:
    """Return the chapter of what `hedged` costs."""
    yield "## What hedged costs\n"
    yield (
        "`python benchmarks/hedging.py`: a function that waits for one pass of the loop, in an "
        "`asyncio.Task` and hedged, without a second call. Microseconds of processor time.\n"
    )
    head = ["Python", "loop", "asyncio.Task µs", "hedged µs", "ratio"]
    shown = [
        [
            *(row["python"], row["loop"], number(row["task_us"]), number(row["hedged_us"])),
            number(row["hedged_us"] / row["task_us"]),
        ]
        for row in rows
    ]
    yield markdown([head, *shown]) + "\n"


def many_tables(many: dict[str, Any]) -> Iterator[str]:
    """Return the chapter of many runs."""
    yield "## Many runs\n"
    if here := many.get("here"):
        yield (
            "`python benchmarks/many.py here`: 500 at a time, three phases in each task, on "
            "asyncio's own loop. Microseconds of processor time for each input, the best of "
            "several rounds, and the median of how many times as fast as by hand. That is a "
            "semaphore, a `TaskGroup` for each level and `asyncio.gather`. An `asyncio.Task` for "
            "each function, with nothing that waits for a level, does less than was asked for. It "
            "shows what asyncio itself takes, and so the most that can be gained.\n"
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
            "`python benchmarks/many.py clusters --wait 6`: two local processes on two cores. Each "
            "input is 5 tasks, 0.4 ms of processor time and 4 ms of waiting. Inputs per second are "
            "medians, and include the start of Ray's actors. The ratio is to plain asyncio on one "
            "process: the median of the rounds, then best to best. The µs are processor time per "
            "input: of the process that hands inputs out, and of all processes. The load is that "
            "of the machine. About 2 of it is this work. At a higher load seconds say little, and "
            "processor time still does.\n"
        )
        figures = ("ratio", "best_ratio", "microseconds_here", "microseconds_all", "load")
        rows = [
            [
                *(row["python"], row["contestant"], f"{row['per_second']:,.0f}"),
                *("" if row[figure] is None else number(row[figure]) for figure in figures),
            ]
            for row in clusters
        ]
        head = ["Python", "contestant", "inputs/s", "ratio", "best", "µs here", "µs in all", "load"]
        yield markdown([head, *rows]) + "\n"


def chapters(runs: Sequence[Run], others: Mapping[str, Any]) -> Iterator[str]:
    """Return the chapters of RESULTS.md. `others` has the content of the other files, by name."""
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
            works = [each for each in merged if (each.table, each.loop) == ("work", loop)]
            yield ratios(works) + "\n"
            if text := spread(works):
                yield text + "\n"
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
    tables: dict[str, Callable[[Any], Iterator[str]]] = {
        "service": service_table,
        "tail": tail_table,
        "hedging": hedging_table,
        "many": many_tables,
    }
    for name, table in tables.items():
        if rows := others.get(name):
            yield from table(rows)


def with_table(readme: str, runs: Sequence[Run]) -> str:
    """Return README's text with the table between its markers written again."""
    before, _, rest = readme.partition(BEGIN)
    return f"{before}{BEGIN}\n{readme_table(runs)}\n{END}{rest.partition(END)[2]}"


def results(directory: Path) -> str:
    """Return the text of RESULTS.md for a directory of results."""
    paths = [path for name in OTHERS if (path := directory / f"{name}.json").exists()]
    others = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in paths}
    return "\n".join(chapters(read_runs(directory), others))


def main() -> None:
    """Write everything."""
    from pictures import draw, draw_many  # needs matplotlib

    (BENCHMARKS / "RESULTS.md").write_text(results(RESULTS), encoding="utf-8")
    runs = read_runs(RESULTS)
    readme = BENCHMARKS.parent / "README.md"
    readme.write_text(with_table(readme.read_text(encoding="utf-8"), runs), encoding="utf-8")
    draw(runs, BENCHMARKS)
    draw_many(RESULTS / "many.json", BENCHMARKS)


if __name__ == "__main__":
    main()
