"""Reads chunks from packs: in few requests, in parallel, each one verified, in bounded memory."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from input_checkpoint.backends.base import Backend
from input_checkpoint.errors import CorruptCheckpointError, ObjectNotFoundError
from input_checkpoint.format.chunk_table import ChunkTable, Column
from input_checkpoint.format.chunking import digest, unframe, unframe_elements
from input_checkpoint.format.compression import decompress_each
from input_checkpoint.format.manifest import IteratorRows, Manifest
from input_checkpoint.parallel import map_ordered
from input_checkpoint.state import Element, ElementBatch, Payload
from input_checkpoint.store.pack_writer import CONCURRENCY
from input_checkpoint.store.rereading import read_again_if_damaged

READ_BYTES = 2 << 20
"""Largest size of an extent, both stored and decompressed, unless it is a single larger chunk. An extent is
smaller than a pack, so that decoding starts while the rest is still being transferred."""
READ_ROWS = 1 << 12
"""Largest number of chunks in an extent. Each uses more memory than its bytes."""
SMALL_GAP = 32 << 10
"""Reading across a gap of this many bytes takes less time than another request, on any link."""
MAX_OVERREAD_IN_SMALL_GAPS = 0.25
"""Bytes that may be read unnecessarily in small gaps, as a share of the bytes needed."""
MAX_OVERREAD = 0.03
"""Bytes that may be read unnecessarily in gaps of any size, as a share of the bytes needed. They cost time on
a slow link and save requests on a fast one."""
READS_PER_UPLOAD = 3
"""Number of extents that are read at once, per pack that may be uploaded at once. An extent has a quarter of
the size of a pack."""

Chunks = list[tuple[int, Payload]]
"""Contents of chunks, each with its row number in a chunk table. Some are views of what was read."""


@dataclass(frozen=True)
class Extent:
    """A contiguous range of one pack, and the chunk table rows in it, sorted by offset."""

    pack: int
    start: int
    end: int
    rows: tuple[int, ...]
    weight: float = 1.0
    """Memory that it uses, relative to the largest extent of several chunks."""


@dataclass(frozen=True, eq=False)
class _SortedRows:
    """The rows of a chunk table, sorted by where the chunks are stored."""

    row: Column
    pack: Column
    start: Column
    end: Column
    raw_before: Column
    """Size of the contents of all preceding rows. One item longer than the other columns."""

    @staticmethod
    def of(table: ChunkTable) -> _SortedRows:
        row = np.lexsort((table.stored, table.offset, table.pack))
        start = table.offset[row]
        return _SortedRows(
            row=row,
            pack=table.pack[row],
            start=start,
            end=start + table.stored[row],
            raw_before=np.concatenate(([0], np.cumsum(table.raw[row]))),
        )

    def __len__(self) -> int:
        return len(self.row)

    def extent(self, first: int, stop: int, max_bytes: int, max_rows: int) -> Extent:
        """Return the extent of the rows from ``first`` to before ``stop``."""
        start, end = int(self.start[first]), int(self.end[first:stop].max())
        size = max(end - start, int(self.raw_before[stop] - self.raw_before[first]))
        weight = max(size / max_bytes, (stop - first) / max_rows)
        return Extent(int(self.pack[first]), start, end, tuple(self.row[first:stop].tolist()), weight)


def plan_reads(
    table: ChunkTable,
    max_overread: float = MAX_OVERREAD,
    max_overread_in_small_gaps: float = MAX_OVERREAD_IN_SMALL_GAPS,
    max_bytes: int = READ_BYTES,
    max_rows: int = READ_ROWS,
) -> list[Extent]:
    """Decide which ranges of which packs to read for the rows of a table.

    Adjacent chunks are read together. Chunks with a gap between them are read together as well, smallest gaps
    first, as long as the gaps add up to at most ``max_overread`` of the bytes needed, or to
    ``max_overread_in_small_gaps`` if none of them is larger than `SMALL_GAP`. Rows that share a chunk may be
    split over several extents, each of which reads the chunk again, so no state needs more requests than one
    of the same size without shared or compressed chunks.

    Args:
        table: the chunks to read.
        max_overread: bytes that may be read unnecessarily, as a share of the bytes needed.
        max_overread_in_small_gaps: the same if all gaps are small.
        max_bytes: largest size of an extent, stored or decompressed. A larger chunk gets its own extent.
        max_rows: largest number of rows of an extent.
    """
    if not len(table):
        return []
    rows = _SortedRows.of(table)
    breaks = _breaks(rows, max_overread, max_overread_in_small_gaps)
    return [
        rows.extent(first, stop, max_bytes, max_rows)
        for first, stop in _groups(rows, breaks, max_bytes, max_rows)
    ]


def _breaks(rows: _SortedRows, max_overread: float, max_overread_in_small_gaps: float) -> Column:
    """Return for each row except the last whether the next one must be read separately."""
    needed = int((rows.end - rows.start).sum())
    same_pack = rows.pack[1:] == rows.pack[:-1]
    gap = np.maximum(0, rows.start[1:] - rows.end[:-1])
    cost = np.where(same_pack, gap, np.iinfo(np.int64).max // 4)
    by_cost = np.argsort(cost, kind="stable")
    total_cost = np.cumsum(cost[by_cost].astype(np.float64))
    is_small = cost[by_cost] <= SMALL_GAP
    affordable = (total_cost <= max_overread * needed) | (
        (total_cost <= max_overread_in_small_gaps * needed) & is_small
    )
    breaks: Column = ~same_pack
    breaks[by_cost[~affordable]] = True
    return breaks


def _groups(rows: _SortedRows, breaks: Column, max_bytes: int, max_rows: int) -> Iterator[tuple[int, int]]:
    """Yield the first and the stop row of each extent: as many rows as fit, up to the next break."""
    # Memoryviews yield Python integers, which compare several times faster than numpy's.
    start, end, raw_before, is_break = rows.start.data, rows.end.data, rows.raw_before.data, breaks.data
    first = 0
    for row in range(1, len(rows)):
        if (
            is_break[row - 1]
            or end[row] - start[first] > max_bytes
            or raw_before[row + 1] - raw_before[first] > max_bytes
            or row - first >= max_rows
        ):
            yield first, row
            first = row
    yield first, len(rows)


def read_batches(
    backend: Backend, manifest: Manifest, rows: IteratorRows, concurrency: int = CONCURRENCY
) -> Iterator[ElementBatch]:
    """Yield all elements of one iterator, in batches that follow their order in the packs.

    Keys are read first, while payloads are already being transferred.

    Memory stays under ``READS_PER_UPLOAD * concurrency + 2`` extents, however well the state compresses and
    however often its chunks repeat.

    Raises:
        CorruptCheckpointError: a pack is missing or truncated, or a chunk is damaged.
    """
    check_counts(rows)
    key_extents = plan_reads(rows.keys)
    plans = [(rows.keys, key_extents), (rows.elements, plan_reads(rows.elements))]
    # Closed here if decoding fails. Otherwise the garbage collector joins the reading threads later, and that
    # deadlocks if it happens to run in a thread that is just starting.
    with contextlib.closing(_read_extents(backend, manifest, plans, concurrency)) as extents:
        keys = _join_keys(rows.keys, itertools.islice(extents, len(key_extents)))
        decoder = _BatchDecoder(rows.elements.elements, keys)
        yield from map(decoder.decode, extents)


class _BatchDecoder:
    """Turns chunks into elements with their keys and positions.

    Args:
        counts: number of elements in each chunk, 0 for a large payload.
        keys: keys of the large payloads, in order.
    """

    def __init__(self, counts: Column, keys: Sequence[bytes]) -> None:
        self._counts = counts
        self._keys = keys
        self._first_positions = np.concatenate(([0], np.cumsum(np.maximum(counts, 1))))
        self._key_numbers = np.cumsum(counts == 0) - 1

    def decode(self, chunks: Chunks) -> ElementBatch:
        rows = [row for row, _ in chunks]
        counts = self._counts[rows].tolist()
        first_positions = self._first_positions[rows].tolist()
        key_numbers = self._key_numbers[rows].tolist()
        positions: list[int] = []
        elements: list[Element] = []
        for (_, data), count, first, key_number in zip(chunks, counts, first_positions, key_numbers):
            if not count:
                positions.append(first)
                elements.append((self._keys[key_number], data))
                continue
            # Elements before positions: their number is only a claim until the chunk is unframed.
            elements += unframe_elements(bytes(data), count)
            positions += range(first, first + count)
        return ElementBatch(positions, elements)


def check_counts(rows: IteratorRows) -> None:
    """Check that the rows of an iterator claim to hold the right number of elements and keys.

    Raises:
        CorruptCheckpointError: they do not.
    """
    if int(np.maximum(rows.elements.elements, 1).sum()) != rows.entry.elements:
        raise CorruptCheckpointError("its chunks do not add up to its number of elements")
    if int(rows.keys.elements.sum()) != int((rows.elements.elements == 0).sum()):
        raise CorruptCheckpointError("its number of keys differs from its number of large payloads")


def part_counts(rows: IteratorRows) -> Column:
    """Return how many parts each chunk of an iterator frames, key chunks first; -1 for a large payload."""
    elements = rows.elements.elements
    return np.concatenate((rows.keys.elements, np.where(elements == 0, -1, 2 * elements)))


def check_part_count(data: Payload, count: int) -> None:
    """Check that a chunk frames ``count`` parts. A negative count means a large payload, which is not framed.

    Raises:
        CorruptCheckpointError: it does not.
    """
    if count >= 0:
        unframe(bytes(data), count)


def read_chunks(
    backend: Backend, manifest: Manifest, table: ChunkTable, concurrency: int = CONCURRENCY
) -> Iterator[Chunks]:
    """Yield the chunks of a table, extent by extent, each one verified.

    Raises:
        CorruptCheckpointError: a pack is missing or truncated, or a chunk fails its checksum.
    """
    return _read_extents(backend, manifest, [(table, plan_reads(table))], concurrency)


def _read_extents(
    backend: Backend,
    manifest: Manifest,
    plans: Iterable[tuple[ChunkTable, Sequence[Extent]]],
    concurrency: int,
) -> Generator[Chunks, None, None]:
    """Yield the chunks of each extent of several tables, in order."""
    keys = manifest.pack_keys

    def fetch(planned: tuple[ChunkTable, Extent]) -> tuple[ChunkTable, Extent, bytes]:
        table, extent = planned
        pack = keys[extent.pack]
        data = read_again_if_damaged(lambda: _fetch_extent(backend, pack, extent), f"{backend.uri}/{pack}")
        return table, extent, data

    max_reads = READS_PER_UPLOAD * concurrency
    planned = [(table, extent) for table, extents in plans for extent in extents]
    # Decoded in one thread: small chunks are bound by Python code, so more threads would compete for the GIL.
    # No variable holds the iterator, so that it is closed at once if decoding fails.
    for table, extent, data in map_ordered(fetch, planned, max_reads, lambda read: read[1].weight, max_reads):
        yield _decode_extent(backend, keys[extent.pack], table, extent, data)


def _decode_extent(backend: Backend, pack: str, table: ChunkTable, extent: Extent, data: bytes) -> Chunks:
    """Return the chunks of an extent. If ``data`` is damaged, the extent is requested again."""
    answers = iter([data])

    def read() -> Chunks:
        answer = next(answers, None)
        whole = _fetch_extent(backend, pack, extent) if answer is None else answer
        return list(decode_chunks(whole, pack, table, extent))

    return read_again_if_damaged(read, f"{backend.uri}/{pack}")


def _join_keys(table: ChunkTable, extents: Iterable[Chunks]) -> Sequence[bytes]:
    """Return the keys of the large payloads, in order."""
    found = {row: data for chunks in extents for row, data in chunks}
    keys: list[bytes] = []
    for row in range(len(table)):
        keys += unframe(bytes(found[row]), int(table.elements[row]))
    return keys


def _fetch_extent(backend: Backend, pack: str, extent: Extent) -> bytes:
    try:
        data = backend.get(pack, extent.start, extent.end)
    except ObjectNotFoundError as error:
        raise CorruptCheckpointError(f"its pack {pack} is missing", uri=backend.uri, key=pack) from error
    if len(data) != extent.end - extent.start:
        raise CorruptCheckpointError(f"its pack {pack} is truncated", uri=backend.uri, key=pack)
    return data


def decode_chunks(data: bytes, pack: str, table: ChunkTable, extent: Extent) -> Iterator[tuple[int, Payload]]:
    """Yield the row number and the content of each chunk in an extent, each one verified.

    The payload of a large element that is not compressed is a view of ``data``: a copy would take longer than
    everything else, because it uses memory that is new to the process.

    Args:
        data: the bytes of the extent.
        pack: key of its pack.
        table: the chunk table.
        extent: the extent, as planned for that table.

    Raises:
        CorruptCheckpointError: a chunk fails its checksum or cannot be decompressed.
    """
    part = table.take(list(extent.rows))
    ranges = list(zip((part.offset - extent.start).tolist(), part.stored.tolist(), part.raw.tolist()))
    decompressed = decompress_each(
        (data[start : start + stored], raw) for start, stored, raw in ranges if stored != raw
    )
    view = memoryview(data)
    counts = part.elements.tolist()
    for row, name, count, (start, stored, raw) in zip(extent.rows, part.digest, counts, ranges):
        try:
            plain = data if count else view
            content = plain[start : start + stored] if stored == raw else next(decompressed)
            if digest(content) != name.tobytes():
                raise CorruptCheckpointError("it fails its checksum")
        except CorruptCheckpointError as error:
            where = f"bytes {extent.start + start} to {extent.start + start + stored}"
            raise CorruptCheckpointError(
                f"a chunk in its pack {pack}, {where}, is damaged: {error}", key=pack
            ) from error
        yield row, content
