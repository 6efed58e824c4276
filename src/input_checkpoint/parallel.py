"""Work in threads, with results in a defined order and a bound on what runs ahead."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Callable, Optional, TypeVar

_Argument = TypeVar("_Argument")
_Result = TypeVar("_Result")
_OtherResult = TypeVar("_OtherResult")


def map_ordered(
    work: Callable[[_Argument], _Result],
    items: Iterable[_Argument],
    concurrency: int,
    weight_of: Optional[Callable[[_Argument], float]] = None,
    max_weight: float = float("inf"),
) -> Iterator[_Result]:
    """Yield ``work(item)`` for each item, in order, while at most ``concurrency`` calls run in threads.

    Args:
        work: called in other threads.
        items: iterated in the caller's thread.
        concurrency: how many calls run at once.
        weight_of: returns the weight of an item and its result, such as the memory they use. None means
            that items have no weight.
        max_weight: largest total weight of the items that have been submitted but not yet yielded. An item
            that is heavier than this runs alone.

    Example:
        >>> list(map_ordered(len, ["a", "bc", ""], concurrency=2))
        [1, 2, 0]
    """
    with ThreadPoolExecutor(concurrency, thread_name_prefix="input-checkpoint") as executor:
        pending: deque[tuple[Future[_Result], float]] = deque()
        load = 0.0
        try:
            for item in items:
                weight = weight_of(item) if weight_of else 0.0
                while pending and (len(pending) > concurrency or load + weight > max_weight):
                    load -= pending[0][1]
                    yield pending.popleft()[0].result()
                pending.append((executor.submit(work, item), weight))
                load += weight
            while pending:
                yield pending.popleft()[0].result()
        finally:
            for future, _ in pending:
                future.cancel()


def run_both(
    first: Callable[[], _Result], second: Callable[[], _OtherResult]
) -> tuple[_Result, _OtherResult]:
    """Call two functions at the same time and return both results.

    Example:
        >>> run_both(lambda: 1, lambda: "a")
        (1, 'a')
    """
    with ThreadPoolExecutor(1, thread_name_prefix="input-checkpoint-both") as executor:
        future = executor.submit(second)
        return first(), future.result()


def prefetch_one(items: Iterable[_Result]) -> Iterator[_Result]:
    """Yield the items, which another thread draws one ahead of the caller.

    Example:
        >>> list(prefetch_one(iter("abc")))
        ['a', 'b', 'c']
    """
    with ThreadPoolExecutor(1, thread_name_prefix="input-checkpoint-prefetch") as executor:
        iterator = iter(items)
        upcoming = executor.submit(_draw, iterator)
        try:
            while drawn := upcoming.result():
                upcoming = executor.submit(_draw, iterator)
                yield drawn[0]
        finally:
            upcoming.cancel()


def _draw(iterator: Iterator[_Result]) -> tuple[_Result, ...]:
    """Return the next item, or nothing at the end: StopIteration must not leave a generator."""
    return tuple(itertools.islice(iterator, 1))
