"""The pauses between attempts.

Times are exact: the clock is virtual, and the random factor is fixed where it is not tested.
"""

from __future__ import annotations

import asyncio
import math
from itertools import product
from typing import Any

import pytest

from attempts import Flaky, now, virtual_clock
from helpers import Trace, build, error_of, nothing, passes, solo, spawn, task, until
from sdax import RetryableException, TaskFunction

pytestmark = pytest.mark.usefixtures("factors")


@virtual_clock
@pytest.mark.parametrize(
    ("limits", "delays"),
    [
        ({}, [1, 2, 4, 8]),
        ({"initial_delay": 3}, [3, 6, 12, 24]),
        ({"initial_delay": 3, "backoff_factor": 1}, [3, 3, 3, 3]),
        ({"backoff_factor": 0.5}, [1, 0.5, 0.25, 0.125]),
        ({"max_delay": 3}, [1, 2, 3, 3]),
        ({"max_delay": 0.5}, [0.5] * 4),
        ({"max_delay": 0}, [0] * 4),
        ({"initial_delay": 0}, [0] * 4),
        ({"initial_delay": 0, "backoff_factor": 1e308}, [0] * 4),
        ({"backoff_factor": 1e308, "max_delay": 5}, [1, 5, 5, 5]),
        ({"initial_delay": 1e308, "max_delay": 5}, [5] * 4),
        ({"initial_delay": 1e-308, "backoff_factor": 1e-308}, [1e-308, 0, 0, 0]),
    ],
)
async def test_delays(limits: dict[str, Any], delays: list[float], factors: list[Any]) -> None:
    flaky = Flaky(*[RetryableException()] * 4)
    await solo(TaskFunction(flaky, retries=4, **limits)).process_tasks(None)
    gaps = [after - before for before, after in zip(flaky.calls, flaky.calls[1:], strict=False)]
    assert gaps == pytest.approx(delays)
    assert factors == [(0.5, 1.0)] * 4


@virtual_clock
@pytest.mark.parametrize("factor", [0.5, 0.75, 1.0])
async def test_the_random_factor(
    factor: float, engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sdax.engine.attempts.uniform", lambda low, high: factor)
    flaky = Flaky(*[RetryableException()] * 3)
    await solo(TaskFunction(flaky, retries=3, max_delay=3)).process_tasks(None)
    assert flaky.calls == [0, factor, factor * (1 + 2), factor * (1 + 2 + 3)]


@virtual_clock
async def test_the_factor_is_really_random(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr("sdax.processor.Run", engine.module.Run)
    flaky = Flaky(*[RetryableException()] * 50)
    function = TaskFunction(flaky, retries=50, backoff_factor=1)
    await solo(function).process_tasks(None)
    gaps = [after - before for before, after in zip(flaky.calls, flaky.calls[1:], strict=False)]
    assert all(0.499 < gap < 1.001 for gap in gaps)
    assert len({round(gap, 6) for gap in gaps}) > 25


@pytest.mark.parametrize("max_delay", [None, 0, 60])
def test_the_backoff_never_overflows(max_delay: float | None) -> None:
    retries = [0, 1, 10, 1023, 1024, 10**6, 10**18]
    factors = [1, 2, 1.5, 0.5, 1e300, 1e-300, 10**30]
    for retry, initial_delay, backoff_factor in product(retries, [0, 1, 2.5], factors):
        function = TaskFunction(
            nothing, initial_delay=initial_delay, backoff_factor=backoff_factor, max_delay=max_delay
        )
        case = f"retry {retry} of {function}"
        delay = function.backoff(retry)
        assert not math.isnan(delay), case
        assert 0 <= delay <= (math.inf if max_delay is None else max_delay), case
        if retry < 10 and backoff_factor < 10:
            expected = initial_delay * backoff_factor**retry
            assert delay == (expected if max_delay is None else min(max_delay, expected)), case
        if retry >= 10**6 and backoff_factor > 1 and initial_delay:
            assert delay == (math.inf if max_delay is None else max_delay), case
        if retry >= 10**6 and backoff_factor < 1:
            assert delay == 0, case


@pytest.mark.parametrize("backoff_factor", [1, 1e308])
async def test_an_endless_delay_can_be_cancelled(backoff_factor: float) -> None:
    flaky = Flaky(RetryableException(1), RetryableException(2))
    function = TaskFunction(flaky, retries=3, initial_delay=1e308, backoff_factor=backoff_factor)
    run = spawn(solo(function))
    await until(lambda: flaky.calls)
    await passes(2)
    run.cancel()
    assert isinstance(await error_of(run), asyncio.CancelledError)
    assert len(flaky.calls) == 1


@virtual_clock
async def test_waiting_for_a_retry_stops_no_sibling() -> None:
    flaky = Flaky(RetryableException())
    trace = Trace()

    async def sibling(ctx: Any) -> None:
        await asyncio.sleep(5)
        trace.append(f"sibling at {now()}")

    async def above(ctx: Any) -> None:
        trace.append(f"above at {now()}")

    await build(
        [task("A", TaskFunction(flaky, retries=1, initial_delay=10)), task("B", sibling)],
        [task("C", above)],
    ).process_tasks(None)
    assert trace == ["sibling at 5.0", "above at 10.0"]


def test_the_backoff_is_that_of_a_retry() -> None:
    function = TaskFunction(nothing)
    with pytest.raises(TypeError, match=r"the number of a retry, got 1\.0"):
        function.backoff(1.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"takes 0, 1, 2 \.\.\., got -1"):
        function.backoff(-1)
