"""Runs follow one another in a linear history, even if the record of one is lost."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Callable

import pytest

from input_checkpoint import (
    Backend,
    CheckpointRef,
    CheckpointStore,
    CorruptCheckpointError,
    InconsistentListingError,
    KeepAll,
    KeepLast,
    ObjectExistsError,
    WriterSupersededError,
)
from input_checkpoint.format.keys import MAX_LINEAGE
from input_checkpoint.format.lineage import Lineage
from input_checkpoint.store.run import Run
from tests.support.stores import KeepNothing, pack_keys, save, steps
from tests.support.wrappers import LosingResponses, Overtaken, Wrapped, contents


class ActsBetweenListings(Wrapped):
    """Lists the lineages, then runs ``action``, then lists the checkpoints."""

    def __init__(self, inner: Backend, action: Callable[[], object]) -> None:
        super().__init__(inner)
        self._action = action
        self._listed = threading.Event()

    def list(self, prefix=""):
        if prefix.startswith("checkpoints/"):
            assert self._listed.wait(10), "the lineages were not listed meanwhile"
            self._action()
        found = list(self.inner.list(prefix))
        if prefix.startswith("lineages/"):
            self._listed.set()
        return iter(found)


class ContradictsItself(Wrapped):
    """Says that the record of every new lineage exists, and neither lists nor returns it as it is."""

    def before(self, verb, key):
        if verb == "create" and key.startswith("lineages/"):
            raise ObjectExistsError(f"{key} already exists", uri=self.uri, key=key)

    def get(self, key, start=0, end=None):
        return b"{}" if key.startswith("lineages/") else super().get(key, start, end)


class TestLineages:
    def test_the_first_run_of_a_worker_is_lineage_one(self, run):
        assert (run.lineage.number, run.lineage.ancestors) == (1, ())

    def test_a_restart_opens_the_next_lineage(self, store, run):
        (ref,) = save(run, 10)
        assert store.begin_run("main", parent=ref).lineage.number == 2

    def test_the_newest_lineage_is_the_one_opened_last(self, store, run):
        second = store.begin_run("main")
        assert store.newest_lineage("main") == second.lineage

    def test_no_run_follows_the_highest_number(self, backend, store):
        backend.put(f"lineages/main/{MAX_LINEAGE}.json", b"not genuine")
        with pytest.raises(CorruptCheckpointError, match="no number left for another run") as caught:
            store.begin_run("main")
        assert caught.value.key == f"lineages/main/{MAX_LINEAGE}.json"

    def test_a_worker_that_never_ran_has_no_lineage(self, store):
        assert store.newest_lineage("main") is None

    def test_a_run_that_begins_while_the_history_is_listed_is_part_of_it(self, backend, store, run):
        _, twenty, _ = save(run, 10, 20, 30)

        def restart() -> None:
            save(store.begin_run("main", parent=twenty), 25)

        seen = CheckpointStore(ActsBetweenListings(backend, restart)).history("main")
        assert steps(seen) == steps(store.history("main")) == [(1, 10), (1, 20), (2, 25)]

    def test_a_storage_that_contradicts_itself_is_an_error_and_not_an_endless_loop(self, backend, store):
        with pytest.raises(
            InconsistentListingError, match=r"lineages/main/00000001\.json .* listing .* does not contain it"
        ) as raised:
            CheckpointStore(ContradictsItself(backend)).begin_run("main")
        assert raised.value.uri == store.uri

    def test_a_lost_response_does_not_open_a_second_lineage(self, backend, store):
        opened = CheckpointStore(LosingResponses(backend)).begin_run("main").lineage
        assert opened.number == 1
        assert [info.key for info in backend.list("lineages/")] == [opened.key]

    def test_a_run_takes_the_next_number_if_another_run_begins_at_the_same_time(self, backend, store):
        theirs: list[Run] = []
        overtaken = Overtaken(backend, "create", "lineages/", lambda: theirs.append(store.begin_run("main")))
        ours = CheckpointStore(overtaken).begin_run("main").lineage
        assert (theirs[0].lineage.number, ours.number) == (1, 2)
        assert store.newest_lineage("main") == ours

    def test_each_of_many_runs_that_begin_at_once_gets_its_own_lineage(self, store):
        start = threading.Barrier(8)

        def begin(_: int) -> int:
            start.wait()
            return store.begin_run("main").lineage.number

        with ThreadPoolExecutor(8) as writers:
            assert sorted(writers.map(begin, range(8))) == list(range(1, 9))


class TestDamagedLineageRecord:
    """The second run restarted from step 20 of the first. The record of the second run is damaged."""

    @pytest.fixture
    def damaged_run(self, store, run, backend) -> Run:
        _, twenty, *_ = save(run, 10, 20, 30, 40)
        second = store.begin_run("main", parent=twenty)
        save(second, 30, 40)
        backend.put(second.lineage.key, b"{}")
        return second

    @pytest.fixture
    def damaged(self, damaged_run) -> Lineage:
        return damaged_run.lineage

    def test_the_history_is_unchanged(self, store, damaged):
        assert steps(store.history("main")) == [(1, 10), (1, 20), (2, 30), (2, 40)]

    def test_it_is_logged_with_its_uri_and_key(self, store, damaged, caplog):
        store.history("main")
        assert f"{store.uri}: {damaged.key} is damaged" in caplog.text

    def test_before_its_run_has_saved_anything_the_history_is_that_of_the_previous_run(
        self, store, run, backend
    ):
        (ref,) = save(run, 10)
        backend.put(store.begin_run("main", parent=ref).lineage.key, b"{}")
        assert store.history("main") == [ref]

    def test_the_newest_run_is_in_the_history_even_if_no_record_can_be_read(
        self, store, run, backend, damaged
    ):
        backend.put(run.lineage.key, b"{}")
        assert steps(store.history("main")) == [(1, 10), (1, 20), (2, 30), (2, 40)]

    def test_a_missing_record_is_treated_like_a_damaged_one(self, store, backend, damaged):
        backend.delete([damaged.key])
        assert steps(store.history("main")) == [(1, 10), (1, 20), (2, 30), (2, 40)]

    @pytest.mark.parametrize("parent", [None, CheckpointRef("main", 1, 20), CheckpointRef("main", 2, 40)])
    def test_the_next_run_takes_a_higher_number(self, store, damaged, parent):
        assert store.begin_run("main", parent).lineage.number == 3

    def test_the_next_run_takes_a_higher_number_than_that_of_a_missing_record(self, store, backend, damaged):
        backend.delete([damaged.key])
        assert store.begin_run("main").lineage.number == 3

    def test_the_next_run_continues_from_the_checkpoints_of_its_run(self, store, damaged):
        third = store.begin_run("main", parent=CheckpointRef("main", 2, 40))
        save(third, 50, 60)
        store.prune(KeepAll())
        assert steps(store.history("main")) == [(1, 10), (1, 20), (2, 30), (2, 40), (3, 50), (3, 60)]

    def test_a_run_can_restart_from_a_checkpoint_of_an_older_run_with_a_damaged_record(
        self, store, run, backend
    ):
        (ref,) = save(run, 10)
        store.begin_run("main")
        backend.put(run.lineage.key, b"{}")
        assert store.begin_run("main", parent=ref).lineage.parent == ref

    def test_its_run_can_still_save(self, store, damaged_run):
        save(damaged_run, 50)
        assert store.newest("main").step == 50

    def test_it_supersedes_older_runs_and_is_named_in_the_error(self, store, run, damaged):
        with pytest.raises(
            WriterSupersededError, match=rf"lineage 2, whose record {damaged.key} cannot be read"
        ):
            save(run, 50)

    def test_it_prevents_older_runs_from_pruning(self, store, run, damaged):
        with pytest.raises(WriterSupersededError, match=f"{damaged.key} cannot be read"):
            run.prune(KeepLast(1))

    def test_a_prune_stops_when_a_run_with_a_damaged_record_begins(self, store, run, backend):
        _, newest = save(run, 10, 20)

        def a_new_run_begins() -> None:
            backend.put(store.begin_run("main", parent=newest).lineage.key, b"{}")

        overtaken = Overtaken(backend, "list", "pins/", a_new_run_begins)
        with pytest.raises(WriterSupersededError, match="new run of worker 'main' began"):
            CheckpointStore(overtaken).prune(KeepNothing(), "main")
        assert [info.step for info in store.checkpoints()] == [10, 20]

    def test_a_prune_of_the_store_keeps_every_checkpoint_and_every_record(self, store, backend, damaged):
        before = contents(backend)
        report = store.prune(KeepNothing(), orphan_age=0)
        assert set(report.kept.values()) == {"the record of lineage 2 cannot be read"}
        assert contents(backend) == before

    def test_a_prune_of_the_store_still_removes_orphaned_packs(self, store, backend, damaged):
        orphan = "packs/main/00000001/000000000015-dead0000-00000.pack"
        backend.put(orphan, b"left")
        assert store.prune(KeepNothing(), orphan_age=0).removed_packs == (orphan,)

    def test_its_own_run_can_still_prune(self, store, damaged_run):
        damaged_run.prune(KeepLast(1))
        assert steps(store.history("main")) == [(2, 40)]

    def test_a_run_skips_the_number_of_a_run_with_a_damaged_record_that_begins_at_the_same_time(
        self, backend, store
    ):
        def another_run_begins() -> None:
            backend.put(store.begin_run("main").lineage.key, b"{}")

        overtaken = Overtaken(backend, "create", "lineages/", another_run_begins)
        assert CheckpointStore(overtaken).begin_run("main").lineage.number == 2

    def test_a_record_that_is_removed_while_it_is_read_does_not_count_as_damaged(self, backend, store):
        first = store.begin_run("main").lineage

        def a_newer_run_replaces_it() -> None:
            store.begin_run("main")
            backend.delete([first.key])

        overtaken = Overtaken(backend, "get", first.key, a_newer_run_replaces_it)
        found = CheckpointStore(overtaken).newest_lineage("main")
        assert found == store.newest_lineage("main")
        assert (found.number, type(found)) == (2, Lineage)


class TestRestartFromAnOlderStep:
    @pytest.fixture
    def second(self, store, run) -> Run:
        """A run that restarts from step 20 after the first run has saved up to step 40."""
        _, twenty, *_ = save(run, 10, 20, 30, 40)
        return store.begin_run("main", parent=twenty)

    def test_checkpoints_left_behind_are_no_longer_in_the_history(self, store, second):
        assert steps(store.history("main")) == [(1, 10), (1, 20)]
        assert store.newest("main").step == 20

    def test_the_history_continues_from_that_step(self, store, second):
        save(second, 25, 30)
        assert steps(store.history("main")) == [(1, 10), (1, 20), (2, 25), (2, 30)]

    @pytest.mark.parametrize("own", [(), (25,)])
    def test_checkpoints_left_behind_stay_stored_until_two_commits(self, store, second, own):
        save(second, *own)
        report = store.prune(KeepAll())
        assert report.removed == ()
        assert {kept.step for kept, reason in report.kept.items() if reason.startswith("left behind")} == {
            30,
            40,
        }

    def test_checkpoints_left_behind_are_removed_after_two_commits(self, store, second, backend):
        save(second, 25, 30)
        assert steps(store.prune(KeepAll()).removed) == [(1, 30), (1, 40)]
        assert steps(info.ref for info in store.checkpoints()) == [(1, 10), (1, 20), (2, 25), (2, 30)]
        assert len(pack_keys(backend)) == 4

    def test_a_fresh_start_leaves_every_checkpoint_behind(self, store, second):
        third = store.begin_run("main")
        assert store.history("main") == []
        save(third, 5, 6)
        store.prune(KeepAll())
        assert steps(info.ref for info in store.checkpoints()) == [(3, 5), (3, 6)]
