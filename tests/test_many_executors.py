"""Many runs on an executor, and what all workers share: batches, what travels, resources."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import pickle
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest

from cluster_work import (
    POOL_FOLDER,
    Interrupt,
    act,
    acted,
    begin_and_wait,
    broken_pool,
    cancelled_pool,
    clean_up,
    forever,
    keep,
    kept,
    make_files,
    noted,
    noted_pool,
    one,
    play,
    pool,
    pool_that_breaks_at_the_end,
    pool_that_never_opens,
    squared,
    squares,
    until_noted,
    wait_for_go,
    with_pool,
)
from helpers import Broken, one_loop
from sdax import SdaxExecutionError, State, TaskCancelledError
from sdax.many import Progress, TravelError, WorkerLost, WorkerTraceback, run_many
from sdax.many.futures import ExecutorCluster
from sdax.many.worker import Result


@pytest.fixture
def threads() -> Iterator[Executor]:
    """Workers in this process, which have the engine under test."""
    with ThreadPoolExecutor(2) as executor:
        yield executor


def processes(number: int) -> Executor:
    """Real processes, each a new Python."""
    return ProcessPoolExecutor(number, mp_context=multiprocessing.get_context("spawn"))


async def outcomes_of(processor: Any, inputs: Any, **options: Any) -> list[Any]:
    async with run_many(processor, inputs, **options) as outcomes:
        return sorted([each async for each in outcomes], key=lambda each: each.number)


# Processes.


def test_resources_of_a_process_are_left_when_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(POOL_FOLDER, str(tmp_path))

    async def scenario(executor: Executor) -> list[Any]:
        return await outcomes_of(
            one(keep),
            range(40),
            make_context=with_pool,
            resources=noted_pool,
            pick=kept,
            on=executor,
            batch_size=4,
        )

    with processes(1) as executor:
        got = play(scenario, executor)
    assert [each.value[0] for each in got] == list(range(40))
    workers = {each.value[1] for each in got}
    assert {path.name for path in tmp_path.iterdir()} == {f"pool-{worker}" for worker in workers}
    for path in tmp_path.iterdir():
        assert path.read_text() == "opened\nclosed\n"


def test_a_pool_that_breaks_gives_what_it_can() -> None:
    async def scenario(executor: Executor) -> list[Any]:
        got = []
        inputs = [*range(10), "kill", *range(100)]
        with pytest.raises(BrokenProcessPool):
            async with run_many(
                one(act), inputs, pick=acted, on=executor, batch_size=5
            ) as outcomes:
                async for outcome in outcomes:
                    got.append(outcome)
        return got

    with processes(1) as executor:
        got = play(scenario, executor)
    assert len({each.number for each in got}) == len(got)
    lost = [each for each in got if each.error is not None]
    assert 10 in {each.number for each in lost}
    assert all(isinstance(each.error, WorkerLost) for each in lost)
    assert all(each.value == each.item for each in got if each.error is None)


def test_a_pool_that_is_shut_down_takes_nothing() -> None:
    executor = ThreadPoolExecutor(1)
    executor.shutdown()

    async def scenario() -> None:
        got = []
        with pytest.raises(RuntimeError, match="after shutdown"):
            async with run_many(one(act), range(3), on=executor) as outcomes:
                async for outcome in outcomes:
                    got.append(outcome)
        assert [type(each.error) for each in got] == [WorkerLost] * 3

    play(scenario)


# Batches. The workers are in this process.


@pytest.mark.loop_kinds("asyncio", "eager")
@pytest.mark.one_engine
async def test_inputs_are_taken_in_batches_ahead_of_their_workers(
    threads: Executor, tmp_path: Path
) -> None:
    taken = []

    def inputs() -> Iterator[tuple[str, int]]:
        for number in forever():
            taken.append(number)
            yield str(tmp_path), number

    async with run_many(
        one(wait_for_go),
        inputs(),
        make_context=make_files,
        on=threads,
        batch_size=3,
        ahead=2,
        concurrency=4,
    ) as outcomes:
        waiting = asyncio.ensure_future(anext(outcomes))
        await until_noted(tmp_path, "begun", 4)
        assert len(taken) == 2 * 2 * 3  # workers, ahead, batch_size
        await asyncio.sleep(0.05)
        assert len(noted(tmp_path, "begun")) == 4
        (tmp_path / "go").touch()
        first = await waiting
        assert len(taken) == 2 * 2 * 3
        await anext(outcomes)
        await anext(outcomes)
        assert len(taken) == 2 * 2 * 3 + 3
        assert first.error is None


@pytest.mark.loop_kinds("asyncio", "eager")
@pytest.mark.one_engine
async def test_async_inputs_do_not_wait_for_a_full_batch(threads: Executor) -> None:
    more = asyncio.Event()

    async def inputs() -> AsyncIterator[int]:
        yield 1
        yield 2
        await more.wait()
        for number in range(3, 200):
            yield number

    async with run_many(squares(), inputs(), pick=squared, on=threads, ordered=True) as outcomes:
        assert [(await anext(outcomes)).value for _ in range(2)] == [1, 4]
        more.set()
        assert [each.value async for each in outcomes] == [n * n for n in range(3, 200)]


@one_loop
@pytest.mark.one_engine
@pytest.mark.parametrize("kind", ["plain", "async"])
async def test_an_error_of_the_inputs_comes_after_the_batches(
    threads: Executor, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sdax.many.batches.LINGER", 1000.0)  # the last batch does not wait for more

    def plain() -> Iterator[int]:
        yield from range(7)
        raise Broken("inputs")

    async def later() -> AsyncIterator[int]:
        for number in plain():
            yield number

    got = []
    with pytest.raises(Broken, match="inputs"):
        async with run_many(
            squares(), plain() if kind == "plain" else later(), on=threads, batch_size=4
        ) as outcomes:
            async for outcome in outcomes:
                got.append(outcome.number)
    assert sorted(got) == list(range(7))


@pytest.mark.parametrize("how", ["break", "exception", "cancellation"])
async def test_leaving_early_cancels_and_cleans_up(
    threads: Executor, tmp_path: Path, how: str
) -> None:
    inputs = ((str(tmp_path), number) for number in forever())

    async def consume() -> None:
        async with run_many(
            one(begin_and_wait, clean_up),
            inputs,
            make_context=make_files,
            on=threads,
            batch_size=3,
            concurrency=5,
        ) as outcomes:
            waiting = asyncio.ensure_future(anext(outcomes))
            try:
                await until_noted(tmp_path, "begun", 5)
                if how == "exception":
                    raise Broken
                if how == "cancellation":
                    current = asyncio.current_task()
                    assert current is not None
                    current.cancel()
                    await asyncio.sleep(1)
            finally:
                waiting.cancel()
                await asyncio.wait([waiting])

    consuming = asyncio.ensure_future(consume())
    await asyncio.wait([consuming])
    assert consuming.cancelled() == (how == "cancellation")
    assert isinstance(consuming.cancelled() or consuming.exception(), Broken) == (
        how == "exception"
    )
    assert noted(tmp_path, "begun") == noted(tmp_path, "cleaned")
    assert len(noted(tmp_path, "begun")) == 5  # of batches that come in any order


@one_loop
@pytest.mark.one_engine
async def test_what_is_no_exception_stops_everything_and_is_raised(
    threads: Executor, tmp_path: Path
) -> None:
    with pytest.raises(Interrupt) as caught:
        async with run_many(one(act), ["a", "interrupt", *range(500)], on=threads) as outcomes:
            async for outcome in outcomes:
                assert outcome.error is None
    assert outcomes.stopped_by == (1, "interrupt")
    assert caught.value.args == ("stop",)
    assert isinstance(caught.value.__cause__, WorkerTraceback)


@one_loop
@pytest.mark.one_engine
async def test_runs_that_ended_before_have_their_outcomes(threads: Executor) -> None:
    inputs = ["error", 0, 1, "error", "interrupt", 2]
    seen = []
    with pytest.raises(Interrupt):
        async with run_many(one(act), inputs, on=threads, batch_size=3) as outcomes:
            async for outcome in outcomes:
                seen.append(outcome.item)
    assert outcomes.stopped_by == (4, "interrupt")  # although the first batch has ended first
    assert seen.count("error") == 2


@one_loop
@pytest.mark.one_engine
async def test_resources_are_entered_once_on_each_worker(threads: Executor) -> None:
    got = await outcomes_of(
        one(keep), range(50), make_context=with_pool, resources=pool, pick=kept, on=threads,
        batch_size=5,
    )  # fmt: skip
    assert [each.value for each in got] == [(n, f"pool of {os.getpid()}") for n in range(50)]


@one_loop
@pytest.mark.one_engine
async def test_resources_are_left_at_the_end(
    threads: Executor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(POOL_FOLDER, str(tmp_path))
    await outcomes_of(
        one(keep), range(50), make_context=with_pool, resources=noted_pool, pick=kept, on=threads
    )
    assert (tmp_path / f"pool-{os.getpid()}").read_text() == "opened\nclosed\n"


@one_loop
@pytest.mark.one_engine
@pytest.mark.parametrize(
    ("resources", "kind", "message"),
    [
        (broken_pool, ConnectionError, "no pool today"),
        (cancelled_pool, TaskCancelledError, "nobody asked for it"),
    ],
)
async def test_resources_that_cannot_be_entered_are_an_error_of_all(
    threads: Executor, resources: Any, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        await outcomes_of(
            one(keep), range(3), make_context=with_pool, resources=resources, on=threads
        )


@one_loop
@pytest.mark.one_engine
async def test_leaving_does_not_wait_for_resources_to_open(
    threads: Executor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(POOL_FOLDER, str(tmp_path))
    async with run_many(
        one(keep), range(3), make_context=with_pool, resources=pool_that_never_opens, on=threads
    ) as outcomes:
        taking = asyncio.ensure_future(anext(outcomes))
        await until_noted(tmp_path, "opening")
        taking.cancel()
        await asyncio.wait([taking])
    assert noted(tmp_path, "given up") == [os.getpid()]


@one_loop
@pytest.mark.one_engine
async def test_nothing_begins_once_it_is_stopped(threads: Executor) -> None:
    cluster = ExecutorCluster(threads)
    await cluster.open(b"nothing that can be loaded")
    await cluster.stop()
    assert await cluster.run([b""]) == Result()
    await cluster.close()


@one_loop
@pytest.mark.one_engine
async def test_resources_that_break_at_the_end_leave_no_thread(threads: Executor) -> None:
    with pytest.raises(ConnectionError, match="no goodbye"):
        await outcomes_of(
            one(keep), [1], make_context=with_pool, resources=pool_that_breaks_at_the_end,
            pick=kept, on=threads,
        )  # fmt: skip
    assert "sdax:worker" not in {thread.name for thread in threading.enumerate()}


@one_loop
@pytest.mark.one_engine
async def test_who_follows_many_runs_hears_of_workers_too(threads: Executor) -> None:
    seen = []

    class Counts:
        def __call__(self, event: Any) -> None:
            raise AssertionError

        def many_changed(self, progress: Progress) -> None:
            seen.append((progress.done, progress.failed))

    await outcomes_of(one(act), ["a", "error", "b"], on=threads, observer=Counts())
    assert seen[-1] == (3, 1)


@pytest.mark.one_engine
def test_an_observer_of_runs_cannot_hear_of_workers(engine: Any, threads: Executor) -> None:
    with pytest.raises(TypeError, match="build the processor with an observer"):
        run_many(squares(), [1], on=threads, observer=print)


# What travels.


@one_loop
@pytest.mark.one_engine
async def test_failures_travel_with_their_tracebacks(threads: Executor) -> None:
    (outcome,) = await outcomes_of(one(act), ["error"], on=threads)
    error = outcome.error
    assert isinstance(error, SdaxExecutionError)
    (failure,) = error.failures
    assert (failure.name, failure.phase, failure.attempts) == ("A", "execute", 1)
    assert isinstance(failure.exception, ValueError)
    assert "look again" in failure.exception.__notes__
    assert outcome.report["A"].execute.state == State.FAILED
    assert "cluster_work.py" in str(error.__cause__)


@one_loop
@pytest.mark.one_engine
async def test_what_cannot_travel_is_an_error_of_its_own_outcome(threads: Executor) -> None:
    lock = threading.Lock()
    inputs = [1, "unpicklable value", "unpicklable error", "unloadable error", lock, 2]
    got = await outcomes_of(one(act), inputs, pick=acted, on=threads)
    assert [each.item for each in got] == inputs
    assert [got[0].value, got[5].value] == [1, 2]
    value, error, unloadable, item = (each.error for each in got[1:5])
    assert isinstance(value, TravelError)
    assert value.type_name == "_thread.lock"
    assert str(value).startswith("the value, of type _thread.lock, cannot travel: TypeError")
    assert isinstance(item, TravelError)
    assert str(item).startswith("input 4, of type _thread.lock")
    for group in (error, unloadable):
        assert isinstance(group, SdaxExecutionError)
    (failure,) = error.failures
    travelled = failure.exception
    assert isinstance(travelled, TravelError)
    assert travelled.type_name == "cluster_work.Unpicklable"
    assert travelled.text == "no copies"
    assert travelled.notes == ("task 'A', execute, attempt 1 of 1",)
    assert "raise Unpicklable" in travelled.traceback
    assert error.report["A"].execute.exception.args == travelled.args
    assert pickle.loads(pickle.dumps(travelled)).notes == travelled.notes


@one_loop
@pytest.mark.one_engine
async def test_a_report_travels_without_what_cannot(threads: Executor) -> None:
    (outcome,) = await outcomes_of(one(act), ["unpicklable value"], on=threads)
    assert outcome.error is None
    phase = outcome.value["A"].execute
    assert phase.state == State.SUCCEEDED
    assert isinstance(phase.value, TravelError)


@one_loop
@pytest.mark.one_engine
async def test_what_only_this_program_knows_travels_by_value(threads: Executor) -> None:
    pytest.importorskip("cloudpickle", reason="only Dask and Ray bring it")

    async def double(ctx: Any) -> Any:
        return ctx * 2

    (outcome,) = await outcomes_of(one(double), [21], pick=acted, on=threads)
    assert outcome.value == 42


@one_loop
@pytest.mark.one_engine
async def test_a_processor_that_cannot_be_pickled_is_refused(threads: Executor) -> None:
    lock = threading.Lock()

    async def hold(ctx: Any) -> None:
        lock.acquire(blocking=False)

    with pytest.raises(TypeError, match="cannot send its processor"):
        await outcomes_of(one(hold), [1], on=threads)
