"""The training program of the demo: what a user of the library would write.

It trains a small network on scikit-learn's handwritten digits. Run again after a crash, it goes on from where
it was.
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
    """Return the pictures, shuffled anew in every epoch by a buffer that holds all of them."""
    digits = np.load(data)
    number = len(digits["label"])
    examples = tf.data.Dataset.from_tensor_slices(
        {
            "id": tf.range(number),
            "picture": digits["picture"].astype("float32") / 16,
            "label": digits["label"].astype("int32"),
        }
    )
    # Enlarged before the shuffle, so that its buffer weighs what one of real pictures would.
    return examples.map(enlarge).shuffle(number, reshuffle_each_iteration=True).repeat().batch(BATCH)


def enlarge(example: dict[str, Any]) -> dict[str, Any]:
    """Scale the 8 x 8 picture up."""
    return {**example, "picture": tf.image.resize(example["picture"][..., None], (SIDE, SIDE))}


def model_fn(features: dict[str, Any], mode: str, params: dict[str, Any]) -> Any:
    """Return the network. Its variable ``history`` tells which examples each step was trained on."""
    hidden = tf.keras.layers.Dense(128, "relu")(tf.reshape(features["picture"], [-1, SIDE * SIDE]))
    logits = tf.keras.layers.Dense(10)(hidden)
    loss = v1.losses.sparse_softmax_cross_entropy(features["label"], logits)
    step = v1.train.get_or_create_global_step()
    # A variable of the model: when the model goes back to an older checkpoint, its history does too.
    history = v1.get_variable(
        "history",
        [params["steps"], BATCH],
        tf.int32,
        v1.constant_initializer(-1),
        trainable=False,
        use_resource=True,
    )
    remember = history.scatter_update(tf.IndexedSlices(features["id"], step.read_value()))
    # The step counts up after its examples are noted, or they would land in the next step's row.
    with tf.control_dependencies([remember]):
        train_op = v1.train.AdamOptimizer().minimize(loss, step)
    return tf.estimator.EstimatorSpec(mode, loss=loss, train_op=train_op)


def input_hooks(estimator: Any, args: argparse.Namespace) -> list[Any]:
    """Return the hook that saves and resumes the input, as the arguments say."""
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
    """Train until the last step."""
    args = parse_arguments()
    # TensorFlow's logger has a handler of its own: with the one below, its lines would come twice.
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
    parser.add_argument("--data", required=True, help="npz file with arrays picture and label")
    parser.add_argument("--model-dir", required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--save-every", type=int, required=True)
    parser.add_argument("--hook", choices=["ours", "tensorflow", "none"], default="ours")
    parser.add_argument("--backend", help="URI of the input's checkpoints")
    parser.add_argument("--storage-options", type=json.loads, help="JSON, handed to the storage")
    return parser.parse_args()


if __name__ == "__main__":
    main()
