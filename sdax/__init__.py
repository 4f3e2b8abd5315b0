"""Structured declarative async execution: one async operation as tasks in levels, with cleanup."""

from ._impl import IMPLEMENTATION
from .budget import RetryBudget
from .common.groups import flatten_exceptions
from .engine.group import SdaxTaskGroup
from .errors import SdaxExecutionError, TaskCancelledError
from .finish import Finish
from .hedging import hedged
from .phases import AsyncPhaseRunner, PhaseId
from .processor import (
    AsyncDagLevelAdapterBuilder,
    AsyncDagTaskProcessor,
    AsyncDagTaskProcessorBuilder,
    AsyncTaskProcessor,
    AsyncTaskProcessorBuilder,
)
from .replacing import Done
from .report import RunReport
from .resources import resource
from .states import Outcome, PhaseReport, State, TaskFailure, TaskReport
from .tasks import (
    AsyncTask,
    Limits,
    RetryableException,
    TaskFunction,
    join,
    task,
    task_func,
    task_group_func,
    task_group_task,
    task_outcome_func,
    task_sync_func,
    task_thread_func,
)

__version__ = "1.0.0"

__all__ = [
    "IMPLEMENTATION",
    "AsyncDagLevelAdapterBuilder",
    "AsyncDagTaskProcessor",
    "AsyncDagTaskProcessorBuilder",
    "AsyncPhaseRunner",
    "AsyncTask",
    "AsyncTaskProcessor",
    "AsyncTaskProcessorBuilder",
    "Done",
    "Finish",
    "Limits",
    "Outcome",
    "PhaseId",
    "PhaseReport",
    "RetryBudget",
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
    "hedged",
    "join",
    "resource",
    "task",
    "task_func",
    "task_group_func",
    "task_group_task",
    "task_outcome_func",
    "task_sync_func",
    "task_thread_func",
]
