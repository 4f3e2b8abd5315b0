"""Whether functions that return at once may share an `asyncio.Task` on this Python."""

from __future__ import annotations

import asyncio
import sys
import warnings
import weakref
from asyncio import Task
from collections.abc import Callable, Iterator
from contextvars import Context, ContextVar, copy_context
from typing import Any, Final

from .switches import is_on

# Without it each function has its own, which helps to find faults in what looks at tasks.
ALLOWED: Final = not is_on("SDAX_NO_TASK_SHARING")

Traces = Callable[[Task[Any], Context], object]

_variable: Final[ContextVar[int]] = ContextVar("sdax_sharing")


def may_share(engine: str, traces: Traces | None) -> bool:
    """Return True if an engine sees every trace that a function can leave on its `asyncio.Task`.

    `traces` returns what the engine looks at, and is tried out here: it must be the same for an
    `asyncio.Task` that nobody has touched, and another after each trace. A `RuntimeWarning` says
    which one this Python hides. Never with the GIL off, where other threads change the counts, and
    not without reference counts.
    """
    if not ALLOWED or traces is None or not getattr(sys, "_is_gil_enabled", lambda: True)():
        return False
    hidden = next(_hidden(traces), None)
    if hidden is not None:
        warnings.warn(
            f"sdax gives every function an asyncio.Task of its own, which is slower, because its "
            f"{engine} engine does not see {hidden} on this Python ({sys.version.split()[0]})",
            RuntimeWarning,
            stacklevel=3,
        )
    return hidden is None


def _hidden(traces: Traces) -> Iterator[str]:
    """Yield the traces that cannot be told from none."""
    for name, leave in _TRACES.items():
        context = copy_context()
        coroutine = _nothing()
        task = Task(coroutine, loop=_NoLoop(), context=context)  # type: ignore[arg-type]
        traces(task, context)  # which may make what it looks at
        before = traces(task, context)
        kept = None if leave is None else leave(task, context)
        is_hidden = (traces(task, context) == before) is (leave is not None)
        del kept
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        coroutine.close()
        if is_hidden:
            yield name


async def _nothing() -> None:
    """Never called."""


def _ignore(_: object) -> None:
    """Do nothing."""


class _NoLoop:
    """As much of a loop as an `asyncio.Task` needs that is never run."""

    def call_soon(self, *_: Any, **__: Any) -> None:
        """Do nothing."""

    def get_debug(self) -> bool:
        """Return False."""
        return False


def _have_it_awaited(task: Any, _: Context) -> object:
    if sys.version_info < (3, 14):
        return [task]  # nobody can tell that, so another trace will do
    loop: Any = _NoLoop()  # pragma: no cover (3.14)
    waiter = asyncio.Future[None](loop=loop)  # pragma: no cover (3.14)
    asyncio.future_add_to_awaited_by(task, waiter)  # pragma: no cover (3.14)
    return waiter  # pragma: no cover (3.14)


def _set_attribute(task: Any, _: Context) -> None:
    try:
        task.trace_of_a_function = 1
    except AttributeError:
        task.add_done_callback(_ignore)  # a Task that takes no attributes: another trace will do


def _set_variable() -> None:
    _variable.set(1)  # without the token, which is a reference to the context


_TRACES: Final[dict[str, Callable[[Task[Any], Context], object] | None]] = {
    "that nothing has happened": None,
    "a reference to it": lambda task, _: [task],
    "a reference to its coroutine": lambda task, _: [task.get_coro()],
    "a reference to its context": lambda _, context: [context],
    "a weak reference to it": lambda task, _: weakref.ref(task, _ignore),
    "an attribute that is set on it": _set_attribute,
    "a callback for its end": lambda task, _: task.add_done_callback(_ignore),
    "who waits for it": _have_it_awaited,
    "a request to cancel it": lambda task, _: task.cancel(),
    "a context variable that is set": lambda _, context: context.run(_set_variable),
}
