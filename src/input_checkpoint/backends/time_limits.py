"""Time limits of requests: the same two options for every backend, and what enforces them.

A request has ``timeout`` seconds, and one second more for every ``min_bytes_per_second`` bytes that it moves.
The limit covers everything: connecting, sending, the repetitions of the client library, and the answer, even
if it comes one byte at a time. Client libraries have time limits too, but none of them covers all of this.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import functools
import math
import os
import threading
import time
import weakref
from collections.abc import Awaitable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Callable, TypeVar

from fsspec.exceptions import FSTimeoutError

from input_checkpoint.backends.causes import raise_from
from input_checkpoint.backends.redaction import redact_uri
from input_checkpoint.errors import BackendError
from input_checkpoint.parallel import run_into

OPTIONS = ("timeout", "min_bytes_per_second")
"""The storage_options that set time limits."""

MAX_ABANDONED = 64
"""How many requests may hang in threads of their own after their time is up. See `run_in_thread`."""

_LOOP_GRACE_SECONDS = 5.0
_LONGEST_WAIT_SECONDS = 3600.0
_CANCEL_SECONDS = 0.1
_LONGEST_CONNECT_SECONDS = 5.0

_Result = TypeVar("_Result")


class TimeLimitExceededError(Exception):
    """A request did not finish in time. The message does not name the request."""


@dataclass(frozen=True)
class TimeLimits:
    """How long a request may take.

    Example:
        >>> TimeLimits(timeout=30, min_bytes_per_second=250_000).limit_for(8_000_000)
        62.0
    """

    timeout: float = 30.0
    """Seconds for a request that moves no data."""
    min_bytes_per_second: float = 250_000
    """Data may arrive or leave this slowly, measured over the whole request."""

    def __post_init__(self) -> None:
        for name in OPTIONS:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
                raise ValueError(f"{name} must be a positive number, got {value!r}")

    @property
    def connect(self) -> float:
        """Seconds until a connection is open: the whole timeout, but at most five."""
        return min(_LONGEST_CONNECT_SECONDS, self.timeout)

    def limit_for(self, size: int) -> float:
        """Return the seconds that a request may take that moves ``size`` bytes."""
        return self.timeout + size / self.min_bytes_per_second

    def start(self, size: int = 0) -> Deadline:
        """Return the deadline of a request that begins now.

        Args:
            size: bytes that it moves, as far as they are known. See `Deadline.extend`.
        """
        return Deadline(self, size)


DEFAULT_TIME_LIMITS = TimeLimits()


class Deadline:
    """When a request must be finished. The deadline moves while data of unknown size arrives.

    Args:
        limits: of the request.
        size: bytes that the request moves, as far as they are known.

    Example:
        >>> deadline = Deadline(TimeLimits(timeout=30, min_bytes_per_second=1000))
        >>> deadline.extend(5000)
        >>> 34 < deadline.left <= 35
        True
    """

    def __init__(self, limits: TimeLimits, size: int = 0) -> None:
        self._limits = limits
        self._size = size
        self._start = time.monotonic()

    @property
    def left(self) -> float:
        """Seconds left. Negative when the time is up."""
        return self._start + self._limits.limit_for(self._size) - time.monotonic()

    def extend(self, received: int) -> None:
        """Allow the time that ``received`` bytes may take. Call it when they have arrived."""
        self._size += received

    def restart(self) -> None:
        """Start over: the next request of the same operation is sent now."""
        self._start = time.monotonic()

    def error(self) -> TimeLimitExceededError:
        """Return the error for a request that has not finished."""
        limits, taken = self._limits, time.monotonic() - self._start
        return TimeLimitExceededError(
            f"the request did not finish within {taken:.3g} s (timeout={limits.timeout:g}, "
            f"min_bytes_per_second={limits.min_bytes_per_second:g}). Check the storage and the network. On a "
            "slow connection, set a larger timeout or a smaller min_bytes_per_second in storage_options"
        )

    @contextlib.contextmanager
    def enforced_by_fsspec(self) -> Iterator[float]:
        """Yield the seconds left, for the ``timeout`` of `fsspec.asyn.sync` and of functions built on it.

        Raises:
            TimeLimitExceededError: fsspec found that the time is up.
        """
        try:
            yield max(self.left, 0.001)
        except FSTimeoutError as error:
            raise self.error() from error


def split_time_limits(
    uri: str, storage_options: Mapping[str, Any], default: TimeLimits = DEFAULT_TIME_LIMITS
) -> tuple[TimeLimits, dict[str, Any]]:
    """Return the time limits that ``storage_options`` name, and the other options.

    Args:
        uri: of the backend, for the message.
        storage_options: as the user gave them.
        default: for what they do not name.

    Raises:
        BackendError: a limit is not a positive number.

    Example:
        >>> limits, rest = split_time_limits("s3://bucket", {"timeout": 10, "key": "AKIA"})
        >>> limits.timeout, rest
        (10, {'key': 'AKIA'})
    """
    options = dict(storage_options)
    given = {name: options.pop(name, None) for name in OPTIONS}
    try:
        limits = TimeLimits(
            default.timeout if given["timeout"] is None else given["timeout"],
            default.min_bytes_per_second
            if given["min_bytes_per_second"] is None
            else given["min_bytes_per_second"],
        )
    except ValueError as error:
        shown = redact_uri(uri)
        raise_from(BackendError(f"cannot open {shown}: {error}. Correct storage_options.", uri=shown), error)
    return limits, options


def run_in_loop(
    loop: asyncio.AbstractEventLoop, work: Callable[[], Awaitable[_Result]], deadline: Deadline
) -> _Result:
    """Run a coroutine in an event loop of another thread, and return its result.

    When the time is up, the coroutine is cancelled. The caller does not wait until it has noticed.

    Args:
        loop: runs in another thread.
        work: the coroutine function.
        deadline: of the work.

    Raises:
        TimeLimitExceededError: the time is up.
    """
    future = asyncio.run_coroutine_threadsafe(finish_in_time(work, deadline), loop)
    _in_loops[future] = loop
    _cancel_at_exit()
    while True:
        try:
            # A loop that is blocked cannot enforce the deadline itself.
            wait = min(max(deadline.left, 0) + _LOOP_GRACE_SECONDS, _LONGEST_WAIT_SECONDS)
            return future.result(wait)
        except concurrent.futures.CancelledError as error:
            raise deadline.error() from error
        except concurrent.futures.TimeoutError as error:
            if future.done():
                return future.result()
            if deadline.left <= 0:
                future.cancel()
                raise deadline.error() from error
        except BaseException:
            # Also a KeyboardInterrupt while this thread waits.
            future.cancel()
            raise


_in_loops: weakref.WeakKeyDictionary[concurrent.futures.Future[Any], asyncio.AbstractEventLoop] = (
    weakref.WeakKeyDictionary()
)


@functools.cache
def _cancel_at_exit() -> None:
    # adlfs closes its connections when the program ends, and waits forever for one that cannot send. This is
    # registered after the filesystem was opened, because exit handlers run in reverse order.
    atexit.register(_cancel_all)


def _cancel_all() -> None:
    """Cancel what runs in event loops, and wait a moment until that has happened."""
    running = {future: loop for future, loop in list(_in_loops.items()) if not future.done()}
    for future in running:
        future.cancel()
    for loop in set(running.values()):
        with contextlib.suppress(Exception):
            asyncio.run_coroutine_threadsafe(asyncio.sleep(_CANCEL_SECONDS), loop).result(1)


async def finish_in_time(work: Callable[[], Awaitable[_Result]], deadline: Deadline) -> _Result:
    """Return the result of a coroutine. Cancel it when the time is up.

    Raises:
        TimeLimitExceededError: the time is up.
    """
    task = asyncio.ensure_future(work())
    try:
        while not task.done():
            left = deadline.left
            if left <= 0:
                raise deadline.error()
            await asyncio.wait({task}, timeout=left)
        return task.result()
    finally:
        task.cancel()


_abandoned: list[threading.Thread] = []
_counting = threading.Lock()


def run_in_thread(work: Callable[[], _Result], deadline: Deadline) -> _Result:
    """Run a function in a thread of its own, and return its result.

    Nothing can interrupt a thread. When the time is up, the thread keeps running. It ends when its request
    does, and does not keep the interpreter. At most `MAX_ABANDONED` such threads exist: then every other
    request fails at once, until one of them ends.

    Args:
        work: the function, which cannot be interrupted.
        deadline: of the work.

    Raises:
        TimeLimitExceededError: the time is up, or too many requests hang.
    """
    outcome: concurrent.futures.Future[_Result] = concurrent.futures.Future()
    _check_abandoned()
    thread = threading.Thread(
        target=run_into, args=(outcome, work), name="input-checkpoint-request", daemon=True
    )
    thread.start()
    while not outcome.done():
        left = deadline.left
        if left <= 0:
            with _counting:
                _abandoned.append(thread)
            raise deadline.error()
        concurrent.futures.wait([outcome], min(left, _LONGEST_WAIT_SECONDS))
    return outcome.result()


def _check_abandoned() -> None:
    with _counting:
        _abandoned[:] = [thread for thread in _abandoned if thread.is_alive()]
        hanging = len(_abandoned)
    if hanging >= MAX_ABANDONED:
        raise TimeLimitExceededError(
            f"{hanging} earlier requests of this process still hang, so no new one was sent. Check the "
            "storage and the network"
        )


def _start_over_in_child() -> None:
    """Forget the parent's requests: neither its threads nor its event loop exist in a forked child."""
    global _counting
    _counting = threading.Lock()
    _abandoned.clear()
    _in_loops.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_over_in_child)
