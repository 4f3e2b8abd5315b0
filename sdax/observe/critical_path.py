"""The functions that a run waited for, and how long the run would be without each of them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Any, Final, TypeAlias

from ..common.order import EXECUTE, PHASES, POST, PRE
from ..common.text import counted, in_columns, one_line, shown
from ..states import State
from .replay import Order, Replay
from .spans import FunctionSpan, RecordedRun
from .times import seconds

MOST_STEPS_SHOWN: Final = 20
SMALLEST_SHARE: Final = 0.01  # of a run's time

Dependencies: TypeAlias = Mapping[Hashable, Sequence[Hashable]]


@dataclass(frozen=True)
class PathStep:
    """A function that the run waited for.

    It delayed the run for `hold` seconds, from the end of the step before, or the start of the
    run, to its own end. For `waited` of these seconds it was not called yet, because of the engine,
    the event loop, the caller between phases, or `max_concurrency`. `hold` includes retries and
    the pauses between them. If the function was cancelled because another function failed, that
    function is the step before, and `hold` counts from its failure.
    """

    span: FunctionSpan
    hold: float
    waited: float
    _replay: Replay = field(repr=False, compare=False)

    @property
    def name(self) -> Hashable:
        """The name of the task."""
        return self.span.task.name

    @property
    def phase(self) -> str:
        """`"pre_execute"`, `"execute"` or `"post_execute"`."""
        return self.span.phase

    @cached_property
    def without(self) -> float | None:
        """The seconds that the run would take if this function took no time.

        None if this is unknown, see `CriticalPath`.
        """
        return self._replay.run_without(self.phase, self.name)


@dataclass(frozen=True)
class GraphEstimate:
    """The seconds that a run in levels would take as a graph.

    With `exact`, the dependencies were given. Otherwise no task depends on another, so `saving` is
    the most that any graph could save. Levels do not show the real dependencies.
    """

    duration: float
    saving: float
    exact: bool


@dataclass(frozen=True)
class CriticalPath:
    """The functions that a run waited for, one after another, from its start to its end.

    Each of the `steps` could begin when the step before had ended. The step before is the function
    that ended last among all functions that it had to wait for. The `hold` of all steps and `rest`,
    the time after the last step, add up to `duration`, the time of the run.

    A faster step saves at most `duration - step.without`. This is often less than its `hold`,
    because then the run waits for another function. `without` comes from a replay of the run, in
    which this function takes no time and all others take their recorded time. The replay assumes
    that a function takes the same time whenever it is called, that a function that suspends waits
    and does not compute, and that a function ends immediately when it is cancelled, unless the run
    showed otherwise. `without` is None if this is not enough: after the cancellation of the caller,
    for a function that was itself cancelled, and if the replay would call functions that the run
    did not call.

    For a run in levels, `graph` is what a graph could save. It is None if this is unknown, and for
    a run in a graph.
    """

    run: RecordedRun
    steps: tuple[PathStep, ...]
    rest: float
    graph: GraphEstimate | None

    @property
    def duration(self) -> float:
        """The time of the run in seconds."""
        return self.run.duration

    def __str__(self) -> str:
        """Return a table of the steps, or of the longest steps if there are many."""
        count, duration = counted(len(self.steps), "step"), seconds(self.duration)
        lines = [f"critical path of run {self.run.number}: {count}, {duration}"]
        rows = [("held", "of run", "without it", "function")]
        shown_steps, left = divided(self, MOST_STEPS_SHOWN)
        for step in shown_steps:
            without = "unknown" if step.without is None else seconds(step.without)
            what = f"{one_line(step.name)}.{step.phase}{_remark(step)}"
            rows.append((seconds(step.hold), self._share(step.hold), without, what))
        if left:
            hold = sum(step.hold for step in left)
            rows.append((seconds(hold), self._share(hold), "", f"({describe_shorter(left)})"))
        rows.append((seconds(self.rest), self._share(self.rest), "", "(the end of the run)"))
        lines += in_columns(rows, right=3)
        if self.graph is not None:
            lines.append(describe_graph(self.graph))
        return "\n".join(lines)

    def _share(self, part: float) -> str:
        return f"{part / self.duration:.0%}" if self.duration else "-"


def critical_path(
    run: RecordedRun, depends_on: Mapping[Any, Iterable[Hashable]] | None = None
) -> CriticalPath:
    """Find the critical path of a finished run (see `RunSpan.critical_path`)."""
    if not run.is_over:
        raise ValueError(
            f"critical_path: run {run.number} has not finished yet; call it after process_tasks"
        )
    dependencies = None if depends_on is None else _checked_dependencies(run, depends_on)
    replay = Replay(run)
    steps: list[PathStep] = []
    before = run.start
    for span in _Chain(run, replay.order).walk():
        assert span.end is not None
        steps.append(PathStep(span, span.end - before, max(0.0, span.start - before), replay))
        before = span.end
    assert run.end is not None
    return CriticalPath(run, tuple(steps), run.end - before, _graph_of(run, replay, dependencies))


class _Chain:
    """Walks back from the end of a run, from each function to the function that it waited for."""

    def __init__(self, run: RecordedRun, order: Order) -> None:
        self.run = run
        self.called: list[list[FunctionSpan | None]] = [[None] * len(run.tasks) for _ in PHASES]
        index_of = {task.name: index for index, task in enumerate(run.tasks)}
        for span in run.functions:
            if span.attempts:
                number = PHASES.index(span.phase)
                self.called[number][index_of[span.task.name]] = span
        self.index_of = index_of
        self.position_of = {id(span): position for position, span in enumerate(run.functions)}
        edges = (order.forward, order.forward if run.execute_in_order else None, order.backward)
        self.awaited = [
            [None] * len(run.tasks) if each is None else self.latest_before(number, each)
            for number, each in enumerate(edges)
        ]
        self.ends = [sorted(filter(None, spans), key=_ended) for spans in self.called]

    def latest_before(
        self, number: int, following: Sequence[Sequence[int]]
    ) -> list[FunctionSpan | None]:
        """For each task, return which function of the phase ended last of all that it waits for."""
        spans = self.called[number]
        latest: list[FunctionSpan | None] = [None] * len(following)
        waits = [0] * len(following)
        for after in following:
            for node in after:
                waits[node] += 1
        ready = [node for node, count in enumerate(waits) if not count]
        for node in ready:
            done = (spans[node] if node < len(spans) else None) or latest[node]
            for fed in following[node]:
                latest[fed] = _later(latest[fed], done)
                waits[fed] -= 1
                if not waits[fed]:
                    ready.append(fed)
        return latest

    def walk(self) -> list[FunctionSpan]:
        """Return the chain, from its start."""
        chain: list[FunctionSpan] = []
        span = self.last_of(POST, EXECUTE, PRE)
        while span is not None:
            chain.append(span)
            span = self.cause_of(span) or self.before(span)
        chain.reverse()
        return chain

    def last_of(self, *numbers: int) -> FunctionSpan | None:
        last: FunctionSpan | None = None
        for number in numbers:
            if self.ends[number]:
                last = _later(last, self.ends[number][-1])
        return last

    def cause_of(self, span: FunctionSpan) -> FunctionSpan | None:
        """Return the failed function because of which this function was cancelled, or None."""
        causes = [each.cause for each in self.run.cancellations if each.phase == span.phase]
        if not span.interrupted or not causes or causes[0] is None:
            return None
        number = PHASES.index(causes[0].phase)
        failed = self.called[number][self.index_of[causes[0].task.name]]
        return failed if failed is not span else None

    def before(self, span: FunctionSpan) -> FunctionSpan | None:
        number = PHASES.index(span.phase)
        awaited = self.awaited[number][self.index_of[span.task.name]]
        if number == EXECUTE:
            awaited = _later(awaited, self.last_of(PRE))
        elif number == POST:
            awaited = _later(awaited, self.last_of(PRE, EXECUTE))
        if self.run.max_concurrency is not None:
            # It may have waited until another function of the phase left its place.
            ends = self.ends[number]
            position = bisect_right(ends, span.start, key=lambda each: _ended(each)[0])
            called = self.position_of[id(span)]
            places = (
                each
                for each in reversed(ends[:position])
                if self.position_of[id(each)] < called and not each.interrupted
            )
            awaited = _later(awaited, next(places, None))
        return awaited


def _ended(span: FunctionSpan) -> tuple[float, float]:
    assert span.end is not None
    return span.end, span.end - span.start


def _later(one: FunctionSpan | None, other: FunctionSpan | None) -> FunctionSpan | None:
    """Return the function that ended later, or, at the same moment, that took longer."""
    if one is None or other is None:
        return one or other
    return other if _ended(other) > _ended(one) else one


def _graph_of(
    run: RecordedRun, replay: Replay, dependencies: Dependencies | None
) -> GraphEstimate | None:
    if not run.in_levels:
        return None
    duration = replay.run_as_graph(dependencies or {})
    if duration is None:
        return None
    return GraphEstimate(duration, run.duration - duration, dependencies is not None)


def _checked_dependencies(
    run: RecordedRun, depends_on: Mapping[Any, Iterable[Hashable]]
) -> Dependencies:
    if not run.in_levels:
        raise ValueError(
            "critical_path: depends_on is for runs in levels; this run's graph is known"
        )
    levels = {task.name: task.level for task in run.tasks}
    checked: dict[Hashable, tuple[Hashable, ...]] = {}
    for name, names in depends_on.items():
        if isinstance(names, (str, bytes)) or not isinstance(names, Iterable):
            raise TypeError(
                f"critical_path: depends_on[{shown(name)}] must be a collection of names, "
                f"got {shown(names)}"
            )
        checked[name] = tuple(names)
        for each in (name, *checked[name]):
            if each not in levels:
                raise ValueError(f"critical_path: depends_on: no task is named {shown(each)}")
        mine = levels[name]
        for each in checked[name]:
            other = levels[each]
            if mine is not None and other is not None and other >= mine:
                raise ValueError(
                    f"critical_path: depends_on: {shown(name)}, at level {mine}, cannot depend on "
                    f"{shown(each)}, at level {other}: only what is at a lower level is done before"
                )
    return checked


def divided(path: CriticalPath, most: int) -> tuple[list[PathStep], list[PathStep]]:
    """Return the steps of a table, at most `most`, and the shorter steps, which share a row.

    Several steps also share a row if together they delayed the run for less than 1 % of its time.
    """
    shortest = sorted(path.steps, key=lambda step: step.hold)
    limit = path.duration * SMALLEST_SHARE
    small = sum(hold < limit for hold in accumulate(step.hold for step in shortest))
    count = max(small if small > 1 else 0, len(path.steps) - most)
    left = set(map(id, shortest[:count]))
    return (
        [step for step in path.steps if id(step) not in left],
        [step for step in path.steps if id(step) in left],
    )


def describe_shorter(steps: Sequence[PathStep]) -> str:
    """Return a line about the steps that share a row."""
    return f"{counted(len(steps), 'shorter step')} in total"


def describe_graph(graph: GraphEstimate) -> str:
    """Return a line about the time of the run as a graph."""
    if graph.exact:
        return f"as a graph with these dependencies: {seconds(graph.duration)}"
    return (
        f"lower limit as a graph without dependencies: {seconds(graph.duration)}. "
        "Use critical_path(depends_on={...}) for the real ones."
    )


def _remark(step: PathStep) -> str:
    span = step.span
    remarks: list[str] = []
    if span.state is not State.SUCCEEDED:
        remarks.append(str(span.state))
    if span.tries > 1:
        remarks.append(f"{span.tries} attempts")
    if span.fell_back:
        remarks.append("fallback")
    return f" ({', '.join(remarks)})" if remarks else ""
