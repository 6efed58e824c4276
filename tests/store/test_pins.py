"""Pinned checkpoints stay until they are unpinned, whatever the retention policy says."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from pathlib import Path

import pytest

import input_checkpoint as ic
from input_checkpoint.backends.local import LocalBackend
from input_checkpoint.backends.memory import MemoryBackend
from input_checkpoint.format.keys import manifest_key, pin_key
from tests.support.wrappers import BeforeWrites, Wrapped


@pytest.fixture(params=["memory", "local"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> ic.Backend:
    if request.param == "memory":
        return MemoryBackend(f"memory://{uuid.uuid4().hex}")
    return LocalBackend(str(tmp_path / "store"))


@pytest.fixture
def store(backend: ic.Backend) -> ic.CheckpointStore:
    return ic.CheckpointStore.open(backend, create=True)


@pytest.fixture
def saved(store: ic.CheckpointStore) -> list[ic.CheckpointInfo]:
    """Checkpoints of steps 10, 20 and 30."""
    return save(store.begin_run("main"), 10, 20, 30)


def save(run: ic.Run, *steps: int) -> list[ic.CheckpointInfo]:
    def state(step: int) -> ic.IteratorState:
        return ic.IteratorState("Iterator", [(b"key", f"payload {step}".encode())])

    return [run.save(step, [state(step)]) for step in steps]


def steps(store: ic.CheckpointStore) -> list[int]:
    return [info.step for info in store.checkpoints()]


def payloads(store: ic.CheckpointStore, ref: ic.CheckpointRef) -> Sequence[bytes]:
    return [payload for state in store.load(ref) for _, payload in state.in_order()]


def test_a_pinned_checkpoint_stays_whatever_the_policy_says(store, saved) -> None:
    store.pin(saved[0])
    store.prune(ic.KeepLast(1))
    assert steps(store) == [10, 30]


def test_a_pinned_checkpoint_can_be_loaded_after_clean_ups(store, saved) -> None:
    store.pin(saved[0])
    store.prune(ic.KeepLast(1), orphan_age=0)
    assert payloads(store, saved[0].ref) == [b"payload 10"]


def test_an_unpinned_checkpoint_goes_with_the_next_clean_up(store, saved) -> None:
    store.pin(saved[0])
    store.prune(ic.KeepLast(1))
    store.unpin(saved[0])
    store.prune(ic.KeepLast(1))
    assert steps(store) == [30]


def test_a_pin_is_seen_by_whoever_opens_the_store(store, saved, backend) -> None:
    store.pin(saved[0])
    ic.CheckpointStore.open(backend).prune(ic.KeepLast(1))
    assert steps(store) == [10, 30]


def test_a_checkpoint_is_pinned_by_its_ref_too(store, saved) -> None:
    store.pin(ic.CheckpointRef("main", 1, 10))
    assert store.pins() == {saved[0].ref: ""}


def test_the_reason_says_pinned(store, saved) -> None:
    store.pin(saved[0])
    assert store.prune(ic.KeepLast(1)).kept[saved[0].ref] == "pinned"


def test_the_reason_tells_the_note(store, saved) -> None:
    store.pin(saved[0], note="best AUC so far")
    assert store.prune(ic.KeepLast(1)).kept[saved[0].ref] == "pinned: best AUC so far"


def test_the_reason_comes_after_those_of_the_policy(store, saved) -> None:
    store.pin(saved[0], note="paper")
    kept = store.prune(ic.KeepLast(5) | ic.KeepSteps(10)).kept
    assert kept[saved[0].ref] == "one of the last 5; step 10 was chosen; pinned: paper"


def test_a_dry_run_keeps_pinned_checkpoints_too(store, saved) -> None:
    store.pin(saved[0])
    report = store.prune(ic.KeepLast(1), dry_run=True)
    assert [ref.step for ref in report.removed] == [20]


def test_an_abandoned_checkpoint_stays_while_it_is_pinned(store, saved) -> None:
    store.pin(saved[2], note="wrong turn")
    save(store.begin_run("main", parent=saved[0].ref), 20, 30)
    assert store.prune(ic.KeepAll(), orphan_age=0).kept[saved[2].ref] == "pinned: wrong turn"
    assert payloads(store, saved[2].ref) == [b"payload 30"]


def test_an_abandoned_checkpoint_goes_once_it_is_unpinned(store, saved) -> None:
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


def test_one_workers_pin_does_not_keep_anothers_checkpoint(store, saved) -> None:
    save(store.begin_run("worker-1", parent=None), 10, 20, 30)
    store.pin(saved[0])
    removed = store.prune(ic.KeepLast(1)).removed
    assert [(ref.worker, ref.step) for ref in removed] == [("main", 20), ("worker-1", 10), ("worker-1", 20)]


def test_pinning_twice_is_pinning_once(store, saved) -> None:
    store.pin(saved[0])
    store.pin(saved[0])
    store.unpin(saved[0])
    assert store.pins() == {}


def test_pinning_again_without_a_note_leaves_the_note(store, saved) -> None:
    store.pin(saved[0], note="first")
    store.pin(saved[0])
    assert store.pins() == {saved[0].ref: "first"}


def test_pinning_again_with_a_note_replaces_the_note(store, saved) -> None:
    store.pin(saved[0], note="first")
    store.pin(saved[0], note="second")
    assert store.pins() == {saved[0].ref: "second"}


def test_pins_are_listed_for_one_worker_or_for_all(store, saved) -> None:
    other = save(store.begin_run("worker-1", parent=None), 10)[0]
    store.pin(saved[1])
    store.pin(other)
    assert (list(store.pins("worker-1")), list(store.pins())) == ([other.ref], [saved[1].ref, other.ref])


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


def test_a_checkpoint_removed_while_it_is_being_pinned_is_noticed(saved, backend) -> None:
    def clean_up_first(key: str) -> None:
        if key.startswith("pins/"):
            ic.CheckpointStore.open(backend).prune(ic.KeepLast(1))

    store = ic.CheckpointStore.open(BeforeWrites(backend, clean_up_first))
    with pytest.raises(ic.CheckpointNotFoundError):
        store.pin(saved[0])
    assert store.pins() == {}


def test_a_pin_set_while_the_policy_is_thinking_holds(store, saved) -> None:
    class Slow(ic.RetentionPolicy):
        def keep(self, checkpoints):
            store.pin(saved[0])
            return {}

    store.prune(Slow())
    assert steps(store) == [10, 30]


def test_unpinning_what_is_not_pinned_is_no_error(store, saved) -> None:
    store.unpin(saved[0])
    assert store.pins() == {}


def test_a_pin_is_one_small_readable_object(store, saved, backend) -> None:
    store.pin(saved[0], note="schön")
    assert json.loads(backend.get("pins/main/00000001/000000000010.json")) == {"note": "schön"}


@pytest.mark.parametrize("damage", [b"", b"\xff", b"[]", b"{}"])
def test_a_pin_that_cannot_be_read_still_holds(store, saved, backend, damage: bytes) -> None:
    store.pin(saved[0], note="lost")
    backend.put(pin_key(saved[0].ref), damage)
    store.prune(ic.KeepLast(1))
    assert steps(store) == [10, 30]


def test_a_pin_taken_back_while_the_pins_are_read_is_no_error(store, saved, backend) -> None:
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
    class NoPins(Wrapped):
        def list(self, prefix: str = ""):
            if prefix.startswith("pins/"):
                raise ic.BackendPermissionError("no")
            return super().list(prefix)

    broken = ic.CheckpointStore.open(NoPins(backend))
    with pytest.raises(ic.BackendPermissionError):
        broken.prune(ic.KeepLast(1))
    assert steps(store) == [10, 20, 30]
