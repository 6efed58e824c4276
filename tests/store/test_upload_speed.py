"""The speed of uploads is that of all uploads together, and a few slow uploads do not change it."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from input_checkpoint.store.upload_speed import UploadSpeed, seconds_per_byte

MB = 1_000_000


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def speed(clock: Clock) -> UploadSpeed:
    return UploadSpeed(clock)


def upload(speed: UploadSpeed, clock: Clock, size: int, seconds: float, times: int = 1) -> None:
    for _ in range(times):
        with speed.measuring(size):
            clock.now += seconds


def per_second(speed: UploadSpeed) -> float:
    """Bytes per second."""
    each = speed.seconds_per_byte()
    assert each is not None
    return 1 / each


def test_before_the_fourth_upload_the_speed_is_not_known(speed, clock):
    assert speed.seconds_per_byte() is None
    upload(speed, clock, 8 * MB, 2, times=3)
    assert speed.seconds_per_byte() is None
    upload(speed, clock, 8 * MB, 2)
    assert per_second(speed) == pytest.approx(4 * MB)


def test_time_between_uploads_does_not_count(speed, clock):
    for _ in range(4):
        upload(speed, clock, 8 * MB, 2)
        clock.now += 1000
    assert per_second(speed) == pytest.approx(4 * MB)


def test_uploads_at_the_same_time_are_as_fast_as_all_of_them_together(speed, clock):
    with contextlib.ExitStack() as running:
        for _ in range(4):
            running.enter_context(speed.measuring(8 * MB))
        clock.now += 2
    assert per_second(speed) == pytest.approx(16 * MB)


def test_uploads_that_are_still_running_share_the_time(speed, clock):
    with contextlib.ExitStack() as others:
        for _ in range(3):
            others.enter_context(speed.measuring(8 * MB))
        upload(speed, clock, 8 * MB, 2, times=4)
        assert per_second(speed) == pytest.approx(16 * MB)


def test_uploads_that_overlap_in_part_share_only_the_time_that_they_have_in_common(speed, clock):
    for _ in range(2):
        first, second = speed.measuring(8 * MB), speed.measuring(8 * MB)
        first.__enter__()
        clock.now += 1
        second.__enter__()
        clock.now += 2
        first.__exit__(None, None, None)
        clock.now += 1
        second.__exit__(None, None, None)
    assert per_second(speed) == pytest.approx(16 * MB / 4)


def test_a_tiny_pack_does_not_count(speed, clock):
    upload(speed, clock, MB - 1, 50, times=8)
    assert speed.seconds_per_byte() is None
    upload(speed, clock, MB, 1, times=4)
    assert per_second(speed) == pytest.approx(MB)


def test_a_failed_upload_does_not_count_and_no_longer_shares_the_time(speed, clock):
    def fail() -> None:
        with speed.measuring(8 * MB):
            clock.now += 50
            raise OSError("no answer")

    for _ in range(4):
        with pytest.raises(OSError, match="no answer"):
            fail()
    assert speed.seconds_per_byte() is None
    upload(speed, clock, 8 * MB, 1, times=4)
    assert per_second(speed) == pytest.approx(8 * MB)


def test_uploads_in_many_threads_all_end(speed, clock):
    def upload_often(_: int) -> None:
        for _ in range(200):
            with speed.measuring(8 * MB):
                pass

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(upload_often, range(8)))
    upload(speed, clock, 8 * MB, 1, times=8)
    assert per_second(speed) == pytest.approx(8 * MB)


@pytest.mark.parametrize("exceptions", [{0}, {7}, {3, 4}, {0, 6}], ids=str)
@pytest.mark.parametrize("seconds", [300, 0.001])
def test_a_few_slow_or_fast_uploads_do_not_change_the_speed(speed, clock, exceptions, seconds):
    for number in range(8):
        upload(speed, clock, 8 * MB, seconds if number in exceptions else 1)
    assert per_second(speed) == pytest.approx(8 * MB)


def test_a_storage_that_has_become_slow_is_noticed_within_a_few_uploads(speed, clock):
    upload(speed, clock, 8 * MB, 0.01, times=100)
    upload(speed, clock, 8 * MB, 8, times=6)
    assert per_second(speed) == pytest.approx(MB)


def test_an_upload_that_takes_no_time_counts(speed, clock):
    upload(speed, clock, 8 * MB, 0, times=4)
    assert speed.seconds_per_byte() == 0


@pytest.mark.parametrize(
    ("uploads", "expected"),
    [
        ([(10, 5.0)], 0.5),
        ([(10, 1.0), (30, 9.0), (1, 60.0), (10, 0.1)], 0.25),
        ([(1000, 100.0), (10, 2.0), (10, 2.0), (10, 3.0)], 0.2),
    ],
    ids=["a single one counts", "large ones weigh more", "fast and slow are meant per byte"],
)
def test_the_middle_half_of_the_uploads_counts(uploads: Sequence[tuple[int, float]], expected):
    assert seconds_per_byte(uploads) == pytest.approx(expected)
