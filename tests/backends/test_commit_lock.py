"""A storage without conditional writes keeps the contract once another one decides its commits."""

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
        plain = GenericBackend(f"shelf://{tmp_path}", LocalFileSystem(), str(tmp_path / "data"))
        return CommitLockBackend(plain, LocalBackend(str(tmp_path / "locks")))


@pytest.fixture
def data() -> MemoryBackend:
    return MemoryBackend(f"memory://{uuid.uuid4().hex}")


@pytest.fixture
def locks() -> MemoryBackend:
    return MemoryBackend(f"memory://{uuid.uuid4().hex}")


def test_a_store_can_be_kept_where_it_could_not_without(tmp_path):
    plain = GenericBackend(f"shelf://{tmp_path}", LocalFileSystem(), str(tmp_path / "data"))
    backend = CommitLockBackend(plain, LocalBackend(str(tmp_path / "locks")))
    probe(backend)
    store = CheckpointStore.open(backend, create=True)
    info = store.begin_run("main").save(10, [])
    assert CheckpointStore.open(backend).checkpoints() == [info]


def test_it_is_named_by_a_storage_option(tmp_path):
    name = uuid.uuid4().hex
    backend = open_backend(f"memory://{name}", {"commit_lock": str(tmp_path)})
    backend.create("a/key", b"data")
    assert (tmp_path / "a/key").read_bytes() == b"data"
    assert open_backend(f"memory://{name}").get("a/key") == b"data"


def test_what_was_stored_without_a_lock_is_not_replaced(data, locks):
    data.put("key", b"first")
    with pytest.raises(ObjectExistsError):
        CommitLockBackend(data, locks).create("key", b"second")
    assert data.get("key") == b"first"


def test_a_create_that_died_half_way_is_completed_by_who_comes_next(data, locks):
    dying = CommitLockBackend(Failing(data, "put", "key", BackendUnavailableError("died")), locks)
    with pytest.raises(BackendUnavailableError):
        dying.create("key", b"first")
    with pytest.raises(ObjectExistsError):
        CommitLockBackend(data, locks).create("key", b"second")
    assert data.get("key") == b"first"


def test_a_deletion_that_died_half_way_brings_nothing_back(data, locks):
    CommitLockBackend(data, locks).create("key", b"first")
    dying = CommitLockBackend(Failing(data, "delete", "key", BackendUnavailableError("died")), locks)
    with pytest.raises(BackendUnavailableError):
        dying.delete(["key"])
    with pytest.raises(ObjectExistsError):
        CommitLockBackend(data, locks).create("key", b"second")
    assert contents(data) == {"key": b"first"}


def test_deleting_takes_the_lock_away_too(data, locks):
    backend = CommitLockBackend(data, locks)
    backend.create("key", b"data")
    backend.delete(["key"])
    assert (contents(data), contents(locks)) == ({}, {})


def test_who_holds_the_lock_writes_over_a_copy_that_a_helper_has_half_way_up(data, locks):
    """A storage may show an object before it is whole; the copy's bytes are the owner's own."""

    def a_helper_begins() -> None:
        data.put("key", b"fir")

    backend = CommitLockBackend(data, Overtaken(locks, "create", "key", a_helper_begins))
    backend.create("key", b"first")
    assert data.get("key") == b"first"
