"""Work done by several threads, its results in the order in which they are asked for."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Callable, Optional, TypeVar

_Result = TypeVar("_Result")
_Other = TypeVar("_Other")
_Argument = TypeVar("_Argument")


def map_ordered(
    work: Callable[[_Argument], _Result],
    items: Iterable[_Argument],
    concurrency: int,
    weigh: Optional[Callable[[_Argument], float]] = None,
    most: float = float("inf"),
) -> Iterator[_Result]:
    """Yield ``work(item)`` in order; ``concurrency`` of them run ahead of the caller, and no more.

    Args:
        work: called in other threads.
        items: gone through in the caller's.
        concurrency: how many run at once.
        weigh: says what an item and its result take, of memory for instance. None: nothing.
        most: those that the caller has not been given yet weigh no more together, unless a single one does.

    >>> list(map_ordered(len, ["a", "bc", ""], concurrency=2))
    [1, 2, 0]
    """
    with ThreadPoolExecutor(concurrency, thread_name_prefix="input-checkpoint") as executor:
        pending: deque[tuple[Future[_Result], float]] = deque()
        load = 0.0
        try:
            for item in items:
                weight = weigh(item) if weigh else 0.0
                while pending and (len(pending) > concurrency or load + weight > most):
                    load -= pending[0][1]
                    yield pending.popleft()[0].result()
                pending.append((executor.submit(work, item), weight))
                load += weight
            while pending:
                yield pending.popleft()[0].result()
        finally:
            for future, _ in pending:
                future.cancel()


def run_both(one: Callable[[], _Result], other: Callable[[], _Other]) -> tuple[_Result, _Other]:
    """Call two functions at the same time, and return what they return.

    >>> run_both(lambda: 1, lambda: "a")
    (1, 'a')
    """
    with ThreadPoolExecutor(1, thread_name_prefix="input-checkpoint-beside") as executor:
        beside = executor.submit(other)
        return one(), beside.result()


def prefetch_one(items: Iterable[_Result]) -> Iterator[_Result]:
    """Yield items that another thread draws, one ahead of the caller.

    >>> list(prefetch_one(iter("abc")))
    ['a', 'b', 'c']
    """
    with ThreadPoolExecutor(1, thread_name_prefix="input-checkpoint-ahead") as executor:
        iterator = iter(items)
        coming = executor.submit(_next_of, iterator)
        try:
            while found := coming.result():
                coming = executor.submit(_next_of, iterator)
                yield found[0]
        finally:
            coming.cancel()


def _next_of(iterator: Iterator[_Result]) -> tuple[_Result, ...]:
    """Return the next item, or nothing at the end: StopIteration must not come out of a generator."""
    return tuple(itertools.islice(iterator, 1))
