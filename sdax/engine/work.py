"""The fields of `Work`, in which a plan keeps one phase of one task."""

from __future__ import annotations

from typing import Final

# A plain tuple takes the least time to read. These are the places of its fields. The compiled
# engine has them as constants of C, and compares them with `FIELDS` when it is imported.
FUNCTION: Final = 0  # what to call
LIMITS: Final = 1  # its `TaskFunction`, None if it has no limits: they cost nothing then
TASK_NAME: Final = 2  # of its asyncio.Task
FEEDS: Final = 3  # the gates that wait for it
KIND: Final = 4
TIMEOUT: Final = 5  # of the first attempt
USERS_NAME: Final = 6  # of the user's function
IS_SPECIAL: Final = 7  # a limiter, a retry budget or `cleanup_timeout` is around each attempt
FIELDS: Final = (FUNCTION, LIMITS, TASK_NAME, FEEDS, KIND, TIMEOUT, USERS_NAME, IS_SPECIAL)

# The kinds. An async function is of the kind False, a plain one of the kind True.
RESOURCE: Final = "resource"  # one half of it
OUTCOME: Final = "outcome"  # an async function that takes the outcome of the run as well
