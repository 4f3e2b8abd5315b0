"""How fast is sdax beside one `asyncio.TaskGroup` per level? Interleaved, in one process.

    python benchmarks/speed.py [--rounds 20] [--loop uvloop] [--only NAME] [--markdown]

Prints the best nanoseconds per function of many rounds, and how many times the compiled and the
Python engine are as fast as raw asyncio. The floor is plain sequential awaits for functions that
return at once, and a bare eagerly started `asyncio.Task` per function (Python 3.12+) for those
that suspend.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import sys
import time
from collections.abc import Callable, Sequence

import sdax
import workloads
from workloads import Contestant, Workload, suspends_once, waits_1ms

EAGER = sys.version_info >= (3, 12)  # asyncio.Task can be started eagerly

WORKLOADS = [
    Workload("1 level of 1000", (1000,)),
    Workload("100 levels of 10", (10,) * 100),
    Workload("1000 levels of 1", (1,) * 1000),
    Workload("100 x 10, three phases", (10,) * 100, phases=3),
    Workload("1 x 1000, timeout=5", (1000,), timeout=5),
    Workload("1 x 1000, retries=3", (1000,), retries=3),
    Workload("3-2-2, one after another", (3, 2, 2), repeat=100),
    Workload("3-2-2, 500 at once", (3, 2, 2), concurrent=500),
    Workload("sleep(0), 1 x 1000", (1000,), suspends_once),
    Workload("sleep(0), 100 x 10", (10,) * 100, suspends_once),
    Workload("sleep(0), 1 x 1000, timeout=5", (1000,), suspends_once, timeout=5),
    Workload("1 ms, 3-2-2, 500 at once", (3, 2, 2), waits_1ms, concurrent=500),
]


async def best_of(rounds: int, contestants: Sequence[Contestant]) -> list[float]:
    """Time each contestant `rounds` times in turn and return the best seconds of each."""
    best = [float("inf")] * len(contestants)
    for contestant in contestants:
        await contestant()
    for _ in range(rounds):
        for number, contestant in enumerate(contestants):
            gc.collect()
            gc.disable()
            start = time.perf_counter()
            await contestant()
            best[number] = min(best[number], time.perf_counter() - start)
            gc.enable()
    return best


async def measure(rounds: int, wanted: str, row: Callable[[Sequence[object]], str]) -> None:
    """Measure every workload and print a table."""
    engines = workloads.engines()
    print(row(["work", *engines, "raw", "floor", *(f"raw/{name}" for name in engines)]))
    for work in WORKLOADS:
        if wanted not in work.name:
            continue
        contestants = [workloads.sdax(work, engine) for engine in engines.values()]
        contestants.append(workloads.raw(work))
        if work.function is workloads.returns_at_once:
            contestants.append(workloads.floor(work))
        elif EAGER and work.timeout is None:
            contestants.append(workloads.eager_tasks(work))
        best = await best_of(rounds, contestants)
        each = [round(seconds * 1e9 / work.functions) for seconds in best]
        raw = best[len(engines)]
        ratios = [f"{raw / own:.2f}" for own in best[: len(engines)]]
        print(row([work.name, *each, *[""] * (len(engines) + 2 - len(each)), *ratios]), flush=True)


def plain_row(cells: Sequence[object]) -> str:
    """Return a line for the terminal."""
    return f"{cells[0]:32}" + "".join(f"{cell:>14}" for cell in cells[1:])


def markdown_row(cells: Sequence[object]) -> str:
    """Return a line of a Markdown table, with the line under the head."""
    line = "| " + " | ".join(map(str, cells)) + " |"
    return line + "\n|---" + "|--:" * (len(cells) - 1) + "|" if cells[0] == "work" else line


def main() -> None:
    """Read the arguments and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--loop", choices=["asyncio", "uvloop"], default="asyncio")
    parser.add_argument("--only", default="", help="workloads with this in their name")
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table")
    args = parser.parse_args()
    factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    if args.loop == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    version = sys.version.split()[0]
    print(f"sdax {sdax.__version__}, CPython {version}, {args.loop}; ns per function\n")
    row = markdown_row if args.markdown else plain_row
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(measure(args.rounds, args.only, row))


if __name__ == "__main__":
    main()
