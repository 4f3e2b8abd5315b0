"""What an event logger writes into the log, and about which functions it warns."""

from __future__ import annotations

import asyncio
import logging
import pickle
import re
import threading
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import pytest

from helpers import build, error_of, forever, nothing, one_loop, solo, task, without_factory
from observing import Recorder
from sdax import AsyncTaskProcessor, TaskFunction, task_sync_func, task_thread_func
from sdax.observe import EventLogger, RunStarted

pytestmark = one_loop


class Kept(logging.Handler):
    """A handler that keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def of(self, level: int) -> list[str]:
        return [each.getMessage() for each in self.records if each.levelno == level]

    def warned(self) -> list[str]:
        """Who has blocked the loop for how long, in the order of the warnings."""
        found = (re.match(r"(\w+) of task '(\w+)' blocked.* for ([\d.]+) s in attempt (\d)", each)
                 for each in self.of(logging.WARNING))  # fmt: skip
        return [f"{each[2]}.{each[1]} {each[4]}: {each[3]}" for each in found if each]


@pytest.fixture
def log() -> Iterator[Kept]:
    """What comes to the `sdax` logger, everything."""
    logger, kept = logging.getLogger("sdax"), Kept()
    level = logger.level
    logger.addHandler(kept)
    logger.setLevel(logging.DEBUG)
    yield kept
    logger.setLevel(level)
    logger.removeHandler(kept)


class Clock:
    """A clock that goes on as functions say how long they take."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def steps(self, *lengths: float) -> Callable[[Any], Any]:
        """A function that takes so many seconds before it first waits, and after each wait."""

        async def function(ctx: Any) -> None:
            for length in lengths[:-1]:
                self.now += length
                await asyncio.sleep(0)
            self.now += lengths[-1]

        return function


async def run_with(logger: EventLogger, processor: Any, ctx: Any = None) -> None:
    await error_of(processor.process_tasks(ctx, observer=logger))


# Events.


@pytest.mark.virtual_clock
async def test_every_event_is_a_line(log: Kept) -> None:
    answers = [ConnectionError("no\nanswer"), None]

    async def flaky(ctx: Any) -> str:
        if answer := answers.pop(0):
            raise answer
        return "secret"

    processor = build(
        [task("A", TaskFunction(flaky, retries=1, initial_delay=0), post=nothing)],
        [task(("B", 2), TaskFunction(forever, timeout=1)), task("C", forever)],
        [task("D", nothing)],
    )
    recorder = Recorder()
    await error_of(processor.process_tasks("secret", observer=(EventLogger(), recorder)))
    assert {each.levelno for each in log.records} == {logging.DEBUG}
    lines = log.of(logging.DEBUG)
    number = recorder[0].run.number
    assert [line.split()[:2] for line in lines] == [
        [type(event).__name__, f"run={number}"] for event in recorder
    ]
    rest = [" ".join([line.split()[0], *line.split()[2:]]) for line in lines]
    for wanted in [
        "RunStarted",
        "PhaseStarted phase=pre_execute",
        "TaskStarted task='A' phase=pre_execute",
        "AttemptStarted task='A' phase=pre_execute attempt=1",
        "AttemptFinished task='A' phase=pre_execute attempt=1 state=failed "
        r"exception=ConnectionError('no\nanswer')",
        "AttemptFinished task='A' phase=pre_execute attempt=2 state=succeeded",
        "TaskFinished task='A' phase=pre_execute attempts=2 state=succeeded",
        "TimeoutExpired task=('B', 2) phase=pre_execute attempt=1 timeout=1",
        "CancellationRequested phase=pre_execute cause=('B', 2).pre_execute",
        "TaskFinished task='C' phase=pre_execute attempts=1 state=cancelled "
        "cause=('B', 2).pre_execute",
        "TaskSkipped task='D' phase=pre_execute cause=('B', 2).pre_execute",
        "PhaseFinished phase=post_execute",
    ]:
        assert wanted in rest
    retry = next(line for line in rest if line.startswith("RetryScheduled"))
    assert r"attempt=1 delay=0.0 exception=ConnectionError('no\nanswer')" in retry
    assert rest[-1].startswith("RunFinished state=failed exception=SdaxExecutionError(")
    assert "secret" not in "".join(lines)


async def test_runs_have_different_numbers(log: Kept) -> None:
    processor = solo(nothing)
    await asyncio.gather(*(run_with(EventLogger(), processor) for _ in range(3)))
    assert len({line.split()[1] for line in log.of(logging.DEBUG)}) == 3


async def test_nothing_is_put_into_words_unless_debug_is_on(log: Kept) -> None:
    class Unspeakable:
        def __repr__(self) -> str:
            raise AssertionError("nobody asked")

    logging.getLogger("sdax").setLevel(logging.INFO)
    await run_with(EventLogger(blocking_threshold=3600), build([task(Unspeakable(), nothing)]))
    assert log.records == []


async def test_names_and_exceptions_that_cannot_be_shown(log: Kept) -> None:
    class BadError(Exception):
        def __repr__(self) -> str:
            raise ZeroDivisionError

    async def fails(ctx: Any) -> None:
        raise BadError

    await run_with(EventLogger(), build([task("\ud800\n", fails)]))
    assert log.of(logging.ERROR) == []
    for line in log.of(logging.DEBUG):
        assert line.isprintable()
        line.encode()


# Functions that block.


async def test_a_step_that_takes_longer_than_the_threshold(log: Kept) -> None:
    clock = Clock()
    processor = build(
        [
            task("Exact", clock.steps(1.0, 1.0, 1.0)),
            task("First", clock.steps(2.5, 0.5)),
            task("Middle", clock.steps(0.5, 1.25, 0.5), clock.steps(1.5)),
            task("Last", None, nothing, clock.steps(0.5, 4.0)),
        ]
    )
    await run_with(EventLogger(blocking_threshold=1.0, clock=clock), processor)
    assert log.warned() == [
        "First.pre_execute 1: 2.500",
        "Middle.pre_execute 1: 1.250",
        "Middle.execute 1: 1.500",
        "Last.post_execute 1: 4.000",
    ]
    (first, *_) = log.of(logging.WARNING)
    assert "threshold of 1.0 s" in first
    assert "task_thread_func" in first


async def test_plain_functions_failures_and_retries(log: Kept) -> None:
    clock = Clock()
    attempts = iter([0.5, 2.0, 3.0])

    def fails(ctx: Any) -> None:
        clock.now += next(attempts)
        raise ConnectionError

    processor = solo(task_sync_func(fails, retries=2, initial_delay=0))
    await run_with(EventLogger(blocking_threshold=1, clock=clock), processor)
    assert log.warned() == ["A.pre_execute 2: 2.000", "A.pre_execute 3: 3.000"]


async def test_a_function_that_answers_its_cancellation_slowly(log: Kept) -> None:
    clock = Clock()

    async def lingers(ctx: Any) -> None:
        try:
            await forever()
        finally:
            clock.now += 5.0

    processor = solo(TaskFunction(lingers, timeout=0))
    await run_with(EventLogger(blocking_threshold=1, clock=clock), processor)
    assert log.warned() == ["A.pre_execute 1: 5.000"]


@without_factory
async def test_runs_inside_a_step_are_not_its_own_time(log: Kept) -> None:
    clock = Clock()
    logger = EventLogger(blocking_threshold=1, clock=clock)
    inner = solo(clock.steps(2.0))
    quick = solo(clock.steps(0.5))

    async def runs_others(ctx: Any) -> None:
        clock.now += 0.25
        await run_with(logger, inner)
        await run_with(logger, quick)
        clock.now += 0.5

    async def runs_and_blocks(ctx: Any) -> None:
        await run_with(logger, build([task("B", runs_others)]))
        clock.now += 1.5

    await run_with(logger, build([task("C", runs_and_blocks)]))
    assert log.warned() == ["A.pre_execute 1: 2.000", "C.pre_execute 1: 1.500"]


async def test_waiting_does_not_block(log: Kept) -> None:
    gate = threading.Event()

    async def opens(ctx: Any) -> None:
        await asyncio.sleep(0)
        gate.set()

    processor = build([task("T", task_thread_func(lambda ctx: gate.wait())), task("O", opens)])
    await run_with(EventLogger(blocking_threshold=3600), processor)
    assert log.of(logging.WARNING) == []


async def test_the_real_clock(log: Kept) -> None:
    processor = solo(task_sync_func(lambda ctx: time.sleep(0.01)))
    await run_with(EventLogger(blocking_threshold=0.005), processor)
    assert "A.pre_execute 1" in log.warned()[0]


async def test_without_a_threshold_nobody_is_warned(log: Kept) -> None:
    clock = Clock()
    await run_with(EventLogger(clock=clock), solo(clock.steps(1e9)))
    assert log.warned() == []


def test_many_runs_in_several_threads(engine: Any, log: Kept) -> None:
    logging.getLogger("sdax").setLevel(logging.INFO)
    processor = build(
        [
            task("Slow", task_sync_func(lambda ctx: time.sleep(0.002))),
            task("Quick", lambda ctx: asyncio.sleep(0)),
        ]
    )
    logger = EventLogger(blocking_threshold=0.001)

    async def runs() -> None:
        await asyncio.gather(*(run_with(logger, processor) for _ in range(10)))

    threads = [threading.Thread(target=asyncio.run, args=(runs(),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    warned = [each for each in log.warned() if each.startswith("Slow")]
    assert len(warned) == 40
    assert log.of(logging.ERROR) == []
    assert logger._begun == {}


# How it is made.


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"blocking_threshold": "1"}, TypeError, "EventLogger.blocking_threshold must be a number"),
        ({"blocking_threshold": True}, TypeError, "got True"),
        ({"blocking_threshold": Decimal(1)}, TypeError, "must be a number"),
        ({"blocking_threshold": -0.1}, ValueError, "finite and not negative, got -0.1"),
        ({"blocking_threshold": float("nan")}, ValueError, "got nan"),
        ({"blocking_threshold": float("inf")}, ValueError, "got inf"),
        ({"clock": 7}, TypeError, "EventLogger.clock must be callable, got 7"),
    ],
)
def test_refused(options: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error) as caught:
        EventLogger(**options)
    assert says in str(caught.value)


def test_compares_hashes_and_pickles() -> None:
    one = EventLogger(blocking_threshold=0.5)
    assert one == EventLogger(blocking_threshold=0.5)
    assert one != EventLogger()
    assert hash(one) == hash(EventLogger(blocking_threshold=0.5))
    assert pickle.loads(pickle.dumps(one)) == one
    assert repr(one).startswith("EventLogger(blocking_threshold=0.5, clock=")


async def test_as_the_default_of_a_processor(log: Kept) -> None:
    builder = AsyncTaskProcessor.builder(observer=EventLogger())
    await builder.add_task(task("A", nothing), 1).build().process_tasks(None)
    assert RunStarted.__name__ in log.of(logging.DEBUG)[0]
