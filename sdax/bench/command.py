"""`python -m sdax bench`: how much faster is sdax than raw asyncio on this machine?"""

from __future__ import annotations

import argparse
import asyncio
import gc
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import sdax

from ..commands.output import write
from .contestants import BASELINE, Contestant, Loop, contestants
from .work import SELECTION, Work

Clock: TypeAlias = Callable[[], float]


def add_to(commands: Any) -> None:
    """Add the command to the subparsers of `python -m sdax`."""
    command = commands.add_parser(
        "bench",
        help="measure sdax beside raw asyncio, for half a minute",
        description="Measures sdax beside hand-written asyncio, interleaved in this process, and "
        "prints the ratios. Each contestant is checked before its time counts.",
    )
    command.add_argument(
        "--seconds",
        type=float,
        default=30,
        help="time for all works together; each runs at least once (default: %(default)g)",
    )
    command.add_argument("--loop", choices=["asyncio", "uvloop"], default="asyncio")
    command.add_argument(
        "--only", default="", metavar="TEXT", help="only works with TEXT in their names"
    )
    command.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Measure the selection and print a table."""
    works = [work for work in SELECTION if args.only in work.name]
    if not works:
        names = "\n  ".join(work.name for work in SELECTION)
        raise SystemExit(f"--only: no work has {args.only!r} in its name. These exist:\n  {names}")
    version = sys.version.split()[0]
    write(
        f"sdax {sdax.__version__}, CPython {version}, {args.loop}. Speed compared with one\n"
        "asyncio.TaskGroup per level: 2.0 means twice as fast, below 1 means slower. The first\n"
        "column has the nanoseconds per function of the TaskGroup.\n\n"
    )
    rivals = contestants()
    baseline = next(rival for rival in rivals if rival.name == BASELINE)
    others = [rival for rival in rivals if rival is not baseline]
    write(row(["work", f"{BASELINE} ns", *(rival.name for rival in others)]))
    with asyncio.Runner(loop_factory=loop_factory(args.loop)) as runner:
        for work, best in measure_all(runner.get_loop(), works, rivals, args.seconds):
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


def measure_all(
    loop: Loop,
    works: Sequence[Work],
    rivals: Sequence[Contestant],
    seconds: float,
    clock: Clock = time.perf_counter,
) -> Iterator[tuple[Work, dict[str, float]]]:
    """Return each work with the best seconds of each contestant, in about `seconds` in all.

    Each work gets an equal share of the time that is left when it begins.
    """
    end = clock() + seconds
    for number, work in enumerate(works):
        show_progress(f"{number + 1} of {len(works)}: {work.name} ...")
        share = max(0.0, end - clock()) / (len(works) - number)
        best = measure(loop, work, rivals, share, clock)
        show_progress("")
        yield work, best


def measure(
    loop: Loop,
    work: Work,
    rivals: Sequence[Contestant],
    seconds: float,
    clock: Clock = time.perf_counter,
) -> dict[str, float]:
    """Time the contestants that can do the work in turn, and return the best seconds of each.

    The check of the contestants is a part of `seconds`. After one round, there is another only if
    it will probably end in time. The first rounds warm up, and are hardly ever the best.
    """
    until = clock() + seconds
    runs = [(rival, rival.checked(loop, work)) for rival in rivals if rival.can(work)]
    best: dict[str, float] = {}
    begin = end = clock()
    while not best or end + (end - begin) <= until:
        begin = end
        for rival, once in runs:
            rival.prepare(loop)
            took = timed(once, clock)
            best[rival.name] = min(took, best.get(rival.name, took))
        end = clock()
    return best


def timed(once: Callable[[], None], clock: Clock = time.perf_counter) -> float:
    """Return the seconds that a call takes, without garbage collection."""
    gc.collect()
    gc.disable()
    try:
        start = clock()
        once()
        return clock() - start
    finally:
        gc.enable()


def loop_factory(name: str) -> Callable[[], Loop]:
    """Return the factory of a loop of this name."""
    if name == "asyncio":
        return asyncio.new_event_loop
    try:
        import uvloop
    except ImportError as error:
        raise SystemExit(f"--loop uvloop: {error}. Run: pip install uvloop") from None
    factory: Callable[[], Loop] = uvloop.new_event_loop
    return factory


def ratio(base: float, own: float | None) -> str:
    """Return the speed compared with the baseline, or nothing if it was not measured."""
    return "" if own is None else f"{base / own:.1f}" if base > 3 * own else f"{base / own:.2f}"


def row(cells: Sequence[str]) -> str:
    """Return a line of the table."""
    return f"{cells[0]:30}" + "".join(f"{cell:>18}" for cell in cells[1:]) + "\n"


def show_progress(text: str) -> None:
    """Replace the last line on the terminal. Do nothing if there is no terminal."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
