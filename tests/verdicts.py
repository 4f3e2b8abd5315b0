"""What must be true of every run, and of one workflow's runs on two engines."""

from __future__ import annotations

import re
import sys
from asyncio import CancelledError
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

from exceptions import RefusedError, StubbornError, describe, is_cancellation, outline
from playing import Event, Observation, Place, Raised
from sdax import (
    SdaxExecutionError,
    State,
    TaskCancelledError,
    flatten_exceptions,
)
from workflows import IN_ANOTHER_TASK, PHASES, Behaviour, Shape, Workflow

PRE, EXECUTE, POST = PHASES
_ADDRESS = re.compile(" at 0x[0-9a-f]+")

RETURNS = ("return", "finish")

# Such a script may be cancelled before its first step, and then never shows.


def broken_promises(workflow: Workflow, seen: Observation) -> list[str]:
    """Return what the contract promises of every run, and what this one did not keep."""
    if seen.gave_up:
        return seen.problems
    in_turn = replace(
        seen,
        trace=[
            event
            for event in seen.trace
            if event.place.phase != POST or event.place.name not in seen.broken
        ],
    )
    return [
        *seen.problems,
        *_leftovers(workflow, seen),
        *_raised(seen),
        *_interruption(seen),
        *_attempts(workflow, seen),
        *_cleanup(workflow, seen),
        *_order(workflow, in_turn),
        *_stopping(workflow, in_turn),
        *_exceptions(workflow, seen),
        *_reports(workflow, seen),
    ]


def differences(one: Observation, other: Observation) -> list[str]:
    """Return where two engines were not exactly alike."""
    return list(_unlike(_everything(one), _everything(other)))


def disagreements(
    seen: Observation, model: Observation, failed_at: Mapping[Place, float]
) -> list[str]:
    """Return where an engine and the reference model differ in what the contract orders.

    That leaves out the order of what happens at the same time in two functions, as far as
    neither is called.
    """
    return [
        *_unlike(contracted(seen), contracted(model)),
        *_failure_order(seen, failed_at),
    ]


def _everything(seen: Observation) -> dict[str, Any]:
    failure = seen.failure
    return {
        "trace": seen.trace,
        "error": describe(seen.error),
        "outcome": describe(seen.outcome),
        "failures": failure and [(*each[:3], describe(each[3])) for each in failure.failures],
        "report": _report(seen, describe),
        "finished by": seen.finished_by,
        "handled": [
            (_ADDRESS.sub("", context["message"]), describe(context.get("exception")))
            for context in seen.handled
        ],
        **_surroundings(seen),
        "passes": seen.passes,
    }


def contracted(seen: Observation) -> dict[str, Hashable]:
    """Return all of a run that the contract orders, by name."""
    failure = seen.failure
    report = _report(seen, outline)
    by_place: dict[Place, list[Event]] = {}
    for event in seen.trace:
        by_place.setdefault(event.place, []).append(event)
    first_calls = [event for event in seen.calls() if event.attempt == 1]
    return {
        "calls": tuple((event.place, event.time) for event in first_calls),
        **{str(place): tuple(events) for place, events in by_place.items()},
        "error": _with_context(seen.error),
        "outcome": outline(seen.outcome),
        "failures": failure
        and frozenset(Counter((*each[:3], outline(each[3])) for each in failure.failures).items()),
        "report": report and tuple(report.items()),
        "finished by": seen.finished_by,
        "handled": tuple(outline(context.get("exception")) for context in seen.handled),
        **_surroundings(seen),
    }


def _surroundings(seen: Observation) -> dict[str, Any]:
    return {
        "over_at": seen.over_at,
        "cancelling": seen.cancelling,
        "tasks_left": tuple(seen.tasks_left),
        "timers_left": tuple(seen.timers_left),
        "variable": seen.variable,
        "problems": tuple(seen.problems),
    }


def _report(seen: Observation, show: Any) -> dict[tuple[Any, str], Any] | None:
    report = seen.report
    if report is None and seen.failure is not None:
        report = seen.failure.report
    if report is None:
        return None
    return {
        (name, phase): (
            each.state,
            each.attempts,
            each.value,
            show(each.exception),
            tuple(map(show, each.attempts_failed)),
            each.fell_back,
        )
        for name, phases in report.items()
        for phase, each in zip(PHASES, phases, strict=True)
    }


def _with_context(error: BaseException | None) -> object:
    context = None if error is None else error.__context__
    if not isinstance(context, SdaxExecutionError):
        context = None  # whatever the function itself was handling
    return outline(error), outline(context)


def _unlike(one: dict[str, Any], other: dict[str, Any]) -> Iterator[str]:
    for key in {**one, **other}:
        if one.get(key) != other.get(key):
            yield f"{key}:\n    {one.get(key)}\n    {other.get(key)}"


def _failure_order(seen: Observation, failed_at: Mapping[Place, float]) -> Iterator[str]:
    if seen.failure is not None:
        places = [Place(name, phase) for name, phase, *_ in seen.failure.failures]  # type: ignore[arg-type]
        times = [failed_at.get(place, 0.0) for place in places]
        if times != sorted(times):
            yield f"failures out of order: {places} at {times}"


def _leftovers(workflow: Workflow, seen: Observation) -> Iterator[str]:
    if seen.tasks_left:
        yield f"tasks left: {seen.tasks_left}"
    if seen.timers_left:
        yield f"timers left: {seen.timers_left}"
    if seen.variable not in ("the caller's", None):
        yield f"the caller's context variable became {seen.variable!r}"
    disturbance = workflow.disturbance
    cancelled = disturbance.cancel_at or disturbance.cancel_at_pass or seen.caller_was_cancelled
    if seen.cancelling and not cancelled:
        yield f"cancelling() is {seen.cancelling}, and nobody cancelled the caller"


def _raised(seen: Observation) -> Iterator[str]:
    """What a run raises are its failures, a cancellation, or what a function has raised."""
    error = seen.error
    if error is None or isinstance(error, (SdaxExecutionError, CancelledError)):
        return
    if sys.version_info < (3, 14) and isinstance(error, SystemError):
        if StubbornError in (type(error.__cause__), type(error.__context__)):
            return  # asyncio's own first step breaks over it, if it is cancelled meanwhile
    raised = {id(leaf) for each in seen.raised for leaf in flatten_exceptions(each.exception)}
    if any(id(leaf) not in raised for leaf in flatten_exceptions(error)):
        yield f"raised, and by no function: {describe(error)}"


def _interruption(seen: Observation) -> Iterator[str]:
    error = seen.error
    if isinstance(error, StubbornError):
        return  # what breaks the engine comes before everything else
    if seen.interrupted and (error is None or isinstance(error, Exception)):
        yield f"the caller was cancelled, and the outcome was {describe(error)}"
    if isinstance(error, CancelledError) and error.__context__ is not None:
        handled = [id(context.get("exception")) for context in seen.handled]
        if id(error.__context__) not in handled:
            yield f"the loop's exception handler did not hear of {describe(error.__context__)}"


def _behaviours(workflow: Workflow) -> dict[Place, Behaviour]:
    return {
        Place(node.name, phase): behaviour
        for node in workflow.nodes
        for phase in PHASES
        if (behaviour := getattr(node, phase)) is not None
    }


def _may_fall_back(behaviour: Behaviour) -> bool:
    return behaviour.fallback is not None


def _attempts(workflow: Workflow, seen: Observation) -> Iterator[str]:
    """A function is called once, and again only when that has failed and it has retries left."""
    behaviours = _behaviours(workflow)
    for place, number in Counter(event.place for event in seen.calls()).items():
        if number > behaviours[place].retries + 1 + _may_fall_back(behaviours[place]):
            yield f"{place} was called {number} times"
    returned: set[Place] = set()
    for event in seen.trace:
        if event.what in RETURNS and behaviours[event.place].shape is Shape.ASYNC_DEF:
            returned.add(event.place)
        elif event.place in returned:
            yield f"{event.place} went on after it had returned: {event}"


def _cleanup(workflow: Workflow, seen: Observation) -> Iterator[str]:
    """Who has started is cleaned up, to the end; nobody else."""
    calls = Counter(event.place for event in seen.calls())
    behaviours = _behaviours(workflow)
    last = seen.last_events()
    reached = max(
        (node.level for node in workflow.nodes if Place(node.name, PRE) in calls), default=None
    )
    executed = any(place.phase == EXECUTE for place in calls)
    ancestors = workflow.ancestors()
    if seen.passes == 0:
        return  # cancelled before there was a run
    for node in workflow.nodes:
        place = Place(node.name, POST)
        if node.post_execute is None:
            continue
        cleaned = place in calls
        if node.is_resource:
            set_up = last.get(Place(node.name, PRE))
            due = set_up is not None and set_up.what in RETURNS
        elif node.pre_execute is not None:
            due = Place(node.name, PRE) in calls
            if node.pre_execute.limiter is not None:
                due = due or cleaned  # it may have waited for its limiter
        elif executed and not workflow.keeps_going:
            due = True
        elif workflow.is_graph:
            # All that it depends on was at least called, or waited for its limiter until time was
            # up. Whether that succeeded, a model knows.
            called = all(
                Place(other.name, PRE) in calls
                or (other.pre_execute.limiter is not None and workflow.survives(other.name, PRE))
                for other in workflow.nodes
                if other.name in ancestors[node.name] and other.pre_execute is not None
            )
            due = cleaned and (called or seen.refused)
        elif reached is not None and node.level <= reached:
            due = True
        else:
            due = cleaned  # its level may have opened, without anything to call in it
        if cleaned != due:
            yield f"{place}: due is {due}, and it was {'' if cleaned else 'not '}called"
        if not cleaned:
            continue
        event, behaviour = last[place], behaviours[place]
        began = event.what != "call" or behaviour.shape not in IN_ANOTHER_TASK
        if event.what in ("call", "resume", "swallow") and began:
            yield f"{place} did not end: {event}"
        limited = behaviour.timeout is not None or behaviour.total_timeout is not None
        if event.what == "cancelled" and not (limited or _cancelled_by_functions(workflow)):
            yield f"{place} was cancelled"


def _cancelled_by_functions(workflow: Workflow) -> bool:
    return any(word in repr(workflow) for word in ("CancelSelf", "CancelOther", "CANCELLED"))


def _order(workflow: Workflow, seen: Observation) -> Iterator[str]:
    added = {node.name: number for number, node in enumerate(workflow.nodes)}
    levels = {node.name: node.level for node in workflow.nodes}

    def turn(event: Event) -> tuple[int, int, int]:
        name, phase = event.place
        executes = levels[name] if workflow.in_order else 0
        level = {PRE: levels[name], EXECUTE: executes, POST: -levels[name]}[phase]
        return PHASES.index(phase), level, added[name]

    behaviours = _behaviours(workflow)
    calls = [
        event
        for event in seen.calls()
        # A limiter lets functions in when it likes.
        if event.attempt == 1 and behaviours[event.place].limiter is None
    ]
    if workflow.is_graph:
        yield from _graph_order(workflow, seen)
    else:
        for one, next_one in pairwise(calls):
            if turn(one) > turn(next_one):
                yield f"called out of order: {one}, then {next_one}"
        # Nothing of a stage may happen once something of a later one has.
        stages = [turn(event)[:2] for event in seen.trace]
        if stages != sorted(stages):
            yield f"stages overlap: {seen.trace}"
    executing = {event.place.name for event in calls if event.place.phase == EXECUTE}
    if executing:
        for place in _unprepared(workflow, seen):
            if place.name in executing or not workflow.survives(*place):
                yield f"execute began although {place} had failed: {seen.last_events()[place]}"


def _unprepared(workflow: Workflow, seen: Observation) -> Iterator[Place]:
    """Yield each `pre_execute` that has failed."""
    behaviours = _behaviours(workflow)
    for place, event in seen.last_events().items():
        shape = behaviours[place].shape
        # A group takes no notice of children that were cancelled.
        failed = event.what in ("raise", "cancelled") and shape is not Shape.GROUP
        if shape is Shape.PLAIN and not _may_fall_back(behaviours[place]):
            failed = True
        if place.phase == PRE and failed:
            yield place


def _graph_order(workflow: Workflow, seen: Observation) -> Iterator[str]:
    """Who depends on something does nothing before that has ended; in cleanup, the reverse."""
    phases = [PHASES.index(event.place.phase) for event in seen.trace]
    if phases != sorted(phases):
        yield f"phases overlap: {seen.trace}"
    first: dict[Place, int] = {}
    last: dict[Place, int] = {}
    for number, event in enumerate(seen.trace):
        first.setdefault(event.place, number)
        last[event.place] = number
    behaviours = _behaviours(workflow)
    ordered = [PRE, POST]
    if workflow.in_order:
        ordered.append(EXECUTE)
    for name, others in workflow.ancestors().items():
        for other in others:
            for phase in ordered:
                early, late = Place(other, phase), Place(name, phase)
                if phase == POST:
                    early, late = late, early
                if early in last and late in first and last[early] > first[late]:
                    yield f"{late} began before {early} had ended"
                missing = early in behaviours and early not in last and not seen.refused
                if phase == EXECUTE and workflow.survives(*early):
                    continue  # its pre_execute may have failed
                if missing and workflow.survives(*early) and behaviours[early].limiter is not None:
                    continue  # its total_timeout may have passed while it waited for its limiter
                if phase != POST and late in first and missing:
                    yield f"{late} began although {early} was never called"


def _stopping(workflow: Workflow, seen: Observation) -> Iterator[str]:
    """Once a function has failed, or has returned `Finish`, nothing of its phase is called, and
    what waits is cancelled."""
    behaviours = _behaviours(workflow)
    for number, failure in enumerate(seen.trace):
        place, phase = failure.place, failure.place.phase
        behaviour = behaviours[place]
        if phase == POST or failure.what not in ("raise", "finish"):
            continue
        if failure.what == "raise" and (behaviour.retries or workflow.survives(*place)):
            continue
        if failure.what == "finish" and behaviour.shape is Shape.PLAIN:
            continue  # it cannot be awaited
        if _may_fall_back(behaviour):
            continue
        if behaviour.shape in IN_ANOTHER_TASK:
            continue
        # Who has swallowed an earlier cancellation may go on.
        excused = {event.place for event in seen.trace[:number] if event.what == "swallow"}
        for event in seen.trace[number + 1 :]:
            if event.place.phase != phase or event.place in excused:
                continue
            if behaviours[event.place].shape in IN_ANOTHER_TASK and event.what != "call":
                continue
            # A TaskGroup that fails at that moment may swallow its cancellation, and the function
            # goes on to its next event, whenever that is.
            may_go_on = "FAILED_GROUP" in repr(behaviours[event.place])
            if event.what not in ("cancelled", "swallow") and not may_go_on:
                yield f"after {failure}: {event}"
            excused.add(event.place)


def _exceptions(workflow: Workflow, seen: Observation) -> Iterator[str]:
    """Nothing that a function raised last is lost, and failures come in the order in which
    they happened."""
    told = [seen.error, *(context.get("exception") for context in seen.handled)]
    optional = {node.name for node in workflow.nodes if not node.required}
    report = _report(seen, lambda exception: exception) or {}
    for (name, phase), (state, _, _, exception, *_) in report.items():
        # While it waited for its next attempt, or was in its fallback, or after that.
        waited = state in (State.CANCELLED, State.SUCCEEDED)
        if waited or (name in optional and phase != POST):
            told.append(exception)
    reachable: dict[int, BaseException] = {}
    while told:
        exception = told.pop()
        if exception is None or id(exception) in reachable:
            continue
        reachable[id(exception)] = exception
        if isinstance(exception, BaseExceptionGroup):
            told += exception.exceptions
        told += exception.__cause__, exception.__context__
    behaviours = _behaviours(workflow)
    last = {each.place: each for each in seen.raised}
    calls = Counter(event.place for event in seen.calls())
    for place, each in last.items():
        retried = calls[place] > each.attempt
        if behaviours[place].limiter is not None and each.attempt <= behaviours[place].retries:
            retried = True  # or is, as soon as its limiter lets it in
        cancelled = is_cancellation(each.exception)
        gave_up = _may_have_given_up(seen, each, behaviours[place])
        # An asyncio.Task that the user made may fail when its awaiting is just being cancelled.
        theirs = behaviours[place].shape is Shape.TASK
        # Of what is not required only the report tells, which nobody has after a cancellation.
        theirs = theirs or (place.name in optional and place.phase != POST and not report)
        if not (retried or cancelled or gave_up or theirs or id(each.exception) in reachable):
            yield f"lost: {describe(each.exception)} of {place}"
    failure = seen.failure
    if failure is None:
        return
    if [*map(id, failure.exceptions)] != [id(each.exception) for each in failure.failures]:
        yield f"exceptions {describe(failure)} are not those of {len(failure.failures)} failures"
    # Functions may share an exception.
    order = {(each.place, id(each.exception)): number for number, each in enumerate(seen.raised)}
    numbers = []
    for name, phase, attempts, raised in failure.failures:
        wrapped = isinstance(raised, (TaskCancelledError, TimeoutError))
        original = (raised.__cause__ if wrapped else None) or raised
        place = Place(name, phase)  # type: ignore[arg-type]
        behaviour = behaviours[place]
        # One that waited for a retry, or for another asyncio.Task, failed later than it raised.
        later = attempts <= behaviour.retries or behaviour.shape in IN_ANOTHER_TASK
        later = later or _may_fall_back(behaviour)
        if (place, id(original)) in order and not later:
            numbers.append(order[place, id(original)])
    if numbers != sorted(numbers):
        yield f"failures out of order: {[each[:3] for each in failure.failures]}"


def _may_have_given_up(seen: Observation, each: Raised, behaviour: Behaviour) -> bool:
    """Tell whether a function may have waited for its next attempt in a run that was stopped,
    and nothing is left but that stop."""
    followed = each.attempt <= behaviour.retries or _may_fall_back(behaviour)
    left = each.place.phase != POST and followed
    return left and seen.report is None and seen.failure is None


def _reports(workflow: Workflow, seen: Observation) -> Iterator[str]:
    report = _report(seen, lambda exception: exception)
    if report is None:
        return
    calls = Counter(event.place for event in seen.calls())
    last = seen.last_events()
    behaviours = _behaviours(workflow)
    for (name, phase), reported in report.items():
        state, attempts, value, exception, attempts_failed, fell_back = reported
        place = Place(name, phase)
        if seen.refused and (place not in calls or isinstance(exception, RefusedError)):
            continue  # it may be what the factory has refused
        limited = place in behaviours and behaviours[place].limiter is not None
        made = calls[place] - fell_back
        # An attempt that waits for its limiter has not yet called the function.
        if attempts < made if limited else attempts != made:
            yield f"{place} was tried {made} times, the report says {attempts}"
        if called_off := len(attempts_failed) - max(0, attempts - 1):
            yield f"{place} has {called_off} exceptions too many for {attempts} attempts"
        called = state not in (State.ABSENT, State.SKIPPED)
        if (not limited and called != (place in calls)) or (state is State.ABSENT) != (
            place not in behaviours
        ):
            yield f"{place} is reported as {state}"
        if state is State.SUCCEEDED and place in last and last[place].what in RETURNS:
            wanted = last[place].detail
            if behaviours[place].shape is not Shape.GROUP and value != wanted:
                yield f"{place} returned {wanted}, the report says {value}"
        failed = state in (State.FAILED, State.TIMED_OUT)
        fatal = seen.error is not None and not isinstance(seen.error, Exception)
        fatal = fatal or any(
            not isinstance(each.exception, Exception) for each in seen.raised if each.place == place
        )
        if failed and exception is None and not fatal:
            yield f"{place} is reported as {state} without an exception"
    finishers = {
        place.name
        for place, event in last.items()
        if event.what == "finish" and place.phase != POST
        # Of these the function itself returns something else, but their fallback does not.
        if behaviours[place].shape not in (Shape.GROUP, Shape.PLAIN) or report[place][-1]
    }
    by = seen.finished_by
    if by is not None and by not in finishers:
        yield f"finished by {by}, says the report, but only {finishers} returned Finish"
    if by is None and seen.error is None and finishers:
        yield f"finished by nobody, says the report, but {finishers} returned Finish"
