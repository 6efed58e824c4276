"""A hook that was made for one model directory is used to train the model of another one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf

import input_checkpoint as ic
from input_checkpoint.backends.memory import MemoryBackend
from input_checkpoint.tensorflow.session_model import StateStamp, is_session_model
from tests.support.hooked_training import Steps, set_current_model, train_in_session
from tests.support.training import make_estimator, shuffled_ids, train_op, trained_on
from tests.support.wrappers import contents

v1 = tf.compat.v1


def train(model_dir: Path, backend: Any, steps: int, **config: Any) -> None:
    estimator = make_estimator(model_dir, **config)
    hook = ic.CheckpointInputPipelineHook(estimator, backend=backend, save_steps=5)
    estimator.train(shuffled_ids, hooks=[hook], steps=steps)


def files(folder: Path) -> dict[str, bytes]:
    """The content of all files, without the logs that TensorFlow is still writing for TensorBoard."""
    paths = [path for path in folder.rglob("*") if path.is_file() and "tfevents" not in path.name]
    return {str(path): path.read_bytes() for path in paths}


class TestAnotherEstimator:
    @pytest.mark.parametrize("trained", [(0, 0), (20, 0), (0, 20), (20, 10), (10, 10)])
    def test_its_training_is_refused_before_anything_is_restored_or_saved(
        self, trained: tuple[int, int], tmp_path: Path, memory: MemoryBackend
    ) -> None:
        first, second = make_estimator(tmp_path / "first"), make_estimator(tmp_path / "second")
        if trained[0]:
            train(tmp_path / "first", memory, trained[0])
        if trained[1]:
            second.train(lambda: shuffled_ids(seed=8), steps=trained[1])
        hook = ic.CheckpointInputPipelineHook(first, backend=memory)
        store, directory = contents(memory), files(tmp_path / "first")
        with pytest.raises(ic.DifferentModelError) as raised:
            second.train(shuffled_ids, hooks=[hook], steps=10)
        assert str(tmp_path / "first") in str(raised.value)
        assert "made for another Estimator" in str(raised.value)
        assert contents(memory) == store
        assert files(tmp_path / "first") == directory

    def test_the_hook_works_for_its_own_estimator_after_the_refusal(
        self, tmp_path: Path, memory: MemoryBackend, reference: Steps
    ) -> None:
        first, second = make_estimator(tmp_path / "first"), make_estimator(tmp_path / "second")
        hook = ic.CheckpointInputPipelineHook(first, backend=memory)
        first.train(shuffled_ids, hooks=[hook], steps=10)
        with pytest.raises(ic.DifferentModelError):
            second.train(shuffled_ids, hooks=[hook], steps=10)
        first.train(shuffled_ids, hooks=[hook], steps=10)
        assert trained_on(tmp_path / "first") == reference[:20]

    def test_a_session_of_another_directory_is_refused(self, tmp_path: Path, memory: MemoryBackend) -> None:
        train(tmp_path / "first", memory, 20)
        hook = ic.SessionHook(model_dir=str(tmp_path / "first"), backend=memory, save_steps=10)
        with pytest.raises(ic.DifferentModelError, match="checkpoint_dir as model_dir"):
            train_in_session(tmp_path / "second", [hook])


class TestTheSameModel:
    """What is unusual, and right."""

    def test_an_estimator_of_the_same_directory(self, tmp_path: Path, memory: MemoryBackend) -> None:
        hook = ic.CheckpointInputPipelineHook(make_estimator(tmp_path), backend=memory)
        make_estimator(tmp_path).train(shuffled_ids, hooks=[hook], steps=5)

    def test_a_relative_directory(
        self, tmp_path: Path, memory: MemoryBackend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        for _ in range(2):
            train(Path("model"), memory, 5)

    def test_a_model_that_is_never_saved(self, tmp_path: Path, memory: MemoryBackend) -> None:
        train(tmp_path / "model", memory, 5, save_checkpoints_steps=None)

    def test_a_model_that_is_not_saved_any_more(self, tmp_path: Path, memory: MemoryBackend) -> None:
        train(tmp_path / "model", memory, 10)
        train(tmp_path / "model", memory, 5, save_checkpoints_steps=None)

    def test_a_model_that_was_set_back(self, tmp_path: Path, memory: MemoryBackend) -> None:
        train(tmp_path / "model", memory, 20)
        set_current_model(tmp_path / "model", 10)
        train(tmp_path / "model", memory, 5)

    def test_a_model_that_is_warm_started_from_another_one(
        self, tmp_path: Path, memory: MemoryBackend
    ) -> None:
        make_estimator(tmp_path / "other").train(shuffled_ids, steps=10)

        def model_fn(features: Any, labels: Any, mode: str) -> Any:
            op = train_op(features)
            v1.train.init_from_checkpoint(str(tmp_path / "other"), {"history": "history"})
            return tf.estimator.EstimatorSpec(mode, loss=tf.constant(1.0), train_op=op)

        config = tf.estimator.RunConfig(save_checkpoints_steps=5)
        estimator = tf.estimator.Estimator(model_fn, str(tmp_path / "model"), config)
        hook = ic.CheckpointInputPipelineHook(estimator, backend=memory)
        estimator.train(shuffled_ids, hooks=[hook], steps=5)

    def test_a_saver_of_the_users_own(self, tmp_path: Path, memory: MemoryBackend) -> None:
        def model_fn(features: Any, labels: Any, mode: str) -> Any:
            saver = v1.train.CheckpointSaverHook(str(tmp_path / "model"), save_steps=3)
            op = train_op(features)
            return tf.estimator.EstimatorSpec(
                mode, loss=tf.constant(1.0), train_op=op, training_chief_hooks=[saver]
            )

        config = tf.estimator.RunConfig(save_checkpoints_steps=5)
        for _ in range(2):
            estimator = tf.estimator.Estimator(model_fn, str(tmp_path / "model"), config)
            hook = ic.CheckpointInputPipelineHook(estimator, backend=memory)
            estimator.train(shuffled_ids, hooks=[hook], steps=5)

    def test_a_hook_that_restores_the_model_itself(self, tmp_path: Path, memory: MemoryBackend) -> None:
        make_estimator(tmp_path / "other").train(shuffled_ids, steps=10)

        class Restores(tf.estimator.SessionRunHook):
            def begin(self) -> None:
                self._saver = v1.train.Saver()

            def after_create_session(self, session: Any, coord: Any) -> None:
                self._saver.restore(session, str(tmp_path / "other" / "model.ckpt-10"))

        for ours_first in (True, False):
            estimator = make_estimator(tmp_path / f"model-{ours_first}")
            hooks = [
                ic.CheckpointInputPipelineHook(estimator, backend=tmp_path / f"{ours_first}"),
                Restores(),
            ]
            estimator.train(shuffled_ids, hooks=hooks if ours_first else hooks[::-1], max_steps=15)

    def test_a_session_that_restores_and_never_saves(self, tmp_path: Path, memory: MemoryBackend) -> None:
        train(tmp_path / "model", memory, 10)
        with v1.Graph().as_default():
            op = train_op(v1.data.make_one_shot_iterator(shuffled_ids()).get_next())
            hook = ic.SessionHook(model_dir=str(tmp_path / "model"), backend=memory, save_steps=5)
            with v1.train.SingularMonitoredSession(
                hooks=[hook], checkpoint_dir=str(tmp_path / "model")
            ) as session:
                session.run(op)


class TestDecision:
    STAMP = StateStamp(1_700_000_000_123_456_789, length=80)
    COARSE = StateStamp(1_700_000_000_000_000_000, length=80)

    def test_a_directory_that_the_session_has_written_to_is_its_own_at_any_step(self) -> None:
        assert is_session_model(None, self.STAMP, 0, {7}, saves_first=True)

    def test_a_directory_that_the_session_should_have_written_to_is_not_its_own(self) -> None:
        assert not is_session_model(self.STAMP, self.STAMP, 7, {7}, saves_first=True)

    def test_times_in_whole_seconds_prove_nothing(self) -> None:
        assert is_session_model(self.COARSE, self.COARSE, 7, {7}, saves_first=True)
        assert not is_session_model(self.COARSE, self.COARSE, 7, {8}, saves_first=True)

    def test_without_a_save_the_step_decides(self) -> None:
        assert is_session_model(self.STAMP, self.STAMP, 7, {0, 7}, saves_first=False)
        assert not is_session_model(self.STAMP, self.STAMP, 7, {8}, saves_first=False)
        assert is_session_model(None, None, None, {8}, saves_first=False)
