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
from input_checkpoint.parallel import run_all

_CONTENTS = (b"first", b"second", b"third")
_MAX_BYTES = max(map(len, _CONTENTS))
_STALE_AFTER_SECONDS = 24 * 3600
_PATIENCE = RetryPolicy(timeout=3)
"""Long enough for one lost answer. A server that is down is reported at once."""


def probe(backend: Backend, *, remove_stale: bool = False) -> None:
    """Create, replace, read, list and delete two small objects, and check that a second create is refused.

    Takes four requests in sequence, and more beside them.

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
    created, replaced = new_probe_key(), new_probe_key()
    patient = RetryingBackend(backend, _PATIENCE)
    try:
        _write(patient, created, replaced)
        stale = _write_again(patient, created, replaced, remove_stale)
        _check_reads(patient, created, replaced)
    except BaseException:
        # The caller needs the first error, not one from the cleanup.
        with contextlib.suppress(BackendError):
            backend.delete([created, replaced])
        raise
    patient.delete([created, replaced, *stale])


# Each of these functions is one round trip, because its requests are sent at the same time. The error of the
# first request in a list comes before those of the others.


def _write(backend: Backend, created: str, replaced: str) -> None:
    first, second, _ = _CONTENTS
    run_all([lambda: _create(backend, created, first), lambda: backend.put(replaced, second)])


def _write_again(backend: Backend, created: str, replaced: str, find_stale: bool) -> list[str]:
    """Write both objects again, list the first one, and return what older probes have left behind."""
    *_, stale = run_all(
        [
            lambda: _check_create(backend, created),
            lambda: backend.put(replaced, _CONTENTS[2]),
            lambda: _check_listing(backend, created, find_stale),
        ]
    )
    return stale or []


def _check_reads(backend: Backend, created: str, replaced: str) -> None:
    first, _, third = _CONTENTS
    run_all(
        [
            lambda: _check_data(backend, replaced, 0, len(third) + 1, third),
            lambda: _check_data(backend, replaced, 1, 3, third[1:3]),
            lambda: _check_data(backend, created, 0, _MAX_BYTES + 1, first),
        ]
    )


def _check_create(backend: Backend, key: str) -> None:
    try:
        backend.create(key, _CONTENTS[1])
    except ObjectExistsError:
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


def _check_data(backend: Backend, key: str, start: int, end: int, expected: bytes) -> None:
    if backend.get(key, start, end) != expected:
        raise BackendError(
            f"{backend.uri} does not return the data that was written to {key}. Choose another storage.",
            uri=backend.uri,
            key=key,
        )


def _check_listing(backend: Backend, key: str, find_stale: bool) -> list[str]:
    """Check that a key is listed, and return what older probes have left behind, if that is asked for."""
    found = list(backend.list(PROBE_PREFIX if find_stale else key))
    if all(info.key != key for info in found):
        raise BackendError(
            f"{backend.uri} does not list {key}, which was just written, so the store could miss "
            "checkpoints. Choose a storage with consistent listings.",
            uri=backend.uri,
            key=key,
        )
    return _stale_objects(found, time.time()) if find_stale else []


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
