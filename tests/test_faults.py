"""Every call that leaves the engine fails, in turn: a part of `python -m tests.faults`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from itertools import count
from typing import Any

import pytest

import faults
from conftest import Implementation
from failing_calls import Places
from fault_scenarios import POST, PRE, SCENARIOS, Event, Journal, Scenario
from faults import main, play, search, using
from helpers import forever

pytestmark = pytest.mark.skipif(
    asyncio.Task is not getattr(asyncio.tasks, "_CTask", None),
    reason="sys.setprofile fails calls as it should on CPython",
)


def places(engine: Implementation, name: str) -> str:
    """Name the calls of a scenario."""
    calls = Places(engine.module)
    with using(engine.module):
        play(SCENARIOS[name], engine.module, calls)
    return "\n".join(calls.all)


@pytest.mark.parametrize(
    ("scenario", "called"),
    [
        ("plain functions and awaitables", ["plain", "awaitable", "coroutine", "as_coroutine"]),
        ("a failure in execute, suspended", ["Record.failed", "add_note", "get_task_factory"]),
        ("a timeout", ["call_at", "Deadlines.add", ".time"]),
        ("retries", ["uniform", "backoff", "is_retryable", "set_result", "create_future"]),
        ("a predicate", ["predicate"]),
        ("observed, success", ["observe", "Watch._tell", "Watch.run_finished"]),
        ("two that are no Exception", ["call_exception_handler"]),
        ("a factory of a class of its own, times out", ["cancel", "uncancel", "set_name"]),
    ],
)
def test_what_is_called(engine: Implementation, scenario: str, called: list[str]) -> None:
    """None of these may be forgotten by the search."""
    if engine.name == "python":
        called = [*called, "Context.copy", "current_task", "make_task"]
        if "factory" in scenario:
            called.remove("make_task")
    elif "cancel" in called:
        called = [each for each in called if each != "uncancel"] + ["CountedTask.cancel"]
    found = places(engine, scenario)
    assert [each for each in called if each not in found] == []


def findings_of(engine: Implementation, name: str, error: str, numbers: Iterable[int]) -> list[str]:
    """Fail these calls of a scenario in turn, and return what is wrong then."""
    with using(engine.module):
        found = search(SCENARIOS[name], engine.name, error, numbers)
        return [str(each) for each in found if each is not None]


# Of so many calls one fails here. All of them do in `make proof`.
SAMPLES = {"compiled": 40, "python": 120}


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_run_ends_and_cleans_up_whatever_call_fails(engine: Implementation, name: str) -> None:
    place = list(SCENARIOS).index(name)
    error = list(faults.ERRORS)[place % len(faults.ERRORS)]
    step = SAMPLES[engine.name]
    numbers = count(1 + place % step, step)
    assert findings_of(engine, name, error, numbers) == []


@pytest.mark.skipif(sys.version_info < (3, 12), reason="asyncio's eager tasks came with 3.12")
def test_a_broken_first_step_of_a_task_that_is_started_at_once(engine: Implementation) -> None:
    assert findings_of(engine, "an eager factory, success", "MemoryError", range(1, 60)) == []


def test_a_first_step_that_ctrl_c_keeps_from_being_taken(engine: Implementation) -> None:
    """Eagerly started, an `asyncio.Task` passes it on, and nobody has the Task."""
    numbers = range(150, 180)
    assert findings_of(engine, "observed, a failure", "KeyboardInterrupt", numbers) == []


def test_a_resource_is_cleaned_up_although_a_call_fails_after_its_set_up(
    engine: Implementation,
) -> None:
    numbers = {"python": range(44, 64), "compiled": range(18, 30)}[engine.name]
    assert findings_of(engine, "resources", "MemoryError", numbers) == []


Misdeed = Callable[[Journal], Awaitable[Any]]


async def hang(journal: Journal) -> None:
    await forever()


async def spin(journal: Journal) -> None:
    for _ in count():
        await asyncio.sleep(0)


async def leave_a_task(journal: Journal) -> None:
    task = asyncio.create_task(asyncio.sleep(1), name="left")
    task.add_done_callback(lambda _: task)


async def leave_a_timer(journal: Journal) -> None:
    journal.loop.call_later(100, print)


async def change_the_loop(journal: Journal) -> None:
    journal.loop.call_soon = journal.loop.call_soon  # type: ignore[method-assign]


async def forget_a_cancellation(journal: Journal) -> None:
    assert journal.caller is not None
    journal.caller.cancel()
    with suppress(asyncio.CancelledError):
        await asyncio.sleep(0)


async def leave_it_to_the_loop(journal: Journal) -> None:
    def leave() -> None:
        raise ValueError

    journal.loop.call_soon(leave)
    await asyncio.sleep(0)


async def go_through_the_loop(journal: Journal) -> None:
    def leave() -> None:
        raise KeyboardInterrupt

    journal.loop.call_soon(leave)
    await asyncio.sleep(0)


async def lose_an_error(journal: Journal) -> None:
    journal.raised.append(ValueError("lost"))


async def cut_a_cleanup(journal: Journal) -> None:
    task = asyncio.create_task(journal.uncut("A", forever)())
    await asyncio.sleep(0)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


def begun(*events: tuple[str, str, str]) -> Misdeed:
    async def call(journal: Journal) -> None:
        journal.acquires.add("A")
        journal.acquires.add("B")
        journal.cleanups |= {"A": 1, "B": 1}
        journal.events += [Event(*event) for event in events]

    return call


BEGINS, ENDS = ("A", PRE, "begins"), ("A", PRE, "ends")
CLEANUP, CLEANED = ("A", POST, "begins"), ("A", POST, "ends")


@pytest.mark.parametrize(
    ("misdeed", "said"),
    [
        (hang, "it hangs"),
        (spin, "it passes without end"),
        (leave_a_task, "left is left"),
        (leave_a_timer, "a timer is left"),
        (change_the_loop, "the loop has been given"),
        (forget_a_cancellation, "cancelling() of the caller is 1"),
        (leave_it_to_the_loop, "asyncio had to handle"),
        (go_through_the_loop, "went through the loop"),
        (lose_an_error, "lost: ValueError('lost')"),
        (cut_a_cleanup, "the cleanup of A is cut short"),
        (begun(BEGINS, ENDS), "no cleanup of A"),
        (begun(BEGINS, ENDS, CLEANUP), "the cleanup of A does not end"),
        (begun(BEGINS, ENDS, CLEANUP, CLEANED, CLEANUP, CLEANED), "2 cleanups of A"),
        (begun(BEGINS, CLEANUP, CLEANED, ENDS), "begins before"),
        (begun(CLEANUP, CLEANED, ("B", POST, "begins"), ("B", POST, "ends")), "not been called"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_whoever_breaks_a_promise_is_found(
    engine: Implementation,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    misdeed: Misdeed,
    said: str,
) -> None:
    scenario = Scenario("misdeed", lambda journal: lambda: misdeed(journal))
    monkeypatch.setitem(SCENARIOS, "misdeed", scenario)
    repeat = ["--engine", engine.name, "--scenario", "misdeed", "--error", "OSError", "--call", "0"]
    assert main(repeat) == 1
    printed = capsys.readouterr().out
    assert said in printed
    assert " ".join(repeat).replace("misdeed", "'misdeed'") in printed


def test_an_error_that_does_not_come_out_is_found(
    engine: Implementation, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prepare(journal: Journal) -> Callable[[], Awaitable[None]]:
        call = SCENARIOS["success"].prepare(journal)

        async def swallow() -> None:
            with suppress(MemoryError):
                await call()

        return swallow

    with using(engine.module):
        (finding,) = search(Scenario("swallowed", prepare), engine.name, "MemoryError", [1])
    assert finding is not None
    assert any("does not come out" in problem for problem in finding.problems)


def test_the_numbers_are_told(engine: Implementation, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--engine", engine.name, "--scenario", "success", "--show", "0"])
    printed = capsys.readouterr().out
    assert f"{engine.name}: " in printed
    assert "bookkeeping calls, each failed in turn" in printed
    assert faults.ERRORS.keys() >= {"MemoryError", "KeyboardInterrupt"}
