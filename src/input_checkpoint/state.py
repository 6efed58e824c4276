"""Iterator state as the store sees it: a name and a stream of opaque elements."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class IteratorState:
    """The encoded state of one iterator."""

    name: str
    """Name of the iterator in its graph."""
    elements: Iterable[bytes]
    """One item for each buffered element or counter, in order. May be a stream that can be read once."""
