"""`examples/deploy.py`, with a cleanup that waits until the file named by SDAX_GO exists."""

import asyncio
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import deploy

GO = Path(os.environ["SDAX_GO"])


async def wait_and_stop(context: deploy.Deploy) -> None:
    """Say that the cleanup has begun, and go on when the test has done what it wants."""
    print("cleans up", flush=True)
    while not GO.exists():  # noqa: ASYNC110, ASYNC240 (another process makes it)
        await asyncio.sleep(0.01)
    await deploy.stop_other_server(context)


deploy.PROCESSOR = deploy.PROCESSOR.replaced({"Server": {"post_execute": wait_and_stop}})
sys.exit(deploy.command())
