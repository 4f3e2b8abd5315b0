"""The attributes of a driver that tools look at, and in which it stands for a coroutine."""

from __future__ import annotations

from typing import Any, Final

from .calls import code_of
from .work import FUNCTION, USERS_NAME

# Attributes of a coroutine, with the values that a driver has while it has no coroutine.
_WITHOUT: Final[dict[str, Any]] = {
    "cr_await": None,
    "cr_code": None,
    "cr_frame": None,
    "cr_origin": None,
    "cr_state": None,  # from 3.15 on
    "cr_suspended": False,
}


def seen(driver: Any, name: str) -> Any:
    """Return an attribute of the coroutine that a driver stands in for.

    Before there is one, of a plain function, and after the end, the name and the code are the
    function's: asyncio names in its warnings what blocked the loop, when its task may be done.
    Raises an `AttributeError` for what a coroutine has not.
    """
    if name == "cr_running":
        return driver.is_running()
    coroutine, run = driver.coroutine, driver.run
    if coroutine is not None:
        return getattr(coroutine, name)
    work = driver.called if run is None else run.plan.phases[run.number].work[driver.index]
    if work is not None and name in ("__name__", "__qualname__", "cr_code"):
        if name == "cr_code":
            return code_of(work[FUNCTION])
        users_name = work[USERS_NAME]
        return users_name if name == "__qualname__" else users_name.rpartition(".")[2]
    if name not in _WITHOUT:
        raise AttributeError(f"a driver has no attribute {name!r}")
    return _WITHOUT[name]


def of_coroutine(name: str) -> Any:
    """Return a property of a driver that shows this attribute of its coroutine."""
    return property(lambda driver: seen(driver, name))
