"""Measure the earlier `sdax` packages on PyPI with the same work, in their own environments.

    python benchmarks/published.py 0.7 0.3 [OPTION OF PYTEST ...]

They have the import name of the sdax in this checkout, so each version is installed into an
environment of its own, below $XDG_CACHE_HOME or ~/.cache. The suites then run there, once more
beside `asyncio.TaskGroup`, and write benchmarks/results/PYTHON-sdax-VERSION.json, which report.py
merges with the rest. Further arguments go to pytest, for example `--benchmark-max-time=0.05`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

BENCHMARKS = Path(__file__).parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sdax-benchmarks"
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


def environment(version: str) -> Path:
    """Return the commands of an environment with this version of sdax, made if need be."""
    directory = CACHE / f"{PYTHON}-sdax-{version}"
    if not (directory / "complete").exists():
        venv.create(directory, clear=True, with_pip=True)
        packages = [f"sdax=={version}.*", "pytest>=8.2", "pytest-benchmark>=5"]
        subprocess.run([_commands(directory) / "pip", "install", "-q", *packages], check=True)
        (directory / "complete").touch()
    return _commands(directory)


def measure(version: str, options: list[str]) -> None:
    """Run the suites with this version of sdax."""
    results = BENCHMARKS / "results" / f"{PYTHON}-sdax-{version}.json"
    results.parent.mkdir(exist_ok=True)
    command = [
        str(environment(version) / "pytest"),
        "benchmarks/",
        f"--benchmark-json={results.relative_to(BENCHMARKS.parent)}",
        *options,
    ]
    subprocess.run(command, cwd=BENCHMARKS.parent, check=True)


def main(arguments: list[str]) -> None:
    """Measure each of the versions named before the first option."""
    options = next((n for n, each in enumerate(arguments) if each.startswith("-")), len(arguments))
    if not options:
        raise SystemExit(__doc__)
    for version in arguments[:options]:
        measure(version, arguments[options:])


def _commands(directory: Path) -> Path:
    return directory / ("Scripts" if os.name == "nt" else "bin")


if __name__ == "__main__":
    main(sys.argv[1:])
