"""Builders and the processors that they build."""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import Hashable
from typing import Any, Generic, TypeVar

from frozendict import frozendict

from ._impl import Run
from .errors import SdaxExecutionError
from .plan import Plan, plan_levels
from .report import RunReport
from .tasks import AsyncTask

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)


class AsyncTaskProcessor(Generic[T, K]):
    """Tasks in levels, ready to run: immutable, and shared by as many runs as one likes.

    Made by its builder:

    >>> processor = AsyncTaskProcessor.builder().add_task(task, level=1).build()
    >>> report = await processor.process_tasks(ctx)

    `levels` maps each level to its tasks, in the order in which they were added.
    """

    __slots__ = ("_added", "_plan", "levels")

    levels: frozendict[int, tuple[AsyncTask[T, K], ...]]
    _added: tuple[tuple[AsyncTask[T, K], int], ...]
    _plan: Plan

    def __init__(self, added: tuple[tuple[AsyncTask[T, K], int], ...]) -> None:
        members: dict[int, list[int]] = {}
        for index, (_, level) in enumerate(added):
            members.setdefault(level, []).append(index)
        tasks = [task for task, _ in added]
        levels = {
            level: tuple(tasks[index] for index in members[level]) for level in sorted(members)
        }
        set_once = super().__setattr__
        set_once("levels", frozendict(levels))
        set_once("_added", added)
        set_once("_plan", plan_levels(members, tasks))

    @staticmethod
    def builder() -> AsyncTaskProcessorBuilder[Any, Any]:
        """Return an empty builder."""
        return AsyncTaskProcessorBuilder()

    async def process_tasks(self, ctx: T) -> RunReport[K]:
        """Run every task once with `ctx`, and return the report of the run.

        `pre_execute` goes level by level upwards, then all of `execute` at once, then
        `post_execute` level by level downwards, for every task that started, whatever happened.

        Raises `SdaxExecutionError` after the last cleanup if anything failed, and
        `asyncio.CancelledError` after the last cleanup if the caller was cancelled.

        >>> report = await processor.process_tasks(RequestContext(user_id=7))
        """
        run = Run(self._plan, ctx)
        interruption = None if run.start() else await _until_over(run)
        if run.record is None and interruption is None:
            return RunReport(self._plan, run.values, None)
        try:
            if run.record is not None:
                report: RunReport[K] = RunReport(self._plan, run.values, run.record.phases)
                try:
                    run.record.raise_failures(report)
                except SdaxExecutionError as error:
                    if interruption is None:
                        raise
                    run.loop.call_exception_handler(
                        {
                            "message": "sdax: a run that was cancelled had failures as well",
                            "exception": error,
                        }
                    )
                    raise interruption
            if interruption is not None:
                raise interruption
            return report
        finally:
            # What was raised leads here by its traceback: no name may lead back.
            del run, interruption

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is immutable: cannot set {name!r}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__} is immutable: cannot delete {name!r}")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._added,)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, AsyncTaskProcessor):
            return NotImplemented
        return self._added == other._added

    def __hash__(self) -> int:
        return hash(self._added)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {len(self._added)} tasks, {len(self.levels)} levels>"


async def _until_over(run: Run) -> BaseException | None:
    """Wait for a run to end, whatever comes meanwhile; return what came first."""
    interruption: BaseException | None = None
    try:
        while not run.over:
            run.waiter = run.loop.create_future()
            try:
                await run.waiter
            except GeneratorExit:
                # Nothing can be awaited any more: the run cleans up on its own.
                run.cancel()
                raise
            except BaseException as exception:
                run.cancel()
                if interruption is None:
                    interruption = exception
        return interruption
    finally:
        interruption = None


class AsyncTaskProcessorBuilder(Generic[T, K]):
    """Collects tasks and their levels; `build()` makes a processor of what it has by then."""

    def __init__(self) -> None:
        self._added: dict[K, tuple[AsyncTask[T, K], int]] = {}

    def add_task(self, task: AsyncTask[T, K], level: int) -> AsyncTaskProcessorBuilder[T, K]:
        """Add a task at a level (any integer; lower levels start first) and return the builder.

        Raises `TypeError` for a task that is no `AsyncTask` or a level that is no integer, and
        `ValueError` for a name that is already taken.

        >>> builder.add_task(AsyncTask("Auth", pre_execute=TaskFunction(check)), level=1)
        """
        if not isinstance(task, AsyncTask):
            raise TypeError(f"add_task: task must be an AsyncTask, got {task!r}")
        if isinstance(level, bool) or not isinstance(level, int):
            raise TypeError(
                f"add_task: level of task {task.name!r} must be an integer, got {level!r}"
            )
        if task.name in self._added:
            taken = self._added[task.name][1]
            raise ValueError(
                f"add_task: there is a task named {task.name!r} already, at level {taken}; "
                f"names must be unique in a processor"
            )
        self._added[task.name] = (task, level)
        return self

    def build(self) -> AsyncTaskProcessor[T, K]:
        """Make an immutable processor of the tasks added so far."""
        return AsyncTaskProcessor(tuple(self._added.values()))
