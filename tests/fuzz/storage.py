"""Where a fuzzed store is kept: objects in memory, of which some end in gigabytes of zeros."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Optional

from input_checkpoint.backends.base import Backend, Data, ObjectInfo, check_key
from input_checkpoint.errors import ObjectExistsError, ObjectNotFoundError

_numbers = itertools.count(1)


@dataclass(frozen=True)
class Content:
    """The content of an object, like that of a sparse file: some bytes, then zeros."""

    data: bytes
    zeros: int = 0

    def __len__(self) -> int:
        return len(self.data) + self.zeros

    def slice(self, start: int, end: int) -> bytes:
        """Return a range of the bytes."""
        from_data = self.data[start:end]
        return from_data + bytes(max(0, min(end, len(self)) - max(start, len(self.data))))


class FuzzedBackend(Backend):
    """Holds the objects of a fuzzed store.

    Other keys than a backend accepts can be put into it only from the beginning, as something else than this
    library may do.
    """

    def __init__(self, objects: Mapping[str, Content]) -> None:
        super().__init__(f"fuzz://{next(_numbers)}")
        self.objects = dict(objects)

    def create(self, key: str, data: Data) -> None:
        if check_key(key) in self.objects:
            raise ObjectExistsError(f"{self.uri}/{key} already exists", uri=self.uri, key=key)
        self.objects[key] = Content(bytes(data))

    def put(self, key: str, data: Data) -> None:
        self.objects[check_key(key)] = Content(bytes(data))

    def get(self, key: str, start: int = 0, end: Optional[int] = None) -> bytes:
        content = self.objects.get(check_key(key))
        if content is None:
            raise ObjectNotFoundError(f"{self.uri}/{key} does not exist", uri=self.uri, key=key)
        return content.slice(start, len(content) if end is None else end)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        now = time.time()
        found = sorted(key for key in tuple(self.objects) if key.startswith(prefix))
        return (ObjectInfo(key, len(self.objects[key]), now) for key in found if key in self.objects)

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            self.objects.pop(check_key(key), None)
