"""A mutation test: it changes sdax in one place at a time, and looks whether a test notices.

    python -m tests.mutants                                   # 200 changes, drawn at random
    python -m tests.mutants --count 50 --seed 7 --module sdax/budget.py sdax/limits.py

First it runs the tests once and records which of them run which line. For each change it then runs
the tests that run the changed line, on the Python engine and in a copy of the checkout. It stops at
the first test that fails: the change is killed. A change with which the tests hang is killed too.
It prints the changes that survive. Write a test that fails for each, or, if no test can, list it in
`tests/mutants_equivalent.txt` with the reason.

It can be interrupted and started again: `build/mutants/` has what is known already. A killed change
counts until its module changes, and a survivor until a test does.

mutmut, which was tried, leaves out decorated functions, the bodies of classes and modules, and
removed statements, and chooses tests by function. cosmic-ray has one test command for all changes,
and works in the checkout.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import importlib
import json
import math
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from mutants_recording import CONFIGURATION, LEFT_OUT, RECORDED
from mutations import Key, Mutation, equivalents_in, mutations_of

ROOT = Path(__file__).parent.parent
EQUIVALENT = ROOT / "tests" / "mutants_equivalent.txt"
OPTIONS = ["--engine=python", "-q", "-p", "no:cacheprovider"]
MEMORY = 3 * 1024**3  # bytes of a process, for changes that fill lists for ever
# Imported once, before the processes that test a change are forked, as are the plugins of pytest.
IMPORTED = ("anyio._backends._asyncio", "httpx", "hypothesis", "multiprocessing", "ssl", "uvloop")


@dataclass(frozen=True)
class Folder:
    """The folder of the results and of the copies of the checkout."""

    path: Path

    @property
    def recorded(self) -> Path:
        return self.path / "checkout"

    @property
    def lines(self) -> Path:
        return self.path / "lines"

    @property
    def summary(self) -> Path:
        return self.path / "recorded.json"

    @property
    def results(self) -> Path:
        return self.path / "results.jsonl"


def files_of_checkout() -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    built = [str(path.relative_to(ROOT)) for path in ROOT.glob("sdax/_core*.so")]
    return [each for each in [*listed, *built] if (ROOT / each).is_file()]


def copy_checkout(target: Path) -> None:
    """Copy what changed. Compiled modules that are there stay valid."""
    for name in files_of_checkout():
        source, copy = ROOT / name, target / name
        if not copy.exists() or copy.stat().st_mtime_ns != source.stat().st_mtime_ns:
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, copy)


def digest(paths: Iterable[Path]) -> str:
    found = hashlib.sha256()
    for path in sorted(paths):
        found.update(path.name.encode() + b"\0" + path.read_bytes())
    return found.hexdigest()


# Which test runs which line


def record(folder: Folder, jobs: int) -> None:
    """Run the test files that are not recorded yet, or have run a line of a changed module."""
    tests = [path for path in ROOT.glob("tests/test_*.py") if path.stem[5:] not in LEFT_OUT]
    helpers = [
        path for path in ROOT.glob("tests/*.py") if not path.stem.startswith(("test_", "mut"))
    ]
    digests = {str(path.relative_to(ROOT)): digest([path]) for path in tests}
    digests |= {str(path.relative_to(ROOT)): digest([path]) for path in ROOT.glob("sdax/**/*.py")}
    digests["helpers"] = digest(helpers)
    known: dict[str, Any] = {"digests": {}, "durations": {}, "failed": []}
    if folder.summary.exists():
        known = json.loads(folder.summary.read_text())
    if known["digests"].get("helpers") != digests["helpers"]:
        known = {"digests": {}, "durations": {}, "failed": []}
        shutil.rmtree(folder.lines, ignore_errors=True)
    changed = {name for name in digests if known["digests"].get(name) != digests[name]}
    missing = {name for name in changed if name.startswith("tests/")}
    for module in changed - missing:
        path = folder.lines / f"{module}.json"
        if path.exists():
            ran = {test.partition("::")[0] for test in json.loads(path.read_text())}
            missing |= ran & digests.keys()
            path.unlink()
    copy_checkout(folder.recorded)
    if missing:
        print(f"recording the lines that the tests of {len(missing)} files run", flush=True)
        told = run_and_record(folder, sorted(missing), jobs)
        known["durations"].update(told["durations"])
        known["failed"] = sorted({*known["failed"], *told["failed"]})
    known["digests"] = digests
    folder.summary.write_text(json.dumps(known))


def run_and_record(folder: Folder, tests: Sequence[str], jobs: int) -> dict[str, Any]:
    data = folder.path / "data"
    shutil.rmtree(data, ignore_errors=True)
    data.mkdir(parents=True)
    configuration, told = data / "coveragerc", data / "durations.json"
    configuration.write_text(CONFIGURATION.format(data=data / "lines"))
    environment = {
        **os.environ,
        "COVERAGE_PROCESS_START": str(configuration),
        RECORDED: str(told),
        "PYTHONPATH": search_path(folder.recorded),
    }
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # the copies begin with what is compiled here
    command = [sys.executable, "-m", "pytest", "-p", "mutants_recording", f"-n{jobs}", *OPTIONS]
    subprocess.run([*command, *tests], cwd=folder.recorded, env=environment, check=False)
    if not told.exists():
        sys.exit("the tests ended before they told what they have run")
    keep_lines(folder, data)
    answer: dict[str, Any] = json.loads(told.read_text())
    return answer


def keep_lines(folder: Folder, data: Path) -> None:
    """Add what coverage.py has written to the lines that are known, a file for each module."""
    import coverage

    lines: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for path in data.glob("lines.*"):
        measured = coverage.CoverageData(basename=str(path))
        measured.read()
        for name in measured.measured_files():
            if "/checkout/" not in name:
                continue
            of_module = lines[name.rpartition("/checkout/")[2]]
            for line, tests in measured.contexts_by_lineno(name).items():
                for test in tests:
                    of_module[test] |= 1 << line
    for module, masks in lines.items():
        path = folder.lines / f"{module}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        before = json.loads(path.read_text()) if path.exists() else {}
        merged = {**before, **{test: f"{mask:x}" for test, mask in masks.items()}}
        path.write_text(json.dumps(merged))


@dataclass
class Recorded:
    """Which tests run a line, and how long they take."""

    folder: Folder
    longest: float  # seconds of a test that is used
    durations: dict[str, float] = field(init=False)
    failed: set[str] = field(init=False)

    def __post_init__(self) -> None:
        known = json.loads(self.folder.summary.read_text())
        self.durations, self.failed = known["durations"], set(known["failed"])
        self.lines = cache(self._lines)

    def _lines(self, module: str) -> dict[str, int]:
        path = self.folder.lines / f"{module}.json"
        known = json.loads(path.read_text()) if path.exists() else {}
        return {test: int(mask, 16) for test, mask in known.items()}

    def batches(self, mutation: Mutation) -> list[list[str]]:
        """Return the tests that may notice a change. The likely and quick ones come first.

        A line that runs at import is a matter of every test of its module. Without a batch, no test
        runs the line.
        """
        lines = self.lines(mutation.module)
        wanted = sum(1 << line for line in mutation.run_lines)
        tests = [test for test, mask in lines.items() if test and mask & wanted]
        if not tests and lines.get("", 0) & wanted:
            at_import = lines[""]
            tests = [test for test, mask in lines.items() if test and mask & ~at_import]
        return self.in_batches(mutation.module, [each for each in tests if self.usable(each)])

    def usable(self, test: str) -> bool:
        return self.durations.get(test, math.inf) <= self.longest and test not in self.failed

    def in_batches(self, module: str, tests: list[str]) -> list[list[str]]:
        tests.sort(key=lambda test: self.durations[test])
        seen: Counter[str] = Counter()
        per_file: Counter[str] = Counter()
        first_of_each: list[str] = []
        more: list[str] = []
        for test in tests:
            function = test.partition("[")[0]
            seen[function] += 1
            per_file[test.partition("::")[0]] += 1
            (first_of_each if seen[function] == 1 else more).append(test)
        stem = Path(module).stem.strip("_")
        files = sorted(
            per_file, key=lambda name: (stem not in name, stem[:5] not in name, -per_file[name])
        )
        likely = set(files[:5])
        batches = [
            [test for test in first_of_each if test.partition("::")[0] in likely],
            [test for test in first_of_each if test.partition("::")[0] not in likely],
            more,
        ]
        return [batch for batch in batches if batch]


# Testing one change


@dataclass(frozen=True)
class Verdict:
    """The fate of a change: killed, hung or survived, and the test that killed it."""

    mutation: Mutation
    outcome: str
    by: str = ""


class Chosen:
    """A plugin for pytest that runs these tests alone, in this order, and tells which failed."""

    def __init__(self, tests: Sequence[str], told: Path) -> None:
        self.places = {test: place for place, test in enumerate(tests)}
        self.told = told

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        chosen = [item for item in items if item.nodeid in self.places]
        items[:] = sorted(chosen, key=lambda item: self.places[item.nodeid])

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.told.write_text(report.nodeid)


def search_path(copy: Path) -> str:
    return os.pathsep.join([str(copy), str(copy / "tests")])


def run_tests(copy: Path, tests: Sequence[str], told: Path) -> int:
    """Run these tests in a copy of the checkout, in this process."""
    os.setsid()
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    os.chdir(copy)
    os.environ["PYTHONPATH"] = search_path(copy)
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    sys.dont_write_bytecode = True
    sys.path[:] = [*search_path(copy).split(os.pathsep), *sys.path]
    for name in [name for name in sys.modules if name.startswith(("mutants_", "mutations"))]:
        del sys.modules[name]
    files = list(dict.fromkeys(test.partition("::")[0] for test in tests))
    ignored = ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
    arguments = [*files, *OPTIONS, "-n0", "-x", "--tb=short", "--no-header", *ignored]
    return int(pytest.main(arguments, plugins=[Chosen(tests, told)]))


def in_process(copy: Path, tests: Sequence[str], seconds: float) -> int | None:
    """Run tests in a process of their own. Return its status, or None if it takes too long."""
    told = copy.with_suffix(".killer")
    told.unlink(missing_ok=True)
    output = os.open(copy.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    process = os.fork()
    if process == 0:
        status = 3
        try:
            os.dup2(output, 1)
            os.dup2(output, 2)
            status = run_tests(copy, tests, told)
            sys.stdout.flush()
        finally:
            os._exit(status)
    os.close(output)
    end = time.monotonic() + seconds
    try:
        while True:
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status)
            if time.monotonic() > end:
                return None
            time.sleep(0.02)
    finally:
        with suppress(ProcessLookupError):  # and what the tests have started and left
            os.killpg(process, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(process, 0)


def judged(folder: Folder, copy: Path, recorded: Recorded, mutation: Mutation) -> Verdict:
    """Run the tests that may notice this change."""
    batches = recorded.batches(mutation)
    if not batches:
        return Verdict(mutation, "not run")
    path = copy / mutation.module
    try:
        for batch in batches:
            path.write_bytes(mutation.changed)
            seconds = 15 + 5 * sum(recorded.durations[test] for test in batch)
            status = in_process(copy, batch, seconds)
            if status is None:
                shutil.copy2(folder.recorded / mutation.module, path)
                if in_process(copy, batch, seconds) is not None:
                    return Verdict(mutation, "hung")
                # The machine is slow, and not the change to blame.
                path.write_bytes(mutation.changed)
                status = in_process(copy, batch, 10 * seconds)
                if status is None:
                    return Verdict(mutation, "hung")
            if status == pytest.ExitCode.NO_TESTS_COLLECTED:
                raise RuntimeError(f"none of these tests was found: {batch}")
            if status != pytest.ExitCode.OK:
                told = copy.with_suffix(".killer")
                return Verdict(mutation, "killed", told.read_text() if told.exists() else "import")
    finally:
        shutil.copy2(folder.recorded / mutation.module, path)
    return Verdict(mutation, "survived")


_here: dict[str, Any] = {}


def prepare(folder: Folder, recorded: Recorded, numbers: Any) -> None:
    """Give this process a copy of the checkout."""
    with suppress(AttributeError):
        os.nice(5)
    copy = folder.path / f"copy-{numbers.get()}"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder.recorded, copy, symlinks=True)
    _here.update(folder=folder, recorded=recorded, copy=copy)


def judged_here(mutation: Mutation) -> Verdict:
    return judged(_here["folder"], _here["copy"], _here["recorded"], mutation)


# All of them


def sample(
    mutations: list[Mutation], count: int | None, seed: int, left_out: set[Key]
) -> list[Mutation]:
    """Draw changes at random, without those that are left out."""
    random.Random(seed).shuffle(mutations)
    chosen: list[Mutation] = []
    for mutation in mutations:
        if count is not None and len(chosen) == count:
            break
        if mutation.key not in left_out and mutation.is_python:
            chosen.append(mutation)
    return chosen


def known_results(folder: Folder, tests: str, modules: dict[str, str]) -> dict[Key, str]:
    """Return the results that still count: of these modules, and for survivors of these tests."""
    known: dict[Key, str] = {}
    if folder.results.exists():
        for line in folder.results.read_text().splitlines():
            row = json.loads(line)
            key: Key = tuple(row["key"])
            if row["module"] != modules.get(key[0]):
                continue
            if row["outcome"] in ("killed", "hung") or row["tests"] == tests:
                known[key] = row["outcome"]
    return known


def import_what_tests_need() -> None:
    """Import modules that have nothing to do with sdax, which each process would import again."""
    for name in IMPORTED:
        with suppress(ImportError):
            importlib.import_module(name)
    for plugin in entry_points(group="pytest11"):
        if plugin.name != "sdax":
            plugin.load()
    assert "sdax" not in sys.modules
    gc.freeze()


def judge_all(
    folder: Folder, recorded: Recorded, mutations: Sequence[Mutation], jobs: int
) -> Iterator[Verdict]:
    import_what_tests_need()
    forking = multiprocessing.get_context("fork")
    numbers = forking.SimpleQueue()
    for number in range(jobs):
        numbers.put(number)
    with forking.Pool(jobs, prepare, (folder, recorded, numbers)) as pool:
        yield from pool.imap_unordered(judged_here, mutations)


def shown(mutation: Mutation) -> str:
    return (
        f"{mutation.module}:{mutation.line} {mutation.name}\n"
        f"    - {mutation.before}\n    + {mutation.after}"
    )


def arguments_of(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.mutants", description="Changes sdax, and looks which test notices."
    )
    parser.add_argument("--count", type=int, default=200, help="changes to test (default: 200)")
    parser.add_argument("--all", action="store_true", help="test all changes instead")
    parser.add_argument("--seed", type=int, default=0, help="of the random choice (default: 0)")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time (default: 2)")
    parser.add_argument(
        "--module", nargs="+", metavar="FILE", help="such as sdax/budget.py (default: all of sdax)"
    )
    parser.add_argument(
        "--longest",
        type=float,
        default=2.0,
        metavar="SECONDS",
        help="leave out tests that took longer when they were recorded (default: 2)",
    )
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "mutants")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> int:
    arguments = arguments_of(given)
    folder = Folder(arguments.folder.resolve())
    names = arguments.module or [
        str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("sdax/**/*.py"))
    ]
    record(folder, arguments.jobs)
    recorded = Recorded(folder, arguments.longest)
    found = [each for name in names for each in mutations_of(name, (ROOT / name).read_text())]
    equivalent = {each.key for each in equivalents_in(EQUIVALENT)}
    for stale in sorted(
        key for key in equivalent - {each.key for each in found} if key[0] in names
    ):
        print(f"no longer there, remove it from {EQUIVALENT.name}: {stale}")
    chosen = sample(found, None if arguments.all else arguments.count, arguments.seed, equivalent)

    tests = digest(ROOT.glob("tests/*.py"))
    modules = {name: digest([ROOT / name]) for name in names}
    known = known_results(folder, tests, modules)
    outcomes = Counter(known[each.key] for each in chosen if each.key in known)
    survivors = [each for each in chosen if known.get(each.key) == "survived"]
    missing = [each for each in chosen if each.key not in known]
    with folder.results.open("a") as results:
        for verdict in judge_all(folder, recorded, missing, arguments.jobs):
            mutation = verdict.mutation
            row = {
                "key": mutation.key,
                "module": modules[mutation.module],
                "tests": tests,
                "outcome": verdict.outcome,
                "by": verdict.by,
            }
            print(json.dumps(row), file=results, flush=True)
            outcomes[verdict.outcome] += 1
            if verdict.outcome == "survived":
                survivors.append(mutation)
                print(
                    f"survived ({outcomes.total()} of {len(chosen)}): {shown(mutation)}", flush=True
                )

    killed = outcomes["killed"] + outcomes["hung"]
    judged_number = killed + outcomes["survived"]
    print(f"\n{len(found)} changes of {len(names)} modules, {len(chosen)} chosen")
    print(f"{len(equivalent & {each.key for each in found})} listed as equivalent and left out")
    print(f"{outcomes['not run']} on lines that no recorded test runs")
    print(f"{killed} killed ({outcomes['hung']} of them hung), {outcomes['survived']} survived")
    if judged_number:
        print(f"{100 * killed / judged_number:.1f} % killed")
    for mutation in sorted(survivors, key=lambda each: (each.module, each.line)):
        print(shown(mutation))
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
