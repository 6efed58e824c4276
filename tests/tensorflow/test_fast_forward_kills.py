"""Every model checkpoint can be resumed exactly, however rarely the input is saved in full.

Trainings are killed with SIGKILL. What they were trained on is compared with an uninterrupted training.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import input_checkpoint as ic
from input_checkpoint.tensorflow.model_checkpoints import latest_model_step
from tests.support.hooked_training import Steps
from tests.support.kills import finish, first_step, succeed
from tests.support.repeatable import PIPELINES
from tests.support.train_child import AtStep, BeforeWrite, Training
from tests.support.training import trained_on, uninterrupted


def training(model: Path, store: Path, steps: int = 60, **settings: Any) -> Training:
    settings = {"options": {"save_steps": 100}, "model_every": 5, **settings}
    return Training(model, str(store), steps, **settings)


def at(step: int, marked: int, lineage: int = 1) -> AtStep:
    """Return the moment after a step, when the mark of an earlier step is written."""
    return AtStep(step, f"checkpoints/main/{lineage:08d}/{marked:012d}-")


def saved(step: int, lineage: int = 1) -> str:
    return f"checkpoints/main/{lineage:08d}/{step:012d}.manifest"


def ids_of(model: Path) -> list[int]:
    """Return everything that a model was trained on."""
    return [example for batch in trained_on(model) for example in batch]


def test_a_model_without_a_full_checkpoint_is_resumed_from_its_mark(model, store, reference: Steps):
    finish(training(model, store, killed=at(33, 30)))
    assert latest_model_step(str(model)) == 30
    before = (model / "checkpoint").read_bytes()
    outcome = finish(training(model, store, killed=AtStep(34)))
    assert first_step(outcome.output) == 31
    assert (model / "checkpoint").read_bytes() == before
    succeed(training(model, store))
    assert trained_on(model) == reference[:60]


def test_after_a_fast_forward_the_next_one_begins_there(model, store, reference: Steps):
    finish(training(model, store, killed=at(33, 30)))
    mark = f"checkpoints/main/00000002/{45:012d}-00000002-{30:012d}"
    finish(training(model, store, killed=AtStep(48, mark)))
    opened = ic.CheckpointStore.open(str(store))
    assert [ref.step for ref in opened.history("main")] == [0, 30]
    bases = [mark.base.step for mark in opened.marks("main") if mark.ref.lineage == 2]
    # Marks that were written before the full checkpoint of step 30 was stored begin at the older one.
    assert bases == sorted(bases)
    assert bases[-1] == 30
    succeed(training(model, store))
    assert trained_on(model) == reference[:60]


def test_a_crash_while_a_save_is_uploaded_loses_no_training(model, store, reference: Steps):
    settings: Any = {"options": {"save_steps": 10}}
    manifest = f"checkpoints/main/00000001/{20:012d}.manifest"
    finish(training(model, store, killed=BeforeWrite(manifest, model_at=20), **settings))
    outcome = succeed(training(model, store, **settings))
    assert first_step(outcome.output) == 21
    assert trained_on(model) == reference[:60]


def test_two_model_checkpoints_are_enough(model, store, reference: Steps):
    settings: Any = {"keep_models": 2}
    finish(training(model, store, killed=at(43, 40), **settings))
    finish(training(model, store, killed=at(52, 50, lineage=2), **settings))
    outcome = succeed(training(model, store, **settings))
    assert first_step(outcome.output) == 51
    assert "Keep at least" not in outcome.output
    assert trained_on(model) == reference[:60]


def test_a_storage_that_is_slower_than_the_models_leaves_one_of_them_without_a_mark(
    model, store, reference: Steps
):
    settings: Any = {"mark_seconds": 0.3, "step_seconds": 0.001, "keep_models": 2}
    finish(training(model, store, killed=at(43, 5), **settings))
    outcome = succeed(training(model, store, **settings))
    assert "seen again" not in outcome.output
    assert first_step(outcome.output) >= 36
    assert trained_on(model) == reference[:60]


def test_a_model_that_was_killed_before_its_mark_goes_back_to_the_newest_mark(model, store, reference: Steps):
    mark = f"checkpoints/main/00000001/{25:012d}-"
    finish(training(model, store, killed=BeforeWrite(mark, model_at=25)))
    outcome = succeed(training(model, store))
    assert "Going back to step 20" in outcome.output
    assert first_step(outcome.output) == 21
    assert trained_on(model) == reference[:60]


@pytest.mark.parametrize("pipeline", ["parallel_map", "parallel_interleave", "cached"])
def test_every_repeatable_pipeline_is_resumed_from_its_marks(tmp_path, model, store, pipeline):
    expected = uninterrupted(PIPELINES[pipeline], 40, tmp_path / "expected")
    for moment in (at(13, 10), at(29, 25, lineage=2)):
        finish(training(model, store, 40, killed=moment, pipeline=pipeline))
    outcome = succeed(training(model, store, 40, pipeline=pipeline))
    assert first_step(outcome.output) == 26
    assert trained_on(model) == expected


class TestAnUnseededShuffle:
    def test_within_one_pass_its_input_is_fast_forwarded(self, model, store):
        finish(training(model, store, killed=at(33, 30), pipeline="unseeded_once"))
        outcome = succeed(training(model, store, pipeline="unseeded_once"))
        assert first_step(outcome.output) == 31
        ids = ids_of(model)
        assert len(ids) == len(set(ids)) == 240

    def test_across_passes_the_newest_pair_is_used_and_no_example_is_lost_or_repeated(self, model, store):
        settings: Any = {"pipeline": "unseeded", "options": {}, "model_every": 10}
        finish(training(model, store, killed=BeforeWrite(saved(20), model_at=20), **settings))
        outcome = succeed(training(model, store, **settings))
        assert "a shuffle without a seed has begun another pass" in outcome.output
        assert first_step(outcome.output) == 11
        ids = ids_of(model)
        for start in range(0, 240, 60):
            assert sorted(ids[start : start + 60]) == list(range(60))

    def test_across_passes_it_is_saved_in_full_with_every_model(self, model, store):
        finish(training(model, store, killed=AtStep(33, saved(30)), pipeline="unseeded"))
        outcome = succeed(training(model, store, pipeline="unseeded"))
        assert "is saved in full whenever the model is: its shuffle has no seed" in outcome.output
        assert first_step(outcome.output) == 31
        ids = ids_of(model)
        for start in range(0, 240, 60):
            assert sorted(ids[start : start + 60]) == list(range(60))


def test_more_steps_than_may_be_fast_forwarded_are_never_between_two_full_saves(model, store, reference):
    options = {"save_steps": 100, "max_fast_forward": 20}
    finish(training(model, store, killed=AtStep(48, saved(40)), options=options))
    assert [ref.step for ref in ic.CheckpointStore.open(str(store)).history("main")] == [0, 20, 40]
    succeed(training(model, store, options=options))
    assert trained_on(model) == reference[:60]


def test_a_sloppy_pipeline_is_saved_in_full_with_every_model(model, store):
    options = {"save_steps": 100, "external_state_policy": "ignore"}
    settings: Any = {"pipeline": "sloppy", "options": options}
    finish(training(model, store, killed=AtStep(33, saved(30)), **settings))
    assert ic.CheckpointStore.open(str(store)).marks("main") == []
    outcome = succeed(training(model, store, **settings))
    assert first_step(outcome.output) == 31
    ids = ids_of(model)
    assert len(ids) == len(set(ids)) == 240


class TestALyingMark:
    """The data or the seed has changed since the mark was written."""

    @pytest.mark.parametrize("pipeline", ["shifted", "reseeded"])
    def test_it_is_found_out(self, model, store, pipeline):
        """A new seed counts from the second pass on, which begins after step 75."""
        settings: Any = {"keep_models": 40}
        finish(training(model, store, 100, killed=at(83, 80), **settings))
        settings["options"] = {"save_steps": 100, "on_pipeline_change": "ignore"}
        changed = training(model, store, 100, pipeline=pipeline, killed=AtStep(90), **settings)
        outcome = finish(changed)
        assert "is not the one that the model was trained on" in outcome.output
        assert "Going back to step 0" in outcome.output
        assert first_step(outcome.output) == 1

    def test_exact_refuses_it(self, model, store):
        finish(training(model, store, killed=at(33, 30)))
        options = {"save_steps": 100, "on_pipeline_change": "ignore", "resume": "exact"}
        outcome = finish(training(model, store, options=options, pipeline="shifted"))
        assert outcome.error.startswith("CheckpointNotFoundError")


def test_without_fast_forward_the_input_is_saved_in_full_with_every_model(model, store, reference: Steps):
    options = {"save_steps": 100, "max_fast_forward": 0}
    finish(training(model, store, killed=AtStep(33, saved(30)), options=options))
    opened = ic.CheckpointStore.open(str(store))
    assert opened.marks("main") == []
    assert [ref.step for ref in opened.history("main")][-1] == 30
    succeed(training(model, store, options=options))
    assert trained_on(model) == reference[:60]


def test_nothing_is_said_about_a_mark_of_a_step_that_is_saved_in_full(model, store):
    outcome = succeed(training(model, store, 20, options={"save_steps": 7}))
    assert "cannot be marked" not in outcome.output
