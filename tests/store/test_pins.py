"""A pinned checkpoint stays until it is unpinned, regardless of the retention policy."""

from __future__ import annotations

import json

import pytest

import input_checkpoint as ic
from input_checkpoint.format.keys import manifest_key, pin_key
from tests.support.stores import loaded, save, state_of
from tests.support.wrappers import BeforeWrites, Failing, Wrapped


@pytest.fixture
def saved(store: ic.CheckpointStore, run: ic.Run) -> list[ic.CheckpointInfo]:
    """Checkpoints of stored_steps 10, 20 and 30."""
    return [store.info(ref) for ref in save(run, 10, 20, 30)]


def stored_steps(store: ic.CheckpointStore) -> list[int]:
    return [info.step for info in store.checkpoints()]


def test_a_pinned_checkpoint_stays_regardless_of_the_policy(store, saved) -> None:
    store.pin(saved[0])
    store.prune(ic.KeepLast(1))
    assert stored_steps(store) == [10, 30]


def test_a_pinned_checkpoint_can_be_loaded_after_a_prune(store, saved) -> None:
    store.pin(saved[0])
    store.prune(ic.KeepLast(1), orphan_age=0)
    assert loaded(store, saved[0]) == [("Iterator", state_of(b"10"))]


def test_an_unpinned_checkpoint_is_removed_by_the_next_prune(store, saved) -> None:
    store.pin(saved[0])
    store.prune(ic.KeepLast(1))
    store.unpin(saved[0])
    store.prune(ic.KeepLast(1))
    assert stored_steps(store) == [30]


def test_a_pin_is_seen_by_other_processes(store, saved, backend) -> None:
    store.pin(saved[0])
    ic.CheckpointStore.open(backend).prune(ic.KeepLast(1))
    assert stored_steps(store) == [10, 30]


def test_a_checkpoint_can_be_pinned_by_its_ref(store, saved) -> None:
    store.pin(ic.CheckpointRef("main", 1, 10))
    assert store.pins() == {saved[0].ref: ""}


def test_the_reason_says_pinned(store, saved) -> None:
    store.pin(saved[0])
    assert store.prune(ic.KeepLast(1)).kept[saved[0].ref] == "pinned"


def test_the_reason_includes_the_note(store, saved) -> None:
    store.pin(saved[0], note="best AUC so far")
    assert store.prune(ic.KeepLast(1)).kept[saved[0].ref] == "pinned: best AUC so far"


def test_the_pin_is_named_after_the_reasons_of_the_policy(store, saved) -> None:
    store.pin(saved[0], note="paper")
    kept = store.prune(ic.KeepLast(5) | ic.KeepSteps(10)).kept
    assert kept[saved[0].ref] == "one of the last 5; step 10 was chosen; pinned: paper"


def test_a_dry_run_keeps_pinned_checkpoints_too(store, saved) -> None:
    store.pin(saved[0])
    report = store.prune(ic.KeepLast(1), dry_run=True)
    assert [ref.step for ref in report.removed] == [20]


def test_a_checkpoint_left_behind_by_a_restart_stays_while_it_is_pinned(store, saved) -> None:
    store.pin(saved[2], note="wrong turn")
    save(store.begin_run("main", parent=saved[0].ref), 20, 30)
    assert store.prune(ic.KeepAll(), orphan_age=0).kept[saved[2].ref] == "pinned: wrong turn"
    assert loaded(store, saved[2]) == [("Iterator", state_of(b"30"))]


def test_a_checkpoint_left_behind_by_a_restart_is_removed_once_it_is_unpinned(store, saved) -> None:
    store.pin(saved[2])
    save(store.begin_run("main", parent=saved[0].ref), 20, 30)
    store.prune(ic.KeepAll())
    store.unpin(saved[2])
    assert saved[2].ref in store.prune(ic.KeepAll()).removed


def test_a_pinned_checkpoint_whose_manifest_is_damaged_stays(store, saved, backend) -> None:
    backend.put(manifest_key(saved[0].ref), b"damaged")
    store = ic.CheckpointStore.open(backend)
    store.pin(saved[0])
    assert store.prune(ic.KeepLast(1)).kept[saved[0].ref] == "its manifest cannot be read; pinned"


def test_a_pin_of_one_worker_does_not_keep_the_checkpoints_of_another(store, saved) -> None:
    save(store.begin_run("worker-1", parent=None), 10, 20, 30)
    store.pin(saved[0])
    removed = store.prune(ic.KeepLast(1)).removed
    assert [(ref.worker, ref.step) for ref in removed] == [("main", 20), ("worker-1", 10), ("worker-1", 20)]


def test_pinning_twice_is_the_same_as_pinning_once(store, saved) -> None:
    store.pin(saved[0])
    store.pin(saved[0])
    store.unpin(saved[0])
    assert store.pins() == {}


def test_pinning_again_without_a_note_keeps_the_note(store, saved) -> None:
    store.pin(saved[0], note="first")
    store.pin(saved[0])
    assert store.pins() == {saved[0].ref: "first"}


def test_pinning_again_with_a_note_replaces_the_note(store, saved) -> None:
    store.pin(saved[0], note="first")
    store.pin(saved[0], note="second")
    assert store.pins() == {saved[0].ref: "second"}


def test_pins_are_listed_for_one_worker_or_for_all(store, saved) -> None:
    (other,) = save(store.begin_run("worker-1", parent=None), 10)
    store.pin(saved[1])
    store.pin(other)
    assert (list(store.pins("worker-1")), list(store.pins())) == ([other], [saved[1].ref, other])


def test_a_checkpoint_that_does_not_exist_cannot_be_pinned(store, saved) -> None:
    with pytest.raises(
        ic.CheckpointNotFoundError, match=r"step 25 \(worker main, lineage 1\) does not exist"
    ):
        store.pin(ic.CheckpointRef("main", 1, 25))
    assert store.pins() == {}


def test_a_checkpoint_that_another_process_has_removed_cannot_be_pinned(store, saved, backend) -> None:
    ic.CheckpointStore.open(backend).prune(ic.KeepLast(1))
    with pytest.raises(ic.CheckpointNotFoundError):
        store.pin(saved[0])


def test_pinning_fails_if_the_checkpoint_is_removed_meanwhile(saved, backend) -> None:
    def prune_first(key: str) -> None:
        if key.startswith("pins/"):
            ic.CheckpointStore.open(backend).prune(ic.KeepLast(1))

    store = ic.CheckpointStore.open(BeforeWrites(backend, prune_first))
    with pytest.raises(ic.CheckpointNotFoundError):
        store.pin(saved[0])
    assert store.pins() == {}


def test_a_pin_set_while_the_policy_decides_counts(store, saved) -> None:
    class Slow(ic.RetentionPolicy):
        def keep(self, checkpoints):
            store.pin(saved[0])
            return {}

    store.prune(Slow())
    assert stored_steps(store) == [10, 30]


def test_unpinning_an_unpinned_checkpoint_is_not_an_error(store, saved) -> None:
    store.unpin(saved[0])
    assert store.pins() == {}


def test_a_pin_is_one_small_readable_object(store, saved, backend) -> None:
    store.pin(saved[0], note="schön")
    assert json.loads(backend.get("pins/main/00000001/000000000010.json")) == {"note": "schön"}


@pytest.mark.parametrize("damage", [b"", b"\xff", b"[]", b"{}"])
def test_a_damaged_pin_still_counts(store, saved, backend, damage: bytes) -> None:
    store.pin(saved[0], note="lost")
    backend.put(pin_key(saved[0].ref), damage)
    store.prune(ic.KeepLast(1))
    assert stored_steps(store) == [10, 30]


def test_a_pin_removed_while_the_pins_are_read_is_not_an_error(store, saved, backend) -> None:
    class UnpinnedAfterListing(Wrapped):
        def list(self, prefix: str = ""):
            found = list(super().list(prefix))
            if prefix.startswith("pins/"):
                store.unpin(saved[0])
            return iter(found)

    store.pin(saved[0])
    other = ic.CheckpointStore.open(UnpinnedAfterListing(backend))
    assert other.pins() == {}


def test_nothing_is_removed_if_the_pins_cannot_be_listed(store, saved, backend) -> None:
    failing = Failing(backend, "list", "pins/", ic.BackendPermissionError("no"))
    with pytest.raises(ic.BackendPermissionError):
        ic.CheckpointStore.open(failing).prune(ic.KeepLast(1))
    assert stored_steps(store) == [10, 20, 30]
