"""What is stored is found by its digest, in little memory, and forgotten when it should be."""

from __future__ import annotations

import contextlib
import random
import tracemalloc

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from input_checkpoint.format.chunk_table import Location, decode_table
from input_checkpoint.format.chunking import digest
from input_checkpoint.store import chunk_index as index
from input_checkpoint.store.chunk_index import ChunkIndex, ChunkRows, PackUse, packs_to_repack
from input_checkpoint.store.digest_table import DigestTable

# Few different beginnings, so that many digests want the same place in the hash table.
crowded = st.builds(
    lambda first, rest: first + rest,
    st.sampled_from([bytes(4), b"\xff" * 4, b"\xff\xff\xff\xfe", b"abcd"]),
    st.binary(min_size=12, max_size=12),
)
names = st.lists(crowded, unique=True, max_size=60)


def name_of(number: int) -> bytes:
    return digest(b"%d" % number)


def filled(count: int, chunks_in_a_pack: int = 10) -> tuple[ChunkIndex, ChunkRows]:
    """An index of chunks of 100 bytes, and all of them in order."""
    found, rows = ChunkIndex(), ChunkRows()
    for number in range(count):
        pack, place = divmod(number, chunks_in_a_pack)
        rows.add(found.add(name_of(number), Location(f"pack {pack}", place * 100, 100, 130)), 0)
    return found, rows


def known(found: ChunkIndex, count: int) -> set[int]:
    return {number for number in range(count) if found.find(name_of(number)) >= 0}


def rows_of(found: ChunkIndex, *numbers: int) -> ChunkRows:
    chunks = ChunkRows()
    for number in numbers:
        chunks.add(found.find(name_of(number)), 0)
    return chunks


class TestDigestRows:
    @given(names, names)
    def test_each_digest_is_found_at_its_row_and_no_other_is(self, present, absent):
        rows = DigestTable()
        assert [rows.add(name) for name in present] == list(range(len(present)))
        assert [rows.find(name) for name in present] == list(range(len(present)))
        assert {rows.find(name) for name in set(absent) - set(present)} <= {-1}

    @given(names, st.data())
    def test_those_kept_are_numbered_anew(self, present, data):
        rows = DigestTable()
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

    def test_many_are_found_while_they_become_more(self):
        rows, count = DigestTable(), 20_000
        for number in range(count):
            rows.add(name_of(number))
            assert rows.find(name_of(number // 2)) == number // 2
        assert [rows.find(name_of(number)) for number in range(count)] == list(range(count))
        assert rows.find(name_of(count)) == -1

    def test_digests_that_all_begin_with_the_highest_bytes_are_found(self):
        present = [b"\xff" * 4 + number.to_bytes(12, "big") for number in range(3000)]
        rows = DigestTable()
        for name in present:
            rows.add(name)
        assert [rows.find(name) for name in present] == list(range(3000))
        assert rows.find(b"\xff" * 16) == -1


class TestChunkIndex:
    def test_a_chunk_costs_less_than_a_hundred_bytes(self):
        count = 100_000
        digests = [name_of(number) for number in range(count)]
        tracemalloc.start()
        try:
            found, chunks = ChunkIndex(), ChunkRows()
            for name in digests:
                chunks.add(found.add(name, Location("pack", 0, 1, 1)), 0)
            assert tracemalloc.get_traced_memory()[1] < 100 * count
        finally:
            tracemalloc.stop()

    def test_the_table_says_where_each_chunk_is_as_often_as_it_stands_there(self):
        found, _ = filled(30)
        numbers = (25, 3, 25, 0)
        encoded, packs = found.encode_table(rows_of(found, *numbers))
        table = decode_table(encoded, len(numbers))
        assert [name.tobytes() for name in table.digest] == [name_of(number) for number in numbers]
        assert [place for _, place in table.locations(packs)] == [
            Location(f"pack {number // 10}", number % 10 * 100, 100, 130) for number in numbers
        ]
        assert sorted(packs) == ["pack 0", "pack 2"]

    def test_a_table_longer_than_what_is_encoded_at_once_comes_back(self):
        count = 40_000
        found, chunks = filled(count, chunks_in_a_pack=7)
        order = random.Random(1).sample(range(count), count)
        shuffled = ChunkRows()
        for number in order:
            shuffled.add(chunks.rows[number], number % 3)
        encoded, packs = found.encode_table(shuffled)
        table = decode_table(encoded, count)
        assert table.elements.tolist() == [number % 3 for number in order]
        assert table.offset.tolist() == [number % 7 * 100 for number in order]
        assert [packs[pack] for pack in table.pack] == [f"pack {number // 7}" for number in order]
        assert [name.tobytes() for name in table.digest] == list(map(name_of, order))

    def test_what_is_in_a_forgotten_pack_is_not_known_any_more(self):
        found, _ = filled(30)
        found.forget_packs({"pack 1", "unheard of"})
        assert known(found, 30) == {*range(10), *range(20, 30)}
        assert found.packs == {"pack 0", "pack 2"}

    def test_what_was_added_in_vain_is_not_known(self):
        found, _ = filled(10)
        with contextlib.suppress(KeyError), found.rollback_on_error():
            found.add(name_of(10), Location("pack of nobody", 0, 1, 1))
            raise KeyError
        assert known(found, 11) == set(range(10))
        assert found.packs == {"pack 0"}

    def test_what_was_added_with_success_stays(self):
        found, _ = filled(10)
        with found.rollback_on_error():
            found.add(name_of(10), Location("pack", 0, 1, 1))
        assert known(found, 11) == set(range(11))

    def test_of_what_the_newest_checkpoint_does_not_need_the_latest_stays(self, monkeypatch):
        monkeypatch.setattr(index, "MAX_OLDER_CHUNKS", 5)
        found, _ = filled(30)
        found.retain(rows_of(found, 3, 12), repack=())
        assert known(found, 30) == {3, 12, 25, 26, 27, 28, 29}

    def test_what_is_in_packs_given_up_goes_even_if_it_is_needed(self):
        found, chunks = filled(30)
        found.retain(chunks, repack={"pack 2"})
        assert known(found, 30) == set(range(20))

    def test_live_bytes_are_counted_once_for_each_chunk(self):
        found, _ = filled(30)
        live = found.live_bytes(rows_of(found, 3, 3, 4, 25))
        assert live == {"pack 0": 200, "pack 1": 0, "pack 2": 100}

    def test_sums_are_those_of_all_chunks_also_of_equal_ones(self):
        found, _ = filled(3)
        chunks = ChunkRows()
        for elements in (0, 0, 7):
            chunks.add(1, elements)
        assert (found.raw_bytes(chunks), chunks.total_elements) == (390, 9)


class TestGivingPacksUp:
    def test_a_pack_that_is_needed_as_a_whole_is_kept(self):
        assert packs_to_repack({"a": PackUse(100, 100)}, 100) == set()

    def test_the_most_worn_packs_are_given_up_as_far_as_the_budget_goes(self):
        uses = {f"full {n}": PackUse(1000, 1000) for n in range(10)}
        uses |= {f"worn {n:02d}": PackUse(20 + n, 1000) for n in range(10)}
        assert packs_to_repack(uses, 1000) == {f"worn {n:02d}" for n in range(4)}

    def test_of_too_many_packs_those_with_the_fewest_live_bytes_are_given_up(self):
        uses = {f"{n:02d}": PackUse(2600 + n, 10_000) for n in range(100)}
        # A fresh save of the 264 950 bytes would make 27 packs.
        assert packs_to_repack(uses, 10_000) == {f"{n:02d}" for n in range(100 - (3 * 27 + 2))}

    def test_what_is_given_up_in_any_case_counts_for_the_budget_too(self):
        uses = {f"{n:02d}": PackUse(2400 + n, 10_000) for n in range(100)}
        assert len(packs_to_repack(uses, 10_000)) == 100 - (3 * 25 + 2)
