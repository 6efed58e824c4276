"""Measures the memory that Python code uses."""

from __future__ import annotations

import tracemalloc
from typing import Callable


def peak_memory(work: Callable[[], object]) -> int:
    """Return the most bytes of Python memory that are allocated at once while ``work`` runs."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
