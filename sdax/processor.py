"""Builders and the processors that they build."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from functools import partial
from typing import (
    TYPE_CHECKING,
    Any,
    Final,
    Generic,
    NamedTuple,
    NoReturn,
    Self,
    TypeAlias,
    Unpack,
    cast,
)

from ._impl import Run
from .common.checks import explained, no_attribute
from .common.generic import K, KeyedByDefault, T
from .common.text import counted, nearest, shown
from .engine.graph import plan_graph
from .engine.outcome import add_lost, conclude, new_waiter, see_through
from .engine.plan import Plan, plan_levels
from .options import (
    NO_OPTIONS,
    ExecuteOrder,
    GraphOptions,
    LevelOptions,
    LevelOrder,
    OnFailure,
    Options,
    checked_observers,
    checked_options,
    rechecked,
)
from .phases import AsyncPhaseRunner
from .replacing import Stub, replaced_tasks
from .report import RunReport
from .tasks import AsyncTask

if TYPE_CHECKING:
    from frozendict import frozendict

    from .events import Observer, Observers, TaskInfo

# The fields of a `TaskInfo`.
Description: TypeAlias = "tuple[Hashable, int | None, tuple[Hashable, ...] | None, bool]"

# Wrong names for methods of a processor, and for methods that a builder does not have.
_MEANT: Final = dict.fromkeys(
    ("run", "execute", "process", "start", "invoke", "run_tasks"),
    "; did you mean process_tasks(ctx)?",
)
_UNBUILT: Final = dict.fromkeys(("process_tasks", "open", *_MEANT), "; did you forget .build()?")
_LEVELS: Final = "; for levels use AsyncTaskProcessor.builder()"


class TaskProcessor(KeyedByDefault, Generic[T, K]):
    """The base of all processors: a plan that is ready to run. Immutable."""

    __slots__ = ("_added", "_infos", "_options", "_shared")

    _added: tuple[tuple[AsyncTask[T, K], Any], ...]  # each with its level or its dependencies
    _options: Options
    _shared: Shared[K]  # in one, because each attribute of a class with `__getattr__` takes time
    _infos: tuple[TaskInfo, ...] | None  # made for the first observed run

    def _set_up(
        self, added: tuple[tuple[AsyncTask[T, K], Any], ...], options: Options, plan: Plan
    ) -> None:
        self._set_once(
            _added=added,
            _options=options,
            _shared=Shared(plan, RunReport(plan, None, None), options.observer),
            _infos=None,
        )

    @property
    def max_concurrency(self) -> int | None:
        """The number of functions of a run that may wait at the same time. None means no limit."""
        return self._options.max_concurrency

    @property
    def cleanup_timeout(self) -> float | None:
        """The seconds that all cleanup of a run may take together. None means no limit."""
        return self._options.cleanup_timeout

    @property
    def on_failure(self) -> OnFailure:
        """`"cancel"` if a failure stops the run, or `"keep going"` if the run continues with
        everything that does not depend on the failed task."""
        return cast("OnFailure", self._options.on_failure)

    async def process_tasks(self, ctx: T, *, observer: Observers | None = None) -> RunReport[K]:
        """Run every task once with `ctx`, and return the report of the run.

        `pre_execute` goes up, level by level or in the order of dependencies. Then all `execute`
        functions run at once. Then `post_execute` goes down, for every task that started, even
        after a failure. A function that returns `Finish` ends the run early, with success.

        `observer` is one observer or several. Each is called with every event of the run (see
        `sdax.observe`). Without it, the observers of the builder are called. `()` means a run
        without observers.

        Raises `SdaxExecutionError` after the last cleanup if anything failed, and
        `asyncio.CancelledError` after the last cleanup if the caller was cancelled.

        >>> report = await processor.process_tasks(RequestContext(user_id=7))
        """
        # Each local variable takes memory of each run that waits.
        shared = self._shared
        observers = shared.observers if observer is None else checked_observers(observer)
        run = self._observed_run(ctx, observers) if observers else Run(shared.plan, ctx)
        del observer, observers  # they may keep the exception, which leads here
        interruption: BaseException | None = None
        try:
            run.start()
            # This is not a coroutine of its own, because that would cost each waiting run memory.
            while not run.over:
                try:
                    await new_waiter(run)
                except BaseException as exception:
                    interruption = exception
                if interruption is not None:
                    await see_through(run, interruption)
            if run.record is None and interruption is None and run.fatal is None:
                if run.values is None:
                    return shared.plain_report
                return RunReport(shared.plan, run.values, None)
            try:
                return conclude(run, interruption)
            except BaseException as raised:
                if run.record is not None or run.fatal is not None:
                    add_lost(run, raised, interruption)
                raise
        finally:
            # The traceback of the exception leads here, so no name may lead back to it.
            del interruption

    def open(self, ctx: T, *, observer: Observers | None = None) -> AsyncPhaseRunner[T, K]:
        """Return an async context manager that goes through the run phase by phase.

        `observer` is as for `process_tasks`.

        >>> async with processor.open(ctx) as run:
        ...     while await run.run_next():
        ...         print(run.last_phase_id(), "is done")
        """
        observers = self._observers(observer)
        if not observers:
            return AsyncPhaseRunner(ctx, lambda: Run(self._shared.plan, ctx))
        return AsyncPhaseRunner(ctx, lambda: self._observed_run(ctx, observers))

    def replaced(self, stubs: Mapping[K, Stub]) -> Self:
        """Return a processor of the same shape with other tasks or functions under some names.

        It is for tests. A processor keeps the functions that it was built with, so patching a
        module later changes nothing. `stubs` maps names of tasks to their replacements:

        - a function, in place of the one function of the task, with the same timeout and retries.
        - a `TaskFunction`, in place of that function and its limits.
        - `Done(value)`: each phase of the task succeeds immediately with this value.
        - a mapping of phases to any of these, for a task with several phases.
        - an `AsyncTask` of the same name.
        - in place of a resource, another function that `resource` takes, with the same limits.

        Raises `ValueError` for a name that does not exist, with similar names, and for one function
        in place of several. Raises `TypeError` for a stub of another type.

        >>> stubbed = processor.replaced({"User": load_test_user, "Flags": Done({})})
        """
        added, *rest = self._identity()
        tasks = replaced_tasks([task for task, _ in added], stubs)
        make: type[Any] = type(self)
        same: Self = make(tuple(zip(tasks, (place for _, place in added), strict=True)), *rest)
        return same

    def _observers(self, observer: Observers | None) -> tuple[Observer, ...] | None:
        return self._shared.observers if observer is None else checked_observers(observer)

    def _parts(self, observer: Observers | None) -> Parts:
        plan, report, _ = self._shared
        observers = self._observers(observer)
        if observers:
            observed = partial(self._observed_run, observers=observers)
            return Parts(observed, report, observers)
        return Parts(partial(Run, plan), report, ())

    def _observed_run(self, ctx: T, observers: tuple[Observer, ...]) -> Run:
        # Runs that nobody observes do without these imports.
        from .engine.watch import Watch
        from .events import ObservedRun, TaskInfo

        if self._infos is None:
            self._set_once(_infos=tuple(TaskInfo(*each) for each in self._describe_tasks()))
        assert self._infos is not None
        watch = Watch(ObservedRun(self, ctx, self._infos), self._infos, observers)
        watch.run_started()
        return Run(self._shared.plan.observed, ctx, watch)

    def _set_once(self, **attributes: Any) -> None:
        for name, value in attributes.items():
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is immutable: cannot set {shown(name)}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__} is immutable: cannot delete {shown(name)}")

    if not TYPE_CHECKING:  # otherwise type checkers would accept every attribute

        def __getattr__(self, name: str) -> NoReturn:
            raise no_attribute(self, name, _MEANT)

    def _describe_tasks(self) -> Iterator[Description]:
        """Yield the fields of each `TaskInfo`, in the order in which the tasks were added."""
        raise NotImplementedError

    def _identity(self) -> tuple[Any, ...]:
        """Return the arguments of the constructor, by which processors are compared."""
        return self._added, self._options

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._identity()

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())


class Shared(NamedTuple, Generic[K]):
    """The parts of a processor that every run reads."""

    plan: Plan
    plain_report: RunReport[K]  # of every run with successes only, and without values
    observers: tuple[Observer, ...] | None


class Parts(NamedTuple):
    """The parts that start runs without `process_tasks`. See `parts_of`."""

    make_run: Callable[[Any], Run]  # gets the context, and copies its caller's variables
    report: RunReport[Any]  # of every run with successes only, and without values
    observers: tuple[Observer, ...]


def parts_of(processor: TaskProcessor[Any, Any], observer: Observers | None) -> Parts:
    """Return the parts that start runs of a processor. `observer` is as for `process_tasks`."""
    return processor._parts(observer)  # pyright: ignore[reportPrivateUsage]


def _made_by_its_builder(given: tuple[Any, ...], _: object) -> str | None:
    processor, *others = given
    if others:
        return None
    kind = type(processor).__name__
    return f"{kind} is made by its builder: {kind}.builder().add_task(...).build()"


class AsyncTaskProcessor(TaskProcessor[T, K]):
    """Tasks in levels, ready to run. It is immutable, and any number of runs can share it.

    Its builder makes it:

    >>> processor = AsyncTaskProcessor[Context].builder().add_task(task, level=1).build()
    >>> report = await processor.process_tasks(ctx)

    `levels` maps each level to its tasks, in the order in which they were added.
    `execute_order`, `max_concurrency` and `on_failure` are the options of the builder.
    """

    __slots__ = ("levels",)

    levels: frozendict[int, tuple[AsyncTask[T, K], ...]]

    @explained(_made_by_its_builder)
    def __init__(
        self, added: tuple[tuple[AsyncTask[T, K], int], ...], options: Options = NO_OPTIONS
    ) -> None:
        options = rechecked(options, "level")
        added = _checked_pairs(added)
        for task, level in added:
            _check_level(task, level)
        members: dict[int, list[int]] = {}
        for index, (_, level) in enumerate(added):
            members.setdefault(level, []).append(index)
        tasks = [task for task, _ in added]
        ascending = {level: members[level] for level in sorted(members)}
        levels = {level: tuple(tasks[i] for i in indices) for level, indices in ascending.items()}
        plan = plan_levels(
            ascending.values(),
            tasks,
            options.max_concurrency,
            execute_in_order=options.execute_in_order,
            keeps_going=options.keeps_going,
            cleanup_timeout=options.cleanup_timeout,
        )
        self._set_up(added, options, plan)
        self._set_once(levels=_frozen(levels))

    @property
    def execute_order(self) -> LevelOrder:
        """The order of `execute`: at once, or level by level."""
        return cast("LevelOrder", self._options.execute_order)

    @classmethod
    def builder(cls, **options: Unpack[LevelOptions]) -> AsyncTaskProcessorBuilder[T, K]:
        """Return an empty builder for tasks in levels (see `AsyncTaskProcessorBuilder`)."""
        return AsyncTaskProcessorBuilder(**options)

    @classmethod
    def elevator_builder(cls, **options: Unpack[LevelOptions]) -> AsyncTaskProcessorBuilder[T, K]:
        """Return the same as `builder`. This is another name for it."""
        return AsyncTaskProcessorBuilder(**options)

    @classmethod
    def graph_builder(cls, **options: Unpack[GraphOptions]) -> AsyncDagTaskProcessorBuilder[T, K]:
        """Return an empty builder for tasks in a graph (see `AsyncDagTaskProcessorBuilder`)."""
        return AsyncDagTaskProcessorBuilder(**options)

    def _describe_tasks(self) -> Iterator[Description]:
        for task, level in self._added:
            yield task.name, level, None, task.required

    def __repr__(self) -> str:
        counts = f"{counted(len(self._added), 'task')}, {counted(len(self.levels), 'level')}"
        return f"<{type(self).__name__}: {counts}>"

    def to_mermaid(self) -> str:
        """Return a Mermaid flowchart: a subgraph for each level, with its tasks.

        >>> Path("workflow.mmd").write_text(processor.to_mermaid(), encoding="utf-8")
        """
        from .diagram import levels_to_mermaid

        return levels_to_mermaid(self.levels, self._options)

    def __str__(self) -> str:
        """Return an outline of the levels, with tasks, phases, timeouts and retries.

        It marks tasks that are not required. If more than one task has an `execute`, the first line
        shows the order of `execute`. It also shows that a run keeps going after a failure.

        >>> print(processor)
        1 level, 1 task
        level 1
          Database  pre_execute (timeout 2 s, 3 retries), post_execute
        """
        from .diagram import outline_of_levels

        return outline_of_levels(self.levels, self._options)


class AsyncDagTaskProcessor(TaskProcessor[T, K]):
    """Tasks in a dependency graph, ready to run. It is immutable, and any number of runs can share
    it.

    Its builder makes it:

    >>> processor = (
    ...     AsyncDagTaskProcessor[Context].builder()
    ...     .add_task(database)
    ...     .add_task(users, depends_on=("Database",))
    ...     .build()
    ... )

    `dependencies` maps each task's name to the names of its dependencies. `tasks` maps it to the
    task. `execute_order`, `max_concurrency` and `on_failure` are the options of the builder.
    """

    __slots__ = ("dependencies", "tasks")

    tasks: frozendict[K, AsyncTask[T, K]]
    dependencies: frozendict[K, tuple[K, ...]]

    @explained(_made_by_its_builder)
    def __init__(
        self,
        added: tuple[tuple[AsyncTask[T, K], tuple[K, ...]], ...],
        options: Options = NO_OPTIONS,
    ) -> None:
        options = rechecked(options, "dependency")
        added = tuple(
            (task, _checked_names(task, depends_on)) for task, depends_on in _checked_pairs(added)
        )
        tasks = [task for task, _ in added]
        index_of: dict[Hashable, int] = {task.name: index for index, task in enumerate(tasks)}
        plan = plan_graph(
            [_prerequisites(task, depends_on, index_of) for task, depends_on in added],
            tasks,
            options.max_concurrency,
            execute_in_order=options.execute_in_order,
            keeps_going=options.keeps_going,
            cleanup_timeout=options.cleanup_timeout,
        )
        self._set_up(added, options, plan)
        self._set_once(
            tasks=_by_name({task.name: task for task in tasks}),
            dependencies=_by_name({task.name: depends_on for task, depends_on in added}),
        )

    @property
    def execute_order(self) -> ExecuteOrder:
        """The order of `execute`: at once, or in the order of dependencies."""
        return cast("ExecuteOrder", self._options.execute_order)

    @classmethod
    def builder(cls, **options: Unpack[GraphOptions]) -> AsyncDagTaskProcessorBuilder[T, K]:
        """Return an empty builder for tasks in a graph (see `AsyncDagTaskProcessorBuilder`)."""
        return AsyncDagTaskProcessorBuilder(**options)

    def _describe_tasks(self) -> Iterator[Description]:
        for task, depends_on in self._added:
            yield task.name, None, depends_on, task.required

    def __repr__(self) -> str:
        edges = sum(map(len, self.dependencies.values()))
        tasks = counted(len(self._added), "task")
        return f"<{type(self).__name__}: {tasks}, {counted(edges, 'dependency', 'dependencies')}>"

    def to_mermaid(self) -> str:
        """Return a Mermaid flowchart: an arrow from each task to those that depend on it.

        >>> Path("workflow.mmd").write_text(processor.to_mermaid(), encoding="utf-8")
        """
        from .diagram import graph_to_mermaid

        return graph_to_mermaid(self.tasks.values(), self.dependencies, self._options)

    def __str__(self) -> str:
        """Return an outline of the graph, with tasks, phases, limits and dependencies.

        It marks tasks that are not required. If more than one task has an `execute`, the first line
        shows the order of `execute`. It also shows that a run keeps going after a failure.

        >>> print(processor)
        2 tasks, 1 dependency
          Database  pre_execute (timeout 2 s, 3 retries), post_execute
          Users     execute  depends on Database
        """
        from .diagram import outline_of_graph

        return outline_of_graph(self.tasks.values(), self.dependencies, self._options)


def _not_in_levels(_: object, named: dict[str, Any]) -> str | None:
    if "depends_on" not in named:
        return None
    return (
        "add_task: a task in levels has a level, not depends_on; for dependencies use "
        "AsyncDagTaskProcessor.builder()"
    )


def _not_in_a_graph(_: object, named: dict[str, Any]) -> str | None:
    if "level" not in named:
        return None
    return f"add_task: a task in a graph has depends_on, not a level{_LEVELS}"


class AsyncTaskProcessorBuilder(KeyedByDefault, Generic[T, K]):
    """Collects tasks and their levels. `build()` makes a processor of the tasks added so far.

    - `execute_order`: with `"level"`, `execute` also goes up level by level. The `execute`
      functions of a level begin when those of all lower levels have finished. By default all run
      at once after the last `pre_execute`.
    - `max_concurrency`: the number of functions of a run that may wait at the same time. The others
      are called in order when a place is free.
    - `observer`: one observer or several. Each is called with every event of each run that has no
      observer of its own (see `sdax.observe`).
    - `on_failure`: by default a failure cancels everything else. With `"keep going"` it cancels
      nothing. The rest of its level runs, and then `execute` of all tasks whose own `pre_execute`
      succeeded. Higher levels are skipped. All failures are raised after the last cleanup.
    - `cleanup_timeout`: the number of seconds that all cleanup of a run may take together. After
      that, each waiting cleanup is cancelled. Each cleanup that has not begun may run up to its
      first `await` that really waits. A cleanup that was cut off has failed.
    """

    def __init__(self, **options: Unpack[LevelOptions]) -> None:
        self._options = checked_options("level", options)
        self._added: dict[K, tuple[AsyncTask[T, K], int]] = {}

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> NoReturn:
            raise no_attribute(self, name, _UNBUILT)

    @explained(_not_in_levels)
    def add_task(self, task: AsyncTask[T, K], level: int) -> Self:
        """Add a task at a level and return the builder.

        The level is any integer. Lower levels start first. Raises `TypeError` if the task is not an
        `AsyncTask` or the level is not an integer, and `ValueError` if the name is already taken.

        >>> builder.add_task(task("Auth", pre_execute=check), level=1)
        """
        _check_task(task)
        _check_level(task, level)
        if task.name in self._added:
            raise ValueError(
                f"add_task: there is a task named {shown(task.name)} already, at level "
                f"{shown(self._added[task.name][1])}; names must be unique in a processor"
            )
        self._added[task.name] = (task, level)
        return self

    def build(self) -> AsyncTaskProcessor[T, K]:
        """Make an immutable processor of the tasks added so far."""
        return AsyncTaskProcessor(tuple(self._added.values()), self._options)


AsyncDagLevelAdapterBuilder = AsyncTaskProcessorBuilder


class AsyncDagTaskProcessorBuilder(KeyedByDefault, Generic[T, K]):
    """Collects tasks and their dependencies. `build()` makes a processor of the tasks added so far.

    - `execute_order`: with `"dependency"`, the `execute` of a task starts when the `execute`
      functions of its dependencies have finished. By default all run at once after the last
      `pre_execute`.
    - `max_concurrency`: the number of functions of a run that may wait at the same time. The others
      are called in order when a place is free.
    - `observer`: one observer or several. Each is called with every event of each run that has no
      observer of its own (see `sdax.observe`).
    - `on_failure`: by default a failure cancels everything else. With `"keep going"` it cancels
      nothing. Everything that does not depend on the failed task runs, and the rest is skipped. All
      failures are raised after the last cleanup.
    - `cleanup_timeout`: the number of seconds that all cleanup of a run may take together. After
      that, each waiting cleanup is cancelled. Each cleanup that has not begun may run up to its
      first `await` that really waits. A cleanup that was cut off has failed.
    """

    def __init__(self, **options: Unpack[GraphOptions]) -> None:
        self._options = checked_options("dependency", options)
        self._added: dict[K, tuple[AsyncTask[T, K], tuple[K, ...]]] = {}

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> NoReturn:
            raise no_attribute(self, name, _UNBUILT)

    @explained(_not_in_a_graph)
    def add_task(self, task: AsyncTask[T, K], depends_on: Iterable[K] = ()) -> Self:
        """Add a task and the names of the tasks it depends on, and return the builder.

        Its dependencies may be added later. Raises `TypeError` if the task is not an `AsyncTask` or
        `depends_on` is not a collection of names, and `ValueError` if the name is already taken.

        >>> builder.add_task(task("Orders", execute=load_orders), depends_on=("User",))
        """
        _check_task(task)
        if task.name in self._added:
            raise ValueError(
                f"add_task: there is a task named {shown(task.name)} already; "
                f"names must be unique in a processor"
            )
        self._added[task.name] = (task, _checked_names(task, depends_on))
        return self

    def build(self) -> AsyncDagTaskProcessor[T, K]:
        """Make an immutable processor of the tasks added so far.

        Raises `ValueError` if a task depends on itself or on a task that was not added, and for a
        cycle of dependencies, which the message shows as a path.
        """
        return AsyncDagTaskProcessor(tuple(self._added.values()), self._options)


# The first processor imports frozendict, which takes longer than most of sdax.


def _frozen(items: dict[Any, Any]) -> frozendict[Any, Any]:
    from frozendict import frozendict

    return frozendict(items)


def _by_name(items: dict[Any, Any]) -> frozendict[Any, Any]:
    from .mappings import ByName

    return ByName(items)


def _check_task(task: object) -> None:
    if not isinstance(task, AsyncTask):
        hint = "; make one with task(name, execute=...)" if callable(task) else ""
        raise TypeError(f"add_task: task must be an AsyncTask, got {shown(task)}{hint}")


def _checked_pairs(added: Iterable[tuple[Any, Any]]) -> tuple[tuple[Any, Any], ...]:
    """Check the tasks of a processor: different names, each with its place."""
    try:
        pairs = tuple((task, place) for task, place in added)
    except (TypeError, ValueError) as error:
        raise _no_pairs(added) from error
    if not all(isinstance(task, AsyncTask) for task, _ in pairs):
        raise _no_pairs(added)
    names = set[Hashable]()
    for task, _ in pairs:
        if task.name in names:
            raise ValueError(f"two tasks are named {shown(task.name)}; names must be unique")
        names.add(task.name)
    return pairs


def _no_pairs(added: object) -> TypeError:
    return TypeError(
        f"a processor is made of pairs of a task and its place, got {shown(added)}; use builder()"
    )


def _check_level(task: AsyncTask[Any, Any], level: object) -> None:
    if isinstance(level, bool) or not isinstance(level, int):
        raise TypeError(
            f"add_task: level of task {shown(task.name)} must be an integer, got {shown(level)}"
        )


def _checked_names(task: AsyncTask[Any, Any], depends_on: Any) -> tuple[Any, ...]:
    if isinstance(depends_on, (str, bytes)) or not isinstance(depends_on, Iterable):
        hint = _LEVELS if isinstance(depends_on, int) else ""
        if isinstance(depends_on, AsyncTask):
            raise _task_as_a_name(task, depends_on)
        hint = f"; did you mean ({shown(depends_on)},)?" if isinstance(depends_on, str) else hint
        raise TypeError(
            f"add_task: depends_on of task {shown(task.name)} must be a collection of names, "
            f"got {shown(depends_on)}{hint}"
        )
    names = tuple(depends_on)
    for name in names:
        if isinstance(name, AsyncTask):
            raise _task_as_a_name(task, name)
        try:
            hash(name)
        except Exception as error:
            raise TypeError(
                f"add_task: task {shown(task.name)} depends on {shown(name)}, which is not "
                f"hashable, so it cannot be a name"
            ) from error
    return tuple(dict.fromkeys(names))


def _task_as_a_name(task: AsyncTask[Any, Any], given: AsyncTask[Any, Any]) -> TypeError:
    return TypeError(
        f"add_task: depends_on of task {shown(task.name)} takes names of tasks, got a task; pass "
        f"its name: depends_on=({shown(given.name)},)"
    )


def _prerequisites(
    task: AsyncTask[Any, Any], depends_on: Iterable[Hashable], index_of: dict[Hashable, int]
) -> frozenset[int]:
    try:
        indices = frozenset(index_of[name] for name in depends_on)
    except KeyError as error:
        raise ValueError(
            f"build: task {shown(task.name)} depends on {shown(error.args[0])}, but no task of "
            f"that name was added{nearest(error.args[0], index_of)}"
        ) from None
    if index_of[task.name] in indices:
        raise ValueError(f"build: task {shown(task.name)} depends on itself")
    return indices
