"""Runs as OpenTelemetry spans and metrics. Needs the extra `otel`, that is `opentelemetry-api`."""

from __future__ import annotations

import traceback
from collections.abc import Hashable, Mapping, Sequence
from contextvars import Token
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Final, TypeAlias
from weakref import WeakKeyDictionary

from .. import __version__
from ..common.checks import checked_limit
from ..common.text import class_name, module_name, one_line, shortened, shown
from ..errors import SdaxExecutionError
from ..events import (
    AttemptFinished,
    AttemptStarted,
    CancellationRequested,
    Cause,
    Event,
    FellBack,
    ObservedRun,
    RetryScheduled,
    RetrySuppressed,
    RunFinished,
    RunStarted,
    TaskFinished,
    TaskInfo,
    TaskStarted,
    TimeoutExpired,
)
from ..states import FAILURES, State

try:
    from opentelemetry import context as contexts
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
        "sdax.observe.otel needs opentelemetry-api. Install it with: "
        "pip install 'opentelemetry-api>=1.31'"
    ) from error

Value: TypeAlias = (
    str | bool | int | float | Sequence[str] | Sequence[bool] | Sequence[int] | Sequence[float]
)
Attributes: TypeAlias = dict[str, Value]

# The semantic conventions whose attributes are used: `error.type` and `exception.*`.
SCHEMA: Final = "https://opentelemetry.io/schemas/1.31.0"
OTHER: Final = "_OTHER"  # the conventions' name for all values beyond a limit

LONGEST_NAME: Final = 200  # characters
LONGEST_MESSAGE: Final = 1_000
LONGEST_STACKTRACE: Final = 10_000
MOST_NAMES: Final = 20  # of the dependencies of a task
MOST_MEMBERS: Final = 10  # of an exception group, in its stack trace

# Instrumentation is suppressed if one of these is set. opentelemetry-instrumentation sets both.
SUPPRESSIONS: Final = (
    "suppress_instrumentation",
    getattr(contexts, "_SUPPRESS_INSTRUMENTATION_KEY", "suppress_instrumentation"),
)

# The SDK's own buckets are for milliseconds.
BUCKETS: Final = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0),
)


class OpenTelemetryObserver:
    """Creates OpenTelemetry spans and metrics for runs. One observer serves any number of runs.

    Each run has a span `sdax.run NAME`. Its parent is the current span of the caller. Each called
    function has a span below it, with the name of its task and its phase (`User.pre_execute`).
    Each retry has a span below that (`User.pre_execute retry`), and so has a fallback
    (`User.pre_execute fallback`). The span is current inside the function, so spans that libraries
    create there are its children. A failed span has the status `ERROR`, the attribute `error.type`
    and the exception as an event. `error.type` of a run is that of its first failure. A
    cancellation is not an error. Its span has the `sdax.state` `cancelled`, and its cause in
    `sdax.cause.task` and `sdax.cause.phase`. The functions of a task that is not required have the
    attribute `sdax.task.required`. If a task ended the run early, it is the attribute
    `sdax.finished_by` of the run.

    The metrics are `sdax.run.duration` and `sdax.task.duration` (histograms, in seconds),
    `sdax.task.retries`, `sdax.task.fallbacks` and `sdax.task.failures` (counters) and
    `sdax.run.active`, the number of active runs.

    - `name`: the name of the workflow. It is in the name of each run's span, and in the attribute
      `sdax.workflow.name` of every span and metric.
    - `attributes`: more attributes for every span and metric. They should have few values.
    - `max_spans`: the maximum number of spans of a run, including its own. None means any number.
      Later functions have no span. Spans of libraries inside them are children of the run's span,
      whose attribute `sdax.spans.left_out` counts the missing spans.
    - `max_task_names`: the maximum number of task names in the metrics. None means any number.
      Later tasks have `_OTHER` as their `sdax.task.name`. With 0, metrics do not have it.
    - `tracer_provider`, `meter_provider`: the global providers by default.

    Long names, messages and stack traces are cut. If instrumentation is suppressed, for example by
    `suppress_instrumentation()`, a run has neither spans nor metrics.

    Raises `TypeError` for arguments of other types, and `ValueError` for an empty name and for
    limits below 1 (`max_spans`) or 0 (`max_task_names`).

    >>> observer = OpenTelemetryObserver(name="checkout")
    >>> processor = AsyncTaskProcessor[Context].builder(observer=observer)
    """

    def __init__(
        self,
        *,
        name: str | None = None,
        attributes: Mapping[str, Value] | None = None,
        max_spans: int | None = 1_000,
        max_task_names: int | None = 100,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
    ) -> None:
        for field_name, provider, kind in (
            ("tracer_provider", tracer_provider, TracerProvider),
            ("meter_provider", meter_provider, MeterProvider),
        ):
            if provider is not None and not isinstance(provider, kind):
                raise TypeError(
                    f"{field_name} must be a {kind.__name__} or None, got {shown(provider)}"
                )
        self._common = _checked_attributes(attributes)
        self._run_name = "sdax.run"
        if name is not None:
            self._common["sdax.workflow.name"] = _checked_name(name)
            self._run_name += f" {self._common['sdax.workflow.name']}"
        self._max_spans = checked_limit("max_spans", max_spans)
        self._max_task_names = checked_limit("max_task_names", max_task_names, 0)
        self._task_names: set[str] = set()
        self._tracer = get_tracer("sdax", __version__, tracer_provider, SCHEMA)
        meter = get_meter("sdax", __version__, meter_provider, SCHEMA)
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
        self._fallbacks = meter.create_counter(
            "sdax.task.fallbacks",
            "{fallback}",
            "Functions whose fallback was called.",
        )
        self._failures = meter.create_counter(
            "sdax.task.failures", "{failure}", "Functions that failed or timed out for good."
        )
        self._active_runs = meter.create_up_down_counter(
            "sdax.run.active", "{run}", "Runs in flight."
        )
        # An abandoned run continues after its RunFinished. Its entry is removed with the run
        # itself.
        self._runs: WeakKeyDictionary[ObservedRun, _Run] = WeakKeyDictionary()

    def __call__(self, event: Event, /) -> None:
        """Begin, mark or end a span, and count."""
        if isinstance(event, RunStarted):
            if not any(map(contexts.get_value, SUPPRESSIONS)):
                self._run_started(event)
            return
        run = self._runs.get(event.run)
        if run is None:  # instrumentation is suppressed
            return
        match event:
            case AttemptStarted():
                self._attempt_started(run, event)
            case AttemptFinished():
                self._attempt_finished(run, event)
            case TaskStarted():
                run.functions[event.phase, event.task.name] = self._new_function(run, event)
            case TaskFinished():
                self._task_finished(run, event)
            case RetryScheduled():
                self._retry_scheduled(run, event)
            case RetrySuppressed():
                self._retry_suppressed(run, event)
            case FellBack():
                self._fell_back(run, event)
            case TimeoutExpired():
                function = run.function_of(event)
                if span := function.retry or function.own:
                    span.add_event("sdax.timeout", {"sdax.timeout": event.timeout})
            case CancellationRequested():
                facts: Attributes = {"sdax.phase": event.phase} | _because_of(event.cause)
                run.span.add_event("sdax.cancellation", facts)
            case RunFinished():
                self._run_finished(run, event)
            case _:
                pass

    def _run_started(self, event: RunStarted) -> None:
        attributes = self._common | {"sdax.task.count": len(event.run.tasks)}
        span = self._tracer.start_span(self._run_name, attributes=attributes)
        self._runs[event.run] = _Run(span)
        self._active_runs.add(1, self._common)

    def _run_finished(self, run: _Run, event: RunFinished) -> None:
        if event.report is not None:
            del self._runs[event.run]
        facts = _facts(event.state, event.exception)
        labels = self._common | facts
        self._active_runs.add(-1, self._common)
        self._run_duration.record(perf_counter() - run.start, labels, set_span_in_context(run.span))
        if event.report is not None and event.report.finished_by is not None:
            facts["sdax.finished_by"] = _name(event.report.finished_by)
        if run.left_out:
            facts["sdax.spans.left_out"] = run.left_out
        _end(run.span, facts, event.state, event.exception)

    def _new_function(self, run: _Run, event: TaskStarted | TaskFinished) -> _Function:
        span = self._start_span(run, event.task, event.phase, run.span)
        return _Function(run.span if span is None else span, span)

    def _start_span(
        self,
        run: _Run,
        task: TaskInfo,
        phase: str,
        parent: Span,
        what: str = "",
        attempt: int = 1,
    ) -> Span | None:
        """Start a span for a call, unless the run has its maximum of spans."""
        if self._max_spans is not None and run.spans >= self._max_spans:
            run.left_out += 1
            return None
        run.spans += 1
        attributes = self._common | _described(task, phase)
        name = f"{attributes['sdax.task.name']}.{phase}"
        if what:
            name += f" {what}"
            attributes["sdax.attempt.number"] = attempt
        return self._tracer.start_span(name, set_span_in_context(parent), attributes=attributes)

    def _task_finished(self, run: _Run, event: TaskFinished) -> None:
        function = run.functions.pop((event.phase, event.task.name), None)
        if function is None:  # the loop's task factory raised
            function = self._new_function(run, event)
        facts = _facts(event.state, event.exception)
        labels = self._labels(event) | facts
        context = set_span_in_context(function.span)
        self._task_duration.record(perf_counter() - function.start, labels, context)
        if event.state in FAILURES:
            self._failures.add(1, labels, context)
        if function.own is not None:
            facts |= _because_of(event.cause) | {"sdax.attempt.count": event.attempts}
            exception = None if function.told else event.exception
            _end(function.own, facts, event.state, exception)

    def _attempt_started(self, run: _Run, event: AttemptStarted) -> None:
        function = run.function_of(event)
        if event.attempt > 1:
            what = "fallback" if function.covers else "retry"
            function.retry = self._start_span(
                run, event.task, event.phase, function.span, what, event.attempt
            )
        function.token = attach(set_span_in_context(function.current))

    def _attempt_finished(self, run: _Run, event: AttemptFinished) -> None:
        function = run.function_of(event)
        token, function.token = function.token, None
        # If a function ends in another context, or leaves a span of its own open, there is
        # nothing to restore. Its context is a copy that ends with the function.
        if token is not None and get_current_span() is function.current:
            detach(token)
        retry, function.retry = function.retry, None
        function.told = retry is not None
        if retry is not None:
            _end(retry, _facts(event.state, event.exception), event.state, event.exception)

    def _retry_scheduled(self, run: _Run, event: RetryScheduled) -> None:
        function = run.function_of(event)
        error_type = _error_type(event.exception)
        labels = self._labels(event) | {"error.type": error_type}
        self._retries.add(1, labels, set_span_in_context(function.span))
        if function.own is not None and function.own.is_recording():
            facts: Attributes = {
                "sdax.attempt.number": event.attempt,
                "sdax.retry.delay": event.delay,
                "error.type": error_type,
            }
            details = {} if function.told else _details(event.exception)
            function.own.add_event("sdax.retry", facts | details)

    def _retry_suppressed(self, run: _Run, event: RetrySuppressed) -> None:
        function = run.function_of(event)
        if function.own is not None:
            facts: Attributes = {
                "sdax.attempt.number": event.attempt,
                "sdax.retry.reason": event.reason,
            }
            function.own.add_event("sdax.retry.suppressed", facts)

    def _fell_back(self, run: _Run, event: FellBack) -> None:
        function = run.function_of(event)
        function.covers = True
        error_type = _error_type(event.exception)
        labels = self._labels(event) | {"error.type": error_type}
        self._fallbacks.add(1, labels, set_span_in_context(function.span))
        if function.own is not None and function.own.is_recording():
            details = {} if function.told else _details(event.exception)
            facts: Attributes = {"sdax.attempt.count": event.attempts, "error.type": error_type}
            function.own.add_event("sdax.fallback", facts | details)

    def _labels(self, event: TaskFinished | RetryScheduled | FellBack) -> Attributes:
        labels = self._common | {"sdax.phase": event.phase}
        most, known = self._max_task_names, self._task_names
        if most == 0:
            return labels
        name = _name(event.task.name)
        if name not in known:
            if most is not None and len(known) >= most:
                name = OTHER
            else:
                known.add(name)
        return labels | {"sdax.task.name": name}


@dataclass(slots=True)
class _Function:
    """The running function of a task in a phase.

    `span` is its own span, or else the span of the run. `retry` is the span of the attempt, from
    the second attempt on. With `told`, the span of the last attempt has its exception. With
    `covers`, the call is the fallback.
    """

    span: Span
    own: Span | None
    start: float = field(default_factory=perf_counter)
    retry: Span | None = None
    told: bool = False
    covers: bool = False
    token: Token[Context] | None = None

    @property
    def current(self) -> Span:
        """The current span: of the retry, or of the function."""
        return self.span if self.retry is None else self.retry


@dataclass(slots=True)
class _Run:
    """A running run."""

    span: Span
    start: float = field(default_factory=perf_counter)
    spans: int = 1
    left_out: int = 0
    functions: dict[tuple[str, Hashable], _Function] = field(default_factory=dict)

    def function_of(
        self,
        event: AttemptStarted
        | AttemptFinished
        | RetryScheduled
        | RetrySuppressed
        | FellBack
        | TimeoutExpired,
    ) -> _Function:
        return self.functions[event.phase, event.task.name]


def _checked_name(name: object) -> str:
    if not isinstance(name, str):
        raise TypeError(f"name must be a str or None, got {shown(name)}")
    if not name:
        raise ValueError("name must not be empty; leave it out for none")
    return _name(name)


def _checked_attributes(attributes: Mapping[str, Value] | None) -> Attributes:
    """Return a checked copy. OpenTelemetry would only log bad attributes, each time."""
    if attributes is None:
        return {}
    if not isinstance(attributes, Mapping):
        raise TypeError(f"attributes must be a mapping or None, got {shown(attributes)}")
    checked: Attributes = {}
    value: Any
    for key, value in attributes.items():
        if not isinstance(key, str):
            raise TypeError(f"attributes must have names of type str, got {shown(key)}")
        members = value if isinstance(value, (list, tuple)) else [value]
        if not all(isinstance(member, (str, bool, int, float)) for member in members):
            raise TypeError(
                f"attributes[{shown(key)}] must be a str, bool, int or float, or a list of one of "
                f"them, got {shown(value)}"
            )
        # The attributes are the key of a metric, so they must be hashable.
        checked[key] = tuple(value) if isinstance(value, list) else value
    return checked


def _name(name: Hashable) -> str:
    if isinstance(name, str):
        name = str.__getitem__(name, slice(LONGEST_NAME + 1))
    return shortened(one_line(name), LONGEST_NAME)


def _described(task: TaskInfo, phase: str) -> Attributes:
    attributes: Attributes = {"sdax.task.name": _name(task.name), "sdax.phase": phase}
    if task.level is not None:
        attributes["sdax.task.level"] = task.level
    if task.depends_on is not None:
        attributes["sdax.task.depends_on"] = [_name(name) for name in task.depends_on[:MOST_NAMES]]
        if len(task.depends_on) > MOST_NAMES:
            attributes["sdax.task.dependency_count"] = len(task.depends_on)
    if not task.required:
        attributes["sdax.task.required"] = False
    return attributes


def _facts(state: State, exception: BaseException | None) -> Attributes:
    facts: Attributes = {"sdax.state": str(state)}
    if state in FAILURES and exception is not None:
        facts["error.type"] = _error_type(exception)
    return facts


def _because_of(cause: Cause | None) -> Attributes:
    if cause is None:
        return {}
    return {"sdax.cause.task": _name(cause.task.name), "sdax.cause.phase": cause.phase}


def _error_type(exception: BaseException) -> str:
    if isinstance(exception, SdaxExecutionError) and exception.failures:
        exception = exception.failures[0].exception
    return _class_name(exception)


def _class_name(exception: BaseException) -> str:
    module, name = module_name(exception), class_name(exception)
    return shortened(name if module == "builtins" else f"{module}.{name}", LONGEST_NAME)


def _details(exception: BaseException) -> Attributes:
    """Return the attributes of an exception's event. `Span.record_exception` has no limits."""
    if isinstance(exception, SdaxExecutionError) and len(exception.exceptions) > MOST_MEMBERS:
        members = exception.derive(exception.exceptions[:MOST_MEMBERS])
        text = _formatted(members.with_traceback(exception.__traceback__))
    else:
        text = _formatted(exception)
    if len(text) > LONGEST_STACKTRACE:  # the beginning and the end are the most useful
        half = LONGEST_STACKTRACE // 2
        text = f"{text[:half]}\n…\n{text[-half:]}"
    return {
        "exception.type": _class_name(exception),
        "exception.message": _message(exception),
        "exception.stacktrace": text,
    }


def _formatted(exception: BaseException) -> str:
    try:
        return "".join(traceback.format_exception(exception))
    except Exception:  # from the exception's own methods
        return ""


def _message(exception: BaseException) -> str:
    try:
        text = str.__str__(str(exception))  # not the method of a subclass of str
    except Exception:
        text = object.__repr__(exception)  # its __str__ is broken
    return shortened(text, LONGEST_MESSAGE)


def _end(span: Span, facts: Attributes, state: State, exception: BaseException | None) -> None:
    """End a span. A failed span gets the status and the exception."""
    try:
        span.set_attributes(facts)
        if state in FAILURES and span.is_recording():
            description = None
            if exception is not None:
                details = _details(exception)
                span.add_event("exception", details)
                description = f"{facts['error.type']}: {details['exception.message']}"
            span.set_status(StatusCode.ERROR, description)
    finally:
        span.end()  # even if the exception raises
