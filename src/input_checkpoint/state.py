"""Iterator state as the store sees it: named lists of elements. Keys and payloads are opaque bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Union

Payload = Union[bytes, memoryview]
"""The content of an element. May be a view of a larger buffer, which stays in memory as long as the view."""
Element = tuple[bytes, Payload]
"""A buffered element or counter: a small key (its position in the pipeline) and its payload (its content).

The two are stored apart, because an element that moves to another position keeps its payload.
"""

_ELEMENT_BYTES = 200
"""Memory that an element uses beyond the bytes of its key and its payload."""


@dataclass(frozen=True)
class IteratorState:
    """The state of one iterator, to be saved."""

    name: str
    """Name of the iterator in its graph."""
    elements: Iterable[Element]
    """All elements in order. May be a stream that can only be read once."""


@dataclass(frozen=True)
class ElementBatch:
    """Some elements of a stored state, with their positions in it."""

    positions: Sequence[int]
    elements: Sequence[Element]

    @property
    def memory_bytes(self) -> int:
        """Approximately how much memory they use."""
        return sum(_ELEMENT_BYTES + len(key) + len(payload) for key, payload in self.elements)


@dataclass(frozen=True)
class StoredState:
    """The state of one iterator, as it is loaded: in batches, in the order in which they are stored."""

    name: str
    """Name of the iterator in its graph."""
    count: int
    """Number of elements in all batches together."""
    batches: Iterator[ElementBatch]
    """Can be read once, and must be read before those of the next iterator."""

    def in_order(self) -> list[Element]:
        """Return all elements in order. Holds the whole state in memory."""
        by_position: dict[int, Element] = {}
        for batch in self.batches:
            elements = ((key, bytes(payload)) for key, payload in batch.elements)
            by_position.update(zip(batch.positions, elements))
        return [by_position[position] for position in range(self.count)]
