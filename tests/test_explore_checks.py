"""`sdax.testing.explore`: what is checked of each run, how long it goes on, and what it says."""

from __future__ import annotations

import asyncio
import gc
import io
import random
import sqlite3
import threading
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import ref

import pytest

import sdax
from conftest import Implementation
from exploring import (
    Context,
    all_back,
    anything,
    found,
    never,
    pause,
    pooled,
    schedules,
)
from helpers import build, nothing, solo, task, task_in
from sdax import State, task_func, task_thread_func
from sdax.engine import attempts
from sdax.testing import (
    Exploration,
    NotDeterministic,
    OutsideWorldError,
    ScheduleFailed,
    VirtualClockLoop,
    explorations,
    explore,
)
from sdax.testing.explore import Explorer

pytestmark = pytest.mark.usefixtures("engine")

CANCEL = ("cancel",)
FAIL = ("fail",)


def problems(processor: Any, check: Any = anything, **options: Any) -> dict[str, tuple[str, ...]]:
    """Return what is wrong, by schedule."""
    return {each.schedule: each.problems for each in found(processor, check, **options)}


# ------------------------------------------------------------------------ what the check says


def test_a_check_may_be_async() -> None:
    async def check(run: Any) -> bool:
        await asyncio.sleep(1)
        return all_back(run)

    assert explore(pooled(), context=Context, check=check).exhaustive
    with pytest.raises(ScheduleFailed, match="the check returned False"):
        explore(pooled(post=nothing), context=Context, check=check)


def test_a_check_gets_the_run() -> None:
    seen: dict[str, Any] = {}

    def check(run: Any) -> None:
        assert repr(run).startswith(f"<ExploredRun: {run.schedule or 'undisturbed'}, ")
        seen[run.schedule] = (
            type(run.context),
            run.report["A"].pre_execute.state.value,
            type(run.error).__name__,
            run.time,
        )

    explore(solo(pause), context=Context, check=check, faults=("cancel", "fail"))
    assert seen == {
        "": (Context, "succeeded", "NoneType", 0.1),
        "A.pre_execute#1@1:cancel": (Context, "cancelled", "CancelledError", 0.0),
        "A.pre_execute#1@1+:cancel": (Context, "cancelled", "CancelledError", 0.1),
        "A.pre_execute#1@return:cancel": (Context, "succeeded", "CancelledError", 0.1),
        "A.pre_execute#1@call:fail": (Context, "failed", "SdaxExecutionError", 0.0),
        "A.pre_execute#1@call:fail unexpectedly": (Context, "failed", "SdaxExecutionError", 0.0),
        "A.pre_execute#1@1:fail": (Context, "failed", "SdaxExecutionError", 0.0),
        "A.pre_execute#1@1:fail unexpectedly": (Context, "failed", "SdaxExecutionError", 0.0),
        "A.pre_execute#1@return:fail": (Context, "failed", "SdaxExecutionError", 0.1),
        "A.pre_execute#1@return:fail unexpectedly": (Context, "failed", "SdaxExecutionError", 0.1),
    }


def raise_an_error(run: Any) -> None:
    raise LookupError("not there")


def assert_something(run: Any) -> None:
    assert not run.schedule, "only undisturbed"


def fail_by_pytest(run: Any) -> None:
    if run.schedule:
        pytest.fail("no good")


@pytest.mark.parametrize(
    ("check", "problem", "cause"),
    [
        (raise_an_error, "the check failed: LookupError: not there", LookupError),
        (assert_something, "the check failed: AssertionError: only undisturbed", AssertionError),
        (fail_by_pytest, "the check failed: Failed: no good", pytest.fail.Exception),
        (never, "the check returned False", type(None)),
    ],
)
def test_what_a_check_says_is_told(check: Any, problem: str, cause: Any) -> None:
    with pytest.raises(ScheduleFailed) as caught:
        explore(solo(pause), context=Context, check=check, faults=CANCEL)
    (told,) = caught.value.problems
    assert told.split("\n")[0] == problem
    assert type(caught.value.__cause__) is cause


def test_a_check_may_skip_the_test() -> None:
    with pytest.raises(pytest.skip.Exception):
        explore(solo(pause), context=Context, check=lambda run: pytest.skip("not here"))


@pytest.mark.parametrize("answer", [0, 1, "", [], object()])
def test_a_check_that_gives_no_answer_is_refused(answer: Any) -> None:
    with pytest.raises(TypeError, match="check must return True, False or None, got "):
        explore(solo(pause), context=Context, check=lambda run: answer)


async def always_fails(ctx: Any) -> None:
    raise LookupError("no such user")


def test_the_undisturbed_run_must_succeed() -> None:
    advice = "If the undisturbed run is meant to fail, let the check look at run.error"
    assert problems(solo(always_fails), lambda run: True) == {
        "": (f"A.pre_execute raised LookupError('no such user'). {advice}",)
    }
    cleanups = build([task(each, None, None, always_fails) for each in "ABCDE"])
    (problem,) = problems(cleanups, lambda run: True)[""]
    assert problem.startswith("A.post_execute raised LookupError('no such user'), B.post_execute ")
    assert problem.endswith(
        f"C.post_execute raised LookupError('no such user') and 2 more. {advice}"
    )


def test_an_undisturbed_run_that_raises_something_else() -> None:
    async def leave(ctx: Any) -> None:
        raise SystemExit(3)

    (problem,) = problems(solo(leave), lambda run: True)[""]
    assert problem.startswith("the run raised SystemExit(3). If ")


def test_a_check_may_accept_that_it_fails() -> None:
    exploration = explore(
        solo(always_fails), context=Context, check=lambda run: run.error is not None, faults=FAIL
    )
    assert exploration.exhaustive


# ---------------------------------------------------------------------- what is always checked


async def swallow(ctx: Any) -> None:
    with suppress(asyncio.CancelledError):
        await asyncio.sleep(1)


async def swallow_and_go_on(ctx: Any) -> None:
    try:
        await asyncio.sleep(1)
    except BaseException:
        await asyncio.sleep(1)


async def answer_with_an_error(ctx: Any) -> None:
    try:
        await asyncio.sleep(1)
    except asyncio.CancelledError:
        raise ValueError("too late") from None


async def clean_up_and_raise(ctx: Any) -> None:
    try:
        await asyncio.sleep(1)
    except asyncio.CancelledError:
        await asyncio.sleep(1)
        raise


async def end_another(ctx: Any) -> None:
    other = asyncio.get_running_loop().create_task(asyncio.sleep(3600))
    try:
        await asyncio.sleep(0)
    finally:
        other.cancel()
    try:
        await other
    except asyncio.CancelledError:
        if current().cancelling():
            raise


def current() -> asyncio.Task[Any]:
    found = asyncio.current_task()
    assert found is not None
    return found


@pytest.mark.parametrize("function", [swallow, swallow_and_go_on])
def test_a_swallowed_cancellation_is_a_finding(function: Any) -> None:
    findings = problems(solo(function), faults=CANCEL)
    assert "A.pre_execute#1@1:cancel" in findings
    assert set(findings.values()) == {
        (
            "A.pre_execute, attempt 1, was cancelled, and returned as if nothing had happened; "
            "let CancelledError through",
        )
    }


@pytest.mark.parametrize("function", [answer_with_an_error, clean_up_and_raise, end_another])
def test_a_cancellation_that_is_heard_is_none(function: Any) -> None:
    assert problems(solo(function), faults=CANCEL) == {}


def test_a_timeout_that_is_swallowed_is_a_finding() -> None:
    limited = task_func(swallow, timeout=5.0)
    assert list(problems(solo(limited), faults=("hang",))) == ["A.pre_execute#1@1:hang"]


def test_a_timeout_of_the_function_itself_is_none() -> None:
    async def patient(ctx: Any) -> None:
        try:
            async with asyncio.timeout(5):
                await asyncio.sleep(1)
        except TimeoutError:
            pass

    assert problems(solo(patient), faults=("hang", "cancel")) == {}


async def swallow_everything(ctx: Any) -> None:
    with suppress(BaseException):
        await asyncio.sleep(1)


def test_a_swallowed_interrupt_is_a_finding() -> None:
    assert problems(solo(swallow_everything), faults=("interrupt",)) == {
        "A.pre_execute#1@1+:interrupt": ("A.pre_execute swallowed KeyboardInterrupt",)
    }


def test_a_function_may_cope_with_a_failure() -> None:
    async def fall_back(ctx: Any) -> str:
        try:
            await asyncio.sleep(1)
        except Exception:
            return "fallback"
        return "real"

    assert set(problems(solo(fall_back), never, faults=FAIL)) == {
        f"A.pre_execute#1@{at}:{fault}"
        for at in ("call", "1", "return")
        for fault in ("fail", "fail unexpectedly")
    }
    assert problems(solo(fall_back), faults=FAIL) == {}


class LosingProcessor(sdax.AsyncTaskProcessor[Any, Any]):
    """Swallows what its runs raise, and tells nobody."""

    __slots__ = ()

    async def process_tasks(self, ctx: Any, *, observer: Any = None) -> Any:
        with suppress(BaseException):
            await super().process_tasks(ctx, observer=())


def losing(function: Any) -> Any:
    return LosingProcessor(((task("A", function), 1),))


def test_a_failure_that_is_lost_is_a_finding() -> None:
    findings = problems(losing(pause), faults=FAIL)
    assert len(findings) == 6
    assert all("which is lost" in problem for (problem,) in findings.values())


def test_a_cancellation_that_is_lost_is_a_finding() -> None:
    findings = problems(losing(pause), faults=CANCEL)
    lost = "the caller was cancelled, and got None in place of CancelledError"
    assert findings["A.pre_execute#1@1:cancel"] == (lost,)


def test_a_cancellation_that_comes_too_late_is_none() -> None:
    """Nothing suspends, so the run is over before its caller can hear of it."""
    assert problems(solo(nothing), faults=CANCEL) == {}


async def read_what_is_not_there(ctx: Context) -> None:
    del ctx.notes[0]


async def note(ctx: Context) -> None:
    await asyncio.sleep(1)
    ctx.notes.append("there")


def test_a_cleanup_that_cannot_cope_is_a_finding() -> None:
    findings = problems(solo(note, None, read_what_is_not_there), faults=CANCEL)
    problem = (
        "A.post_execute raised IndexError('list assignment index out of range'); a cleanup must "
        "work with whatever exists"
    )
    assert findings == dict.fromkeys(
        ["A.pre_execute#1@1:cancel", "A.pre_execute#1@1+:cancel"], (problem,)
    )


async def wait_unless_there(ctx: Context) -> None:
    if not ctx.notes:
        await asyncio.get_running_loop().create_future()


NEVER_COMES = "a cleanup must not wait for what never comes after a failure or a cancellation"


def test_a_cleanup_that_times_out_only_after_a_disturbance_is_a_finding() -> None:
    limited = task_func(wait_unless_there, timeout=5.0)
    findings = problems(solo(task_func(note, timeout=9.0), None, limited))
    assert {"A.pre_execute#1@1:cancel", "A.pre_execute#1@1:fail"} <= findings.keys()
    for (problem,) in findings.values():
        assert problem.startswith("A.post_execute raised TimeoutError('timed out after 5.0 s') (")
        assert "in wait_unless_there: await asyncio.get_running_loop().create_future());" in problem
        assert problem.endswith(NEVER_COMES)
    again = task_func(wait_unless_there, timeout=5.0, retries=1, initial_delay=0.1)
    assert problems(solo(task_func(note, timeout=9.0), None, again)).keys() >= findings.keys()


def test_a_cleanup_that_takes_the_time_of_all_cleanups_is_a_finding() -> None:
    tasks = [task("File", pause, None, pause)], [task("A", note, None, wait_unless_there)]
    findings = problems(build(*tasks, cleanup_timeout=5.0), faults=CANCEL)
    (problem,) = findings["A.pre_execute#1@1:cancel"]
    assert problem.startswith("A.post_execute raised TimeoutError('cut off by cleanup_timeout: ")
    assert problem.endswith(NEVER_COMES)


def test_a_cleanup_that_another_cut_off_is_none() -> None:
    """If a cleanup hangs because it is disturbed, the others have no time left."""
    tasks = [task("File", None, None, pause)], [task("A", None, None, pause)]
    processor = build(*tasks, cleanup_timeout=5.0)
    assert problems(processor, faults=("hang",)) == {}


def test_a_cleanup_that_is_retried_may_fail_for_good_only_if_it_does_undisturbed() -> None:
    async def flaky(ctx: Context) -> None:
        ctx.notes.append("tried")
        if len(ctx.notes) != 3:
            raise ConnectionError("the connection is lost")

    retried = task_func(flaky, retries=1, initial_delay=0.1)
    findings = problems(solo(note, None, retried), faults=CANCEL)
    assert findings["A.pre_execute#1@1:cancel"] == (
        "A.post_execute raised ConnectionError('the connection is lost'); a cleanup must also "
        "succeed after a failure or a cancellation",
    )


def test_a_cleanup_that_always_fails_is_accepted_by_the_check() -> None:
    processor = solo(pause, None, always_fails)
    assert problems(processor, lambda run: run.error is not None, faults=CANCEL) == {}


def test_a_retried_cleanup_that_copes_at_last_is_none() -> None:
    async def flaky(ctx: Context) -> None:
        ctx.notes.append("tried")
        if len(ctx.notes) == 1:
            raise ConnectionError("once")

    retried = task_func(flaky, retries=1, initial_delay=0.1)
    assert problems(solo(pause, None, retried), faults=CANCEL) == {}


# ------------------------------------------------------------------------------ what is left


async def leave_a_task(ctx: Context) -> None:
    ctx.notes.append(asyncio.get_running_loop().create_task(pause(ctx), name="the forgotten"))


async def leave_a_timer(ctx: Context) -> None:
    asyncio.get_running_loop().call_later(60, print)


async def numbers() -> AsyncIterator[int]:
    try:
        yield 1
        yield 2
    finally:
        await asyncio.sleep(0)


async def drop_a_generator(ctx: Context) -> None:
    async for _ in numbers():
        break


async def keep_a_generator(ctx: Context) -> None:
    generator = numbers()
    await anext(generator)
    ctx.notes.append(generator)


async def close_a_generator(ctx: Context) -> None:
    generator = numbers()
    async for _ in generator:
        break
    await generator.aclose()  # type: ignore[attr-defined]


async def lose_an_error(ctx: Context) -> None:
    asyncio.get_running_loop().create_task(always_fails(ctx))
    await asyncio.sleep(0.1)


async def lose_an_error_in_the_context(ctx: Context) -> None:
    ctx.notes.append(asyncio.get_running_loop().create_task(always_fails(ctx)))
    await asyncio.sleep(0.1)


async def fail_in_a_callback(ctx: Context) -> None:
    asyncio.get_running_loop().call_soon(lambda: 1 / 0)
    await asyncio.sleep(0.1)


async def leave_a_file_open(ctx: Context) -> None:
    io.FileIO(__file__)


async def leave_a_cycle(ctx: Context) -> None:
    file = io.FileIO(__file__)
    cycle: list[Any] = [file]
    cycle.append(cycle)


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (leave_a_task, "an asyncio.Task is left: the forgotten, which waits at "),
        (leave_a_timer, "a timer is left: <TimerHandle when=60"),
        (drop_a_generator, "an async generator was dropped unfinished: numbers ("),
        (keep_a_generator, "an async generator is left unfinished: numbers ("),
        (lose_an_error, "Task exception was never retrieved: LookupError: no such user"),
        (lose_an_error_in_the_context, "Task exception was never retrieved: LookupError: no such"),
        (fail_in_a_callback, "Exception in callback fail_in_a_callback.<locals>.<lambda>()"),
        (leave_a_file_open, "ResourceWarning: unclosed file <_io.FileIO name="),
        (leave_a_cycle, "ResourceWarning: unclosed file <_io.FileIO name="),
    ],
)
def test_what_is_left_is_a_finding(function: Any, says: str) -> None:
    (finding,) = found(solo(function), anything, faults=CANCEL)
    assert finding.schedule == ""
    # To keep what complains only when it is dropped would have it complain later.
    assert (finding.run is None) == ("Warning" in says or "xception" in says)
    assert any(says in problem for problem in finding.problems), finding.problems
    assert not any("after" in problem for problem in finding.problems)


def test_what_was_there_before_is_not_left() -> None:
    """The heartbeat of a pool is the context's, who ends it, or not."""

    async def beat() -> None:
        while True:  # noqa: ASYNC110
            await asyncio.sleep(1)

    async def with_heartbeat() -> Context:
        ctx = Context()
        ctx.notes.append(asyncio.get_running_loop().create_task(beat()))
        asyncio.get_running_loop().call_later(60, print)
        return ctx

    assert explore(pooled(), context=with_heartbeat, check=all_back, faults=CANCEL).exhaustive


@pytest.mark.parametrize("function", [close_a_generator, pause])
def test_what_is_put_away_is_not_left(function: Any) -> None:
    assert found(solo(function), anything, faults=("cancel", "fail")) == []


def test_what_is_on_its_way_out_is_not_left() -> None:
    async def cancel_and_go(ctx: Context) -> None:
        other = asyncio.get_running_loop().create_task(pause(ctx))
        try:
            await asyncio.sleep(0)
        finally:
            other.cancel()

    assert found(solo(cancel_and_go), anything, faults=CANCEL) == []


def test_warnings_of_other_kinds_go_where_they_went() -> None:
    async def warn(ctx: Context) -> None:
        warnings.warn("an old way", DeprecationWarning, stacklevel=1)

    with pytest.warns(DeprecationWarning, match="an old way"):
        explore(solo(warn), context=Context, check=anything, faults=CANCEL)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ScheduleFailed, match="DeprecationWarning"):
            explore(solo(warn), context=Context, check=lambda run: True, faults=CANCEL)


def test_the_state_of_the_process_is_as_before() -> None:
    gc.enable()
    filters = [*warnings.filters]
    uniform = attempts.uniform
    for _ in explorations(solo(pause), context=Context, check=never):
        # Between two findings as well.
        assert gc.isenabled()
        assert warnings.filters == filters
        assert attempts.uniform is uniform
    gc.disable()
    try:
        explore(solo(pause), context=Context, check=anything, faults=CANCEL)
        assert not gc.isenabled()
    finally:
        gc.enable()


# ------------------------------------------------------------------------------- that it ends


async def hold_the_lock(ctx: Any) -> None:
    await ctx.lock.acquire()
    await asyncio.sleep(1)
    ctx.lock.release()


class Locked(Context):
    def __init__(self) -> None:
        super().__init__()
        self.lock = asyncio.Lock()


def test_who_waits_for_ever_is_told_with_its_place() -> None:
    processor = solo(hold_the_lock, None, task_func(hold_the_lock))
    (finding, *_) = found(processor, anything, context=Locked, faults=CANCEL)
    assert finding.schedule == "A.pre_execute#1@1:cancel"
    (problem,) = finding.problems
    assert problem.startswith(
        "the run waits for ever:\n  A.post_execute, attempt 1, waits at its 1st await, "
    )
    assert problem.endswith(
        "in hold_the_lock: await ctx.lock.acquire()\n"
        "    (give it a timeout, and let it wait only for what always comes)"
    )


def test_what_goes_on_and_on_is_found() -> None:
    async def poll(ctx: Context) -> None:
        while not ctx.notes:  # noqa: ASYNC110
            await asyncio.sleep(0)

    async def ready(ctx: Context) -> None:
        await asyncio.sleep(0)
        ctx.notes.append("ready")

    processor = build([task("A", ready, None, poll)])
    (finding, *_) = found(processor, anything, faults=CANCEL)
    assert finding.schedule == "A.pre_execute#1@1:cancel"
    (problem,) = finding.problems
    assert problem.startswith("the run never ends:\n  A.post_execute, attempt 1, waits at its ")
    assert "in poll: await asyncio.sleep(0)" in problem


def test_what_cannot_even_be_cancelled_is_given_up() -> None:
    async def stubborn(ctx: Context) -> None:
        try:
            while True:
                with suppress(asyncio.CancelledError):
                    await asyncio.get_running_loop().create_future()
        finally:
            await asyncio.sleep(0)

    (finding,) = found(solo(None, None, stubborn), anything, faults=CANCEL)
    assert finding.problems[0].startswith("the run waits for ever:\n  A.post_execute, attempt 1")
    # Nothing of it comes up later: pytest would tell of what could not be raised.
    del finding
    gc.collect()


def test_ctrl_c_ends_the_exploration() -> None:
    async def press_ctrl_c(ctx: Context) -> None:
        await asyncio.sleep(0)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        explore(solo(press_ctrl_c), context=Context, check=anything)


def test_a_check_that_never_ends_is_a_finding() -> None:
    async def check(run: Any) -> None:
        await asyncio.get_running_loop().create_future()

    (finding,) = found(solo(pause), check, faults=CANCEL)
    (problem,) = finding.problems
    assert problem.startswith("the check waits for ever:\n  sdax.testing waits at ")


# ----------------------------------------------------------------------------- deterministic


def test_two_undisturbed_runs_must_be_alike() -> None:
    generator = random.Random(1)

    async def wait_at_random(ctx: Context) -> None:
        await asyncio.sleep(generator.random())

    with pytest.raises(NotDeterministic) as caught:
        explore(solo(wait_at_random), context=Context, check=anything)
    first, one, other, hint = str(caught.value).splitlines()
    assert first == "two undisturbed runs differ at event 3:"
    assert one == "    the one       0.134 s  A.pre_execute#1  goes on, await 1"
    assert other == "    the other     0.847 s  A.pre_execute#1  goes on, await 1"
    assert hint.startswith("Look for random numbers, clocks, the order of a set")


@dataclass(slots=True)
class Slots:
    notes: list[str] = field(default_factory=list)


@pytest.mark.parametrize("shared", [Context(), Slots(), {}, [], Context])
def test_one_context_for_all_runs_is_refused(shared: Any) -> None:
    refused = (
        "^context must make a new context for each run, but made .* twice: one context for all"
    )
    for clock in "virtual", "real":
        with pytest.raises(TypeError, match=refused):
            explore(solo(pause), context=lambda: shared, check=anything, clock=clock, faults=CANCEL)

    @asynccontextmanager
    async def opened() -> AsyncIterator[Any]:
        yield shared

    with pytest.raises(TypeError, match=refused):
        explore(solo(pause), context=opened, check=anything, replay="A.pre_execute#1@call:fail")


@dataclass(frozen=True)
class Value:
    number: int = 1


@pytest.mark.parametrize("value", [None, 7, "text", (), frozenset(), Value(), State.FAILED])
def test_a_value_is_not_one_context_for_all_runs(value: Any) -> None:
    assert explore(solo(pause), context=lambda: value, check=anything, faults=CANCEL).exhaustive


def test_the_first_context_is_not_kept() -> None:
    contexts: list[Any] = []

    def make() -> Context:
        gc.collect()
        contexts.append(ref(made := Context()))
        assert sum(each() is not None for each in contexts) == 1
        return made

    assert explore(solo(pause), context=make, check=anything, faults=CANCEL).exhaustive


def test_one_that_goes_on_longer() -> None:
    calls: list[Any] = []

    async def more_and_more(ctx: Context) -> None:
        calls.append(ctx)
        if len(calls) > 1:
            await asyncio.sleep(0)

    with pytest.raises(NotDeterministic, match=r"the one +0.000 s  A.pre_execute#1  returns\n"):
        explore(solo(more_and_more), context=Context, check=anything)


def test_what_disturbed_runs_leave_behind_is_found_at_the_end() -> None:
    broken: list[Any] = []

    async def lasting(ctx: Context) -> None:
        try:
            await asyncio.sleep(0.2 if broken else 0.1)
        except asyncio.CancelledError:
            broken.append(ctx)
            raise

    processor = build([task("A", lasting)])
    with pytest.raises(NotDeterministic, match="differ at event 3"):
        explore(processor, context=Context, check=anything, faults=CANCEL)


def test_the_last_run_must_be_as_good_as_the_first() -> None:
    lost: list[Any] = []

    async def losing(ctx: Context) -> None:
        try:
            await asyncio.sleep(0.1)
        except asyncio.CancelledError:
            lost.append(ctx)
            raise

    def check(run: Any) -> bool:
        return bool(run.schedule) or not lost

    (finding,) = found(solo(losing), check, faults=CANCEL)
    assert (finding.schedule, finding.problems) == ("", ("the check returned False",))


def test_a_point_that_is_no_longer_there() -> None:
    broken: list[Any] = []

    async def shorter(ctx: Context) -> None:
        if not broken:
            try:
                await asyncio.sleep(0.1)
                await asyncio.sleep(0.1)
            except asyncio.CancelledError:
                broken.append(ctx)
                raise

    with pytest.raises(
        NotDeterministic, match=r"never came to A.pre_execute#1@1\+:cancel, although"
    ):
        explore(solo(shorter), context=Context, check=anything, faults=CANCEL)


def test_the_jitter_of_delays_is_pinned() -> None:
    async def flaky(ctx: Context) -> None:
        ctx.notes.append("tried")
        if len(ctx.notes) < 3:
            raise ConnectionError

    times: dict[float, Any] = {}
    for jitter in (0.5, 1.0):
        explore(
            solo(task_func(flaky, retries=2, initial_delay=1.0)),
            context=Context,
            check=lambda run: times.setdefault(jitter, run.time) and None,  # noqa: B023
            jitter=jitter,
            faults=CANCEL,
        )
    assert times == {0.5: 1.5, 1.0: 3.0}


# ------------------------------------------------------------------------------ the real clock


@pytest.mark.parametrize("limits", [{}, {"timeout": 1.0}], ids=["bare", "limited"])
@pytest.mark.parametrize("phase", ["pre_execute", "post_execute"])
def test_the_outside_world_is_told_how_to_be_reached(phase: str, limits: Any) -> None:
    processor = build([task_in(phase, task_thread_func(lambda ctx: None, **limits))])
    with pytest.raises(OutsideWorldError) as caught:
        explore(processor, context=Context, check=anything)
    assert str(caught.value).startswith(f"sdax:A:{phase} asks for a thread; ")
    assert "clock='real'" in str(caught.value)


class Server:
    """A real server on a loopback port, in a loop and a thread of its own."""

    def __enter__(self) -> int:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        return asyncio.run_coroutine_threadsafe(self.listen(), self.loop).result(60)

    async def listen(self) -> int:
        self.server = await asyncio.start_server(self.answer, "127.0.0.1", 0)
        port: int = self.server.sockets[0].getsockname()[1]
        return port

    async def answer(self, reader: Any, writer: Any) -> None:
        writer.write(await reader.readline())
        await writer.drain()
        writer.close()

    async def stop(self) -> None:
        self.server.close()
        for each in asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait([each])

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self.stop(), self.loop).result(60)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


class Connected(Context):
    writer: asyncio.StreamWriter | None = None
    answer = b""


def test_a_real_socket_with_the_real_clock() -> None:
    with Server() as port:

        async def connect(ctx: Connected) -> None:
            ctx.reader, ctx.writer = await asyncio.open_connection("127.0.0.1", port)  # type: ignore[attr-defined]

        async def ask(ctx: Connected) -> None:
            assert ctx.writer is not None
            ctx.writer.write(b"hello\n")
            ctx.answer = await ctx.reader.readline()  # type: ignore[attr-defined]

        async def disconnect(ctx: Connected) -> None:
            if ctx.writer is not None:
                ctx.writer.close()
                await ctx.writer.wait_closed()

        async def forget(ctx: Connected) -> None:
            pass

        def check(run: Any) -> None:
            assert run.error is not None or run.context.answer == b"hello\n"

        options: Any = {"context": Connected, "check": check, "clock": "real"}
        good = solo(connect, ask, disconnect)
        exploration = explore(good, faults=("cancel", "fail"), **options)
        assert exploration.schedules > 20
        with pytest.raises(ScheduleFailed, match="ResourceWarning: unclosed "):
            explore(good.replaced({"A": {"post_execute": forget}}), **options)


def test_real_threads_with_the_real_clock(tmp_path: Path) -> None:
    path = tmp_path / "database.sqlite"
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE notes (text)")
    database.close()

    def insert(ctx: Any) -> None:
        with sqlite3.connect(path) as database:
            database.execute("INSERT INTO notes VALUES ('x')")
        database.close()

    threads: set[str] = set()

    def note_thread(ctx: Any) -> None:
        threads.add(threading.current_thread().name)

    processor = solo(task_thread_func(insert), None, task_thread_func(note_thread))
    exploration = explore(
        processor, context=Context, check=anything, clock="real", faults=("cancel", "fail")
    )
    assert exploration.exhaustive
    # Cleanups have threads of their own, as without being explored.
    assert threads == {"sdax:A.post_execute"}


def test_points_that_are_not_reached_are_counted() -> None:
    calls: list[Any] = []

    async def shorter(ctx: Context) -> None:
        calls.append(ctx)
        if len(calls) < 3:
            await asyncio.sleep(0.001)

    exploration = explore(
        solo(shorter), context=Context, check=anything, clock="real", faults=CANCEL
    )
    assert exploration.not_reached == 2
    assert not exploration.exhaustive
    assert "2 schedules never came to the point" in str(exploration)


def test_with_the_real_clock_too_long_is_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdax.testing.loops.SECONDS", 0.1)
    unbounded = solo(task_func(pause))
    (finding,) = found(unbounded, anything, clock="real", faults=("hang",))
    assert finding.schedule == "A.pre_execute#1@1:hang"
    assert finding.problems[0].startswith("nothing bounds A.pre_execute: give it a timeout")
    assert finding.problems[1].startswith("the run never ends:")


def test_an_error_of_the_real_loop_comes_through() -> None:
    async def stop(ctx: Context) -> None:
        asyncio.get_running_loop().stop()
        await asyncio.sleep(60)

    with pytest.raises(RuntimeError, match="Event loop stopped before Future completed"):
        explore(solo(stop), context=Context, check=anything, clock="real")


# --------------------------------------------------------------------------- how many there are


def test_the_count_is_honest() -> None:
    exploration = explore(pooled(), context=Context, check=all_back)
    assert isinstance(exploration, Exploration)
    assert exploration.points == 8
    assert exploration.schedules == 23
    assert exploration.exhaustive
    assert exploration.findings == exploration.not_reached == 0
    assert exploration.seconds > 0
    assert str(exploration).startswith("23 schedules, every single disturbance, ")


def test_a_choice_of_faults_is_told() -> None:
    exploration = explore(pooled(), context=Context, check=all_back, faults=["fail", "cancel"])
    assert "every single disturbance (cancel, fail), " in str(exploration)
    exploration = explore(solo(nothing), context=Context, check=anything, disturbances=2)
    assert "every one and every two disturbances, " in str(exploration)


def test_what_is_cut_off_is_not_exhaustive() -> None:
    played: list[str] = []

    def check(run: Any) -> bool:
        played.append(run.schedule)
        return all_back(run)

    exploration = explore(pooled(), context=Context, check=check, max_schedules=6)
    assert exploration.schedules == 6
    assert not exploration.exhaustive
    assert str(exploration).startswith("cut off at 6 of at least 15: NOT exhaustive, ")
    assert played[2:] == schedules(pooled(), faults=("cancel", "fail"))[:5]


def test_a_time_limit() -> None:
    exploration = explore(pooled(), context=Context, check=all_back, seconds=0)
    assert exploration.schedules == 1
    assert not exploration.exhaustive


def test_a_seed_where_everything_is_within_the_limit() -> None:
    exploration = explore(pooled(), context=Context, check=all_back, seed=1)
    assert exploration.exhaustive


def test_an_exploration_with_findings() -> None:
    explorer = Explorer(pooled(), Context, never, {"faults": CANCEL})
    findings = list(explorer.findings())
    exploration = explorer.exploration()
    assert exploration.findings == len(findings) > 1
    assert not exploration.exhaustive
    assert f", {len(findings)} findings" in str(exploration)


def test_what_is_known_of_two_disturbances_when_they_are_cut_off() -> None:
    everything = len(schedules(pooled(), faults=("cancel", "fail"), disturbances=2)) + 1
    exploration = explore(
        pooled(),
        context=Context,
        check=all_back,
        faults=("cancel", "fail"),
        disturbances=2,
        max_schedules=everything - 1,
    )
    assert f"of at least {everything}: NOT exhaustive" in str(exploration)


def sample(seed: int, most: int) -> list[str]:
    played: list[str] = []

    def check(run: Any) -> bool:
        played.append(run.schedule)
        return all_back(run)

    exploration = explore(pooled(), context=Context, check=check, max_schedules=most, seed=seed)
    assert exploration.schedules == most
    assert not exploration.exhaustive
    return played[2:]


def test_a_random_sample_beyond_the_limit() -> None:
    assert sample(1, 6) == sample(1, 6)
    assert sample(1, 6) != sample(2, 6)
    everything = schedules(pooled(), faults=("cancel", "fail", "hang"))
    assert {*sample(1, 6), *sample(2, 6), *sample(3, 6)} <= set(everything)
    assert sample(1, 6)[-1] != everything[4]
    # All single disturbances, and some of the second cancellations.
    assert sample(1, 18)[:13] == [
        each for each in everything if "post_execute#1@1:hang" not in each
    ]
    assert len({tuple(sample(seed, 18)[13:]) for seed in range(5)}) > 1


def test_findings_are_counted() -> None:
    iterator = explorations(pooled(), context=Context, check=never, faults=CANCEL)
    assert len(list(iterator)) == 6


def test_a_large_workflow_takes_a_second() -> None:
    """Not a measurement: only that many schedules are gone through."""
    processor = build(
        *([task(f"{level}-{number}", pause) for number in range(2)] for level in (1, 2))
    )
    assert explore(processor, context=Context, check=anything, faults=CANCEL).schedules == 13


def test_a_virtual_loop_is_used(engine: Implementation) -> None:
    loops: set[type] = set()

    async def look(ctx: Context) -> None:
        loops.add(type(asyncio.get_running_loop()))

    explore(solo(look), context=Context, check=anything, faults=CANCEL)
    assert loops == {VirtualClockLoop}
