"""A store and a model directory belong together, or training does not begin."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Optional

import pytest
import tensorflow as tf

import input_checkpoint as ic
from tests.support.hooked_training import Steps, set_current_model
from tests.support.training import FailAt, make_estimator, shuffled_ids, trained_on, uninterrupted


def train(model_dir: Path, store: Path, steps: int, seed: int = 7, **options: Any) -> None:
    estimator = make_estimator(model_dir)
    hook = ic.CheckpointInputPipelineHook(estimator, backend=store, **options)
    estimator.train(lambda: shuffled_ids(seed=seed), hooks=[hook], steps=steps)


def checkpoints(store: Path) -> list[tuple[int, int]]:
    return [(info.lineage, info.step) for info in ic.CheckpointStore.open(store).checkpoints()]


class TestAnotherTraining:
    @pytest.fixture
    def store(self, tmp_path: Path) -> Path:
        """The store of a first training that has reached step 20."""
        train(tmp_path / "first", tmp_path / "store", 20)
        return tmp_path / "store"

    def test_its_store_is_refused_with_both_sides_and_three_ways_out(self, tmp_path, store):
        with pytest.raises(ic.DifferentRunError) as raised:
            train(tmp_path / "second", store, 10, seed=8)
        message = str(raised.value)
        assert raised.value.uri == str(store)
        for part in (str(store), str(tmp_path / "second"), "newest checkpoint at step 20"):
            assert part in message
        for way_out in ("another backend", "adopt=True", "resume='fresh'"):
            assert way_out in message

    def test_a_refusal_changes_nothing_in_the_store(self, tmp_path, store):
        before = sorted(path.relative_to(store) for path in store.rglob("*") if path.is_file())
        with pytest.raises(ic.DifferentRunError):
            train(tmp_path / "second", store, 10)
        assert sorted(path.relative_to(store) for path in store.rglob("*") if path.is_file()) == before

    def test_the_first_one_goes_on_exactly_after_the_refusal(self, tmp_path, store, reference: Steps):
        with pytest.raises(ic.DifferentRunError):
            train(tmp_path / "second", store, 10, seed=8)
        train(tmp_path / "first", store, 20)
        assert trained_on(tmp_path / "first") == reference[:40]

    def test_its_input_state_can_be_adopted(self, tmp_path, store, reference: Steps):
        train(tmp_path / "second", store, 10, adopt=True, resume="latest")
        assert trained_on(tmp_path / "second") == reference[20:30]

    def test_the_one_whose_state_was_adopted_is_refused_from_then_on(self, tmp_path, store):
        train(tmp_path / "second", store, 10, adopt=True, resume="latest")
        with pytest.raises(ic.DifferentRunError):
            train(tmp_path / "first", store, 10)

    def test_its_store_can_be_taken_over_with_a_fresh_start(self, tmp_path, store):
        train(tmp_path / "second", store, 10, seed=8, resume="fresh")
        expected = uninterrupted(lambda: shuffled_ids(seed=8), 10, tmp_path / "alone")
        assert trained_on(tmp_path / "second") == expected

    def test_the_one_whose_store_was_taken_over_is_refused_from_then_on(self, tmp_path, store):
        train(tmp_path / "second", store, 10, seed=8, resume="fresh")
        with pytest.raises(ic.DifferentRunError):
            train(tmp_path / "first", store, 10)

    def test_a_new_model_directory_on_the_old_store_is_another_training(self, tmp_path, store):
        shutil.rmtree(tmp_path / "first")
        with pytest.raises(ic.DifferentRunError):
            train(tmp_path / "first", store, 10)

    def test_a_copy_of_its_store_in_the_place_of_ones_own_is_refused(self, tmp_path, store):
        train(tmp_path / "second", tmp_path / "own", 20, seed=8)
        shutil.rmtree(tmp_path / "own")
        shutil.copytree(store, tmp_path / "own")
        with pytest.raises(ic.DifferentRunError):
            train(tmp_path / "second", tmp_path / "own", 10, seed=8)


class TestTheSameTraining:
    def test_it_resumes_from_a_store_that_was_copied_for_it(self, tmp_path, reference: Steps):
        train(tmp_path / "model", tmp_path / "old", 20)
        new = ic.CheckpointStore.open(tmp_path / "new", create=True)
        ic.CheckpointStore.open(tmp_path / "old").copy_to(new)
        train(tmp_path / "model", tmp_path / "new", 20)
        assert trained_on(tmp_path / "model") == reference[:40]

    def test_it_resumes_from_a_model_directory_that_was_moved(self, tmp_path, reference: Steps):
        train(tmp_path / "model", tmp_path / "store", 20)
        shutil.move(tmp_path / "model", tmp_path / "moved")
        train(tmp_path / "moved", tmp_path / "store", 20)
        assert trained_on(tmp_path / "moved") == reference[:40]

    @pytest.mark.parametrize("damage", [None, "", "{}", "[]", "\x00"])
    def test_a_lost_mark_is_replaced_by_the_proof_of_a_pair(self, tmp_path, reference: Steps, damage):
        train(tmp_path / "model", tmp_path / "store", 20)
        mark = tmp_path / "model" / "input-checkpoint.json"
        mark.unlink() if damage is None else mark.write_text(damage)
        train(tmp_path / "model", tmp_path / "store", 20)
        assert trained_on(tmp_path / "model") == reference[:40]

    def test_the_mark_names_run_store_and_lineage_in_less_than_a_kilobyte(self, tmp_path):
        train(tmp_path / "model", tmp_path / "store", 20)
        text = (tmp_path / "model" / "input-checkpoint.json").read_text()
        lineage = ic.CheckpointStore.open(tmp_path / "store").newest_lineage("main")
        assert json.loads(text) == {
            "run_id": lineage.run_id,
            "uri": str(tmp_path / "store"),
            "worker": "main",
            "lineage": 1,
            "ended_at": 20,
        }
        assert len(text) < 1024

    def test_a_swap_back_to_an_older_store_is_told(self, tmp_path, caplog):
        train(tmp_path / "model", tmp_path / "old", 20)
        new = ic.CheckpointStore.open(tmp_path / "new", create=True)
        ic.CheckpointStore.open(tmp_path / "old").copy_to(new)
        train(tmp_path / "model", tmp_path / "new", 20)
        train(tmp_path / "model", tmp_path / "old", 5)
        message = f"continued in {tmp_path}/new, up to step 40; {tmp_path}/old ends at step 20"
        assert message in caplog.text

    def test_its_run_id_stays_the_same_over_its_runs(self, tmp_path):
        ids = set()
        for _ in range(3):
            train(tmp_path / "model", tmp_path / "store", 5)
            ids.add(ic.CheckpointStore.open(tmp_path / "store").newest_lineage("main").run_id)
        assert len(ids) == 1


class TestModelEvidence:
    def test_a_checkpoint_records_the_model_that_it_was_saved_with(self, tmp_path):
        train(tmp_path / "model", tmp_path / "store", 20)
        contexts = [info.context for info in ic.CheckpointStore.open(tmp_path / "store").checkpoints()]
        digests = [context.model_digest for context in contexts]
        assert None not in digests
        assert len(set(digests)) == len(digests)
        assert {context.save_steps for context in contexts} == {10}
        assert [context.draws for context in contexts] == [0, 10, 20]

    def test_a_model_that_was_replaced_is_not_taken_for_the_one_of_the_pair(
        self, tmp_path, reference: Steps, caplog
    ):
        """As when a suspended writer wakes up and overwrites the checkpoint of its successor."""
        train(tmp_path / "model", tmp_path / "store", 20)
        train(tmp_path / "other", tmp_path / "other-store", 20, seed=8)
        for path in (tmp_path / "other").glob("model.ckpt-20.*"):
            shutil.copy(path, tmp_path / "model")
        train(tmp_path / "model", tmp_path / "store", 5)
        assert "was saved with another model" in caplog.text
        assert "10 steps of data will be seen again" in caplog.text
        assert trained_on(tmp_path / "model")[20:25] == reference[10:15]

    def test_exact_refuses_a_model_that_was_replaced(self, tmp_path):
        train(tmp_path / "model", tmp_path / "store", 20)
        train(tmp_path / "other", tmp_path / "other-store", 20, seed=8)
        for path in (tmp_path / "other").glob("model.ckpt-20.*"):
            shutil.copy(path, tmp_path / "model")
        with pytest.raises(ic.CheckpointNotFoundError, match="another model") as raised:
            train(tmp_path / "model", tmp_path / "store", 5, resume="exact")
        assert raised.value.step == 20


class TestGoingBackByMistake:
    def test_the_newer_model_gets_its_own_input_again(self, tmp_path, reference: Steps):
        train(tmp_path / "model", tmp_path / "store", 60)
        set_current_model(tmp_path / "model", 20)
        train(tmp_path / "model", tmp_path / "store", 5)
        set_current_model(tmp_path / "model", 60)
        train(tmp_path / "model", tmp_path / "store", 10)
        assert trained_on(tmp_path / "model") == reference[:70]

    def test_a_crash_in_between_does_not_stand_in_the_way(self, tmp_path, reference: Steps):
        train(tmp_path / "model", tmp_path / "store", 60)
        set_current_model(tmp_path / "model", 50)
        estimator = make_estimator(tmp_path / "model")
        hook = ic.CheckpointInputPipelineHook(estimator, backend=tmp_path / "store")
        with pytest.raises(RuntimeError, match="broken"):
            estimator.train(shuffled_ids, hooks=[hook, FailAt(53, RuntimeError("broken"))], steps=20)
        paths = [str(tmp_path / "model" / f"model.ckpt-{step}") for step in (40, 50, 60)]
        tf.compat.v1.train.update_checkpoint_state(str(tmp_path / "model"), paths[-1], paths)
        train(tmp_path / "model", tmp_path / "store", 10)
        assert trained_on(tmp_path / "model") == reference[:70]

    def test_what_was_saved_with_another_model_is_not_taken_for_it(self, tmp_path, caplog):
        train(tmp_path / "model", tmp_path / "store", 60)
        set_current_model(tmp_path / "model", 20)
        train(tmp_path / "model", tmp_path / "store", 5)
        train(tmp_path / "other", tmp_path / "other-store", 60, seed=8)
        for path in (tmp_path / "other").glob("model.ckpt-60.*"):
            shutil.copy(path, tmp_path / "model")
        set_current_model(tmp_path / "model", 60)
        train(tmp_path / "model", tmp_path / "store", 5)
        assert "35 steps of data will be seen again" in caplog.text


class TestRetention:
    def test_what_the_newest_two_models_would_resume_from_stays(self, tmp_path):
        train(tmp_path / "model", tmp_path / "store", 28, save_steps=1, retention=ic.KeepLast(2))
        steps = [step for _, step in checkpoints(tmp_path / "store")]
        assert {20, 28} <= set(steps)  # the models of the last two saves
        assert {10, 11} & set(steps) == set()

    def test_without_marks_the_input_is_saved_at_the_models_steps_too(self, tmp_path):
        options = {"save_steps": 7, "max_fast_forward": 0, "retention": ic.KeepAll()}
        train(tmp_path / "model", tmp_path / "store", 25, **options)
        assert [step for _, step in checkpoints(tmp_path / "store")] == [0, 7, 10, 14, 20, 21, 25]

    def test_the_input_is_marked_at_the_models_steps(self, tmp_path):
        train(tmp_path / "model", tmp_path / "store", 25, save_steps=7, retention=ic.KeepAll())
        assert [step for _, step in checkpoints(tmp_path / "store")] == [0, 7, 14, 21, 25]
        marks = ic.CheckpointStore.open(str(tmp_path / "store")).marks("main")
        assert {mark.ref.step for mark in marks} == {10, 20}

    def test_a_step_at_which_both_are_due_is_saved_once(self, tmp_path):
        train(tmp_path / "model", tmp_path / "store", 20, save_steps=5, retention=ic.KeepAll())
        assert [step for _, step in checkpoints(tmp_path / "store")] == [0, 5, 10, 15, 20]

    def test_steps_of_its_own_beside_a_model_that_is_saved_by_time(self, tmp_path):
        estimator = make_estimator(tmp_path / "model", save_checkpoints_secs=0.001)
        hook = ic.CheckpointInputPipelineHook(
            estimator, backend=tmp_path / "store", save_steps=5, retention=ic.KeepAll()
        )
        estimator.train(shuffled_ids, hooks=[hook], steps=12)
        steps = [step for _, step in checkpoints(tmp_path / "store")]
        assert {0, 5, 10, 12} <= set(steps)
        assert len(steps) == len(set(steps))

    def test_a_crash_between_the_inputs_own_steps_loses_and_repeats_nothing(self, tmp_path, reference: Steps):
        estimator = make_estimator(tmp_path / "model")
        hook = ic.CheckpointInputPipelineHook(estimator, backend=tmp_path / "store", save_steps=50)
        with pytest.raises(RuntimeError, match="broken"):
            estimator.train(shuffled_ids, hooks=[hook, FailAt(25, RuntimeError("broken"))], steps=40)
        train(tmp_path / "model", tmp_path / "store", 10, save_steps=50)
        assert trained_on(tmp_path / "model") == reference[: len(trained_on(tmp_path / "model"))]


class TestFewModels:
    def train(self, model_dir: Path, kept: Any, limit: Optional[int]) -> None:
        estimator = make_estimator(model_dir, keep_checkpoint_max=kept)
        hook = ic.CheckpointInputPipelineHook(estimator, max_fast_forward=limit)
        estimator.train(shuffled_ids, hooks=[hook], steps=1)

    @pytest.mark.parametrize(("kept", "limit", "needed"), [(1, None, 2), (1, 0, 3), (2, 0, 3)])
    def test_too_few_model_checkpoints_are_warned_about(self, tmp_path, caplog, kept, limit, needed):
        self.train(tmp_path / "model", kept, limit)
        assert f"Keep at least {needed}" in caplog.text

    @pytest.mark.parametrize(("kept", "limit"), [(2, None), (5, None), (3, 0), (None, 0)])
    def test_enough_are_not(self, tmp_path, caplog, kept, limit):
        self.train(tmp_path / "model", kept, limit)
        assert "Keep at least" not in caplog.text
