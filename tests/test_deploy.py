"""`examples/deploy.py`: the script and its real processes, and its processor at every point."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any

import pytest

from conftest import Implementation
from helpers import amount
from processes import PROGRAMS, SWITCHES
from sdax import task_sync_func
from sdax.testing import explore
from test_documentation import ROOT

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="it has no signals")

STEPS = ("Build", "Check", "Unpack", "Server", "Health", "Switch", "Verify")
SOME_STEPS = STEPS if amount(0, 1) else ("Check", "Verify")
SCRIPT = ROOT / "examples" / "deploy.py"
HANGS_AFTER = 120

# A shell without job control lets what it runs in the background ignore Ctrl-C.
RUN = (
    "import runpy, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
    "signal.signal({}); del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')"
)
NOTHING = "signal.SIGHUP, signal.SIG_DFL"


@pytest.fixture
def deploy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module."""
    monkeypatch.syspath_prepend(ROOT / "examples")
    import deploy

    yield deploy
    del sys.modules["deploy"]


# ----------------------------------------------------------------------------------- the script


class Script:
    """The script and its site."""

    def __init__(self, engine: Implementation, folder: Path) -> None:
        self.site = folder / "site"
        self.go = folder / "go"
        self.mark = f"SDAX_TEST={folder}"
        name, _, value = self.mark.partition("=")
        self.environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            **SWITCHES[engine.name],
            name: value,
            "SDAX_GO": str(self.go),
        }

    @contextlib.contextmanager
    def started(
        self, *arguments: str, path: Path = SCRIPT, before: str = NOTHING
    ) -> Iterator[Begun]:
        """Start it; it has a session of its own, as in a terminal."""
        with subprocess.Popen(
            [sys.executable, "-c", RUN.format(before), str(path), str(self.site), *arguments],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as process:
            try:
                yield Begun(process)
            finally:
                process.kill()

    def run(self, *arguments: str) -> tuple[int, list[str], str]:
        """Run it; return its status, its lines, and what it wrote to stderr."""
        with self.started(*arguments) as script:
            return script.end()

    def live(self) -> Any:
        """Return what is live, by version, and check that nothing else is there."""
        live = None
        with contextlib.suppress(FileNotFoundError):
            live = json.loads((self.site / "live.json").read_text(encoding="utf-8"))
        expected = {"lock", *(["live.json", "releases"] if live else [])}
        folder = {path.name for path in self.site.iterdir()}
        assert folder - {"releases"} == expected - {"releases"}
        versions = [str(live["version"])] if live else []
        assert [path.name for path in self.site.glob("releases/*")] == versions
        if Path("/proc/self/environ").exists():
            assert self.processes() == ([live["pid"]] if live else [])
        return live and live["version"]

    def processes(self) -> list[int]:
        """Return the processes that the script has started, and that have not ended."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it has ended meanwhile; those of others
                ended = " Z " in (folder / "stat").read_text(errors="replace").rpartition(")")[2]
                environment = (folder / "environ").read_bytes().split(b"\0")
                if not ended and os.fsencode(self.mark) in environment:
                    found.append(int(folder.name))
        return found


class Begun:
    """A script that runs."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []
        self.told: list[str] = []

    def until(self, text: str) -> None:
        """Wait until it has printed this."""
        self._read(self.process.stdout, text, self.lines)

    def until_told(self, text: str) -> None:
        """Wait until it has written this to stderr."""
        self._read(self.process.stderr, text, self.told)

    def _read(self, file: IO[str] | None, text: str, lines: list[str]) -> None:
        assert file is not None
        watchdog = threading.Timer(HANGS_AFTER, self.process.kill)
        watchdog.start()
        try:
            for line in file:
                lines.append(line.rstrip())
                if text in line:
                    return
        finally:
            watchdog.cancel()
            watchdog.join()
        pytest.fail(f"{text!r} is not in {lines}")

    def send(self, number: signal.Signals) -> None:
        """Send a signal, Ctrl-C as a terminal does: to all that it has started in its group."""
        if number == signal.SIGINT:
            os.killpg(self.process.pid, number)
        else:
            self.process.send_signal(number)

    def end(self) -> tuple[int, list[str], str]:
        """Wait for its end; return its status, its lines, and what it wrote to stderr."""
        out, err = self.process.communicate(timeout=HANGS_AFTER)
        err = "\n".join([*self.told, err])
        return self.process.returncode, [*self.lines, *out.splitlines()], err


@pytest.fixture
def script(engine: Implementation, tmp_path: Path) -> Iterator[Script]:
    """The script, with version 1 live."""
    script = Script(engine, tmp_path)
    try:
        status, lines, _ = script.run()
        assert (status, lines[-1]) == (0, "version 1 is live")
        yield script
    finally:
        status, _, err = script.run("--stop")
        left = script.processes()
        for pid in left:  # those of a test that has failed
            os.kill(pid, signal.SIGKILL)
        assert (status, err, left) == (0, "", [])


def test_a_deploy(script: Script) -> None:
    status, lines, err = script.run()
    assert (status, lines) == (0, ["Check: Done testing", "version 2 is live"])
    assert "succeeded after" in err
    assert script.live() == 2


@pytest.mark.one_engine
@pytest.mark.one_python
def test_a_temporary_site(engine: Implementation, tmp_path: Path) -> None:
    script = Script(engine, tmp_path)
    done = subprocess.run(
        [sys.executable, str(SCRIPT)],
        env={**script.environment, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=HANGS_AFTER,
        check=True,
    )
    assert done.stdout.splitlines()[1::2] == ["version 1 is live", "version 2 is live"]
    assert list(tmp_path.iterdir()) == []
    assert script.processes() == []


@pytest.mark.one_engine
@pytest.mark.parametrize("step", SOME_STEPS)
@pytest.mark.one_python
def test_a_step_that_fails(script: Script, step: str) -> None:
    status, lines, err = script.run("--fail", step)
    assert status == 1
    assert lines[-2:] == [
        f"{step} failed: a command ended with status 1: fails, as --fail asks",
        "version 1 is live",
    ]
    assert f"{step}.pre_execute failed after" in err
    assert "Traceback" not in err
    assert script.live() == 1


@pytest.mark.one_engine
@pytest.mark.parametrize("step", SOME_STEPS)
def test_ctrl_c(script: Script, step: str) -> None:
    with script.started("--hang", step) as begun:
        begun.until("hangs")
        begun.send(signal.SIGINT)
        status, lines, err = begun.end()
    assert (status, lines[-1]) == (130, "version 1 is live")
    assert "SIGINT: stopping, and cleaning up" in err
    assert "Traceback" not in err
    assert script.live() == 1


@pytest.mark.one_engine
@pytest.mark.parametrize(("step", "name"), [("Build", "SIGTERM"), ("Verify", "SIGHUP")])
@pytest.mark.one_python
def test_other_signals(script: Script, step: str, name: str) -> None:
    number = getattr(signal, name)
    with script.started("--hang", step) as begun:
        begun.until("hangs")
        begun.send(number)
        status, lines, err = begun.end()
    assert (status, lines[-1]) == (128 + number, "version 1 is live")
    assert "Traceback" not in err
    assert script.live() == 1


@pytest.mark.one_engine
@pytest.mark.parametrize("further", [signal.SIGINT, signal.SIGTERM], ids=lambda each: each.name)
@pytest.mark.one_python
def test_further_signals_during_cleanup(script: Script, further: signal.Signals) -> None:
    program = PROGRAMS / "deploy_with_slow_cleanup.py"
    with script.started("--hang", "Verify", path=program) as begun:
        begun.until("hangs")
        begun.send(signal.SIGINT)
        begun.until("cleans up")
        for _ in range(3):
            begun.send(further)
            begun.until_told(f"{further.name}: stopping")
        script.go.touch()
        status, lines, err = begun.end()
    assert (status, lines[-1]) == (130, "version 1 is live")
    assert "Traceback" not in err
    assert script.live() == 1


@pytest.mark.one_engine
def test_ctrl_c_twice_at_once(script: Script) -> None:
    with script.started("--hang", "Verify") as begun:
        begun.until("hangs")
        begun.send(signal.SIGINT)
        begun.until_told("SIGINT: stopping")
        begun.send(signal.SIGINT)
        status, lines, err = begun.end()
    assert (status, lines[-1]) == (130, "version 1 is live")
    assert "Traceback" not in err
    assert script.live() == 1


@pytest.mark.one_engine
@pytest.mark.one_python
def test_nohup(script: Script) -> None:
    """Who ignores a signal goes on ignoring it."""
    with script.started("--hang", "Build", before="signal.SIGHUP, signal.SIG_IGN") as begun:
        begun.until("hangs")
        begun.send(signal.SIGHUP)
        begun.send(signal.SIGTERM)
        assert begun.end()[0] == 143
    assert script.live() == 1


@pytest.mark.one_engine
@pytest.mark.one_python
def test_one_deploy_at_a_time(script: Script) -> None:
    with script.started("--hang", "Build") as begun:
        begun.until("hangs")
        status, lines, _ = script.run()
        assert (status, lines[-1]) == (1, "version 1 is live")
        assert lines[-2] == f"Lock failed: another deploy of {script.site} is running"
        begun.send(signal.SIGTERM)
        assert begun.end()[0] == 143
    assert script.live() == 1


@pytest.mark.one_engine
@pytest.mark.one_python
def test_after_a_deploy_that_was_killed(script: Script) -> None:
    with script.started("--hang", "Unpack") as begun:
        begun.until("hangs")
        begun.process.kill()
        begun.end()
    for pid in script.processes():
        if pid != json.loads((script.site / "live.json").read_text())["pid"]:
            os.kill(pid, signal.SIGKILL)
    assert script.run()[0] == 0
    assert script.live() == 2


@pytest.mark.one_engine
@pytest.mark.one_python
def test_an_old_server_that_has_crashed(script: Script) -> None:
    os.kill(json.loads((script.site / "live.json").read_text())["pid"], signal.SIGKILL)
    assert script.run()[0] == 0
    assert script.live() == 2


@pytest.mark.one_engine
@pytest.mark.parametrize("arguments", [("--fail", "Nothing"), ("--hang",)])
@pytest.mark.one_python
def test_wrong_arguments(engine: Implementation, tmp_path: Path, arguments: tuple[str]) -> None:
    status, _, err = Script(engine, tmp_path).run(*arguments)
    assert status == 2
    assert "usage: " in err


# --------------------------------------------------------------------------------- subprocesses

IGNORES_SIGTERM = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready');"
    "time.sleep(3600)"
)


@pytest.mark.loop_kinds("asyncio", "eager", "uvloop")
@pytest.mark.parametrize("grace", [0.05, 3600.0])
async def test_a_process_that_does_not_stop_is_killed(
    deploy: Any, monkeypatch: pytest.MonkeyPatch, grace: float
) -> None:
    """After a while; at once when somebody cancels again."""
    is_ready, was_asked = asyncio.Event(), asyncio.Event()
    pids: list[int] = []
    send = deploy.send

    def sent(pid: int, number: signal.Signals) -> None:
        pids.append(pid)
        was_asked.set()
        send(pid, number)

    monkeypatch.setattr(deploy, "print", lambda line, flush: is_ready.set(), raising=False)
    monkeypatch.setattr(deploy, "send", sent)
    running = asyncio.create_task(deploy.run("X", "-c", IGNORES_SIGTERM, grace=grace))
    await is_ready.wait()
    running.cancel()
    if grace > 1.0:
        await was_asked.wait()
        running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    first, last = pids
    assert first == last
    with pytest.raises(ProcessLookupError):
        os.kill(last, 0)


@pytest.mark.one_engine
@pytest.mark.loop_kinds("asyncio", "uvloop")
async def test_what_a_process_prints(deploy: Any, capsys: Any) -> None:
    assert await deploy.run("X", "-c", "print('one'); print('two')") == "one\ntwo"
    assert capsys.readouterr().out == "X: one\nX: two\n"
    with pytest.raises(deploy.DeployError, match="status 3: last"):
        await deploy.run("X", "-c", "print('first'); print('last'); raise SystemExit(3)")


# -------------------------------------------------------------------------- every crash point


def consistent(deploy: Any, run: Any, is_running: Callable[[Any], bool]) -> None:
    """One version is live, wholly; nothing is left of the other one."""
    context = run.context
    live = deploy.read_live(context.site)
    assert live == (context.new if context.done else context.expected)
    if run.error is None:
        assert context.done
    for server in (context.expected, context.new):
        if server is not None:
            assert is_running(server) == (server == live)
    assert [path.name for path in context.site.glob("releases/*")] == [str(live.version)]
    assert {path.name for path in context.site.iterdir()} == {"live.json", "lock", "releases"}
    assert context.lock is None or context.lock.closed


def new_deploy(deploy: Any, site: Path) -> Any:
    """A context that knows what is live before the run, even if the run never looks."""
    context = deploy.Deploy(site)
    context.expected = deploy.read_live(site)
    return context


# Each schedule takes a fifth of a second here: `make proof` plays them all, and the model below is
# explored at every point in any case.
MOST_SCHEDULES = int(os.environ.get("SDAX_DEPLOY_SCHEDULES", "12"))


def test_every_point_with_real_processes(
    engine: Implementation, deploy: Any, tmp_path: Path, capsys: Any
) -> None:
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    # A database, for example, of another test in this process.
    before = set(children.read_text().split()) if children.exists() else set()

    def check(run: Any) -> None:
        consistent(deploy, run, lambda server: deploy.is_running(server.pid, server.port))
        if run.context.pid is not None and not run.context.done:
            assert not deploy.is_running(run.context.pid, None)
        if children.exists():
            live = deploy.read_live(tmp_path)
            assert set(children.read_text().split()) - before == {str(live.pid)}

    assert deploy.deploy_once(deploy.Deploy(tmp_path)) == 0
    try:
        explored = explore(
            deploy.PROCESSOR,
            context=partial(new_deploy, deploy, tmp_path),
            check=check,
            clock="real",
            faults=("cancel",),
            max_schedules=MOST_SCHEDULES,
        )
    finally:
        deploy.stop_site(tmp_path)
    assert explored.schedules >= min(MOST_SCHEDULES, 50)


class Processes:
    """A model of processes: servers, and commands that end after a while."""

    def __init__(self) -> None:
        self.numbers = itertools.count(1000)
        self.running: dict[int, ModelProcess] = {}
        self.servers: dict[int, int] = {}  # their versions

    async def create(self, *command: Any, **_: Any) -> ModelProcess:
        await asyncio.sleep(0.01)
        process = ModelProcess(self)
        process.ends_by_itself = asyncio.get_running_loop().call_later(0.1, process.end)
        return process

    def serve(self, command: Any, stdout: Any, **_: Any) -> ModelProcess:
        process = ModelProcess(self)
        path = Path(stdout.name)
        self.servers[process.pid] = int((path.parent / "version.txt").read_text())

        def listen() -> None:
            with path.open("a") as log:
                log.write(f"Serving HTTP on 127.0.0.1 port {process.pid}\n")

        process.ends_by_itself = asyncio.get_running_loop().call_later(0.2, listen)
        return process

    def is_running(self, pid: int, port: int | None) -> bool:
        return pid in self.running

    def send(self, pid: int, number: signal.Signals) -> None:
        if process := self.running.get(pid):
            assert process.ends_by_itself is not None
            process.ends_by_itself.cancel()
            # The first signal is obeyed after a while.
            delay = 0.0 if number == signal.SIGKILL else 0.1
            process.ends_by_itself = asyncio.get_running_loop().call_later(delay, process.end)

    async def served_version(self, port: int) -> int:
        await asyncio.sleep(0.01)
        if port not in self.running:
            raise ConnectionRefusedError("nobody listens")
        return self.servers[port]


class ModelProcess:
    """A process that runs until `end` is called."""

    def __init__(self, processes: Processes) -> None:
        self.pid = next(processes.numbers)
        self.processes = processes
        self.returncode: int | None = None
        self.ended = asyncio.Event()
        self.ends_by_itself: asyncio.TimerHandle | None = None
        self.stdout = self.lines()
        processes.running[self.pid] = self

    async def lines(self) -> Any:
        await asyncio.sleep(0.02)
        yield b"a line\n"
        await self.ended.wait()

    def end(self) -> None:
        self.returncode = 0
        self.processes.running.pop(self.pid)
        self.ended.set()

    async def wait(self) -> int | None:
        await self.ended.wait()
        return self.returncode


def test_every_point_of_a_model(
    engine: Implementation,
    deploy: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
) -> None:
    """Every fault, timeouts and a second cancellation too: its processes take no time."""
    processor = deploy.PROCESSOR.replaced(
        {
            "Release": {  # without threads
                "pre_execute": task_sync_func(deploy.make_release),
                "post_execute": task_sync_func(deploy.remove_other_release),
            }
        }
    )
    numbers = itertools.count()

    def new_site() -> Any:
        processes = Processes()
        monkeypatch.setattr(asyncio, "create_subprocess_exec", processes.create)
        monkeypatch.setattr(deploy, "DetachedProcess", processes.serve)
        for name in ("is_running", "send", "served_version"):
            monkeypatch.setattr(deploy, name, getattr(processes, name))
        site = tmp_path / str(next(numbers))
        old = ModelProcess(processes)
        old.ends_by_itself = asyncio.get_running_loop().call_later(0, lambda: None)
        processes.servers[old.pid] = 1
        (site / "releases" / "1").mkdir(parents=True)
        (site / "lock").touch()
        deploy.write_live(site, deploy.Server(1, old.pid, old.pid))
        context = new_deploy(deploy, site)
        context.processes = processes
        return context

    def check(run: Any) -> None:
        processes = run.context.processes
        consistent(deploy, run, lambda server: server.pid in processes.running)
        assert [*processes.running] == [deploy.read_live(run.context.site).pid]

    explored = explore(
        processor,
        context=new_site,
        check=check,
        faults=("cancel", "fail", "hang", "cancel again", "interrupt"),
    )
    assert explored.exhaustive
    assert explored.schedules > 500
