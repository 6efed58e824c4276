"""The format version of a store: one object at its root, which is read before anything else."""

from __future__ import annotations

import json

from input_checkpoint.backends.base import Backend
from input_checkpoint.errors import ObjectExistsError, ObjectNotFoundError, UnsupportedFormatError
from input_checkpoint.format.keys import FORMAT_KEY

FORMAT_VERSION = 1


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
    text = json.dumps({"format": "input-checkpoint", "version": FORMAT_VERSION}).encode()
    try:
        backend.create(FORMAT_KEY, text)
    except ObjectExistsError:
        _check_version(backend)


def _check_version(backend: Backend) -> None:
    # Read twice before it is refused: a bit may have flipped on its way.
    if _version(backend.get(FORMAT_KEY)) == FORMAT_VERSION:
        return
    version = _version(backend.get(FORMAT_KEY))
    if version != FORMAT_VERSION:
        raise UnsupportedFormatError(
            f"{backend.uri} has format version {version!r}, but this release of input-checkpoint supports "
            f"only version {FORMAT_VERSION}. Upgrade input-checkpoint, or choose another URI.",
            uri=backend.uri,
            key=FORMAT_KEY,
        )


def _version(text: bytes) -> object:
    """Return the version, or the beginning of the text if it is something else."""
    try:
        found = json.loads(text)
        return found["version"] if found["format"] == "input-checkpoint" else text[:80]
    except (ValueError, KeyError, TypeError):
        return text[:80]
