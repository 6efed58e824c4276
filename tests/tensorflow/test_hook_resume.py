"""Where the input resumes, in whatever state model and input were left."""

from __future__ import annotations

import logging
import random
from pathlib import Path

import pytest
import tensorflow as tf

import input_checkpoint as ic
from input_checkpoint.tensorflow.model_checkpoints import read_model_checkpoints
from tests.support.hooked_training import Steps, drop_input, input_steps, set_current_model, train
from tests.support.training import FailAt, make_estimator, shuffled_ids, trained_on, uninterrupted
from tests.support.wrappers import Recording, Rounds


def test_no_input_state_is_in_the_model_directory(tmp_path: Path) -> None:
    train(tmp_path / "model", 5)
    names = {file.name.split(".")[0] for file in (tmp_path / "model").iterdir()}
    assert names <= {"checkpoint", "model", "graph", "events", "input-checkpoint"}
    assert input_steps(tmp_path / "model") == [0, 5]


def test_saves_coincide_with_those_of_the_model_after_a_resume_as_well(tmp_path: Path) -> None:
    train(tmp_path / "model", 25)
    train(tmp_path / "model", 25, retention=ic.KeepAll())
    saved = read_model_checkpoints(str(tmp_path / "model"))
    assert saved is not None
    assert sorted(saved.paths) == [20, 25, 35, 45, 50]
    assert set(saved.paths) <= set(input_steps(tmp_path / "model"))


def test_a_model_older_than_the_newest_input_checkpoint_gets_its_own_input(
    tmp_path: Path, reference: Steps
) -> None:
    train(tmp_path / "model", 40)
    set_current_model(tmp_path / "model", 20)
    train(tmp_path / "model", 30)
    assert trained_on(tmp_path / "model") == reference[:50]


def test_latest_with_the_same_hook_continues_after_the_model_was_moved_back(
    tmp_path: Path, reference: Steps
) -> None:
    estimator = make_estimator(tmp_path / "model")
    hook = ic.CheckpointInputPipelineHook(estimator, resume="latest")
    estimator.train(shuffled_ids, hooks=[hook], steps=30)
    set_current_model(tmp_path / "model", 10)
    estimator.train(shuffled_ids, hooks=[hook], steps=10)
    assert trained_on(tmp_path / "model") == reference[:10] + reference[30:40]


def test_a_model_between_two_input_checkpoints_gets_the_older_one(
    tmp_path: Path, reference: Steps, caplog: pytest.LogCaptureFixture
) -> None:
    train(tmp_path / "model", 30)
    set_current_model(tmp_path / "model", 20)
    drop_input(tmp_path / "model", 20)
    with caplog.at_level(logging.WARNING, "input_checkpoint"):
        train(tmp_path / "model", 10)
    assert "10 steps of data will be seen again" in caplog.text
    assert trained_on(tmp_path / "model") == reference[:20] + reference[10:20]


def test_checkpoints_left_behind_by_a_restart_are_never_resumed_from(
    tmp_path: Path, reference: Steps
) -> None:
    train(tmp_path / "model", 40)
    set_current_model(tmp_path / "model", 10)
    train(tmp_path / "model", 5)
    assert input_steps(tmp_path / "model") == [0, 10, 15]


def test_checkpoints_left_behind_by_a_restart_are_removed_after_two_saves(tmp_path: Path) -> None:
    store = ic.CheckpointStore.open(str(tmp_path / "model-input"), create=True)
    train(tmp_path / "model", 40, retention=ic.KeepAll())
    set_current_model(tmp_path / "model", 10)
    train(tmp_path / "model", 5, retention=ic.KeepAll())
    assert [info.step for info in store.checkpoints()] == [0, 10, 20, 30, 40, 15]
    train(tmp_path / "model", 20, retention=ic.KeepAll())
    assert [info.step for info in store.checkpoints()] == [0, 10, 15, 25, 35]


def test_exact_raises_if_the_step_of_the_model_has_no_checkpoint(tmp_path: Path) -> None:
    train(tmp_path / "model", 20)
    drop_input(tmp_path / "model", 20)
    with pytest.raises(ic.CheckpointNotFoundError, match="at step 20"):
        train(tmp_path / "model", 10, resume="exact")


def test_exact_resumes_if_the_step_of_the_model_has_a_checkpoint(tmp_path: Path, reference: Steps) -> None:
    train(tmp_path / "model", 20, resume="exact")
    train(tmp_path / "model", 10, resume="exact")
    assert trained_on(tmp_path / "model") == reference[:30]


def test_latest_ignores_the_step_of_the_model(tmp_path: Path, reference: Steps) -> None:
    train(tmp_path / "model", 30)
    set_current_model(tmp_path / "model", 10)
    train(tmp_path / "model", 10, resume="latest")
    assert trained_on(tmp_path / "model") == reference[:10] + reference[30:40]


def test_fresh_starts_the_input_over(tmp_path: Path, reference: Steps) -> None:
    train(tmp_path / "model", 10)
    train(tmp_path / "model", 10, resume="fresh")
    assert trained_on(tmp_path / "model") == reference[:10] * 2


def test_the_hook_can_be_added_to_a_model_that_was_trained_without_it(
    tmp_path: Path, reference: Steps, caplog: pytest.LogCaptureFixture
) -> None:
    make_estimator(tmp_path / "model").train(shuffled_ids, steps=10)
    with caplog.at_level(logging.WARNING, "input_checkpoint"):
        train(tmp_path / "model", 10)
    assert "has no input checkpoint yet" in caplog.text
    train(tmp_path / "model", 10)
    assert trained_on(tmp_path / "model") == reference[:10] + reference[:20]


@pytest.mark.parametrize("error", [tf.errors.AbortedError, tf.errors.UnavailableError])
def test_a_session_that_tensorflow_recreates_resumes_at_the_step_of_the_model(
    error: type, tmp_path: Path, reference: Steps
) -> None:
    train(tmp_path / "model", 30, hooks=(FailAt(17, error(None, None, "preempted")),))
    assert trained_on(tmp_path / "model") == reference[:30]


def test_training_resumes_exactly_after_an_exception(tmp_path: Path, reference: Steps) -> None:
    with pytest.raises(RuntimeError, match="broken"):
        train(tmp_path / "model", 30, hooks=(FailAt(20, RuntimeError("broken")),))
    train(tmp_path / "model", 20)
    assert trained_on(tmp_path / "model") == reference[:40]


def test_a_damaged_checkpoint_is_skipped_with_a_warning(
    tmp_path: Path, reference: Steps, caplog: pytest.LogCaptureFixture
) -> None:
    train(tmp_path / "model", 30, max_fast_forward=0)
    for pack in Path(f"{tmp_path}/model-input").glob(f"packs/*/*/{30:012d}-*"):
        pack.write_bytes(pack.read_bytes()[:-1])
    with caplog.at_level(logging.WARNING, "input_checkpoint"):
        train(tmp_path / "model", 10)
    assert "damaged" in caplog.text
    assert "10 steps of data will be seen again" in caplog.text
    assert trained_on(tmp_path / "model") == reference[:30] + reference[20:30]


def test_exact_raises_on_a_damaged_checkpoint(tmp_path: Path) -> None:
    train(tmp_path / "model", 10, max_fast_forward=0)
    for pack in Path(f"{tmp_path}/model-input").glob(f"packs/*/*/{10:012d}-*"):
        pack.write_bytes(b"")
    with pytest.raises(ic.CorruptCheckpointError, match="step 10"):
        train(tmp_path / "model", 10, resume="exact")


def test_the_state_of_another_pipeline_is_refused_with_a_way_out(tmp_path: Path) -> None:
    train(tmp_path / "model", 10)
    estimator = make_estimator(tmp_path / "model")
    with pytest.raises(ic.PipelineMismatchError, match=r"step 10.*resume='fresh'"):
        estimator.train(
            lambda: tf.data.Dataset.range(100).interleave(tf.data.Dataset.from_tensors).batch(4),
            hooks=[ic.CheckpointInputPipelineHook(estimator)],
            steps=1,
        )


def test_input_that_has_ended_is_reported_and_does_not_start_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    estimator = make_estimator(tmp_path / "model")
    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "input_checkpoint"):
            estimator.train(
                lambda: tf.data.Dataset.range(20).batch(4),
                hooks=[ic.CheckpointInputPipelineHook(estimator)],
            )
    assert "No step was run" in caplog.text
    assert trained_on(tmp_path / "model") == [list(range(i, i + 4)) for i in range(0, 20, 4)]


def test_the_final_state_is_saved_at_the_last_step(tmp_path: Path) -> None:
    estimator = make_estimator(tmp_path / "model")
    estimator.train(
        lambda: tf.data.Dataset.range(60).batch(4), hooks=[ic.CheckpointInputPipelineHook(estimator)]
    )
    assert input_steps(tmp_path / "model") == [0, 10, 15]


@pytest.mark.parametrize("seed", range(3))
def test_any_sequence_of_lost_commits_and_restarts_trains_on_the_same_examples(
    seed: int, tmp_path: Path, reference: Steps
) -> None:
    chance = random.Random(seed)
    for _ in range(5):
        train(tmp_path / "model", chance.randint(3, 15))
        saved = read_model_checkpoints(str(tmp_path / "model"))
        assert saved is not None
        pairs = sorted(set(saved.paths) & set(input_steps(tmp_path / "model")))
        unfinished = chance.randint(0, min(2, len(pairs) - 1))
        drop_input(tmp_path / "model", *pairs[len(pairs) - unfinished :])
    train(tmp_path / "model", 5)
    history = trained_on(tmp_path / "model")
    assert history == reference[: len(history)]


def test_a_resume_lists_the_checkpoints_of_the_worker_once(tmp_path: Path) -> None:
    train(tmp_path / "model", 20)
    recording = Recording(ic.open_backend(f"{tmp_path}/model-input"))
    train(tmp_path / "model", 5, backend=recording)
    verbs = [
        (verb, key) for verb, key in recording.calls if key.startswith(("checkpoints/main/", "lineages/"))
    ]
    until_the_run_begins = verbs[: verbs.index(("create", "lineages/main/00000002.json"))]
    assert until_the_run_begins.count(("list", "checkpoints/main/")) == 1
    assert until_the_run_begins.count(("list", "lineages/main/")) == 1


def test_a_resume_takes_four_round_trips(tmp_path: Path) -> None:
    train(tmp_path / "model", 20)
    rounds = Rounds(ic.open_backend(f"{tmp_path}/model-input"))
    train(tmp_path / "model", 5, backend=rounds)
    sent = rounds.take()
    start = sent.index(["list checkpoints", "list lineages"])
    assert sent[start + 1 : start + 4] == [
        ["get checkpoints", "get lineages"],
        ["get packs"],
        ["create lineages"],
    ]


def test_one_hook_can_be_used_for_several_train_calls(tmp_path: Path) -> None:
    """TensorFlow's own hook keeps the saver of the first graph and fails in the second call."""
    estimator = make_estimator(tmp_path / "model")
    hook = ic.CheckpointInputPipelineHook(estimator)
    for _ in range(3):
        estimator.train(shuffled_ids, hooks=[hook], steps=10)
    assert trained_on(tmp_path / "model") == uninterrupted(shuffled_ids, 30, tmp_path / "reference")
