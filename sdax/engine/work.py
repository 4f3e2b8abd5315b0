"""`Work`: one phase of one task, in the flat form in which the engines read it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias

from ..tasks import TaskFunction

Call: TypeAlias = Callable[[Any], Awaitable[Any]]

# A plain tuple: a NamedTuple takes longer to read. These are the places of its fields. The compiled
# engine has them as constants of C, and compares them with `FIELDS` when it is imported.
FUNCTION: Final = 0  # what to call
LIMITS: Final = 1  # None if there are none, which then cost nothing
TASK_NAME: Final = 2  # of its asyncio.Task
FEEDS: Final = 3  # the gates that wait for it
KIND: Final = 4
TIMEOUT: Final = 5  # of the first attempt
USERS_NAME: Final = 6  # of the user's function
IS_SPECIAL: Final = 7  # a limiter, a retry budget or `cleanup_timeout` is around each attempt
FIELDS: Final = (FUNCTION, LIMITS, TASK_NAME, FEEDS, KIND, TIMEOUT, USERS_NAME, IS_SPECIAL)

Work: TypeAlias = tuple[
    Call, TaskFunction[Any] | None, str, tuple[int, ...], bool | str, float | None, str, bool
]


# The kinds. An async function is of the kind False, a plain one of the kind True.
RESOURCE: Final = "resource"  # one half of it
OUTCOME: Final = "outcome"  # an async function that takes the outcome of the run as well


def replaced(work: Work, field: int, value: object) -> Work:
    """Return the same work with another value in one field."""
    fields: Any = (*work[:field], value, *work[field + 1 :])
    return fields  # type: ignore[no-any-return]
