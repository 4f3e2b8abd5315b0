"""From the engine to the caller: waiting for a run, and raising what it has to raise."""

from __future__ import annotations

import sys
from asyncio import Future, current_task
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Final

from .._impl import Run
from ..common.text import counted, listed, one_line, shortened, shown
from ..errors import SdaxExecutionError
from ..report import RunReport
from ..states import TaskFailure
from .exceptions import (
    chain,
    is_cancellation,
    leads_to,
    put_after,
    put_before,
    raise_with_context,
)
from .record import Record

MOST_PLACES: Final = 4
LONGEST_NAME: Final = 60  # characters


class _Pass:
    """Awaits one pass of the loop, without a call of a Python function."""

    __await__: Any = staticmethod(partial(iter, (None,)))


PASS: Final[Any] = _Pass()


def new_waiter(run: Run) -> Future[None]:
    """Return the future to await until the run has ended. Then check `over` again."""
    run.waiter = run.loop.create_future()
    return run.waiter


async def see_through(run: Run, came: BaseException) -> None:
    """Cancel a run because of what came out of the wait for it, and wait until it has ended.

    Anything that comes meanwhile is ignored, except a `GeneratorExit`. Then nothing can be awaited
    any more, and the run cleans up on its own.
    """
    try:
        while True:
            try:
                await _see_through(run, came)
                return
            except GeneratorExit:
                raise
            except BaseException as error:
                run.break_down(error)
            if run.over:
                return
    finally:
        del came  # the traceback of what is raised leads here


async def _see_through(run: Run, came: BaseException) -> None:
    another: BaseException | None = None
    try:
        if run.interrupted:  # in an earlier phase
            _shake(run)
        run.cancel()
        _let_go(run, came)
        with shield():
            # At least one pass of the loop: an exception that is raised while another one is
            # thrown in gets what the caller handles as its context, in place of its own.
            passed = False
            while not (run.over and passed):
                another = None
                try:
                    waiter = PASS if run.over else new_waiter(run)
                except BaseException as error:
                    # Without memory or frames for a future, look again in the next pass.
                    run.break_down(error)
                    waiter = PASS
                try:
                    passed = True
                    await waiter
                except BaseException as exception:
                    another = exception
                if another is not None:
                    if type(another) is GeneratorExit and not is_cancellation(came):
                        run.break_down(came)  # nobody is left to raise it
                    _shake(run)
                    _let_go(run, another)
    finally:
        # It may be raised again, and then leads here by its traceback.
        another = None
        del came


def _shake(run: Run) -> None:
    """Have a run know, in this pass of the loop, that its caller was cancelled once more."""
    run.shaken = True
    run.loop.call_soon(_settle, run)


def _settle(run: Run) -> None:
    run.shaken = False


def _let_go(run: Run, came: BaseException) -> None:
    """Leave the run alone, and raise, if it is a `GeneratorExit` that came."""
    try:
        if type(came) is GeneratorExit:
            hear_out(run)
            if run.watch is not None:
                run.watch.run_finished(came, None)
            raise came
    finally:
        del came


def shield() -> AbstractContextManager[object]:
    """Return what keeps anyio from cancelling the caller again in each pass of the loop."""
    anyio = sys.modules.get("anyio")
    scope = getattr(anyio, "CancelScope", None)
    if scope is None or current_task() is None:
        return nullcontext()
    try:
        shield: AbstractContextManager[object] = scope(shield=True)
    except Exception:
        return nullcontext()
    return shield


def hear_out(run: Run) -> None:
    """Have the loop's exception handler hear what a run that nobody awaits has to raise."""
    if run.over:
        _tell_loop_of_failures(run)
    else:
        new_waiter(run).add_done_callback(partial(_when_over, run))


def _when_over(run: Run, _: Future[None]) -> None:
    _tell_loop_of_failures(run)


def _tell_loop_of_failures(run: Run) -> None:
    record, fatal = run.take_record()
    failures = _failures(record, report_of(run, record))
    error = fatal or failures
    if error is None:
        return
    if failures is not None:
        put_before(error, failures)
    run.loop.call_exception_handler(
        {"message": "sdax: a run that nobody awaits any more has failed", "exception": error}
    )


def report_of(run: Run, record: Record | None) -> RunReport[Any]:
    """Return the report of a run that has this record."""
    durations = None if run.watch is None else run.watch.durations()
    if record is None:
        return RunReport(run.plan, run.values, None, durations)
    return RunReport(run.plan, run.values, record.phases, durations, record.finished_by)


def _failures(record: Record | None, report: RunReport[Any]) -> SdaxExecutionError | None:
    if record is None or not record.failures:
        return None
    return SdaxExecutionError.from_failures(record.failures, report)


def raise_failures(run: Run) -> None:
    """Raise an `SdaxExecutionError` of the failures so far, if there are any."""
    error = _failures(run.record, report_of(run, run.record))
    if error is not None:
        raise error


def raise_fatal(run: Run) -> None:
    """Raise, once, the exception that is not an `Exception` or that broke the engine, if any."""
    fatal, run.fatal = run.fatal, None
    try:
        if fatal is not None:
            raise fatal
    finally:
        # Its traceback leads to this frame: no name here may lead back.
        del fatal


def conclude(run: Run, interruption: BaseException | None) -> RunReport[Any]:
    """Raise what stopped the run, with its failures as the context, or the failures alone.
    Return the report if there are neither."""
    report = failures = error = None
    try:
        report = report_of(run, run.record)
        failures = _failures(run.record, report)
        error = run.fatal or interruption or failures
        if error is None:
            if run.watch is not None:
                run.watch.run_finished(None, report)
            run.record = None  # exceptions that it has may lead to the run
            return report
        _give_context(run, error, interruption, failures)
        raise_with_context(error)
    except BaseException as raised:
        if raised is error:
            run.record = run.fatal = None  # they may lead to the run
        elif error is not None:
            put_after(raised, error)
        if run.watch is not None and error is not None:
            run.watch.run_finished(raised, report)
        raise
    finally:
        # The traceback of the exception leads here, so no name may lead back to it.
        del report, interruption, failures, error


def add_lost(run: Run, broken: BaseException, interruption: BaseException | None) -> None:
    """Put what a run had to raise after what was raised in its place."""
    record, fatal = run.take_record()
    failures = () if record is None else record.failures
    lost: list[Exception] = []
    error = None
    try:
        lost += [each.exception for each in failures if not leads_to(broken, each.exception)]
        if lost:
            put_after(broken, ExceptionGroup("the failures of the run", lost))
        for error in (fatal, interruption):
            if error is not None:
                put_after(broken, error)
    finally:
        lost.clear()
        del record, failures, fatal, broken, interruption, error


def _give_context(
    run: Run,
    error: BaseException,
    interruption: BaseException | None,
    failures: SdaxExecutionError | None,
) -> None:
    """Give an error what else the run has to raise as its context."""
    try:
        heard = True
        if failures is not None and failures is not error:
            heard = _give_failures(error, failures)
        if interruption is not None and not is_cancellation(interruption):
            chain(error, interruption)
        if failures is not None and (not heard or is_cancellation(error)):
            # The code that asked for a cancellation will hardly look at its context.
            run.loop.call_exception_handler(
                {"message": _message_about(failures.failures), "exception": failures}
            )
    finally:
        del error, interruption, failures


def _give_failures(error: BaseException, failures: SdaxExecutionError) -> bool:
    """Make failures the context of an error, which may be one of them."""
    if put_before(error, failures):
        return True
    others = [each for each in failures.exceptions if each is not error]
    if not others:
        return True
    context = failures.derive(others)
    vars(context)["_report"] = None  # it has the error, so the error would lead to itself
    return put_before(error, context)


def _message_about(failures: Sequence[TaskFailure]) -> str:
    """Return what the loop's exception handler is told of the failures of a cancelled run."""
    places = (
        f"{failure.phase} of task {shortened(one_line(shown(failure.name)), LONGEST_NAME)}"
        for failure in failures
    )
    return (
        f"sdax: a run that was cancelled had {counted(len(failures), 'failure')} as well: "
        f"{listed(places, len(failures), MOST_PLACES)}"
    )
