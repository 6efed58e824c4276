"""Prints, as JSON, the examples that the models in some model directories were trained on.

It runs as a separate process, because it needs TensorFlow and the rest of the demo does not.
"""

from __future__ import annotations

import json
import sys

import tensorflow as tf


def main() -> None:
    """Print the ``history`` of each given model directory: one row of example ids per step."""
    print(json.dumps([tf.train.load_variable(folder, "history").tolist() for folder in sys.argv[1:]]))


if __name__ == "__main__":
    main()
