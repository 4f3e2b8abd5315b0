"""From the engine to the caller: waiting for a run, and raising what it has to raise."""

from __future__ import annotations

from asyncio import CancelledError
from typing import Any

from ._impl import Run
from .errors import SdaxExecutionError
from .report import RunReport


async def until_over(run: Run) -> BaseException | None:
    """Wait for a run to be over, whatever comes meanwhile; return what came first."""
    interruption: BaseException | None = None
    try:
        while not run.over:
            run.waiter = run.loop.create_future()
            try:
                await run.waiter
            except GeneratorExit:
                # Nothing can be awaited any more: the run cleans up on its own.
                run.cancel()
                raise
            except BaseException as exception:
                run.cancel()
                if interruption is None:
                    interruption = exception
        return interruption
    finally:
        # It may be raised again, and then leads here by its traceback.
        del interruption


def conclude(run: Run, interruption: BaseException | None) -> RunReport[Any]:
    """Raise the interruption, with the run's failures as its context, or the failures alone;
    return the report if there are neither."""
    record = run.take_record()
    report: RunReport[Any] = RunReport(run.plan, run.values, record)
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
                raise interruption  # noqa: B904 (its context is what Python makes it)
            raise
        if interruption is not None:
            raise interruption
        return report
    except BaseException:
        # What is raised leads here by its traceback: no name may lead back.
        del record, report, interruption
        raise
