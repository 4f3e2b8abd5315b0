"""Switches in the environment."""

from __future__ import annotations

import os


def is_on(switch: str) -> bool:
    """Return True if an environment variable is set to anything but "", "0" and "false"."""
    return os.environ.get(switch, "").strip().lower() not in ("", "0", "false")
