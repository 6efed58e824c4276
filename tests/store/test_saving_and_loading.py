"""What was saved comes back, in bounded memory."""

from __future__ import annotations

import tracemalloc
from typing import Any, Callable

import pytest

from input_checkpoint import (
    CheckpointInfo,
    CheckpointNotFoundError,
    CheckpointRef,
    CheckpointStore,
    IteratorState,
    SaveOptions,
)
from input_checkpoint.backends.local import LocalBackend
from input_checkpoint.format.keys import manifest_key
from input_checkpoint.format.manifest import HEAD_BYTES, header_end
from input_checkpoint.store.reading import READ_BYTES
from tests.support.stores import MIB, STATE, loaded, pack_keys, run_in, save


class TestSavingAndLoading:
    def test_a_checkpoint_comes_back_as_it_was_saved(self, store, run):
        info = run.save(100, [IteratorState(name, elements) for name, elements in STATE])
        assert loaded(store, info) == STATE

    def test_a_checkpoint_comes_back_from_another_process(self, store, run, backend):
        info = run.save(100, [IteratorState(name, elements) for name, elements in STATE])
        assert loaded(CheckpointStore.open(backend), info.ref) == STATE

    def test_a_state_of_many_packs_comes_back(self, store, run, backend):
        elements = [(b"slot %d" % number, bytes([number]) * MIB) for number in range(6)]
        small_packs = CheckpointStore(backend, SaveOptions(2 * MIB, 2, compress=False))
        info = run_in(small_packs, run).save(1, [IteratorState("Iterator", iter(elements))])
        assert len(pack_keys(backend)) == 4  # three of payloads, one of their keys
        assert loaded(store, info) == [("Iterator", elements)]

    def test_an_empty_state_comes_back(self, store, run):
        assert loaded(store, run.save(1, [])) == []

    def test_an_iterator_without_elements_comes_back(self, store, run):
        assert loaded(store, run.save(1, [IteratorState("Iterator", [])])) == [("Iterator", [])]

    def test_elements_may_be_streams_that_are_read_once(self, store, run):
        states = (IteratorState(name, iter(elements)) for name, elements in STATE)
        assert loaded(store, run.save(1, states)) == STATE

    def test_the_info_says_what_was_stored(self, store, run, backend):
        info = run.save(100, [IteratorState(name, elements) for name, elements in STATE])
        packs = [found.size for found in backend.list("packs/")]
        assert (info.step, info.worker, info.lineage) == (100, "main", 1)
        assert (info.iterators, info.elements) == (("Iterator", "scope/Iterator_1"), 4)
        assert info.logical_bytes >= 3 + 5000 + 7 + 18
        assert info.stored_bytes == sum(packs)

    def test_a_header_longer_than_a_first_read_is_read(self, memory):
        CheckpointStore.open(memory, create=True)
        store = CheckpointStore(memory, SaveOptions(pack_bytes=1))
        states = [IteratorState(f"Iterator_{number}", [(b"", b"%d" % number)]) for number in range(300)]
        info = store.begin_run("main").save(1, states)
        assert header_end(memory.get(manifest_key(info.ref))) > HEAD_BYTES
        assert CheckpointStore.open(memory).checkpoints() == [info]

    def test_a_checkpoint_that_does_not_exist_is_not_found(self, store, run):
        with pytest.raises(CheckpointNotFoundError, match="step 70"):
            loaded(store, CheckpointRef("main", 1, 70))

    def test_a_checkpoint_that_was_removed_is_not_found(self, store, run, backend):
        (ref,) = save(run, 10)
        backend.delete([manifest_key(ref)])
        with pytest.raises(CheckpointNotFoundError, match=store.uri):
            loaded(store, ref)

    @pytest.mark.parametrize("worker", ["", "a/b", "../up", "-x", "white space"])
    def test_a_worker_name_that_could_leave_its_place_is_refused(self, memory, worker):
        with pytest.raises(ValueError, match="not a worker name"):
            CheckpointStore.open(memory, create=True).begin_run(worker)


class TestMemory:
    BOUND = 16 * MIB
    ELEMENTS = 64

    @pytest.fixture
    def small_packs(self, tmp_path) -> CheckpointStore:
        place = LocalBackend(str(tmp_path / "store"))
        CheckpointStore.open(place, create=True)
        return CheckpointStore(place, SaveOptions(MIB, 2, compress=False))

    def peak(self, work: Callable[[], Any]) -> int:
        tracemalloc.start()
        try:
            work()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    def large_state(self) -> list[IteratorState]:
        return [IteratorState("Iterator", ((b"", bytes([n]) * MIB) for n in range(self.ELEMENTS)))]

    def test_a_large_state_is_saved_with_bounded_memory(self, small_packs):
        run = small_packs.begin_run("main")
        assert self.peak(lambda: run_in(small_packs, run).save(1, self.large_state())) < self.BOUND

    def test_a_large_state_is_loaded_with_bounded_memory(self, small_packs):
        info = small_packs.begin_run("main").save(1, self.large_state())
        assert self.peak(lambda: self.load(small_packs, info, self.ELEMENTS)) < self.BOUND

    @pytest.mark.parametrize("compress", [True, False], ids=["that shrinks well", "of one payload repeated"])
    def test_a_state_is_loaded_in_no_more_memory_than_any_other(self, tmp_path, compress):
        place, count = LocalBackend(str(tmp_path / "store")), 256
        CheckpointStore.open(place, create=True)
        store = CheckpointStore(place, SaveOptions(concurrency=2, compress=compress))
        payloads = (bytes([n if compress else 1]) * MIB for n in range(count))
        state = IteratorState("Iterator", ((b"", payload) for payload in payloads))
        info = store.begin_run("main").save(1, [state])
        assert info.stored_bytes < 2 * MIB
        extents_at_once = 2 + 2
        # Half as much again for what is just being unpacked.
        assert self.peak(lambda: self.load(store, info, count)) < 1.5 * extents_at_once * READ_BYTES

    def load(self, store: CheckpointStore, info: CheckpointInfo, count: int) -> None:
        (state,) = store.load(info)
        sizes = [sum(len(payload) for _, payload in piece.elements) for piece in state.batches]
        assert sum(sizes) == count * MIB
        assert max(sizes) <= READ_BYTES
