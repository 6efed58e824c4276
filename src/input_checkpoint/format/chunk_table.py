"""The chunk table of a manifest: one row per chunk, stored column by column."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Callable

import numpy as np
import numpy.typing as npt

from input_checkpoint.backends.base import Data
from input_checkpoint.errors import CorruptCheckpointError
from input_checkpoint.format.chunking import DIGEST_BYTES
from input_checkpoint.format.compression import compress_parts, decompress, padded
from input_checkpoint.format.limits import MAX_TABLE_RATIO

Column = npt.NDArray[Any]

_STORED_COLUMNS = (
    ("digest", np.dtype(f"V{DIGEST_BYTES}")),
    ("pack", np.dtype("<u4")),
    ("jump", np.dtype("<i8")),
    ("stored", np.dtype("<u4")),
    ("shrunk", np.dtype("<u4")),
    ("elements", np.dtype("<u4")),
)
ROW_BYTES = sum(dtype.itemsize for _, dtype in _STORED_COLUMNS)
_BLOCK_ROWS = 1 << 14
"""Rows that are converted at once, so that no temporary copy of a whole table is made."""


@dataclass(frozen=True)
class Location:
    """Where a chunk is stored."""

    pack: str
    """Key of the pack."""
    offset: int
    stored: int
    """Size of the chunk in the pack."""
    raw: int
    """Size of its content. Equal to ``stored`` if the chunk is not compressed."""


@dataclass(frozen=True, eq=False)
class ChunkTable:
    """Columns of equal length. The pack of a chunk is its position in the manifest's list of packs."""

    digest: Column
    pack: Column
    offset: Column
    stored: Column
    raw: Column
    elements: Column
    """Number of whole elements or keys that the chunk frames; 0 for the payload of one element."""

    def __len__(self) -> int:
        return len(self.pack)

    def slice(self, start: int, end: int) -> ChunkTable:
        """Return rows ``start`` to ``end``."""
        return self.take(slice(start, end))

    def take(self, rows: Any) -> ChunkTable:
        """Return the rows that a numpy index selects."""
        columns = (self.digest, self.pack, self.offset, self.stored, self.raw, self.elements)
        return ChunkTable(*(column[rows] for column in columns))

    def distinct(self, counts: Column) -> Column:
        """Return the numbers of the distinct rows: of equal rows, only the first.

        A state can list the same chunk a million times. Work that is done once per chunk needs only these
        rows.

        Args:
            counts: one more column that distinguishes rows.
        """
        digest = np.ascontiguousarray(self.digest).view("<u8").reshape(len(self), 2)
        columns = (digest[:, 0], digest[:, 1], self.pack, self.offset, self.stored, self.raw, counts)
        # lexsort is stable, so the first of equal rows comes first.
        order = np.lexsort(columns)
        is_new = np.zeros(len(order), bool)
        is_new[:1] = True
        for column in columns:
            is_new[1:] |= column[order[1:]] != column[order[:-1]]
        return np.sort(order[is_new])

    def locations(self, packs: Sequence[str]) -> Iterator[tuple[bytes, Location]]:
        """Yield the digest and the location of every chunk.

        Args:
            packs: keys of the manifest's packs, in order.
        """
        for start in range(0, len(self), _BLOCK_ROWS):
            block = self.slice(start, start + _BLOCK_ROWS)
            rows = zip(*(column.tolist() for column in (block.pack, block.offset, block.stored, block.raw)))
            for name, (pack, offset, stored, raw) in zip(block.digest, rows):
                yield name.tobytes(), Location(packs[pack], offset, stored, raw)

    def encode(self) -> bytes:
        """Return the stored form of the table, see `encode_table`."""
        return encode_table(len(self), lambda name, rows: getattr(self, name)[rows])


def encode_table(count: int, column: Callable[[str, slice], Column]) -> bytes:
    """Return the stored form of a table: its columns one after another, compressed with zstd.

    An offset is stored as the distance from the end of the previous chunk, and a content size as the bytes
    that compression saved. A typical row therefore consists mostly of zeros.

    Args:
        count: number of rows.
        column: returns the given rows of the named `ChunkTable` column. It is called for a few thousand rows
            at a time, so the whole table need not be in memory.
    """

    def blocks() -> Iterator[bytes]:
        for name, dtype in _STORED_COLUMNS:
            for start in range(0, count, _BLOCK_ROWS):
                rows = slice(start, min(count, start + _BLOCK_ROWS))
                yield _stored_column(name, rows, column).astype(dtype, copy=False).tobytes()

    size = count * ROW_BYTES
    return padded(compress_parts(blocks(), size), size, MAX_TABLE_RATIO)


def _stored_column(name: str, rows: slice, column: Callable[[str, slice], Column]) -> Column:
    if name == "jump":
        previous = slice(max(0, rows.start - 1), rows.stop - 1)
        jump = column("offset", rows).astype(np.int64)
        jump[rows.start == 0 :] -= (column("offset", previous) + column("stored", previous)).astype(np.int64)
        return jump
    if name == "shrunk":
        return column("raw", rows) - column("stored", rows)
    return column(name, rows)


def decode_table(data: Data, rows: int) -> ChunkTable:
    """Return the table of ``rows`` rows that `encode_table` encoded.

    Needs 64 bytes of memory per row, and allocates nothing before it has checked that ``data`` may hold that
    many rows, see `limits.MAX_TABLE_RATIO`.

    Raises:
        CorruptCheckpointError: ``data`` is not such a table.
    """
    columns = _split_columns(decompress(data, rows * ROW_BYTES, MAX_TABLE_RATIO), rows)
    return ChunkTable(
        digest=columns["digest"],
        pack=columns["pack"],
        offset=_offsets(columns["jump"], columns["stored"]),
        stored=columns["stored"],
        raw=np.add(columns["stored"], columns["shrunk"], dtype=np.int64),
        elements=columns["elements"].astype(np.int64),
    )


def _split_columns(raw: bytes, rows: int) -> Mapping[str, Column]:
    columns: dict[str, Column] = {}
    start = 0
    for name, dtype in _STORED_COLUMNS:
        columns[name] = np.frombuffer(raw, dtype, rows, start)
        start += dtype.itemsize * rows
    return columns


def _offsets(jump: Column, stored: Column) -> Column:
    offset: Column = np.cumsum(jump + stored)
    offset -= stored
    if len(offset) and int(offset.min()) < 0:
        raise CorruptCheckpointError("a chunk starts before its pack")
    return offset
