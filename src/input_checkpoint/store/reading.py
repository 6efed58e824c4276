"""Chunks back from packs: in few requests, in parallel, each checked, in bounded memory."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from input_checkpoint.backends.base import Backend
from input_checkpoint.errors import CorruptCheckpointError, ObjectNotFoundError
from input_checkpoint.format.chunk_table import ChunkTable, Column
from input_checkpoint.format.chunking import digest, unframe, unframe_elements
from input_checkpoint.format.compression import decompress_each
from input_checkpoint.format.manifest import IteratorRows, Manifest
from input_checkpoint.parallel import map_ordered
from input_checkpoint.state import Element, ElementBatch
from input_checkpoint.store.pack_writer import CONCURRENCY

READ_BYTES = 2 << 20
"""Bytes of an extent, as they are stored and as they come out, unless a single chunk is larger. Less than a
pack, so that decoding begins while the wire still carries the rest."""
READ_ROWS = 1 << 12
"""Chunks of an extent: what is kept of each in memory is more than its bytes."""
SMALL_GAP = 32 << 10
"""Reading across a gap of so many bytes takes less time than a request, on any link."""
MAX_OVERREAD_IN_SMALL_GAPS = 0.25
"""Bytes that may be read in vain in small gaps, as a share of those needed."""
MAX_OVERREAD = 0.03
"""Bytes that may be read in vain in all, unless they lie in small gaps: on a slow link they cost as much time
as those needed, on a fast one they save requests."""
READERS = 3
"""Extents that are read at once, for each pack that may be uploaded at once. They are a quarter as large."""


@dataclass(frozen=True)
class Extent:
    """One range of one pack, and the rows of the chunk table that lie in it, by offset."""

    pack: int
    start: int
    end: int
    rows: tuple[int, ...]
    weight: float = 1.0
    """What it takes of memory, where 1 is as much as it may."""


def plan_reads(
    table: ChunkTable,
    max_overread: float = MAX_OVERREAD,
    max_overread_in_small_gaps: float = MAX_OVERREAD_IN_SMALL_GAPS,
    max_bytes: int = READ_BYTES,
    max_rows: int = READ_ROWS,
) -> list[Extent]:
    """Decide which ranges to read for the rows of a table.

    Adjacent chunks are read together. So are chunks with a gap between them, smallest gaps first, as long as
    the gaps add up to at most ``max_overread`` of the bytes needed, or to ``max_overread_in_small_gaps`` if
    none is larger than `SMALL_GAP`. Rows that share a chunk may end up in several extents, each of which
    reads it again: no state takes more requests than one of the same size without shared or compressed
    chunks.

    Args:
        table: the chunks wanted.
        max_overread: bytes that may be read without being needed, as a share of those needed.
        max_overread_in_small_gaps: the same if all gaps are small.
        max_bytes: largest size of an extent, and of all its rows once decompressed. A larger chunk gets an
            extent of its own.
        max_rows: largest number of rows of an extent.
    """
    if not len(table):
        return []
    order = np.lexsort((table.stored, table.offset, table.pack))
    pack, start = table.pack[order], table.offset[order]
    end = start + table.stored[order]
    unpacked = np.concatenate(([0], np.cumsum(table.raw[order])))
    gap = np.maximum(0, start[1:] - end[:-1])
    needed = int(table.stored.sum())
    same_pack = pack[1:] == pack[:-1]
    budgets = max_overread * needed, max_overread_in_small_gaps * needed
    apart = ~(same_pack & _bridged(gap, same_pack, *budgets))
    # Views, whose items are Python's own numbers: numpy's take several times as long to compare.
    starts, ends, sums, breaks = start.data, end.data, unpacked.data, apart.data
    extents: list[Extent] = []
    first = 0
    for row in range(1, len(order) + 1):
        if (
            row < len(order)
            and not breaks[row - 1]
            and ends[row] - starts[first] <= max_bytes
            and sums[row + 1] - sums[first] <= max_bytes
            and row - first < max_rows
        ):
            continue
        rows = tuple(order[first:row].tolist())
        begin, finish = starts[first], int(end[first:row].max())
        size = max(finish - begin, sums[row] - sums[first])
        weight = max(size / max_bytes, len(rows) / max_rows)
        extents.append(Extent(int(pack[first]), begin, finish, rows, weight))
        first = row
    return extents


def _bridged(gap: Column, same_pack: Column, budget: float, budget_of_small: float) -> Column:
    """Return for each gap whether to read across it: the smallest ones that fit into the budget."""
    cost = np.where(same_pack, gap, np.iinfo(np.int64).max // 4)
    by_cost = np.argsort(cost, kind="stable")
    spent = np.cumsum(cost[by_cost].astype(np.float64))
    affordable = (spent <= budget) | ((spent <= budget_of_small) & (cost[by_cost] <= SMALL_GAP))
    bridged = np.zeros(len(gap), bool)
    bridged[by_cost[affordable]] = True
    return bridged


def read_batches(
    backend: Backend, manifest: Manifest, rows: IteratorRows, concurrency: int = CONCURRENCY
) -> Iterator[ElementBatch]:
    """Yield all elements of one iterator, in pieces as they lie in the packs.

    Keys are read first, and payloads while they are on their way.

    Memory stays under ``READERS * concurrency + 2`` extents, however well the state is compressed
    and however much of it is the same.

    Raises:
        CorruptCheckpointError: a pack is missing or cut short, or a chunk is not what it should be.
    """
    check_counts(rows)
    positions = np.concatenate(([0], np.cumsum(np.maximum(rows.elements.elements, 1))))
    key_numbers = np.cumsum(rows.elements.elements == 0) - 1
    key_extents = plan_reads(rows.keys)
    plans = [(rows.keys, key_extents), (rows.elements, plan_reads(rows.elements))]
    reading = _read(backend, manifest, plans, concurrency)
    keys = _keys(rows.keys, itertools.islice(reading, len(key_extents)))
    for chunks in reading:
        which = [row for row, _ in chunks]
        counts = rows.elements.elements[which].tolist()
        firsts = positions[which].tolist()
        numbers = key_numbers[which].tolist()
        places: list[int] = []
        elements: list[Element] = []
        for (_, data), count, first, number in zip(chunks, counts, firsts, numbers):
            if not count:
                places.append(first)
                elements.append((keys[number], data))
                continue
            # Before the places: until it is unframed, the number of elements is no more than a claim.
            elements += unframe_elements(data, count)
            places += range(first, first + count)
        yield ElementBatch(places, elements)


def check_counts(rows: IteratorRows) -> None:
    """Check that an iterator's rows claim to hold as many elements and keys as they should.

    Raises:
        CorruptCheckpointError: they do not.
    """
    if int(np.maximum(rows.elements.elements, 1).sum()) != rows.entry.elements:
        raise CorruptCheckpointError("its chunks do not add up to its number of elements")
    if int(rows.keys.elements.sum()) != int((rows.elements.elements == 0).sum()):
        raise CorruptCheckpointError("it has not one key for each large payload")


def parts_of(rows: IteratorRows) -> Column:
    """Return how many parts each chunk of an iterator frames, keys first; -1 for a payload of its own."""
    elements = rows.elements.elements
    return np.concatenate((rows.keys.elements, np.where(elements == 0, -1, 2 * elements)))


def check_frame(data: bytes, parts: int) -> None:
    """Check that a chunk is what its row in `parts_of` says.

    Raises:
        CorruptCheckpointError: it is not.
    """
    if parts >= 0:
        unframe(data, parts)


def read_chunks(
    backend: Backend, manifest: Manifest, table: ChunkTable, concurrency: int = CONCURRENCY
) -> Iterator[list[tuple[int, bytes]]]:
    """Yield the chunks of a table with their row numbers, extent by extent, each checked.

    Raises:
        CorruptCheckpointError: a pack is missing or cut short, or a chunk fails its checksum.
    """
    return _read(backend, manifest, [(table, plan_reads(table))], concurrency)


def _read(
    backend: Backend,
    manifest: Manifest,
    plans: Iterable[tuple[ChunkTable, Sequence[Extent]]],
    concurrency: int,
) -> Iterator[list[tuple[int, bytes]]]:
    """Yield the chunks of several tables, extent by extent, as planned."""

    def fetch(wanted: tuple[ChunkTable, Extent]) -> tuple[ChunkTable, Extent, bytes]:
        table, extent = wanted
        return table, extent, _fetched(backend, manifest.header.packs[extent.pack].key, extent)

    at_once = READERS * concurrency
    wanted = [(table, extent) for table, extents in plans for extent in extents]
    fetched = map_ordered(fetch, wanted, at_once, lambda one: one[1].weight, at_once)
    # In one thread: small chunks are a matter of Python, and several threads would stand in each other's way.
    for table, extent, data in fetched:
        yield list(chunks_in(data, manifest.header.packs[extent.pack].key, table, extent))


def _keys(table: ChunkTable, extents: Iterable[list[tuple[int, bytes]]]) -> Sequence[bytes]:
    """Return the keys of the large payloads, in order."""
    found = {row: data for chunks in extents for row, data in chunks}
    keys: list[bytes] = []
    for row in range(len(table)):
        keys += unframe(found[row], int(table.elements[row]))
    return keys


def _fetched(backend: Backend, pack: str, extent: Extent) -> bytes:
    try:
        data = backend.get(pack, extent.start, extent.end)
    except ObjectNotFoundError as error:
        raise CorruptCheckpointError(f"its pack {pack} is missing") from error
    if len(data) != extent.end - extent.start:
        raise CorruptCheckpointError(f"its pack {pack} is cut short")
    return data


def chunks_in(data: bytes, pack: str, table: ChunkTable, extent: Extent) -> Iterator[tuple[int, bytes]]:
    """Yield the chunks in the bytes of an extent, with their row numbers, each checked.

    Raises:
        CorruptCheckpointError: one is not what it should be.
    """
    part = table.take(list(extent.rows))
    places = list(zip((part.offset - extent.start).tolist(), part.stored.tolist(), part.raw.tolist()))
    unpacked = decompress_each(
        (data[start : start + stored], raw) for start, stored, raw in places if stored != raw
    )
    for row, name, (start, stored, raw) in zip(extent.rows, part.digest, places):
        try:
            content = data[start : start + stored] if stored == raw else next(unpacked)
            if digest(content) != name.tobytes():
                raise CorruptCheckpointError("it fails its checksum")
        except CorruptCheckpointError as error:
            place = f"bytes {extent.start + start} to {extent.start + start + stored}"
            raise CorruptCheckpointError(
                f"a chunk in its pack {pack}, {place}, is damaged: {error}"
            ) from error
        yield row, content
