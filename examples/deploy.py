"""A deploy as a script: build, check, start the new version beside the old one, switch, clean up.

The site is a folder. Each release is a web server on loopback, and `live.json` says which one is
live. A deploy builds the next release from the files in `data`. If anything fails, or if the
script is stopped, the old version stays live, and the new one leaves nothing behind.

    python examples/deploy.py                   # a temporary site: deploys version 1, then 2
    python examples/deploy.py SITE              # the next version, which stays live
    python examples/deploy.py SITE --fail Check # a step that fails
    python examples/deploy.py SITE --hang Build # a step that hangs: press Ctrl-C
    python examples/deploy.py SITE --stop       # stop what is live

The exit status is 0 if the new version is live and the old one has stopped, 1 if something failed,
2 for wrong arguments, 129 after SIGHUP, 130 after Ctrl-C and 143 after SIGTERM. A signal stops what
runs and starts the cleanup. Further signals do not interrupt the cleanup, which has its timeouts.

It runs on Linux and macOS and needs rich (the extra `rich`). A real deploy would ask systemd,
Docker or Kubernetes to start and stop the servers. The order of the steps, and their cleanup, stay
the same.
"""

import argparse
import asyncio
import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TextIO, TypeAlias, Unpack

from sdax import (
    AsyncTaskProcessor,
    Limits,
    SdaxExecutionError,
    TaskFunction,
    task,
    task_func,
    task_sync_func,
    task_thread_func,
)
from sdax.observe.progress import ProgressDisplay

HOST = "127.0.0.1"
INPUT = Path(__file__).parent / "data"
STEPS = ("Build", "Check", "Unpack", "Server", "Health", "Switch", "Verify")
GRACE = 5.0  # seconds that a process gets to stop, before it is killed
PYTHON = (sys.executable, "-I", "-S", "-u")  # the standard library alone starts faster


class DeployError(Exception):
    """A step cannot succeed. The message has the reason."""


@dataclass(frozen=True)
class Server:
    """A running release."""

    version: int
    pid: int
    port: int


@dataclass
class Deploy:
    """The context of one deploy. Fields that steps set have a default: cleanup may run first."""

    site: Path
    fail: str | None = None
    hang: str | None = None
    lock: TextIO | None = None
    old: Server | None = None  # live before this deploy
    pid: int | None = None  # of the new server
    new: Server | None = None
    done: bool = False  # True: the new version stays, and the old version is removed

    @property
    def version(self) -> int:
        return 1 if self.old is None else self.old.version + 1

    def release(self, version: int) -> Path:
        return self.site / "releases" / str(version)

    @property
    def archive(self) -> Path:
        return self.release(self.version) / "site.zip"

    @property
    def pages(self) -> Path:
        return self.release(self.version) / "pages"

    @property
    def log(self) -> Path:
        return self.release(self.version) / "server.log"


# --------------------------------------------------------------------------------- subprocesses


async def run(step: str, *arguments: str | Path, grace: float = GRACE) -> str:
    """Run Python with these arguments, show its output, and return it.

    When this function ends, even by a failure, a timeout or a cancellation, the process has ended.
    """
    process = await asyncio.create_subprocess_exec(
        *PYTHON,
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C reaches this script alone, which then stops the process
    )
    lines: list[str] = []
    try:
        assert process.stdout is not None
        async for line in process.stdout:
            lines.append(line.decode(errors="replace").rstrip())
            print(f"{step}: {lines[-1]}", flush=True)
        status = await process.wait()
    finally:
        await stop(process, grace)
    if status != 0:
        raise DeployError(f"a command ended with status {status}: {''.join(lines[-1:])}")
    return "\n".join(lines)


async def stop(process: asyncio.subprocess.Process, grace: float) -> None:
    """Ask a process and its children to stop, kill them after a while, and wait for the end."""
    try:
        if process.returncode is None:
            send(process.pid, signal.SIGTERM)
            async with asyncio.timeout(grace):
                await process.wait()
    except TimeoutError:
        pass
    finally:  # also after a second cancellation
        if process.returncode is None:
            send(process.pid, signal.SIGKILL)
            await process.wait()


def send(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process that began a session of its own, and to its children."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # it has ended
        os.killpg(pid, number)


class DetachedProcess(subprocess.Popen[bytes]):
    """A process that may outlive this script. asyncio would kill it."""

    def __del__(self, *_: object) -> None:
        """Do not warn that it is still running."""


# -------------------------------------------------------------------------------------- servers


def start_server(deploy: Deploy) -> None:
    """Start the new server. Nothing is awaited until its process is known to the cleanup."""
    command = (*PYTHON, "-m", "http.server", "0", "--bind", HOST, "--directory", deploy.pages)
    with deploy.log.open("wb") as log:
        deploy.pid = DetachedProcess(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        ).pid


def is_running(pid: int, port: int | None) -> bool:
    """Return True if a server has not ended."""
    try:
        return os.waitpid(pid, os.WNOHANG) == (0, 0)
    except ChildProcessError:  # an earlier deploy started it
        if port is None:
            return False
        with contextlib.suppress(OSError), socket.create_connection((HOST, port), timeout=1.0):
            return True
        return False


async def stop_server(pid: int, port: int | None = None) -> None:
    """Ask a server to stop, kill it after a while, and wait for the end."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        send(pid, number)
        for _ in range(int(GRACE / 0.02)):
            if not is_running(pid, port):
                return
            await asyncio.sleep(0.02)
    raise DeployError(f"the server with process id {pid} does not end")


async def served_version(port: int) -> int:
    """Ask a server for its version. Raises ConnectionError if nobody listens."""
    reader, writer = await asyncio.open_connection(HOST, port)
    try:
        writer.write(b"GET /version.txt HTTP/1.0\r\n\r\n")
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    finally:
        writer.close()
    if b" 200 " not in head.partition(b"\r\n")[0]:
        raise DeployError(f"port {port} answered {head[:40]!r}")
    return int(body)


def read_live(site: Path) -> Server | None:
    """Return the live server, or None."""
    try:
        return Server(**json.loads((site / "live.json").read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None


def write_live(site: Path, server: Server | None) -> None:
    """Write which server is live. Readers find the old file or the new file, never a part."""
    if server is None:
        (site / "live.json").unlink(missing_ok=True)
        return
    part = site / "live.json.part"
    part.write_text(json.dumps(asdict(server)), encoding="utf-8")
    part.replace(site / "live.json")


# ---------------------------------------------------------------------------- steps and cleanups

Step: TypeAlias = Callable[["Deploy"], Awaitable[None] | None]


def lock_site(deploy: Deploy) -> None:
    """Keep other deploys out. The system releases the lock if this process is killed."""
    deploy.site.mkdir(parents=True, exist_ok=True)
    deploy.lock = (deploy.site / "lock").open("w")
    try:
        fcntl.flock(deploy.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise DeployError(f"another deploy of {deploy.site} is running") from None
    deploy.old = read_live(deploy.site)


def unlock_site(deploy: Deploy) -> None:
    """Let others deploy."""
    if deploy.lock is not None:
        deploy.lock.close()


def make_release(deploy: Deploy) -> None:
    """Make the folder of the new release. A deploy that was killed may have left it."""
    shutil.rmtree(deploy.release(deploy.version), ignore_errors=True)
    deploy.pages.mkdir(parents=True)
    version = deploy.release(deploy.version) / "version.txt"
    version.write_text(f"{deploy.version}\n", encoding="utf-8")


def remove_other_release(deploy: Deploy) -> None:
    """Keep the live release, and remove the other release."""
    if not deploy.done:
        shutil.rmtree(deploy.release(deploy.version), ignore_errors=True)
    elif deploy.old is not None:
        shutil.rmtree(deploy.release(deploy.old.version))


async def build(deploy: Deploy) -> None:
    """Pack the files."""
    files = [deploy.release(deploy.version) / "version.txt", *sorted(INPUT.glob("*.csv"))]
    await run("Build", "-m", "zipfile", "-c", deploy.archive, *files)


async def check(deploy: Deploy) -> None:
    """Check the archive. For a wrong checksum, zipfile prints a line and ends with status 0."""
    if "corrupted" in await run("Check", "-m", "zipfile", "-t", deploy.archive):
        raise DeployError(f"{deploy.archive} is corrupted")


async def unpack(deploy: Deploy) -> None:
    """Unpack the pages."""
    await run("Unpack", "-m", "zipfile", "-e", deploy.archive, deploy.pages)


async def stop_other_server(deploy: Deploy) -> None:
    """Keep the live server, and stop the other server."""
    if not deploy.done:
        if deploy.pid is not None:
            await stop_server(deploy.pid)
    elif deploy.old is not None:
        # By now another process may have the process id of a server that crashed.
        with contextlib.suppress(ConnectionError):
            if await served_version(deploy.old.port) == deploy.old.version:
                await stop_server(deploy.old.pid, deploy.old.port)


async def check_health(deploy: Deploy) -> None:
    """Ask the new server for its version. It needs a moment to start, so this has retries."""
    assert deploy.pid is not None
    log = deploy.log.read_text(encoding="utf-8")
    if not is_running(deploy.pid, None):
        raise DeployError(f"the server has ended: {log}")
    listening = re.search(r"port (\d+)", log)
    if listening is None:
        raise ConnectionError("the server does not listen yet")
    server = Server(deploy.version, deploy.pid, int(listening[1]))
    if await served_version(server.port) != server.version:
        raise DeployError(f"port {server.port} serves another version")
    deploy.new = server


def switch(deploy: Deploy) -> None:
    """Make the new version live."""
    write_live(deploy.site, deploy.new)


def switch_back(deploy: Deploy) -> None:
    """Make the old version live again, unless everything worked."""
    if not deploy.done:
        write_live(deploy.site, deploy.old)


async def verify(deploy: Deploy) -> None:
    """Ask for the version as a user would. After that the deploy is done."""
    live = read_live(deploy.site)
    if live is None or await served_version(live.port) != deploy.version:
        raise DeployError(f"{live} is live instead of version {deploy.version}")


def finish(deploy: Deploy) -> None:
    """From now on the cleanups keep the new version. Nothing can fail in between."""
    deploy.done = True


def step(name: str, work: Step, **limits: Unpack[Limits]) -> TaskFunction[Deploy]:
    """Make the function of a step. It does the work, then fails or hangs if an option says so."""

    async def function(deploy: Deploy) -> None:
        result = work(deploy)
        if result is not None:
            await result
        if deploy.fail == name:
            await run(name, "-c", "raise SystemExit('fails, as --fail asks')")
        if deploy.hang == name:
            await run(name, "-c", "import time; print('hangs, as --hang asks'); time.sleep(3600)")

    return task_func(function, **limits)


PROCESSOR = (
    AsyncTaskProcessor[Deploy, str]
    .builder()
    .add_task(
        task(
            "Lock",
            pre_execute=task_sync_func(lock_site),
            post_execute=task_sync_func(unlock_site),
        ),
        level=1,
    )
    .add_task(
        task(
            "Release",
            pre_execute=task_thread_func(make_release, timeout=10.0),
            post_execute=task_thread_func(remove_other_release, timeout=10.0),
        ),
        level=2,
    )
    .add_task(task("Build", pre_execute=step("Build", build, timeout=60.0)), level=3)
    .add_task(task("Check", pre_execute=step("Check", check, timeout=10.0)), level=4)
    .add_task(task("Unpack", pre_execute=step("Unpack", unpack, timeout=10.0)), level=4)
    .add_task(
        task(
            "Server",
            pre_execute=step("Server", start_server, timeout=10.0),
            post_execute=task_func(stop_other_server, timeout=3 * GRACE),
        ),
        level=5,
    )
    .add_task(
        task(
            "Health",
            pre_execute=step(
                "Health", check_health, timeout=2.0, retries=15, initial_delay=0.1, max_delay=1.0
            ),
        ),
        level=6,
    )
    .add_task(
        task(
            "Switch",
            pre_execute=step("Switch", switch, timeout=10.0),
            post_execute=task_sync_func(switch_back),
        ),
        level=7,
    )
    .add_task(
        task(
            "Verify",
            pre_execute=step("Verify", verify, timeout=10.0),
            execute=task_sync_func(finish),
        ),
        level=8,
    )
    .build()
)


# ----------------------------------------------------------------------------------- the script


def cancel_on(*numbers: signal.Signals) -> list[signal.Signals]:
    """Cancel the calling `asyncio.Task` on these signals. Return the list of received signals.

    `asyncio.run` handles only Ctrl-C. On the second Ctrl-C it raises KeyboardInterrupt wherever the
    program is, which may be in a cleanup. Here each signal only cancels.
    """
    loop, this_task = asyncio.get_running_loop(), asyncio.current_task()
    assert this_task is not None
    received: list[signal.Signals] = []

    def cancel(number: signal.Signals) -> None:
        received.append(number)
        print(f"{number.name}: stopping, and cleaning up", file=sys.stderr, flush=True)
        this_task.cancel()

    for number in numbers:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores SIGHUP
            loop.add_signal_handler(number, cancel, number)
    return received


async def main(deploy: Deploy) -> int:
    """Deploy, and return the exit status."""
    received = cancel_on(signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    try:
        await PROCESSOR.process_tasks(deploy, observer=ProgressDisplay())
    except SdaxExecutionError as error:
        for failure in error.failures:
            print(f"{failure.name} failed: {failure.exception}", flush=True)
        return 1
    except asyncio.CancelledError:
        if not received:
            raise
    return 128 + received[0] if received else 0


def deploy_once(deploy: Deploy) -> int:
    """Deploy, print which version is live, and return the exit status."""
    status = asyncio.run(main(deploy))
    live = read_live(deploy.site)
    print("no version is live" if live is None else f"version {live.version} is live", flush=True)
    return status


def stop_site(site: Path) -> None:
    """Stop the live version."""
    live = read_live(site)
    if live is not None:
        asyncio.run(stop_server(live.pid, live.port))
        write_live(site, None)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("site", type=Path, nargs="?", help="a folder (default: a temporary one)")
    parser.add_argument("--fail", choices=STEPS, help="let this step fail")
    parser.add_argument("--hang", choices=STEPS, help="let this step hang")
    parser.add_argument("--stop", action="store_true", help="stop what is live, and end")
    return parser.parse_args()


def command() -> int:
    """Do what the command line says, and return the exit status."""
    options = arguments()
    if options.site is not None and options.stop:
        stop_site(options.site)
        return 0
    if options.site is not None:
        return deploy_once(Deploy(options.site, options.fail, options.hang))
    with TemporaryDirectory(prefix="sdax-deploy-") as folder:
        site = Path(folder)
        try:
            first = deploy_once(Deploy(site))
            return first or deploy_once(Deploy(site, options.fail, options.hang))
        finally:
            stop_site(site)


if __name__ == "__main__":
    sys.exit(command())
