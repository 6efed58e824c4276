"""Stored chunks are found by their digest, in little memory, and removed when they should be."""

from __future__ import annotations

import contextlib
import random
import tracemalloc

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from input_checkpoint.format.chunk_table import Location, decode_table
from input_checkpoint.format.chunking import digest
from input_checkpoint.store import chunk_index
from input_checkpoint.store.chunk_index import ChunkIndex, ChunkRows, PackUse, packs_to_repack
from input_checkpoint.store.digest_table import DigestTable

# Few different prefixes, so that many digests compete for the same bucket of the hash table.
crowded = st.builds(
    lambda first, rest: first + rest,
    st.sampled_from([bytes(4), b"\xff" * 4, b"\xff\xff\xff\xfe", b"abcd"]),
    st.binary(min_size=12, max_size=12),
)
digests = st.lists(crowded, unique=True, max_size=60)
PREFIX_ONLY = (1 << 32, 0)
"""With these factors, the hash of a digest is its prefix."""


def name_of(number: int) -> bytes:
    return digest(b"%d" % number)


def filled(count: int, chunks_per_pack: int = 10) -> tuple[ChunkIndex, ChunkRows]:
    """An index of chunks of 100 bytes, and the rows of all of them in order."""
    index, rows = ChunkIndex(), ChunkRows()
    for number in range(count):
        pack, position = divmod(number, chunks_per_pack)
        rows.add(index.add(name_of(number), Location(f"pack {pack}", position * 100, 100, 130)), 0)
    return index, rows


def known(index: ChunkIndex, count: int) -> set[int]:
    return {number for number in range(count) if index.find(name_of(number)) >= 0}


def rows_of(index: ChunkIndex, *numbers: int) -> ChunkRows:
    chunks = ChunkRows()
    for number in numbers:
        chunks.add(index.find(name_of(number)), 0)
    return chunks


class TestDigestTable:
    @given(digests, digests)
    def test_each_digest_is_found_at_its_row_and_others_are_not_found(self, present, absent):
        rows = DigestTable(PREFIX_ONLY)
        assert [rows.add(name) for name in present] == list(range(len(present)))
        assert [rows.find(name) for name in present] == list(range(len(present)))
        assert {rows.find(name) for name in set(absent) - set(present)} <= {-1}

    @given(digests, st.data())
    def test_kept_digests_are_renumbered(self, present, data):
        rows = DigestTable(PREFIX_ONLY)
        for name in present:
            rows.add(name)
        kept = data.draw(
            st.lists(st.sampled_from(range(len(present))), unique=True) if present else st.just([])
        )
        rows.keep(np.array(sorted(kept), np.int64))
        left = [present[row] for row in sorted(kept)]
        assert [rows.find(name) for name in left] == list(range(len(left)))
        assert {rows.find(name) for name in set(present) - set(left)} <= {-1}
        assert len(rows) == len(left)

    def test_digests_are_found_while_the_table_grows(self):
        rows, count = DigestTable(), 20_000
        for number in range(count):
            rows.add(name_of(number))
            assert rows.find(name_of(number // 2)) == number // 2
        assert [rows.find(name_of(number)) for number in range(count)] == list(range(count))
        assert rows.find(name_of(count)) == -1

    def test_digests_that_all_share_the_last_bucket_are_found(self):
        present = [b"\xff" * 4 + number.to_bytes(12, "big") for number in range(3000)]
        rows = DigestTable(PREFIX_ONLY)
        for name in present:
            rows.add(name)
        assert [rows.find(name) for name in present] == list(range(3000))
        assert rows.find(b"\xff" * 16) == -1


class TestChunkIndex:
    def test_a_chunk_needs_less_than_a_hundred_bytes(self):
        count = 100_000
        digests = [name_of(number) for number in range(count)]
        tracemalloc.start()
        try:
            index, chunks = ChunkIndex(), ChunkRows()
            for name in digests:
                chunks.add(index.add(name, Location("pack", 0, 1, 1)), 0)
            assert tracemalloc.get_traced_memory()[1] < 100 * count
        finally:
            tracemalloc.stop()

    def test_the_table_locates_each_chunk_and_repeats_repeated_ones(self):
        index, _ = filled(30)
        numbers = (25, 3, 25, 0)
        encoded, packs = index.encode_table(rows_of(index, *numbers))
        table = decode_table(encoded, len(numbers))
        assert [name.tobytes() for name in table.digest] == [name_of(number) for number in numbers]
        assert [place for _, place in table.locations(packs)] == [
            Location(f"pack {number // 10}", number % 10 * 100, 100, 130) for number in numbers
        ]
        assert sorted(packs) == ["pack 0", "pack 2"]

    def test_a_table_of_several_blocks_is_decoded_as_it_was_encoded(self):
        count = 40_000
        index, chunks = filled(count, chunks_per_pack=7)
        order = random.Random(1).sample(range(count), count)
        shuffled = ChunkRows()
        for number in order:
            shuffled.add(chunks.rows[number], number % 3)
        encoded, packs = index.encode_table(shuffled)
        table = decode_table(encoded, count)
        assert table.elements.tolist() == [number % 3 for number in order]
        assert table.offset.tolist() == [number % 7 * 100 for number in order]
        assert [packs[pack] for pack in table.pack] == [f"pack {number // 7}" for number in order]
        assert [name.tobytes() for name in table.digest] == list(map(name_of, order))

    def test_chunks_in_a_forgotten_pack_are_removed(self):
        index, _ = filled(30)
        index.forget_packs({"pack 1", "unheard of"})
        assert known(index, 30) == {*range(10), *range(20, 30)}
        assert index.packs == {"pack 0", "pack 2"}

    def test_chunks_added_before_an_error_are_removed(self):
        index, _ = filled(10)
        with contextlib.suppress(KeyError), index.rollback_on_error():
            index.add(name_of(10), Location("pack of a failed save", 0, 1, 1))
            raise KeyError
        assert known(index, 11) == set(range(10))
        assert index.packs == {"pack 0"}

    def test_chunks_added_without_an_error_stay(self):
        index, _ = filled(10)
        with index.rollback_on_error():
            index.add(name_of(10), Location("pack", 0, 1, 1))
        assert known(index, 11) == set(range(11))

    def test_of_the_chunks_that_the_newest_checkpoint_does_not_need_the_last_ones_stay(self, monkeypatch):
        monkeypatch.setattr(chunk_index, "MAX_OLDER_CHUNKS", 5)
        index, _ = filled(30)
        index.retain(rows_of(index, 3, 12), repack=())
        assert known(index, 30) == {3, 12, 25, 26, 27, 28, 29}

    def test_chunks_in_packs_to_repack_are_removed_even_if_they_are_needed(self):
        index, chunks = filled(30)
        index.retain(chunks, repack={"pack 2"})
        assert known(index, 30) == set(range(20))

    def test_live_bytes_count_a_repeated_chunk_once(self):
        index, _ = filled(30)
        live = index.live_bytes(rows_of(index, 3, 3, 4, 25))
        assert live == {"pack 0": 200, "pack 1": 0, "pack 2": 100}

    def test_totals_count_a_repeated_chunk_each_time(self):
        index, _ = filled(3)
        chunks = ChunkRows()
        for elements in (0, 0, 7):
            chunks.add(1, elements)
        assert (index.raw_bytes(chunks), chunks.total_elements) == (390, 9)


class TestPacksToRepack:
    def test_a_fully_live_pack_is_not_chosen(self):
        assert packs_to_repack({"a": PackUse(100, 100)}, 100) == set()

    def test_the_sparsest_packs_are_chosen_within_the_budget(self):
        uses = {f"full {n}": PackUse(1000, 1000) for n in range(10)}
        uses |= {f"sparse {n:02d}": PackUse(20 + n, 1000) for n in range(10)}
        assert packs_to_repack(uses, 1000) == {f"sparse {n:02d}" for n in range(4)}

    def test_of_too_many_packs_those_with_the_fewest_live_bytes_are_chosen(self):
        uses = {f"{n:02d}": PackUse(2600 + n, 10_000) for n in range(100)}
        # A full save of the 264,950 bytes would upload 27 packs.
        assert packs_to_repack(uses, 10_000) == {f"{n:02d}" for n in range(100 - (3 * 27 + 2))}

    def test_surplus_packs_use_up_the_budget(self):
        uses = {f"{n:02d}": PackUse(2400 + n, 10_000) for n in range(100)}
        assert len(packs_to_repack(uses, 10_000)) == 100 - (3 * 25 + 2)


def test_digests_that_begin_alike_are_found_as_quickly_as_others():
    """A manifest may list digests that somebody has chosen."""
    table = DigestTable()
    digests = [bytes(8) + number.to_bytes(8, "little") for number in range(50_000)]
    assert [table.add(digest) for digest in digests] == list(range(50_000))
    assert [table.find(digest) for digest in digests] == list(range(50_000))
    assert table.find(b"x" * 16) == -1
