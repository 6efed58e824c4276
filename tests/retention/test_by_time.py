"""Which checkpoints are kept by time, even if clocks were wrong."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import input_checkpoint as ic
from tests.support.retention import NOON, at, at_hours, histories, info, kept, reason


class TestKeepWithin:
    def test_keeps_what_is_at_most_that_much_older_than_the_newest(self) -> None:
        assert kept(ic.KeepWithin(hours=2), at_hours(0, 1, 2, 3)) == [1, 2, 3]

    def test_hours_and_days_add_up(self) -> None:
        assert kept(ic.KeepWithin(hours=12, days=1), at_hours(0, 1, 37)) == [1, 2]

    def test_an_outage_of_months_removes_nothing(self) -> None:
        long_ago = datetime.now(timezone.utc) - timedelta(days=200)
        checkpoints = at(long_ago, long_ago + timedelta(minutes=10))
        assert kept(ic.KeepWithin(hours=1), checkpoints) == [0, 1]

    @settings(deadline=None)
    @given(shift=st.timedeltas(min_value=timedelta(0), max_value=timedelta(days=3650)), data=st.data())
    def test_the_time_of_the_prune_does_not_matter(self, shift: timedelta, data: st.DataObject) -> None:
        checkpoints = data.draw(histories())
        earlier = [info(each.step, each.created - shift) for each in checkpoints]
        policy = ic.KeepWithin(hours=5)
        assert kept(policy, checkpoints) == kept(policy, earlier)

    def test_a_clock_that_was_once_ahead_removes_nothing_newer(self) -> None:
        assert kept(ic.KeepWithin(hours=1), at(NOON + timedelta(days=900), NOON)) == [0, 1]

    def test_a_newest_checkpoint_dated_a_year_ahead_removes_nothing(self) -> None:
        hours = [NOON + timedelta(hours=hour) for hour in range(10)]
        assert kept(ic.KeepWithin(days=2), at(*hours, NOON + timedelta(days=365))) == list(range(11))

    def test_after_a_pause_nothing_is_removed_until_a_second_checkpoint_confirms_the_time(self) -> None:
        resumed = NOON + timedelta(days=365)
        times = [NOON, NOON + timedelta(hours=1), resumed]
        policy = ic.KeepWithin(days=2)
        assert kept(policy, at(*times)) == [0, 1, 2]
        assert kept(policy, at(*times, resumed + timedelta(hours=1))) == [2, 3]

    def test_a_checkpoint_dated_ahead_in_between_removes_nothing(self) -> None:
        times = [NOON, NOON + timedelta(days=365), NOON + timedelta(hours=1), NOON + timedelta(hours=2)]
        assert kept(ic.KeepWithin(hours=3), at(*times)) == [0, 1, 2, 3]

    def test_a_checkpoint_dated_long_ago_in_between_is_kept_with_its_neighbors(self) -> None:
        times = [NOON, NOON - timedelta(days=9999), NOON + timedelta(hours=1)]
        assert kept(ic.KeepWithin(hours=3), at(*times)) == [0, 1, 2]

    def test_checkpoints_saved_since_a_clock_was_set_back_are_removed_when_old_enough(self) -> None:
        back = NOON - timedelta(days=365)
        hours = [back + timedelta(hours=hour) for hour in range(5)]
        assert kept(ic.KeepWithin(hours=1), at(NOON, *hours)) == [0, 4, 5]

    @pytest.mark.parametrize("days", [1e12, float("inf")])
    def test_an_endless_time_keeps_everything(self, days: float) -> None:
        assert kept(ic.KeepWithin(days=days), at(NOON, NOON + timedelta(days=9999))) == [0, 1]

    def test_an_empty_history_keeps_nothing(self) -> None:
        assert kept(ic.KeepWithin(days=1), []) == []

    def test_the_reason_gives_the_time(self) -> None:
        policy = ic.KeepWithin(hours=1.5, days=2)
        assert reason(policy, at(NOON), 0) == "at most 2 d 1.5 h older than the newest"


class TestKeepEvery:
    @pytest.mark.parametrize(
        ("hours", "created", "expected"),
        [
            (1, [0.0, 0.5, 1.0, 1.5, 2.0], [0, 2, 4]),
            (1, [0.0, 0.9, 1.8, 2.7], [0, 2]),
            (0.5, [0.0, 0.5, 0.75, 1.0], [0, 1, 3]),
            (24, [0.0, 5.0, 23.9], [0]),
        ],
    )
    def test_keeps_checkpoints_that_are_far_enough_apart(
        self, hours: float, created: list[float], expected: list[int]
    ) -> None:
        assert kept(ic.KeepEvery(hours), at_hours(*created)) == expected

    @given(
        created=st.lists(st.floats(-5.0, 100.0), max_size=25).map(sorted),
        hours=st.floats(0.1, 20.0),
    )
    def test_leaves_no_gap_that_a_checkpoint_could_have_filled(
        self, created: list[float], hours: float
    ) -> None:
        checkpoints = at_hours(*created)
        keep = ic.KeepEvery(hours).keep(checkpoints)
        remaining = [each for each in checkpoints if each.ref in keep]
        for earlier, later in zip(remaining, remaining[1:]):
            assert later.created - earlier.created >= timedelta(hours=hours)
            between = [each for each in checkpoints if earlier.created < each.created < later.created]
            assert all(each.created - earlier.created < timedelta(hours=hours) for each in between)

    @pytest.mark.parametrize("hours", [1e13, float("inf")])
    def test_an_endless_time_keeps_the_first(self, hours: float) -> None:
        assert kept(ic.KeepEvery(hours), at_hours(0, 1000)) == [0]

    def test_a_checkpoint_dated_a_year_ahead_does_not_remove_the_following_ones(self) -> None:
        hours = [NOON + timedelta(hours=hour) for hour in range(1, 49)]
        checkpoints = at(NOON, NOON + timedelta(days=365), *hours)
        assert kept(ic.KeepEvery(hours=1), checkpoints) == list(range(50))

    def test_a_checkpoint_dated_long_ago_does_not_remove_the_following_ones(self) -> None:
        hours = [NOON + timedelta(hours=hour) for hour in (1, 1.5, 2)]
        checkpoints = at(NOON, NOON - timedelta(days=9999), *hours)
        assert kept(ic.KeepEvery(hours=1), checkpoints) == [0, 1, 2, 4]


class TestKeepPeriodic:
    def test_a_checkpoint_dated_a_year_ahead_does_not_count(self) -> None:
        days = [NOON + timedelta(days=day) for day in (0, 1, 365, 1.1, 2)]
        assert kept(ic.KeepPeriodic(daily=3), at(*days)) == [0, 1, 2, 3, 4]

    def test_a_day_that_occurs_twice_because_the_clock_was_set_back_counts_twice(self) -> None:
        days = [NOON + timedelta(days=day) for day in (0, 1, 0.1, 1.1)]
        assert kept(ic.KeepPeriodic(daily=3), at(*days)) == [0, 1, 2, 3]

    def test_a_checkpoint_dated_ahead_is_removed_once_enough_days_have_followed(self) -> None:
        days = [NOON + timedelta(days=day) for day in (365, 0, 1, 2)]
        assert kept(ic.KeepPeriodic(daily=3), at(*days)) == [1, 2, 3]

    def test_keeps_the_newest_of_each_of_the_last_hours(self) -> None:
        minutes = [NOON + timedelta(minutes=minute) for minute in (0, 30, 70, 80, 130)]
        assert kept(ic.KeepPeriodic(hourly=2), at(*minutes)) == [3, 4]

    def test_keeps_the_newest_of_each_of_the_last_days(self) -> None:
        assert kept(ic.KeepPeriodic(daily=3), at_hours(0, 11, 12, 35, 36)) == [1, 3, 4]

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

    def test_the_reason_names_the_rule_and_the_period(self) -> None:
        checkpoints = at(NOON - timedelta(days=7), NOON)
        assert reason(ic.KeepPeriodic(daily=7, weekly=4), checkpoints, 0) == (
            "the newest of 2026-02-25 (daily, 2 of 7); the newest of week 2026-W09 (weekly, 2 of 4)"
        )

    def test_the_reason_names_an_hour_in_utc(self) -> None:
        assert reason(ic.KeepPeriodic(hourly=1), at(NOON), 0) == (
            "the newest of 2026-03-04 12h UTC (hourly, 1 of 1)"
        )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ic.KeepEvery(0), r"KeepEvery\(hours\) must be positive, got 0"),
        (lambda: ic.KeepWithin(), "KeepWithin needs at least one of hours, days"),
        (lambda: ic.KeepWithin(hours=-1, days=2), r"KeepWithin\(hours\) must be positive, got -1"),
        (lambda: ic.KeepWithin(days=float("nan")), r"KeepWithin\(days\) must be positive, got nan"),
        (lambda: ic.KeepWithin(timedelta(days=1)), r"KeepWithin\(hours\) must be a number"),
        (lambda: ic.KeepPeriodic(), "KeepPeriodic needs at least one of hourly, daily, weekly"),
        (lambda: ic.KeepPeriodic(daily=-1), r"KeepPeriodic\(daily\) must be positive, got -1"),
        (
            lambda: ic.KeepPeriodic(daily=1.5),
            r"KeepPeriodic\(hourly, daily, weekly\) must be a whole number, got 1.5",
        ),
    ],
)
def test_an_invalid_argument_is_refused_at_once(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("hours", [0, -1, float("nan"), float("-inf")])
def test_an_interval_that_is_not_positive_is_refused(hours: float) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        ic.KeepEvery(hours)
