"""What the tests are written in: short builders of processors, and a record of what happened."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import sysconfig
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NoReturn

import pytest

from sdax import (
    AsyncDagTaskProcessor,
    AsyncTask,
    AsyncTaskProcessor,
    RunReport,
    SdaxExecutionError,
    State,
    TaskFunction,
)

Function = Callable[[Any], Any]
Phase = Function | TaskFunction[Any] | None

# For tests of what a loop's task factory rightly changes: it may start functions later, and
# every one gets an asyncio.Task of its own.
without_factory = pytest.mark.loop_kinds("asyncio", "debug", "eager", "uvloop")

# For tests of what no kind of loop can change.
one_loop = pytest.mark.loop_kinds("asyncio")

COUNTS_REFERENCES = hasattr(sys, "getrefcount")


def can_freeze() -> bool:
    """Whether `gc.freeze()` may be called.

    PyPy has none. Free-threaded builds of Python 3.13.0 crash after it
    (https://github.com/python/cpython/issues/126312).
    """
    is_free_threaded = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
    return hasattr(gc, "freeze") and not (is_free_threaded and sys.version_info < (3, 13, 1))


# For tests of what is gone as soon as nobody refers to it, and of what a reference counts for.
counts_references = pytest.mark.skipif(
    not COUNTS_REFERENCES, reason="this Python does not count references"
)

# For functions that do what is tested before and after their first suspension: so many passes of
# the loop.
soon_or_late = pytest.mark.parametrize("number", [0, 1], ids=["at once", "suspended"])

# For functions that the engine calls in two ways.
bare_or_limited = pytest.mark.parametrize(
    "limits", [{}, {"timeout": 60.0, "retries": 1}], ids=["bare", "limited"]
)


def amount(quick: int, thorough: int) -> int:
    """How many of something a test takes: few in the suite, and many in `make proof`."""
    return thorough if os.environ.get("SDAX_THOROUGH") else quick


# Which part of a search the suite makes here. Each Python makes another.
TURN = sys.version_info.minor


PHASES = ("pre_execute", "execute", "post_execute")

var: ContextVar[str] = ContextVar("var", default="unset")


class Broken(Exception):
    """What functions raise that are to fail; nobody retries it, unless asked to."""


def task(
    name: Any,
    pre: Phase = None,
    execute: Phase = None,
    post: Phase = None,
    *,
    required: bool = True,
) -> AsyncTask[Any, Any]:
    """A task of plain functions, or of `TaskFunction`s where limits matter."""
    phases = (_task_function(phase) for phase in (pre, execute, post))
    return AsyncTask(name, *phases, required=required)


def _task_function(phase: Phase) -> TaskFunction[Any] | None:
    return phase if phase is None or isinstance(phase, TaskFunction) else TaskFunction(phase)


def task_in(
    phase: str, function: Phase, *, name: Any = "A", post: Phase = None
) -> AsyncTask[Any, Any]:
    """A task with this function in this phase, and, in the other phases, at most a cleanup."""
    phases = {"post_execute": _task_function(post)} if post else {}
    return AsyncTask(name, **{**phases, phase: _task_function(function)})


def build(*levels: Iterable[AsyncTask[Any, Any]], **options: Any) -> AsyncTaskProcessor[Any, Any]:
    """A processor of levels 1, 2, 3 ..., each given as its tasks."""
    builder = AsyncTaskProcessor.builder(**options)
    for level, tasks in enumerate(levels, 1):
        for member in tasks:
            builder.add_task(member, level)
    return builder.build()


def solo(pre: Phase = None, execute: Phase = None, post: Phase = None) -> Any:
    """A processor of the task "A" alone."""
    return build([task("A", pre, execute, post)])


def graph(*added: tuple[Any, Iterable[Any]] | AsyncTask[Any, Any], **options: Any) -> Any:
    """A processor of tasks in a graph, each alone or with what it depends on."""
    builder = AsyncDagTaskProcessor.builder(**options)
    for each in added:
        builder.add_task(*(each if isinstance(each, tuple) else (each,)))
    return builder.build()


def crooked(*tasks: AsyncTask[Any, Any], **options: Any) -> Any:
    """A chain that is no sequence of levels, for each task depends on the last two."""
    names = [each.name for each in tasks]
    return graph(
        *((each, names[max(0, i - 2) : i]) for i, each in enumerate(tasks)),
        (task("bystander", execute=nothing), names[:1]),
        **options,
    )


def current() -> asyncio.Task[Any]:
    """The `asyncio.Task` that runs: there is one."""
    running = asyncio.current_task()
    assert running is not None
    return running


@contextmanager
def without_collector() -> Iterator[None]:
    """Switch the garbage collector off, when it has taken what there is: cycles stay."""
    gc.collect()
    if can_freeze():
        gc.freeze()  # so that the collections that follow need not look through it again
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


async def failure_of(
    processor: AsyncTaskProcessor[Any, Any], ctx: Any = None
) -> SdaxExecutionError:
    """Run a processor that must fail."""
    with pytest.raises(SdaxExecutionError) as caught:
        await processor.process_tasks(ctx)
    error = caught.value
    assert current().cancelling() == 0
    return error


async def error_of(awaitable: Awaitable[Any]) -> BaseException | None:
    """Await, and return what was raised, if anything."""
    try:
        await awaitable
    except BaseException as error:
        return error
    return None


def spawn(processor: AsyncTaskProcessor[Any, Any], ctx: Any = None) -> asyncio.Task[RunReport[Any]]:
    """Start a run in an `asyncio.Task` that may be cancelled."""
    return asyncio.get_running_loop().create_task(processor.process_tasks(ctx))


async def until(condition: Callable[[], Any]) -> None:
    """Let others run until the condition holds."""
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("what was waited for never came")


async def passes(number: int) -> None:
    """Let the loop pass so many times."""
    for _ in range(number):
        await asyncio.sleep(0)


async def forever(ctx: Any = None) -> NoReturn:
    """Wait for what never comes."""
    await asyncio.get_running_loop().create_future()
    raise AssertionError


async def nothing(ctx: Any) -> None:
    """Return at once."""


def before(trace: list[str], *labels: str) -> bool:
    """Tell whether the labels are in the trace, in this order."""
    places = [trace.index(label) for label in labels]
    return places == sorted(places)


def states(report: RunReport[Any] | None) -> dict[Any, str]:
    """What became of each task, as letters, a phase each: see `LETTERS`."""
    assert report is not None
    return {
        name: "".join(LETTERS[phase.state] for phase in phases) for name, phases in report.items()
    }


LETTERS = {
    State.SUCCEEDED: "+",
    State.FAILED: "F",
    State.TIMED_OUT: "T",
    State.CANCELLED: "C",
    State.SKIPPED: "s",
    State.ABSENT: "-",
}


class Trace(list[str]):
    """The events of a run in order, and functions that write them.

    Each function writes its label when it is called.
    """

    def quick(self, label: str, value: Any = None) -> Function:
        """Return at once."""

        async def function(ctx: Any) -> Any:
            self.append(label)
            return value

        return function

    def pausing(self, label: str, number: int = 1, value: Any = None) -> Function:
        """Suspend for so many passes of the loop, write "<label> done" and return."""

        async def function(ctx: Any) -> Any:
            self.append(label)
            await passes(number)
            self.append(f"{label} done")
            return value

        return function

    def failing(self, label: str, error: BaseException, number: int = 0) -> Function:
        """Raise, after so many passes of the loop."""

        async def function(ctx: Any) -> None:
            self.append(label)
            await passes(number)
            raise error

        return function

    def waiting(self, label: str, event: asyncio.Event | None = None) -> Function:
        """Wait for the event, or for ever, and write "<label> done" or "<label> cancelled"."""

        async def function(ctx: Any) -> None:
            self.append(label)
            try:
                await (event.wait() if event else forever())
            except asyncio.CancelledError:
                self.append(f"{label} cancelled")
                raise
            self.append(f"{label} done")

        return function

    def stubborn(self, label: str, value: Any = None) -> Function:
        """Wait for ever; swallow the cancellation and return."""

        async def function(ctx: Any) -> Any:
            self.append(label)
            try:
                await forever()
            except asyncio.CancelledError:
                self.append(f"{label} swallowed")
            return value

        return function

    def spiteful(self, label: str, error: BaseException) -> Function:
        """Wait for ever; answer the cancellation with another exception."""

        async def function(ctx: Any) -> None:
            self.append(label)
            try:
                await forever()
            except asyncio.CancelledError:
                raise error from None

        return function

    def holding(self, label: str, number: int = 0, value: Any = None) -> Any:
        """Be a resource, which suspends for so many passes of the loop in each half.

        It writes "<label> up", then "<label> ok", or the class of what is raised at the `yield`,
        which it lets through, and "<label> down" at last.
        """

        async def function(ctx: Any) -> AsyncIterator[Any]:
            self.append(f"{label} up")
            await passes(number)
            try:
                yield value
                self.append(f"{label} ok")
            except BaseException as error:
                self.append(f"{label} {type(error).__name__}")
                raise
            finally:
                await passes(number)
                self.append(f"{label} down")

        return function

    def task(self, name: str, phases: str = "pre execute post", number: int = 0) -> Any:
        """A task whose functions, in these phases, suspend for so many passes of the loop."""
        make = self.pausing if number else lambda label, _: self.quick(label)
        return task(name, **{phase: make(f"{name}.{phase}", number) for phase in phases.split()})
