"""What a save uploads, how much memory it uses, and what it leaves behind when it fails."""

from __future__ import annotations

import random
import threading
import time
import uuid
from collections.abc import Iterator

import pytest

import input_checkpoint as ic
from benchmarks.incremental import measure
from input_checkpoint.backends.memory import MemoryBackend
from input_checkpoint.format.keys import manifest_key
from input_checkpoint.state import Element
from tests.support.faults import Fail, FaultyBackend
from tests.support.memory import peak_memory
from tests.support.stores import run_in
from tests.support.wrappers import BeforeWrites, Failing, Recording

SMALL = ic.SaveOptions(pack_bytes=1 << 16, concurrency=1, compress=False)


class WithoutPacks(MemoryBackend):
    """Discards packs, so that only the memory of the save itself is measured."""

    def put(self, key, data):
        if not key.startswith("packs/"):
            super().put(key, data)


def state(*elements: Element) -> list[ic.IteratorState]:
    return [ic.IteratorState("Iterator", list(elements))]


def large(number: int) -> Element:
    return (b"slot", random.Random(number).randbytes(2100))


class TestUploads:
    @pytest.mark.parametrize(
        ("payload_bytes", "share"), [(200, 0.30), (500, 0.14), (1000, 0.08), (1024, 0.08), (2000, 0.07)]
    )
    def test_a_save_after_5_percent_turnover_uploads_a_small_share_of_the_state(self, payload_bytes, share):
        figures = measure(0.05, saves=12, elements=8000, element_bytes=payload_bytes)
        assert max(figures.uploads) <= share * 8000 * payload_bytes

    def test_the_manifest_of_many_tiny_elements_is_small(self, memory):
        store = ic.CheckpointStore.open(memory, create=True)
        elements = ((b"Iterator::Shuffle:buffer::%d" % n, b"%08d" % n) for n in range(200_000))
        info = store.begin_run("main").save(1, [ic.IteratorState("Iterator", elements)])
        assert len(memory.get(manifest_key(info.ref))) < 0.025 * info.logical_bytes

    def test_keys_are_compressed_even_if_payloads_do_not_shrink(self, memory):
        store = ic.CheckpointStore.open(memory, create=True)
        chance = random.Random(1)
        count, payload_bytes = 2000, 3000
        elements = [
            (b"a long key with a number: %d" % n * 20, chance.randbytes(payload_bytes)) for n in range(count)
        ]
        info = store.begin_run("main").save(1, state(*elements))
        assert info.logical_bytes > 1.15 * count * payload_bytes
        assert info.stored_bytes < 1.02 * count * payload_bytes

    def test_identical_elements_are_stored_once(self, memory):
        store = ic.CheckpointStore.open(memory, create=True, options=SMALL)
        run = store.begin_run("main")
        info = run.save(1, state(*[large(n % 3) for n in range(3000)]))
        assert info.stored_bytes < 4 * 2100 + 3000 * 8 + 20
        (loaded,) = store.load(info)
        assert loaded.in_order() == [large(n % 3) for n in range(3000)]


class TestOrder:
    def test_encoding_begins_while_the_save_is_announced(self, memory):
        encoding = threading.Event()

        def elements() -> Iterator[Element]:
            encoding.set()
            yield b"key", b"payload"

        def announced(key: str) -> None:
            assert encoding.wait(10), f"{key} was written before anything was encoded"

        store = ic.CheckpointStore.open(memory, create=True)
        run = store.begin_run("main")
        observed = ic.CheckpointStore(BeforeWrites(memory, announced))
        info = run_in(observed, run).save(1, [ic.IteratorState("Iterator", elements())])
        assert [state.in_order() for state in store.load(info)] == [[(b"key", b"payload")]]

    def test_an_encoding_error_at_the_start_withdraws_the_announcement(self, memory):
        def elements() -> Iterator[Element]:
            raise OSError("the session is gone")
            yield

        store = ic.CheckpointStore.open(memory, create=True)
        with pytest.raises(OSError, match="the session is gone"):
            store.begin_run("main").save(1, [ic.IteratorState("Iterator", elements())])
        assert list(memory.list("saves/")) == []


class TestMemory:
    COUNT = 20_000
    PAYLOAD_BYTES = 1000

    def elements(self, generation: int) -> Iterator[Element]:
        rest = bytes(self.PAYLOAD_BYTES - 16)
        for number in range(self.COUNT):
            yield b"%d" % number, b"%08d%08d" % (number, generation) + rest

    def test_every_save_of_many_new_payloads_uses_little_memory(self, monkeypatch):
        monkeypatch.setattr("input_checkpoint.store.chunk_index.MAX_OLDER_CHUNKS", 0)
        backend = WithoutPacks(f"memory://{uuid.uuid4().hex}")
        store = ic.CheckpointStore.open(backend, create=True, options=SMALL)
        run = store.begin_run("main")

        def save_three_times() -> None:
            for step in range(3):
                run.save(step, [ic.IteratorState("Iterator", self.elements(step))])

        peak = peak_memory(save_three_times)
        # Three are in the store, and one is in memory twice while it is encoded.
        manifests = 5 * len(backend.get(manifest_key(ic.CheckpointRef("main", 1, 2))))
        buffers = 4 * SMALL.pack_bytes + (1 << 20)
        two_states = 2 * self.COUNT
        assert peak < manifests + buffers + 80 * two_states


class TestFailure:
    def test_no_save_builds_on_one_that_was_not_committed(self, memory):
        failing = Failing(memory, "create", "checkpoints/main/00000001/000000000001", ic.BackendError("no"))
        store = ic.CheckpointStore.open(failing, create=True, options=SMALL, retry=None)
        run = store.begin_run("main")
        with pytest.raises(ic.BackendError, match="no"):
            run.save(1, state(large(1), large(2)))
        memory.delete([info.key for info in memory.list("packs/")])
        run.save(2, state(large(1), large(2)))
        assert store.verify().ok

    def test_a_failed_save_does_not_wait_for_an_unavailable_storage_again(self, memory):
        timeout = 0.4
        faulty = FaultyBackend(memory)
        policy = ic.RetryPolicy(timeout=timeout, initial_delay=0.01, max_delay=0.02)
        store = ic.CheckpointStore.open(faulty, create=True, options=SMALL, retry=policy)
        run = store.begin_run("main")
        # Unavailable from the moment that the save is announced.
        faulty.plan.update({len(faulty.calls) + number: Fail() for number in range(2, 10_000)})
        started = time.monotonic()
        with pytest.raises(ic.BackendUnavailableError):
            run.save(1, state(large(1)))
        assert time.monotonic() - started < 1.7 * timeout
        assert not [call for call in faulty.calls if call.startswith("delete")]

    def test_the_announcement_of_a_save_that_failed_in_an_outage_is_removed_by_the_next_prune(self, memory):
        failing = Failing(
            memory, "put", "packs/main/00000001/000000000001", ic.BackendUnavailableError("no answer")
        )
        store = ic.CheckpointStore.open(failing, create=True, options=SMALL, retry=None)
        run = store.begin_run("main")
        with pytest.raises(ic.BackendUnavailableError):
            run.save(1, state(large(1)))
        assert len(list(memory.list("saves/"))) == 1
        run.save(2, state(large(2)))
        report = run.prune(ic.KeepLast(1))
        assert report.kept
        assert list(memory.list("saves/")) == []

    def test_a_save_that_fails_for_another_reason_withdraws_its_announcement(self, memory):
        recording = Recording(memory)
        failing = Failing(recording, "put", "packs/", ic.BackendPermissionError("no"))
        store = ic.CheckpointStore.open(failing, create=True, options=SMALL, retry=None)
        with pytest.raises(ic.BackendPermissionError):
            store.begin_run("main").save(1, state(large(1)))
        assert list(memory.list("saves/")) == []

    def test_a_checkpoint_with_more_packs_than_a_manifest_can_list_is_not_committed(
        self, memory, monkeypatch
    ):
        monkeypatch.setattr("input_checkpoint.format.manifest._MAX_HEADER_BYTES", 4000)
        options = ic.SaveOptions(pack_bytes=1)
        store = ic.CheckpointStore.open(memory, create=True, options=options)
        run = store.begin_run("main")
        with pytest.raises(ic.InputCheckpointError, match=r"101 packs.*SaveOptions\(pack_bytes"):
            run.save(1, state(*map(large, range(100))))
        assert (store.checkpoints(), store.history("main")) == ([], [])
        assert run.save(2, state(large(1))).step == 2
