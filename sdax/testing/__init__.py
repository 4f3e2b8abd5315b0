"""Tests of your own workflows."""

from .clock import DeadlockError, OutsideWorldError, VirtualClockLoop, run

__all__ = ["DeadlockError", "OutsideWorldError", "VirtualClockLoop", "run"]
