"""A mark lets a run continue from a step that has no checkpoint of its own. It costs nothing until then."""

from __future__ import annotations

import json
import threading
from collections.abc import Collection
from dataclasses import dataclass
from typing import Optional

import pytest

from input_checkpoint import (
    Backend,
    CheckpointNotFoundError,
    CheckpointRef,
    CheckpointStore,
    CorruptCheckpointError,
    InconsistentListingError,
    KeepAll,
    KeepLast,
    MarkRef,
    RetentionPolicy,
    Run,
    WriterSupersededError,
)
from input_checkpoint.format.keys import lineage_key, manifest_key, mark_key
from input_checkpoint.format.limits import MAX_MARK_BYTES
from input_checkpoint.retention.with_model import needed_by_model
from tests.support.false_answers import FalseListings, Flipping
from tests.support.stores import KeepNothing, loaded, run_in, save, some_state, state_of, steps
from tests.support.wrappers import BeforeWrites, Overtaken, Recording, contents


@dataclass(frozen=True)
class KeepForModels(RetentionPolicy):
    """Keeps what models of these steps need."""

    model_steps: Collection[int]

    def keep(self, checkpoints):
        return needed_by_model(checkpoints, self.model_steps)


def mark(run: Run, step: int, base: CheckpointRef, count: int = 5, model: Optional[str] = None) -> MarkRef:
    return run.mark(step, base, {"Iterator": count}, {"Iterator": "9f3c"} if count else {}, model)


def listing_without(backend: Backend, key: str) -> Backend:
    """Return a storage whose listings of checkpoints lack an object that exists."""
    return FalseListings(backend, "checkpoints/", lambda found: [info for info in found if info.key != key])


def objects(backend: Backend) -> list[str]:
    return [info.key for info in backend.list()]


class TestListing:
    def test_a_mark_says_what_was_written(self, store, run):
        (base,) = save(run, 10)
        ref = run.mark(15, base, {"Iterator": 5, "Other": 0}, {"Iterator": "9f3c"}, model_digest="0f")
        assert ref == MarkRef(CheckpointRef("main", 1, 15), base)
        found = store.read_mark(ref)
        assert (found.ref, found.model_digest) == (ref, "0f")
        assert (found.draws, found.digests) == ({"Iterator": 5, "Other": 0}, {"Iterator": "9f3c"})

    def test_one_listing_shows_checkpoints_and_marks(self, store, run, backend):
        first, second = save(run, 10, 20)
        marks = [mark(run, 15, first), mark(run, 25, second), mark(run, 26, first)]
        recording = Recording(backend)
        listing = CheckpointStore(recording).list_worker("main")
        assert sorted(recording.keys("list")) == ["checkpoints/main/", "lineages/main/"]
        assert (listing.checkpoints, list(listing.marks)) == ((first, second), sorted(marks))
        assert listing.usable_marks == sorted(marks)

    def test_marks_are_listed_from_old_to_new_of_one_worker_or_of_all(self, store, run):
        (base,) = save(run, 10)
        later, earlier = mark(run, 20, base), mark(run, 15, base)
        other = store.begin_run("worker-1")
        (other_base,) = save(other, 10)
        others = mark(other, 12, other_base)
        assert store.marks() == [earlier, later, others]
        assert store.marks("main") == [earlier, later]

    def test_a_checkpoint_lists_the_steps_of_the_marks_that_lean_on_it(self, store, run):
        first, second = save(run, 10, 20)
        for step, base in ((15, first), (25, first), (25, second)):
            mark(run, step, base)
        assert [info.marks for info in store.checkpoints()] == [(15, 25), (25,)]

    def test_a_mark_is_no_checkpoint(self, store, run):
        (base,) = save(run, 10)
        mark(run, 15, base)
        assert steps(store.history("main")) == [(1, 10)]
        assert store.newest("main").step == 10
        assert store.workers() == ["main"]

    def test_a_mark_of_the_same_step_and_base_replaces_the_earlier_one(self, store, run):
        (base,) = save(run, 10)
        mark(run, 15, base, count=5)
        ref = mark(run, 15, base, count=6)
        assert store.marks() == [ref]
        assert store.read_mark(ref).draws == {"Iterator": 6}

    def test_a_mark_of_a_lineage_that_was_left_behind_is_not_usable(self, store, run):
        first, second = save(run, 10, 20)
        held, behind = mark(run, 15, first), mark(run, 25, second)
        resumed = store.begin_run("main", second)
        own = mark(resumed, 25, second)
        listing = store.list_worker("main")
        assert listing.marks == (held, behind, own)
        assert listing.usable_marks == [held, own]

    def test_a_mark_whose_base_is_gone_is_not_usable(self, store, run, backend):
        first, second = save(run, 10, 20)
        mark(run, 15, first)
        usable = mark(run, 25, second)
        backend.delete([manifest_key(first)])
        assert store.list_worker("main").usable_marks == [usable]

    def test_the_marks_of_a_run_whose_record_is_damaged_are_usable(self, store, run, backend):
        (base,) = save(run, 10)
        resumed = store.begin_run("main", base)
        own = mark(resumed, 15, base)
        backend.put(lineage_key("main", 2), b"damaged")
        assert store.list_worker("main").usable_marks == [own]

    def test_a_run_that_has_left_only_marks_keeps_its_number_without_its_record(self, store, run, backend):
        (base,) = save(run, 10)
        mark(store.begin_run("main", base), 15, base)
        backend.delete([lineage_key("main", 2)])
        assert store.begin_run("main", base).lineage.number == 3

    def test_a_worker_that_has_left_only_a_mark_is_pruned(self, store, backend):
        key = mark_key(MarkRef(CheckpointRef("worker-3", 1, 15), CheckpointRef("worker-3", 1, 10)))
        backend.put(key, b"left")
        assert [mark_key(ref) for ref in store.prune(KeepAll()).removed_marks] == [key]
        assert key not in objects(backend)


class TestReading:
    def test_a_mark_that_does_not_exist_is_an_error_that_names_it(self, store, run):
        ref = MarkRef(CheckpointRef("main", 1, 15), CheckpointRef("main", 1, 10))
        with pytest.raises(
            CheckpointNotFoundError, match=f"{store.uri}: the mark at step 15 .*from step 10"
        ) as raised:
            store.read_mark(ref)
        assert (raised.value.uri, raised.value.key, raised.value.step) == (store.uri, mark_key(ref), 15)

    @pytest.mark.parametrize("data", [b"", b"damaged", b"{}", b" " * (MAX_MARK_BYTES + 1)])
    def test_a_damaged_mark_is_an_error_that_names_its_key(self, store, run, backend, data):
        (base,) = save(run, 10)
        ref = mark(run, 15, base)
        backend.put(mark_key(ref), data)
        with pytest.raises(CorruptCheckpointError) as raised:
            store.read_mark(ref)
        assert (raised.value.uri, raised.value.key, raised.value.step) == (store.uri, mark_key(ref), 15)
        assert mark_key(ref) in str(raised.value)

    def test_the_record_of_another_mark_is_refused(self, store, run, backend):
        (base,) = save(run, 10)
        one, other = mark(run, 15, base), mark(run, 16, base)
        backend.put(mark_key(one), backend.get(mark_key(other)))
        with pytest.raises(CorruptCheckpointError, match="it holds another one, the mark at step 16"):
            store.read_mark(one)

    def test_a_mark_that_is_damaged_on_its_way_is_read_again(self, store, run, backend, caplog):
        (base,) = save(run, 10)
        ref = mark(run, 15, base)
        assert CheckpointStore(Flipping(backend, mark_key(ref))).read_mark(ref).ref == ref
        assert "was intact when it was read again" in caplog.text

    def test_no_more_of_a_mark_is_requested_than_the_format_allows(self, store, run, backend):
        (base,) = save(run, 10)
        ref = mark(run, 15, base)
        asked = []

        class Asking(Recording):
            def get(self, key, start=0, end=None):
                asked.append((start, end))
                return super().get(key, start, end)

        CheckpointStore(Asking(backend)).read_mark(ref)
        assert asked == [(0, MAX_MARK_BYTES + 1)]


class TestWriting:
    def test_a_mark_takes_a_listing_and_one_object(self, store, run, backend):
        (base,) = save(run, 10)
        recording = Recording(backend)
        ref = mark(run_in(CheckpointStore(recording), run), 15, base)
        assert recording.calls == [("list", "lineages/main/"), ("put", mark_key(ref))]

    def test_a_superseded_run_cannot_write_a_mark(self, store, run, backend):
        (base,) = save(run, 10)
        store.begin_run("main", base)
        before = contents(backend)
        with pytest.raises(WriterSupersededError) as raised:
            mark(run, 15, base)
        assert raised.value.uri == store.uri
        assert contents(backend) == before

    @pytest.mark.parametrize(
        ("step", "base"),
        [
            (15, CheckpointRef("main", 1, 16)),
            (15, CheckpointRef("main", 2, 10)),
            (15, CheckpointRef("worker-1", 1, 10)),
            (-1, CheckpointRef("main", 1, -1)),
            (1 << 63, CheckpointRef("main", 1, 10)),
        ],
    )
    def test_a_mark_that_no_key_can_hold_is_refused(self, run, backend, step, base):
        before = objects(backend)
        with pytest.raises(ValueError, match="mark at step"):
            mark(run, step, base)
        assert objects(backend) == before

    def test_a_mark_can_be_written_during_a_save_and_a_prune_of_the_run(self, store, run, backend):
        _, base = save(run, 10, 20)
        written = []

        def write(key: str) -> None:
            if key.startswith(("packs/", "lineages/main/99999999")) and not key.endswith(".mark"):
                thread = threading.Thread(target=lambda: written.append(mark(run, 25, base)))
                thread.start()
                thread.join(60)

        busy = run_in(CheckpointStore(BeforeWrites(backend, write)), run)
        busy.save(30, some_state(b"30"))
        busy.prune(KeepLast(2))
        assert len(written) >= 2
        assert store.list_worker("main").usable_marks == written[:1]
        assert store.verify().ok


class TestResuming:
    def test_a_run_continues_from_the_step_of_a_mark(self, store, run):
        _, base = save(run, 10, 20)
        ref = mark(run, 25, base).ref
        resumed = store.begin_run("main", ref, base=base)
        save(resumed, 30)
        assert resumed.lineage.parent == ref
        assert steps(store.history("main")) == [(1, 10), (1, 20), (2, 30)]
        assert resumed.lineage.run_id == run.lineage.run_id

    def test_the_first_save_of_a_run_with_a_base_uploads_nothing_for_an_unchanged_state(self, store, run):
        base = run.save(10, some_state(b"x" * 5000))
        resumed = store.begin_run("main", mark(run, 15, base.ref).ref, base=base.ref)
        info = resumed.save(20, some_state(b"x" * 5000))
        assert info.stored_bytes == 1  # the placeholder of a save without new data
        assert loaded(store, info) == [("Iterator", state_of(b"x" * 5000))]

    def test_the_first_save_is_complete_if_the_base_is_gone(self, store, run, backend):
        base = run.save(10, some_state(b"x" * 5000))
        resumed = store.begin_run("main", mark(run, 15, base.ref).ref, base=base.ref)
        backend.delete([manifest_key(base.ref)])
        info = resumed.save(20, some_state(b"x" * 5000))
        assert loaded(store, info) == [("Iterator", state_of(b"x" * 5000))]

    def test_what_the_run_saved_after_the_mark_is_left_behind(self, store, run):
        (base,) = save(run, 10)
        ref = mark(run, 15, base)
        behind = mark(run, 16, base)
        save(run, 20)
        store.begin_run("main", ref.ref, base=base)
        listing = store.list_worker("main")
        assert (listing.history, listing.usable_marks) == ([base], [ref])
        assert behind in listing.marks

    def test_marks_of_several_runs_without_a_checkpoint_stay_usable(self, store, run):
        (base,) = save(run, 10)
        second = store.begin_run("main", base)
        one = mark(second, 15, base)
        third = store.begin_run("main", one.ref, base=base)
        two = mark(third, 18, base)
        store.begin_run("main", two.ref, base=base)
        assert store.list_worker("main").usable_marks == [one, two]

    def test_a_run_can_go_back_to_a_mark_that_was_left_behind(self, store, run):
        (base,) = save(run, 10)
        second = store.begin_run("main", base)
        behind = mark(second, 15, base)
        store.begin_run("main", base)
        assert store.list_worker("main").usable_marks == []
        again = store.begin_run("main", behind.ref, base=base)
        assert again.lineage.run_id == run.lineage.run_id
        assert store.list_worker("main").usable_marks == [behind]
        assert store.history("main") == [base]

    @pytest.mark.parametrize(
        ("parent", "base"),
        [
            (None, CheckpointRef("main", 1, 10)),
            (CheckpointRef("main", 1, 15), CheckpointRef("main", 1, 16)),
            (CheckpointRef("main", 1, 15), CheckpointRef("worker-1", 1, 10)),
        ],
    )
    def test_a_base_that_does_not_lead_to_the_parent_is_refused(self, store, run, backend, parent, base):
        save(run, 10, 20)
        before = objects(backend)
        with pytest.raises(ValueError, match="step 1"):
            store.begin_run("main", parent, base=base)
        assert objects(backend) == before

    def test_what_a_run_was_resumed_from_by_a_mark_stays_until_the_run_has_saved(self, store, run):
        first, _ = save(run, 10, 20)
        ref = mark(run, 25, first)
        resumed = store.begin_run("main", ref.ref, base=first)
        store.prune(KeepNothing())
        assert steps(store.history("main")) == [(1, 10), (1, 20)]
        assert store.list_worker("main").usable_marks == [ref]
        save(resumed, 30)
        assert store.prune(KeepNothing()).removed_marks == (ref,)
        assert steps(store.history("main")) == [(2, 30)]


class TestPruning:
    def test_a_mark_is_removed_with_its_base(self, store, run, backend):
        first, second = save(run, 10, 20)
        gone, stays = mark(run, 15, first), mark(run, 25, second)
        assert store.prune(KeepLast(1)).removed_marks == (gone,)
        assert store.marks() == [stays]

    def test_a_mark_keeps_no_checkpoint_by_itself(self, store, run):
        first, _ = save(run, 10, 20)
        mark(run, 25, first)
        assert store.prune(KeepNothing()).removed == (first,)

    def test_the_base_of_the_mark_of_an_existing_model_stays_with_the_mark(self, store, run):
        first, second, *_ = save(run, 10, 20, 30, 40)
        stays, gone = mark(run, 35, first), mark(run, 26, second)
        report = store.prune(KeepForModels({35, 40}))
        assert report.removed == (second,)
        assert report.kept[first] == "the mark of the model checkpoint of step 35 leans on it"
        assert (report.removed_marks, store.marks()) == ((gone,), [stays])

    def test_a_mark_that_a_restart_left_behind_keeps_the_base_until_the_new_run_has_saved_twice(
        self, store, run
    ):
        first, second = save(run, 10, 20)
        behind = mark(run, 25, first)
        resumed = store.begin_run("main", second)
        save(resumed, 26)
        assert store.prune(KeepForModels({25, 26})).removed_marks == ()
        save(resumed, 27)
        report = store.prune(KeepForModels({25, 26}))
        assert (report.removed_marks, report.removed) == ((behind,), (first,))

    def test_the_mark_of_a_pinned_checkpoint_stays(self, store, run):
        first, _ = save(run, 10, 20)
        ref = mark(run, 15, first)
        store.pin(first)
        assert store.prune(KeepLast(1)).removed_marks == ()
        assert store.marks() == [ref]

    def test_a_dry_run_reports_the_same_marks_and_removes_none(self, store, run, backend):
        first, second, _ = save(run, 10, 20, 30)
        for step, base in ((15, first), (25, second), (26, first)):
            mark(run, step, base)
        before = contents(backend)
        dry = store.prune(KeepLast(1), dry_run=True)
        assert contents(backend) == before
        assert len(dry.removed_marks) == 3
        assert dry == store.prune(KeepLast(1))

    def test_a_report_with_marks_can_be_written_as_json(self, store, run):
        first, _ = save(run, 10, 20)
        mark(run, 15, first)
        report = json.loads(json.dumps(run.prune(KeepLast(1)).to_dict()))
        assert report["removed_marks"] == [
            {
                "ref": {"worker": "main", "lineage": 1, "step": 15},
                "base": {"worker": "main", "lineage": 1, "step": 10},
            }
        ]

    def test_marks_are_removed_after_the_manifests_of_their_bases(self, store, run, backend):
        first, second, _ = save(run, 10, 20, 30)
        marks = [mark(run, 15, first), mark(run, 25, second)]
        recording = Recording(backend)
        CheckpointStore(recording).prune(KeepLast(1))
        removed = [key for key in recording.keys("delete") if key.startswith("checkpoints/")]
        assert removed == [*map(manifest_key, (first, second)), *map(mark_key, marks)]

    def test_a_mark_that_an_interrupted_prune_has_left_is_removed_by_the_next(self, store, run, backend):
        first, *_ = save(run, 10, 20, 30)
        ref = mark(run, 15, first)
        backend.delete([manifest_key(first)])
        report = store.prune(KeepAll())
        assert (report.removed, report.removed_marks, store.marks()) == ((), (ref,), [])

    def test_a_mark_that_is_written_during_a_prune_stays(self, store, run, backend):
        first, _ = save(run, 10, 20)
        written = []

        def write() -> None:
            written.append(mark(run, 25, first))

        report = CheckpointStore(Overtaken(backend, "delete", "checkpoints/", write)).prune(KeepLast(1))
        assert report.removed_marks == ()
        assert store.marks() == written
        assert store.list_worker("main").usable_marks == []
        assert store.prune(KeepLast(1)).removed_marks == tuple(written)

    def test_no_mark_is_removed_because_a_listing_lacks_its_base(self, store, run, backend):
        (base,) = save(run, 10)
        ref = mark(run, 15, base)
        with pytest.raises(InconsistentListingError):
            CheckpointStore(listing_without(backend, manifest_key(base))).prune(KeepAll())
        assert store.marks() == [ref]

    def test_no_mark_is_removed_because_a_listing_lacks_a_base_that_has_no_data(self, store, run, backend):
        base = run.save(10, []).ref
        save(run, 20)
        ref = mark(run, 25, base)
        with pytest.raises(InconsistentListingError):
            CheckpointStore(listing_without(backend, manifest_key(base))).prune(KeepAll())
        assert store.marks() == [ref]

    def test_nothing_is_removed_for_being_left_behind_while_the_newest_record_is_damaged(
        self, store, run, backend
    ):
        (base,) = save(run, 10)
        resumed = store.begin_run("main", base)
        save(resumed, 11, 12)
        backend.put(lineage_key("main", 2), b"damaged")
        behind = MarkRef(CheckpointRef("main", 1, 20), base)
        mark_of_old_run = mark_as_of(run, behind, backend)
        assert store.prune(KeepNothing()).removed_marks == ()
        assert store.marks() == [mark_of_old_run]

    def test_a_superseded_run_removes_no_mark(self, store, run):
        first, second = save(run, 10, 20)
        ref = mark(run, 15, first)

        def begin() -> None:
            store.begin_run("main", second)

        overtaken = Overtaken(run._catalog.backend, "get", "checkpoints/", begin)
        with pytest.raises(WriterSupersededError):
            CheckpointStore(overtaken).prune(KeepLast(1))
        assert store.marks() == [ref]

    def test_the_record_of_a_run_stays_as_long_as_its_marks(self, store, run, backend):
        (base,) = save(run, 10)
        mark(store.begin_run("main", base), 15, base)
        save(store.begin_run("main", base), 20)
        store.prune(KeepAll())
        assert lineage_key("main", 2) in objects(backend)
        save(store.begin_run("main", base), 30, 40)
        store.prune(KeepAll())
        assert lineage_key("main", 2) not in objects(backend)

    def test_marks_cost_a_prune_no_request_unless_some_are_removed(self, backend):
        def calls(marks: int) -> list[str]:
            place = CheckpointStore.open(backend, create=True)
            run = place.begin_run(f"worker-{marks}")
            base, newest = save(run, 10, 20)
            for number in range(marks):
                mark(run, 30 + number, newest if number % 2 else base)
            recording = Recording(backend)
            CheckpointStore(recording).prune(KeepAll(), f"worker-{marks}")
            return [f"{verb} {key.split('/')[0]}" for verb, key in recording.calls]

        assert calls(50) == calls(0)

    def test_marks_cost_a_resume_no_request(self, store, run, backend):
        def calls() -> list[tuple[str, str]]:
            recording = Recording(backend)
            CheckpointStore(recording).list_worker("main")
            return sorted(recording.calls)

        (base,) = save(run, 10)
        before = calls()
        for step in range(11, 60):
            mark(run, step, base)
        assert calls() == before


class TestCopying:
    @pytest.fixture
    def target(self, memory) -> CheckpointStore:
        return CheckpointStore.open(memory, create=True)

    def test_a_copy_has_the_same_objects(self, store, run, backend, target, memory):
        first, second = save(run, 10, 20)
        marks = [mark(run, 15, first), mark(run, 25, first), mark(run, 25, second)]
        report = store.copy_to(target)
        assert (report.ok, list(report.copied_marks)) == (True, marks)
        assert contents(memory) == contents(backend)
        assert target.list_worker("main").usable_marks == marks

    def test_a_mark_is_written_after_its_base(self, store, run, memory):
        first, _ = save(run, 10, 20)
        ref = mark(run, 25, first)
        recording = Recording(memory)
        store.copy_to(CheckpointStore.open(recording, create=True))
        writes = [key for verb, key in recording.calls if verb in ("put", "create")]
        assert writes.index(manifest_key(first)) < writes.index(mark_key(ref))

    def test_only_marks_that_lean_on_a_copied_checkpoint_are_copied(self, store, run, target):
        first, second = save(run, 10, 20)
        mark(run, 15, first)
        ref = mark(run, 25, second)
        assert store.copy_to(target, [second]).copied_marks == (ref,)
        assert target.marks() == [ref]

    def test_no_mark_is_copied_if_its_base_is_damaged(self, store, run, backend, target):
        first, second = save(run, 10, 20)
        mark(run, 15, first)
        ref = mark(run, 25, second)
        backend.put(manifest_key(first), b"damaged")
        report = CheckpointStore(backend).copy_to(target)
        assert (list(report.problems), report.mark_problems) == ([first], {})
        assert target.marks() == [ref]

    def test_copying_again_brings_over_new_marks_and_writes_no_other(self, store, run, target, memory):
        (base,) = save(run, 10)
        mark(run, 15, base)
        store.copy_to(target)
        assert store.copy_to(target).copied_marks == ()
        ref = mark(run, 16, base)
        report = store.copy_to(target)
        assert (report.copied, report.present, report.copied_marks) == ((), (base,), (ref,))

    def test_a_mark_that_its_run_has_written_again_replaces_the_one_at_the_target(self, store, run, target):
        (base,) = save(run, 10)
        mark(run, 15, base, count=5)
        store.copy_to(target)
        ref = mark(run, 15, base, count=6)
        assert store.copy_to(target).copied_marks == (ref,)
        assert target.read_mark(ref).draws == {"Iterator": 6}

    def test_a_copy_back_does_not_replace_a_mark_by_an_older_one(self, store, run, target):
        (base,) = save(run, 10)
        mark(run, 15, base, count=5)
        store.copy_to(target)
        ref = mark(run, 15, base, count=6)
        assert target.copy_to(store).copied_marks == ()
        assert store.read_mark(ref).draws == {"Iterator": 6}

    def test_a_damaged_mark_at_the_target_is_replaced(self, store, run, target, memory):
        (base,) = save(run, 10)
        ref = mark(run, 15, base)
        store.copy_to(target)
        memory.put(mark_key(ref), b"damaged")
        assert store.copy_to(target).copied_marks == (ref,)
        assert target.read_mark(ref).ref == ref

    def test_a_damaged_mark_is_not_copied_and_is_reported(self, store, run, backend, target, caplog):
        (base,) = save(run, 10)
        damaged, intact = mark(run, 15, base), mark(run, 16, base)
        backend.put(mark_key(damaged), b"damaged")
        report = store.copy_to(target)
        assert (report.ok, report.copied, report.copied_marks) == (False, (base,), (intact,))
        assert mark_key(damaged) in report.mark_problems[damaged]
        assert mark_key(damaged) in caplog.text
        assert target.marks() == [intact]

    def test_a_run_continues_at_the_target_from_a_mark(self, store, run, target):
        (base,) = save(run, 10)
        ref = mark(run, 15, base)
        store.copy_to(target)
        resumed = target.begin_run("main", ref.ref, base=base)
        save(resumed, 20)
        assert steps(target.history("main")) == [(1, 10), (2, 20)]


class TestVerifying:
    def test_intact_marks_are_no_problem(self, store, run):
        (base,) = save(run, 10)
        mark(run, 15, base)
        assert store.verify().ok

    def test_a_damaged_mark_is_a_problem_of_the_mark_alone(self, store, run, backend):
        (base,) = save(run, 10)
        damaged, _ = mark(run, 15, base), mark(run, 16, base)
        backend.put(mark_key(damaged), b"damaged")
        report = store.verify(read_data=False)
        assert (report.ok, report.problems, list(report.mark_problems)) == (False, {}, [damaged])
        assert mark_key(damaged) in report.mark_problems[damaged]
        assert store.check(base).ref == base

    def test_a_mark_whose_base_is_gone_is_a_problem_until_it_is_pruned(self, store, run, backend):
        first, second = save(run, 10, 20)
        ref = mark(run, 15, first)
        mark(run, 25, second)
        backend.delete([manifest_key(first)])
        assert "its base does not exist" in store.verify().mark_problems[ref]
        store.prune(KeepAll())
        assert store.verify().ok

    def test_a_mark_that_is_pruned_meanwhile_is_no_problem(self, store, run, backend):
        first, _ = save(run, 10, 20)
        ref = mark(run, 15, first)
        pruned = Overtaken(backend, "get", mark_key(ref), lambda: store.prune(KeepLast(1)))
        assert CheckpointStore(pruned).verify("main").mark_problems == {}

    def test_only_the_marks_of_the_chosen_worker_are_checked(self, store, run, backend):
        (base,) = save(run, 10)
        backend.put(mark_key(mark(run, 15, base)), b"damaged")
        save(store.begin_run("worker-1"), 10)
        assert store.verify("worker-1").ok


def mark_as_of(run: Run, ref: MarkRef, backend: Backend) -> MarkRef:
    """Write the mark of a run that has not noticed that it was superseded."""
    suspended = Run(run._catalog, run.lineage, run._options, run._released)
    suspended._fence.check_may_save = lambda: None
    return mark(suspended, ref.ref.step, ref.base)
