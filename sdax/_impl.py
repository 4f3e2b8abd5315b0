"""Chooses the engine when sdax is imported."""

from __future__ import annotations

from ._core_py import Run

IMPLEMENTATION = "python"

__all__ = ["IMPLEMENTATION", "Run"]
