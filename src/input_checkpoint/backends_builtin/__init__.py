"""The backends that need no plugin: local files, memory, and any other fsspec filesystem."""

from __future__ import annotations

from input_checkpoint.backends_builtin.generic import GenericBackend, generic_can_open, open_generic
from input_checkpoint.backends_builtin.local import LocalBackend, open_local
from input_checkpoint.backends_builtin.memory import MemoryBackend, open_memory

FACTORIES = {"file": open_local, "local": open_local, "memory": open_memory}

__all__ = [
    "FACTORIES",
    "GenericBackend",
    "LocalBackend",
    "MemoryBackend",
    "generic_can_open",
    "open_generic",
    "open_local",
    "open_memory",
]
