"""Chunks: what is stored once however many checkpoints hold it.

A large payload is a chunk of its own. Small elements share one, as do the keys of the large ones.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from blake3 import blake3

from input_checkpoint.backend import Data
from input_checkpoint.errors import CorruptCheckpoint
from input_checkpoint.state import Element

DIGEST_BYTES = 16

LARGE_PAYLOAD = 2 << 10
"""From this size on a payload is a chunk of its own: an entry in the manifest then costs under 2 % of it."""

_SMALLEST_RUN = 4 << 10
_LARGEST_RUN = 64 << 10
_CUT_MASK = 0x7F
_KEYS_IN_A_CHUNK = 4096
_LENGTH = np.dtype("<u4")


@dataclass(frozen=True)
class Cut:
    """A chunk's content on its way into a pack."""

    data: bytes
    elements: int
    """How many whole elements, or keys, it frames; 0 if it is the payload of one element."""
    is_keys: bool = False


def digest(data: Data) -> bytes:
    """Return the 128-bit BLAKE3 checksum of ``data``.

    A cryptographic hash: training data can come from strangers, and a chunk is known by its checksum alone.
    """
    return blake3(data).digest(length=DIGEST_BYTES)


def cut(elements: Iterable[Element]) -> Iterator[Cut]:
    """Cut elements into chunks, in order. The keys of large payloads come in chunks in between.

    Runs of small elements end where their content says so, not after a fixed number, so that an element more
    or less changes one run and not all that follow.

    >>> [(c.elements, c.is_keys) for c in cut([(b"k1", b"small"), (b"k2", b"x" * 5000), (b"k3", b"")])]
    [(1, False), (0, False), (1, False), (1, True)]
    """
    run: list[bytes] = []
    size = 0
    keys: list[bytes] = []
    for key, payload in elements:
        if len(payload) < LARGE_PAYLOAD:
            run += (key, payload)
            size += len(key) + len(payload)
            if size >= _LARGEST_RUN or (size >= _SMALLEST_RUN and not zlib.crc32(payload) & _CUT_MASK):
                yield Cut(frame(run), len(run) // 2)
                run, size = [], 0
            continue
        if run:
            yield Cut(frame(run), len(run) // 2)
            run, size = [], 0
        yield Cut(payload, 0)
        keys.append(key)
        if len(keys) == _KEYS_IN_A_CHUNK:
            yield Cut(frame(keys), len(keys), is_keys=True)
            keys = []
    if run:
        yield Cut(frame(run), len(run) // 2)
    if keys:
        yield Cut(frame(keys), len(keys), is_keys=True)


def frame(parts: Sequence[bytes]) -> bytes:
    """Join byte strings: their number, their lengths (all uint32, little-endian), then themselves.

    >>> unframe(frame([b"ab", b""]))
    [b'ab', b'']
    """
    lengths = np.fromiter(map(len, parts), _LENGTH, len(parts))
    return b"".join((np.array([len(parts)], _LENGTH).tobytes(), lengths.tobytes(), *parts))


def unframe(data: bytes) -> list[bytes]:
    """Return what `frame` joined.

    Raises:
        CorruptCheckpoint: this is nothing that `frame` makes.
    """
    width = _LENGTH.itemsize
    if len(data) < width:
        raise CorruptCheckpoint("a chunk is shorter than its own header")
    count = int(np.frombuffer(data, _LENGTH, 1)[0])
    start = width * (1 + count)
    if start > len(data):
        raise CorruptCheckpoint(f"a chunk of {len(data)} bytes claims {count} parts")
    ends = start + np.cumsum(np.frombuffer(data, _LENGTH, count, width), dtype=np.uint64)
    if (int(ends[-1]) if count else start) != len(data):
        raise CorruptCheckpoint("the lengths in a chunk do not add up to its size")
    bounds = [start, *map(int, ends)]
    return [data[a:b] for a, b in zip(bounds, bounds[1:])]


def unframe_elements(data: bytes, count: int) -> list[Element]:
    """Return the elements of a chunk that should hold ``count`` of them.

    Raises:
        CorruptCheckpoint: it does not.
    """
    parts = unframe_keys(data, 2 * count)
    return list(zip(parts[::2], parts[1::2]))


def unframe_keys(data: bytes, count: int) -> list[bytes]:
    """Return the parts of a chunk that should hold ``count`` of them.

    Raises:
        CorruptCheckpoint: it does not.
    """
    parts = unframe(data)
    if len(parts) != count:
        raise CorruptCheckpoint(f"a chunk holds {len(parts)} parts where {count} are listed")
    return parts
