"""What does the structure cost? Seconds of whole works, the contestants of each side by side."""

from __future__ import annotations

from contests import InTurn, contests
from sdax.bench.contestants import Contestant
from sdax.bench.work import EXECUTE, POST, PRE, SELECTION, Work

WORKS = (
    *SELECTION,
    Work("3-2-2, three phases", (3, 2, 2), phases=(PRE, EXECUTE, POST), repeat=100),
    Work("3-2-2, two phases", (3, 2, 2), phases=(PRE, POST), repeat=100),
    Work("3-2-2, two phases, one resource", (3, 2, 2), None, (PRE, POST), resources=1, repeat=100),
    Work("sleep(0), 3-2-2, two phases", (3, 2, 2), 0, (PRE, POST), repeat=100),
    Work(
        "sleep(0), 3-2-2, two phases, one resource",
        (3, 2, 2),
        0,
        (PRE, POST),
        resources=1,
        repeat=100,
    ),
    Work("sleep(0), 1000 x 1", (1,) * 1000, 0),
    Work("sleep(0), 3-2-2", (3, 2, 2), 0, repeat=100),
    Work("sleep(0), 100 x 10, three phases", (10,) * 100, 0, phases=(PRE, EXECUTE, POST)),
    Work("sleep(0), 1 x 1000, retries", (1000,), 0, retries=3),
    Work("sleep(0), 3-2-2, 500 at once", (3, 2, 2), 0, concurrent=500),
    Work("1 ms, 1 x 1000", (1000,), 0.001),
    Work("1 ms, 100 x 10", (10,) * 100, 0.001),
    Work("1 ms, 3-2-2", (3, 2, 2), 0.001),
    Work("1 of 2 fails in level 3", (3, 2, 2), 0, phases=(PRE, POST), fails=True, repeat=100),
)


@contests(WORKS)
def test_work(in_turn: InTurn, loop_name: str, work: Work, contestant: Contestant) -> None:
    in_turn("work", f"{work.name} ({loop_name})", Contestant.checked)
