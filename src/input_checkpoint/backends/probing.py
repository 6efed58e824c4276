"""Tests whether a storage can hold a store."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable

from input_checkpoint.backends.base import Backend, ObjectInfo
from input_checkpoint.backends.commit_lock import COMMIT_LOCK_ADVICE
from input_checkpoint.backends.probe_keys import PROBE_PREFIX, is_probe_key, new_probe_key
from input_checkpoint.backends.retrying import RetryingBackend, RetryPolicy
from input_checkpoint.errors import BackendError, ObjectExistsError

_CONTENTS = (b"first", b"second", b"third")
_MAX_BYTES = max(map(len, _CONTENTS))
_STALE_AFTER_SECONDS = 24 * 3600
_PATIENCE = RetryPolicy(timeout=3)
"""Long enough for one lost answer. A server that is down is reported at once."""


def probe(backend: Backend, *, remove_stale: bool = False) -> None:
    """Create, replace, read, list and delete a small object, and check that a second create is refused.

    A request is repeated if its answer is lost.

    Args:
        backend: the storage to test.
        remove_stale: also delete the objects that interrupted probes left behind more than a day ago. Set it
            only where a store is already, so that it is certain whose these objects are.

    Raises:
        BackendError: the storage cannot hold a store. The message names the operation that failed.
        BackendUnavailableError: the storage is unavailable. Trying again later may help.

    Example:
        >>> from input_checkpoint.backends.opening import open_backend
        >>> probe(open_backend("memory://probed"))
    """
    key = new_probe_key()
    patient = RetryingBackend(backend, _PATIENCE)
    try:
        _check_writes(patient, key)
        _check_reads(patient, key)
        _check_listing(patient, key)
    except BaseException:
        # The caller needs the first error, not one from the cleanup.
        with contextlib.suppress(BackendError):
            backend.delete([key])
        raise
    patient.delete([key])
    if remove_stale:
        patient.delete(_stale_objects(patient.list(PROBE_PREFIX), time.time()))


def _check_writes(backend: Backend, key: str) -> None:
    first, second, third = _CONTENTS
    _create(backend, key, first)
    try:
        backend.create(key, second)
    except ObjectExistsError:
        backend.put(key, third)
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
        if backend.get(key, 0, len(data) + 1) != data:
            raise


def _check_reads(backend: Backend, key: str) -> None:
    expected = _CONTENTS[-1]
    if backend.get(key, 0, len(expected) + 1) != expected or backend.get(key, 1, 3) != expected[1:3]:
        raise BackendError(
            f"{backend.uri} does not return the data that was written to {key}. Choose another storage.",
            uri=backend.uri,
            key=key,
        )


def _check_listing(backend: Backend, key: str) -> None:
    if all(info.key != key for info in backend.list(key)):
        raise BackendError(
            f"{backend.uri} does not list {key}, which was just written, so the store could miss "
            "checkpoints. Choose a storage with consistent listings.",
            uri=backend.uri,
            key=key,
        )


def _stale_objects(found: Iterable[ObjectInfo], now: float) -> list[str]:
    """Return the keys of the objects that an interrupted probe has certainly left behind."""
    return [
        info.key
        for info in found
        if is_probe_key(info.key)
        and info.size <= _MAX_BYTES
        and info.modified is not None
        and now - info.modified > _STALE_AFTER_SECONDS
    ]
