"""`python -m sdax trace`: the timeline of one run."""

from __future__ import annotations

import argparse
import asyncio
import inspect
import io
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import SdaxExecutionError
from ..observe import Timeline
from .named import Processor, load_function, load_processor, refuse


def add_to(commands: Any) -> None:
    """Add the command to the subparsers of `python -m sdax`."""
    command = commands.add_parser(
        "trace",
        help="run a processor once, and show its timeline",
        description="Runs a processor once, prints its timeline and its critical path, and writes "
        "the timeline as an HTML page. The timeline takes the place of the observers that the "
        "processor was built with. A run that fails has its timeline too; the status is then 1.",
    )
    command.add_argument("processor", metavar="MODULE:NAME", help="a processor, as a module has it")
    command.add_argument(
        "make_context",
        metavar="MODULE:FUNCTION",
        help="a function without arguments, async or not, that returns the context of the run",
    )
    command.add_argument("--html", metavar="PATH", type=Path, help="where to write the page")
    command.set_defaults(run=run, command="trace")


def run(args: argparse.Namespace) -> None:
    """Run the processor, and show what became of it."""
    processor = load_processor(args, args.processor)
    make_context = load_function(args, args.make_context)
    path: Path | None = args.html
    if path is not None and (path.is_dir() or not path.parent.is_dir()):
        problem = "is a directory" if path.is_dir() else "is in no directory that exists"
        refuse(args, f"--html: {path} {problem}; give the path of a file to write")
    timeline = Timeline()
    try:
        asyncio.run(_traced(processor, make_context, timeline))
    except (Exception, asyncio.CancelledError) as error:
        if isinstance(error, SdaxExecutionError):
            error = error.with_traceback(None)  # which is ours; those of its members matter
        traceback.print_exception(error)
        raise SystemExit(1) from None
    finally:
        # Of a run that was interrupted by Ctrl-C as well.
        _show(args, timeline, path)


async def _traced(
    processor: Processor, make_context: Callable[[], Any], timeline: Timeline
) -> None:
    ctx = make_context()
    if inspect.isawaitable(ctx):
        ctx = await ctx
    await processor.process_tasks(ctx, observer=timeline)


def _show(args: argparse.Namespace, timeline: Timeline, path: Path | None) -> None:
    if not timeline.runs:
        return  # no context, no run
    if path is not None:
        try:
            timeline.to_html(path, title=args.processor)
        except OSError as error:
            refuse(args, f"--html: {path} cannot be written: {error.strerror}")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    print(timeline)
    if timeline.runs[0].is_over:
        print(f"\n{timeline.critical_path()}")
