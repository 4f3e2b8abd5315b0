"""Every allocation of memory fails, in turn: a part of `python -m tests.failing_allocations`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest

import failing_allocations
from conftest import Implementation
from failing_allocations import main

pytestmark = pytest.mark.skipif(
    failing_allocations._testcapi is None, reason="this Python has no _testcapi"
)


# The Python engine has no C that could crash.
@pytest.mark.one_engine
@pytest.mark.skipif(
    (3, 12) <= sys.version_info < (3, 14),
    reason="Python 3.12.1 and 3.13.0 crash when an allocation fails, also without sdax",
)
@pytest.mark.parametrize("scenario", ["success", "a failure in execute, suspended", "retries"])
def test_no_run_crashes(
    engine: Implementation, scenario: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main(["--engine", engine.name, "--scenario", scenario, "--step", "41"])
    printed = capsys.readouterr().out
    assert status == 0, printed
    number = int(printed.partition(f"{engine.name}: ")[2].split()[0])
    assert number >= 5
    assert f"{number} allocations, each failed in turn, 0 crashes" in printed


def test_a_crash_is_found(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The search goes on after it, with the next allocation."""
    commands: list[Sequence[str]] = []

    def crash_once(command: Sequence[str], **_: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        if len(commands) == 1:
            return subprocess.CompletedProcess(command, -11, "0 ended\n1 hung\n2 ", "a fault")
        return subprocess.CompletedProcess(command, 0, "3 ended\n", "")

    monkeypatch.setattr(subprocess, "run", crash_once)
    assert main(["--engine", "python", "--scenario", "success"]) == 1
    printed = capsys.readouterr().out
    assert "the interpreter ended with -11:\na fault" in printed
    assert "--scenario 'success' --first 2" in printed
    assert "3 allocations, each failed in turn, 1 crashes (1 runs hung)" in printed
    assert [command[command.index("--first") + 1] for command in commands] == ["0", "3"]
