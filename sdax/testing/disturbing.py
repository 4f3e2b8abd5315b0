"""Processors with a fault, for ordinary tests."""

from __future__ import annotations

import asyncio
from typing import Any, Final, TypeVar

from ..common.generic import K, T
from ..common.text import nearest, shown
from ..events import Observers
from ..phases import AsyncPhaseRunner
from ..processor import AsyncDagTaskProcessor, AsyncTaskProcessor, TaskProcessor
from ..report import RunReport
from .driven import driven
from .driving import COURSE, Course
from .player import tasks_of
from .points import Schedule, functions_of, parsed


class NotReachedError(LookupError):
    """A run ended without reaching a named point. The message suggests similar points."""


P = TypeVar("P", bound=TaskProcessor[Any, Any])


def disturbed(processor: P, faults: str) -> P:
    """Return a processor that has one or more faults in every run.

    `faults` is the text of a finding of `explore`: task, phase, attempt, place and fault, as in
    `"Flags.pre_execute#1@call:fail"`. The place is `call`, `return` or the number of an await: `2`
    while it waits, `2+` when it has its result. The faults are

    - `fail`: an exception that is retried, or a `ConnectionError` if the function has no retries;
    - `fail always`: the same, in each further attempt;
    - `fail unexpectedly`: an exception that is not retried;
    - `hang`: the await never ends;
    - `cancel`: the caller is cancelled;
    - `interrupt`: `KeyboardInterrupt`.

    Raises `ValueError` for a function that does not exist, with similar names. A run that succeeds
    without reaching the place raises `NotReachedError`, because the test would prove nothing.

    >>> down = disturbed(checkout, "Flags.pre_execute#1@call:fail always")
    >>> with pytest.raises(SdaxExecutionError):
    ...     run(down.process_tasks(new_request()))
    """
    for kind, disturbed_kind in _KINDS:
        if isinstance(processor, kind):
            tasks = tasks_of(processor)
            schedule = parsed(faults, functions_of(tasks))
            made: Any = disturbed_kind.of(processor.replaced(driven(tasks)), schedule)
            return made  # type: ignore[no-any-return]
    raise TypeError(f"disturbed takes a processor, got {shown(processor)}")


class _Disturbed(TaskProcessor[T, K]):
    """A processor whose functions are driven, with the schedule of each run."""

    __slots__ = ()

    _schedule: Schedule

    def __init__(self, added: Any, schedule: Schedule, *rest: Any) -> None:
        super().__init__(added, *rest)  # type: ignore[call-arg]
        self._set_once(_schedule=schedule)

    @classmethod
    def of(cls, processor: TaskProcessor[T, K], schedule: Schedule) -> Any:
        """Disturb a processor."""
        added, *rest = processor._identity()
        return cls(added, schedule, *rest)

    def _identity(self) -> tuple[Any, ...]:
        added, *rest = super()._identity()
        return added, self._schedule, *rest

    async def process_tasks(self, ctx: T, *, observer: Observers | None = None) -> RunReport[K]:
        """Run every task once with `ctx`, disturbed. See `TaskProcessor.process_tasks`."""
        course = Course(asyncio.get_running_loop(), self._schedule)
        token = course.begin()
        try:
            report = await super().process_tasks(ctx, observer=observer)
        finally:
            COURSE.reset(token)
        check_reached(course)
        return report

    def open(self, ctx: T, *, observer: Observers | None = None) -> AsyncPhaseRunner[T, K]:
        """Go through a disturbed run phase by phase. See `TaskProcessor.open`."""
        runner = super().open(ctx, observer=observer)
        return _DisturbedRunner(runner, self._schedule)


class _DisturbedTaskProcessor(_Disturbed[T, K], AsyncTaskProcessor[T, K]):
    __slots__ = ("_schedule",)


class _DisturbedDagTaskProcessor(_Disturbed[T, K], AsyncDagTaskProcessor[T, K]):
    __slots__ = ("_schedule",)


class _DisturbedRunner(AsyncPhaseRunner[T, K]):
    """A run phase by phase whose functions are driven."""

    def __init__(self, runner: AsyncPhaseRunner[T, K], schedule: Schedule) -> None:
        super().__init__(runner.ctx, runner._make_run)
        self._schedule = schedule
        self._course: Course | None = None

    async def run_next(self) -> bool:
        """Run the next phase completely. See `AsyncPhaseRunner.run_next`."""
        if self._course is None:
            self._course = Course(asyncio.get_running_loop(), self._schedule)
        token = self._course.begin()  # functions see the variables of the run's start
        try:
            return await super().run_next()
        finally:
            COURSE.reset(token)

    async def _close(self, body: BaseException | None) -> None:
        await super()._close(body)
        if body is None and self._course is not None:
            check_reached(self._course)


_KINDS: Final[Any] = (
    (AsyncTaskProcessor, _DisturbedTaskProcessor),
    (AsyncDagTaskProcessor, _DisturbedDagTaskProcessor),
)


def check_reached(course: Course) -> None:
    """Raise `NotReachedError` if a run succeeded without its disturbances."""
    for point in course.missed():
        points = list(map(str, course.points()))
        raise NotReachedError(f"the run never came to {point}{nearest(str(point), points)}")
