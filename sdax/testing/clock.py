"""An event loop whose clock jumps. Nothing waits for a timer, and no timer is late."""

from __future__ import annotations

import asyncio
import selectors
import threading
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from contextvars import Context
from typing import Any, Final, NoReturn, TypeVar, TypeVarTuple

from ..common.text import one_line
from .frames import calling_place, waiting_tasks

R = TypeVar("R")
Ts = TypeVarTuple("Ts")

# The methods of an event loop for the outside world, by what they provide.
_OUTSIDE: Final = {
    "a thread": ["run_in_executor"],
    "the name of a host": ["getaddrinfo", "getnameinfo"],
    "a connection": [
        "create_connection",
        "create_datagram_endpoint",
        "create_unix_connection",
        "connect_accepted_socket",
        "start_tls",
    ],
    "a server": ["create_server", "create_unix_server"],
    "a socket": [
        "sock_recv",
        "sock_recv_into",
        "sock_recvfrom",
        "sock_recvfrom_into",
        "sock_sendall",
        "sock_sendto",
        "sock_connect",
        "sock_accept",
        "sock_sendfile",
        "sendfile",
    ],
    "a file descriptor": ["add_reader", "add_writer"],
    "a pipe": ["connect_read_pipe", "connect_write_pipe"],
    "a process": ["subprocess_shell", "subprocess_exec"],
}
_ADVICE: Final = (
    "time stands still for the outside world in a VirtualClockLoop: replace it with a stub "
    "(processor.replaced), or use a real clock (explore(..., clock='real'), or another loop)"
)


class DeadlockError(Exception):
    """Nothing is ready and no timer is set, so nothing will ever happen in this loop again.

    The message lists all waiting tasks, and where they wait.
    """


class OutsideWorldError(Exception):
    """A function asked a `VirtualClockLoop` for a thread, a socket or a process.

    The message names the function, and says what to do.
    """


class EndlessError(Exception):
    """The loop has made more passes than its limit."""


class _JumpingSelector(selectors.BaseSelector):
    """A selector that moves the clock of its loop forward instead of sleeping."""

    def __init__(self) -> None:
        self.now = 0.0
        self.passes = 0  # of the loop
        self.last_pass: int | None = None
        self.sealed = False  # True when the loop has what it needs for itself
        self.came: OutsideWorldError | None = None  # noticed in another thread
        self._selector = selectors.DefaultSelector()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.passes += 1
        if self.passes == self.last_pass:
            raise EndlessError
        events = self._selector.select(0)
        if self.came is not None:
            error, self.came = self.came, None
            raise error
        if events:
            return events
        if timeout is None:
            raise DeadlockError
        self.now += max(timeout, 0.0)
        return events

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        if self.sealed:
            raise outside("a file descriptor")
        return self._selector.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._selector.unregister(fileobj)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._selector.get_map()

    def close(self) -> None:
        self._selector.close()


class VirtualClockLoop(asyncio.SelectorEventLoop):
    """An asyncio event loop whose clock jumps to the next timer instead of waiting for it.

    `time()` starts at 0 and moves only when nothing else is left to do. So a test of a timeout of
    an hour takes microseconds and gives the same result every time. `time.time()` and the other
    clocks of Python do not change.

    You can pass it to everything that takes a loop factory:

    >>> with asyncio.Runner(loop_factory=VirtualClockLoop) as runner:
    ...     runner.run(main())

    Raises `DeadlockError` when another loop would wait for ever, and `OutsideWorldError` when
    something asks it for a thread, a socket or a process.
    """

    def __init__(self) -> None:
        self._clock = _JumpingSelector()
        self._thread: int | None = None
        super().__init__(self._clock)
        self._clock.sealed = True

    def time(self) -> float:
        """Return the seconds that have passed in this loop."""
        return self._clock.now

    def advance(self, seconds: float) -> None:
        """Let time pass as if a function had computed for this number of seconds."""
        self._clock.now += seconds

    @property
    def turns(self) -> int:
        """The number of passes of the loop."""
        return self._clock.passes

    def rewind(self) -> None:
        """Start again at time 0. Only cancelled timers may be left."""
        self._clock.now = 0.0
        self._clock.passes = 0
        self._clock.last_pass = None
        # They would affect the order of two timers at the same moment.
        self._scheduled.clear()  # type: ignore[attr-defined]
        self._timer_cancelled_count = 0

    def give_up_after(self, passes: int) -> None:
        """Raise `EndlessError` after this number of further passes."""
        self._clock.last_pass = self._clock.passes + passes

    def run_forever(self) -> None:
        """Run until `stop()` is called."""
        self._thread = threading.get_ident()
        threads = set(threading.enumerate())
        try:
            super().run_forever()
        except DeadlockError:
            waiting = waiting_tasks(self)
            if started := [each.name for each in threading.enumerate() if each not in threads]:
                message = (
                    f"everything waits, perhaps for a thread ({', '.join(started)}); {_ADVICE}"
                )
                raise OutsideWorldError(_in_lines(message, waiting)) from None
            raise DeadlockError(
                _in_lines("everything waits for ever, and no timer is set", waiting)
            ) from None
        finally:
            self._thread = None

    def call_soon_threadsafe(
        self,
        callback: Callable[[*Ts], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.Handle:
        """Do the same as `call_soon`. From another thread, end the run with `OutsideWorldError`."""
        if self._thread not in (None, threading.get_ident()):
            name = threading.current_thread().name
            self._clock.came = OutsideWorldError(f"thread {name} calls back; {_ADVICE}")
        return super().call_soon_threadsafe(callback, *args, context=context)


def run(main: Coroutine[Any, Any, R], *, debug: bool | None = None) -> R:
    """Run a coroutine as `asyncio.run` does, in a `VirtualClockLoop`.

    Timeouts, delays and retries take no time. Raises the exception of the coroutine, a
    `RuntimeError` in a running event loop, and the loop's `DeadlockError` and `OutsideWorldError`.

    >>> def test_an_hour():
    ...     assert run(asyncio.sleep(3600, "done")) == "done"
    """
    try:
        refuse_running_loop("run")
    except RuntimeError:
        main.close()
        raise
    with asyncio.Runner(debug=debug, loop_factory=VirtualClockLoop) as runner:
        try:
            return runner.run(main)
        except (DeadlockError, OutsideWorldError):
            # A function that waits for ever would do so after a cancellation too.
            _give_up(runner.get_loop())
            raise


def _give_up(loop: asyncio.AbstractEventLoop) -> None:
    """End everything in a loop that can be ended, and forget the rest."""
    with suppress(DeadlockError, OutsideWorldError):
        cancel_all(loop, 3600.0)
    for task in asyncio.all_tasks(loop):
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        asyncio.tasks._unregister_task(task)


def cancel_all(loop: asyncio.AbstractEventLoop, seconds: float) -> None:
    """Cancel everything in a loop, and give it some time to end."""
    if tasks := asyncio.all_tasks(loop):
        loop.run_until_complete(_cancel(tasks, seconds))


async def _cancel(tasks: set[asyncio.Task[Any]], seconds: float) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks, timeout=seconds)


def refuse_running_loop(function: str) -> None:
    """Raise `RuntimeError` in a running event loop, where no other loop can run."""
    if asyncio._get_running_loop() is not None:
        raise RuntimeError(
            f"sdax.testing.{function} runs an event loop of its own, and cannot be called in a "
            f"running one; call it from a plain function: def, not async def"
        )


def outside(what: str) -> OutsideWorldError:
    """Return the error of the running function, which asks for something outside."""
    task = asyncio.current_task()
    who = "somebody" if task is None else one_line(task.get_name())
    place = calling_place()
    where = "" if place is None else f" ({place}: {place.source})"
    return OutsideWorldError(f"{who} asks for {what}{where}; {_ADVICE}")


def _in_lines(message: str, lines: list[str]) -> str:
    return "\n  ".join([message, *lines])


def _refusal(name: str, what: str) -> Callable[..., NoReturn]:
    def refuse(self: VirtualClockLoop, *args: Any, **options: Any) -> NoReturn:
        raise outside(what)

    refuse.__name__ = name
    refuse.__qualname__ = f"{VirtualClockLoop.__qualname__}.{name}"
    refuse.__doc__ = f"Raise `OutsideWorldError`: there is no place for {what} here."
    return refuse


for _what, _names in _OUTSIDE.items():
    for _name in _names:
        setattr(VirtualClockLoop, _name, _refusal(_name, _what))
