"""A store on every kind of backend that needs no server, and a run in it."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from input_checkpoint import Backend, CheckpointStore, Run
from input_checkpoint.backends.local import LocalBackend
from input_checkpoint.backends.memory import MemoryBackend
from tests.support.cycles import new_backend


@pytest.fixture(params=["memory", "local"])
def backend(request, tmp_path: Path) -> Backend:
    if request.param == "memory":
        return MemoryBackend(f"memory://{uuid.uuid4().hex}")
    return LocalBackend(str(tmp_path / "store"))


@pytest.fixture(params=["memory", "local", "generic"])
def any_backend(request, tmp_path: Path) -> Backend:
    """Also one without an atomic create, behind a commit lock."""
    return new_backend(request.param, tmp_path)


@pytest.fixture
def store(backend: Backend) -> CheckpointStore:
    return CheckpointStore.open(backend, create=True)


@pytest.fixture
def run(store: CheckpointStore) -> Run:
    return store.begin_run("main")
