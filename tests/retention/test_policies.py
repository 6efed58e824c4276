"""Which checkpoints a retention policy keeps, and the reason it gives."""

from __future__ import annotations

import logging
import random
import subprocess
import sys
import uuid
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Optional

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import input_checkpoint as ic
from input_checkpoint.backends.memory import MemoryBackend
from input_checkpoint.checkpoint import PackEntry
from input_checkpoint.retention.policy import AnyOf
from input_checkpoint.retention.with_model import needed_by_model
from tests.support.s3_server import S3Server

NOON = datetime(2026, 3, 4, 12, tzinfo=timezone.utc)  # a Wednesday


def info(
    step: int,
    created: datetime = NOON,
    stored_bytes: int = 0,
    lineage: int = 1,
    shared: Sequence[PackEntry] = (),
    table_bytes: int = 0,
) -> ic.CheckpointInfo:
    return ic.CheckpointInfo(
        step=step,
        worker="main",
        lineage=lineage,
        created=created,
        logical_bytes=stored_bytes,
        stored_bytes=stored_bytes,
        elements=1,
        iterators=("Iterator",),
        host="host",
        pid=1,
        packs=(PackEntry(f"pack of {lineage}/{step}", stored_bytes, True), *shared),
        table_bytes=table_bytes,
    )


def at(*times: datetime) -> list[ic.CheckpointInfo]:
    """One checkpoint at each time, of steps 0, 1, 2 and so on."""
    return [info(step, created) for step, created in enumerate(times)]


def sized(*sizes: int) -> list[ic.CheckpointInfo]:
    return [info(step, stored_bytes=size) for step, size in enumerate(sizes)]


def of_steps(*steps: int) -> list[ic.CheckpointInfo]:
    return [info(step) for step in steps]


def kept(policy: ic.RetentionPolicy, checkpoints: Sequence[ic.CheckpointInfo]) -> list[int]:
    return [ref.step for ref in sorted(policy.keep(checkpoints))]


def reason(policy: ic.RetentionPolicy, checkpoints: Sequence[ic.CheckpointInfo], step: int) -> str:
    return next(text for ref, text in policy.keep(checkpoints).items() if ref.step == step)


def model_with(folder: Path, *files: str) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    for name in files:
        (folder / name).touch()
    return str(folder)


class TestKeepWithin:
    def test_keeps_what_is_at_most_that_much_older_than_the_newest(self) -> None:
        hours = [NOON + timedelta(hours=hour) for hour in (0, 1, 2, 3)]
        assert kept(ic.KeepWithin(hours=2), at(*hours)) == [1, 2, 3]

    def test_hours_and_days_add_up(self) -> None:
        times = [NOON, NOON + timedelta(hours=1), NOON + timedelta(hours=37)]
        assert kept(ic.KeepWithin(hours=12, days=1), at(*times)) == [1, 2]

    def test_an_outage_of_months_empties_nothing(self) -> None:
        long_ago = datetime.now(timezone.utc) - timedelta(days=200)
        checkpoints = at(long_ago, long_ago + timedelta(minutes=10))
        assert kept(ic.KeepWithin(hours=1), checkpoints) == [0, 1]

    @settings(deadline=None)
    @given(shift=st.timedeltas(min_value=timedelta(0), max_value=timedelta(days=3650)), data=st.data())
    def test_when_it_is_asked_makes_no_difference(self, shift: timedelta, data: st.DataObject) -> None:
        checkpoints = data.draw(histories())
        earlier = [info(each.step, each.created - shift) for each in checkpoints]
        policy = ic.KeepWithin(hours=5)
        assert kept(policy, checkpoints) == kept(policy, earlier)

    def test_a_clock_that_was_once_ahead_removes_nothing_newer(self) -> None:
        assert kept(ic.KeepWithin(hours=1), at(NOON + timedelta(days=900), NOON)) == [0, 1]

    def test_a_newest_that_is_dated_a_year_ahead_removes_nothing(self) -> None:
        hours = [NOON + timedelta(hours=hour) for hour in range(10)]
        assert kept(ic.KeepWithin(days=2), at(*hours, NOON + timedelta(days=365))) == list(range(11))

    def test_after_a_pause_nothing_is_removed_until_a_second_checkpoint_tells_the_time(self) -> None:
        resumed = NOON + timedelta(days=365)
        times = [NOON, NOON + timedelta(hours=1), resumed]
        policy = ic.KeepWithin(days=2)
        assert kept(policy, at(*times)) == [0, 1, 2]
        assert kept(policy, at(*times, resumed + timedelta(hours=1))) == [2, 3]

    def test_one_that_was_dated_ahead_in_between_removes_nothing(self) -> None:
        times = [NOON, NOON + timedelta(days=365), NOON + timedelta(hours=1), NOON + timedelta(hours=2)]
        assert kept(ic.KeepWithin(hours=3), at(*times)) == [0, 1, 2, 3]

    def test_one_that_was_dated_long_ago_in_between_stays_with_those_round_it(self) -> None:
        times = [NOON, NOON - timedelta(days=9999), NOON + timedelta(hours=1)]
        assert kept(ic.KeepWithin(hours=3), at(*times)) == [0, 1, 2]

    def test_a_clock_that_was_set_back_for_good_does_not_keep_what_is_saved_since(self) -> None:
        back = NOON - timedelta(days=365)
        hours = [back + timedelta(hours=hour) for hour in range(5)]
        assert kept(ic.KeepWithin(hours=1), at(NOON, *hours)) == [0, 4, 5]

    @pytest.mark.parametrize("days", [1e12, float("inf")])
    def test_an_endless_time_keeps_all(self, days: float) -> None:
        assert kept(ic.KeepWithin(days=days), at(NOON, NOON + timedelta(days=9999))) == [0, 1]

    def test_nothing_to_keep_is_fine(self) -> None:
        assert kept(ic.KeepWithin(days=1), []) == []

    def test_the_reason_tells_the_time(self) -> None:
        policy = ic.KeepWithin(hours=1.5, days=2)
        assert reason(policy, at(NOON), 0) == "at most 2 d 1.5 h older than the newest"


class TestKeepEvery:
    def test_one_that_is_dated_a_year_ahead_does_not_keep_the_following_from_being_kept(self) -> None:
        hours = [NOON + timedelta(hours=hour) for hour in range(1, 49)]
        checkpoints = at(NOON, NOON + timedelta(days=365), *hours)
        assert kept(ic.KeepEvery(hours=1), checkpoints) == list(range(50))

    def test_one_that_is_dated_long_ago_does_not_either(self) -> None:
        hours = [NOON + timedelta(hours=hour) for hour in (1, 1.5, 2)]
        checkpoints = at(NOON, NOON - timedelta(days=9999), *hours)
        assert kept(ic.KeepEvery(hours=1), checkpoints) == [0, 1, 2, 4]


class TestKeepBuckets:
    def test_one_that_is_dated_a_year_ahead_takes_no_place_from_another(self) -> None:
        days = [NOON + timedelta(days=day) for day in (0, 1, 365, 1.1, 2)]
        assert kept(ic.KeepPeriodic(daily=3), at(*days)) == [0, 1, 2, 3, 4]

    def test_a_day_that_comes_twice_since_the_clock_was_set_back_counts_twice(self) -> None:
        days = [NOON + timedelta(days=day) for day in (0, 1, 0.1, 1.1)]
        assert kept(ic.KeepPeriodic(daily=3), at(*days)) == [0, 1, 2, 3]

    def test_what_the_clock_was_ahead_for_goes_once_enough_has_been_saved_since(self) -> None:
        days = [NOON + timedelta(days=day) for day in (365, 0, 1, 2)]
        assert kept(ic.KeepPeriodic(daily=3), at(*days)) == [1, 2, 3]

    def test_keeps_the_newest_of_each_of_the_last_hours(self) -> None:
        minutes = [NOON + timedelta(minutes=minute) for minute in (0, 30, 70, 80, 130)]
        assert kept(ic.KeepPeriodic(hourly=2), at(*minutes)) == [3, 4]

    def test_keeps_the_newest_of_each_of_the_last_days(self) -> None:
        hours = [NOON + timedelta(hours=hour) for hour in (0, 11, 12, 35, 36)]
        assert kept(ic.KeepPeriodic(daily=3), at(*hours)) == [1, 3, 4]

    def test_a_week_begins_on_monday(self) -> None:
        sunday, monday = NOON + timedelta(days=4), NOON + timedelta(days=5)
        assert kept(ic.KeepPeriodic(weekly=2), at(NOON, sunday, monday)) == [1, 2]

    def test_the_turn_of_the_year_does_not_split_a_week(self) -> None:
        eve = datetime(2026, 12, 31, tzinfo=timezone.utc)  # Thursday of week 53
        assert kept(ic.KeepPeriodic(weekly=5), at(eve, eve + timedelta(days=1))) == [1]

    def test_days_without_a_checkpoint_do_not_count(self) -> None:
        days = [NOON + timedelta(days=day) for day in (0, 100, 200)]
        assert kept(ic.KeepPeriodic(daily=3), at(*days)) == [0, 1, 2]

    def test_days_end_in_utc_wherever_the_checkpoint_was_written(self) -> None:
        tokyo = timezone(timedelta(hours=9))
        before = datetime(2026, 3, 5, 8, 59, tzinfo=tokyo)  # 23:59 UTC, the day before
        assert kept(ic.KeepPeriodic(daily=2), at(NOON, before, before + timedelta(minutes=1))) == [1, 2]

    def test_the_reason_names_the_rule_and_the_bucket(self) -> None:
        checkpoints = at(NOON - timedelta(days=7), NOON)
        assert reason(ic.KeepPeriodic(daily=7, weekly=4), checkpoints, 0) == (
            "the newest of 2026-02-25 (daily, 2 of 7); the newest of week 2026-W09 (weekly, 2 of 4)"
        )

    def test_the_reason_of_an_hour_names_it_in_utc(self) -> None:
        assert reason(ic.KeepPeriodic(hourly=1), at(NOON), 0) == (
            "the newest of 2026-03-04 12h UTC (hourly, 1 of 1)"
        )


class TestKeepSteps:
    def test_keeps_the_chosen_steps(self) -> None:
        assert kept(ic.KeepSteps(30, 10), of_steps(10, 20, 30, 40)) == [10, 30]

    def test_a_step_that_was_never_saved_keeps_nothing(self) -> None:
        assert kept(ic.KeepSteps(25), of_steps(10, 20, 30)) == []

    def test_a_step_that_two_lineages_saved_is_kept_twice(self) -> None:
        assert kept(ic.KeepSteps(10), [info(10), info(10, lineage=2)]) == [10, 10]

    def test_the_order_of_the_steps_makes_no_difference(self) -> None:
        assert ic.KeepSteps(1, 2, 2) == ic.KeepSteps(2, 1)

    def test_the_reason_names_the_step(self) -> None:
        assert reason(ic.KeepSteps(10), of_steps(10), 10) == "step 10 was chosen"


class TestKeepBytes:
    def test_keeps_the_newest_that_fit(self) -> None:
        assert kept(ic.KeepBytes(60), sized(10, 10, 20, 30)) == [1, 2, 3]

    def test_keeps_the_newest_however_large(self) -> None:
        assert kept(ic.KeepBytes(60), sized(10, 100)) == [1]

    def test_stops_at_the_first_that_does_not_fit(self) -> None:
        assert kept(ic.KeepBytes(60), sized(1, 100, 30)) == [2]

    def test_a_pack_that_several_share_counts_once(self) -> None:
        full = PackEntry("full", 50, False)
        checkpoints = [info(step, stored_bytes=5, shared=[full]) for step in range(4)]
        assert kept(ic.KeepBytes(65), checkpoints) == [1, 2, 3]

    def test_a_pack_counts_that_an_older_save_has_uploaded(self) -> None:
        checkpoints = [
            info(0, stored_bytes=5),
            info(1, stored_bytes=5, shared=[PackEntry("full", 50, False)]),
        ]
        assert kept(ic.KeepBytes(57), checkpoints) == [1]

    def test_lists_of_chunks_count_too(self) -> None:
        checkpoints = [info(step, stored_bytes=10, table_bytes=5) for step in range(4)]
        assert kept(ic.KeepBytes(44), checkpoints) == [2, 3]

    def test_a_store_stays_within_the_budget_save_after_save(self) -> None:
        chance = random.Random(1)
        buffer, budget = [chance.randbytes(5_000) for _ in range(200)], 3_000_000
        backend = MemoryBackend(f"memory://{uuid.uuid4().hex}")
        ic.CheckpointStore.open(backend, create=True)
        store = ic.CheckpointStore(backend, ic.SaveOptions(pack_bytes=1 << 17))
        run = store.begin_run("main")
        for step in range(40):
            keyed = ((b"slot %d" % slot, payload) for slot, payload in enumerate(buffer))
            run.save(step, [ic.IteratorState("Iterator", keyed)])
            run.prune(ic.KeepBytes(budget))
            # A little more for what is neither data nor a list of chunks.
            assert sum(found.size for found in backend.list()) <= 1.03 * budget
            for slot in chance.sample(range(200), 10):
                buffer[slot] = chance.randbytes(5_000)
        assert len(store.checkpoints()) > 3

    def test_the_reason_tells_the_sum(self) -> None:
        assert reason(ic.KeepBytes(6000), sized(2000, 1500), 0) == (
            "3,500 of 6,000 bytes, including newer checkpoints"
        )

    def test_the_reason_says_so_when_the_newest_is_over_the_budget(self) -> None:
        assert (
            reason(ic.KeepBytes(1000), sized(2000), 0) == "the newest, although its 2,000 bytes exceed 1,000"
        )


class TestKeepWithModel:
    def test_keeps_what_has_its_model_checkpoint(self) -> None:
        assert [ref.step for ref in needed_by_model(of_steps(10, 20, 30), {10, 30})] == [10, 30]

    def test_keeps_the_newest_before_a_model_checkpoint_that_has_none_of_its_own(self) -> None:
        assert sorted(ref.step for ref in needed_by_model(of_steps(10, 20, 30), {25, 30})) == [20, 30]

    def test_keeps_what_is_newer_than_every_model_checkpoint(self) -> None:
        assert [ref.step for ref in needed_by_model(of_steps(10, 20, 30), {10})] == [10, 20, 30]

    def test_keeps_everything_while_the_model_has_no_checkpoint(self, tmp_path: Path) -> None:
        policy = ic.KeepWithModel(model_with(tmp_path, "events.out", "checkpoint"))
        assert kept(policy, of_steps(10, 20)) == [10, 20]

    def test_a_model_checkpoint_older_than_every_input_needs_none(self) -> None:
        assert [ref.step for ref in needed_by_model(of_steps(10, 20), {5, 20})] == [20]

    def test_reads_the_steps_from_the_names_of_the_index_files(self, tmp_path: Path) -> None:
        folder = model_with(tmp_path, "model.ckpt-10.index", "other-30.index")
        assert kept(ic.KeepWithModel(folder), of_steps(10, 20, 30)) == [10, 30]

    @pytest.mark.parametrize(
        "name",
        [
            "model.ckpt-20.data-00000-of-00001",
            "model.ckpt-20.meta",
            "model.ckpt-20.index.tempstate7",
            "model.ckpt.index",
            "-20.index",
        ],
    )
    def test_other_files_are_no_model_checkpoints(self, tmp_path: Path, name: str) -> None:
        folder = model_with(tmp_path, "model.ckpt-30.index", name)
        assert kept(ic.KeepWithModel(folder), of_steps(20, 30)) == [30]

    def test_a_checkpoint_still_being_written_in_a_subfolder_does_not_count(self, tmp_path: Path) -> None:
        folder = model_with(tmp_path, "model.ckpt-30.index")
        model_with(tmp_path / "model.ckpt-20_temp", "part-20.index")
        assert kept(ic.KeepWithModel(folder), of_steps(20, 30)) == [30]

    def test_takes_a_path_object(self, tmp_path: Path) -> None:
        model_with(tmp_path, "model.ckpt-10.index", "model.ckpt-30.index")
        assert kept(ic.KeepWithModel(tmp_path), of_steps(10, 20, 30)) == [10, 30]

    @pytest.mark.parametrize("written", ["model", "./model/", "file://model", Path("model")])
    def test_a_relative_path_stays_where_it_was_when_the_policy_was_made(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: Any
    ) -> None:
        model_with(tmp_path / "here" / "model", "model.ckpt-10.index")
        model_with(tmp_path / "there" / "model", "model.ckpt-30.index")
        monkeypatch.chdir(tmp_path / "here")
        policy = ic.KeepWithModel(written)
        monkeypatch.chdir(tmp_path / "there")
        assert kept(policy, of_steps(10, 20)) == [10, 20]
        assert reason(policy, of_steps(10), 10) == "the model checkpoint of step 10 still exists"

    def test_a_path_from_the_home_folder_is_taken_as_such(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        model_with(tmp_path / "model", "model.ckpt-10.index", "model.ckpt-30.index")
        assert kept(ic.KeepWithModel("~/model"), of_steps(10, 20, 30)) == [10, 30]

    def test_takes_any_fsspec_uri(self) -> None:
        uri = f"memory://models-{uuid.uuid4().hex}"
        for step in (10, 30):
            with fsspec.open(f"{uri}/model.ckpt-{step}.index", "wb"):
                pass
        assert kept(ic.KeepWithModel(uri), of_steps(10, 20, 30)) == [10, 30]

    def test_hands_its_storage_options_to_the_filesystem(self, s3_server: S3Server) -> None:
        uri = f"s3://{s3_server.bucket}/model-{uuid.uuid4().hex}"
        for step in (10, 30):
            with fsspec.open(f"{uri}/model.ckpt-{step}.index", "wb", **s3_server.options) as file:
                file.write(b"index")
        policy = ic.KeepWithModel(uri, storage_options=s3_server.options)
        assert kept(policy, of_steps(10, 20, 30)) == [10, 30]

    @pytest.mark.parametrize("place", ["bucket/no-such-run", "no-such-bucket/run"])
    def test_keeps_everything_if_the_object_store_has_no_such_place(
        self, s3_server: S3Server, place: str
    ) -> None:
        policy = ic.KeepWithModel(f"s3://{place}", storage_options=s3_server.options)
        assert kept(policy, of_steps(10, 20)) == [10, 20]

    def test_sees_a_model_checkpoint_that_goes_between_two_clean_ups(self, tmp_path: Path) -> None:
        folder = model_with(tmp_path, "model.ckpt-10.index", "model.ckpt-20.index")
        policy = ic.KeepWithModel(folder)
        before = kept(policy, of_steps(10, 20))
        (tmp_path / "model.ckpt-10.index").unlink()
        assert (before, kept(policy, of_steps(10, 20))) == ([10, 20], [20])

    def test_keeps_everything_if_the_folder_does_not_exist(self, tmp_path: Path) -> None:
        assert kept(ic.KeepWithModel(tmp_path / "nowhere"), of_steps(10, 20)) == [10, 20]

    def test_keeps_everything_if_no_filesystem_knows_the_uri(self) -> None:
        assert kept(ic.KeepWithModel("nonsense://bucket/run"), of_steps(10, 20)) == [10, 20]

    @pytest.mark.parametrize("error", [TimeoutError("gone"), RuntimeError("driver"), KeyError("Contents")])
    def test_keeps_everything_if_listing_fails_in_any_way(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
    ) -> None:
        folder = model_with(tmp_path, "model.ckpt-20.index")
        fail_to_list(monkeypatch, error)
        assert kept(ic.KeepWithModel(folder), of_steps(10, 20)) == [10, 20]

    def test_the_reason_says_that_it_cannot_be_listed(self, tmp_path: Path) -> None:
        folder = str(tmp_path / "nowhere")
        assert reason(ic.KeepWithModel(folder), of_steps(10), 10) == f"{folder} cannot be listed"

    def test_what_went_wrong_is_logged(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.WARNING):
            ic.KeepWithModel(tmp_path / "nowhere").keep(of_steps(10))
        assert "FileNotFoundError" in caplog.text

    def test_a_password_in_the_uri_is_told_nowhere(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        uri = "memory://joe:hunter2@host/run"
        fail_to_list(monkeypatch, OSError(f"cannot open {uri}"))
        policy = ic.KeepWithModel(uri, storage_options={"password": "hunter2"})
        told = reason(policy, of_steps(10), 10)
        assert "hunter2" not in told + repr(policy) + caplog.text

    def test_the_reasons_tell_which_model_checkpoint(self) -> None:
        assert list(needed_by_model(of_steps(10, 20, 40), {10, 30}).values()) == [
            "the model checkpoint of step 10 still exists",
            "newer than the newest model checkpoint, of step 30",
            "the newest before the model checkpoint of step 30",
        ]

    def test_needs_no_tensorflow(self, tmp_path: Path) -> None:
        folder = model_with(tmp_path, "model.ckpt-10.index")
        program = (
            "import sys; sys.modules['tensorflow'] = None; import input_checkpoint as ic; "
            f"print(ic.KeepWithModel({folder!r}).keep([]))"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        assert (done.stdout, done.stderr) == ("{}\n", "")


class TestCombining:
    def test_the_reasons_of_all_policies_are_told(self) -> None:
        policy = ic.KeepLast(5) | ic.KeepSteps(10)
        assert reason(policy, of_steps(10, 20), 10) == "one of the last 5; step 10 was chosen"

    def test_a_reason_is_told_once(self) -> None:
        assert reason(ic.KeepLast(5) | ic.KeepLast(5), of_steps(10), 10) == "one of the last 5"

    def test_brackets_make_no_difference(self) -> None:
        first, second, third = ic.KeepLast(1), ic.KeepSteps(10), ic.KeepBytes(100)
        assert (first | second) | third == first | (second | third)

    def test_the_representation_is_what_a_user_writes(self) -> None:
        policy = (
            ic.KeepWithin(days=2)
            | ic.KeepPeriodic(hourly=24, weekly=4)
            | ic.KeepSteps(1, 2)
            | ic.KeepBytes(100)
            | ic.KeepWithModel("/models/run-7")
        )
        assert repr(policy) == (
            "KeepWithin(days=2) | KeepPeriodic(hourly=24, weekly=4) | KeepSteps(1, 2) | KeepBytes(budget=100)"
            " | KeepWithModel('/models/run-7')"
        )

    def test_only_policies_combine(self) -> None:
        with pytest.raises(TypeError, match="unsupported operand"):
            ic.KeepLast(1) | 5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ic.KeepLast(0), r"KeepLast\(n\) must be positive, got 0"),
        (lambda: ic.KeepLast(2.5), r"KeepLast\(n\) must be a whole number, got 2.5"),
        (lambda: ic.KeepEverySteps(-1), r"KeepEverySteps\(n\) must be positive, got -1"),
        (lambda: ic.KeepEvery(0), r"KeepEvery\(hours\) must be positive, got 0"),
        (lambda: ic.KeepWithin(), "KeepWithin needs at least one of hours, days"),
        (lambda: ic.KeepWithin(hours=-1, days=2), r"KeepWithin\(hours\) must be positive, got -1"),
        (lambda: ic.KeepWithin(days=float("nan")), r"KeepWithin\(days\) must be positive, got nan"),
        (
            lambda: ic.KeepWithin(timedelta(days=1)),
            r"KeepWithin\(hours\) must be a number",
        ),
        (lambda: ic.KeepPeriodic(), "KeepPeriodic needs at least one of hourly, daily, weekly"),
        (lambda: ic.KeepPeriodic(daily=-1), r"KeepPeriodic\(daily\) must be positive, got -1"),
        (
            lambda: ic.KeepPeriodic(daily=1.5),
            r"KeepPeriodic\(hourly, daily, weekly\) must be a whole number, got 1.5",
        ),
        (lambda: ic.KeepSteps(), "KeepSteps needs at least one step"),
        (lambda: ic.KeepSteps(-5), r"KeepSteps\(\*steps\) must not be negative, got -5"),
        (
            lambda: ic.KeepSteps([1, 2]),
            r"KeepSteps\(\*steps\) must be a whole number, got \[1, 2\]",
        ),
        (lambda: ic.KeepBytes(0), r"KeepBytes\(budget\) must be positive, got 0"),
        (lambda: ic.KeepBytes("1 GB"), r"KeepBytes\(budget\) must be a number"),
        (lambda: ic.KeepWithModel(""), r"KeepWithModel\(model_dir\) must be a path or a URI, got ''"),
        (
            lambda: ic.KeepWithModel(None),
            r"KeepWithModel\(model_dir\) must be a path or a URI, got None",
        ),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused_at_once(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


class WithModelSteps(ic.RetentionPolicy):
    """`KeepWithModel` with the model directory's answer given."""

    def __init__(self, steps: set[int]) -> None:
        self._steps = steps

    def keep(self, checkpoints: Sequence[ic.CheckpointInfo]) -> Any:
        return needed_by_model(checkpoints, self._steps)

    def __repr__(self) -> str:
        return f"WithModelSteps({self._steps})"


def histories() -> st.SearchStrategy[list[ic.CheckpointInfo]]:
    """Histories whose steps grow and whose clocks need not."""
    entry = st.tuples(st.integers(1, 40), st.integers(-60, 3000), st.integers(0, 100))
    return st.lists(entry, max_size=25).map(_history)


def _history(entries: Sequence[tuple[int, int, int]]) -> list[ic.CheckpointInfo]:
    history, step, created = [], 0, NOON
    for steps, minutes, size in entries:
        step, created = step + steps, created + timedelta(minutes=minutes)
        history.append(info(step, created, size))
    return history


def simple_policies() -> st.SearchStrategy[ic.RetentionPolicy]:
    few = st.integers(1, 5)
    return st.one_of(
        st.builds(ic.KeepAll),
        st.builds(ic.KeepLast, few),
        st.builds(ic.KeepEverySteps, st.integers(1, 100)),
        st.builds(ic.KeepEvery, st.floats(0.1, 100)),
        st.builds(ic.KeepWithin, hours=st.floats(0.1, 100), days=st.integers(0, 2)),
        st.builds(ic.KeepPeriodic, hourly=few, daily=st.integers(0, 3), weekly=st.integers(0, 3)),
        st.lists(st.integers(0, 500), min_size=1, max_size=5).map(lambda steps: ic.KeepSteps(*steps)),
        st.builds(ic.KeepBytes, st.integers(1, 500)),
        st.builds(WithModelSteps, st.sets(st.integers(0, 500), max_size=5)),
    )


def policies() -> st.SearchStrategy[ic.RetentionPolicy]:
    several = st.lists(simple_policies(), min_size=2, max_size=4)
    return st.one_of(simple_policies(), several.map(lambda parts: AnyOf(tuple(parts))))


def pruned(policy: ic.RetentionPolicy, checkpoints: Sequence[ic.CheckpointInfo]) -> list[ic.CheckpointInfo]:
    """What a clean-up leaves: what the policy keeps, and the newest."""
    keep = policy.keep(checkpoints)
    return [each for each in checkpoints if each.ref in keep or each is checkpoints[-1]]


@settings(deadline=None)
@given(policy=policies(), checkpoints=histories())
def test_pruning_twice_keeps_the_same(
    policy: ic.RetentionPolicy, checkpoints: list[ic.CheckpointInfo]
) -> None:
    once = pruned(policy, checkpoints)
    assert pruned(policy, once) == once


@settings(deadline=None)
@given(first=policies(), second=policies(), checkpoints=histories())
def test_the_union_keeps_what_each_keeps_and_nothing_else(
    first: ic.RetentionPolicy, second: ic.RetentionPolicy, checkpoints: list[ic.CheckpointInfo]
) -> None:
    assert set((first | second).keep(checkpoints)) == {*first.keep(checkpoints), *second.keep(checkpoints)}


@settings(deadline=None)
@given(policy=policies(), checkpoints=histories())
def test_a_policy_keeps_only_what_there_is_and_tells_why(
    policy: ic.RetentionPolicy, checkpoints: list[ic.CheckpointInfo]
) -> None:
    keep = policy.keep(checkpoints)
    assert set(keep) <= {each.ref for each in checkpoints}
    assert all(keep.values())


@settings(max_examples=40, deadline=None)
@given(policy=policies(), steps=st.lists(st.integers(0, 500), min_size=1, max_size=8, unique=True))
def test_the_newest_is_always_kept_through_the_stores_prune(
    policy: ic.RetentionPolicy, steps: list[int]
) -> None:
    store = store_with(sorted(steps))
    store.prune(policy)
    assert store.newest("main").step == max(steps)


def test_a_model_directory_that_cannot_be_reached_costs_no_checkpoint_of_the_store(tmp_path: Path) -> None:
    store = store_with([10, 20, 30])
    report = store.prune(ic.KeepWithModel(tmp_path / "not-mounted"))
    assert (report.removed, len(store.checkpoints())) == ((), 3)


def store_with(steps: Sequence[int]) -> ic.CheckpointStore:
    store = ic.CheckpointStore.open(MemoryBackend(f"memory://{uuid.uuid4().hex}"), create=True)
    run = store.begin_run("main")
    for step in steps:
        run.save(step, [ic.IteratorState("Iterator", [(b"key", str(step).encode())])])
    return store


def fail_to_list(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def broken(self: Any, path: str, detail: Optional[bool] = None, **options: Any) -> Any:
        raise error

    for name in ("file", "memory"):
        monkeypatch.setattr(fsspec.get_filesystem_class(name), "ls", broken)
