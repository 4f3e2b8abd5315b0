"""The reference model: what the contract says, on plain asyncio, slow and obvious.

Every function gets an `asyncio.Task` from `create_task`, every timeout is an
`asyncio.timeout()`, every delay before a retry an `asyncio.sleep()`. Nothing of the engines is
used, only what describes tasks, reports and errors.
"""

from __future__ import annotations

import asyncio
import inspect
import math
from asyncio import CancelledError
from collections.abc import AsyncGenerator, Coroutine, Hashable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from contextvars import Context, ContextVar, copy_context
from typing import Any, NamedTuple

import anyio

from exceptions import is_cancellation
from sdax import (
    AsyncTask,
    Finish,
    SdaxExecutionError,
    SdaxTaskGroup,
    TaskCancelledError,
    TaskFailure,
    TaskFunction,
    flatten_exceptions,
)
from sdax.functions import ResourceCleanUp, ResourceSetUp
from sdax.states import PhaseReport, State, TaskReport

PRE, EXECUTE, POST = PHASES = ("pre_execute", "execute", "post_execute")


class Report(dict[Hashable, TaskReport]):
    """What became of each task, and who ended the run early, by returning `Finish`."""

    finished_by: Hashable | None = None


class Ending(NamedTuple):
    """How the last attempt at a function ended."""

    attempts: int
    value: Any = None
    error: BaseException | None = None
    timed_out: bool = False
    waiting: bool = False  # for the next attempt, when it was cancelled
    earlier: tuple[Any, ...] = ()  # what the attempts before raised
    covered: Exception | None = None  # what the last attempt raised, if this is the fallback


Graph = Mapping[str, Iterable[Hashable]]  # what each task depends on


class Held:
    """A resource, from the call of its function to the end of its cleanup."""

    def __init__(self) -> None:
        future = asyncio.get_running_loop().create_future
        self.is_set_up: asyncio.Future[None] = future()  # or has failed to be
        self.turn: asyncio.Future[None] = future()
        self.is_cleaned_up: asyncio.Future[None] = future()
        self.body: AsyncGenerator[Any, None] | None = None
        self.is_due = False  # to be cleaned up
        self.is_broken = False
        self.thrown: BaseException | None = None
        self.before = Context()
        self.changes: dict[ContextVar[Any], Any] = {}


class Reference:
    """A processor for one run: `process_tasks(ctx)` returns or raises what the contract says.

    Tasks are in levels; where there is a graph, that counts, and the levels do not. Either orders
    `execute` too, if that is to be. A run that keeps going is stopped by no failure.

    `failed_at` has the time at which each function failed, by task name and phase: where two
    failed at the same time, the contract does not say which comes first.
    """

    def __init__(
        self,
        added: Iterable[tuple[AsyncTask[Any, Any], int]],
        random_factor: float,
        graph: Graph | None = None,
        execute_in_order: bool = False,
        keeps_going: bool = False,
    ) -> None:
        self.added = list(added)
        self.graph = graph
        self.execute_in_order = execute_in_order
        self.keeps_going = keeps_going
        self.broken = False  # in a run that keeps going: a task of this phase has failed
        self.finished_by: Hashable | None = None
        self.closed: list[AsyncTask[Any, Any]] = []  # in a phase of a graph: waits for others
        self.done: set[Hashable] = set()  # and those which nobody need wait for any more
        self.waits_for: dict[Hashable, set[Hashable]] = {}
        self.unfinished: set[asyncio.Future[None]] = set()
        self.variables = Context()
        self.held: dict[Hashable, Held] = {}
        self.caller: asyncio.Task[Any] | None = None
        self.random_factor = random_factor
        self.failed_at: dict[tuple[Hashable, str], float] = {}
        self.failures: list[TaskFailure] = []
        self.fatal: BaseException | None = None
        self.surplus: list[BaseException] = []  # fatal too, but not the first
        self.interruption: CancelledError | None = None
        self.phase = PRE
        self.stopped = False  # nothing more of pre_execute and execute is called
        self.running: set[asyncio.Task[None]] = set()
        self.started: set[Hashable] = set()
        self.reports = {
            (task.name, phase): PhaseReport(State.SKIPPED if has(task, phase) else State.ABSENT)
            for task, _ in self.added
            for phase in PHASES
        }

    async def process_tasks(self, ctx: Any) -> Report:
        self.variables = copy_context()
        self.caller = asyncio.current_task()
        if self.graph is not None:
            return await self.process_graph(self.graph, ctx)
        levels = sorted({level for _, level in self.added})
        for level in levels:
            if not self.stopped and not self.broken:
                members = self.members(level)
                # Those with a pre_execute start when that is called, see run_function().
                self.started.update(task.name for task in members if not has(task, PRE))
                await self.run_phase(PRE, members, ctx)
        self.broken = False
        together = [self.members(level) for level in levels]
        if not self.execute_in_order:
            together = [[task for task, _ in self.added]]
        for members in together:
            if not self.stopped and not self.broken:
                await self.run_phase(EXECUTE, list(filter(self.is_prepared, members)), ctx)
        for level in reversed(levels):
            await self.run_phase(POST, list(filter(self.is_to_clean_up, self.members(level))), ctx)
        return self.result()

    async def process_graph(self, graph: Graph, ctx: Any) -> Report:
        tasks = [task for task, _ in self.added]
        upwards = {task.name: set(graph[task.name]) for task in tasks}
        downwards = {
            task.name: {other for other, names in upwards.items() if task.name in names}
            for task in tasks
        }
        await self.run_graph(PRE, upwards, ctx)
        if not self.stopped:
            if self.execute_in_order:
                await self.run_graph(EXECUTE, upwards, ctx)
            else:
                await self.run_phase(EXECUTE, list(filter(self.is_prepared, tasks)), ctx)
        await self.run_graph(POST, downwards, ctx)
        return self.result()

    async def run_graph(
        self, phase: str, waits_for: dict[Hashable, set[Hashable]], ctx: Any
    ) -> None:
        self.phase = phase
        self.waits_for = waits_for
        self.closed = [task for task, _ in self.added]
        self.done = set()
        self.unfinished = set()
        self.open(ctx)
        while self.unfinished:
            try:
                with self.shield():
                    await asyncio.wait(self.unfinished, return_when=asyncio.FIRST_COMPLETED)
            except CancelledError as error:
                self.interruption = self.interruption or error
                self.stop()
            self.unfinished = {task for task in self.unfinished if not task.done()}
        self.closed = []

    def open(self, ctx: Any) -> None:
        """Call whatever waits for nothing any more, in the order of adding."""
        opened = []
        before = None
        while before != len(self.done):  # who has nothing to do may let others go on
            before = len(self.done)
            for task in [*self.closed]:
                if self.waits_for[task.name] <= self.done:
                    self.closed.remove(task)
                    if self.phase == PRE and not has(task, PRE):
                        self.started.add(task.name)
                    due = {
                        PRE: True,
                        EXECUTE: self.is_prepared(task),
                        POST: self.is_to_clean_up(task),
                    }
                    if has(task, self.phase) and due[self.phase]:
                        opened.append(task)
                    else:
                        self.done.add(task.name)
        for task, _ in self.added:
            if task in opened:
                self.unfinished.add(self.begin(task, ctx, create_lazy_task))

    def begin(self, task: AsyncTask[Any, Any], ctx: Any, create_task: Any) -> asyncio.Future[None]:
        """Make an `asyncio.Task` for a function, and return what is done when that has ended."""
        if is_resource(task) and self.phase == POST:
            return self.let_go(self.held[task.name])
        if is_resource(task) and self.phase == PRE:
            self.held.setdefault(task.name, Held())
        created: asyncio.Task[None] = create_task(
            self.run_function(task, ctx),
            name=f"sdax:{task.name}:{self.phase}",
            context=self.context_of(task),
        )
        if is_resource(task) and self.phase == PRE:
            return self.held[task.name].is_set_up
        return created

    def is_to_clean_up(self, task: AsyncTask[Any, Any]) -> bool:
        if is_resource(task):
            return task.name in self.held and self.held[task.name].is_due
        return task.name in self.started

    # Resources.

    def context_of(self, task: AsyncTask[Any, Any]) -> Context:
        """Return the context of a function: it sees what the resources have set that it waited
        for, and `execute` what all of them have."""
        context = self.variables.copy()
        left = [other for other, _ in self.added if other.name in self.held]
        while left:
            first = next(one for one in left if not any(self.waits(one, other) for other in left))
            left.remove(first)
            if self.phase == EXECUTE or self.waits(task, first):
                for variable, value in self.held[first.name].changes.items():
                    context.run(variable.set, value)
        return context

    def waits(self, task: AsyncTask[Any, Any], other: AsyncTask[Any, Any]) -> bool:
        """Return True if the `pre_execute` of a task comes after that of another task."""
        if self.graph is None:
            levels = {each.name: level for each, level in self.added}
            return levels[other.name] < levels[task.name]
        names = set(self.graph[task.name])
        while more := {each for name in names for each in self.graph[name]} - names:  # type: ignore[index]
            names |= more
        return other.name in names

    async def set_up(self, task: AsyncTask[Any, Any], ctx: Any) -> Any:
        held = self.held.setdefault(task.name, Held())
        if held.body is None:
            held.before = copy_context()
        held.body = task.pre_execute.function.function(ctx)  # type: ignore[union-attr]
        value = await held.body.__anext__()  # type: ignore[union-attr]
        before = held.before
        held.changes = {
            variable: other
            for variable, other in copy_context().items()
            if variable not in before or before[variable] is not other
        }
        return value

    def let_go(self, held: Held) -> asyncio.Future[None]:
        """Let a resource go on from its `yield`, unless it is being cleaned up already."""
        if not held.turn.done():
            held.turn.set_result(None)
        return held.is_cleaned_up

    def so_far(self) -> BaseException | None:
        """Return what a resource is told of the run."""
        failure: BaseException | None = None
        if self.failures:
            failure = SdaxExecutionError.from_failures(self.failures, None)  # type: ignore[arg-type]
        assert self.caller is not None
        is_cancelled = self.interruption is not None or self.caller.cancelling()
        if self.fatal is not None or is_cancelled:
            cancellation = CancelledError()
            cancellation.__context__ = failure
            failure = cancellation
        return failure

    async def hold(self, task: AsyncTask[Any, Any], ctx: Any) -> None:
        """Hold a resource that is set up, and clean it up: in its turn, or when it breaks."""
        held = self.held[task.name]
        own = asyncio.current_task()
        assert own is not None
        own.set_name(f"sdax:{task.name}:resource")
        held.is_due = True
        held.is_set_up.set_result(None)
        try:
            await held.turn
            held.thrown = self.so_far()
        except CancelledError as error:
            held.is_broken = True
            held.thrown = error
        if held.is_broken:
            error = None
            try:
                async with _Limit(self, self.ends(task.post_execute)):
                    await self.clean_up(task)
            except BaseException as exception:
                error = exception
            self.broke(task, unasked(error))
        else:
            own.set_name(f"sdax:{task.name}:{POST}")
            report = await self.attempts(task, task.post_execute, ctx)  # type: ignore[arg-type]
            self.reports[task.name, POST] = self.judge(task, report)
        if self.phase == POST:
            self.done.add(task.name)
            self.open(ctx)
        held.is_due = False
        held.is_cleaned_up.set_result(None)

    def ends(self, function: Any) -> float | None:
        now = asyncio.get_running_loop().time()
        return None if function.timeout is None else now + float(function.timeout)

    async def clean_up(self, task: AsyncTask[Any, Any]) -> None:
        held = self.held[task.name]
        body, thrown = held.body, held.thrown
        assert body is not None
        try:
            await (body.__anext__() if thrown is None else body.athrow(thrown))
        except StopAsyncIteration:
            if held.is_broken:
                assert thrown is not None
                raise thrown from None
            return
        except BaseException as error:
            if held.is_broken or not is_part_of(error, thrown):
                raise
            return
        try:
            raise RuntimeError
        finally:
            await body.aclose()

    def broke(self, task: AsyncTask[Any, Any], error: BaseException | None) -> None:
        """Take note of a resource that has broken while it was held, and been cleaned up."""
        assert error is not None
        kept = error if isinstance(error, Exception) else None
        self.reports[task.name, POST] = PhaseReport(State.FAILED, 1, None, kept)
        if kept is not None:
            self.failed_at[task.name, POST] = asyncio.get_running_loop().time()
            self.failures.append(TaskFailure(task.name, POST, 1, kept))
        elif self.fatal is None:
            self.fatal = error
        else:
            self.surplus.append(error)
        if not self.keeps_going or kept is None:
            self.stop()

    def is_prepared(self, task: AsyncTask[Any, Any]) -> bool:
        """Tell whether `execute` may follow: the task has started, and nothing of it has failed."""
        succeeded = self.reports[task.name, PRE].state in (State.SUCCEEDED, State.ABSENT)
        return succeeded and task.name in self.started

    def members(self, level: int) -> list[AsyncTask[Any, Any]]:
        return [task for task, its_level in self.added if its_level == level]

    async def run_phase(self, phase: str, members: list[AsyncTask[Any, Any]], ctx: Any) -> None:
        self.phase = phase
        create_task: Any = asyncio.get_running_loop().create_task
        if phase == POST and any(map(is_resource, members)):
            create_task = create_lazy_task  # a resource hears of its turn in the next pass
        unfinished = {self.begin(task, ctx, create_task) for task in members if has(task, phase)}
        while unfinished:
            try:
                with self.shield():
                    _, unfinished = await asyncio.wait(unfinished)
            except CancelledError as error:
                self.interruption = self.interruption or error
                self.stop()

    def shield(self) -> AbstractContextManager[object]:
        """Return what keeps anyio from cancelling the caller again in each pass of the loop."""
        return nullcontext() if self.interruption is None else anyio.CancelScope(shield=True)

    def stop(self) -> None:
        """Let nothing more be called, and cancel what runs; but never a cleanup."""
        if self.phase != POST and not self.stopped:
            self.stopped = True
            for task in self.running:
                task.cancel()

    def is_stopping(self) -> bool:
        """Tell whether what runs has been cancelled, and nothing more is called."""
        return self.stopped and self.phase != POST

    async def run_function(self, task: AsyncTask[Any, Any], ctx: Any) -> None:
        if self.is_stopping():
            if is_resource(task) and self.phase == PRE:
                self.held[task.name].is_set_up.set_result(None)
            return
        self.started.add(task.name)
        is_set_up = is_resource(task) and self.phase == PRE
        current = asyncio.current_task()
        assert current is not None
        self.running.add(current)
        ending = await self.attempts(task, getattr(task, self.phase), ctx)
        self.running.discard(current)
        report = self.reports[task.name, self.phase] = self.judge(task, ending)
        succeeded = report.state is State.SUCCEEDED or not task.required
        if self.phase == POST or (succeeded and not self.stopped):
            self.done.add(task.name)
            self.open(ctx)
        if is_set_up and report.state is State.SUCCEEDED:
            await self.hold(task, ctx)
        elif is_set_up:
            self.held[task.name].is_set_up.set_result(None)

    async def attempts(
        self, task: AsyncTask[Any, Any], function: TaskFunction[Any], ctx: Any
    ) -> Ending:
        now = asyncio.get_running_loop().time
        until = None if function.total_timeout is None else now() + function.total_timeout
        attempt = backoffs = 0
        earlier: list[BaseException] = []
        current = asyncio.current_task()
        assert current is not None
        while True:
            attempt += 1
            requests = current.cancelling()
            last = earlier[-1] if earlier else None
            ending = await self.attempt(task, function, ctx, until, last, first=attempt == 1)
            ending = ending._replace(attempts=attempt, earlier=tuple(earlier))
            self.settle(function, attempt, ending.error)
            if not self.is_stopping() and current.cancelling() <= requests:
                # Nobody has cancelled the asyncio.Task, so that it may be retried.
                ending = ending._replace(error=unasked(ending.error))
            error = ending.error
            if error is None or self.is_stopping() or not isinstance(error, Exception):
                return ending
            pause = None
            if attempt <= function.retries and is_of(function.retryable_exceptions, error):
                pause, backoffs = self.pause(function, backoffs, error)
                cut_off = ending.timed_out and until is not None and now() >= until
                if pause is not None and until is not None:
                    pause = pause if pause < until - now() and not cut_off else None
                budget = function.retry_budget
                if pause is not None and budget is not None and not budget.try_withdraw():
                    pause = None
            kinds = function.fallback_exceptions or function.retryable_exceptions
            covered = pause is None and function.fallback is not None and is_of(kinds, error)
            if pause is None and not covered:
                return ending
            try:
                leftover = current._must_cancel  # type: ignore[attr-defined]
                if leftover:
                    # What the attempt has asked for itself, and not felt, ends with it.
                    with suppress(CancelledError):
                        await asyncio.sleep(0)
                if self.is_stopping():
                    raise CancelledError
                if pause is not None or leftover:
                    await asyncio.sleep(pause or 0)
            except CancelledError:
                if pause is not None:
                    self.settle(function, attempt + 1, CancelledError(), stopping=True)
                return ending._replace(waiting=True)
            if covered:
                ending = await self.attempt(task, function, ctx, None, error, error)
                return ending._replace(attempts=attempt, earlier=tuple(earlier), covered=error)
            earlier.append(error)

    def settle(
        self,
        function: TaskFunction[Any],
        attempt: int,
        error: BaseException | None,
        *,
        stopping: bool = False,
    ) -> None:
        """Pay into the retry budget, or take back what a cancelled retry has paid."""
        budget = function.retry_budget
        if budget is None:
            return
        cancelled = (stopping or self.is_stopping()) and is_cancellation(error)
        if attempt == 1 and not cancelled:
            budget.deposit()
        elif attempt > 1 and cancelled:
            budget.give_back()

    def pause(
        self, function: TaskFunction[Any], backoffs: int, error: BaseException
    ) -> tuple[float | None, int]:
        """Return the seconds before another attempt, None for never, and how many backoffs there
        have been now since the last delay that was asked for."""
        asked = asked_for(function, error)
        if asked is None:
            return delay(function, backoffs) * self.random_factor, backoffs + 1
        if asked < 0 or (function.max_delay is not None and asked > function.max_delay):
            return None, 0
        return asked + function.initial_delay * (self.random_factor - 0.5), 0

    async def attempt(
        self,
        task: AsyncTask[Any, Any],
        function: Any,
        ctx: Any,
        until: float | None,
        last: BaseException | None,
        covered: BaseException | None = None,
        *,
        first: bool = False,
    ) -> Ending:
        """Call a function inside of its limiter, or, to cover an error, its fallback."""
        left: BaseException | None = None
        has_limiter = function.limiter is not None and covered is None
        now = asyncio.get_running_loop().time

        def deadline() -> float | None:
            ends = [] if until is None else [until]
            if function.timeout is not None:
                ends.append(now() + function.timeout)
            return min(ends, default=None)

        async def call() -> tuple[Any, BaseException | None]:
            try:
                if covered is not None:
                    value = function.fallback(ctx, covered)
                    return (await value if inspect.isawaitable(value) else value), None
                if function.has_task_group_argument:
                    async with SdaxTaskGroup() as group:
                        return await function.function(ctx, group), None
                if isinstance(function.function, ResourceSetUp):
                    return await self.set_up(task, ctx), None
                if isinstance(function.function, ResourceCleanUp):
                    return await self.clean_up(task), None
                awaitable = function.function(ctx)
                if not inspect.isawaitable(awaitable):
                    raise TypeError(f"{self.phase} of {task.name!r} is not awaitable")
                return await awaitable, None
            except BaseException as error:  # as a StopIteration would not leave it as it is
                return None, error

        is_in = not has_limiter
        try:
            async with _Limit(self, until if has_limiter else deadline()) as limit:
                try:
                    async with limiter_of(function, ctx) if has_limiter else nullcontext():
                        is_in = True
                        if has_limiter:
                            with suppress(RuntimeError):  # it has just expired
                                limit.reschedule(deadline())
                        value, left = await call()
                        if left is not None:
                            raise left
                except CancelledError:
                    is_owed = self.phase == POST and first and limit.requests is not None
                    if is_in or not is_owed:
                        raise
                if not is_in:
                    value, left = await to_the_first_wait(call())
                    if left is not None:
                        raise left
        except BaseException as error:
            timed_out = isinstance(error, TimeoutError) and error is not left
            if timed_out and last is not None:
                error.__context__ = last
            return Ending(1, None, error, timed_out)
        return Ending(1, value)

    def judge(self, task: AsyncTask[Any, Any], ending: Ending) -> PhaseReport:
        attempts, value, error, timed_out, waiting, earlier, covered = ending
        fell_back = covered is not None
        if error is None and isinstance(value, Finish):
            if self.phase == POST:
                error = TypeError("Finish")
            elif not self.stopped:
                self.finished_by = task.name
                self.stop()
            value = value.value
        if error is None:
            return PhaseReport(State.SUCCEEDED, attempts, value, covered, earlier, fell_back)
        if waiting and self.is_stopping():
            return PhaseReport(State.CANCELLED, attempts, None, error, earlier)
        if self.is_stopping() and is_cancellation(error):
            return PhaseReport(State.CANCELLED, attempts, None, covered, earlier, fell_back)
        error = unasked(error)
        assert error is not None
        state = State.TIMED_OUT if timed_out else State.FAILED
        kept = None
        if isinstance(error, Exception):
            now = asyncio.get_running_loop().time()
            kept = error
            report = PhaseReport(state, attempts, None, kept, earlier, fell_back)
            if not task.required and self.phase != POST:
                return report
            self.failed_at[task.name, self.phase] = now
            self.failures.append(TaskFailure(task.name, self.phase, attempts, error))
            if self.keeps_going and self.phase != POST:
                self.broken = True
                return report
        elif self.fatal is None:
            self.fatal = error
        else:
            self.surplus.append(error)
        self.stop()
        return PhaseReport(state, attempts, None, kept, earlier, fell_back)

    def result(self) -> Report:
        """Return the report, or raise: what is no `Exception` first, then a cancellation."""
        loop = asyncio.get_running_loop()
        for error in self.surplus:
            loop.call_exception_handler({"message": "surplus", "exception": error})
        report = Report(
            (task.name, TaskReport(*(self.reports[task.name, phase] for phase in PHASES)))
            for task, _ in self.added
        )
        report.finished_by = self.finished_by
        failure = None
        if self.failures:
            failure = SdaxExecutionError.from_failures(
                self.failures,
                report,  # type: ignore[arg-type]
            )
        if self.fatal is not None:
            self.fatal.__context__ = failure
            raise self.fatal
        if self.interruption is not None:
            if failure is not None:
                self.interruption.__context__ = failure
                loop.call_exception_handler({"message": "failures", "exception": failure})
            raise self.interruption
        if failure is not None:
            raise failure
        return report


def unasked(error: BaseException | None) -> BaseException | None:
    """Return the failure that a cancellation is if the run did not ask for it."""
    if not is_cancellation(error):
        return error
    failure = TaskCancelledError()
    failure.__cause__ = error
    return failure


async def to_the_first_wait(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run what is called although its time is over, and cancelled where it waits first."""
    current: Any = asyncio.current_task()
    current.uncancel()
    current.cancel()
    try:
        return await coroutine
    finally:
        if current._must_cancel:
            with suppress(CancelledError):
                await asyncio.sleep(0)


class _Limit(asyncio.Timeout):
    """A timeout that is one whenever its timer has fired, unless a cancellation came after that.

    `asyncio.timeout()` counts from its beginning instead, and knows of no groups.
    """

    def __init__(self, model: Reference, deadline: float | None) -> None:
        super().__init__(deadline)
        self.model = model
        self.requests: int | None = None

    def _on_timeout(self) -> None:
        assert self._task is not None
        self.requests = self._task.cancelling()
        super()._on_timeout()

    @staticmethod
    def _insert_timeout_error(exc_val: BaseException) -> None:
        """Leave contexts as they are: Python 3.14 would follow a cycle for ever."""

    async def __aexit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        await super().__aexit__(kind, error, traceback)
        if self.requests is not None and self._task is not None:
            later = self._task.cancelling() > self.requests
            if is_cancellation(error) and not (later or self.model.is_stopping()):
                raise TimeoutError from error


def create_lazy_task(coroutine: Coroutine[Any, Any, None], **options: Any) -> asyncio.Task[None]:
    """Make an `asyncio.Task` that begins in its turn, with the loop's task factory or without."""
    loop = asyncio.get_running_loop()
    if loop.get_task_factory() is getattr(asyncio, "eager_task_factory", None):
        return asyncio.Task(coroutine, loop=loop, **options)
    return loop.create_task(coroutine, **options)


def has(task: AsyncTask[Any, Any], phase: str) -> bool:
    """Tell whether the task has a function for this phase."""
    return getattr(task, phase) is not None


def is_resource(task: AsyncTask[Any, Any]) -> bool:
    """Return True for a resource."""
    return task.pre_execute is not None and isinstance(task.pre_execute.function, ResourceSetUp)


def is_part_of(error: BaseException, thrown: BaseException | None) -> bool:
    """Return True for the same error, and for a group that contains only parts of it."""
    if thrown is None:
        return False
    if isinstance(error, BaseExceptionGroup) and error is not thrown:
        return all(is_part_of(each, thrown) for each in error.exceptions)
    return error is thrown or any(error is each for each in flatten_exceptions(thrown))


def is_of(kinds: Any, error: BaseException) -> bool:
    """Tell whether an error is of these kinds; of a group, all leaves must be."""
    if isinstance(error, BaseExceptionGroup):
        return all(is_of(kinds, member) for member in error.exceptions)
    if not isinstance(error, Exception):
        return False
    return isinstance(error, kinds) if isinstance(kinds, tuple) else bool(kinds(error))


def asked_for(function: TaskFunction[Any], error: BaseException) -> float | None:
    """Seconds that a service asks to wait; of a group the most, where never is more than all."""
    leaves = flatten_exceptions(error)
    answers = [function.retry_after and function.retry_after(leaf) for leaf in leaves]  # type: ignore[arg-type]
    found = [
        getattr(leaf, "retry_after", None) if answer is None else answer
        for leaf, answer in zip(leaves, answers, strict=True)
    ]
    asked = [each for each in found if each is not None]
    return min(asked) if any(each < 0 for each in asked) else max(asked, default=None)


def limiter_of(function: TaskFunction[Any], ctx: Any) -> Any:
    """The limiter of one attempt."""
    limiter: Any = function.limiter
    return limiter if hasattr(limiter, "__aenter__") else limiter(ctx)


def delay(function: TaskFunction[Any], retry: int) -> float:
    """Seconds before retry number `retry`, from 0, before the random factor."""
    longest = math.inf if function.max_delay is None else function.max_delay
    return min(longest, function.initial_delay * function.backoff_factor**retry)
