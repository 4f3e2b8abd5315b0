"""`sdax.testing.disturbed`: a processor with a fault, for ordinary tests."""

from __future__ import annotations

import asyncio
import pickle
from typing import Any

import pytest

from exploring import Context, pause
from helpers import graph, nothing, one_loop, solo, spawn, task, until
from sdax import AsyncTaskProcessor, Done, SdaxExecutionError, task_func, task_sync_func
from sdax.testing import InjectedError, NotReachedError, disturbed, explore, run

pytestmark = one_loop


def flags(kind: str = "levels") -> Any:
    tasks = [
        task("Flags", task_func(pause, retries=1, initial_delay=0.1)),
        task("Plain", task_sync_func(lambda ctx: "plain")),
        task("Close", None, None, nothing),
    ]
    if kind == "graph":
        return graph(*tasks)
    builder: Any = AsyncTaskProcessor.builder()
    for each in tasks:
        builder.add_task(each, 1)
    return builder.build()


both_kinds = pytest.mark.parametrize("kind", ["levels", "graph"])


@both_kinds
async def test_a_fault_in_every_run(kind: str) -> None:
    down = disturbed(flags(kind), "Flags.pre_execute#1@call:fail always")
    assert isinstance(down, type(flags(kind)))
    assert str(down) == str(flags(kind))
    for _ in range(2):
        with pytest.raises(SdaxExecutionError) as caught:
            await down.process_tasks(None)
        (error,) = caught.value.exceptions
        assert isinstance(error, ConnectionError)
        assert isinstance(error, InjectedError)
        assert str(error) == "injected at Flags.pre_execute#2@call"
        assert caught.value.report["Close"].post_execute.state == "succeeded"


async def test_a_retry_mends_a_single_failure() -> None:
    once = disturbed(flags(), "Flags.pre_execute#1@1:fail")
    for _ in range(2):
        report = await once.process_tasks(None)
        assert report["Flags"].pre_execute[:2] == ("succeeded", 2)


async def test_a_plain_function() -> None:
    down = disturbed(flags(), "Plain.pre_execute#1@return:fail unexpectedly")
    with pytest.raises(SdaxExecutionError) as caught:
        await down.process_tasks(None)
    assert [failure.name for failure in caught.value.failures] == ["Plain"]


async def test_many_runs_at_once_have_their_own_faults() -> None:
    once = disturbed(flags(), "Flags.pre_execute#1@1:fail")
    runs = [spawn(once) for _ in range(20)]
    for each in runs:
        assert (await each)["Flags"].pre_execute.attempts == 2


async def test_the_caller_is_cancelled() -> None:
    cancelled = disturbed(flags(), "Flags.pre_execute#1@1:cancel")
    running = spawn(cancelled)
    with pytest.raises(asyncio.CancelledError):
        await running
    assert running.cancelled()


async def test_an_interrupt() -> None:
    interrupted = disturbed(flags(), "Flags.pre_execute#1@call:interrupt")
    with pytest.raises(KeyboardInterrupt):
        await interrupted.process_tasks(None)


@pytest.mark.virtual_clock
async def test_an_await_that_never_ends() -> None:
    hangs = disturbed(flags(), "Flags.pre_execute#1@1:hang")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(5):
            await hangs.process_tasks(None)


async def test_several_faults() -> None:
    both = disturbed(flags(), "Flags.pre_execute#1@call:fail, Flags.pre_execute#2@return:fail")
    with pytest.raises(SdaxExecutionError) as caught:
        await both.process_tasks(None)
    assert caught.value.failures[0].attempts == 2


@both_kinds
async def test_phase_by_phase(kind: str) -> None:
    down = disturbed(flags(kind), "Flags.pre_execute#1@call:fail always")
    with pytest.raises(SdaxExecutionError):
        async with down.open(None) as phases:
            await phases.run_next()
            assert phases.has_failures()
    once = disturbed(flags(kind), "Flags.pre_execute#1@call:fail")
    async with once.open(None) as phases:
        while await phases.run_next():
            pass
    async with once.open(None):
        pass  # which did nothing, and so could not come to anything


async def test_a_place_that_is_never_reached() -> None:
    stale = disturbed(flags(), "Flags.pre_execute#1@7:fail")
    with pytest.raises(NotReachedError, match=r"never came to Flags.pre_execute#1@7; did you mean"):
        await stale.process_tasks(None)
    with pytest.raises(NotReachedError, match=r"never came to Flags.pre_execute#1@7; did you mean"):
        async with stale.open(None) as phases:
            while await phases.run_next():
                pass


async def test_an_error_of_the_run_says_more_than_a_place_that_was_not_reached() -> None:
    async def fail(ctx: Any) -> None:
        raise LookupError("its own")

    stale = disturbed(solo(fail), "A.pre_execute#1@7:fail")
    with pytest.raises(SdaxExecutionError):
        await stale.process_tasks(None)
    with pytest.raises(SdaxExecutionError):
        async with stale.open(None) as phases:
            await phases.run_next()


@both_kinds
async def test_a_disturbed_processor_is_a_processor(kind: str) -> None:
    down = disturbed(flags(kind), "Flags.pre_execute#1@call:fail always")
    assert hash(down) == hash(down)
    assert down == down.replaced({})
    stubbed = down.replaced({"Plain": Done("stub")})
    with pytest.raises(SdaxExecutionError):
        await stubbed.process_tasks(None)
    assert down != flags(kind)


async def test_it_can_be_pickled() -> None:
    down = disturbed(solo(nothing), "A.pre_execute#1@call:fail")
    with pytest.raises(SdaxExecutionError):
        await pickle.loads(pickle.dumps(down)).process_tasks(None)


async def test_the_variable_of_the_caller_is_as_it_was() -> None:
    """Runs of other processors inside of a disturbed run are not disturbed."""

    async def run_another(ctx: Any) -> None:
        report = await disturbed(flags(), "Flags.pre_execute#1@call:fail").process_tasks(None)
        assert report["Flags"].pre_execute.attempts == 2

    inner = disturbed(
        solo(run_another, task_func(nothing, retries=1, initial_delay=0.0)),
        "A.execute#1@call:fail",
    )
    report = await inner.process_tasks(None)
    assert report["A"].execute.attempts == 2


async def test_an_observer_hears_of_it() -> None:
    heard: list[Any] = []
    once = disturbed(flags(), "Flags.pre_execute#1@call:fail")
    await once.process_tasks(None, observer=heard.append)
    assert "RetryScheduled" in [type(event).__name__ for event in heard]


@pytest.mark.parametrize(
    ("faults", "kind", "says"),
    [
        ("Flag.pre_execute#1@call:fail", ValueError, "did you mean 'Flags.pre_execute'"),
        ("Flags.pre_execute#1@call:fails", ValueError, "does not name a disturbance"),
        (["Flags.pre_execute#1@call:fail"], TypeError, "a schedule is a text such as"),
    ],
)
def test_a_fault_that_does_not_exist_is_refused(faults: Any, kind: Any, says: str) -> None:
    with pytest.raises(kind, match=says):
        disturbed(flags(), faults)


def test_what_is_no_processor_is_refused() -> None:
    with pytest.raises(TypeError, match="disturbed takes a processor, got 7"):
        disturbed(7, "Flags.pre_execute#1@call:fail")  # type: ignore[type-var]


def test_what_is_disturbed_already_is_refused() -> None:
    down = disturbed(flags(), "Flags.pre_execute#1@call:fail")
    with pytest.raises(TypeError, match="disturbed already; name all of its faults in one text"):
        disturbed(down, "Plain.pre_execute#1@call:fail")
    with pytest.raises(TypeError, match="disturbed already"):
        explore(down, context=Context, check=lambda run: True)


def test_what_a_finding_names(engine: Any) -> None:
    """The same text works in an ordinary test."""
    loop_runs = disturbed(flags(), "Flags.pre_execute#1@return:fail always")
    with pytest.raises(SdaxExecutionError):
        run(loop_runs.process_tasks(None))


async def test_cancelled_while_the_run_is_phase_by_phase() -> None:
    cancelled = disturbed(solo(pause), "A.pre_execute#1@1:cancel")

    async def go_through() -> None:
        async with cancelled.open(None) as phases:
            while await phases.run_next():
                pass

    running = asyncio.get_running_loop().create_task(go_through())
    await until(running.done)
    assert running.cancelled()
