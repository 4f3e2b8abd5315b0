"""Arbitrary objects, thrown at everything public.

Each constructor and method is called with sound arguments, of which some are replaced. Either it
refuses the call with a `TypeError` or `ValueError` that says what it was given or for what, or the
call works: then what it returned is used, and must not fail by anything but the functions' own
exceptions. For a long search:

    BAD_INPUT_EXAMPLES=20000 pytest tests/test_bad_input.py
"""

from __future__ import annotations

import asyncio
import enum
import inspect
import math
import os
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import suppress
from decimal import Decimal
from fractions import Fraction
from typing import Any, NamedTuple, NoReturn

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import sdax
from helpers import amount, error_of, failure_of, nothing, solo, spawn, until
from sdax import (
    AsyncDagTaskProcessor,
    AsyncDagTaskProcessorBuilder,
    AsyncPhaseRunner,
    AsyncTask,
    AsyncTaskProcessor,
    AsyncTaskProcessorBuilder,
    RunReport,
    SdaxExecutionError,
    TaskFailure,
    TaskFunction,
)
from sdax.common.text import shown
from sdax.options import Options
from sdax.testing import VirtualClockLoop

EXAMPLES = int(os.environ.get("BAD_INPUT_EXAMPLES", "0"))
search = settings(
    max_examples=EXAMPLES or amount(10, 25),
    derandomize=not EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


class OwnError(Exception):
    """Raised by the objects that are thrown, where they are rightly asked: it may come through."""


class ShowError(Exception):
    """Raised by objects that cannot be shown, and to show them is nobody's right."""


class Unshowable:
    def __repr__(self) -> NoReturn:
        raise ShowError

    __str__ = __repr__

    def __format__(self, spec: str) -> NoReturn:
        raise ShowError


class UnshowableText(str):
    __slots__ = ()
    __repr__ = __str__ = Unshowable.__repr__  # type: ignore[assignment]
    __format__ = Unshowable.__format__  # type: ignore[assignment]


class Incomparable:
    __hash__ = object.__hash__

    def __eq__(self, other: object) -> NoReturn:
        raise OwnError


class Unhashable:
    def __hash__(self) -> NoReturn:
        raise OwnError


class EqualToAll:
    def __hash__(self) -> int:
        return 0

    def __eq__(self, other: object) -> bool:
        return True


class Undecided:
    def __bool__(self) -> NoReturn:
        raise OwnError

    __len__ = __bool__  # type: ignore[assignment]


class BrokenIterable:
    def __iter__(self) -> NoReturn:
        raise OwnError


class AllThings:
    """Has every attribute, and can be called."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *args: Any) -> Any:
        return self


class OddFloat(float):
    def __add__(self, other: object) -> Any:
        return "sum"

    __radd__ = __mul__ = __rmul__ = __sub__ = __rsub__ = __add__


class OddInteger(int):
    def __lt__(self, other: object) -> Any:
        raise OwnError

    __le__ = __gt__ = __ge__ = __add__ = __radd__ = __lt__


class Number(enum.IntEnum):
    THREE = 3


def failing(*args: Any) -> NoReturn:
    raise OwnError


async def with_two(ctx: Any, other: Any) -> None:
    """Return at once."""


async def yielding(ctx: Any) -> Any:
    yield ctx


def failure(name: Any = "A") -> TaskFailure:
    return TaskFailure(name, "execute", 1, ValueError("A"))


HUGE = 10**5000  # has no repr, and is no float
FIXED = [
    None, True, False, 0, 1, -1, 2, HUGE, -HUGE, 10**30, 10**300, 0.0, -0.0, 0.5, math.inf,
    -math.inf, math.nan, 1e308, 5e-324, 1j, Decimal("1"), Fraction(1, 3), "", "A", "\ud800",
    "a\n\0", b"A", bytearray(b"A"), (), [], {}, set(), frozenset(), ("A",), ["A"], {"A": 1},
    range(3), ..., NotImplemented, int, str, type, object, Exception, BaseException,
    KeyboardInterrupt, ValueError, (ValueError, KeyboardInterrupt), [TimeoutError],
    ValueError("A"), KeyboardInterrupt(), ExceptionGroup("A", [ValueError()]),
    BaseExceptionGroup("A", [KeyboardInterrupt()]), list[int], int | None, len, failing,
    nothing, with_two, yielding, lambda: None, lambda ctx: ctx, math, "at once", "dependency",
    "level", Number.THREE, OddFloat(1), OddInteger(2), Unshowable(), UnshowableText("A"),
    Incomparable(), Unhashable(), EqualToAll(), Undecided(), BrokenIterable(), AllThings(),
    TaskFunction(nothing), AsyncTask("A", TaskFunction(nothing)), sdax.join("A"), AsyncTask,
    TaskFunction, solo(nothing), AsyncTaskProcessor.builder(), sdax.State.FAILED, failure(),
]  # fmt: skip
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
THINGS = st.integers(0, len(FIXED) - 1).map(lambda index: FIXED[index]) | SCALARS
PAIRS = st.tuples(THINGS, THINGS)
SEVERAL = st.lists(THINGS, max_size=3) | PAIRS | st.lists(PAIRS, max_size=3)


class Thrown:
    """What hypothesis throws; it shows what it throws, and not everything can be shown."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __repr__(self) -> str:
        return shown(self.value)


ANYTHING = (THINGS | SEVERAL).map(Thrown)

FUNCTION: dict[str, Any] = {
    "function": nothing,
    "timeout": 1.0,
    "retries": 2,
    "initial_delay": 0.1,
    "backoff_factor": 2.0,
    "retryable_exceptions": (ValueError,),
    "max_delay": 5.0,
    "total_timeout": 9.0,
    "retry_after": id,
    "limiter": asyncio.Lock(),
    "fallback": failing,
    "fallback_exceptions": (ValueError,),
    "retry_budget": sdax.RetryBudget(),
}
UNHELD = ("limiter", "fallback", "fallback_exceptions")  # which no resource takes
PHASES: dict[str, Any] = dict.fromkeys(
    ("pre_execute", "execute", "post_execute"), TaskFunction(nothing)
)
TASK = AsyncTask("A", **PHASES)
LEVELS: dict[str, Any] = {
    "max_concurrency": 2,
    "observer": id,
    "cleanup_timeout": 9.0,
    "on_failure": "keep going",
    "execute_order": "level",
}
GRAPH: dict[str, Any] = {**LEVELS, "execute_order": "dependency"}


async def run_report() -> RunReport[Any]:
    return await solo(nothing).process_tasks(None)


async def holding(ctx: Any) -> AsyncIterator[None]:
    yield


class Case(NamedTuple):
    """What is called, the arguments that suit it, and what else than an error may come of it."""

    call: Callable[..., Any]
    arguments: dict[str, Any]
    allowed: tuple[type[Exception], ...] = ()


def levels() -> AsyncTaskProcessor[Any, Any]:
    return AsyncTaskProcessor.builder().add_task(TASK, 1).build()


def graph() -> AsyncDagTaskProcessor[Any, Any]:
    return AsyncDagTaskProcessor.builder().add_task(TASK).build()


def processor_cases(make: Callable[[], Any], name: str) -> dict[str, Callable[[], Case]]:
    failed = (SdaxExecutionError,)
    return {
        f"{name}.builder": lambda: Case(type(make()).builder, LEVELS if make is levels else GRAPH),
        f"{name}.process_tasks": lambda: Case(
            make().process_tasks, {"ctx": None, "observer": [id]}, failed
        ),
        f"{name}.open": lambda: Case(make().open, {"ctx": None, "observer": [id]}),
        f"{name}.replaced": lambda: Case(make().replaced, {"stubs": {TASK.name: nothing}}),
        f"{name}.to_mermaid": lambda: Case(make().to_mermaid, {}),
    }


CASES: dict[str, Callable[[], Case]] = {
    "Done": lambda: Case(sdax.Done, {"value": 7}),
    "Finish": lambda: Case(sdax.Finish, {"value": 7}),
    "TaskFunction": lambda: Case(TaskFunction, {**FUNCTION, "has_task_group_argument": False}),
    "TaskFunction.is_retryable": lambda: Case(
        TaskFunction(nothing).is_retryable, {"exception": OSError()}
    ),
    "TaskFunction.is_covered": lambda: Case(
        TaskFunction(nothing, fallback=failing).is_covered, {"exception": OSError()}
    ),
    "TaskFunction.backoff": lambda: Case(TaskFunction(nothing).backoff, {"retry": 1}),
    **{
        helper: lambda helper=helper: Case(  # type: ignore[misc]
            getattr(sdax, helper),
            {**FUNCTION, "function": FUNCTIONS.get(helper, nothing)},
        )
        for helper in (
            "task_func",
            "task_group_func",
            "task_group_task",
            "task_outcome_func",
            "task_sync_func",
        )
    },
    "resource": lambda: Case(
        sdax.resource,
        {
            **{name: FUNCTION[name] for name in FUNCTION if name not in UNHELD},
            "name": "A",
            "function": holding,
            "execute": nothing,
            "cleanup_timeout": 2.0,
        },
    ),
    "Outcome": lambda: Case(
        sdax.Outcome, {"failed": False, "cancelled": False, "failures": (), "exception": None}
    ),
    "task_thread_func": lambda: Case(
        sdax.task_thread_func,
        {**FUNCTION, "function": failing, "abandon_on_cancel": True, "executor": None},
    ),
    "task": lambda: Case(sdax.task, {"name": "A", **PHASES}),
    "hedged": lambda: Case(
        lambda function, delay, attempts: TaskFunction(sdax.hedged(function, delay, attempts)),
        {"function": nothing, "delay": 1.0, "attempts": 2},
    ),
    "join": lambda: Case(sdax.join, {"name": "A"}),
    "AsyncTask": lambda: Case(AsyncTask, {"name": "A", **PHASES}),
    "AsyncTaskProcessor": lambda: Case(
        AsyncTaskProcessor, {"added": ((TASK, 1),), "options": Options(**LEVELS)}
    ),
    **processor_cases(levels, "AsyncTaskProcessor"),
    "AsyncTaskProcessor.elevator_builder": lambda: Case(
        AsyncTaskProcessor.elevator_builder, LEVELS
    ),
    "AsyncTaskProcessor.graph_builder": lambda: Case(AsyncTaskProcessor.graph_builder, GRAPH),
    "AsyncTaskProcessorBuilder": lambda: Case(AsyncTaskProcessorBuilder, LEVELS),
    "AsyncTaskProcessorBuilder.add_task": lambda: Case(
        AsyncTaskProcessor.builder().add_task, {"task": TASK, "level": 1}
    ),
    "AsyncTaskProcessorBuilder.build": lambda: Case(AsyncTaskProcessor.builder().build, {}),
    "AsyncDagTaskProcessor": lambda: Case(
        AsyncDagTaskProcessor, {"added": ((TASK, ()),), "options": Options(**GRAPH)}
    ),
    **processor_cases(graph, "AsyncDagTaskProcessor"),
    "AsyncDagTaskProcessorBuilder": lambda: Case(AsyncDagTaskProcessorBuilder, GRAPH),
    "AsyncDagTaskProcessorBuilder.add_task": lambda: Case(
        AsyncDagTaskProcessor.builder().add_task(sdax.join("B")).add_task,
        {"task": TASK, "depends_on": ("B",)},
    ),
    "AsyncDagTaskProcessorBuilder.build": lambda: Case(AsyncDagTaskProcessor.builder().build, {}),
    "AsyncPhaseRunner": lambda: Case(AsyncPhaseRunner, {"ctx": None, "make_run": failing}),
    **{
        f"AsyncPhaseRunner.{method}": lambda method=method: Case(  # type: ignore[misc]
            getattr(levels().open(None), method), {}
        )
        for method in (
            "run_next",
            "next_phase_id",
            "last_phase_id",
            "has_failures",
            "failures",
            "raise_failures",
            "aclose",
        )
    },
    "RunReport": lambda: Case(
        RunReport, {"plan": None, "values": None, "phases": None, "durations": None}
    ),
    "RunReport.__getitem__": lambda: Case(
        lambda name: play(run_report())[name], {"name": "A"}, (KeyError,)
    ),
    "SdaxExecutionError": lambda: Case(
        lambda message, exceptions: SdaxExecutionError(message, exceptions),
        {"message": "A", "exceptions": [ValueError()]},
    ),
    "SdaxExecutionError.from_failures": lambda: Case(
        SdaxExecutionError.from_failures, {"failures": [failure()], "report": None}
    ),
    "SdaxExecutionError.derive": lambda: Case(
        lambda exceptions: SdaxExecutionError("A", [OSError()]).derive(exceptions),
        {"exceptions": [ValueError()]},
    ),
    "SdaxExecutionError.leaf_exceptions": lambda: Case(
        SdaxExecutionError("A", [OSError()]).leaf_exceptions, {}
    ),
    "RetryBudget": lambda: Case(
        sdax.RetryBudget,
        {"ratio": 0.2, "min_per_second": 10.0, "ttl": 10.0, "clock": time.monotonic},
    ),
    "RetryBudget.deposit": lambda: Case(sdax.RetryBudget().deposit, {}),
    "RetryBudget.give_back": lambda: Case(sdax.RetryBudget().give_back, {}),
    "RetryBudget.try_withdraw": lambda: Case(sdax.RetryBudget().try_withdraw, {}),
    "SdaxExecutionError.first": lambda: Case(
        SdaxExecutionError("A", [OSError()]).first, {"kind": OSError}
    ),
    "SdaxTaskGroup": lambda: Case(sdax.SdaxTaskGroup, {}),
    "RetryableException": lambda: Case(
        lambda message, retry_after: sdax.RetryableException(message, retry_after=retry_after),
        {"message": "A", "retry_after": 2.0},
    ),
    "TaskCancelledError": lambda: Case(
        lambda message: sdax.TaskCancelledError(message), {"message": "A"}
    ),
    "flatten_exceptions": lambda: Case(sdax.flatten_exceptions, {"exception": ValueError()}),
}
FUNCTIONS = {
    "task_sync_func": failing,
    "task_group_func": with_two,
    "task_group_task": with_two,
    "task_outcome_func": with_two,
}
ALIASES = {"AsyncDagLevelAdapterBuilder": "AsyncTaskProcessorBuilder"}
CONSTANTS = {"IMPLEMENTATION", "Limits", "__version__"}  # and a type that takes everything


def public_calls() -> set[str]:
    """Return what can be called of the package: constructors, methods and functions.

    Not enumerations and named tuples, for which Python's own rules hold.
    """
    found = set[str]()
    for name in set(sdax.__all__) - CONSTANTS:
        thing = getattr(sdax, name)
        found.add(name)
        if not inspect.isclass(thing):
            continue
        for kind in thing.__mro__:
            for method, value in vars(kind).items():
                public = method == "__getitem__" or not method.startswith("_")
                if public and kind.__module__.startswith("sdax.") and hasattr(value, "__get__"):
                    function = inspect.unwrap(getattr(thing, method))
                    if inspect.isroutine(function):
                        found.add(f"{name}.{method}")
    return found


def is_data(name: str) -> bool:
    thing = getattr(sdax, name.partition(".")[0])
    return inspect.isclass(thing) and issubclass(thing, (enum.Enum, tuple))


def test_every_public_call_is_covered() -> None:
    calls = {name for name in public_calls() if not is_data(name)}
    for alias, name in ALIASES.items():
        assert getattr(sdax, alias) is getattr(sdax, name)
        calls = {call for call in calls if call.partition(".")[0] != alias}
    assert calls == set(CASES)


class BoundedLoop(VirtualClockLoop):
    """Cancels everything after so many passes: for runs that would try again for ever."""

    passes = 0

    def _run_once(self) -> None:
        self.passes += 1
        if self.passes % 200 == 0:
            for each in asyncio.all_tasks(self):
                each.cancel()
        super()._run_once()  # type: ignore[misc]


def play(coroutine: Coroutine[Any, Any, Any]) -> Any:
    with asyncio.Runner(loop_factory=BoundedLoop) as runner:
        return runner.run(coroutine)


def use(result: Any) -> None:
    """Do with the result of a call what it is for."""
    if isinstance(result, TaskFunction):
        if "Thread" not in type(result.function).__name__:  # which need another kind of loop
            before = None if result.has_outcome_argument else result
            after = result if result.fallback is None else None  # which a cleanup cannot have
            use(AsyncTask("used", before, before, after))
    elif isinstance(result, AsyncTask):
        use(AsyncTaskProcessor.builder().add_task(result, 1))
        use(AsyncDagTaskProcessor.builder(execute_order="dependency").add_task(result))
    elif isinstance(result, (AsyncTaskProcessorBuilder, AsyncDagTaskProcessorBuilder)):
        with suppress(ValueError, OwnError):  # a dependency that is not there
            use(result.build())
    elif isinstance(result, (AsyncTaskProcessor, AsyncDagTaskProcessor)):
        assert str(result) and repr(result) and result.to_mermaid()
        with suppress(SdaxExecutionError, asyncio.CancelledError):
            use(play(result.process_tasks(None)))
    elif isinstance(result, RunReport):
        assert repr(result)
        for name in result:
            assert len(result[name]) == 3
    elif isinstance(result, AsyncPhaseRunner):
        with suppress(OwnError):  # of the function that makes the run
            play(result.aclose())


def says_what_for(error: Exception, arguments: dict[str, Any]) -> bool:
    message = str(error)
    values = list(arguments.values())
    for value in values:  # what it gets added is looked into as well
        if isinstance(value, (list, tuple)):
            values += value
    words = [*arguments, *map(shown, values), *(f"{type(value).__name__}'" for value in values)]
    return any(word in message for word in words) or "argument" in message


@pytest.mark.parametrize("name", CASES)
def test_arbitrary_arguments(engine: Any, name: str) -> None:
    type_name = name.partition(".")[0]  # as Python itself may call it

    @search
    @given(st.data())
    def check(data: st.DataObject) -> None:
        case = CASES[name]()
        arguments = dict(case.arguments)
        if arguments:
            replaced = st.sets(st.sampled_from(sorted(arguments)), min_size=1, max_size=3)
            for parameter in sorted(data.draw(replaced)):
                arguments[parameter] = data.draw(ANYTHING).value
        try:
            result = case.call(**arguments)
            if inspect.iscoroutine(result):
                result = play(result)
        except case.allowed:
            return
        except OwnError:
            return
        except (TypeError, ValueError) as error:
            assert says_what_for(error, arguments) or type_name in str(error), error
            return
        use(result)

    check()


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name]().arguments])
def test_wrong_numbers_of_arguments(name: str) -> None:
    case = CASES[name]()
    for arguments in ({**case.arguments, "surplus": 1}, {}):
        with suppress(TypeError):
            result = case.call(**arguments)
            if inspect.iscoroutine(result):
                result.close()
            assert not arguments, "an argument that nobody knows was taken"


@pytest.mark.parametrize("name", sorted(filter(is_data, set(sdax.__all__) - CONSTANTS)))
@search
@given(thrown=ANYTHING)
def test_plain_data(name: str, thrown: Thrown) -> None:
    thing, value = getattr(sdax, name), thrown.value
    if issubclass(thing, tuple):
        made = thing(*[value] * len(thing._fields))
        assert all(each is value for each in made)
        return
    with suppress(ValueError, OwnError, ShowError):  # Python shows what is not in it
        assert thing(value) in thing


# What the search has found.


@pytest.mark.parametrize("limit", [10**30, HUGE], ids=["long", "huge"])
async def test_more_places_than_can_be_counted(limit: int) -> None:
    builder = AsyncTaskProcessor.builder(max_concurrency=limit)
    report = await builder.add_task(TASK, 1).build().process_tasks(None)
    assert report["A"].execute.state == "succeeded"


@pytest.mark.parametrize("timeout", [1e308, 10**300, OddFloat(60)], ids=["1e308", "10**300", "odd"])
async def test_a_timeout_beyond_all_clocks(timeout: float) -> None:
    async def pause(ctx: Any) -> int:
        await asyncio.sleep(0)
        return 1

    report = await solo(TaskFunction(pause, timeout=timeout)).process_tasks(None)
    assert report["A"].pre_execute.value == 1


async def test_a_delay_beyond_all_clocks() -> None:
    calls: list[int] = []

    async def fail(ctx: Any) -> None:
        calls.append(1)
        raise TimeoutError

    run = spawn(solo(TaskFunction(fail, retries=HUGE, initial_delay=1e308, backoff_factor=1e308)))
    await until(lambda: calls)
    run.cancel()
    assert isinstance(await error_of(run), asyncio.CancelledError)
    assert len(calls) == 1


@pytest.mark.parametrize("name", [Unshowable(), UnshowableText("A"), HUGE], ids=type)
async def test_a_name_that_cannot_be_shown(name: Any) -> None:
    processor = (
        AsyncTaskProcessor.builder().add_task(AsyncTask(name, TaskFunction(failing)), 1).build()
    )
    error = await failure_of(processor)
    assert object.__repr__(name) in str(error)
    assert error.failures[0].name is name
    assert object.__repr__(name) in error.exceptions[0].__notes__[0]
    assert "pre_execute" in str(processor)
    assert processor.to_mermaid()


class UnshowableList(list[Any]):
    __repr__ = Unshowable.__repr__


@pytest.mark.parametrize("derived", [False, True])
def test_a_group_of_what_cannot_be_shown(derived: bool) -> None:
    def group(exceptions: Any) -> SdaxExecutionError:
        made = SdaxExecutionError("A", [OSError()] if derived else exceptions)
        return made.derive(exceptions) if derived else made

    with pytest.raises(ValueError, match="Item 0 of second argument"):
        group(UnshowableText("A"))
    member = KeyError()
    assert group(UnshowableList([member])).exceptions == (member,)


def test_a_processor_without_a_builder_is_checked_like_one_with() -> None:
    with pytest.raises(ValueError, match="two tasks are named 'A'"):
        AsyncTaskProcessor(((TASK, 1), (TASK, 2)))
    with pytest.raises(TypeError, match="level of task 'A' must be an integer, got '1'"):
        AsyncTaskProcessor(((TASK, "1"),))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="got 'B'; did you mean"):
        AsyncDagTaskProcessor(((TASK, "B"),))  # type: ignore[arg-type]
    for added in ((TASK,), ["00"], [(0, TASK)]):  # of "00", each "0" was taken for half of a pair
        with pytest.raises(TypeError, match=r"pairs of a task and its place.*use builder\(\)"):
            AsyncTaskProcessor(added)  # type: ignore[arg-type]


@pytest.mark.parametrize("predicate", [nothing, yielding])
def test_a_predicate_that_nobody_would_await(predicate: Any) -> None:
    # It was taken for a plain one: always true, and a coroutine was dropped at each failure.
    with pytest.raises(TypeError, match="plain predicate"):
        TaskFunction(nothing, retries=1, retryable_exceptions=predicate)
