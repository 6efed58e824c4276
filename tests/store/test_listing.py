"""Listings show what is committed, in order, and read each manifest once."""

from __future__ import annotations

import pytest

from input_checkpoint import CheckpointNotFoundError, CheckpointStore, IteratorState, KeepLast, SaveOptions
from input_checkpoint.format.keys import manifest_key
from tests.support.stores import run_in, save
from tests.support.wrappers import Recording


class TestListing:
    def test_checkpoints_are_listed_from_old_to_new(self, store, run):
        save(run, 9, 10, 100)
        assert [info.step for info in store.checkpoints()] == [9, 10, 100]

    def test_checkpoints_of_one_worker_or_of_all_are_listed(self, store):
        for worker in ("worker-1", "chief-0", "worker-10"):
            save(store.begin_run(worker), 10)
        assert [info.worker for info in store.checkpoints()] == ["chief-0", "worker-1", "worker-10"]
        assert [info.worker for info in store.checkpoints("worker-1")] == ["worker-1"]
        assert store.workers() == ["chief-0", "worker-1", "worker-10"]

    def test_other_objects_are_not_listed(self, store, run, backend):
        save(run, 10)
        for key in ("checkpoints/main/notes", "checkpoints/main/00000001/000000000020.manifest.tmp"):
            backend.put(key, b"")
        assert [info.step for info in store.checkpoints()] == [10]

    def test_the_newest_checkpoint_is_the_last_of_the_history(self, store, run):
        save(run, 10, 20)
        assert store.newest("main").step == 20

    def test_a_worker_without_checkpoints_has_no_newest_one(self, store, run):
        with pytest.raises(CheckpointNotFoundError, match=f"{store.uri}.*'main'"):
            store.newest("main")

    def test_a_commit_by_another_process_is_seen_at_once(self, store, run, backend):
        assert store.checkpoints() == []
        save(run_in(CheckpointStore(backend), run), 10)
        assert [info.step for info in store.checkpoints()] == [10]

    def test_a_listing_reads_each_manifest_once(self, memory):
        store = CheckpointStore.open(memory, create=True)
        save(store.begin_run("main"), 10, 20)
        recording = Recording(memory)
        reader = CheckpointStore(recording)
        assert reader.checkpoints() == reader.checkpoints()
        assert len(recording.keys("get")) == 2

    def test_a_deleted_checkpoint_is_forgotten(self, store, run, backend):
        first, _ = save(run, 10, 20)
        backend.delete([manifest_key(first)])
        store.checkpoints()
        with pytest.raises(CheckpointNotFoundError):
            store.info(first)

    def test_headers_do_not_pile_up_in_a_long_run(self, store, run):
        for step in range(10, 400, 10):
            save(run, step)
            run.prune(KeepLast(2))
        assert len(store._catalog._headers) <= 3

    def test_known_headers_hold_each_shared_pack_once_in_memory(self, memory):
        options = SaveOptions(pack_bytes=1)
        run = CheckpointStore.open(memory, create=True, options=options).begin_run("main")
        for step in range(50):
            run.save(
                step, [IteratorState("Iterator", [(b"slot %d" % n, b"%d" % n * 1000) for n in range(9)])]
            )
        catalog = CheckpointStore(memory)._catalog
        packs = [pack for ref in catalog.refs() for pack in catalog.header(ref).packs]
        assert len(packs) == 50 * 10 + 49  # the placeholders of saves without new data
        # Two objects each: the save that uploaded a pack says so.
        assert len(set(map(id, packs))) <= 2 * len({pack.key for pack in packs})

    def test_listing_one_worker_does_not_forget_the_manifests_of_another(self, memory):
        store = CheckpointStore.open(memory, create=True)
        for worker in ("chief-0", "worker-1"):
            save(store.begin_run(worker), 10)
        recording = Recording(memory)
        reader = CheckpointStore(recording)
        reader.checkpoints()
        read = len(recording.keys("get"))
        reader.checkpoints("worker-1")
        reader.checkpoints()
        assert len(recording.keys("get")) == read

    def test_a_checkpoint_with_a_damaged_manifest_is_not_listed(self, store, run, backend):
        first, _ = save(run, 10, 20)
        backend.put(manifest_key(first), b"damaged")
        assert [info.step for info in CheckpointStore(backend).checkpoints()] == [20]
