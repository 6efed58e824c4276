"""A storage without an atomic create keeps the contract with locks in another storage."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest
from fsspec.implementations.local import LocalFileSystem

from input_checkpoint import BackendUnavailableError, CheckpointStore, ObjectExistsError, open_backend
from input_checkpoint.backends.commit_lock import CommitLockBackend
from input_checkpoint.backends.generic import GenericBackend
from input_checkpoint.backends.local import LocalBackend
from input_checkpoint.backends.memory import MemoryBackend
from input_checkpoint.backends.probing import probe
from input_checkpoint.testing import BackendContract
from tests.support.wrappers import Failing, Overtaken, contents


class TestContract(BackendContract):
    @pytest.fixture
    def backend(self, tmp_path: Path) -> CommitLockBackend:
        plain = GenericBackend(f"inheriting://{tmp_path}", LocalFileSystem(), str(tmp_path / "data"))
        return CommitLockBackend(plain, LocalBackend(str(tmp_path / "locks")))


@pytest.fixture
def data() -> MemoryBackend:
    return MemoryBackend(f"memory://{uuid.uuid4().hex}")


@pytest.fixture
def locks() -> MemoryBackend:
    return MemoryBackend(f"memory://{uuid.uuid4().hex}")


def test_a_store_works_on_a_storage_that_has_no_atomic_create(tmp_path):
    plain = GenericBackend(f"inheriting://{tmp_path}", LocalFileSystem(), str(tmp_path / "data"))
    backend = CommitLockBackend(plain, LocalBackend(str(tmp_path / "locks")))
    probe(backend)
    store = CheckpointStore.open(backend, create=True)
    info = store.begin_run("main").save(10, [])
    assert CheckpointStore.open(backend).checkpoints() == [info]


def test_a_storage_option_names_the_lock_storage(tmp_path):
    name = uuid.uuid4().hex
    backend = open_backend(f"memory://{name}", {"commit_lock": str(tmp_path)})
    backend.create("a/key", b"data")
    assert (tmp_path / "a/key").read_bytes() == b"data"
    assert open_backend(f"memory://{name}").get("a/key") == b"data"


def test_an_object_without_a_lock_is_not_replaced(data, locks):
    data.put("key", b"first")
    with pytest.raises(ObjectExistsError):
        CommitLockBackend(data, locks).create("key", b"second")
    assert data.get("key") == b"first"


def test_the_next_writer_completes_an_interrupted_create(data, locks):
    dying = CommitLockBackend(Failing(data, "put", "key", BackendUnavailableError("died")), locks)
    with pytest.raises(BackendUnavailableError):
        dying.create("key", b"first")
    with pytest.raises(ObjectExistsError):
        CommitLockBackend(data, locks).create("key", b"second")
    assert data.get("key") == b"first"


def test_an_interrupted_deletion_restores_nothing(data, locks):
    CommitLockBackend(data, locks).create("key", b"first")
    dying = CommitLockBackend(Failing(data, "delete", "key", BackendUnavailableError("died")), locks)
    with pytest.raises(BackendUnavailableError):
        dying.delete(["key"])
    with pytest.raises(ObjectExistsError):
        CommitLockBackend(data, locks).create("key", b"second")
    assert contents(data) == {"key": b"first"}


def test_delete_removes_the_lock_too(data, locks):
    backend = CommitLockBackend(data, locks)
    backend.create("key", b"data")
    backend.delete(["key"])
    assert (contents(data), contents(locks)) == ({}, {})


def test_the_owner_of_a_lock_replaces_an_incomplete_copy_of_another_writer(data, locks):
    """The storage may show an object before it is complete."""

    def other_writer_starts_to_complete() -> None:
        data.put("key", b"fir")

    backend = CommitLockBackend(data, Overtaken(locks, "create", "key", other_writer_starts_to_complete))
    backend.create("key", b"first")
    assert data.get("key") == b"first"
