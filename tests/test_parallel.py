"""Work runs ahead of its caller, in order and within bounds."""

from __future__ import annotations

import functools
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from input_checkpoint.parallel import DaemonExecutor, map_ordered, prefetch_one, run_all, run_both


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


def test_all_functions_run_at_the_same_time():
    meeting = threading.Barrier(3)
    assert sorted(run_all([lambda: meeting.wait(10)] * 3)) == [0, 1, 2]


def test_a_single_function_runs_too():
    assert run_all([lambda: 1]) == [1]


@pytest.mark.parametrize("failing", [(0,), (2,), (1, 2), (0, 1, 2)])
def test_the_error_of_the_first_function_that_fails_is_raised_after_all_have_ended(failing):
    ended: list[int] = []

    def work(number: int) -> None:
        time.sleep(0.05 * (3 - number))
        ended.append(number)
        if number in failing:
            raise ValueError(f"function {number} failed")

    with pytest.raises(ValueError, match=f"function {failing[0]} failed"):
        run_all([functools.partial(work, number) for number in range(3)])
    assert sorted(ended) == [0, 1, 2]


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


class TestDaemonExecutor:
    def test_results_and_errors_are_passed_on(self):
        with DaemonExecutor(2, "test") as executor:
            assert list(executor.map(len, ["a", "bc", ""])) == [1, 2, 0]
            with pytest.raises(ZeroDivisionError):
                executor.submit(divmod, 1, 0).result()

    def test_no_more_threads_run_than_allowed_and_an_idle_one_is_used_again(self):
        names = set()
        with DaemonExecutor(3, "test") as executor:
            for _ in range(20):
                names.add(executor.submit(lambda: threading.current_thread().name).result())
            barrier = threading.Barrier(3)
            running = [executor.submit(barrier.wait, 60) for _ in range(3)]
            assert sorted(future.result() for future in running) == [0, 1, 2]
            names |= set(executor.map(lambda _: threading.current_thread().name, range(50)))
        assert names <= {"test-0", "test-1", "test-2"}

    def test_the_end_of_the_block_waits_for_what_was_submitted(self):
        done = []
        with DaemonExecutor(1, "test") as executor:
            for number in range(3):
                executor.submit(lambda number=number: (time.sleep(0.05), done.append(number)))
        assert done == [0, 1, 2]
        with pytest.raises(RuntimeError, match="shut down"):
            executor.submit(len, "")

    def test_an_interrupt_does_not_wait_and_cancels_what_has_not_begun(self):
        gate, executor = threading.Event(), DaemonExecutor(1, "test")
        executor.submit(gate.wait, 60)
        waiting = executor.submit(len, "")
        executor.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
        assert waiting.cancelled()
        gate.set()

    @pytest.mark.parametrize("results", ["map_ordered(work, [0, 1], 2)", "prefetch_one(map(work, [0, 1]))"])
    def test_work_that_hangs_does_not_keep_the_interpreter(self, results):
        program = f"""
from threading import Event
from input_checkpoint.parallel import map_ordered, prefetch_one

def work(item):
    return Event().wait() if item else item

results = {results}
print(next(results))
"""
        subprocess.run([sys.executable, "-c", program], timeout=60, check=True)
