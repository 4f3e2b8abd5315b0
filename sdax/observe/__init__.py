"""The events of a run, and observers for them.

An observer is a function of one argument. sdax calls it with each event of a run as it happens.
Pass it to `process_tasks`, to `open`, or to a builder for all runs of a processor. Pass several
observers as a tuple. Use `match` to select events:

>>> def tell_failures(event: Event) -> None:
...     match event:
...         case RetryScheduled(task=task, phase=phase, delay=delay, exception=exception):
...             print(f"{task.name} {phase}: {exception!r}, again in {delay:.1f} s")
...         case TaskFinished(task=task, phase=phase, exception=exception) if exception is not None:
...             print(f"{task.name} {phase}: {exception!r}")
>>> report = await processor.process_tasks(ctx, observer=tell_failures)

It is called in the context of the function that the event is about, on the loop's own thread, so
it must not block. If it raises an `Exception`, sdax logs it on the `sdax` logger, and the run
continues. Any other exception, such as Ctrl-C, stops the run. `observer=()` runs without the
observers of the processor.
"""

from ..events import (
    AttemptFinished,
    AttemptResumed,
    AttemptStarted,
    AttemptSuspended,
    CancellationRequested,
    Cause,
    Event,
    FellBack,
    ObservedRun,
    Observer,
    PhaseFinished,
    PhaseStarted,
    RetryScheduled,
    RetrySuppressed,
    RunFinished,
    RunStarted,
    TaskFinished,
    TaskInfo,
    TaskSkipped,
    TaskStarted,
    TimeoutExpired,
)
from .critical_path import CriticalPath, GraphEstimate, PathStep
from .logs import EventLogger
from .run import RunSpan
from .spans import AttemptSpan, Cancellation, FunctionSpan, PhaseSpan
from .timeline import Timeline

__all__ = [
    "AttemptFinished",
    "AttemptResumed",
    "AttemptSpan",
    "AttemptStarted",
    "AttemptSuspended",
    "Cancellation",
    "CancellationRequested",
    "Cause",
    "CriticalPath",
    "Event",
    "EventLogger",
    "FellBack",
    "FunctionSpan",
    "GraphEstimate",
    "ObservedRun",
    "Observer",
    "PathStep",
    "PhaseFinished",
    "PhaseSpan",
    "PhaseStarted",
    "RetryScheduled",
    "RetrySuppressed",
    "RunFinished",
    "RunSpan",
    "RunStarted",
    "TaskFinished",
    "TaskInfo",
    "TaskSkipped",
    "TaskStarted",
    "Timeline",
    "TimeoutExpired",
]
