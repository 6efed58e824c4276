"""The index of chunks that are already stored, and the choice of packs to rewrite."""

from __future__ import annotations

import contextlib
from array import array
from collections.abc import Collection, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any, Callable

import numpy as np

from input_checkpoint.format.chunk_table import Column, Location, encode_table
from input_checkpoint.format.manifest import Manifest
from input_checkpoint.store.digest_table import DigestTable

MIN_LIVE_SHARE = 0.25
"""A pack with a smaller share of live bytes is sparse: saves store its live chunks again."""

REWRITE_SHARE = 0.01
"""Largest number of live bytes from sparse packs that one save stores again, as a share of the state. It
spreads the work when many packs become sparse at the same time."""

MAX_OLDER_CHUNKS = 1 << 19
"""Largest number of chunks to remember besides those of the newest checkpoint. They need 22 MB of memory."""


@dataclass(frozen=True)
class ChunkRows:
    """The chunks of a checkpoint, in order, by their rows in a `ChunkIndex`. Eight bytes per chunk."""

    rows: array[int] = field(default_factory=lambda: array("I"))
    elements: array[int] = field(default_factory=lambda: array("I"))
    """Number of whole elements or keys that each chunk frames; 0 for the payload of one element."""

    def __len__(self) -> int:
        return len(self.rows)

    def add(self, row: int, elements: int) -> None:
        """Append a chunk."""
        self.rows.append(row)
        self.elements.append(elements)

    @property
    def total_elements(self) -> int:
        """Number of elements or keys in all chunks. A large payload counts as one."""
        return int(np.maximum(_view(self.elements), 1).sum(dtype=np.int64))

    @staticmethod
    def joined(parts: Collection[ChunkRows]) -> ChunkRows:
        """Return the chunks of all parts, in order."""
        joined = ChunkRows()
        for part in parts:
            joined.rows.extend(part.rows)
            joined.elements.extend(part.elements)
        return joined


class ChunkIndex:
    """The chunks of committed checkpoints and of the save in flight, by digest.

    Holds only chunks that this run has restored or stored itself, so a new checkpoint never refers to data
    that has not been verified. Stored in columns instead of objects, at about 45 bytes per chunk.
    """

    def __init__(self) -> None:
        self._digests = DigestTable()
        self._pack, self._stored, self._raw = array("I"), array("I"), array("I")
        self._offset = array("Q")
        self._packs: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._digests)

    @property
    def packs(self) -> AbstractSet[str]:
        """Keys of the packs that hold the chunks."""
        return self._packs.keys()

    def find(self, digest: bytes) -> int:
        """Return the row of a chunk, or -1 if it is not in the index."""
        return self._digests.find(digest)

    def add(self, digest: bytes, location: Location) -> int:
        """Add a chunk that is not in the index, and return its row."""
        self._pack.append(self._packs.setdefault(location.pack, len(self._packs)))
        self._offset.append(location.offset)
        self._stored.append(location.stored)
        self._raw.append(location.raw)
        return self._digests.add(digest)

    def add_manifest(self, manifest: Manifest) -> ChunkRows:
        """Add the chunks of a committed checkpoint, and return them. Known chunks keep their rows."""
        chunks = ChunkRows()
        elements = manifest.table.elements
        for number, (name, location) in enumerate(manifest.table.locations(manifest.pack_keys)):
            row = self.find(name)
            chunks.add(self.add(name, location) if row < 0 else row, int(elements[number]))
        return chunks

    @contextlib.contextmanager
    def rollback_on_error(self) -> Iterator[None]:
        """Remove the packs added in the block if it raises, because they are not part of a checkpoint.

        Other packs may be forgotten in the block. They stay forgotten.
        """
        before = set(self._packs)
        try:
            yield
        except BaseException:
            self.forget_packs(self._packs.keys() - before)
            raise

    def raw_bytes(self, chunks: ChunkRows) -> int:
        """Return the total size of the chunks' contents. A repeated chunk counts each time."""
        return int(_view(self._raw)[_view(chunks.rows)].sum(dtype=np.int64))

    def encode_table(self, chunks: ChunkRows) -> tuple[bytes, list[str]]:
        """Return the encoded chunk table of a manifest, and the keys of the packs that it refers to."""
        packs, positions = self._packs_of(_view(chunks.rows))
        columns: dict[str, Callable[[slice], Column]] = {
            "digest": lambda rows: self._digests.column()[_view(chunks.rows)[rows]],
            "pack": lambda rows: positions[_view(self._pack)[_view(chunks.rows)[rows]]],
            "offset": lambda rows: _view(self._offset)[_view(chunks.rows)[rows]],
            "stored": lambda rows: _view(self._stored)[_view(chunks.rows)[rows]],
            "raw": lambda rows: _view(self._raw)[_view(chunks.rows)[rows]],
            "elements": lambda rows: _view(chunks.elements)[rows],
        }
        return encode_table(len(chunks), lambda name, rows: columns[name](rows)), packs

    def live_bytes(self, chunks: ChunkRows) -> dict[str, int]:
        """Return for each pack how many of its bytes these chunks need. A repeated chunk counts once."""
        rows = np.flatnonzero(self._mask(chunks))
        live = np.zeros(len(self._packs), np.int64)
        np.add.at(live, _view(self._pack)[rows], _view(self._stored)[rows].astype(np.int64))
        return {key: int(live[number]) for key, number in self._packs.items()}

    def forget_packs(self, packs: Collection[str]) -> None:
        """Remove the chunks in these packs, which no longer exist."""
        forgotten = self._mask_in(packs)
        if forgotten.any():
            self._keep(np.flatnonzero(~forgotten))

    def retain(self, newest: ChunkRows, repack: Collection[str]) -> None:
        """Remove the chunks that later saves should not refer to.

        Args:
            newest: the chunks of the newest checkpoint. Of the others, only the last `MAX_OLDER_CHUNKS` are
                kept.
            repack: keys of packs. Their chunks are removed, so the next save stores them again.
        """
        retained = ~self._mask_in(repack)
        older = np.flatnonzero(retained & ~self._mask(newest))
        retained[older[: max(0, len(older) - MAX_OLDER_CHUNKS)]] = False
        if not retained.all():
            self._keep(np.flatnonzero(retained))

    def _mask(self, chunks: ChunkRows) -> Column:
        """Return for each row whether it is one of these chunks."""
        mask = np.zeros(len(self), bool)
        mask[_view(chunks.rows)] = True
        return mask

    def _mask_in(self, packs: Collection[str]) -> Column:
        """Return for each row whether its chunk is in one of these packs."""
        selected = np.zeros(len(self._packs), bool)
        selected[[number for key, number in self._packs.items() if key in packs]] = True
        mask: Column = selected[_view(self._pack)]
        return mask

    def _packs_of(self, rows: Column) -> tuple[list[str], Column]:
        """Return the packs of these rows, and an array that maps pack numbers to positions in that list."""
        used = np.flatnonzero(np.bincount(_view(self._pack)[rows], minlength=len(self._packs)))
        positions = np.zeros(len(self._packs), np.uint32)
        positions[used] = np.arange(len(used))
        keys = list(self._packs)
        return [keys[number] for number in used.tolist()], positions

    def _keep(self, rows: Column) -> None:
        packs, positions = self._packs_of(rows)
        self._packs = {key: number for number, key in enumerate(packs)}
        self._pack = _column(positions[_view(self._pack)[rows]])
        self._offset = _column(_view(self._offset)[rows])
        self._stored = _column(_view(self._stored)[rows])
        self._raw = _column(_view(self._raw)[rows])
        self._digests.keep(rows)


@dataclass(frozen=True)
class PackUse:
    """How much of a pack the newest checkpoint needs."""

    live: int
    """Bytes that the checkpoint needs. A repeated chunk counts once."""
    size: int
    """Bytes of the whole pack."""


def packs_to_repack(uses: Mapping[str, PackUse], pack_bytes: int) -> set[str]:
    """Choose the packs whose live chunks the next save should store again.

    A checkpoint may refer to at most three times as many packs as a full save would upload, plus two. Of any
    further packs, those with the fewest live bytes are chosen. After that, sparse packs are chosen in the
    same order until `REWRITE_SHARE` is used up. So a restore opens few objects and reads few unneeded bytes,
    however many saves came before.

    Args:
        uses: every pack of the newest checkpoint, by key.
        pack_bytes: the size at which a pack is uploaded, see `SaveOptions`.
    """
    total = sum(use.live for use in uses.values())
    by_live_bytes = sorted(uses, key=lambda key: (uses[key].live, key))
    max_packs = 3 * -(-total // pack_bytes) + 2
    repack = set(by_live_bytes[: max(0, len(uses) - max_packs)])
    budget = REWRITE_SHARE * total - sum(uses[key].live for key in repack)
    for key in by_live_bytes:
        use = uses[key]
        if key in repack or use.live >= MIN_LIVE_SHARE * use.size:
            continue
        budget -= use.live
        if budget < 0:
            break
        repack.add(key)
    return repack


def _view(column: array[int]) -> Column:
    """Return a numpy view of a column. It must be released before the column grows."""
    return np.frombuffer(column, np.dtype(column.typecode))


def _column(values: Column) -> array[int]:
    column: array[int] = array(values.dtype.char)
    buffer: Any = values.view(np.uint8)
    column.frombytes(buffer)
    return column
