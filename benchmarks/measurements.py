"""The measurements in the files that pytest-benchmark writes.

Times are the shortest of all rounds. A ratio compares with the `TaskGroup` of the same file, so
that nothing is compared that was not measured in one process.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdax.bench.contestants import BASELINE

ENGINES = ("sdax compiled", "sdax python")


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
    peak_bytes: int | None

    @property
    def nanoseconds(self) -> float:
        """Return the time per function."""
        return self.seconds * 1e9 / self.functions


@dataclass(frozen=True)
class Run:
    """One file of pytest-benchmark's."""

    python: str
    about: str
    measurements: Sequence[Measurement]


def read_runs(directory: Path) -> list[Run]:
    """Read all files of pytest-benchmark's, older Pythons first."""
    runs = [
        read_run(json.loads(path.read_text()))
        for path in sorted(directory.glob("*.json"))
        if path.name != "service.json"
    ]
    return sorted(runs, key=lambda run: [int(number) for number in run.python.split(".")])


def read_run(content: Any) -> Run:
    """Read one file of pytest-benchmark's."""
    machine, commit = content["machine_info"], content["commit_info"]
    python = machine["python_version"]
    entries = [(each["extra_info"], each["stats"]["min"]) for each in content["benchmarks"]]
    baselines = {key_of(info): least for info, least in entries if info["contestant"] == BASELINE}
    measurements = [
        Measurement(
            python=python,
            table=info["table"],
            loop=info["loop"],
            work=info["work"],
            contestant=info["contestant"],
            seconds=least,
            functions=info["functions"],
            ratio=baselines[key_of(info)] / least if key_of(info) in baselines else None,
            peak_bytes=info.get("peak_bytes"),
        )
        for info, least in entries
    ]
    cpu = machine["cpu"]
    packages = ", ".join(f"{name} {number}" for name, number in machine["packages"].items())
    about = (
        f"`{content['command']}`: {packages}; {machine['system']} on {cpu['brand_raw']}, "
        f"{cpu['count']} cores; commit {commit['id'][:10]}"
        f"{' with changes' if commit['dirty'] else ''}, {content['datetime'][:10]}."
    )
    return Run(python, about, measurements)


def key_of(info: Any) -> tuple[str, str, str]:
    """Return what the contestants to be compared have in common."""
    return info["table"], info["loop"], info["work"]


def unique(values: Iterable[str]) -> list[str]:
    """Return the values in the order in which they first come."""
    return list(dict.fromkeys(values))
