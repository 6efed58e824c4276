"""What a save uploads and a restore reads when only a part of the state has changed.

Run with ``python -m benchmarks.incremental``. Counts bytes and objects, so the figures do not depend on the
machine.
"""

from __future__ import annotations

import random
import uuid
from dataclasses import dataclass
from typing import Optional

from input_checkpoint import CheckpointStore, IteratorState, KeepLast, SaveOptions
from input_checkpoint.backend import Data
from input_checkpoint.backends_builtin import MemoryBackend

ELEMENTS = 2_000
ELEMENT_BYTES = 20_000
PACK_BYTES = 1 << 20
SAVES = 200
TURNOVERS = (0.01, 0.05, 0.20, 1.00)


class CountingBackend(MemoryBackend):
    """Counts what goes up and down."""

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
    """Bytes as shares of the state's payload, objects as a multiple of a fresh full save's."""

    full: float
    mean: float
    worst: float
    restore: float
    objects: float


def measure(turnover: float, saves: int) -> Figures:
    """Save a shuffle buffer ``saves`` times, replacing a share of its elements at random in between."""
    backend = CountingBackend(f"memory://{uuid.uuid4().hex}")
    store = CheckpointStore.open(backend, create=True, options=SaveOptions(pack_bytes=PACK_BYTES))
    lineage = store.open_lineage("main", parent=None)
    chance = random.Random(1)
    buffer = [chance.randbytes(ELEMENT_BYTES) for _ in range(ELEMENTS)]
    uploads = []
    for step in range(saves):
        backend.uploaded = 0
        keyed = ((b"Iterator::Shuffle:buffer::%d" % slot, payload) for slot, payload in enumerate(buffer))
        store.save(lineage, step, [IteratorState("Iterator", keyed)])
        uploads.append(backend.uploaded)
        store.prune(KeepLast(5), lineage=lineage)
        for slot in chance.sample(range(ELEMENTS), round(turnover * ELEMENTS)):
            buffer[slot] = chance.randbytes(ELEMENT_BYTES)
    backend.read, backend.objects = 0, set()
    for state in store.load(store.newest("main")):
        state.in_order()
    size = ELEMENTS * ELEMENT_BYTES
    later = [upload / size for upload in uploads[1:]]
    fresh = -(-size // PACK_BYTES) + 1
    return Figures(
        uploads[0] / size,
        sum(later) / len(later),
        max(later),
        backend.read / size,
        len(backend.objects) / fresh,
    )


def main() -> None:
    """Print the table."""
    print(f"{ELEMENTS} elements of {ELEMENT_BYTES} bytes, packs of {PACK_BYTES} bytes, keeping the last 5")
    print("turnover  saves  full save  mean save    worst  restore  objects")
    for turnover in TURNOVERS:
        saves = SAVES if turnover < 1 else 10
        found = measure(turnover, saves)
        print(
            f"{turnover:8.0%} {saves:6d} {found.full:10.1%} {found.mean:10.1%} {found.worst:8.1%} "
            f"{found.restore:7.2f}x {found.objects:7.2f}x"
        )


if __name__ == "__main__":
    main()
