"""Draw the results: how fast sdax is beside `TaskGroup`, and how its costs grow."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt

from measurements import ENGINES, Run, unique
from sdax.bench.contestants import BASELINE

COLOURS = {ENGINES[0]: "#1b6ca8", ENGINES[1]: "#f2a541", BASELINE: "#7a7a7a"}
GROWTH = "one level, suspends once"


def draw(runs: Sequence[Run], directory: Path) -> None:
    """Write ratio.svg and growth.svg, the same for the same runs."""
    with mpl.rc_context({"svg.hashsalt": "sdax", "svg.fonttype": "none", "font.size": 8}):
        for name, picture in (("ratio", ratio(runs)), ("growth", growth(runs))):
            picture.savefig(directory / f"{name}.svg", metadata={"Date": None})
            plt.close(picture)


def draw_many(results: Path, directory: Path) -> None:
    """Write many-memory.svg, if a million inputs were measured."""
    many = json.loads(results.read_text(encoding="utf-8")) if results.exists() else {}
    rows = many.get("million", [])[1:]
    if not rows:
        return
    with mpl.rc_context({"svg.hashsalt": "sdax", "svg.fonttype": "none", "font.size": 8}):
        figure, panels = panelled(1, 2, figsize=(7, 2.6))
        for panel, key, title in (
            (panels[0][0], "megabytes", "MB in memory"),
            (panels[0][1], "microseconds", "µs for each input"),
        ):
            panel.plot([row["inputs"] for row in rows], [row[key] for row in rows], marker=".")
            panel.set_ylim(bottom=0)
            panel.set_title(title)
        figure.supxlabel("inputs")
        figure.savefig(directory / "many-memory.svg", metadata={"Date": None})
        plt.close(figure)


def ratio(runs: Sequence[Run]) -> Any:
    """Draw the speed of the engines as bars, a panel for each Python."""
    pythons = unique(run.python for run in runs)
    figure, panels = panelled(1, len(pythons), figsize=(3 + 2.6 * len(pythons), 6), sharey=True)
    for panel, python in zip(panels[0], pythons, strict=True):
        found = {
            (each.work, each.contestant): each.ratio or 0.0
            for run in runs
            for each in run.measurements
            if (each.python, each.table, each.loop) == (python, "work", "asyncio")
            and each.contestant in ENGINES
        }
        works = unique(work for work, _ in found)[::-1]
        for place, name in enumerate(ENGINES):
            panel.barh(
                [row + 0.2 - 0.4 * place for row in range(len(works))],
                [found.get((work, name), 0.0) for work in works],
                height=0.4,
                color=COLOURS[name],
                label=name,
            )
        panel.axvline(1, color=COLOURS[BASELINE], linewidth=1)
        panel.set_xscale("log")
        panel.set_xlim(0.5, 100)
        panel.set_xticks([1, 3, 10, 30], ["1", "3", "10", "30"])
        panel.set_yticks(range(len(works)), works)
        panel.set_title(f"CPython {python}, asyncio")
    figure.supxlabel("times as fast as one TaskGroup per level")
    panels[0][-1].legend(loc="lower right")
    return figure


def panelled(rows: int, columns: int, **options: Any) -> tuple[Any, Any]:
    """Return a figure, and its panels by row and column."""
    return plt.subplots(rows, columns, squeeze=False, layout="constrained", **options)


def growth(runs: Sequence[Run]) -> Any:
    """Draw the time and the peak memory per function against the number of tasks."""
    pythons = unique(run.python for run in runs)
    size = (1 + 2.8 * len(pythons), 5)
    figure, panels = panelled(2, len(pythons), figsize=size, sharex=True, sharey="row")
    for column, python in enumerate(pythons):
        for name in (*ENGINES, BASELINE):
            line = sorted(
                (each.functions, each.nanoseconds / 1000, each.peak_bytes / each.functions)
                for run in runs
                for each in run.measurements
                if (each.python, each.contestant) == (python, name)
                and each.peak_bytes is not None
                and each.work.startswith(GROWTH)
                and any(ours.contestant in ENGINES for ours in run.measurements)
            )
            sizes = [size for size, _, _ in line]
            panels[0][column].plot(
                sizes, [time for _, time, _ in line], "o-", color=COLOURS[name], label=name
            )
            panels[1][column].plot(sizes, [peak for _, _, peak in line], "o-", color=COLOURS[name])
        panels[0][column].set_xscale("log")
        panels[0][column].set_ylim(bottom=0)
        panels[1][column].set_ylim(bottom=0)
        panels[0][column].set_title(f"CPython {python}, {GROWTH}")
    panels[0][0].set_ylabel("microseconds per function")
    panels[1][0].set_ylabel("peak bytes per function")
    figure.supxlabel("tasks")
    panels[0][-1].legend()
    return figure
