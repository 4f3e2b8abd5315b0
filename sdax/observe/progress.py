"""A live display of runs. Needs the extra `rich`."""

from __future__ import annotations

import atexit
import threading
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain, islice
from time import perf_counter
from typing import Any, Final, NamedTuple

from ..events import (
    AttemptStarted,
    Event,
    ObservedRun,
    PhaseStarted,
    RetryScheduled,
    RunFinished,
    RunStarted,
    TaskFinished,
    TaskInfo,
    TaskSkipped,
    TaskStarted,
)
from ..plan import PHASES
from ..processor import AsyncDagTaskProcessor
from ..report import FAILURES
from ..tasks import AsyncTask
from ..text import counted, one_line, shown
from .layers import layers_of
from .times import seconds

try:
    from rich.console import Console, Group, RenderableType
    from rich.errors import LiveError
    from rich.live import Live
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text
except ImportError as error:
    raise ImportError(
        "sdax.observe.progress needs rich; install it with: pip install 'sdax[rich]'"
    ) from error

MOST_RUNS: Final = 4
MOST_GROUPS: Final = 12
MOST_NAMES: Final = 4


class ProgressDisplay:
    """An observer that shows on the terminal how far runs are, for as long as any is in flight.

    Each run has a line for each level, or for each layer of its graph, with how many of its
    functions are done, how many have failed, and what is running now. What fails is told above,
    and so is the end of each run. Where there is no terminal it writes lines: phases, levels
    that are done with one, retries, failures, and the end.

    `console` is standard error by default. If writing to it fails, nothing more is shown.

    >>> await processor.process_tasks(ctx, observer=ProgressDisplay())
    """

    def __init__(self, *, console: Console | None = None) -> None:
        if console is not None and not isinstance(console, Console):
            raise TypeError(f"console must be a rich.console.Console or None, got {shown(console)}")
        self._console = Console(stderr=True) if console is None else console
        self._runs: dict[ObservedRun, _Run] = {}
        # Runs may be in several threads, and the display is drawn in one of its own. Drawing holds
        # rich's locks and asks for the first of these: so nothing is written that holds it.
        self._state = threading.Lock()
        self._output = threading.Lock()
        self._live: Live | None = None
        self._broken = False

    def __call__(self, event: Event, /) -> None:
        """Take an event in, and write what there is to tell of it."""
        with self._state:
            lines = list(self._take(event))
        if lines or isinstance(event, (RunStarted, RunFinished)):
            with self._output:
                if not self._broken:
                    self._write(lines)

    def _take(self, event: Event) -> Iterator[_Line]:
        if isinstance(event, RunStarted):
            self._runs[event.run] = begun = _Run(event.run)
            yield begun.line(counted(len(event.run.tasks), "task"))
        elif run := self._runs.get(event.run):  # else nobody waits for it any more
            if isinstance(event, RunFinished):
                del self._runs[event.run]
                yield run.line(f"{event.state} after {run.summary()}", urgent=True)
            else:
                yield from run.take(event)

    def __rich__(self) -> RenderableType:
        """Return what is to be shown now."""
        with self._state:
            shown = [part for run in islice(self._runs.values(), MOST_RUNS) for part in run.draw()]
            if len(self._runs) > MOST_RUNS:
                shown.append(Text(f"and {counted(len(self._runs) - MOST_RUNS, 'more run')}"))
            return Group(*shown)

    def _write(self, lines: list[_Line]) -> None:
        try:
            if self._runs and self._live is None:
                self._begin()
            elif not self._runs and self._live is not None:
                self._end(self._live)
            for line in lines:
                if line.urgent or self._live is None:
                    self._console.print(Text(line.text), soft_wrap=True)
        except (OSError, ValueError):  # the reader has gone, or the file is closed
            self._broken = True
            if self._live is not None:
                with suppress(OSError, ValueError):
                    self._end(self._live)

    def _begin(self) -> None:
        if not self._console.is_terminal or self._console.is_dumb_terminal:
            return
        live = Live(
            console=self._console,
            get_renderable=self.__rich__,
            refresh_per_second=8,
            transient=True,
        )
        try:
            live.start()
        except LiveError:  # pragma: no cover (rich before 14.1)
            return  # somebody else's display is there: lines, then
        self._live = live
        atexit.register(live.stop)  # for the terminal, should a run never end

    def _end(self, live: Live) -> None:
        self._live = None
        atexit.unregister(live.stop)
        live.stop()


class _Line(NamedTuple):
    """What is written: urgent if it is worth it above a live display too."""

    text: str
    urgent: bool


@dataclass(slots=True)
class _Tally:
    """The functions of a level or layer, or of all."""

    title: str
    due: Counter[str] = field(default_factory=Counter[str])  # by phase
    done: Counter[str] = field(default_factory=Counter[str])
    failed: int = 0
    running: dict[tuple[str, Hashable], str] = field(default_factory=dict)

    def draw(self) -> tuple[RenderableType, ...]:
        done, due = self.done.total(), self.due.total()
        names = list(islice(self.running.values(), MOST_NAMES))
        if len(self.running) > MOST_NAMES:
            names.append(f"and {len(self.running) - MOST_NAMES} more")
        return (
            Text(self.title),
            ProgressBar(total=due, completed=done, width=24),
            Text(f"{done}/{due}"),
            Text(f"{self.failed} failed" if self.failed else "", style="red"),
            Text(", ".join(names), style="bold", overflow="ellipsis", no_wrap=True),
        )


class _Run:
    """One run in flight."""

    def __init__(self, run: ObservedRun) -> None:
        self.number = run.number
        self.start = perf_counter()
        self.phase = ""
        self.retries = 0
        self.all = _Tally("")
        layers = layers_of(run.tasks)
        word = "level" if any(task.level is not None for task in run.tasks) else "layer"
        tallies = {layer: _Tally(f"{word} {layer}") for layer in sorted({*layers.values()})}
        self.tallies = list(tallies.values())
        self.tally_of = {name: tallies[layer] for name, layer in layers.items()}
        for task in _tasks_of(run.processor):
            for phase in PHASES:
                if getattr(task, phase) is not None:
                    for tally in (self.all, self.tally_of[task.name]):
                        tally.due[phase] += 1

    def take(self, event: Event) -> Iterator[_Line]:
        """Count an event; yield what there is to tell of it."""
        match event:
            case PhaseStarted(phase=phase):
                self.phase = phase
                yield self.line(phase)
            case TaskStarted(task=task, phase=phase):
                self.tally_of[task.name].running[phase, task.name] = _place(task, phase)
            case AttemptStarted(task=task, phase=phase, attempt=attempt) if attempt > 1:
                text = f"{_place(task, phase)} (attempt {attempt})"
                self.tally_of[task.name].running[phase, task.name] = text
            case RetryScheduled(task=task, phase=phase, delay=delay, exception=exception):
                self.retries += 1
                text = f"{_place(task, phase)} failed: {shown(exception)}"
                yield self.line(f"{text}; again in {seconds(delay)}")
            case TaskFinished(task=task, phase=phase, state=state, exception=exception):
                failed = state in FAILURES
                self.tally_of[task.name].running.pop((phase, task.name), None)
                if failed:
                    text = f"{_place(task, phase)} {state}: {shown(exception)}"
                    yield self.line(text, urgent=True)
                yield from self.done(task, phase, failed=failed)
            case TaskSkipped(task=task, phase=phase):
                yield from self.done(task, phase, failed=False)
            case _:
                pass

    def done(self, task: TaskInfo, phase: str, *, failed: bool) -> Iterator[_Line]:
        """Count a function that is done with; tell it if it is the last one of its level."""
        own = self.tally_of[task.name]
        for tally in (self.all, own):
            tally.done[phase] += 1
            tally.failed += failed
        if own.done[phase] == own.due[phase]:
            total = f"{self.all.done.total()} of {self.all.due.total()}"
            yield self.line(f"{own.title}: {phase} is over ({total} functions)")

    def line(self, text: str, *, urgent: bool = False) -> _Line:
        """Return a line about this run."""
        return _Line(f"run {self.number}: {one_line(text)}", urgent)

    def summary(self) -> str:
        """Return its time and counts."""
        parts = [
            seconds(perf_counter() - self.start),
            f"{self.all.done.total()} of {counted(self.all.due.total(), 'function')}",
        ]
        if self.retries:
            parts.append(counted(self.retries, "retry", "retries"))
        if self.all.failed:
            parts.append(f"{self.all.failed} failed")
        return ", ".join(parts)

    def draw(self) -> Iterator[RenderableType]:
        """Yield what is shown of it."""
        yield Text(f"run {self.number}  {self.phase or 'starting'}  {self.summary()}")
        rows = self.tallies
        if len(rows) > MOST_GROUPS:
            # Those where something runs matter most, and the first of the others.
            busy = [tally for tally in rows if tally.running]
            idle = (tally for tally in rows if not tally.running)
            chosen = {id(tally) for tally in islice(chain(busy, idle), MOST_GROUPS)}
            rows = [tally for tally in rows if id(tally) in chosen]
        table = Table.grid(padding=(0, 1))
        for tally in rows:
            table.add_row(*tally.draw())
        yield table
        if len(rows) < len(self.tallies):
            yield Text(f"and {len(self.tallies) - len(rows)} more")


def _tasks_of(processor: Any) -> Iterable[AsyncTask[Any, Any]]:
    if isinstance(processor, AsyncDagTaskProcessor):
        return processor.tasks.values()
    return chain.from_iterable(processor.levels.values())


def _place(task: TaskInfo, phase: str) -> str:
    return f"{one_line(task.name)}.{phase}"
