"""A memory-efficient table that maps digests to row numbers and back."""

from __future__ import annotations

import secrets
import struct
from typing import Any, Optional

import numpy as np

from input_checkpoint.format.chunking import DIGEST_BYTES

_HALVES = struct.Struct("<2Q")
_64_BITS = (1 << 64) - 1
_MIN_BUCKETS = 1 << 10
_BUCKETS_PER_DIGEST = 3.4
"""More than twice what `_MAX_LOAD` requires, so a save that doubles the digests causes no rebuild."""
_MAX_LOAD = 0.6
_OVERFLOW_SLOTS = 64
"""Slots after the last bucket, because a digest may be stored after its own bucket."""


class DigestTable:
    """Numbers digests in the order in which they are added, and looks up the number of a digest.

    A hash table with open addressing in flat arrays. It needs 23 to 30 bytes per digest, of which 16 are the
    digest itself. A dictionary needs 200. The hash depends on random numbers, because an attacker may have
    chosen the digests in a manifest so that they collide.

    Args:
        factors: the two 64-bit numbers that the hash depends on. None: random ones.

    Example:
        >>> rows = DigestTable()
        >>> rows.add(b"0123456789abcdef"), rows.add(b"fedcba9876543210")
        (0, 1)
        >>> rows.find(b"fedcba9876543210"), rows.find(bytes(16))
        (1, -1)
    """

    def __init__(self, factors: Optional[tuple[int, int]] = None) -> None:
        self._digests = bytearray()
        self._factors = factors or (secrets.randbits(64) | 1, secrets.randbits(64) | 1)
        self._rebuild()

    def __len__(self) -> int:
        return len(self._digests) // DIGEST_BYTES

    def find(self, digest: bytes) -> int:
        """Return the row of a digest, or -1 if it is not in the table."""
        row: int
        slots, digests = self._slots, self._digests
        slot = self._hash(digest) * self._buckets >> 32
        while (row := slots[slot]) >= 0:
            start = row * DIGEST_BYTES
            if digests[start : start + DIGEST_BYTES] == digest:
                return row
            slot += 1
        return -1

    def add(self, digest: bytes) -> int:
        """Add a digest that is not in the table, and return its row."""
        row = len(self)
        self._digests += digest
        slots = self._slots
        slot = self._hash(digest) * self._buckets >> 32
        while slots[slot] >= 0:
            slot += 1
        slots[slot] = row
        # The last slot stays empty, so that every search ends.
        if row > _MAX_LOAD * self._buckets or slot + 1 == len(slots):
            self._rebuild()
        return row

    def column(self) -> np.ndarray[Any, Any]:
        """Return all digests, by row. The array must be released before the table changes."""
        return np.frombuffer(self._digests, f"V{DIGEST_BYTES}")

    def keep(self, rows: Any) -> None:
        """Keep the rows that a numpy index selects, and renumber them in that order."""
        self._digests = bytearray(self.column()[rows].view(np.uint8))
        self._rebuild()

    def _hash(self, digest: bytes) -> int:
        first: int
        second: int
        first, second = _HALVES.unpack(digest)
        return (first * self._factors[0] + second * self._factors[1] & _64_BITS) >> 32

    def _rebuild(self) -> None:
        halves = np.frombuffer(self._digests, "<u8").reshape(-1, 2)
        hashes = halves[:, 0] * np.uint64(self._factors[0])
        hashes += halves[:, 1] * np.uint64(self._factors[1])
        hashes >>= np.uint64(32)
        count = len(hashes)
        self._buckets = max(_MIN_BUCKETS, int(_BUCKETS_PER_DIGEST * count))
        self._slots = memoryview(b"")  # frees the old slots before the new ones are allocated
        order = np.argsort(hashes, kind="stable")
        positions = hashes[order].astype(np.int64)
        positions *= self._buckets
        positions >>= 32
        # Each digest goes into its own bucket, or right after the previous digest if that is later.
        step = np.arange(count, dtype=np.int32)
        positions -= step
        np.maximum.accumulate(positions, out=positions)
        positions += step
        end = max(self._buckets, int(positions[-1]) + 1 if count else 0)
        slots: Any = np.full(end + _OVERFLOW_SLOTS, -1, np.int32)
        slots[positions] = order
        self._slots = memoryview(slots)
