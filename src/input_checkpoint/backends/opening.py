"""Opens the backend for a URI."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Callable, Optional, Union, cast

from fsspec import config

from input_checkpoint.backends import schemes
from input_checkpoint.backends.base import Backend
from input_checkpoint.backends.causes import redact_causes
from input_checkpoint.backends.commit_lock import CommitLockBackend
from input_checkpoint.backends.generic import open_generic
from input_checkpoint.backends.local import open_local
from input_checkpoint.backends.location import Location, parse_location
from input_checkpoint.backends.memory import open_memory
from input_checkpoint.backends.redaction import redact_uri, remember_secrets
from input_checkpoint.backends.schemes import ENTRY_POINT_GROUP, OFFICIAL_PLUGINS, fsspec_knows
from input_checkpoint.backends.suggestions import did_you_mean
from input_checkpoint.errors import BackendError, UnknownBackendError

BackendFactory = Callable[[str, Mapping[str, Any]], Backend]
"""Opens a backend, given the URI and the storage options."""

BackendLocation = Union[str, "os.PathLike[str]", Backend]
"""What names a backend: a URI, a local path, or the backend itself."""

_BUILT_IN: Mapping[str, BackendFactory] = {"file": open_local, "local": open_local, "memory": open_memory}


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
        InvalidLocationError: ``uri`` does not say where the data goes, as with one slash where a URI has two.
            See `input_checkpoint.backends.location`.
        ValueError: an open backend comes with ``storage_options``.
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
    if not isinstance(uri, (str, os.PathLike)) or not isinstance(os.fspath(uri), str):
        # Only the type is shown: the value may hold a credential.
        raise TypeError(
            f"a backend is named by a URI (str), a path (os.PathLike) or a Backend, got {type(uri).__name__}"
        )
    options = dict(storage_options or {})
    remember_secrets(os.fspath(uri), {"storage_options": options, "configuration": config.conf})
    location = parse_location(uri)
    lock = options.pop("commit_lock", None)
    try:
        backend = _factory(location)(location.uri, options)
    except BackendError as error:
        redact_causes(error)
        raise
    if lock is None:
        return backend
    return CommitLockBackend(backend, open_backend(lock))


def _factory(location: Location) -> BackendFactory:
    scheme, shown = location.scheme, redact_uri(location.uri)
    for plugin in schemes.installed_plugins():
        if plugin.name == scheme:
            return cast(BackendFactory, plugin.load())
    if scheme in _BUILT_IN:
        return _BUILT_IN[scheme]
    if scheme in OFFICIAL_PLUGINS:
        extra = OFFICIAL_PLUGINS[scheme]
        raise UnknownBackendError(
            f"cannot open {shown}: {scheme}:// needs a plugin that is not installed. "
            f"Install it: pip install 'input-checkpoint[{extra}]'",
            uri=shown,
        )
    meant = did_you_mean(location.uri)
    advice = f"Did you mean {meant}? " if meant else ""
    if fsspec_knows(scheme):
        if meant:
            raise UnknownBackendError(
                f"cannot open {shown}: a store cannot be written through this web address. {advice.strip()}",
                uri=shown,
            )
        return open_generic
    known = ", ".join(sorted({*_BUILT_IN, *OFFICIAL_PLUGINS}))
    raise UnknownBackendError(
        f"cannot open {shown}: no backend serves the scheme {scheme!r}. {advice}Available: {known}, and "
        f"every scheme that fsspec knows. A plugin can add one through the entry-point group "
        f"{ENTRY_POINT_GROUP!r}.",
        uri=shown,
    )
