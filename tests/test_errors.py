"""The exceptions: groups that keep their type, and tell what failed."""

from __future__ import annotations

import asyncio
import copy
import copyreg
import pickle
import traceback
from typing import Any

import pytest

from helpers import Broken, Trace, build, failure_of, solo, task
from sdax import (
    RetryableException,
    RunReport,
    SdaxExecutionError,
    TaskCancelledError,
    TaskFailure,
    TaskFunction,
    flatten_exceptions,
)

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


@pytest.fixture(autouse=True)
def _pickled_by_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where another test has loaded distributed, tblib copies and pickles every exception."""
    for kind in list(copyreg.dispatch_table):
        if issubclass(kind, BaseException):
            monkeypatch.delitem(copyreg.dispatch_table, kind)


async def raise_what_it_is_told(ctx: Any) -> None:
    raise ctx


async def raise_in_a_group(ctx: Any, group: Any) -> None:
    raise ctx


def failing(*errors: Exception) -> Any:
    """A processor of tasks "0", "1" ... that fail with these in cleanup, so all of them do."""
    return build(
        [task(str(index), post=Trace().failing("", error)) for index, error in enumerate(errors)]
    )


async def test_an_exception_group_of_the_very_objects() -> None:
    errors = (Broken(1), ValueError(2), Broken(3))
    error = await failure_of(failing(*errors))
    assert isinstance(error, ExceptionGroup)
    assert type(error) is SdaxExecutionError
    assert len(error.exceptions) == 3
    assert all(one is other for one, other in zip(error.exceptions, errors, strict=True))


async def test_messages() -> None:
    error = await failure_of(failing(Broken()))
    assert error.message == "post_execute of task '0' failed"
    error = await failure_of(failing(Broken(), Broken()))
    assert error.message == "2 failures, the first: post_execute of task '0' failed"


async def test_the_text_says_why() -> None:
    error = await failure_of(failing(Broken("first\nline 2"), KeyError("second")))
    assert str(error) == (
        "2 failures, the first: post_execute of task '0' failed (2 sub-exceptions): "
        "Broken: first ..."
    )
    (_, second) = error.split(Broken)
    assert str(second).endswith("failed (1 sub-exception): KeyError: 'second'")
    inner = ExceptionGroup("a group", [await failure_of(failing(ValueError("x" * 1000)))])
    outer = str(await failure_of(failing(inner)))
    assert outer.startswith("post_execute of task '0' failed (1 sub-exception): ValueError: xxx")
    assert outer.endswith("xxx…")
    assert len(outer) < 300


async def test_failures() -> None:
    errors = (Broken(1), ValueError(2))
    error = await failure_of(failing(*errors))
    assert error.failures == (
        ("0", "post_execute", 1, errors[0]),
        ("1", "post_execute", 1, errors[1]),
    )
    first = error.failures[0]
    assert type(first) is TaskFailure
    assert first._fields == ("name", "phase", "attempts", "exception")


def test_there_is_no_error_without_failures() -> None:
    with pytest.raises(ValueError, match="at least one TaskFailure, got none"):
        SdaxExecutionError.from_failures([], None)


async def test_notes() -> None:
    broken = Broken("broken")
    broken.add_note("of the function's own")
    await failure_of(
        build([task(("name", 1), TaskFunction(Trace().failing("", broken), retries=4))])
    )
    assert broken.__notes__ == [
        "of the function's own",
        "task ('name', 1), pre_execute, attempt 1 of 5",
    ]


async def test_notes_in_a_traceback() -> None:
    error = await failure_of(failing(Broken("text")))
    printed = "".join(traceback.format_exception(error))
    assert "Broken: text" in printed
    assert "task '0', post_execute, attempt 1 of 1" in printed


async def test_an_exception_that_refuses_notes() -> None:
    class Mute(Exception):
        def add_note(self, note: str) -> None:
            raise RuntimeError

    mute = Mute()
    assert (await failure_of(failing(mute))).exceptions == (mute,)


async def test_an_exception_that_refuses_everything() -> None:
    class Difficult(Exception):
        __slots__ = ()

        def __eq__(self, other: object) -> bool:
            raise RuntimeError

        def __bool__(self) -> bool:
            raise RuntimeError

        def __repr__(self) -> str:
            raise RuntimeError

        __hash__ = None  # type: ignore[assignment]

    difficult = Difficult()
    error = await failure_of(failing(difficult))
    assert error.exceptions[0] is difficult
    matched, rest = split(error, Difficult)
    assert matched is not None
    assert rest is None
    assert matched.failures[0].name == "0"


async def test_a_group_of_a_functions_own_stays_one_member() -> None:
    group = ExceptionGroup("own", [Broken(1), ExceptionGroup("inner", [Broken(2)])])
    error = await failure_of(failing(group, Broken(3)))
    assert error.exceptions[0] is group
    assert len(error.exceptions) == 2
    assert [leaf.args for leaf in error.leaf_exceptions()] == [(1,), (2,), (3,)]


async def test_except_star_keeps_the_type() -> None:
    errors = (Broken(1), ValueError(2), Broken(3))
    caught: list[Any] = []
    try:
        await failing(*errors).process_tasks(None)
    except* Broken as group:
        caught.append(group)
    except* ValueError as group:
        caught.append(group)
    assert [type(group) for group in caught] == [SdaxExecutionError] * 2
    assert caught[0].exceptions == (errors[0], errors[2])
    assert [failure.name for failure in caught[0].failures] == ["0", "2"]
    assert [failure.name for failure in caught[1].failures] == ["1"]
    assert caught[0].report is caught[1].report
    assert states_of(caught[0]) == {"0": "failed", "1": "failed", "2": "failed"}


def states_of(error: SdaxExecutionError) -> dict[Any, str]:
    return {name: str(phases.post_execute.state) for name, phases in error.report.items()}


async def test_what_except_star_does_not_catch_keeps_the_type() -> None:
    errors = (Broken(1), ValueError(2))
    with pytest.raises(SdaxExecutionError) as caught:
        try:
            await failing(*errors).process_tasks(None)
        except* Broken:
            pass
    assert caught.value.exceptions == (errors[1],)
    assert [failure.name for failure in caught.value.failures] == ["1"]


def split(error: SdaxExecutionError, kind: type[Exception]) -> Any:
    """Split, forgetting the types, which promise only an ExceptionGroup."""
    return error.split(kind)


async def test_split_and_subgroup() -> None:
    errors = (Broken(1), ValueError(2), Broken(3))
    error = await failure_of(failing(*errors))
    matched, rest = split(error, Broken)
    assert type(matched) is type(rest) is SdaxExecutionError
    assert matched is not None
    assert rest is not None
    assert matched.exceptions == (errors[0], errors[2])
    assert rest.exceptions == (errors[1],)
    assert [failure.name for failure in matched.failures] == ["0", "2"]
    assert [failure.name for failure in rest.failures] == ["1"]
    some = error.subgroup(lambda member: member.args == (2,))
    assert type(some) is SdaxExecutionError
    assert some.failures == (error.failures[1],)
    assert some.message == error.message
    assert some.report is error.report
    assert error.subgroup(KeyError) is None


async def test_derive_of_nothing_known() -> None:
    error = await failure_of(failing(Broken()))
    other = error.derive([ValueError()])
    assert type(other) is SdaxExecutionError
    assert other.failures == ()
    assert other.report is error.report


async def test_split_of_a_group_that_a_function_raised() -> None:
    group = ExceptionGroup("own", [Broken(1), ValueError(2)])
    error = await failure_of(failing(group, KeyError(3)))
    matched, rest = split(error, Broken)
    assert matched is not None
    assert rest is not None
    assert [failure.name for failure in matched.failures] == ["0"]
    assert matched.failures[0].exception is matched.exceptions[0]
    assert [failure.name for failure in rest.failures] == ["0", "1"]
    assert tuple(failure.exception for failure in rest.failures) == rest.exceptions


async def test_the_same_object_out_of_several_functions() -> None:
    broken = Broken()
    error = await failure_of(failing(broken, broken, ValueError()))
    assert error.exceptions[:2] == (broken, broken)
    assert [failure.name for failure in error.failures] == ["0", "1", "2"]
    matched, _ = split(error, Broken)
    assert matched is not None
    assert [failure.name for failure in matched.failures] == ["0", "1"]


def test_made_by_hand() -> None:
    error = SdaxExecutionError("message", [Broken()])
    assert error.failures == ()
    assert isinstance(error.subgroup(Broken), SdaxExecutionError)
    failure = TaskFailure("A", "execute", 1, Broken())
    for made in (error, SdaxExecutionError.from_failures([failure], None)):
        assert isinstance(made.report, RunReport)
        assert len(made.report) == 0
        assert str(made.report) == "0 tasks"
        assert made.report.ok
        assert made.report.duration is None
        with pytest.raises(KeyError, match="there is no task 'A'"):
            made.report["A"]


async def test_the_first_of_a_kind() -> None:
    inner = KeyError(2)
    group = ExceptionGroup("own", [ValueError(1), ExceptionGroup("inner", [inner])])
    plain, last = KeyError(3), Broken(4)
    error = await failure_of(failing(group, plain, last))
    assert error.first(LookupError) is inner
    assert error.first(Broken) is last
    assert error.first(ExceptionGroup) is group
    assert error.first(Exception) is group
    assert error.first(OSError) is None
    assert error.first(KeyboardInterrupt) is None
    matched, _ = split(error, KeyError)
    assert matched.first(KeyError) is inner
    assert matched.first(Broken) is None


async def test_the_first_of_a_kind_in_a_deep_group() -> None:
    deep: Exception = Broken()
    for _ in range(5000):
        deep = ExceptionGroup("", [deep])
    error = SdaxExecutionError("message", [deep])
    assert type(error.first(Broken)) is Broken
    while isinstance(deep, ExceptionGroup):
        deep = deep.exceptions[0]


@pytest.mark.parametrize("kind", [None, 5, "Broken", Broken(), int, (Broken, OSError)])
def test_what_is_no_kind_of_exception(kind: Any) -> None:
    with pytest.raises(TypeError, match="first takes an exception class, got "):
        SdaxExecutionError("message", [Broken()]).first(kind)


def copies(error: Any) -> list[Any]:
    return [
        copy.copy(error),
        *(
            pickle.loads(pickle.dumps(error, protocol))
            for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
        ),
    ]


@pytest.mark.parametrize("group", [False, True])
async def test_pickle_and_copy(group: bool) -> None:
    function: TaskFunction[Any] = (
        TaskFunction(raise_in_a_group, has_task_group_argument=True)
        if group
        else TaskFunction(raise_what_it_is_told)
    )
    error = await failure_of(build([task("A", post=function), task("B", post=function)]), Broken(5))
    for again in copies(error):
        assert type(again) is SdaxExecutionError
        assert again.message == error.message
        assert [leaf.args for leaf in again.leaf_exceptions()] == [(5,), (5,)]
        assert [failure[:3] for failure in again.failures] == [
            ("A", "post_execute", 1),
            ("B", "post_execute", 1),
        ]
        assert tuple(failure.exception for failure in again.failures) == again.exceptions
        assert states_of(again) == {"A": "failed", "B": "failed"}


async def test_pickle_of_a_failure_of_local_functions() -> None:
    # A result that crosses to another process must not depend on what the functions were.
    error = await failure_of(failing(Broken(5)))
    again = pickle.loads(pickle.dumps(error))
    assert again.exceptions[0].args == (5,)
    assert [failure.name for failure in again.failures] == ["0"]


class OrderError(SdaxExecutionError):
    """A group whose constructor takes other arguments, and that cannot be changed."""

    def __new__(cls, order: int, exceptions: Any) -> Any:
        return super().__new__(cls, f"order {order} failed", exceptions)

    def __init__(self, order: int, exceptions: Any) -> None:
        vars(self)["order"] = order

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"cannot set {name}")


def check_order_error(error: Any, *members: Exception) -> None:
    assert type(error) is OrderError
    assert error.exceptions == members
    assert (error.message, error.order) == ("order 7 failed", 7)


def test_groups_of_a_subclass_with_another_constructor() -> None:
    errors = (Broken(1), ValueError(2), Broken(3))
    error: Any = OrderError(7, errors)
    matched, rest = error.split(Broken)
    check_order_error(matched, errors[0], errors[2])
    check_order_error(rest, errors[1])
    check_order_error(error.subgroup(ValueError), errors[1])
    check_order_error(error.derive([errors[2]]), errors[2])


def test_except_star_with_a_subclass_with_another_constructor() -> None:
    errors = (Broken(1), ValueError(2))
    caught: list[Any] = []
    with pytest.raises(OrderError) as left:
        try:
            raise OrderError(7, errors)
        except* Broken as group:
            caught.append(group)
    check_order_error(caught[0], errors[0])
    check_order_error(left.value, errors[1])


def test_copies_of_a_subclass_with_another_constructor() -> None:
    error: Any = OrderError(7, [Broken(1)])
    vars(error)["__notes__"] = ["noted"]
    for again in [*copies(error), copy.deepcopy(error)]:
        check_order_error(again, *again.exceptions)
        assert again.exceptions[0].args == (1,)
        assert again.__notes__ == ["noted"]


async def test_the_notes_of_a_group_stay_its_own() -> None:
    error: Any = await failure_of(failing(Broken(1), ValueError(2)))
    error.add_note("of both")
    matched, _ = error.split(Broken)
    matched.add_note("of one")
    assert error.__notes__ == ["of both"]
    assert matched.__notes__ == ["of both", "of one"]
    assert not hasattr(error.derive([Broken()]), "__notes__")


def test_flatten_exceptions() -> None:
    one, two, three = Broken(1), Broken(2), KeyboardInterrupt()
    nested = BaseExceptionGroup("", [ExceptionGroup("", [one, ExceptionGroup("", [two])]), three])
    assert flatten_exceptions(nested) == [one, two, three]
    assert flatten_exceptions(one) == [one]


def test_flatten_exceptions_of_a_deep_group() -> None:
    deep: Exception = Broken()
    for _ in range(100_000):
        deep = ExceptionGroup("", [deep])
    (leaf,) = flatten_exceptions(deep)
    assert type(leaf) is Broken
    # Python itself would take it apart recursively.
    while isinstance(deep, ExceptionGroup):
        deep = deep.exceptions[0]


def test_what_is_what() -> None:
    assert issubclass(SdaxExecutionError, ExceptionGroup)
    assert issubclass(RetryableException, Exception)
    assert issubclass(TaskCancelledError, Exception)
    # `except asyncio.CancelledError` is for cancellations that were asked for.
    assert not issubclass(TaskCancelledError, asyncio.CancelledError)


async def test_tracebacks_show_the_functions_frames() -> None:
    def raises() -> None:
        raise Broken

    async def sync_part(ctx: Any) -> None:
        raises()

    async def suspended(ctx: Any) -> None:
        await asyncio.sleep(0)
        raises()

    def callable_part(ctx: Any) -> Any:
        raises()

    for function in (sync_part, suspended, callable_part):
        for timeout in (None, 60):
            error = await failure_of(solo(TaskFunction(function, timeout)))
            traceback = error.exceptions[0].__traceback__
            names = []
            while traceback is not None:
                names.append(traceback.tb_frame.f_code.co_name)
                traceback = traceback.tb_next
            assert names == [function.__name__, "raises"]


async def test_exceptions_are_not_chained_to_each_other() -> None:
    first, second = Broken(1), Broken(2)
    error = await failure_of(
        build(
            [task("A", Trace().failing("A", first), post=Trace().failing("A", second))],
        )
    )
    assert error.exceptions == (first, second)
    assert first.__context__ is None
    assert second.__context__ is None
    assert error.__context__ is None
    assert error.__cause__ is None


def test_a_set_is_not_a_sequence() -> None:
    with pytest.raises(TypeError, match="second argument"):
        SdaxExecutionError("m", {ValueError()})  # type: ignore[arg-type]
