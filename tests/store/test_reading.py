"""Chunks come back checked, in few requests, with few bytes read in vain."""

from __future__ import annotations

import itertools
import random
import threading
import time
import uuid
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
from input_checkpoint.state import Element, IteratorState
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

PIECES = [bytes([number]) * 3000 for number in range(40)]
STORE = SaveOptions(pack_bytes=12_000, compress=False)


def table_of(*rows: tuple[int, int, int], shrunk: int = 0) -> ChunkTable:
    """A table of rows (pack, offset, stored), each of which is ``shrunk`` bytes larger unpacked."""
    return tables.table_of(
        *((bytes(16), pack, offset, stored, stored + shrunk, 0) for pack, offset, stored in rows)
    )


@pytest.fixture
def memory() -> MemoryBackend:
    return MemoryBackend(f"memory://{uuid.uuid4().hex}")


@pytest.fixture
def written(memory: MemoryBackend) -> Manifest:
    """`PIECES` in packs of four."""
    return saved(memory, [(b"", piece) for piece in PIECES], STORE)


def saved(memory: MemoryBackend, elements: Sequence[Element], options: SaveOptions) -> Manifest:
    """Save a state; return its manifest."""
    CheckpointStore.open(memory, create=True)
    store = CheckpointStore(memory, options)
    info = store.begin_run("main").save(1, [IteratorState("Iterator", elements)])
    return decode_manifest(memory.get(manifest_key(info.ref)))


def rows_of(manifest: Manifest, numbers: Sequence[int]) -> ChunkTable:
    (rows,) = manifest.iterators()
    return rows.elements.take(list(numbers))


def read(backend, manifest: Manifest, numbers: Sequence[int] = range(len(PIECES))) -> dict[int, bytes]:
    chunks = read_chunks(backend, manifest, rows_of(manifest, numbers), concurrency=2)
    return {numbers[row]: data for extent in chunks for row, data in extent}


def test_every_chunk_asked_for_comes_back(memory, written):
    assert read(memory, written) == dict(enumerate(PIECES))


def test_nothing_else_comes_back(memory, written):
    assert read(memory, written, [7, 3]) == {7: PIECES[7], 3: PIECES[3]}


def test_neighbours_are_read_by_one_ranged_get(memory, written):
    recording = Recording(memory)
    read(recording, written, [4, 5, 6])
    assert len(recording.calls) == 1


def test_reading_everything_takes_one_get_a_pack(memory, written):
    recording = Recording(memory)
    read(recording, written)
    assert sorted(recording.keys("get")) == sorted({pack.key for pack in written.header.packs})[:10]


def reads_by_the_first_result(backend, manifest: Manifest, numbers: Sequence[int]) -> int:
    """How many reads have begun when the caller has been given the first extent."""
    recording = Recording(backend)
    reading = read_chunks(recording, manifest, rows_of(manifest, numbers), concurrency=1)
    next(reading)
    time.sleep(0.05)
    begun = len(recording.calls)
    reading.close()
    return begun


def test_only_a_few_reads_run_ahead(memory, written):
    assert reads_by_the_first_result(memory, written, range(40)) <= 1 + READS_PER_UPLOAD


def test_of_larger_chunks_fewer_are_read_ahead_so_that_memory_stays_bounded(memory):
    content = [random.Random(number).randbytes(2 * READ_BYTES) for number in range(8)]
    manifest = saved(memory, [(b"", piece) for piece in content], SaveOptions(compress=False))
    assert reads_by_the_first_result(memory, manifest, range(8)) <= 1 + READS_PER_UPLOAD // 2


class HoldsTheFirstGet(Wrapped):
    """Answers the first get only when another one has begun."""

    def __init__(self, inner) -> None:
        super().__init__(inner)
        self.calls = itertools.count()
        self.another = threading.Event()

    def before(self, verb: str, key: str) -> None:
        if next(self.calls):
            self.another.set()
        elif not self.another.wait(5):
            raise BackendUnavailableError("nothing else was asked for meanwhile")


def test_payloads_are_on_their_way_before_their_keys_have_come(memory):
    manifest = saved(memory, [(b"key", piece) for piece in PIECES], STORE)
    (rows,) = manifest.iterators()
    pieces = read_batches(HoldsTheFirstGet(memory), manifest, rows)
    assert sum(len(piece.elements) for piece in pieces) == len(PIECES)


def test_a_missing_pack_is_a_corrupt_checkpoint(memory, written):
    pack = written.header.packs[1].key
    memory.delete([pack])
    with pytest.raises(CorruptCheckpointError, match=f"{pack} is missing"):
        read(memory, written)


def test_a_pack_cut_short_is_a_corrupt_checkpoint(memory, written):
    pack = written.header.packs[1].key
    memory.put(pack, memory.get(pack)[:-1])
    with pytest.raises(CorruptCheckpointError, match=f"{pack} is truncated"):
        read(memory, written)


@pytest.mark.parametrize("position", [0, 5000, -1])
def test_a_flipped_bit_in_a_pack_is_a_corrupt_checkpoint_that_says_where(memory, written, position):
    pack = written.header.packs[1].key
    damaged = bytearray(memory.get(pack))
    damaged[position] ^= 0x10
    memory.put(pack, damaged)
    with pytest.raises(CorruptCheckpointError, match=rf"{pack}, bytes \d+ to \d+, .*fails its checksum"):
        read(memory, written)


@pytest.mark.parametrize("number", [0, 17, 39])
def test_of_many_compressed_chunks_the_one_that_is_damaged_is_named(memory, number):
    manifest = saved(memory, [(b"", piece) for piece in PIECES], SaveOptions())
    pack, offset = manifest.header.packs[0].key, int(rows_of(manifest, [number]).offset[0])
    damaged = bytearray(memory.get(pack))
    damaged[offset + 1] ^= 0x10
    memory.put(pack, damaged)
    with pytest.raises(CorruptCheckpointError, match=rf"{pack}, bytes {offset} to \d+, is damaged"):
        read(memory, manifest)


def test_an_undamaged_chunk_is_read_from_a_damaged_pack(memory, written):
    pack = written.header.packs[0].key
    memory.put(pack, memory.get(pack)[:3000] + bytes(9000))
    assert read(memory, written, [0]) == {0: PIECES[0]}


def test_storage_that_does_not_answer_is_not_a_corrupt_checkpoint(memory, written):
    failing = Failing(memory, "get", written.header.packs[1].key, BackendUnavailableError("no answer"))
    with pytest.raises(BackendUnavailableError, match="no answer"):
        read(failing, written)


def test_compressed_data_that_is_larger_than_listed_is_refused_without_unpacking_it(memory, written):
    bomb = compress(bytes(64 << 20))
    memory.put(written.header.packs[0].key, bomb)
    table = tables.table_of((digest(b""), 0, 0, len(bomb), len(bomb) + 1, 0))
    with pytest.raises(CorruptCheckpointError, match="does not hold"):
        list(read_chunks(memory, replace(written, table=table), table))


def test_small_gaps_are_read_across_while_they_are_a_small_share():
    assert len(plan_reads(table_of((0, 0, 1000), (0, 1100, 1000)))) == 1


def test_gaps_that_take_less_time_than_a_request_may_add_up_to_a_quarter():
    needed = table_of(*((0, n * 10_000, 8_100) for n in range(40)))
    assert len(plan_reads(needed)) == 1


def test_larger_gaps_may_not_add_up_to_more_than_a_few_hundredths():
    needed = table_of(*((0, n * 500_000, 400_000) for n in range(40)))
    extents = plan_reads(needed, max_bytes=1 << 30)
    wasted = sum(extent.end - extent.start for extent in extents) - 40 * 400_000
    assert wasted == 400_000


def test_a_large_gap_is_not_read():
    assert [(e.start, e.end) for e in plan_reads(table_of((0, 0, 1000), (0, 9000, 1000)))] == [
        (0, 1000),
        (9000, 10_000),
    ]


def test_a_pack_of_which_a_tenth_is_needed_is_not_read_whole():
    needed = table_of(*((0, n * 100_000, 100_000) for n in range(0, 80, 10)))
    assert sum(extent.end - extent.start for extent in plan_reads(needed)) == 800_000


def test_long_stretches_are_split_so_that_memory_stays_bounded():
    extents = plan_reads(table_of(*((0, n << 20, 1 << 20) for n in range(40))))
    assert max(extent.end - extent.start for extent in extents) <= READ_BYTES


def test_chunks_that_unpack_to_much_are_split_so_that_memory_stays_bounded():
    extents = plan_reads(table_of(*((0, n * 150, 150) for n in range(40)), shrunk=3 << 20))
    assert [len(extent.rows) for extent in extents] == [1] * 40


def test_a_chunk_repeated_many_times_is_split_so_that_memory_stays_bounded():
    extents = plan_reads(table_of(*((0, 0, READ_BYTES // 2) for _ in range(40))))
    assert [len(extent.rows) for extent in extents] == [2] * 20


def test_a_chunk_larger_than_an_extent_is_alone():
    extents = plan_reads(table_of((0, 0, 100), (0, 100, 200), (0, 300, 100), shrunk=READ_BYTES))
    assert [extent.rows for extent in extents] == [(0,), (1,), (2,)]


def test_very_many_tiny_chunks_are_split_too():
    extents = plan_reads(table_of(*((0, n, 1) for n in range(READ_ROWS + 5))))
    assert [len(extent.rows) for extent in extents] == [READ_ROWS, 5]


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 10**6), st.integers(0, 10**5)), max_size=40),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_a_plan_covers_every_row_once_and_reads_no_more_than_it_may(rows, overread, overread_in_small_gaps):
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


def test_the_manifest_names_the_checkpoint(written):
    assert written.header.ref == CheckpointRef("main", 1, 1)
