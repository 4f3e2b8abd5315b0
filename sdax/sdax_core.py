"""The names of earlier `sdax` packages, for programs that were written for them."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Literal

from .common.groups import flatten_exceptions
from .engine.group import SdaxTaskGroup
from .errors import SdaxExecutionError
from .phases import AsyncPhaseRunner, PhaseId
from .processor import (
    AsyncDagLevelAdapterBuilder,
    AsyncDagTaskProcessor,
    AsyncDagTaskProcessorBuilder,
    AsyncTaskProcessor,
    AsyncTaskProcessorBuilder,
)
from .tasks import AsyncTask, TaskFunction, join

LevelKey = tuple[int, Literal["below", "above"]] | Hashable

__all__ = [
    "AsyncDagLevelAdapterBuilder",
    "AsyncDagTaskProcessor",
    "AsyncDagTaskProcessorBuilder",
    "AsyncPhaseRunner",
    "AsyncTask",
    "AsyncTaskProcessor",
    "AsyncTaskProcessorBuilder",
    "LevelKey",
    "PhaseId",
    "SdaxExecutionError",
    "SdaxTaskGroup",
    "TaskFunction",
    "flatten_exceptions",
    "join",
]
