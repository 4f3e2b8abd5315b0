"""Instruments on while workflows run: what happens is the same as without them.

Workflows of every kind, with failures, timeouts, retries and cancellations: see `instruments`.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any
from unittest import mock

import coverage
import pytest

import instruments
import playing
from conftest import Implementation
from instruments import observations, settled_workflows, story, tell
from processes import run_python
from sdax import State
from workflows import Factory

expected = cache(story)
Sighted = Counter[str]  # what an instrument has seen, by the file in which it was


@contextmanager
def traced() -> Iterator[Sighted]:
    """Trace every line, as a debugger does, and look at the variables there."""
    seen = Sighted()

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        seen[frame.f_code.co_filename] += 1
        if event == "exception":
            assert frame.f_locals is not None
        return trace

    before = sys.gettrace()
    threading.settrace(trace)
    sys.settrace(trace)
    try:
        yield seen
    finally:
        sys.settrace(before)
        threading.settrace(before)  # type: ignore[arg-type]


@contextmanager
def profiled() -> Iterator[Sighted]:
    """Have every call and return told, those of functions in C as well."""
    seen = Sighted()

    def profile(frame: FrameType, event: str, argument: object) -> None:
        seen[frame.f_code.co_filename] += 1

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        yield seen
    finally:
        sys.setprofile(before)


@contextmanager
def monitored() -> Iterator[Sighted]:
    """Have everything told that `sys.monitoring` can tell of functions, lines and exceptions."""
    monitoring: Any = sys.monitoring  # type: ignore[attr-defined]
    tool = monitoring.PROFILER_ID
    events = monitoring.events
    wanted = "PY_START PY_RESUME PY_RETURN PY_YIELD PY_THROW PY_UNWIND LINE CALL RAISE"
    kinds = [getattr(events, name) for name in wanted.split()]
    kinds += events.RERAISE, events.EXCEPTION_HANDLED, events.STOP_ITERATION, events.JUMP
    seen = Sighted()

    def tell_of(code: Any, *arguments: object) -> None:
        seen[code.co_filename] += 1

    monitoring.use_tool_id(tool, "sdax tests")
    try:
        for kind in kinds:
            monitoring.register_callback(tool, kind, tell_of)
        monitoring.set_events(tool, sum(kinds))
        yield seen
    finally:
        monitoring.set_events(tool, 0)
        for kind in kinds:
            monitoring.register_callback(tool, kind, None)
        monitoring.free_tool_id(tool)


@contextmanager
def covered() -> Iterator[Sighted]:
    """Measure coverage, of branches too."""
    seen = Sighted()
    files = [playing.__file__]
    measure = coverage.Coverage(data_file=None, config_file=False, branch=True, include=files)
    measure.start()
    try:
        yield seen
    finally:
        measure.stop()
        data = measure.get_data()
        seen.update({name: len(data.arcs(name) or ()) for name in data.measured_files()})


INSTRUMENTS: list[Any] = [traced, profiled, covered]
if sys.version_info >= (3, 12):
    INSTRUMENTS.append(monitored)


def test_the_workflows_are_of_every_kind(engine: Implementation) -> None:
    states: set[State] = set()
    retried, cancelled = False, 0
    for _, seen in observations(engine.module):
        report = seen.report or (seen.failure and seen.failure.report) or {}
        phases = [phase for phases in report.values() for phase in phases]
        states |= {phase.state for phase in phases}
        retried |= any(phase.attempts > 1 for phase in phases)
        cancelled += isinstance(seen.error, asyncio.CancelledError)
    assert states == {*State}
    assert retried and cancelled > 3


@pytest.mark.undisturbed
@pytest.mark.parametrize("instrument", INSTRUMENTS)
def test_an_instrument(
    engine: Implementation, instrument: Callable[[], AbstractContextManager[Sighted]]
) -> None:
    wanted = expected(engine.module)
    with instrument() as seen:
        told = story(engine.module)
    assert told == wanted
    assert seen[playing.__file__] > 50  # it was on, inside the functions


def test_debug_mode(engine: Implementation) -> None:
    workflows = [replace(workflow, debug=True) for workflow in settled_workflows()]
    assert played_instead(workflows, engine.module) == expected(engine.module)


@pytest.mark.parametrize("factory", [Factory.PLAIN, Factory.EAGER], ids=["plain", "eager"])
def test_a_task_factory(engine: Implementation, factory: Factory) -> None:
    workflows = [replace(workflow, factory=factory) for workflow in settled_workflows()]
    assert played_instead(workflows, engine.module) == expected(engine.module)


def played_instead(workflows: list[Any], engine: ModuleType) -> list[str]:
    with mock.patch.object(instruments, "settled_workflows", lambda: workflows):
        return [tell(workflow, seen) for workflow, seen in observations(engine)]


@pytest.mark.parametrize("options", [["-X", "dev"], ["-W", "error"]], ids=" ".join)
def test_an_option_of_python(engine: Implementation, options: list[str]) -> None:
    printed = run_python([*options, str(Path(instruments.__file__))], engine)
    assert printed.splitlines() == expected(engine.module)
