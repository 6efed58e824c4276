"""Training that accumulates gradients: several runs make up a global step."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable, Optional

import tensorflow as tf

import input_checkpoint as ic
from input_checkpoint.tensorflow import session_hook
from tests.support.training import BATCH, MAX_STEPS, NOTHING, shuffled_ids
from tests.support.wrappers import Wrapped

v1 = tf.compat.v1

MICRO = 4
"""Runs to a global step."""


def accumulate_op(ids: Any, collection: str = v1.GraphKeys.GLOBAL_VARIABLES) -> Any:
    """Record the ids of this run in the model, and increment the step with every fourth run.

    Args:
        ids: the batch.
        collection: of the variables that are recorded in; those of LOCAL_VARIABLES are not saved.
    """
    step = v1.train.get_or_create_global_step()
    options: dict[str, Any] = {"trainable": False, "use_resource": True, "collections": [collection]}
    history = v1.get_variable(
        "run_history", [MAX_STEPS, BATCH], tf.int64, v1.constant_initializer(NOTHING), **options
    )
    runs = v1.get_variable("runs", [], tf.int64, v1.constant_initializer(0), **options)
    row = tf.identity(runs.read_value())
    padded = tf.pad(ids, [[0, BATCH - tf.size(ids)]], constant_values=NOTHING)
    with tf.control_dependencies([row]):
        written = history.scatter_nd_update([[row]], [padded])
    with tf.control_dependencies([written]):
        count = runs.assign_add(1)
    with tf.control_dependencies([count]):
        is_last = tf.equal(runs.read_value() % MICRO, 0)
        return tf.cond(is_last, lambda: step.assign_add(1), lambda: tf.identity(step))


def _model_fn(features: Any, labels: Any, mode: str, params: dict[str, Any]) -> Any:
    collection = params.get("collection", v1.GraphKeys.GLOBAL_VARIABLES)
    scaffold = None
    if params.get("own_saver"):
        op = tf.group(accumulate_op(features, collection))
        scaffold = v1.train.Scaffold(saver=v1.train.Saver(sharded=True))
    else:
        op = tf.group(accumulate_op(features, collection))
    return tf.estimator.EstimatorSpec(mode, loss=tf.constant(1.0), train_op=op, scaffold=scaffold)


def make_accumulating(model_dir: Path, **params: Any) -> Any:
    """Return an Estimator that accumulates, and saves its model every 2 steps by default."""
    config = params.pop("config", None) or tf.estimator.RunConfig(
        log_step_count_steps=None,
        save_summary_steps=0,
        save_checkpoints_steps=params.pop("save_checkpoints_steps", 2),
    )
    return tf.estimator.Estimator(_model_fn, str(model_dir), config, params=params)


class StopAfter(tf.estimator.SessionRunHook):
    """Stops training after a number of runs."""

    def __init__(self, runs: int) -> None:
        self._left = runs

    def after_run(self, run_context: Any, run_values: Any) -> None:
        self._left -= 1
        if self._left == 0:
            run_context.request_stop()


def accumulate(
    model_dir: Path,
    runs: int,
    input_fn: Callable[[], Any] = shuffled_ids,
    hooks: Sequence[Any] = (),
    params: Optional[dict[str, Any]] = None,
    **options: Any,
) -> None:
    """Train for a number of runs with the hook, its ``options`` and more ``hooks`` after it."""
    estimator = make_accumulating(model_dir, **(params or {}))
    hook = ic.CheckpointInputPipelineHook(estimator, **options)
    estimator.train(input_fn, hooks=[hook, *hooks, StopAfter(runs)])


def accumulated(model_dir: Path) -> list[list[int]]:
    """Return the ids of every run in the newest model."""
    reader = tf.train.load_checkpoint(str(model_dir))
    rows = reader.get_tensor("run_history")[: int(reader.get_tensor("runs"))]
    return [[int(example) for example in row if example != NOTHING] for row in rows]


def die(*_: Any) -> None:
    """As a preemption does."""
    os.kill(os.getpid(), signal.SIGKILL)


class _DieAt(Wrapped):
    def __init__(self, inner: ic.Backend, verb: str, prefix: str, late: bool) -> None:
        super().__init__(inner)
        self._at = (verb, prefix)
        self._late = late

    def before(self, verb: str, key: str) -> None:
        if not self._late and verb == self._at[0] and key.startswith(self._at[1]):
            die()

    def after(self, verb: str, key: str) -> None:
        if self._late and verb == self._at[0] and key.startswith(self._at[1]):
            die()


MOMENTS = {
    "before the new run begins": ("create", "lineages/main/00000002", False),
    "after the new run has begun": ("create", "lineages/main/00000002", True),
    "before the commit of the input": ("create", "checkpoints/main/00000002", False),
    "after the commit of the input": ("create", "checkpoints/main/00000002", True),
}
"""Moments of the end of a first training, between the model's second save and the pair."""
LATER_MOMENTS = ("before the new model is current", "after the new model is current")


def train_and_die(model_dir: Path, backend: Path, runs: int, moment: str) -> None:
    """Train, and kill this process at a moment of its end."""
    opened = ic.open_backend(str(backend))
    if moment in MOMENTS:
        opened = _DieAt(opened, *MOMENTS[moment])
    elif moment == LATER_MOMENTS[0]:
        session_hook.add_latest = die
    else:
        add_latest = session_hook.add_latest

        def add_and_die(*arguments: Any) -> None:
            add_latest(*arguments)
            die()

        session_hook.add_latest = add_and_die
    accumulate(model_dir, runs, backend=opened)
