"""`python -m sdax bench`: how much faster is sdax than raw asyncio, here?"""

from __future__ import annotations

import argparse
import asyncio
import gc
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import sdax

from ..commands.output import write
from .contestants import BASELINE, Contestant, Loop, contestants
from .work import SELECTION, Work

WARM_UP = 2


def add_to(commands: Any) -> None:
    """Add the command to the subparsers of `python -m sdax`."""
    command = commands.add_parser(
        "bench",
        help="measure sdax beside raw asyncio, for half a minute",
        description="Measures sdax beside what one writes by hand with asyncio, interleaved in "
        "this process, and prints the ratios. Each contestant is checked before its time counts.",
    )
    command.add_argument(
        "--seconds", type=float, default=30, help="in all, more or less (default: %(default)g)"
    )
    command.add_argument("--loop", choices=["asyncio", "uvloop"], default="asyncio")
    command.add_argument("--only", default="", metavar="TEXT", help="works with it in their names")
    command.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Measure the selection and print a table."""
    works = [work for work in SELECTION if args.only in work.name]
    if not works:
        names = "\n  ".join(work.name for work in SELECTION)
        raise SystemExit(f"--only: no work has {args.only!r} in its name; there are\n  {names}")
    version = sys.version.split()[0]
    write(
        f"sdax {sdax.__version__}, CPython {version}, {args.loop}; how many times as fast as\n"
        "one asyncio.TaskGroup per level, whose nanoseconds per function stand first.\n\n"
    )
    rivals = contestants()
    baseline = next(rival for rival in rivals if rival.name == BASELINE)
    others = [rival for rival in rivals if rival is not baseline]
    write(row(["work", f"{BASELINE} ns", *(rival.name for rival in others)]))
    with asyncio.Runner(loop_factory=loop_factory(args.loop)) as runner:
        for number, work in enumerate(works, 1):
            show_progress(f"{number} of {len(works)}: {work.name} ...")
            best = measure(runner.get_loop(), work, rivals, args.seconds / len(works))
            show_progress("")
            base = best[baseline.name]
            write(
                row(
                    [
                        work.name,
                        f"{base * 1e9 / work.functions:.0f}",
                        *(ratio(base, best.get(rival.name)) for rival in others),
                    ]
                )
            )


def measure(
    loop: Loop, work: Work, rivals: Sequence[Contestant], seconds: float
) -> dict[str, float]:
    """Time those that can do the work in turn, and return the best seconds of each by name."""
    until = time.perf_counter() + seconds
    runs = [(rival, rival.checked(loop, work)) for rival in rivals if rival.can(work)]
    best: dict[str, float] = {}
    rounds = 0
    while rounds <= WARM_UP or time.perf_counter() < until:
        for rival, once in runs:
            rival.prepare(loop)
            took = timed(once)
            if rounds >= WARM_UP:
                best[rival.name] = min(took, best.get(rival.name, took))
        rounds += 1
    return best


def timed(once: Callable[[], None]) -> float:
    """Return the seconds that a call takes, without garbage collection."""
    gc.collect()
    gc.disable()
    try:
        start = time.perf_counter()
        once()
        return time.perf_counter() - start
    finally:
        gc.enable()


def loop_factory(name: str) -> Callable[[], Loop]:
    """Return what makes a loop of this name."""
    if name == "asyncio":
        return asyncio.new_event_loop
    try:
        import uvloop
    except ImportError as error:
        raise SystemExit(f"--loop uvloop: {error}; pip install uvloop") from None
    factory: Callable[[], Loop] = uvloop.new_event_loop
    return factory


def ratio(base: float, own: float | None) -> str:
    """Return how many times as fast as the baseline, where it was measured."""
    return "" if own is None else f"{base / own:.1f}" if base > 3 * own else f"{base / own:.2f}"


def row(cells: Sequence[str]) -> str:
    """Return a line of the table."""
    return f"{cells[0]:30}" + "".join(f"{cell:>18}" for cell in cells[1:]) + "\n"


def show_progress(text: str) -> None:
    """Write over the line that a terminal shows; nothing where there is none."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
