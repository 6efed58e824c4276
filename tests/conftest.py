"""Fixtures for all tests of the library."""

from __future__ import annotations

import uuid

import pytest

from input_checkpoint.backends.memory import MemoryBackend


@pytest.fixture
def memory() -> MemoryBackend:
    """An empty backend, for what does not depend on the kind of storage."""
    return MemoryBackend(f"memory://{uuid.uuid4().hex}")
