"""`python -m sdax run`: a batch job, from a file of inputs to a file of outcomes."""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import signal
import sys
import threading
from asyncio import AbstractEventLoop, CancelledError, Future, Task
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import AsyncExitStack, contextmanager, suppress
from pathlib import Path
from time import monotonic
from typing import Any, Final, NamedTuple

from ..common.text import class_name, counted, one_line
from ..report import RunReport
from .named import Processor, complain, load_function, load_processor, refuse
from .outcomes import Earlier, Out, WriteError, described_stop, told
from .output import CLOSED

DASK: Final = "dask://"
STANDARD_INPUT: Final = "-"
SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)  # that end the job
BYTES_AT_ONCE: Final = 65536  # of standard input

# A second signal must come later than this. `timeout` of GNU sends each one twice.
SECONDS_BETWEEN_SIGNALS: Final = 0.5


def add_to(commands: Any) -> None:
    """Add the command to the subparsers of `python -m sdax`."""
    command = commands.add_parser(
        "run",
        help="run a processor for each line of a file",
        description="Runs a processor once for each line of a file, many at a time, and writes an "
        "outcome for each as it comes. A line of the inputs is a value in JSON. A line of the "
        "outcomes is an object in JSON: 'number' is that of the line, from 1; 'value' is what was "
        "kept, or 'error' says what has failed. Ctrl-C and SIGTERM end the job, with the cleanup "
        "of what was under way; --resume goes on with it. The status is 0 if all inputs have "
        "succeeded, now or before, 1 if anything failed or was left out, 2 for wrong arguments, "
        "128 and the number of a signal that ended the job, and 141 if the reader of the outcomes "
        "has closed its pipe.",
    )
    command.add_argument("processor", metavar="MODULE:NAME", help="a processor, as a module has it")
    command.add_argument(
        "--inputs", required=True, metavar="PATH", help="a value in JSON on each line; - is stdin"
    )
    command.add_argument(
        "--out", required=True, metavar="PATH", help="where outcomes are written; - is stdout"
    )
    command.add_argument(
        "--context",
        metavar="MODULE:FUNCTION",
        help="a function, async or not, that makes the context of a run out of an input; without "
        "it the input is the context",
    )
    command.add_argument(
        "--resources",
        metavar="MODULE:FUNCTION",
        help="a function that returns an async context manager; what that gives is the second "
        "argument of the context's function, and is made once on each worker",
    )
    command.add_argument(
        "--pick",
        metavar="MODULE:FUNCTION",
        help="a function of the context and the report that returns the value to write, which must "
        "be JSON; by default these are the return values of each task's execute",
    )
    command.add_argument("--concurrency", metavar="N", type=int, help="runs at a time (100)")
    command.add_argument("--batch-size", metavar="N", type=int, help="inputs sent together (50)")
    where = command.add_mutually_exclusive_group()
    where.add_argument("--workers", metavar="N", type=int, help="run in N processes")
    where.add_argument("--on", metavar="dask://HOST:PORT", help="run on a Dask cluster")
    command.add_argument(
        "--resume", action="store_true", help="leave out the numbers that the outcomes have"
    )
    command.add_argument(
        "--retry-failed",
        action="store_true",
        help="with --resume: run those again whose outcome is an error; of two outcomes of a "
        "number, the later one counts",
    )
    command.set_defaults(run=run, command="run")


class Line(NamedTuple):
    """A line of the inputs."""

    number: int
    item: Any


class OfLine:
    """A function of items, called with lines."""

    def __init__(self, function: Callable[..., Any] | None) -> None:
        self.function = function

    def __call__(self, line: Line, *resources: Any) -> Any:
        return line.item if self.function is None else self.function(line.item, *resources)


def executed(ctx: Any, report: RunReport[Any]) -> dict[str, Any]:
    """Return what each task's `execute` has returned, but for None."""
    return {
        one_line(name): task.execute.value
        for name, task in report.items()
        if task.execute.value is not None
    }


class Inputs:
    """The lines of a file, but for those that are done. Bad ones are complained of."""

    def __init__(self, args: argparse.Namespace, done: set[int]) -> None:
        self.args = args
        self.done = done
        self.bad = 0

    def __iter__(self) -> Iterator[Line]:
        with Path(self.args.inputs).open("rb") as file:
            yield from self._lines(file)

    def __len__(self) -> int:
        with Path(self.args.inputs).open("rb") as file:
            return sum(
                number not in self.done and bool(text.strip())
                for number, text in enumerate(file, 1)
            )

    async def from_stdin(self) -> AsyncIterator[Line]:
        """Yield lines as they come, without blocking the event loop."""
        number, pieces = 0, [b""]
        while chunk := await read_standard_input():
            first, *others = chunk.split(b"\n")
            pieces.append(first)
            for other in others:
                number += 1
                for line in self._line(number, b"".join(pieces)):
                    yield line
                pieces = [other]
        for line in self._line(number + 1, b"".join(pieces)):
            yield line

    def _lines(self, file: Any) -> Iterator[Line]:
        for number, text in enumerate(file, 1):
            yield from self._line(number, text)

    def _line(self, number: int, text: bytes) -> Iterator[Line]:
        if number in self.done or not text.strip():
            return
        try:
            yield Line(number, json.loads(text))
        except ValueError as error:  # no JSON, or no UTF-8
            self.bad += 1
            where = "standard input" if self.args.inputs == STANDARD_INPUT else self.args.inputs
            complain(self.args, f"{where}, line {number} is left out: {error}")


class Job:
    """One batch job. It counts the outcomes and writes them."""

    def __init__(self, args: argparse.Namespace, out: Out, inputs: Inputs) -> None:
        self.args = args
        self.out = out
        self.inputs = inputs
        self.done = self.failed = 0
        self.first_error: tuple[int, Any] | None = None  # the number, and what was written
        self.stopped: BaseException | None = None  # what a function has raised
        self.is_closed = False  # because nobody reads the outcomes
        self.signal: int | None = None  # the signal that ended it
        self.lost: str | None = None  # why there are inputs without an outcome
        self.without_worker: list[Any] = []  # outcomes of inputs whose workers have ended
        self._outcomes: Any = None
        self._task: Task[None] | None = None
        self._ends = False  # because of a signal
        self._is_killed = False  # because of a second one: workers have ended with their inputs
        self._heard_at: float | None = None  # when the last signal came
        self._is_unheeded = False  # the event loop has not yet looked at it

    async def run(self, processor: Processor, options: dict[str, Any]) -> None:
        """Run the processor for all inputs."""
        from ..many import WorkerLost, run_many

        self._task = asyncio.current_task()
        is_stdin = self.args.inputs == STANDARD_INPUT
        async with AsyncExitStack() as stack:
            restore = self._catch_signals(asyncio.get_running_loop())
            stack.callback(restore)
            on = await self._where(stack)
            inputs: Any = self.inputs.from_stdin() if is_stdin else self.inputs
            many = run_many(processor, inputs, on=on, observer=_progress(), **options)
            try:
                async with many as outcomes:
                    self._outcomes = outcomes
                    async for outcome in outcomes:
                        if isinstance(outcome.error, WorkerLost):
                            self.without_worker.append(outcome)
                        else:
                            self._write(outcome)
                    self._outcomes = None
                # The workers are still there: they have ended because of these inputs.
                for outcome in [] if self._is_killed else self.without_worker:
                    self._write(outcome)
            except CancelledError:  # because of a signal
                pass
            except (Exception, KeyboardInterrupt):
                raise
            except BaseException as error:
                self._stop(error, many.stopped_by)

    async def _where(self, stack: AsyncExitStack) -> Any:
        """Return where to run."""
        if self.args.workers:
            spawn = multiprocessing.get_context("spawn")
            pool = ProcessPoolExecutor(self.args.workers, spawn, initializer=leave_signals)
            with blocked_signals():
                for _ in range(self.args.workers):
                    pool.submit(os.getpid)  # which starts a process
            return stack.enter_context(pool)
        if self.args.on:
            from distributed import Client

            connect: Any = Client  # which has no annotations
            client = connect("tcp://" + self.args.on.removeprefix(DASK), asynchronous=True)
            try:
                return await stack.enter_async_context(client)
            except OSError as error:
                raise ValueError(
                    f"--on: there is no Dask scheduler at {self.args.on}: {error}"
                ) from None
        return None

    def _write(self, outcome: Any) -> None:
        number = outcome.item.number
        self._count(number, self.out.write(number, outcome))

    def _stop(self, error: BaseException, by: tuple[int, Line] | None) -> None:
        """Take note of what ends the job. It is the error of its input, or else a resumed job would
        end there again."""
        self.stopped = error
        if by is not None:
            number = by[1].number
            self._count(number, self.out.write_error(number, described_stop(error)))

    def _count(self, number: int, error: Any) -> None:
        self.done += 1
        if error is not None:
            self.failed += 1
            self.first_error = self.first_error or (number, error)

    def _catch_signals(self, loop: AbstractEventLoop) -> Callable[[], None]:
        """Catch the signals that end the job. Return a function that restores their handlers."""

        def heard(number: int, frame: object) -> None:
            now = monotonic()
            if self._heard_at is not None and now - self._heard_at < SECONDS_BETWEEN_SIGNALS:
                return
            self._heard_at = now
            if self._is_unheeded:  # a function blocks the event loop
                self.signal = number
                raise KeyboardInterrupt
            self._is_unheeded = True
            loop.call_soon_threadsafe(self._end, number)

        caught = {number: signal.signal(number, heard) for number in SIGNALS}

        def restore() -> None:
            for number, handler in caught.items():
                signal.signal(number, handler)

        return restore

    def _end(self, number: int) -> None:
        """End the job because of a signal."""
        is_first, self._ends = not self._ends, True
        self.signal = number
        self._is_unheeded = False
        if not self.args.workers or self._outcomes is None:
            again = "" if is_first else "still "
            complain(self.args, f"{again}waits for the cleanup of what is under way")
            if self._outcomes is not None:
                self._outcomes.stop()
            elif self._task is not None:
                self._task.cancel()
        elif is_first:
            complain(self.args, "ends what has begun; a second signal ends it at once")
            self._outcomes.take_no_more()
        else:
            self._is_killed = True
            for process in multiprocessing.active_children():
                process.kill()


def read_standard_input() -> Future[bytes]:
    """Read some bytes in a daemon thread. At the end of the input, there are none."""
    loop = asyncio.get_running_loop()
    future: Future[bytes] = loop.create_future()

    def put(data: bytes) -> None:
        if not future.cancelled():
            future.set_result(data)

    def read() -> None:
        data = os.read(sys.stdin.fileno(), BYTES_AT_ONCE)
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(put, data)

    threading.Thread(target=read, name="sdax:standard input", daemon=True).start()
    return future


def run(args: argparse.Namespace) -> None:
    """Run the job, and say what became of it."""
    processor = load_processor(args, args.processor)
    context = None if args.context is None else load_function(args, args.context)
    options: dict[str, Any] = {
        "make_context": OfLine(context),
        "pick": executed if args.pick is None else load_function(args, args.pick, "to pick by"),
        "concurrency": args.concurrency,
        "batch_size": args.batch_size,
    }
    if args.resources is not None:
        options["resources"] = load_function(args, args.resources, "that gives resources")
    options = {name: value for name, value in options.items() if value is not None}
    _check(args)
    earlier = Earlier()
    if args.resume:
        earlier.read(args)
    if args.retry_failed:
        earlier.forget_failed()
    job = _run_job(args, processor, options, Inputs(args, earlier.done))
    _sum_up(args, job, earlier)
    if job.signal is not None:
        raise SystemExit(128 + job.signal)
    if job.is_closed:
        raise SystemExit(CLOSED)
    if job.failed or earlier.failed or job.inputs.bad or job.lost or job.stopped is not None:
        raise SystemExit(1)


def _sum_up(args: argparse.Namespace, job: Job, earlier: Earlier) -> None:
    counts = [f"{job.done - job.failed} succeeded", f"{job.failed} failed"]
    if job.inputs.bad:
        counts.append(f"{counted(job.inputs.bad, 'line')} left out")
    if earlier.done:
        counts.append(f"{len(earlier.done)} done before")
    if earlier.failed:
        counts.append(f"{len(earlier.failed)} of them failed")
    complain(args, f"{counted(job.done, 'outcome')}: {', '.join(counts)}")
    first_error = job.first_error or earlier.first_error
    if first_error is not None:
        complain(args, f"the first error: {told(*first_error)}")
    if earlier.failed:
        complain(args, "--retry-failed runs those again that failed before")
    ended_by = None
    if job.signal is not None:
        ended_by = signal.Signals(job.signal).name
    elif job.stopped is not None:
        ended_by = class_name(job.stopped)
    if ended_by is not None:
        complain(args, f"ended by {ended_by}; --resume goes on with the rest")


def _run_job(
    args: argparse.Namespace, processor: Processor, options: dict[str, Any], inputs: Inputs
) -> Job:
    from ..many import WorkerTraceback

    with Out(args) as out:
        job = Job(args, out, inputs)
        try:
            asyncio.run(job.run(processor, options))
        except (TypeError, ValueError) as error:
            if job.done:
                raise
            refuse(args, str(error))
        except WriteError as error:
            job.lost = str(error)
            job.is_closed = error.is_closed
            complain(args, job.lost)
        except Exception as error:
            if isinstance(error.__cause__, WorkerTraceback):
                why = f"a worker cannot run the job: {type(error).__name__}: {error}"
            elif job.without_worker:
                why = f"{error}; --resume runs the inputs without an outcome again"
            else:
                raise
            job.lost = str(error)
            if job.signal is None:
                complain(args, why)
        except KeyboardInterrupt:
            job.signal = job.signal or signal.SIGINT
        except SystemExit as error:  # out of an asyncio.Task that a function has started
            job.stopped = error
        return job


def _check(args: argparse.Namespace) -> None:
    if args.inputs != STANDARD_INPUT and not Path(args.inputs).is_file():
        refuse(args, f"--inputs: there is no file {args.inputs}")
    if args.retry_failed and not args.resume:
        refuse(args, "--retry-failed: needs --resume, which goes on with the outcomes of --out")
    if args.workers is not None and args.workers < 1:
        refuse(args, f"--workers: must be at least 1, got {args.workers}")
    if args.on is not None and not args.on.startswith(DASK):
        refuse(args, f"--on: expected {DASK}HOST:PORT, got {args.on}")


def _progress() -> Any:
    """Return a display of the progress, if there is a terminal and rich is installed."""
    if not sys.stderr.isatty():
        return None
    with suppress(ImportError):
        from ..observe.progress import ProgressDisplay

        return ProgressDisplay()
    return None


@contextmanager
def blocked_signals() -> Generator[None]:
    """Hold signals back, also from processes that are started meanwhile."""
    if sys.platform == "win32":
        yield
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def leave_signals() -> None:
    """Ignore signals. They may go to all processes, and the main process handles them."""
    for number in SIGNALS:
        # Programs that a function starts would inherit SIG_IGN.
        signal.signal(number, lambda number, frame: None)
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
