"""The smallest workflow worth having: three tasks in two levels, and a cleanup that always runs.

Run it with ``python examples/quickstart.py``.
"""

import asyncio
from dataclasses import dataclass

from sdax import AsyncTask, AsyncTaskProcessor, TaskFunction


@dataclass
class TaskContext:
    """What one run gathers. Every run gets its own; the processor holds no state."""

    user_id: int | None = None
    feature_flags: dict[str, bool] | None = None
    db_connection: object | None = None


async def check_auth(ctx: TaskContext) -> None:
    """Level 1: open the connection and find out who is asking."""
    print("pre_execute   level 1  Authentication  starts")
    ctx.db_connection = object()
    await asyncio.sleep(0.1)
    ctx.user_id = 123
    print("pre_execute   level 1  Authentication  user 123 is known")


async def load_feature_flags(ctx: TaskContext) -> None:
    """Level 1, side by side with the authentication."""
    print("pre_execute   level 1  FeatureFlags    starts")
    await asyncio.sleep(0.2)
    ctx.feature_flags = {"new_api": True}
    print("pre_execute   level 1  FeatureFlags    loaded")


async def fetch_user_data(ctx: TaskContext) -> None:
    """Level 2, called after every ``pre_execute`` of every level has succeeded."""
    print(f"execute       level 2  UserData        user {ctx.user_id}, {ctx.feature_flags}")
    if not ctx.user_id:
        raise ValueError("Auth failed, cannot fetch user data.")
    await asyncio.sleep(0.1)
    print("execute       level 2  UserData        fetched")


async def close_db_connection(ctx: TaskContext) -> None:
    """Level 1 again: runs once ``check_auth`` was called, however all else has ended."""
    # It may have been cancelled or have failed before there was anything to close.
    if ctx.db_connection is not None:
        await asyncio.sleep(0.05)
        ctx.db_connection = None
    print("post_execute  level 1  Authentication  connection closed")


async def main() -> None:
    """Describe the workflow, build it, run it once."""
    ctx = TaskContext()
    processor = (
        AsyncTaskProcessor[TaskContext]
        .builder()
        .add_task(
            level=1,
            task=AsyncTask(
                name="Authentication",
                pre_execute=TaskFunction(function=check_auth),
                post_execute=TaskFunction(function=close_db_connection),
            ),
        )
        .add_task(
            level=1,
            task=AsyncTask(
                name="FeatureFlags", pre_execute=TaskFunction(function=load_feature_flags)
            ),
        )
        .add_task(
            level=2,
            task=AsyncTask(name="UserData", execute=TaskFunction(function=fetch_user_data)),
        )
        .build()
    )
    try:
        await processor.process_tasks(ctx)
    except* Exception as e:
        print(f"Workflow failed: {e.exceptions[0]}")
    else:
        print("Workflow done.")


if __name__ == "__main__":
    asyncio.run(main())
