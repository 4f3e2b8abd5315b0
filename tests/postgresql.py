"""A PostgreSQL for tests: in a directory of its own, heard of nowhere else, and gone afterwards."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any


def programs() -> Path | None:
    """Return the directory of PostgreSQL's programs, Debian's newest or what is on PATH.

    None where there are none, and where they could not be run like this.
    """
    if sys.platform == "win32":
        return None  # it would need a port, in place of a socket's path
    packaged = Path("/usr/lib/postgresql").glob("*/bin/initdb")
    newest = max(packaged, key=lambda path: float(path.parts[-3]), default=None)
    found = newest or shutil.which("initdb")
    return Path(found).parent if found else None


@contextmanager
def running(directory: Path) -> Iterator[str]:
    """Start the PostgreSQL of these programs; yield the directory of its socket.

    Whoever reaches the socket may connect, as the user "sdax". PostgreSQL refuses to run as root:
    started by root, it runs as the user "postgres", which its packages make.
    """
    as_user: dict[str, Any] = {}
    with TemporaryDirectory(prefix="sdax-", dir="/tmp") as folder:  # a socket's path is short
        if os.geteuid() == 0:
            shutil.chown(folder, "postgres", "postgres")
            as_user = {"user": "postgres", "group": "postgres", "extra_groups": []}

        def run(program: str, *arguments: str) -> None:
            output = Path(folder, "output")
            with output.open("w") as file:
                command = [directory / program, "-D", f"{folder}/data", *arguments]
                status = subprocess.call(
                    command, stdout=file, stderr=subprocess.STDOUT, cwd=folder, **as_user
                )
            assert status == 0, output.read_text()

        run("initdb", "-U", "sdax", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
        run("pg_ctl", "start", "-w", "-o", f"-h '' -k {folder} -F -c shared_buffers=4MB")
        try:
            yield folder
        finally:
            run("pg_ctl", "stop", "-w", "-m", "immediate")
