"""`python -m sdax run`: batch jobs, as real processes that get real signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sdax.__main__ import main
from sdax.commands.run import SECONDS_BETWEEN_SIGNALS

SHOP = """
import asyncio, os, time
from contextlib import asynccontextmanager
from pathlib import Path
from sdax import AsyncTask, AsyncTaskProcessor, TaskFunction

async def double(ctx):
    await asyncio.sleep(0.001)
    if ctx["id"] % 10 == 3:
        raise ValueError(f"bad order {ctx['id']}")
    return ctx["id"] * 2

async def wait(ctx):
    Path(f"begun-{ctx['id']}").touch()
    while ctx["id"] >= 5 and not Path("go").exists():
        await asyncio.sleep(0.005)

async def block(ctx):
    Path(f"begun-{ctx['id']}").touch()
    time.sleep(100)

async def clean(ctx):
    await asyncio.sleep(0.02)
    Path(f"cleaned-{ctx['id']}").touch()

async def kill(ctx):
    if ctx["id"] == 7:
        os._exit(1)

def of(function, cleanup=None):
    post = cleanup and TaskFunction(cleanup)
    made = AsyncTask("Double", execute=TaskFunction(function), post_execute=post)
    return AsyncTaskProcessor.builder().add_task(made, 1).build()

processor = of(double)
waiting = of(wait, clean)
blocking = of(block, clean)
killing = of(kill)

def make(item):
    return dict(item)

async def make_later(item, prefix):
    await asyncio.sleep(0)
    return {**item, "prefix": prefix}

@asynccontextmanager
async def resources():
    yield "A-"

def pick(ctx, report):
    return ctx["prefix"] + str(report["Double"].execute.value)

def pick_odd(ctx, report):
    return {"when": complex(1, 2)}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "shop.py").write_text(SHOP)
    write_inputs(tmp_path, 30)
    return tmp_path


def write_inputs(folder: Path, number: int, *more: str) -> None:
    lines = [json.dumps({"id": each}) for each in range(number)]
    (folder / "in.jsonl").write_text("\n".join([*lines, *more]) + "\n")


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "sdax", "run", *arguments]


def sdax_run(folder: Path, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments),
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        **options,
    )


JOB = ("--inputs", "in.jsonl", "--out", "out.jsonl")


def written(folder: Path) -> dict[int, Any]:
    lines = (folder / "out.jsonl").read_text().splitlines()
    outcomes = [json.loads(line) for line in lines]
    assert len({each["number"] for each in outcomes}) == len(outcomes)
    return {each["number"]: each for each in outcomes}


@pytest.mark.parametrize("where", [[], ["--workers", "2", "--batch-size", "4"]], ids=["here", "2"])
def test_each_line_has_an_outcome(folder: Path, where: list[str]) -> None:
    done = sdax_run(folder, "shop:processor", *JOB, "--context", "shop:make", *where)
    assert done.returncode == 1, done.stderr
    assert "30 outcomes: 27 succeeded, 3 failed" in done.stderr
    outcomes = written(folder)
    assert sorted(outcomes) == list(range(1, 31))
    assert outcomes[1] == {"number": 1, "value": {"Double": 0}}
    assert outcomes[4]["error"] == {
        "type": "SdaxExecutionError",
        "message": ("execute of task 'Double' failed (1 sub-exception): ValueError: bad order 3"),
        "failures": [
            {
                "task": "Double",
                "phase": "execute",
                "attempts": 1,
                "type": "ValueError",
                "message": "bad order 3",
            }
        ],
    }


def test_a_job_that_succeeds(folder: Path) -> None:
    write_inputs(folder, 3)
    options = ["--context", "shop:make_later", "--resources", "shop:resources"]
    done = sdax_run(folder, "shop:processor", *JOB, *options, "--pick", "shop:pick")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert [each["value"] for each in written(folder).values()] == ["A-0", "A-2", "A-4"]


def test_what_json_does_not_know_is_written_as_it_is_shown(folder: Path) -> None:
    write_inputs(folder, 1)
    done = sdax_run(folder, "shop:processor", *JOB, "--pick", "shop:pick_odd")
    assert done.returncode == 0, done.stderr
    assert written(folder)[1]["value"] == {"when": "(1+2j)"}


def test_bad_lines_are_told_of_and_the_rest_goes_on(folder: Path) -> None:
    write_inputs(folder, 2, "{oops", "", "  ", '{"id": 2}')
    done = sdax_run(folder, "shop:processor", *JOB)
    assert done.returncode == 1
    assert "in.jsonl, line 3 is left out: Expecting property name" in done.stderr
    assert "3 outcomes: 3 succeeded, 0 failed, 1 line left out" in done.stderr
    assert sorted(written(folder)) == [1, 2, 6]


def test_inputs_from_standard_input(folder: Path) -> None:
    done = sdax_run(
        folder, "shop:processor", "--inputs", "-", "--out", "out.jsonl", input='{"id": 1}\n{"id": 2'
    )
    assert done.returncode == 1
    assert "standard input, line 2 is left out" in done.stderr
    assert written(folder) == {1: {"number": 1, "value": {"Double": 2}}}


def test_resuming_leaves_out_what_is_done(folder: Path) -> None:
    torn = '{"number": 1, "value": 1}\n{"number": 5, "value": 2}\n{"number": 6, "val'
    (folder / "out.jsonl").write_text(torn)
    done = sdax_run(folder, "shop:processor", *JOB, "--resume")
    assert "28 outcomes: 25 succeeded, 3 failed, 2 done before" in done.stderr
    outcomes = written(folder)
    assert sorted(outcomes) == list(range(1, 31))
    assert outcomes[5]["value"] == 2
    assert outcomes[6]["value"] == {"Double": 10}
    again = sdax_run(folder, "shop:processor", *JOB, "--resume")
    assert again.returncode == 0
    assert "0 outcomes: 0 succeeded, 0 failed, 30 done before" in again.stderr


@contextmanager
def in_background(folder: Path, *arguments: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        command(*arguments),
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def processor() -> str:
    """One of whose runs the first five end, while the others wait."""
    return "shop:waiting"


@pytest.fixture
def job(
    folder: Path, processor: str, request: pytest.FixtureRequest
) -> Iterator[subprocess.Popen[str]]:
    """A job that does not end by itself."""
    with in_background(folder, processor, *JOB, *request.param) as process:
        yield process


def ids(folder: Path, what: str) -> set[int]:
    return {int(path.name.partition("-")[2]) for path in folder.glob(f"{what}-*")}


needs_signals = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")


def wait_for(folder: Path, job: subprocess.Popen[str], lines: int, begun: int) -> None:
    out = folder / "out.jsonl"
    while not (
        out.exists()
        and len(out.read_text().splitlines()) >= lines
        and len(ids(folder, "begun")) >= begun
    ):
        assert job.poll() is None, job.stderr and job.stderr.read()


@needs_signals
@pytest.mark.parametrize("job", [["--concurrency", "8"]], indirect=True, ids=["here"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_job_with_its_cleanup(
    folder: Path, job: subprocess.Popen[str], number: signal.Signals
) -> None:
    wait_for(folder, job, 5, 13)
    job.send_signal(number)
    _, errors = job.communicate(timeout=60)
    assert job.returncode == 128 + number
    assert f"ended by {number.name}; --resume goes on with the rest" in errors
    assert sorted(written(folder)) == [1, 2, 3, 4, 5]
    assert ids(folder, "cleaned") == ids(folder, "begun") == set(range(13))
    (folder / "go").touch()
    done = sdax_run(folder, "shop:waiting", *JOB, "--resume")
    assert done.returncode == 0, done.stderr
    assert sorted(written(folder)) == list(range(1, 31))


@needs_signals
@pytest.mark.parametrize("job", [["--workers", "2", "--batch-size", "5"]], indirect=True, ids=["2"])
def test_a_signal_lets_processes_end_what_they_have(
    folder: Path, job: subprocess.Popen[str]
) -> None:
    wait_for(folder, job, 5, 15)
    job.send_signal(signal.SIGTERM)
    assert job.stderr is not None
    assert "a second signal ends it at once" in job.stderr.readline()
    (folder / "go").touch()
    _, errors = job.communicate(timeout=60)
    assert job.returncode == 128 + signal.SIGTERM, errors
    outcomes = written(folder)
    assert 10 < len(outcomes) < 30
    assert ids(folder, "cleaned") == ids(folder, "begun") == {number - 1 for number in outcomes}


@needs_signals
@pytest.mark.parametrize("job", [["--workers", "2", "--batch-size", "5"]], indirect=True, ids=["2"])
def test_a_second_signal_ends_processes(folder: Path, job: subprocess.Popen[str]) -> None:
    wait_for(folder, job, 5, 10)
    job.send_signal(signal.SIGINT)
    assert job.stderr is not None
    assert "a second signal ends it at once" in job.stderr.readline()
    errors = end_by_second(job, signal.SIGINT)
    assert job.returncode == 128 + signal.SIGINT
    assert len(written(folder)) < 30
    assert [line.partition(": ")[0] for line in errors] == ["python -m sdax run"] * 2


@needs_signals
@pytest.mark.parametrize("job", [["--workers", "2", "--batch-size", "5"]], indirect=True, ids=["2"])
def test_processes_leave_signals_to_the_one_that_writes(
    folder: Path, job: subprocess.Popen[str]
) -> None:
    wait_for(folder, job, 5, 10)
    children = Path(f"/proc/{job.pid}/task/{job.pid}/children")
    if not children.exists():
        pytest.skip("/proc does not tell of children")
    pids = [*map(int, children.read_text().split()), job.pid]
    for pid in pids * 2:  # systemd sends it to all, `timeout` sends it twice
        os.kill(pid, signal.SIGTERM)
    (folder / "go").touch()
    _, errors = job.communicate(timeout=60)
    assert job.returncode == 128 + signal.SIGTERM, errors
    assert ids(folder, "cleaned") == ids(folder, "begun")
    assert len(written(folder)) == len(ids(folder, "begun")) >= 10, errors


def end_by_second(job: subprocess.Popen[str], number: signal.Signals) -> list[str]:
    """Send a signal again, when it counts as another one; return the lines that follow."""
    time.sleep(SECONDS_BETWEEN_SIGNALS + 0.1)
    job.send_signal(number)
    return job.communicate(timeout=60)[1].splitlines()


@needs_signals
@pytest.mark.parametrize("job", [[]], indirect=True, ids=["here"])
@pytest.mark.parametrize("processor", ["shop:blocking"])
def test_signals_end_a_job_whose_event_loop_is_blocked(
    folder: Path, job: subprocess.Popen[str]
) -> None:
    wait_for(folder, job, 0, 1)
    job.send_signal(signal.SIGINT)
    errors = end_by_second(job, signal.SIGINT)
    assert job.returncode == 128 + signal.SIGINT, errors
    assert ids(folder, "cleaned") == ids(folder, "begun") == {0}


@needs_signals
def test_a_signal_ends_a_job_that_waits_for_standard_input(folder: Path) -> None:
    job = ["shop:processor", "--inputs", "-", "--out", "out.jsonl"]
    with in_background(folder, *job, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write('{"id": 1}\n\n{"id": 2}\n{"id":')
        process.stdin.flush()
        out = folder / "out.jsonl"
        while not (out.exists() and len(out.read_text().splitlines()) == 2):
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)
        process.stdin.close()
    assert process.returncode == 128 + signal.SIGTERM
    assert sorted(written(folder)) == [1, 3]


def test_a_process_that_ends_is_told_of(folder: Path) -> None:
    done = sdax_run(folder, "shop:killing", *JOB, "--workers", "1", "--batch-size", "2")
    assert done.returncode == 1
    assert "--resume runs the inputs without an outcome again" in done.stderr
    assert all(each.get("error") is None for each in written(folder).values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["shop:processors", *JOB], "has no 'processors'; did you mean processor?"),
        (["shop:processor", *JOB, "--context", "shop:nothing"], "has no 'nothing'"),
        (["shop:processor", *JOB, "--pick", "shop:SHOP"], "has no 'SHOP'"),
        (["shop:processor", "--inputs", "no", "--out", "o"], "--inputs: there is no file no"),
        (["shop:processor", *JOB, "--workers", "0"], "--workers: must be at least 1, got 0"),
        (["shop:processor", *JOB, "--on", "spark://a"], "--on: expected dask://HOST:PORT"),
        (["shop:processor", *JOB, "--concurrency", "0"], "concurrency must be at least 1, got 0"),
        (
            ["shop:processor", "--inputs", "in.jsonl", "--out", "in.jsonl"],
            "in.jsonl exists; --resume goes on with it",
        ),
        (
            ["shop:processor", "--inputs", "in.jsonl", "--out", "in.jsonl", "--resume"],
            "in.jsonl, line 1 has no outcome of this command",
        ),
        (["shop:processor", "--inputs", "in.jsonl", "--out", "no/out"], "cannot be written"),
    ],
    ids=lambda each: each[-1] if isinstance(each, list) else "",
)
def test_bad_arguments_are_refused(
    folder: Path,
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.delitem(sys.modules, "shop", raising=False)
    try:
        with pytest.raises(SystemExit) as caught:
            main(["run", *arguments])
    finally:
        sys.modules.pop("shop", None)
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_scheduler_that_is_not_there_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("distributed", reason="distributed is not installed")
    monkeypatch.setenv("DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT", "100ms")
    done = sdax_run(folder, "shop:processor", *JOB, "--on", "dask://127.0.0.1:9")
    assert done.returncode == 2
    assert "--on: there is no Dask scheduler at dask://127.0.0.1:9" in done.stderr
