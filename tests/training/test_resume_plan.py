"""Which checkpoint the input resumes from, and which model checkpoint goes with it."""

from __future__ import annotations

from typing import Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st

from input_checkpoint.checkpoint import CheckpointRef
from input_checkpoint.format.lineage import Ancestor, Lineage
from input_checkpoint.store.catalog import WorkerListing
from input_checkpoint.training.resume_plan import (
    MODES,
    ResumePlan,
    check_mode,
    crash_explains,
    observed_interval,
    plan_resume,
    rollback_candidates,
)

steps_in_order = st.lists(st.integers(0, 1000), unique=True, max_size=30).map(sorted)


def history(*steps: int) -> list[CheckpointRef]:
    return [CheckpointRef("main", 1, step) for step in steps]


def pairs(latest: int, model_steps, *input_steps: int, start_step: Optional[int] = None) -> list[int]:
    listing = WorkerListing(tuple(history(*input_steps)), Lineage("main", 1, (), start_step=start_step))
    return [found.step for found in rollback_candidates(latest, model_steps, listing)]


def candidates(mode: str, step: int, *saved: int) -> list[int]:
    return [ref.step for ref in plan_resume(mode, step, history(*saved)).candidates]


@pytest.mark.parametrize(
    ("mode", "step", "saved", "expected"),
    [
        ("aligned", 20, (10, 20, 30), [20, 10]),
        ("aligned", 25, (10, 20, 30), [20, 10]),
        ("aligned", 30, (10, 20, 30), [30, 20, 10]),
        ("aligned", 99, (10, 20, 30), [30, 20, 10]),
        ("aligned", 5, (10, 20, 30), []),
        ("aligned", 0, (), []),
        ("exact", 20, (10, 20, 30), [20]),
        ("exact", 25, (10, 20, 30), []),
        ("exact", 0, (0, 10), [0]),
        ("latest", 15, (10, 20, 30), [30, 20, 10]),
        ("latest", 0, (10,), [10]),
        ("latest", 15, (), []),
        ("fresh", 20, (10, 20, 30), []),
    ],
)
def test_the_candidates_come_best_first(mode, step, saved, expected):
    assert candidates(mode, step, *saved) == expected


@given(st.integers(0, 1000), steps_in_order)
def test_aligned_never_skips_examples(step, saved):
    assert all(candidate <= step for candidate in candidates("aligned", step, *saved))


@given(st.integers(0, 1000), steps_in_order)
def test_aligned_prefers_newer_checkpoints_and_omits_no_older_one(step, saved):
    assert candidates("aligned", step, *saved) == [s for s in reversed(saved) if s <= step]


@pytest.mark.parametrize(
    ("step", "saved", "required"),
    [(20, (10, 20), True), (25, (10, 20), True), (0, (), False), (7, (), True), (0, (10,), True)],
)
def test_exact_requires_a_checkpoint_unless_nothing_was_ever_trained_or_saved(step, saved, required):
    assert plan_resume("exact", step, history(*saved)).required is required


@pytest.mark.parametrize("mode", ["aligned", "latest", "fresh"])
def test_other_modes_may_start_from_the_beginning(mode):
    assert not plan_resume(mode, 20, history(10)).required


def test_the_newer_of_two_lineages_with_the_same_step_comes_first():
    older, newer = CheckpointRef("main", 1, 20), CheckpointRef("main", 2, 20)
    assert plan_resume("exact", 20, [older, newer]) == ResumePlan((newer, older), required=True)


@pytest.mark.parametrize("mode", MODES)
def test_a_known_mode_is_accepted(mode):
    assert check_mode(mode) == mode


@pytest.mark.parametrize("mode", ["", "Aligned", "newest", None])
def test_an_unknown_mode_is_refused_with_the_known_ones(mode):
    with pytest.raises(ValueError, match="'aligned', 'exact', 'latest', 'fresh'"):
        check_mode(mode)


@pytest.mark.parametrize(
    ("latest", "model_steps", "input_steps", "expected"),
    [
        pytest.param(30, (10, 20, 30), (10, 20), 20, id="the input's save was lost"),
        pytest.param(30, (10, 20, 30), (10, 20, 30), None, id="both exist"),
        pytest.param(20, (10, 20), (10, 20, 30), None, id="the user moved the model back"),
        pytest.param(30, (30,), (10, 20), None, id="no older model exists"),
        pytest.param(30, (5, 15, 30), (10, 20), None, id="no pair is complete"),
        pytest.param(30, (10, 20, 30), (), None, id="no input was ever saved"),
        pytest.param(30, (10, 20, 30), (10,), 10, id="several saves were lost"),
    ],
)
def test_the_model_goes_back_to_the_newest_complete_pair_only_if_the_input_is_behind(
    latest, model_steps, input_steps, expected
):
    assert next(iter(pairs(latest, model_steps, *input_steps)), None) == expected


@given(st.integers(0, 1000), steps_in_order, steps_in_order)
def test_a_pair_is_of_a_step_that_both_have_and_is_older_than_the_model(latest, model_steps, input_steps):
    for step in pairs(latest, [*model_steps, latest], *input_steps):
        assert step in model_steps
        assert step in input_steps
        assert step < latest


def test_older_pairs_follow_the_newest_one():
    assert pairs(40, (10, 20, 30, 40), 10, 20, 25) == [20, 10]


def test_the_beginning_of_the_input_is_a_pair_with_the_model_that_the_run_began_at():
    assert pairs(10, (0, 10), start_step=0) == [0]
    assert pairs(20, (0, 10, 20), 10, start_step=0) == [10, 0]


def test_the_beginning_of_the_input_is_no_pair_of_a_run_that_was_resumed():
    resumed = Lineage("main", 2, (Ancestor(1, 10),), start_step=10)
    listing = WorkerListing(tuple(history(5)), resumed)
    assert [found.step for found in rollback_candidates(20, (5, 10, 20), listing)] == [5]


class TestCrash:
    def test_two_unfinished_saves_can_come_from_a_crash(self):
        assert crash_explains(20, [30, 40], interval=10)

    def test_three_cannot(self):
        assert not crash_explains(20, [30, 40, 50], interval=10)

    def test_a_model_that_is_newer_than_the_end_of_the_last_training_comes_from_elsewhere(self):
        assert not crash_explains(20, [30, 35], interval=10, ended_at=20)

    def test_a_training_that_ended_normally_may_have_lost_its_input_later(self):
        assert crash_explains(20, [30], interval=10, ended_at=30)

    def test_skipped_saves_leave_any_number_of_models_without_input(self):
        assert crash_explains(20, [30, 40, 50, 60], interval=10, skips_saves=True)

    def test_without_steps_between_saves_the_models_are_counted(self):
        assert crash_explains(20, [99, 200], interval=None)
        assert not crash_explains(20, [99, 200, 300], interval=None)

    def test_a_session_that_advances_by_many_steps_saves_at_its_own_interval(self):
        assert observed_interval(10, history(0, 32, 64)) == 32
        assert crash_explains(64, [96, 128], interval=32)

    def test_a_single_checkpoint_shows_no_interval(self):
        assert observed_interval(10, history(20)) == 10
        assert observed_interval(10, []) == 10
