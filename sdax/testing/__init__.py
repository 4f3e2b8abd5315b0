"""Tests of your own workflows, disturbed at every possible point, without waiting."""

from .clock import DeadlockError, OutsideWorldError, VirtualClockLoop, run
from .disturbing import NotReachedError, disturbed
from .explore import Exploration, explorations, explore
from .faults import InjectedError
from .findings import NotDeterministic, ScheduleFailed
from .player import ExploredRun

__all__ = [
    "DeadlockError",
    "Exploration",
    "ExploredRun",
    "InjectedError",
    "NotDeterministic",
    "NotReachedError",
    "OutsideWorldError",
    "ScheduleFailed",
    "VirtualClockLoop",
    "disturbed",
    "explorations",
    "explore",
    "run",
]
