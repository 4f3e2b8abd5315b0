"""Many runs on Ray, with two CPUs of this machine."""

from __future__ import annotations

import asyncio
import os
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
from sdax.engine.switches import is_on
from sdax.many import RayCluster, TravelError, WorkerLost, run_many

if not is_on("SDAX_TEST_RAY"):
    if sys.version_info[:2] != (3, 13):
        reason = "ray is tested on Python 3.13 alone; SDAX_TEST_RAY=1 tests it on this one"
        pytest.skip(reason, allow_module_level=True)
    if sys.implementation.name != "cpython" or sys.platform != "linux":
        pytest.skip("ray is tested on CPython for Linux", allow_module_level=True)

import ray


@pytest.fixture(scope="module")
def pools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the workers write down their resources."""
    return tmp_path_factory.mktemp("pools")


@pytest.fixture(scope="module")
def cluster(pools: Path) -> Iterator[RayCluster]:
    """Ray on loopback, whose workers take the Python path of the tests."""
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        _node_ip_address="127.0.0.1",
        runtime_env={"env_vars": {"PYTHONPATH": path, POOL_FOLDER: str(pools)}},
    )
    try:
        yield RayCluster(2)
    finally:
        ray.shutdown()


def test_two_thousand_outcomes_and_an_end(cluster: RayCluster) -> None:
    async def scenario() -> None:
        workers = set()
        numbers = set()
        async with run_many(squares(), range(2000), on=cluster) as outcomes:
            async for outcome in outcomes:
                numbers.add(outcome.number)
                assert outcome.result()["Square"].execute.value == outcome.item**2
                workers.add(outcome.value["Fetch"].pre_execute.value)
        assert numbers == set(range(2000))
        assert os.getpid() not in workers

        async with run_many(
            squares(), forever(), pick=squared, on=cluster, ordered=True
        ) as outcomes:
            async for outcome in outcomes:
                assert outcome.value == outcome.number**2
                if outcome.number == 500:
                    break

    play(scenario)


def kept_number(ctx: Any, report: Any) -> int:
    number: int = ctx.number
    return number


def test_a_worker_that_is_killed_is_replaced(cluster: RayCluster, tmp_path: Path) -> None:
    async def scenario() -> list[Any]:
        inputs = [(str(tmp_path), number) for number in range(60)]
        async with run_many(
            one(wait_for_go, clean_up),
            inputs,
            make_context=make_files,
            pick=kept_number,
            on=cluster,
            batch_size=10,
        ) as outcomes:
            taking = asyncio.ensure_future(anext(outcomes))
            await until_noted(tmp_path, "begun", 20)
            os.kill(int((tmp_path / f"begun-{noted(tmp_path, 'begun')[0]}").read_text()), 9)
            (tmp_path / "go").touch()
            return [await taking, *[each async for each in outcomes]]

    got = play(scenario)
    assert sorted(each.value for each in got) == list(range(60))
    assert noted(tmp_path, "cleaned") == list(range(60))


def test_leaving_early_cancels_and_cleans_up(cluster: RayCluster, tmp_path: Path) -> None:
    async def scenario() -> None:
        inputs = ((str(tmp_path), number) for number in forever())
        async with run_many(
            one(begin_and_wait, clean_up), inputs, make_context=make_files, on=cluster, batch_size=4
        ) as outcomes:
            taking = asyncio.ensure_future(anext(outcomes))
            await until_noted(tmp_path, "begun", 8)
            taking.cancel()
            await asyncio.wait([taking])

    play(scenario)
    assert len(noted(tmp_path, "begun")) >= 8
    assert noted(tmp_path, "begun") == noted(tmp_path, "cleaned")


def test_an_input_that_kills_its_worker_is_lost_alone(cluster: RayCluster) -> None:
    async def scenario() -> list[Any]:
        inputs = [*range(7), "kill", *range(8, 30)]
        async with run_many(one(act), inputs, pick=acted, on=cluster, batch_size=5) as outcomes:
            return sorted([each async for each in outcomes], key=lambda each: each.number)

    got = play(scenario)
    assert [each.number for each in got] == list(range(30))
    assert [each.number for each in got if each.error is not None] == [7]
    assert isinstance(got[7].error, WorkerLost)
    assert all(each.value == each.item for each in got if each.number != 7)


def test_what_cannot_travel_and_what_stops_everything(cluster: RayCluster) -> None:
    async def scenario() -> list[Any]:
        inputs = ["unpicklable value", 1, "unpicklable error", "error"]
        async with run_many(one(act), inputs, pick=acted, on=cluster, ordered=True) as outcomes:
            return [each async for each in outcomes]

    value, fine, group, error = play(scenario)
    assert isinstance(value.error, TravelError)
    assert fine.value == 1
    assert isinstance(group.error, SdaxExecutionError)
    assert isinstance(group.error.exceptions[0], TravelError)
    assert isinstance(error.error.exceptions[0], ValueError)

    async def interrupted() -> None:
        async with run_many(one(act), ["a", "interrupt", *range(100)], on=cluster) as outcomes:
            async for _ in outcomes:
                pass

    with pytest.raises(Interrupt):
        play(interrupted)


def test_resources_are_entered_once_on_each_worker_and_left(
    cluster: RayCluster, pools: Path
) -> None:
    async def scenario() -> list[Any]:
        async with run_many(
            one(keep),
            range(200),
            make_context=with_pool,
            resources=noted_pool,
            pick=kept,
            on=cluster,
            batch_size=5,
        ) as outcomes:
            return [each.value async for each in outcomes]

    got = play(scenario)
    assert sorted(number for number, _ in got) == list(range(200))
    workers = {worker for _, worker in got}
    assert {path.name for path in pools.iterdir()} == {f"pool-{worker}" for worker in workers}
    for path in pools.iterdir():
        assert path.read_text() == "opened\nclosed\n"


def test_rays_dual_class_of_an_error_is_split_as_any(cluster: RayCluster) -> None:
    """What a task of Ray's raises becomes of a class that is made with another constructor."""

    @ray.remote
    def fail() -> None:
        raise SdaxExecutionError("two", [ValueError("a"), OSError("b")])

    with pytest.raises(SdaxExecutionError) as caught:
        ray.get(fail.remote())
    part, rest = caught.value.split(ValueError)
    assert part is not None
    assert rest is not None
    assert [str(each) for each in part.exceptions] == ["a"]
    assert [str(each) for each in rest.exceptions] == ["b"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"workers": 0}, ValueError, "workers must be at least 1, got 0"),
        ({"workers": "two"}, TypeError, "workers must be an integer or None"),
        ({"options": 3}, TypeError, "options must be a mapping or None, got 3"),
    ],
)
def test_bad_options_are_refused(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        RayCluster(**options)


def test_a_cluster_says_what_it_is() -> None:
    assert repr(RayCluster(2, options={"num_cpus": 2})) == (
        "RayCluster(workers=2, options={'num_cpus': 2})"
    )
