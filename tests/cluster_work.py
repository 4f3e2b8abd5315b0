"""Workflows for workers in other processes: functions that these can import."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NoReturn

from sdax import AsyncTask, AsyncTaskProcessor, TaskFunction

POOL_FOLDER = "SDAX_TEST_POOL_FOLDER"  # an environment variable


class Unpicklable(Exception):
    """An exception that cannot be pickled."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock = threading.Lock()


class Unloadable(Exception):
    """An exception that can be pickled, and not be loaded."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{code} {reason}")


class Interrupt(BaseException):
    """What is not an `Exception`."""


async def fetch(ctx: Any) -> int:
    await asyncio.sleep(0.001)
    return os.getpid()


async def square(ctx: Any) -> Any:
    await asyncio.sleep(0.001)
    return ctx * ctx


async def release(ctx: Any) -> None:
    await asyncio.sleep(0)


def squared(ctx: Any, report: Any) -> Any:
    return report["Square"].execute.value


def squares() -> Any:
    """Two levels, with the square of the input as a value, and the worker's process."""
    builder = AsyncTaskProcessor[int].builder()
    builder.add_task(AsyncTask("Fetch", TaskFunction(fetch), None, TaskFunction(release)), 1)
    builder.add_task(AsyncTask("Square", execute=TaskFunction(square)), 2)
    return builder.build()


def one(function: Any, cleanup: Any = None) -> Any:
    """A processor of one task."""
    post = None if cleanup is None else TaskFunction(cleanup)
    made = AsyncTask("A", execute=TaskFunction(function), post_execute=post)
    return AsyncTaskProcessor[Any].builder().add_task(made, 1).build()


async def act(ctx: Any) -> Any:
    """Do what the input says."""
    match ctx:
        case "unpicklable value":
            return threading.Lock()
        case "unpicklable error":
            raise Unpicklable("no copies")
        case "unloadable error":
            raise Unloadable(404, "gone")
        case "error":
            error = ValueError("bad input")
            error.add_note("look again")
            raise error
        case "interrupt":
            raise Interrupt("stop")
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case _:
            await asyncio.sleep(0.001)
    return ctx


async def act_in_pool(ctx: tuple[Any, str]) -> Any:
    """Do the same; return which worker did it as well."""
    item, worker = ctx
    return await act(item), worker


def acted(ctx: Any, report: Any) -> Any:
    return report["A"].execute.value


ACTING = one(act)


class Files:
    """A context that writes down in files what becomes of it."""

    def __init__(self, folder: str, number: int) -> None:
        self.folder = Path(folder)
        self.number = number

    def note(self, what: str) -> None:
        with (self.folder / f"{what}-{self.number}").open("a") as file:
            file.write(f"{os.getpid()}\n")


def make_files(item: tuple[str, int]) -> Files:
    return Files(*item)


def number_of(files: Files, report: Any) -> int:
    return files.number


async def begin_and_wait(files: Files) -> NoReturn:
    files.note("begun")
    await asyncio.get_running_loop().create_future()
    raise AssertionError


async def wait_for_go(files: Files) -> int:
    """Return when there is a file "go"."""
    files.note("begun")
    while not (files.folder / "go").exists():  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    return files.number


async def block_until_go(files: Files) -> int:
    """The same, and block the event loop meanwhile."""
    files.note("begun")
    while not (files.folder / "go").exists():
        time.sleep(0.005)  # noqa: ASYNC251
    return files.number


async def clean_up(files: Files) -> None:
    await asyncio.sleep(0.02)
    files.note("cleaned")


WAITING = one(begin_and_wait, clean_up)


@asynccontextmanager
async def pool() -> AsyncIterator[str]:
    """Resources of a worker: which process has entered them."""
    yield f"pool of {os.getpid()}"


@asynccontextmanager
async def noted_pool() -> AsyncIterator[str]:
    """The same, written down in the folder that an environment variable names."""
    path = Path(os.environ[POOL_FOLDER]) / f"pool-{os.getpid()}"
    path.write_text(path.read_text() + "opened\n" if path.exists() else "opened\n")
    yield str(os.getpid())
    path.write_text(path.read_text() + "closed\n")


@asynccontextmanager
async def broken_pool() -> AsyncIterator[str]:
    raise ConnectionError("no pool today")
    yield ""


@asynccontextmanager
async def cancelled_pool() -> AsyncIterator[str]:
    raise asyncio.CancelledError
    yield ""


@asynccontextmanager
async def pool_that_breaks_at_the_end() -> AsyncIterator[str]:
    yield ""
    raise ConnectionError("no goodbye")


@asynccontextmanager
async def pool_that_never_opens() -> AsyncIterator[str]:
    """Resources of which is written down that they begin and end to open."""
    files = Files(os.environ[POOL_FOLDER], os.getpid())
    files.note("opening")
    try:
        await asyncio.get_running_loop().create_future()
        yield ""
    finally:
        await asyncio.sleep(0)
        files.note("given up")


def with_pool(item: Any, resources: str) -> tuple[Any, str]:
    return item, resources


async def keep(ctx: Any) -> Any:
    return ctx


def kept(ctx: Any, report: Any) -> Any:
    return ctx


def forever() -> Iterator[int]:
    """Inputs without an end."""
    number = 0
    while True:
        yield number
        number += 1


def noted(folder: Path, what: str) -> list[int]:
    """The numbers of the inputs of which this was written down."""
    found = [path.name.rpartition("-") for path in folder.iterdir()]
    return sorted(int(number) for begin, _, number in found if begin == what)


async def until_noted(folder: Path, what: str, count: int = 1) -> None:
    """Wait until this was written down of so many inputs."""
    while len(noted(folder, what)) < count:  # noqa: ASYNC110
        await asyncio.sleep(0.01)


def play(scenario: Any, *arguments: Any) -> Any:
    """Run an async function that must end, on a machine that may be busy."""

    async def watched() -> Any:
        async with asyncio.timeout(120):
            return await scenario(*arguments)

    return asyncio.run(watched())
