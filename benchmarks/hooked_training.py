"""Trainings through the hook that save their model, as a user writes them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import tensorflow as tf

from benchmarks.candidates import TrainingSession
from input_checkpoint.tensorflow.session_hook import SessionHook

v1 = tf.compat.v1

_LEARNING_RATE = 1e-3


class TimedHook(SessionHook):
    """This library's hook. Measures for how long it keeps the training thread."""

    seconds: float = 0.0
    """What it has taken so far."""

    def before_run(self, run_context: Any) -> None:
        """Called by TensorFlow."""
        with self._timed():
            super().before_run(run_context)

    def after_run(self, run_context: Any, run_values: Any) -> None:
        """Called by TensorFlow."""
        with self._timed():
            super().after_run(run_context, run_values)

    def _mark_before_model(self) -> None:
        # The only part that does not run in one of the two methods of a hook.
        with self._timed():
            super()._mark_before_model()

    @contextlib.contextmanager
    def _timed(self) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - started

    def wait(self) -> None:
        """Wait for all background work."""
        self._running_saver.wait()


@contextlib.contextmanager
def hooked_training(
    dataset: Callable[[], Any],
    train: Callable[[Any], Any],
    model_dir: Path,
    model_steps: int,
    hooks: list[Any],
) -> Iterator[TrainingSession]:
    """Open a monitored session that restores and saves its model.

    TensorFlow calls the hook that saves the model before all others, as in a training through an Estimator.

    Args:
        dataset: returns what to train on.
        train: returns the operation of one step, given a batch.
        model_dir: where the model is.
        model_steps: steps between two model checkpoints.
        hooks: of the session.
    """
    with v1.Graph().as_default() as graph:
        iterator = v1.data.make_initializable_iterator(dataset())
        v1.add_to_collection(v1.GraphKeys.TABLE_INITIALIZERS, iterator.initializer)
        step = v1.train.get_or_create_global_step()
        with tf.control_dependencies([train(iterator.get_next())]):
            train_op = step.assign_add(1).op
        session = v1.train.MonitoredTrainingSession(
            checkpoint_dir=str(model_dir),
            save_checkpoint_steps=model_steps,
            save_summaries_steps=None,
            save_summaries_secs=None,
            log_step_count_steps=None,
            # The graph has the pictures as constants. To write it with each model takes longer than the rest.
            save_graph_def=False,
            hooks=hooks,
        )
        with session:
            yield TrainingSession(session, train_op, iterator, graph)


def perceptron(batch: Any, width: int) -> Any:
    """Return the operation that trains a perceptron with two hidden layers on rows of numbers.

    Args:
        batch: numbers of any type, a row for each example.
        width: neurons of each hidden layer.
    """
    rows = tf.cast(batch, tf.float32) / 50_000
    layer, size = rows, int(rows.shape[1])
    for number, neurons in enumerate((width, width, 1)):
        weights = v1.get_variable(f"weights_{number}", [size, neurons])
        layer = tf.matmul(tf.nn.relu(layer), weights)
        size = neurons
    loss = tf.reduce_mean(tf.square(layer - 1))
    return v1.train.GradientDescentOptimizer(_LEARNING_RATE).minimize(loss)
