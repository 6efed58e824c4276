"""Chunk tables of a few rows."""

from __future__ import annotations

import numpy as np

from input_checkpoint.chunks import DIGEST_BYTES
from input_checkpoint.table import ChunkTable

Row = tuple[bytes, int, int, int, int, int]


def table_of(*rows: Row) -> ChunkTable:
    """A table of rows (digest, pack, offset, stored, raw, elements)."""
    digests, *numbers = zip(*rows) if rows else ((),) * 6
    return ChunkTable(
        np.array(digests, f"V{DIGEST_BYTES}"), *(np.array(column, np.int64) for column in numbers)
    )
