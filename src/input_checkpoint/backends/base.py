"""The storage contract: a flat space of keys and bytes under one URI.

A `Backend` knows nothing of checkpoints. The comments on its methods *are* the contract; the suite in
`input_checkpoint.testing` checks every sentence of them.
"""

from __future__ import annotations

import abc
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Optional, Union

from input_checkpoint.backends.redaction import redact

Data = Union[bytes, bytearray, memoryview]

TRIAL_PREFIX = "probe/"
"""Keys that a backend, or a probe of one, may create to try the storage out. They hold nothing of value."""

_KEY = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*")


@dataclass(frozen=True)
class ObjectInfo:
    """One stored object, as a listing shows it."""

    key: str
    size: int
    """Bytes."""
    modified: Optional[float]
    """Seconds since the epoch by the storage's own clock; None where it does not say."""


class Backend(abc.ABC):
    """Where bytes live: a flat key → bytes space under one URI.

    Keys are made of ``A-Z a-z 0-9 . _ -`` in parts joined by ``/``; no part starts with a dot. Every method
    may be called from several threads at once. Every method raises only `BackendError` and its subclasses for
    what the storage does: `BackendUnavailableError` when trying again may help, `BackendPermissionError`,
    `BackendNotFoundError` (the bucket or folder does not exist) and `ObjectNotFoundError` (one key does not
    exist).

    Objects are never changed in place, and a reader sees an object whole or not at all: a half-written
    one never appears under its key, whatever dies.
    """

    def __init__(self, uri: str) -> None:
        self._uri = redact(uri)

    @property
    def uri(self) -> str:
        """The URI this backend was opened with, without any secret: safe to log."""
        return self._uri

    @abc.abstractmethod
    def create(self, key: str, data: Data) -> None:
        """Store ``data`` under ``key`` if, and only if, the key is free. Atomic.

        Of many writers that race for one key exactly one returns; the others raise `ObjectExistsError`, and
        the stored bytes are the winner's. A retry inside the backend may find its own first attempt:
        it then raises `ObjectExistsError` too, and the caller tells the two apart by what is stored.
        """

    @abc.abstractmethod
    def put(self, key: str, data: Data) -> None:
        """Store ``data`` under ``key``, replacing what was there. Atomic for readers."""

    @abc.abstractmethod
    def get(self, key: str, start: int = 0, end: Optional[int] = None) -> bytes:
        """Return bytes ``start`` to ``end`` (exclusive; None = to the end) of an object.

        A range past the end is cut off there, as in slicing. Raises `ObjectNotFoundError`.
        """

    @abc.abstractmethod
    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yield every object whose key starts with ``prefix``, in key order, as of now.

        Never answered from a cache. A prefix that matches nothing yields nothing.
        """

    @abc.abstractmethod
    def delete(self, keys: Iterable[str]) -> None:
        """Remove objects. A key that is not there is not an error: the outcome is what was asked for."""

    def close(self) -> None:  # noqa: B027 - a backend without connections has nothing to release
        """Release connections. The backend is not used afterwards."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._uri!r})"


def check_key(key: str) -> str:
    """Return ``key`` if it is a valid key, else raise ValueError.

    Keys reach the storage's own path handling, so ``..``, empty parts and control characters stop here.
    """
    if not _KEY.fullmatch(key):
        raise ValueError(f"not a valid key: {key!r}")
    return key
