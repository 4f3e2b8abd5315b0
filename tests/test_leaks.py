"""Memory and references over many runs, each path in a process of its own."""

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
@pytest.mark.parametrize("path", PATHS)
def test_a_thousand_runs_leave_nothing(engine: Implementation, path: str) -> None:
    printed = run_program("leaks", path, engine=engine)
    cycles, blocks, contexts, messages, kilobytes = map(int, printed.split())
    assert cycles == 0  # the garbage collector was off, and has found nothing
    assert contexts == 0
    assert messages == 0
    assert blocks < 500  # a block for every second run would be a leak; caches grow by less
    assert kilobytes < 1024  # likewise a kilobyte for each run
