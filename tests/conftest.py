"""Every async test runs on each engine, and on each kind of event loop that users may have.

A plain `async def test_...` needs no mark. The kinds are asyncio's own loop, the same with a task
factory (see `is_in_debug_mode`), with asyncio's eager task factory, and uvloop. Marks choose
others:

- `virtual_clock`: loops whose time jumps to the next timer, for tests of timeouts and delays;
- `loop_kinds("asyncio", ...)`: only these. "debug" is debug mode without a task factory, and
  "factory" is then without debug mode.

A test with parameters does not run with every parameter on every kind: see `shared_out`. All of
them run with `every_loop`, and with SDAX_THOROUGH=1 in the environment.

`one_engine` marks a test to which the other engine would add nothing but time: it runs on the
compiled engine, or on the one that `--engine` names.

A test that is no coroutine and runs a processor asks for the fixture `engine`.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any, NoReturn

import pytest
from hypothesis import given, settings, strategies

from helpers import can_freeze
from sdax.testing import VirtualClockLoop

HANGS_AFTER = 60  # seconds, of which a busy machine may need many
# The limit of an async test. After one has hung others often do, so they get less. Plain tests have
# `faulthandler_timeout` in pyproject.toml.
_limits = [HANGS_AFTER, 15]

ENGINES = {"python": "sdax._core_py", "compiled": "sdax._core"}


@dataclass(frozen=True)
class Implementation:
    """One of the engines."""

    name: str
    module: ModuleType


@dataclass(frozen=True)
class LoopKind:
    """A way to make an event loop."""

    name: str
    new_loop: Callable[[], asyncio.AbstractEventLoop]
    task_factory: Any = None
    debug: bool = False

    def make(self) -> asyncio.AbstractEventLoop:
        loop = self.new_loop()
        loop.set_task_factory(self.task_factory)
        return loop


def _plain_factory(loop: Any, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
    return asyncio.Task(coroutine, loop=loop, **options)


def _new_uvloop() -> asyncio.AbstractEventLoop:
    import uvloop

    return uvloop.new_event_loop()


def _kinds() -> list[LoopKind]:
    kinds = [
        LoopKind("asyncio", asyncio.new_event_loop),
        LoopKind("debug", asyncio.new_event_loop, debug=True),
        LoopKind("factory", asyncio.new_event_loop, _plain_factory),
    ]
    if sys.version_info >= (3, 12):
        kinds.append(LoopKind("eager", asyncio.new_event_loop, asyncio.eager_task_factory))
    if sys.platform != "win32" and sys.implementation.name == "cpython":
        kinds.append(LoopKind("uvloop", _new_uvloop))
    return kinds


LOOP_KINDS = _kinds()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--engine",
        choices=[*ENGINES, "both"],
        default="both",
        help="the engine to test (default: both); one that is missing fails",
    )


@pytest.hookimpl(optionalhook=True, tryfirst=True)
def pytest_xdist_auto_num_workers() -> int | None:
    """Return the number of processes of `-n auto`: one more than there are cores, because tests
    also wait for servers, clusters and programs that they start."""
    if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ:
        return None
    affinity = getattr(os, "sched_getaffinity", None)
    return (len(affinity(0)) if affinity else os.cpu_count() or 1) + 1


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "virtual_clock: run on loops whose time jumps")
    config.addinivalue_line("markers", "loop_kinds(*names): run on these kinds of loops only")
    config.addinivalue_line(
        "markers",
        "undisturbed: does not work with a sanitizer or a tracer, because it measures memory, say",
    )
    config.addinivalue_line("markers", "one_engine: the other engine would add nothing")
    config.addinivalue_line(
        "markers", "one_python: another Python would add nothing; .ci/run runs it on one alone"
    )
    config.addinivalue_line("markers", "every_loop: run with every parameter on every kind of loop")


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makeitem(collector: Any, name: str, obj: Any) -> None:
    if name.startswith("test_") and inspect.iscoroutinefunction(obj):
        pytest.mark.usefixtures("engine", "loop_kind", "loop_errors")(obj)


def shared_out(sets: int, others: int, turn: int) -> set[tuple[int, int]]:
    """Pairs of a set of parameters and one of the other kinds of loops, by their numbers.

    Each set of parameters is in a pair, and so is each kind. `turn` is another number on the other
    engine and on the next Python, so that five Pythons run all pairs.
    """
    if not others:
        return set()
    return {(number % sets, (number + turn) % others) for number in range(max(sets, others))}


@pytest.hookimpl(trylast=True)  # when the test's own parameters are known
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    marked = metafunc.definition.get_closest_marker
    names: list[str] = []
    if "engine" in metafunc.fixturenames:
        chosen = metafunc.config.getoption("engine")
        names = list(ENGINES) if chosen == "both" else [chosen]
        if marked("one_engine"):
            names = names[-1:]
    if "loop_kind" not in metafunc.fixturenames:
        if names:
            metafunc.parametrize("engine", names, indirect=True)
        return
    marks = [*metafunc.definition.iter_markers("loop_kinds")]
    kinds = [kind for kind in LOOP_KINDS if all(kind.name in mark.args for mark in marks)]
    if not marks:
        kinds = [kind for kind in kinds if not kind.debug]  # but see `is_in_debug_mode`
    if marked("virtual_clock"):
        kinds = [
            replace(kind, new_loop=VirtualClockLoop) for kind in kinds if kind.name != "uvloop"
        ]
    sets = len(metafunc._calls) or 1
    metafunc.parametrize("engine", names, indirect=True)
    metafunc.parametrize("loop_kind", kinds, ids=lambda kind: kind.name, indirect=True)
    if len(kinds) > 1 and not (marked("every_loop") or os.environ.get("SDAX_THOROUGH")):
        pairs = [
            shared_out(sets, len(kinds) - 1, sys.version_info.minor + engine)
            for engine in range(len(names))
        ]
        # The product of all, of which pytest has no other way to leave out a part.
        cells = product(range(sets), range(len(names)), range(len(kinds)))
        metafunc._calls = [
            call
            for call, (number, engine, kind) in zip(metafunc._calls, cells, strict=True)
            if kind == 0 or (number, kind - 1) in pairs[engine]
        ]


@settings(max_examples=1, database=None)
@given(strategies.none())
def _search_for_nothing(_: None) -> None:
    """Have hypothesis make its random numbers' generator."""


def pytest_collection_finish(session: pytest.Session) -> None:
    """Leave the ten thousand tests that were collected out of garbage collections to come."""
    # Hypothesis warns of a generator that nobody refers to, and what is frozen does not count.
    _search_for_nothing()
    gc.collect()
    if can_freeze():
        gc.freeze()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Let pytest's last garbage collection find whatever was left open, however long ago."""
    if can_freeze():
        gc.unfreeze()


def _no_engine(*_: Any) -> NoReturn:
    pytest.fail("a test that runs a processor must use the fixture 'engine'")


# Fixtures that every test uses have the widest scope that they can have: ten thousand tests make
# them otherwise.


@pytest.fixture(autouse=True, scope="session")
def _engine_is_chosen() -> Iterator[None]:
    """No test may run on whatever engine happens to be installed."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("sdax.processor.Run", _no_engine)
        yield


@pytest.fixture(autouse=True, scope="module")
def _collections_are_quick() -> None:
    """Leave what other modules have made out of garbage collections, of which some tests make many.

    Else each of them takes half a second towards the end of the session.
    """
    if can_freeze():
        gc.collect()
        gc.freeze()


@pytest.fixture(autouse=True, scope="module")
def _summary_is_of_examples(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tests of `sdax.testing` itself explore much that nobody wants to read of."""
    with pytest.MonkeyPatch.context() as patched:
        if request.module.__name__ not in ("test_deploy", "test_explored_examples"):
            patched.setattr("_sdax_pytest.Test.tell", lambda self, line: None)
        yield


@pytest.fixture
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Implementation:
    """The engine under test, in place of the one that was chosen at import."""
    name = request.param
    try:
        module = importlib.import_module(ENGINES[name])
    except ImportError as error:
        pytest.fail(
            f"the {name} engine was asked for, and cannot be imported: {error!r}; build it, or "
            f"run with --engine python",
            pytrace=False,
        )
    assert module.Run.__module__ == ENGINES[name]
    monkeypatch.setattr("sdax.processor.Run", module.Run)
    return Implementation(name, module)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """The directory of the socket of a real PostgreSQL, started when first asked for; it lets in
    the user "sdax", on ten connections at a time."""
    import service.postgresql  # in benchmarks/, which only pytest finds: the searches do not

    programs = service.postgresql.programs()
    if programs is None:
        pytest.skip("no PostgreSQL: no initdb in /usr/lib/postgresql/*/bin or on PATH, or Windows")
    with TemporaryDirectory(prefix="sdax-", dir="/tmp") as folder:  # a short path
        cluster = service.postgresql.Cluster(programs, folder)
        cluster.initialize("-U", "sdax", "-A", "trust")
        options = "-F -c shared_buffers=4MB -c max_connections=10 -c max_wal_senders=0"
        with cluster.serving(f"-h '' -k {folder} {options}"):
            yield folder


@pytest.fixture
def both_engines(request: pytest.FixtureRequest) -> list[ModuleType]:
    """The engines, for a test that compares them."""
    chosen = request.config.getoption("engine")
    if chosen != "both":
        pytest.skip(f"compares two engines, and --engine {chosen} asks for one")
    return [importlib.import_module(name) for name in ENGINES.values()]


@pytest.fixture
def factors(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Make every random factor of a delay 1, and return the ranges that were asked for."""
    ranges: list[Any] = []
    if "engine" in request.fixturenames:

        def uniform(low: float, high: float) -> float:
            ranges.append((low, high))
            return 1.0

        monkeypatch.setattr("sdax.engine.attempts.uniform", uniform)
    return ranges


@pytest.fixture
def loop_kind(request: pytest.FixtureRequest) -> LoopKind:
    """The kind of event loop under an async test."""
    kind: LoopKind = request.param
    return kind


@pytest.fixture
def loop_errors() -> Iterator[list[dict[str, Any]]]:
    """What the loop's exception handler was called with; a test takes out what it expects."""
    errors: list[dict[str, Any]] = []
    yield errors
    assert errors == []


def is_in_debug_mode(item: pytest.Function) -> bool:
    """Return True for loops with a task factory, on one engine, unless a mark names the kinds.

    No engine looks at debug mode, and it makes a test twice as slow: asyncio notes where each
    callback and each Task comes from. On the next Python it is the other engine.
    """
    on = [*ENGINES][sys.version_info.minor % 2]
    callspec = item.callspec.params
    return (
        callspec["loop_kind"].name == "factory"
        and callspec["engine"] == on
        and item.get_closest_marker("loop_kinds") is None
    )


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    test = pyfuncitem.obj
    if not inspect.iscoroutinefunction(test):
        return None
    fixtures: dict[str, Any] = pyfuncitem.funcargs
    arguments = {name: fixtures[name] for name in inspect.signature(test).parameters}
    kind, errors = fixtures["loop_kind"], fixtures["loop_errors"]

    runner = asyncio.Runner(
        loop_factory=kind.make, debug=kind.debug or is_in_debug_mode(pyfuncitem) or None
    )
    loop = runner.get_loop()
    watchdog = None
    hangs = False

    limit = _limits[0]

    def stop() -> None:
        nonlocal hangs
        hangs = True
        del _limits[:-1]
        loop.stop()

    async def check_what_is_left() -> None:
        loop.set_exception_handler(lambda _, context: errors.append(context))
        await test(**arguments)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        timers = getattr(loop, "_scheduled", ())  # asyncio's own loops; uvloop shows none
        assert [each for each in timers if each is not watchdog and not each.cancelled()] == []

    if not isinstance(loop, VirtualClockLoop):  # which raises as soon as it cannot go on
        watchdog = loop.call_later(limit, stop)
    try:
        runner.run(check_what_is_left())
    finally:
        if hangs:
            # What hangs would also hang when it is cancelled.
            loop.close()
            pytest.fail(f"the test hangs: it was given up after {limit} s", pytrace=False)
        runner.close()
    return True
