"""Compressed data is restored exactly, one by one and in batches, and damage is detected."""

from __future__ import annotations

import itertools
import random
import tracemalloc
from collections.abc import Iterator
from typing import Optional

import pytest
import zstandard
from hypothesis import example, given
from hypothesis import strategies as st

from input_checkpoint import CorruptCheckpointError
from input_checkpoint.format import compression
from input_checkpoint.format.compression import Compressor, compress, decompress, decompress_each, pays

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


class TestWhetherCompressionPays:
    """A megabyte is compressed in 4 ms. A byte takes 1 ns to a disk, and 100 ns over a slow link."""

    FAST, SLOW = 1e-9, 100e-9
    SIZE, SECONDS = 1_000_000, 0.004

    @pytest.mark.parametrize(
        ("stored", "upload", "expected"),
        [
            (1_000_000, SLOW, False),
            (950_000, SLOW, False),
            (950_000, None, False),
            (850_000, SLOW, True),
            (850_000, FAST, False),
            (850_000, 0.0, False),
            (850_000, None, True),
            (800_000, FAST, True),
            (100_000, FAST, True),
            (100_000, 0.0, True),
        ],
    )
    def test_what_shrinks_a_little_is_compressed_for_slow_storages_only(
        self, stored: int, upload: Optional[float], expected: bool
    ):
        assert pays(self.SIZE, stored, self.SECONDS, upload) is expected

    @pytest.mark.parametrize(("seconds", "expected"), [(0.029, True), (0.031, False)])
    def test_moving_the_saved_bytes_there_and_back_must_take_longer_than_compressing(self, seconds, expected):
        assert pays(self.SIZE, 850_000, seconds, 100e-9) is expected


MIB = 1 << 20


def shrinking_by(share: float) -> bytes:
    """A megabyte that shrinks by about this share."""
    zeros = int(share * MIB)
    return random.Random(1).randbytes(MIB - zeros) + bytes(zeros)


class Ticks:
    """A clock that advances by a fixed time from call to call."""

    def __init__(self, seconds: float) -> None:
        self._calls = itertools.count()
        self._seconds = seconds

    def __call__(self) -> float:
        return next(self._calls) * self._seconds


class TestPauses:
    LITTLE, MUCH = shrinking_by(0.15), shrinking_by(0.5)

    def compressed(self, compressor: Compressor, data: bytes) -> bool:
        return len(compressor.compress([data])[0]) < len(data)

    def compressor(self, upload: Optional[float], seconds: float = 0.004) -> Compressor:
        return Compressor(lambda: upload, Ticks(seconds))

    def test_it_pauses_after_a_megabyte_if_the_storage_is_faster(self):
        compressor = self.compressor(upload=1e-9)
        assert [self.compressed(compressor, self.LITTLE) for _ in range(3)] == [True, False, False]

    @pytest.mark.parametrize("upload", [100e-9, None], ids=["a slow storage", "a storage of unknown speed"])
    def test_it_does_not_pause_for(self, upload):
        compressor = self.compressor(upload)
        assert all(self.compressed(compressor, self.LITTLE) for _ in range(100))

    def test_without_a_speed_it_does_not_pause_however_long_compressing_takes(self):
        compressor = Compressor(clock=Ticks(1000))
        assert all(self.compressed(compressor, self.LITTLE) for _ in range(3))

    def test_what_shrinks_much_is_compressed_for_any_storage(self):
        compressor = self.compressor(upload=0.0)
        assert all(self.compressed(compressor, self.MUCH) for _ in range(100))

    def test_what_hardly_shrinks_is_not_compressed_for_any_storage(self):
        compressor = self.compressor(upload=1.0)
        data = shrinking_by(0.05)
        assert [self.compressed(compressor, data) for _ in range(2)] == [True, False]

    def test_compression_is_tried_again_after_64_mib_and_goes_on_if_the_storage_has_become_slow(self):
        upload = 1e-9
        compressor = Compressor(lambda: upload, Ticks(0.004))
        assert [self.compressed(compressor, self.LITTLE) for _ in range(67)].count(True) == 2
        upload = 100e-9
        tried = [self.compressed(compressor, self.LITTLE) for _ in range(100)]
        assert tried == [False] * 63 + [True] * 37

    def test_the_time_of_all_parts_of_a_megabyte_counts(self):
        parts = [self.LITTLE[: MIB // 2], self.LITTLE[MIB // 2 :]]
        compressor = self.compressor(upload=20e-9, seconds=0.004)
        for part in parts:
            compressor.compress([part])
        assert not self.compressed(compressor, self.LITTLE)
        compressor = self.compressor(upload=20e-9, seconds=0.002)
        for part in parts:
            compressor.compress([part])
        assert self.compressed(compressor, self.LITTLE)
