"""The phases of a run, in their order: numbers for the engine, names for everything else."""

from __future__ import annotations

from typing import Final

PRE: Final = 0
EXECUTE: Final = 1
POST: Final = 2
PHASES: Final = ("pre_execute", "execute", "post_execute")
