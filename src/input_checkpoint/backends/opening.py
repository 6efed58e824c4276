"""A backend by its URI: built in, or a plugin's."""

from __future__ import annotations

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


_BUILT_IN: Mapping[str, BackendFactory] = {"file": open_local, "local": open_local, "memory": open_memory}


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
            none (see `input_checkpoint.backends.commit_lock`).

    Raises:
        UnknownBackendError: nothing serves the scheme; the message says what to install.
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
    return CommitLockBackend(backend, open_backend(lock))


def _scheme(uri: str) -> str:
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)(://|::)", uri)
    return match.group(1).lower() if match else "file"


def _factory(scheme: str, uri: str) -> BackendFactory:
    for plugin in _plugins():
        if plugin.name == scheme:
            return cast(BackendFactory, plugin.load())
    if scheme in _BUILT_IN:
        return _BUILT_IN[scheme]
    if scheme in _OFFICIAL_PLUGINS:
        extra = _OFFICIAL_PLUGINS[scheme]
        raise UnknownBackendError(
            f"{redact(uri)}: {scheme}:// needs a plugin that is not installed. "
            f"Install it: pip install 'input-checkpoint[{extra}]'"
        )
    if generic_can_open(scheme):
        return open_generic
    raise UnknownBackendError(
        f"{redact(uri)}: no backend for scheme {scheme!r}. Known: "
        f"{', '.join(sorted({*_BUILT_IN, *_OFFICIAL_PLUGINS}))}, "
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
