"""Processes are killed with SIGKILL in every situation that a resume must tell apart.

Each test compares what was trained on with an uninterrupted training. A refusal changes nothing.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

import input_checkpoint as ic
from input_checkpoint.tensorflow.model_checkpoints import latest_model_step
from tests.support.hooked_training import Steps
from tests.support.kills import finish, start, succeed
from tests.support.train_child import AtStep, BeforeWrite, InModelSave, Training
from tests.support.training import trained_on


def training(model: Path, store: Path, steps: int = 40, **settings: Any) -> Training:
    return Training(model, str(store), steps, **settings)


def manifest(step: int, lineage: int = 1) -> str:
    return f"checkpoints/main/{lineage:08d}/{step:012d}"


def files(folder: Path) -> dict[str, bytes]:
    """Return the content of every file of a folder, but for what TensorFlow writes for TensorBoard."""
    found = {str(path): path for path in folder.rglob("*") if path.is_file()}
    return {
        name: path.read_bytes() for name, path in found.items() if not path.match("events.out.tfevents.*")
    }


def leave_model_without_input(model: Path, store: Path, step: int, **settings: Any) -> None:
    """Train, and kill the process when the model of ``step`` is saved and its input is not, nor marked."""
    earlier = manifest(step - settings.get("model_every", 10))
    moment = BeforeWrite(manifest(step), model_at=step, written=f"{earlier}.manifest")
    finish(training(model, store, killed=moment, **settings))
    assert latest_model_step(str(model)) == step


class TestAnotherTraining:
    @pytest.fixture(autouse=True)
    def killed_training(self, model: Path, store: Path) -> None:
        """A training that is killed at step 25."""
        finish(training(model, store, killed=AtStep(25)))

    def test_it_may_not_use_the_store_of_a_killed_one(self, tmp_path, model, store, reference: Steps):
        before = files(store)
        refused = finish(training(tmp_path / "other", store))
        assert refused.error.startswith("DifferentRunError")
        assert files(store) == before
        assert not list((tmp_path / "other").glob("model.ckpt-*"))
        succeed(training(model, store))
        assert trained_on(model) == reference[:40]

    def test_swapped_stores_are_refused_on_both_sides(self, tmp_path, model, store, reference: Steps):
        other, others_store = tmp_path / "other", tmp_path / "others-store"
        finish(training(other, others_store, killed=AtStep(35)))
        before = files(tmp_path)
        for swapped in (training(model, others_store), training(other, store)):
            assert finish(swapped).error.startswith("DifferentRunError")
        assert files(tmp_path) == before
        for right in (training(model, store), training(other, others_store)):
            succeed(right)
            assert trained_on(right.model_dir) == reference[:40]

    def test_a_deleted_model_directory_does_not_resume_from_the_store_that_is_left(
        self, model, store, reference: Steps
    ):
        shutil.rmtree(model)
        before = files(store)
        assert finish(training(model, store)).error.startswith("DifferentRunError")
        assert files(store) == before
        succeed(training(model, store, options={"resume": "fresh"}))
        assert trained_on(model) == reference[:40]

    def test_a_copied_model_directory_and_its_original_share_the_store(
        self, tmp_path, model, store, reference: Steps
    ):
        copy = tmp_path / "copy"
        shutil.copytree(model, copy)
        succeed(training(copy, store, 40))
        succeed(training(model, store, 30))
        succeed(training(copy, store, 50))
        assert trained_on(copy) == reference[:50]
        assert trained_on(model) == reference[:30]


class TestACrashBetweenModelAndInput:
    def test_the_model_goes_back_to_the_newest_pair(self, model, store, reference: Steps):
        leave_model_without_input(model, store, 30)
        assert "Going back to step 20" in succeed(training(model, store)).output
        assert trained_on(model) == reference[:40]

    def test_a_damaged_pair_is_passed_over_for_an_older_one(self, model, store, reference: Steps):
        leave_model_without_input(model, store, 30)
        for mark in store.glob("checkpoints/main/*/000000000020-*.mark"):
            mark.unlink()
        for pack in store.glob("packs/main/*/000000000020-*"):
            pack.write_bytes(pack.read_bytes()[:-1])
        outcome = succeed(training(model, store))
        assert "The model cannot go back to step 20, because" in outcome.output
        assert "Going back to step 10" in outcome.output
        assert trained_on(model) == reference[:40]

    def test_a_changed_pipeline_is_refused_before_anything_is_turned_back(
        self, tmp_path, model, store, reference: Steps
    ):
        leave_model_without_input(model, store, 30)
        before = files(tmp_path)
        assert finish(training(model, store, buffer=50)).error.startswith("PipelineMismatchError")
        assert files(tmp_path) == before
        succeed(training(model, store))
        assert trained_on(model) == reference[:40]

    @pytest.mark.parametrize(
        "moment",
        [
            pytest.param(BeforeWrite("lineages/"), id="before the run begins"),
            pytest.param(AtStep(25), id="between two saves"),
        ],
    )
    def test_a_second_crash_before_the_first_save_after_it_changes_nothing(
        self, model, store, moment, reference: Steps
    ):
        leave_model_without_input(model, store, 30)
        finish(training(model, store, killed=moment))
        assert latest_model_step(str(model)) == 20
        succeed(training(model, store))
        assert trained_on(model) == reference[:40]

    @pytest.mark.parametrize(("when_busy", "model_at"), [("wait", 0), ("skip", 20)])
    def test_in_the_very_first_upload_nothing_is_repeated(
        self, model, store, when_busy, model_at, reference: Steps
    ):
        options = {"when_busy": when_busy, "max_fast_forward": 0}  # with marks, training waits for it
        moment = BeforeWrite("packs/", model_at=model_at)
        finish(training(model, store, killed=moment, options=options))
        assert latest_model_step(str(model)) == model_at
        succeed(training(model, store, options=options))
        assert trained_on(model) == reference[:40]

    def test_after_the_interval_was_lowered_the_model_goes_back_by_the_old_one(
        self, model, store, reference: Steps
    ):
        leave_model_without_input(model, store, 20, model_every=20)
        outcome = succeed(training(model, store, model_every=5))
        assert "Going back to step 0" in outcome.output
        assert trained_on(model) == reference[:40]


class TestSavesAtOtherSteps:
    def test_saves_at_each_step_keep_what_the_model_needs(self, model, store, reference: Steps):
        options = {"save_steps": 1, "retention": ic.KeepLast(5)}
        finish(training(model, store, options=options, killed=AtStep(38)))
        outcome = succeed(training(model, store, options=options))
        assert "seen again" not in outcome.output
        assert trained_on(model) == reference[:40]

    def test_steps_that_were_trained_without_the_hook_on_purpose_are_kept(
        self, model, store, reference: Steps
    ):
        succeed(training(model, store, 20))
        finish(Training(model, None, killed=AtStep(35)))
        outcome = succeed(training(model, store))
        assert "Going back" not in outcome.output
        assert "10 steps of data will be seen again" in outcome.output
        assert trained_on(model) == reference[:20] + reference[:10] + reference[20:30]


@pytest.mark.skipif(not Path("/proc").exists(), reason="/proc says whether a process is stopped")
class TestAStoppedWriter:
    """It is stopped while it saves its last model, of step 20, and wakes when its successor is at step 30."""

    def train_past_a_stopped_writer(self, model: Path, store: Path, **options: Any) -> None:
        with start(training(model, store, 20, stopped=InModelSave(20))) as writer:
            writer.wait_until_stopped()
            succeed(training(model, store, 30, options=options))
            writer.wake()
            # Either of the two, depending on whether its save of step 10 had ended when it was stopped.
            assert writer.finish().error.startswith(("WriterSupersededError", "SaveExpiredError"))
        assert latest_model_step(str(model)) == 20

    def test_its_equal_model_is_taken_for_the_one_it_replaced(self, model, store, reference: Steps):
        self.train_past_a_stopped_writer(model, store)
        assert "seen again" not in succeed(training(model, store)).output
        assert trained_on(model) == reference[:40]

    def test_its_different_model_is_not_resumed_with_the_input_of_its_successor(
        self, model, store, reference: Steps
    ):
        self.train_past_a_stopped_writer(model, store, resume="fresh")
        outcome = succeed(training(model, store))
        assert "was saved with another model" in outcome.output
        assert "10 steps of data will be seen again" in outcome.output
        assert trained_on(model) == reference[:20] + reference[:20]
