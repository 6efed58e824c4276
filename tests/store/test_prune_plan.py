"""Pure functions decide what a prune removes, and give a reason for everything that stays."""

from __future__ import annotations

from typing import Optional

import pytest

from input_checkpoint import CheckpointRef, KeepLast, MarkRef
from input_checkpoint.backends.base import ObjectInfo
from input_checkpoint.format.keys import (
    announcement_key,
    copy_announcement_key,
    lineage_key,
    pack_key,
    prune_announcement_key,
)
from input_checkpoint.format.lineage import Ancestor, InferredLineage, Lineage
from input_checkpoint.store.announcing import STALE_ANNOUNCEMENT_SECONDS
from input_checkpoint.store.prune_plan import (
    PackNeeds,
    ReadableHistory,
    kept_checkpoints,
    plan_announcements,
    plan_checkpoints,
    unneeded_lineages,
    unneeded_marks,
    unneeded_packs,
)
from input_checkpoint.store.saving import PendingSave
from tests.support.stores import KeepNothing

NEWEST = Lineage("main", 2, (Ancestor(1, 20),))
FIRST = [CheckpointRef("main", 1, step) for step in (10, 20, 30)]
SECOND = [CheckpointRef("main", 2, step) for step in (25, 35)]
NOTHING_NEEDED = PackNeeds(frozenset(), frozenset())
HOUR = 3600.0


def packs_of(*refs: CheckpointRef, age: Optional[float] = 0.0) -> dict[str, Optional[float]]:
    return {pack_key(ref, "0123abcd", 0): age for ref in refs}


def unneeded(packs, committed=(), needs=NOTHING_NEEDED, released=(), pending=None) -> list[str]:
    return unneeded_packs(packs, NEWEST, committed, needs, released, pending, orphan_age=HOUR)


class TestCheckpoints:
    def test_checkpoints_left_behind_by_a_restart_stay_until_the_new_run_has_saved_twice(self):
        once = kept_checkpoints(NEWEST, [*FIRST, SECOND[0]], ReadableHistory((), ()), KeepNothing())
        twice = kept_checkpoints(NEWEST, [*FIRST, *SECOND], ReadableHistory((), ()), KeepNothing())
        assert once[FIRST[2]].startswith("left behind by a restart")
        assert FIRST[2] not in twice

    def test_the_newest_of_the_history_stays_regardless_of_the_policy(self):
        kept = kept_checkpoints(NEWEST, [*FIRST, *SECOND], ReadableHistory((), ()), KeepNothing())
        assert kept == {SECOND[1]: "the newest"}

    def test_a_checkpoint_that_cannot_be_read_stays(self):
        history = ReadableHistory((), [FIRST[0]])
        kept = kept_checkpoints(NEWEST, [*FIRST, *SECOND], history, KeepNothing())
        assert kept[FIRST[0]] == "its manifest cannot be read"

    def test_nothing_is_removed_while_the_record_of_the_newest_lineage_is_damaged(self):
        damaged = InferredLineage("main", 2, NEWEST.ancestors)
        kept = kept_checkpoints(damaged, [*FIRST, *SECOND], ReadableHistory((), ()), KeepLast(1))
        assert set(kept) == {*FIRST, *SECOND}

    def test_a_pinned_checkpoint_stays_for_both_reasons(self):
        plan = plan_checkpoints(FIRST, {FIRST[0]: "the newest"}, {FIRST[0]: "best", FIRST[1]: ""})
        assert plan.kept == {FIRST[0]: "the newest; pinned: best", FIRST[1]: "pinned"}
        assert plan.removed == (FIRST[2],)

    def test_what_the_newest_run_was_resumed_from_by_a_mark_stays_until_it_has_saved(self):
        resumed = Lineage("main", 2, (Ancestor(1, 40),))
        marks = [MarkRef(CheckpointRef("main", 1, 40), FIRST[0]), MarkRef(FIRST[2], FIRST[1])]
        kept = kept_checkpoints(resumed, FIRST, ReadableHistory((), ()), KeepNothing(), marks)
        assert kept == {
            FIRST[0]: "the newest run was resumed from it, and has not saved yet",
            FIRST[2]: "the newest",
        }
        saved = CheckpointRef("main", 2, 50)
        kept = kept_checkpoints(resumed, [*FIRST, saved], ReadableHistory((), ()), KeepNothing(), marks)
        assert kept == {saved: "the newest"}


class TestMarks:
    BEHIND = MarkRef(CheckpointRef("main", 1, 22), FIRST[1])
    HELD = MarkRef(CheckpointRef("main", 2, 22), FIRST[1])
    NEW = MarkRef(CheckpointRef("main", 2, 30), SECOND[0])

    def test_a_mark_goes_with_its_base(self):
        marks = [self.HELD, self.NEW]
        assert unneeded_marks(NEWEST, [*FIRST, *SECOND], {*FIRST, *SECOND}, marks) == []
        assert unneeded_marks(NEWEST, [*FIRST, *SECOND], SECOND, marks) == [self.HELD]

    def test_a_mark_that_a_restart_has_left_behind_goes_once_the_new_run_has_saved_twice(self):
        once, twice = [*FIRST, SECOND[0]], [*FIRST, *SECOND]
        assert unneeded_marks(NEWEST, once, once, [self.BEHIND]) == []
        assert unneeded_marks(NEWEST, twice, twice, [self.BEHIND]) == [self.BEHIND]

    def test_no_mark_is_left_behind_while_the_record_of_the_newest_lineage_is_damaged(self):
        damaged, stored = InferredLineage("main", 2, NEWEST.ancestors), [*FIRST, *SECOND]
        assert unneeded_marks(damaged, stored, stored, [self.BEHIND]) == []


class TestPacks:
    def test_a_pack_whose_checkpoint_was_removed_is_removed_at_any_age(self):
        packs = packs_of(FIRST[0])
        assert unneeded(packs, released=[FIRST[0]]) == list(packs)

    def test_a_pack_that_a_remaining_manifest_names_stays(self):
        packs = packs_of(FIRST[0], age=10 * HOUR)
        assert unneeded(packs, needs=PackNeeds(list(packs), ())) == []

    def test_a_pack_of_a_remaining_checkpoint_stays(self):
        assert unneeded(packs_of(FIRST[0], age=10 * HOUR), committed=[FIRST[0]]) == []

    def test_a_pack_without_a_checkpoint_is_removed_once_it_is_old_enough(self):
        assert unneeded(packs_of(FIRST[0], age=0.9 * HOUR)) == []
        assert unneeded(packs_of(FIRST[0], age=1.1 * HOUR)) != []

    def test_a_pack_of_unknown_age_is_removed_once_its_run_has_been_superseded(self):
        assert unneeded(packs_of(FIRST[0], age=None)) == list(packs_of(FIRST[0]))
        assert unneeded(packs_of(SECOND[0], age=None)) == []

    def test_a_pack_of_unknown_age_is_removed_if_its_checkpoint_was_removed_by_this_process(self):
        assert unneeded(packs_of(SECOND[0], age=None), released=[SECOND[0]]) == list(packs_of(SECOND[0]))

    def test_packs_that_a_damaged_manifest_may_name_stay(self):
        needs = PackNeeds((), [FIRST[1]])
        assert unneeded(packs_of(FIRST[0], age=10 * HOUR), needs=needs, released=[FIRST[0]]) == []
        assert unneeded(packs_of(FIRST[2], age=10 * HOUR), needs=needs, released=[FIRST[2]]) != []

    def test_packs_that_the_save_in_progress_has_written_or_builds_on_stay(self):
        written, built_on, other = packs_of(SECOND[0]), packs_of(FIRST[0]), packs_of(FIRST[1])
        pending = PendingSave(SECOND[0], frozenset(), frozenset(built_on))
        packs = {**written, **built_on, **other}
        assert unneeded(packs, released=[*FIRST, *SECOND], pending=pending) == list(other)

    def test_an_object_with_an_unknown_key_stays(self):
        assert unneeded({"packs/main/notes.txt": 10 * HOUR}) == []


class TestAnnouncements:
    NOW = 1e9

    def planned(self, key: str, age: Optional[float] = 0.0, own_run: bool = False, own=()):
        modified = None if age is None else self.NOW - age
        found = {key: ObjectInfo(key, 0, modified)}
        plan = plan_announcements(found, NEWEST, None if age is None else self.NOW, own_run, own)
        return "respected" if plan.respected else "dead" if plan.dead else "ignored"

    def save(self, lineage: int) -> str:
        return announcement_key(CheckpointRef("main", lineage, 40), "0123abcd")

    def test_a_save_of_the_newest_run_holds_back_a_prune_of_the_store_but_not_one_of_the_run_itself(self):
        assert self.planned(self.save(2)) == "respected"
        assert self.planned(self.save(2), own_run=True) == "dead"

    def test_the_save_in_progress_of_the_run_that_prunes_is_ignored(self):
        assert self.planned(self.save(2), own_run=True, own=[self.save(2)]) == "ignored"

    @pytest.mark.parametrize("age", [0.0, None])
    def test_a_save_of_an_older_run_is_dead(self, age):
        assert self.planned(self.save(1), age) == "dead"

    def test_a_save_of_a_newer_run_holds_back_every_prune(self):
        assert self.planned(self.save(3), own_run=True) == "respected"

    def test_an_announcement_is_dead_after_a_day(self):
        assert self.planned(self.save(2), STALE_ANNOUNCEMENT_SECONDS - 1) == "respected"
        assert self.planned(self.save(2), STALE_ANNOUNCEMENT_SECONDS) == "dead"

    def test_an_announcement_of_unknown_age_is_respected(self):
        assert self.planned(self.save(2), None) == "respected"

    def test_a_copy_holds_back_every_prune_until_it_is_a_day_old(self):
        copy = copy_announcement_key("main", 5, "0123abcd")
        assert self.planned(copy, own_run=True) == "respected"
        assert self.planned(copy, STALE_ANNOUNCEMENT_SECONDS, own_run=True) == "dead"

    def test_a_prune_holds_back_no_other_prune(self):
        prune = prune_announcement_key("main", 2, "0123abcd")
        assert self.planned(prune) == "ignored"
        assert self.planned(prune, None) == "ignored"

    def test_what_a_killed_prune_has_left_is_dead_after_a_day_or_once_a_newer_run_has_begun(self):
        assert (
            self.planned(prune_announcement_key("main", 2, "0123abcd"), STALE_ANNOUNCEMENT_SECONDS) == "dead"
        )
        assert self.planned(prune_announcement_key("main", 1, "0123abcd")) == "dead"

    def test_no_key_of_a_worker_comes_after_the_announcement_of_a_prune(self):
        others = [lineage_key("main", 99_999_998), self.save(99_999_998)]
        copies = [copy_announcement_key("main", number, "f" * 8) for number in (0, 10**40 - 1)]
        assert max([*others, *copies]) < prune_announcement_key("main", 1, "0" * 8)


RECORDS = {number: lineage_key("main", number) for number in (1, 2, 3)}


class TestLineages:
    def test_a_record_is_removed_with_the_last_checkpoint_of_its_lineage(self):
        assert unneeded_lineages(NEWEST, RECORDS, SECOND) == [RECORDS[1]]
        assert unneeded_lineages(NEWEST, RECORDS, [FIRST[0], *SECOND]) == []

    def test_no_record_is_removed_while_the_newest_one_is_damaged(self):
        assert unneeded_lineages(InferredLineage("main", 2, ()), RECORDS, SECOND) == []
