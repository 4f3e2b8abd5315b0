"""A recorded run, with its pictures and its critical path."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .critical_path import CriticalPath, critical_path
from .gantt import draw_run
from .mermaid import run_to_mermaid
from .spans import RecordedRun


@dataclass(frozen=True)
class RunSpan(RecordedRun):
    """One run of `timeline.runs`. `str()` draws it.

    `number` counts the runs of the timeline from 1, `now` is the time of this record.
    `tasks` are all tasks of the processor. `functions` are those that were called or skipped, in
    that order.
    """

    def critical_path(
        self, depends_on: Mapping[Any, Iterable[Hashable]] | None = None
    ) -> CriticalPath:
        """Return the chain of functions that the run waited for (see `CriticalPath`).

        For a run in levels, `depends_on` maps task names to their real dependencies. A task that
        it does not name depends on nothing. Without `depends_on`, `graph.saving` is the most that
        any graph could save. Raises `ValueError` for a run that has not finished, for an unknown
        name, for a dependency that the levels contradict, and for a run in a graph.

        >>> path = timeline.runs[0].critical_path(depends_on={"Orders": ["User"]})
        >>> print(path.graph.saving)
        """
        return critical_path(self, depends_on)

    def to_mermaid(self) -> str:
        """Return a Mermaid gantt diagram of the run."""
        return run_to_mermaid(self)

    def __str__(self) -> str:
        return draw_run(self)
