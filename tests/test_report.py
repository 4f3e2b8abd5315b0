"""What a run tells afterwards."""

from __future__ import annotations

import asyncio
import pickle
import weakref
from collections.abc import Mapping
from typing import Any, NoReturn

import pytest

from helpers import (
    PHASES,
    Broken,
    Trace,
    build,
    counts_references,
    error_of,
    failure_of,
    forever,
    nothing,
    one_loop,
    solo,
    spawn,
    states,
    task,
    until,
    without_collector,
)
from sdax import (
    PhaseReport,
    RetryableException,
    RunReport,
    SdaxExecutionError,
    State,
    TaskFailure,
    TaskFunction,
    TaskReport,
    join,
)
from sdax.observe import RunFinished

pytestmark = one_loop

ABSENT = PhaseReport(State.ABSENT)


def test_the_states() -> None:
    assert {state.name: str(state) for state in State} == {
        "SUCCEEDED": "succeeded",
        "FAILED": "failed",
        "TIMED_OUT": "timed out",
        "CANCELLED": "cancelled",
        "SKIPPED": "skipped",
        "ABSENT": "absent",
    }


@pytest.mark.parametrize("number", [0, 1])
async def test_of_a_success(number: int) -> None:
    trace = Trace()
    report = await build(
        [
            task(
                "A",
                trace.pausing("A.pre", number, "pre value"),
                trace.pausing("A.execute", number, ["execute value"]),
                trace.pausing("A.post", number),
            )
        ],
        [task("B", None, trace.quick("B.execute", 0)), join("C")],
    ).process_tasks(None)
    assert type(report) is RunReport
    assert dict(report) == {
        "A": TaskReport(
            PhaseReport(State.SUCCEEDED, 1, "pre value"),
            PhaseReport(State.SUCCEEDED, 1, ["execute value"]),
            PhaseReport(State.SUCCEEDED, 1, None),
        ),
        "B": TaskReport(ABSENT, PhaseReport(State.SUCCEEDED, 1, 0), ABSENT),
        "C": TaskReport(ABSENT, ABSENT, ABSENT),
    }


async def test_names_in_the_order_of_adding() -> None:
    report = await build([join("C")], [join("A"), join("B")]).process_tasks(None)
    assert list(report) == ["C", "A", "B"]
    assert len(report) == 3
    assert repr(report) == "<RunReport of 3 tasks>"


async def test_a_read_only_mapping() -> None:
    report = await solo(nothing).process_tasks(None)
    assert isinstance(report, Mapping)
    assert "A" in report
    assert "B" not in report
    assert report.get("B") is None
    with pytest.raises(KeyError, match="there is no task 'B'; there is 'A'"):
        report["B"]
    with pytest.raises(TypeError):
        report["A"] = None  # type: ignore[index]
    with pytest.raises(TypeError):
        del report["A"]  # type: ignore[attr-defined]
    with pytest.raises(AttributeError):
        report["A"].execute = None


async def test_values_are_the_very_objects() -> None:
    value = object()
    report = await solo(Trace().quick("A", value), Trace().pausing("A", 1, value)).process_tasks(0)
    assert report["A"].pre_execute.value is value
    assert report["A"].execute.value is value


async def test_a_plain_success_takes_no_memory_in_a_report() -> None:
    processor = solo(nothing, nothing, nothing)
    for observer in ((), lambda event: None):
        report = await processor.process_tasks(None, observer=observer)
        assert not report._phases


async def test_each_run_has_a_report_of_its_own() -> None:
    async def echo(ctx: Any) -> Any:
        await asyncio.sleep(0)
        return ctx

    processor = solo(echo)
    reports = await asyncio.gather(*(processor.process_tasks(number) for number in range(5)))
    assert [report["A"].pre_execute.value for report in reports] == [0, 1, 2, 3, 4]


async def test_of_a_failure() -> None:
    trace = Trace()
    broken, late = ValueError("broken"), ValueError("late")
    error = await failure_of(
        build(
            [task("low", trace.quick("low", "value"), nothing, trace.failing("low.post", late))],
            [
                task("waiting", trace.waiting("waiting"), nothing, trace.quick("post", "cleaned")),
                task("failing", trace.failing("failing", broken, 1)),
                join("node"),
            ],
            [task("high", nothing, nothing, nothing)],
        )
    )
    skipped = PhaseReport(State.SKIPPED)
    assert dict(error.report) == {
        "low": TaskReport(
            PhaseReport(State.SUCCEEDED, 1, "value"),
            skipped,
            PhaseReport(State.FAILED, 1, None, late),
        ),
        "waiting": TaskReport(
            PhaseReport(State.CANCELLED, 1),
            skipped,
            PhaseReport(State.SUCCEEDED, 1, "cleaned"),
        ),
        "failing": TaskReport(PhaseReport(State.FAILED, 1, None, broken), ABSENT, ABSENT),
        "node": TaskReport(ABSENT, ABSENT, ABSENT),
        "high": TaskReport(skipped, skipped, skipped),
    }


@pytest.mark.virtual_clock
@pytest.mark.parametrize("phase", range(3))
async def test_attempts(phase: int) -> None:
    calls: list[Any] = []

    async def flaky(ctx: Any) -> str:
        calls.append(ctx)
        if len(calls) < 3:
            raise RetryableException
        return "value"

    phases: list[Any] = [None] * 3
    phases[phase] = TaskFunction(flaky, retries=5)
    report = await solo(*phases).process_tasks(None)
    reported = report["A"][phase]
    assert reported[:4] == (State.SUCCEEDED, 3, "value", None)
    assert [type(each) for each in reported.attempts_failed] == [RetryableException] * 2
    phases[phase] = TaskFunction(forever, timeout=1, retries=2)
    error = await failure_of(solo(*phases))
    reported = error.report["A"][phase]
    assert reported[:4] == (State.TIMED_OUT, 3, None, error.exceptions[0])
    assert [type(each) for each in reported.attempts_failed] == [TimeoutError] * 2


async def test_attempts_of_what_succeeds_with_none() -> None:
    calls: list[Any] = []

    async def flaky(ctx: Any) -> None:
        calls.append(ctx)
        if len(calls) < 2:
            raise RetryableException

    function = TaskFunction(flaky, retries=1, initial_delay=0)
    report = await solo(function).process_tasks(None)
    reported = report["A"].pre_execute
    assert reported[:4] == (State.SUCCEEDED, 2, None, None)
    assert [type(each) for each in reported.attempts_failed] == [RetryableException]


async def test_of_a_cancelled_run_with_failures(loop_errors: list[Any]) -> None:
    trace = Trace()
    run = spawn(
        build(
            [
                task("A", trace.waiting("A"), nothing, nothing),
                task("B", trace.spiteful("B", ValueError())),
            ]
        )
    )
    await until(lambda: "B" in trace)
    run.cancel()
    assert isinstance(await error_of(run), asyncio.CancelledError)
    assert states(loop_errors.pop()["exception"].report) == {"A": "Cs+", "B": "F--"}


async def test_a_failure_keeps_the_values_of_what_succeeded() -> None:
    error = await failure_of(
        build([task("A", Trace().quick("A", 5)), task("B", Trace().failing("B", ValueError()))])
    )
    assert error.report["A"].pre_execute.value == 5


async def picklable(ctx: Any) -> str:
    return "value"


async def picklable_in_a_group(ctx: Any, group: Any) -> str:
    return "value"


@pytest.mark.parametrize(
    "function",
    [picklable, TaskFunction(picklable_in_a_group, has_task_group_argument=True)],
    ids=["bare", "group"],
)
async def test_picklable_when_its_functions_are(function: Any) -> None:
    report = await solo(function, post=function).process_tasks(None)
    again = pickle.loads(pickle.dumps(report))
    assert dict(again) == dict(report)


@counts_references
async def test_a_report_does_not_keep_the_context() -> None:
    class Context:
        pass

    ctx = Context()
    gone = weakref.ref(ctx)
    with without_collector():
        report = await solo(Trace().pausing("A"), nothing, nothing).process_tasks(ctx)
        del ctx
        assert gone() is None
    assert len(report) == 1


@pytest.mark.parametrize("phase", range(3))
async def test_phases_by_name_and_by_position(phase: int) -> None:
    functions: list[Any] = [None] * 3
    functions[phase] = Trace().quick("A", "value")
    report = await solo(*functions).process_tasks(None)
    assert getattr(report["A"], PHASES[phase]) is not None
    assert getattr(report["A"], PHASES[phase]).value == report["A"][phase].value == "value"
    assert TaskReport._fields == PHASES


# As a whole.


async def test_ok_and_counts() -> None:
    report = await build([task("A", nothing, nothing), join("B")]).process_tasks(None)
    assert report.ok
    assert report.failures == ()
    assert report.counts == {State.SUCCEEDED: 2}


async def test_the_failures() -> None:
    trace = Trace()
    first, second = Broken("first"), Broken("second")
    error = await failure_of(
        build(
            [
                task("A", trace.waiting("A"), nothing, trace.failing("A", second)),
                task("B", trace.failing("B", first, 1)),
            ]
        )
    )
    report = error.report
    assert not report.ok
    assert report.failures == error.failures
    assert report.failures == (
        ("B", "pre_execute", 1, first),
        ("A", "post_execute", 1, second),
    )
    assert type(report.failures[0]) is TaskFailure
    assert report.counts == {State.FAILED: 2, State.CANCELLED: 1, State.SKIPPED: 1}
    again = pickle.loads(pickle.dumps(report))
    assert [failure[:3] for failure in again.failures] == [each[:3] for each in report.failures]
    assert again.failures[0].exception is again["B"].pre_execute.exception
    assert not again.ok
    assert again.counts == report.counts


@pytest.mark.virtual_clock
async def test_a_timeout_is_a_failure() -> None:
    report = (await failure_of(solo(TaskFunction(forever, timeout=1)))).report
    assert not report.ok
    assert [failure[:3] for failure in report.failures] == [("A", "pre_execute", 1)]


async def test_what_is_no_exception_is_no_failure_but_not_ok() -> None:
    finished: list[RunFinished] = []

    def observer(event: Any) -> None:
        if isinstance(event, RunFinished):
            finished.append(event)

    async def interrupt(ctx: Any) -> None:
        raise KeyboardInterrupt

    assert isinstance(
        await error_of(solo(interrupt).process_tasks(None, observer=observer)), KeyboardInterrupt
    )
    (event,) = finished
    assert event.report is not None
    assert not event.report.ok
    assert event.report.failures == ()


async def test_a_cancelled_run_may_be_ok() -> None:
    reports: list[Any] = []

    def observer(event: Any) -> None:
        if isinstance(event, RunFinished):
            reports.append(event.report)

    run = asyncio.ensure_future(solo(forever, nothing).process_tasks(None, observer=observer))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    run.cancel()
    assert isinstance(await error_of(run), asyncio.CancelledError)
    assert reports[0].ok
    assert reports[0].counts == {State.CANCELLED: 1, State.SKIPPED: 1}


async def test_nobody_has_measured_a_run_without_an_observer() -> None:
    report = await solo(nothing).process_tasks(None)
    assert report.duration is None
    assert report.phase_durations is None


@pytest.mark.virtual_clock
async def test_durations() -> None:
    async def two(ctx: Any) -> None:
        await asyncio.sleep(2)

    async def three(ctx: Any) -> None:
        await asyncio.sleep(3)

    processor = build([task("A", two, None, two)], [task("B", two), task("C", None, three)])
    await asyncio.sleep(100)
    report = await processor.process_tasks(None, observer=id)
    assert report.duration == 9
    assert report.phase_durations == {"pre_execute": 4, "execute": 3, "post_execute": 2}
    again = pickle.loads(pickle.dumps(report))
    assert (again.duration, again.phase_durations) == (9, report.phase_durations)
    assert report == await processor.process_tasks(None)


@pytest.mark.virtual_clock
async def test_durations_of_a_failed_run() -> None:
    async def fail(ctx: Any) -> None:
        await asyncio.sleep(2)
        raise Broken

    with pytest.raises(SdaxExecutionError) as caught:
        await solo(fail, nothing, nothing).process_tasks(None, observer=id)
    report = caught.value.report
    assert report.duration == 2
    assert report.phase_durations == {"pre_execute": 2, "post_execute": 0}


@pytest.mark.virtual_clock
async def test_durations_phase_by_phase() -> None:
    async def fail(ctx: Any) -> None:
        await asyncio.sleep(2)
        raise Broken

    run = solo(fail, nothing, nothing).open(None, observer=id)
    await asyncio.sleep(50)
    with pytest.raises(SdaxExecutionError):
        async with run:
            await run.run_next()
            await asyncio.sleep(5)
            with pytest.raises(SdaxExecutionError) as caught:
                run.raise_failures()
            assert caught.value.report.duration == 7
            assert caught.value.report.phase_durations == {"pre_execute": 2}


@pytest.mark.virtual_clock
async def test_durations_in_the_middle_of_a_phase() -> None:
    trace = Trace()
    gate = asyncio.Event()

    async def waits(ctx: Any) -> None:
        try:
            await forever()
        finally:
            await gate.wait()

    processor = build([task("A", trace.failing("A", Broken(), 1)), task("B", waits)])
    with pytest.raises(SdaxExecutionError):
        async with processor.open(None, observer=id) as run:
            first = asyncio.ensure_future(run.run_next())
            await asyncio.sleep(3)
            with pytest.raises(SdaxExecutionError) as caught:
                run.raise_failures()
            assert caught.value.report.duration == 3
            assert caught.value.report.phase_durations == {"pre_execute": 3}
            gate.set()
            await first


async def test_nearest_names() -> None:
    processor = build([task("User", nothing), task("Users", nothing), task(5, nothing), join("")])
    report = await processor.process_tasks(None)
    for again in (report, pickle.loads(pickle.dumps(report))):
        for name, meant in (
            ("Usrs", "'Users' or 'User'"),
            ("USER", "'User' or 'Users'"),
            ("5", "5"),
        ):
            with pytest.raises(KeyError) as caught:
                again[name]
            assert caught.value.args == (name,)
            assert str(caught.value).endswith(f"; did you mean {meant}?"), str(caught.value)
        assert again.get("Usrs") is None
        with pytest.raises(TypeError):
            again[["User"]]
        unpickled = pickle.loads(pickle.dumps(caught.value))
        assert str(unpickled).startswith("there is no task ")


async def test_no_name_is_near() -> None:
    names = [f"name {number}" for number in range(100)]
    report = await build([join(name) for name in names]).process_tasks(None)
    with pytest.raises(KeyError, match=r"no task None; there are 'name 0', .*, 'name 7', \.\.\.$"):
        report[None]
    with pytest.raises(KeyError, match=r"there is no task 'A'; there are 'Bcd', 'Efg'$"):
        (await build([join("Bcd"), join("Efg")]).process_tasks(None))["A"]


# As a table.


class Lines(Exception):
    """Says more than one line."""

    def __str__(self) -> str:
        return "first\nsecond"


class Silent(Exception):
    """Cannot say anything."""

    def __str__(self) -> str:
        raise ValueError


class Unseen:
    """Has no `repr`."""

    def __repr__(self) -> str:
        raise ValueError


async def test_a_table() -> None:
    trace = Trace()
    error = await failure_of(
        build(
            [
                task("User", trace.quick(""), trace.quick("", {"id": 7}), trace.quick("")),
                task("Orders", None, trace.failing("", ConnectionError("no route"))),
            ],
            [join("Both"), task("Log", None, nothing)],
        )
    )
    assert (
        str(error.report)
        == """\
4 tasks: 3 succeeded, 1 failed, 1 skipped
  task    phase         state      attempts  value or exception
  User    pre_execute   succeeded  1
  User    execute       succeeded  1         {'id': 7}
  User    post_execute  succeeded  1
  Orders  execute       failed     1         ConnectionError: no route
  Both    (no phase)
  Log     execute       skipped"""
    )


@pytest.mark.virtual_clock
async def test_a_table_of_timeouts_and_retries() -> None:
    error = await failure_of(solo(TaskFunction(forever, timeout=1, retries=2)))
    assert (
        str(error.report)
        == """\
1 task: 1 timed out
  task  phase        state      attempts  value or exception
  A     pre_execute  timed out  3         TimeoutError: timed out after 1 s"""
    )


async def test_a_table_of_nothing() -> None:
    assert str(await build().process_tasks(None)) == "0 tasks"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (["a"] * 1000, "['a', 'a', 'a', 'a', 'a', 'a', ...]"),
        (0, "0"),
        ("two\nlines", r"'two\nlines'"),
        ("\x1b[31m", r"'\x1b[31m'"),
    ],
)
async def test_values_in_a_table(value: Any, shown: str) -> None:
    report = await solo(Trace().quick("", value)).process_tasks(None)
    assert str(report).splitlines()[-1].endswith(f"  1         {shown}")


@pytest.mark.parametrize(
    "value",
    ["x" * 10**6, 10**9999, b"x" * 10**6, Unseen(), ["y" * 99] * 99],
    ids=["text", "number", "bytes", "no repr", "list"],
)
async def test_long_and_nameless_values_in_a_table(value: Any) -> None:
    report = await solo(Trace().quick("", value)).process_tasks(None)
    lines = str(report).splitlines()
    assert len(lines) == 3
    assert len(lines[-1]) < 130


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (Lines(), "Lines: first ..."),
        (Silent(), "Silent"),
        (ValueError(), "ValueError"),
        (ValueError("\n"), "ValueError"),
        (ValueError("x" * 10**6), f"ValueError: {'x' * 57}..."),
        (
            ExceptionGroup("all", [OSError("1"), OSError("2")]),
            "ExceptionGroup: all (2 sub-exceptions)",
        ),
    ],
)
async def test_exceptions_in_a_table(error: Exception, shown: str) -> None:
    report = (await failure_of(solo(Trace().failing("", error)))).report
    assert str(report).splitlines()[-1].endswith(f"  1         {shown}")


async def test_a_table_of_many_tasks_is_short() -> None:
    tasks = [task(number, nothing, nothing) for number in range(5000)]
    report = await build(tasks).process_tasks(None)
    head, columns, *rows, end = str(report).splitlines()
    assert head == "5000 tasks: 10000 succeeded"
    assert len(rows) == 50
    assert {row.index("execute") for row in rows[1::2]} == {columns.index("phase")}
    assert end == "  ... and 9950 lines more: 9950 succeeded"


async def test_a_table_of_fifty_lines_is_whole() -> None:
    report = await build([task(number, nothing) for number in range(50)]).process_tasks(None)
    assert len(str(report).splitlines()) == 52


async def test_failures_are_the_first_in_a_table_of_many_tasks() -> None:
    trace = Trace()
    tasks = [task(number, nothing, nothing, nothing) for number in range(100)]
    tasks[40] = task(40, trace.waiting("40"), nothing, nothing)
    tasks[70] = task("late", trace.failing("late", Broken("late"), 1), nothing, nothing)
    tasks[80] = task("bad", nothing, nothing, trace.failing("bad", Broken("bad")))
    report = (await failure_of(build([*tasks, join("node")]))).report
    head, _, *rows, end = str(report).splitlines()
    assert head == "101 tasks: 2 failed, 1 cancelled, 100 skipped, 197 succeeded"
    assert rows[0].split() == ["late", "pre_execute", "failed", "1", "Broken:", "late"]
    assert rows[1].split() == ["bad", "post_execute", "failed", "1", "Broken:", "bad"]
    assert rows[2].split() == ["40", "pre_execute", "cancelled", "1"]
    assert all("skipped" in row for row in rows[3:])
    assert end == "  ... and 251 lines more: 53 skipped, 197 succeeded"


async def test_a_fallback_is_not_hidden_in_a_table_of_many_tasks() -> None:
    trace, down = Trace(), ConnectionError("down")

    def fails_too(ctx: Any, exc: Exception) -> NoReturn:
        raise Broken("too")

    answered = TaskFunction(trace.failing("A", down), fallback=lambda ctx, exc: "cached")
    broken = TaskFunction(trace.failing("B", down), fallback=fails_too)
    tasks = [task(number, nothing) for number in range(100)]
    offers = [task("Offers", answered), task("broken", broken, required=False)]
    report = await build([*tasks, *offers]).process_tasks(None)
    head, _, *rows, end = str(report).splitlines()
    assert head == "102 tasks: 1 failed, 101 succeeded (1 by fallback)"
    assert rows[0].split() == [
        "broken",
        "pre_execute",
        "failed",
        "1,",
        "fallback",
        "Broken:",
        "too",
    ]
    assert rows[1].split() == ["Offers", "pre_execute", "succeeded", "1,", "fallback", "'cached'"]
    assert end == "  ... and 52 lines more: 52 succeeded"


async def test_a_table_of_a_report_that_was_pickled() -> None:
    report = await solo(picklable, post=picklable).process_tasks(None)
    assert str(pickle.loads(pickle.dumps(report))) == str(report)
