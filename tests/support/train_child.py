"""A training process for tests to kill.

``python -m tests.support.train_child MODEL_DIR BACKEND OPTIONS_JSON STEPS`` prints a line at every step, so
that the test knows when to kill it.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import tensorflow as tf

import input_checkpoint as ic
from tests.support.training import make_estimator

ELEMENT_INTS = 2_000


def padded_ids() -> Any:
    """Return 16 KB elements in a shuffle buffer of 500: about 8 MB of state, so that a save takes a while."""

    def pad(example: Any) -> Any:
        noise = tf.random.stateless_uniform([ELEMENT_INTS], [example, 1], maxval=2**30, dtype=tf.int64)
        return noise * 1000 + example

    return (
        tf.data.Dataset.range(1000)
        .map(pad)
        .shuffle(500, seed=11)
        .map(lambda padded: padded[0] % 1000)
        .repeat()
        .batch(4)
    )


class PrintStep(tf.estimator.SessionRunHook):
    """Prints the step after each run."""

    def begin(self) -> None:
        self._step = tf.identity(tf.compat.v1.train.get_global_step())

    def after_run(self, run_context: Any, run_values: Any) -> None:
        print("step", run_context.session.run(self._step), flush=True)


def main() -> None:
    model_dir, backend, options, steps = sys.argv[1:]
    logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(message)s")
    tf.get_logger().setLevel("ERROR")
    tf.get_logger().propagate = False
    estimator = make_estimator(Path(model_dir))
    hooks: list[Any] = [PrintStep()]
    if backend != "none":
        hooks.append(
            ic.CheckpointInputPipelineHook(estimator, backend=backend, storage_options=json.loads(options))
        )
    estimator.train(padded_ids, hooks=hooks, max_steps=int(steps))


if __name__ == "__main__":
    main()
