"""Chunks: the units that are stored once, however many checkpoints contain them.

A large payload is a chunk of its own. Small elements are grouped into shared chunks, and so are the keys of
large payloads.
"""

from __future__ import annotations

import itertools
import math
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from blake3 import blake3

from input_checkpoint.backends.base import Data
from input_checkpoint.errors import CheckpointTooLargeError, CorruptCheckpointError
from input_checkpoint.format.limits import MAX_CHUNK_BYTES, MAX_CHUNK_ELEMENTS
from input_checkpoint.state import Element, Payload

DIGEST_BYTES = 16

_GROUP_BYTES = 1 << 10
"""Target size of a chunk of small elements."""
_MAX_GROUP_ELEMENTS = 32
_KEY_BYTES = 32
"""Estimated size of an element's key and framing after compression."""
_MOSTLY_OVERHEAD_BYTES = 128
"""Payloads below this size consist mostly of TensorFlow's encoding of a tensor, which compresses well."""
_SINGLE_NUMBER_BYTES = 96
"""Payloads below this size hold little more than one number, and compress even better."""


def _group_size(payload_bytes: int) -> int:
    """Return how many elements of this size share a chunk: the power of two closest to `_GROUP_BYTES`.

    A group ends where the position is a multiple of its size. With powers of two, the end of a large group is
    also the end of a smaller one, so boundaries stay stable where payload sizes are mixed.
    """
    element_bytes = payload_bytes + _KEY_BYTES
    if payload_bytes < _SINGLE_NUMBER_BYTES:
        element_bytes //= 4
    elif payload_bytes < _MOSTLY_OVERHEAD_BYTES:
        element_bytes //= 2
    exponent = round(math.log2(_GROUP_BYTES / element_bytes))
    return int(2 ** min(math.log2(_MAX_GROUP_ELEMENTS), max(0, exponent)))


_GROUP_SIZES = tuple(map(_group_size, range(_GROUP_BYTES)))

LARGE_PAYLOAD_BYTES = _GROUP_SIZES.index(1)
"""A payload of at least this size is a chunk of its own. Its row in the manifest adds less than 3 %."""

_MIN_SEGMENT_ELEMENTS = 64
"""Number of small elements after which a key may begin a new segment, in which positions start at 0."""
_KEYS_PER_SEGMENT_START = 128
"""On average one key in this many begins a new segment."""

_MIN_KEYS = 256
_AVERAGE_KEYS = 1024
_MAX_KEYS = 4096

_LENGTH_BYTES = 4
_32_BITS = (1 << 32) - 1
_GOLDEN_RATIO = 0x9E3779B1


@dataclass(frozen=True)
class ChunkContent:
    """The content of a chunk before it is compressed and put into a pack."""

    data: Payload
    elements: int
    """Number of whole elements or keys that it frames; 0 for the payload of one element."""
    is_keys: bool = False


def digest(data: Data) -> bytes:
    """Return the 128-bit BLAKE3 checksum of ``data``.

    The hash is cryptographic, because training data may come from strangers and a chunk is identified by its
    checksum alone.
    """
    return blake3(data).digest(length=DIGEST_BYTES)


def split_into_chunks(elements: Iterable[Element]) -> Iterator[ChunkContent]:
    """Yield the chunks of the elements, in order. Chunks of keys come between the large payloads.

    Group boundaries depend on keys and positions, which rarely change from save to save, and not on payloads.
    Replacing one payload changes one small chunk. Inserting or removing an element changes chunks only up to
    the next key that begins a segment.

    Raises:
        CheckpointTooLargeError: a key or a payload is larger than a chunk can be.

    Example:
        >>> elements = [(b"k1", b"small"), (b"k2", b"x" * 5000), (b"k3", b"")]
        >>> [(chunk.elements, chunk.is_keys) for chunk in split_into_chunks(elements)]
        [(1, False), (0, False), (1, False), (1, True)]
    """
    group: list[Payload] = []
    position = 0
    keys: list[bytes] = []
    for key, payload in elements:
        large = len(payload) >= LARGE_PAYLOAD_BYTES
        if large or (position >= _MIN_SEGMENT_ELEMENTS and _is_boundary(key, _KEYS_PER_SEGMENT_START)):
            if group:
                yield _element_chunk(group)
            group, position = [], 0
        if not large:
            group += (key, payload)
            position += 1
            if not position % _GROUP_SIZES[len(payload)]:
                yield _element_chunk(group)
                group = []
            continue
        _check_size(len(payload), "the payload of an element")
        yield ChunkContent(payload, 0)
        keys.append(key)
        if len(keys) == _MAX_KEYS or (len(keys) >= _MIN_KEYS and _is_boundary(key, _AVERAGE_KEYS)):
            yield _key_chunk(keys)
            keys = []
    if group:
        yield _element_chunk(group)
    if keys:
        yield _key_chunk(keys)


def _is_boundary(key: bytes, one_in: int) -> bool:
    """Whether a key is a boundary, which on average one key in ``one_in`` is."""
    # A CRC is linear: keys that differ only in a number may never have certain bits. Hence the product.
    return not (zlib.crc32(key) * _GOLDEN_RATIO & _32_BITS) * one_in >> 32


def _element_chunk(keys_and_payloads: Sequence[Payload]) -> ChunkContent:
    return ChunkContent(frame(keys_and_payloads), len(keys_and_payloads) // 2)


def _key_chunk(keys: Sequence[bytes]) -> ChunkContent:
    return ChunkContent(frame(keys), len(keys), is_keys=True)


def _check_size(size: int, what: str) -> None:
    if size > MAX_CHUNK_BYTES:
        raise CheckpointTooLargeError(
            f"{what} has {size} bytes, but the storage format allows at most {MAX_CHUNK_BYTES}. Make the "
            "elements of the pipeline smaller, such as by batching later."
        )


def frame(parts: Sequence[Payload]) -> bytes:
    """Join byte strings: their number, their lengths (all uint32, little-endian), then the strings.

    Raises:
        CheckpointTooLargeError: together they are larger than a chunk can be.

    Example:
        >>> unframe(frame([b"ab", b""]), 2)
        [b'ab', b'']
    """
    _check_size(
        _LENGTH_BYTES * (1 + len(parts)) + sum(map(len, parts)), f"a group of {len(parts)} keys and payloads"
    )
    head = struct.pack(f"<{1 + len(parts)}I", len(parts), *map(len, parts))
    return b"".join((head, *parts))


def unframe(data: bytes, count: int) -> list[bytes]:
    """Return the ``count`` parts that `frame` joined.

    Raises:
        CorruptCheckpointError: ``data`` is not a frame of ``count`` parts.
    """
    start = _LENGTH_BYTES * (1 + count)
    if count > 2 * MAX_CHUNK_ELEMENTS:
        raise CorruptCheckpointError(f"a chunk claims to hold {count} parts, more than the format allows")
    # Checked before memory is allocated: the number of parts is only a claim.
    if start > len(data):
        raise CorruptCheckpointError(
            f"a chunk of {len(data)} bytes cannot hold the {count} parts that are listed"
        )
    found, *lengths = struct.unpack_from(f"<{1 + count}I", data)
    if found != count:
        raise CorruptCheckpointError(f"a chunk holds {found} parts, but {count} are listed")
    bounds = list(itertools.accumulate(lengths, initial=start))
    if bounds[-1] != len(data):
        raise CorruptCheckpointError("the lengths in a chunk do not add up to its size")
    return [data[begin:end] for begin, end in zip(bounds, bounds[1:])]


def unframe_elements(data: bytes, count: int) -> list[Element]:
    """Return the ``count`` elements of a chunk.

    Raises:
        CorruptCheckpointError: ``data`` is not a frame of ``count`` elements.
    """
    parts = iter(unframe(data, 2 * count))
    return list(zip(parts, parts))
