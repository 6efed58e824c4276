"""A backend that notes what goes through it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Optional

from input_checkpoint.backends.base import Backend, Data, ObjectInfo
from input_checkpoint.format.keys import parse_checkpoint_key

_KEYS_IN_A_PAGE = 1000  # what S3, Cloud Storage and Azure answer with at most, within a factor of five


@dataclass
class Traffic:
    """What went through since the last look."""

    writes: int = 0
    reads: int = 0
    pages: int = 0
    """Requests that listings take on an object store."""
    listed: int = 0
    deletes: int = 0
    uploaded: int = 0
    """Bytes."""
    downloaded: int = 0
    """Bytes."""

    @property
    def requests(self) -> int:
        """All of them; a bulk delete is one."""
        return self.writes + self.reads + self.pages + self.deletes


class ObservedBackend(Backend):
    """Passes everything on.

    Args:
        inner: the backend that does the work.
    """

    def __init__(self, inner: Backend) -> None:
        super().__init__(inner.uri)
        self._inner = inner
        self._lock = threading.Lock()
        self._traffic = Traffic()
        self.committed_at = 0.0
        """When the last manifest had been created, by `time.perf_counter`."""

    def look(self) -> Traffic:
        """Return what went through since the last look."""
        with self._lock:
            found, self._traffic = self._traffic, Traffic()
            return found

    def create(self, key: str, data: Data) -> None:
        """See `Backend.create`."""
        self._inner.create(key, data)
        if parse_checkpoint_key(key):
            self.committed_at = time.perf_counter()
        self._note(writes=1, uploaded=len(data))

    def put(self, key: str, data: Data) -> None:
        """See `Backend.put`."""
        self._inner.put(key, data)
        self._note(writes=1, uploaded=len(data))

    def get(self, key: str, start: int = 0, end: Optional[int] = None) -> bytes:
        """See `Backend.get`."""
        data = self._inner.get(key, start, end)
        self._note(reads=1, downloaded=len(data))
        return data

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See `Backend.list`."""
        found = tuple(self._inner.list(prefix))
        self._note(pages=max(1, -(-len(found) // _KEYS_IN_A_PAGE)), listed=len(found))
        return iter(found)

    def delete(self, keys: Iterable[str]) -> None:
        """See `Backend.delete`."""
        self._inner.delete(keys)
        self._note(deletes=1)

    def close(self) -> None:
        """See `Backend.close`."""
        self._inner.close()

    def _note(self, **counts: int) -> None:
        with self._lock:
            for name, count in counts.items():
                setattr(self._traffic, name, getattr(self._traffic, name) + count)
