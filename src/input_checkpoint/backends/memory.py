"""A backend that keeps objects in memory, for tests and examples."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Optional

from input_checkpoint.backends.base import Backend, Data, ObjectInfo, check_key
from input_checkpoint.backends.location import parse_location
from input_checkpoint.errors import ObjectExistsError, ObjectNotFoundError


class MemoryBackend(Backend):
    """Keeps objects in a dictionary, which all backends with the same URI share within a process.

    Example:
        >>> backend = MemoryBackend("memory://example")
        >>> backend.put("greeting", b"hello")
        >>> MemoryBackend("memory://example").get("greeting", 1, 3)
        b'el'
    """

    _objects_by_uri: dict[str, dict[str, tuple[bytes, float]]] = {}  # noqa: RUF012 - shared on purpose
    _lock = threading.Lock()

    def __init__(self, uri: str) -> None:
        location = parse_location(uri)
        super().__init__(location.uri)
        with self._lock:
            self._objects = self._objects_by_uri.setdefault(location.uri, {})

    def create(self, key: str, data: Data) -> None:
        """See `Backend.create`."""
        entry = (bytes(data), time.time())
        with self._lock:
            if self._objects.setdefault(check_key(key), entry) is not entry:
                raise ObjectExistsError(f"{self.uri}/{key} already exists", uri=self.uri, key=key)

    def put(self, key: str, data: Data) -> None:
        """See `Backend.put`."""
        with self._lock:
            self._objects[check_key(key)] = (bytes(data), time.time())

    def get(self, key: str, start: int = 0, end: Optional[int] = None) -> bytes:
        """See `Backend.get`."""
        with self._lock:
            entry = self._objects.get(check_key(key))
        if entry is None:
            raise ObjectNotFoundError(f"{self.uri}/{key} does not exist", uri=self.uri, key=key)
        return entry[0][start:end]

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See `Backend.list`."""
        with self._lock:
            found = sorted((key, entry) for key, entry in self._objects.items() if key.startswith(prefix))
        for key, (data, modified) in found:
            yield ObjectInfo(key, len(data), modified)

    def delete(self, keys: Iterable[str]) -> None:
        """See `Backend.delete`."""
        with self._lock:
            for key in keys:
                self._objects.pop(check_key(key), None)


def open_memory(uri: str, storage_options: Mapping[str, Any]) -> MemoryBackend:
    """Open ``memory://name``.

    Raises:
        ValueError: ``storage_options`` is not empty.
    """
    if storage_options:
        raise ValueError(f"memory:// accepts no storage_options, got {sorted(storage_options)}")
    return MemoryBackend(uri)
