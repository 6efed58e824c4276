"""A manifest that is read ahead is used once, and only if it is small, intact and the right one."""

from __future__ import annotations

import pytest

import input_checkpoint as ic
from input_checkpoint.format.keys import manifest_key
from input_checkpoint.store import bounded_reads
from tests.support.stores import loaded, save, some_state
from tests.support.wrappers import Failing, Recording

KEY = manifest_key(ic.CheckpointRef("main", 1, 20))


@pytest.fixture
def recording(memory) -> Recording:
    save(ic.CheckpointStore.open(memory, create=True).begin_run("main"), 10, 20)
    return Recording(memory)


@pytest.fixture
def store(recording) -> ic.CheckpointStore:
    return ic.CheckpointStore(recording)


def reads(recording: Recording) -> int:
    """Return how often the manifest of the newest checkpoint was read."""
    return recording.keys("get").count(KEY)


def test_a_listing_reads_nothing_ahead_unless_it_is_asked_to(store, recording):
    store.list_worker("main")
    assert reads(recording) == 0


def test_the_newest_manifest_is_read_once(store, recording):
    newest = store.list_worker("main", read_ahead=True).history[-1]
    assert loaded(store, newest) == [("Iterator", some_state(b"20")[0].elements)]
    assert reads(recording) == 1


def test_a_second_read_requests_the_manifest_again(store, recording):
    newest = store.list_worker("main", read_ahead=True).history[-1]
    assert loaded(store, newest) == loaded(store, newest)
    assert reads(recording) == 2


def test_reading_another_checkpoint_forgets_it(store, recording):
    older, newest = store.list_worker("main", read_ahead=True).history
    assert loaded(store, older) == [("Iterator", some_state(b"10")[0].elements)]
    loaded(store, newest)
    assert reads(recording) == 2


def test_a_large_manifest_is_not_kept(store, recording, monkeypatch):
    monkeypatch.setattr(bounded_reads, "_FIRST_READ_BYTES", 100)
    newest = store.list_worker("main", read_ahead=True).history[-1]
    assert loaded(store, newest) == [("Iterator", some_state(b"20")[0].elements)]
    assert reads(recording) > 1


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data[:-9] + bytes(9)])
def test_a_damaged_manifest_is_read_again(store, recording, memory, damage):
    intact = memory.get(KEY)
    memory.put(KEY, damage(intact))
    newest = store.list_worker("main", read_ahead=True).history[-1]
    memory.put(KEY, intact)
    assert loaded(store, newest) == [("Iterator", some_state(b"20")[0].elements)]


def test_the_manifest_of_another_checkpoint_is_not_used(store, memory):
    intact = memory.get(KEY)
    memory.put(KEY, memory.get(manifest_key(ic.CheckpointRef("main", 1, 10))))
    newest = store.list_worker("main", read_ahead=True).history[-1]
    with pytest.raises(ic.CorruptCheckpointError, match="another checkpoint"):
        store.read(newest)
    memory.put(KEY, intact)
    assert loaded(store, newest) == [("Iterator", some_state(b"20")[0].elements)]


def test_a_failure_of_the_storage_is_left_to_whoever_reads_it(recording):
    store = ic.CheckpointStore(Failing(recording, "get", KEY, ic.BackendUnavailableError("no answer")))
    newest = store.list_worker("main", read_ahead=True).history[-1]
    with pytest.raises(ic.BackendUnavailableError, match="no answer"):
        store.read(newest)


def test_a_checkpoint_that_is_removed_after_it_was_read_ahead_does_not_exist(store, memory):
    newest = store.list_worker("main", read_ahead=True).history[-1]
    memory.delete([KEY, *(info.key for info in memory.list("packs/"))])
    with pytest.raises(ic.CheckpointNotFoundError, match="removed while it was being read"):
        loaded(store, newest)


def test_an_empty_worker_has_nothing_to_read_ahead(store):
    assert store.list_worker("worker-1", read_ahead=True).history == []


def test_it_is_not_kept_once_a_run_has_begun(store, recording):
    newest = store.list_worker("main", read_ahead=True).history[-1]
    store.begin_run("main")
    loaded(store, newest)
    assert reads(recording) == 2
