"""Which checkpoint the input resumes from, and which model checkpoint goes with it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from input_checkpoint.checkpoint import CheckpointRef
from input_checkpoint.training.resume_plan import (
    MODES,
    ResumePlan,
    check_mode,
    paired_model_step,
    plan_resume,
)

steps_in_order = st.lists(st.integers(0, 1000), unique=True, max_size=30).map(sorted)


def history(*steps: int) -> list[CheckpointRef]:
    return [CheckpointRef("main", 1, step) for step in steps]


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
    assert paired_model_step(latest, model_steps, history(*input_steps)) == expected


@given(st.integers(0, 1000), steps_in_order, steps_in_order)
def test_a_paired_step_exists_for_both_and_is_older_than_the_model(latest, model_steps, input_steps):
    step = paired_model_step(latest, [*model_steps, latest], history(*input_steps))
    assert step is None or (step in model_steps and step in input_steps and step < latest)
