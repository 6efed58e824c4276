"""The training program of the demo, as a user of the library would write it.

It trains a small network on scikit-learn's handwritten digits. When it runs again after a crash, it resumes.
"""

from __future__ import annotations

import argparse
import json
import logging
from typing import Any

import numpy as np
import tensorflow as tf

import input_checkpoint as ic

v1 = tf.compat.v1

BATCH = 64
SIDE = 64
SEED = 7


def input_fn(data: str) -> Any:
    """Return the pictures, reshuffled in every epoch by a buffer that holds all of them."""
    digits = np.load(data)
    number = len(digits["label"])
    examples = tf.data.Dataset.from_tensor_slices(
        {
            "id": tf.range(number),
            "picture": digits["picture"].astype("float32") / 16,
            "label": digits["label"].astype("int32"),
        }
    )
    # Enlarged before the shuffle, so that the buffer is as large as one of real pictures.
    return examples.map(enlarge).shuffle(number, reshuffle_each_iteration=True).repeat().batch(BATCH)


def enlarge(example: dict[str, Any]) -> dict[str, Any]:
    """Scale the 8 x 8 picture up."""
    return {**example, "picture": tf.image.resize(example["picture"][..., None], (SIDE, SIDE))}


def model_fn(features: dict[str, Any], mode: str, params: dict[str, Any]) -> Any:
    """Return the network. Its variable ``history`` records the examples that each step was trained on."""
    hidden = tf.keras.layers.Dense(128, "relu")(tf.reshape(features["picture"], [-1, SIDE * SIDE]))
    logits = tf.keras.layers.Dense(10)(hidden)
    loss = v1.losses.sparse_softmax_cross_entropy(features["label"], logits)
    step = v1.train.get_or_create_global_step()
    # Part of the model: when the model is rolled back to an older checkpoint, so is its history.
    history = v1.get_variable(
        "history",
        [params["steps"], BATCH],
        tf.int32,
        v1.constant_initializer(-1),
        trainable=False,
        use_resource=True,
    )
    record = history.scatter_update(tf.IndexedSlices(features["id"], step.read_value()))
    # Record the examples before the step is incremented, or they would land in the row of the next step.
    with tf.control_dependencies([record]):
        train_op = v1.train.AdamOptimizer().minimize(loss, step)
    return tf.estimator.EstimatorSpec(mode, loss=loss, train_op=train_op)


def input_hooks(estimator: Any, args: argparse.Namespace) -> list[Any]:
    """Return the hook that the arguments ask for, which saves and resumes the input."""
    if args.hook == "tensorflow":
        return [tf.data.experimental.CheckpointInputPipelineHook(estimator)]
    if args.hook == "ours":
        return [
            ic.CheckpointInputPipelineHook(
                estimator, backend=args.backend, storage_options=args.storage_options
            )
        ]
    return []


def main() -> None:
    """Train to the last step."""
    args = parse_arguments()
    # TensorFlow's logger has its own handler. Together with the one below, every line would appear twice.
    tf.get_logger().handlers.clear()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    config = tf.estimator.RunConfig(
        args.model_dir,
        tf_random_seed=SEED,
        save_checkpoints_steps=args.save_every,
        log_step_count_steps=1,
    )
    estimator = tf.estimator.Estimator(model_fn, config=config, params={"steps": args.steps})
    estimator.train(lambda: input_fn(args.data), hooks=input_hooks(estimator, args), max_steps=args.steps)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="npz file with the arrays picture and label")
    parser.add_argument("--model-dir", required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--save-every", type=int, required=True)
    parser.add_argument("--hook", choices=["ours", "tensorflow", "none"], default="ours")
    parser.add_argument("--backend", help="URI of the input checkpoints")
    parser.add_argument("--storage-options", type=json.loads, help="storage options as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    main()
