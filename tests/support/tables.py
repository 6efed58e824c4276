"""Small chunk tables for tests."""

from __future__ import annotations

import numpy as np

from input_checkpoint.format.chunk_table import ChunkTable
from input_checkpoint.format.chunking import DIGEST_BYTES

Row = tuple[bytes, int, int, int, int, int]


def table_of(*rows: Row) -> ChunkTable:
    """Return a table of rows (digest, pack, offset, stored, raw, elements)."""
    digests, *numbers = zip(*rows) if rows else ((),) * 6
    return ChunkTable(
        np.array(digests, f"V{DIGEST_BYTES}"), *(np.array(column, np.int64) for column in numbers)
    )
