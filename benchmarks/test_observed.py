"""What does it cost to be observed? sdax with none, one and three observers that do nothing."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from contests import IS_PUBLISHED, contests, described
from sdax.bench.contestants import Contestant, build
from sdax.bench.work import EXECUTE, POST, PRE, Job, Once, Work

WORKS = (
    Work("1 x 1000", (1000,), repeat=10),
    Work("3-2-2, three phases", (3, 2, 2), phases=(PRE, EXECUTE, POST), repeat=100),
    Work("sleep(0), 1 x 1000", (1000,), 0),
    Work("sleep(0), 3-2-2", (3, 2, 2), 0, repeat=100),
)


def ignore(event: object) -> None:
    """Get an event, and do nothing."""


def observed(number: int, contestant: Contestant) -> Contestant:
    """Return the contestant with this number of observers."""

    def make(job: Job) -> Once:
        return partial(build(job).process_tasks, observer=(ignore,) * number)

    return replace(contestant, name=f"{contestant.name}, observers: {number}", make=make)


@pytest.mark.parametrize("number", [0, 1, 3])
@contests(
    WORKS, lambda rival: rival.name.startswith("sdax") and not IS_PUBLISHED, loops=("asyncio",)
)
def test_observed(
    benchmark: Any,
    loop: asyncio.AbstractEventLoop,
    loop_name: str,
    work: Work,
    contestant: Contestant,
    number: int,
) -> None:
    contestant = observed(number, contestant)
    benchmark.group = f"observed: {work.name}"
    benchmark.extra_info.update(described("observed", loop_name, work, contestant))
    benchmark(contestant.checked(loop, work))
