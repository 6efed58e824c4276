"""When a save is due."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from input_checkpoint.training.schedule import SaveSchedule


@pytest.mark.parametrize("schedule", [SaveSchedule(every_steps=100), SaveSchedule(every_secs=60.0)])
def test_the_first_save_is_due_at_once(schedule):
    assert schedule.due(0, now=0.0)


@pytest.mark.parametrize(
    ("step", "due"), [(5, False), (6, False), (14, False), (15, True), (16, True), (1000, True)]
)
def test_steps_are_counted_from_the_last_save(step, due):
    assert SaveSchedule(every_steps=10).after(5, now=0.0).due(step, now=1e9) is due


@pytest.mark.parametrize(("now", "due"), [(100.0, False), (159.9, False), (160.0, True), (1e9, True)])
def test_seconds_are_counted_from_the_last_save(now, due):
    assert SaveSchedule(every_secs=60.0).after(5, now=100.0).due(6, now=now) is due


def test_a_step_is_never_saved_twice():
    assert not SaveSchedule(every_secs=60.0).after(5, now=0.0).due(5, now=1e9)


def test_a_schedule_does_not_change_after_a_save():
    schedule = SaveSchedule(every_steps=10)
    schedule.after(5, now=0.0)
    assert schedule.due(6, now=0.0)


@pytest.mark.parametrize(("now", "overdue"), [(150.0, False), (199.9, False), (200.0, True), (1e9, True)])
def test_a_timed_save_is_overdue_when_a_second_interval_has_passed(now, overdue):
    assert SaveSchedule(every_secs=50.0).after(1, now=100.0).overdue(2, now=now) is overdue


def test_a_save_counted_in_steps_is_overdue_as_soon_as_it_is_due():
    schedule = SaveSchedule(every_steps=10).after(0, now=0.0)
    assert [schedule.overdue(step, now=0.0) for step in (9, 10)] == [False, True]


def test_numpy_numbers_become_plain_ones():
    by_steps = SaveSchedule(every_steps=np.int64(10)).after(np.int64(20), np.float64(1.5))
    assert repr(by_steps) == repr(SaveSchedule(every_steps=10).after(20, 1.5))
    assert repr(SaveSchedule(every_secs=np.float32(0.5))) == repr(SaveSchedule(every_secs=0.5))
    assert by_steps.due(np.int64(30), now=0.0)


@pytest.mark.parametrize("step", [True, 20.0, np.float64(20), np.bool_(True)])
def test_a_step_that_is_not_a_whole_number_is_refused(step):
    with pytest.raises(TypeError, match="last_step must be a whole number"):
        SaveSchedule(every_steps=10).after(step, now=0.0)


def test_an_interval_must_be_given():
    with pytest.raises(ValueError, match="should be provided"):
        SaveSchedule()


def test_steps_and_seconds_cannot_both_be_given():
    with pytest.raises(ValueError, match="both"):
        SaveSchedule(every_steps=10, every_secs=60.0)


@pytest.mark.parametrize(
    "interval", [{"every_steps": 0}, {"every_steps": -1}, {"every_secs": 0.0}, {"every_secs": -0.5}]
)
def test_an_interval_that_is_not_positive_is_refused_under_its_public_name(interval):
    with pytest.raises(ValueError, match=r"save_(steps|secs) must be positive"):
        SaveSchedule(**interval)


@given(st.integers(1, 50), st.lists(st.integers(1, 30), max_size=60))
def test_saves_are_never_closer_than_the_interval_and_none_is_missed(every, strides):
    schedule = SaveSchedule(every_steps=every).after(0, now=0.0)
    saved, step = [0], 0
    for stride in strides:
        step += stride
        if schedule.due(step, now=0.0):
            schedule = schedule.after(step, now=0.0)
            saved.append(step)
        assert step - saved[-1] < every
    assert all(later - earlier >= every for earlier, later in zip(saved, saved[1:]))
