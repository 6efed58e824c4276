"""Backends that let a test decide when, and whether, a write goes through."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from typing import Callable, Optional

from input_checkpoint.backend import Backend, Data, ObjectInfo


class WrappedBackend(Backend):
    """Passes everything on; ``before_write`` is called with the key first."""

    def __init__(self, inner: Backend, before_write: Callable[[str], None]) -> None:
        super().__init__(inner.uri)
        self._inner = inner
        self._before_write = before_write

    def create(self, key: str, data: Data) -> None:
        self._before_write(key)
        self._inner.create(key, data)

    def put(self, key: str, data: Data) -> None:
        self._before_write(key)
        self._inner.put(key, data)

    def get(self, key: str, start: int = 0, end: Optional[int] = None) -> bytes:
        return self._inner.get(key, start, end)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        return self._inner.list(prefix)

    def delete(self, keys: Iterable[str]) -> None:
        self._inner.delete(keys)


class Gate:
    """Holds back the writes of packs while it is closed."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self._open.set()
        self.reached = threading.Event()

    def close(self) -> None:
        self._open.clear()

    def open(self) -> None:
        self._open.set()

    def __call__(self, key: str) -> None:
        if key.startswith("packs/"):
            self.reached.set()
            assert self._open.wait(60), "the gate was never opened"
