"""The storage contract: a flat space of keys and bytes under one URI.

A `Backend` knows nothing of checkpoints. The comments on its methods *are* the contract; the suite in
`input_checkpoint.testing` checks every sentence of them.
"""

from __future__ import annotations

import abc
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Callable, Optional, Union, cast

from input_checkpoint.errors import BackendError, UnknownBackend

ENTRY_POINT_GROUP = "input_checkpoint.backends"

Data = Union[bytes, bytearray, memoryview]
BackendFactory = Callable[[str, Mapping[str, Any]], "Backend"]

# As far as it may reach: a URI ends at a space or a quote, and where the next one of a chain begins.
_AFTER_SCHEME = re.compile(r"(?<=://)(?:(?![A-Za-z][A-Za-z0-9+.-]{0,20}://)[^\s'\"])+")
# A colon that does not come before a mere port, nor belongs to an IPv6 address.
_PASSWORD = re.compile(r"[^:@\[]*:(?![0-9]{1,5}$)")
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
    what the storage does: `BackendUnavailable` when trying again may help, `BackendPermissionError`,
    `BackendNotFound` (the bucket or folder is not there) and `ObjectNotFound` (one key is not there).

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

        Of many writers that race for one key exactly one returns; the others raise `ObjectExists`, and
        the stored bytes are the winner's. A retry inside the backend may find its own first attempt:
        it then raises `ObjectExists` too, and the caller tells the two apart by what is stored.
        """

    @abc.abstractmethod
    def put(self, key: str, data: Data) -> None:
        """Store ``data`` under ``key``, replacing what was there. Atomic for readers."""

    @abc.abstractmethod
    def get(self, key: str, start: int = 0, end: Optional[int] = None) -> bytes:
        """Return bytes ``start`` to ``end`` (exclusive; None = to the end) of an object.

        A range past the end is cut off there, as in slicing. Raises `ObjectNotFound`.
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


def redact(text: str) -> str:
    """Return ``text`` with the user names, passwords and query strings of all URIs in it taken out.

    >>> redact("sftp://joe:se@cret@host/path?token=1")
    'sftp://***@host/path?***'
    >>> redact("ftp://joe:se/cret@host/path")
    'ftp://***@host/path'
    """
    text = _AFTER_SCHEME.sub(_without_user, text)
    return re.sub(r"(://[^\s'\"?]*)\?[^\s'\"]*", r"\1?***", text)


def _without_user(uri: re.Match[str]) -> str:
    rest = uri.group()
    authority = rest.partition("/")[0]
    # A password may hold any character, also those that should have been escaped: it may reach to the last @
    # of all. Without one, an @ behind the first slash belongs to the path.
    end = (rest if _PASSWORD.match(authority) else authority).rfind("@")
    return rest if end < 0 else f"***{rest[end:]}"


def open_backend(uri: Union[str, Backend], storage_options: Optional[Mapping[str, Any]] = None) -> Backend:
    """Open the backend that serves ``uri``.

    ``file://`` URIs and bare paths, and ``memory://``, are built in. Other schemes are served by plugins
    (entry-point group ``input_checkpoint.backends``, entry name = scheme); any scheme that fsspec knows and
    no plugin claims is opened by the generic backend.

    Args:
        uri: for example ``"s3://bucket/run-7/input"`` or ``"/data/run-7-input"``. A `Backend` is returned as
            it is.
        storage_options: handed to the fsspec filesystem, but for ``commit_lock``: the URI of a storage with
            an atomic create, such as a folder that all writers share, that decides commits for one that has
            none (see `input_checkpoint.commit_lock`).

    Raises:
        UnknownBackend: nothing serves the scheme; the message says what to install.
        BackendError: the storage cannot be used.

    Example:
        >>> open_backend("memory://docs").uri
        'memory://docs'
    """
    if isinstance(uri, Backend):
        if storage_options:
            raise ValueError("storage_options go with a URI; this backend is already open")
        return uri
    options = dict(storage_options or {})
    lock = options.pop("commit_lock", None)
    backend = _factory(_scheme(uri), uri)(uri, options)
    if lock is None:
        return backend
    # Imported here: it is written against this module.
    from input_checkpoint.commit_lock import CommitLockBackend

    return CommitLockBackend(backend, open_backend(lock))


def _scheme(uri: str) -> str:
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)(://|::)", uri)
    return match.group(1).lower() if match else "file"


def _factory(scheme: str, uri: str) -> BackendFactory:
    for plugin in _plugins():
        if plugin.name == scheme:
            return cast(BackendFactory, plugin.load())
    # Imported here: the built-in backends are themselves written against this module.
    from input_checkpoint import backends_builtin

    if scheme in backends_builtin.FACTORIES:
        return backends_builtin.FACTORIES[scheme]
    if scheme in _OFFICIAL_PLUGINS:
        extra = _OFFICIAL_PLUGINS[scheme]
        raise UnknownBackend(
            f"{redact(uri)}: {scheme}:// needs a plugin that is not installed. "
            f"Install it: pip install 'input-checkpoint[{extra}]'"
        )
    if backends_builtin.generic_can_open(scheme):
        return backends_builtin.open_generic
    raise UnknownBackend(
        f"{redact(uri)}: no backend for scheme {scheme!r}. Known: "
        f"{', '.join(sorted({*backends_builtin.FACTORIES, *_OFFICIAL_PLUGINS}))}, "
        "and any scheme that fsspec knows. A plugin adds one through the entry-point group "
        f"{ENTRY_POINT_GROUP!r}."
    )


_OFFICIAL_PLUGINS = {
    "s3": "s3",
    "s3a": "s3",
    "gs": "gcs",
    "gcs": "gcs",
    "abfs": "azure",
    "abfss": "azure",
    "az": "azure",
    "sftp": "sftp",
    "ssh": "sftp",
}


def _plugins() -> Iterable[EntryPoint]:
    if sys.version_info >= (3, 10):
        return entry_points(group=ENTRY_POINT_GROUP)
    return entry_points().get(ENTRY_POINT_GROUP, ())


__all__ = [
    "ENTRY_POINT_GROUP",
    "Backend",
    "BackendError",
    "BackendFactory",
    "Data",
    "ObjectInfo",
    "check_key",
    "open_backend",
    "redact",
]
