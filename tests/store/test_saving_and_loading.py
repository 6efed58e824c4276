"""A saved state is loaded unchanged, in bounded memory."""

from __future__ import annotations

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
from tests.support.memory import peak_memory
from tests.support.stores import MIB, STATE, loaded, pack_keys, run_in, save


class TestSavingAndLoading:
    def test_a_checkpoint_is_loaded_as_it_was_saved(self, store, run):
        info = run.save(100, [IteratorState(name, elements) for name, elements in STATE])
        assert loaded(store, info) == STATE

    def test_another_process_can_load_a_checkpoint(self, store, run, backend):
        info = run.save(100, [IteratorState(name, elements) for name, elements in STATE])
        assert loaded(CheckpointStore.open(backend), info.ref) == STATE

    def test_a_state_in_many_packs_can_be_loaded(self, store, run, backend):
        elements = [(b"slot %d" % number, bytes([number]) * MIB) for number in range(6)]
        small_packs = CheckpointStore(backend, SaveOptions(2 * MIB, 2, compress=False))
        info = run_in(small_packs, run).save(1, [IteratorState("Iterator", iter(elements))])
        assert len(pack_keys(backend)) == 4  # three with payloads, one with their keys
        assert loaded(store, info) == [("Iterator", elements)]

    def test_an_empty_state_can_be_loaded(self, store, run):
        assert loaded(store, run.save(1, [])) == []

    def test_an_iterator_without_elements_can_be_loaded(self, store, run):
        assert loaded(store, run.save(1, [IteratorState("Iterator", [])])) == [("Iterator", [])]

    def test_elements_may_be_streams_that_can_only_be_read_once(self, store, run):
        states = (IteratorState(name, iter(elements)) for name, elements in STATE)
        assert loaded(store, run.save(1, states)) == STATE

    def test_the_info_describes_what_was_stored(self, store, run, backend):
        info = run.save(100, [IteratorState(name, elements) for name, elements in STATE])
        packs = [found.size for found in backend.list("packs/")]
        assert (info.step, info.worker, info.lineage) == (100, "main", 1)
        assert (info.iterators, info.elements) == (("Iterator", "scope/Iterator_1"), 4)
        assert info.logical_bytes >= 3 + 5000 + 7 + 18
        assert info.stored_bytes == sum(packs)

    def test_a_header_that_is_longer_than_the_first_read_is_read_completely(self, memory):
        CheckpointStore.open(memory, create=True)
        store = CheckpointStore(memory, SaveOptions(pack_bytes=1))
        states = [IteratorState(f"Iterator_{number}", [(b"", b"%d" % number)]) for number in range(300)]
        info = store.begin_run("main").save(1, states)
        assert header_end(memory.get(manifest_key(info.ref))) > HEAD_BYTES
        assert CheckpointStore.open(memory).checkpoints() == [info]

    def test_a_checkpoint_that_does_not_exist_is_not_found(self, store, run):
        with pytest.raises(CheckpointNotFoundError, match="step 70"):
            loaded(store, CheckpointRef("main", 1, 70))

    def test_a_deleted_checkpoint_is_not_found(self, store, run, backend):
        (ref,) = save(run, 10)
        backend.delete([manifest_key(ref)])
        with pytest.raises(CheckpointNotFoundError, match=store.uri):
            loaded(store, ref)

    @pytest.mark.parametrize("worker", ["", "a/b", "../up", "-x", "white space"])
    def test_a_worker_name_that_cannot_be_part_of_a_key_is_refused(self, memory, worker):
        with pytest.raises(ValueError, match="not a worker name"):
            CheckpointStore.open(memory, create=True).begin_run(worker)


class TestMemory:
    BOUND = 16 * MIB
    ELEMENTS = 64

    @pytest.fixture
    def small_packs(self, tmp_path) -> CheckpointStore:
        backend = LocalBackend(str(tmp_path / "store"))
        CheckpointStore.open(backend, create=True)
        return CheckpointStore(backend, SaveOptions(MIB, 2, compress=False))

    def large_state(self) -> list[IteratorState]:
        return [IteratorState("Iterator", ((b"", bytes([n]) * MIB) for n in range(self.ELEMENTS)))]

    def test_a_large_state_is_saved_with_bounded_memory(self, small_packs):
        run = small_packs.begin_run("main")
        assert peak_memory(lambda: run_in(small_packs, run).save(1, self.large_state())) < self.BOUND

    def test_a_large_state_is_loaded_with_bounded_memory(self, small_packs):
        info = small_packs.begin_run("main").save(1, self.large_state())
        assert peak_memory(lambda: self.load(small_packs, info, self.ELEMENTS)) < self.BOUND

    @pytest.mark.parametrize("compress", [True, False], ids=["compressible payloads", "one repeated payload"])
    def test_a_state_far_larger_than_its_packs_is_loaded_with_bounded_memory(self, tmp_path, compress):
        backend, count = LocalBackend(str(tmp_path / "store")), 256
        CheckpointStore.open(backend, create=True)
        store = CheckpointStore(backend, SaveOptions(concurrency=2, compress=compress))
        payloads = (bytes([n if compress else 1]) * MIB for n in range(count))
        state = IteratorState("Iterator", ((b"", payload) for payload in payloads))
        info = store.begin_run("main").save(1, [state])
        assert info.stored_bytes < 2 * MIB
        extents_at_once = 2 + 2
        # Half as much again for the extent that is being decompressed.
        assert peak_memory(lambda: self.load(store, info, count)) < 1.5 * extents_at_once * READ_BYTES

    def load(self, store: CheckpointStore, info: CheckpointInfo, count: int) -> None:
        (state,) = store.load(info)
        sizes = [sum(len(payload) for _, payload in batch.elements) for batch in state.batches]
        assert sum(sizes) == count * MIB
        assert max(sizes) <= READ_BYTES
