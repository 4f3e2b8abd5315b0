"""PostgreSQL's programs, and a server of our own in a directory of its own, for tests as well."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def programs() -> Path | None:
    """Return the directory of PostgreSQL's programs, Debian's newest or what is on PATH.

    None where there are none, and on Windows, where they could not be run like this.
    """
    if sys.platform == "win32":
        return None
    packaged = Path("/usr/lib/postgresql").glob("*/bin/initdb")
    newest = max(packaged, key=lambda path: float(path.parts[-3]), default=None)
    found = newest or shutil.which("initdb")
    return Path(found).parent if found else None


class Cluster:
    """A server whose data and log are in a directory that is there, empty and temporary.

    PostgreSQL refuses to run as root: started by root, it runs as the user `postgres`, which its
    packages make. Raises `RuntimeError`, with what they said, for programs that fail.
    """

    def __init__(self, programs: Path, folder: str) -> None:
        self._programs = programs
        self._folder = folder
        self._as_user: dict[str, Any] = {}
        if os.geteuid() == 0:
            self._as_user = {"user": "postgres", "group": "postgres", "extra_groups": []}
        self.own(folder)

    def own(self, path: str | Path) -> None:
        """Let the server read and write a path."""
        if self._as_user:
            shutil.chown(path, self._as_user["user"], self._as_user["group"])

    def initialize(self, *options: str) -> None:
        """Make the data directory, with these options of initdb."""
        self._run("initdb", "-E", "UTF8", "--locale=C", "--no-sync", *options)

    @contextmanager
    def serving(self, options: str) -> Generator[None]:
        """Start the server, with these options of its own, and stop it in the end."""
        self._run("pg_ctl", "start", "-w", "-l", f"{self._folder}/log", "-o", options)
        try:
            yield
        finally:
            self._run("pg_ctl", "stop", "-w", "-m", "immediate")

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._programs / program), "-D", f"{self._folder}/data", *arguments]
        output, log = Path(self._folder, "output"), Path(self._folder, "log")
        environment = dict(os.environ)
        environment.pop("LD_PRELOAD", None)  # a sanitizer of ours makes its programs hang
        with output.open("w", encoding="utf-8") as file:
            status = subprocess.call(
                command,
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=self._folder,
                env=environment,
                **self._as_user,
            )
        if status:
            said = "".join(
                path.read_text(encoding="utf-8") for path in (output, log) if path.exists()
            )
            raise RuntimeError(f"{' '.join(command)} ended with status {status}:\n{said}")
