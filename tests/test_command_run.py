"""`python -m sdax run`: batch jobs, as real processes that get real signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from sdax.__main__ import main
from sdax.commands.run import SECONDS_BETWEEN_SIGNALS

SHOP = """
import asyncio, os, signal, sys, time
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

async def leave(ctx):
    await asyncio.sleep(0.001)
    if ctx["id"] == 7 and not Path("go").exists():
        sys.exit("enough")
    return ctx["id"]

async def leave_later(ctx):
    await asyncio.get_running_loop().create_task(leave(ctx))

async def end(ctx):
    if ctx["id"] == 3:
        await asyncio.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)
    elif ctx["id"] > 3:
        await asyncio.sleep(100)

async def repair(ctx):
    if ctx["id"] % 10 == 3 and not Path("go").exists():
        raise ValueError
    return ctx["id"]

async def forget(ctx):
    return double(ctx)

async def first(ctx):
    return {"when": [ctx["id"]]}

async def second(ctx):
    return [float("nan")]

class Unshowable(Exception):
    def __str__(self):
        raise LookupError

async def fail(ctx):
    raise Unshowable

def of(function, cleanup=None):
    post = cleanup and TaskFunction(cleanup)
    made = AsyncTask("Double", execute=TaskFunction(function), post_execute=post)
    return AsyncTaskProcessor.builder().add_task(made, 1).build()

processor = of(double)
waiting = of(wait, clean)
blocking = of(block, clean)
killing = of(kill)
leaving = of(leave)
leaving_later = of(leave_later)
repairing = of(repair)
ending = of(end)
forgetting = of(forget)
unshowable = of(fail)
odd = (
    AsyncTaskProcessor.builder()
    .add_task(AsyncTask("First", execute=TaskFunction(first)), 1)
    .add_task(AsyncTask("Second", execute=TaskFunction(second)), 1)
    .build()
)
both = (
    AsyncTaskProcessor.builder()
    .add_task(AsyncTask("First", execute=TaskFunction(fail)), 1)
    .add_task(AsyncTask("Second", post_execute=TaskFunction(fail)), 1)
    .build()
)

def make(item):
    return dict(item)

async def make_later(item, prefix):
    await asyncio.sleep(0)
    return {**item, "prefix": prefix}

@asynccontextmanager
async def resources():
    yield "A-"

async def end_here():
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.sleep(100)

@asynccontextmanager
async def slow_to_open():
    await end_here()
    yield ""

@asynccontextmanager
async def slow_to_close():
    yield ""
    await end_here()

@asynccontextmanager
async def cannot_open():
    raise LookupError("no pool")
    yield

@asynccontextmanager
async def cannot_close():
    yield ""
    raise TypeError("no pool")

def pick(ctx, report):
    return ctx["prefix"] + str(report["Double"].execute.value)

def pick_odd(ctx, report):
    return {"when": complex(1, 2)}

def pick_circle(ctx, report):
    ctx["ctx"] = ctx
    return ctx
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


class Ran(NamedTuple):
    """What a command has done."""

    status: int
    out: str
    errors: str


@pytest.fixture
def ran(
    engine: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Ran]]:
    """Run the command in this process, which is quicker."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.delitem(sys.modules, "shop", raising=False)

    def run(*arguments: str) -> Ran:
        try:
            main(["run", *arguments])
            status: Any = 0
        except SystemExit as error:
            status = error.code
        return Ran(status, *capsys.readouterr())

    try:
        yield run
    finally:
        sys.modules.pop("shop", None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["shop:processor", "--pick", "shop:pick_odd"],
            "the return value of --pick is not JSON: it has an object of type complex; return "
            "text, numbers, lists and dicts of them",
        ),
        (
            ["shop:processor", "--pick", "shop:pick_circle"],
            "the return value of --pick is not JSON: Circular reference detected; return text",
        ),
        (
            ["shop:odd"],
            "the return value of execute of task 'Second' is not JSON: Out of range float values "
            "are not JSON compliant",
        ),
        (
            ["shop:forgetting"],
            "the return value of execute of task 'Double' is not JSON: it has a coroutine, for "
            "which an 'await' is missing; name a function with --pick that returns text",
        ),
    ],
    ids=["object", "circle", "number", "coroutine"],
)
@pytest.mark.filterwarnings("ignore:coroutine 'double' was never awaited")
@pytest.mark.one_engine
def test_a_value_that_is_not_json_is_the_error_of_its_input(
    folder: Path, ran: Callable[..., Ran], options: list[str], message: str
) -> None:
    write_inputs(folder, 1)
    done = ran(*options, *JOB)
    assert done.status == 1
    assert f"the first error: line 1: TypeError: {message}" in done.errors
    (outcome,) = written(folder).values()
    assert "value" not in outcome
    assert outcome["error"]["message"].startswith(message)


@pytest.mark.parametrize(
    ("processor", "text"),
    [
        ("shop:repairing", "line 4, execute of task 'Double': ValueError"),
        ("shop:unshowable", "line 1, execute of task 'Double': Unshowable: Unshowable()"),
        (
            "shop:both",
            "line 1, execute of task 'First': Unshowable: Unshowable(), and 1 more failure",
        ),
    ],
)
@pytest.mark.one_engine
def test_the_first_error_is_told(ran: Callable[..., Ran], processor: str, text: str) -> None:
    done = ran(processor, *JOB)
    assert done.status == 1
    assert done.errors.splitlines()[1] == f"python -m sdax run: the first error: {text}"


@pytest.mark.one_engine
def test_an_error_that_is_not_of_a_task_is_told(ran: Callable[..., Ran]) -> None:
    done = ran("shop:processor", *JOB, "--context", "shop:make_later")
    assert done.status == 1
    assert "30 outcomes: 0 succeeded, 30 failed" in done.errors
    assert "the first error: line 1: TypeError: make_later() missing 1 required" in done.errors


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


@pytest.mark.one_engine
def test_resuming_leaves_out_what_is_done(folder: Path, ran: Callable[..., Ran]) -> None:
    torn = '{"number": 1, "value": 1}\n{"number": 5, "value": 2}\n{"number": 6, "val'
    (folder / "out.jsonl").write_text(torn)
    done = ran("shop:processor", *JOB, "--resume")
    assert done.status == 1
    assert "28 outcomes: 25 succeeded, 3 failed, 2 done before\n" in done.errors
    outcomes = written(folder)
    assert sorted(outcomes) == list(range(1, 31))
    assert outcomes[5]["value"] == 2
    assert outcomes[6]["value"] == {"Double": 10}


@pytest.mark.one_engine
def test_a_resumed_job_tells_what_failed_before(folder: Path, ran: Callable[..., Ran]) -> None:
    assert ran("shop:repairing", *JOB).status == 1
    before = (folder / "out.jsonl").read_text()
    done = ran("shop:repairing", *JOB, "--resume")
    assert done == Ran(
        1,
        "",
        "python -m sdax run: 0 outcomes: 0 succeeded, 0 failed, 30 done before, 3 of them failed\n"
        "python -m sdax run: the first error: line 4, execute of task 'Double': ValueError\n"
        "python -m sdax run: --retry-failed runs those again that failed before\n",
    )
    assert (folder / "out.jsonl").read_text() == before


@pytest.mark.one_engine
def test_what_failed_is_run_again(folder: Path, ran: Callable[..., Ran]) -> None:
    again = ("shop:repairing", *JOB, "--resume", "--retry-failed")
    assert ran(*again).status == 1  # the file does not exist yet
    before = (folder / "out.jsonl").read_text()
    done = ran(*again)
    assert done.status == 1
    assert "3 outcomes: 0 succeeded, 3 failed, 27 done before\n" in done.errors
    (folder / "go").touch()
    done = ran(*again)
    assert done.status == 0
    assert "3 outcomes: 3 succeeded, 0 failed, 27 done before\n" in done.errors
    for more in [], ["--retry-failed"]:
        done = ran("shop:repairing", *JOB, "--resume", *more)
        assert done.status == 0
        assert "0 outcomes: 0 succeeded, 0 failed, 30 done before\n" in done.errors
    text = (folder / "out.jsonl").read_text()
    assert text.startswith(before)
    lines = [json.loads(line) for line in text.splitlines()]
    assert len(lines) == 30 + 3 + 3
    assert {each["number"]: each.get("value") for each in lines} == {
        number: {"Double": number - 1} for number in range(1, 31)
    }


@pytest.mark.one_engine
def test_a_later_error_counts_as_well(folder: Path, ran: Callable[..., Ran]) -> None:
    write_inputs(folder, 2)
    lines = '{"number": 1, "error": "a"}\n{"number": 1, "value": 2}\n{"number": 2, "value": 1}\n'
    (folder / "out.jsonl").write_text(lines + '{"number": 2, "error": "b"}\n')
    done = ran("shop:processor", *JOB, "--resume")
    assert done.status == 1
    assert "2 done before, 1 of them failed" in done.errors
    assert "the first error: line 2: 'b'" in done.errors


@pytest.mark.parametrize("where", [[], ["--workers", "1", "--batch-size", "20"]], ids=["here", "1"])
def test_system_exit_ends_the_job_and_is_the_error_of_its_input(
    folder: Path, where: list[str]
) -> None:
    done = sdax_run(folder, "shop:leaving", *JOB, *where)
    assert done.returncode == 1
    summary, first, ended = done.stderr.splitlines()
    assert summary.endswith("succeeded, 1 failed")
    told = "line 8: SystemExit: enough (task 'Double', execute, attempt 1 of 1)"
    assert first == f"python -m sdax run: the first error: {told}"
    assert ended == "python -m sdax run: ended by SystemExit; --resume goes on with the rest"
    assert written(folder)[8]["error"] == {
        "type": "SystemExit",
        "message": "enough",
        "notes": ["task 'Double', execute, attempt 1 of 1"],
    }


def test_a_job_that_system_exit_has_ended_goes_on(folder: Path, ran: Callable[..., Ran]) -> None:
    assert ran("shop:leaving", *JOB, "--concurrency", "3").status == 1
    assert 7 <= len(written(folder)) < 11
    done = ran("shop:leaving", *JOB, "--resume")
    assert done.status == 1
    assert ", 1 of them failed" in done.errors
    assert "ended by" not in done.errors
    assert sorted(written(folder)) == list(range(1, 31))
    (folder / "go").touch()
    assert ran("shop:leaving", *JOB, "--resume", "--retry-failed").status == 0


def test_system_exit_of_a_task_that_nobody_knows_ends_the_job(folder: Path) -> None:
    done = sdax_run(folder, "shop:leaving_later", *JOB)
    assert done.returncode == 1
    assert "ended by SystemExit; --resume goes on with the rest" in done.stderr
    assert all("error" not in each for each in written(folder).values())


@pytest.mark.parametrize("out", ["-", "/dev/stdout"])
@pytest.mark.one_engine
def test_outcomes_on_standard_output(folder: Path, ran: Callable[..., Ran], out: str) -> None:
    done = ran("shop:repairing", "--inputs", "in.jsonl", "--out", out)
    assert done.status == 1
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert {each["number"] for each in lines} == set(range(1, 31))
    assert not (folder / "-").exists()


needs_dev = pytest.mark.skipif(not Path("/dev/full").exists(), reason="a file of Linux")


def test_a_reader_that_closes_the_pipe_ends_the_job(folder: Path) -> None:
    write_inputs(folder, 2000)
    job = ["shop:processor", "--inputs", "in.jsonl", "--out", "-", "--concurrency", "2"]
    with in_background(folder, *job, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == '{"number": 1, "value": {"Double": 0}}\n'
        process.stdout.close()
        assert process.stderr is not None
        errors = process.stderr.read()
        assert process.wait(60) == 141
    assert "--out: - takes no more: " in errors
    assert "Traceback" not in errors.partition("--out")[2]


@needs_dev
@pytest.mark.one_engine
def test_a_full_disk_ends_the_job(ran: Callable[..., Ran]) -> None:
    done = ran("shop:repairing", "--inputs", "in.jsonl", "--out", "/dev/full")
    assert done.status == 1
    assert "--out: /dev/full takes no more: No space left on device" in done.errors


@needs_dev
@pytest.mark.one_engine
def test_what_is_not_a_regular_file_is_not_resumed(ran: Callable[..., Ran]) -> None:
    write_to = ["shop:unshowable", "--inputs", "in.jsonl", "--out", "/dev/null"]
    assert "30 failed" in ran(*write_to).errors
    assert "30 failed" in ran(*write_to).errors


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


needs_signals = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")


@needs_signals
@pytest.mark.one_engine
def test_a_signal_loses_nothing_that_has_ended(folder: Path, ran: Callable[..., Ran]) -> None:
    done = ran("shop:ending", *JOB)
    assert done.status == 128 + signal.SIGTERM
    assert sorted(written(folder)) == [1, 2, 3, 4]


@needs_signals
@pytest.mark.one_engine
@pytest.mark.parametrize(("when", "number"), [("open", 0), ("close", 30)])
def test_a_signal_ends_resources_that_are_slow(
    folder: Path, ran: Callable[..., Ran], when: str, number: int
) -> None:
    options = ["--context", "shop:make_later", "--resources", f"shop:slow_to_{when}"]
    done = ran("shop:processor", *JOB, *options)
    assert done.status == 128 + signal.SIGTERM
    assert len(written(folder)) == number


@pytest.mark.one_engine
@pytest.mark.parametrize(
    ("when", "error", "number"), [("open", LookupError, 0), ("close", TypeError, 30)]
)
def test_resources_that_fail_show_where(
    folder: Path, ran: Callable[..., Ran], when: str, error: type[Exception], number: int
) -> None:
    options = ["--context", "shop:make_later", "--resources", f"shop:cannot_{when}"]
    with pytest.raises(error, match="no pool"):
        ran("shop:processor", *JOB, *options)
    assert len(written(folder)) == number


@pytest.mark.one_engine
def test_resources_that_fail_on_a_worker_are_told(ran: Callable[..., Ran]) -> None:
    options = ["--context", "shop:make_later", "--resources", "shop:cannot_open", "--workers", "1"]
    done = ran("shop:processor", *JOB, *options)
    assert done.status == 1
    assert "a worker cannot run the job: LookupError: no pool" in done.errors


def ids(folder: Path, what: str) -> set[int]:
    return {int(path.name.partition("-")[2]) for path in folder.glob(f"{what}-*")}


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
    outcomes = written(folder)
    assert 5 <= len(outcomes) < 30
    assert not any("error" in each for each in outcomes.values())
    assert [line.partition(": ")[0] for line in errors] == ["python -m sdax run"] * 2, errors


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
        (["shop:processor", "--inputs", "in.jsonl", "--out", "."], ". cannot be written: "),
        (
            ["shop:processor", "--inputs", "in.jsonl", "--out", ".", "--resume"],
            "--resume: . is not a file that can be read",
        ),
        (
            ["shop:processor", "--inputs", "in.jsonl", "--out", "-", "--resume"],
            "--resume: - is not a file that can be read",
        ),
        (["shop:processor", *JOB, "--retry-failed"], "--retry-failed: needs --resume"),
    ],
    ids=lambda each: each[-1] if isinstance(each, list) else "",
)
@pytest.mark.one_engine
def test_bad_arguments_are_refused(
    ran: Callable[..., Ran], arguments: list[str], message: str
) -> None:
    done = ran(*arguments)
    assert done.status == 2
    (line,) = done.errors.splitlines()
    assert message in line


def test_a_scheduler_that_is_not_there_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("distributed", reason="distributed is not installed")
    monkeypatch.setenv("DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT", "100ms")
    done = sdax_run(folder, "shop:processor", *JOB, "--on", "dask://127.0.0.1:9")
    assert done.returncode == 2
    assert "--on: there is no Dask scheduler at dask://127.0.0.1:9" in done.stderr
