"""Work in threads, with results in a defined order and a bound on what runs ahead.

No thread of this module keeps the program from ending, whatever it waits for.
"""

from __future__ import annotations

import itertools
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from types import TracebackType
from typing import Any, Callable, Optional, TypeVar

_Argument = TypeVar("_Argument")
_Result = TypeVar("_Result")
_OtherResult = TypeVar("_OtherResult")


class DaemonExecutor(Executor):
    """Runs functions in a limited number of threads, which end with the program.

    Python waits for the threads of `concurrent.futures.ThreadPoolExecutor` before it ends, so a storage that
    hangs would keep the process. It does not wait for these.

    As a context manager, it waits at the end for everything that was submitted, but not after an interrupt
    (see `is_interrupt`).

    Args:
        max_workers: most threads at once. Each is started when it is first needed.
        name: prefix of the names of the threads.

    Example:
        >>> with DaemonExecutor(2, "example") as executor:
        ...     list(executor.map(len, ["a", "bc"]))
        [1, 2]
    """

    def __init__(self, max_workers: int, name: str) -> None:
        self._max_workers = max_workers
        self._name = name
        self._condition = threading.Condition()
        self._waiting: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._threads: list[threading.Thread] = []
        self._idle = 0
        self._closed = False

    def submit(self, fn: Callable[..., _Result], /, *args: Any, **kwargs: Any) -> Future[_Result]:
        """See `concurrent.futures.Executor.submit`."""
        future: Future[_Result] = Future()
        with self._condition:
            if self._closed:
                raise RuntimeError("this executor is shut down")
            self._waiting.append((future, lambda: fn(*args, **kwargs)))
            if self._idle >= len(self._waiting) or len(self._threads) == self._max_workers:
                self._condition.notify()
            else:
                self._start_thread()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """See `concurrent.futures.Executor.shutdown`."""
        with self._condition:
            self._closed = True
            if cancel_futures:
                for future, _ in self._waiting:
                    future.cancel()
            self._condition.notify_all()
        # An interpreter that shuts down closes unfinished generators, and runs this.
        if wait and not sys.is_finalizing():
            for thread in self._threads:
                thread.join()

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        interrupted = is_interrupt(error)
        self.shutdown(wait=not interrupted, cancel_futures=interrupted)

    def _start_thread(self) -> None:
        thread = threading.Thread(target=self._run, name=f"{self._name}-{len(self._threads)}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _run(self) -> None:
        while True:
            with self._condition:
                self._idle += 1
                self._condition.wait_for(lambda: self._waiting or self._closed)
                self._idle -= 1
                if not self._waiting:
                    return
                future, work = self._waiting.popleft()
            run_into(future, work)
            # An idle thread must not keep the last result in memory.
            del future, work


def is_interrupt(error: Optional[BaseException]) -> bool:
    """Return whether an exception asks the program to end, such as `KeyboardInterrupt` and `SystemExit`.

    Example:
        >>> is_interrupt(KeyboardInterrupt()), is_interrupt(ValueError()), is_interrupt(None)
        (True, False, False)
    """
    return error is not None and not isinstance(error, (Exception, GeneratorExit))


def run_into(future: Future[Any], work: Callable[[], Any]) -> None:
    """Let a future have the result of a function, or its exception. The target of a thread."""
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = work()
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(result)


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
    with DaemonExecutor(concurrency, "input-checkpoint") as executor:
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
    with DaemonExecutor(1, "input-checkpoint-both") as executor:
        future = executor.submit(second)
        return first(), future.result()


def run_all(works: Sequence[Callable[[], _Result]]) -> list[_Result]:
    """Call functions at the same time and return their results, in order.

    All of them have ended when this returns. If several raise, the error of the first one in order is raised.

    Example:
        >>> run_all([lambda: 1, lambda: 2, lambda: 3])
        [1, 2, 3]
    """
    first, *others = works
    with DaemonExecutor(max(1, len(others)), "input-checkpoint-all") as executor:
        futures = [executor.submit(work) for work in others]
        return [first(), *(future.result() for future in futures)]


def prefetch_one(items: Iterable[_Result]) -> Iterator[_Result]:
    """Yield the items, which another thread draws one ahead of the caller.

    Example:
        >>> list(prefetch_one(iter("abc")))
        ['a', 'b', 'c']
    """
    with DaemonExecutor(1, "input-checkpoint-prefetch") as executor:
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
