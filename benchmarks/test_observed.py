"""What does it cost to be observed? sdax with none, one and three observers that do nothing."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from contests import IS_PUBLISHED, InTurn, contests
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


@contests(
    WORKS,
    lambda rival: rival.name.startswith("sdax") and not IS_PUBLISHED,
    loops=("asyncio",),
    variants=lambda rival: [observed(number, rival) for number in (0, 1, 3)],
)
def test_observed(in_turn: InTurn, loop_name: str, work: Work, contestant: Contestant) -> None:
    in_turn("observed", f"observed: {work.name}", Contestant.checked)
