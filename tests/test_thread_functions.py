"""Blocking functions in threads."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import pickle
import sys
import threading
import traceback
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import (
    BrokenExecutor,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
)
from contextlib import suppress
from typing import Any

import pytest

from conftest import HANGS_AFTER, Implementation
from helpers import (
    PHASES,
    Broken,
    Trace,
    build,
    counts_references,
    error_of,
    failure_of,
    nothing,
    passes,
    solo,
    spawn,
    states,
    task_in,
    until,
    var,
    without_collector,
)
from observing import Recorder
from processes import run_python
from sdax import (
    SdaxExecutionError,
    TaskCancelledError,
    task,
    task_func,
    task_sync_func,
    task_thread_func,
)
from sdax.observe import AttemptResumed

WORK_PHASES = PHASES[:2]  # those that a failure stops


class Gate:
    """A function that blocks its thread until the gate is opened."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error
        self.called = threading.Event()
        self.opened = threading.Event()
        self.left = 0
        self.thread: threading.Thread | None = None

    def __call__(self, ctx: Any) -> str:
        self.thread = threading.current_thread()
        self.called.set()
        assert self.opened.wait(HANGS_AFTER)
        self.left += 1
        if self.error is not None:
            raise self.error
        return "value"

    async def until_called(self) -> None:
        await until_in_thread(self.called.is_set)

    def open(self, ctx: Any = None) -> None:
        self.opened.set()


@pytest.fixture
def gate() -> Iterator[Gate]:
    """A gate that is open at the end, so that no thread stays."""
    gate = Gate()
    yield gate
    gate.open()


async def until_in_thread(condition: Callable[[], bool]) -> None:
    """Wait for what another thread does."""
    while not condition():  # noqa: ASYNC110 (no event of the loop tells of it)
        await asyncio.sleep(0.001)


async def hold_up(executor: ThreadPoolExecutor, gate: Gate) -> None:
    """Take the only thread of an executor."""
    executor.submit(gate, None)
    await gate.until_called()


@pytest.fixture
def one_thread() -> Iterator[ThreadPoolExecutor]:
    """An executor of one thread."""
    with ThreadPoolExecutor(1, thread_name_prefix="one") as executor:
        yield executor


def name_of_thread(ctx: Any = None) -> str:
    return threading.current_thread().name


def is_on_main_thread(ctx: Any = None) -> bool:
    return threading.current_thread() is threading.main_thread()


@pytest.mark.parametrize("phase", PHASES)
async def test_a_thread_function_runs_in_another_thread(phase: str) -> None:
    function = task_thread_func(lambda ctx: (ctx, threading.get_ident()))
    report = await build([task_in(phase, function)]).process_tasks("context")
    ctx, thread = getattr(report["A"], phase).value
    assert ctx == "context"
    assert thread != threading.get_ident()


async def test_a_blocking_function_does_not_block_the_loop() -> None:
    freed = threading.Event()

    async def free(ctx: Any) -> None:
        await passes(2)
        freed.set()

    processor = build(
        [
            task("blocks", execute=task_thread_func(lambda ctx: freed.wait(5))),
            task("frees", execute=task_func(free)),
        ]
    )
    report = await processor.process_tasks(None)
    assert report["blocks"].execute.value is True


async def test_thread_functions_run_at_the_same_time() -> None:
    barrier = threading.Barrier(3, timeout=5)
    processor = build(
        [task(n, execute=task_thread_func(lambda ctx: barrier.wait())) for n in "abc"]
    )
    report = await processor.process_tasks(None)
    assert sorted(each.execute.value for each in report.values()) == [0, 1, 2]


async def test_context_variables_are_carried_into_the_thread_and_not_back() -> None:
    var.set("the caller's")

    def look(ctx: Any) -> str:
        seen = var.get()
        var.set("the thread's")
        return seen

    processor = build([task(n, execute=task_thread_func(look)) for n in "ab"])
    report = await processor.process_tasks(None)
    assert {each.execute.value for each in report.values()} == {"the caller's"}
    assert var.get() == "the caller's"


async def test_a_thread_function_that_fails_is_retried() -> None:
    outcomes = iter([ConnectionError(), None])

    def flaky(ctx: Any) -> str:
        if error := next(outcomes):
            raise error
        return "value"

    function = task_thread_func(flaky, retries=1, initial_delay=0)
    report = await solo(execute=function).process_tasks(None)
    assert report["A"].execute[:4] == ("succeeded", 2, "value", None)


async def test_the_error_of_a_thread_function_is_its_own() -> None:
    error = ValueError("mine")

    def fail(ctx: Any) -> None:
        raise error

    assert (await failure_of(solo(execute=task_thread_func(fail)))).exceptions == (error,)


async def test_a_coroutine_out_of_a_thread_is_refused() -> None:
    error = await failure_of(solo(execute=task_thread_func(lambda ctx: nothing(ctx))))
    (refused,) = error.exceptions
    assert type(refused) is TypeError
    assert str(refused).startswith("the function of a thread must be a plain one, but it returned")
    assert str(refused).endswith("use task_func")


# A thread cannot be stopped: it is waited for


@pytest.mark.parametrize("phase", PHASES)
async def test_a_timeout_waits_for_the_thread(phase: str, gate: Gate) -> None:
    run = spawn(build([task_in(phase, task_thread_func(gate, timeout=0.001))]))
    await gate.until_called()
    await asyncio.sleep(0.01)
    await passes(20)
    assert not run.done()
    gate.open()
    error: Any = await error_of(run)
    assert gate.left == 1
    (exception,) = error.exceptions
    assert type(exception) is TimeoutError
    assert "T" in states(error.report)["A"]


@pytest.mark.parametrize("phase", WORK_PHASES)
async def test_a_cancellation_waits_for_the_thread(phase: str, gate: Gate) -> None:
    trace: list[str] = []
    cleanup = task_sync_func(lambda ctx: trace.append(f"cleanup after {gate.left}"))
    run = spawn(build([task_in(phase, task_thread_func(gate), post=cleanup)]))
    await gate.until_called()
    run.cancel()
    await passes(20)
    assert not run.done()
    assert trace == []
    gate.open()
    assert isinstance(await error_of(run), asyncio.CancelledError)
    assert trace == ["cleanup after 1"]


async def test_a_failure_waits_for_the_threads_of_siblings(gate: Gate) -> None:
    async def fail(ctx: Any) -> None:
        await gate.until_called()
        raise Broken

    run = spawn(
        build([task("A", execute=task_thread_func(gate)), task("B", execute=task_func(fail))])
    )
    await gate.until_called()
    await asyncio.sleep(0.01)
    assert not run.done()
    gate.open()
    error: Any = await error_of(run)
    assert gate.left == 1
    assert states(error.report) == {"A": "-C-", "B": "-F-"}


async def test_a_retry_waits_for_the_thread_that_timed_out() -> None:
    gates = [Gate(), Gate()]
    calls: list[int] = []

    def function(ctx: Any) -> None:
        calls.append(sum(gate.left for gate in gates))
        gates[len(calls) - 1](ctx)

    run = spawn(solo(task_thread_func(function, timeout=0.001, retries=1, initial_delay=0)))
    for gate in gates:
        await gate.until_called()
        await asyncio.sleep(0.01)
        gate.open()
    error: Any = await error_of(run)
    assert error.failures[0].attempts == 2
    assert calls == [0, 1]


async def test_many_cancellations_take_a_step_each_and_no_more(gate: Gate) -> None:
    recorder = Recorder()
    processor = solo(execute=task_thread_func(gate))
    run = asyncio.ensure_future(processor.process_tasks(None, observer=recorder))
    await gate.until_called()
    function = next(t for t in asyncio.all_tasks() if t.get_name() == "sdax:A:execute")
    for _ in range(5):
        function.cancel()
        await passes(3)
    await passes(50)
    assert [type(event) for event in recorder].count(AttemptResumed) == 5
    assert not run.done()
    gate.open()
    error: Any = await error_of(run)
    assert type(error.exceptions[0]) is TaskCancelledError
    assert function.done()


@pytest.mark.parametrize("phase", WORK_PHASES)
async def test_what_a_thread_raises_after_a_cancellation_is_not_lost(
    phase: str, gate: Gate, loop_errors: list[Any]
) -> None:
    gate.error = broken = Broken("in the thread")
    run = spawn(build([task_in(phase, task_thread_func(gate))]))
    await gate.until_called()
    run.cancel()
    await passes(2)
    gate.open()
    error: Any = await error_of(run)
    assert isinstance(error, asyncio.CancelledError)
    assert error.__context__.exceptions == (broken,)  # type: ignore[union-attr]
    loop_errors.clear()


async def test_what_a_thread_raises_after_a_timeout_is_the_failure(gate: Gate) -> None:
    gate.error = Broken("in the thread")
    run = spawn(solo(task_thread_func(gate, timeout=0.001)))
    await gate.until_called()
    await asyncio.sleep(0.01)
    gate.open()
    error: Any = await error_of(run)
    assert error.exceptions == (gate.error,)
    assert states(error.report) == {"A": "F--"}


async def test_what_a_thread_returns_after_a_cancellation_counts_for_nothing(gate: Gate) -> None:
    fail = Trace().failing("B", Broken(), 5)
    run = spawn(
        build([task("A", execute=task_thread_func(gate)), task("B", execute=task_func(fail))])
    )
    await gate.until_called()
    await until(lambda: any(t.cancelling() for t in asyncio.all_tasks()))
    gate.open()
    error: Any = await error_of(run)
    assert error.report["A"].execute[:4] == ("cancelled", 1, None, None)


# Unless it is to be abandoned


async def test_a_timeout_may_abandon_the_thread(gate: Gate) -> None:
    function = task_thread_func(gate, timeout=0.001, abandon_on_cancel=True)
    error = await failure_of(solo(execute=function))
    assert gate.left == 0
    assert states(error.report) == {"A": "-T-"}


async def test_a_cancellation_may_abandon_the_thread(gate: Gate) -> None:
    run = spawn(solo(execute=task_thread_func(gate, abandon_on_cancel=True)))
    await gate.until_called()
    run.cancel()
    assert isinstance(await error_of(run), asyncio.CancelledError)
    assert gate.left == 0
    gate.open()  # or the loop, as it closes, would wait for the thread


async def test_what_an_abandoned_thread_raises_is_dropped(
    gate: Gate, loop_errors: list[Any]
) -> None:
    gate.error = Broken()
    function = task_thread_func(gate, timeout=0.001, abandon_on_cancel=True)
    await failure_of(solo(execute=function))
    gate.open()
    assert gate.thread is not None
    gate.thread.join()
    await passes(3)
    assert loop_errors == []


class AtOnce(Executor):
    """Makes each call before `submit` returns."""

    def submit(self, call: Any, /, *args: Any, **kwargs: Any) -> Any:
        work: Future[Any] = Future()
        try:
            work.set_result(call(*args, **kwargs))
        except Exception as error:
            work.set_exception(error)
        return work


async def test_a_failure_that_is_there_already_is_not_abandoned() -> None:
    broken = Broken()

    def fail(ctx: Any) -> None:
        raise broken

    function = task_thread_func(fail, timeout=0, abandon_on_cancel=True, executor=AtOnce())
    assert (await failure_of(solo(execute=function))).exceptions == (broken,)


@pytest.mark.parametrize("value", [1, None, "yes"])
def test_abandon_on_cancel_is_a_bool(value: Any) -> None:
    with pytest.raises(TypeError, match=f"abandon_on_cancel must be a bool, got {value!r}"):
        task_thread_func(print, abandon_on_cancel=value)


def test_an_abandoned_thread_may_outlive_its_loop(engine: Implementation) -> None:
    program = """
import asyncio, threading
from sdax import AsyncTaskProcessor, SdaxExecutionError, task, task_thread_func
opened = threading.Event()
function = task_thread_func(lambda ctx: opened.wait(60), timeout=0.001, abandon_on_cancel=True)
processor = AsyncTaskProcessor.builder().add_task(task("A", function), 1).build()
try:
    asyncio.run(processor.process_tasks(None))
except SdaxExecutionError:
    opened.set()
"""
    program = program.replace("function)", "pre_execute=function)")
    assert run_python(["-W", "error", "-c", program], engine) == ""


# Whose threads they are


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("limits", [{}, {"timeout": 60.0}], ids=["bare", "limited"])
async def test_an_executor_runs_it(phase: str, limits: Any, one_thread: ThreadPoolExecutor) -> None:
    var.set("the caller's")
    function = task_thread_func(
        lambda ctx: (name_of_thread(), var.get()), executor=one_thread, **limits
    )
    report = await build([task_in(phase, function)]).process_tasks(None)
    assert getattr(report["A"], phase).value == ("one_0", "the caller's")


@pytest.mark.parametrize("executor", ["threads", 4, ThreadPoolExecutor])
def test_what_is_no_executor_is_refused(executor: Any) -> None:
    with pytest.raises(TypeError, match="executor must be a") as caught:
        task_thread_func(print, executor=executor)
    assert repr(executor) in str(caught.value)


def describe_process(ctx: Any) -> tuple[int, str, str]:
    if ctx == "fail":
        raise Broken("in another process")
    return os.getpid(), ctx, var.get()


@pytest.mark.loop_kinds("asyncio")
async def test_an_executor_of_processes_runs_it_without_the_context_variables() -> None:
    var.set("the caller's")
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as executor:
        processor = solo(execute=task_thread_func(describe_process, executor=executor))
        process, ctx, seen = (await processor.process_tasks("context"))["A"].execute.value
        (error,) = (await failure_of(processor, "fail")).exceptions
    assert process != os.getpid()
    assert (ctx, seen) == ("context", "unset")
    assert (type(error), str(error)) == (Broken, "in another process")


async def test_an_executor_that_was_shut_down_is_a_failure(one_thread: ThreadPoolExecutor) -> None:
    one_thread.shutdown()
    error = await failure_of(solo(execute=task_thread_func(nothing_much, executor=one_thread)))
    assert "after shutdown" in str(error.exceptions[0])


def nothing_much(ctx: Any) -> None:
    """Return at once."""


@pytest.mark.parametrize("given", [True, False], ids=["given", "the loop's"])
@pytest.mark.parametrize("abandon", [True, False], ids=["abandoned", "waited for"])
async def test_a_call_that_waits_for_a_thread_is_given_up_at_once(
    given: bool, abandon: bool, one_thread: ThreadPoolExecutor, gate: Gate
) -> None:
    calls: list[Any] = []
    asyncio.get_running_loop().set_default_executor(one_thread)
    function = task_thread_func(
        calls.append,
        executor=one_thread if given else None,
        abandon_on_cancel=abandon,
    )
    await hold_up(one_thread, gate)
    run = spawn(solo(execute=function))
    await passes(3)
    run.cancel()
    assert isinstance(await error_of(run), asyncio.CancelledError)
    gate.open()
    one_thread.shutdown()
    assert calls == []


@pytest.mark.parametrize("given", [True, False], ids=["given", "the loop's"])
@pytest.mark.parametrize("cancelled", [True, False], ids=["cancelled", "alone"])
async def test_a_call_that_the_executor_drops(
    given: bool, cancelled: bool, one_thread: ThreadPoolExecutor, gate: Gate
) -> None:
    asyncio.get_running_loop().set_default_executor(one_thread)
    await hold_up(one_thread, gate)
    run = spawn(solo(execute=task_thread_func(print, executor=one_thread if given else None)))
    await passes(3)
    one_thread.shutdown(wait=False, cancel_futures=True)
    if cancelled:
        run.cancel()
    error: Any = await error_of(run)
    gate.open()  # as above
    if cancelled:
        assert isinstance(error, asyncio.CancelledError)
    else:
        (exception,) = error.exceptions
        assert type(exception) is TaskCancelledError
        assert str(exception.__cause__) == "the executor has cancelled the call"


@pytest.mark.parametrize("given", [True, False], ids=["given", "the loop's"])
async def test_an_executor_that_breaks(given: bool, caplog: Any) -> None:
    def fail() -> None:
        raise Broken

    executor = ThreadPoolExecutor(1, initializer=fail)
    asyncio.get_running_loop().set_default_executor(executor)
    error = await failure_of(
        solo(execute=task_thread_func(print, executor=executor if given else None))
    )
    assert isinstance(error.exceptions[0], BrokenExecutor)
    executor.shutdown()


async def test_the_loops_executor_runs_what_has_no_timeout(
    one_thread: ThreadPoolExecutor,
) -> None:
    asyncio.get_running_loop().set_default_executor(one_thread)
    function = task_thread_func(name_of_thread)
    report = await solo(function, function).process_tasks(None)
    assert [each.value for each in report["A"][:2]] == ["one_0"] * 2


async def test_a_cleanup_is_called_although_all_threads_hang(
    one_thread: ThreadPoolExecutor, gate: Gate
) -> None:
    asyncio.get_running_loop().set_default_executor(one_thread)
    await hold_up(one_thread, gate)
    report = await solo(post=task_thread_func(name_of_thread)).process_tasks(None)
    gate.open()
    assert report["A"].post_execute.value == "sdax:A:post_execute"


async def test_a_timeout_begins_when_the_function_is_called(
    one_thread: ThreadPoolExecutor, gate: Gate
) -> None:
    asyncio.get_running_loop().set_default_executor(one_thread)
    await hold_up(one_thread, gate)
    function = task_thread_func(name_of_thread, timeout=60)
    report = await solo(function).process_tasks(None)
    gate.open()
    assert report["A"].pre_execute.value == "sdax:A:pre_execute"


async def test_each_cleanup_has_a_thread() -> None:
    number = 50  # more than an executor of the loop has
    barrier = threading.Barrier(number, timeout=HANGS_AFTER)
    cleanup = task_thread_func(lambda ctx: barrier.wait())
    report = await build([task(n, post_execute=cleanup) for n in range(number)]).process_tasks(None)
    assert sorted(each.post_execute.value for each in report.values()) == [*range(number)]


@pytest.fixture
def late_threads(gate: Gate) -> Iterator[None]:
    """Let new threads begin to work only when the gate is open, as on a busy machine."""
    threading.setprofile(lambda *_: gate.opened.wait(HANGS_AFTER))
    yield
    threading.setprofile(None)


async def test_a_cleanup_is_called_although_its_thread_is_late(
    gate: Gate, late_threads: None
) -> None:
    called: list[Any] = []
    run = spawn(solo(post=task_thread_func(called.append, timeout=0.001)), "ctx")
    await asyncio.sleep(0.02)
    assert (called, run.done()) == ([], False)
    gate.open()
    error: Any = await error_of(run)
    assert called == ["ctx"]
    assert states(error.report) == {"A": "--T"}


@pytest.mark.parametrize("name", ["\ud800", "a\0b", "x" * 1000, "", ("a", 1)])
async def test_the_thread_of_a_task_of_any_name(name: Any) -> None:
    report = await build([task(name, post_execute=task_thread_func(name_of_thread))]).process_tasks(
        None
    )
    assert report[name].post_execute.value == f"sdax:{name}:post_execute"


async def test_no_thread_is_left() -> None:
    seen: list[threading.Thread] = []
    cleanup = task_thread_func(lambda ctx: seen.append(threading.current_thread()))
    await solo(post=cleanup).process_tasks(None)
    (thread,) = seen
    thread.join(HANGS_AFTER)
    assert not thread.is_alive()
    assert thread.daemon is False


@pytest.fixture
def no_more_threads() -> Iterator[None]:
    """Let no further thread start: there is no room for its stack."""
    size = threading.stack_size(2**46)
    yield
    threading.stack_size(size)


@pytest.mark.skipif(sys.platform == "win32", reason="its stacks cannot be that large")
@pytest.mark.parametrize("error", [None, Broken()])
async def test_a_cleanup_is_called_although_no_thread_can_be_started(
    error: Broken | None, no_more_threads: None
) -> None:
    seen: list[Any] = []

    def cleanup(ctx: Any) -> None:
        seen.append(is_on_main_thread())
        if error is not None:
            raise error

    raised: Any = await error_of(solo(post=task_thread_func(cleanup)).process_tasks(None))
    assert seen == [True]
    assert (raised and raised.exceptions) == (error and (error,))


@pytest.mark.skipif(sys.platform == "win32", reason="its stacks cannot be that large")
async def test_other_functions_fail_where_no_thread_can_be_started(no_more_threads: None) -> None:
    error = await failure_of(solo(task_thread_func(print, timeout=60)))
    assert "can't start new thread" in str(error.exceptions[0])


def test_the_interpreter_waits_for_a_cleanup(engine: Implementation) -> None:
    program = """
import asyncio, threading, time
from sdax import AsyncTaskProcessor, task, task_thread_func

began = threading.Event()

def clean_up(ctx):
    began.set()
    time.sleep(0.1)
    print("cleaned up")

processor = AsyncTaskProcessor.builder().add_task(
    task("A", post_execute=task_thread_func(clean_up)), level=1).build()
threading.Thread(target=lambda: asyncio.run(processor.process_tasks(None)), daemon=True).start()
began.wait()
"""
    assert run_python(["-c", program], engine) == "cleaned up\n"


@pytest.mark.skipif(sys.platform == "win32", reason="it has no signals")
def test_ctrl_c_waits_for_a_thread_and_its_cleanup(engine: Implementation) -> None:
    program = """
import asyncio, os, signal, time
from sdax import AsyncTaskProcessor, task, task_thread_func

def work(ctx):
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.1)
    print("worked")

processor = AsyncTaskProcessor.builder().add_task(task(
    "A", pre_execute=task_thread_func(work),
    post_execute=task_thread_func(lambda ctx: print("cleaned up"))), level=1).build()
try:
    asyncio.run(processor.process_tasks(None))
except KeyboardInterrupt:
    print("interrupted")
"""
    assert run_python(["-c", program], engine) == "worked\ncleaned up\ninterrupted\n"


# What comes out of it


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("given", [True, False], ids=["given", "none"])
async def test_stop_iteration_is_a_failure_as_out_of_a_coroutine(
    phase: str, given: bool, one_thread: ThreadPoolExecutor
) -> None:
    function = task_thread_func(lambda ctx: next(iter(ctx)), executor=one_thread if given else None)
    (exception,) = (await failure_of(build([task_in(phase, function)]), [])).exceptions
    assert type(exception) is RuntimeError
    assert str(exception) == "coroutine raised StopIteration"
    assert isinstance(exception.__cause__, StopIteration)


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit])
async def test_what_is_no_exception_is_raised_as_it_is(phase: str, kind: type) -> None:
    fatal = kind()

    def fail(ctx: Any) -> None:
        raise fatal

    assert (
        await error_of(build([task_in(phase, task_thread_func(fail))]).process_tasks(None)) is fatal
    )


@pytest.mark.parametrize("phase", PHASES)
async def test_a_traceback_begins_in_the_function(phase: str) -> None:
    def fail(ctx: Any) -> None:
        raise Broken

    (exception,) = (await failure_of(build([task_in(phase, task_thread_func(fail))]))).exceptions
    assert [frame.name for frame in traceback.extract_tb(exception.__traceback__)] == ["fail"]


class Context:
    """The context of a run whose end is watched."""


@counts_references
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("how", ["succeeds", "fails", "fails when cancelled", "is cancelled"])
async def test_nothing_is_left_of_it(phase: str, how: str, gate: Gate) -> None:
    gate.error = Broken() if "fails" in how else None
    limits = {"timeout": 0.001} if "cancelled" in how else {}
    processor = build([task_in(phase, task_thread_func(gate, **limits))])
    with without_collector():
        ctx = Context()
        gone = weakref.ref(ctx)
        run = spawn(processor, ctx)
        await gate.until_called()
        if limits:
            await asyncio.sleep(0.01)
        gate.open()
        with suppress(SdaxExecutionError):
            await run
        del run, ctx
        gate.error = None
        await until_in_thread(lambda: gone() is None)


async def test_one_with_an_executor_cannot_be_pickled(one_thread: ThreadPoolExecutor) -> None:
    with pytest.raises((TypeError, pickle.PicklingError), match="pickle"):
        pickle.dumps(task_thread_func(print, executor=one_thread))
    assert pickle.loads(pickle.dumps(task_thread_func(print, abandon_on_cancel=True))) == (
        task_thread_func(print, abandon_on_cancel=True)
    )


async def test_it_may_be_called_by_hand() -> None:
    function: Any = task_thread_func(lambda ctx: ctx + 1).function
    assert await function(1) == 2
