"""Finds code that an exception at the `yield` of an async generator skips, in its bytecode."""

from __future__ import annotations

import dis
from collections.abc import Mapping, Sequence
from functools import lru_cache
from types import AsyncGeneratorType, CodeType
from typing import Any, Final

from .frames import Place, place_of

# Beginnings of the names of instructions. In a Python with new ones, code may be missed, but code
# is never seen where there is none.
_EFFECTS: Final = (
    "CALL",
    "DELETE_A",
    "DELETE_S",
    "GET_A",
    "RAISE",
    "STORE_A",
    "STORE_G",
    "STORE_S",
)
_ENDS: Final = ("RERAISE", "RETURN")

_Instructions = Mapping[int, dis.Instruction]


def skipping_yield(manager: Any) -> Place | None:
    """Return the `yield` of a manager's generator if an exception there skips the code after it.

    Then the exception leaves the generator, and no line of it runs. Returns None if a `try` or a
    `with` is around the `yield`, if there is no code after it, and for other managers.
    """
    generator = getattr(manager, "gen", None)
    if not isinstance(generator, AsyncGeneratorType) or generator.ag_frame is None:
        return None
    frame = generator.ag_frame
    return place_of(frame) if _is_skipped(frame.f_code, frame.f_lasti) else None


@lru_cache(maxsize=128)
def _is_skipped(code: CodeType, at: int) -> bool:
    """Return True if an exception at an instruction skips the code after it, and runs none."""
    bytecode: Any = dis.Bytecode(code)
    handlers = getattr(bytecode, "exception_entries", None)
    if handlers is None:  # pragma: no cover (PyPy has no such table)
        return False
    instructions = {each.offset: each for each in bytecode}
    return _goes_on(instructions, at) and not _is_handled(instructions, handlers, at)


def _goes_on(instructions: _Instructions, at: int) -> bool:
    """Return True if code with an effect follows an instruction."""
    offsets = list(instructions)
    position = offsets.index(at) + 1
    for _ in offsets:  # at most, because jumps may lead back
        instruction = instructions[offsets[position]]
        name = instruction.opname
        if name.startswith((*_ENDS, *_EFFECTS)):
            return name.startswith(_EFFECTS)
        jumps = name.startswith("JUMP_")
        position = offsets.index(instruction.argval) if jumps else position + 1
    return False


def _is_handled(instructions: _Instructions, handlers: Sequence[Any], at: int) -> bool:
    """Return True if a `try` or a `with` of the function is around an instruction."""
    while (
        target := next((each.target for each in handlers if each.start <= at < each.end), None)
    ) is not None:
        if instructions[target].opname == "PUSH_EXC_INFO":
            return True
        # Python's own handler, which raises the exception again.
        at = next(
            offset
            for offset, each in instructions.items()
            if offset >= target and each.opname == "RERAISE"
        )
    return False
