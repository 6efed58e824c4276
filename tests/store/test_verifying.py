"""A verification finds everything that a restore would refuse, and reads no more than it was asked to."""

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
    def pack_count(self, memory) -> int:
        """The number of packs of a store that has one pack per payload."""
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

    def test_all_packs_are_read_by_default(self, memory, pack_count):
        assert len(self.read_packs(memory, True)) == pack_count

    @pytest.mark.parametrize("share", [False, 0])
    def test_no_data_is_read_if_the_share_is_zero(self, memory, pack_count, share):
        assert self.read_packs(memory, share) == []

    def test_a_share_of_the_packs_is_read(self, memory, pack_count):
        assert 0 < len(self.read_packs(memory, 0.5)) < pack_count

    def test_each_verification_reads_a_new_random_share(self, memory, pack_count):
        assert self.read_packs(memory, 0.5) != self.read_packs(memory, 0.5)

    @pytest.mark.parametrize("share", [-0.1, 1.5, 2])
    def test_an_invalid_share_is_refused(self, memory, pack_count, share):
        with pytest.raises(ValueError, match="between 0 and 1"):
            CheckpointStore(memory).verify(read_data=share)

    def test_a_missing_pack_is_found_without_reading_data(self, store, run, backend):
        (ref,) = save(run, 10)
        backend.delete(pack_keys(backend))
        assert list(store.verify(read_data=False).problems) == [ref]

    def test_a_chunk_that_checkpoints_share_is_read_once(self, store, run, backend):
        for step in (10, 20, 30):
            elements = [(b"slot", b"x" * 5000), (b"step", b"%d" % step)]
            run.save(step, [IteratorState("Iterator", elements)])
        report = store.verify()
        assert len(report.checked) == 3
        assert report.read_bytes == sum(info.size for info in backend.list("packs/"))

    def test_a_chunk_that_a_checkpoint_holds_many_times_is_read_once(self, store, run, backend):
        same = [(b"slot %d" % number, b"x" * 5000) for number in range(10)]
        run.save(10, [IteratorState("Iterator", same)])
        assert store.verify().read_bytes == sum(info.size for info in backend.list("packs/"))

    @pytest.mark.parametrize("parts", [0, 1, 3, 77, 2**32 - 1])
    def test_a_chunk_with_a_wrong_number_of_elements_is_a_problem(self, store, run, backend, parts):
        (ref,) = save(run, 10)
        tamper(backend, ref, elements=parts)
        assert list(store.verify().problems) == [ref]

    def test_a_wrong_number_of_elements_is_a_problem_even_if_another_checkpoint_lists_the_right_one(
        self, store, run, backend
    ):
        for step in (10, 20):
            run.save(step, some_state())
        tamper(backend, CheckpointRef("main", 1, 20), elements=3)
        assert [ref.step for ref in store.verify().problems] == [20]

    def test_counts_that_do_not_add_up_are_found_without_reading_data(self, store, run, backend):
        (ref,) = save(run, 10)
        content = decode_manifest(backend.get(manifest_key(ref)))
        body = content.table.encode()
        entry = replace(content.header.iterators[0], elements=5)
        backend.put(manifest_key(ref), encode_manifest(replace(content.header, iterators=(entry,)), body))
        assert list(store.verify(read_data=False).problems) == [ref]
