"""What this run knows to be stored already, and what of it is better stored anew."""

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
"""Below this share of live bytes a pack is worn: the chunks still needed are better written again."""

REWRITE_SHARE = 0.01
"""Live bytes of worn packs that one save writes again at most, as a share of the state, so that no save pays
for all the packs that have become worn at the same time."""

MAX_OLDER_CHUNKS = 1 << 19
"""Chunks remembered at most beyond those of the newest checkpoint: 22 MB of memory."""


@dataclass(frozen=True)
class ChunkRows:
    """Chunks of a checkpoint by their rows in a `ChunkIndex`, in order. Eight bytes each."""

    rows: array[int] = field(default_factory=lambda: array("I"))
    elements: array[int] = field(default_factory=lambda: array("I"))
    """Whole elements or keys that the chunk frames; 0 for the payload of one element."""

    def __len__(self) -> int:
        return len(self.rows)

    def add(self, row: int, elements: int) -> None:
        """Append a chunk."""
        self.rows.append(row)
        self.elements.append(elements)

    @property
    def total_elements(self) -> int:
        """How many elements or keys there are, where a payload counts as one."""
        return int(np.maximum(_view(self.elements), 1).sum(dtype=np.int64))

    @staticmethod
    def joined(parts: Collection[ChunkRows]) -> ChunkRows:
        """Return the chunks of all parts, one part after another."""
        whole = ChunkRows()
        for part in parts:
            whole.rows.extend(part.rows)
            whole.elements.extend(part.elements)
        return whole


class ChunkIndex:
    """Chunks of committed checkpoints, and of the save that is going on, by digest.

    Holds only what this run has itself restored or stored, so that a new checkpoint never rests on bytes
    that nobody has checked. Columns instead of objects: about 45 bytes a chunk.
    """

    def __init__(self) -> None:
        self._names = DigestTable()
        self._pack, self._stored, self._raw = array("I"), array("I"), array("I")
        self._offset = array("Q")
        self._packs: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._names)

    @property
    def packs(self) -> AbstractSet[str]:
        """Keys of the packs that chunks are known in."""
        return self._packs.keys()

    def find(self, digest: bytes) -> int:
        """Return the row of a chunk, or -1 if it is not known."""
        return self._names.find(digest)

    def add(self, digest: bytes, place: Location) -> int:
        """Take note of where a chunk that is not known has been stored, and return its row."""
        self._pack.append(self._packs.setdefault(place.pack, len(self._packs)))
        self._offset.append(place.offset)
        self._stored.append(place.stored)
        self._raw.append(place.raw)
        return self._names.add(digest)

    def add_manifest(self, manifest: Manifest) -> ChunkRows:
        """Learn the chunks of a committed checkpoint and return them. What is known already stays."""
        found = ChunkRows()
        elements = manifest.table.elements
        for number, (name, place) in enumerate(manifest.table.locations(manifest.pack_keys)):
            row = self.find(name)
            found.add(self.add(name, place) if row < 0 else row, int(elements[number]))
        return found

    @contextlib.contextmanager
    def rollback_on_error(self) -> Iterator[None]:
        """Forget what is added inside if it ends with an error: nothing may rest on what is not committed."""
        count = len(self)
        try:
            yield
        except BaseException:
            if len(self) > count:
                self._keep(np.arange(count))
            raise

    def raw_bytes(self, chunks: ChunkRows) -> int:
        """Return the size of the chunks' contents, each as often as it stands there."""
        return int(_view(self._raw)[_view(chunks.rows)].sum(dtype=np.int64))

    def encode_table(self, chunks: ChunkRows) -> tuple[bytes, list[str]]:
        """Return the chunk table of a manifest, and the keys of the packs that it refers to."""
        packs, positions = self._packs_of(_view(chunks.rows))
        columns: dict[str, Callable[[slice], Column]] = {
            "digest": lambda rows: self._names.column()[_view(chunks.rows)[rows]],
            "pack": lambda rows: positions[_view(self._pack)[_view(chunks.rows)[rows]]],
            "offset": lambda rows: _view(self._offset)[_view(chunks.rows)[rows]],
            "stored": lambda rows: _view(self._stored)[_view(chunks.rows)[rows]],
            "raw": lambda rows: _view(self._raw)[_view(chunks.rows)[rows]],
            "elements": lambda rows: _view(chunks.elements)[rows],
        }
        return encode_table(len(chunks), lambda name, rows: columns[name](rows)), packs

    def live_bytes(self, chunks: ChunkRows) -> dict[str, int]:
        """Return how many bytes of each pack are needed for these chunks, each counted once."""
        rows = np.flatnonzero(self._needed(chunks))
        live = np.zeros(len(self._packs), np.int64)
        np.add.at(live, _view(self._pack)[rows], _view(self._stored)[rows].astype(np.int64))
        return {key: int(live[number]) for key, number in self._packs.items()}

    def forget_packs(self, packs: Collection[str]) -> None:
        """Forget everything in these packs: they are removed, or to be given up."""
        lost = self._are_in(packs)
        if lost.any():
            self._keep(np.flatnonzero(~lost))

    def retain(self, newest: ChunkRows, given_up: Collection[str]) -> None:
        """Forget what later saves should not build on: packs given up, and chunks gone for long.

        Args:
            newest: the chunks of the newest checkpoint. Of all others the last `MAX_OLDER_CHUNKS` stay.
            given_up: keys of packs.
        """
        wanted = ~self._are_in(given_up)
        others = np.flatnonzero(wanted & ~self._needed(newest))
        wanted[others[: max(0, len(others) - MAX_OLDER_CHUNKS)]] = False
        if not wanted.all():
            self._keep(np.flatnonzero(wanted))

    def _needed(self, chunks: ChunkRows) -> Column:
        needed = np.zeros(len(self), bool)
        needed[_view(chunks.rows)] = True
        return needed

    def _are_in(self, packs: Collection[str]) -> Column:
        chosen = np.zeros(len(self._packs), bool)
        chosen[[number for key, number in self._packs.items() if key in packs]] = True
        found: Column = chosen[_view(self._pack)]
        return found

    def _packs_of(self, rows: Column) -> tuple[list[str], Column]:
        """Return the packs that these rows are in, and for each pack's number its position in that list."""
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
        self._names.keep(rows)


@dataclass(frozen=True)
class PackUse:
    """How much of a pack the newest checkpoint needs."""

    live: int
    """Bytes needed, each counted once."""
    size: int
    """Bytes of the whole pack."""


def packs_to_repack(uses: Mapping[str, PackUse], pack_bytes: int) -> set[str]:
    """Decide which packs the next save should no longer rely on.

    Beyond three times as many packs as a fresh full save would make, those with the fewest live bytes are
    given up in any case. As far as `REWRITE_SHARE` goes after that, worn packs are too, in the same order. So
    a restore after any number of saves opens few objects and reads little that it does not need.

    Args:
        uses: of every pack of the newest checkpoint.
        pack_bytes: the size at which packs are closed.
    """
    total = sum(use.live for use in uses.values())
    fewest_first = sorted(uses, key=lambda key: (uses[key].live, key))
    most = 3 * -(-total // pack_bytes) + 2
    given_up = set(fewest_first[: max(0, len(uses) - most)])
    budget = REWRITE_SHARE * total - sum(uses[key].live for key in given_up)
    for key in fewest_first:
        use = uses[key]
        if key in given_up or use.live >= MIN_LIVE_SHARE * use.size:
            continue
        budget -= use.live
        if budget < 0:
            break
        given_up.add(key)
    return given_up


def _view(column: array[int]) -> Column:
    """Return a column as numpy sees it, without a copy. Drop the view before the column grows."""
    return np.frombuffer(column, np.dtype(column.typecode))


def _column(values: Column) -> array[int]:
    column: array[int] = array(values.dtype.char)
    buffer: Any = values.view(np.uint8)
    column.frombytes(buffer)
    return column
