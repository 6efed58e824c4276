"""How fast packs are uploaded: what decides whether compressing them pays."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Callable, Optional

_COUNTED_BYTES = 1_000_000
"""A smaller pack does not count, because its upload takes about as long as that of an empty one."""
_MIN_UPLOADS = 4
_MAX_UPLOADS = 8


class UploadSpeed:
    """Measures how fast the last few packs of a run were uploaded. Safe to use from several threads.

    Uploads that run at the same time share that time equally. So the shares of all uploads add up to the time
    during which at least one of them was running. Failed uploads and packs under 1 MB get a share too, but do
    not count.

    Args:
        clock: returns a time in seconds that never goes back.

    Example:
        >>> from itertools import count
        >>> ticks = count()
        >>> speed = UploadSpeed(clock=lambda: 2.0 * next(ticks))
        >>> for _ in range(4):
        ...     with speed.measuring(8_000_000):
        ...         pass
        >>> speed.seconds_per_byte()
        2.5e-07
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._running = 0
        # Advances by a second per second while one upload is running, and by half of that while two are.
        self._shared_time = 0.0
        self._last_event = 0.0
        self._uploads: deque[tuple[int, float]] = deque(maxlen=_MAX_UPLOADS)
        self._seconds_per_byte: Optional[float] = None

    def seconds_per_byte(self) -> Optional[float]:
        """Return how long the upload of a byte takes, or None before four uploads have been measured."""
        return self._seconds_per_byte

    @contextlib.contextmanager
    def measuring(self, size: int) -> Iterator[None]:
        """Measure the block as the upload of a pack of ``size`` bytes."""
        begun = self._begin()
        succeeded = False
        try:
            yield
            succeeded = True
        finally:
            self._end(begun, size if succeeded else 0)

    def _begin(self) -> float:
        with self._lock:
            self._advance()
            self._running += 1
            return self._shared_time

    def _end(self, begun: float, size: int) -> None:
        with self._lock:
            self._advance()
            self._running -= 1
            if size >= _COUNTED_BYTES:
                self._uploads.append((size, self._shared_time - begun))
                if len(self._uploads) >= _MIN_UPLOADS:
                    self._seconds_per_byte = seconds_per_byte(self._uploads)

    def _advance(self) -> None:
        now = self._clock()
        if self._running:
            self._shared_time += (now - self._last_event) / self._running
        self._last_event = now


def seconds_per_byte(uploads: Sequence[tuple[int, float]]) -> float:
    """Return how long the upload of a byte takes, on average over the middle half of the uploads.

    The slowest ones may have waited for a retry or for the processor. The fastest ones may have had more than
    their share of the connection.

    Args:
        uploads: size and seconds of each.

    Example:
        >>> seconds_per_byte([(4, 1.0), (4, 3.0), (4, 60.0), (2, 0.1)])
        0.5
    """
    fastest_first = sorted(uploads, key=lambda upload: upload[1] / upload[0])
    left_out = len(uploads) // 4
    counted = fastest_first[left_out : len(uploads) - left_out]
    return sum(seconds for _, seconds in counted) / sum(size for size, _ in counted)
