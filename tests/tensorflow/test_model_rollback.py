"""The model goes back to the newest step that has both model and input, if a crash explains the gap."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Optional

import pytest
import tensorflow as tf

import input_checkpoint as ic
from input_checkpoint.backends.memory import MemoryBackend
from input_checkpoint.tensorflow.model_checkpoints import latest_model_step
from input_checkpoint.tensorflow.model_rollback import ModelState, roll_back_model
from input_checkpoint.training.settings import TrainingSettings
from tests.support.hooked_training import (
    Steps,
    drop_input,
    keep_only_model,
    preempted,
    session_hook,
    slow_upload,
    train,
    train_in_session,
)
from tests.support.stores import save
from tests.support.training import make_estimator, shuffled_ids, trained_on
from tests.support.wrappers import Recording


@pytest.fixture
def recording(memory: MemoryBackend) -> Recording:
    """A store that has input checkpoints of steps 10 and 20, and no calls recorded."""
    save(ic.CheckpointStore.open(memory, create=True).begin_run("main"), 10, 20)
    return Recording(memory)


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    """A model directory with checkpoints of steps 10, 20 and 30, as after a crash in the last save."""
    paths = [str(tmp_path / f"model.ckpt-{step}") for step in (10, 20, 30)]
    for path in paths:
        Path(f"{path}.index").touch()
    tf.compat.v1.train.update_checkpoint_state(str(tmp_path), paths[-1], paths)
    return tmp_path


def roll_back(
    recording: Recording,
    model_dir: Optional[Path],
    mode: str = "aligned",
    restored_step: Optional[int] = None,
    **settings: Any,
) -> Optional[ModelState]:
    directory = None if model_dir is None else str(model_dir)
    store = ic.CheckpointStore(recording)
    chosen = TrainingSettings(model_dir=directory, save_steps=10, **settings)
    return roll_back_model(store, chosen, mode, restored_step)


def test_a_model_without_its_input_goes_back_to_the_newest_pair(recording, model_dir):
    state = roll_back(recording, model_dir)
    assert state is not None
    assert (state.step, state.rolled_back) == (20, True)
    assert latest_model_step(str(model_dir)) == 20


def test_a_rollback_deletes_no_model_checkpoint(recording, model_dir):
    roll_back(recording, model_dir)
    assert (model_dir / "model.ckpt-30.index").exists()


def test_a_model_with_its_input_stays_where_it_is(recording, model_dir):
    tf.compat.v1.train.update_checkpoint_state(str(model_dir), str(model_dir / "model.ckpt-20"))
    state = roll_back(recording, model_dir)
    assert state is not None
    assert (state.step, state.rolled_back) == (20, False)
    assert latest_model_step(str(model_dir)) == 20


@pytest.mark.parametrize("mode", ["exact", "latest", "fresh"])
def test_no_other_mode_than_aligned_looks_at_the_storage(recording, model_dir, mode):
    assert roll_back(recording, model_dir, mode) is None
    assert recording.calls == []
    assert latest_model_step(str(model_dir)) == 30


def test_several_workers_never_roll_back(recording, model_dir):
    assert roll_back(recording, model_dir, num_workers=2) is None
    assert recording.calls == []
    assert latest_model_step(str(model_dir)) == 30


def test_a_model_directory_without_checkpoints_needs_no_listing(recording, tmp_path):
    assert roll_back(recording, tmp_path) is None
    assert recording.calls == []


def test_without_a_model_directory_nothing_is_listed(recording):
    assert roll_back(recording, None) is None
    assert recording.calls == []


def test_a_restored_step_other_than_the_latest_model_needs_no_listing(recording, model_dir):
    assert roll_back(recording, model_dir, restored_step=20) is None
    assert recording.calls == []
    assert latest_model_step(str(model_dir)) == 30


def test_a_model_newer_than_the_newest_input_checkpoint_goes_back_to_the_newest_pair(
    tmp_path: Path, reference: Steps, caplog: pytest.LogCaptureFixture
) -> None:
    train(tmp_path / "model", 40)
    drop_input(tmp_path / "model", 30, 40)
    with caplog.at_level(logging.WARNING, "input_checkpoint"):
        train(tmp_path / "model", 30)
    assert "Going back to step 20" in caplog.text
    assert trained_on(tmp_path / "model") == reference[:50]


def test_a_model_that_was_trained_further_without_the_hook_stays_where_it_is(
    tmp_path: Path, reference: Steps, caplog: pytest.LogCaptureFixture
) -> None:
    train(tmp_path / "model", 20)
    make_estimator(tmp_path / "model").train(shuffled_ids, steps=30)
    with caplog.at_level(logging.WARNING, "input_checkpoint"):
        train(tmp_path / "model", 10)
    assert "30 steps of data will be seen again" in caplog.text
    assert trained_on(tmp_path / "model") == reference[:20] + reference[:30] + reference[20:30]


def test_a_newer_model_without_a_pair_is_logged_and_no_data_is_lost(
    tmp_path: Path, reference: Steps, caplog: pytest.LogCaptureFixture
) -> None:
    train(tmp_path / "model", 40)
    drop_input(tmp_path / "model", 30, 40)
    keep_only_model(tmp_path / "model", 40)
    with caplog.at_level(logging.WARNING, "input_checkpoint"):
        train(tmp_path / "model", 30)
    assert "20 steps of data will be seen again" in caplog.text
    assert trained_on(tmp_path / "model") == reference[:40] + reference[20:50]


def test_a_model_saved_just_before_the_error_goes_back_to_the_newest_pair(
    tmp_path: Path, reference: Steps, caplog: pytest.LogCaptureFixture
) -> None:
    """The error comes when the model's saver has seen step 20 and our hook has not."""
    estimator = make_estimator(tmp_path / "model")
    hook = ic.CheckpointInputPipelineHook(estimator)
    with caplog.at_level(logging.WARNING, "input_checkpoint"):
        estimator.train(shuffled_ids, hooks=[preempted(20), hook], steps=30)
    assert "Going back to step 10" in caplog.text
    assert trained_on(tmp_path / "model") == reference[:30]


def test_a_model_whose_input_save_was_skipped_goes_back_to_the_newest_pair(
    tmp_path: Path, reference: Steps, memory: MemoryBackend
) -> None:
    hook = session_hook(tmp_path / "model", slow_upload(10, memory, 3), when_busy="skip")
    train_in_session(tmp_path / "model", [hook, preempted(25)], grace=30)
    assert trained_on(tmp_path / "model") == reference[:30]
