"""Whether a storage can hold a store, found out by doing it with one small object."""

from __future__ import annotations

import contextlib
import time
import uuid

from input_checkpoint.backends.base import TRIAL_PREFIX, Backend
from input_checkpoint.errors import BackendError, ObjectExistsError

_LEFT_BEHIND_SECONDS = 24 * 3600


def probe(backend: Backend) -> None:
    """Create, write, read, list and delete a small object, and see that a second create is refused.

    What a crash in the middle has left is removed by a later probe, a day after.

    Args:
        backend: an open one.

    Raises:
        BackendError: the storage cannot hold a store, and trying again will not help; the message says which
            operation it refuses. `BackendUnavailableError` if it may be away only for the moment.

    Example:
        >>> from input_checkpoint.backends.opening import open_backend
        >>> probe(open_backend("memory://probed"))
    """
    key = f"{TRIAL_PREFIX}{uuid.uuid4().hex}"
    try:
        _write(backend, key)
        _read(backend, key)
        left_behind = _list(backend, key)
    except BaseException:
        # What went wrong is what the caller must hear of, not that tidying up went wrong as well.
        with contextlib.suppress(BackendError):
            backend.delete([key])
        raise
    backend.delete([key, *left_behind])


def _write(backend: Backend, key: str) -> None:
    backend.create(key, b"first")
    try:
        backend.create(key, b"second")
    except ObjectExistsError:
        backend.put(key, b"third")
        return
    raise BackendError(
        f"{backend.uri} ignores the condition of a conditional create: it has replaced an object that was "
        f"there ({key}), so two writers could both believe that they committed. Choose another storage, or "
        "name one for the commits: storage_options={'commit_lock': 'file:///a/folder/that/all/share'}."
    )


def _read(backend: Backend, key: str) -> None:
    if backend.get(key) != b"third" or backend.get(key, 1, 3) != b"hi":
        raise BackendError(f"{backend.uri}: what was written to {key} does not come back as it was")


def _list(backend: Backend, key: str) -> list[str]:
    """Return what probes that were killed have left."""
    now = time.time()
    found = {info.key: info.modified for info in backend.list(TRIAL_PREFIX)}
    if key not in found:
        raise BackendError(
            f"{backend.uri}: an object that was just written ({key}) is not in the listing, so checkpoints "
            "could not be found there. Choose a storage with consistent listings."
        )
    return [name for name, modified in found.items() if modified and now - modified > _LEFT_BEHIND_SECONDS]
