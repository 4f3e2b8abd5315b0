"""Runs as OpenTelemetry spans and metrics. Needs the extra `otel`, that is `opentelemetry-api`."""

from __future__ import annotations

from collections.abc import Hashable
from contextvars import Token
from dataclasses import dataclass, field
from time import perf_counter
from typing import Final, TypeAlias
from weakref import WeakKeyDictionary

from .. import __version__
from ..events import (
    AttemptFinished,
    AttemptStarted,
    CancellationRequested,
    Cause,
    Event,
    ObservedRun,
    RetryScheduled,
    RunFinished,
    RunStarted,
    TaskFinished,
    TaskInfo,
    TaskStarted,
    TimeoutExpired,
)
from ..report import FAILURES, State
from ..text import one_line, shown

try:
    from opentelemetry.context import Context, attach, detach
    from opentelemetry.metrics import MeterProvider, get_meter
    from opentelemetry.trace import (
        Span,
        StatusCode,
        TracerProvider,
        get_current_span,
        get_tracer,
        set_span_in_context,
    )
except ImportError as error:
    raise ImportError(
        "sdax.observe.otel needs opentelemetry-api; install it with: pip install 'sdax[otel]'"
    ) from error

Attributes: TypeAlias = dict[str, str | int | float | list[str]]

# The SDK's own buckets are for milliseconds.
BUCKETS: Final = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0),
)


class OpenTelemetryObserver:
    """An observer that makes OpenTelemetry spans and metrics of runs, of any number at once.

    Each run has a span `sdax.run`, whose parent is the span that is current in the caller. Below
    it is a span for each function that is called, by the name of its task and its phase
    (`User.pre_execute`), and below that one for each attempt (`User.pre_execute attempt`), which
    is current inside the function: spans that libraries make there nest under it. A span of what
    failed has the status `ERROR`, the attribute `error.type` and, for runs and attempts, the
    exception as an event. A cancellation is no error: `sdax.state` says `cancelled`, and
    `sdax.cause.task` and `sdax.cause.phase` because of what.

    The metrics are `sdax.run.duration` and `sdax.task.duration` (histograms, in seconds),
    `sdax.task.retries` and `sdax.task.failures` (counters) and `sdax.active_runs`, the runs in
    flight. Those of tasks have the name of the task as an attribute, so it should be one of few.

    `tracer_provider` and `meter_provider` are the global ones by default.

    >>> processor = AsyncTaskProcessor[Context].builder(observer=OpenTelemetryObserver())
    """

    def __init__(
        self,
        *,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
    ) -> None:
        for name, provider, kind in (
            ("tracer_provider", tracer_provider, TracerProvider),
            ("meter_provider", meter_provider, MeterProvider),
        ):
            if provider is not None and not isinstance(provider, kind):
                raise TypeError(f"{name} must be a {kind.__name__} or None, got {shown(provider)}")
        self._tracer = get_tracer("sdax", __version__, tracer_provider)
        meter = get_meter("sdax", __version__, meter_provider)
        self._run_duration = meter.create_histogram(
            "sdax.run.duration",
            "s",
            "How long runs take, their cleanup included.",
            explicit_bucket_boundaries_advisory=BUCKETS,
        )
        self._task_duration = meter.create_histogram(
            "sdax.task.duration",
            "s",
            "How long the function of a task in a phase takes, all its attempts included.",
            explicit_bucket_boundaries_advisory=BUCKETS,
        )
        self._retries = meter.create_counter(
            "sdax.task.retries", "{retry}", "Attempts that failed and were followed by another."
        )
        self._failures = meter.create_counter(
            "sdax.task.failures", "{failure}", "Functions that failed or timed out for good."
        )
        self._active_runs = meter.create_up_down_counter(
            "sdax.active_runs", "{run}", "Runs in flight."
        )
        # A run that nobody waits for any more goes on after its RunFinished: what is kept of it
        # goes with the run itself.
        self._runs: WeakKeyDictionary[ObservedRun, _Run] = WeakKeyDictionary()

    def __call__(self, event: Event, /) -> None:
        """Begin, mark or end a span, and count."""
        match event:
            case AttemptStarted():
                self._attempt_started(event)
            case AttemptFinished():
                self._attempt_finished(event)
            case TaskStarted():
                self._task_started(event)
            case TaskFinished():
                self._task_finished(event)
            case RetryScheduled():
                self._retry_scheduled(event)
            case TimeoutExpired():
                self._timeout_expired(event)
            case CancellationRequested():
                self._cancellation_requested(event)
            case RunStarted():
                self._run_started(event)
            case RunFinished():
                self._run_finished(event)
            case _:
                pass

    def _run_started(self, event: RunStarted) -> None:
        span = self._tracer.start_span("sdax.run", attributes={"sdax.tasks": len(event.run.tasks)})
        self._runs[event.run] = _Run(span)
        self._active_runs.add(1)

    def _run_finished(self, event: RunFinished) -> None:
        run = self._runs[event.run]
        if event.report is not None:
            del self._runs[event.run]
        facts = _facts(event.state, event.exception)
        context = set_span_in_context(run.span)
        self._active_runs.add(-1)
        self._run_duration.record(perf_counter() - run.start, facts, context)
        _end(run.span, facts, event.state, event.exception)

    def _task_started(self, event: TaskStarted) -> None:
        run = self._runs[event.run]
        run.functions[event.phase, event.task.name] = self._new_function(run, event)

    def _new_function(self, run: _Run, event: TaskStarted | TaskFinished) -> _Function:
        attributes = _described(event.task, event.phase)
        return _Function(
            self._tracer.start_span(
                f"{attributes['sdax.task.name']}.{event.phase}",
                set_span_in_context(run.span),
                attributes=attributes,
            )
        )

    def _task_finished(self, event: TaskFinished) -> None:
        run = self._runs[event.run]
        function = run.functions.pop((event.phase, event.task.name), None)
        uncalled = function is None
        if function is None:  # the loop's task factory made nothing to run it in
            function = self._new_function(run, event)
        facts = _facts(event.state, event.exception)
        labels = _labels(event) | facts
        context = set_span_in_context(function.span)
        self._task_duration.record(perf_counter() - function.start, labels, context)
        if event.state in FAILURES:
            self._failures.add(1, labels, context)
        facts |= _because_of(event.cause) | {"sdax.attempts": event.attempts}
        # Else it is with the attempt that raised it.
        exception = event.exception if uncalled else None
        _end(function.span, facts, event.state, exception)

    def _attempt_started(self, event: AttemptStarted) -> None:
        function = self._function_of(event)
        attributes = _described(event.task, event.phase) | {"sdax.attempt": event.attempt}
        function.attempt = self._tracer.start_span(
            f"{attributes['sdax.task.name']}.{event.phase} attempt",
            set_span_in_context(function.span),
            attributes=attributes,
        )
        function.token = attach(set_span_in_context(function.attempt))

    def _attempt_finished(self, event: AttemptFinished) -> None:
        function = self._function_of(event)
        span, token = function.attempt, function.token
        function.token = None
        # A function that ends elsewhere than where it began, or that leaves a span of its own
        # behind, takes what is current with it: its context is a copy, and ends with it.
        if token is not None and get_current_span() is span:
            detach(token)
        if span is not None:
            _end(span, _facts(event.state, event.exception), event.state, event.exception)

    def _retry_scheduled(self, event: RetryScheduled) -> None:
        function = self._function_of(event)
        labels = _labels(event) | {"error.type": _error_type(event.exception)}
        self._retries.add(1, labels, set_span_in_context(function.span))
        function.span.add_event(
            "sdax.retry", {"sdax.attempt": event.attempt, "sdax.retry.delay": event.delay}
        )

    def _timeout_expired(self, event: TimeoutExpired) -> None:
        span = self._function_of(event).attempt
        if span is not None:
            span.add_event("sdax.timeout", {"sdax.timeout": event.timeout})

    def _cancellation_requested(self, event: CancellationRequested) -> None:
        attributes: Attributes = {"sdax.phase": event.phase} | _because_of(event.cause)
        self._runs[event.run].span.add_event("sdax.cancellation", attributes)

    def _function_of(
        self, event: AttemptStarted | AttemptFinished | RetryScheduled | TimeoutExpired
    ) -> _Function:
        return self._runs[event.run].functions[event.phase, event.task.name]


@dataclass(slots=True)
class _Function:
    """The function of a task in a phase, while it is under way."""

    span: Span
    start: float = field(default_factory=perf_counter)
    attempt: Span | None = None
    token: Token[Context] | None = None


@dataclass(slots=True)
class _Run:
    """A run, while it is under way."""

    span: Span
    start: float = field(default_factory=perf_counter)
    functions: dict[tuple[str, Hashable], _Function] = field(default_factory=dict)


def _described(task: TaskInfo, phase: str) -> Attributes:
    attributes: Attributes = {"sdax.task.name": one_line(task.name), "sdax.phase": phase}
    if task.level is not None:
        attributes["sdax.task.level"] = task.level
    if task.depends_on is not None:
        attributes["sdax.task.depends_on"] = [one_line(name) for name in task.depends_on]
    return attributes


def _labels(event: TaskFinished | RetryScheduled) -> Attributes:
    return {"sdax.task.name": one_line(event.task.name), "sdax.phase": event.phase}


def _facts(state: State, exception: BaseException | None) -> Attributes:
    facts: Attributes = {"sdax.state": str(state)}
    if state in FAILURES and exception is not None:
        facts["error.type"] = _error_type(exception)
    return facts


def _because_of(cause: Cause | None) -> Attributes:
    if cause is None:
        return {}
    return {"sdax.cause.task": one_line(cause.task.name), "sdax.cause.phase": cause.phase}


def _error_type(exception: BaseException) -> str:
    kind = type(exception)
    module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
    return module + kind.__qualname__


def _end(span: Span, facts: Attributes, state: State, exception: BaseException | None) -> None:
    """End a span; of what failed, with the status and the exception."""
    try:
        span.set_attributes(facts)
        if state in FAILURES:
            span.set_status(StatusCode.ERROR, None if exception is None else shown(exception))
            if exception is not None:
                span.record_exception(exception)
    finally:
        span.end()  # whatever the exception's __str__ does
