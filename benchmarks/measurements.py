"""The measurements in the files that pytest-benchmark writes.

Times are the shortest of all rounds. A ratio compares with the `TaskGroup` of the same file, so
both were measured in one process, in turn. It is the median of the ratios of all turns. Files
`NAME-1.json`, `NAME-2.json` and so on are several runs of the same suite. The median of their
ratios counts. A file that was measured without turns has the ratio of the shortest times.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from sdax.bench.contestants import BASELINE

ENGINES = ("sdax compiled", "sdax python")
OTHERS = ("service", "tail", "hedging", "many")  # files that programs of their own write


@dataclass(frozen=True)
class Measurement:
    """One contestant at one work."""

    python: str
    table: str
    loop: str
    work: str
    contestant: str
    seconds: float
    functions: int
    ratio: float | None
    low: float | None  # half of the ratios of the turns are from here
    high: float | None  # to here
    peak_bytes: int | None

    @property
    def nanoseconds(self) -> float:
        """Return the time per function."""
        return self.seconds * 1e9 / self.functions

    @property
    def spread(self) -> float | None:
        """Return how far the ratio may be from its median, as a part of it."""
        if self.ratio is None or self.low is None or self.high is None:
            return None
        return (self.high - self.low) / 2 / self.ratio


@dataclass(frozen=True)
class Run:
    """One file of pytest-benchmark's, or several of the same suite."""

    python: str
    about: str
    measurements: Sequence[Measurement]


def keep(path: Path, rows: Sequence[dict[str, Any]], keys: Sequence[str]) -> None:
    """Write rows to a file, instead of those that have the same values for these keys.

    Of the version of Python only the first two numbers count.
    """

    def measurement(row: dict[str, Any]) -> list[Any]:
        python = row["python"].rpartition(".")[0]
        return [python if key == "python" else row[key] for key in keys]

    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    new = [measurement(row) for row in rows]
    rows = [*(row for row in kept if measurement(row) not in new), *rows]
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


def read_runs(directory: Path) -> list[Run]:
    """Read all files of pytest-benchmark's, older Pythons first."""
    suites: dict[str, list[Run]] = {}
    for path in sorted(directory.glob("*.json")):
        if path.stem not in OTHERS:
            run = read_run(json.loads(path.read_text(encoding="utf-8")))
            suites.setdefault(re.sub(r"-\d+$", "", path.stem), []).append(run)
    runs = [combined(suite) for suite in suites.values()]
    return sorted(runs, key=lambda run: [int(number) for number in run.python.split(".")])


def combined(runs: Sequence[Run]) -> Run:
    """Make one run of those of the same suite: the shortest times, the medians of the ratios.

    The spread of a ratio covers those of all runs.
    """
    if len(runs) == 1:
        return runs[0]
    found: dict[tuple[str, ...], list[Measurement]] = {}
    for run in runs:
        for each in run.measurements:
            key = (each.table, each.loop, each.work, each.contestant)
            found.setdefault(key, []).append(each)
    measurements = []
    for same in found.values():
        ratios = [each.ratio for each in same if each.ratio is not None]
        lows = [each.low for each in same if each.low is not None]
        highs = [each.high for each in same if each.high is not None]
        peaks = [each.peak_bytes for each in same if each.peak_bytes is not None]
        measurements.append(
            replace(
                same[0],
                seconds=min(each.seconds for each in same),
                ratio=median(ratios) if ratios else None,
                low=min(lows, default=None),
                high=max(highs, default=None),
                peak_bytes=min(peaks, default=None),
            )
        )
    about = f"{len(runs)} times, the median of the ratios: {runs[0].about}"
    return replace(runs[0], about=about, measurements=measurements)


def read_run(content: Any) -> Run:
    """Read one file of pytest-benchmark's."""
    machine, commit = content["machine_info"], content["commit_info"]
    python = machine["python_version"]
    entries = [(each["extra_info"], each["stats"]["min"]) for each in content["benchmarks"]]
    baselines = {key_of(info): least for info, least in entries if info["contestant"] == BASELINE}
    measurements: list[Measurement] = []
    for info, least in entries:
        ratio = info.get("ratio")
        if ratio is None and key_of(info) in baselines:
            ratio = baselines[key_of(info)] / least
        one = Measurement(
            python=python,
            table=info["table"],
            loop=info["loop"],
            work=info["work"],
            contestant=info["contestant"],
            seconds=least,
            functions=info["functions"],
            ratio=ratio,
            low=info.get("ratio_low", ratio),
            high=info.get("ratio_high", ratio),
            peak_bytes=info.get("peak_bytes"),
        )
        measurements.append(one)
    cpu = machine["cpu"]
    packages = ", ".join(f"{name} {number}" for name, number in machine["packages"].items())
    about = (
        f"`{content['command']}`: {packages}; {machine['system']} on {cpu['brand_raw']}, "
        f"{cpu['count']} cores; commit {commit['id'][:10]}"
        f"{' with changes' if commit['dirty'] else ''}, {content['datetime'][:10]}."
    )
    return Run(python, about, measurements)


def key_of(info: Any) -> tuple[str, str, str]:
    """Return the key that comparable contestants have in common."""
    return info["table"], info["loop"], info["work"]


def unique(values: Iterable[str]) -> list[str]:
    """Return the values in the order in which they first come."""
    return list(dict.fromkeys(values))
