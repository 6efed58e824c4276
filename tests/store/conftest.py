"""A store on every kind of backend that needs no server."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from input_checkpoint import Backend, CheckpointStore
from input_checkpoint.backends.local import LocalBackend
from input_checkpoint.backends.memory import MemoryBackend
from input_checkpoint.format.lineage import Lineage


@pytest.fixture(params=["memory", "local"])
def backend(request, tmp_path: Path) -> Backend:
    if request.param == "memory":
        return MemoryBackend(f"memory://{uuid.uuid4().hex}")
    return LocalBackend(str(tmp_path / "store"))


@pytest.fixture
def store(backend: Backend) -> CheckpointStore:
    return CheckpointStore.open(backend, create=True)


@pytest.fixture
def lineage(store: CheckpointStore) -> Lineage:
    return store.open_lineage("main", parent=None)


@pytest.fixture
def memory() -> MemoryBackend:
    """For what does not depend on the kind of storage."""
    return MemoryBackend(f"memory://{uuid.uuid4().hex}")
