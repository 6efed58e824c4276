"""A backend that counts its traffic."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Optional

from input_checkpoint.backends.base import Backend, Data, ObjectInfo
from input_checkpoint.format.keys import parse_checkpoint_key, parse_mark_key

_KEYS_PER_PAGE = 1000  # as S3 and Cloud Storage; Azure returns up to 5,000


@dataclass
class Traffic:
    """What a backend has transferred."""

    writes: int = 0
    reads: int = 0
    pages: int = 0
    """Requests that the listings would take on an object store."""
    listed: int = 0
    """Keys."""
    deletes: int = 0
    uploaded: int = 0
    """Bytes."""
    marked: int = 0
    """Those of ``uploaded`` that belong to marks."""
    downloaded: int = 0
    """Bytes."""

    @property
    def requests(self) -> int:
        """The total number of requests. A bulk delete counts as one."""
        return self.writes + self.reads + self.pages + self.deletes


class TrafficBackend(Backend):
    """Passes every call on to another backend and counts the traffic.

    Args:
        inner: the backend to pass the calls on to.
    """

    def __init__(self, inner: Backend) -> None:
        super().__init__(inner.uri)
        self._inner = inner
        self._lock = threading.Lock()
        self._traffic = Traffic()
        self.committed_at = 0.0
        """When the last manifest was created, on the clock of `time.perf_counter`."""

    def take_traffic(self) -> Traffic:
        """Return the traffic since the last call, and start counting from zero."""
        with self._lock:
            found, self._traffic = self._traffic, Traffic()
            return found

    def create(self, key: str, data: Data) -> None:
        """See `Backend.create`."""
        self._inner.create(key, data)
        if parse_checkpoint_key(key):
            self.committed_at = time.perf_counter()
        self._count(writes=1, uploaded=len(data))

    def put(self, key: str, data: Data) -> None:
        """See `Backend.put`."""
        self._inner.put(key, data)
        self._count(writes=1, uploaded=len(data), marked=len(data) if parse_mark_key(key) else 0)

    def get(self, key: str, start: int = 0, end: Optional[int] = None) -> bytes:
        """See `Backend.get`."""
        data = self._inner.get(key, start, end)
        self._count(reads=1, downloaded=len(data))
        return data

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See `Backend.list`."""
        found = tuple(self._inner.list(prefix))
        self._count(pages=max(1, -(-len(found) // _KEYS_PER_PAGE)), listed=len(found))
        return iter(found)

    def delete(self, keys: Iterable[str]) -> None:
        """See `Backend.delete`."""
        self._inner.delete(keys)
        self._count(deletes=1)

    def close(self) -> None:
        """See `Backend.close`."""
        self._inner.close()

    def _count(self, **counts: int) -> None:
        with self._lock:
            for name, count in counts.items():
                setattr(self._traffic, name, getattr(self._traffic, name) + count)
