"""Several runs make up a global step, and training stops in the middle of one."""

from __future__ import annotations

import functools
import random
import time
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf

import input_checkpoint as ic
from input_checkpoint.backends.memory import MemoryBackend
from input_checkpoint.tensorflow.model_checkpoints import latest_model_step, read_model_checkpoints
from input_checkpoint.tensorflow.unfinished_step import beside, remove_leftovers
from input_checkpoint.training.evidence import is_proven
from tests.support.accumulation import (
    LATER_MOMENTS,
    MICRO,
    MOMENTS,
    StopAfter,
    accumulate,
    accumulate_op,
    accumulated,
    make_accumulating,
    train_and_die,
)
from tests.support.hooked_training import Steps
from tests.support.kills import end_with_kill
from tests.support.training import shuffled_ids
from tests.support.wrappers import Failing

v1 = tf.compat.v1


def saved(backend: Any) -> list[tuple[int, int, Any]]:
    """Return lineage, step and draws of all checkpoints."""
    infos = ic.CheckpointStore.open(backend).checkpoints()
    return [(info.lineage, info.step, info.context.draws) for info in infos]


@pytest.mark.parametrize(
    "runs",
    [
        pytest.param((27, 13), id="the model of the step is saved already"),
        pytest.param((30, 10), id="TensorFlow saves the model at the end"),
        pytest.param((3, 3, 3, 3, 28), id="no session finishes a step"),
        pytest.param((24, 16), id="a step is finished"),
    ],
)
def test_an_interrupted_training_sees_what_an_uninterrupted_one_sees(
    runs: tuple[int, ...], tmp_path: Path, reference: Steps
) -> None:
    for count in runs:
        accumulate(tmp_path / "model", count, resume="exact")
    assert accumulated(tmp_path / "model") == reference[: sum(runs)]


def test_input_that_is_saved_at_other_steps_than_the_model_is_saved_with_the_last_runs(
    tmp_path: Path, reference: Steps
) -> None:
    params = {"save_checkpoints_steps": 5}
    for count in (14, 26):
        accumulate(tmp_path / "model", count, save_steps=3, resume="exact", params=params)
    assert accumulated(tmp_path / "model") == reference[:40]


@pytest.mark.parametrize("ours_first", [True, False])
def test_a_session_does_so_wherever_its_saver_stands_in_the_list(
    ours_first: bool, tmp_path: Path, reference: Steps
) -> None:
    for runs in (27, 3, 10):
        with v1.Graph().as_default():
            op = accumulate_op(v1.data.make_one_shot_iterator(shuffled_ids()).get_next())
            saver = v1.train.CheckpointSaverHook(str(tmp_path / "model"), save_steps=2)
            hook = ic.SessionHook(model_dir=str(tmp_path / "model"), save_steps=2, resume="exact")
            hooks = [hook, saver] if ours_first else [saver, hook]
            creator = v1.train.ChiefSessionCreator(checkpoint_dir=str(tmp_path / "model"))
            with v1.train.MonitoredSession(creator, hooks=[*hooks, StopAfter(runs)]) as session:
                while not session.should_stop():
                    session.run(op)
    assert accumulated(tmp_path / "model") == reference[:40]


@pytest.mark.parametrize("seed", range(3))
def test_any_sequence_of_ends_trains_on_the_same_examples(
    seed: int, tmp_path: Path, reference: Steps
) -> None:
    chance = random.Random(seed)
    for _ in range(6):
        params = {"save_checkpoints_steps": chance.randint(1, 3)}
        save_steps = chance.choice([None, 1, 2, 5])
        accumulate(
            tmp_path / "model", chance.randint(1, 11), save_steps=save_steps, resume="exact", params=params
        )
    seen = accumulated(tmp_path / "model")
    assert seen == reference[: len(seen)]


def test_input_that_is_saved_at_a_time_is_saved_with_the_runs_that_the_model_contains(
    tmp_path: Path, reference: Steps, memory: MemoryBackend
) -> None:
    """The model's timer fires in the middle of steps, at some of which the input has been saved already."""

    class Slowly(tf.estimator.SessionRunHook):
        def before_run(self, run_context: Any) -> None:
            time.sleep(0.05)

    config = tf.estimator.RunConfig(
        save_checkpoints_secs=1, save_summary_steps=0, log_step_count_steps=None, keep_checkpoint_max=100
    )
    estimator = make_accumulating(tmp_path / "model", config=config)
    hook = ic.CheckpointInputPipelineHook(estimator, backend=memory, save_steps=1, retention=ic.KeepAll())
    estimator.train(shuffled_ids, hooks=[hook, Slowly(), StopAfter(78)])
    draws = {}
    model = read_model_checkpoints(str(tmp_path / "model"))
    assert model is not None
    for info in ic.CheckpointStore.open(memory).checkpoints():
        if is_proven(info, model):
            draws[info.step] = info.context.draws
    contained = {
        step: int(tf.train.load_variable(path, "runs"))
        for step, path in model.paths.items()
        if ".end-" not in path
    }
    assert len(contained) >= 4
    assert draws == contained | {19: 78}


def test_every_pair_is_proven(tmp_path: Path, memory: MemoryBackend) -> None:
    accumulate(tmp_path / "model", 27, backend=memory)
    contexts = [info.context for info in ic.CheckpointStore.open(memory).checkpoints()]
    assert None not in [context.model_digest for context in contexts]


def test_data_that_ends_in_the_middle_of_a_step_is_in_the_model_and_does_not_come_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def input_fn() -> Any:
        return tf.data.Dataset.range(27 * 4).shuffle(50, seed=3).batch(4)

    accumulate(tmp_path / "model", 100, input_fn)
    seen = accumulated(tmp_path / "model")
    assert sorted(example for run in seen for example in run) == list(range(27 * 4))
    accumulate(tmp_path / "model", 100, input_fn)
    assert "No step was run at global step 6" in caplog.text
    assert accumulated(tmp_path / "model") == seen


def test_the_second_checkpoint_of_the_step_supersedes_the_first_one(
    tmp_path: Path, memory: MemoryBackend
) -> None:
    accumulate(tmp_path / "model", 27, backend=memory)
    assert saved(memory) == [(1, 0, 0), (1, 2, 8), (1, 4, 16), (1, 6, 24), (2, 6, 27)]


def test_a_run_that_draws_nothing_does_not_make_a_step_unfinished(
    tmp_path: Path, memory: MemoryBackend
) -> None:
    with v1.Graph().as_default():
        op = accumulate_op(v1.data.make_one_shot_iterator(shuffled_ids()).get_next())
        hook = ic.SessionHook(model_dir=str(tmp_path / "model"), save_steps=2, backend=memory)
        with v1.train.MonitoredTrainingSession(
            checkpoint_dir=str(tmp_path / "model"), save_checkpoint_steps=2, hooks=[hook]
        ) as session:
            for _ in range(2 * MICRO):
                session.run(op)
            session.run(v1.train.get_global_step())
    assert saved(memory) == [(1, 0, 0), (1, 2, 8)]
    assert not list((tmp_path / "model").glob("*.end-*"))


def test_without_a_saver_in_the_graph_the_last_runs_are_repeated_with_a_warning(
    tmp_path: Path, reference: Steps, caplog: pytest.LogCaptureFixture
) -> None:
    for count in (27, 16):
        accumulate(tmp_path / "model", count, params={"own_saver": True})
    assert "no model checkpoint contains what was run after global step 6 (runs: 3)" in caplog.text
    assert accumulated(tmp_path / "model") == reference[:40]


def test_runs_that_change_nothing_in_the_model_are_repeated_with_a_warning(
    tmp_path: Path, memory: MemoryBackend, caplog: pytest.LogCaptureFixture
) -> None:
    """As when gradients are accumulated in local variables, which are lost with the session."""
    params = {"collection": v1.GraphKeys.LOCAL_VARIABLES}
    accumulate(tmp_path / "model", 27, backend=memory, params=params)
    assert "changed nothing that it would contain" in caplog.text
    assert saved(memory)[-1] == (1, 6, 24)
    assert not list((tmp_path / "model").glob("*.end-*"))


def test_a_session_without_model_checkpoints_saves_the_last_runs(memory: MemoryBackend) -> None:
    with v1.Graph().as_default():
        op = accumulate_op(v1.data.make_one_shot_iterator(shuffled_ids()).get_next())
        hook = ic.SessionHook(backend=memory, save_steps=2, resume="latest")
        with v1.train.MonitoredSession(hooks=[hook, StopAfter(27)]) as session:
            while not session.should_stop():
                session.run(op)
    assert saved(memory)[-2:] == [(1, 6, 24), (2, 6, 27)]


def test_a_failed_save_of_the_input_leaves_the_earlier_pair(
    tmp_path: Path, reference: Steps, memory: MemoryBackend
) -> None:
    failing = Failing(memory, "create", "checkpoints/main/00000002", ic.BackendPermissionError("withdrawn"))
    with pytest.raises(ic.BackendPermissionError, match="withdrawn"):
        accumulate(tmp_path / "model", 27, backend=failing)
    assert not list((tmp_path / "model").glob("*.end-*"))
    accumulate(tmp_path / "model", 16, backend=memory, resume="exact")
    assert accumulated(tmp_path / "model") == reference[:40]


def test_a_run_that_was_superseded_does_not_take_over_again(tmp_path: Path, memory: MemoryBackend) -> None:
    class AnotherRun(tf.estimator.SessionRunHook):
        def end(self, session: Any) -> None:
            store = ic.CheckpointStore.open(memory)
            store.begin_run("main", store.newest("main").ref)

    estimator = make_accumulating(tmp_path / "model")
    hook = ic.CheckpointInputPipelineHook(estimator, backend=memory)
    with pytest.raises(ic.WriterSupersededError):
        estimator.train(shuffled_ids, hooks=[AnotherRun(), hook, StopAfter(27)])
    newest = ic.CheckpointStore.open(memory).newest_lineage("main")
    assert newest is not None
    assert newest.number == 2
    assert not list((tmp_path / "model").glob("*.end-*"))


@pytest.mark.parametrize("moment", [*MOMENTS, *LATER_MOMENTS])
def test_a_kill_at_the_end_leaves_the_old_pair_or_the_new_one(
    moment: str, tmp_path: Path, reference: Steps
) -> None:
    end_with_kill(functools.partial(train_and_die, tmp_path / "model", tmp_path / "store", 27, moment))
    runs = len(accumulated(tmp_path / "model"))
    assert runs == (27 if moment == LATER_MOMENTS[1] else 24)
    accumulate(tmp_path / "model", 40 - runs, backend=tmp_path / "store", resume="exact")
    assert accumulated(tmp_path / "model") == reference[:40]
    listed = read_model_checkpoints(str(tmp_path / "model"))
    assert listed is not None
    left = {str(path)[: -len(".index")] for path in (tmp_path / "model").glob("*.end-*.index")}
    assert left <= set(tf.train.get_checkpoint_state(str(tmp_path / "model")).all_model_checkpoint_paths)


def test_a_checkpoint_beside_another_one_has_the_same_step_and_another_name() -> None:
    for path in ("/run/model.ckpt-120", "/run/model.ckpt.end-120", "gs://b/x-7/model-0"):
        assert beside(path) != path
        assert beside(beside(path)) == path
        assert path.rpartition("-")[2] == beside(path).rpartition("-")[2]


def test_only_what_crashes_have_left_of_our_own_checkpoints_is_removed(tmp_path: Path) -> None:
    kept = ["model.ckpt-6.index", "model.ckpt.end-8.index", "notes.end-of-week.txt", "model.ckpt-9_temp_ab"]
    removed = ["model.ckpt.end-6.index", "model.ckpt.end-6.data-00000-of-00001"]
    for name in (*kept, *removed):
        (tmp_path / name).touch()
    (tmp_path / "model.ckpt.end-6_temp_0f").mkdir()
    (tmp_path / "model.ckpt.end-6_temp_0f" / "part-00000").touch()
    paths = [str(tmp_path / "model.ckpt-6"), str(tmp_path / "model.ckpt.end-8")]
    v1.train.update_checkpoint_state(str(tmp_path), paths[-1], paths)
    remove_leftovers(str(tmp_path))
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([*kept, "checkpoint"])
    assert latest_model_step(str(tmp_path)) == 8


def test_a_model_directory_that_does_not_exist_has_no_leftovers(tmp_path: Path) -> None:
    remove_leftovers(str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()
