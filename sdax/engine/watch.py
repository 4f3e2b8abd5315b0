"""From the engine to the observers: makes the events of one run."""

from __future__ import annotations

import asyncio
import logging
from asyncio import CancelledError
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, TypeAlias

from .. import events
from ..common.order import PHASES
from ..common.text import counted, shown
from ..report import RunReport
from ..states import Durations, State

_logger: Final = logging.getLogger("sdax")

# By task, which failure keeps its functions from being called: the failed task, and its phase.
Causes: TypeAlias = Mapping[int, tuple[int, int]]


class Watch:
    """Tells the observers of a run what its engine does.

    The engine knows a phase by its number and a task by its index. Nothing here is kept that
    leads to what a function returned or raised.
    """

    __slots__ = (
        "_began",
        "_cause",
        "_clock",
        "_failed",
        "_observers",
        "_phase",
        "_phase_began",
        "_phases",
        "_run",
        "_run_failed",
        "_stopped",
        "_tasks",
    )

    def __init__(
        self,
        run: events.ObservedRun,
        tasks: Sequence[events.TaskInfo],
        observers: Sequence[events.Observer],
    ) -> None:
        self._run = run
        self._tasks = tasks
        self._observers = observers
        self._phase: str | None = None
        self._cause: events.Cause | None = None
        self._stopped = False  # the cause, if any, is settled
        self._run_failed = False
        self._failed: dict[int, int] = {}  # by the place of an observer: at how many events
        self._clock = asyncio.get_running_loop().time
        self._began = self._phase_began = self._clock()
        self._phases: dict[str, float] = {}  # the seconds of each that has ended

    def durations(self) -> Durations:
        """Return how long the run has taken so far, and its phases."""
        from frozendict import frozendict  # for runs with observers only

        now = self._clock()
        phases = dict(self._phases)
        if self._phase is not None:
            phases[self._phase] = now - self._phase_began
        return Durations(now - self._began, frozendict(phases))

    def _tell(self, event: events.Event) -> None:
        """Call every observer. An exception such as Ctrl-C is raised at the end."""
        stopping: BaseException | None = None
        for place, observer in enumerate(self._observers):
            try:
                try:
                    observer(event)
                except Exception:
                    with suppress(Exception):  # a handler's own: logging never touches the run
                        self._log_failure(place, event)
            except BaseException as error:
                stopping = stopping or error
        if stopping is not None:
            try:
                raise stopping
            finally:
                del stopping  # its traceback leads here

    def _log_failure(self, place: int, event: events.Event) -> None:
        """Log what an observer raised. Later ones of the run are only counted: there may be a
        thousand."""
        times = self._failed[place] = self._failed.get(place, 0) + 1
        if times == 1:
            _logger.exception(
                "observer %s failed at %s; the run goes on",
                shown(self._observers[place]),
                type(event).__name__,
            )

    def _log_further_failures(self) -> None:
        for place, times in self._failed.items():
            if times > 1:
                with suppress(Exception):
                    _logger.error(
                        "observer %s failed at %s of run %d as well",
                        shown(self._observers[place]),
                        counted(times - 1, "later event"),
                        self._run.number,
                    )

    def run_started(self) -> None:
        """The run is about to be made."""
        self._tell(events.RunStarted(self._run))

    def run_finished(self, exception: BaseException | None, report: RunReport[Any] | None) -> None:
        """The caller is about to get the report, or the exception."""
        if isinstance(exception, (CancelledError, GeneratorExit)):
            state = State.CANCELLED
        elif exception is not None or self._run_failed:
            state = State.FAILED
        else:
            # A caller that goes phase by phase may have swallowed a cancellation, which has no
            # cause. A function that returned `Finish` is a cause.
            swallowed = self._stopped and self._cause is None
            state = State.CANCELLED if swallowed else State.SUCCEEDED
        self._tell(events.RunFinished(self._run, state, exception, report))
        self._log_further_failures()
        if report is not None:
            self._observers = ()  # which may keep the exception, whose traceback leads here

    def phase_finished(self) -> None:
        """Note the end of the current phase, if there is one."""
        phase, self._phase = self._phase, None
        if phase is not None:
            self._phases[phase] = self._clock() - self._phase_began
            self._tell(events.PhaseFinished(self._run, phase))

    def attempt_started(self, number: int, index: int, attempt: int) -> None:
        """A function is about to be called."""
        task, phase = self._tasks[index], PHASES[number]
        if phase != self._phase:
            self._phase = phase
            self._phase_began = self._clock()
            self._tell(events.PhaseStarted(self._run, phase))
        if attempt == 1:
            self._tell(events.TaskStarted(self._run, task, phase))
        self._tell(events.AttemptStarted(self._run, task, phase, attempt))

    def attempt_suspended(self, number: int, index: int, attempt: int) -> None:
        """A function waits."""
        self._tell(events.AttemptSuspended(self._run, self._tasks[index], PHASES[number], attempt))

    def attempt_resumed(self, number: int, index: int, attempt: int) -> None:
        """A function is about to go on."""
        self._tell(events.AttemptResumed(self._run, self._tasks[index], PHASES[number], attempt))

    def attempt_finished(
        self,
        number: int,
        index: int,
        attempt: int,
        value: Any,
        exception: BaseException | None,
        *,
        timed_out: bool,
        cancelled: bool,
    ) -> None:
        """A function has returned or raised."""
        if exception is None:
            state = State.SUCCEEDED
        elif timed_out:
            state = State.TIMED_OUT
        else:
            state = State.CANCELLED if cancelled else State.FAILED
        task, phase = self._tasks[index], PHASES[number]
        self._tell(events.AttemptFinished(self._run, task, phase, attempt, state, value, exception))

    def retry_scheduled(
        self, number: int, index: int, attempt: int, delay: float, exception: BaseException
    ) -> None:
        """An attempt has failed, and after a pause there will be another one."""
        task, phase = self._tasks[index], PHASES[number]
        self._tell(events.RetryScheduled(self._run, task, phase, attempt, delay, exception))

    def retry_suppressed(
        self, number: int, index: int, attempt: int, reason: str, exception: BaseException
    ) -> None:
        """An attempt has failed, and there will be no other although it deserves one."""
        task, phase = self._tasks[index], PHASES[number]
        self._tell(events.RetrySuppressed(self._run, task, phase, attempt, reason, exception))

    def fell_back(self, number: int, index: int, attempts: int, exception: BaseException) -> None:
        """A function has failed for good, and its fallback is about to be called."""
        task, phase = self._tasks[index], PHASES[number]
        self._tell(events.FellBack(self._run, task, phase, attempts, exception))

    def timeout_expired(self, number: int, index: int, attempt: int, timeout: float) -> None:
        """An attempt is about to be cancelled for its timeout."""
        task, phase = self._tasks[index], PHASES[number]
        self._tell(events.TimeoutExpired(self._run, task, phase, attempt, timeout))

    def task_finished(
        self,
        number: int,
        index: int,
        attempts: int,
        state: State,
        value: Any = None,
        exception: BaseException | None = None,
        *,
        required: bool = True,
        stops: bool = True,
    ) -> None:
        """A function has ended for good. A failure of it is one of the run if the task is
        `required`, and what the run stops for if it `stops` it."""
        task, phase = self._tasks[index], PHASES[number]
        cause = self._cause if state is State.CANCELLED else None
        self._tell(
            events.TaskFinished(self._run, task, phase, attempts, state, value, exception, cause)
        )
        if exception is not None and state is not State.CANCELLED and required:
            self._run_failed = True
            if stops and not self._stopped:
                self._cause = events.Cause(task, phase)

    def run_ends_early(self, number: int, index: int) -> None:
        """A function has returned `Finish`."""
        self._cause = events.Cause(self._tasks[index], PHASES[number], finished=True)

    def tasks_skipped(self, number: int, indices: Iterable[int], causes: Causes | None) -> None:
        """Functions will not be called: because of these failures, or with the run."""
        phase = PHASES[number]
        for index in indices:
            cause = self._cause
            if causes is not None and index in causes:
                failed, in_phase = causes[index]
                cause = events.Cause(self._tasks[failed], PHASES[in_phase])
            self._tell(events.TaskSkipped(self._run, self._tasks[index], phase, cause))

    def cancellation_requested(self, number: int) -> None:
        """The functions of a phase that are suspended are about to be cancelled."""
        self._stopped = True
        self._tell(events.CancellationRequested(self._run, PHASES[number], self._cause))
