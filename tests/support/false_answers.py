"""Backends whose answers are wrong: listings that lack objects, times that are shifted, bits that flip."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Callable, Optional

from input_checkpoint import Backend
from input_checkpoint.backends.base import Data, ObjectInfo
from tests.support.wrappers import Wrapped

Falsify = Callable[[Sequence[ObjectInfo]], Sequence[ObjectInfo]]

HOUR = 3600.0

CUTS: dict[str, Falsify] = {
    "empty": lambda found: [],
    "only the first": lambda found: found[:1],
    "the first half": lambda found: found[: len(found) // 2],
    "without the last": lambda found: found[:-1],
    "without the first": lambda found: found[1:],
    "only the last": lambda found: found[-1:],
}
"""What is left of a listing if its end or its beginning is lost."""

GAPS: dict[str, Falsify] = {
    "every second": lambda found: found[::2],
    "every other second": lambda found: found[1::2],
    "without the middle": lambda found: [*found[:1], *found[-1:]] if len(found) > 1 else found,
}


class FalseListings(Wrapped):
    """From the n-th on, falsifies the listings of keys that start with a prefix."""

    def __init__(self, inner: Backend, prefix: str, falsify: Falsify, first: int = 1) -> None:
        super().__init__(inner)
        self._prefix = prefix
        self._falsify = falsify
        self._left = first
        self.falsified = 0

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        found = tuple(self.inner.list(prefix))
        if not prefix.startswith(self._prefix):
            return iter(found)
        self._left -= 1
        if self._left > 0:
            return iter(found)
        self.falsified += 1
        return iter(self._falsify(found))


class Shifted(Wrapped):
    """A storage whose clock is wrong by some seconds. None: it tells no times."""

    def __init__(self, inner: Backend, seconds: Optional[float]) -> None:
        super().__init__(inner)
        self._seconds = seconds

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        return (replace(info, modified=self._time(info.modified)) for info in self.inner.list(prefix))

    def _time(self, modified: Optional[float]) -> Optional[float]:
        return None if modified is None or self._seconds is None else modified + self._seconds


class Later(Wrapped):
    """Everything that was not written through this wrapper is some hours older than it was."""

    def __init__(self, inner: Backend, hours: float) -> None:
        super().__init__(inner)
        self._seconds = hours * HOUR
        self._written: set[str] = set()

    def put(self, key: str, data: Data) -> None:
        self._written.add(key)
        super().put(key, data)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        for info in self.inner.list(prefix):
            is_new = info.key in self._written or info.modified is None
            yield info if is_new else replace(info, modified=info.modified - self._seconds)


class Flipping(Wrapped):
    """Damages some answers on their way: the n-th reads of keys that start with a prefix."""

    def __init__(self, inner: Backend, prefix: str, numbers: Sequence[int] = (1,), cut: bool = False) -> None:
        super().__init__(inner)
        self._prefix = prefix
        self._numbers = numbers
        self._cut = cut
        self.reads = 0

    def get(self, key: str, start: int = 0, end: Optional[int] = None) -> bytes:
        data = self.inner.get(key, start, end)
        if not key.startswith(self._prefix):
            return data
        self.reads += 1
        if self.reads not in self._numbers or not data:
            return data
        middle = len(data) // 2
        return data[:middle] if self._cut else data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


class Named(Wrapped):
    """A backend under another URI."""

    def __init__(self, inner: Backend, uri: str) -> None:
        super().__init__(inner)
        self._uri = uri
