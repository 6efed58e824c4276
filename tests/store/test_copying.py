"""A copy verifies everything, and the run continues at the target as if nothing had happened."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import uuid
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard

import input_checkpoint as ic
from input_checkpoint.backends.local import LocalBackend
from input_checkpoint.backends.memory import MemoryBackend
from input_checkpoint.checkpoint import PackEntry
from input_checkpoint.format.chunking import digest
from input_checkpoint.format.keys import manifest_key
from input_checkpoint.format.manifest import decode_manifest, encode_manifest
from input_checkpoint.store.run import Run
from tests.support.false_answers import CUTS, FalseListings, Named
from tests.support.memory import peak_memory
from tests.support.stores import announcements, loaded
from tests.support.training import make_estimator, shuffled_ids, trained_on, uninterrupted
from tests.support.wrappers import Failing, Overtaken, Recording, Wrapped, contents

ROOT = Path(__file__).parents[2]

COPY_AND_DIE = """
import os, signal, sys
import input_checkpoint as ic
from input_checkpoint.backends.local import LocalBackend
from tests.support.wrappers import BeforeWrites

source, target, left = sys.argv[1], sys.argv[2], int(sys.argv[3])

def count(key):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

store = ic.CheckpointStore.open(BeforeWrites(LocalBackend(target), count), create=True, retry=None)
ic.CheckpointStore.open(source).copy_to(store)
"""


def payload(number: int) -> bytes:
    """Bytes that do not compress, the same for the same number."""
    return random.Random(number).randbytes(3200)


def state(*numbers: int) -> list[ic.IteratorState]:
    return [ic.IteratorState("Iterator", [(b"slot %d" % number, payload(number)) for number in numbers])]


def new_backend() -> MemoryBackend:
    return MemoryBackend(f"memory://{uuid.uuid4().hex}")


def open_store(backend: ic.Backend) -> ic.CheckpointStore:
    options = ic.SaveOptions(pack_bytes=6000)
    return ic.CheckpointStore.open(backend, create=True, options=options, retry=None)


def assert_same_objects(source: ic.Backend, target: ic.Backend) -> None:
    """Check that a copy is complete and that neither backend still holds an announcement."""
    copied = contents(target)
    assert copied == contents(source)
    assert announcements(target) == []


class FailingFromWrite(Wrapped):
    """Fails every write from the n-th on."""

    def __init__(self, inner: ic.Backend, number: int) -> None:
        super().__init__(inner)
        self._left = number

    def before(self, verb: str, key: str) -> None:
        if verb in ("put", "create"):
            self._left -= 1
            if self._left <= 0:
                raise ic.BackendUnavailableError("gone")


@pytest.fixture
def source_backend() -> MemoryBackend:
    return new_backend()


@pytest.fixture
def target_backend() -> MemoryBackend:
    return new_backend()


@pytest.fixture
def source(source_backend: MemoryBackend) -> ic.CheckpointStore:
    """A store with two workers, a restart from an older step, shared chunks, a pin and compressible data."""
    store = open_store(source_backend)
    first = store.begin_run("main")
    kept = first.save(10, state(1, 2, 3))
    first.save(20, state(2, 3, 4))
    second = store.begin_run("main", kept.ref)
    second.save(20, state(3, 5, 6))
    second.save(30, [*state(5, 6, 7), ic.IteratorState("Other", [(b"slot", b"zeros" * 5000)])])
    other = store.begin_run("worker-1", None)
    other.save(10, state(8, 9))
    store.pin(kept, note="best so far")
    return store


class TestCompleteCopy:
    def test_the_target_holds_the_same_objects(self, source, source_backend, target_backend):
        report = source.copy_to(open_store(target_backend))
        assert report.ok
        assert_same_objects(source_backend, target_backend)

    def test_the_report_lists_the_copied_checkpoints_from_old_to_new(self, source, target_backend):
        report = source.copy_to(open_store(target_backend))
        assert [(ref.worker, ref.lineage, ref.step) for ref in report.copied] == [
            ("main", 1, 10),
            ("main", 1, 20),
            ("main", 2, 20),
            ("main", 2, 30),
            ("worker-1", 1, 10),
        ]
        assert (report.present, report.problems) == ((), {})

    def test_history_and_pins_are_copied(self, source, target_backend):
        target = open_store(target_backend)
        source.copy_to(target)
        assert target.history("main") == source.history("main")
        assert target.pins() == source.pins()

    def test_every_copied_checkpoint_verifies_and_can_be_loaded(self, source, target_backend):
        target = open_store(target_backend)
        source.copy_to(target)
        assert target.verify().problems == {}
        for info in source.checkpoints():
            assert loaded(target, info.ref) == loaded(source, info.ref)

    def test_a_pack_that_checkpoints_share_is_copied_once(self, source, target_backend):
        recording = Recording(target_backend)
        report = source.copy_to(open_store(recording))
        packs = [key for key in recording.keys("create") if key.startswith("packs/")]
        assert len(packs) == len(set(packs))
        assert report.copied_bytes == sum(info.size for info in target_backend.list("packs/"))

    def test_a_manifest_is_written_after_its_packs_and_after_older_manifests(self, source, target_backend):
        recording = Recording(target_backend)
        source.copy_to(open_store(recording), worker="main")
        writes = [key for verb, key in recording.calls if verb in ("put", "create")]
        manifests = [key for key in writes if key.startswith("checkpoints/")]
        assert manifests == sorted(manifests)
        for info in source.checkpoints("main"):
            packs = [pack.key for pack in source._catalog.header(info.ref).packs]
            assert max(map(writes.index, packs)) < writes.index(manifest_key(info.ref))

    def test_a_source_that_is_down_is_no_read_only_source(self, source, source_backend, target_backend):
        down = Failing(source_backend, "put", "", ic.BackendUnavailableError("down"))
        with pytest.raises(ic.BackendUnavailableError):
            open_store(down).copy_to(open_store(target_backend))

    def test_a_read_only_source_can_be_copied(self, source, source_backend, target_backend):
        read_only = Failing(source_backend, "put", "", ic.BackendPermissionError("read only"))
        assert open_store(read_only).copy_to(open_store(target_backend)).ok
        assert_same_objects(source_backend, target_backend)


class TestChosenCheckpoints:
    def test_only_the_chosen_checkpoints_are_copied_with_everything_that_they_need(
        self, source, target_backend
    ):
        chosen = source.newest("main")
        target = open_store(target_backend)
        assert source.copy_to(target, [chosen]).copied == (chosen.ref,)
        assert target.checkpoints() == [chosen]
        assert target.verify().problems == {}

    def test_only_the_chosen_worker_is_copied(self, source, target_backend):
        target = open_store(target_backend)
        source.copy_to(target, worker="worker-1")
        assert target.workers() == ["worker-1"]

    def test_a_checkpoint_that_does_not_exist_is_reported(self, source, target_backend):
        nothing = ic.CheckpointRef("main", 2, 99)
        report = source.copy_to(open_store(target_backend), [nothing])
        assert not report.ok
        assert "does not exist" in report.problems[nothing]

    def test_a_store_cannot_be_copied_to_itself(self, source, source_backend):
        with pytest.raises(ValueError, match="to itself"):
            source.copy_to(open_store(source_backend))

    def test_an_empty_store_can_be_copied(self, source_backend, target_backend):
        assert open_store(source_backend).copy_to(open_store(target_backend)).ok


class TestPlaces:
    """Whether two stores are one is not told by their URIs."""

    def test_a_folder_under_another_name_is_the_same_place(self, tmp_path):
        store = open_store(LocalBackend(str(tmp_path / "store")))
        store.begin_run("main").save(10, state(1))
        (tmp_path / "link").symlink_to(tmp_path / "store")
        before = contents(LocalBackend(str(tmp_path / "store")))
        with pytest.raises(ValueError, match=r"to itself.*/link is the same place"):
            store.copy_to(open_store(LocalBackend(str(tmp_path / "link"))))
        assert contents(LocalBackend(str(tmp_path / "store"))) == before

    def test_two_servers_may_have_buckets_of_one_name(self, source, source_backend, target_backend):
        renamed = Named(target_backend, source_backend.uri)
        assert source.copy_to(open_store(renamed)).ok
        assert_same_objects(source_backend, target_backend)

    def test_an_empty_store_is_not_copied_to_itself_either(self, source_backend):
        with pytest.raises(ValueError, match="to itself"):
            open_store(source_backend).copy_to(open_store(source_backend))


class TestNothingIsReplaced:
    def test_a_pack_that_a_checkpoint_at_the_target_names_stays_as_it_is(self, any_backend, memory):
        source, target = open_store(memory), open_store(any_backend)
        run = source.begin_run("main")
        first = run.save(10, state(1, 2))
        source.copy_to(target)
        second = run.save(20, state(1, 3))
        shared = next(pack for pack in second.packs if not pack.new)
        forge_size(memory, second.ref, shared, 7)
        memory.put(shared.key, b"garbage")
        report = open_store(memory).copy_to(target)
        assert list(report.problems) == [second.ref]
        assert "already holds other data under the name of its pack" in report.problems[second.ref]
        assert loaded(target, first) == [(one.name, list(one.elements)) for one in state(1, 2)]
        assert target.verify().ok

    def test_a_pack_that_the_listing_of_the_target_lacks_is_not_replaced(self, any_backend, source):
        ref = ic.CheckpointRef("worker-1", 1, 10)
        pack = source._catalog.header(ref).packs[0]
        any_backend.put(pack.key, bytes(pack.size))
        target = open_store(FalseListings(any_backend, "packs/", CUTS["empty"]))
        assert "other data" in source.copy_to(target, [ref]).problems[ref]
        assert any_backend.get(pack.key) == bytes(pack.size)

    def test_a_pack_that_is_there_already_with_the_same_data_is_used(
        self, any_backend, source, source_backend
    ):
        ref = ic.CheckpointRef("worker-1", 1, 10)
        for pack in source._catalog.header(ref).packs:
            any_backend.put(pack.key, source_backend.get(pack.key))
        target = open_store(FalseListings(any_backend, "packs/", CUTS["empty"]))
        assert source.copy_to(target, [ref]).ok

    def test_the_note_of_a_pin_at_the_target_stays(self, source, target_backend):
        target = open_store(target_backend)
        source.copy_to(target)
        (pinned,) = target.pins()
        target.pin(pinned, note="ours")
        source.copy_to(target)
        assert target.pins() == {pinned: "ours"}

    def test_a_pack_that_disappears_from_both_stores_is_reported(
        self, source, source_backend, target_backend
    ):
        ref = ic.CheckpointRef("worker-1", 1, 10)
        pack = source._catalog.header(ref).packs[0].key

        def lose_pack() -> None:
            for backend in (source_backend, target_backend):
                backend.delete([pack])

        target = open_store(Overtaken(target_backend, "create", manifest_key(ref), lose_pack))
        report = source.copy_to(target, [ref])
        assert (report.copied, list(report.problems)) == ((), [ref])
        assert pack in report.problems[ref]


def forge_size(backend: ic.Backend, ref: ic.CheckpointRef, pack: PackEntry, size: int) -> None:
    """Rewrite a manifest to give another size for a pack, and to name no chunks, with valid checksums."""
    header = decode_manifest(backend.get(manifest_key(ref))).header
    table = zstandard.compress(b"")
    forged = replace(
        header,
        iterators=(),
        packs=(replace(pack, size=size),),
        chunks=0,
        table_bytes=len(table),
        table_digest=digest(table).hex(),
    )
    backend.put(manifest_key(ref), encode_manifest(forged, table))


class TestDamage:
    def test_a_damaged_checkpoint_is_reported_and_the_others_are_copied(
        self, source, source_backend, target_backend
    ):
        damaged = ic.CheckpointRef("worker-1", 1, 10)
        pack = source._catalog.header(damaged).packs[0].key
        data = source_backend.get(pack)
        source_backend.put(pack, data[:100] + bytes([data[100] ^ 1]) + data[101:])
        target = open_store(target_backend)
        report = source.copy_to(target)
        assert set(report.problems) == {damaged}
        assert str(damaged) in report.problems[damaged]
        assert source_backend.uri in report.problems[damaged]
        assert len(report.copied) == 4
        assert target.checkpoints("worker-1") == []
        assert pack not in contents(target_backend)

    @pytest.mark.parametrize("how", ["truncated", "missing"])
    def test_a_checkpoint_with_an_incomplete_pack_is_reported(
        self, source, source_backend, target_backend, how
    ):
        damaged = ic.CheckpointRef("worker-1", 1, 10)
        pack = source._catalog.header(damaged).packs[0].key
        if how == "truncated":
            source_backend.put(pack, source_backend.get(pack)[:-1])
        else:
            source_backend.delete([pack])
        report = source.copy_to(open_store(target_backend))
        assert set(report.problems) == {damaged}
        assert pack in report.problems[damaged]

    def test_a_damaged_manifest_is_not_copied(self, source, source_backend, target_backend):
        damaged = ic.CheckpointRef("main", 2, 30)
        source_backend.put(manifest_key(damaged), b"damaged")
        report = open_store(source_backend).copy_to(open_store(target_backend))
        assert set(report.problems) == {damaged}
        assert manifest_key(damaged) not in contents(target_backend)

    def test_a_damaged_lineage_record_is_copied_with_everything_else(
        self, source, source_backend, target_backend
    ):
        source_backend.put("lineages/main/00000001.json", b"damaged")
        assert source.copy_to(open_store(target_backend)).ok
        assert_same_objects(source_backend, target_backend)

    def test_a_lineage_record_damaged_at_the_target_does_not_prevent_the_next_copy(
        self, source, source_backend, target_backend
    ):
        target = open_store(target_backend)
        source.copy_to(target)
        target_backend.put("lineages/main/00000001.json", b"damaged")
        assert source.copy_to(target).ok

    def test_a_pack_is_verified_without_decompressing_all_of_it_at_once(self, source_backend, target_backend):
        source = ic.CheckpointStore.open(source_backend, create=True)
        compressible = ((b"slot %d" % number, bytes([number]) * (4 << 20)) for number in range(50))
        source.begin_run("main").save(10, [ic.IteratorState("Iterator", compressible)])
        target = open_store(target_backend)

        def copy() -> None:
            assert source.copy_to(target).ok

        assert peak_memory(copy) < 64 << 20

    def test_a_pack_left_by_an_interrupted_copy_is_verified_before_a_manifest_refers_to_it(
        self, source, target_backend
    ):
        ref = ic.CheckpointRef("worker-1", 1, 10)
        pack = source._catalog.header(ref).packs[0]
        target_backend.put(pack.key, bytes(pack.size))
        target = open_store(target_backend)
        report = source.copy_to(target, [ref])
        assert "damaged" in report.problems[ref]
        assert target.checkpoints() == []


class TestRepeatedCopy:
    def test_a_second_copy_reports_everything_as_present_and_writes_no_data(self, source, target_backend):
        target = open_store(target_backend)
        first = source.copy_to(target)
        again = source.copy_to(target)
        assert (again.copied, again.present, again.copied_bytes) == ((), first.copied, 0)

    def test_the_next_copy_adds_what_was_saved_since(self, source, target_backend):
        target = open_store(target_backend)
        source.copy_to(target)
        run = Run(source._catalog, source.newest_lineage("main"), source._options, source._released)
        info = run.save(40, state(6, 7, 10))
        report = source.copy_to(target)
        assert report.copied == (info.ref,)
        assert report.copied_bytes == info.stored_bytes
        assert loaded(target, info.ref) == loaded(source, info.ref)

    def test_after_a_failure_of_any_write_the_target_verifies_and_the_next_copy_completes_it(
        self, source, source_backend, target_backend
    ):
        counting = Recording(new_backend())
        source.copy_to(open_store(counting))
        writes = sum(verb in ("put", "create") for verb, _ in counting.calls)
        for number in range(2, writes + 1):
            target = new_backend()
            with pytest.raises(ic.BackendUnavailableError):
                source.copy_to(open_store(FailingFromWrite(target, number)))
            assert open_store(target).verify().problems == {}
            source.copy_to(open_store(target))
            assert_same_objects(source_backend, target)

    def test_a_killed_copy_is_completed_by_the_next_one(self, tmp_path):
        source_backend = LocalBackend(str(tmp_path / "source"))
        store = open_store(source_backend)
        run = store.begin_run("main")
        for step in range(10, 60, 10):
            run.save(step, state(step, step + 1, step + 2))
        for written in (5, 9, 14):
            folder = tmp_path / f"target-{written}"
            killed = subprocess.run(
                [sys.executable, "-c", COPY_AND_DIE, str(tmp_path / "source"), str(folder), str(written)],
                cwd=ROOT,
                check=False,
            )
            assert killed.returncode == -signal.SIGKILL
            target = open_store(LocalBackend(str(folder)))
            assert target.verify().problems == {}
            assert store.copy_to(target).ok
            assert_same_objects(source_backend, LocalBackend(str(folder)))


class TestDifferentHistory:
    def test_a_target_with_another_run_of_the_worker_is_refused_and_not_changed(self, source, target_backend):
        target = open_store(target_backend)
        target.begin_run("main").save(10, state(1))
        before = contents(target_backend)
        with pytest.raises(
            ic.DifferentHistoryError, match=r"another run of worker 'main'.*Nothing was copied"
        ):
            source.copy_to(target, worker="main")
        assert contents(target_backend) == before

    def test_a_run_that_continued_in_both_stores_is_refused(self, source, target_backend):
        target = open_store(target_backend)
        source.copy_to(target)
        for store in (source, target):
            store.begin_run("main", store.newest("main").ref)
        with pytest.raises(ic.DifferentHistoryError):
            source.copy_to(target, worker="main")

    def test_a_run_that_continued_at_the_target_can_still_fetch_older_checkpoints(
        self, source, target_backend
    ):
        target = open_store(target_backend)
        source.copy_to(target, [source.newest("main")])
        run = target.begin_run("main", target.newest("main").ref)
        run.save(40, state(7, 8))
        assert source.copy_to(target, worker="main").ok
        assert {info.ref for info in source.checkpoints("main")} < {info.ref for info in target.checkpoints()}
        assert target.newest("main").step == 40


class TestConcurrentPrune:
    def test_a_prune_of_the_target_removes_nothing_that_is_being_copied(
        self, source, source_backend, target_backend
    ):
        def prune() -> None:
            open_store(target_backend).prune(ic.KeepAll(), orphan_age=0)

        overtaken = Overtaken(target_backend, "create", "checkpoints/main/00000002", prune)
        target = open_store(overtaken)
        assert source.copy_to(target).ok
        assert open_store(target_backend).verify().problems == {}
        assert_same_objects(source_backend, target_backend)

    def test_a_prune_of_the_source_removes_no_data_that_is_being_copied(
        self, source, source_backend, target_backend
    ):
        def prune() -> None:
            open_store(source_backend).prune(ic.KeepLast(1), "main", orphan_age=0)

        overtaken = Overtaken(target_backend, "create", "packs/main", prune)
        target = open_store(overtaken)
        report = source.copy_to(target, worker="main")
        assert all("does not exist" in problem for problem in report.problems.values())
        assert open_store(target_backend).verify().problems == {}
        assert target.newest("main") == source.newest("main")

    def test_a_pack_removed_by_a_prune_that_began_before_the_copy_is_copied_again(
        self, source, source_backend, target_backend
    ):
        ref = ic.CheckpointRef("worker-1", 1, 10)
        pack = source._catalog.header(ref).packs[0].key
        target_backend.put(pack, source_backend.get(pack))  # left by an interrupted copy
        overtaken = Overtaken(
            target_backend, "create", manifest_key(ref), lambda: target_backend.delete([pack])
        )
        target = open_store(overtaken)
        assert source.copy_to(target, [ref]).ok
        assert open_store(target_backend).verify().problems == {}


class TestProgress:
    def test_it_rises_to_the_totals(self, source, target_backend):
        reports: list[ic.CopyProgress] = []
        source.copy_to(open_store(target_backend), progress=reports.append)
        assert reports == sorted(reports, key=lambda progress: (progress.bytes, progress.checkpoints))
        assert (reports[-1].checkpoints, reports[-1].bytes) == (
            reports[-1].checkpoints_total,
            reports[-1].bytes_total,
        )
        assert reports[-1].bytes_total == sum(info.size for info in target_backend.list("packs/"))

    def test_packs_that_are_present_already_count_as_done(self, source, target_backend):
        target = open_store(target_backend)
        source.copy_to(target)
        reports: list[ic.CopyProgress] = []
        source.copy_to(target, progress=reports.append)
        assert reports[-1].bytes == reports[-1].bytes_total > 0


class TestContinuingAtTheTarget:
    def test_the_next_save_at_the_target_uploads_only_what_is_new(self, source, target_backend):
        target = open_store(target_backend)
        source.copy_to(target)
        run = target.begin_run("main", target.newest("main").ref)
        info = run.save(40, state(6, 7, 11))
        assert info.stored_bytes < 2 * len(payload(11))

    def test_training_continues_from_the_copy_as_if_nothing_had_happened(self, tmp_path):
        reference = uninterrupted(shuffled_ids, 40, tmp_path / "reference")
        estimator = make_estimator(tmp_path / "model")
        hook = ic.CheckpointInputPipelineHook(estimator, backend=str(tmp_path / "old"))
        estimator.train(shuffled_ids, hooks=[hook], steps=20)
        old = ic.CheckpointStore.open(str(tmp_path / "old"))
        new = ic.CheckpointStore.open(str(tmp_path / "new"), create=True)
        assert old.copy_to(new).ok
        os.rename(tmp_path / "old", tmp_path / "gone")
        hook = ic.CheckpointInputPipelineHook(estimator, backend=str(tmp_path / "new"))
        estimator.train(shuffled_ids, hooks=[hook], steps=20)
        assert trained_on(tmp_path / "model") == reference
