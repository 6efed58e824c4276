"""Runs follow one another in one line of history, also where a record of it is lost."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Callable

import pytest

from input_checkpoint import Backend, CheckpointRef, CheckpointStore, KeepAll, KeepLast, WriterSupersededError
from input_checkpoint.format.lineage import Lineage
from input_checkpoint.store.run import Run
from tests.support.stores import KeepNothing, pack_keys, save, steps
from tests.support.wrappers import LosingAnswers, Overtaken, Wrapped, contents


class ListedBetween(Wrapped):
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


class TestLineages:
    def test_the_first_run_of_a_worker_is_lineage_one(self, run):
        assert (run.lineage.number, run.lineage.ancestors) == (1, ())

    def test_a_restart_opens_the_next_lineage(self, store, run):
        (ref,) = save(run, 10)
        assert store.begin_run("main", parent=ref).lineage.number == 2

    def test_the_newest_lineage_is_the_one_opened_last(self, store, run):
        second = store.begin_run("main")
        assert store.newest_lineage("main") == second.lineage

    def test_a_worker_that_never_ran_has_no_lineage(self, store):
        assert store.newest_lineage("main") is None

    def test_a_run_that_begins_while_history_is_looked_up_is_part_of_it(self, backend, store, run):
        _, twenty, _ = save(run, 10, 20, 30)

        def restart() -> None:
            save(store.begin_run("main", parent=twenty), 25)

        seen = CheckpointStore(ListedBetween(backend, restart)).history("main")
        assert steps(seen) == steps(store.history("main")) == [(1, 10), (1, 20), (2, 25)]

    def test_a_lost_answer_does_not_open_a_second_lineage(self, backend, store):
        opened = CheckpointStore(LosingAnswers(backend)).begin_run("main").lineage
        assert opened.number == 1
        assert [info.key for info in backend.list("lineages/")] == [opened.key]

    def test_another_writers_lineage_is_left_alone_and_the_next_number_taken(self, backend, store):
        theirs: list[Run] = []
        overtaken = Overtaken(backend, "create", "lineages/", lambda: theirs.append(store.begin_run("main")))
        ours = CheckpointStore(overtaken).begin_run("main").lineage
        assert (theirs[0].lineage.number, ours.number) == (1, 2)
        assert store.newest_lineage("main") == ours

    def test_of_many_writers_that_start_at_once_each_gets_a_lineage_of_its_own(self, store):
        start = threading.Barrier(8)

        def begin(_: int) -> int:
            start.wait()
            return store.begin_run("main").lineage.number

        with ThreadPoolExecutor(8) as writers:
            assert sorted(writers.map(begin, range(8))) == list(range(1, 9))


class TestDamagedLineageRecord:
    """The record of the newest of two runs is damaged; the second went back to step 20 of the first."""

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

    def test_what_the_runs_have_saved_is_still_the_history(self, store, damaged):
        assert steps(store.history("main")) == [(1, 10), (1, 20), (2, 30), (2, 40)]

    def test_it_is_logged_with_its_place(self, store, damaged, caplog):
        store.history("main")
        assert f"{store.uri}: {damaged.key} is damaged" in caplog.text

    def test_before_its_run_has_saved_anything_the_history_is_that_of_the_run_before(
        self, store, run, backend
    ):
        (ref,) = save(run, 10)
        backend.put(store.begin_run("main", parent=ref).lineage.key, b"{}")
        assert store.history("main") == [ref]

    def test_if_no_record_can_be_read_the_newest_run_is_still_in_the_history(
        self, store, run, backend, damaged
    ):
        backend.put(run.lineage.key, b"{}")
        assert steps(store.history("main")) == [(1, 10), (1, 20), (2, 30), (2, 40)]

    def test_a_record_that_has_gone_is_no_less_lost(self, store, backend, damaged):
        backend.delete([damaged.key])
        assert steps(store.history("main")) == [(1, 10), (1, 20), (2, 30), (2, 40)]

    @pytest.mark.parametrize("parent", [None, CheckpointRef("main", 1, 20), CheckpointRef("main", 2, 40)])
    def test_the_next_run_takes_a_number_above_it(self, store, damaged, parent):
        assert store.begin_run("main", parent).lineage.number == 3

    def test_the_next_run_takes_a_number_above_one_that_has_gone(self, store, backend, damaged):
        backend.delete([damaged.key])
        assert store.begin_run("main").lineage.number == 3

    def test_the_next_run_goes_on_from_what_the_lost_one_has_saved(self, store, damaged):
        third = store.begin_run("main", parent=CheckpointRef("main", 2, 40))
        save(third, 50, 60)
        store.prune(KeepAll())
        assert steps(store.history("main")) == [(1, 10), (1, 20), (2, 30), (2, 40), (3, 50), (3, 60)]

    def test_one_may_go_back_to_what_a_run_with_a_damaged_record_left_behind(self, store, run, backend):
        (ref,) = save(run, 10)
        store.begin_run("main")
        backend.put(run.lineage.key, b"{}")
        assert store.begin_run("main", parent=ref).lineage.parent == ref

    def test_its_run_goes_on(self, store, damaged_run):
        save(damaged_run, 50)
        assert store.newest("main").step == 50

    def test_it_supersedes_older_writers_and_is_named(self, store, run, damaged):
        with pytest.raises(
            WriterSupersededError, match=rf"lineage 2, whose record {damaged.key} cannot be read"
        ):
            save(run, 50)

    def test_an_older_writer_may_not_prune_either(self, store, run, damaged):
        with pytest.raises(WriterSupersededError, match=f"{damaged.key} cannot be read"):
            run.prune(KeepLast(1))

    def test_a_run_whose_record_is_damaged_ends_a_prune_that_is_going_on(self, store, run, backend):
        _, newest = save(run, 10, 20)

        def a_run_begins() -> None:
            backend.put(store.begin_run("main", parent=newest).lineage.key, b"{}")

        overtaken = Overtaken(backend, "list", "pins/", a_run_begins)
        with pytest.raises(WriterSupersededError, match="new run of worker 'main' began"):
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

    def test_its_own_run_prunes_as_ever(self, store, damaged_run):
        damaged_run.prune(KeepLast(1))
        assert steps(store.history("main")) == [(2, 40)]

    def test_a_run_that_begins_in_the_same_moment_with_a_damaged_record_is_passed_over(self, backend, store):
        def theirs() -> None:
            backend.put(store.begin_run("main").lineage.key, b"{}")

        overtaken = Overtaken(backend, "create", "lineages/", theirs)
        assert CheckpointStore(overtaken).begin_run("main").lineage.number == 2

    def test_one_that_was_outlived_and_removed_while_it_was_looked_for_is_not_lost(self, backend, store):
        first = store.begin_run("main").lineage

        def outlived() -> None:
            store.begin_run("main")
            backend.delete([first.key])

        overtaken = Overtaken(backend, "get", first.key, outlived)
        found = CheckpointStore(overtaken).newest_lineage("main")
        assert found == store.newest_lineage("main")
        assert (found.number, type(found)) == (2, Lineage)


class TestGoingBack:
    @pytest.fixture
    def second(self, store, run) -> Run:
        """A run that went back to step 20 after the first had come to step 40."""
        _, twenty, *_ = save(run, 10, 20, 30, 40)
        return store.begin_run("main", parent=twenty)

    def test_what_came_after_is_no_longer_in_the_history(self, store, second):
        assert steps(store.history("main")) == [(1, 10), (1, 20)]
        assert store.newest("main").step == 20

    def test_history_goes_on_from_there(self, store, second):
        save(second, 25, 30)
        assert steps(store.history("main")) == [(1, 10), (1, 20), (2, 25), (2, 30)]

    @pytest.mark.parametrize("own", [(), (25,)])
    def test_what_came_after_stays_stored_until_two_commits(self, store, second, own):
        save(second, *own)
        report = store.prune(KeepAll())
        assert report.removed == ()
        assert {kept.step for kept, reason in report.kept.items() if reason.startswith("left behind")} == {
            30,
            40,
        }

    def test_what_came_after_is_removed_after_two_commits(self, store, second, backend):
        save(second, 25, 30)
        assert steps(store.prune(KeepAll()).removed) == [(1, 30), (1, 40)]
        assert steps(info.ref for info in store.checkpoints()) == [(1, 10), (1, 20), (2, 25), (2, 30)]
        assert len(pack_keys(backend)) == 4

    def test_starting_afresh_abandons_everything(self, store, second):
        third = store.begin_run("main")
        assert store.history("main") == []
        save(third, 5, 6)
        store.prune(KeepAll())
        assert steps(info.ref for info in store.checkpoints()) == [(3, 5), (3, 6)]
