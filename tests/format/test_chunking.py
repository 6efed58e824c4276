"""Chunks return the elements that were put in, and stay the same where elements stay the same."""

from __future__ import annotations

import random

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from input_checkpoint import CorruptCheckpointError
from input_checkpoint.format.chunking import (
    LARGE_PAYLOAD_BYTES,
    digest,
    frame,
    split_into_chunks,
    unframe,
    unframe_elements,
)
from input_checkpoint.state import Element

payloads = st.lists(st.binary(max_size=300), max_size=50)
keyed = st.lists(
    st.tuples(st.binary(max_size=40), st.binary(max_size=300) | st.just(bytes(5000))), max_size=50
)


@given(payloads)
def test_a_frame_returns_its_parts(items):
    assert unframe(frame(items), len(items)) == items


@given(st.binary(max_size=400))
@example(bytes(4))
def test_arbitrary_bytes_are_a_frame_or_are_refused_as_corrupt(data):
    try:
        items = unframe(data, int.from_bytes(data[:4], "little"))
    except CorruptCheckpointError:
        return
    assert frame(items) == data


@given(payloads, st.data())
def test_a_truncated_frame_is_refused(items, data):
    whole = frame(items)
    end = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(CorruptCheckpointError):
        unframe(whole[:end], len(items))


@given(payloads, st.binary(min_size=1, max_size=20))
def test_a_frame_followed_by_more_bytes_is_refused(items, more):
    with pytest.raises(CorruptCheckpointError):
        unframe(frame(items) + more, len(items))


@pytest.mark.parametrize("count", [1, 1000, 2**31, 2**32 - 1])
def test_a_frame_that_claims_more_parts_than_fit_into_it_is_refused(count):
    with pytest.raises(CorruptCheckpointError):
        unframe(count.to_bytes(4, "little"), count)


@given(payloads, st.integers(0, 2**32 - 1))
def test_a_frame_with_another_number_of_parts_than_listed_is_refused(items, count):
    assume(count != len(items))
    with pytest.raises(CorruptCheckpointError):
        unframe(frame(items), count)


def elements_of(chunks) -> list[Element]:
    """Return the elements of chunks, as a reader would."""
    chunks = list(chunks)
    keys = iter([key for chunk in chunks if chunk.is_keys for key in unframe(chunk.data, chunk.elements)])
    found = []
    for chunk in chunks:
        if chunk.is_keys:
            continue
        elements = chunk.elements
        found += unframe_elements(chunk.data, elements) if elements else [(next(keys), chunk.data)]
    return found


@given(keyed)
def test_splitting_keeps_every_element_in_order(items):
    assert elements_of(split_into_chunks(items)) == items


def test_a_large_payload_is_its_own_chunk_whatever_its_key():
    payload = bytes(LARGE_PAYLOAD_BYTES)
    one, other = (
        [c.data for c in split_into_chunks([(key, payload)]) if not c.is_keys]
        for key in (b"slot 1", b"slot 2")
    )
    assert one == other == [payload]


def test_small_elements_share_chunks_of_bounded_size():
    sizes = [len(c.data) for c in split_into_chunks([(b"key %d" % n, bytes(100)) for n in range(20_000)])]
    assert 512 < max(sizes) < 2 << 10
    assert len(sizes) < 20_000 / 5


def slots(count: int) -> list[bytes]:
    """The keys of a shuffle buffer, in TensorFlow's order."""
    name = b"Iterator::Root::Prefetch::BatchV2::Shuffle:buffer::%d@@num_components@@component[0]"
    return sorted(b"\n\x14tensorflow::Iterator\x12U" + name % slot for slot in range(count))


def count_new(before: list[Element], after: list[Element], keys: bool = False) -> int:
    """Count the chunks that only the second state has."""
    known = {c.data for c in split_into_chunks(before)}
    return sum(c.data not in known for c in split_into_chunks(after) if c.is_keys == keys)


@pytest.mark.parametrize(
    ("payload_bytes", "shared_by"), [(0, 32), (90, 32), (100, 16), (140, 8), (200, 4), (330, 4), (500, 2)]
)
def test_the_smaller_the_payloads_are_the_more_of_them_share_a_chunk(payload_bytes, shared_by):
    counts = [c.elements for c in split_into_chunks([(key, bytes(payload_bytes)) for key in slots(10_000)])]
    assert max(counts) == shared_by
    assert counts.count(shared_by) > 0.85 * len(counts)


def test_a_payload_of_1_kib_is_its_own_chunk():
    assert LARGE_PAYLOAD_BYTES <= 1000


def test_elements_with_the_same_key_share_chunks():
    assert {c.elements for c in split_into_chunks([(b"", bytes(90))] * 1600)} == {32}


@pytest.mark.parametrize("size", [5, 87, 300, 600])
def test_replacing_a_payload_by_one_of_another_size_changes_few_chunks(size):
    chance = random.Random(size)
    sizes = [chance.randrange(700) for _ in range(3000)]
    items = [(key, chance.randbytes(n)) for key, n in zip(slots(3000), sizes)]
    for place in chance.sample(range(3000), 20):
        after = [*items[:place], (items[place][0], bytes(size)), *items[place + 1 :]]
        # When a small payload replaces a large one, its neighbors are grouped anew.
        assert count_new(items, after) <= (2 if sizes[place] < LARGE_PAYLOAD_BYTES else 8)


@pytest.mark.parametrize("size", [8, 87, 200, 500])
def test_elements_inserted_before_a_buffer_change_few_of_its_chunks(size):
    chance = random.Random(size)
    buffer = [(key, chance.randbytes(size)) for key in slots(20_000)]
    fetched = [(b"Iterator::Root::Prefetch::%d" % n, chance.randbytes(size)) for n in range(3)]
    assert count_new(buffer, fetched + buffer) < 0.05 * len(list(split_into_chunks(buffer)))


def test_inserting_and_removing_large_elements_changes_few_chunks_of_keys():
    buffer = [(key, bytes(1000)) for key in slots(20_000)]
    after = [(b"Iterator::Root::Prefetch::0", bytes(1000)), *buffer[:7000], *buffer[7001:]]
    assert 0 < count_new(buffer, after, keys=True) <= 4
    assert sum(c.is_keys for c in split_into_chunks(buffer)) > 10


def test_replacing_one_small_payload_changes_one_chunk():
    items = [(b"key %d" % n, b"%d" % n * 9) for n in range(20_000)]
    before = {c.data for c in split_into_chunks(items)}
    after = [c.data for c in split_into_chunks([*items[:7], (b"key 7", b"new"), *items[8:]])]
    assert sum(data not in before for data in after) == 1


def test_inserting_a_small_element_changes_chunks_only_up_to_the_next_segment():
    items = [(b"key %d" % n, b"%d" % n * 9) for n in range(20_000)]
    before = {c.data for c in split_into_chunks(items)}
    after = [c.data for c in split_into_chunks([*items[:7], (b"key", b"new"), *items[7:]])]
    assert 1 <= sum(data not in before for data in after) < len(after) / 10


def test_a_stream_is_read_no_further_than_the_chunk_needs():
    drawn = []
    stream = (drawn.append(number) or (b"", bytes(5000)) for number in range(10))
    next(split_into_chunks(stream))
    assert drawn == [0]


def test_the_digest_has_128_bits():
    assert len(digest(b"anything")) == 16


@given(st.binary(max_size=50), st.binary(max_size=50))
def test_different_bytes_have_different_digests(one, other):
    assert (digest(one) == digest(other)) == (one == other)
