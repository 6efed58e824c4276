"""Digests by row number, and row numbers by digest, in little memory."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from input_checkpoint.format.chunking import DIGEST_BYTES

_PREFIX = struct.Struct("<I")
_LEAST_HOMES = 1 << 10
_HOMES_A_DIGEST = 3.4
"""More than twice `_FULLEST` asks for, so that a save in which all is new does not build anew at its peak."""
_FULLEST = 0.6
_SPARE_SLOTS = 64


class DigestTable:
    """Numbers digests in the order in which they are added, and finds them again.

    A hash table with open addressing in flat arrays: 16 bytes a digest and 7 to 14 for finding it, where a
    dictionary takes 200. Digests are random, so their first bytes serve as the hash.

    Example:
        >>> rows = DigestTable()
        >>> rows.add(b"0123456789abcdef"), rows.add(b"fedcba9876543210")
        (0, 1)
        >>> rows.find(b"fedcba9876543210"), rows.find(bytes(16))
        (1, -1)
    """

    def __init__(self) -> None:
        self._digests = bytearray()
        self._build()

    def __len__(self) -> int:
        return len(self._digests) // DIGEST_BYTES

    def find(self, digest: bytes) -> int:
        """Return the row of a digest, or -1."""
        row: int
        slots, digests = self._slots, self._digests
        slot = _PREFIX.unpack_from(digest)[0] * self._homes >> 32
        while (row := slots[slot]) >= 0:
            start = row * DIGEST_BYTES
            if digests[start : start + DIGEST_BYTES] == digest:
                return row
            slot += 1
        return -1

    def add(self, digest: bytes) -> int:
        """Add a digest that is not there yet, and return its row."""
        row = len(self)
        self._digests += digest
        slots = self._slots
        slot = _PREFIX.unpack_from(digest)[0] * self._homes >> 32
        while slots[slot] >= 0:
            slot += 1
        slots[slot] = row
        # The last slot stays empty, so that every search ends.
        if row > _FULLEST * self._homes or slot + 1 == len(slots):
            self._build()
        return row

    def column(self) -> np.ndarray[Any, Any]:
        """Return all digests, by row. Drop the array before the next change."""
        return np.frombuffer(self._digests, f"V{DIGEST_BYTES}")

    def keep(self, rows: Any) -> None:
        """Keep the rows that a numpy index names, numbered anew in that order."""
        self._digests = bytearray(self.column()[rows].view(np.uint8))
        self._build()

    def _build(self) -> None:
        prefixes = np.frombuffer(self._digests, "<u4")[:: DIGEST_BYTES // 4]
        count = len(prefixes)
        self._homes = max(_LEAST_HOMES, int(_HOMES_A_DIGEST * count))
        self._slots = memoryview(b"")  # not twice in memory
        order = np.argsort(prefixes, kind="stable")
        places = prefixes[order].astype(np.int64)
        places *= self._homes
        places >>= 32
        # Each stands at its home, or directly behind the one before it if that is later.
        step = np.arange(count, dtype=np.int32)
        places -= step
        np.maximum.accumulate(places, out=places)
        places += step
        end = max(self._homes, int(places[-1]) + 1 if count else 0)
        slots: Any = np.full(end + _SPARE_SLOTS, -1, np.int32)
        slots[places] = order
        self._slots = memoryview(slots)
