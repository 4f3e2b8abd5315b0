"""`python -m sdax` prints the versions. `python -m sdax --help` lists the commands."""

from __future__ import annotations

import argparse
import asyncio
import platform
import sys
from collections.abc import Sequence

from . import IMPLEMENTATION, __version__
from .bench import command as bench
from .commands import explore, run, show, trace
from .commands.output import Parser, write


def print_versions(args: argparse.Namespace) -> None:
    """Print the versions of sdax and Python, the engine and the event loop."""
    with asyncio.Runner() as runner:
        loop = type(runner.get_loop())
    write(
        f"sdax {__version__}\n"
        f"engine: {IMPLEMENTATION}\n"
        f"Python: {platform.python_implementation()} {sys.version.split()[0]}\n"
        f"loop: {loop.__module__}.{loop.__qualname__}\n"
    )


class PrintVersion(argparse.Action):
    """Print the version of sdax, and exit."""

    def __call__(self, *arguments: object) -> None:
        write(f"sdax {__version__}\n")
        raise SystemExit(0)


def make_parser() -> Parser:
    """Return the parser of the command line. `run` of its result is the function to call."""
    parser = Parser(prog="python -m sdax", description=print_versions.__doc__)
    parser.set_defaults(run=print_versions)
    parser.add_argument("--version", action=PrintVersion, nargs=0, help="print the version of sdax")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for command in (show, trace, explore, run, bench):
        command.add_to(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command that the arguments name. Without a command, print the versions."""
    args = make_parser().parse_args(arguments)
    args.run(args)


if __name__ == "__main__":
    main()
