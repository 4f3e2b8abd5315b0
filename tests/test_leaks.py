"""Memory and references over many runs, with a few paths in a process."""

from __future__ import annotations

import pytest

from conftest import Implementation
from helpers import counts_references
from processes import run_program

pytestmark = pytest.mark.undisturbed

PATHS = [
    "success",
    "failure",
    "late failure",
    "cancel",
    "timeout",
    "retry",
    "group",
    "reports kept",
    "failed reports kept",
    "observed",
    "observed cancel",
    "resource",
    "resource, failure",
    "resource, late failure",
    "resource that breaks",
    "resource, no set-up",
    "resource, cancel",
    "observed resource, failure",
]


@counts_references
@pytest.mark.parametrize("paths", [PATHS[:6], PATHS[6:12], PATHS[12:]], ids=lambda some: some[0])
def test_a_thousand_runs_leave_nothing(engine: Implementation, paths: list[str]) -> None:
    printed = run_program("leaks", *paths, engine=engine)
    for path, line in zip(paths, printed.splitlines(), strict=True):
        cycles, blocks, contexts, messages, kilobytes = map(int, line.split())
        assert cycles == 0, path  # the garbage collector was off, and has found nothing
        assert contexts == 0, path
        assert messages == 0, path
        assert blocks < 500, path  # one for every second run would be a leak; caches grow by less
        assert kilobytes < 1024, path  # likewise a kilobyte for each run
