"""Reads objects of unknown size, and never more of them than the format allows."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Optional

from input_checkpoint.backends.base import Backend, Data
from input_checkpoint.errors import ObjectNotFoundError
from input_checkpoint.format.manifest import (
    HEAD_BYTES,
    Header,
    Manifest,
    check_header,
    decode_body,
    decode_header,
    header_end,
)

_FIRST_READ_BYTES = 1 << 20
"""What is read of a manifest before its size is known. Most manifests are smaller."""
_LARGE_HEADER_BYTES = 1 << 20

_one_large_header = threading.Lock()
"""Held while a large header is parsed: it needs many times its size in memory, and headers are read in
parallel."""


def read_at_most(backend: Backend, key: str, size: int) -> bytes:
    """Return an object of at most ``size`` bytes, or ``size`` + 1 bytes of a larger one.

    Raises:
        ObjectNotFoundError: there is none.
        BackendError: the storage failed.
    """
    return backend.get(key, 0, size + 1)


def exists(backend: Backend, key: str) -> bool:
    """Return whether an object is there now. Reads its first byte."""
    try:
        backend.get(key, 0, 1)
    except ObjectNotFoundError:
        return False
    return True


def read_header(backend: Backend, key: str) -> Header:
    """Return the header of a manifest, without reading its chunk table.

    Raises:
        ObjectNotFoundError: there is none.
        CorruptCheckpointError: it is damaged.
        BackendError: the storage failed.
    """
    return _read_header(backend, key, HEAD_BYTES)[1]


@dataclass(frozen=True)
class StoredManifest:
    """A manifest as it is stored, and decoded."""

    head: bytes
    """Everything before the chunk table."""
    body: Data
    """The chunk table."""
    manifest: Manifest


def read_manifest(backend: Backend, key: str) -> StoredManifest:
    """Return a manifest. Takes one request, or two for more than 1 MiB.

    Raises:
        ObjectNotFoundError: there is none.
        CorruptCheckpointError: it is damaged.
        BackendError: the storage failed.
    """
    stored, header = _read_header(backend, key, _FIRST_READ_BYTES)
    check_header(header)
    start = header_end(stored)
    end = start + header.table_bytes
    if len(stored) < _FIRST_READ_BYTES:
        body: Data = memoryview(stored)[start:]
    else:
        # Read from its beginning again: joining the two parts would need twice the memory.
        body = backend.get(key, start, end + 1)
    return StoredManifest(stored[:start], body, decode_body(header, body))


def read_small_manifest(backend: Backend, key: str) -> Optional[Manifest]:
    """Return a manifest, or None if it is larger than 1 MiB. Takes one request.

    Raises:
        ObjectNotFoundError: there is none.
        CorruptCheckpointError: it is damaged.
        BackendError: the storage failed.
    """
    stored = backend.get(key, 0, _FIRST_READ_BYTES)
    if len(stored) == _FIRST_READ_BYTES:
        return None
    header = decode_header(stored)
    check_header(header)
    return decode_body(header, memoryview(stored)[header_end(stored) :])


def _read_header(backend: Backend, key: str, first_read: int) -> tuple[bytes, Header]:
    """Return the beginning of a manifest, and the header that it holds."""
    head = backend.get(key, 0, first_read)
    end = header_end(head)
    if end < _LARGE_HEADER_BYTES:
        return _with_header(backend, key, head, end)
    with _one_large_header:
        return _with_header(backend, key, head, end)


def _with_header(backend: Backend, key: str, head: bytes, end: int) -> tuple[bytes, Header]:
    if end > len(head):
        head += backend.get(key, len(head), end)
    return head, decode_header(head)
