"""The store keeps its promises on every kind of backend. integration/ runs the same over S3."""

from __future__ import annotations

import contextlib
import json
import threading
import tracemalloc
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, Optional

import numpy as np
import pytest

from input_checkpoint import (
    Backend,
    BackendNotFound,
    BackendUnavailable,
    CheckpointInfo,
    CheckpointNotFound,
    CheckpointRef,
    CheckpointStore,
    CorruptCheckpoint,
    IteratorState,
    KeepAll,
    KeepLast,
    RetentionPolicy,
    SaveOptions,
    UnsupportedFormat,
    WriterSuperseded,
)
from input_checkpoint import manifest as manifests
from input_checkpoint.backends_builtin import LocalBackend, MemoryBackend
from input_checkpoint.chunks import digest
from input_checkpoint.lineage import Lineage
from input_checkpoint.manifest import PackEntry
from input_checkpoint.reading import READ_BYTES
from input_checkpoint.refs import announcement_key
from input_checkpoint.state import Element
from tests.support.wrappers import Failing, LosingAnswers, Overtaken, Recording, contents

MIB = 1 << 20
STATE = [
    ("Iterator", [(b"slot 1", b"one"), (b"slot 2", b""), (b"slot 3", b"three" * 1000)]),
    ("scope/Iterator_1", [(b"", b"counter")]),
]


class KeepNothing(RetentionPolicy):
    """Keeps nothing, so that only what the store itself insists on stays."""

    def keep(self, checkpoints):
        return {}


def some_state(content: bytes = b"") -> list[IteratorState]:
    return [IteratorState("Iterator", state_of(content))]


def state_of(content: bytes) -> list[Element]:
    return [(b"slot 1", b"element"), (b"slot 2", content)]


def save(store: CheckpointStore, lineage: Lineage, *steps: int) -> list[CheckpointRef]:
    return [store.save(lineage, step, some_state(b"%d" % step)).ref for step in steps]


def loaded(store: CheckpointStore, checkpoint) -> list[tuple[str, list[Element]]]:
    return [(state.name, state.in_order()) for state in store.load(checkpoint)]


def steps(refs) -> list[tuple[int, int]]:
    return [(ref.lineage, ref.step) for ref in refs]


def pack_keys(backend: Backend) -> list[str]:
    return [info.key for info in backend.list("packs/")]


def die_before_commit(backend: Backend, lineage: Lineage, step: int) -> list[str]:
    """Save as a process does that dies between its last pack and its manifest; return the packs it leaves."""
    before = set(pack_keys(backend))
    died = BackendUnavailable("died")
    uncommitted = Failing(backend, "create", "checkpoints/", died)
    dying = CheckpointStore(Failing(uncommitted, "delete", "saves/", died))
    with pytest.raises(BackendUnavailable, match="died"):
        dying.save(lineage, step, some_state(b"lost"))
    return sorted(set(pack_keys(backend)) - before)


@pytest.fixture(params=["memory", "local"])
def backend(request, tmp_path: Path) -> Backend:
    if request.param == "memory":
        return MemoryBackend(f"memory://{uuid.uuid4().hex}")
    return LocalBackend(str(tmp_path / "store"))


@pytest.fixture
def store(backend: Backend) -> CheckpointStore:
    return CheckpointStore.open(backend, create=True)


@pytest.fixture
def lineage(store: CheckpointStore) -> Lineage:
    return store.open_lineage("main", parent=None)


@pytest.fixture
def memory() -> MemoryBackend:
    """For what does not depend on the kind of storage."""
    return MemoryBackend(f"memory://{uuid.uuid4().hex}")


class TestOpening:
    def test_a_place_without_a_store_is_not_found_and_nothing_is_written(self, backend):
        with pytest.raises(BackendNotFound, match="no checkpoint store"):
            CheckpointStore.open(backend)
        assert contents(backend) == {}

    def test_a_folder_that_does_not_exist_is_not_made_by_looking(self, tmp_path):
        with pytest.raises(BackendNotFound):
            CheckpointStore.open(str(tmp_path / "nowhere"))
        assert list(tmp_path.iterdir()) == []

    def test_a_store_that_was_made_can_be_opened(self, store, backend):
        assert CheckpointStore.open(backend).checkpoints() == []

    def test_making_a_store_again_keeps_what_it_holds(self, store, backend, lineage):
        save(store, lineage, 10)
        assert [info.step for info in CheckpointStore.open(backend, create=True).checkpoints()] == [10]

    def test_a_lost_answer_to_making_a_store_is_no_error(self, backend):
        CheckpointStore.open(LosingAnswers(backend), create=True)
        assert json.loads(contents(backend)["format.json"]) == {"format": "input-checkpoint", "version": 1}

    @pytest.mark.parametrize("create", [False, True])
    @pytest.mark.parametrize(
        "found",
        [
            b'{"format": "input-checkpoint", "version": 2}',
            b'{"format": "input-checkpoint", "version": "1"}',
            b'{"format": "something-else", "version": 1}',
            b'{"format": "input-checkpoint"}',
            b"[]",
            b"",
            b"\xff\x00",
        ],
    )
    def test_an_unknown_format_is_refused_before_anything_is_touched(self, memory, found, create):
        memory.put("format.json", found)
        memory.put("checkpoints/main/00000001/000000000010.manifest", b"of a later release")
        recording = Recording(memory)
        with pytest.raises(UnsupportedFormat):
            CheckpointStore.open(recording, create=create)
        assert recording.calls == [("get", "format.json")]

    def test_the_refusal_names_the_place_and_both_versions(self, memory):
        memory.put("format.json", b'{"format": "input-checkpoint", "version": 7}')
        with pytest.raises(UnsupportedFormat, match=rf"{memory.uri} .* version 7; .* version 1"):
            CheckpointStore.open(memory)


class TestSavingAndLoading:
    def test_a_checkpoint_comes_back_as_it_was_saved(self, store, lineage):
        info = store.save(lineage, 100, [IteratorState(name, elements) for name, elements in STATE])
        assert loaded(store, info) == STATE

    def test_a_checkpoint_comes_back_from_another_process(self, store, lineage, backend):
        info = store.save(lineage, 100, [IteratorState(name, elements) for name, elements in STATE])
        assert loaded(CheckpointStore.open(backend), info.ref) == STATE

    def test_a_state_of_many_packs_comes_back(self, store, lineage, backend):
        elements = [(b"slot %d" % number, bytes([number]) * MIB) for number in range(6)]
        small_packs = CheckpointStore(backend, SaveOptions(2 * MIB, 2, compress=False))
        info = small_packs.save(lineage, 1, [IteratorState("Iterator", iter(elements))])
        assert len(pack_keys(backend)) == 4  # three of payloads, one of their keys
        assert loaded(store, info) == [("Iterator", elements)]

    def test_an_empty_state_comes_back(self, store, lineage):
        assert loaded(store, store.save(lineage, 1, [])) == []

    def test_an_iterator_without_elements_comes_back(self, store, lineage):
        assert loaded(store, store.save(lineage, 1, [IteratorState("Iterator", [])])) == [("Iterator", [])]

    def test_elements_may_be_streams_that_are_read_once(self, store, lineage):
        states = (IteratorState(name, iter(elements)) for name, elements in STATE)
        assert loaded(store, store.save(lineage, 1, states)) == STATE

    def test_the_info_says_what_was_stored(self, store, lineage, backend):
        info = store.save(lineage, 100, [IteratorState(name, elements) for name, elements in STATE])
        packs = [found.size for found in backend.list("packs/")]
        assert (info.step, info.worker, info.lineage) == (100, "main", 1)
        assert (info.iterators, info.elements) == (("Iterator", "scope/Iterator_1"), 4)
        assert info.logical_bytes >= 3 + 5000 + 7 + 18
        assert info.stored_bytes == sum(packs)

    def test_a_header_longer_than_a_first_read_is_read(self, memory):
        CheckpointStore.open(memory, create=True)
        store = CheckpointStore(memory, SaveOptions(pack_bytes=1))
        states = [IteratorState(f"Iterator_{number}", [(b"", b"%d" % number)]) for number in range(300)]
        info = store.save(store.open_lineage("main", None), 1, states)
        assert manifests.header_end(memory.get(info.ref.key)) > manifests.HEAD_BYTES
        assert CheckpointStore.open(memory).checkpoints() == [info]

    def test_a_checkpoint_that_does_not_exist_is_not_found(self, store, lineage):
        with pytest.raises(CheckpointNotFound, match="step 70"):
            loaded(store, CheckpointRef("main", 1, 70))

    def test_a_checkpoint_that_was_removed_is_not_found(self, store, lineage, backend):
        (ref,) = save(store, lineage, 10)
        backend.delete([ref.key])
        with pytest.raises(CheckpointNotFound, match=store.uri):
            loaded(store, ref)

    @pytest.mark.parametrize("worker", ["", "a/b", "../up", "-x", "white space"])
    def test_a_worker_name_that_could_leave_its_place_is_refused(self, memory, worker):
        with pytest.raises(ValueError, match="not a worker name"):
            CheckpointStore.open(memory, create=True).open_lineage(worker, None)


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
        lineage = small_packs.open_lineage("main", None)
        assert self.peak(lambda: small_packs.save(lineage, 1, self.large_state())) < self.BOUND

    def test_a_large_state_is_loaded_with_bounded_memory(self, small_packs):
        info = small_packs.save(small_packs.open_lineage("main", None), 1, self.large_state())
        assert self.peak(lambda: self.load(small_packs, info, self.ELEMENTS)) < self.BOUND

    @pytest.mark.parametrize("compress", [True, False], ids=["that shrinks well", "of one payload repeated"])
    def test_a_state_is_loaded_in_no_more_memory_than_any_other(self, tmp_path, compress):
        place, count = LocalBackend(str(tmp_path / "store")), 256
        CheckpointStore.open(place, create=True)
        store = CheckpointStore(place, SaveOptions(concurrency=2, compress=compress))
        payloads = (bytes([n if compress else 1]) * MIB for n in range(count))
        state = IteratorState("Iterator", ((b"", payload) for payload in payloads))
        info = store.save(store.open_lineage("main", None), 1, [state])
        assert info.stored_bytes < 2 * MIB
        extents_at_once = 2 + 2
        # Half as much again for what is just being unpacked.
        assert self.peak(lambda: self.load(store, info, count)) < 1.5 * extents_at_once * READ_BYTES

    def load(self, store: CheckpointStore, info: CheckpointInfo, count: int) -> None:
        (state,) = store.load(info)
        sizes = [sum(len(payload) for _, payload in piece.elements) for piece in state.pieces]
        assert sum(sizes) == count * MIB
        assert max(sizes) <= READ_BYTES


class TestCommit:
    def test_a_checkpoint_exists_from_its_manifest_on(self, backend, store, lineage):
        die_before_commit(backend, lineage, 10)
        assert (store.checkpoints(), store.history("main"), store.workers()) == ([], [], [])
        assert pack_keys(backend)
        with pytest.raises(CheckpointNotFound):
            store.newest("main")

    def test_the_manifest_is_written_after_the_last_pack_is_stored(self, backend, store, lineage):
        recording = Recording(backend)
        small_packs = CheckpointStore(recording, SaveOptions(pack_bytes=1, concurrency=4))
        states = [IteratorState(f"Iterator_{number}", [(b"", b"%d" % number)]) for number in range(10)]
        info = small_packs.save(lineage, 10, states)
        kinds = ("packs/", "checkpoints/")
        writes = [
            call for call in recording.calls if call[0] in ("put", "create") and call[1].startswith(kinds)
        ]
        assert [verb for verb, _ in writes] == ["put"] * 10 + ["create"]
        assert writes[-1] == ("create", info.ref.key)

    def test_a_pack_that_cannot_be_stored_leaves_no_checkpoint(self, backend, store, lineage):
        failing = CheckpointStore(Failing(backend, "put", "packs/", BackendUnavailable("no answer")))
        with pytest.raises(BackendUnavailable, match="no answer"):
            save(failing, lineage, 10)
        assert store.checkpoints() == []

    def test_a_state_that_cannot_be_read_to_its_end_leaves_no_checkpoint(self, backend, store, lineage):
        def elements() -> Iterator[Element]:
            yield b"", b"first"
            raise RuntimeError("the session is gone")

        with pytest.raises(RuntimeError, match="the session is gone"):
            store.save(lineage, 10, [IteratorState("Iterator", elements())])
        assert store.checkpoints() == []

    def test_a_lost_answer_is_not_mistaken_for_another_writer(self, backend, store, lineage):
        (ref,) = save(CheckpointStore(LosingAnswers(backend)), lineage, 10)
        assert loaded(store, ref) == [("Iterator", state_of(b"10"))]

    def test_another_writers_manifest_supersedes_this_writer(self, backend, store, lineage):
        store.save(lineage, 10, some_state(b"theirs"))
        with pytest.raises(WriterSuperseded, match=r"step 10 .* another writer"):
            CheckpointStore(backend).save(lineage, 10, some_state(b"ours"))
        assert loaded(store, CheckpointRef("main", 1, 10)) == [("Iterator", state_of(b"theirs"))]

    def test_another_writers_manifest_supersedes_this_writer_though_an_answer_was_lost(
        self, backend, store, lineage
    ):
        store.save(lineage, 10, some_state(b"theirs"))
        with pytest.raises(WriterSuperseded):
            CheckpointStore(LosingAnswers(backend)).save(lineage, 10, some_state(b"ours"))

    def test_the_writer_of_an_older_lineage_is_superseded_at_its_next_commit(self, store, lineage):
        (ref,) = save(store, lineage, 10)
        store.open_lineage("main", parent=ref)
        with pytest.raises(WriterSuperseded):
            save(store, lineage, 20)

    def test_the_writer_of_an_older_lineage_is_told_before_it_uploads_everything_again(
        self, store, lineage, backend
    ):
        (ref,) = save(store, lineage, 10)
        store.open_lineage("main", parent=ref)
        before = pack_keys(backend)
        with pytest.raises(WriterSuperseded):
            save(store, lineage, 20)
        assert pack_keys(backend) == before

    def test_what_a_superseded_run_has_saved_is_not_remembered_for_its_saves(self, store, lineage):
        (ref,) = save(store, lineage, 10)
        second = store.open_lineage("main", parent=ref)
        save(store, second, 20)
        assert list(store._savers) == [("main", 2)]

    def test_the_writer_of_an_older_lineage_cannot_make_itself_visible_in_the_history(self, store, lineage):
        (ref,) = save(store, lineage, 10)
        successor = store.open_lineage("main", parent=ref)
        with contextlib.suppress(WriterSuperseded):
            save(store, lineage, 20)
        save(store, successor, 15)
        assert steps(store.history("main")) == [(1, 10), (2, 15)]


class TestLineages:
    def test_the_first_run_of_a_worker_is_lineage_one(self, lineage):
        assert (lineage.number, lineage.ancestors) == (1, ())

    def test_a_restart_opens_the_next_lineage(self, store, lineage):
        (ref,) = save(store, lineage, 10)
        assert store.open_lineage("main", parent=ref).number == 2

    def test_the_newest_lineage_is_the_one_opened_last(self, store, lineage):
        second = store.open_lineage("main", parent=None)
        assert store.newest_lineage("main") == second

    def test_a_worker_that_never_ran_has_no_lineage(self, store):
        assert store.newest_lineage("main") is None

    def test_a_lost_answer_does_not_open_a_second_lineage(self, backend, store):
        opened = CheckpointStore(LosingAnswers(backend)).open_lineage("main", None)
        assert opened.number == 1
        assert [info.key for info in backend.list("lineages/")] == [opened.key]

    def test_another_writers_lineage_is_left_alone_and_the_next_number_taken(self, backend, store):
        theirs: list[Lineage] = []
        overtaken = Overtaken(
            backend, "create", "lineages/", lambda: theirs.append(store.open_lineage("main", None))
        )
        ours = CheckpointStore(overtaken).open_lineage("main", None)
        assert (theirs[0].number, ours.number) == (1, 2)
        assert store.newest_lineage("main") == ours

    def test_of_many_writers_that_start_at_once_each_gets_a_lineage_of_its_own(self, store):
        start = threading.Barrier(8)

        def begin(_: int) -> int:
            start.wait()
            return store.open_lineage("main", None).number

        with ThreadPoolExecutor(8) as writers:
            assert sorted(writers.map(begin, range(8))) == list(range(1, 9))


class TestDamagedLineageRecord:
    """The record of the newest of two runs is damaged; the second went back to step 20 of the first."""

    @pytest.fixture
    def damaged(self, store, lineage, backend) -> Lineage:
        _, twenty, *_ = save(store, lineage, 10, 20, 30, 40)
        second = store.open_lineage("main", parent=twenty)
        save(store, second, 30, 40)
        backend.put(second.key, b"{}")
        return second

    def test_what_the_runs_have_saved_is_still_the_history(self, store, damaged):
        assert steps(store.history("main")) == [(1, 10), (1, 20), (2, 30), (2, 40)]

    def test_it_is_logged_with_its_place(self, store, damaged, caplog):
        store.history("main")
        assert f"{store.uri}: {damaged.key} is damaged" in caplog.text

    def test_before_its_run_has_saved_anything_the_history_is_that_of_the_run_before(
        self, store, lineage, backend
    ):
        (ref,) = save(store, lineage, 10)
        backend.put(store.open_lineage("main", parent=ref).key, b"{}")
        assert store.history("main") == [ref]

    def test_if_no_record_can_be_read_the_newest_run_is_still_in_the_history(
        self, store, lineage, backend, damaged
    ):
        backend.put(lineage.key, b"{}")
        assert steps(store.history("main")) == [(1, 10), (1, 20), (2, 30), (2, 40)]

    def test_a_record_that_has_gone_is_no_less_lost(self, store, backend, damaged):
        backend.delete([damaged.key])
        assert steps(store.history("main")) == [(1, 10), (1, 20), (2, 30), (2, 40)]

    @pytest.mark.parametrize("parent", [None, CheckpointRef("main", 1, 20), CheckpointRef("main", 2, 40)])
    def test_the_next_run_takes_a_number_above_it(self, store, damaged, parent):
        assert store.open_lineage("main", parent).number == 3

    def test_the_next_run_takes_a_number_above_one_that_has_gone(self, store, backend, damaged):
        backend.delete([damaged.key])
        assert store.open_lineage("main", None).number == 3

    def test_the_next_run_goes_on_from_what_the_lost_one_has_saved(self, store, damaged):
        third = store.open_lineage("main", parent=CheckpointRef("main", 2, 40))
        save(store, third, 50, 60)
        store.prune(KeepAll())
        assert steps(store.history("main")) == [(1, 10), (1, 20), (2, 30), (2, 40), (3, 50), (3, 60)]

    def test_one_may_go_back_to_what_a_run_with_a_damaged_record_left_behind(self, store, lineage, backend):
        (ref,) = save(store, lineage, 10)
        store.open_lineage("main", parent=None)
        backend.put(lineage.key, b"{}")
        assert store.open_lineage("main", parent=ref).parent == ref

    def test_its_run_goes_on(self, store, damaged):
        save(store, damaged, 50)
        assert store.newest("main").step == 50

    def test_it_supersedes_older_writers_and_is_named(self, store, lineage, damaged):
        with pytest.raises(WriterSuperseded, match=rf"lineage 2, whose record {damaged.key} cannot be read"):
            save(store, lineage, 50)

    def test_an_older_writer_may_not_prune_either(self, store, lineage, damaged):
        with pytest.raises(WriterSuperseded, match=f"{damaged.key} cannot be read"):
            store.prune(KeepLast(1), "main", lineage=lineage)

    def test_a_run_whose_record_is_damaged_ends_a_prune_that_is_going_on(self, store, lineage, backend):
        _, newest = save(store, lineage, 10, 20)

        def a_run_begins() -> None:
            backend.put(store.open_lineage("main", parent=newest).key, b"{}")

        overtaken = Overtaken(backend, "list", "pins/", a_run_begins)
        with pytest.raises(WriterSuperseded, match="has begun"):
            CheckpointStore(overtaken).prune(KeepNothing(), "main")
        assert [info.step for info in store.checkpoints()] == [10, 20]

    def test_a_prune_by_others_keeps_every_checkpoint_and_every_record(self, store, backend, damaged):
        before = contents(backend)
        report = store.prune(KeepNothing(), orphan_age=0)
        assert set(report.kept.values()) == {"the record of lineage 2 cannot be read"}
        assert contents(backend) == before

    def test_a_prune_by_others_still_removes_what_a_crash_has_left(self, store, backend, damaged):
        left = "packs/main/00000001/000000000015-dead0000-00000.pack"
        backend.put(left, b"left")
        assert store.prune(KeepNothing(), orphan_age=0).removed_packs == (left,)

    def test_its_own_run_prunes_as_ever(self, store, damaged):
        store.prune(KeepLast(1), "main", lineage=damaged)
        assert steps(store.history("main")) == [(2, 40)]

    def test_a_run_that_begins_in_the_same_moment_with_a_damaged_record_is_passed_over(self, backend, store):
        def theirs() -> None:
            backend.put(store.open_lineage("main", None).key, b"{}")

        overtaken = Overtaken(backend, "create", "lineages/", theirs)
        assert CheckpointStore(overtaken).open_lineage("main", None).number == 2

    def test_one_that_was_outlived_and_removed_while_it_was_looked_for_is_not_lost(self, backend, store):
        first = store.open_lineage("main", None)

        def outlived() -> None:
            store.open_lineage("main", None)
            backend.delete([first.key])

        overtaken = Overtaken(backend, "get", first.key, outlived)
        found = CheckpointStore(overtaken).newest_lineage("main")
        assert found == store.newest_lineage("main")
        assert (found.number, type(found)) == (2, Lineage)


class TestListing:
    def test_checkpoints_are_listed_from_old_to_new(self, store, lineage):
        save(store, lineage, 9, 10, 100)
        assert [info.step for info in store.checkpoints()] == [9, 10, 100]

    def test_checkpoints_of_one_worker_or_of_all_are_listed(self, store):
        for worker in ("worker-1", "chief-0", "worker-10"):
            save(store, store.open_lineage(worker, None), 10)
        assert [info.worker for info in store.checkpoints()] == ["chief-0", "worker-1", "worker-10"]
        assert [info.worker for info in store.checkpoints("worker-1")] == ["worker-1"]
        assert store.workers() == ["chief-0", "worker-1", "worker-10"]

    def test_objects_that_are_no_checkpoints_are_not_listed(self, store, lineage, backend):
        save(store, lineage, 10)
        for key in ("checkpoints/main/notes", "checkpoints/main/00000001/000000000020.manifest.tmp"):
            backend.put(key, b"")
        assert [info.step for info in store.checkpoints()] == [10]

    def test_the_newest_is_the_last_of_the_history(self, store, lineage):
        save(store, lineage, 10, 20)
        assert store.newest("main").step == 20

    def test_there_is_no_newest_of_a_worker_that_saved_nothing(self, store, lineage):
        with pytest.raises(CheckpointNotFound, match=f"{store.uri}.*'main'"):
            store.newest("main")

    def test_what_somebody_else_commits_is_seen_at_once(self, store, lineage, backend):
        assert store.checkpoints() == []
        save(CheckpointStore(backend), lineage, 10)
        assert [info.step for info in store.checkpoints()] == [10]

    def test_a_listing_reads_each_manifest_once(self, memory):
        store = CheckpointStore.open(memory, create=True)
        save(store, store.open_lineage("main", None), 10, 20)
        recording = Recording(memory)
        reader = CheckpointStore(recording)
        assert reader.checkpoints() == reader.checkpoints()
        assert len(recording.keys("get")) == 2

    def test_what_is_no_longer_there_is_forgotten(self, store, lineage, backend):
        first, _ = save(store, lineage, 10, 20)
        backend.delete([first.key])
        store.checkpoints()
        with pytest.raises(CheckpointNotFound):
            store.info(first)

    def test_headers_do_not_pile_up_in_a_long_run(self, store, lineage):
        for step in range(10, 400, 10):
            save(store, lineage, step)
            store.prune(KeepLast(2), "main", lineage=lineage)
        assert len(store._catalog._headers) <= 3

    def test_listing_one_worker_forgets_nothing_of_another(self, memory):
        store = CheckpointStore.open(memory, create=True)
        for worker in ("chief-0", "worker-1"):
            save(store, store.open_lineage(worker, None), 10)
        recording = Recording(memory)
        reader = CheckpointStore(recording)
        reader.checkpoints()
        read = len(recording.keys("get"))
        reader.checkpoints("worker-1")
        reader.checkpoints()
        assert len(recording.keys("get")) == read

    def test_a_damaged_manifest_is_left_out_of_the_list(self, store, lineage, backend):
        first, _ = save(store, lineage, 10, 20)
        backend.put(first.key, b"damaged")
        assert [info.step for info in CheckpointStore(backend).checkpoints()] == [20]


class TestGoingBack:
    @pytest.fixture
    def second(self, store, lineage) -> Lineage:
        """A run that went back to step 20 after the first had come to step 40."""
        _, twenty, *_ = save(store, lineage, 10, 20, 30, 40)
        return store.open_lineage("main", parent=twenty)

    def test_what_came_after_is_no_longer_in_the_history(self, store, second):
        assert steps(store.history("main")) == [(1, 10), (1, 20)]
        assert store.newest("main").step == 20

    def test_history_goes_on_from_there(self, store, second):
        save(store, second, 25, 30)
        assert steps(store.history("main")) == [(1, 10), (1, 20), (2, 25), (2, 30)]

    @pytest.mark.parametrize("own", [(), (25,)])
    def test_what_came_after_stays_stored_until_two_commits(self, store, second, own):
        save(store, second, *own)
        report = store.prune(KeepAll())
        assert report.removed == ()
        assert {kept.step for kept, reason in report.kept.items() if reason == "not yet given up"} == {30, 40}

    def test_what_came_after_is_removed_after_two_commits(self, store, second, backend):
        save(store, second, 25, 30)
        assert steps(store.prune(KeepAll()).removed) == [(1, 30), (1, 40)]
        assert steps(info.ref for info in store.checkpoints()) == [(1, 10), (1, 20), (2, 25), (2, 30)]
        assert len(pack_keys(backend)) == 4

    def test_starting_afresh_abandons_everything(self, store, second):
        third = store.open_lineage("main", parent=None)
        assert store.history("main") == []
        save(store, third, 5, 6)
        store.prune(KeepAll())
        assert steps(info.ref for info in store.checkpoints()) == [(3, 5), (3, 6)]


class TestPruning:
    def test_what_the_policy_does_not_keep_is_removed_with_its_packs(self, store, lineage, backend):
        save(store, lineage, 10, 20, 30)
        report = store.prune(KeepLast(2))
        assert (steps(report.removed), len(report.removed_packs)) == ([(1, 10)], 1)
        assert [info.step for info in store.checkpoints()] == [20, 30]
        assert len(pack_keys(backend)) == 2

    def test_what_is_kept_can_be_loaded(self, store, lineage):
        *_, kept = save(store, lineage, 10, 20, 30)
        store.prune(KeepLast(1))
        assert loaded(store, kept) == [("Iterator", state_of(b"30"))]

    def test_the_report_gives_a_reason_for_all_that_stays(self, store, lineage):
        save(store, lineage, 10, 20, 30)
        kept = store.prune(KeepLast(2)).kept
        assert {ref.step: reason for ref, reason in kept.items()} == {
            20: "one of the last 2",
            30: "one of the last 2",
        }

    def test_the_newest_is_never_removed(self, store, lineage):
        save(store, lineage, 10, 20)
        store.prune(KeepNothing())
        assert [info.step for info in store.checkpoints()] == [20]

    def test_the_one_that_a_run_resumed_from_is_kept_until_it_has_committed(self, store, lineage):
        first, _ = save(store, lineage, 10, 20)
        store.open_lineage("main", parent=first)
        store.prune(KeepNothing())
        assert steps(store.history("main")) == [(1, 10)]

    def test_pruning_again_removes_nothing_more(self, store, lineage, backend):
        save(store, lineage, 10, 20, 30)
        store.prune(KeepLast(2))
        before = contents(backend)
        assert store.prune(KeepLast(2)).removed == ()
        assert contents(backend) == before

    def test_a_dry_run_reports_the_same_and_removes_nothing(self, store, lineage, backend):
        save(store, lineage, 10, 20, 30)
        before = contents(backend)
        dry = store.prune(KeepLast(1), dry_run=True)
        assert contents(backend) == before
        assert dry == store.prune(KeepLast(1))

    def test_only_the_worker_asked_for_is_pruned(self, store):
        for worker in ("worker-1", "worker-10"):
            save(store, store.open_lineage(worker, None), 10, 20)
        store.prune(KeepLast(1), "worker-1")
        assert [(info.worker, info.step) for info in store.checkpoints()] == [
            ("worker-1", 20),
            ("worker-10", 10),
            ("worker-10", 20),
        ]

    def test_every_worker_is_pruned_if_none_is_named(self, store):
        for worker in ("worker-1", "worker-2"):
            save(store, store.open_lineage(worker, None), 10, 20)
        assert [(ref.worker, ref.step) for ref in store.prune(KeepLast(1)).removed] == [
            ("worker-1", 10),
            ("worker-2", 10),
        ]

    def test_an_empty_store_is_pruned_without_complaint(self, store):
        assert store.prune(KeepLast(1)).removed == ()

    def test_manifests_are_removed_before_the_packs_they_name(self, store, lineage, backend):
        save(store, lineage, 10, 20, 30)
        recording = Recording(backend)
        CheckpointStore(recording).prune(KeepLast(1))
        assert [key.split("/")[0] for key in recording.keys("delete")] == ["checkpoints"] * 2 + ["packs"] * 2

    def test_a_prune_that_breaks_off_leaves_no_checkpoint_without_its_packs(self, store, lineage, backend):
        save(store, lineage, 10, 20, 30)
        breaking = Failing(backend, "delete", "packs/", BackendUnavailable("no answer"))
        with pytest.raises(BackendUnavailable):
            CheckpointStore(breaking).prune(KeepLast(1))
        assert [loaded(store, info) for info in store.checkpoints()] == [[("Iterator", state_of(b"30"))]]

    def test_packs_that_a_broken_prune_left_go_once_they_are_old_enough(self, store, lineage, backend):
        save(store, lineage, 10, 20, 30)
        breaking = Failing(backend, "delete", "packs/", BackendUnavailable("no answer"))
        with pytest.raises(BackendUnavailable):
            CheckpointStore(breaking).prune(KeepLast(1))
        assert store.prune(KeepLast(1)).removed_packs == ()
        assert len(store.prune(KeepLast(1), orphan_age=0).removed_packs) == 2
        assert len(pack_keys(backend)) == 1

    def test_the_traces_of_a_run_that_died_are_removed_with_its_packs(self, store, lineage, backend):
        (ref,) = save(store, lineage, 10)
        die_before_commit(backend, lineage, 20)
        assert list(backend.list("saves/"))
        store.open_lineage("main", parent=ref)
        store.prune(KeepAll(), orphan_age=0)
        assert list(backend.list("saves/")) == []

    def test_a_save_announces_itself_before_it_builds_on_anything_and_until_it_has_committed(
        self, store, lineage, backend
    ):
        recording = Recording(backend)
        info = CheckpointStore(recording).save(lineage, 10, some_state())
        changes = [(verb, key.split("/")[0]) for verb, key in recording.calls if verb != "get"]
        kept = [change for change in changes if change[1] != "lineages"]
        assert kept == [
            ("put", "saves"),
            ("list", "checkpoints"),
            ("put", "packs"),
            ("create", "checkpoints"),
            ("delete", "saves"),
        ]
        assert store.info(info.ref) == info

    def test_what_a_worker_left_that_died_before_it_committed_anything_is_removed(self, store, backend):
        left = die_before_commit(backend, store.open_lineage("worker-3", None), 10)
        store.open_lineage("worker-3", None)
        assert list(store.prune(KeepAll(), orphan_age=0).removed_packs) == left
        assert (pack_keys(backend), list(backend.list("saves/")), store.workers()) == ([], [], [])

    def test_data_of_a_worker_of_which_nothing_else_is_left_is_removed(self, store, backend):
        backend.put("packs/worker-3/00000001/000000000010-dead0000-00000.pack", b"left")
        store.prune(KeepAll(), orphan_age=0)
        assert pack_keys(backend) == []

    def test_packs_in_flight_of_a_worker_that_has_not_committed_yet_are_spared(self, store, backend):
        in_flight = die_before_commit(backend, store.open_lineage("worker-3", None), 10)
        store.prune(KeepAll(), orphan_age=0)
        assert pack_keys(backend) == in_flight

    def test_objects_under_a_name_that_no_worker_can_have_are_left_alone(self, store, backend):
        theirs = "packs/-x/00000001/000000000010-dead0000-00000.pack"
        backend.put(theirs, b"theirs")
        store.prune(KeepAll(), orphan_age=0)
        assert pack_keys(backend) == [theirs]

    def test_packs_that_a_dead_run_left_are_removed(self, store, lineage, backend):
        (ref,) = save(store, lineage, 10)
        orphans = die_before_commit(backend, lineage, 20)
        store.open_lineage("main", parent=ref)
        assert list(store.prune(KeepAll(), orphan_age=0).removed_packs) == orphans
        assert not set(orphans) & set(pack_keys(backend))

    def test_packs_in_flight_of_the_newest_run_are_spared(self, store, lineage, backend):
        save(store, lineage, 10)
        in_flight = die_before_commit(backend, lineage, 20)
        assert store.prune(KeepAll(), orphan_age=0).removed_packs == ()
        assert set(in_flight) <= set(pack_keys(backend))

    def test_a_writer_prunes_beside_its_own_save_and_spares_what_that_builds_on(
        self, store, lineage, backend
    ):
        shared, new = (b"slot 1", b"x" * 5000), (b"slot 2", b"y" * 5000)
        store.save(lineage, 10, [IteratorState("Iterator", [shared])])
        save(store, lineage, 20)
        reports = []

        def elements_while_a_prune_runs() -> Iterator[Element]:
            yield from (shared, new)
            reports.append(store.prune(KeepLast(1), "main", lineage=lineage, orphan_age=0))

        info = store.save(lineage, 30, [IteratorState("Iterator", elements_while_a_prune_runs())])
        assert steps(reports[0].removed) == [(1, 10)]
        assert loaded(store, info) == [("Iterator", [shared, new])]

    def test_what_the_save_in_flight_keeps_from_going_goes_with_the_next_prune(self, store, lineage, backend):
        save(store, lineage, 10)

        def elements_while_a_prune_runs() -> Iterator[Element]:
            yield (b"slot 1", b"new")
            store.prune(KeepLast(1), "main", lineage=lineage)

        save(store, lineage, 20)
        store.save(lineage, 30, [IteratorState("Iterator", elements_while_a_prune_runs())])
        assert len(pack_keys(backend)) == 3
        store.prune(KeepLast(1), "main", lineage=lineage)
        assert [key.split("/")[-1][:12] for key in pack_keys(backend)] == ["000000000030"]

    def test_saves_that_follow_without_a_pause_do_not_keep_old_data_alive(self, store, lineage, backend):
        def elements_while_a_prune_runs(step: int) -> Iterator[Element]:
            yield (b"slot", b"%d" % step)
            store.prune(KeepLast(2), "main", lineage=lineage)

        for step in range(10, 200, 10):
            store.save(lineage, step, [IteratorState("Iterator", elements_while_a_prune_runs(step))])
            assert len(pack_keys(backend)) <= 4

    def test_what_the_pruning_writer_left_announced_is_no_obstacle_to_it(self, store, lineage, backend):
        save(store, lineage, 10)
        backend.put(announcement_key(CheckpointRef("main", 1, 15), "0" * 8), b"")
        save(store, lineage, 20)
        assert len(store.prune(KeepLast(1), "main", lineage=lineage).removed_packs) == 1
        assert list(backend.list("saves/")) == []

    def test_packs_in_flight_of_another_worker_are_spared(self, store, lineage, backend):
        save(store, lineage, 10)
        other = store.open_lineage("worker-1", None)
        in_flight = die_before_commit(backend, other, 20)
        save(store, store.open_lineage("main", parent=None), 10, 20)
        store.prune(KeepLast(1))
        assert set(in_flight) <= set(pack_keys(backend))

    def test_a_checkpoint_whose_manifest_cannot_be_read_is_kept_with_its_packs(self, store, lineage, backend):
        damaged, _ = save(store, lineage, 10, 20)
        backend.put(damaged.key, b"damaged")
        report = CheckpointStore(backend).prune(KeepLast(1))
        assert (report.removed, report.kept[damaged]) == ((), "its manifest cannot be read")
        assert len(pack_keys(backend)) == 2

    def test_what_a_damaged_manifest_may_name_is_spared_since_its_writer_goes_on_from_it(
        self, store, lineage, backend
    ):
        shared = (b"slot", b"x" * 5000)
        for step, elements in ((10, [shared]), (20, []), (30, [shared])):
            newest = store.save(lineage, step, [IteratorState("Iterator", elements)])
        backend.put(newest.ref.key, b"damaged")
        CheckpointStore(backend).prune(KeepLast(1), orphan_age=0)
        info = store.save(lineage, 40, [IteratorState("Iterator", [shared])])
        assert loaded(store, info) == [("Iterator", [shared])]

    def test_a_damaged_newest_does_not_take_the_place_of_a_readable_one(self, store, lineage, backend):
        _, good, damaged = save(store, lineage, 10, 20, 30)
        backend.put(damaged.key, b"damaged")
        assert set(CheckpointStore(backend).prune(KeepLast(1)).kept) == {good, damaged}

    def test_nothing_is_removed_if_a_manifest_cannot_be_asked_for(self, store, lineage, backend):
        first, *_ = save(store, lineage, 10, 20, 30)
        before = contents(backend)
        failing = Failing(backend, "get", first.key, BackendUnavailable("no answer"))
        with pytest.raises(BackendUnavailable):
            CheckpointStore(failing).prune(KeepLast(1))
        assert contents(backend) == before

    def test_objects_of_somebody_else_are_left_alone(self, store, lineage, backend):
        save(store, lineage, 10, 20)
        theirs = ["notes.txt", "packs/main/notes", "checkpoints/main/notes"]
        for key in theirs:
            backend.put(key, b"theirs")
        store.prune(KeepNothing())
        assert set(theirs) <= set(contents(backend))

    def test_a_superseded_writer_that_prunes_spares_what_its_successor_commits_meanwhile(
        self, store, lineage, backend
    ):
        _, newest = save(store, lineage, 10, 20)

        def successor_commits() -> None:
            save(store, store.open_lineage("main", parent=newest), 30)

        overtaken = Overtaken(backend, "list", "checkpoints/", successor_commits)
        CheckpointStore(overtaken).prune(KeepAll(), "main")
        assert loaded(store, CheckpointRef("main", 2, 30)) == [("Iterator", state_of(b"30"))]


class TestVerifying:
    @pytest.fixture
    def packs(self, memory) -> int:
        """Of a store whose payloads lie in a pack each."""
        CheckpointStore.open(memory, create=True)
        store = CheckpointStore(memory, SaveOptions(pack_bytes=1, compress=False))
        elements = [(b"slot %d" % number, bytes([number]) * 3000) for number in range(40)]
        store.save(store.open_lineage("main", None), 10, [IteratorState("Iterator", elements)])
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

    def test_a_pack_that_is_missing_is_found_without_reading_data(self, store, lineage, backend):
        (ref,) = save(store, lineage, 10)
        backend.delete(pack_keys(backend))
        assert list(store.verify(read_data=False).problems) == [ref]

    def test_what_checkpoints_share_is_read_once(self, store, lineage, backend):
        for step in (10, 20, 30):
            store.save(lineage, step, [IteratorState("Iterator", [(b"slot", b"x" * 5000)])])
        report = store.verify()
        assert len(report.checked) == 3
        assert report.read_bytes == sum(info.size for info in backend.list("packs/"))

    def test_what_a_checkpoint_holds_many_times_is_read_once(self, store, lineage, backend):
        same = [(b"slot %d" % number, b"x" * 5000) for number in range(10)]
        store.save(lineage, 10, [IteratorState("Iterator", same)])
        assert store.verify().read_bytes == sum(info.size for info in backend.list("packs/"))

    @pytest.mark.parametrize("parts", [0, 1, 3, 77, 2**32 - 1])
    def test_a_chunk_of_another_number_of_elements_than_listed_is_a_problem(
        self, store, lineage, backend, parts
    ):
        (ref,) = save(store, lineage, 10)
        tamper(backend, ref, elements=parts)
        assert list(store.verify().problems) == [ref]

    def test_so_it_is_if_another_checkpoint_lists_it_rightly(self, store, lineage, backend):
        for step in (10, 20):
            store.save(lineage, step, some_state())
        tamper(backend, CheckpointRef("main", 1, 20), elements=3)
        assert [ref.step for ref in store.verify().problems] == [20]

    def test_numbers_that_do_not_add_up_are_found_without_reading_data(self, store, lineage, backend):
        (ref,) = save(store, lineage, 10)
        content = manifests.decode(backend.get(ref.key))
        body = content.table.encode()
        entry = replace(content.header.iterators[0], elements=5)
        backend.put(ref.key, manifests.encode(replace(content.header, iterators=(entry,)), body))
        assert list(store.verify(read_data=False).problems) == [ref]


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flip(data: bytes) -> bytes:
    return data[:-3] + bytes([data[-3] ^ 0x04]) + data[-2:]


def empty(data: bytes) -> bytes:
    return b""


def replace_all(data: bytes) -> bytes:
    return b"something else"


class TestDamage:
    @pytest.fixture
    def damaged(self, store, lineage) -> CheckpointInfo:
        """A checkpoint that a test is about to damage."""
        return store.save(lineage, 100, [IteratorState(name, elements) for name, elements in STATE])

    @pytest.mark.parametrize("harm", [cut, flip, empty, replace_all])
    @pytest.mark.parametrize("which", ["pack", "manifest"])
    def test_it_is_reported_with_place_and_step(self, store, backend, damaged, which, harm):
        key = damaged.ref.key if which == "manifest" else pack_keys(backend)[0]
        backend.put(key, harm(backend.get(key)))
        with pytest.raises(CorruptCheckpoint) as raised:
            loaded(store, damaged)
        assert store.uri in str(raised.value)
        assert "step 100" in str(raised.value)

    def test_a_missing_pack_is_reported_with_place_step_and_pack(self, store, backend, damaged):
        (pack,) = pack_keys(backend)
        backend.delete([pack])
        with pytest.raises(CorruptCheckpoint) as raised:
            loaded(store, damaged)
        assert all(word in str(raised.value) for word in (store.uri, "step 100", pack))

    def test_the_manifest_of_another_checkpoint_is_reported(self, store, backend, lineage, damaged):
        (other,) = save(store, lineage, 200)
        backend.put(damaged.ref.key, backend.get(other.key))
        with pytest.raises(CorruptCheckpoint, match="step 100"):
            loaded(store, damaged)

    def test_a_chunk_with_another_number_of_elements_than_listed_is_reported(self, store, backend, damaged):
        tamper(backend, damaged.ref, elements=77)
        with pytest.raises(CorruptCheckpoint, match="step 100"):
            loaded(store, damaged)

    def test_a_claim_of_billions_of_elements_is_refused_without_taking_memory(self, store, backend, damaged):
        tamper(backend, damaged.ref, elements=2**32 - 1)
        tracemalloc.start()
        with pytest.raises(CorruptCheckpoint, match="step 100"):
            loaded(store, damaged)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        # Far below billions, and above what a server in this process may take meanwhile.
        assert peak < 64 * MIB

    def test_storage_that_does_not_answer_is_not_reported_as_damage(self, backend, damaged):
        failing = Failing(backend, "get", "packs/", BackendUnavailable("no answer"))
        with pytest.raises(BackendUnavailable):
            loaded(CheckpointStore(failing), damaged)

    def test_other_checkpoints_can_still_be_loaded(self, store, backend, lineage, damaged):
        (other,) = save(store, lineage, 200)
        backend.put(damaged.ref.key, b"damaged")
        assert loaded(store, other) == [("Iterator", state_of(b"200"))]


def tamper(backend: Backend, ref: CheckpointRef, pack: Optional[PackEntry] = None, **row: int) -> None:
    """Rewrite a manifest to one iterator of one chunk, with checksums that are right."""
    content = manifests.decode(backend.get(ref.key))
    changes = {name: np.array([value], np.uint64) for name, value in row.items()}
    table = replace(content.table.slice(0, 1), **changes)
    body = table.encode()
    entry = replace(content.header.iterators[0], key_chunks=0, chunks=1)
    if "elements" in row:
        entry = replace(entry, elements=row["elements"])
    header = replace(
        content.header,
        iterators=(entry,),
        packs=(pack or content.header.packs[0],),
        chunks=1,
        table_bytes=len(body),
        table_digest=digest(body).hex(),
    )
    backend.put(ref.key, manifests.encode(header, body))


@pytest.mark.parametrize("backend", ["memory", "local"], indirect=True)
class TestForgery:
    """A stranger's manifest, whose checksums are right."""

    @pytest.fixture
    def ref(self, store, lineage) -> CheckpointRef:
        return save(store, lineage, 100)[0]

    @pytest.mark.parametrize(
        "pack",
        [
            pytest.param("../../elsewhere", id="above"),
            pytest.param("/absolute", id="absolute"),
            pytest.param("", id="nowhere"),
            pytest.param("packs/main\x00", id="no name"),
        ],
    )
    def test_a_forged_manifest_that_names_a_place_outside_is_refused(self, store, backend, ref, pack):
        tamper(backend, ref, pack=PackEntry(pack, 100, True), offset=0, stored=10)
        with pytest.raises(CorruptCheckpoint, match="step 100"):
            loaded(store, ref)

    @pytest.mark.parametrize("offset", [10**6, 2**60, 2**63, 2**64 - 20])
    def test_a_forged_manifest_that_points_far_behind_its_pack_is_refused(self, store, backend, ref, offset):
        tamper(backend, ref, pack=PackEntry(pack_keys(backend)[0], 2**61, True), offset=offset)
        with pytest.raises(CorruptCheckpoint, match="step 100"):
            loaded(store, ref)
