"""A checkpoint: which one it is, and what is known of it without reading its data."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime


@dataclass(frozen=True, order=True)
class CheckpointRef:
    """The identity of a checkpoint. Orders by worker, then from old to new."""

    worker: str
    lineage: int
    step: int

    def __str__(self) -> str:
        return f"step {self.step} (worker {self.worker}, lineage {self.lineage})"


@dataclass(frozen=True)
class PackEntry:
    """One pack that the chunk table refers to by position."""

    key: str
    size: int
    """Bytes of the whole pack, also of what this checkpoint does not need."""
    new: bool
    """Whether this save uploaded it."""


@dataclass(frozen=True)
class CheckpointInfo:
    """What is known of one committed checkpoint without reading its data."""

    step: int
    """Global step of the model that this input state belongs to."""
    worker: str
    lineage: int
    created: datetime
    """When it was committed, by the writer's clock, in UTC."""
    logical_bytes: int
    """Size of the encoded state."""
    stored_bytes: int
    """Bytes of packs that this save uploaded: what was new."""
    elements: int
    """How many buffered elements and counters the state holds, over all iterators."""
    iterators: tuple[str, ...]
    """Names of the iterators, as in the TensorFlow graph."""
    host: str
    pid: int
    packs: tuple[PackEntry, ...] = field(default=(), repr=False)
    """Every stored object that its data lies in, also those that it shares with other checkpoints."""
    table_bytes: int = 0
    """Size of the list of its chunks, which is most of its manifest."""

    @property
    def ref(self) -> CheckpointRef:
        """Worker, lineage and step as one value."""
        return CheckpointRef(self.worker, self.lineage, self.step)
