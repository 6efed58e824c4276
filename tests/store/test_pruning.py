"""A prune removes what is no longer needed, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from input_checkpoint import (
    Backend,
    BackendError,
    BackendUnavailableError,
    CheckpointRef,
    CheckpointStore,
    IteratorState,
    KeepAll,
    KeepLast,
)
from input_checkpoint.format.keys import announcement_key, manifest_key
from input_checkpoint.state import Element
from tests.support.stores import (
    KeepNothing,
    announcements,
    die_before_commit,
    loaded,
    pack_keys,
    run_in,
    save,
    some_state,
    state_of,
    steps,
)
from tests.support.wrappers import Failing, Overtaken, Recording, contents


def interrupt_prune(backend: Backend) -> None:
    """Prune as a process does whose storage fails after it has removed the manifests."""
    failing = Failing(backend, "delete", "packs/", BackendUnavailableError("no answer"))
    with pytest.raises(BackendUnavailableError):
        CheckpointStore(failing).prune(KeepLast(1))


class TestPruning:
    def test_checkpoints_that_the_policy_does_not_keep_are_removed_with_their_packs(
        self, store, run, backend
    ):
        save(run, 10, 20, 30)
        report = store.prune(KeepLast(2))
        assert (steps(report.removed), len(report.removed_packs)) == ([(1, 10)], 1)
        assert [info.step for info in store.checkpoints()] == [20, 30]
        assert len(pack_keys(backend)) == 2

    def test_a_kept_checkpoint_can_be_loaded(self, store, run):
        *_, kept = save(run, 10, 20, 30)
        store.prune(KeepLast(1))
        assert loaded(store, kept) == [("Iterator", state_of(b"30"))]

    def test_the_report_gives_a_reason_for_every_kept_checkpoint(self, store, run):
        save(run, 10, 20, 30)
        kept = store.prune(KeepLast(2)).kept
        assert {ref.step: reason for ref, reason in kept.items()} == {
            20: "one of the last 2",
            30: "one of the last 2",
        }

    def test_the_newest_checkpoint_is_never_removed(self, store, run):
        save(run, 10, 20)
        store.prune(KeepNothing())
        assert [info.step for info in store.checkpoints()] == [20]

    def test_the_checkpoint_that_a_run_resumed_from_stays_until_the_run_has_committed(self, store, run):
        first, _ = save(run, 10, 20)
        store.begin_run("main", parent=first)
        store.prune(KeepNothing())
        assert steps(store.history("main")) == [(1, 10)]

    def test_pruning_again_removes_nothing_more(self, store, run, backend):
        save(run, 10, 20, 30)
        store.prune(KeepLast(2))
        before = contents(backend)
        assert store.prune(KeepLast(2)).removed == ()
        assert contents(backend) == before

    def test_a_dry_run_reports_the_same_and_removes_nothing(self, store, run, backend):
        save(run, 10, 20, 30)
        before = contents(backend)
        dry = store.prune(KeepLast(1), dry_run=True)
        assert contents(backend) == before
        assert dry == store.prune(KeepLast(1))

    def test_only_the_chosen_worker_is_pruned(self, store):
        for worker in ("worker-1", "worker-10"):
            save(store.begin_run(worker), 10, 20)
        store.prune(KeepLast(1), "worker-1")
        assert [(info.worker, info.step) for info in store.checkpoints()] == [
            ("worker-1", 20),
            ("worker-10", 10),
            ("worker-10", 20),
        ]

    def test_every_worker_is_pruned_by_default(self, store):
        for worker in ("worker-1", "worker-2"):
            save(store.begin_run(worker), 10, 20)
        assert [(ref.worker, ref.step) for ref in store.prune(KeepLast(1)).removed] == [
            ("worker-1", 10),
            ("worker-2", 10),
        ]

    def test_an_empty_store_can_be_pruned(self, store):
        assert store.prune(KeepLast(1)).removed == ()

    def test_manifests_are_removed_before_the_packs_they_name(self, store, run, backend):
        save(run, 10, 20, 30)
        recording = Recording(backend)
        CheckpointStore(recording).prune(KeepLast(1))
        removed = [key.split("/")[0] for key in recording.keys("delete")]
        assert removed == ["checkpoints"] * 2 + ["packs"] * 2 + ["lineages"]

    def test_an_interrupted_prune_leaves_no_checkpoint_without_its_packs(self, store, run, backend):
        save(run, 10, 20, 30)
        interrupt_prune(backend)
        assert [loaded(store, info) for info in store.checkpoints()] == [[("Iterator", state_of(b"30"))]]

    def test_packs_left_by_an_interrupted_prune_are_removed_once_they_are_old_enough(
        self, store, run, backend
    ):
        save(run, 10, 20, 30)
        interrupt_prune(backend)
        assert store.prune(KeepLast(1)).removed_packs == ()
        assert len(store.prune(KeepLast(1), orphan_age=0).removed_packs) == 2
        assert len(pack_keys(backend)) == 1

    def test_the_announcement_of_a_dead_run_is_removed(self, store, run, backend):
        (ref,) = save(run, 10)
        die_before_commit(backend, run, 20)
        assert announcements(backend)
        store.begin_run("main", parent=ref)
        store.prune(KeepAll(), orphan_age=0)
        assert announcements(backend) == []

    def test_a_save_is_announced_before_it_looks_up_what_it_builds_on_and_until_it_has_committed(
        self, store, run, backend
    ):
        recording = Recording(backend)
        resumed = store.begin_run("main", parent=run.save(10, some_state()).ref)
        observed = run_in(CheckpointStore(recording), resumed)
        observed.save(20, some_state(b"20"))
        recording.calls.clear()
        info = observed.save(30, some_state(b"30"))
        calls = [(verb, key.split("/")[0]) for verb, key in recording.calls]
        assert calls[0] == ("put", "lineages")
        assert set(calls[1:-4]) == {("get", "checkpoints"), ("get", "packs"), ("put", "packs")}
        assert calls[-4:] == [
            ("list", "lineages"),
            ("create", "checkpoints"),
            ("list", "lineages"),
            ("delete", "lineages"),
        ]
        assert store.info(info.ref) == info

    def test_everything_of_a_worker_that_died_before_its_first_commit_is_removed(self, store, backend):
        orphans = die_before_commit(backend, store.begin_run("worker-3", None), 10)
        store.begin_run("worker-3", None)
        assert list(store.prune(KeepAll(), orphan_age=0).removed_packs) == orphans
        assert (pack_keys(backend), announcements(backend), store.workers()) == ([], [], [])

    def test_packs_of_a_worker_without_any_other_object_are_removed(self, store, backend):
        backend.put("packs/worker-3/00000001/000000000010-dead0000-00000.pack", b"left")
        store.prune(KeepAll(), orphan_age=0)
        assert pack_keys(backend) == []

    def test_packs_of_a_save_in_progress_stay_before_the_first_commit_of_a_worker(self, store, backend):
        in_progress = die_before_commit(backend, store.begin_run("worker-3", None), 10)
        store.prune(KeepAll(), orphan_age=0)
        assert pack_keys(backend) == in_progress

    def test_objects_under_an_invalid_worker_name_are_not_touched(self, store, backend):
        foreign = "packs/-x/00000001/000000000010-dead0000-00000.pack"
        backend.put(foreign, b"foreign")
        store.prune(KeepAll(), orphan_age=0)
        assert pack_keys(backend) == [foreign]

    def test_packs_of_a_dead_run_are_removed(self, store, run, backend):
        (ref,) = save(run, 10)
        orphans = die_before_commit(backend, run, 20)
        store.begin_run("main", parent=ref)
        assert list(store.prune(KeepAll(), orphan_age=0).removed_packs) == orphans
        assert not set(orphans) & set(pack_keys(backend))

    def test_packs_of_a_save_in_progress_of_the_newest_run_stay(self, store, run, backend):
        save(run, 10)
        in_progress = die_before_commit(backend, run, 20)
        assert store.prune(KeepAll(), orphan_age=0).removed_packs == ()
        assert set(in_progress) <= set(pack_keys(backend))

    def test_a_run_that_prunes_during_its_own_save_keeps_what_the_save_builds_on(self, store, run, backend):
        shared, new = (b"slot 1", b"x" * 5000), (b"slot 2", b"y" * 5000)
        run.save(10, [IteratorState("Iterator", [shared])])
        save(run, 20)
        reports = []

        def elements_while_a_prune_runs() -> Iterator[Element]:
            yield from (shared, new)
            reports.append(run.prune(KeepLast(1), orphan_age=0))

        info = run.save(30, [IteratorState("Iterator", elements_while_a_prune_runs())])
        assert steps(reports[0].removed) == [(1, 10)]
        assert loaded(store, info) == [("Iterator", [shared, new])]

    def test_packs_protected_by_a_save_in_progress_are_removed_by_the_next_prune(self, store, run, backend):
        save(run, 10)

        def elements_while_a_prune_runs() -> Iterator[Element]:
            yield (b"slot 1", b"new")
            run.prune(KeepLast(1))

        save(run, 20)
        run.save(30, [IteratorState("Iterator", elements_while_a_prune_runs())])
        assert len(pack_keys(backend)) == 3
        run.prune(KeepLast(1))
        assert [key.split("/")[-1][:12] for key in pack_keys(backend)] == ["000000000030"]

    def test_saves_without_a_pause_between_them_do_not_keep_old_packs(self, store, run, backend):
        def elements_while_a_prune_runs(step: int) -> Iterator[Element]:
            yield (b"slot", b"%d" % step)
            run.prune(KeepLast(2))

        for step in range(10, 200, 10):
            run.save(step, [IteratorState("Iterator", elements_while_a_prune_runs(step))])
            # Two that the policy keeps, the new one, one that the prune has just released, and one more if
            # the prune was faster than the lookup of what the save builds on.
            assert len(pack_keys(backend)) <= 5

    def test_an_old_announcement_of_the_pruning_run_does_not_block_it(self, store, run, backend):
        save(run, 10)
        backend.put(announcement_key(CheckpointRef("main", 1, 15), "0" * 8), b"")
        save(run, 20)
        assert len(run.prune(KeepLast(1)).removed_packs) == 1
        assert announcements(backend) == []

    def test_packs_of_a_save_in_progress_of_another_worker_stay(self, store, run, backend):
        save(run, 10)
        other = store.begin_run("worker-1", None)
        in_progress = die_before_commit(backend, other, 20)
        save(store.begin_run("main"), 10, 20)
        store.prune(KeepLast(1))
        assert set(in_progress) <= set(pack_keys(backend))

    def test_a_checkpoint_with_a_damaged_manifest_is_kept_with_its_packs(self, store, run, backend):
        damaged, _ = save(run, 10, 20)
        backend.put(manifest_key(damaged), b"damaged")
        report = CheckpointStore(backend).prune(KeepLast(1))
        assert (report.removed, report.kept[damaged]) == ((), "its manifest cannot be read")
        assert len(pack_keys(backend)) == 2

    def test_packs_that_a_damaged_manifest_may_name_stay_for_the_next_save_of_its_run(
        self, store, run, backend
    ):
        shared = (b"slot", b"x" * 5000)
        for step, elements in ((10, [shared]), (20, []), (30, [shared])):
            newest = run.save(step, [IteratorState("Iterator", elements)])
        backend.put(manifest_key(newest.ref), b"damaged")
        CheckpointStore(backend).prune(KeepLast(1), orphan_age=0)
        info = run.save(40, [IteratorState("Iterator", [shared])])
        assert loaded(store, info) == [("Iterator", [shared])]

    def test_a_damaged_checkpoint_does_not_take_the_place_of_a_readable_one(self, store, run, backend):
        _, good, damaged = save(run, 10, 20, 30)
        backend.put(manifest_key(damaged), b"damaged")
        assert set(CheckpointStore(backend).prune(KeepLast(1)).kept) == {good, damaged}

    def test_nothing_is_removed_if_a_manifest_cannot_be_fetched(self, store, run, backend):
        first, *_ = save(run, 10, 20, 30)
        before = contents(backend)
        failing = Failing(backend, "get", manifest_key(first), BackendUnavailableError("no answer"))
        with pytest.raises(BackendUnavailableError):
            CheckpointStore(failing).prune(KeepLast(1))
        assert before.items() <= contents(backend).items()

    def test_a_full_disk_does_not_keep_a_prune_from_freeing_space(self, store, run, backend, caplog):
        save(run, 10, 20, 30)
        full = Failing(backend, "put", "", BackendError("the disk is full"))
        report = CheckpointStore(full).prune(KeepLast(1))
        assert len(report.removed_packs) == 2
        assert "the disk is full. This prune removes only data whose age does not matter." in caplog.text
        assert announcements(backend) == []

    def test_foreign_objects_are_not_touched(self, store, run, backend):
        save(run, 10, 20)
        foreign = ["notes.txt", "packs/main/notes", "checkpoints/main/notes"]
        for key in foreign:
            backend.put(key, b"foreign")
        store.prune(KeepNothing())
        assert set(foreign) <= set(contents(backend))

    def test_a_prune_keeps_what_a_new_run_commits_meanwhile(self, store, run, backend):
        _, newest = save(run, 10, 20)

        def a_new_run_commits() -> None:
            save(store.begin_run("main", parent=newest), 30)

        overtaken = Overtaken(backend, "list", "checkpoints/", a_new_run_commits)
        CheckpointStore(overtaken).prune(KeepAll(), "main")
        assert loaded(store, CheckpointRef("main", 2, 30)) == [("Iterator", state_of(b"30"))]
