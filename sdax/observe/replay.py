"""Replays a run with recorded times, except for the change that is asked about."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from functools import cached_property
from heapq import heappop, heappush
from typing import TypeAlias

from ..common.order import EXECUTE, PHASES, POST, PRE
from ..states import FAILURES, State
from .spans import FunctionSpan, RecordedRun

Edges: TypeAlias = list[list[int]]


class Order:
    """The order of a run: for each node, the nodes that wait for it.

    `forward` goes from dependencies to dependents, and `backward` back. The first nodes are the
    tasks, by index. The others are between levels. Without them, each task of a level would need
    an edge to each task of the next.
    """

    def __init__(self, run: RecordedRun, depends_on: Mapping[Hashable, Sequence[Hashable]] | None):
        index_of = {task.name: index for index, task in enumerate(run.tasks)}
        self.forward: Edges = [[] for _ in run.tasks]
        levels: dict[int, list[int]] = {}
        for index, task in enumerate(run.tasks):
            if depends_on is not None or task.level is None:
                names = (task.depends_on if depends_on is None else depends_on.get(task.name)) or ()
                for name in dict.fromkeys(names):
                    self.forward[index_of[name]].append(index)
            else:
                levels.setdefault(task.level, []).append(index)
        for number, level in enumerate(sorted(levels)):
            if number:
                self.forward[-1] += levels[level]
            self.forward.append([])
            for index in levels[level]:
                self.forward[index].append(len(self.forward) - 1)
        self.backward: Edges = [[] for _ in self.forward]
        for node, following in enumerate(self.forward):
            for after in following:
                self.backward[after].append(node)


class UnknownError(Exception):
    """The replay needs a time that the run did not record."""


class Replay:
    """A run that can be replayed with other times or another order."""

    def __init__(self, run: RecordedRun) -> None:
        self.run = run
        self.order = Order(run, None)
        index_of = {task.name: index for index, task in enumerate(run.tasks)}
        self.spans: list[dict[int, FunctionSpan]] = [{} for _ in PHASES]
        for span in run.functions:
            self.spans[PHASES.index(span.phase)][index_of[span.task.name]] = span

    @cached_property
    def duration(self) -> float | None:
        """The time of the replay without a change, or None if the run did not record enough.

        It is the time of the run without the time of the engine, the loop and its other work.
        """
        return self._play(self.order)

    def run_without(self, phase: str, name: Hashable) -> float | None:
        """Return the time of the run if this function took no time."""
        if self.duration is None:
            return None
        without = self._play(self.order, (phase, name))
        return None if without is None else self.run.duration - (self.duration - without)

    def run_as_graph(self, depends_on: Mapping[Hashable, Sequence[Hashable]]) -> float | None:
        """Return the time of the run with these dependencies instead of levels."""
        if self.duration is None:
            return None
        graph = self._play(Order(self.run, depends_on))
        return None if graph is None else self.run.duration - (self.duration - graph)

    def stops(self, span: FunctionSpan) -> bool:
        """Return True if this function of `pre_execute` or `execute` stopped the run.

        It failed, or returned `Finish`.
        """
        if span.state in FAILURES:
            return not (span.spared or self.run.keeps_going)
        return (span.phase, span.task.name) in self.finishing

    def holds_up(self, span: FunctionSpan) -> bool:
        """Return True if what depends on this function is not called after it, but the rest is."""
        return span.state in FAILURES and not span.spared

    @cached_property
    def finishing(self) -> set[tuple[str, Hashable]]:
        """The function that ended the run early, if there is one."""
        causes = (each.cause for each in self.run.cancellations)
        return {(each.phase, each.task.name) for each in causes if each and each.finished}

    def _play(self, order: Order, timeless: tuple[str, Hashable] | None = None) -> float | None:
        # The moment of the caller's cancellation in another order is unknown.
        if any(each.cause is None for each in self.run.cancellations):
            return None
        try:
            return _Play(self, order, timeless).run()
        except UnknownError:
            return None


class _Play:
    """One replay."""

    def __init__(self, replay: Replay, order: Order, timeless: tuple[str, Hashable] | None) -> None:
        self.replay = replay
        self.order = order
        self.timeless = timeless
        self.places = replay.run.max_concurrency or math.inf
        self.time = 0.0

    def run(self) -> float:
        size = len(self.replay.run.tasks)
        none: Edges = [[] for _ in self.order.forward]
        opened, aborted = self.phase(PRE, self.order.forward, set(range(size)))
        if not aborted:
            in_order = self.replay.run.execute_in_order
            spans = self.replay.spans[PRE].items()
            failed = {task for task, span in spans if span.state in FAILURES}
            self.phase(EXECUTE, self.order.forward if in_order else none, opened - failed)
        self.phase(POST, self.order.backward, opened)
        return self.time

    def phase(self, number: int, following: Edges, due: set[int]) -> tuple[set[int], bool]:
        """Play a phase. Return the tasks that started in it, and True if a function ended it."""
        spans = self.replay.spans[number]
        waits = [0] * len(following)
        for after in following:
            for node in after:
                waits[node] += 1
        opening = [node for node, count in enumerate(waits) if not count]
        queue: list[int] = []  # opened and not called yet, in the order of a heap within an opening
        started: set[int] = set()
        running: list[tuple[float, int, int]] = []  # end, serial number, task
        calls = 0
        first = 0
        while True:
            opened: list[int] = []
            while opening:
                node = opening.pop()
                if node in due:
                    if node in spans:
                        opened.append(node)
                        continue
                    started.add(node)
                opening += self.done(node, following, waits)
            queue += sorted(opened)
            ended: int | None = None
            while ended is None and first < len(queue) and len(running) < self.places:
                node = queue[first]
                first += 1
                started.add(node)
                duration = self.time_of(spans[node])
                if self.waits(spans[node]):
                    calls += 1
                    heappush(running, (self.time + duration, calls, node))
                else:
                    self.time += duration
                    ended = node
            if ended is None:
                if not running:
                    return started, False
                end, _, ended = heappop(running)
                if math.isinf(end):
                    raise UnknownError  # it waits for a function that was cancelled before it ended
                self.time = max(self.time, end)
            if number != POST and self.replay.stops(spans[ended]):
                self.cut([spans[task] for _, _, task in running])
                return started, True
            if number == POST or not self.replay.holds_up(spans[ended]):
                opening = self.done(ended, following, waits)

    def done(self, node: int, following: Edges, waits: list[int]) -> list[int]:
        ready: list[int] = []
        for after in following[node]:
            waits[after] -= 1
            if not waits[after]:
                ready.append(after)
        return ready

    def waits(self, span: FunctionSpan) -> bool:
        return span.suspended and (span.phase, span.task.name) != self.timeless

    def time_of(self, span: FunctionSpan) -> float:
        timeless = (span.phase, span.task.name) == self.timeless
        if span.state is State.SKIPPED or not span.attempts or span.end is None:
            raise UnknownError
        if span.interrupted:
            if timeless:
                raise UnknownError
            return math.inf
        return 0.0 if timeless else span.end - span.start

    def cut(self, cancelled: list[FunctionSpan]) -> None:
        """Cancel the suspended functions, and wait for them as long as the run did."""
        reaction = 0.0
        for span in cancelled:
            if span.interrupted and span.end is not None:
                requested = next(
                    each.time for each in self.replay.run.cancellations if each.phase == span.phase
                )
                reaction = max(reaction, span.end - requested)
        self.time += reaction
