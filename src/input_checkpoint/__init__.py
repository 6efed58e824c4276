"""Checkpoint and resume tf.data input pipelines to any storage that fsspec can reach."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from input_checkpoint.backend import Backend, open_backend
from input_checkpoint.copying import CopyProgress, CopyReport
from input_checkpoint.errors import (
    BackendError,
    BackendNotFound,
    BackendPermissionError,
    BackendUnavailable,
    CheckpointNotFound,
    CorruptCheckpoint,
    DifferentHistory,
    InputCheckpointError,
    ObjectExists,
    ObjectNotFound,
    PipelineMismatch,
    UnknownBackend,
    UnsupportedFormat,
    UnsupportedPipeline,
    WriterSuperseded,
)
from input_checkpoint.manifest import CheckpointInfo
from input_checkpoint.pruning import PruneReport
from input_checkpoint.refs import CheckpointRef
from input_checkpoint.retention import (
    KeepAll,
    KeepBytes,
    KeepEverySteps,
    KeepLast,
    KeepSteps,
    RetentionPolicy,
)
from input_checkpoint.retention_model import KeepWithModel
from input_checkpoint.retention_time import KeepBuckets, KeepEvery, KeepWithin
from input_checkpoint.retrying import RetryPolicy
from input_checkpoint.saving import SaveOptions
from input_checkpoint.state import IteratorState, StoredState
from input_checkpoint.store import CheckpointStore
from input_checkpoint.verification import VerifyReport

if TYPE_CHECKING:
    from input_checkpoint.hook import CheckpointInputPipelineHook

__version__ = "0.1.0"

__all__ = [
    "Backend",
    "BackendError",
    "BackendNotFound",
    "BackendPermissionError",
    "BackendUnavailable",
    "CheckpointInfo",
    "CheckpointInputPipelineHook",
    "CheckpointNotFound",
    "CheckpointRef",
    "CheckpointStore",
    "CopyProgress",
    "CopyReport",
    "CorruptCheckpoint",
    "DifferentHistory",
    "InputCheckpointError",
    "IteratorState",
    "KeepAll",
    "KeepBuckets",
    "KeepBytes",
    "KeepEvery",
    "KeepEverySteps",
    "KeepLast",
    "KeepSteps",
    "KeepWithModel",
    "KeepWithin",
    "ObjectExists",
    "ObjectNotFound",
    "PipelineMismatch",
    "PruneReport",
    "RetentionPolicy",
    "RetryPolicy",
    "SaveOptions",
    "StoredState",
    "UnknownBackend",
    "UnsupportedFormat",
    "UnsupportedPipeline",
    "VerifyReport",
    "WriterSuperseded",
    "open_backend",
]


def __getattr__(name: str) -> Any:
    # The store and its tools work without TensorFlow, so what needs it is imported when first asked for.
    if name == "CheckpointInputPipelineHook":
        from input_checkpoint.hook import CheckpointInputPipelineHook

        return CheckpointInputPipelineHook
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
