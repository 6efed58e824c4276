"""Which format a store has: said by one object at its root, asked for before anything is touched."""

from __future__ import annotations

import json
from typing import Optional

from input_checkpoint import probing, refs
from input_checkpoint.backend import Backend
from input_checkpoint.errors import BackendNotFound, ObjectExists, ObjectNotFound, UnsupportedFormat

FORMAT_VERSION = 1


def require(backend: Backend, create: bool, probe: bool) -> None:
    """Make sure that there is a store of a known format.

    Args:
        backend: where.
        create: make a store if there is none.
        probe: try out before that whether the storage can hold one.

    Raises:
        BackendNotFound: there is no store and ``create`` is False.
        UnsupportedFormat: it is of an unknown version. Nothing was touched.
        BackendError: the storage cannot be used.
    """
    found = _read(backend)
    if found is None and not create:
        raise BackendNotFound(f"there is no checkpoint store at {backend.uri} (it has no {refs.FORMAT_KEY})")
    if found is not None:
        _check(found, backend.uri)
    if probe:
        probing.probe(backend)
    if found is None:
        _check(_create(backend), backend.uri)


def _read(backend: Backend) -> Optional[bytes]:
    try:
        return backend.get(refs.FORMAT_KEY)
    except ObjectNotFound:
        return None


def _create(backend: Backend) -> bytes:
    text = json.dumps({"format": "input-checkpoint", "version": FORMAT_VERSION}).encode()
    try:
        backend.create(refs.FORMAT_KEY, text)
    except ObjectExists:
        return backend.get(refs.FORMAT_KEY)
    return text


def _check(text: bytes, uri: str) -> None:
    version = _version(text)
    if version != FORMAT_VERSION:
        raise UnsupportedFormat(
            f"{uri} is of format version {version!r}; this release of input-checkpoint knows "
            f"version {FORMAT_VERSION}. Upgrade input-checkpoint, or choose another URI."
        )


def _version(text: bytes) -> object:
    try:
        found = json.loads(text)
        return found["version"] if found["format"] == "input-checkpoint" else text[:80]
    except (ValueError, KeyError, TypeError):
        return text[:80]
