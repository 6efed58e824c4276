"""TensorFlow recreates the session after an error, whatever the hook is doing at that moment."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf

import input_checkpoint as ic
from input_checkpoint.backends.memory import MemoryBackend
from input_checkpoint.tensorflow.restore_ops import RestoreOps
from input_checkpoint.training.schedule import SaveSchedule
from tests.support.accumulation import StopAfter
from tests.support.hooked_training import Steps, preempted, session_hook, slow_upload, train_in_session
from tests.support.training import FailAt, make_estimator, shuffled_ids, trained_on
from tests.support.wrappers import BeforeWrites

v1 = tf.compat.v1


def test_a_save_that_outlasts_its_session_is_still_committed(
    tmp_path: Path, reference: Steps, memory: MemoryBackend, caplog: pytest.LogCaptureFixture
) -> None:
    hook = session_hook(tmp_path / "model", slow_upload(10, memory, 4))
    with caplog.at_level(logging.INFO):
        train_in_session(tmp_path / "model", [hook, preempted(11)], grace=1)
    assert "Saved input checkpoint for step 10" in caplog.text
    assert "failed" not in caplog.text
    assert trained_on(tmp_path / "model") == reference[:30]


def test_an_error_during_the_restore_of_the_input_is_left_to_tensorflow(
    tmp_path: Path, reference: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Raises the error of a lost machine from inside the restore, where a real one would come from."""
    estimator = make_estimator(tmp_path / "model")
    estimator.train(shuffled_ids, hooks=[ic.CheckpointInputPipelineHook(estimator)], steps=10)
    errors = [tf.errors.AbortedError(None, None, "preempted")]
    hold = RestoreOps.prepare

    def fail_once(self: RestoreOps, *arguments: Any) -> Any:
        if errors:
            raise errors.pop()
        return hold(self, *arguments)

    monkeypatch.setattr(RestoreOps, "prepare", fail_once)
    estimator.train(shuffled_ids, hooks=[ic.CheckpointInputPipelineHook(estimator)], steps=10)
    assert errors == []
    assert trained_on(tmp_path / "model") == reference[:20]


def test_fresh_starts_over_once_and_not_after_every_error(tmp_path: Path, reference: Steps) -> None:
    estimator = make_estimator(tmp_path / "model")
    hook = ic.CheckpointInputPipelineHook(estimator, resume="fresh")
    estimator.train(shuffled_ids, hooks=[hook, preempted(17)], steps=30)
    assert trained_on(tmp_path / "model") == reference[:30]


def test_fresh_starts_over_once_and_not_with_every_train_call(tmp_path: Path, reference: Steps) -> None:
    estimator = make_estimator(tmp_path / "model")
    hook = ic.CheckpointInputPipelineHook(estimator, resume="fresh")
    for _ in range(2):
        estimator.train(shuffled_ids, hooks=[hook], steps=10)
    assert trained_on(tmp_path / "model") == reference[:20]


def test_a_failed_last_save_is_not_an_error_of_the_next_training(
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


@pytest.mark.parametrize("every", [10, 1000])
def test_a_session_that_fails_before_its_model_is_saved_is_replaced_at_once(
    every: int, tmp_path: Path, reference: Steps, memory: MemoryBackend
) -> None:
    schedule = SaveSchedule(every_steps=10)
    hook = ic.SessionHook(model_dir=str(tmp_path), backend=memory, save_steps=every, model_schedule=schedule)
    with v1.Graph().as_default():
        saver = v1.train.CheckpointSaverHook(str(tmp_path), save_steps=10)
    started = time.monotonic()
    train_in_session(tmp_path, [hook, preempted(20), saver], saved_by_session=False)
    assert time.monotonic() - started < 20
    assert trained_on(tmp_path) == reference[:30]


def test_a_mark_whose_model_was_never_saved_does_not_count_in_the_next_session(
    tmp_path: Path, memory: MemoryBackend
) -> None:
    class FailsOnce(tf.estimator.CheckpointSaverListener):
        has_failed = False

        def before_save(self, session: Any, global_step_value: int) -> None:
            if global_step_value == 15 and not self.has_failed:
                self.has_failed = True
                raise tf.errors.AbortedError(None, None, "preempted")

    estimator = make_estimator(tmp_path / "model", save_checkpoints_steps=5)
    hook = ic.CheckpointInputPipelineHook(estimator, backend=memory, save_steps=10)
    hooks = [hook, StopAfter(17)]
    estimator.train(shuffled_ids, hooks=hooks, saving_listeners=[FailsOnce()])
    listing = ic.CheckpointStore.open(memory).list_worker("main")
    assert 15 not in {mark.ref.step for mark in listing.usable_marks}
