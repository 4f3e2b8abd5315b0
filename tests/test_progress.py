"""The display of long runs, on real rich consoles: terminals and others."""

from __future__ import annotations

import asyncio
import io
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console
from rich.live import Live

from helpers import (
    Trace,
    build,
    error_of,
    forever,
    nothing,
    one_loop,
    passes,
    solo,
    task,
    until,
    without_factory,
)
from sdax import AsyncDagTaskProcessor, SdaxExecutionError, TaskFunction, join
from sdax.many import run_many
from sdax.observe.progress import MOST_CHARACTERS, MOST_GROUPS, MOST_RUNS, ProgressDisplay

pytestmark = one_loop

SHOW_CURSOR, HIDE_CURSOR = "\x1b[?25h", "\x1b[?25l"


# Without VT mode, as where output goes to a pipe on Windows, rich moves the cursor by calls of the
# system and writes no escape codes.
TERMINAL: dict[str, Any] = {"force_terminal": True, "legacy_windows": False}


def terminal(file: Any = None) -> Console:
    return Console(file=file or io.StringIO(), width=120, height=40, **TERMINAL)


def no_terminal(file: Any = None) -> Console:
    return Console(file=file or io.StringIO(), force_terminal=False, width=120)


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def told(console: Console) -> list[str]:
    """The lines that were written, without the numbers of runs and without times."""
    lines = re.sub(r"\d[\d.,]* (?:s|ms|µs)\b", "TIME", written(console)).splitlines()
    return [re.sub(r"^run \d+: ", "", line) for line in lines]


def plain(text: str) -> list[str]:
    """The lines of a picture, without colours; bars are one sign."""
    text = re.sub("\x1b\\[[0-9;?]*[a-zA-Z]", "", text)
    text = re.sub(r"[━╸╺─-]{3,}", "=", text)
    return [re.sub(r" +", " ", line).strip() for line in text.splitlines()]


def drawn(display: ProgressDisplay) -> list[str]:
    """What the display shows now, as lines."""
    console = Console(file=io.StringIO(), width=160)
    console.print(display)
    return plain(written(console))


def draws(display: ProgressDisplay, into: list[str]) -> Callable[[Any], Any]:
    async def look(ctx: Any) -> None:
        await passes(2)
        into.extend(drawn(display))

    return look


@pytest.mark.virtual_clock
async def test_lines_where_there_is_no_terminal() -> None:
    answers: list[BaseException | None] = [ConnectionError("[bold]busy"), None]

    async def flaky(ctx: Any) -> None:
        if error := answers.pop(0):
            raise error

    console = no_terminal()
    processor = build(
        [task("A", TaskFunction(flaky, retries=1), post=nothing), task("B", nothing)],
        [task(("C", 1), execute=Trace().failing("", ValueError("two\nlines"), 1))],
    )
    await error_of(processor.process_tasks(None, observer=ProgressDisplay(console=console)))
    assert told(console) == [
        "3 tasks",
        "pre_execute starts",
        "A.pre_execute failed: ConnectionError('[bold]busy'); again in TIME",
        "level 1: pre_execute done in TIME, 2 of 4: B, A",
        "execute starts",
        "('C', 1).execute failed after TIME: ValueError('two\\nlines')",
        "level 2: execute ended after TIME, 2 of 4; failed: ('C', 1)",
        "post_execute starts",
        "level 1: post_execute done in TIME, 3 of 4: A",
        "failed after TIME, 3 of 4 done, 1 failed, 1 retry",
    ]
    assert "\x1b" not in written(console)


def stopped() -> Any:
    """A processor whose level 2 fails, so that level 3 is never opened."""
    return build(
        [task("Db", nothing, post=nothing)],
        [
            task("User", Trace().failing("", ValueError("no user"), 2), nothing, nothing),
            task("Flags", forever, nothing),
        ],
        [task(number, nothing, post=nothing) for number in range(3)],
    )


async def test_what_never_ran_is_not_done() -> None:
    console = no_terminal()
    await error_of(stopped().process_tasks(None, observer=ProgressDisplay(console=console)))
    assert told(console) == [
        "6 tasks",
        "pre_execute starts",
        "level 1: pre_execute done in TIME, 1 of 13: Db",
        "User.pre_execute failed after TIME: ValueError('no user')",
        "level 2: pre_execute ended after TIME, 1 of 13; failed: User; cancelled: Flags",
        "skipped: 0.pre_execute, 1.pre_execute, 2.pre_execute, User.execute and 4 more",
        "post_execute starts",
        "level 2: post_execute done in TIME, 2 of 13: User",
        "level 1: post_execute done in TIME, 3 of 13: Db",
        "failed after TIME, 3 of 13 done, 1 failed, 1 cancelled, 8 skipped",
    ]


async def test_the_last_picture_stays_on_the_terminal() -> None:
    console = terminal()
    await error_of(stopped().process_tasks(None, observer=ProgressDisplay(console=console)))
    picture = [line for line in plain(written(console).rpartition(SHOW_CURSOR)[2]) if line]
    assert re.sub(r"run \d+", "run N", picture[0]).startswith("run N failed after")
    assert picture[0].endswith("3 of 13 done, 1 failed, 1 cancelled, 8 skipped")
    assert picture[1:] == [
        "level 1 = 2/2",
        "level 2 = 1/5 1 failed, 1 cancelled, 2 skipped",
        "level 3 = 0/6 6 skipped",
    ]


@without_factory
async def test_each_function_of_a_level_that_was_not_called_is_skipped() -> None:
    console = no_terminal()
    processor = build([task("A", Trace().failing("", ValueError())), task("B", nothing)])
    await error_of(processor.process_tasks(None, observer=ProgressDisplay(console=console)))
    assert told(console)[2:] == [
        "A.pre_execute failed after TIME: ValueError()",
        "skipped: B.pre_execute",
        "level 1: pre_execute ended after TIME, 0 of 2; failed: A",
        "failed after TIME, 0 of 2 done, 1 failed, 1 skipped",
    ]


async def test_a_long_exception_is_shortened() -> None:
    console = no_terminal()
    processor = solo(Trace().failing("", ValueError("x" * 10_000)))
    await error_of(processor.process_tasks(None, observer=ProgressDisplay(console=console)))
    assert max(map(len, told(console))) < MOST_CHARACTERS + 60


async def test_many_names_are_counted() -> None:
    console = no_terminal()
    processor = build([task(number, nothing) for number in range(20)])
    await processor.process_tasks(None, observer=ProgressDisplay(console=console))
    assert told(console)[2] == "level 1: pre_execute done in TIME, 20 of 20: 0, 1, 2, 3 and 16 more"


@pytest.mark.virtual_clock
async def test_a_timeout() -> None:
    console = no_terminal()
    processor = build(
        [task("A", TaskFunction(forever, timeout=1)), task("B", forever)], [task("C", nothing)]
    )
    await error_of(processor.process_tasks(None, observer=ProgressDisplay(console=console)))
    lines = told(console)
    assert "A.pre_execute timed out after TIME: TimeoutError('timed out after TIME')" in lines
    assert lines[-1] == "failed after TIME, 0 of 3 done, 1 failed, 1 cancelled, 1 skipped"


async def test_what_is_drawn() -> None:
    display = ProgressDisplay(console=terminal())
    seen: list[str] = []
    waits = Trace().pausing("", 9)
    processor = build(
        [task("A [b]", nothing, post=nothing), task("B", Trace().pausing("", 1))],
        [task("L", draws(display, seen)), *(task(number, waits) for number in range(5))],
        [join("J")],
    )
    await processor.process_tasks(None, observer=display)
    assert re.fullmatch(r"run \d+ pre_execute after .*, 2 of 9 done", seen.pop(0))
    assert seen == [
        "level 1 = 2/3",
        "level 2 0/6 L.pre_execute, 0.pre_execute, 1.pre_execute, 2.pre_execute and 2 more",
        "level 3 = 0/0",
    ]
    assert drawn(display) == []


async def test_the_layers_of_a_graph() -> None:
    display = ProgressDisplay(console=terminal())
    seen: list[str] = []
    builder = AsyncDagTaskProcessor.builder(observer=display)
    builder.add_task(task("Last", draws(display, seen)), depends_on=("Middle", "First"))
    builder.add_task(task("Middle", nothing), depends_on=("First",))
    builder.add_task(task("First", nothing))
    await builder.build().process_tasks(None)
    assert seen[1:] == ["layer 1 = 1/1", "layer 2 = 1/1", "layer 3 0/1 Last.pre_execute"]


async def test_of_many_levels_those_that_are_busy_are_drawn() -> None:
    display = ProgressDisplay(console=terminal())
    seen: list[str] = []
    levels = [[task(number, nothing)] for number in range(99)]
    await build(*levels, [task("L", draws(display, seen))]).process_tasks(None, observer=display)
    assert len(seen) == 1 + MOST_GROUPS + 1
    assert seen[-2:] == ["level 100 0/1 L.pre_execute", f"and {100 - MOST_GROUPS} more"]


async def test_several_runs_at_once() -> None:
    display = ProgressDisplay(console=terminal())
    seen: list[str] = []
    waiting = solo(Trace().pausing("", 9))
    looking = solo(draws(display, seen))
    await asyncio.gather(
        *(each.process_tasks(None, observer=display) for each in [*[waiting] * 9, looking])
    )
    assert len([line for line in seen if line.startswith("run ")]) == MOST_RUNS
    assert seen[-1] == f"and {10 - MOST_RUNS} more runs"


async def test_a_live_display_is_gone_at_the_end_and_the_terminal_as_it_was() -> None:
    console = terminal()
    display = ProgressDisplay(console=console)
    seen: list[bool] = []

    async def look(ctx: Any) -> None:
        await passes(1)
        seen.append(written(console).rfind(HIDE_CURSOR) > written(console).rfind(SHOW_CURSOR))
        print("what a function prints")

    before = sys.stdout, sys.stderr
    processor = build([task("A", look)], [task("B", Trace().failing("", ValueError("no"), 1))])
    for _ in range(2):
        await error_of(processor.process_tasks(None, observer=display))
    assert seen == [True, True]
    assert written(console).count(HIDE_CURSOR) == written(console).count(SHOW_CURSOR) == 2
    assert (sys.stdout, sys.stderr) == before
    assert written(console).count("what a function prints") == 2
    lines = plain(written(console))
    assert len([line for line in lines if line.endswith("1 of 2 done, 1 failed")]) == 2
    assert [line for line in lines if line.endswith(": ValueError('no')")]
    assert not [line for line in lines if "pre_execute done" in line]


async def test_a_cancelled_run_and_one_that_nobody_waits_for() -> None:
    console = terminal()
    display = ProgressDisplay(console=console)
    cleaned = Trace()
    processor = solo(forever, post=cleaned.pausing("post"))
    run = asyncio.create_task(processor.process_tasks(None, observer=display))
    await passes(2)
    run.cancel()
    await asyncio.wait([run])
    coroutine = processor.process_tasks(None, observer=display)
    coroutine.send(None)
    await passes(2)
    coroutine.close()
    assert drawn(display) == []
    assert written(console).count(HIDE_CURSOR) == written(console).count(SHOW_CURSOR) == 2
    await until(lambda: cleaned.count("post done") == 2)
    await passes(2)


async def test_beside_a_live_display_of_somebody_else() -> None:
    console = terminal()
    with Live("theirs", console=console, auto_refresh=False):
        await solo(nothing).process_tasks(None, observer=ProgressDisplay(console=console))
    assert "succeeded after" in written(console)
    assert written(console).endswith(SHOW_CURSOR)


class Failing(io.StringIO):
    """A file that nobody reads any more, from the nth time of writing on."""

    def __init__(self, left: int) -> None:
        super().__init__()
        self.left = left

    def write(self, text: str) -> int:
        self.left -= 1
        if self.left < 0:
            raise OSError("the reader has gone")
        return len(text)


@pytest.mark.parametrize("left", range(3))
async def test_a_file_that_cannot_be_written(left: int, caplog: pytest.LogCaptureFixture) -> None:
    display = ProgressDisplay(console=no_terminal(Failing(left)))
    report = await solo(Trace().pausing("", 2, "value")).process_tasks(None, observer=display)
    assert report["A"].pre_execute.value == "value"
    assert [record for record in caplog.records if record.name == "sdax"] == []


async def test_a_terminal_that_is_closed_under_a_live_display() -> None:
    file = Failing(1000)
    display = ProgressDisplay(console=terminal(file))

    async def fail(ctx: Any) -> None:
        file.left = 0
        raise ValueError

    before = sys.stdout, sys.stderr
    error = await error_of(solo(fail).process_tasks(None, observer=display))
    assert isinstance(error, SdaxExecutionError)
    assert (sys.stdout, sys.stderr) == before


def test_runs_in_several_threads(engine: Any) -> None:
    console = terminal()
    display = ProgressDisplay(console=console)
    processor = build([task("A", Trace().pausing("", 5))], [task("B", Trace().pausing("", 5))])

    async def many() -> None:
        await asyncio.gather(*(processor.process_tasks(None, observer=display) for _ in range(25)))

    threads = [threading.Thread(target=lambda: asyncio.run(many())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(re.findall(r"run \d+(?:: |  )succeeded after", written(console))) == 100
    assert written(console).count(HIDE_CURSOR) == written(console).count(SHOW_CURSOR) > 0
    assert drawn(display) == []


def test_the_program_ends_while_a_run_is_under_way() -> None:
    code = (
        "import asyncio\n"
        "from rich.console import Console\n"
        "from sdax import AsyncTaskProcessor, task, task_func\n"
        "from sdax.observe.progress import ProgressDisplay\n"
        "async def leave(ctx):\n"
        "    await asyncio.sleep(0)\n"
        "    asyncio.get_running_loop().stop()\n"
        "    await asyncio.Event().wait()\n"
        "loop = asyncio.new_event_loop()\n"
        f"display = ProgressDisplay(console=Console(stderr=True, **{TERMINAL}))\n"
        "builder = AsyncTaskProcessor.builder(observer=display)\n"
        "builder.add_task(task('A', execute=task_func(leave)), 1)\n"
        "run = loop.create_task(builder.build().process_tasks(None))\n"
        "loop.run_forever()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "TERM": "xterm", "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        timeout=60,
        check=True,
    )
    written = done.stderr.decode()
    assert HIDE_CURSOR in written
    assert written.rfind(SHOW_CURSOR) > written.rfind(HIDE_CURSOR)


def test_refused() -> None:
    with pytest.raises(TypeError) as caught:
        ProgressDisplay(console=sys.stderr)  # type: ignore[arg-type]
    assert str(caught.value).startswith("console must be a rich.console.Console or None, got <")


def test_without_rich_the_error_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['rich'] = None\n"
        "try: import sdax.observe.progress\n"
        "except ImportError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert "pip install 'rich>=13'" in done.stdout


async def test_a_failed_run_is_no_less_told_of() -> None:
    console = no_terminal()
    with pytest.raises(SdaxExecutionError):
        await solo(Trace().failing("", ValueError())).process_tasks(
            None, observer=ProgressDisplay(console=console)
        )
    assert told(console)[-1] == "failed after TIME, 0 of 1 done, 1 failed"


# Many runs.


async def some_fail(ctx: int) -> None:
    if ctx % 10 == 3:
        raise ValueError(ctx)


async def test_inputs_are_counted_where_there_is_no_terminal() -> None:
    console = no_terminal()
    display = ProgressDisplay(console=console)
    async with run_many(solo(execute=some_fail), range(2000), observer=display) as outcomes:
        async for _ in outcomes:
            pass
    lines = re.sub(r"[\d,]+ per second", "N per second", "\n".join(told(console)))
    assert lines.splitlines() == [
        "0 of 2,000 inputs done",
        "2,000 of 2,000 inputs done, 200 failed, N per second, in TIME",
    ]


async def test_and_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdax.observe.progress.SECONDS_BETWEEN_LINES", 0.0)
    console = no_terminal()
    display = ProgressDisplay(console=console)
    async with run_many(solo(execute=nothing), iter(range(2)), observer=display) as outcomes:
        async for _ in outcomes:
            pass
    lines = re.sub(r"[\d,]+ per second", "N per second", "\n".join(told(console)))
    assert lines.splitlines() == [
        "0 inputs done",
        "1 input done, N per second",
        "2 inputs done, N per second",
        "2 inputs done, N per second, in TIME",
    ]


async def test_a_terminal_shows_how_many_inputs_are_done() -> None:
    console = terminal()
    display = ProgressDisplay(console=console)
    shown = []
    async with run_many(solo(execute=some_fail), range(40), observer=display) as outcomes:
        async for _ in outcomes:
            shown.append(drawn(display))
    text = re.sub(r"[\d.,]+ (?:s|ms|µs)\b", "TIME", shown[9][0])
    assert re.fullmatch(r"40 of 40 inputs done, 4 failed, [\d,]+ per second, TIME left", text)
    assert shown[9][1:] == ["="]
    last = plain(written(console))
    assert any(line.startswith("40 of 40 inputs done, 4 failed") for line in last)
    assert drawn(display) == []
    assert written(console).count(SHOW_CURSOR) == written(console).count(HIDE_CURSOR) == 1
