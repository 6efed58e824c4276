"""Compressed data is restored exactly, one by one and in batches, and damage is detected."""

from __future__ import annotations

import itertools
import tracemalloc
from collections.abc import Iterator

import pytest
import zstandard
from hypothesis import example, given
from hypothesis import strategies as st

from input_checkpoint import CorruptCheckpointError
from input_checkpoint.format import compression
from input_checkpoint.format.compression import Compressor, compress, decompress, decompress_each

contents = st.lists(
    st.binary(min_size=1, max_size=50) | st.integers(1, 500_000).map(bytes), min_size=1, max_size=20
)

GOOD = (compress(b"good" * 100), 400)
ANOTHER = (compress(b"another" * 100), 700)
DAMAGED = {
    "is not compressed": (b"not compressed at all", 400),
    "is truncated": (GOOD[0][:-3], 400),
    "holds less than listed": (GOOD[0], 401),
    "holds more than listed": (GOOD[0], 399),
    "is empty": (b"", 400),
    "does not say its size": (zstandard.ZstdCompressor(write_content_size=False).compress(b"x"), 400),
    "claims more than it can hold": (bytes.fromhex("28b52ffd a0 ffffff7f 010000"), 0x7FFFFFFF),
}


@pytest.fixture(params=["in batches", "one by one"])
def both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """zstandard has a batch API only where it is built on C."""
    monkeypatch.setattr(compression, "_HAS_BATCH_API", request.param == "in batches")


@given(contents)
@example([b""])
@example([b"", b""])
@example([])
def test_contents_are_decompressed_in_order(items):
    assert list(decompress_each([(compress(item), len(item)) for item in items])) == items


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("what", DAMAGED)
def test_contents_before_a_damaged_one_are_returned_and_the_damaged_one_is_refused(what):
    found = decompress_each([GOOD, ANOTHER, DAMAGED[what], GOOD])
    assert [*itertools.islice(found, 2)] == [b"good" * 100, b"another" * 100]
    with pytest.raises(CorruptCheckpointError, match="compressed data"):
        next(found)


@pytest.mark.usefixtures("both_ways")
def test_a_frame_that_does_not_say_its_size_is_decompressed_among_others():
    unsized = zstandard.ZstdCompressor(write_content_size=False).compress(b"unsized")
    assert list(decompress_each([GOOD, (unsized, 7), GOOD])) == [b"good" * 100, b"unsized", b"good" * 100]


@pytest.mark.usefixtures("both_ways")
def test_a_flipped_bit_causes_an_error_or_different_bytes_of_the_same_size():
    data, size = compress(bytes(range(200)) * 5), 1000
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 0x04
        try:
            _, found = decompress_each([GOOD, (bytes(damaged), size)])
        except CorruptCheckpointError:
            continue
        assert len(found) == size


@pytest.mark.usefixtures("both_ways")
def test_memory_does_not_grow_with_the_amount_of_data():
    def peak_of(count: int) -> int:
        packed = [(compress(bytes(100_000)), 100_000)] * count
        tracemalloc.start()
        for _ in decompress_each(packed):
            continue
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return peak

    assert peak_of(1_000) < 2 * peak_of(50) < 10 << 20


def test_no_item_is_drawn_before_it_is_needed():
    def packed() -> Iterator[tuple[bytes, int]]:
        for _ in range(3):
            yield compress(bytes(700_000)), 700_000
        raise AssertionError("drawn too early")

    assert len(next(decompress_each(packed()))) == 700_000


@given(contents)
def test_a_compressor_never_enlarges_a_content_and_it_can_be_decompressed(items):
    for item, stored in zip(items, Compressor().compress(items)):
        assert stored == item if len(stored) == len(item) else decompress(stored, len(item)) == item
        assert len(stored) <= len(item)
