"""The installed contestants, each with the works that it can do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import version
from importlib.util import find_spec

import pytest

import sdax
from peers import peers
from sdax.bench.contestants import BASELINE, Contestant, contestants, make_sdax
from sdax.bench.work import Work

IS_PUBLISHED = not hasattr(sdax, "IMPLEMENTATION")


def by_loop() -> dict[str, list[Contestant]]:
    """Return the contestants for each loop. To save time, peers run on asyncio's own loop only.

    Beside an earlier sdax, which is measured in its own environment, there is only the baseline.
    """
    hosts = contestants()
    if IS_PUBLISHED:
        name = f"sdax {version('sdax').rpartition('.')[0]} (PyPI)"
        baseline = [contestant for contestant in hosts if contestant.name == BASELINE]
        published = Contestant(name, make_sdax, _is_of_common_size, builds=True)
        return {"asyncio": [published, *baseline]}
    found = {"asyncio": [*hosts, *peers()]}
    if find_spec("uvloop"):
        found["uvloop"] = hosts
    return found


def _is_of_common_size(work: Work) -> bool:
    return work.functions < 100_000  # version 0.3 would take hours for a level of this size


def contests(
    works: Sequence[Work],
    wanted: Callable[[Contestant], bool] = lambda contestant: True,
    loops: Sequence[str] = ("asyncio", "uvloop"),
) -> pytest.MarkDecorator:
    """Return the mark that gives a test its `loop_name`, `work` and `contestant`."""
    return pytest.mark.parametrize(
        ("loop_name", "work", "contestant"),
        [
            pytest.param(loop, work, contestant, id=f"{work.name}-{loop}-{contestant.name}")
            for loop, rivals in by_loop().items()
            if loop in loops
            for work in works
            for contestant in rivals
            if contestant.can(work) and wanted(contestant)
        ],
    )


def described(table: str, loop: str, work: Work, contestant: Contestant) -> dict[str, object]:
    """Return the facts about a measurement that the report needs, besides its times."""
    return {
        "table": table,
        "loop": loop,
        "work": work.name,
        "contestant": contestant.name,
        "functions": work.functions,
    }
