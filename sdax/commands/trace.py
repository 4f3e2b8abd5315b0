"""`python -m sdax trace`: the timeline of one run."""

from __future__ import annotations

import argparse
import asyncio
import inspect
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import SdaxExecutionError
from ..observe import Timeline
from .named import Processor, complain, load_function, load_processor, refuse
from .output import write


def add_to(commands: Any) -> None:
    """Add the command to the subparsers of `python -m sdax`."""
    command = commands.add_parser(
        "trace",
        help="run a processor once, and show its timeline",
        description="Runs a processor once, prints its timeline and its critical path, and writes "
        "the timeline as an HTML page. The timeline replaces the observers that the processor was "
        "built with. If the run fails, it prints the error and exits with 1. If a name does not "
        "exist or is not a processor, it exits with 2.",
    )
    command.add_argument("processor", metavar="MODULE:NAME", help="a processor in a module")
    command.add_argument(
        "make_context",
        metavar="MODULE:FUNCTION",
        help="a function without arguments, async or not, that returns the context of the run",
    )
    command.add_argument("--html", metavar="PATH", type=Path, help="where to write the page")
    command.set_defaults(run=run, command="trace")


def run(args: argparse.Namespace) -> None:
    """Run the processor, and show its timeline."""
    processor = load_processor(args, args.processor)
    make_context = load_function(args, args.make_context)
    path: Path | None = args.html
    if path is not None and (path.is_dir() or not path.parent.is_dir()):
        problem = "is a directory" if path.is_dir() else "is in no directory that exists"
        refuse(args, f"--html: {path} {problem}; give the path of a file to write")
    timeline = Timeline()
    status = 0
    try:
        asyncio.run(_traced(processor, make_context, timeline))
    except (Exception, asyncio.CancelledError) as error:
        status = 1
        if isinstance(error, SdaxExecutionError):
            error = error.with_traceback(None)  # only the tracebacks of its members matter
        traceback.print_exception(error)
    finally:
        # Also after Ctrl-C. Without a context there was no run.
        if timeline.runs:
            written = path is None or _write_page(args, timeline, path)
            status = status or (0 if written else 2)
            _print(timeline)
    if status:
        raise SystemExit(status)


async def _traced(
    processor: Processor, make_context: Callable[[], Any], timeline: Timeline
) -> None:
    ctx = make_context()
    if inspect.isawaitable(ctx):
        ctx = await ctx
    await processor.process_tasks(ctx, observer=timeline)


def _write_page(args: argparse.Namespace, timeline: Timeline, path: Path) -> bool:
    """Write the page. If that fails, print the reason and return False."""
    try:
        timeline.to_html(path, title=args.processor)
    except OSError as error:
        complain(args, f"--html: {path} cannot be written: {error.strerror}")
        return False
    return True


def _print(timeline: Timeline) -> None:
    text = f"{timeline}\n"
    if timeline.runs[0].is_over:
        text += f"\n{timeline.critical_path()}\n"
    write(text)
