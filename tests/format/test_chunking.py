"""Chunks and variant vectors come back as they went in, and nothing else is taken for one."""

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
from input_checkpoint.tensorflow.variants import join_variants, split_payload, split_variants

elements = st.lists(st.binary(max_size=300), max_size=50)
keyed = st.lists(
    st.tuples(st.binary(max_size=40), st.binary(max_size=300) | st.just(bytes(5000))), max_size=50
)


def variants_or_refusal(tensor: bytes) -> object:
    try:
        return list(split_variants(tensor))
    except CorruptCheckpointError as error:
        return error


def alone(items: list[bytes]) -> list[Element]:
    """Elements that are nothing but a payload."""
    return [(b"", item) for item in items]


@given(elements)
def test_a_chunk_gives_back_its_elements(items):
    assert unframe(frame(items), len(items)) == items


@given(st.binary(max_size=400))
@example(bytes(4))
def test_arbitrary_bytes_are_a_chunk_or_are_refused_as_corrupt(data):
    try:
        items = unframe(data, int.from_bytes(data[:4], "little"))
    except CorruptCheckpointError:
        return
    assert frame(items) == data


@given(elements, st.data())
def test_a_chunk_cut_short_is_refused(items, data):
    whole = frame(items)
    end = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(CorruptCheckpointError):
        unframe(whole[:end], len(items))


@given(elements, st.binary(min_size=1, max_size=20))
def test_a_chunk_with_something_behind_it_is_refused(items, more):
    with pytest.raises(CorruptCheckpointError):
        unframe(frame(items) + more, len(items))


@pytest.mark.parametrize("count", [1, 1000, 2**31, 2**32 - 1])
def test_a_chunk_that_claims_more_elements_than_it_has_room_for_is_refused(count):
    with pytest.raises(CorruptCheckpointError):
        unframe(count.to_bytes(4, "little"), count)


@given(elements, st.integers(0, 2**32 - 1))
def test_a_chunk_of_another_number_of_elements_than_listed_is_refused(items, count):
    assume(count != len(items))
    with pytest.raises(CorruptCheckpointError):
        unframe(frame(items), count)


def put_together(cuts) -> list[tuple[bytes, bytes]]:
    """Elements from their chunks, as a reader would."""
    cuts = list(cuts)
    keys = iter([key for c in cuts if c.is_keys for key in unframe(c.data, c.elements)])
    found = []
    for c in cuts:
        if not c.is_keys:
            found += unframe_elements(c.data, c.elements) if c.elements else [(next(keys), c.data)]
    return found


@given(keyed)
def test_cutting_keeps_every_element_in_order(items):
    assert put_together(split_into_chunks(items)) == items


def test_a_large_payload_is_a_chunk_of_its_own_whatever_its_key():
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
    """Keys as TensorFlow gives them to a shuffle buffer, in its order."""
    name = b"Iterator::Root::Prefetch::BatchV2::Shuffle:buffer::%d@@num_components@@component[0]"
    return sorted(b"\n\x14tensorflow::Iterator\x12U" + name % slot for slot in range(count))


def changed(before: list[Element], after: list[Element], keys: bool = False) -> int:
    """How many chunks are new."""
    known = {c.data for c in split_into_chunks(before)}
    return sum(c.data not in known for c in split_into_chunks(after) if c.is_keys == keys)


@pytest.mark.parametrize(
    ("payload_bytes", "shared_by"), [(0, 32), (8, 32), (90, 16), (140, 8), (200, 4), (330, 4), (500, 2)]
)
def test_the_smaller_the_payloads_the_more_share_a_chunk(payload_bytes, shared_by):
    counts = [c.elements for c in split_into_chunks([(key, bytes(payload_bytes)) for key in slots(10_000)])]
    assert max(counts) == shared_by
    assert counts.count(shared_by) > 0.85 * len(counts)


def test_payloads_of_1_kib_have_a_chunk_each():
    assert LARGE_PAYLOAD_BYTES <= 1000


def test_elements_that_all_have_the_same_key_share_chunks_too():
    assert {c.elements for c in split_into_chunks([(b"", bytes(90))] * 1600)} == {16}


@pytest.mark.parametrize("size", [5, 87, 300, 600])
def test_a_payload_replaced_by_one_of_another_size_changes_two_chunks_at_most(size):
    chance = random.Random(size)
    sizes = [chance.randrange(700) for _ in range(3000)]
    items = [(key, chance.randbytes(n)) for key, n in zip(slots(3000), sizes)]
    for place in chance.sample(range(3000), 20):
        after = [*items[:place], (items[place][0], bytes(size)), *items[place + 1 :]]
        # Where a large one makes place for a small one, the runs of its neighbours are cut anew.
        assert changed(items, after) <= (2 if sizes[place] < LARGE_PAYLOAD_BYTES else 8)


@pytest.mark.parametrize("size", [8, 87, 200, 500])
def test_elements_that_come_and_go_before_a_buffer_change_little_of_it(size):
    chance = random.Random(size)
    buffer = [(key, chance.randbytes(size)) for key in slots(20_000)]
    fetched = [(b"Iterator::Root::Prefetch::%d" % n, chance.randbytes(size)) for n in range(3)]
    assert changed(buffer, fetched + buffer) < 0.05 * len(list(split_into_chunks(buffer)))


def test_large_elements_that_come_and_go_change_few_chunks_of_keys():
    buffer = [(key, bytes(1000)) for key in slots(20_000)]
    after = [(b"Iterator::Root::Prefetch::0", bytes(1000)), *buffer[:7000], *buffer[7001:]]
    assert 0 < changed(buffer, after, keys=True) <= 4
    assert sum(c.is_keys for c in split_into_chunks(buffer)) > 10


def test_one_small_payload_that_is_replaced_changes_one_chunk_only():
    items = [(b"key %d" % n, b"%d" % n * 9) for n in range(20_000)]
    before = {c.data for c in split_into_chunks(items)}
    after = [c.data for c in split_into_chunks([*items[:7], (b"key 7", b"new"), *items[8:]])]
    assert sum(data not in before for data in after) == 1


def test_one_small_element_more_changes_chunks_only_as_far_as_the_next_stretch():
    items = [(b"key %d" % n, b"%d" % n * 9) for n in range(20_000)]
    before = {c.data for c in split_into_chunks(items)}
    after = [c.data for c in split_into_chunks([*items[:7], (b"key", b"new"), *items[7:]])]
    assert 1 <= sum(data not in before for data in after) < len(after) / 10


def test_cutting_takes_no_more_of_a_stream_than_the_chunk_it_gives():
    taken = []
    stream = (taken.append(number) or (b"", bytes(5000)) for number in range(10))
    next(split_into_chunks(stream))
    assert taken == [0]


@given(st.binary(max_size=60), st.binary(max_size=60))
def test_an_element_is_its_key_and_its_payload(metadata, tensors):
    key = b"\x0a\x01t\x12" + bytes([len(metadata)]) + metadata
    payload = b"\x1a" + bytes([len(tensors)]) + tensors
    assert split_payload(key + payload) == (key, payload)


def test_the_digest_has_128_bits():
    assert len(digest(b"anything")) == 16


@given(st.binary(max_size=50), st.binary(max_size=50))
def test_different_bytes_have_different_digests(one, other):
    assert (digest(one) == digest(other)) == (one == other)


@given(elements)
def test_a_vector_of_variants_gives_back_its_elements(items):
    assert list(split_variants(join_variants(alone(items)))) == items


def test_a_vector_of_more_elements_than_one_varint_byte_counts_comes_back():
    items = [b"x" * (number % 300) for number in range(20_000)]
    assert list(split_variants(join_variants(alone(items)))) == items


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_a_vector_of_variants_or_are_refused_as_corrupt(data):
    assert isinstance(variants_or_refusal(data), (list, CorruptCheckpointError))


@given(elements.filter(len), st.data())
def test_a_damaged_vector_of_variants_is_split_or_refused_as_corrupt(items, data):
    whole = bytearray(join_variants(alone(items)))
    position = data.draw(st.integers(0, len(whole) - 1))
    whole[position] ^= data.draw(st.integers(1, 255))
    assert isinstance(variants_or_refusal(bytes(whole)), (list, CorruptCheckpointError))


@given(elements.filter(any), st.data())
def test_a_vector_of_variants_cut_short_is_refused(items, data):
    whole = join_variants(alone(items))
    end = data.draw(st.integers(1, len(whole) - 1))
    with pytest.raises(CorruptCheckpointError):
        list(split_variants(whole[:end]))


@pytest.mark.parametrize(
    "tensor",
    [
        pytest.param(b"\x08\x01" + join_variants(alone([b"a"]))[2:], id="floats"),
        pytest.param(b"\x08\x15\x12\x00\x22\x02\x01a", id="a scalar"),
        pytest.param(b"\x08\x15\x12\x08\x12\x02\x08\x01\x12\x02\x08\x01\x22\x02\x01a", id="a matrix"),
        pytest.param(join_variants(alone([b"a"])) + b"\x2a\x01a", id="an unknown field"),
        pytest.param(
            b"\x08\x15\x12\x0d\x12\x0b\x08" + b"\xff" * 9 + b"\x01\x22\x01\x00", id="2**63 elements"
        ),
    ],
)
def test_a_tensor_that_is_no_vector_of_variants_is_refused(tensor):
    with pytest.raises(CorruptCheckpointError):
        list(split_variants(tensor))
