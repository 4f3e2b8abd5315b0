"""Structured declarative async execution: the inside of one operation, in phases and levels."""

from ._impl import IMPLEMENTATION
from .errors import (
    RetryableException,
    SdaxExecutionError,
    TaskCancelledError,
    TaskFailure,
    flatten_exceptions,
)
from .processor import AsyncTaskProcessor, AsyncTaskProcessorBuilder
from .report import PhaseReport, RunReport, State, TaskReport
from .tasks import AsyncTask, SdaxTaskGroup, TaskFunction, join

__version__ = "0.1.0"

__all__ = [
    "IMPLEMENTATION",
    "AsyncTask",
    "AsyncTaskProcessor",
    "AsyncTaskProcessorBuilder",
    "PhaseReport",
    "RetryableException",
    "RunReport",
    "SdaxExecutionError",
    "SdaxTaskGroup",
    "State",
    "TaskCancelledError",
    "TaskFailure",
    "TaskFunction",
    "TaskReport",
    "__version__",
    "flatten_exceptions",
    "join",
]
