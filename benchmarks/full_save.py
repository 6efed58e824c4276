"""The cost of a save relative to a bare write of the same bytes, when the whole state is new.

Run it with ``python -m benchmarks.full_save``. Saves and bare writes of packs to the local disk take turns.
Only the ratio of each pair counts, not the absolute times.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from pathlib import Path

from input_checkpoint import CheckpointStore, IteratorState
from input_checkpoint.backends.local import LocalBackend
from input_checkpoint.state import Element
from input_checkpoint.store.pack_writer import PackWriter
from input_checkpoint.store.run import Run

ELEMENTS = 3_000
ELEMENT_BYTES = 100_000
ROUNDS = 8


def fresh_state() -> list[Element]:
    """Return elements that no earlier save contained."""
    return [(b"Iterator::Shuffle:buffer::%d" % slot, os.urandom(ELEMENT_BYTES)) for slot in range(ELEMENTS)]


def bare_write(folder: Path, number: int, state: list[Element]) -> float:
    """Write the elements as they are, and return the seconds that it took."""
    started = time.perf_counter()
    with PackWriter(LocalBackend(str(folder)), lambda pack: f"packs/{number}/{pack:05d}") as packs:
        for key, payload in state:
            packs.add(key + payload, len(payload))
        packs.finish()
    return time.perf_counter() - started


def save(run: Run, number: int, state: list[Element]) -> float:
    """Save and commit the elements, and return the seconds that it took."""
    started = time.perf_counter()
    run.save(number, [IteratorState("Iterator", state)])
    return time.perf_counter() - started


def main() -> None:
    """Print the smallest, the median and the largest ratio."""
    with tempfile.TemporaryDirectory() as folder:
        store = CheckpointStore.open(f"{folder}/store", create=True)
        run = store.begin_run("main")
        ratios = []
        for number in range(ROUNDS):
            state = fresh_state()
            bare = bare_write(Path(folder), number, state)
            ours = save(run, number, state)
            ratios.append(ours / bare)
        size = ELEMENTS * ELEMENT_BYTES / 1e6
        print(f"save of {size:.0f} MB, all new, relative to a bare write of the same bytes, {ROUNDS} pairs:")
        print(f"  min {min(ratios):.2f}  median {statistics.median(ratios):.2f}  max {max(ratios):.2f}")


if __name__ == "__main__":
    main()
