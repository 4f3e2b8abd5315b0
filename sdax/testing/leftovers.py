"""Leftovers of a run: tasks, timers, generators, resources and unseen exceptions."""

from __future__ import annotations

import asyncio
import gc
import sys
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from types import AsyncGeneratorType, TracebackType
from typing import Any, Final, Self, TextIO, TypeAlias
from weakref import ref

from ..common.text import one_line, shown
from .frames import awaiting, of_user

_CLOSING: Final = "async_generator_athrow"

AsyncGenerator: TypeAlias = AsyncGeneratorType[Any, Any]


class Leftovers:
    """Records everything that begins inside its block, and finds what is left of it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._tasks = asyncio.all_tasks(loop)
        # If others than the run can set timers, the owner of a timer is unknown.
        self._may_set_timers = len(self._tasks) > 1 or bool(timers_of(loop))
        self._generators: list[ref[AsyncGenerator]] = []
        self._dropped: list[str] = []
        self._hooks = sys.get_asyncgen_hooks()

    def __enter__(self) -> Self:
        sys.set_asyncgen_hooks(self._begun, self._finalized)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        sys.set_asyncgen_hooks(*self._hooks)

    def _begun(self, generator: Any) -> None:
        self._generators.append(ref(generator))
        if self._hooks.firstiter is not None:
            self._hooks.firstiter(generator)

    def _finalized(self, generator: Any) -> None:
        self._dropped.append(_of_generator(generator))
        if self._hooks.finalizer is not None:
            self._hooks.finalizer(generator)

    def tasks(self) -> list[asyncio.Task[Any]]:
        """Return the tasks that began meanwhile and have not ended."""
        current = asyncio.current_task(self.loop)
        return [
            task
            for task in asyncio.all_tasks(self.loop)
            if task not in self._tasks and task is not current
        ]

    def found(self) -> list[str]:
        """Return a sentence about each leftover."""
        left = [f"an async generator was dropped unfinished: {each}" for each in self._dropped]
        for generator in filter(None, (reference() for reference in self._generators)):
            if generator.ag_frame is not None and not generator.ag_running:
                left.append(f"an async generator is left unfinished: {_of_generator(generator)}")
        tasks = self.tasks()
        left += [
            f"an asyncio.Task is left: {_of_task(task)}"
            for task in sorted(tasks, key=lambda task: task.get_name())
            if type(task.get_coro()).__name__ != _CLOSING  # of a dropped generator
        ]
        if not (tasks or self._may_set_timers):
            left += [f"a timer is left: {shown(timer)}" for timer in timers_of(self.loop)]
        return left


def timers_of(loop: asyncio.AbstractEventLoop) -> list[asyncio.TimerHandle]:
    """Return the active timers of a loop, or none for other kinds of loops."""
    return [timer for timer in getattr(loop, "_scheduled", ()) if not timer.cancelled()]


def _of_task(task: asyncio.Task[Any]) -> str:
    places = of_user(awaiting(task.get_coro()))
    where = f", which waits at {places[-1]}" if places else ""
    return f"{one_line(task.get_name())}{where}"


def _of_generator(generator: AsyncGenerator) -> str:
    frame = generator.ag_frame
    where = "" if frame is None else f" ({', '.join(map(str, of_user([frame])))})"
    return f"{generator.__qualname__}{where}"


class Complaints:
    """Collects Python's complaints about dropped objects, instead of printing them."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def handle(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Handle an error, as a loop's exception handler."""
        message = str(context.get("message"))
        if message.startswith("sdax: "):
            return  # failures of a cancelled run are not mistakes
        exception = context.get("exception")
        what = "" if exception is None else f": {type(exception).__name__}: {exception}"
        self.heard.append(f"{message}{what}")

    @contextmanager
    def listening(self) -> Generator[None, None, None]:
        """Collect each `ResourceWarning`, and no other warning."""
        with warnings.catch_warnings():
            show = warnings.showwarning

            def hear(
                message: Warning | str,
                category: type[Warning],
                filename: str,
                lineno: int,
                file: TextIO | None = None,
                line: str | None = None,
            ) -> None:
                if issubclass(category, ResourceWarning):
                    self.heard.append(f"ResourceWarning: {message}")
                else:
                    show(message, category, filename, lineno, file, line)

            warnings.showwarning = hear
            warnings.simplefilter("always", ResourceWarning)
            yield

    def taken(self) -> list[str]:
        """Drop everything that can be dropped, and return the complaints since the last call."""
        gc.collect(0)
        heard, self.heard = self.heard, []
        return heard


@contextmanager
def without_collector() -> Generator[None, None, None]:
    """Keep the garbage collector from running by itself, so that objects of a run stay young."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
