"""The hook for sessions without an Estimator: the same saves and the same resume."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Optional

import pytest
import tensorflow as tf

import input_checkpoint as ic
from input_checkpoint.backends.memory import MemoryBackend
from tests.support.hooked_training import Steps, committed_steps, preempted, train_in_session
from tests.support.training import shuffled_ids, trained_on
from tests.support.wrappers import Failing

v1 = tf.compat.v1


def ids_of_sessions(backend: ic.Backend, sessions: int, steps: int, error: Optional[Any] = None) -> Steps:
    """Train a model that is not checkpointed in several sessions with one hook, and return its ids."""
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


def test_for_session_returns_the_base_of_the_estimator_hook(tmp_path):
    hook = ic.CheckpointInputPipelineHook.for_session(model_dir=str(tmp_path / "model"), save_steps=10)
    assert type(hook) is ic.SessionHook
    assert issubclass(ic.CheckpointInputPipelineHook, ic.SessionHook)


def test_for_session_requires_a_backend_or_a_model_directory() -> None:
    with pytest.raises(ValueError, match="pass a backend, or a model_dir"):
        ic.CheckpointInputPipelineHook.for_session(save_steps=10)


def test_for_session_probes_the_backend(memory: MemoryBackend) -> None:
    forbidding = Failing(memory, "delete", "probe/", ic.BackendPermissionError("may not delete"))
    with pytest.raises(ic.BackendPermissionError, match="may not delete"):
        ic.CheckpointInputPipelineHook.for_session(backend=forbidding, save_steps=10)


def test_a_monitored_session_resumes(tmp_path: Path) -> None:
    for _ in range(2):
        hook = ic.CheckpointInputPipelineHook.for_session(model_dir=str(tmp_path / "model"), save_steps=10)
        train_in_session(tmp_path / "model", [hook], steps=15)
    train_in_session(tmp_path / "reference", [], steps=30)
    assert trained_on(tmp_path / "model") == trained_on(tmp_path / "reference")


def test_latest_continues_where_an_earlier_session_of_the_same_hook_ended(
    reference: Steps, memory: MemoryBackend
) -> None:
    assert ids_of_sessions(memory, sessions=2, steps=15) == reference[:30]


def test_latest_continues_from_the_newest_save_if_a_session_without_model_checkpoints_is_recreated(
    reference: Steps, memory: MemoryBackend
) -> None:
    seen = ids_of_sessions(memory, sessions=1, steps=25, error=preempted(17))
    assert seen[:16] == reference[:16]
    # The model started over, and the input continued from its save of step 10.
    assert seen[-25:] == reference[10:35]


def test_timed_saves_happen_even_if_the_model_is_not_saved(tmp_path: Path, memory: MemoryBackend) -> None:
    hook = ic.CheckpointInputPipelineHook.for_session(
        model_dir=str(tmp_path / "never-written"), backend=memory, save_secs=0.2, retention=ic.KeepAll()
    )
    with v1.Graph().as_default():
        ids = v1.data.make_one_shot_iterator(shuffled_ids()).get_next()
        with tf.control_dependencies([ids]):
            step = v1.train.get_or_create_global_step().assign_add(1)
        stop = v1.train.StopAtStepHook(num_steps=20)
        with v1.train.MonitoredSession(hooks=[hook, stop]) as session:
            while not session.should_stop():
                session.run(step)
                time.sleep(0.1)
    steps = committed_steps(memory)
    assert steps[0] == 0
    assert steps[-1] == 20
    assert len(steps) >= 4
