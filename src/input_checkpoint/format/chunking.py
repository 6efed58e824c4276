"""Chunks: what is stored once however many checkpoints hold it.

A large payload is a chunk of its own. Small elements share one, as do the keys of the large ones.
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
from input_checkpoint.errors import CorruptCheckpointError
from input_checkpoint.state import Element

DIGEST_BYTES = 16

_RUN_BYTES = 1 << 10
_KEY_BYTES = 32
"""What an element's key and framing are taken for, compressed."""
_BOILERPLATE_BYTES = 128
"""Of a payload below this size most is what TensorFlow writes round every tensor, and compresses well."""
_LONGEST_RUN = 32


def _run_length(payload_bytes: int) -> int:
    """Return how many elements of this size share a chunk: the power of two that comes next to 1 KiB.

    Powers of two, since runs end where the position is a multiple of one: where sizes are mixed the ends of
    long runs are ends of short ones too.
    """
    weight = payload_bytes + _KEY_BYTES
    if payload_bytes < _BOILERPLATE_BYTES:
        weight //= 2
    return int(2 ** min(math.log2(_LONGEST_RUN), max(0, round(math.log2(_RUN_BYTES / weight)))))


_RUN_LENGTHS = tuple(map(_run_length, range(_RUN_BYTES)))

LARGE_PAYLOAD = _RUN_LENGTHS.index(1)
"""From this size on a payload is a chunk of its own: an entry in the manifest then costs under 3 % of it."""

_SHORTEST_STRETCH = 64
"""Elements after which positions may be counted anew."""
_KEYS_TO_A_STRETCH = 128
"""At one key in so many they are."""

_FEWEST_KEYS = 256
_USUAL_KEYS = 1024
_MOST_KEYS = 4096

_LENGTH_BYTES = 4
_32_BITS = (1 << 32) - 1
_GOLDEN = 0x9E3779B1


@dataclass(frozen=True)
class ChunkContent:
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


def split_into_chunks(elements: Iterable[Element]) -> Iterator[ChunkContent]:
    """Cut elements into chunks, in order. The keys of large payloads come in chunks in between.

    Where a run of small elements ends depends on keys and on the position, not on what changes from save to
    save: one payload that is replaced changes one chunk, and a short one. An element more or less changes
    chunks only as far as the next key that begins a stretch.

    >>> elements = [(b"k1", b"small"), (b"k2", b"x" * 5000), (b"k3", b"")]
    >>> [(chunk.elements, chunk.is_keys) for chunk in split_into_chunks(elements)]
    [(1, False), (0, False), (1, False), (1, True)]
    """
    run: list[bytes] = []
    position = 0
    keys: list[bytes] = []
    for key, payload in elements:
        large = len(payload) >= LARGE_PAYLOAD
        if large or (position >= _SHORTEST_STRETCH and _ends(key, _KEYS_TO_A_STRETCH)):
            if run:
                yield _run(run)
            run, position = [], 0
        if not large:
            run += (key, payload)
            position += 1
            if not position % _RUN_LENGTHS[len(payload)]:
                yield _run(run)
                run = []
            continue
        yield ChunkContent(payload, 0)
        keys.append(key)
        if len(keys) == _MOST_KEYS or (len(keys) >= _FEWEST_KEYS and _ends(key, _USUAL_KEYS)):
            yield ChunkContent(frame(keys), len(keys), is_keys=True)
            keys = []
    if run:
        yield _run(run)
    if keys:
        yield ChunkContent(frame(keys), len(keys), is_keys=True)


def _ends(key: bytes, usual: int) -> bool:
    """Whether something ends at a key, which is so for about one in ``usual``."""
    # A CRC is linear: of keys that differ in a number only, perhaps none has certain bits. Hence the product.
    return not (zlib.crc32(key) * _GOLDEN & _32_BITS) * usual >> 32


def _run(parts: Sequence[bytes]) -> ChunkContent:
    return ChunkContent(frame(parts), len(parts) // 2)


def frame(parts: Sequence[bytes]) -> bytes:
    """Join byte strings: their number, their lengths (all uint32, little-endian), then themselves.

    >>> unframe(frame([b"ab", b""]), 2)
    [b'ab', b'']
    """
    head = struct.pack(f"<{1 + len(parts)}I", len(parts), *map(len, parts))
    return b"".join((head, *parts))


def unframe(data: bytes, count: int) -> list[bytes]:
    """Return what `frame` joined, which should be ``count`` parts.

    Raises:
        CorruptCheckpointError: this is nothing that `frame` makes of so many.
    """
    start = _LENGTH_BYTES * (1 + count)
    # Before memory is taken for it: a number of parts is no more than a claim.
    if start > len(data):
        raise CorruptCheckpointError(
            f"a chunk of {len(data)} bytes cannot hold the {count} parts that are listed"
        )
    found, *lengths = struct.unpack_from(f"<{1 + count}I", data)
    if found != count:
        raise CorruptCheckpointError(f"a chunk holds {found} parts where {count} are listed")
    bounds = list(itertools.accumulate(lengths, initial=start))
    if bounds[-1] != len(data):
        raise CorruptCheckpointError("the lengths in a chunk do not add up to its size")
    return [data[a:b] for a, b in zip(bounds, bounds[1:])]


def unframe_elements(data: bytes, count: int) -> list[Element]:
    """Return the elements of a chunk that should hold ``count`` of them.

    Raises:
        CorruptCheckpointError: it does not.
    """
    parts = iter(unframe(data, 2 * count))
    return list(zip(parts, parts))
