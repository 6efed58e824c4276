"""The file in a model directory that ties it to the store of its input state."""

from __future__ import annotations

import logging
from typing import Optional

import tensorflow as tf

from input_checkpoint.backends.redaction import redact, redact_uri
from input_checkpoint.tensorflow.model_checkpoints import replace_file
from input_checkpoint.training.run_mark import MARK_NAME, RunMark, decode_mark, encode_mark

logger = logging.getLogger(__name__)


def read_mark(model_dir: str) -> Optional[RunMark]:
    """Return the mark of a model directory, or None if it has none that can be read."""
    try:
        with tf.io.gfile.GFile(_path(model_dir), "r") as file:
            return decode_mark(str(file.read()))
    except tf.errors.NotFoundError:
        return None


def write_mark(model_dir: str, mark: RunMark) -> None:
    """Replace the mark of a model directory. A directory that cannot be written is only warned about."""
    try:
        tf.io.gfile.makedirs(model_dir)
        replace_file(_path(model_dir), encode_mark(mark))
    except tf.errors.OpError as error:
        logger.warning(
            "%s could not be written (%s): a store of another training would not be noticed there.",
            redact_uri(_path(model_dir)),
            redact(str(error.message)),
        )


def _path(model_dir: str) -> str:
    return f"{model_dir.rstrip('/')}/{MARK_NAME}"
