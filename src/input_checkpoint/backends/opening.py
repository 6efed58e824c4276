"""Opens the backend for a URI."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Callable, Optional, Union, cast

from input_checkpoint.backends.base import Backend
from input_checkpoint.backends.commit_lock import CommitLockBackend
from input_checkpoint.backends.generic import generic_can_open, open_generic
from input_checkpoint.backends.local import open_local
from input_checkpoint.backends.memory import open_memory
from input_checkpoint.backends.redaction import redact
from input_checkpoint.errors import UnknownBackendError

ENTRY_POINT_GROUP = "input_checkpoint.backends"

BackendFactory = Callable[[str, Mapping[str, Any]], Backend]
"""Opens a backend, given the URI and the storage options."""

BackendLocation = Union[str, "os.PathLike[str]", Backend]
"""What names a backend: a URI, a local path, or the backend itself."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)(://|::)")
_URI_IN_PATH = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/(?!/)")

_BUILT_IN: Mapping[str, BackendFactory] = {"file": open_local, "local": open_local, "memory": open_memory}

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
"""The extra of input-checkpoint that installs the plugin for a scheme."""


def open_backend(uri: BackendLocation, storage_options: Optional[Mapping[str, Any]] = None) -> Backend:
    """Open the backend for a URI or path.

    Paths, ``file://`` and ``memory://`` are built in. Plugins serve other schemes through the entry-point
    group ``input_checkpoint.backends``; the name of the entry point is the scheme. The generic backend opens
    any remaining scheme that fsspec knows.

    Args:
        uri: for example ``"s3://bucket/run-7/input"``, ``"/data/run-7-input"`` or
            ``Path("/data/run-7-input")``. An open `Backend` is returned unchanged.
        storage_options: options for the fsspec filesystem. One option is for all backends: ``commit_lock``,
            the URI or path of a second storage that decides the commits if this one has no atomic create. See
            `input_checkpoint.backends.commit_lock`.

    Raises:
        TypeError: ``uri`` is neither a string, nor a path, nor a backend.
        ValueError: ``uri`` is empty or has no scheme before ``://``, or an open backend comes with
            ``storage_options``.
        UnknownBackendError: no backend serves the scheme. The message says what to install.
        BackendError: the storage cannot be used.

    Example:
        >>> open_backend("memory://docs").uri
        'memory://docs'
    """
    if isinstance(uri, Backend):
        if storage_options:
            raise ValueError("storage_options cannot be passed with a backend, because it is already open")
        return uri
    location = _location(uri)
    options = dict(storage_options or {})
    lock = options.pop("commit_lock", None)
    backend = _factory(_scheme(location), location)(location, options)
    if lock is None:
        return backend
    return CommitLockBackend(backend, open_backend(lock))


def _location(uri: object) -> str:
    location = os.fspath(uri) if isinstance(uri, os.PathLike) else uri
    if not isinstance(location, str):
        # Only the type is shown: the value may hold a credential.
        raise TypeError(
            f"a backend is named by a URI (str), a path (os.PathLike) or a Backend, got {type(uri).__name__}"
        )
    if not location.strip() or location.startswith("://"):
        raise ValueError(
            f"not a URI or path: {redact(location)!r}. Write for example s3://bucket/run-7/input or "
            "/data/run-7-input."
        )
    mangled = _URI_IN_PATH.match(location) if isinstance(uri, os.PathLike) else None
    if mangled:
        raise ValueError(
            f"pathlib removed a slash from this {mangled.group(1)}:// URI. Pass the URI as a string."
        )
    return location


def _scheme(uri: str) -> str:
    match = _SCHEME.match(uri)
    return match.group(1).lower() if match else "file"


def _factory(scheme: str, uri: str) -> BackendFactory:
    for plugin in _plugins():
        if plugin.name == scheme:
            return cast(BackendFactory, plugin.load())
    if scheme in _BUILT_IN:
        return _BUILT_IN[scheme]
    shown = redact(uri)
    if scheme in _OFFICIAL_PLUGINS:
        extra = _OFFICIAL_PLUGINS[scheme]
        raise UnknownBackendError(
            f"cannot open {shown}: {scheme}:// needs a plugin that is not installed. "
            f"Install it: pip install 'input-checkpoint[{extra}]'",
            uri=shown,
        )
    if generic_can_open(scheme):
        return open_generic
    known = ", ".join(sorted({*_BUILT_IN, *_OFFICIAL_PLUGINS}))
    raise UnknownBackendError(
        f"cannot open {shown}: no backend serves the scheme {scheme!r}. Available: {known}, and every scheme "
        f"that fsspec knows. A plugin can add one through the entry-point group {ENTRY_POINT_GROUP!r}.",
        uri=shown,
    )


def _plugins() -> Iterable[EntryPoint]:
    if sys.version_info >= (3, 10):
        return entry_points(group=ENTRY_POINT_GROUP)
    return entry_points().get(ENTRY_POINT_GROUP, ())
