"""`python -m sdax show`: a picture of a processor."""

from __future__ import annotations

import argparse
from typing import Any

from .named import load_processor
from .output import write
from .processor_page import processor_page


def add_to(commands: Any) -> None:
    """Add the command to the subparsers of `python -m sdax`."""
    command = commands.add_parser(
        "show",
        help="draw a processor",
        description="Draws a processor: as an outline in text, as a Mermaid flowchart, or as an "
        "HTML page that needs no other file. It imports the module and runs nothing.",
    )
    command.add_argument("processor", metavar="MODULE:NAME", help="a processor in a module")
    command.add_argument("--format", choices=["text", "mermaid", "html"], default="text")
    command.set_defaults(run=run, command="show")


def run(args: argparse.Namespace) -> None:
    """Print the picture."""
    processor = load_processor(args, args.processor)
    if args.format == "text":
        write(f"{processor}\n")
    elif args.format == "mermaid":
        write(processor.to_mermaid(), encoding="utf-8")  # Mermaid reads UTF-8
    else:
        write(processor_page(processor, args.processor), encoding="utf-8")  # the page declares it
