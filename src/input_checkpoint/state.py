"""Iterator state as the store sees it: a name and elements, each of a key and a payload, both opaque."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

Element = tuple[bytes, bytes]
"""A buffered element or counter: a small key (where it stands) and its payload (what it is).

An element that moves to another place keeps its payload, so the two are stored apart.
"""


@dataclass(frozen=True)
class IteratorState:
    """The state of one iterator, to be stored."""

    name: str
    """Name of the iterator in its graph."""
    elements: Iterable[Element]
    """All elements in order. May be a stream that can be read once."""


@dataclass(frozen=True)
class ElementBatch:
    """Some elements of a stored state, with their positions in it."""

    positions: Sequence[int]
    elements: Sequence[Element]


@dataclass(frozen=True)
class StoredState:
    """The state of one iterator, as it comes back: in pieces, ordered as they lie in the storage."""

    name: str
    count: int
    """How many elements all pieces hold together."""
    batches: Iterator[ElementBatch]
    """Can be read once, before the next iterator's."""

    def in_order(self) -> list[Element]:
        """Return all elements in order. Holds the whole state in memory."""
        found: dict[int, Element] = {}
        for piece in self.batches:
            found.update(zip(piece.positions, piece.elements))
        return [found[position] for position in range(self.count)]
