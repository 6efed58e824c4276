"""The contract that every storage backend keeps."""

from __future__ import annotations

import abc
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Optional, Union

from input_checkpoint.backends.redaction import redact_uri, remember_secrets

Data = Union[bytes, bytearray, memoryview]

LINK_ADVICE = (
    "is a symbolic link, and links inside a store are not followed. Replace it with what it points to, or "
    "with a bind mount. The folder of the store itself may be a link."
)
"""What is wrong with a link, and what to do. Follows its path in a message."""

NOT_A_FILE_ADVICE = "not a regular file. Move it elsewhere."
"""What is wrong with anything else that has the name of an object, and what to do. Ends a message."""

_KEY = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*")


@dataclass(frozen=True)
class ObjectInfo:
    """A stored object, as `Backend.list` reports it."""

    key: str
    size: int
    """Size in bytes."""
    modified: Optional[float]
    """Time of the last write, in seconds since the epoch by the storage's clock. None if it is unknown."""


class Backend(abc.ABC):
    """Stores objects, which are sequences of bytes, under keys.

    The docstrings of this class are the contract. `input_checkpoint.testing.BackendContract` tests it.

    A key consists of segments that are joined by ``/``. A segment consists of ``A-Z a-z 0-9 . _ -`` and does
    not start with a dot. Methods raise ValueError for any other key; see `check_key`.

    A storage may hold things that no backend has stored: files with other names, marks of folders, links,
    named pipes. They are not objects. Methods neither return nor change them, and do not follow links.

    Objects are complete or absent. No reader ever sees a part of an object, even if its writer dies halfway.

    Several threads may call any method at the same time.

    When the storage fails, methods raise `BackendError` or one of its subclasses, and nothing else:

    - `BackendUnavailableError`: the failure may be temporary. Callers may try the same call again. All other
      errors are permanent.
    - `BackendPermissionError`: the storage denies access.
    - `BackendNotFoundError`: the bucket, container or folder does not exist.
    - `ObjectNotFoundError`: `get` found no object under the key. The error carries ``uri`` and ``key``.
    - `ObjectExistsError`: `create` found an object under the key. The error carries ``uri`` and ``key``.

    No message and no attribute of an error contains a credential.

    Args:
        uri: URI of the backend. Credentials in it are not shown anywhere.
        storage_options: what the backend was opened with. Credentials in them are removed from every message
            of this process, even if a server repeats them.
    """

    def __init__(self, uri: str, storage_options: Optional[Mapping[str, Any]] = None) -> None:
        remember_secrets(uri, storage_options)
        self._uri = redact_uri(uri)

    @property
    def uri(self) -> str:
        """URI of the backend, without credentials. Safe to log."""
        return self._uri

    @abc.abstractmethod
    def create(self, key: str, data: Data) -> None:
        """Store an object under a key that does not exist yet, in one atomic step.

        If several writers create the same key at the same time, exactly one of them succeeds, and the object
        holds its data. The others raise `ObjectExistsError` and change nothing.

        A backend that retries a request internally may find the object that its own first attempt created. It
        raises `ObjectExistsError` in this case too. Callers that must know read the object and compare.

        Raises:
            ObjectExistsError: the key exists.
            BackendError: the name is that of something else, such as a link.
        """

    @abc.abstractmethod
    def put(self, key: str, data: Data) -> None:
        """Store an object, replacing any object under the same key.

        Readers see either the old object or the new one.

        Raises:
            BackendError: the name is that of something else, such as a link.
        """

    @abc.abstractmethod
    def get(self, key: str, start: int = 0, end: Optional[int] = None) -> bytes:
        """Return an object, or a range of its bytes.

        Args:
            key: key of the object.
            start: offset of the first byte to return. Never negative.
            end: offset after the last byte to return. Never negative. None means the end of the object.

        Returns:
            The bytes ``start`` to ``end``. As in a slice, the part of the range that lies beyond the end of
            the object is left out.

        Raises:
            ObjectNotFoundError: the key does not exist, or its name is that of something else, such as a
                named pipe.
            BackendError: the object, or a folder above it, is a link.
        """

    @abc.abstractmethod
    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Return all objects whose keys start with a prefix, sorted by key.

        The listing shows every write and deletion that finished before the call. It never comes from a cache.
        Errors may be raised by the call or while the caller iterates.

        Names that are not valid keys are left out (see `is_key`), and so is everything that is not an object.
        Nothing is changed.

        Args:
            prefix: need not end with ``/``. If no key starts with it, or none can, such as with ``../``, the
                listing is empty.

        Raises:
            BackendError: a folder in ``prefix`` is a link.
        """

    @abc.abstractmethod
    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects. Keys that do not exist are ignored, and so is anything that is not an object.

        After an error, any of the objects may still exist.
        """

    def remove_leftovers(self, folders: Sequence[str]) -> None:  # noqa: B027 - most backends leave nothing
        """Remove the temporary files that crashed writers left behind more than a day ago.

        Removes nothing else, and follows no links. A backend without temporary files does nothing. Only
        writers call this, after they have made sure that these folders are their own.

        Args:
            folders: the folders to search, as paths below the root with a regular expression for each segment
                (``"packs/main/[0-9]+"``). An empty path is the root. Subfolders are not searched.
        """

    def close(self) -> None:  # noqa: B027 - a backend without connections has nothing to release
        """Release connections. The backend must not be used afterwards."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._uri!r})"


def check_key(key: str) -> str:
    """Return a key unchanged if it is valid.

    Backends hand keys to the path handling of their storage. This check keeps out ``..``, empty segments and
    control characters, which could lead outside the backend's folder.

    Raises:
        ValueError: the key is not valid.

    Example:
        >>> check_key("packs/main/0001.pack")
        'packs/main/0001.pack'
    """
    if not is_key(key):
        raise ValueError(f"not a valid key: {key!r}")
    return key


def is_key(text: str) -> bool:
    """Return whether a text is a valid key.

    Example:
        >>> is_key("packs/main/0001.pack"), is_key("packs/main/0001 (copy).pack")
        (True, False)
    """
    return _KEY.fullmatch(text) is not None


def may_begin_keys(prefix: str) -> bool:
    """Return whether any valid key can start with a text. Listings of other texts are empty.

    Example:
        >>> may_begin_keys("packs/ma"), may_begin_keys("../elsewhere/")
        (True, False)
    """
    folder, slash, _ = prefix.rpartition("/")
    return not slash or is_key(folder)


def may_hold_keys(folder: str, prefix: str) -> bool:
    """Return whether valid keys below a folder may start with a prefix.

    Example:
        >>> may_hold_keys("packs", "packs/ma"), may_hold_keys("pins", "packs/ma")
        (True, False)
    """
    return is_key(folder) and (f"{folder}/".startswith(prefix) or prefix.startswith(f"{folder}/"))
