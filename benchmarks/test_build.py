"""What does it cost to make a processor, or another library's graph, once for all its runs?"""

from __future__ import annotations

from functools import partial

from contests import InTurn, Run, contests
from sdax.bench.contestants import Contestant, Loop
from sdax.bench.work import Work, job_of

WORKS = (
    Work("3-2-2", (3, 2, 2)),
    Work("1 x 1000", (1000,)),
    Work("100 x 10", (10,) * 100),
    Work("1000 x 1", (1,) * 1000),
)


def building(contestant: Contestant, loop: Loop, work: Work) -> Run:
    """Return a function that builds what a checked contestant builds."""
    contestant.checked(loop, work)
    return partial(contestant.make, job_of(work))


@contests(WORKS, lambda rival: rival.builds, loops=("asyncio",))
def test_build(in_turn: InTurn, loop_name: str, work: Work, contestant: Contestant) -> None:
    in_turn("build", f"build: {work.name}", building)
