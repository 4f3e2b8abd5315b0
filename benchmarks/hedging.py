"""Measure the cost of a hedged function with a fast first call, beside a bare `asyncio.Task`.

    python benchmarks/hedging.py

The function waits for one pass of the event loop, which is the shortest possible wait. It prints
the processor time of each, and their ratio, on asyncio's own loop, and on uvloop if it is
installed. It writes them to `results/hedging.json`, instead of those of the same Python.
"""

from __future__ import annotations

import asyncio
import platform
from pathlib import Path
from time import process_time
from typing import Any

from measurements import keep
from sdax import hedged

RESULTS = Path(__file__).parent / "results" / "hedging.json"

CALLS = 500
ROUNDS = 100  # in turn, for a machine that has other things to do


async def call(ctx: Any) -> None:
    """Wait for a pass of the loop."""
    await asyncio.sleep(0)


HEDGED = hedged(call, 1.0)


async def with_a_task() -> None:
    """Call it in an `asyncio.Task`."""
    await asyncio.get_running_loop().create_task(call(None))


async def with_hedging() -> None:
    """Call it hedged."""
    await HEDGED(None)


async def measure() -> tuple[float, float]:
    """Return the microseconds of one call in a task, and of one hedged call."""
    ways = (with_a_task, with_hedging)
    times: list[list[float]] = [[], []]
    for _ in range(ROUNDS):
        for way, taken in zip(ways, times, strict=True):
            begun = process_time()
            for _ in range(CALLS):
                await way()
            taken.append((process_time() - begun) / CALLS * 1e6)
    # Times below the quartile are hardly disturbed.
    first, second = (sorted(taken)[ROUNDS // 4] for taken in times)
    return first, second


def main() -> None:
    """Measure on each loop, and print."""
    loops = {"asyncio": asyncio.new_event_loop}
    try:
        import uvloop

        loops["uvloop"] = uvloop.new_event_loop
    except ImportError:
        pass
    print(f"Python {platform.python_version()}")
    rows: list[dict[str, Any]] = []
    for name, new_loop in loops.items():
        with asyncio.Runner(loop_factory=new_loop) as runner:
            bare, own = runner.run(measure())
        print(
            f"{name:8} asyncio.Task {bare:6.2f} us   hedged {own:6.2f} us   ratio {own / bare:.2f}"
        )
        rows.append(
            {"python": platform.python_version(), "loop": name, "task_us": bare, "hedged_us": own}
        )
    keep(RESULTS, rows, ("python", "loop"))


if __name__ == "__main__":
    main()
