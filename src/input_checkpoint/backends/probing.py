"""Tests whether a storage can hold a store."""

from __future__ import annotations

import contextlib
import time
import uuid

from input_checkpoint.backends.base import PROBE_PREFIX, Backend
from input_checkpoint.backends.commit_lock import COMMIT_LOCK_ADVICE
from input_checkpoint.backends.retrying import RetryingBackend, RetryPolicy
from input_checkpoint.errors import BackendError, ObjectExistsError

_STALE_AFTER_SECONDS = 24 * 3600
_PATIENCE = RetryPolicy(timeout=3)
"""Long enough for one lost answer. A server that is down is reported at once."""


def probe(backend: Backend) -> None:
    """Create, replace, read, list and delete a small object, and check that a second create is refused.

    Also deletes objects that interrupted probes left behind more than a day ago. A request is repeated if its
    answer is lost.

    Args:
        backend: the storage to test.

    Raises:
        BackendError: the storage cannot hold a store. The message names the operation that failed.
        BackendUnavailableError: the storage is unavailable. Trying again later may help.

    Example:
        >>> from input_checkpoint.backends.opening import open_backend
        >>> probe(open_backend("memory://probed"))
    """
    key = f"{PROBE_PREFIX}{uuid.uuid4().hex}"
    patient = RetryingBackend(backend, _PATIENCE)
    try:
        _check_writes(patient, key)
        _check_reads(patient, key)
        stale = _check_listing(patient, key)
    except BaseException:
        # The caller needs the first error, not one from the cleanup.
        with contextlib.suppress(BackendError):
            backend.delete([key])
        raise
    patient.delete([key, *stale])


def _check_writes(backend: Backend, key: str) -> None:
    _create(backend, key, b"first")
    try:
        backend.create(key, b"second")
    except ObjectExistsError:
        backend.put(key, b"third")
        return
    raise BackendError(
        f"{backend.uri} ignores the condition of a conditional create: a second create replaced {key}. Two "
        f"writers could both believe that they committed. {COMMIT_LOCK_ADVICE}",
        uri=backend.uri,
        key=key,
    )


def _create(backend: Backend, key: str, data: bytes) -> None:
    try:
        backend.create(key, data)
    except ObjectExistsError:
        # Only this probe knows the key: the answer to an earlier attempt was lost.
        if backend.get(key) != data:
            raise


def _check_reads(backend: Backend, key: str) -> None:
    if backend.get(key) != b"third" or backend.get(key, 1, 3) != b"hi":
        raise BackendError(
            f"{backend.uri} does not return the data that was written to {key}. Choose another storage.",
            uri=backend.uri,
            key=key,
        )


def _check_listing(backend: Backend, key: str) -> list[str]:
    """Check that the listing shows the object; return the keys that interrupted probes left behind."""
    now = time.time()
    found = {info.key: info.modified for info in backend.list(PROBE_PREFIX)}
    if key not in found:
        raise BackendError(
            f"{backend.uri} does not list {key}, which was just written, so the store could miss "
            "checkpoints. Choose a storage with consistent listings.",
            uri=backend.uri,
            key=key,
        )
    return [name for name, modified in found.items() if modified and now - modified > _STALE_AFTER_SECONDS]
