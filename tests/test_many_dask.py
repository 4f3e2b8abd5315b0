"""Many runs on a Dask cluster of two processes, on loopback."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster_work import (
    POOL_FOLDER,
    Interrupt,
    act,
    acted,
    begin_and_wait,
    block_until_go,
    clean_up,
    forever,
    keep,
    kept,
    make_files,
    noted,
    noted_pool,
    one,
    play,
    squared,
    squares,
    until_noted,
    wait_for_go,
    with_pool,
)
from sdax import SdaxExecutionError
from sdax.many import TravelError, WorkerLost, run_many

distributed = pytest.importorskip("distributed", reason="distributed is not installed")

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="kills workers by signals")

OPTIONS: dict[str, Any] = {
    "n_workers": 2,
    "threads_per_worker": 1,
    "processes": True,
    "dashboard_address": "127.0.0.1:0",
    "scheduler_kwargs": {"dashboard": False},
    "host": "127.0.0.1",
}


@pytest.fixture(scope="module")
def pools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the workers write down their resources."""
    return tmp_path_factory.mktemp("pools")


@pytest.fixture(scope="module")
def client(pools: Path) -> Iterator[Any]:
    """A client of the cluster, whose workers take the Python path of the tests."""
    import dask

    os.environ[POOL_FOLDER] = str(pools)
    try:
        with (
            dask.config.set({"distributed.scheduler.allowed-failures": 1}),
            distributed.LocalCluster(**OPTIONS) as cluster,
            distributed.Client(cluster) as client,
        ):
            yield client
    finally:
        del os.environ[POOL_FOLDER]


@pytest.fixture
def whole(client: Any) -> Any:
    """The client, with both workers alive again."""
    client.wait_for_workers(2, timeout=120)
    return client


def pid() -> int:
    return os.getpid()


def test_two_thousand_outcomes_and_an_end(whole: Any) -> None:
    async def scenario() -> None:
        workers = set()
        async with run_many(squares(), range(2000), on=whole, batch_size=50) as outcomes:
            numbers = set()
            async for outcome in outcomes:
                numbers.add(outcome.number)
                assert outcome.result()["Square"].execute.value == outcome.item**2
                workers.add(outcome.value["Fetch"].pre_execute.value)
        assert numbers == set(range(2000))
        assert workers == set(whole.run(pid).values())

        async with run_many(squares(), forever(), pick=squared, on=whole, ordered=True) as outcomes:
            async for outcome in outcomes:
                assert outcome.value == outcome.number**2
                if outcome.number == 500:
                    break

    play(scenario)
    assert [name for name in whole.run(plugins).values() if name] == []


def plugins(dask_worker: Any) -> list[str]:
    return [name for name in dask_worker.plugins if name.startswith("sdax")]


def test_a_client_on_the_same_loop(whole: Any) -> None:
    async def scenario() -> None:
        async with (
            distributed.Client(whole.scheduler.address, asynchronous=True) as client,
            run_many(squares(), range(300), pick=squared, on=client, ordered=True) as outcomes,
        ):
            assert [each.value async for each in outcomes] == [n * n for n in range(300)]

    play(scenario)


def test_equal_inputs_are_not_merged(whole: Any) -> None:
    async def scenario() -> None:
        async with run_many(squares(), [3] * 40, pick=squared, on=whole, batch_size=1) as outcomes:
            assert sorted([each.number async for each in outcomes]) == list(range(40))

    play(scenario)


def test_a_worker_that_is_killed_is_replaced(whole: Any, tmp_path: Path) -> None:
    killed = next(iter(whole.run(pid).values()))

    async def scenario() -> list[Any]:
        inputs = [(str(tmp_path), number) for number in range(60)]
        async with run_many(
            one(wait_for_go, clean_up),
            inputs,
            make_context=make_files,
            pick=kept_number,
            on=whole,
            batch_size=10,
        ) as outcomes:
            taking = asyncio.ensure_future(anext(outcomes))
            await until_noted(tmp_path, "begun", 20)
            os.kill(killed, signal.SIGKILL)
            (tmp_path / "go").touch()
            return [await taking, *[each async for each in outcomes]]

    got = play(scenario)
    assert sorted(each.value for each in got) == list(range(60))
    assert noted(tmp_path, "cleaned") == list(range(60))


def kept_number(ctx: Any, report: Any) -> int:
    number: int = ctx.number
    return number


def test_workers_that_retire_clean_up(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with (
            distributed.LocalCluster(**OPTIONS, asynchronous=True) as cluster,
            distributed.Client(cluster, asynchronous=True) as client,
        ):
            inputs = [(str(tmp_path), number) for number in range(20)]
            async with run_many(
                one(wait_for_go, clean_up),
                inputs,
                make_context=make_files,
                pick=kept_number,
                on=client,
                batch_size=5,
            ) as outcomes:
                taking = asyncio.ensure_future(anext(outcomes))
                await until_noted(tmp_path, "begun", 10)
                first, _ = await client.nthreads()
                await client.retire_workers([first])
                (tmp_path / "go").touch()
                got = [await taking, *[each async for each in outcomes]]
            assert sorted(each.value for each in got) == list(range(20))

    play(scenario)
    assert noted(tmp_path, "cleaned") == list(range(20))
    for number in range(20):  # as often as it began, in each process
        begun = (tmp_path / f"begun-{number}").read_text().split()
        assert sorted(begun) == sorted((tmp_path / f"cleaned-{number}").read_text().split())


def test_leaving_early_cancels_and_cleans_up(whole: Any, tmp_path: Path) -> None:
    async def scenario() -> None:
        inputs = ((str(tmp_path), number) for number in forever())
        async with run_many(
            one(begin_and_wait, clean_up),
            inputs,
            make_context=make_files,
            on=whole,
            batch_size=4,
        ) as outcomes:
            taking = asyncio.ensure_future(anext(outcomes))
            await until_noted(tmp_path, "begun", 8)
            taking.cancel()
            await asyncio.wait([taking])

    play(scenario)
    assert len(noted(tmp_path, "begun")) >= 8
    assert noted(tmp_path, "begun") == noted(tmp_path, "cleaned")


def test_an_input_that_kills_its_worker_is_lost_alone(whole: Any) -> None:
    async def scenario() -> list[Any]:
        inputs = [*range(7), "kill", *range(8, 30)]
        async with run_many(one(act), inputs, pick=acted, on=whole, batch_size=5) as outcomes:
            return sorted([each async for each in outcomes], key=lambda each: each.number)

    got = play(scenario)
    assert [each.number for each in got] == list(range(30))
    assert [each.number for each in got if each.error is not None] == [7]
    assert isinstance(got[7].error, WorkerLost)
    assert all(each.value == each.item for each in got if each.number != 7)


def test_what_cannot_travel(whole: Any) -> None:
    async def scenario() -> list[Any]:
        inputs = ["unpicklable value", 1, "unpicklable error", "error"]
        async with run_many(one(act), inputs, pick=acted, on=whole, ordered=True) as outcomes:
            return [each async for each in outcomes]

    value, fine, group, error = play(scenario)
    assert isinstance(value.error, TravelError)
    assert fine.value == 1
    assert isinstance(group.error, SdaxExecutionError)
    assert isinstance(group.error.exceptions[0], TravelError)
    assert isinstance(error.error.exceptions[0], ValueError)


def test_what_is_no_exception_stops_everything_and_is_raised(whole: Any) -> None:
    async def scenario() -> None:
        async with run_many(one(act), ["a", "interrupt", *range(100)], on=whole) as outcomes:
            async for _ in outcomes:
                pass

    with pytest.raises(Interrupt):
        play(scenario)


def test_a_function_that_blocks_does_not_stop_the_heart_of_a_worker(
    whole: Any, tmp_path: Path
) -> None:
    async def scenario() -> None:
        inputs = [(str(tmp_path), number) for number in range(2)]
        async with run_many(
            one(block_until_go), inputs, make_context=make_files, on=whole, batch_size=1
        ) as outcomes:
            taking = asyncio.ensure_future(anext(outcomes))
            await until_noted(tmp_path, "begun", 2)
            # Both workers answer on their own loops.
            assert len(await asyncio.to_thread(whole.run, pid)) == 2
            (tmp_path / "go").touch()
            assert (await taking).error is None
            assert (await anext(outcomes)).error is None

    play(scenario)


def test_resources_are_entered_once_on_each_worker_and_left(whole: Any, pools: Path) -> None:
    async def scenario() -> list[Any]:
        async with run_many(
            one(keep),
            range(200),
            make_context=with_pool,
            resources=noted_pool,
            pick=kept,
            on=whole,
            batch_size=5,
        ) as outcomes:
            return [each.value async for each in outcomes]

    got = play(scenario)
    assert sorted(number for number, _ in got) == list(range(200))
    workers = {worker for _, worker in got}
    assert {path.name for path in pools.iterdir()} == {f"pool-{worker}" for worker in workers}
    for path in pools.iterdir():
        assert path.read_text() == "opened\nclosed\n"


def test_a_client_that_is_closed_gives_what_it_can(whole: Any, tmp_path: Path) -> None:
    async def scenario() -> list[Any]:
        client = await distributed.Client(whole.scheduler.address, asynchronous=True)
        got = []
        inputs = [(str(tmp_path), number) for number in range(3)]
        with pytest.raises(RuntimeError, match="client is closed"):
            async with run_many(
                one(begin_and_wait, clean_up), inputs, make_context=make_files, on=client
            ) as outcomes:
                taking = asyncio.ensure_future(anext(outcomes))
                await until_noted(tmp_path, "begun", 3)
                await client.close()
                got = [await taking, *[each async for each in take_all(outcomes)]]
        return got

    play(scenario)


async def take_all(outcomes: Any) -> Any:
    async for outcome in outcomes:
        assert isinstance(outcome.error, WorkerLost)
        yield outcome
