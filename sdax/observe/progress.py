"""A live display of runs. Needs the extra `rich`."""

from __future__ import annotations

import atexit
import threading
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator
from contextlib import suppress
from itertools import chain, islice
from time import monotonic, perf_counter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ..common.order import PHASES, POST
from ..common.text import counted, listed, one_line, shortened, shown
from ..events import (
    AttemptStarted,
    Event,
    FellBack,
    ObservedRun,
    PhaseStarted,
    RetryScheduled,
    RetrySuppressed,
    RunFinished,
    RunStarted,
    TaskFinished,
    TaskInfo,
    TaskSkipped,
    TaskStarted,
)
from ..processor import AsyncDagTaskProcessor
from ..states import FAILURES, State
from ..tasks import AsyncTask
from .layers import layers_of
from .times import seconds

if TYPE_CHECKING:
    from ..many import Progress

try:
    from rich.console import Console, Group, RenderableType
    from rich.errors import LiveError
    from rich.live import Live
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text
except ImportError as error:
    raise ImportError(
        "sdax.observe.progress needs rich. Install it with: pip install 'rich>=13'"
    ) from error

MOST_RUNS: Final = 4
MOST_GROUPS: Final = 12
MOST_NAMES: Final = 4
MOST_CHARACTERS: Final = 300  # of an exception
SECONDS_BETWEEN_LINES: Final = 10.0  # of many runs


class ProgressDisplay:
    """An observer that shows the progress of active runs on the terminal.

    Each run has a line for each level, or for each layer of its graph: how many functions are
    done, failed, cancelled and skipped, and which are running. Failures and the end of each run
    are printed above. The picture of the last run stays on the terminal.

    Without a terminal, it writes lines with the names of tasks and times: the start of a phase,
    the end of a phase in a level, retries, failures, skipped functions, and the end.

    As the observer of `sdax.many.run_many` it shows how many inputs are done and have failed, how
    many are done per second, and how long the rest takes. Where there is no terminal it writes that
    at the start, every ten seconds, and at the end.

    `console` is standard error by default. If writing to it fails, nothing more is shown.

    >>> await processor.process_tasks(ctx, observer=ProgressDisplay())
    """

    def __init__(self, *, console: Console | None = None) -> None:
        if console is not None and not isinstance(console, Console):
            raise TypeError(f"console must be a rich.console.Console or None, got {shown(console)}")
        self._console = Console(stderr=True) if console is None else console
        self._runs: dict[ObservedRun, _Run] = {}
        self._many: dict[Progress, float] = {}  # the time of the last line of each
        # Runs may be in several threads, and rich draws the display in its own thread. Drawing
        # holds rich's locks and then takes the first of these. So nothing is written while
        # holding it.
        self._state = threading.Lock()
        self._output = threading.Lock()
        self._live: Live | None = None
        self._broken = False

    def __call__(self, event: Event, /) -> None:
        """Count an event, and write its lines."""
        with self._state:
            lines = list(self._take(event))
        if lines or isinstance(event, (RunStarted, RunFinished)):
            with self._output:
                if not self._broken:
                    self._write(lines)

    def many_changed(self, progress: Progress, /) -> None:
        """Take the progress of `sdax.many.run_many`."""
        now = monotonic()
        if not progress.is_over and now < self._many.get(progress, 0.0) + SECONDS_BETWEEN_LINES:
            return  # a live display reads it by itself
        with self._state:
            self._many[progress] = now
            if progress.is_over:
                del self._many[progress]
        text = _summary(progress)
        with self._output:
            if not self._broken:
                self._write([_Line(text, urgent=False, picture=Text(text))])

    def _take(self, event: Event) -> Iterator[_Line]:
        if isinstance(event, RunStarted):
            self._runs[event.run] = begun = _Run(event.run)
            yield begun.line(counted(len(event.run.tasks), "task"))
        elif run := self._runs.get(event.run):  # otherwise the run was abandoned
            yield from run.take(event)
            if isinstance(event, RunFinished):
                del self._runs[event.run]

    def __rich__(self) -> RenderableType:
        """Return the current picture."""
        with self._state:
            shown = [part for run in islice(self._runs.values(), MOST_RUNS) for part in run.draw()]
            if len(self._runs) > MOST_RUNS:
                shown.append(Text(f"and {counted(len(self._runs) - MOST_RUNS, 'more run')}"))
            for progress in self._many:
                shown.extend(_draw(progress))
            return Group(*shown)

    def _write(self, lines: list[_Line]) -> None:
        try:
            is_busy = bool(self._runs or self._many)
            if is_busy and self._live is None:
                self._begin()
            live = self._live
            ends = live is not None and not is_busy
            if live is not None and ends:
                self._end(live)
            for line in lines:
                if ends and line.picture is not None:
                    self._console.print(line.picture)
                elif live is None or line.urgent:
                    self._console.print(Text(line.text), soft_wrap=True)
        except (OSError, ValueError):  # the reader or the file was closed
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
            return  # another display is active: write lines
        self._live = live
        atexit.register(live.stop)  # restores the terminal if a run never ends

    def _end(self, live: Live) -> None:
        self._live = None
        atexit.unregister(live.stop)
        live.stop()


class _Line(NamedTuple):
    """A line of output. An urgent line is also written above a live display."""

    text: str
    urgent: bool
    picture: RenderableType | None


DONE: Final = "done"
SKIPPED: Final = "skipped"
OUTCOMES: Final = (DONE, "failed", "cancelled", SKIPPED)
OUTCOME_OF: Final = {
    State.SUCCEEDED: DONE,
    State.FAILED: "failed",
    State.TIMED_OUT: "failed",
    State.CANCELLED: "cancelled",
    State.SKIPPED: SKIPPED,
}


class _Tally:
    """The number of due functions, and their outcomes so far."""

    def __init__(self) -> None:
        self.due = 0
        self.counts = Counter[str]()  # by outcome

    def others(self) -> str:
        """Return the outcomes of functions that are not done: `"1 failed, 3 skipped"`."""
        return ", ".join(
            f"{self.counts[outcome]} {outcome}" for outcome in OUTCOMES[1:] if self.counts[outcome]
        )


class _Names(_Tally):
    """The functions of a level or layer in one phase, the first of them by name."""

    def __init__(self) -> None:
        super().__init__()
        self.start: float | None = None  # of the first function
        self.names: dict[str, list[str]] = {}  # by outcome

    def add(self, outcome: str, name: str) -> None:
        """Count a function."""
        self.counts[outcome] += 1
        names = self.names.setdefault(outcome, [])
        if len(names) < MOST_NAMES:
            names.append(name)

    def named(self, outcome: str) -> str:
        """Return the names of the functions with this outcome."""
        return listed(self.names[outcome], self.counts[outcome], MOST_NAMES)


class _Group(_Tally):
    """A level or layer."""

    def __init__(self, title: str) -> None:
        super().__init__()
        self.title = title
        self.phases: dict[str, _Names] = {}  # those that have functions
        # By phase and task: the time of the call, and the text that is shown.
        self.running: dict[tuple[str, Hashable], tuple[float, str]] = {}

    def draw(self) -> tuple[RenderableType, ...]:
        names = (text for _, text in self.running.values())
        return (
            Text(self.title),
            ProgressBar(total=self.due, completed=self.counts[DONE], width=24),
            Text(f"{self.counts[DONE]}/{self.due}"),
            Text(self.others(), style="red" if self.counts["failed"] else ""),
            Text(
                listed(names, len(self.running), MOST_NAMES),
                style="bold",
                overflow="ellipsis",
                no_wrap=True,
            ),
        )


class _Run:
    """One active run."""

    def __init__(self, run: ObservedRun) -> None:
        self.number = run.number
        self.start = perf_counter()
        self.now = "starting"  # or its phase, or its end
        self.retries = 0
        self.fallbacks = 0
        self.covering: set[tuple[str, Hashable]] = set()  # their fallback is called next
        self.all = _Tally()
        self.skipped = _Names()  # not in any line yet
        layers = layers_of(run.tasks)
        word = "level" if any(task.level is not None for task in run.tasks) else "layer"
        groups = {layer: _Group(f"{word} {layer}") for layer in sorted({*layers.values()})}
        self.groups = list(groups.values())
        self.group_of = {name: groups[layer] for name, layer in layers.items()}
        for task in _tasks_of(run.processor):
            for phase in PHASES:
                if getattr(task, phase) is not None:
                    group = self.group_of[task.name]
                    names = group.phases.setdefault(phase, _Names())
                    for tally in (self.all, group, names):
                        tally.due += 1

    def take(self, event: Event) -> Iterator[_Line]:
        """Count an event, and yield its lines."""
        for line in self.count(event):
            if self.skipped.counts:
                yield self.line(f"skipped: {self.skipped.named(SKIPPED)}")
                self.skipped = _Names()
            yield line

    def count(self, event: Event) -> Iterator[_Line]:
        match event:
            case PhaseStarted(phase=phase):
                self.now = phase
                yield self.line(f"{phase} starts")
            case TaskStarted(task=task, phase=phase):
                group = self.group_of[task.name]
                now = perf_counter()
                group.running[phase, task.name] = now, _place(task, phase)
                if group.phases[phase].start is None:
                    group.phases[phase].start = now
            case AttemptStarted(task=task, phase=phase, attempt=attempt) if attempt > 1:
                running = self.group_of[task.name].running
                start, _ = running[phase, task.name]
                what = f"attempt {attempt}"
                if (phase, task.name) in self.covering:
                    self.covering.remove((phase, task.name))
                    what = "fallback"
                running[phase, task.name] = start, f"{_place(task, phase)} ({what})"
            case RetryScheduled(task=task, phase=phase, delay=delay, exception=exception):
                self.retries += 1
                text = f"{_place(task, phase)} failed: {_described(exception)}"
                yield self.line(f"{text}; again in {seconds(delay)}")
            case RetrySuppressed(task=task, phase=phase, reason=reason, exception=exception):
                text = f"{_place(task, phase)} failed: {_described(exception)}"
                yield self.line(f"{text}; no further attempt: {reason}")
            case FellBack(task=task, phase=phase, exception=exception):
                self.fallbacks += 1
                self.covering.add((phase, task.name))
                text = f"{_place(task, phase)} falls back, to cover {_described(exception)}"
                yield self.line(text, urgent=True)
            case TaskFinished(task=task, phase=phase, state=state, exception=exception):
                start, _ = self.group_of[task.name].running.pop(
                    (phase, task.name),
                    (perf_counter(), ""),  # it was never called
                )
                if state in FAILURES:
                    spared = "" if task.required or phase == PHASES[POST] else ", not required,"
                    took = seconds(perf_counter() - start)
                    text = f"{_place(task, phase)}{spared} {state} after {took}"
                    yield self.line(f"{text}: {_described(exception)}", urgent=True)
                yield from self.ended(task, phase, OUTCOME_OF[state])
            case TaskSkipped(task=task, phase=phase):
                self.skipped.add(SKIPPED, _place(task, phase))
                yield from self.ended(task, phase, SKIPPED)
            case RunFinished(state=state, report=report):
                by = None if report is None else report.finished_by
                self.now = state if by is None else f"{state}, finished by {one_line(by)},"
                yield self.line(self.summary(), urgent=True, picture=Group(*self.draw()))
            case _:
                pass

    def ended(self, task: TaskInfo, phase: str, outcome: str) -> Iterator[_Line]:
        """Count a function, and yield a line if its level has finished the phase."""
        group = self.group_of[task.name]
        names = group.phases[phase]
        names.add(outcome, one_line(task.name))
        group.counts[outcome] += 1
        self.all.counts[outcome] += 1
        if names.counts.total() < names.due or names.start is None:
            return
        total = f"{self.all.counts[DONE]} of {self.all.due}"
        took = seconds(perf_counter() - names.start)
        if names.counts[DONE] == names.due:
            text = f"done in {took}, {total}: {names.named(DONE)}"
        else:
            called = [each for each in OUTCOMES if each != SKIPPED and names.counts[each]]
            told = [f"{each}: {names.named(each)}" for each in called]
            text = "; ".join([f"ended after {took}, {total}", *told])
        yield self.line(f"{group.title}: {phase} {text}")

    def line(
        self, text: str, *, urgent: bool = False, picture: RenderableType | None = None
    ) -> _Line:
        """Return a line about this run."""
        return _Line(f"run {self.number}: {one_line(text)}", urgent, picture)

    def summary(self) -> str:
        """Return the current phase, time and counts."""
        parts = [
            f"{self.now} after {seconds(perf_counter() - self.start)}",
            f"{self.all.counts[DONE]} of {self.all.due} done",
        ]
        if others := self.all.others():
            parts.append(others)
        if self.retries:
            parts.append(counted(self.retries, "retry", "retries"))
        if self.fallbacks:
            parts.append(counted(self.fallbacks, "fallback"))
        return ", ".join(parts)

    def draw(self) -> Iterator[RenderableType]:
        """Yield the lines of the picture."""
        yield Text(f"run {self.number}  {self.summary()}")
        rows = self.groups
        if len(rows) > MOST_GROUPS:
            # Running groups matter most, then groups with failures.
            order = sorted(rows, key=lambda group: (not group.running, not group.counts["failed"]))
            chosen = {id(group) for group in order[:MOST_GROUPS]}
            rows = [group for group in rows if id(group) in chosen]
        table = Table.grid(padding=(0, 1))
        for group in rows:
            table.add_row(*group.draw())
        yield table
        if len(rows) < len(self.groups):
            yield Text(f"and {len(self.groups) - len(rows)} more")


def _summary(progress: Progress) -> str:
    """Return a line about the progress of many runs."""
    done = f"{progress.done:,}"
    if progress.total is None:
        parts = [f"{done} {'input' if progress.done == 1 else 'inputs'} done"]
    else:
        parts = [f"{done} of {progress.total:,} inputs done"]
    if progress.failed:
        parts.append(f"{progress.failed:,} failed")
    if progress.done:
        parts.append(f"{progress.per_second:,.0f} per second")
    if progress.is_over:
        parts.append(f"in {seconds(progress.seconds)}")
    elif (left := progress.seconds_left) is not None:
        parts.append(f"{seconds(left)} left")
    return ", ".join(parts)


def _draw(progress: Progress) -> Iterator[RenderableType]:
    yield Text(_summary(progress), style="red" if progress.failed else "")
    if progress.total is not None:
        yield ProgressBar(total=progress.total, completed=progress.done, width=60)


def _tasks_of(processor: Any) -> Iterable[AsyncTask[Any, Any]]:
    if isinstance(processor, AsyncDagTaskProcessor):
        return processor.tasks.values()
    return chain.from_iterable(processor.levels.values())


def _described(exception: BaseException | None) -> str:
    return shortened(shown(exception), MOST_CHARACTERS)


def _place(task: TaskInfo, phase: str) -> str:
    return f"{one_line(task.name)}.{phase}"
