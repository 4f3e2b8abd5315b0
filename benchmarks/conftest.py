"""The common parts of the suites: the measured sdax, the event loop, and the timing.

A measured call is one `loop.run_until_complete()` of a whole work, on a loop that lives as long as
the contestants of the work take turns. trio's contestant calls `trio.run()`. All contestants are
measured in the test of the first one. pytest-benchmark gets the times of each in its own test.
"""

from __future__ import annotations

import importlib.util
import platform
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from contests import InTurn

BENCH = Path(__file__).parent.parent / "sdax" / "bench" / "__init__.py"
PACKAGES = (
    "sdax",
    "uvloop",
    "anyio",
    "trio",
    "quattro",
    "asyncinject",
    "async-dag",
    "apache-hamilton",
)


def _take_the_work_from_this_checkout() -> None:
    """Let `import sdax.bench` find this checkout, even if another sdax is installed.

    So another version of sdax does the same work.
    """
    spec = importlib.util.spec_from_file_location("sdax.bench", BENCH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["sdax.bench"] = module
    spec.loader.exec_module(module)


_take_the_work_from_this_checkout()


@pytest.fixture
def in_turn(request: pytest.FixtureRequest, benchmark: Any) -> InTurn:
    """The measurement of a test's contestant, in turn with the others of its work."""
    from contests import InTurn  # which needs the work of this checkout

    return InTurn(request, benchmark)


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: Any) -> None:
    """Remove the name of this machine, and add the versions of the measured packages."""
    del machine_info["node"]
    cpu = machine_info["cpu"]
    machine_info["cpu"] = {key: cpu[key] for key in ("brand_raw", "arch", "count") if key in cpu}
    machine_info["packages"] = dict(installed())


def pytest_benchmark_update_json(config: pytest.Config, output_json: Any) -> None:
    """Keep the summary of each work, and add the command."""
    output_json["command"] = " ".join(["pytest", *config.invocation_params.args])
    output_json["benchmarks"] = list(map(in_short, output_json["benchmarks"]))


def in_short(benchmark: Any) -> Any:
    """Return an entry without single times, shapes of graphs and options, thousands of lines."""
    stats = benchmark["stats"]
    return {
        "extra_info": benchmark["extra_info"],
        "stats": {name: stats[name] for name in ("min", "median", "rounds")},
    }


def installed() -> Iterator[tuple[str, str]]:
    """Return the versions of the packages that can be measured."""
    yield "Python", platform.python_version()
    for package in PACKAGES:
        try:
            yield package, version(package)
        except PackageNotFoundError:
            continue
