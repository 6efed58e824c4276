"""Whatever a storage answers wrongly, nothing that is needed is removed, and no save is OK by mistake."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import pytest

import input_checkpoint as ic
from input_checkpoint.backends.base import ObjectInfo
from input_checkpoint.format.keys import lineage_key, manifest_key
from tests.support.cycles import elements, new_backend
from tests.support.false_answers import CUTS, GAPS, FalseListings, Flipping
from tests.support.stores import announcements, loaded, pack_keys, run_in, save, some_state
from tests.support.wrappers import LosingResponses, Overtaken, Recording, Wrapped, contents

SHAPES = {**CUTS, **GAPS}
PREFIXES = ("checkpoints/", "packs/", "lineages/", "pins/")
# Of the listing of lineages, both ends are checked, and gaps are not.
CASES = [(prefix, shape) for prefix in PREFIXES for shape in (CUTS if prefix == "lineages/" else SHAPES)]


MARKS = {16: ic.CheckpointRef("main", 2, 15), 19: ic.CheckpointRef("main", 2, 18)}
"""Base of each mark, by its step."""


def state(step: int) -> list[ic.IteratorState]:
    return [ic.IteratorState("Iterator", elements(step))]


def fill(backend: ic.Backend) -> ic.Run:
    """A store that has all kinds of objects: shared packs, a restart, a pin, marks, a save of nothing new."""
    options = ic.SaveOptions(pack_bytes=6_000, concurrency=1)
    store = ic.CheckpointStore.open(backend, create=True, options=options, retry=None)
    run = store.begin_run("main")
    for step in (10, 12, 14, 16):
        run.save(step, state(step))
    run.prune(ic.KeepLast(3))
    store.pin(ic.CheckpointRef("main", 1, 12), note="best")
    run = store.begin_run("main", ic.CheckpointRef("main", 1, 14))
    run.save(15, state(15))
    run.save(17, state(15))
    run.save(18, state(18))
    for step, base in MARKS.items():
        run.mark(step, base, {"Iterator": 1}, {"Iterator": "9f3c"})
    return run


def check_nothing_lost(backend: ic.Backend, may_go: Collection[int] = ()) -> None:
    """Check that every checkpoint is there, except those that may go, and that none is damaged."""
    store = ic.CheckpointStore.open(backend)
    assert store.verify().problems == {}
    left = {info.step for info in store.checkpoints()}
    assert {12, 14, 15, 17, 18} - left <= {*may_go}
    assert {step for step, base in MARKS.items() if base.step in left} <= {
        mark.ref.step for mark in store.list_worker("main").usable_marks
    }
    for info in store.checkpoints():
        assert loaded(store, info) == [("Iterator", elements(15 if info.step == 17 else info.step))]


def prune_wrongly(
    backend: ic.Backend, prefix: str, shape: str, first: int, by_the_run: bool, policy: ic.RetentionPolicy
) -> bool:
    """Prune while listings of a prefix are false. Return whether the prune was refused."""
    run = fill(backend)
    false = FalseListings(backend, prefix, SHAPES[shape], first)
    store = ic.CheckpointStore.open(false, retry=None)
    prune = run_in(store, run).prune if by_the_run else store.prune
    try:
        prune(policy, orphan_age=0)
    except ic.InconsistentListingError:
        return True
    return False


def check_prune_removes_nothing(prefix: str, shape: str, first: int, by_the_run: bool) -> None:
    """Check a prune that keeps everything, while the n-th listing and all later ones are false."""
    backend = new_backend("memory")
    prune_wrongly(backend, prefix, shape, first, by_the_run, ic.KeepAll())
    check_nothing_lost(backend)
    assert announcements(backend) == []


@pytest.mark.parametrize("by_the_run", [False, True])
class TestListings:
    # integration/test_false_answers.py has every case, from each of the three listings on.
    @pytest.mark.parametrize(
        ("prefix", "shape", "first"), [(*case, 1 + number % 3) for number, case in enumerate(CASES)]
    )
    def test_a_prune_removes_nothing_because_of_a_false_listing(self, prefix, shape, first, by_the_run):
        check_prune_removes_nothing(prefix, shape, first, by_the_run)

    @pytest.mark.parametrize(("prefix", "shape"), CASES)
    def test_a_policy_lets_nothing_go_because_of_a_false_listing(self, prefix, shape, by_the_run):
        backend = new_backend("memory")
        prune_wrongly(backend, prefix, shape, 1, by_the_run, ic.KeepLast(2))
        check_nothing_lost(backend, may_go={14, 15})

    @pytest.mark.parametrize("first", [1, 2])
    @pytest.mark.parametrize("prefix", PREFIXES)
    def test_nothing_is_lost_on_any_backend_if_a_listing_is_empty(
        self, any_backend, prefix, first, by_the_run
    ):
        refused = prune_wrongly(any_backend, prefix, "empty", first, by_the_run, ic.KeepAll())
        check_nothing_lost(any_backend)
        if prefix in ("checkpoints/", "lineages/"):
            assert refused


class TestEvidence:
    def test_the_error_names_the_object_that_is_not_listed(self, memory):
        fill(memory)
        false = FalseListings(memory, "checkpoints/", CUTS["empty"])
        with pytest.raises(ic.InconsistentListingError) as raised:
            ic.CheckpointStore.open(false).prune(ic.KeepAll())
        missing = ic.CheckpointRef("main", 1, 12)
        assert (raised.value.key, raised.value.ref) == (manifest_key(missing), missing)
        assert raised.value.uri == memory.uri
        assert "No data was removed" in str(raised.value)

    def test_a_manifest_that_is_listed_and_not_found_is_a_contradiction(self, memory):
        run = fill(memory)
        hidden = manifest_key(ic.CheckpointRef("main", 1, 14))

        class Hiding(Wrapped):
            def before(self, verb: str, key: str) -> None:
                if verb == "get" and key == hidden:
                    raise ic.ObjectNotFoundError("no", uri=self.uri, key=key)

        store = ic.CheckpointStore.open(Hiding(memory), retry=None)
        before = contents(memory)
        with pytest.raises(ic.InconsistentListingError, match="although it is listed"):
            run_in(store, run).prune(ic.KeepAll(), orphan_age=0)
        assert contents(memory) == before

    def test_a_run_knows_what_it_has_committed_without_any_data(self, any_backend):
        run = ic.CheckpointStore.open(any_backend, create=True).begin_run("main")
        false = FalseListings(any_backend, "checkpoints/", CUTS["empty"])
        own = run_in(ic.CheckpointStore.open(false), run)
        ref = own.save(10, []).ref
        with pytest.raises(ic.InconsistentListingError) as raised:
            own.prune(ic.KeepAll())
        assert raised.value.ref == ref

    def test_the_checkpoint_that_the_newest_run_resumed_from_must_be_listed(self, any_backend):
        store = ic.CheckpointStore.open(any_backend, create=True)
        parent = store.begin_run("main").save(10, []).ref
        store.begin_run("main", parent)
        false = FalseListings(any_backend, "checkpoints/", CUTS["empty"])
        with pytest.raises(ic.InconsistentListingError) as raised:
            ic.CheckpointStore.open(false).prune(ic.KeepAll(), "main")
        assert raised.value.ref == parent

    def test_a_pin_whose_listing_is_false_still_keeps_its_checkpoint(self, any_backend):
        store = ic.CheckpointStore.open(any_backend, create=True)
        first, *_ = save(store.begin_run("main"), 10, 20, 30)
        store.pin(first, note="best")
        false = ic.CheckpointStore.open(FalseListings(any_backend, "pins/", CUTS["empty"]))
        report = false.prune(ic.KeepLast(1))
        assert report.kept[first] == "pinned: best"

    def test_a_run_that_has_just_begun_is_not_overlooked(self, memory):
        fill(memory)
        ic.CheckpointStore.open(memory).begin_run("main", ic.CheckpointRef("main", 2, 15))
        before = contents(memory)
        false = FalseListings(memory, "lineages/", CUTS["the first half"])
        with pytest.raises(ic.InconsistentListingError):
            ic.CheckpointStore.open(false).prune(ic.KeepLast(1), orphan_age=0)
        assert contents(memory) == before

    def test_a_checkpoint_that_is_committed_after_a_listing_is_no_contradiction(self, memory):
        fill(memory)

        class BeforeTheCommit(FalseListings):
            def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
                return self.inner.list(prefix) if self.falsified else super().list(prefix)

        earlier = BeforeTheCommit(memory, "checkpoints/main/", CUTS["without the last"])
        report = ic.CheckpointStore.open(earlier).prune(ic.KeepAll(), "main")
        assert [ref.step for ref in report.kept] == [12, 14, 15, 17, 18]

    def test_every_checkpoint_with_data_has_a_pack_of_its_own(self, store, run, backend):
        first, second = (run.save(step, some_state(b"same")) for step in (10, 20))
        assert [pack.key.split("/")[-1][:12] for pack in second.packs if pack.new] == ["000000000020"]
        assert second.stored_bytes == 1
        assert loaded(store, second) == loaded(store, first)
        assert store.verify().ok
        run.prune(ic.KeepLast(1))
        assert set(pack_keys(backend)) == {pack.key for pack in second.packs}


class TestRequests:
    """The evidence costs few requests."""

    def requests(self, run: ic.Run, backend: Recording) -> list[tuple[str, str]]:
        backend.calls.clear()
        run.prune(ic.KeepLast(2))
        return [(verb, key.split("/")[0]) for verb, key in backend.calls]

    def test_a_prune_beside_saves_sends_a_fixed_number_of_requests(self, memory):
        recording = Recording(memory)
        run = ic.CheckpointStore.open(recording, create=True, retry=None).begin_run("main")
        for step in range(10):
            save(run, step)
            requests = self.requests(run, recording)
        assert requests == [
            ("list", "lineages"),
            ("put", "lineages"),
            ("list", "packs"),
            ("list", "checkpoints"),
            ("list", "pins"),
            ("get", "pins"),
            ("list", "lineages"),
            ("delete", "checkpoints"),
            ("list", "lineages"),
            ("list", "checkpoints"),
            ("list", "lineages"),
            ("delete", "packs"),
            ("delete", "lineages"),
        ]

    def test_what_others_have_removed_is_looked_up_once(self, memory):
        fill(memory)
        recording = Recording(memory)
        run = ic.CheckpointStore.open(recording, retry=None).begin_run(
            "main", ic.CheckpointRef("main", 2, 18)
        )
        run.save(20, state(20))
        first, second = self.requests(run, recording), self.requests(run, recording)
        assert first.count(("get", "checkpoints")) > second.count(("get", "checkpoints")) == 0


class TestBeginning:
    def test_a_run_that_cannot_begin_because_the_answers_contradict_each_other_says_so(self, any_backend):
        store = ic.CheckpointStore.open(any_backend, create=True)
        save(store.begin_run("main"), 10)
        false = FalseListings(any_backend, "", CUTS["empty"])
        with pytest.raises(ic.InconsistentListingError) as raised:
            ic.CheckpointStore.open(false).begin_run("main")
        assert raised.value.key == lineage_key("main", 1)

    def test_a_record_that_exists_only_for_its_creator_ends_in_an_error(self, memory):
        class NeverCreates(Wrapped):
            def before(self, verb: str, key: str) -> None:
                if verb == "create" and key.startswith("lineages/"):
                    raise ic.ObjectExistsError("it exists", uri=self.uri, key=key)

        with pytest.raises(ic.InconsistentListingError, match="No run was begun"):
            ic.CheckpointStore.open(NeverCreates(memory), create=True).begin_run("main")

    def test_listings_that_never_agree_end_in_an_error(self, memory):
        store = ic.CheckpointStore.open(memory, create=True)
        (ref,) = save(store.begin_run("main"), 10)
        store.begin_run("main", ref)

        class Alternating(Wrapped):
            listings = 0

            def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
                found = list(self.inner.list(prefix))
                if prefix == "lineages/main/":
                    self.listings += 1
                    return iter(found[:1] if self.listings % 2 else found)
                return iter(found)

        memory.put(lineage_key("main", 1), b"damaged")
        with pytest.raises(ic.InconsistentListingError, match="contradict each other"):
            ic.CheckpointStore.open(Alternating(memory)).history("main")


class TestSaving:
    @pytest.mark.parametrize("first", [1, 2, 3])
    def test_a_save_does_not_take_a_false_listing_for_proof_that_no_newer_run_has_begun(
        self, any_backend, first
    ):
        store = ic.CheckpointStore.open(any_backend, create=True)
        run = store.begin_run("main")
        (ref,) = save(run, 10)
        store.begin_run("main", ref)
        false = ic.CheckpointStore.open(FalseListings(any_backend, "lineages/", CUTS["empty"], first))
        with pytest.raises((ic.InconsistentListingError, ic.WriterSupersededError)):
            save(run_in(false, run), 20)

    def test_a_run_whose_record_somebody_has_deleted_can_still_save(self, store, run, backend):
        backend.delete([run.lineage.key])
        (ref,) = save(run, 10)
        assert loaded(store, ref)


class TestDamageOnTheWay:
    """What is stored is intact."""

    @pytest.mark.parametrize("cut", [False, True])
    @pytest.mark.parametrize("prefix", ["packs/", "checkpoints/", "lineages/"])
    def test_a_checkpoint_is_loaded_although_one_answer_was_damaged(self, any_backend, prefix, cut, caplog):
        fill(any_backend)
        store = ic.CheckpointStore.open(Flipping(any_backend, prefix, cut=cut))
        assert [ref.step for ref in store.history("main")] == [12, 14, 15, 17, 18]
        assert loaded(store, store.newest("main")) == [("Iterator", elements(18))]
        assert store.verify().ok
        if not (cut and prefix == "checkpoints/"):  # there, the rest of a header is requested anyway
            assert "was intact when it was read again" in caplog.text

    @pytest.mark.parametrize("cut", [False, True])
    def test_a_store_is_opened_although_the_answer_about_its_format_was_damaged(self, any_backend, cut):
        ic.CheckpointStore.open(any_backend, create=True)
        assert ic.CheckpointStore.open(Flipping(any_backend, "format.json", cut=cut)).checkpoints() == []

    def test_a_copy_is_made_although_one_answer_was_damaged(self, any_backend):
        fill(any_backend)
        for prefix in ("packs/", "checkpoints/"):
            for number in range(1, 8):
                damaging = ic.CheckpointStore.open(Flipping(any_backend, prefix, [number]))
                target = ic.CheckpointStore.open(new_backend("memory"), create=True)
                assert damaging.copy_to(target).ok
                assert target.verify().ok

    def test_a_commit_recognizes_its_own_manifest_although_one_answer_was_damaged(self, memory):
        flipping = Flipping(LosingResponses(memory), "checkpoints/")
        (ref,) = save(ic.CheckpointStore.open(flipping, create=True).begin_run("main"), 10)
        assert loaded(ic.CheckpointStore.open(memory), ref)

    def test_what_is_damaged_twice_is_damaged_and_is_not_read_a_third_time(self, memory):
        (ref,) = save(ic.CheckpointStore.open(memory, create=True).begin_run("main"), 10)
        flipping = Flipping(memory, "checkpoints/", range(1, 99))
        with pytest.raises(ic.CorruptCheckpointError):
            loaded(ic.CheckpointStore.open(flipping), ref)
        assert flipping.reads <= 3  # the third asks whether it still exists


class TestRemovedMeanwhile:
    def prune_before(self, backend: ic.Backend, verb: str, key: str) -> ic.CheckpointStore:
        def prune() -> None:
            ic.CheckpointStore.open(backend).prune(ic.KeepLast(1), orphan_age=0)

        return ic.CheckpointStore.open(Overtaken(backend, verb, key, prune))

    @pytest.mark.parametrize("moment", [("list", "packs/"), ("get", "packs/")])
    def test_a_verification_does_not_call_a_checkpoint_damaged_that_a_prune_has_removed(
        self, any_backend, moment
    ):
        store = ic.CheckpointStore.open(any_backend, create=True)
        *_, newest = save(store.begin_run("main"), 10, 20, 30)
        report = self.prune_before(any_backend, *moment).verify()
        assert (report.problems, report.checked[-1:]) == ({}, (newest,))

    def test_loading_it_says_that_it_was_removed(self, any_backend):
        store = ic.CheckpointStore.open(any_backend, create=True)
        first, *_ = save(store.begin_run("main"), 10, 20, 30)
        with pytest.raises(ic.CheckpointNotFoundError, match="was removed while it was being read"):
            loaded(self.prune_before(any_backend, "get", "packs/"), first)

    def test_a_pack_that_is_newer_than_the_listing_is_not_missing(self, any_backend):
        save(ic.CheckpointStore.open(any_backend, create=True).begin_run("main"), 10)
        assert ic.CheckpointStore.open(FalseListings(any_backend, "packs/", CUTS["empty"])).verify().ok
