"""A training on S3 whose server will hang: ``python -m tests.support.exit_child MODEL_DIR URI OPTIONS_JSON``.

It prints a line at every step. SIGTERM ends it as it does under a job scheduler that gives a period of grace.
"""

from __future__ import annotations

import json
import logging
import signal
import sys
from pathlib import Path

import tensorflow as tf

import input_checkpoint as ic
from tests.support.train_child import EachStep, padded_ids
from tests.support.training import make_estimator

RETRY = ic.RetryPolicy(timeout=3, max_delay=0.5)


def main() -> None:
    model_dir, uri, options = sys.argv[1:]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(message)s")
    tf.get_logger().setLevel("ERROR")
    tf.get_logger().propagate = False
    estimator = make_estimator(Path(model_dir))
    hook = ic.CheckpointInputPipelineHook(
        estimator, backend=uri, storage_options=json.loads(options), retry=RETRY
    )
    estimator.train(
        padded_ids, hooks=[EachStep(lambda step: print("step", step, flush=True)), hook], max_steps=1_000_000
    )


if __name__ == "__main__":
    main()
