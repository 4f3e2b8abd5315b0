"""From the engine to the caller: waiting for a run, and raising what it has to raise."""

from __future__ import annotations

from asyncio import CancelledError, Future
from typing import Any

from ._impl import Run
from .errors import SdaxExecutionError
from .record import Record
from .report import RunReport


def new_waiter(run: Run) -> Future[None]:
    """Return the future to await until the run is over; look again then whether it is."""
    run.waiter = run.loop.create_future()
    return run.waiter


def interrupt(run: Run, came: BaseException, earlier: BaseException | None) -> BaseException:
    """Cancel a run because of what came out of the wait for it; return what came first."""
    try:
        run.cancel()
        if isinstance(came, GeneratorExit):
            # Nothing can be awaited any more: the run cleans up on its own.
            if run.watch is not None:
                run.watch.run_finished(came, None)
            raise came
        return came if earlier is None else earlier
    finally:
        # It may be raised again, and then leads here by its traceback.
        del came, earlier


def report_of(run: Run, record: Record | None) -> RunReport[Any]:
    """Return the report of a run that has this record."""
    phases = None if record is None else record.phases
    return RunReport(
        run.plan, run.values, phases, None if run.watch is None else run.watch.durations()
    )


def conclude(run: Run, interruption: BaseException | None) -> RunReport[Any]:
    """Raise the interruption, with the run's failures as its context, or the failures alone;
    return the report if there are neither."""
    record = run.take_record()
    report = report_of(run, record)
    try:
        try:
            if record is not None:
                record.raise_failures(report)
        except SdaxExecutionError as error:
            if isinstance(interruption, CancelledError):
                # Whoever asked for it will hardly look at a context.
                run.loop.call_exception_handler(
                    {
                        "message": "sdax: a run that was cancelled had failures as well",
                        "exception": error,
                    }
                )
            if interruption is not None:
                # It gets the failures as its context, and they take over what it had. (Raised
                # here, it would get them anyway, but not on PyPy if it had been raised before.)
                error.__context__ = interruption.__context__
                interruption.__context__ = error
                raise interruption  # noqa: B904
            raise
        if interruption is not None:
            raise interruption
        if run.watch is not None:
            run.watch.run_finished(None, report)
        return report
    except BaseException as error:
        if run.watch is not None:
            run.watch.run_finished(error, report)
        # What is raised leads here by its traceback: no name may lead back.
        del record, report, interruption
        raise
