"""Every error this library raises on purpose.

All derive from `InputCheckpointError`, so one ``except`` catches them. A message says what happened, to
which URI and step, and what to do about it. No message holds a credential.
"""

from __future__ import annotations

UNREADABLE_JSON = (KeyError, TypeError, ValueError, OverflowError, RecursionError, AttributeError)
"""What reading untrusted JSON into typed fields can raise: wrong syntax, type, range or depth."""


class InputCheckpointError(Exception):
    """Base of all errors of this library."""


class BackendError(InputCheckpointError):
    """A storage backend refused or failed an operation."""


class BackendUnavailable(BackendError):
    """The storage could not be reached, or did not answer in time. Trying again later may help."""


class BackendPermissionError(BackendError):
    """The storage knows us and says no, or does not know us: credentials or access rights are wrong."""


class BackendNotFound(BackendError):
    """The bucket, folder or object does not exist."""


class ObjectNotFound(BackendNotFound):
    """One key does not exist in a backend that is otherwise fine."""


class ObjectExists(BackendError):
    """`Backend.create` found the key taken. Nothing was changed."""


class UnknownBackend(BackendError, ValueError):
    """No backend serves this URI's scheme. The message names the plugin to install, if there is one."""


class UnsupportedFormat(InputCheckpointError):
    """The store was written by a format version that this release does not know. Nothing was touched."""


class CheckpointNotFound(InputCheckpointError):
    """No committed checkpoint fits the request."""


class CorruptCheckpoint(InputCheckpointError):
    """A manifest, pack or chunk is missing, cut short, or fails its checksum."""


class WriterSuperseded(InputCheckpointError):
    """Another writer has taken over this worker's checkpoints. This one must stop."""


class DifferentHistory(InputCheckpointError):
    """The target of a copy holds checkpoints of another run. Nothing of them was changed."""


class PipelineMismatch(InputCheckpointError):
    """The checkpoint does not belong to the input pipeline that it should be restored into."""


class UnsupportedPipeline(InputCheckpointError):
    """TensorFlow cannot serialise this input pipeline."""


class SnapshotLost(InputCheckpointError):
    """The session that held a snapshot was closed before all of it was encoded. Nothing was committed."""
