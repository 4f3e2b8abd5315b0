"""The records of a timeline, written as the events come, and their spans at any time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Any, Final, TypeAlias

from .. import events
from ..common.text import shortened, shown
from ..states import State
from .run import RunSpan
from .spans import AttemptSpan, Cancellation, FunctionSpan, PhaseSpan

LONGEST_EXCEPTION: Final = 300  # characters of its repr that are kept

Place: TypeAlias = tuple[str, Hashable]  # a phase, and the name of a task


class AttemptRecord:
    """An attempt at a function, running or finished."""

    __slots__ = (
        "busy",
        "covers",
        "delay",
        "end",
        "exception",
        "number",
        "since",
        "start",
        "state",
        "suppressed",
        "timeout",
    )

    def __init__(self, number: int, now: float, covers: str | None) -> None:
        self.number = number
        self.start = now
        self.end: float | None = None
        self.busy = 0.0
        self.since: float | None = now  # when it last began to run, None while it is suspended
        self.state: State | None = None
        self.exception: str | None = None
        self.timeout: float | None = None
        self.delay: float | None = None
        self.suppressed: str | None = None
        self.covers = covers

    def pause(self, now: float) -> None:
        if self.since is not None:
            self.busy += now - self.since
            self.since = None

    def span(self, now: float) -> AttemptSpan:
        running = 0.0 if self.since is None else now - self.since
        return AttemptSpan(
            self.number,
            self.start,
            self.end,
            self.busy + running,
            self.state,
            self.exception,
            self.timeout,
            self.delay,
            self.suppressed,
            self.covers,
        )


class FunctionRecord:
    """The function of a task in a phase."""

    __slots__ = ("attempts", "cause", "covers", "end", "exception", "start", "state", "task")

    def __init__(self, task: events.TaskInfo, now: float) -> None:
        self.task = task
        self.start = now
        self.end: float | None = None
        self.state: State | None = None
        self.exception: str | None = None
        self.cause: events.Cause | None = None
        self.covers: str | None = None  # the exception for the fallback, which is called next
        self.attempts: list[AttemptRecord] = []

    def span(self, phase: str, now: float) -> FunctionSpan:
        return FunctionSpan(
            self.task,
            phase,
            self.start,
            self.end,
            self.state,
            self.exception,
            self.cause,
            tuple(attempt.span(now) for attempt in self.attempts.copy()),
        )


class RunRecord:
    """A run. Only its own thread writes it, and any thread can read it."""

    def __init__(self, number: int, run: events.ObservedRun, now: float) -> None:
        self.number = number
        self.thread = threading.current_thread().name
        self.tasks = run.tasks
        self.execute_in_order = run.processor.execute_order != "at once"
        self.max_concurrency: int | None = run.processor.max_concurrency
        self.keeps_going = run.processor.on_failure == "keep going"
        self.start = now
        self.end: float | None = None
        self.state: State | None = None
        self.exception: str | None = None
        self.phases: list[PhaseSpan] = []
        self.functions: dict[Place, FunctionRecord] = {}
        self.cancellations: list[Cancellation] = []

    def span(self, now: float) -> RunSpan:
        functions = self.functions.copy().items()
        return RunSpan(
            number=self.number,
            thread=self.thread,
            start=self.start,
            end=self.end,
            now=now,
            state=self.state,
            exception=self.exception,
            tasks=self.tasks,
            execute_in_order=self.execute_in_order,
            max_concurrency=self.max_concurrency,
            keeps_going=self.keeps_going,
            phases=tuple(self.phases),
            functions=tuple(function.span(phase, now) for (phase, _), function in functions),
            cancellations=tuple(self.cancellations),
        )

    def finished(self, event: events.RunFinished, now: float) -> None:
        self.end = now
        self.state = event.state
        self.exception = _described(event.exception)

    def phase_started(self, event: events.PhaseStarted, now: float) -> None:
        self.phases.append(PhaseSpan(event.phase, now, None))

    def phase_finished(self, event: events.PhaseFinished, now: float) -> None:
        last = self.phases[-1]
        self.phases[-1] = PhaseSpan(last.phase, last.start, now)
        self.goes_on(now)

    def task_started(self, event: events.TaskStarted, now: float) -> None:
        self.functions[event.phase, event.task.name] = FunctionRecord(event.task, now)

    def task_finished(self, event: events.TaskFinished, now: float) -> None:
        place = (event.phase, event.task.name)
        function = self.functions.get(place)
        if function is None:  # the loop's task factory raised
            function = self.functions[place] = FunctionRecord(event.task, now)
        function.end = now
        function.state = event.state
        function.exception = _described(event.exception)
        function.cause = event.cause
        self.goes_on(now)

    def task_skipped(self, event: events.TaskSkipped, now: float) -> None:
        function = FunctionRecord(event.task, now)
        function.end = now
        function.state = State.SKIPPED
        function.cause = event.cause
        self.functions[event.phase, event.task.name] = function

    def attempt_started(self, event: events.AttemptStarted, now: float) -> None:
        function = self.functions[event.phase, event.task.name]
        function.attempts.append(AttemptRecord(event.attempt, now, function.covers))

    def attempt_suspended(self, event: events.AttemptSuspended, now: float) -> None:
        self.attempt(event).pause(now)

    def attempt_resumed(self, event: events.AttemptResumed, now: float) -> None:
        self.attempt(event).since = now

    def attempt_finished(self, event: events.AttemptFinished, now: float) -> None:
        attempt = self.attempt(event)
        attempt.pause(now)
        attempt.end = now
        attempt.state = event.state
        attempt.exception = _described(event.exception)

    def retry_scheduled(self, event: events.RetryScheduled, now: float) -> None:
        self.attempt(event).delay = event.delay

    def retry_suppressed(self, event: events.RetrySuppressed, now: float) -> None:
        self.attempt(event).suppressed = event.reason

    def fell_back(self, event: events.FellBack, now: float) -> None:
        self.functions[event.phase, event.task.name].covers = _described(event.exception)

    def timeout_expired(self, event: events.TimeoutExpired, now: float) -> None:
        self.attempt(event).timeout = event.timeout

    def cancellation_requested(self, event: events.CancellationRequested, now: float) -> None:
        self.cancellations.append(Cancellation(now, event.phase, event.cause))

    def attempt(
        self,
        event: events.AttemptSuspended
        | events.AttemptResumed
        | events.AttemptFinished
        | events.RetryScheduled
        | events.RetrySuppressed
        | events.TimeoutExpired,
    ) -> AttemptRecord:
        return self.functions[event.phase, event.task.name].attempts[-1]

    def goes_on(self, now: float) -> None:
        """Move the end of an abandoned run that still cleans up."""
        if self.end is not None:
            self.end = now


def _described(exception: BaseException | None) -> str | None:
    return None if exception is None else shortened(shown(exception), LONGEST_EXCEPTION)


WRITERS: Final[dict[type[Any], Callable[[RunRecord, Any, float], None]]] = {
    events.RunFinished: RunRecord.finished,
    events.PhaseStarted: RunRecord.phase_started,
    events.PhaseFinished: RunRecord.phase_finished,
    events.TaskStarted: RunRecord.task_started,
    events.TaskFinished: RunRecord.task_finished,
    events.TaskSkipped: RunRecord.task_skipped,
    events.AttemptStarted: RunRecord.attempt_started,
    events.AttemptSuspended: RunRecord.attempt_suspended,
    events.AttemptResumed: RunRecord.attempt_resumed,
    events.AttemptFinished: RunRecord.attempt_finished,
    events.RetryScheduled: RunRecord.retry_scheduled,
    events.RetrySuppressed: RunRecord.retry_suppressed,
    events.FellBack: RunRecord.fell_back,
    events.TimeoutExpired: RunRecord.timeout_expired,
    events.CancellationRequested: RunRecord.cancellation_requested,
}
