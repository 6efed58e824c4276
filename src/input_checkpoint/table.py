"""The chunk table of a manifest: one row a chunk, kept and stored by columns."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from input_checkpoint.chunks import DIGEST_BYTES
from input_checkpoint.compression import compress, decompress
from input_checkpoint.errors import CorruptCheckpoint

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
        rows = zip(*(column.tolist() for column in (self.pack, self.offset, self.stored, self.raw)))
        for name, (pack, offset, stored, raw) in zip(self.digest, rows):
            yield name.tobytes(), Location(packs[pack], offset, stored, raw)

    def encode(self) -> bytes:
        """Return the table as it is stored: its columns one after another, zstd-compressed.

        An offset is stored as the jump from the end of the chunk before, a length as what compression took
        off, so that the usual row is mostly zeros.
        """
        ends = np.concatenate(([0], (self.offset + self.stored)[:-1])) if len(self) else self.offset
        columns = {
            "digest": self.digest,
            "pack": self.pack,
            "jump": self.offset.astype("<i8") - ends.astype("<i8"),
            "stored": self.stored,
            "shrunk": self.raw - self.stored,
            "elements": self.elements,
        }
        return compress(b"".join(columns[name].astype(dtype).tobytes() for name, dtype in _COLUMNS))


def decode_table(data: bytes, rows: int) -> ChunkTable:
    """Return the table of ``rows`` rows that `ChunkTable.encode` gave.

    Raises:
        CorruptCheckpoint: it is something else.
    """
    raw = decompress(data, rows * ROW_BYTES)
    columns: dict[str, Column] = {}
    start = 0
    for name, dtype in _COLUMNS:
        columns[name] = np.frombuffer(raw, dtype, rows, start)
        start += dtype.itemsize * rows
    stored = columns["stored"].astype(np.int64)
    starts = np.concatenate(([0], np.cumsum(stored + columns["jump"])[:-1])) if rows else stored
    offset = starts + columns["jump"]
    if rows and int(offset.min()) < 0:
        raise CorruptCheckpoint("a chunk starts before its pack")
    return ChunkTable(
        digest=columns["digest"],
        pack=columns["pack"].astype(np.int64),
        offset=offset,
        stored=stored,
        raw=stored + columns["shrunk"],
        elements=columns["elements"].astype(np.int64),
    )


class TableBuilder:
    """Collects rows in little memory."""

    def __init__(self) -> None:
        self._digests = bytearray()
        self._packs, self._offsets, self._stored, self._raw, self._elements = (array("q") for _ in range(5))

    def __len__(self) -> int:
        return len(self._packs)

    @property
    def elements(self) -> int:
        """Sum of the column ``elements``, where a payload counts as one."""
        return sum(count or 1 for count in self._elements)

    @property
    def raw_bytes(self) -> int:
        """Sum of the column ``raw``."""
        return sum(self._raw)

    def add(self, digest: bytes, pack: int, location: Location, elements: int) -> None:
        """Append a row. ``pack`` is the position of the location's pack in the manifest."""
        self._digests += digest
        self._packs.append(pack)
        self._offsets.append(location.offset)
        self._stored.append(location.stored)
        self._raw.append(location.raw)
        self._elements.append(elements)

    def build(self, *others: TableBuilder) -> ChunkTable:
        """Return the table of these rows and then those of ``others``."""
        builders = (self, *others)
        digests = b"".join(bytes(builder._digests) for builder in builders)

        def column(name: str) -> Column:
            return np.concatenate([np.array(getattr(builder, name), np.int64) for builder in builders])

        return ChunkTable(
            digest=np.frombuffer(digests, f"V{DIGEST_BYTES}"),
            pack=column("_packs"),
            offset=column("_offsets"),
            stored=column("_stored"),
            raw=column("_raw"),
            elements=column("_elements"),
        )
