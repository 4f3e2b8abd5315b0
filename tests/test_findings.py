"""What `sdax.testing` tells of a finding, and how it is repeated."""

from __future__ import annotations

import asyncio
import re
from typing import Any, NamedTuple

import pytest

from exploring import (
    Context,
    Pool,
    all_back,
    anything,
    found,
    never,
    pause,
    pooled,
    schedules,
)
from helpers import build, nothing, solo, task
from sdax import task_func
from sdax.testing import NotReachedError, ScheduleFailed, explore
from sdax.testing.settings import Settings

pytestmark = pytest.mark.usefixtures("engine")


async def take_late(ctx: Context) -> None:
    connection = await ctx.pool.acquire()
    await asyncio.sleep(0.5)  # and is lost if this is cancelled
    ctx.connection = connection


def test_a_finding_tells_everything(request: pytest.FixtureRequest) -> None:
    processor = pooled(
        take_late, more := None or __import__("exploring").give_back, task("Late", pause)
    )
    del more
    with pytest.raises(ScheduleFailed) as caught:
        explore(processor, context=Context, check=all_back)
    finding = caught.value
    assert finding.schedule == "Database.pre_execute#1@2:cancel"
    assert finding.problems == ("the check returned False",)
    assert finding.run is not None
    assert finding.run.context.pool.free == 1
    text = re.sub(r"line \d+", "line N", str(finding))
    assert text == (
        "After Database.pre_execute#1@2:cancel: the check returned False\n"
        "\n"
        "The caller was cancelled while Database.pre_execute waited at its 2nd await.\n"
        "    tests/test_findings.py, line N, in take_late\n"
        "        await asyncio.sleep(0.5)  # and is lost if this is cancelled\n"
        "\n"
        "Unlike the undisturbed run (+ only here, - only there):\n"
        "    +    0.010 s  Database.pre_execute#1  (cancel)\n"
        "    +    0.010 s  Database.pre_execute#1  is cancelled\n"
        "    -    0.510 s  Database.pre_execute#1  goes on, await 2\n"
        "    -    0.510 s  Database.pre_execute#1  returns\n"
        "    -    0.510 s  Late.pre_execute#1  is called\n"
        "    -    0.510 s  Late.pre_execute#1  waits, await 1\n"
        "    -    0.610 s  Late.pre_execute#1  goes on, await 1\n"
        "    -    0.610 s  Late.pre_execute#1  returns\n"
        "    -    0.610 s  Database.post_execute#1  waits, await 1\n"
        "    -    0.620 s  Database.post_execute#1  goes on, await 1\n"
        "\n"
        "The run raised CancelledError\n"
        "\n"
        "The report:\n"
        "    2 tasks: 1 cancelled, 1 succeeded, 1 skipped\n"
        "      task      phase         state      attempts  value or exception\n"
        "      Database  pre_execute   cancelled  1\n"
        "      Database  post_execute  succeeded  1\n"
        "      Late      pre_execute   skipped\n"
        "\n"
        "To repeat it:\n"
        f"    pytest '{request.node.nodeid}' --sdax-replay='Database.pre_execute#1@2:cancel'"
    )


def test_places_are_shown_from_the_function_to_what_it_waits_in() -> None:
    (finding, *_) = found(pooled(), lambda run: "1@1:cancel" not in run.schedule)
    told = re.sub(r"line \d+", "line N", str(finding))
    assert (
        "    tests/exploring.py, line N, in take\n"
        "        ctx.connection = await ctx.pool.acquire()\n"
        "    tests/exploring.py, line N, in acquire\n"
        "        await asyncio.sleep(0.01)\n"
    ) in told


def test_what_happened_is_told_in_words() -> None:
    async def twelve_awaits(ctx: Context) -> None:
        for _ in range(12):
            await asyncio.sleep(0)

    limited = task_func(twelve_awaits, retries=1, timeout=5.0, initial_delay=1.0)
    faults = ("cancel", "fail", "hang", "interrupt")
    told = {
        each.schedule.partition("@")[2]: str(each).split("\n")[2]
        for each in found(solo(limited), never, faults=faults)
    }
    for at, sentence in SENTENCES.items():
        assert told[at] == sentence.format("A.pre_execute")


SENTENCES = {
    "1:cancel": "The caller was cancelled while {} waited at its 1st await.",
    "2:cancel": "The caller was cancelled while {} waited at its 2nd await.",
    "3:cancel": "The caller was cancelled while {} waited at its 3rd await.",
    "11:cancel": "The caller was cancelled while {} waited at its 11th await.",
    "12+:cancel": (
        "The caller was cancelled when what the 12th await of {} waited for was there, but the "
        "function had not gone on."
    ),
    "return:cancel": "The caller was cancelled when {} had returned.",
    "call:fail": "{} failed when it was called.",
    "call:fail always": "{} failed when it was called, as in each further attempt.",
    "4:fail": "The 4th await of {} failed.",
    "4:fail unexpectedly": "The 4th await of {} failed, with an exception that is not retried.",
    "return:fail": "{} did its work, and then its answer was lost.",
    "5:hang": "The 5th await of {} never ended.",
    "call:interrupt": "KeyboardInterrupt came when {} was called.",
}


def test_a_later_attempt_is_told() -> None:
    (finding,) = found(
        solo(task_func(nothing, retries=2, initial_delay=1.0)),
        never,
        replay="A.pre_execute#1@call:fail, A.pre_execute#2@call:cancel",
    )
    first, *_, second = re.findall(r"^(?:A\.|The caller).*", str(finding), re.MULTILINE)
    assert first == "A.pre_execute failed when it was called."
    assert second == "The caller was cancelled when A.pre_execute (attempt 2) was called."
    assert "will be retried" in str(finding)


def test_timeouts_are_told() -> None:
    (finding,) = found(solo(task_func(pause, timeout=5.0)), never, replay="A.pre_execute#1@1:hang")
    assert "+    5.000 s  A.pre_execute#1  times out\n" in str(finding)
    assert "The run raised SdaxExecutionError: pre_execute of task 'A' failed" in str(finding)


def test_what_differs_is_not_told_without_end() -> None:
    levels = [[task(f"T{number}", pause)] for number in range(20)]
    (finding, *_) = found(build(*levels), never, faults=("cancel",))
    assert "    ... and " in str(finding)
    assert str(finding).count("\n    - ") < 25


def test_an_undisturbed_run_that_fails() -> None:
    (finding,) = found(solo(nothing), lambda run: False)
    assert str(finding).startswith("In the undisturbed run: the check returned False\n")
    assert "Unlike the undisturbed run" not in str(finding)
    assert finding.schedule == ""


def test_all_problems_are_told() -> None:
    async def swallow(ctx: Context) -> None:
        try:
            await asyncio.sleep(1)
        except asyncio.CancelledError:
            asyncio.get_running_loop().create_task(pause(ctx), name="left over")

    (finding, *_) = found(solo(swallow), never, faults=("cancel",))
    assert len(finding.problems) == 3
    first, second, third, *_ = str(finding).split("\n")
    assert first.startswith(
        "After A.pre_execute#1@1:cancel: A.pre_execute, attempt 1, was cancelled"
    )
    assert second == "The check returned False"
    assert third.startswith("An asyncio.Task is left: left over, which waits at ")


# -------------------------------------------------------------------------------- to repeat it


def test_every_schedule_can_be_replayed() -> None:
    processor = pooled(take_late)
    options: Any = {"faults": ("cancel", "fail", "hang", "cancel again", "interrupt")}
    for schedule in schedules(processor, **options):
        (finding,) = found(processor, never, replay=schedule)
        assert finding.schedule == schedule
    findings = found(processor, all_back, **options)
    for finding in findings:
        (again,) = found(processor, all_back, replay=finding.schedule)
        assert (again.schedule, again.problems) == (finding.schedule, finding.problems)
        assert str(again).split("To repeat it")[0] == str(finding).split("To repeat it")[0]


def test_a_replay_that_finds_nothing() -> None:
    exploration = explore(
        pooled(), context=Context, check=all_back, replay="Database.pre_execute#1@1:cancel"
    )
    assert str(exploration).startswith("Database.pre_execute#1@1:cancel replayed, ")
    assert not exploration.exhaustive


@pytest.mark.parametrize(
    ("replay", "kind", "says"),
    [
        (
            "Dtabase.pre_execute#1@1:cancel",
            ValueError,
            "no function 'Dtabase.pre_execute'; did you mean 'Database.pre_execute'",
        ),
        ("Database.execute#1@1:cancel", ValueError, "there is no function 'Database.execute'; did"),
        ("Database.pre_execute#2@1:cancel", ValueError, "Database.pre_execute has no retries, so"),
        ("Late.pre_execute#4@1:cancel", ValueError, "Late.pre_execute has 3 attempts, so there"),
        (
            "Database.pre_execute#1@7:cancel",
            NotReachedError,
            "the run never came to Database.pre_execute#1@7; did you mean 'Database.pre_execute#1",
        ),
        ("Database.pre_execute#1@1:cncel", ValueError, "does not name a disturbance; write task"),
        ("Database.pre_execute@1:cancel", ValueError, "fault is cancel, fail, fail always, fail u"),
        ("Database.pre_execute#1@call:hang", ValueError, "only an await can hang, as in Database"),
        ("", ValueError, "'' does not name a disturbance"),
    ],
)
def test_what_does_not_exist_cannot_be_replayed(replay: str, kind: Any, says: str) -> None:
    processor = pooled(
        take_late, nothing, task("Late", task_func(pause, retries=2, initial_delay=1.0))
    )
    with pytest.raises(kind) as caught:
        explore(processor, context=Pooless, check=anything, replay=replay)
    assert says in str(caught.value)


class Pooless(Context):
    """Whose connection need not come back."""

    def __init__(self) -> None:
        super().__init__(Pool())


class OneTest(NamedTuple):
    nodeid: str


@pytest.mark.parametrize(
    ("settings", "repeated"),
    [
        (Settings(), "explore(..., replay='A@1')"),
        (Settings(command="sdax explore app"), "sdax explore app --replay=A@1"),
        (Settings(test=OneTest("t.py::t")), "pytest t.py::t --sdax-replay=A@1"),
        (Settings(test=OneTest("t.py::t"), number=2), "pytest t.py::t --sdax-replay='[2] A@1'"),
    ],
)
def test_how_a_schedule_is_repeated(settings: Settings, repeated: str) -> None:
    assert settings.repeating("A@1") == repeated


def test_how_an_undisturbed_run_is_repeated() -> None:
    assert Settings(command="sdax explore app").repeating("") == "sdax explore app"
    assert Settings(test=OneTest("t.py::t")).repeating("") == "pytest t.py::t"
