"""The chunk table of a manifest: one row a chunk, kept and stored by columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Callable

import numpy as np
import numpy.typing as npt

from input_checkpoint.errors import CorruptCheckpointError
from input_checkpoint.format.chunking import DIGEST_BYTES
from input_checkpoint.format.compression import compress_parts, decompress

Column = npt.NDArray[Any]

_COLUMNS = (
    ("digest", np.dtype(f"V{DIGEST_BYTES}")),
    ("pack", np.dtype("<u4")),
    ("jump", np.dtype("<i8")),
    ("stored", np.dtype("<u4")),
    ("shrunk", np.dtype("<u4")),
    ("elements", np.dtype("<u4")),
)
ROW_BYTES = sum(dtype.itemsize for _, dtype in _COLUMNS)
_ROWS_AT_ONCE = 1 << 14


@dataclass(frozen=True)
class Location:
    """Where a chunk is stored."""

    pack: str
    """Key of the pack."""
    offset: int
    stored: int
    """Bytes in the pack."""
    raw: int
    """Bytes of its content. Equal to ``stored`` if it is not compressed."""


@dataclass(frozen=True, eq=False)
class ChunkTable:
    """Columns of equal length. A chunk's pack is a position in the manifest's list of packs."""

    digest: Column
    pack: Column
    offset: Column
    stored: Column
    raw: Column
    elements: Column
    """Whole elements or keys that the chunk frames; 0 for the payload of one element."""

    def __len__(self) -> int:
        return len(self.pack)

    def slice(self, start: int, end: int) -> ChunkTable:
        """Return rows ``start`` to ``end``."""
        return self.take(slice(start, end))

    def take(self, rows: Any) -> ChunkTable:
        """Return the rows that a numpy index names."""
        columns = (self.digest, self.pack, self.offset, self.stored, self.raw, self.elements)
        return ChunkTable(*(column[rows] for column in columns))

    def locations(self, packs: Sequence[str]) -> Iterator[tuple[bytes, Location]]:
        """Yield the digest and the location of every chunk. ``packs`` are the manifest's."""
        for start in range(0, len(self), _ROWS_AT_ONCE):
            part = self.slice(start, start + _ROWS_AT_ONCE)
            rows = zip(*(column.tolist() for column in (part.pack, part.offset, part.stored, part.raw)))
            for name, (pack, offset, stored, raw) in zip(part.digest, rows):
                yield name.tobytes(), Location(packs[pack], offset, stored, raw)

    def encode(self) -> bytes:
        """Return the table as it is stored, see `encode_table`."""
        return encode_table(len(self), lambda name, rows: getattr(self, name)[rows])


def encode_table(count: int, column: Callable[[str, slice], Column]) -> bytes:
    """Return a table of ``count`` rows as it is stored: its columns one after another, zstd-compressed.

    An offset is stored as the jump from the end of the chunk before, a length as what compression took
    off, so that the usual row is mostly zeros.

    Args:
        count: how many rows.
        column: gives some rows of a column of `ChunkTable`. Asked for a few thousand at a time, so that the
            whole table need not be in memory.
    """

    def parts() -> Iterator[bytes]:
        for name, dtype in _COLUMNS:
            for start in range(0, count, _ROWS_AT_ONCE):
                rows = slice(start, min(count, start + _ROWS_AT_ONCE))
                yield _stored_column(name, rows, column).astype(dtype, copy=False).tobytes()

    return compress_parts(parts(), count * ROW_BYTES)


def _stored_column(name: str, rows: slice, column: Callable[[str, slice], Column]) -> Column:
    if name == "jump":
        above = slice(max(0, rows.start - 1), rows.stop - 1)
        jump = column("offset", rows).astype(np.int64)
        jump[rows.start == 0 :] -= (column("offset", above) + column("stored", above)).astype(np.int64)
        return jump
    if name == "shrunk":
        return column("raw", rows) - column("stored", rows)
    return column(name, rows)


def decode_table(data: bytes, rows: int) -> ChunkTable:
    """Return the table of ``rows`` rows that `ChunkTable.encode` gave.

    Takes 64 bytes a row, and none before it is certain that ``data`` can hold so many.

    Raises:
        CorruptCheckpointError: it is something else.
    """
    raw = decompress(data, rows * ROW_BYTES)
    columns: dict[str, Column] = {}
    start = 0
    for name, dtype in _COLUMNS:
        columns[name] = np.frombuffer(raw, dtype, rows, start)
        start += dtype.itemsize * rows
    offset: Column = np.cumsum(columns["jump"] + columns["stored"])
    offset -= columns["stored"]
    if rows and int(offset.min()) < 0:
        raise CorruptCheckpointError("a chunk starts before its pack")
    return ChunkTable(
        digest=columns["digest"],
        pack=columns["pack"],
        offset=offset,
        stored=columns["stored"],
        raw=np.add(columns["stored"], columns["shrunk"], dtype=np.int64),
        elements=columns["elements"].astype(np.int64),
    )
