"""Standard output of the commands, with any encoding, until the reader closes it."""

from __future__ import annotations

import argparse
import io
import os
import sys
from contextlib import suppress
from errno import EINVAL, EPIPE
from typing import Any, Final

CLOSED: Final = 141  # 128 + SIGPIPE, the status that a shell shows for this signal


def write(text: str, *, encoding: str | None = None) -> None:
    """Print a text in this encoding, or that of the output. Escape characters it does not have.

    If the reader has closed the pipe, exit silently with status 141. If the text cannot be printed
    for another reason, print one line and exit with status 2.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding=encoding, errors="backslashreplace")
    try:
        print(text, end="", flush=True)
    except OSError as error:
        discard_the_rest()
        if error.errno in (EPIPE, EINVAL):  # the second on Windows
            raise SystemExit(CLOSED) from None
        print(f"python -m sdax: standard output takes no more: {error.strerror}", file=sys.stderr)
        raise SystemExit(2) from None


def discard_the_rest() -> None:
    """Keep Python from writing again at exit, which would print a traceback."""
    with suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` that prints its help with `write`."""

    def print_help(self, file: Any = None) -> None:
        """Print the help."""
        write(self.format_help())
