"""Chunks: runs of buffered elements, framed and named by their checksum.

A chunk is ``count`` (uint32), ``count`` element lengths (uint32), then the elements' bytes, all
little-endian.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from blake3 import blake3

from input_checkpoint.backend import Data
from input_checkpoint.errors import CorruptCheckpoint

DIGEST_BYTES = 16
_LENGTH = np.dtype("<u4")
_TARGET_BYTES = 1 << 20
_MOST_ELEMENTS = 1 << 16


def digest(data: Data) -> bytes:
    """Return the 128-bit BLAKE3 checksum of ``data``.

    A cryptographic hash, since training data can come from strangers and a checksum names its content.
    """
    return blake3(data).digest(length=DIGEST_BYTES)


def runs(elements: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Group elements, in order, into runs of about 1 MiB, so that small ones share a chunk.

    >>> [len(run) for run in runs([b"x" * 600_000] * 3)]
    [2, 1]
    """
    run: list[bytes] = []
    size = 0
    for element in elements:
        run.append(element)
        size += len(element)
        if size >= _TARGET_BYTES or len(run) == _MOST_ELEMENTS:
            yield run
            run, size = [], 0
    if run:
        yield run


def frame(elements: Sequence[bytes]) -> bytes:
    """Return one chunk that holds ``elements``.

    >>> unframe(frame([b"ab", b""]))
    [b'ab', b'']
    """
    lengths = np.fromiter(map(len, elements), _LENGTH, len(elements))
    count = np.array([len(elements)], _LENGTH)
    return b"".join((count.tobytes(), lengths.tobytes(), *elements))


def unframe(chunk: bytes) -> list[bytes]:
    """Return the elements of a chunk, after checking that its lengths add up.

    Raises:
        CorruptCheckpoint: the frame is not one that `frame` makes.
    """
    width = _LENGTH.itemsize
    if len(chunk) < width:
        raise CorruptCheckpoint("a chunk is shorter than its own header")
    count = int(np.frombuffer(chunk, _LENGTH, 1)[0])
    start = width * (1 + count)
    if start > len(chunk):
        raise CorruptCheckpoint(f"a chunk of {len(chunk)} bytes claims {count} elements")
    ends = start + np.cumsum(np.frombuffer(chunk, _LENGTH, count, width), dtype=np.uint64)
    if (int(ends[-1]) if count else start) != len(chunk):
        raise CorruptCheckpoint("the element lengths of a chunk do not add up to its size")
    bounds = [start, *map(int, ends)]
    return [chunk[a:b] for a, b in zip(bounds, bounds[1:])]
