"""Every error that this library raises on purpose.

All of them derive from `InputCheckpointError`, so one ``except`` catches them. The message says what
happened, to which URI and step, and what to do. URI, key and step are attributes as well. No error holds a
credential: every message passes `redact` here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Optional

from input_checkpoint.redaction.redactor import redact
from input_checkpoint.redaction.uris import redact_uri

if TYPE_CHECKING:
    from input_checkpoint.checkpoint import CheckpointRef

UNREADABLE_JSON = (KeyError, TypeError, ValueError, OverflowError, RecursionError, AttributeError)
"""What reading untrusted JSON into typed fields can raise: wrong syntax, type, range or depth."""


class InputCheckpointError(Exception):
    """Base of all errors of this library.

    Args:
        message: what happened, where, and what to do. Secrets in it are replaced by ``***``.
        uri: URI of the store or backend. Secrets in it are replaced by ``***``. None if it is unknown.
        key: key of the object that the error is about. None if it is about no single object.
        ref: the checkpoint that the error is about. None if it is about no single checkpoint.

    Example:
        >>> error = ObjectNotFoundError("memory://run/a does not exist", uri="memory://run", key="a")
        >>> error.uri, error.key, error.step
        ('memory://run', 'a', None)
    """

    def __init__(
        self,
        message: str = "",
        *,
        uri: Optional[str] = None,
        key: Optional[str] = None,
        ref: Optional[CheckpointRef] = None,
    ) -> None:
        super().__init__(redact(message))
        self.uri = None if uri is None else redact_uri(uri)
        self.key = key
        self.ref = ref

    @property
    def step(self) -> Optional[int]:
        """Global step of the checkpoint that the error is about, or None."""
        return None if self.ref is None else self.ref.step


class BackendError(InputCheckpointError):
    """A storage backend refused or failed an operation."""


class BackendUnavailableError(BackendError):
    """The storage could not be reached, or did not answer in time. Trying again later may help."""


class BackendPermissionError(BackendError):
    """The storage denied access: the credentials are missing or wrong, or lack a permission."""

    credentials_refused: bool = False
    """Whether the credentials are missing, wrong or expired, so that new ones may be accepted."""


class BackendNotFoundError(BackendError):
    """The bucket, container, folder or object does not exist."""


class ObjectNotFoundError(BackendNotFoundError):
    """A key does not exist in a backend that otherwise works."""


class ObjectExistsError(BackendError):
    """`Backend.create` found that the key exists. Nothing was changed."""


class InconsistentListingError(BackendError):
    """A listing contradicts another answer of the storage.

    It lacks an object that exists, or contains one that does not. `key` names the object. Nothing was
    committed or removed because of this listing.
    """


class UnknownBackendError(BackendError, ValueError):
    """No backend serves the scheme of a URI. The message names the plugin to install, if there is one."""


class InvalidLocationError(BackendNotFoundError, ValueError):
    """A URI or path does not say where the data goes. The message says how to write it."""


class UnsupportedFormatError(InputCheckpointError):
    """The store has a format version that this release does not know. Nothing was changed."""


class CheckpointNotFoundError(InputCheckpointError):
    """No committed checkpoint matches the request."""


class CorruptCheckpointError(InputCheckpointError):
    """A manifest, pack or chunk is missing, truncated, or fails its checksum."""


class CheckpointTooLargeError(InputCheckpointError):
    """A checkpoint or a record is larger than the storage format allows. Nothing was committed."""


class WriterSupersededError(InputCheckpointError):
    """A newer run of this worker has taken over its checkpoints. This run must stop."""


class SaveExpiredError(InputCheckpointError):
    """A prune presumed a save or a copy dead, and may have removed its data.

    The process was suspended, or could not reach the storage, for a day. The checkpoint was not committed, or
    was withdrawn. Later saves are not affected.
    """


class DifferentRunError(InputCheckpointError):
    """The store holds the input state of another training. Nothing was changed."""


class DifferentModelError(InputCheckpointError):
    """The session does not train the model of the hook's model directory. Nothing was restored."""


class DifferentHistoryError(InputCheckpointError):
    """The target of a copy holds checkpoints of another run. They were not changed."""


class PipelineMismatchError(InputCheckpointError):
    """The checkpoint was not taken from the input pipeline that it should be restored into."""


class UnsupportedPipelineError(InputCheckpointError):
    """The input cannot be saved, or not so that it resumes exactly. The message says what to use instead."""


class UntrackedDrawError(InputCheckpointError):
    """A run outside of the session hooks drew from the input, so no saved state would match the model."""


class SnapshotLostError(InputCheckpointError):
    """The session that held a snapshot was closed before the snapshot was encoded. Nothing was committed."""
