"""A small Estimator that records in its model the examples that each step was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Optional

import tensorflow as tf

v1 = tf.compat.v1

BATCH = 4
MAX_STEPS = 200
NOTHING = -1


def shuffled_ids(count: int = 300, buffer: int = 100, seed: int = 7) -> Any:
    """Return a dataset whose order shows where it resumed."""
    return tf.data.Dataset.range(count).shuffle(buffer, seed=seed).repeat().batch(BATCH)


def train_op(ids: Any) -> Any:
    """Record the ids of this step in the model, then increment the step."""
    step = v1.train.get_or_create_global_step()
    history = v1.get_variable(
        "history",
        [MAX_STEPS, BATCH],
        tf.int64,
        v1.constant_initializer(NOTHING),
        trainable=False,
        use_resource=True,
    )
    padded = tf.pad(ids, [[0, BATCH - tf.size(ids)]], constant_values=NOTHING)
    with tf.control_dependencies([history.scatter_nd_update([[step]], [padded])]):
        return step.assign_add(1)


def _model_fn(features: Any, labels: Any, mode: str) -> Any:
    if mode == tf.estimator.ModeKeys.PREDICT:
        return tf.estimator.EstimatorSpec(mode, predictions=features)
    loss = tf.constant(1.0)
    return tf.estimator.EstimatorSpec(mode, loss=loss, train_op=train_op(features))


def make_estimator(model_dir: Path, **config: Any) -> Any:
    """Return an Estimator that saves its model every 10 steps by default."""
    settings: dict[str, Any] = {"log_step_count_steps": None, "save_summary_steps": 0, **config}
    if "save_checkpoints_secs" not in settings:
        settings.setdefault("save_checkpoints_steps", 10)
    return tf.estimator.Estimator(_model_fn, str(model_dir), tf.estimator.RunConfig(**settings))


def trained_on(model_dir: Path) -> list[list[int]]:
    """Return the ids of every step in the history of the newest model."""
    reader = tf.train.load_checkpoint(str(model_dir))
    steps = int(reader.get_tensor("global_step"))
    return [
        [int(example) for example in row if example != NOTHING]
        for row in reader.get_tensor("history")[:steps]
    ]


def uninterrupted(input_fn: Callable[[], Any], steps: int, model_dir: Path) -> list[list[int]]:
    """Return the ids of every step of an uninterrupted run."""
    make_estimator(model_dir).train(input_fn, steps=steps)
    return trained_on(model_dir)


class FailAt(tf.estimator.SessionRunHook):
    """Raises an error once, at a given step."""

    def __init__(self, step: int, error: Exception) -> None:
        self._step = step
        self._error: Optional[Exception] = error

    def begin(self) -> None:
        self._global_step = tf.identity(v1.train.get_global_step())

    def after_run(self, run_context: Any, run_values: Any) -> None:
        if self._error is not None and run_context.session.run(self._global_step) >= self._step:
            error, self._error = self._error, None
            raise error
