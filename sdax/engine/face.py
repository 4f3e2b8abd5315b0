"""The attributes of a run, and the calls between its shared parts, for both engines."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, Future
    from collections.abc import Sequence
    from contextvars import Context
    from typing import Any

    from .deadlines import Deadlines
    from .losses import Losses, Setbacks
    from .plan import Plan
    from .record import Record
    from .resources import Resource
    from .variables import Contexts
    from .watch import Watch


class RunFace:
    """The attributes of a run, and the methods that its shared parts call."""

    if not TYPE_CHECKING:
        __slots__ = ()  # an engine has the attributes
    else:
        plan: Plan
        loop: AbstractEventLoop
        ctx: Any
        context: Context
        contexts: Contexts | None  # once a resource has set a context variable
        resources: dict[int, Resource] | None  # of which a set-up was called
        values: dict[int, Any] | None
        cleanup_ends: float | None  # by the loop's clock, once it has begun
        watch: Watch | None
        record: Record | None
        fatal: BaseException | None  # not an `Exception`, or what broke the engine
        waiter: Future[None] | None
        over: bool
        number: int  # of the phase
        opened: int  # how many stages of the phase
        waiting: list[int] | None  # completions that each gate still waits for
        pending: int  # opened, not yet finished
        pumping: bool
        closed: bool  # nothing of this phase is opened any more
        aborted: bool  # nothing of it is called any more either
        to_cancel: list[Any] | None  # drivers of the phase that was stopped, the next one last
        losses: Losses | None
        uncalled: Sequence[int]
        due: set[int] | None  # the tasks whose functions are due in this phase, or None for all
        deadlines: Deadlines | None
        interrupted: bool  # by its caller, who may not wait any more
        shaken: bool  # its caller was cancelled once more, in this pass of the loop
        deferred: bool  # nothing is opened or called until the loop calls `go_on`
        setbacks: Setbacks | None

        def pump(self) -> Any: ...
        def advance(self) -> Any: ...
        def finish(self) -> Any: ...
        def now(self) -> float:
            raise NotImplementedError

        def feed(self, gates: tuple[int, ...]) -> Any: ...
        def keep(self, index: int, value: Any) -> Any: ...
        def finished_one(self) -> Any: ...
        def enter_phase(self, number: int) -> Any: ...
        def drivers(self) -> list[Any]:  # those of suspended functions, in their order
            raise NotImplementedError

        def stop_calling(self) -> Any: ...
        def put_back(self, index: int) -> Any: ...
        def take_left(self) -> list[int]:
            raise NotImplementedError

        def count_in(self, driver: Any) -> Any: ...
        def set_contexts(self, contexts: Contexts) -> Any: ...
        def give_back(self, indices: list[int]) -> Any: ...
        def called_by_gates(self) -> set[int]:
            raise NotImplementedError

        def requeue(self, called: set[int], opened: set[int]) -> Any: ...

        # Written in `RunBase`.

        def abort(self) -> None: ...
        def go_on(self) -> None: ...
        def is_alone(self) -> bool:
            raise NotImplementedError

        def write(self, what: str, *arguments: Any, **options: Any) -> bool:
            raise NotImplementedError

        def break_down(self, error: BaseException) -> None: ...
        def take_fatal(
            self, error: BaseException, number: int | None = None, index: int | None = None
        ) -> None: ...
