"""What the commands print: as standard output takes it, and no further than it is read."""

from __future__ import annotations

import argparse
import io
import os
import sys
from contextlib import suppress
from errno import EINVAL, EPIPE
from typing import Any, Final

CLOSED: Final = 141  # 128 + SIGPIPE, as a shell shows the end of a program that the signal ended


def write(text: str, *, encoding: str | None = None) -> None:
    """Print a text, in this encoding if one is given; escape what the encoding does not have.

    Ends the program if the text cannot be printed: with status 141, and without a word, if whoever
    read it has closed the pipe, else with one line and status 2.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding=encoding, errors="backslashreplace")
    try:
        print(text, end="", flush=True)
    except OSError as error:
        _discard_the_rest()
        if error.errno in (EPIPE, EINVAL):  # the latter on Windows
            raise SystemExit(CLOSED) from None
        print(f"python -m sdax: standard output takes no more: {error.strerror}", file=sys.stderr)
        raise SystemExit(2) from None


def _discard_the_rest() -> None:
    """Keep Python from trying once more at its end, which would print a traceback."""
    with suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` that prints its help like everything else."""

    def print_help(self, file: Any = None) -> None:
        """Print the help."""
        write(self.format_help())
