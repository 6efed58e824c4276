"""A run may save and prune a worker's checkpoints until a newer run begins."""

from __future__ import annotations

import json

import pytest

from input_checkpoint import CheckpointRef, CheckpointStore, KeepLast, WriterSupersededError
from tests.support.stores import save, steps
from tests.support.wrappers import Overtaken, Recording


class TestRun:
    def test_a_dry_run_reports_what_would_be_removed_and_why_the_rest_stays(self, store, run):
        save(run, 10, 20, 30)
        report = run.prune(KeepLast(2), dry_run=True)
        assert [ref.step for ref in report.removed] == [10]
        assert set(report.kept.values()) == {"one of the last 2"}
        assert len(store.checkpoints()) == 3

    def test_a_dry_run_and_the_prune_itself_report_the_same(self, run):
        save(run, 10, 20, 30)
        planned = run.prune(KeepLast(2), dry_run=True)
        assert run.prune(KeepLast(2)) == planned
        assert planned.removed_bytes > 0

    def test_a_prune_report_can_be_written_as_json(self, run):
        save(run, 10, 20)
        report = json.loads(json.dumps(run.prune(KeepLast(1)).to_dict()))
        assert report["removed"] == [{"worker": "main", "lineage": 1, "step": 10}]
        assert report["kept"] == [{"worker": "main", "lineage": 1, "step": 20, "reason": "one of the last 1"}]
        assert len(report["removed_packs"]) == 1

    def test_a_superseded_run_cannot_prune(self, store, run):
        save(run, 10, 20)
        store.begin_run("main")
        with pytest.raises(WriterSupersededError) as raised:
            run.prune(KeepLast(1))
        assert raised.value.uri == store.uri
        assert len(store.checkpoints()) == 2

    def test_a_run_that_begins_with_a_listing_does_not_list_again(self, store, run, backend):
        (ref,) = save(run, 10)
        listing = store.list_worker("main")
        recording = Recording(backend)
        begun = CheckpointStore(recording).begin_run("main", ref, listing=listing)
        assert begun.lineage.parent == ref
        assert [verb for verb, _ in recording.calls] == ["create"]

    def test_an_outdated_listing_does_no_harm(self, store, run):
        (ref,) = save(run, 10)
        outdated = store.list_worker("main")
        save(store.begin_run("main", ref), 20)
        begun = store.begin_run("main", ref, listing=outdated)
        save(begun, 15)
        assert begun.lineage.number == 3
        assert steps(store.history("main")) == [(1, 10), (3, 15)]


class TestStore:
    def test_a_run_that_begins_again_can_save_its_last_step_once_more(self, store, run):
        save(run, 10, 20)
        again = run.begin_again(store.newest("main").ref)
        save(again, 20, 30)
        history = [(ref.lineage, ref.step) for ref in store.history("main")]
        assert history == [(1, 10), (1, 20), (2, 20), (2, 30)]
        assert again.lineage.run_id == run.lineage.run_id

    def test_a_run_that_has_begun_again_is_superseded(self, store, run):
        save(run, 10)
        run.begin_again(store.newest("main").ref)
        with pytest.raises(WriterSupersededError):
            save(run, 20)

    def test_a_superseded_run_cannot_begin_again(self, store, run):
        save(run, 10)
        newer = store.begin_run("main", store.newest("main").ref)
        with pytest.raises(WriterSupersededError):
            run.begin_again(store.newest("main").ref)
        assert store.newest_lineage("main") == newer.lineage

    def test_a_run_that_begins_again_never_overtakes_one_that_begins_meanwhile(self, backend, store):
        def begin():
            overtaking.append(store.begin_run("main"))

        overtaking = []
        overtaken = Overtaken(backend, "create", "lineages/main/00000002", begin)
        run = CheckpointStore.open(overtaken).begin_run("main")
        save(run, 10)
        with pytest.raises(WriterSupersededError):
            run.begin_again(CheckpointRef("main", 1, 10))
        assert store.newest_lineage("main") == overtaking[0].lineage

    def test_a_store_shows_its_uri(self, store):
        assert repr(store) == f"CheckpointStore({store.uri!r})"

    def test_a_store_is_closed_at_the_end_of_its_with_block(self, backend, monkeypatch):
        closed = []
        monkeypatch.setattr(backend, "close", lambda: closed.append(True))
        with CheckpointStore.open(backend, create=True) as store:
            assert store.checkpoints() == []
            assert not closed
        assert closed == [True]
