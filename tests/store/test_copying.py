"""A store moves house: everything is checked on the way, and the run goes on as if nothing had happened."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tracemalloc
import uuid
from pathlib import Path

import pytest

import input_checkpoint as ic
from input_checkpoint.backends.local import LocalBackend
from input_checkpoint.backends.memory import MemoryBackend
from input_checkpoint.format.keys import manifest_key
from input_checkpoint.state import Element
from input_checkpoint.store.run import Run
from tests.support.training import make_estimator, shuffled_ids, trained_on, uninterrupted
from tests.support.wrappers import Failing, Overtaken, Recording, Wrapped, contents

ROOT = Path(__file__).parents[2]


def payload(number: int) -> bytes:
    """Bytes that do not compress, the same for the same number."""
    return random.Random(number).randbytes(3200)


def state(*numbers: int) -> list[ic.IteratorState]:
    return [ic.IteratorState("Iterator", [(b"slot %d" % number, payload(number)) for number in numbers])]


def memory() -> MemoryBackend:
    return MemoryBackend(f"memory://{uuid.uuid4().hex}")


def opened(backend: ic.Backend) -> ic.CheckpointStore:
    options = ic.SaveOptions(pack_bytes=6000)
    return ic.CheckpointStore.open(backend, create=True, options=options, retry=None)


def restored(store: ic.CheckpointStore, ref: ic.CheckpointRef) -> list[list[Element]]:
    return [found.in_order() for found in store.load(ref)]


def without_traces(backend: ic.Backend) -> dict[str, bytes]:
    """What a backend holds but for announcements, of which none must be left."""
    found = contents(backend)
    assert [key for key in found if key.startswith("saves/")] == []
    return found


@pytest.fixture
def here() -> MemoryBackend:
    return memory()


@pytest.fixture
def there() -> MemoryBackend:
    return memory()


@pytest.fixture
def source(here: MemoryBackend) -> ic.CheckpointStore:
    """Two workers; a restart from an older step; chunks that checkpoints share; a pin; compressible data."""
    store = opened(here)
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


class TestEverything:
    def test_all_objects_are_the_same_at_the_target(self, source, here, there):
        report = source.copy_to(opened(there))
        assert report.ok
        assert without_traces(there) == without_traces(here)

    def test_the_report_names_what_was_copied_from_old_to_new(self, source, there):
        report = source.copy_to(opened(there))
        assert [(ref.worker, ref.lineage, ref.step) for ref in report.copied] == [
            ("main", 1, 10),
            ("main", 1, 20),
            ("main", 2, 20),
            ("main", 2, 30),
            ("worker-1", 1, 10),
        ]
        assert (report.present, report.problems) == ((), {})

    def test_history_and_pins_come_along(self, source, there):
        target = opened(there)
        source.copy_to(target)
        assert target.history("main") == source.history("main")
        assert target.pins() == source.pins()

    def test_every_checkpoint_restores_and_verifies(self, source, there):
        target = opened(there)
        source.copy_to(target)
        assert target.verify().problems == {}
        for info in source.checkpoints():
            assert restored(target, info.ref) == restored(source, info.ref)

    def test_a_pack_that_checkpoints_share_is_copied_once(self, source, there):
        recording = Recording(there)
        report = source.copy_to(opened(recording))
        packs = [key for key in recording.keys("put") if key.startswith("packs/")]
        assert len(packs) == len(set(packs))
        assert report.copied_bytes == sum(info.size for info in there.list("packs/"))

    def test_the_manifest_comes_after_all_that_it_names_and_old_ones_come_first(self, source, there):
        recording = Recording(there)
        source.copy_to(opened(recording), worker="main")
        writes = [key for verb, key in recording.calls if verb in ("put", "create")]
        manifests = [key for key in writes if key.startswith("checkpoints/")]
        assert manifests == sorted(manifests)
        for info in source.checkpoints("main"):
            packs = [pack.key for pack in source._catalog.header(info.ref).packs]
            assert max(map(writes.index, packs)) < writes.index(manifest_key(info.ref))


class TestChoice:
    def test_only_the_chosen_ones_are_copied_with_all_that_they_need(self, source, there):
        chosen = source.newest("main")
        target = opened(there)
        assert source.copy_to(target, [chosen]).copied == (chosen.ref,)
        assert target.checkpoints() == [chosen]
        assert target.verify().problems == {}

    def test_only_one_worker_is_copied_if_it_is_named(self, source, there):
        target = opened(there)
        source.copy_to(target, worker="worker-1")
        assert target.workers() == ["worker-1"]

    def test_one_that_does_not_exist_is_reported(self, source, there):
        nothing = ic.CheckpointRef("main", 2, 99)
        report = source.copy_to(opened(there), [nothing])
        assert not report.ok
        assert "does not exist" in report.problems[nothing]

    def test_a_store_is_not_copied_to_itself(self, source, here):
        with pytest.raises(ValueError, match="to itself"):
            source.copy_to(opened(here))

    def test_an_empty_store_is_copied_without_complaint(self, here, there):
        assert opened(here).copy_to(opened(there)).ok


class TestDamage:
    def test_a_damaged_checkpoint_is_named_and_the_others_go(self, source, here, there):
        damaged = ic.CheckpointRef("worker-1", 1, 10)
        pack = source._catalog.header(damaged).packs[0].key
        data = here.get(pack)
        here.put(pack, data[:100] + bytes([data[100] ^ 1]) + data[101:])
        target = opened(there)
        report = source.copy_to(target)
        assert set(report.problems) == {damaged}
        assert str(damaged) in report.problems[damaged]
        assert here.uri in report.problems[damaged]
        assert len(report.copied) == 4
        assert target.checkpoints("worker-1") == []
        assert pack not in contents(there)

    @pytest.mark.parametrize("how", ["cut", "removed"])
    def test_so_is_one_whose_pack_is_not_whole(self, source, here, there, how):
        damaged = ic.CheckpointRef("worker-1", 1, 10)
        pack = source._catalog.header(damaged).packs[0].key
        if how == "cut":
            here.put(pack, here.get(pack)[:-1])
        else:
            here.delete([pack])
        report = source.copy_to(opened(there))
        assert set(report.problems) == {damaged}
        assert pack in report.problems[damaged]

    def test_a_manifest_that_cannot_be_read_is_not_copied(self, source, here, there):
        damaged = ic.CheckpointRef("main", 2, 30)
        here.put(manifest_key(damaged), b"damaged")
        report = opened(here).copy_to(opened(there))
        assert set(report.problems) == {damaged}
        assert manifest_key(damaged) not in contents(there)

    def test_a_damaged_lineage_record_keeps_nothing_from_being_copied(self, source, here, there):
        here.put("lineages/main/00000001.json", b"damaged")
        assert source.copy_to(opened(there)).ok
        assert without_traces(there) == without_traces(here)

    def test_a_lineage_record_damaged_at_one_end_does_not_keep_the_next_copy_away(self, source, here, there):
        target = opened(there)
        source.copy_to(target)
        there.put("lineages/main/00000001.json", b"damaged")
        assert source.copy_to(target).ok

    def test_a_pack_is_checked_without_unpacking_all_of_it_at_once(self, here, there):
        source = ic.CheckpointStore.open(here, create=True)
        shrinks_well = ((b"slot %d" % number, bytes([number]) * (4 << 20)) for number in range(50))
        source.begin_run("main").save(10, [ic.IteratorState("Iterator", shrinks_well)])
        tracemalloc.start()
        assert source.copy_to(opened(there)).ok
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 64 << 20

    def test_what_an_interrupted_copy_has_left_is_checked_before_anything_refers_to_it(self, source, there):
        ref = ic.CheckpointRef("worker-1", 1, 10)
        pack = source._catalog.header(ref).packs[0]
        there.put(pack.key, bytes(pack.size))
        target = opened(there)
        report = source.copy_to(target, [ref])
        assert "damaged" in report.problems[ref]
        assert target.checkpoints() == []


class TestAgain:
    def test_a_second_copy_finds_everything_there_and_writes_no_data(self, source, there):
        target = opened(there)
        first = source.copy_to(target)
        again = source.copy_to(target)
        assert (again.copied, again.present, again.copied_bytes) == ((), first.copied, 0)

    def test_what_was_saved_since_is_brought_by_the_next_copy(self, source, there):
        target = opened(there)
        source.copy_to(target)
        run = Run(source._catalog, source.newest_lineage("main"), source._options, source._released)
        info = run.save(40, state(6, 7, 10))
        report = source.copy_to(target)
        assert report.copied == (info.ref,)
        assert report.copied_bytes == info.stored_bytes
        assert restored(target, info.ref) == restored(source, info.ref)

    def test_after_a_failure_at_any_write_the_target_is_sound_and_the_next_copy_completes_it(
        self, source, here, there
    ):
        counting = Recording(memory())
        source.copy_to(opened(counting))
        writes = sum(verb in ("put", "create") for verb, _ in counting.calls)
        for number in range(2, writes + 1):
            target = memory()
            with pytest.raises(ic.BackendUnavailableError):
                source.copy_to(opened(FailingAt(target, number)))
            assert opened(target).verify().problems == {}
            source.copy_to(opened(target))
            assert without_traces(target) == without_traces(here)

    def test_a_copy_that_is_killed_is_completed_by_the_next_one(self, tmp_path):
        here = LocalBackend(str(tmp_path / "here"))
        store = opened(here)
        run = store.begin_run("main")
        for step in range(10, 60, 10):
            run.save(step, state(step, step + 1, step + 2))
        for written in (5, 9, 14):
            there = tmp_path / f"there-{written}"
            killed = subprocess.run(
                [sys.executable, "-c", COPY_AND_DIE, str(tmp_path / "here"), str(there), str(written)],
                cwd=ROOT,
                check=False,
            )
            assert killed.returncode == -signal.SIGKILL
            target = opened(LocalBackend(str(there)))
            assert target.verify().problems == {}
            assert store.copy_to(target).ok
            assert without_traces(LocalBackend(str(there))) == without_traces(here)


class FailingAt(Wrapped):
    """Fails for good from the n-th write on."""

    def __init__(self, inner: ic.Backend, number: int) -> None:
        super().__init__(inner)
        self._left = number

    def before(self, verb: str, key: str) -> None:
        if verb in ("put", "create"):
            self._left -= 1
            if self._left <= 0:
                raise ic.BackendUnavailableError("gone")


COPY_AND_DIE = """
import os, signal, sys
import input_checkpoint as ic
from input_checkpoint.backends.local import LocalBackend
from tests.support.wrappers import BeforeWrites

here, there, left = sys.argv[1], sys.argv[2], int(sys.argv[3])

def count(key):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

target = ic.CheckpointStore.open(BeforeWrites(LocalBackend(there), count), create=True, retry=None)
ic.CheckpointStore.open(here).copy_to(target)
"""


class TestOtherRuns:
    def test_a_target_with_another_run_of_the_worker_is_refused_untouched(self, source, there):
        target = opened(there)
        target.begin_run("main").save(10, state(1))
        before = contents(there)
        with pytest.raises(
            ic.DifferentHistoryError, match=r"another run of worker 'main'.*Nothing was copied"
        ):
            source.copy_to(target, worker="main")
        assert contents(there) == before

    def test_a_run_that_went_on_at_both_ends_is_refused(self, source, there):
        target = opened(there)
        source.copy_to(target)
        for store in (source, target):
            store.begin_run("main", store.newest("main").ref)
        with pytest.raises(ic.DifferentHistoryError):
            source.copy_to(target, worker="main")

    def test_a_run_that_went_on_at_the_target_may_still_fetch_what_was_left_behind(self, source, there):
        target = opened(there)
        source.copy_to(target, [source.newest("main")])
        run = target.begin_run("main", target.newest("main").ref)
        run.save(40, state(7, 8))
        assert source.copy_to(target, worker="main").ok
        assert {info.ref for info in source.checkpoints("main")} < {info.ref for info in target.checkpoints()}
        assert target.newest("main").step == 40


class TestCleanUpMeanwhile:
    def test_a_prune_of_the_target_removes_nothing_that_is_on_its_way(self, source, here, there):
        def prune() -> None:
            opened(there).prune(ic.KeepAll(), orphan_age=0)

        overtaken = Overtaken(there, "create", "checkpoints/main/00000002", prune)
        target = opened(overtaken)
        assert source.copy_to(target).ok
        assert opened(there).verify().problems == {}
        assert without_traces(there) == without_traces(here)

    def test_a_prune_of_the_source_by_a_tool_leaves_the_data_to_the_copy(self, source, here, there):
        def prune() -> None:
            opened(here).prune(ic.KeepLast(1), "main", orphan_age=0)

        overtaken = Overtaken(there, "put", "packs/main", prune)
        target = opened(overtaken)
        report = source.copy_to(target, worker="main")
        assert all("does not exist" in problem for problem in report.problems.values())
        assert opened(there).verify().problems == {}
        assert target.newest("main") == source.newest("main")

    def test_a_source_that_may_only_be_read_is_copied(self, source, here, there):
        read_only = Failing(here, "put", "", ic.BackendPermissionError("read only"))
        assert opened(read_only).copy_to(opened(there)).ok
        assert without_traces(there) == without_traces(here)

    def test_what_a_prune_that_had_begun_before_takes_away_is_brought_back(self, source, here, there):
        ref = ic.CheckpointRef("worker-1", 1, 10)
        pack = source._catalog.header(ref).packs[0].key
        there.put(pack, here.get(pack))  # left by a copy that was interrupted, and old enough to go
        overtaken = Overtaken(there, "create", manifest_key(ref), lambda: there.delete([pack]))
        target = opened(overtaken)
        assert source.copy_to(target, [ref]).ok
        assert opened(there).verify().problems == {}


class TestProgress:
    def test_it_rises_to_the_totals(self, source, there):
        told: list[ic.CopyProgress] = []
        source.copy_to(opened(there), progress=told.append)
        assert told == sorted(told, key=lambda progress: (progress.bytes, progress.checkpoints))
        assert (told[-1].checkpoints, told[-1].bytes) == (told[-1].checkpoints_total, told[-1].bytes_total)
        assert told[-1].bytes_total == sum(info.size for info in there.list("packs/"))

    def test_what_is_there_already_counts_as_done(self, source, there):
        target = opened(there)
        source.copy_to(target)
        told: list[ic.CopyProgress] = []
        source.copy_to(target, progress=told.append)
        assert told[-1].bytes == told[-1].bytes_total > 0


class TestGoingOn:
    def test_the_next_save_at_the_target_uploads_only_what_is_new(self, source, there):
        target = opened(there)
        source.copy_to(target)
        run = target.begin_run("main", target.newest("main").ref)
        info = run.save(40, state(6, 7, 11))
        assert info.stored_bytes < 2 * len(payload(11))

    def test_training_goes_on_from_the_copy_as_if_nothing_had_happened(self, tmp_path):
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
