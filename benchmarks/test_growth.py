"""Does a task cost the same in a run of ten and in a run of a hundred thousand?

The number of rounds follows from the size, whatever pytest-benchmark's options say.
"""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from collections.abc import Callable
from typing import Any

from contests import contests, described
from sdax.bench.contestants import BASELINE, Contestant
from sdax.bench.work import Work

SIZES = (10, 100, 1_000, 10_000, 100_000)
WORKS = [
    Work(f"{kind}, {size}", shape, sleep)
    for size in SIZES
    for kind, shape, sleep in (
        ("one level, returns at once", (size,), None),
        ("one level, suspends once", (size,), 0),
        ("levels of one, returns at once", (1,) * size, None),
    )
]


@contests(
    WORKS,
    lambda rival: rival.name.startswith("sdax") or rival.name == BASELINE,
    loops=("asyncio",),
)
def test_growth(
    benchmark: Any,
    loop: asyncio.AbstractEventLoop,
    loop_name: str,
    work: Work,
    contestant: Contestant,
) -> None:
    benchmark.group = f"growth: {work.name}"
    benchmark.extra_info.update(described("growth", loop_name, work, contestant))
    run = contestant.checked(loop, work)
    benchmark.extra_info["peak_bytes"] = peak_bytes(run)
    benchmark.pedantic(run, rounds=max(3, min(300, SIZES[-1] // work.functions)))


def peak_bytes(run: Callable[[], object]) -> int:
    """Return the peak bytes of a call, beyond the bytes in use before it."""
    gc.collect()
    tracemalloc.start()
    try:
        run()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
