"""The benchmarks: that they check who takes part, and that what they print is what was measured."""

from __future__ import annotations

import asyncio
import gc
import io
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest

import compare
import explored
import report
import sdax
import sdax.processor
import turns
from conftest import LOOP_KINDS
from loopback import answering, response, serving
from measurements import read_run, read_runs
from sdax.__main__ import main
from sdax.bench.command import measure_all
from sdax.bench.contestants import BASELINE, Contestant, contestants
from sdax.bench.work import EXECUTE, POST, PRE, Function, Job, Once, Work
from sdax.testing import VirtualClockLoop

pytestmark = pytest.mark.one_python

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
WORKS = [
    Work("one phase", (3, 2, 2)),
    Work("three phases", (2, 1, 3), 0, phases=(PRE, EXECUTE, POST), repeat=2),
    Work("limits", (2, 2), 0, timeout=5, retries=2),
    Work("all attempts", (2, 2), 0, total_timeout=5, required=False),
    Work("at once", (3, 2), 0.001, concurrent=5),
    Work("failure", (1, 3), 0, phases=(PRE, POST), fails=True, repeat=2),
]


@pytest.fixture(autouse=True)
def _engine_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Contestants choose an engine for the whole process."""
    monkeypatch.setattr(sdax.processor, "Run", sdax.processor.Run)


@contextmanager
def a_loop() -> Iterator[asyncio.AbstractEventLoop]:
    with asyncio.Runner() as runner:
        yield runner.get_loop()


@pytest.mark.parametrize("work", WORKS, ids=lambda work: work.name)
def test_sdax_does_the_work(engine: Any, work: Work) -> None:
    (rival,) = (each for each in contestants() if each.name == f"sdax {engine.name}")
    with a_loop() as loop:
        rival.checked(loop, work)()


@pytest.mark.parametrize("work", WORKS, ids=lambda work: work.name)
@pytest.mark.parametrize(
    "rival",
    [each for each in contestants() if not each.name.startswith("sdax ")],
    ids=lambda rival: rival.name,
)
def test_what_is_written_by_hand_does_the_work(rival: Contestant, work: Work) -> None:
    if not rival.can(work):
        assert rival.name in ("one by one", "eager tasks")
        return
    with a_loop() as loop:
        rival.checked(loop, work)()


@pytest.mark.parametrize(
    "rival",
    [each for each in contestants() if not each.name.startswith("sdax ")],
    ids=lambda rival: rival.name,
)
def test_what_is_written_by_hand_tries_as_often_as_it_may(rival: Contestant) -> None:
    async def flaky(ctx: list[float]) -> None:
        ctx.append(asyncio.get_running_loop().time())
        if len(ctx) <= 2:
            raise ConnectionError

    times: list[float] = []
    with asyncio.Runner(loop_factory=VirtualClockLoop) as runner:
        loop = runner.get_loop()
        rival.prepare(loop)
        once = rival.make(Job([[flaky]], (), (), timeout=None, retries=2))
        loop.run_until_complete(once(times))
    assert times == [0, 1, 3]


def test_schedules_of_explorations_are_counted(
    engine: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(explored, "ROUNDS", 2)
    monkeypatch.setattr(explored, "SCHEDULES", 20)
    explored.measure()
    lines = capsys.readouterr().out.splitlines()
    assert [line[9:31] for line in lines] == ["7 tasks,  7 functions:", "7 tasks, 21 functions:"]


def test_a_published_sdax_has_no_engines_to_choose_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(sdax, "IMPLEMENTATION")
    assert [each.name for each in contestants() if each.name.startswith("sdax")] == []


def raw(function: Function) -> Contestant:
    """A contestant that has one function called for each run, with the job and the context."""

    def make(job: Job) -> Once:
        return lambda ctx: function((job, ctx))

    return Contestant("cheat", make)


async def calls_nothing(what: Any) -> None:
    pass


async def forgets_the_last(what: Any) -> None:
    job, ctx = what
    for level in job.pre:
        for function in level[:-1]:
            await function(ctx)


async def calls_the_first_twice(what: Any) -> None:
    job, ctx = what
    await job.pre[0][0](ctx)
    for level in job.pre:
        for function in level:
            await function(ctx)


async def begins_at_the_top(what: Any) -> None:
    job, ctx = what
    for level in reversed(job.pre):
        for function in level:
            await function(ctx)


async def waits_for_no_level(what: Any) -> None:
    job, ctx = what
    await asyncio.gather(*(function(ctx) for level in job.pre for function in level))


@pytest.mark.parametrize(
    "cheat",
    [
        calls_nothing,
        forgets_the_last,
        calls_the_first_twice,
        begins_at_the_top,
        waits_for_no_level,
    ],
)
def test_the_time_of_a_cheat_does_not_count(cheat: Function) -> None:
    with a_loop() as loop, pytest.raises(AssertionError):
        raw(cheat).checked(loop, Work("two by two", (2, 2), 0))


def test_a_failure_that_does_not_come_is_noticed() -> None:
    work = Work("failure", (2,), phases=(PRE, POST), fails=True)
    with a_loop() as loop, pytest.raises(AssertionError, match="nothing has failed"):
        raw(calls_nothing).checked(loop, work)


def run_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sdax", "bench", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_command_prints_a_table() -> None:
    done = run_command("--seconds", "0.05", "--only", "3-2-2")
    assert (done.returncode, done.stderr) == (0, "")
    head, *rows = done.stdout.split("\n\n")[1].splitlines()
    assert BASELINE in head
    assert "sdax python" in head
    assert [row.split("  ")[0] for row in rows] == [
        "3-2-2",
        "3-2-2, 500 at once",
        "1 ms, 3-2-2, 500 at once",
    ]
    assert all(float(row[30:].split()[1]) > 0 for row in rows)


class Takes(Contestant):
    """A contestant that takes the same time, by a clock of its own, for each work."""

    now = 0.0
    started: ClassVar[list[str]] = []

    def checked(self, loop: Any, work: Work) -> Any:
        def once() -> None:
            type(self).started.append(work.name)
            type(self).now += float(work.name)

        return once


@pytest.mark.parametrize(
    ("seconds", "works", "started"),
    [
        (8.0, "1 1.0", {"1": 4, "1.0": 4}),
        (8.0, "1 2", {"1": 4, "2": 2}),
        (8.0, "6 1", {"6": 1, "1": 2}),  # what is left is shared by what is left
        (8.0, "2.5 1", {"2.5": 1, "1": 5}),  # a second round would end too late
        (8.0, "9 1 1", {"9": 1, "1": 2}),  # each runs once, however late it is
        (0.0, "1", {"1": 1}),
    ],
)
def test_the_command_keeps_to_its_seconds(
    monkeypatch: pytest.MonkeyPatch, seconds: float, works: str, started: dict[str, int]
) -> None:
    names = works.split()
    monkeypatch.setattr(Takes, "now", 0.0)
    monkeypatch.setattr(Takes, "started", [])
    rival = Takes("rival", calls_nothing)
    with a_loop() as loop:
        found = list(
            measure_all(loop, [Work(n, (1,)) for n in names], [rival], seconds, lambda: Takes.now)
        )
    assert [(work.name, best) for work, best in found] == [(n, {"rival": float(n)}) for n in names]
    assert Counter(Takes.started) == started


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_command_shows_on_a_terminal_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    main(["bench", "--seconds", "0.01", "--only", "500 at once"])
    shown = terminal.getvalue().split("\r\x1b[K")
    assert shown == [
        "",
        "1 of 2: 3-2-2, 500 at once ...",
        "",
        "2 of 2: 1 ms, 3-2-2, 500 at once ...",
        "",
    ]
    assert "..." not in capsys.readouterr().out


@pytest.mark.skipif(
    "uvloop" not in [kind.name for kind in LOOP_KINDS], reason="there is no uvloop for this"
)
def test_the_command_measures_on_uvloop() -> None:
    done = run_command("--seconds", "0.01", "--only", "1 x 1000, timeout", "--loop", "uvloop")
    assert (done.returncode, done.stderr) == (0, "")
    assert ", uvloop. Speed compared with" in done.stdout
    assert "\n1 x 1000, timeout " in done.stdout


def test_the_command_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)
    with pytest.raises(SystemExit) as caught:
        main(["bench", "--loop", "uvloop"])
    assert str(caught.value).startswith("--loop uvloop: ")
    assert str(caught.value).endswith(". Run: pip install uvloop")


def test_the_command_names_the_works_there_are() -> None:
    done = run_command("--only", "4-4-4")
    assert done.returncode == 1
    assert "no work has '4-4-4' in its name" in done.stderr
    assert "3-2-2" in done.stderr


def test_the_readme_shows_what_the_results_say() -> None:
    readme = (BENCHMARKS.parent / "README.md").read_text(encoding="utf-8")
    results = (BENCHMARKS / "RESULTS.md").read_text(encoding="utf-8").splitlines()
    assert readme == report.with_table(readme, read_runs(BENCHMARKS / "results"))
    table = [line for line in readme.splitlines() if line.startswith("| ")]
    assert len(table) == 2 + 6  # its head, a rule, and few enough rows for a front page
    assert set(table) <= set(results)


def test_the_results_are_what_was_measured() -> None:
    assert (BENCHMARKS / "RESULTS.md").read_text(encoding="utf-8") == report.results(
        BENCHMARKS / "results"
    )


def measured(**ratios: float) -> Any:
    """A file of pytest-benchmark's, with the ratios of the compiled engine by work."""

    def entry(work: str, contestant: str, seconds: float) -> Any:
        info = {"table": "work", "loop": "asyncio", "work": work, "functions": 1000}
        return {"extra_info": {**info, "contestant": contestant}, "stats": {"min": seconds}}

    return {
        "machine_info": {
            "python_version": "3.13.0",
            "packages": {"sdax": "0.1.0"},
            "system": "Linux",
            "cpu": {"brand_raw": "a CPU", "count": 2},
        },
        "commit_info": {"id": "0123456789abcdef", "dirty": False},
        "command": "pytest benchmarks/",
        "datetime": "2026-01-01T00:00:00",
        "benchmarks": [
            entry(work, name, seconds)
            for work, ratio in ratios.items()
            for name, seconds in ((BASELINE, 0.01), ("sdax compiled", 0.01 / ratio))
        ],
    }


def test_ratios_are_to_the_baseline_of_the_same_file() -> None:
    run = read_run(measured(deep=20, wide=0.5))
    ours = [each for each in run.measurements if each.contestant != BASELINE]
    assert [round(each.ratio, 6) for each in ours] == [20, 0.5]
    assert [round(each.nanoseconds) for each in ours] == [500, 20_000]
    table = report.ratios(run.measurements).splitlines()
    assert table[0] == "| work | TaskGroup ns | sdax compiled |"
    assert table[2:] == ["| deep | 10000 | 20.0 |", "| wide | 10000 | 0.50 |"]


def test_a_suite_that_was_run_several_times_is_read_as_one(tmp_path: Path) -> None:
    for number, ratio in enumerate((20, 1.5, 21), 1):  # once the machine was busy
        content = json.dumps(measured(deep=ratio))
        (tmp_path / f"3.13-{number}.json").write_text(content, encoding="utf-8")
    (tmp_path / "3.13-sdax-0.7.json").write_text(json.dumps(measured(deep=0.8)), encoding="utf-8")
    several, published = read_runs(tmp_path)
    assert several.about.startswith("3 times, the median of the ratios: `pytest benchmarks/`")
    assert [each.ratio for each in several.measurements] == [1, pytest.approx(20)]
    assert [round(each.nanoseconds) for each in several.measurements] == [10_000, 476]
    assert [each.ratio for each in published.measurements] == [1, pytest.approx(0.8)]


def test_contestants_take_turns() -> None:
    now = 0.0
    calls: list[str] = []

    def rival(name: str, seconds: float) -> turns.Rival:
        def run() -> None:
            nonlocal now
            calls.append(name)
            now += seconds
            if name == "broken" and calls.count(name) == 2:
                raise PlannedError

        return turns.Rival(lambda: calls.append(f"prepare {name}"), run)

    quick, slow, broken = rival("quick", 0.002), rival("slow", 1.0), rival("broken", 1.0)
    turns.take_turns([quick, slow, broken], seconds=7.0, fewest=1, clock=lambda: now)
    first = ["prepare quick", *["quick"] * 3, "prepare slow", "slow", "prepare broken", "broken"]
    assert calls == [*first, *first, *first[:6], *first[:6]]  # a fifth round would end too late
    assert [len(turn) for turn in quick.turns] == [3, 3, 3, 3]
    assert quick.times == pytest.approx([0.002] * 12)
    assert slow.times == pytest.approx([1.0] * 4)
    assert broken.times == pytest.approx([1.0])
    assert isinstance(broken.error, PlannedError)
    assert gc.isenabled()


class PlannedError(Exception):
    pass


def test_each_contestant_takes_the_fewest_turns() -> None:
    rival = turns.Rival(lambda: None, lambda: None)
    turns.take_turns([rival], seconds=0, fewest=3, clock=iter(range(1000)).__next__)
    assert len(rival.turns) == 3


def of_turns(*times: list[float]) -> turns.Rival:
    return turns.Rival(lambda: None, lambda: None, list(times))


def test_a_ratio_is_the_median_of_those_of_the_turns() -> None:
    baseline = of_turns([4.0, 5.0], [40.0], [4.0], [4.0], [4.0])  # slow in the second turn
    own = of_turns([2.0, 3.0], [20.0, 30.0], [1.0], [4.0], [8.0])  # and so is its rival
    assert turns.ratios(baseline, own) == {"ratio": 2, "ratio_low": 1, "ratio_high": 2}
    once = turns.ratios(of_turns([3.0]), of_turns([2.0]))
    assert once == {"ratio": 1.5, "ratio_low": 1.5, "ratio_high": 1.5}


def test_the_spread_covers_all_runs(tmp_path: Path) -> None:
    for number, (low, ratio, high) in enumerate([(1.5, 2.0, 2.25), (1.75, 1.8, 2.5)], 1):
        content = measured(deep=1000)
        own = content["benchmarks"][1]["extra_info"]
        own.update(ratio=ratio, ratio_low=low, ratio_high=high)
        (tmp_path / f"3.13-{number}.json").write_text(json.dumps(content), encoding="utf-8")
    (run,) = read_runs(tmp_path)
    _, ours = run.measurements
    assert (ours.low, ours.ratio, ours.high) == (1.5, 1.9, 2.5)
    assert ours.spread == pytest.approx(0.5 / 1.9)
    assert report.spread(run.measurements) == (
        "Spread: 26.3% in the median of these ratios, and at most 26% (sdax compiled, deep)."
    )
    one_run = read_run(measured(deep=20)).measurements
    assert report.spread(one_run) == ""
    assert "Spread:" not in "".join(report.chapters([read_run(measured(deep=20))], {}))


@pytest.mark.skipif(
    not (BENCHMARKS.parent / "sdax").exists(), reason="the suites need the work of a checkout"
)
def test_pytest_benchmark_gets_the_times_of_the_turns(tmp_path: Path) -> None:
    pytest.importorskip("pytest_benchmark")
    path = tmp_path / "3.13.json"
    names = ["sdax python", BASELINE]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
            *(f"benchmarks/test_work.py::test_work[3-2-2-asyncio-{name}]" for name in names),
            *("--benchmark-max-time=0.001", f"--benchmark-json={path}"),
        ],
        cwd=BENCHMARKS.parent,
        env={name: each for name, each in os.environ.items() if not name.startswith("PYTEST_")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    content = json.loads(path.read_text(encoding="utf-8"))
    entries = {each["extra_info"]["contestant"]: each for each in content["benchmarks"]}
    assert list(entries) == names
    assert all(each["stats"]["rounds"] >= 3 for each in entries.values())
    (run,) = read_runs(tmp_path)
    ratios = {each.contestant: each.ratio for each in run.measurements}
    assert ratios[BASELINE] == 1
    assert ratios["sdax python"] == entries["sdax python"]["extra_info"]["ratio"]


def test_only_changes_beyond_noise_are_told(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = [measured(slower=20 + n, same=4 + n, noisy=10 + n, faster=2.0) for n in range(3)]
    head = [measured(slower=10 + n, same=4 + n, noisy=12.5 + n, faster=3.0) for n in range(3)]

    def compared(*versions: list[Any]) -> str:
        arguments = ["compare.py"]
        for name, files in zip(("base", "head"), versions, strict=True):
            arguments.append(f"--{name}")
            for n, content in enumerate(files):
                path = tmp_path / f"{name}-{n}.json"
                path.write_text(json.dumps(content), encoding="utf-8")
                arguments.append(str(path))
        monkeypatch.setattr(sys, "argv", arguments)
        compare.main()
        return capsys.readouterr().out

    assert compared(base, base) == ""
    rows = compared(base, head).splitlines()[-2:]
    assert rows == [
        "| slower | asyncio | sdax compiled | 21.0 | 11.0 | -48% |",
        "| faster | asyncio | sdax compiled | 2.00 | 3.00 | +50% |",
    ]
    with pytest.raises(SystemExit):
        compared(base[:2], head)


# Slow answers: the service that is slow now and then, and load at a fixed rate.


def test_the_upstream_service() -> None:
    pytest.importorskip("asyncpg", reason="the benchmark asks a PostgreSQL")
    from service.upstream import Upstream, credit_of
    from tail_latency import upstream

    async def ask(port: int) -> None:
        one, other = Upstream(port, "one"), Upstream(port, "the other")
        assert await one.ask(7) == credit_of(7)
        assert await one.ask(8) == credit_of(8)
        given_up = asyncio.ensure_future(one.ask(9))
        await asyncio.sleep(0)  # it has sent its request, on the connection that was free
        given_up.cancel()
        await asyncio.wait([given_up])
        assert await one.ask(10) == credit_of(10)
        assert await other.ask("?") == 0
        assert await other.ask(11) == credit_of(11)
        assert await other.ask("?") == 1
        assert await one.ask("?") == 4  # what was given up counts too
        one.close()
        other.close()

    with upstream() as port:
        asyncio.run(ask(port))


def test_load_at_a_fixed_rate() -> None:
    from service.open_load import offer

    async def main() -> None:
        async with serving(answering(response(200))) as port:
            latencies = await offer(port, ["token"], rate=1000, seconds=0.02)
        assert len(latencies) == 20
        assert min(latencies) > 0
        async with serving(answering(response(503))) as port:
            with pytest.raises(ExceptionGroup) as caught:
                await offer(port, ["token"], rate=1000, seconds=0.001)
        assert "not answered with success" in str(caught.value.exceptions[0])

    asyncio.run(main())
