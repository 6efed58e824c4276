"""The model goes back to the newest step that has both model and input, if a crash explains the gap."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Optional

import pytest
import tensorflow as tf

import input_checkpoint as ic
from input_checkpoint.backends.base import Backend
from input_checkpoint.backends.memory import MemoryBackend
from input_checkpoint.errors import PipelineMismatchError
from input_checkpoint.store.store import CheckpointStore
from input_checkpoint.tensorflow.model_checkpoints import latest_model_step
from input_checkpoint.tensorflow.model_link import ModelLink
from input_checkpoint.tensorflow.run_tag_file import write_tag
from input_checkpoint.training.fast_forward import FastForward
from input_checkpoint.training.fast_forward_limit import FastForwardLimit
from input_checkpoint.training.progress import Progress
from input_checkpoint.training.run_tag import RunTag
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


def prepared(
    recording: Recording, model_dir: Optional[Path], mode: str = "aligned", **settings: Any
) -> ModelLink:
    """The link between a model directory and the store, after it has looked at both."""
    directory = None if model_dir is None else str(model_dir)
    chosen = TrainingSettings(model_dir=directory, save_steps=10, adopt=True, **settings)
    link = ModelLink(CheckpointStore(recording), chosen)
    link.prepare(mode, lambda info: None, fast_forward(recording))
    return link


def fast_forward(backend: Backend, is_possible: bool = True) -> FastForward:
    """What restores from marks."""
    store = CheckpointStore(backend)
    progress = Progress(store.uri, logging.getLogger("tests"))
    return FastForward(store, FastForwardLimit(), progress, is_possible)


def test_a_model_without_its_input_goes_back_to_the_newest_pair(recording, model_dir):
    prepared(recording, model_dir)
    assert latest_model_step(str(model_dir)) == 20


def test_a_rollback_deletes_no_model_checkpoint(recording, model_dir):
    prepared(recording, model_dir)
    assert (model_dir / "model.ckpt-30.index").exists()


def test_a_model_with_its_input_stays_where_it_is(recording, model_dir):
    tf.compat.v1.train.update_checkpoint_state(str(model_dir), str(model_dir / "model.ckpt-20"))
    prepared(recording, model_dir)
    assert latest_model_step(str(model_dir)) == 20


@pytest.mark.parametrize("mode", ["exact", "latest", "fresh"])
def test_in_no_other_mode_than_aligned_the_model_goes_back(recording, model_dir, mode):
    prepared(recording, model_dir, mode)
    assert latest_model_step(str(model_dir)) == 30


def test_several_workers_never_roll_back(recording, model_dir):
    prepared(recording, model_dir, num_workers=2)
    assert recording.calls == []
    assert latest_model_step(str(model_dir)) == 30


def test_without_a_model_directory_nothing_is_listed(recording):
    prepared(recording, None)
    assert recording.calls == []


def test_a_damaged_pair_is_passed_over_for_an_older_one(recording, model_dir):
    for info in recording.inner.list("packs/main/00000001/000000000020"):
        recording.inner.put(info.key, b"damaged")
    prepared(recording, model_dir)
    assert latest_model_step(str(model_dir)) == 10


def test_a_pair_of_another_pipeline_is_refused_before_the_model_is_touched(recording, model_dir):
    def refuse(info):
        raise PipelineMismatchError("another pipeline")

    settings = TrainingSettings(model_dir=str(model_dir), save_steps=10, adopt=True)
    with pytest.raises(PipelineMismatchError, match="another pipeline"):
        ModelLink(CheckpointStore(recording), settings).prepare("aligned", refuse, fast_forward(recording))
    assert latest_model_step(str(model_dir)) == 30


def test_a_training_that_ended_normally_and_went_on_without_the_hook_keeps_its_model(recording, model_dir):
    write_tag(str(model_dir), RunTag("0123", "memory://store", "main", 1, ended_at=20))
    prepared(recording, model_dir)
    assert latest_model_step(str(model_dir)) == 30


def test_models_that_have_a_mark_come_from_a_crash_however_many_there_are(tmp_path, memory):
    """Their marks were refused: the data has changed."""
    store = CheckpointStore.open(memory, create=True)
    run = store.begin_run("main")
    (base,) = save(run, 10)
    steps = range(10, 90, 10)
    paths = [str(tmp_path / f"model.ckpt-{step}") for step in steps]
    for path in paths:
        Path(f"{path}.index").touch()
    tf.compat.v1.train.update_checkpoint_state(str(tmp_path), paths[-1], paths)
    for step in steps[1:]:
        run.mark(step, base, {"Iterator": step}, {"Iterator": "aa"})
    link = ModelLink(store, TrainingSettings(model_dir=str(tmp_path), save_steps=10, adopt=True))
    link.prepare("aligned", lambda info: None, fast_forward(memory, is_possible=False))
    assert latest_model_step(str(tmp_path)) == 10


def test_the_way_back_is_told(recording, model_dir, caplog):
    prepared(recording, model_dir)
    assert 'model_checkpoint_path: "model.ckpt-30"' in caplog.text


def test_a_new_session_that_restored_another_step_needs_no_listing(recording, model_dir):
    link = prepared(recording, model_dir, mode="latest")
    recording.calls.clear()
    assert not link.roll_back_in_session(20, lambda info: None, fast_forward(recording))
    assert recording.calls == []


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


@pytest.mark.parametrize("limit", [0, None])
def test_a_model_saved_just_before_the_error_goes_back_only_without_marks(
    tmp_path: Path, reference: Steps, caplog: pytest.LogCaptureFixture, limit: Optional[int]
) -> None:
    """The error comes when the model's saver has seen step 20 and our hook has not."""
    estimator = make_estimator(tmp_path / "model")
    hook = ic.CheckpointInputPipelineHook(estimator, max_fast_forward=limit)
    with caplog.at_level(logging.WARNING, "input_checkpoint"):
        estimator.train(shuffled_ids, hooks=[preempted(20), hook], steps=30)
    assert ("Going back to step 10" in caplog.text) is (limit == 0)
    assert trained_on(tmp_path / "model") == reference[:30]


def test_a_model_whose_input_save_was_skipped_goes_back_to_the_newest_pair(
    tmp_path: Path, reference: Steps, memory: MemoryBackend
) -> None:
    hook = session_hook(tmp_path / "model", slow_upload(10, memory, 3), when_busy="skip")
    train_in_session(tmp_path / "model", [hook, preempted(25)], grace=30)
    assert trained_on(tmp_path / "model") == reference[:30]
