"""What observers hear of a run, in which context, and that they never touch it."""

from __future__ import annotations

import asyncio
import functools
import logging
import pickle
import threading
import weakref
from collections.abc import Callable, Generator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NoReturn

import pytest

from conftest import HANGS_AFTER
from helpers import (
    Trace,
    build,
    counts_references,
    error_of,
    failure_of,
    forever,
    nothing,
    passes,
    solo,
    states,
    task,
    until,
    without_collector,
    without_factory,
)
from observing import OUTLINE, Recorder, broken_rules, called, in_phase, line, run_of
from sdax import (
    AsyncDagTaskProcessor,
    AsyncTask,
    AsyncTaskProcessor,
    SdaxExecutionError,
    TaskFunction,
    join,
    task_func,
    task_group_func,
    task_sync_func,
    task_thread_func,
)
from sdax.observe import (
    AttemptFinished,
    AttemptResumed,
    AttemptStarted,
    AttemptSuspended,
    CancellationRequested,
    Cause,
    Event,
    PhaseFinished,
    PhaseStarted,
    RetryScheduled,
    RunFinished,
    TaskFinished,
    TaskInfo,
    TaskStarted,
    TimeoutExpired,
)

STEPS = (AttemptSuspended, AttemptResumed)


async def observed(processor: Any, ctx: Any = None) -> Recorder:
    """Run a processor, whatever comes of it, and return its events."""
    events = Recorder()
    error = await error_of(processor.process_tasks(ctx, observer=events))
    assert broken_rules(events) == []
    last = events[-1]
    assert isinstance(last, RunFinished)
    assert last.exception is error
    return events


async def test_a_success_that_never_suspends() -> None:
    trace = Trace()
    processor = build([task("A", trace.quick("A.pre"), trace.quick("", 7), trace.quick("A.post"))])
    assert (await observed(processor)).lines() == run_of(
        *in_phase("pre", *called("A.pre")),
        *in_phase("execute", *called("A.execute", "succeeded = 7")),
        *in_phase("post", *called("A.post")),
    )


@without_factory
async def test_of_siblings_that_suspend_and_levels() -> None:
    trace = Trace()
    processor = build(
        [task("A", trace.pausing("")), task("B", trace.pausing("", 2))], [task("C", nothing)]
    )
    assert (await observed(processor)).lines() == run_of(
        *in_phase(
            "pre",
            *["A.pre", "A.pre 1", "A.pre 1 suspended"],
            *["B.pre", "B.pre 1", "B.pre 1 suspended"],
            *["A.pre 1 resumed", "A.pre 1 succeeded", "A.pre succeeded after 1"],
            *["B.pre 1 resumed", "B.pre 1 suspended"],
            *["B.pre 1 resumed", "B.pre 1 succeeded", "B.pre succeeded after 1"],
            *called("C.pre"),
        )
    )


@pytest.mark.virtual_clock
async def test_a_retry_with_its_delay() -> None:
    failures = [ConnectionError("one"), ConnectionError("two")]

    async def flaky(ctx: Any) -> str:
        if failures:
            raise failures.pop(0)
        return "third"

    first, second = failures
    events = await observed(
        solo(TaskFunction(flaky, retries=5, initial_delay=8.0, backoff_factor=2.0))
    )
    assert events.lines() == run_of(
        *in_phase(
            "pre",
            "A.pre",
            *["A.pre 1", "A.pre 1 failed ConnectionError", "A.pre 1 retry ConnectionError"],
            *["A.pre 2", "A.pre 2 failed ConnectionError", "A.pre 2 retry ConnectionError"],
            *["A.pre 3", "A.pre 3 succeeded = 'third'", "A.pre succeeded after 3 = 'third'"],
        )
    )
    planned = [event for event in events if isinstance(event, RetryScheduled)]
    assert [event.exception for event in planned] == [first, second]
    assert 4.0 <= planned[0].delay <= 8.0 <= planned[1].delay <= 16.0
    assert asyncio.get_running_loop().time() == sum(event.delay for event in planned)


@pytest.mark.virtual_clock
async def test_a_timeout_and_who_is_cancelled_for_it() -> None:
    processor = build(
        [
            task("A", execute=TaskFunction(forever, timeout=3)),
            task("B", execute=forever, post=nothing),
        ]
    )
    events = await observed(processor)
    assert [
        line for line in events.lines() if line not in events.lines(TaskStarted, AttemptStarted)
    ] == run_of(
        *in_phase(
            "execute",
            *["A.execute 1 suspended", "B.execute 1 suspended", "A.execute 1 timeout"],
            *["A.execute 1 resumed", "A.execute 1 timed out TimeoutError"],
            "A.execute timed out after 1 TimeoutError",
            "execute cancelled because of A.execute",
            *["B.execute 1 resumed", "B.execute 1 cancelled CancelledError"],
            "B.execute cancelled after 1 because of A.execute",
        ),
        *in_phase("post", "B.post 1 succeeded", "B.post succeeded after 1"),
        ends="failed SdaxExecutionError",
    )
    (expired,) = (event for event in events if isinstance(event, TimeoutExpired))
    assert expired.timeout == 3


async def test_a_timeout_of_zero_expires_at_the_first_suspension() -> None:
    events = await observed(solo(TaskFunction(forever, timeout=0)))
    assert events.lines(*STEPS, TimeoutExpired, AttemptFinished) == [
        "A.pre 1 suspended",
        "A.pre 1 timeout",
        "A.pre 1 resumed",
        "A.pre 1 timed out TimeoutError",
    ]


@without_factory
async def test_a_failure_and_what_is_left_out_for_it() -> None:
    trace = Trace()
    processor = build(
        [task("A", nothing, nothing, nothing)],
        [
            task("B", forever),
            task("C", trace.failing("", ValueError("no"))),
            task("D", nothing, None, nothing),
        ],
        [task("E", nothing, nothing, nothing), join("F")],
    )
    events = await observed(processor)
    assert events.lines(*OUTLINE, PhaseStarted, PhaseFinished) == [
        *["pre started", "A.pre succeeded after 1", "C.pre failed after 1 ValueError"],
        *["pre cancelled because of C.pre", "D.pre skipped because of C.pre"],
        *["B.pre cancelled after 1 because of C.pre", "E.pre skipped because of C.pre"],
        "pre finished",
        *["A.execute skipped because of C.pre", "E.execute skipped because of C.pre"],
        *["D.post skipped because of C.pre", "E.post skipped because of C.pre"],
        *["post started", "A.post succeeded after 1", "post finished"],
    ]


async def test_failures_in_cleanup_cancel_nothing() -> None:
    trace = Trace()
    error = ValueError("no")
    processor = build(
        [task("A", post=nothing)],
        [task("B", post=trace.failing("", error)), task("C", post=nothing)],
    )
    events = await observed(processor)
    assert events.lines(*OUTLINE) == [
        "B.post failed after 1 ValueError",
        "C.post succeeded after 1",
        "A.post succeeded after 1",
    ]
    assert next(event.exception for event in events if isinstance(event, TaskFinished)) is error


async def test_the_cause_is_the_first_failure_and_no_cancellation_of_the_caller() -> None:
    trace = Trace()
    spiteful = trace.spiteful("", OSError("out of spite"))
    processor = build(
        [task("A", execute=spiteful), task("B", execute=trace.failing("", KeyError(), 2))]
    )
    events = await observed(processor)
    assert events.lines(TaskFinished, CancellationRequested) == [
        "B.execute failed after 1 KeyError",
        "execute cancelled because of B.execute",
        "A.execute failed after 1 OSError",
    ]
    (stopped,) = (event for event in events if isinstance(event, CancellationRequested))
    assert stopped.cause == Cause(TaskInfo("B", 1, None), "execute")


async def test_the_caller_is_cancelled() -> None:
    events = Recorder()
    trace = Trace()
    processor = build([task("A", trace.waiting("A"), None, nothing)], [task("B", nothing)])
    run = asyncio.ensure_future(processor.process_tasks(None, observer=events))
    await until(lambda: trace)
    run.cancel()
    await asyncio.wait([run])
    assert broken_rules(events) == []
    assert events.lines(*OUTLINE, RunFinished) == [
        *["pre cancelled", "A.pre cancelled after 1", "B.pre skipped"],
        *["A.post succeeded after 1", "run cancelled CancelledError"],
    ]


async def test_a_function_that_cancels_itself_has_failed() -> None:
    async def cancels_itself(ctx: Any) -> None:
        raise asyncio.CancelledError

    events = await observed(solo(cancels_itself))
    assert events.lines(AttemptFinished, TaskFinished) == [
        "A.pre 1 failed CancelledError",
        "A.pre failed after 1 TaskCancelledError",
    ]


@pytest.mark.virtual_clock
async def test_cancelled_while_it_waits_for_a_retry() -> None:
    trace = Trace()

    async def fails_later(ctx: Any) -> None:
        await asyncio.sleep(1)
        raise ValueError

    flaky = TaskFunction(trace.failing("", ConnectionError()), retries=1, initial_delay=50)
    events = await observed(build([task("A", flaky), task("B", fails_later)]))
    assert events.lines(RetryScheduled, TaskFinished, CancellationRequested) == [
        "A.pre 1 retry ConnectionError",
        "B.pre failed after 1 ValueError",
        "pre cancelled because of B.pre",
        "A.pre cancelled after 1 ConnectionError because of B.pre",
    ]


@pytest.mark.parametrize("fatal", [KeyboardInterrupt, SystemExit])
@pytest.mark.loop_kinds("asyncio")
async def test_what_is_no_exception(fatal: type[BaseException]) -> None:
    trace = Trace()
    events = await observed(
        build([task("A", trace.failing("", fatal()), None, nothing), task("B", nothing)])
    )
    assert events.lines(*OUTLINE, RunFinished) == [
        f"A.pre failed after 1 {fatal.__name__}",
        "pre cancelled because of A.pre",
        "B.pre skipped because of A.pre",
        "A.post succeeded after 1",
        f"run failed {fatal.__name__}",
    ]


async def test_plain_functions_threads_and_groups() -> None:
    async def fan_out(ctx: Any, group: Any) -> str:
        group.create_task(passes(2))
        return "fanned out"

    processor = build(
        [
            AsyncTask("plain", task_sync_func(lambda ctx: 1)),
            AsyncTask("group", task_group_func(fan_out)),
        ]
    )
    events = await observed(processor)
    assert sorted(events.lines(TaskFinished)) == [
        "group.pre succeeded after 1 = 'fanned out'",
        "plain.pre succeeded after 1 = 1",
    ]
    assert [each for each in events.lines() if each.startswith("plain")] == called(
        "plain.pre", "succeeded = 1"
    )
    steps = [each for each in events.lines() if each.startswith("group")]
    assert "group.pre 1 suspended" in steps


async def test_a_thread() -> None:
    gate = threading.Event()  # opened once the other has suspended
    processor = build(
        [
            AsyncTask("T", task_thread_func(lambda ctx: gate.wait(HANGS_AFTER))),
            AsyncTask("O", task_sync_func(lambda ctx: gate.set())),
        ]
    )
    lines = (await observed(processor)).lines()
    wanted = called("T.pre", "succeeded = True", "suspended", "resumed")
    assert [line for line in lines if line.startswith("T")] == wanted


async def test_a_graph() -> None:
    trace = Trace()
    processor = (
        AsyncDagTaskProcessor.builder(execute_order="dependency")
        .add_task(AsyncTask("C", execute=task_func(nothing)), depends_on=("A", "B"))
        .add_task(AsyncTask("A", execute=task_func(trace.pausing(""))))
        .add_task(AsyncTask("B", execute=task_func(nothing)))
        .build()
    )
    events = await observed(processor)
    assert events.lines(TaskFinished)[-1] == "C.execute succeeded after 1"
    assert events[0].run.tasks == (
        TaskInfo("C", None, ("A", "B")),
        TaskInfo("A", None, ()),
        TaskInfo("B", None, ()),
    )


async def test_at_most_so_many_at_a_time() -> None:
    trace = Trace()
    builder = AsyncTaskProcessor.builder(max_concurrency=1)
    for name in "ABC":
        builder.add_task(task(name, trace.pausing("")), 1)
    events = await observed(builder.build())
    wanted = [each for name in "ABC" for each in (f"{name}.pre 1", f"{name}.pre 1 succeeded")]
    assert events.lines(AttemptStarted, AttemptFinished) == wanted


async def test_an_empty_processor() -> None:
    assert (await observed(build([join("A")]))).lines() == run_of()
    assert (await observed(build())).lines() == run_of()


async def test_the_run_names_processor_and_context() -> None:
    ctx = object()
    processor = solo(nothing)
    one, other = await observed(processor, ctx), await observed(processor, ctx)
    run = one[0].run
    assert (run.processor, run.ctx, run.tasks) == (processor, ctx, (TaskInfo("A", 1, None),))
    assert run != other[0].run
    assert repr(processor) in repr(run)


@without_factory
async def test_a_run_is_closed() -> None:
    events = Recorder()
    trace = Trace()
    coroutine = build([task("A", trace.waiting("A"), None, nothing)]).process_tasks(
        None, observer=events
    )
    coroutine.send(None)
    coroutine.close()
    assert events.lines()[-1] == "run cancelled GeneratorExit"
    await until(lambda: "A.post succeeded after 1" in events.lines())
    (finished,) = (event for event in events if isinstance(event, RunFinished))
    assert finished.report is None


# Task factories that start functions later, or make no asyncio.Task.


async def observed_with(factory: Any, processor: Any) -> Recorder:
    loop = asyncio.get_running_loop()
    before = loop.get_task_factory()
    loop.set_task_factory(factory)
    try:
        return await observed(processor)
    finally:
        loop.set_task_factory(before)


@pytest.mark.parametrize("made", [0, 1])
async def test_a_phase_that_is_cancelled_before_it_calls_a_function(made: int) -> None:
    answers = [True] * made + [False]

    def factory(loop: Any, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
        if not answers.pop(0):
            raise OSError("no more of them")
        return asyncio.Task(coroutine, loop=loop, **options)

    processor = build([task(name, nothing, nothing, nothing) for name in ("A", "B")])
    events = await observed_with(factory, processor)
    refused = "AB"[made]
    (other,) = {"A", "B"} - {refused}
    assert events.lines() == run_of(
        f"{refused}.pre failed after 1 OSError",
        f"pre cancelled because of {refused}.pre",
        *(
            f"{name}.{phase} skipped because of {refused}.pre"
            for phase, names in (("pre", other), ("execute", "AB"), ("post", "AB"))
            for name in names
        ),
        ends="failed SdaxExecutionError",
    )


@pytest.mark.loop_kinds("factory")
async def test_a_function_that_other_code_cancels_before_its_first_step() -> None:
    def factory(loop: Any, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
        made = asyncio.Task(coroutine, loop=loop, **options)
        made.cancel()
        return made

    events = await observed_with(factory, solo(nothing))
    assert events.lines() == run_of(
        "A.pre failed after 1 TaskCancelledError",
        "pre cancelled because of A.pre",
        ends="failed SdaxExecutionError",
    )


# The context of the function.

MARK: ContextVar[str] = ContextVar("MARK", default="nobody's")


async def test_variables_set_for_a_function() -> None:
    seen: list[tuple[str, str]] = []

    def observer(event: Event) -> None:
        if isinstance(event, AttemptStarted):
            MARK.set(f"{line(event)} after {MARK.get()}")
        elif isinstance(event, (TimeoutExpired, AttemptSuspended, AttemptResumed)):
            seen.append((line(event), MARK.get()))
            if isinstance(event, TimeoutExpired):
                MARK.set("expired")

    def function(name: str, number: int) -> Callable[[Any], Any]:
        async def look(ctx: Any) -> None:
            seen.append((name, MARK.get()))
            await passes(number)
            seen.append((name, MARK.get()))

        return look

    MARK.set("the caller's")
    processor = build(
        [task("A", function("A", 1)), task("B", function("B", 0)), task("C", function("C", 0))],
        [
            task("D", function("D", 1)),
            task("E", task_sync_func(lambda ctx: seen.append(("E", MARK.get())))),
        ],
    )
    await processor.process_tasks(None, observer=observer)
    assert MARK.get() == "the caller's"
    assert {value for name, value in seen if len(name) == 1} == {
        f"{name}.pre 1 after the caller's" for name in "ABCDE"
    }
    for name, value in seen:
        assert value == f"{name[0]}.pre 1 after the caller's"


async def test_variables_stay_set_for_the_next_attempt() -> None:
    seen: list[str] = []

    def observer(event: Event) -> None:
        if isinstance(event, AttemptStarted):
            seen.append(MARK.get())
            MARK.set(line(event))

    flaky = TaskFunction(Trace().failing("", ConnectionError()), retries=1, initial_delay=0)
    await error_of(solo(flaky).process_tasks(None, observer=observer))
    assert seen == ["nobody's", "A.pre 1"]


@pytest.mark.virtual_clock
async def test_a_timeout_is_told_in_a_context_that_no_sibling_has() -> None:
    seen: list[str] = []

    def observer(event: Event) -> None:
        if isinstance(event, TimeoutExpired):
            seen.append(MARK.get())
            MARK.set("expired")

    async def look(ctx: Any) -> None:
        seen.append(MARK.get())

    MARK.set("the caller's")
    processor = solo(TaskFunction(forever, timeout=1), None, look)
    await error_of(processor.process_tasks(None, observer=observer))
    assert seen == ["the caller's", "the caller's"]
    assert MARK.get() == "the caller's"


@without_factory
@pytest.mark.virtual_clock
async def test_a_timeout_is_told_in_the_context_of_the_function() -> None:
    seen: list[str] = []

    def observer(event: Event) -> None:
        if isinstance(event, TimeoutExpired):
            seen.append(MARK.get())

    async def waits(ctx: Any) -> None:
        MARK.set("the function's")
        await forever()

    for timeout in (0, 1):
        processor = solo(TaskFunction(waits, timeout=timeout))
        await error_of(processor.process_tasks(None, observer=observer))
    assert seen == ["the function's", "the function's"]


async def test_the_current_task_is_that_of_the_function() -> None:
    told: dict[str, asyncio.Task[Any] | None] = {}
    own: dict[str, asyncio.Task[Any] | None] = {}

    def observer(event: Event) -> None:
        told[line(event)] = asyncio.current_task()

    async def function(ctx: Any) -> None:
        own["before"] = asyncio.current_task()
        await asyncio.sleep(0)
        own["after"] = asyncio.current_task()

    await solo(function).process_tasks(None, observer=observer)
    caller = asyncio.current_task()
    assert own["before"] is own["after"]
    for name, current in told.items():
        assert current is (caller if name.startswith("run") else own["before"]), name


# What observers do wrong.


async def test_what_an_observer_raises_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    trace = Trace()
    events = Recorder()
    error = ValueError("of the observer")

    def broken(event: Event) -> NoReturn:
        raise error

    def broken_once(event: Event) -> None:
        if isinstance(event, TaskStarted) and event.phase == "execute":
            raise error

    with caplog.at_level(logging.ERROR, "sdax"):
        report = await trace_of(trace).process_tasks(None, observer=(broken, broken_once, events))
    assert states(report) == {"A": "+++"}
    assert trace == ["A.pre", "A.pre done", "A.execute", "A.execute done", "A.post", "A.post done"]
    first, second, more = caplog.records
    for record in (first, second):
        assert record.exc_info is not None
        assert record.exc_info[1] is error
    assert first.getMessage() == f"observer {broken!r} failed at RunStarted; the run goes on"
    assert second.getMessage() == f"observer {broken_once!r} failed at TaskStarted; the run goes on"
    assert not more.exc_info
    number = events[0].run.number
    assert more.getMessage() == (
        f"observer {broken!r} failed at {len(events) - 1} later events of run {number} as well"
    )
    caplog.clear()


def trace_of(trace: Trace) -> Any:
    return build([trace.task("A", number=1)])


async def async_observer(event: Event) -> None: ...


async def async_generator(event: Event) -> Any:
    yield


def generator(event: Event) -> Generator[None]:
    yield


class AsyncObserver:
    async def __call__(self, event: Event) -> None: ...


@pytest.mark.parametrize(
    ("observer", "says"),
    [
        (7, "observer must be callable with an event, got 7"),
        ("print", "observer must be callable with an event, got 'print'"),
        ([print, None], "observer must be callable with an event, got None"),
        (async_observer, "define it with 'def'"),
        (functools.partial(async_observer), "define it with 'def'"),
        (AsyncObserver(), "define it with 'def'"),
        (async_generator, "without 'yield'"),
        ((print, generator), "without 'yield'"),
        (Recorder, "did you mean Recorder()?"),
    ],
)
def test_refused(engine: Any, observer: Any, says: str) -> None:
    processor = solo(nothing)
    for offer in (
        lambda: AsyncTaskProcessor.builder(observer=observer),
        lambda: AsyncDagTaskProcessor.builder(observer=observer),
        lambda: processor.open(None, observer=observer),
        lambda: asyncio.run(processor.process_tasks(None, observer=observer)),
    ):
        with pytest.raises(TypeError) as caught:
            offer()
        assert says in str(caught.value)


# Who observes.


def with_default(*observers: Any) -> AsyncTaskProcessor[Any, Any]:
    builder = AsyncTaskProcessor.builder(observer=observers)
    return builder.add_task(task("A", nothing), 1).build()


async def test_several_hear_everything_in_their_order() -> None:
    heard: list[tuple[int, Event]] = []
    observers = [lambda event, number=number: heard.append((number, event)) for number in range(3)]
    await solo(nothing).process_tasks(None, observer=iter(observers))
    assert [number for number, _ in heard] == [0, 1, 2] * (len(heard) // 3)
    assert all(heard[at][1] is heard[at - 1][1] for at in range(len(heard)) if at % 3)


async def test_the_default_and_what_overrides_it() -> None:
    default, own = Recorder(), Recorder()
    processor = with_default(default)
    await processor.process_tasks(None)
    heard = default.lines()
    assert heard == run_of(*in_phase("pre", *called("A.pre")))
    await processor.process_tasks(None, observer=own)
    assert own.lines() == default.lines() == heard
    await processor.process_tasks(None, observer=())
    async with processor.open(None, observer=()) as run:
        await run.run_next()
    assert default.lines() == heard
    async with processor.open(None) as run:
        await run.run_next()
    assert default.lines() == heard + heard


async def test_the_default_of_a_graph() -> None:
    default = Recorder()
    builder = AsyncTaskProcessor.graph_builder(observer=default)
    await builder.add_task(task("A", nothing)).build().process_tasks(None)
    assert default.lines() == run_of(*in_phase("pre", *called("A.pre")))


@dataclass
class Named:
    """Compares by its name, and so is not hashable."""

    name: str

    def __call__(self, event: Event) -> None: ...


@pytest.mark.parametrize(
    "make", [AsyncTaskProcessor.builder, AsyncDagTaskProcessor.builder], ids=["levels", "graph"]
)
def test_processors_with_observers_compare_hash_and_pickle(make: Any) -> None:
    one, same, other, none = (
        make(observer=observer).build()
        for observer in (Named("one"), Named("one"), Named("other"), None)
    )
    assert one == same
    assert hash(one) == hash(same)
    assert one not in (other, none)
    again = pickle.loads(pickle.dumps(one))
    assert again == one
    assert hash(again) == hash(one)


# Events as values.


async def test_events_of_different_kinds_are_never_equal() -> None:
    events = await observed(solo(Trace().pausing("")))
    (suspended,) = (event for event in events if isinstance(event, AttemptSuspended))
    (resumed,) = (event for event in events if isinstance(event, AttemptResumed))
    assert tuple(suspended) == tuple(resumed)
    assert suspended != resumed
    assert not suspended == resumed  # noqa: SIM201 (the other operator)
    assert suspended not in (tuple(suspended), None, 7)
    assert tuple(suspended) != suspended
    assert suspended == suspended._replace()
    assert not suspended != suspended._replace()  # noqa: SIM202
    assert len({suspended, resumed}) == 2


# To be observed changes nothing, and leaves nothing.


async def test_reports_and_errors_are_the_same() -> None:
    trace = Trace()
    processor = build(
        [task("A", trace.quick("", 1), forever, nothing)],
        [task("B", trace.pausing("", 1, "two"), trace.failing("", KeyError("x"), 1), nothing)],
    )
    plain = await failure_of(processor)
    with pytest.raises(SdaxExecutionError) as caught:
        await processor.process_tasks(None, observer=Recorder())
    assert str(caught.value) == str(plain)
    assert states(caught.value.report) == states(plain.report)
    assert repr(caught.value.failures) == repr(plain.failures)


@counts_references
async def test_nothing_leads_back_to_an_observer() -> None:
    class Keeper:
        """Keeps what is raised, and with it the traceback."""

        def __init__(self) -> None:
            self.events: list[Event] = []

        def __call__(self, event: Event) -> None:
            self.events.append(event)

    async def run() -> weakref.ref[Keeper]:
        keeper = Keeper()
        reference = weakref.ref(keeper)
        coroutine = solo(Trace().failing("", ValueError(), 1)).process_tasks(None, observer=keeper)
        del keeper
        with pytest.raises(SdaxExecutionError):
            await coroutine
        return reference

    with without_collector():
        reference = await run()
        await asyncio.sleep(0)
        assert reference() is None


def test_the_rules_notice_what_is_missing_or_misplaced(engine: Any) -> None:
    trace = Trace()
    processor = build(
        [
            task("A", nothing, TaskFunction(forever, timeout=0), nothing),
            task("B", TaskFunction(trace.failing("", OSError()), retries=1), forever),
        ],
        [task("C", None, trace.pausing(""))],
    )
    events = asyncio.run(observed(processor))
    for number, event in enumerate(events):
        assert broken_rules([*events[:number], *events[number + 1 :]]), line(event)
        assert broken_rules([*events[: number + 1], *events[number:]]), line(event)


async def test_the_whole_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    def broken(event: Any) -> None:
        raise ValueError

    await solo(nothing).process_tasks(None, observer=broken)
    first = caplog.messages[0]
    assert first == f"observer {broken!r} failed at RunStarted; the run goes on"


async def test_a_cancelled_function_that_waits_in_its_finally() -> None:
    heard: list[str] = []
    waits = asyncio.Event()

    async def tidies(ctx: Any) -> None:
        waits.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)

    run = asyncio.ensure_future(
        solo(tidies).process_tasks(None, observer=lambda event: heard.append(type(event).__name__))
    )
    await waits.wait()
    run.cancel()
    await asyncio.wait([run])
    assert run.cancelled()
    assert [name for name in heard if name.startswith("Attempt")] == [
        "AttemptStarted",
        "AttemptSuspended",
        "AttemptResumed",
        "AttemptSuspended",
        "AttemptResumed",
        "AttemptFinished",
    ]


async def test_a_function_that_raises_generator_exit() -> None:
    heard: list[Any] = []
    mine = GeneratorExit("mine")

    async def leave(ctx: Any) -> None:
        raise mine

    with pytest.raises(GeneratorExit) as caught:
        await solo(leave).process_tasks(None, observer=heard.append)
    assert caught.value is mine
    assert any(isinstance(event, AttemptFinished) for event in heard)
