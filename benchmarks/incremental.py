"""How much a save uploads and a restore reads when only part of the state has changed.

Run it with ``python -m benchmarks.incremental``. It counts bytes and objects, so the figures are the same on
every machine. It exits with an error if a figure exceeds its limit.
"""

from __future__ import annotations

import random
import sys
import uuid
from dataclasses import dataclass
from typing import Optional

from input_checkpoint import CheckpointStore, IteratorState, KeepLast, SaveOptions
from input_checkpoint.backends.base import Data
from input_checkpoint.backends.memory import MemoryBackend

PACK_BYTES = 1 << 20
SAVES = 200
BUFFERS = ((2_000, 20_000), (20_000, 2_048))
"""Elements, and bytes per element: pictures, and the smallest payloads that are not combined into runs."""
TURNOVERS = (0.01, 0.05, 0.20, 1.00)

BAR_TURNOVER = 0.05
UPLOAD_BAR = 0.08
"""Largest upload of a save at `BAR_TURNOVER`, as a share of a full save."""
RESTORE_BAR = 1.5
"""Most bytes that a restore may read, as a multiple of the state."""
OBJECTS_BAR = 4.0
"""Most objects that a restore may read, as a multiple of those that a full save creates."""


class CountingBackend(MemoryBackend):
    """Counts the bytes that are uploaded and read, and the objects that are read."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self.uploaded = 0
        self.read = 0
        self.objects: set[str] = set()

    def create(self, key: str, data: Data) -> None:
        """See `Backend.create`."""
        self.uploaded += len(data)
        super().create(key, data)

    def put(self, key: str, data: Data) -> None:
        """See `Backend.put`."""
        self.uploaded += len(data)
        super().put(key, data)

    def get(self, key: str, start: int = 0, end: Optional[int] = None) -> bytes:
        """See `Backend.get`."""
        data = super().get(key, start, end)
        self.read += len(data)
        self.objects.add(key)
        return data


@dataclass(frozen=True)
class Figures:
    """The figures of one run."""

    full: int
    """Bytes that the first save uploaded."""
    uploads: tuple[int, ...]
    """Bytes that each later save uploaded."""
    read: float
    """Bytes that a restore read after the last save, as a multiple of the state's."""
    objects: float
    """Objects that it read, as a multiple of those that the first save created."""

    @property
    def mean(self) -> float:
        """Upload of the average later save, as a share of a full one."""
        return sum(self.uploads) / len(self.uploads) / self.full

    @property
    def worst(self) -> float:
        """Upload of the largest later save, as a share of a full one."""
        return max(self.uploads) / self.full

    def missed(self, turnover: float) -> list[str]:
        """Return a sentence for every limit that was exceeded."""
        bars = [
            ("a restore reads {:.2f} times the state", self.read, RESTORE_BAR),
            ("a restore reads {:.2f} times the objects of a full save", self.objects, OBJECTS_BAR),
        ]
        if turnover == BAR_TURNOVER:
            bars.append(("the largest save uploads {:.4f} of a full one", self.worst, UPLOAD_BAR))
        return [f"{text.format(found)}, the limit is {bar}" for text, found, bar in bars if found > bar]


def measure(turnover: float, saves: int, elements: int, element_bytes: int) -> Figures:
    """Save a shuffle buffer ``saves`` times. Replace a random share of its elements between two saves."""
    backend = CountingBackend(f"memory://{uuid.uuid4().hex}")
    store = CheckpointStore.open(backend, create=True, options=SaveOptions(pack_bytes=PACK_BYTES))
    run = store.begin_run("main")
    chance = random.Random(1)
    buffer = [chance.randbytes(element_bytes) for _ in range(elements)]
    uploads = []
    fresh_objects = 0
    for step in range(saves):
        backend.uploaded = 0
        keyed = ((b"Iterator::Shuffle:buffer::%d" % slot, payload) for slot, payload in enumerate(buffer))
        newest = run.save(step, [IteratorState("Iterator", keyed)])
        uploads.append(backend.uploaded)
        fresh_objects = fresh_objects or len(newest.packs) + 1
        run.prune(KeepLast(5))
        for slot in chance.sample(range(elements), round(turnover * elements)):
            buffer[slot] = chance.randbytes(element_bytes)
    backend.read, backend.objects = 0, set()
    for state in store.load(newest):
        for _ in state.batches:
            continue
    return Figures(
        uploads[0],
        tuple(uploads[1:]),
        backend.read / newest.logical_bytes,
        len(backend.objects) / fresh_objects,
    )


def main() -> int:
    """Print the tables. Return how many limits were exceeded."""
    problems: list[str] = []
    for elements, element_bytes in BUFFERS:
        print(
            f"{elements} elements of {element_bytes} bytes, packs of {PACK_BYTES} bytes, keeping the last 5"
        )
        print("turnover  saves  full save         mean save        largest save  restore  objects")
        for turnover in TURNOVERS if element_bytes > 10_000 else (BAR_TURNOVER,):
            saves = SAVES if turnover < 1 else 10
            found = measure(turnover, saves, elements, element_bytes)
            mean, largest = sum(found.uploads) / len(found.uploads), max(found.uploads)
            print(
                f"{turnover:8.0%} {saves:6d} {found.full / 1e6:7.2f} MB "
                f"{mean / 1e6:7.2f} MB {found.mean:6.1%} {largest / 1e6:9.2f} MB {found.worst:6.1%} "
                f"{found.read:7.2f}x {found.objects:7.2f}x"
            )
            problems += [f"{element_bytes} bytes, {turnover:.0%}: {text}" for text in found.missed(turnover)]
    for problem in problems:
        print(f"Limit exceeded: {problem}")
    return len(problems)


if __name__ == "__main__":
    sys.exit(min(1, main()))
