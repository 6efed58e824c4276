"""The largest sizes and numbers that the format allows. Writers commit nothing larger, readers refuse it.

A reader never requests or allocates more than these limits, or than what it has already received justifies.
"""

from __future__ import annotations

MAX_FORMAT_BYTES = 4 << 10
"""Size of ``format.json``."""
MAX_PIN_BYTES = 64 << 10
"""Size of a pin."""
MAX_LINEAGE_BYTES = 1 << 20
"""Size of a lineage record. Enough for more than 10,000 ancestors."""
MAX_MARK_BYTES = 1 << 20
"""Size of a mark."""
MAX_HEADER_BYTES = 16 << 20
"""Size of the header of a manifest."""
MAX_ITERATORS = 1 << 12
"""Number of iterators in a manifest."""
MAX_CONTEXT_BYTES = 1 << 20
"""Size of the context in a manifest, written as JSON."""
MAX_ROWS = 1 << 25
"""Number of rows of a chunk table."""
MAX_CHUNK_BYTES = (1 << 32) - 1
"""Size of a chunk before compression, and so of the payload of one element."""
MAX_CHUNK_ELEMENTS = 1 << 16
"""Number of elements or keys that share a chunk."""
MAX_PACK_BYTES = 1 << 33
"""Size of a pack."""
MAX_NUMBER = (1 << 63) - 1
"""The largest integer in any JSON part."""
MAX_DEPTH = 32
"""How deeply arrays and objects may be nested in any JSON part."""

FREE_BYTES = 16 << 20
"""Data that unpacks to at most this size may be compressed without a limit."""
MAX_CHUNK_RATIO = 64
"""Beyond `FREE_BYTES`, how many bytes of a chunk one stored byte may stand for."""
MAX_TABLE_RATIO = 4
"""Beyond `FREE_BYTES`, how many bytes of a chunk table one stored byte may stand for. Digests are random, so
only a table that lists the same few chunks again and again compresses better."""
