"""Chunks are read in few requests and with few unneeded bytes, and each one is verified."""

from __future__ import annotations

import itertools
import random
import threading
import time
import uuid
import weakref
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from input_checkpoint import BackendUnavailableError, CheckpointRef, CorruptCheckpointError, SaveOptions
from input_checkpoint.backends.memory import MemoryBackend
from input_checkpoint.format.chunk_table import ChunkTable
from input_checkpoint.format.chunking import digest
from input_checkpoint.format.compression import compress
from input_checkpoint.format.keys import manifest_key
from input_checkpoint.format.manifest import Manifest, decode_manifest
from input_checkpoint.state import Element, ElementBatch, IteratorState, StoredState
from input_checkpoint.store.reading import (
    READ_BYTES,
    READ_ROWS,
    READS_PER_UPLOAD,
    plan_reads,
    read_batches,
    read_chunks,
)
from input_checkpoint.store.store import CheckpointStore
from tests.support import tables
from tests.support.wrappers import Failing, Recording, Wrapped

PAYLOADS = [bytes([number]) * 3000 for number in range(40)]
OPTIONS = SaveOptions(pack_bytes=12_000, compress=False)


def table_of(*rows: tuple[int, int, int], shrunk: int = 0) -> ChunkTable:
    """A table of rows (pack, offset, stored). Each chunk is ``shrunk`` bytes larger decompressed."""
    return tables.table_of(
        *((bytes(16), pack, offset, stored, stored + shrunk, 0) for pack, offset, stored in rows)
    )


@pytest.fixture
def memory() -> MemoryBackend:
    return MemoryBackend(f"memory://{uuid.uuid4().hex}")


@pytest.fixture
def written(memory: MemoryBackend) -> Manifest:
    """`PAYLOADS` in packs of four."""
    return saved(memory, [(b"", payload) for payload in PAYLOADS], OPTIONS)


def saved(memory: MemoryBackend, elements: Sequence[Element], options: SaveOptions) -> Manifest:
    """Save a state and return its manifest."""
    CheckpointStore.open(memory, create=True)
    store = CheckpointStore(memory, options)
    info = store.begin_run("main").save(1, [IteratorState("Iterator", elements)])
    return decode_manifest(memory.get(manifest_key(info.ref)))


def rows_of(manifest: Manifest, numbers: Sequence[int]) -> ChunkTable:
    (rows,) = manifest.iterators()
    return rows.elements.take(list(numbers))


def read(backend, manifest: Manifest, numbers: Sequence[int] = range(len(PAYLOADS))) -> dict[int, bytes]:
    chunks = read_chunks(backend, manifest, rows_of(manifest, numbers), concurrency=2)
    return {numbers[row]: data for extent in chunks for row, data in extent}


def test_every_requested_chunk_is_returned(memory, written):
    assert read(memory, written) == dict(enumerate(PAYLOADS))


def test_no_other_chunk_is_returned(memory, written):
    assert read(memory, written, [7, 3]) == {7: PAYLOADS[7], 3: PAYLOADS[3]}


def batches(memory: MemoryBackend, manifest: Manifest) -> list[ElementBatch]:
    (rows,) = manifest.iterators()
    return list(read_batches(memory, manifest, rows))


def test_large_payloads_that_are_not_compressed_are_not_copied(memory, written):
    """They are views of what was read: a copy takes longer than everything else."""
    for batch in batches(memory, written):
        views = [payload for _, payload in batch.elements]
        assert all(isinstance(view, memoryview) for view in views)
        assert len({id(view.obj) for view in views}) == 1


@pytest.mark.parametrize(
    ("payload", "options"),
    [(b"small", OPTIONS), (bytes(3000), SaveOptions(compress=True))],
    ids=["small", "compressed"],
)
def test_other_payloads_keep_nothing_else_in_memory(memory, payload, options):
    manifest = saved(memory, [(b"key", payload)] * 50, options)
    for batch in batches(memory, manifest):
        assert {type(found) for _, found in batch.elements} == {bytes}
        assert {type(key) for key, _ in batch.elements} == {bytes}


def test_what_was_read_is_freed_once_its_elements_are(memory, written):
    """Nothing in the library holds an extent longer than the views of it."""
    read = batches(memory, written)
    extents = [weakref.ref(batch.elements[0][1]) for batch in read]
    del read
    assert [extent() for extent in extents] == [None] * len(extents)


def test_elements_in_order_are_independent_of_what_was_read(memory, written):
    state = StoredState("Iterator", len(PAYLOADS), iter(batches(memory, written)))
    found = state.in_order()
    assert found == [(b"", payload) for payload in PAYLOADS]
    assert {type(payload) for _, payload in found} == {bytes}


@pytest.mark.parametrize("compress_again", [True, False])
@pytest.mark.parametrize("size", [5, 600, 3000])
def test_elements_that_were_read_can_be_saved_again(memory, size, compress_again):
    elements = [(b"key %d" % number, bytes([number]) * size) for number in range(40)]
    read = batches(memory, saved(memory, elements, OPTIONS))
    again = MemoryBackend(f"memory://{uuid.uuid4().hex}")
    options = SaveOptions(compress=compress_again)
    by_position = sorted(
        (position, element) for batch in read for position, element in zip(batch.positions, batch.elements)
    )
    manifest = saved(again, [element for _, element in by_position], options)
    state = StoredState("Iterator", len(elements), iter(batches(again, manifest)))
    assert state.in_order() == elements


def test_adjacent_chunks_are_read_by_one_get(memory, written):
    recording = Recording(memory)
    read(recording, written, [4, 5, 6])
    assert len(recording.calls) == 1


def test_reading_everything_needs_one_get_per_pack(memory, written):
    recording = Recording(memory)
    read(recording, written)
    assert sorted(recording.keys("get")) == sorted({pack.key for pack in written.header.packs})[:10]


def count_reads_before_the_first_result(backend, manifest: Manifest, numbers: Sequence[int]) -> int:
    """Count the reads that have started when the caller gets the first extent."""
    recording = Recording(backend)
    reading = read_chunks(recording, manifest, rows_of(manifest, numbers), concurrency=1)
    next(reading)
    time.sleep(0.05)
    started = len(recording.calls)
    reading.close()
    return started


def test_only_a_few_reads_run_ahead(memory, written):
    assert count_reads_before_the_first_result(memory, written, range(40)) <= 1 + READS_PER_UPLOAD


def test_fewer_large_chunks_are_read_ahead_so_that_memory_stays_bounded(memory):
    content = [random.Random(number).randbytes(2 * READ_BYTES) for number in range(8)]
    manifest = saved(memory, [(b"", payload) for payload in content], SaveOptions(compress=False))
    assert count_reads_before_the_first_result(memory, manifest, range(8)) <= 1 + READS_PER_UPLOAD // 2


class HoldsTheFirstGet(Wrapped):
    """Answers the first get only after another one has started."""

    def __init__(self, inner) -> None:
        super().__init__(inner)
        self.calls = itertools.count()
        self.another = threading.Event()

    def before(self, verb: str, key: str) -> None:
        if next(self.calls):
            self.another.set()
        elif not self.another.wait(5):
            raise BackendUnavailableError("no other get was started")


def test_payloads_are_requested_before_their_keys_have_arrived(memory):
    manifest = saved(memory, [(b"key", payload) for payload in PAYLOADS], OPTIONS)
    (rows,) = manifest.iterators()
    batches = read_batches(HoldsTheFirstGet(memory), manifest, rows)
    assert sum(len(batch.elements) for batch in batches) == len(PAYLOADS)


def test_a_missing_pack_is_reported_as_corrupt(memory, written):
    pack = written.header.packs[1].key
    memory.delete([pack])
    with pytest.raises(CorruptCheckpointError, match=f"{pack} is missing") as raised:
        read(memory, written)
    assert (raised.value.uri, raised.value.key) == (memory.uri, pack)


def test_a_truncated_pack_is_reported_as_corrupt(memory, written):
    pack = written.header.packs[1].key
    memory.put(pack, memory.get(pack)[:-1])
    with pytest.raises(CorruptCheckpointError, match=f"{pack} is truncated") as raised:
        read(memory, written)
    assert (raised.value.uri, raised.value.key) == (memory.uri, pack)


@pytest.mark.parametrize("position", [0, 5000, -1])
def test_a_flipped_bit_in_a_pack_is_reported_with_its_position(memory, written, position):
    pack = written.header.packs[1].key
    damaged = bytearray(memory.get(pack))
    damaged[position] ^= 0x10
    memory.put(pack, damaged)
    with pytest.raises(
        CorruptCheckpointError, match=rf"{pack}, bytes \d+ to \d+, .*fails its checksum"
    ) as raised:
        read(memory, written)
    assert raised.value.key == pack


@pytest.mark.parametrize("number", [0, 17, 39])
def test_a_damaged_chunk_is_reported_among_many_compressed_ones(memory, number):
    manifest = saved(memory, [(b"", payload) for payload in PAYLOADS], SaveOptions())
    pack, offset = manifest.header.packs[0].key, int(rows_of(manifest, [number]).offset[0])
    damaged = bytearray(memory.get(pack))
    damaged[offset + 1] ^= 0x10
    memory.put(pack, damaged)
    with pytest.raises(CorruptCheckpointError, match=rf"{pack}, bytes {offset} to \d+, is damaged"):
        read(memory, manifest)


def test_an_intact_chunk_can_be_read_from_a_damaged_pack(memory, written):
    pack = written.header.packs[0].key
    memory.put(pack, memory.get(pack)[:3000] + bytes(9000))
    assert read(memory, written, [0]) == {0: PAYLOADS[0]}


def test_unavailable_storage_is_not_reported_as_corrupt(memory, written):
    failing = Failing(memory, "get", written.header.packs[1].key, BackendUnavailableError("no answer"))
    with pytest.raises(BackendUnavailableError, match="no answer"):
        read(failing, written)


def test_data_that_decompresses_to_more_than_listed_is_refused_without_decompressing_it(memory, written):
    bomb = compress(bytes(64 << 20))
    memory.put(written.header.packs[0].key, bomb)
    table = tables.table_of((digest(b""), 0, 0, len(bomb), len(bomb) + 1, 0))
    with pytest.raises(CorruptCheckpointError, match="does not hold"):
        list(read_chunks(memory, replace(written, table=table), table))


def test_a_small_gap_is_read_across():
    assert len(plan_reads(table_of((0, 0, 1000), (0, 1100, 1000)))) == 1


def test_small_gaps_may_add_up_to_a_quarter_of_the_bytes_needed():
    needed = table_of(*((0, n * 10_000, 8_100) for n in range(40)))
    assert len(plan_reads(needed)) == 1


def test_larger_gaps_may_add_up_to_a_few_percent_of_the_bytes_needed():
    needed = table_of(*((0, n * 500_000, 400_000) for n in range(40)))
    extents = plan_reads(needed, max_bytes=1 << 30)
    overread = sum(extent.end - extent.start for extent in extents) - 40 * 400_000
    assert overread == 400_000


def test_a_gap_larger_than_its_neighbors_is_not_read():
    assert [(e.start, e.end) for e in plan_reads(table_of((0, 0, 1000), (0, 9000, 1000)))] == [
        (0, 1000),
        (9000, 10_000),
    ]


def test_a_pack_is_not_read_completely_for_a_tenth_of_its_bytes():
    needed = table_of(*((0, n * 100_000, 100_000) for n in range(0, 80, 10)))
    assert sum(extent.end - extent.start for extent in plan_reads(needed)) == 800_000


def test_a_long_range_is_split_so_that_memory_stays_bounded():
    extents = plan_reads(table_of(*((0, n << 20, 1 << 20) for n in range(40))))
    assert max(extent.end - extent.start for extent in extents) <= READ_BYTES


def test_chunks_that_decompress_to_much_data_are_split_so_that_memory_stays_bounded():
    extents = plan_reads(table_of(*((0, n * 150, 150) for n in range(40)), shrunk=3 << 20))
    assert [len(extent.rows) for extent in extents] == [1] * 40


def test_repetitions_of_a_chunk_are_split_so_that_memory_stays_bounded():
    extents = plan_reads(table_of(*((0, 0, READ_BYTES // 2) for _ in range(40))))
    assert [len(extent.rows) for extent in extents] == [2] * 20


def test_a_chunk_larger_than_an_extent_gets_its_own_extent():
    extents = plan_reads(table_of((0, 0, 100), (0, 100, 200), (0, 300, 100), shrunk=READ_BYTES))
    assert [extent.rows for extent in extents] == [(0,), (1,), (2,)]


def test_very_many_tiny_chunks_are_split():
    extents = plan_reads(table_of(*((0, n, 1) for n in range(READ_ROWS + 5))))
    assert [len(extent.rows) for extent in extents] == [READ_ROWS, 5]


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 10**6), st.integers(0, 10**5)), max_size=40),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_a_plan_covers_every_row_once_and_stays_within_the_allowed_overread(
    rows, overread, overread_in_small_gaps
):
    table = table_of(*rows)
    extents = plan_reads(table, overread, overread_in_small_gaps)
    assert sorted(row for extent in extents for row in extent.rows) == list(range(len(rows)))
    for extent in extents:
        for row in extent.rows:
            pack, offset, stored = rows[row]
            assert pack == extent.pack
            assert extent.start <= offset
            assert offset + stored <= extent.end
    needed = sum(stored for _, _, stored in rows)
    assert (
        sum(extent.end - extent.start for extent in extents)
        <= needed * (1 + max(overread, overread_in_small_gaps)) + 1
    )


def test_the_manifest_identifies_its_checkpoint(written):
    assert written.header.ref == CheckpointRef("main", 1, 1)
