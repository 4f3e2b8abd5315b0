"""The options of a builder."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, TypedDict

from .common.arguments import check_takes
from .common.checks import checked_limit, checked_number, runs_later
from .common.frozen import Frozen
from .common.text import nearest, shown

if TYPE_CHECKING:
    from .events import Observer, Observers

LevelOrder: TypeAlias = Literal["at once", "level"]
ExecuteOrder: TypeAlias = Literal["at once", "dependency"]
OnFailure: TypeAlias = Literal["cancel", "keep going"]


class CommonOptions(TypedDict, total=False):
    """The options of every builder."""

    max_concurrency: int | None
    observer: Observers | None
    on_failure: OnFailure
    cleanup_timeout: float | None


class LevelOptions(CommonOptions, total=False):
    """The options of a builder for tasks in levels."""

    execute_order: LevelOrder


class GraphOptions(CommonOptions, total=False):
    """The options of a builder for tasks in a graph."""

    execute_order: ExecuteOrder


class Options(Frozen):
    """The checked options of a builder, which passes them on to its processors.

    `execute_order` is `"at once"`, or the order in which `execute` runs too. `on_failure` is
    `"cancel"` or `"keep going"`.
    """

    __slots__ = __match_args__ = (
        "execute_order",
        "max_concurrency",
        "observer",
        "on_failure",
        "cleanup_timeout",
    )

    execute_order: str
    max_concurrency: int | None
    observer: tuple[Observer, ...] | None
    on_failure: str
    cleanup_timeout: float | None  # seconds for all cleanup of a run together

    def __init__(
        self,
        execute_order: str = "at once",
        max_concurrency: int | None = None,
        observer: tuple[Observer, ...] | None = None,
        on_failure: str = "cancel",
        cleanup_timeout: float | None = None,
    ) -> None:
        self._set_once(
            execute_order=execute_order,
            max_concurrency=max_concurrency,
            observer=observer,
            on_failure=on_failure,
            cleanup_timeout=cleanup_timeout,
        )

    def __hash__(self) -> int:
        # without the observers, which may not be hashable
        return hash(
            (self.execute_order, self.max_concurrency, self.on_failure, self.cleanup_timeout)
        )

    @property
    def execute_in_order(self) -> bool:
        """Whether `execute` runs level by level, or in dependency order."""
        return self.execute_order != "at once"

    @property
    def keeps_going(self) -> bool:
        """Whether a run continues after a failure with everything that does not depend on it."""
        return self.on_failure == "keep going"


NO_OPTIONS: Final = Options()
_NAMES: Final = Options.__match_args__

# A run has no timeout of its own.
_TIMEOUTS: Final = ("timeout", "total_timeout", "deadline")
_NO_TIMEOUT: Final = (
    "; to limit a run, put asyncio.timeout() around process_tasks, and to limit a function, give "
    "it to task_func(..., timeout=...)"
)


def checked_options(in_order: str, given: Any) -> Options:
    """Return the options of a builder from its keyword arguments.

    `in_order` is the name of the order that it knows. Raises `TypeError` or `ValueError`, with the
    option and the value, for an option that cannot work.
    """
    for name in given:
        if name not in _NAMES:
            meant = _NO_TIMEOUT if name in _TIMEOUTS else nearest(name, _NAMES)
            raise TypeError(
                f"a builder has no option {shown(name)}{meant}; it takes {', '.join(_NAMES)}"
            )
    options = Options(**given)
    observer: Any = options.observer
    return Options(
        _checked_order(options.execute_order, in_order),
        checked_limit("max_concurrency", options.max_concurrency),
        None if observer is None else checked_observers(observer),
        _checked_on_failure(options.on_failure),
        _checked_seconds("cleanup_timeout", options.cleanup_timeout),
    )


def checked_observers(observer: Any) -> tuple[Observer, ...]:
    """Return a tuple of the observers, from one or several.

    Raises `TypeError` for an object that cannot be called with an event.
    """
    observers: tuple[Any, ...]
    if callable(observer) or not isinstance(observer, Iterable) or isinstance(observer, str):
        observers = (observer,)
    else:
        observers = tuple(observer)
    for one in observers:
        if not callable(one):
            raise TypeError(f"observer must be callable with an event, got {shown(one)}")
        if isinstance(one, type):
            raise TypeError(
                f"observer must be callable with an event, got the class {shown(one)}, which "
                f"would create an object for each event; did you mean {one.__name__}()?"
            )
        if runs_later(one):
            raise TypeError(
                f"observer must be a plain function, because nothing awaits or iterates what it "
                f"returns, got {shown(one)}; define it with 'def', without 'yield'"
            )
        check_takes("observer", one, "event")
    return observers


def rechecked(options: Any, in_order: str) -> Options:
    """Return the options of a processor, checked like those of a builder.

    Raises `ValueError` if they are not `Options`.
    """
    if not isinstance(options, Options):
        raise ValueError(
            f"the options of a processor must be Options, as a builder makes them, "
            f"got {shown(options)}"
        )
    return checked_options(in_order, {name: getattr(options, name) for name in _NAMES})


def _checked_on_failure(on_failure: Any) -> str:
    for known in ("cancel", "keep going"):
        if isinstance(on_failure, str) and on_failure == known:
            return known
    raise ValueError(f"on_failure must be 'cancel' or 'keep going', got {shown(on_failure)}")


def _checked_seconds(name: str, seconds: float | None) -> float | None:
    return None if seconds is None else checked_number(name, seconds)


def _checked_order(execute_order: Any, in_order: str) -> str:
    for order in ("at once", in_order):
        if isinstance(execute_order, str) and execute_order == order:
            return order
    raise ValueError(
        f"execute_order must be 'at once' or {in_order!r}, got {shown(execute_order)} "
        f"('level' is for levels, 'dependency' for graphs)"
    )
