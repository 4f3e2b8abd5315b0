"""Measure how many schedules a second `sdax.testing.explore` goes through, on both engines.

    python -m benchmarks.explored

The workflow has 7 tasks in 3 levels. Each function sleeps once and has a timeout: one function in
each task, or three. The best of several rounds is printed, with the processor time beside it, for
a machine that does other things as well.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from typing import Any

LEVELS = (3, 2, 2)
ROUNDS = 5
SCHEDULES = 1000


def measure() -> None:
    """Measure the engine of this process, and print a line for each workflow."""
    from sdax import IMPLEMENTATION, AsyncTaskProcessor, task, task_func
    from sdax.testing import explore

    async def sleep(ctx: Any) -> None:
        await asyncio.sleep(0.01)

    for phases in ("pre_execute",), ("pre_execute", "execute", "post_execute"):
        builder = AsyncTaskProcessor[Any, str].builder()
        for level, size in enumerate(LEVELS):
            for number in range(size):
                functions: dict[str, Any] = {
                    phase: task_func(sleep, timeout=60.0) for phase in phases
                }
                builder.add_task(task(f"{level}-{number}", **functions), level)
        processor = builder.build()
        rounds: list[tuple[float, float]] = []
        for _ in range(ROUNDS):
            began = time.process_time()
            explored = explore(
                processor, context=object, check=lambda run: True, max_schedules=SCHEDULES
            )
            used = time.process_time() - began
            rounds.append((explored.schedules / explored.seconds, explored.schedules / used))
        speed, by_processor_time = map(max, zip(*rounds, strict=True))
        print(
            f"{IMPLEMENTATION:8} 7 tasks, {len(phases) * 7:2} functions: "
            f"{speed:6,.0f} schedules/s, {by_processor_time:6,.0f} per second of processor time",
            flush=True,
        )


def main() -> None:
    """Measure each engine in a process of its own."""
    if sys.argv[1:] == ["--this"]:
        measure()
        return
    for switch in ("SDAX_REQUIRE_EXTENSIONS", "SDAX_NO_EXTENSIONS"):
        subprocess.run(
            [sys.executable, __file__, "--this"], env={**os.environ, switch: "1"}, check=True
        )


if __name__ == "__main__":
    main()
