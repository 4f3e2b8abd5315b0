"""The random search: what it finds, what it says of that, and when memory counts as growing."""

from __future__ import annotations

import sys
from mmap import mmap
from typing import Any

import pytest

import monte_carlo
from conftest import Implementation
from monte_carlo import ALLOWANCE, SAMPLES, Memory, main, search
from sdax import _core_py


def test_it_finds_nothing(engine: Implementation, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--engine", engine.name, "--seed", "7", "--runs", "20"]) == 0
    printed = capsys.readouterr().out
    assert f"seed 7, engines: {engine.name}" in printed
    assert "20 runs, 0 findings" in printed


class UntidyRun(_core_py.Run):
    """Goes on to the cleanup of nothing, once something has failed."""

    def leave_phase(self) -> int:
        number = super().leave_phase()
        if self.record is not None and self.record.failures:
            self.due = set()
        return number


def test_a_finding_tells_how_to_repeat_it(monkeypatch: pytest.MonkeyPatch) -> None:
    engines = {"python": _core_py}
    assert not any(search(engines, range(20)))
    monkeypatch.setattr(_core_py, "Run", UntidyRun)
    found = next(filter(None, search(engines, range(100))))
    command = f"python -m tests.monte_carlo --engine python --seed {found.seed} --runs 1"
    assert command in str(found)
    again = [*filter(None, search(engines, [found.seed]))]
    assert [each.workflow for each in again] == [found.workflow]


@pytest.mark.parametrize(
    ("of_a_sample", "grows"),
    [
        pytest.param(lambda number: 40 + number * 8 * ALLOWANCE / SAMPLES, True, id="a leak"),
        pytest.param(lambda number: 40 + min(number, 15), False, id="caches that fill"),
        pytest.param(lambda number: 40 + number % 7, False, id="up and down"),
    ],
)
def test_what_counts_as_growing(of_a_sample: Any, grows: bool) -> None:
    memory = Memory()
    memory.samples = [float(of_a_sample(number)) for number in range(SAMPLES)]
    assert (memory.growth() > ALLOWANCE) == grows


@pytest.mark.undisturbed
@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_a_soak_watches_memory(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept: list[mmap] = []

    def leak(*_: object) -> list[str]:
        kept.append(mmap(-1, 2**18))  # new pages, whatever earlier tests have given back
        kept[-1].write(b"x" * 2**18)
        return []

    monkeypatch.setattr(monte_carlo, "against_model", leak)
    monkeypatch.setattr(monte_carlo, "against_promises", leak)
    assert main(["--engine", "python", "--minutes", "0.001"]) == 1
    printed = capsys.readouterr().out
    assert printed.count(" MiB\n") == SAMPLES
    assert "memory keeps growing" in printed
