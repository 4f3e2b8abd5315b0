"""What does it cost to make a processor, or another library's graph, once for all its runs?"""

from __future__ import annotations

import asyncio
from typing import Any

from contests import contests, described
from sdax.bench.contestants import Contestant
from sdax.bench.work import Work, job_of

WORKS = (
    Work("3-2-2", (3, 2, 2)),
    Work("1 x 1000", (1000,)),
    Work("100 x 10", (10,) * 100),
    Work("1000 x 1", (1,) * 1000),
)


@contests(WORKS, lambda rival: rival.builds, loops=("asyncio",))
def test_build(
    benchmark: Any,
    loop: asyncio.AbstractEventLoop,
    loop_name: str,
    work: Work,
    contestant: Contestant,
) -> None:
    benchmark.group = f"build: {work.name}"
    benchmark.extra_info.update(described("build", loop_name, work, contestant))
    contestant.checked(loop, work)
    benchmark(contestant.make, job_of(work))
