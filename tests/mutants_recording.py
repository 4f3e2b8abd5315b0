"""A plugin for pytest that records which test runs which line, for `tests/mutants.py`.

It needs coverage.py in the process, configured with `CONFIGURATION`. A test's nodeid is the context
of the lines that it runs. The programs that a test starts get it from the environment.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import coverage
import pytest

TEST = "SDAX_MUTANTS_TEST"
RECORDED = "SDAX_MUTANTS_RECORDED"  # the file of the durations
CONFIGURATION = """\
[run]
core = ctrace
source_pkgs = sdax, _sdax_pytest
parallel = true
data_file = {data}
context = ${{SDAX_MUTANTS_TEST-}}
disable_warnings = no-data-collected, module-not-imported, module-not-measured
omit = */pytest-of-*/*
"""

# They take long, or search at random, or need files that the copy does not have.
LEFT_OUT = [
    "benchmarks",
    "clients_postgresql",
    "crash_points",
    "deploy",
    "differential",
    "documentation",
    "graph_size",
    "load",
    "many_clusters",
    "monte_carlo",
    "mutants",
    "page_in_browser",
    "perfetto",
    "project",
    "prose",
    "web_chapter",
    "web_servers",
]

durations: dict[str, float] = {}
failed: set[str] = set()


@pytest.hookimpl(tryfirst=True)
def pytest_ignore_collect(collection_path: Path) -> bool | None:
    return collection_path.stem.removeprefix("test_") in LEFT_OUT or None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep one kind of event loop for each test: the others would hardly run other lines."""
    kept: dict[str, pytest.Item] = {}
    for item in items:
        callspec = getattr(item, "callspec", None)
        kind = callspec.params.get("loop_kind") if callspec is not None else None
        kept.setdefault(item.nodeid.replace(f"-{kind.name}", "", 1) if kind else item.nodeid, item)
    items[:] = kept.values()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    measured = coverage.Coverage.current()
    assert measured is not None
    os.environ[TEST] = item.nodeid
    measured.switch_context(item.nodeid)
    try:
        return (yield)
    finally:
        measured.switch_context("")
        del os.environ[TEST]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    durations[report.nodeid] = durations.get(report.nodeid, 0.0) + report.duration
    if report.failed and "undisturbed" not in report.keywords:  # which measuring disturbs
        failed.add(report.nodeid)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if not hasattr(session.config, "workerinput"):
        told = {"durations": durations, "failed": sorted(failed)}
        Path(os.environ[RECORDED]).write_text(json.dumps(told))
