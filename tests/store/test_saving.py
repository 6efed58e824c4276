"""What a save uploads, how much memory it uses, and what it leaves behind when it fails."""

from __future__ import annotations

import functools
import itertools
import random
import threading
import time
import uuid
from collections.abc import Iterator

import pytest

import input_checkpoint as ic
from benchmarks.incremental import measure
from input_checkpoint.backends.memory import MemoryBackend
from input_checkpoint.format.compression import Compressor
from input_checkpoint.format.keys import manifest_key
from input_checkpoint.state import Element
from input_checkpoint.store import saving
from input_checkpoint.store.saving import checkpoints_to_build_on
from input_checkpoint.store.upload_speed import UploadSpeed
from tests.support.faults import Fail, FaultyBackend
from tests.support.memory import peak_memory
from tests.support.stores import announcements, loaded, pack_keys, run_in
from tests.support.wrappers import BeforeWrites, Failing, Recording, Wrapped

SMALL = ic.SaveOptions(pack_bytes=1 << 16, concurrency=1, compress=False)


class WithoutPacks(MemoryBackend):
    """Discards packs, so that only the memory of the save itself is measured."""

    def put(self, key, data):
        if not key.startswith("packs/"):
            super().put(key, data)


class AllLookupsAtOnce(Wrapped):
    """Answers no read of a pack before the expected number of reads is waiting."""

    def __init__(self, inner: ic.Backend, expected: int) -> None:
        super().__init__(inner)
        self._all_waiting = threading.Barrier(expected)

    def before(self, verb: str, key: str) -> None:
        if verb == "get" and key.startswith("packs/"):
            self._all_waiting.wait(10)


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


def shrinking(number: int, share: float = 0.15) -> Element:
    """An element of 100 kB that shrinks by about this share."""
    zeros = int(share * 100_000)
    return (b"slot", random.Random(number).randbytes(100_000 - zeros) + bytes(zeros))


class TestCompression:
    COUNT = 100

    def elements(self, generation: int, share: float = 0.15) -> list[Element]:
        first = generation * self.COUNT
        return [shrinking(number, share) for number in range(first, first + self.COUNT)]

    @pytest.fixture
    def upload_seconds(self, monkeypatch: pytest.MonkeyPatch) -> list[float]:
        """The time that each upload of a pack takes. Compressing up to 256 KiB takes 1 ms."""
        seconds = [1.0]
        uploading, compressing = itertools.count(), itertools.count()
        monkeypatch.setattr(
            saving, "UploadSpeed", functools.partial(UploadSpeed, lambda: next(uploading) * seconds[0])
        )
        monkeypatch.setattr(
            saving, "Compressor", functools.partial(Compressor, clock=lambda: next(compressing) * 0.001)
        )
        return seconds

    def stored_shares(self, compress, generations: int, share: float = 0.15) -> list[float]:
        """Save several times, each time all new. Return how much is stored of each state."""
        options = ic.SaveOptions(pack_bytes=1_500_000, concurrency=1, compress=compress)
        store = ic.CheckpointStore.open(f"memory://{uuid.uuid4().hex}", create=True, options=options)
        run = store.begin_run("main")
        shares = []
        for step in range(generations):
            info = run.save(step, state(*self.elements(step, share)))
            assert loaded(store, info) == [("Iterator", self.elements(step, share))]
            shares.append(info.stored_bytes / info.logical_bytes)
        return shares

    def test_on_a_fast_storage_a_later_save_compresses_only_a_megabyte_of_what_shrinks_little(
        self, upload_seconds
    ):
        upload_seconds[0] = 0.001
        (_, second) = self.stored_shares("auto", 2)
        assert 0.975 < second < 0.99

    def test_on_a_slow_storage_every_save_compresses_what_shrinks_little(self, upload_seconds):
        upload_seconds[0] = 1.0
        assert [round(share, 2) for share in self.stored_shares("auto", 3)] == [0.85] * 3

    def test_on_a_fast_storage_what_shrinks_much_is_compressed(self, upload_seconds):
        upload_seconds[0] = 0.001
        assert [round(share, 2) for share in self.stored_shares("auto", 2, share=0.3)] == [0.70] * 2

    @pytest.mark.parametrize(("compress", "expected"), [(True, 0.85), (False, 1.0)])
    def test_a_fixed_choice_does_not_depend_on_the_speed(self, upload_seconds, compress, expected):
        upload_seconds[0] = 0.001
        assert [round(share, 2) for share in self.stored_shares(compress, 2)] == [expected] * 2

    @pytest.mark.parametrize(("first", "then"), [(False, True), (True, False)])
    def test_chunks_are_found_again_however_they_are_stored(self, memory, first, then):
        store = ic.CheckpointStore.open(memory, create=True, options=ic.SaveOptions(compress=first))
        old, new = self.elements(0, share=0.5), self.elements(1, share=0.5)
        parent = store.begin_run("main").save(1, state(*old))
        other = ic.CheckpointStore(memory, ic.SaveOptions(compress=then))
        run = other.begin_run("main", parent=parent.ref)
        assert run.save(2, state(*old)).stored_bytes < 10
        mixed = run.save(3, state(*old, *new))
        share = mixed.stored_bytes / sum(len(payload) for _, payload in new)
        assert round(share, 1) == (0.5 if then else 1.0)
        assert loaded(store, mixed) == [("Iterator", [*old, *new])]
        assert store.verify().ok

    @pytest.mark.parametrize("compress", ["always", "", None, 2])
    def test_another_choice_is_refused(self, compress):
        with pytest.raises(ValueError, match='compress must be "auto", True or False, got'):
            ic.SaveOptions(compress=compress)


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
        assert announcements(memory) == []


class LookupsAfterUploads(Wrapped):
    """Answers no read of a pack before a pack was stored."""

    def __init__(self, inner: ic.Backend) -> None:
        super().__init__(inner)
        self.stored = threading.Event()

    def before(self, verb: str, key: str) -> None:
        if verb == "get" and key.startswith("packs/"):
            assert self.stored.wait(10), "no pack was stored"

    def after(self, verb: str, key: str) -> None:
        if verb == "put" and key.startswith("packs/"):
            self.stored.set()


class TestChunksStoredBeforeTheLookupIsAnswered:
    def test_what_turns_out_to_be_missing_is_stored_as_well(self, memory):
        store = ic.CheckpointStore.open(memory, create=True, options=ic.SaveOptions(pack_bytes=1))
        parent = store.begin_run("main").save(1, state(large(1), large(2)))
        memory.delete([pack_keys(memory)[0]])
        run = ic.CheckpointStore(LookupsAfterUploads(memory)).begin_run("main", parent=parent.ref)
        elements = [large(1), large(2), large(3)]
        info = run.save(2, [*state(*elements), ic.IteratorState("second", elements[:2])])
        assert loaded(store, info) == [("Iterator", elements), ("second", elements[:2])]
        assert list(store.verify().problems) == [parent.ref]

    def test_nothing_of_a_save_that_fails_then_is_built_on(self, memory):
        store = ic.CheckpointStore.open(memory, create=True, options=ic.SaveOptions(pack_bytes=1))
        parent = store.begin_run("main").save(1, state(large(1), large(2)))
        memory.delete([pack_keys(memory)[0]])
        run = ic.CheckpointStore(LookupsAfterUploads(memory)).begin_run("main", parent=parent.ref)

        def fail() -> ic.SaveContext:
            raise OSError("no space left")

        with pytest.raises(OSError, match="no space left"):
            run.save(2, state(large(1), large(2), large(3)), fail)
        committed = {pack.key for pack in parent.packs}
        assert run._saver._index.packs <= committed & set(pack_keys(memory))
        info = run.save(3, state(large(1), large(2), large(3)))
        assert loaded(store, info) == [("Iterator", [large(1), large(2), large(3)])]

    def test_no_more_of_a_state_is_held_than_a_fixed_amount(self, memory, monkeypatch):
        monkeypatch.setattr(saving, "_MAX_HELD_BYTES", 1 << 19)
        store = ic.CheckpointStore.open(memory, create=True)
        parent = store.begin_run("main").save(1, state(large(1)))
        drawn: list[int] = []
        answer = threading.Event()

        class Waiting(Wrapped):
            def before(self, verb: str, key: str) -> None:
                if verb == "get" and key.startswith("packs/"):
                    assert answer.wait(10)

        def elements() -> Iterator[Element]:
            for number in range(100):
                drawn.append(number)
                yield (b"slot", random.Random(number).randbytes(1 << 16))

        run = ic.CheckpointStore(Waiting(memory)).begin_run("main", parent=parent.ref)
        saving_thread = threading.Thread(
            target=run.save, args=(2, [ic.IteratorState("Iterator", elements())])
        )
        saving_thread.start()
        try:
            time.sleep(0.5)
            assert 0 < len(drawn) < 20
        finally:
            answer.set()
            saving_thread.join()
        assert len(drawn) == 100


class TestDataDeletedFromOutside:
    """What is no prune's work: a lifecycle rule, a cleanup job, a person."""

    def test_a_deleted_pack_is_written_again_by_the_next_save(self, memory):
        store = ic.CheckpointStore.open(memory, create=True, options=SMALL)
        run = store.begin_run("main")
        first = run.save(1, state(large(1), large(2)))
        memory.delete(pack_keys(memory))
        second = run.save(2, state(large(1), large(2)))
        assert loaded(store, second) == [("Iterator", [large(1), large(2)])]
        assert list(store.verify().problems) == [first.ref]

    def test_only_the_deleted_pack_is_written_again(self, memory):
        store = ic.CheckpointStore.open(memory, create=True, options=ic.SaveOptions(pack_bytes=1))
        run = store.begin_run("main")
        elements = [large(number) for number in range(4)]
        memory.delete([run.save(1, state(*elements)).packs[0].key])
        second = run.save(2, state(*elements))
        assert [pack.new for pack in second.packs] == [False] * 4 + [True]
        assert second.stored_bytes < 2 * 2100
        assert loaded(store, second) == [("Iterator", elements)]

    def test_a_truncated_pack_is_written_again(self, memory):
        store = ic.CheckpointStore.open(memory, create=True, options=SMALL)
        run = store.begin_run("main")
        run.save(1, state(large(1)))
        (pack,) = pack_keys(memory)
        memory.put(pack, memory.get(pack)[:-1])
        assert loaded(store, run.save(2, state(large(1)))) == [("Iterator", [large(1)])]

    def test_the_first_save_of_a_resumed_run_notices_a_deleted_pack_too(self, memory):
        store = ic.CheckpointStore.open(memory, create=True, options=SMALL)
        parent = store.begin_run("main").save(1, state(large(1)))
        run = store.begin_run("main", parent=parent.ref)
        memory.delete(pack_keys(memory))
        assert loaded(store, run.save(2, state(large(1)))) == [("Iterator", [large(1)])]

    def test_the_packs_of_a_deleted_manifest_are_not_built_on(self, memory):
        store = ic.CheckpointStore.open(memory, create=True, options=SMALL)
        run = store.begin_run("main")
        first = run.save(1, state(large(1)))
        memory.delete([manifest_key(first.ref)])
        second = run.save(2, state(large(1)))
        assert {pack.key for pack in first.packs}.isdisjoint(pack.key for pack in second.packs)

    def test_a_warning_names_the_store_the_pack_and_the_checkpoints_that_are_lost(self, memory, caplog):
        store = ic.CheckpointStore.open(memory, create=True, options=SMALL)
        run = store.begin_run("main")
        first = run.save(1, state(large(1)))
        memory.delete(pack_keys(memory))
        run.save(2, state(large(1)))
        (warning,) = caplog.messages
        assert warning.startswith(f"{store.uri}: packs that committed checkpoints need are missing")
        assert f": 1, the first is {first.packs[0].key}. " in warning
        assert warning.endswith(f"among them {first.ref}.")
        run.save(3, state(large(1)))
        assert len(caplog.messages) == 1

    def test_a_deleted_manifest_alone_causes_no_warning(self, memory, caplog):
        store = ic.CheckpointStore.open(memory, create=True, options=SMALL)
        run = store.begin_run("main")
        run.save(1, state(large(1)))
        memory.delete([*pack_keys(memory), *(info.key for info in memory.list("checkpoints/"))])
        run.save(2, state(large(1)))
        assert caplog.messages == []


class TestHistory:
    """What a save costs does not depend on how many checkpoints there are."""

    def test_the_requests_of_a_save_are_the_same_after_20_and_after_200_saves(self, memory):
        recording = Recording(memory)
        store = ic.CheckpointStore.open(recording, create=True, options=SMALL)
        run = store.begin_run("main")

        def requests_of_save(step: int) -> list[tuple[str, str]]:
            recording.calls.clear()
            run.save(step, state(*map(large, range(step, step + 20))))
            return [(verb, key.split("/")[0]) for verb, key in recording.calls]

        for step in range(20):
            run.save(step, state(*map(large, range(step, step + 20))))
        early = requests_of_save(20)
        for step in range(21, 200):
            run.save(step, state(*map(large, range(step, step + 20))))
        assert requests_of_save(200) == early
        assert [call for call in early if call[0] == "list"] == [("list", "lineages")] * 2

    def test_what_a_run_remembers_does_not_grow(self, memory):
        store = ic.CheckpointStore.open(memory, create=True, options=SMALL)
        run = store.begin_run("main")
        for step in range(100):
            run.save(step, state(large(step)))
        saver = run._saver
        assert len(saver._known) == saving.MAX_KNOWN_CHECKPOINTS
        assert len(saver._index) <= saving.MAX_KNOWN_CHECKPOINTS * 2
        assert saver._index.packs == saver._known_packs().keys()

    def test_an_element_that_returns_after_two_saves_is_not_stored_again(self, memory):
        store = ic.CheckpointStore.open(memory, create=True, options=SMALL)
        run = store.begin_run("main")
        elements = [(b"slot %d" % number, large(number)[1]) for number in range(3)]
        for step, element in enumerate(elements):
            run.save(step, state(element))
        info = run.save(3, state(elements[0]))
        assert info.stored_bytes == 1
        assert loaded(store, info) == [("Iterator", [elements[0]])]

    def test_packs_are_looked_up_at_the_same_time(self, memory):
        packs = 5
        options = ic.SaveOptions(pack_bytes=1)
        store = ic.CheckpointStore.open(memory, create=True, options=options)
        elements = [large(number) for number in range(packs - 1)]
        parent = store.begin_run("main").save(1, state(*elements))
        assert len(parent.packs) == packs
        run = store.begin_run("main", parent=parent.ref)
        observed = ic.CheckpointStore(AllLookupsAtOnce(memory, packs), options)
        assert loaded(store, run_in(observed, run).save(2, state(*elements))) == [("Iterator", elements)]


class TestCheckpointsToBuildOn:
    def refs(self, count: int) -> list[ic.CheckpointRef]:
        return [ic.CheckpointRef("main", 1, step) for step in range(count)]

    def test_the_newest_are_chosen_from_old_to_new(self):
        committed = {ref: {f"pack {ref.step}": 1} for ref in self.refs(saving.MAX_KNOWN_CHECKPOINTS + 3)}
        useful = {f"pack {ref.step}" for ref in committed}
        assert list(checkpoints_to_build_on(committed, useful)) == list(committed)[3:]

    def test_packs_without_useful_chunks_are_left_out(self):
        first, second = self.refs(2)
        committed = {first: {"a": 1}, second: {"b": 2, "c": 3}}
        assert checkpoints_to_build_on(committed, {"c"}) == {second: {"c": 3}}

    def test_an_older_checkpoint_that_adds_no_pack_is_left_out(self):
        first, second = self.refs(2)
        committed = {first: {"a": 1}, second: {"a": 1, "b": 2}}
        assert list(checkpoints_to_build_on(committed, {"a", "b"})) == [second]

    def test_all_packs_of_the_newest_checkpoint_are_chosen_but_few_of_older_ones(self):
        old, middle, newest = self.refs(3)
        many = {f"new {number}": 1 for number in range(3 * saving.MAX_OLDER_PACKS)}
        some = {f"middle {number}": 1 for number in range(saving.MAX_OLDER_PACKS)}
        committed = {old: {"old": 1}, middle: some, newest: many}
        useful = {"old", *some, *many}
        assert checkpoints_to_build_on(committed, useful) == {middle: some, newest: many}


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
        assert len(announcements(memory)) == 1
        run.save(2, state(large(2)))
        report = run.prune(ic.KeepLast(1))
        assert report.kept
        assert announcements(memory) == []

    def test_a_save_that_fails_for_another_reason_withdraws_its_announcement(self, memory):
        recording = Recording(memory)
        failing = Failing(recording, "put", "packs/", ic.BackendPermissionError("no"))
        store = ic.CheckpointStore.open(failing, create=True, options=SMALL, retry=None)
        with pytest.raises(ic.BackendPermissionError):
            store.begin_run("main").save(1, state(large(1)))
        assert announcements(memory) == []

    def test_a_checkpoint_with_more_packs_than_a_manifest_can_list_is_not_committed(
        self, memory, monkeypatch
    ):
        monkeypatch.setattr("input_checkpoint.format.manifest.MAX_HEADER_BYTES", 4000)
        options = ic.SaveOptions(pack_bytes=1)
        store = ic.CheckpointStore.open(memory, create=True, options=options)
        run = store.begin_run("main")
        with pytest.raises(ic.InputCheckpointError, match=r"101 packs.*SaveOptions\(pack_bytes"):
            run.save(1, state(*map(large, range(100))))
        assert (store.checkpoints(), store.history("main")) == ([], [])
        assert run.save(2, state(large(1))).step == 2
