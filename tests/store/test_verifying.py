"""What a restore would refuse is found, by reading as little as was asked for."""

from __future__ import annotations

from dataclasses import replace

import pytest

from input_checkpoint import Backend, CheckpointRef, CheckpointStore, IteratorState, SaveOptions
from input_checkpoint.format.keys import manifest_key
from input_checkpoint.format.manifest import decode_manifest, encode_manifest
from tests.support.stores import pack_keys, save, some_state, tamper
from tests.support.wrappers import Recording


class TestVerifying:
    @pytest.fixture
    def packs(self, memory) -> int:
        """Of a store whose payloads lie in a pack each."""
        CheckpointStore.open(memory, create=True)
        store = CheckpointStore(memory, SaveOptions(pack_bytes=1, compress=False))
        elements = [(b"slot %d" % number, bytes([number]) * 3000) for number in range(40)]
        store.begin_run("main").save(10, [IteratorState("Iterator", elements)])
        return len(pack_keys(memory))

    def read_packs(self, memory: Backend, share) -> list[str]:
        """Verify, and return the packs that were read."""
        recording = Recording(memory)
        report = CheckpointStore(recording).verify(read_data=share)
        read = sorted(key for key in recording.keys("get") if key.startswith("packs/"))
        assert report.read_bytes == sum(info.size for info in memory.list("packs/") if info.key in read)
        return read

    def test_all_packs_are_read_unless_asked_otherwise(self, memory, packs):
        assert len(self.read_packs(memory, True)) == packs

    @pytest.mark.parametrize("share", [False, 0])
    def test_no_data_is_read_if_none_is_asked_for(self, memory, packs, share):
        assert self.read_packs(memory, share) == []

    def test_a_share_of_the_packs_is_read(self, memory, packs):
        assert 0 < len(self.read_packs(memory, 0.5)) < packs

    def test_which_share_is_read_is_chosen_anew_each_time(self, memory, packs):
        assert self.read_packs(memory, 0.5) != self.read_packs(memory, 0.5)

    @pytest.mark.parametrize("share", [-0.1, 1.5, 2])
    def test_a_share_that_cannot_be_is_refused(self, memory, packs, share):
        with pytest.raises(ValueError, match="between 0 and 1"):
            CheckpointStore(memory).verify(read_data=share)

    def test_a_pack_that_is_missing_is_found_without_reading_data(self, store, run, backend):
        (ref,) = save(run, 10)
        backend.delete(pack_keys(backend))
        assert list(store.verify(read_data=False).problems) == [ref]

    def test_what_checkpoints_share_is_read_once(self, store, run, backend):
        for step in (10, 20, 30):
            run.save(step, [IteratorState("Iterator", [(b"slot", b"x" * 5000)])])
        report = store.verify()
        assert len(report.checked) == 3
        assert report.read_bytes == sum(info.size for info in backend.list("packs/"))

    def test_what_a_checkpoint_holds_many_times_is_read_once(self, store, run, backend):
        same = [(b"slot %d" % number, b"x" * 5000) for number in range(10)]
        run.save(10, [IteratorState("Iterator", same)])
        assert store.verify().read_bytes == sum(info.size for info in backend.list("packs/"))

    @pytest.mark.parametrize("parts", [0, 1, 3, 77, 2**32 - 1])
    def test_a_chunk_of_another_number_of_elements_than_listed_is_a_problem(self, store, run, backend, parts):
        (ref,) = save(run, 10)
        tamper(backend, ref, elements=parts)
        assert list(store.verify().problems) == [ref]

    def test_so_it_is_if_another_checkpoint_lists_it_rightly(self, store, run, backend):
        for step in (10, 20):
            run.save(step, some_state())
        tamper(backend, CheckpointRef("main", 1, 20), elements=3)
        assert [ref.step for ref in store.verify().problems] == [20]

    def test_numbers_that_do_not_add_up_are_found_without_reading_data(self, store, run, backend):
        (ref,) = save(run, 10)
        content = decode_manifest(backend.get(manifest_key(ref)))
        body = content.table.encode()
        entry = replace(content.header.iterators[0], elements=5)
        backend.put(manifest_key(ref), encode_manifest(replace(content.header, iterators=(entry,)), body))
        assert list(store.verify(read_data=False).problems) == [ref]
