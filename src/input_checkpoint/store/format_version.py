"""Which format a store has: said by one object at its root, asked for before anything is touched."""

from __future__ import annotations

import json

from input_checkpoint.backends.base import Backend
from input_checkpoint.errors import ObjectExistsError, ObjectNotFoundError, UnsupportedFormatError
from input_checkpoint.format.keys import FORMAT_KEY

FORMAT_VERSION = 1


def is_store(backend: Backend) -> bool:
    """Whether there is a store at ``backend``.

    Raises:
        UnsupportedFormatError: there is one, of a format version that this release does not know. Nothing was
            touched.
        BackendError: the storage cannot be read.
    """
    try:
        _check(backend.get(FORMAT_KEY), backend.uri)
    except ObjectNotFoundError:
        return False
    return True


def create_store(backend: Backend) -> None:
    """Make ``backend`` a store, unless somebody else has just done so.

    Raises:
        UnsupportedFormatError: somebody else has, with another format version.
        BackendError: the storage cannot be written.
    """
    text = json.dumps({"format": "input-checkpoint", "version": FORMAT_VERSION}).encode()
    try:
        backend.create(FORMAT_KEY, text)
    except ObjectExistsError:
        _check(backend.get(FORMAT_KEY), backend.uri)


def _check(text: bytes, uri: str) -> None:
    version = _version(text)
    if version != FORMAT_VERSION:
        raise UnsupportedFormatError(
            f"{uri} is of format version {version!r}; this release of input-checkpoint knows "
            f"version {FORMAT_VERSION}. Upgrade input-checkpoint, or choose another URI."
        )


def _version(text: bytes) -> object:
    try:
        found = json.loads(text)
        return found["version"] if found["format"] == "input-checkpoint" else text[:80]
    except (ValueError, KeyError, TypeError):
        return text[:80]
