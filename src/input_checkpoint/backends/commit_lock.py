"""Commits on a storage without conditional writes, by way of one that has them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Optional

from input_checkpoint.backends.base import Backend, Data, ObjectInfo
from input_checkpoint.errors import ObjectExistsError, ObjectNotFoundError

COMMIT_LOCK_ADVICE = (
    "Choose another storage, or name a second one that decides the commits: "
    "storage_options={'commit_lock': 'file:///folder/that/all/writers/share'}."
)
"""What the user can do about a storage without an atomic create; the end of an error message."""


class CommitLockBackend(Backend):
    """A backend whose `create` is decided by a second one.

    An object is created by creating it among the locks, which is atomic, and then writing it where it
    belongs. Who finds the lock taken, but nothing behind it (its owner died in between), writes what the lock
    holds. Only `create` uses locks: manifests, lineage records and the like, not packs.

    Args:
        backend: where everything is kept.
        locks: where creates are decided. It must be the same place for everybody who writes to ``backend``,
            used for nothing else, and keep its promise of an atomic `create`.

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
        if self._holds(key):
            raise ObjectExistsError(f"{self.uri}/{key} already exists")
        try:
            self._locks.create(key, data)
        except ObjectExistsError:
            self._complete(key)
            raise ObjectExistsError(f"{self.uri}/{key} already exists") from None
        present = self._bytes_of(key)
        if not bytes(data).startswith(present):
            # Not a helper's copy of ours: created, and its lock removed, since we looked.
            raise ObjectExistsError(f"{self.uri}/{key} already exists")
        if len(present) < len(data) or not data:
            # Also over a helper's copy that is half-way up: a storage like this may show it too early.
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
        doomed = tuple(keys)
        # The lock first: one without its object would bring the object back.
        self._locks.delete(doomed)
        self._backend.delete(doomed)

    def close(self) -> None:
        """See `Backend.close`."""
        self._backend.close()
        self._locks.close()

    def _holds(self, key: str) -> bool:
        return any(info.key == key for info in self._backend.list(key))

    def _bytes_of(self, key: str) -> bytes:
        """Return what is there now; nothing if nothing is."""
        with contextlib.suppress(ObjectNotFoundError):
            return self._backend.get(key) if self._holds(key) else b""
        return b""

    def _complete(self, key: str) -> None:
        """Do what the owner of a lock had not come to."""
        if self._holds(key):
            return
        try:
            data = self._locks.get(key)
        except ObjectNotFoundError:
            return  # deleted meanwhile
        self._backend.put(key, data)
