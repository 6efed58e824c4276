"""Atomic creates on a storage that has none, by means of locks in a second storage."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Optional

from input_checkpoint.backends.base import Backend, Data, ObjectInfo
from input_checkpoint.errors import BackendError, ObjectExistsError, ObjectNotFoundError

COMMIT_LOCK_ADVICE = (
    "Choose another storage, or name a second one that decides the commits: "
    "storage_options={'commit_lock': 'file:///folder/that/all/writers/share'}."
)
"""What the user can do about a storage without an atomic create; the end of an error message."""

_MAX_LOCK_BYTES = 3 << 29
"""Size of a lock, which holds all that is created: at most a manifest of the largest size."""


class CommitLockBackend(Backend):
    """Adds an atomic `create` to a backend that has none.

    `create` first creates the object in the lock storage, which is atomic, and then writes it to the backend.
    If a writer dies in between, the next writer that tries to create the key completes the write with the
    data from the lock. `put` uses no locks.

    Args:
        backend: where all objects are stored.
        locks: decides which `create` succeeds. Its own `create` must be atomic. All writers to ``backend``
            must use the same ``locks``, and nothing else may be stored there.

    Example:
        >>> from input_checkpoint.backends.opening import open_backend
        >>> backend = CommitLockBackend(open_backend("memory://data"), open_backend("memory://locks"))
        >>> backend.create("key", b"mine")
        >>> backend.create("key", b"theirs")
        Traceback (most recent call last):
        ...
        input_checkpoint.errors.ObjectExistsError: memory://data/key already exists
    """

    def __init__(self, backend: Backend, locks: Backend) -> None:
        super().__init__(backend.uri)
        self._backend = backend
        self._locks = locks

    def create(self, key: str, data: Data) -> None:
        """See `Backend.create`."""
        if self._exists(key):
            raise self._exists_error(key)
        try:
            self._locks.create(key, data)
        except ObjectExistsError:
            self._complete_interrupted_create(key)
            raise self._exists_error(key) from None
        stored = self._read_if_exists(key, len(data) + 1)
        if not bytes(data).startswith(stored):
            # Since the first check, another writer created the object and a `delete` removed its lock.
            raise self._exists_error(key)
        if len(stored) < len(data) or not data:
            # Another writer may be completing this create. Its copy may be visible before it is whole, since
            # this storage need not be atomic.
            self._backend.put(key, data)

    def put(self, key: str, data: Data) -> None:
        """See `Backend.put`."""
        self._backend.put(key, data)

    def get(self, key: str, start: int = 0, end: Optional[int] = None) -> bytes:
        """See `Backend.get`."""
        return self._backend.get(key, start, end)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See `Backend.list`."""
        return self._backend.list(prefix)

    def delete(self, keys: Iterable[str]) -> None:
        """See `Backend.delete`."""
        names = tuple(keys)
        # Locks go first: the next `create` would restore the object from a lock that is left.
        self._locks.delete(names)
        self._backend.delete(names)

    def remove_leftovers(self, folders: Sequence[str]) -> None:
        """See `Backend.remove_leftovers`."""
        self._locks.remove_leftovers(folders)
        self._backend.remove_leftovers(folders)

    def close(self) -> None:
        """See `Backend.close`."""
        self._backend.close()
        self._locks.close()

    def _exists(self, key: str) -> bool:
        return any(info.key == key for info in self._backend.list(key))

    def _exists_error(self, key: str) -> ObjectExistsError:
        return ObjectExistsError(f"{self.uri}/{key} already exists", uri=self.uri, key=key)

    def _read_if_exists(self, key: str, size: int) -> bytes:
        """Return up to ``size`` bytes of the stored object, or no bytes if there is none."""
        with contextlib.suppress(ObjectNotFoundError):
            return self._backend.get(key, 0, size) if self._exists(key) else b""
        return b""

    def _complete_interrupted_create(self, key: str) -> None:
        """Write the object that belongs to a lock, unless the lock's owner has done so."""
        if self._exists(key):
            return
        try:
            data = self._locks.get(key, 0, _MAX_LOCK_BYTES + 1)
        except ObjectNotFoundError:
            return  # deleted since the lock was found
        if len(data) > _MAX_LOCK_BYTES:
            raise BackendError(
                f"the lock {self._locks.uri}/{key} has more than {_MAX_LOCK_BYTES} bytes, so no store has "
                "written it. Find out what else writes there, and delete it.",
                uri=self._locks.uri,
                key=key,
            )
        self._backend.put(key, data)
