"""Draws the pictures of pages, light and dark: `python docs/pictures/draw.py`.

It needs the extras `examples` and `bench`, and Chromium.
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image

from sdax import AsyncTask, AsyncTaskProcessor, SdaxExecutionError, task_func
from sdax.observe import Timeline
from sdax.testing import VirtualClockLoop

HERE = Path(__file__).parent
EXAMPLES = HERE.parents[1] / "examples"
WIDTH = 1000
HEIGHTS = {"processor": 480, "timeline": 660, "observed": 800}


def waits(seconds: float, *failures: str, **limits: Any) -> Any:
    """Make a function that waits, and then fails as often as there are failures."""
    left = list(failures)

    async def wait(ctx: None) -> None:
        await asyncio.sleep(seconds)
        if left:
            raise ConnectionError(left.pop())

    return task_func(wait, **limits)


async def hangs_once(ctx: list[None]) -> None:
    ctx.append(None)
    await asyncio.sleep(0.012 if len(ctx) > 1 else 10)


async def no_such_user(ctx: Any) -> None:
    await asyncio.sleep(0.061)
    raise ValueError("no such <user> & co")


def timeline(page: Path) -> None:
    """Write the page of a run that has a bit of everything, on a clock of its own."""
    flags = task_func(hangs_once, timeout=0.03, retries=1, initial_delay=0.015)
    login = waits(0.012, *["reset by peer"] * 2, retries=2, initial_delay=0.03)
    processor = (
        AsyncTaskProcessor[Any]
        .builder()
        .add_task(AsyncTask("Database", waits(0.02), None, waits(0.016)), level=1)
        .add_task(AsyncTask("Authentication", login, waits(0.031)), level=1)
        .add_task(AsyncTask("FeatureFlags", flags, waits(0.016)), level=1)
        .add_task(AsyncTask("UserData", waits(0.023), no_such_user, waits(0.015)), level=2)
        .add_task(AsyncTask("Recommendations", None, waits(0.2), waits(0.016)), level=2)
        .add_task(AsyncTask("Audit", waits(0.008), waits(0.2)), level=3)
        .build()
    )
    with asyncio.Runner(loop_factory=VirtualClockLoop) as runner:
        timeline = Timeline(clock=runner.get_loop().time)
        try:
            runner.run(processor.process_tasks([], observer=timeline))
        except SdaxExecutionError:
            timeline.to_html(page)


def processor(page: Path) -> None:
    command = ["-m", "sdax", "show", "shop.workflow:PROCESSOR", "--format", "html"]
    with page.open("w", encoding="utf-8") as file:
        subprocess.run([sys.executable, *command], cwd=EXAMPLES, stdout=file, check=True)


def observed(page: Path) -> None:
    subprocess.run([sys.executable, "observed.py", str(page)], cwd=EXAMPLES, check=True)


def draw(name: str, page: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome") or "chrome"
    for suffix, scheme in [("", 1), ("-dark", 0)]:
        picture = HERE / f"{name}{suffix}.png"
        options = [
            *("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
            f"--user-data-dir={page.parent / 'profile'}",
            f"--blink-settings=preferredColorScheme={scheme}",
            "--force-device-scale-factor=1.5",
            f"--window-size={WIDTH},{HEIGHTS[name]}",
            f"--screenshot={picture}",
        ]
        subprocess.run([browser, *options, page.as_uri()], check=True, timeout=300)
        reduce_colours(picture)


def reduce_colours(picture: Path) -> None:
    """Keep the colours that a picture has most of, so that the file is small."""
    image = Image.open(picture).convert("RGB")
    colours = sorted(image.getcolors(image.width * image.height) or [], reverse=True)[:256]
    palette = Image.new("P", (1, 1))
    palette.putpalette([part for _, colour in colours for part in colour])
    image.quantize(palette=palette, dither=Image.Dither.NONE).save(picture, optimize=True)


if __name__ == "__main__":
    with TemporaryDirectory(prefix="sdax-pictures-") as folder:
        for write in (processor, timeline, observed):
            page = Path(folder) / f"{write.__name__}.html"
            write(page)
            draw(write.__name__, page)
