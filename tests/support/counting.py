"""The simplest input: a number that counts up. It needs no TensorFlow."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Optional

import input_checkpoint as ic
from input_checkpoint.training.source import DrawError


class Counter:
    """An input whose n-th batch is the number n.

    Args:
        length: after how many batches it ends.
    """

    names = ("Counter",)

    def __init__(self, length: int = 10**9) -> None:
        self.value = 0
        self.length = length
        self.skipped: list[int] = []
        self.reason_to_doubt: Optional[str] = None

    def snapshot(self) -> Counter:
        snapshot = Counter()
        snapshot.value = self.value
        return snapshot

    def states(self) -> list[ic.IteratorState]:
        return [ic.IteratorState("Counter", [(b"value", b"%d" % self.value)])]

    def release(self) -> None:
        pass

    def restore(self, states: Iterable[ic.StoredState]) -> None:
        (state,) = ((state.name, state.in_order()) for state in states)
        if state[0] not in self.names:
            raise ic.PipelineMismatchError(f"there is no iterator {state[0]}")
        self.value = int(state[1][0][1])

    def skip(self, name: str, count: int) -> None:
        assert name in self.names
        if self.value + count > self.length:
            raise DrawError("the data has ended")
        self.value += count
        self.skipped.append(count)

    def draw(self, name: str) -> str:
        self.skip(name, 1)
        return digest_of(self.value)

    def doubt(self) -> Optional[str]:
        return self.reason_to_doubt


def digest_of(batch: int) -> str:
    """Return the digest of a batch."""
    return f"{batch:032x}"
