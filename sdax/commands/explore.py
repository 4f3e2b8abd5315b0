"""`python -m sdax explore`: a workflow disturbed at each of its points, without a test suite."""

from __future__ import annotations

import argparse
import io
import shlex
import sys
import traceback
from typing import Any

from .named import load_function, load_processor, refuse

IN_FULL = 3  # findings that are printed with all details


def add_to(commands: Any) -> None:
    """Add the command to the subparsers of `python -m sdax`."""
    command = commands.add_parser(
        "explore",
        help="disturb a processor at every point, and check each run",
        description="Runs a processor many times, disturbed at each of its points: the caller is "
        "cancelled, an exception is raised, an await never ends. Prints the findings and the "
        "number of schedules, and exits with 1 if there are findings. It is the function "
        "sdax.testing.explore, without a test suite.",
    )
    command.add_argument("processor", metavar="MODULE:NAME", help="a processor in a module")
    command.add_argument(
        "make_context",
        metavar="MODULE:FUNCTION",
        help="a function without arguments, async or not, that returns the context of a run",
    )
    command.add_argument(
        "check",
        metavar="MODULE:CHECK",
        help="a function that gets each run, and returns False or raises if it is wrong",
    )
    command.add_argument("--faults", metavar="A,B", help="the faults to try, separated by commas")
    command.add_argument("--disturbances", metavar="N", type=int, help="2 also tries every two")
    command.add_argument("--schedules", metavar="N", type=int, help="at most N schedules")
    command.add_argument("--seed", metavar="N", type=int, help="a random sample of more")
    command.add_argument("--real-clock", action="store_true", help="for real sockets and threads")
    command.add_argument("--replay", metavar="SCHEDULE", help="repeat the schedule of a finding")
    command.set_defaults(run=run, command="explore")


def run(args: argparse.Namespace) -> None:
    """Explore the processor, and print the findings."""
    from ..testing import NotDeterministic, NotReachedError, OutsideWorldError
    from ..testing.explore import Explorer
    from ..testing.player import SharedContextError

    processor = load_processor(args, args.processor)
    make_context = load_function(args, args.make_context)
    check = load_function(args, args.check, "that checks a run")
    options = {
        "faults": None if args.faults is None else args.faults.split(","),
        "disturbances": args.disturbances,
        "max_schedules": args.schedules,
        "seed": args.seed,
        "clock": "real" if args.real_clock else None,
        "replay": args.replay,
    }
    given = {name: value for name, value in options.items() if value is not None}
    command = ["python", "-m", "sdax", "explore", args.processor, args.make_context, args.check]
    command += ["--real-clock"] if args.real_clock else []
    try:
        explorer = Explorer(processor, make_context, check, given, command=shlex.join(command))
    except (TypeError, ValueError) as error:
        refuse(args, str(error))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        for number, finding in enumerate(explorer.findings()):
            print(f"{finding}\n" if number < IN_FULL else str(finding).split("\n", 1)[0])
    except (NotReachedError, SharedContextError) as error:
        refuse(args, str(error))
    except (NotDeterministic, OutsideWorldError) as error:
        print(f"python -m sdax explore: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except Exception as error:  # from the function that makes contexts
        traceback.print_exception(error)
        raise SystemExit(1) from None
    print(explorer.exploration())
    if explorer.found:
        raise SystemExit(1)
