"""Where input state comes from."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from input_checkpoint.state import IteratorState


class Snapshot(Protocol):
    """Iterator state in memory, as `BackgroundSaver` needs it."""

    def states(self) -> Iterable[IteratorState]:
        """Return the encoded state of each iterator.

        Raises `SnapshotLostError`, also while it is read, if whoever holds the state is gone.
        """

    def release(self) -> None:
        """Give the memory back."""
