"""sdax's plugin for pytest: options and a mark for `sdax.testing`, and a summary of explorations.

It is outside the package because it must not import sdax. pytest loads every installed plugin, and
only tests that explore something need sdax. The plugin does nothing by itself.
"""

from __future__ import annotations

import sys
from collections.abc import Generator
from typing import Any

import pytest

OPTIONS = {
    "--sdax-schedules": ("max_schedules", int, "N", "explore at most N schedules"),
    "--sdax-disturbances": ("disturbances", int, "N", "disturb each run at up to N (2) points"),
    "--sdax-seed": ("seed", int, "N", "explore a random sample beyond the limit"),
    "--sdax-replay": ("replay", str, "SCHEDULE", "repeat the schedule of a finding"),
}
PROPERTY = "sdax"

# pytest rewrites the assertions of the package of a plugin. sdax has assertions in its engine, so
# this would cost time and memory for nothing.
for _finder in sys.meta_path:
    _marked = getattr(_finder, "_must_rewrite", None)
    if isinstance(_marked, set):
        _marked.discard("sdax")


class Test:
    """The running test, as `sdax.testing` sees it."""

    __test__ = False  # for pytest: this class is not a test

    def __init__(self, item: pytest.Item) -> None:
        self.nodeid = item.nodeid
        self._item = item
        names = (name for name, *_ in OPTIONS.values())
        values = ((name, item.config.getoption(f"sdax_{name}")) for name in names)
        self.chosen = {name: value for name, value in values if value is not None}
        self._explorations = 0

    @property
    def marked(self) -> dict[str, Any]:
        """The options of the marks. The nearest mark has priority."""
        options: dict[str, Any] = {}
        for mark in self._item.iter_markers("sdax"):
            if mark.args:
                raise TypeError(f"@pytest.mark.sdax takes options by name, got {mark.args}")
            options = {**mark.kwargs, **options}
        return options

    def begin_exploration(self) -> int:
        """Return the number of the next exploration of this test, from 1."""
        self._explorations += 1
        return self._explorations

    def tell(self, line: str) -> None:
        """Add a line about an exploration to the summary, also from another process."""
        self._item.user_properties.append((PROPERTY, line))


current: Test | None = None


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("sdax", "sdax: explorations of workflows")
    for option, (name, kind, metavar, text) in OPTIONS.items():
        group.addoption(option, dest=f"sdax_{name}", type=kind, metavar=metavar, help=text)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "sdax(max_schedules=..., ...): options of the explorations in this test"
    )


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, None, None]:
    global current
    before, current = current, Test(item)
    try:
        yield
    finally:
        current = before


def pytest_terminal_summary(terminalreporter: Any) -> None:
    lines = [
        f"{report.nodeid}: {value}"
        for reports in terminalreporter.stats.values()
        for report in reports
        if getattr(report, "when", None) == "call"
        for name, value in report.user_properties
        if name == PROPERTY
    ]
    if lines:
        terminalreporter.section("sdax explorations")
        for line in lines:
            terminalreporter.write_line(line)
