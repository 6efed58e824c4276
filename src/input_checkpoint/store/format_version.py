"""The format version of a store: one object at its root, which is read before anything else."""

from __future__ import annotations

import json
from typing import Optional

from input_checkpoint.backends.base import Backend
from input_checkpoint.errors import (
    UNREADABLE_JSON,
    ObjectExistsError,
    ObjectNotFoundError,
    UnsupportedFormatError,
)
from input_checkpoint.format.keys import FORMAT_KEY
from input_checkpoint.format.limits import MAX_FORMAT_BYTES
from input_checkpoint.format.strict_json import parse_object, read_number, read_text
from input_checkpoint.store.bounded_reads import read_at_most

FORMAT_VERSION = 1
_FORMAT = "input-checkpoint"


def is_store(backend: Backend) -> bool:
    """Whether ``backend`` holds a store.

    Raises:
        UnsupportedFormatError: it holds a store with a format version that this release does not support.
        BackendError: the storage cannot be read.
    """
    try:
        _check_version(backend)
    except ObjectNotFoundError:
        return False
    return True


def create_store(backend: Backend) -> None:
    """Create a store. Does nothing if another process has just created it.

    Raises:
        UnsupportedFormatError: another process has created it with a different format version.
        BackendError: the storage cannot be written.
    """
    text = json.dumps({"format": _FORMAT, "version": FORMAT_VERSION}).encode()
    try:
        backend.create(FORMAT_KEY, text)
    except ObjectExistsError:
        _check_version(backend)


def _check_version(backend: Backend) -> None:
    # Read twice before it is refused: a bit may have flipped in transit.
    if _version(_read(backend)) == FORMAT_VERSION:
        return
    text = _read(backend)
    version = _version(text)
    if version is None:
        raise UnsupportedFormatError(
            f"{backend.uri} has a {FORMAT_KEY} that is damaged or not ours. It begins with {text[:60]!r}. If "
            "this is a checkpoint store, restore an intact copy of the file. Otherwise, choose another URI.",
            uri=backend.uri,
            key=FORMAT_KEY,
        )
    if version != FORMAT_VERSION:
        raise UnsupportedFormatError(
            f"{backend.uri} has format version {version}, but this release of input-checkpoint supports only "
            f"version {FORMAT_VERSION}. Upgrade input-checkpoint, or choose another URI.",
            uri=backend.uri,
            key=FORMAT_KEY,
        )


def _read(backend: Backend) -> bytes:
    return read_at_most(backend, FORMAT_KEY, MAX_FORMAT_BYTES)


def _version(text: bytes) -> Optional[int]:
    """Return the version, or None if the text is not that of a store."""
    if len(text) > MAX_FORMAT_BYTES:
        return None
    try:
        found = parse_object(text)
        return read_number(found, "version") if read_text(found, "format") == _FORMAT else None
    except UNREADABLE_JSON:
        return None
