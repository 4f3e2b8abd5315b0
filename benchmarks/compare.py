"""Print the works that became faster or slower between two versions of sdax, beyond noise.

    python benchmarks/compare.py --base base*.json --head head*.json

It takes several files of pytest-benchmark for each version, measured in turn. It compares the ratio
to the `TaskGroup` of the same file, never a time. A change counts if no ratio of one version lies
among those of the other, and if it is larger than the spread of both together. It prints a Markdown
table of the changes, or nothing if there are none.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import TypeAlias

from measurements import ENGINES, Run, read_run
from report import markdown, number

Key: TypeAlias = tuple[str, str, str, str]  # table, loop, work, contestant

FEWEST = 3  # files of each version, the minimum for a spread


def ratios_of(runs: Iterable[Run]) -> dict[Key, list[float]]:
    """Return the ratios of both engines in all runs."""
    found: dict[Key, list[float]] = {}
    for run in runs:
        for each in run.measurements:
            if each.contestant in ENGINES and each.ratio is not None:
                key = (each.table, each.loop, each.work, each.contestant)
                found.setdefault(key, []).append(each.ratio)
    return found


def is_beyond_noise(base: Sequence[float], head: Sequence[float]) -> bool:
    """Return True if two versions differ by more than either differs from itself."""
    if min(base) <= max(head) and min(head) <= max(base):
        return False
    spread = max(base) - min(base) + max(head) - min(head)
    return abs(median(head) - median(base)) > spread


def changes(base: Iterable[Run], head: Iterable[Run]) -> Iterator[list[str]]:
    """Return the rows of all changes, the largest losses first."""
    before, after = ratios_of(base), ratios_of(head)
    both = [(median(after[key]) / median(before[key]), key) for key in before if key in after]
    for change, key in sorted(both):
        if is_beyond_noise(before[key], after[key]):
            _, loop, work, contestant = key
            medians = number(median(before[key])), number(median(after[key]))
            yield [work, loop, contestant, *medians, f"{change - 1:+.0%}"]


def main() -> None:
    """Read the arguments, and print the table if there is one."""
    parser = argparse.ArgumentParser(description=__doc__)
    for version in ("--base", "--head"):
        parser.add_argument(version, nargs="+", type=Path, required=True, metavar="FILE")
    args = parser.parse_args()
    if min(len(args.base), len(args.head)) < FEWEST:
        parser.error(f"at least {FEWEST} files of each version are needed, to know the noise")
    base, head = (
        [read_run(json.loads(path.read_text(encoding="utf-8"))) for path in paths]
        for paths in (args.base, args.head)
    )
    rows = list(changes(base, head))
    if rows:
        print("Speed compared with `asyncio.TaskGroup`, medians of interleaved runs. Only changes")
        print("that are larger than the differences between runs of one version.\n")
        print(markdown([["work", "loop", "engine", "base", "head", "change"], *rows]))


if __name__ == "__main__":
    main()
