"""Training with the hook, and model directories and stores as a crash leaves them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable

import tensorflow as tf

import input_checkpoint as ic
from tests.support.training import FailAt, make_estimator, shuffled_ids, train_op
from tests.support.wrappers import BeforeWrites

v1 = tf.compat.v1

Steps = list[list[int]]
"""The ids that each step was trained on."""


def train(
    model_dir: Path,
    steps: int,
    input_fn: Callable[[], Any] = shuffled_ids,
    hooks: Sequence[Any] = (),
    **options: Any,
) -> None:
    """Train an Estimator with the hook, its ``options`` and more ``hooks`` after it."""
    estimator = make_estimator(model_dir)
    hook = ic.CheckpointInputPipelineHook(estimator, **options)
    estimator.train(input_fn, hooks=[hook, *hooks], steps=steps)


def train_in_session(
    model_dir: Path, hooks: list[Any], steps: int = 30, grace: int = 120, *, saved_by_session: bool = True
) -> None:
    """Train without an Estimator.

    Args:
        model_dir: where the session checkpoints the model.
        hooks: hooks of the session.
        steps: step at which training stops.
        grace: seconds that the coordinator waits for saves before it closes the session.
        saved_by_session: whether the session saves the model, before all hooks. False: one of them does.
    """
    with v1.Graph().as_default():
        iterator = v1.data.make_initializable_iterator(shuffled_ids())
        v1.add_to_collection(v1.GraphKeys.TABLE_INITIALIZERS, iterator.initializer)
        step = train_op(iterator.get_next())
        with v1.train.MonitoredTrainingSession(
            checkpoint_dir=str(model_dir),
            save_checkpoint_steps=10 if saved_by_session else None,
            save_checkpoint_secs=None,
            stop_grace_period_secs=grace,
            hooks=[*hooks, v1.train.StopAtStepHook(num_steps=steps)],
        ) as session:
            while not session.should_stop():
                session.run(step)


def session_hook(model_dir: Path, backend: ic.Backend, **options: Any) -> Any:
    """Return a hook for `train_in_session`."""
    return ic.CheckpointInputPipelineHook.for_session(
        model_dir=str(model_dir), backend=backend, save_steps=10, **options
    )


def slow_upload(step: int, backend: ic.Backend, seconds: float) -> ic.Backend:
    """Return a backend that uploads each pack of one step with a delay."""

    def delay(key: str) -> None:
        if key.startswith("packs/") and f"/{step:012d}-" in key:
            time.sleep(seconds)

    return BeforeWrites(backend, delay)


def preempted(step: int) -> FailAt:
    """Return a hook that raises the error of a preempted machine once, when ``step`` is reached."""
    return FailAt(step, tf.errors.AbortedError(None, None, "preempted"))


def input_steps(model_dir: Path) -> list[int]:
    """Return the steps of the input history in the default backend."""
    store = ic.CheckpointStore.open(f"{model_dir}-input")
    return [ref.step for ref in store.history("main")]


def committed_steps(backend: ic.Backend) -> list[int]:
    """Return the steps of all checkpoints in a store."""
    return [info.step for info in ic.CheckpointStore.open(backend).checkpoints()]


def drop_input(model_dir: Path, *steps: int) -> None:
    """Delete the input checkpoints and marks of ``steps``, as if a crash had come before them."""
    for step in steps:
        for file in Path(f"{model_dir}-input").glob(f"checkpoints/*/*/{step:012d}*"):
            file.unlink()


def set_current_model(model_dir: Path, step: int) -> None:
    """Make an older model checkpoint the current one, as a user does to train from it again."""
    v1.train.update_checkpoint_state(str(model_dir), str(model_dir / f"model.ckpt-{step}"))


def keep_only_model(model_dir: Path, step: int) -> None:
    """Delete all model checkpoints but one."""
    for file in model_dir.glob("model.ckpt-*"):
        if f"ckpt-{step}." not in file.name:
            file.unlink()
    set_current_model(model_dir, step)


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait until ``condition`` is true, and fail after a minute."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "the condition never became true"
        time.sleep(0.01)
