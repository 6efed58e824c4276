"""Work done by several threads, in the order in which it is asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Callable, TypeVar

_Result = TypeVar("_Result")
_Argument = TypeVar("_Argument")


def in_parallel(
    work: Callable[[_Argument], _Result], items: Iterable[_Argument], concurrency: int
) -> Iterator[_Result]:
    """Yield ``work(item)`` in order; ``concurrency`` of them run ahead of the caller, and no more.

    >>> list(in_parallel(len, ["a", "bc", ""], concurrency=2))
    [1, 2, 0]
    """
    with ThreadPoolExecutor(concurrency, thread_name_prefix="input-checkpoint") as executor:
        pending: list[Future[_Result]] = []
        try:
            for item in items:
                pending.append(executor.submit(work, item))
                if len(pending) > concurrency:
                    yield pending.pop(0).result()
            while pending:
                yield pending.pop(0).result()
        finally:
            for future in pending:
                future.cancel()
