"""However long a process is suspended, and whatever its clock says, nothing is committed without its data."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Callable

import pytest

import input_checkpoint as ic
from input_checkpoint.format.keys import parse_announcement_key
from input_checkpoint.state import Element
from input_checkpoint.store import announcing
from input_checkpoint.store.announcing import Announcement
from tests.support import suspension
from tests.support.cycles import OPTIONS, elements
from tests.support.false_answers import HOUR, Later, Shifted
from tests.support.stores import (
    announcements,
    die_before_commit,
    loaded,
    pack_keys,
    run_in,
    save,
    state_of,
)
from tests.support.suspension import prune_a_day_later, take_over
from tests.support.wrappers import Failing, Overtaken, Recording


def pausing(action: Callable[[], object]) -> Iterator[ic.IteratorState]:
    """A state during whose encoding something happens, after some of it is stored."""

    def drawn() -> Iterator[Element]:
        yield from elements(20)
        action()
        yield b"last", b"x" * 3000

    yield ic.IteratorState("Iterator", drawn())


@pytest.fixture
def any_store(any_backend) -> ic.CheckpointStore:
    return ic.CheckpointStore.open(any_backend, create=True, options=OPTIONS, retry=None)


class TestSuspendedSave:
    def test_a_save_that_a_prune_took_for_dead_raises_an_error(self, any_backend, any_store):
        run = any_store.begin_run("main")
        save(run, 10)
        with pytest.raises(ic.SaveExpiredError, match="its process was suspended") as raised:
            run.save(20, pausing(lambda: prune_a_day_later(any_backend)))
        assert raised.value.uri == any_store.uri
        assert [info.step for info in any_store.checkpoints()] == [10]
        assert any_store.verify().ok

    def test_the_prune_removes_what_a_dead_save_has_uploaded(self, any_backend, any_store):
        run = any_store.begin_run("main")
        save(run, 10)
        die_before_commit(any_backend, run, 20)
        assert len(prune_a_day_later(any_backend).removed_packs) == 1
        assert announcements(any_backend) == []

    def test_the_next_save_is_complete(self, any_backend, any_store):
        run = any_store.begin_run("main")
        save(run, 10)
        with pytest.raises(ic.SaveExpiredError):
            run.save(20, pausing(lambda: prune_a_day_later(any_backend)))
        info = run.save(30, [ic.IteratorState("Iterator", elements(20))])
        assert loaded(any_store, info) == [("Iterator", elements(20))]

    def test_a_save_that_no_prune_has_seen_is_committed_after_any_time(self, any_store, monkeypatch):
        run = any_store.begin_run("main")
        with monkeypatch.context() as later:
            now = time.time() + 25 * HOUR
            info = run.save(20, pausing(lambda: later.setattr(announcing, "_now", lambda: (now, now))))
        assert any_store.verify().checked == (info.ref,)

    def test_a_writer_that_is_suspended_between_its_last_check_and_the_commit_withdraws_the_checkpoint(
        self, any_backend, any_store
    ):
        run = any_store.begin_run("main")
        save(run, 10)
        suspended = Overtaken(any_backend, "create", "checkpoints/", lambda: prune_a_day_later(any_backend))
        with pytest.raises(ic.SaveExpiredError, match="step 20 was withdrawn"):
            save(run_in(ic.CheckpointStore(suspended), run), 20)
        assert [info.step for info in any_store.checkpoints()] == [10]
        assert any_store.verify().ok

    def test_a_checkpoint_that_cannot_be_withdrawn_is_named(self, memory):
        run = ic.CheckpointStore.open(memory, create=True).begin_run("main")
        denied = Failing(memory, "delete", "checkpoints/", ic.BackendPermissionError("no"))
        suspended = Overtaken(denied, "create", "checkpoints/", lambda: prune_a_day_later(memory))
        with pytest.raises(ic.SaveExpiredError, match=r"could not be withdrawn. Delete checkpoints/main/"):
            save(run_in(ic.CheckpointStore(suspended), run), 20)

    def test_a_prune_at_that_moment_within_a_day_removes_nothing_of_the_save(self, any_backend, any_store):
        run = any_store.begin_run("main")
        reports: list[ic.PruneReport] = []
        suspended = Overtaken(
            any_backend,
            "create",
            "checkpoints/",
            lambda: reports.append(ic.CheckpointStore.open(any_backend).prune(ic.KeepAll(), orphan_age=0)),
        )
        (ref,) = save(run_in(ic.CheckpointStore(suspended), run), 20)
        assert loaded(any_store, ref) == [("Iterator", state_of(b"20"))]
        assert [parse_announcement_key(key) for key in reports[0].held_back_by] == [ref]

    @pytest.mark.parametrize("disturb", [prune_a_day_later, take_over])
    def test_whenever_it_happens_no_checkpoint_is_without_its_data(self, disturb, tmp_path):
        suspension.disturb_every_call("memory", tmp_path, disturb)


class TestSupersededDuringTheCommit:
    def supersede(self, backend: ic.Backend, run: ic.Run, action: Callable[[], object]) -> None:
        overtaken = Overtaken(backend, "create", "checkpoints/", action)
        with pytest.raises(ic.WriterSupersededError, match="has taken over"):
            save(run_in(ic.CheckpointStore(overtaken), run), 20)

    def test_the_save_raises_an_error_and_its_checkpoint_is_not_part_of_the_history(
        self, any_backend, any_store
    ):
        run = any_store.begin_run("main")
        (ref,) = save(run, 10)
        self.supersede(any_backend, run, lambda: any_store.begin_run("main", ref))
        assert any_store.history("main") == [ref]

    def test_a_checkpoint_whose_data_is_complete_stays_until_a_prune(self, any_backend, any_store):
        run = any_store.begin_run("main")
        (ref,) = save(run, 10)
        self.supersede(any_backend, run, lambda: any_store.begin_run("main", ref))
        assert any_store.verify().ok
        assert [info.step for info in any_store.checkpoints()] == [10, 20]

    def test_a_checkpoint_whose_data_the_newer_run_may_have_removed_is_withdrawn(
        self, any_backend, any_store
    ):
        run = any_store.begin_run("main")
        save(run, 10)
        self.supersede(any_backend, run, lambda: take_over(any_backend))
        assert any_store.verify().ok
        assert [info.step for info in any_store.checkpoints()] == [102]

    def test_a_newer_run_that_resumed_from_the_checkpoint_keeps_it(self, any_backend, any_store):
        run = any_store.begin_run("main")
        save(run, 10)
        resumed = Overtaken(
            any_backend,
            "delete",
            "lineages/",
            lambda: any_store.begin_run("main", any_store.history("main")[-1]),
        )
        (ref,) = save(run_in(ic.CheckpointStore(resumed), run), 20)
        assert any_store.history("main")[-1] == ref


class TestRenewal:
    @pytest.fixture
    def hours(self, monkeypatch) -> list[float]:
        """The time in hours by the clocks of this process; may be changed."""
        now = [0.0]
        monkeypatch.setattr(announcing, "_now", lambda: (now[0] * HOUR, now[0] * HOUR))
        return now

    def test_an_ordinary_save_writes_one_announcement(self, memory):
        recording = Recording(memory)
        save(ic.CheckpointStore.open(recording, create=True).begin_run("main"), 10)
        assert len([key for key in recording.keys("put") if parse_announcement_key(key)]) == 1

    def test_a_long_save_renews_its_announcement_every_hour(self, any_backend, any_store, hours):
        seen: list[list[str]] = []

        def drawn() -> Iterator[Element]:
            for number in range(6):
                seen.append(announcements(any_backend))
                hours[0] += 0.6
                yield b"%d" % number, bytes([number]) * 300_000

        info = any_store.begin_run("main").save(10, [ic.IteratorState("Iterator", drawn())])
        assert all(len(keys) == 1 for keys in seen[1:])
        assert len({key for keys in seen for key in keys}) == 3
        assert announcements(any_backend) == []
        assert any_store.verify().checked == (info.ref,)

    def test_a_save_that_lasts_for_days_is_respected_by_prunes(self, any_backend, any_store, hours):
        run = any_store.begin_run("main")
        save(run, 10)
        aged = Aging(any_backend, hours)
        reports: list[ic.PruneReport] = []

        def drawn() -> Iterator[Element]:
            for number in range(8):
                hours[0] += 12
                yield b"%d" % number, bytes([number]) * 300_000
                reports.append(ic.CheckpointStore.open(aged).prune(ic.KeepLast(1)))

        slow = run_in(ic.CheckpointStore(aged, OPTIONS), run)
        info = slow.save(20, [ic.IteratorState("Iterator", drawn())])
        assert all(report.held_back_by for report in reports)
        assert info.ref in any_store.verify().checked
        assert any_store.verify().ok

    def test_a_renewal_notices_that_a_prune_has_deleted_the_announcement(self, memory, hours):
        run = ic.CheckpointStore.open(memory, create=True, options=OPTIONS).begin_run("main")

        def a_day_passes() -> None:
            hours[0] += 25
            prune_a_day_later(memory)

        recording = Recording(memory)
        with pytest.raises(ic.SaveExpiredError):
            run_in(ic.CheckpointStore(recording, OPTIONS), run).save(20, pausing(a_day_passes))
        assert recording.keys("list") == ["lineages/main/"]  # before the save, and not again
        assert announcements(memory) == []

    def test_a_prune_looks_again_after_it_has_deleted_an_announcement(self, memory):
        """The process may have renewed it in the meantime."""
        run = ic.CheckpointStore.open(memory, create=True).begin_run("main")
        packs = die_before_commit(memory, run, 20)
        (old,) = announcements(memory)
        renewed = Announcement(memory, lambda unique: f"{old[:-8]}{unique[:8]}")
        renewing = Overtaken(Later(memory, 25), "delete", old, renewed._write)
        report = ic.CheckpointStore.open(renewing).prune(ic.KeepAll())
        assert report.held_back_by == (renewed.key,)
        assert pack_keys(memory) == packs


class Aging(Later):
    """Objects get older as the hours of a clock pass."""

    def __init__(self, inner: ic.Backend, hours: list[float]) -> None:
        super().__init__(inner, 0)
        self._hours = hours
        self._times: dict[str, float] = {}

    def put(self, key, data):
        self._times[key] = self._hours[0]
        super().put(key, data)

    def list(self, prefix=""):
        for info in self.inner.list(prefix):
            yield type(info)(info.key, info.size, 1e9 + self._times.get(info.key, 0.0) * HOUR)


@pytest.mark.parametrize("seconds", [26 * HOUR, -26 * HOUR, 1e8])
class TestClocks:
    """Ages are told by the clock of the storage alone."""

    @pytest.fixture
    def shifted(self, any_backend, any_store, seconds) -> ic.CheckpointStore:
        return ic.CheckpointStore.open(Shifted(any_backend, seconds))

    def test_a_save_in_progress_is_respected(self, any_store, shifted):
        run = any_store.begin_run("main")
        save(run, 10)
        info = run.save(20, pausing(lambda: shifted.prune(ic.KeepAll())))
        assert any_store.verify().checked[-1] == info.ref
        assert any_store.verify().ok

    def test_data_of_a_crash_stays_for_an_hour(self, any_backend, any_store, shifted):
        orphans = die_before_commit(any_backend, any_store.begin_run("main"), 10)
        any_store.begin_run("main")
        assert shifted.prune(ic.KeepAll()).removed_packs == ()
        assert pack_keys(any_backend) == orphans

    def test_data_of_a_crash_is_removed_after_an_hour(self, any_backend, any_store, seconds):
        orphans = die_before_commit(any_backend, any_store.begin_run("main"), 10)
        any_store.begin_run("main")
        two_hours_later = ic.CheckpointStore.open(Later(Shifted(any_backend, seconds), hours=2))
        assert list(two_hours_later.prune(ic.KeepAll()).removed_packs) == orphans

    def test_an_announcement_is_stale_after_a_day(self, any_backend, any_store, seconds):
        die_before_commit(any_backend, any_store.begin_run("main"), 10)
        later = ic.CheckpointStore.open(Later(Shifted(any_backend, seconds), hours=25))
        assert len(later.prune(ic.KeepAll()).removed_packs) == 1


class TestUnknownTimes:
    """Many of fsspec's filesystems list no times."""

    @pytest.fixture
    def timeless(self, any_backend, any_store) -> ic.CheckpointStore:
        return ic.CheckpointStore.open(Shifted(any_backend, None))

    def test_a_save_in_progress_is_respected(self, any_store, timeless):
        run = any_store.begin_run("main")
        save(run, 10)
        run.save(20, pausing(lambda: timeless.prune(ic.KeepAll(), orphan_age=0)))
        assert any_store.verify().ok

    def test_the_prune_says_which_announcement_holds_it_back(self, any_backend, any_store, timeless, caplog):
        die_before_commit(any_backend, any_store.begin_run("main"), 10)
        report = timeless.prune(ic.KeepAll())
        assert list(report.held_back_by) == announcements(any_backend)
        assert report.held_back_by[0] in caplog.text
        assert "If the process is dead, delete it." in caplog.text

    def test_data_of_a_crash_stays_while_the_run_is_the_newest(self, any_backend, any_store):
        run = any_store.begin_run("main")
        orphans = die_before_commit(any_backend, run, 10)
        (ref,) = save(run, 20)
        timeless = ic.CheckpointStore.open(Shifted(any_backend, None))
        run_in(timeless, run).prune(ic.KeepAll())
        assert set(orphans) < set(pack_keys(any_backend))
        assert any_store.history("main") == [ref]

    def test_data_of_a_crash_is_removed_once_the_next_run_has_begun(self, any_backend, any_store, timeless):
        orphans = die_before_commit(any_backend, any_store.begin_run("main"), 10)
        any_store.begin_run("main")
        assert list(timeless.prune(ic.KeepAll()).removed_packs) == orphans
        assert announcements(any_backend) == []

    def test_data_of_removed_checkpoints_is_removed_at_once(self, any_backend, any_store, timeless):
        save(any_store.begin_run("main"), 10, 20, 30)
        assert len(timeless.prune(ic.KeepLast(1)).removed_packs) == 2


class TestSuspendedCopy:
    @pytest.fixture
    def source(self) -> ic.CheckpointStore:
        source = ic.CheckpointStore.open(f"memory://source-{time.time_ns()}", create=True)
        save(source.begin_run("main"), 10, 20)
        return source

    @pytest.mark.parametrize("key", ["packs/main/00000001/000000000020", "checkpoints/main"])
    def test_a_copy_that_a_prune_of_the_target_took_for_dead_raises_an_error(self, source, any_backend, key):
        suspended = Overtaken(any_backend, "create", key, lambda: prune_a_day_later(any_backend))
        with pytest.raises(ic.SaveExpiredError, match="Copy again"):
            source.copy_to(ic.CheckpointStore.open(suspended, create=True))
        target = ic.CheckpointStore.open(any_backend)
        assert target.verify().ok
        assert source.copy_to(target).ok
        assert len(target.verify().checked) == 2
        assert target.verify().ok

    def test_a_long_copy_renews_its_announcement(self, source, any_backend, monkeypatch):
        hours = [0.0]
        monkeypatch.setattr(announcing, "_now", lambda: (hours[0] * HOUR, hours[0] * HOUR))
        target = ic.CheckpointStore.open(any_backend, create=True)
        seen: set[str] = set()

        def an_hour_passes(_: ic.CopyProgress) -> None:
            seen.update(announcements(any_backend))
            hours[0] += 1

        source.copy_to(target, progress=an_hour_passes)
        assert len(seen) > 2
        assert announcements(any_backend) == []

    def test_what_a_killed_copy_has_announced_is_deleted_by_the_next_one(self, source, any_backend):
        target = ic.CheckpointStore.open(any_backend, create=True)
        away = Failing(any_backend, "create", "checkpoints/", ic.BackendUnavailableError("away"))
        with pytest.raises(ic.BackendUnavailableError):
            source.copy_to(ic.CheckpointStore.open(away, retry=None))
        assert len(announcements(any_backend)) == 1
        assert source.copy_to(target).ok
        assert announcements(any_backend) == []
