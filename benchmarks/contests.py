"""The installed contestants, each with the works that it can do, and how they are measured."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, TypeAlias

import pytest

import sdax
from peers import peers
from sdax.bench.contestants import BASELINE, Contestant, Loop, contestants, make_sdax
from sdax.bench.work import Work
from turns import Rival, ratios, take_turns

Run: TypeAlias = Callable[[], object]
Prepare: TypeAlias = Callable[[Contestant, Loop, Work], Run]
Note: TypeAlias = Callable[[Run], Mapping[str, object]]
Key: TypeAlias = tuple[str, str, Work]  # contestants that take turns have it in common
Measured: TypeAlias = dict[str, tuple[Rival, Mapping[str, object]]]  # by contestant

MEASURED = pytest.StashKey[tuple[Key, Measured]]()  # the latest ones

IS_PUBLISHED = not hasattr(sdax, "IMPLEMENTATION")


def by_loop() -> dict[str, list[Contestant]]:
    """Return the contestants for each loop. To save time, peers run on asyncio's own loop only.

    Beside an earlier sdax, which is measured in its own environment, there is only the baseline.
    """
    hosts = contestants()
    if IS_PUBLISHED:
        name = f"sdax {version('sdax').rpartition('.')[0]} (PyPI)"
        baseline = [contestant for contestant in hosts if contestant.name == BASELINE]
        published = Contestant(name, make_sdax, _could_be_done, builds=True)
        return {"asyncio": [published, *baseline]}
    found = {"asyncio": [*hosts, *peers()]}
    if find_spec("uvloop"):
        found["uvloop"] = hosts
    return found


def _could_be_done(work: Work) -> bool:
    # There were no resources, and version 0.3 would take hours for a level of 100,000.
    return not work.resources and work.functions < 100_000


def contests(
    works: Sequence[Work],
    wanted: Callable[[Contestant], bool] = lambda contestant: True,
    loops: Sequence[str] = ("asyncio", "uvloop"),
    variants: Callable[[Contestant], Iterable[Contestant]] = lambda contestant: (contestant,),
) -> pytest.MarkDecorator:
    """Return the mark that gives a test its `loop_name`, `work` and `contestant`.

    `variants` of a contestant take part in its place.
    """
    return pytest.mark.parametrize(
        ("loop_name", "work", "contestant"),
        [
            pytest.param(loop, work, variant, id=f"{work.name}-{loop}-{variant.name}")
            for loop, rivals in by_loop().items()
            if loop in loops
            for work in works
            for contestant in rivals
            if contestant.can(work) and wanted(contestant)
            for variant in variants(contestant)
        ],
    )


class InTurn:
    """Measures all selected contestants of a test's work in turn, and gives it the times of one."""

    def __init__(self, request: pytest.FixtureRequest, benchmark: Any) -> None:
        self.request = request
        self.benchmark = benchmark
        self.params: Any = request.node.callspec.params

    def __call__(
        self,
        table: str,
        group: str,
        prepare: Prepare,
        note: Note = lambda run: {},
    ) -> None:
        """Measure, or take what was measured with another contestant of the same work.

        `prepare` checks a contestant, and returns the function whose calls are measured. `note` may
        look at this function, and returns more facts for the report. Raises what the contestant
        raised.
        """
        loop_name, work, contestant = (
            self.params[name] for name in ("loop_name", "work", "contestant")
        )
        key = (table, loop_name, work)
        self.benchmark._mode = "in turn"  # or it would complain that nothing has used it
        stash = self.request.config.stash
        if stash.get(MEASURED, (None,))[0] != key:
            stash[MEASURED] = key, self._measure(key, prepare, note)
        rivals = stash[MEASURED][1]
        rival, noted = rivals[contestant.name]
        if rival.error is not None:
            raise rival.error
        self.benchmark.group = group
        self.benchmark.extra_info.update(
            {
                "table": table,
                "loop": loop_name,
                "work": work.name,
                "contestant": contestant.name,
                "functions": work.functions,
                **noted,
            }
        )
        if BASELINE in rivals and (baseline := rivals[BASELINE][0]).error is None:
            self.benchmark.extra_info.update(ratios(baseline, rival))
        self._give_to_pytest_benchmark(rival.times)

    def _measure(self, key: Key, prepare: Prepare, note: Note) -> Measured:
        _, loop_name, work = key
        options = self.request.config.option
        measured: Measured = {}
        with asyncio.Runner(loop_factory=_loop_factory(loop_name)) as runner:
            loop = runner.get_loop()
            for contestant in self._selected(loop_name, work):
                rival = Rival(partial(contestant.prepare, loop), lambda: None)
                noted: Mapping[str, object] = {}
                try:
                    rival.run = prepare(contestant, loop, work)
                    noted = note(rival.run)
                except Exception as error:
                    rival.error = error
                measured[contestant.name] = rival, noted
            rivals = [rival for rival, _ in measured.values()]
            if self.benchmark.enabled:
                seconds = float(options.benchmark_max_time) * len(rivals)
                take_turns(rivals, seconds, options.benchmark_min_rounds)
            else:
                take_turns(rivals, 0.0, 1)
        return measured

    def _selected(self, loop_name: str, work: Work) -> Iterator[Contestant]:
        node: Any = self.request.node
        for item in self.request.session.items:
            if isinstance(item, pytest.Function) and item.originalname == node.originalname:
                params = item.callspec.params
                if (params["loop_name"], params["work"]) == (loop_name, work):
                    contestant: Any = params["contestant"]
                    yield contestant

    def _give_to_pytest_benchmark(self, times: list[float]) -> None:
        # It has no public way to take times that it did not measure.
        if self.benchmark.enabled:
            stats = self.benchmark._make_stats(1)
            for seconds in times:
                stats.update(seconds)


def _loop_factory(name: str) -> Callable[[], Loop]:
    if name == "uvloop":
        import uvloop

        factory: Callable[[], Loop] = uvloop.new_event_loop
        return factory
    return asyncio.new_event_loop
