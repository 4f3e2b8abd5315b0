"""Observers for tests: a record of events as lines, and the rules that every record keeps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Any, TypeAlias

from exceptions import RefusedError
from sdax import Finish, State
from sdax.observe import (
    AttemptFinished,
    AttemptResumed,
    AttemptStarted,
    AttemptSuspended,
    CancellationRequested,
    Cause,
    Event,
    FellBack,
    PhaseFinished,
    PhaseStarted,
    RetryScheduled,
    RetrySuppressed,
    RunFinished,
    RunStarted,
    TaskFinished,
    TaskSkipped,
    TaskStarted,
    TimeoutExpired,
)

PHASES = ("pre_execute", "execute", "post_execute")
SHORT = dict(zip(PHASES, ("pre", "execute", "post"), strict=True))
FAILED = (State.FAILED, State.TIMED_OUT)

OUTLINE = (
    TaskFinished,
    TaskSkipped,
    CancellationRequested,
    RetryScheduled,
    RetrySuppressed,
    FellBack,
    TimeoutExpired,
)

Place: TypeAlias = tuple[Hashable, str]


class Recorder(list[Event]):
    """An observer that keeps the events."""

    def __call__(self, event: Event) -> None:
        self.append(event)

    def lines(self, *kinds: type) -> list[str]:
        """Return the events, or those of these kinds, as lines."""
        return [line(event) for event in self if not kinds or isinstance(event, kinds)]


def line(event: Event) -> str:
    """Show an event in short: `A.pre 1 suspended`."""
    what = _WHAT[type(event)]
    if isinstance(event, (RunStarted, RunFinished)):
        words = ["run"]
    elif isinstance(event, (PhaseStarted, PhaseFinished, CancellationRequested)):
        words = [SHORT[event.phase]]
    else:
        words = [_place(event)]
    fields: dict[str, Any] = event._asdict()
    if "attempt" in fields:
        words.append(str(fields["attempt"]))
    words += [str(fields["state"])] if "state" in fields else [what] if what else []
    if "attempts" in fields:
        words.append(f"after {fields['attempts']}")
    if fields.get("value") is not None:
        words.append(f"= {fields['value']!r}")
    if "exception" in fields and fields["exception"] is not None:
        words.append(type(fields["exception"]).__name__)
    if fields.get("cause") is not None:
        words.append(f"because of {_place(fields['cause'])}")
    return " ".join(words)


def _place(event: Any) -> str:
    return f"{event.task.name}.{SHORT[event.phase]}"


_WHAT: dict[type, str] = {
    RunStarted: "started",
    RunFinished: "",
    PhaseStarted: "started",
    PhaseFinished: "finished",
    TaskStarted: "",
    TaskFinished: "",
    TaskSkipped: "skipped",
    AttemptStarted: "",
    AttemptSuspended: "suspended",
    AttemptResumed: "resumed",
    AttemptFinished: "",
    RetryScheduled: "retry",
    RetrySuppressed: "no retry",
    FellBack: "falls back",
    TimeoutExpired: "timeout",
    CancellationRequested: "cancelled",
}


def run_of(*lines: str, ends: str = "succeeded") -> list[str]:
    return ["run started", *lines, f"run {ends}"]


def in_phase(phase: str, *lines: str) -> list[str]:
    return [f"{phase} started", *lines, f"{phase} finished"]


def called(place: str, result: str = "succeeded", *steps: str) -> list[str]:
    """The events of a function with one attempt."""
    return [
        place,
        f"{place} 1",
        *(f"{place} 1 {step}" for step in steps),
        f"{place} 1 {result}",
        f"{place} {result.replace(' ', ' after 1 ', 1) if ' ' in result else result + ' after 1'}",
    ]


def broken_rules(events: Sequence[Event]) -> list[str]:
    """Return what is wrong with the events of one run that somebody waited for to its end."""
    return [
        *_run_rules(events),
        *_phase_rules(events),
        *_attempt_rules(events),
        *_cause_rules(events),
        *_report_rules(events),
    ]


def _run_rules(events: Sequence[Event]) -> Iterator[str]:
    kinds = Counter(type(event) for event in events)
    if not isinstance(events[0], RunStarted) or kinds[RunStarted] != 1:
        yield "RunStarted must come first, and once"
    last = events[-1]
    if not isinstance(last, RunFinished) or kinds[RunFinished] != 1:
        yield "RunFinished must come last, and once"
    elif (last.exception is None) != (last.state is State.SUCCEEDED):
        yield f"{last.exception!r} does not go with {last.state}"
    if any(event.run is not events[0].run for event in events):
        yield "the run of an event is another one"


def _phase_rules(events: Iterable[Event]) -> Iterator[str]:
    """Phases come in order, none inside another, and attempts inside of theirs."""
    current: str | None = None
    seen: list[str] = []
    for event in events:
        if isinstance(event, PhaseStarted):
            if current is not None:
                yield f"{event.phase} started inside {current}"
            current = event.phase
            seen.append(current)
        elif isinstance(event, PhaseFinished):
            if event.phase != current:
                yield f"{event.phase} finished inside {current}"
            current = None
        elif isinstance(event, _ATTEMPT_EVENTS) and event.phase != current:
            yield f"{line(event)} inside {current}"
    if current is not None:
        yield f"{current} did not finish"
    if seen != sorted(set(seen), key=PHASES.index):
        yield f"phases out of order: {seen}"


_ATTEMPT_EVENTS = (
    TaskStarted,
    AttemptStarted,
    AttemptSuspended,
    AttemptResumed,
    AttemptFinished,
    RetryScheduled,
    RetrySuppressed,
    FellBack,
    TimeoutExpired,
)

# What may follow what, in the events of one function.
_FOLLOWS: dict[type | None, tuple[type, ...]] = {
    None: (TaskStarted, TaskSkipped, TaskFinished),
    TaskStarted: (AttemptStarted,),
    AttemptStarted: (AttemptSuspended, AttemptFinished),
    AttemptSuspended: (AttemptResumed, TimeoutExpired),
    TimeoutExpired: (AttemptResumed,),
    AttemptResumed: (AttemptSuspended, AttemptFinished),
    AttemptFinished: (RetryScheduled, RetrySuppressed, FellBack, TaskFinished),
    RetrySuppressed: (FellBack, TaskFinished),
    FellBack: (AttemptStarted,),
    RetryScheduled: (AttemptStarted, TaskFinished),
    TaskFinished: (),
    TaskSkipped: (),
}


def _attempt_rules(events: Iterable[Event]) -> Iterator[str]:
    """The events of each function follow each other as they must, to the end."""
    functions: dict[Place, list[Any]] = {}
    for event in events:
        if isinstance(event, (*_ATTEMPT_EVENTS, TaskFinished, TaskSkipped)):
            functions.setdefault((event.task.name, event.phase), []).append(event)
    for place, own in functions.items():
        before: Any = None
        attempt = 0
        expired = False
        fell_back = False
        for event in own:
            anew = before is None or _is_refused_cleanup(before)
            if type(event) not in _FOLLOWS[None if anew else type(before)]:
                yield f"{place}: {line(event)} after {before and line(before)}"
            if isinstance(event, FellBack):
                if fell_back or event.attempts != attempt:
                    yield f"{place}: {line(event)} after attempt {attempt}"
                fell_back = True
            elif isinstance(event, (RetryScheduled, RetrySuppressed)) and fell_back:
                yield f"{place}: {line(event)} after the fallback"
            if isinstance(event, AttemptStarted):
                attempt += 1
                expired = False
            expired = expired or isinstance(event, TimeoutExpired)
            if getattr(event, "attempt", attempt) != attempt:
                yield f"{place}: {line(event)} in attempt {attempt}"
            if isinstance(event, AttemptFinished):
                if event.state is State.TIMED_OUT and not expired:
                    yield f"{place}: {line(event)} without a timeout"
                if (event.state is State.SUCCEEDED) != (event.exception is None):
                    yield f"{place}: {line(event)} with {event.exception!r}"
            before = event
        if not isinstance(before, (TaskFinished, TaskSkipped)):
            yield f"{place} did not finish"
        if isinstance(before, TaskFinished) and before.attempts != max(attempt - fell_back, 1):
            yield f"{place}: {line(before)}, but there were {attempt}"


def _cause_rules(events: Iterable[Event]) -> Iterator[str]:
    """What is cancelled names the failure, if there was one, that was first of those that the run
    could not go on after, or who has finished the run. What is skipped names that too, or a
    failure after which the run has gone on."""
    failure: Cause | None = None
    survived: dict[Cause, bool] = {}  # and whether what depends on it is skipped
    stopped: dict[str, Cause | None] = {}
    for event in events:
        if isinstance(event, AttemptFinished):
            if isinstance(event.value, Finish) and event.phase != "post_execute" and not stopped:
                failure = failure or Cause(event.task, event.phase, finished=True)
        elif isinstance(event, CancellationRequested):
            if event.phase in stopped or event.phase == "post_execute":
                yield f"{line(event)} once more, or in cleanup"
            stopped[event.phase] = failure
            if event.cause != failure:
                yield f"{line(event)}, but the failure is {failure}"
        elif isinstance(event, TaskSkipped):
            cause = next(iter(stopped.values()), None)
            own = Cause(event.task, "pre_execute")
            # A resource whose set-up has failed has no cleanup.
            if event.phase != "pre_execute" and own in survived:
                if event.cause != own:
                    yield f"{line(event)}, but its own pre_execute has failed"
            elif event.cause in survived:
                if not survived[event.cause] or not _depends(event, event.cause):
                    yield f"{line(event)}, but it does not depend on that"
            elif event.cause != cause:
                yield f"{line(event)}, but the failure is {cause}"
        elif isinstance(event, TaskFinished):
            wanted = stopped.get(event.phase) if event.state is State.CANCELLED else None
            if event.cause != wanted:
                yield f"{line(event)}, but the failure is {wanted}"
            if event.state in FAILED and _survives(event):
                survived[Cause(event.task, event.phase)] = event.task.required
            elif event.state in FAILED and failure is None and not stopped:
                failure = Cause(event.task, event.phase)


def _is_refused_cleanup(event: Any) -> bool:
    """Return True for the end of a cleanup that a task factory has refused. It is called again."""
    return (
        isinstance(event, TaskFinished)
        and event.phase == "post_execute"
        and isinstance(event.exception, RefusedError)
    )


def _survives(event: TaskFinished) -> bool:
    """Return True for a failure after which the run goes on."""
    keeps_going = event.run.processor.on_failure == "keep going"
    spared = keeps_going or not event.task.required
    return spared and event.phase != "post_execute" and isinstance(event.exception, Exception)


def _depends(event: TaskSkipped, cause: Cause) -> bool:
    """Return True if a task stands above another one, or depends on it, directly or not."""
    infos = {info.name: info for info in event.run.tasks}
    if cause.task.level is not None:
        assert event.task.level is not None
        return event.task.level > cause.task.level
    left = [event.task.name]
    for name in left:
        left += [each for each in infos[name].depends_on or () if each not in left]
    return cause.task.name in left[1:]


def _place_of(event: Any) -> Place | None:
    return (event.task.name, event.phase) if hasattr(event, "task") else None


def _report_rules(events: Sequence[Event]) -> Iterator[str]:
    """The report at the end says the same as the events."""
    last = events[-1]
    if not isinstance(last, RunFinished) or last.report is None:
        return
    told: dict[Place, tuple[Any, ...]] = {}
    failed: dict[Place, list[BaseException]] = {}
    covered: dict[Place, BaseException] = {}
    refused: set[Place] = set()
    for event in events:
        place: Any = _place_of(event)
        if isinstance(event, RetryScheduled):
            failed.setdefault(place, []).append(event.exception)
        elif isinstance(event, FellBack):
            covered[place] = event.exception
        elif isinstance(event, TaskSkipped):
            told[place] = (State.SKIPPED, 0, None, None, (), False)
        elif isinstance(event, TaskFinished):
            # The report keeps no more than an Exception.
            kept = event.exception if isinstance(event.exception, Exception) else None
            if event.state not in FAILED and kept is None:
                kept = covered.get(place)
            if _is_refused_cleanup(event):
                refused.add(place)
            earlier = failed.get(place, [])
            if len(earlier) == event.attempts:  # it was cancelled in the pause after that
                earlier.pop()
            told[place] = (
                event.state,
                event.attempts,
                event.value,
                kept,
                tuple(earlier),
                place in covered,
            )
    for info in last.run.tasks:
        for phase, reported in zip(PHASES, last.report[info.name], strict=True):
            wanted = told.get((info.name, phase), (State.ABSENT, 0, None, None, (), False))
            if (info.name, phase) in refused and reported.state is State.FAILED:
                continue  # the failure counts, whatever the other call did
            if tuple(reported) != wanted:
                yield f"{info.name} {phase}: the report says {reported}, the events {wanted}"
