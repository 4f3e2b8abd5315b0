"""Does a task cost the same in a run of ten and in a run of a hundred thousand?"""

from __future__ import annotations

import gc
import tracemalloc

from contests import InTurn, Run, contests
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
def test_growth(in_turn: InTurn, loop_name: str, work: Work, contestant: Contestant) -> None:
    in_turn("growth", f"growth: {work.name}", Contestant.checked, peak_bytes)


def peak_bytes(run: Run) -> dict[str, object]:
    """Return the peak bytes of a call, beyond the bytes in use before it."""
    gc.collect()
    tracemalloc.start()
    try:
        run()
        return {"peak_bytes": tracemalloc.get_traced_memory()[1]}
    finally:
        tracemalloc.stop()
