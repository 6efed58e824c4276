"""Sessions that TensorFlow makes anew after an error, in the middle of whatever the hook is doing."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any, Optional

import pytest
import tensorflow as tf

import input_checkpoint as ic
from input_checkpoint.backends.memory import MemoryBackend
from input_checkpoint.tensorflow.iterators import GraphIterators
from tests.support.training import FailAt, make_estimator, shuffled_ids, train_op, trained_on, uninterrupted
from tests.support.wrappers import BeforeWrites

v1 = tf.compat.v1
Steps = list[list[int]]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Steps:
    return uninterrupted(shuffled_ids, 40, tmp_path_factory.mktemp("reference"))


def preempted(step: int) -> FailAt:
    return FailAt(step, tf.errors.AbortedError(None, None, "preempted"))


def slow_upload_of(step: int, memory: MemoryBackend, seconds: float) -> ic.Backend:
    def delay(key: str) -> None:
        if key.startswith("packs/") and f"/{step:012d}-" in key:
            time.sleep(seconds)

    return BeforeWrites(memory, delay)


def train_in_session(model_dir: Path, hooks: list[Any], grace: int, steps: int = 30) -> None:
    """Train without an Estimator; the coordinator waits ``grace`` seconds for saves before it closes."""
    with v1.Graph().as_default():
        step = train_op(v1.data.make_one_shot_iterator(shuffled_ids()).get_next())
        with v1.train.MonitoredTrainingSession(
            checkpoint_dir=str(model_dir),
            save_checkpoint_steps=10,
            stop_grace_period_secs=grace,
            hooks=[*hooks, v1.train.StopAtStepHook(num_steps=steps)],
        ) as session:
            while not session.should_stop():
                session.run(step)


def hook_for(model_dir: Path, backend: ic.Backend, **options: Any) -> Any:
    return ic.CheckpointInputPipelineHook.for_session(
        model_dir=str(model_dir), backend=backend, save_steps=10, **options
    )


def ids_of_sessions(backend: ic.Backend, sessions: int, steps: int, error: Optional[Any] = None) -> Steps:
    """What a model that nobody checkpoints is trained on, session after session, with one hook."""
    hook = ic.CheckpointInputPipelineHook.for_session(backend=backend, save_steps=10, resume="latest")
    seen: Steps = []
    for _ in range(sessions):
        with v1.Graph().as_default():
            ids = v1.data.make_one_shot_iterator(shuffled_ids()).get_next()
            with tf.control_dependencies([ids]):
                step = v1.train.get_or_create_global_step().assign_add(1)
            hooks = [hook, v1.train.StopAtStepHook(num_steps=steps), *([error] if error else [])]
            with v1.train.MonitoredTrainingSession(hooks=hooks) as session:
                while not session.should_stop():
                    seen.append(session.run([ids, step])[0].tolist())
    return seen


def test_a_model_saved_just_before_the_error_goes_back_to_the_newest_pair(
    tmp_path: Path, reference: Steps, caplog: pytest.LogCaptureFixture
) -> None:
    """The error comes after the model's saver, and before our hook, has seen step 20."""
    estimator = make_estimator(tmp_path / "model")
    hook = ic.CheckpointInputPipelineHook(estimator)
    with caplog.at_level(logging.WARNING, "input_checkpoint"):
        estimator.train(shuffled_ids, hooks=[preempted(20), hook], steps=30)
    assert "Going back to step 10" in caplog.text
    assert trained_on(tmp_path / "model") == reference[:30]


def test_a_model_whose_input_save_was_skipped_goes_back_to_the_newest_pair(
    tmp_path: Path, reference: Steps, memory: MemoryBackend
) -> None:
    hook = hook_for(tmp_path / "model", slow_upload_of(10, memory, 3), when_busy="skip")
    train_in_session(tmp_path / "model", [hook, preempted(25)], grace=30)
    assert trained_on(tmp_path / "model") == reference[:30]


def test_a_save_that_outlasts_its_session_is_still_committed(
    tmp_path: Path, reference: Steps, memory: MemoryBackend, caplog: pytest.LogCaptureFixture
) -> None:
    hook = hook_for(tmp_path / "model", slow_upload_of(10, memory, 4))
    with caplog.at_level(logging.INFO):
        train_in_session(tmp_path / "model", [hook, preempted(11)], grace=1)
    assert "Saved input checkpoint for step 10" in caplog.text
    assert "failed" not in caplog.text
    assert trained_on(tmp_path / "model") == reference[:30]


def test_an_error_while_the_input_is_restored_is_left_to_tensorflow(
    tmp_path: Path, reference: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that goes away in a restore cannot be had here: the error comes from where it would."""
    estimator = make_estimator(tmp_path / "model")
    estimator.train(shuffled_ids, hooks=[ic.CheckpointInputPipelineHook(estimator)], steps=10)
    errors = [tf.errors.AbortedError(None, None, "preempted")]
    hold = GraphIterators._stage_stored

    def go_away_once(self: GraphIterators, *arguments: Any) -> Any:
        if errors:
            raise errors.pop()
        return hold(self, *arguments)

    monkeypatch.setattr(GraphIterators, "_stage_stored", go_away_once)
    estimator.train(shuffled_ids, hooks=[ic.CheckpointInputPipelineHook(estimator)], steps=10)
    assert errors == []
    assert trained_on(tmp_path / "model") == reference[:20]


def test_fresh_starts_over_once_and_not_after_every_error(tmp_path: Path, reference: Steps) -> None:
    estimator = make_estimator(tmp_path / "model")
    hook = ic.CheckpointInputPipelineHook(estimator, resume="fresh")
    estimator.train(shuffled_ids, hooks=[hook, preempted(17)], steps=30)
    assert trained_on(tmp_path / "model") == reference[:30]


def test_fresh_starts_over_once_and_not_with_every_train(tmp_path: Path, reference: Steps) -> None:
    estimator = make_estimator(tmp_path / "model")
    hook = ic.CheckpointInputPipelineHook(estimator, resume="fresh")
    for _ in range(2):
        estimator.train(shuffled_ids, hooks=[hook], steps=10)
    assert trained_on(tmp_path / "model") == reference[:20]


def test_latest_goes_on_where_an_earlier_session_of_the_same_hook_ended(
    reference: Steps, memory: MemoryBackend
) -> None:
    assert ids_of_sessions(memory, sessions=2, steps=15) == reference[:30]


def test_latest_goes_on_from_the_newest_save_when_a_session_without_a_model_is_recreated(
    reference: Steps, memory: MemoryBackend
) -> None:
    seen = ids_of_sessions(memory, sessions=1, steps=25, error=preempted(17))
    assert seen[:16] == reference[:16]
    # The model has started over, and the input has gone on from its save of step 10.
    assert seen[-25:] == reference[10:35]


def test_what_went_wrong_with_the_last_save_of_a_training_is_no_error_of_the_next(
    tmp_path: Path, reference: Steps, memory: MemoryBackend, caplog: pytest.LogCaptureFixture
) -> None:
    rights = {"given": False}

    def forbid(key: str) -> None:
        if "/000000000010-" in key and not rights["given"]:
            raise ic.BackendPermissionError("withdrawn")

    estimator = make_estimator(tmp_path / "model")
    hook = ic.CheckpointInputPipelineHook(estimator, backend=BeforeWrites(memory, forbid))
    with pytest.raises(RuntimeError, match="broken"):
        estimator.train(shuffled_ids, hooks=[hook, FailAt(10, RuntimeError("broken"))], steps=30)
    rights["given"] = True
    with caplog.at_level(logging.WARNING, "input_checkpoint"):
        estimator.train(shuffled_ids, hooks=[hook], steps=20)
    assert "The last save of the previous training failed: withdrawn" in caplog.text
    assert trained_on(tmp_path / "model") == reference[:20]
