"""Many runs on real clusters of two processes, on loopback: Dask, Ray and a pool of processes."""

from __future__ import annotations

import asyncio
import importlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from cluster_work import (
    POOL_FOLDER,
    Interrupt,
    act,
    act_in_pool,
    acted,
    begin_and_wait,
    block_until_go,
    clean_up,
    forever,
    make_files,
    noted,
    noted_pool,
    number_of,
    one,
    play,
    pool_that_breaks_at_the_end,
    pool_that_never_opens,
    squared,
    squares,
    until_noted,
    wait_for_go,
    with_pool,
)
from sdax import SdaxExecutionError
from sdax.engine.switches import is_on
from sdax.many import RayCluster, TravelError, WorkerLost, run_many

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="kills workers by signals")


EXAMPLES = Path(__file__).parents[1] / "examples"


@contextmanager
def dask_cluster() -> Iterator[Any]:
    """A client of two processes."""
    distributed = pytest.importorskip("distributed", reason="distributed is not installed")
    import dask

    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 1}),
        distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            dashboard_address="127.0.0.1:0",
            scheduler_kwargs={"dashboard": False},
            host="127.0.0.1",
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


def import_ray() -> Any:
    """Return Ray, which takes long to start, on one Python."""
    if not is_on("SDAX_TEST_RAY"):
        if sys.version_info[:2] != (3, 13):
            pytest.skip("Ray is tested on Python 3.13, elsewhere with SDAX_TEST_RAY=1")
        if sys.implementation.name != "cpython" or sys.platform != "linux":
            pytest.skip("Ray is tested on CPython for Linux")
    import ray

    return ray


@contextmanager
def ray_cluster() -> Iterator[RayCluster]:
    """Two CPUs of Ray's, whose workers have the Python path of the tests."""
    ray = import_ray()
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        _node_ip_address="127.0.0.1",
        runtime_env={"env_vars": {"PYTHONPATH": path, POOL_FOLDER: os.environ[POOL_FOLDER]}},
    )
    try:
        yield RayCluster(2)
    finally:
        ray.shutdown()


@contextmanager
def process_pool() -> Iterator[ProcessPoolExecutor]:
    """Two processes, each a new Python."""
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as executor:
        yield executor


CLUSTERS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "dask": dask_cluster,
    "ray": ray_cluster,
    "processes": process_pool,
}


@pytest.fixture(scope="module", params=CLUSTERS)
def cluster(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    """A cluster that tests share: what `run_many` is called with. It knows `POOL_FOLDER`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        patch.setenv(POOL_FOLDER, str(tmp_path_factory.mktemp(request.param)))
        with CLUSTERS[request.param]() as cluster:
            yield cluster


@pytest.fixture
def on(cluster: Any) -> Any:
    """The cluster, with all of its workers alive."""
    if hasattr(cluster, "wait_for_workers"):
        cluster.wait_for_workers(2, timeout=120)
    return cluster


def only(*names: str) -> pytest.MarkDecorator:
    """Run a test on these clusters."""
    return pytest.mark.parametrize("cluster", names, indirect=True)


# An executor cannot cancel what it has begun, nor replace a worker.
ends_and_replaces = only("dask", "ray")


# What all promise.


ODD = ["unpicklable value", "unpicklable error", "unloadable error", "error"]


def test_each_input_has_one_outcome(on: Any) -> None:
    inputs = [*ODD, *range(2000 - len(ODD))]

    async def scenario() -> list[Any]:
        async with run_many(
            one(act_in_pool),
            inputs,
            make_context=with_pool,
            resources=noted_pool,
            pick=acted,
            on=on,
        ) as outcomes:
            return sorted([each async for each in outcomes], key=lambda each: each.number)

    got = play(scenario)
    assert [each.number for each in got] == list(range(2000))
    assert [each.item for each in got] == inputs
    value, unpicklable, unloadable, error = (each.error for each in got[: len(ODD)])
    assert isinstance(value, TravelError)
    for group in (unpicklable, unloadable):
        assert isinstance(group, SdaxExecutionError)
        assert isinstance(group.exceptions[0], TravelError)
    assert isinstance(error, SdaxExecutionError)
    assert isinstance(error.exceptions[0], ValueError)
    values = [each.result() for each in got[len(ODD) :]]
    assert [item for item, _ in values] == inputs[len(ODD) :]

    workers = {worker for _, worker in values}
    assert str(os.getpid()) not in workers
    pools = list(Path(os.environ[POOL_FOLDER]).iterdir())
    assert {path.name for path in pools} >= {f"pool-{worker}" for worker in workers}
    # Those of a process are left when it ends.
    is_left = not isinstance(on, ProcessPoolExecutor)
    for path in pools:
        assert path.read_text() == ("opened\nclosed\n" if is_left else "opened\n")


@only("dask", "processes")
def test_what_is_no_exception_stops_everything_and_is_raised(on: Any) -> None:
    async def scenario() -> None:
        with pytest.raises(Interrupt):
            async with run_many(one(act), ["a", "interrupt", *range(100)], on=on) as outcomes:
                async for _ in outcomes:
                    pass
        assert outcomes.stopped_by == (1, "interrupt")

    play(scenario)


@ends_and_replaces
def test_leaving_early_cancels_and_cleans_up(on: Any, tmp_path: Path) -> None:
    async def scenario() -> None:
        inputs = ((str(tmp_path), number) for number in forever())
        async with run_many(
            one(begin_and_wait, clean_up), inputs, make_context=make_files, on=on, batch_size=4
        ) as outcomes:
            taking = asyncio.ensure_future(anext(outcomes))
            await until_noted(tmp_path, "begun", 8)
            taking.cancel()
            await asyncio.wait([taking])

    play(scenario)
    assert len(noted(tmp_path, "begun")) >= 8
    assert noted(tmp_path, "begun") == noted(tmp_path, "cleaned")


@ends_and_replaces
def test_leaving_early_does_not_wait_for_resources_to_open(on: Any) -> None:
    folder = Path(os.environ[POOL_FOLDER])

    async def scenario() -> None:
        async with run_many(
            one(act), range(99), make_context=with_pool, resources=pool_that_never_opens, on=on
        ) as outcomes:
            taking = asyncio.ensure_future(anext(outcomes))
            await until_noted(folder, "opening")
            taking.cancel()
            await asyncio.wait([taking])

    play(scenario)
    assert noted(folder, "opening") == noted(folder, "given up")
    for path in folder.iterdir():
        path.unlink()


@only("processes")
def test_leaving_early_finishes_the_batches_of_an_executor(on: Any, tmp_path: Path) -> None:
    async def scenario() -> None:
        inputs = ((str(tmp_path), number) for number in forever())
        async with run_many(
            one(wait_for_go, clean_up), inputs, make_context=make_files, on=on, batch_size=2
        ) as outcomes:
            taking = asyncio.ensure_future(anext(outcomes))
            await until_noted(tmp_path, "begun", 2)
            (tmp_path / "go").touch()
            await taking

    play(scenario)
    assert noted(tmp_path, "begun") == noted(tmp_path, "cleaned")


# Workers that end.


def waiting_runs(folder: Path, number: int, **options: Any) -> Any:
    """Begin runs that note in this folder where they are, and wait for its file `go`."""
    inputs = [(str(folder), each) for each in range(number)]
    return run_many(
        one(wait_for_go, clean_up), inputs, make_context=make_files, pick=number_of, **options
    )


@ends_and_replaces
def test_a_worker_that_is_killed_is_replaced(on: Any, tmp_path: Path) -> None:
    async def scenario() -> list[Any]:
        async with waiting_runs(tmp_path, 60, on=on, batch_size=10) as outcomes:
            taking = asyncio.ensure_future(anext(outcomes))
            await until_noted(tmp_path, "begun", 20)
            os.kill(int((tmp_path / "begun-0").read_text()), signal.SIGKILL)
            (tmp_path / "go").touch()
            return [await taking, *[each async for each in outcomes]]

    got = play(scenario)
    assert sorted(each.value for each in got) == list(range(60))
    assert noted(tmp_path, "cleaned") == list(range(60))


def blame(deaths: int, dask_scheduler: Any) -> None:
    dask_scheduler.allowed_failures = deaths


@pytest.fixture
def blamed_at_once(on: Any) -> Iterator[None]:
    """Have Dask blame a batch for the first death: every other one takes a second more."""
    if not hasattr(on, "run_on_scheduler"):
        yield
        return
    on.run_on_scheduler(blame, 0)
    yield
    on.run_on_scheduler(blame, 1)


@ends_and_replaces
@pytest.mark.usefixtures("blamed_at_once")
def test_an_input_that_kills_its_worker_is_lost_alone(on: Any) -> None:
    async def scenario() -> list[Any]:
        inputs = [*range(3), "kill", *range(4, 12)]
        async with run_many(one(act), inputs, pick=acted, on=on, batch_size=3) as outcomes:
            return sorted([each async for each in outcomes], key=lambda each: each.number)

    got = play(scenario)
    assert [each.number for each in got] == list(range(12))
    assert [each.number for each in got if each.error is not None] == [3]
    assert isinstance(got[3].error, WorkerLost)
    assert all(each.value == each.item for each in got if each.number != 3)


# Dask's own.


def plugins(dask_worker: Any) -> list[str]:
    return [name for name in dask_worker.plugins if name.startswith("sdax")]


@only("dask")
def test_a_client_on_the_same_loop(on: Any) -> None:
    import distributed

    before = on.run(plugins)

    async def scenario() -> None:
        async with (
            distributed.Client(on.scheduler.address, asynchronous=True) as client,
            run_many(squares(), range(300), pick=squared, on=client, ordered=True) as outcomes,
        ):
            assert [each.value async for each in outcomes] == [n * n for n in range(300)]

    play(scenario)
    assert on.run(plugins) == before


def threads(dask_worker: Any) -> list[str]:
    return [each.name for each in threading.enumerate() if each.name.startswith("sdax")]


@only("dask")
def test_resources_that_break_at_the_end_leave_no_thread_on_a_worker(on: Any) -> None:
    before = on.run(threads)

    async def scenario() -> None:
        async with run_many(
            one(act), range(99), make_context=with_pool, resources=pool_that_breaks_at_the_end,
            on=on,
        ) as outcomes:  # fmt: skip
            async for outcome in outcomes:
                assert outcome.error is None

    with pytest.raises(ConnectionError, match="no goodbye"):
        play(scenario)
    assert on.run(threads) == before


@only("dask")
def test_equal_inputs_are_not_merged(on: Any) -> None:
    async def scenario() -> None:
        async with run_many(squares(), [3] * 12, pick=squared, on=on, batch_size=1) as outcomes:
            assert sorted([each.number async for each in outcomes]) == list(range(12))

    play(scenario)


@only("dask")
def test_a_worker_that_retires_cleans_up(on: Any, tmp_path: Path) -> None:
    on.cluster.scale(3)
    on.wait_for_workers(3, timeout=120)

    async def scenario() -> None:
        async with waiting_runs(tmp_path, 30, on=on, batch_size=5) as outcomes:
            taking = asyncio.ensure_future(anext(outcomes))
            await until_noted(tmp_path, "begun", 15)
            third = on.cluster.workers[2].worker_address
            await asyncio.to_thread(on.retire_workers, [third])
            (tmp_path / "go").touch()
            got = [await taking, *[each async for each in outcomes]]
        assert sorted(each.value for each in got) == list(range(30))

    play(scenario)
    on.cluster.scale(2)
    assert noted(tmp_path, "cleaned") == list(range(30))
    for number in range(30):  # as often as it began, in each process
        begun = (tmp_path / f"begun-{number}").read_text().split()
        assert sorted(begun) == sorted((tmp_path / f"cleaned-{number}").read_text().split())


@only("dask")
def test_a_function_that_blocks_does_not_stop_the_heart_of_a_worker(
    on: Any, tmp_path: Path
) -> None:
    async def scenario() -> None:
        inputs = [(str(tmp_path), number) for number in range(2)]
        async with run_many(
            one(block_until_go), inputs, make_context=make_files, on=on, batch_size=1
        ) as outcomes:
            taking = asyncio.ensure_future(anext(outcomes))
            await until_noted(tmp_path, "begun", 2)
            # Both workers answer on their own loops.
            assert len(await asyncio.to_thread(on.run, os.getpid)) == 2
            (tmp_path / "go").touch()
            assert (await taking).error is None
            assert (await anext(outcomes)).error is None

    play(scenario)


@only("dask")
def test_a_client_that_is_closed_gives_what_it_can(on: Any, tmp_path: Path) -> None:
    import distributed

    async def scenario() -> None:
        client = await distributed.Client(on.scheduler.address, asynchronous=True)
        inputs = [(str(tmp_path), number) for number in range(3)]
        got = []
        with pytest.raises(RuntimeError, match="client is closed"):
            async with run_many(
                one(wait_for_go, clean_up), inputs, make_context=make_files, on=client
            ) as outcomes:
                taking = asyncio.ensure_future(anext(outcomes))
                await until_noted(tmp_path, "begun", 3)
                await client.close()
                got.append(await taking)
                async for outcome in outcomes:
                    got.append(outcome)
        assert [type(each.error) for each in got] == [WorkerLost] * 3

    play(scenario)
    (tmp_path / "go").touch()  # nobody else ends the runs on the worker


@only("dask")
@pytest.mark.usefixtures("blamed_at_once")
def test_the_command_on_dask(on: Any, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('1\n"kill"\n3\n')
    address = on.scheduler.address.replace("tcp://", "dask://")
    job = ["cluster_work:ACTING", "--inputs", "in.jsonl", "--out", "out.jsonl", "--on", address]
    done = subprocess.run(
        [sys.executable, "-m", "sdax", "run", *job],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "3 outcomes: 2 succeeded, 1 failed" in done.stderr
    lines = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    written = {each["number"]: each for each in lines}
    assert sorted(written) == [1, 2, 3]
    assert written[2]["error"]["type"] == "WorkerLost"


@only("dask")
@pytest.mark.one_engine
def test_a_signal_ends_the_command_on_dask_with_its_cleanup(
    engine: Any, on: Any, tmp_path: Path
) -> None:
    lines = [json.dumps([str(tmp_path), number]) for number in range(8)]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    address = on.scheduler.address.replace("tcp://", "dask://")
    job = ["cluster_work:WAITING", "--inputs", "in.jsonl", "--out", "out.jsonl", "--on", address]
    with subprocess.Popen(
        [sys.executable, "-m", "sdax", "run", *job, "--context", "cluster_work:make_files"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            while not noted(tmp_path, "begun"):
                assert process.poll() is None, process.stderr and process.stderr.read()
                time.sleep(0.01)
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=120)
        finally:
            process.kill()
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert "waits for the cleanup of what is under way" in errors
    assert "ended by SIGTERM" in errors
    assert noted(tmp_path, "begun") == noted(tmp_path, "cleaned")
    assert (tmp_path / "out.jsonl").read_text() == ""


@only("dask")
@pytest.mark.one_engine
def test_the_orders_of_the_shop_have_the_same_answers_there(engine: Any, on: Any) -> None:
    reports: Any = importlib.import_module("reports")

    async def scenario() -> None:
        here = await reports.answers(20, "this event loop")
        assert len(here) == 20
        assert await reports.answers(20, "two processes", on=on) == here

    play(scenario)


# Ray's own.


@only("ray")
def test_actors_that_cannot_begin_say_why(on: Any) -> None:
    options = {"runtime_env": {"working_dir": "file:///not/there.zip"}}

    async def scenario() -> list[Any]:
        got = []
        cluster = RayCluster(1, options=options)
        with pytest.raises(Exception, match="runtime environment") as caught:
            async with run_many(squares(), range(3), on=cluster) as outcomes:
                async for outcome in outcomes:
                    got.append(outcome)
        assert type(caught.value).__name__ == "RuntimeEnvSetupError"
        return got

    assert [type(each.error) for each in play(scenario)] == [WorkerLost] * 3


def test_rays_dual_class_of_an_error_is_split_as_any() -> None:
    """What a task of Ray's raises becomes of a class that is made with another constructor."""
    errors = import_ray().exceptions
    error = SdaxExecutionError("two", [ValueError("a"), OSError("b")])
    dual = errors.RayTaskError("task", "its traceback", error).as_instanceof_cause()
    assert type(dual) is not SdaxExecutionError
    part, rest = dual.split(ValueError)
    assert [str(each) for each in part.exceptions] == ["a"]
    assert [str(each) for each in rest.exceptions] == ["b"]
