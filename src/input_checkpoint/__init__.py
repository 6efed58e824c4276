"""Checkpoint and resume tf.data input pipelines to any storage that fsspec can reach."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from input_checkpoint.backends.base import Backend
from input_checkpoint.backends.opening import open_backend
from input_checkpoint.backends.retrying import RetryPolicy
from input_checkpoint.checkpoint import CheckpointInfo, CheckpointRef, MarkRef, SaveContext
from input_checkpoint.errors import (
    BackendError,
    BackendNotFoundError,
    BackendPermissionError,
    BackendUnavailableError,
    CheckpointNotFoundError,
    CheckpointTooLargeError,
    CorruptCheckpointError,
    DifferentHistoryError,
    DifferentModelError,
    DifferentRunError,
    InconsistentListingError,
    InputCheckpointError,
    InvalidLocationError,
    ObjectExistsError,
    ObjectNotFoundError,
    PipelineMismatchError,
    SaveExpiredError,
    UnknownBackendError,
    UnsupportedFormatError,
    UnsupportedPipelineError,
    UntrackedDrawError,
    WriterSupersededError,
)
from input_checkpoint.format.mark import Mark
from input_checkpoint.retention.by_count import KeepAll, KeepBytes, KeepEverySteps, KeepLast, KeepSteps
from input_checkpoint.retention.by_time import KeepEvery, KeepPeriodic, KeepWithin
from input_checkpoint.retention.policy import RetentionPolicy
from input_checkpoint.retention.with_model import KeepWithModel
from input_checkpoint.state import IteratorState, StoredState
from input_checkpoint.store.copying import CopyProgress, CopyReport
from input_checkpoint.store.pruning import PruneReport
from input_checkpoint.store.run import Run
from input_checkpoint.store.saving import SaveOptions
from input_checkpoint.store.store import CheckpointStore
from input_checkpoint.store.verification import VerifyReport
from input_checkpoint.training.schedule import SaveSchedule

if TYPE_CHECKING:
    from input_checkpoint.tensorflow.distributed_input import checkpointable_input_fn
    from input_checkpoint.tensorflow.hook import CheckpointInputPipelineHook
    from input_checkpoint.tensorflow.session_hook import SessionHook

__version__ = "0.1.0"

__all__ = [
    "Backend",
    "BackendError",
    "BackendNotFoundError",
    "BackendPermissionError",
    "BackendUnavailableError",
    "CheckpointInfo",
    "CheckpointInputPipelineHook",
    "CheckpointNotFoundError",
    "CheckpointRef",
    "CheckpointStore",
    "CheckpointTooLargeError",
    "CopyProgress",
    "CopyReport",
    "CorruptCheckpointError",
    "DifferentHistoryError",
    "DifferentModelError",
    "DifferentRunError",
    "InconsistentListingError",
    "InputCheckpointError",
    "InvalidLocationError",
    "IteratorState",
    "KeepAll",
    "KeepBytes",
    "KeepEvery",
    "KeepEverySteps",
    "KeepLast",
    "KeepPeriodic",
    "KeepSteps",
    "KeepWithModel",
    "KeepWithin",
    "Mark",
    "MarkRef",
    "ObjectExistsError",
    "ObjectNotFoundError",
    "PipelineMismatchError",
    "PruneReport",
    "RetentionPolicy",
    "RetryPolicy",
    "Run",
    "SaveContext",
    "SaveExpiredError",
    "SaveOptions",
    "SaveSchedule",
    "SessionHook",
    "StoredState",
    "UnknownBackendError",
    "UnsupportedFormatError",
    "UnsupportedPipelineError",
    "UntrackedDrawError",
    "VerifyReport",
    "WriterSupersededError",
    "checkpointable_input_fn",
    "open_backend",
]


# What needs TensorFlow, and so is imported only when it is first used: the store and its tools work without.
_TENSORFLOW_NAMES = {
    "CheckpointInputPipelineHook": "input_checkpoint.tensorflow.hook",
    "SessionHook": "input_checkpoint.tensorflow.session_hook",
    "checkpointable_input_fn": "input_checkpoint.tensorflow.distributed_input",
}


def __getattr__(name: str) -> Any:
    module = _TENSORFLOW_NAMES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(module), name)
