"""Work runs ahead of its caller, in order and within bounds."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from input_checkpoint.parallel import map_ordered, prefetch_one, run_both


class RecordingWork:
    """Work that records the items that it was called with."""

    def __init__(self) -> None:
        self.items: list[int] = []
        self._lock = threading.Lock()

    def __call__(self, item: int) -> int:
        with self._lock:
            self.items.append(item)
        return item

    def count(self) -> int:
        """Count the calls, after giving pending ones the time to start."""
        time.sleep(0.05)
        return len(self.items)


def test_results_are_yielded_in_the_order_of_the_items():
    def slow_if_even(item: int) -> int:
        time.sleep(0.01 * (item % 2 == 0))
        return item

    assert list(map_ordered(slow_if_even, range(9), 4)) == list(range(9))


def test_no_more_work_runs_ahead_than_the_concurrency_allows():
    work = RecordingWork()
    results = map_ordered(work, range(20), 3)
    next(results)
    assert work.count() <= 1 + 1 + 3
    results.close()


def test_work_that_runs_ahead_weighs_no_more_than_allowed():
    work = RecordingWork()
    results = map_ordered(work, range(20), 8, lambda item: 1.0, max_weight=3)
    next(results)
    assert work.count() == 3
    results.close()


def test_an_item_heavier_than_allowed_runs_alone():
    work = RecordingWork()
    results = map_ordered(work, [1, 50, 1], 8, float, max_weight=3)
    assert next(results) == 1
    assert next(results) == 50
    assert work.count() == 2
    assert list(results) == [1]


def test_an_error_is_raised_in_place_of_its_result():
    def divide(item: int) -> float:
        return 1 / item

    results = map_ordered(divide, [1, 0, 2], 4)
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_two_functions_run_at_the_same_time():
    meeting = threading.Barrier(2)
    assert sorted(run_both(lambda: meeting.wait(10), lambda: meeting.wait(10))) == [0, 1]


@pytest.mark.parametrize(("one", "other"), [(0, 1), (1, 0)])
def test_an_error_of_either_function_is_raised(one, other):
    with pytest.raises(ZeroDivisionError):
        run_both(lambda: 1 / one, lambda: 1 / other)


def test_the_next_item_is_drawn_while_the_caller_uses_the_current_one() -> None:
    drawn: list[int] = []

    def items() -> Iterator[int]:
        for item in range(10):
            drawn.append(item)
            yield item

    prefetched = prefetch_one(items())
    assert drawn == []
    assert next(prefetched) == 0
    time.sleep(0.05)
    assert drawn == [0, 1]
    assert list(prefetched) == list(range(1, 10))


def test_an_error_while_drawing_is_raised_in_place_of_the_item() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise OSError("no more")

    prefetched = prefetch_one(items())
    assert next(prefetched) == 1
    with pytest.raises(OSError, match="no more"):
        next(prefetched)


def test_no_item_is_drawn_after_the_caller_has_stopped() -> None:
    drawn: list[int] = []

    def items() -> Iterator[int]:
        while True:
            drawn.append(len(drawn))
            yield 0

    prefetched = prefetch_one(items())
    next(prefetched)
    prefetched.close()
    count = len(drawn)
    time.sleep(0.05)
    assert len(drawn) == count <= 2
