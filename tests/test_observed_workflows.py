"""Random workflows, observed: the events keep their rules, both engines tell the same, and to be
observed changes nothing."""

from __future__ import annotations

from collections import Counter
from functools import partial
from random import Random
from types import ModuleType
from unittest import mock

import sdax.processor
from conftest import Implementation
from helpers import TURN
from observing import Recorder, broken_rules, line
from playing import RANDOM_FACTOR, Added, Observation, Start, observe, on_engine
from random_workflows import random_workflow
from sdax.observe import AttemptStarted, Observer
from verdicts import broken_promises, differences
from workflows import Workflow

SEEDS = range(100 * TURN, 100 * (TURN + 1))


def play(workflow: Workflow, module: ModuleType, *observers: Observer) -> Observation:
    """Play a workflow on an engine, observed by these."""

    def prepare(workflow: Workflow, added: Added) -> Start:
        return partial(on_engine(workflow, added), observer=observers)

    with (
        mock.patch.object(sdax.processor, "Run", module.Run),
        mock.patch("sdax.engine.attempts.uniform", lambda low, high: RANDOM_FACTOR),
    ):
        return observe(workflow, prepare)


def random_workflows() -> list[tuple[int, bool, Workflow]]:
    return [
        (seed, settled, random_workflow(Random(seed), settled=settled))
        for settled in (True, False)
        for seed in SEEDS
    ]


def told_otherwise(workflow: Workflow, seen: Observation, events: Recorder) -> list[str]:
    """Compare the attempts that the events tell of with the calls that functions wrote down."""
    told = [event for event in events if isinstance(event, AttemptStarted)]
    attempts = Counter((event.task.name, event.phase, event.attempt) for event in told)
    calls = Counter((*event.place, event.attempt) for event in seen.calls())
    # An attempt that waits for its limiter has not yet called the function.
    if "limiter" in repr(workflow):
        attempts, calls = (Counter(each[:2] for each in some) for some in (attempts, calls))
        attempts = Counter({place: min(attempts[place], calls[place]) for place in calls})
    return [] if attempts == calls else [f"events of attempts: {attempts}; calls: {calls}"]


def test_events_keep_the_rules_and_change_nothing(engine: Implementation) -> None:
    problems: dict[tuple[int, bool], list[str]] = {}
    for seed, settled, workflow in random_workflows():
        events = Recorder()
        seen = play(workflow, engine.module, events)
        found = [*broken_promises(workflow, seen), *told_otherwise(workflow, seen, events)]
        if events:  # else it was cancelled before it began
            found += broken_rules(events)
        found += differences(seen, play(workflow, engine.module))
        if found:
            problems[seed, settled] = [repr(workflow), *found]
    assert not problems, "\n".join("\n".join(map(str, each)) for each in problems.items())


def test_both_engines_tell_the_same(both_engines: list[ModuleType]) -> None:
    for seed, settled, workflow in random_workflows():
        told = []
        for module in both_engines:
            events = Recorder()
            play(workflow, module, events)
            told.append([line(event) for event in events])
        assert told[0] == told[1], (seed, settled, workflow)
