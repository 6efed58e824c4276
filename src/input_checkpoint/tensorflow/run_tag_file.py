"""The file in a model directory that ties it to the store of its input state."""

from __future__ import annotations

import contextlib
import logging
from typing import Optional

import tensorflow as tf

from input_checkpoint.backends.redaction import redact, redact_uri
from input_checkpoint.tensorflow.model_checkpoints import replace_file
from input_checkpoint.tensorflow.model_files import read_file
from input_checkpoint.training.run_tag import MAX_TAG_BYTES, TAG_NAME, RunTag, decode_tag, encode_tag

logger = logging.getLogger(__name__)


def read_tag(model_dir: str) -> Optional[RunTag]:
    """Return the tag of a model directory, or None if it has none that can be read.

    A tag that exists but cannot be read causes a warning.
    """
    path = _path(model_dir)
    try:
        tag = decode_tag(read_file(path, MAX_TAG_BYTES))
    except tf.errors.NotFoundError:
        return None
    except tf.errors.OpError as error:
        logger.warning(
            "%s cannot be read and is ignored, as if it were missing: %s",
            redact_uri(path),
            redact(str(error.message)),
        )
        return None
    if tag is None:
        logger.warning(
            "%s is damaged and is ignored, as if it were missing. It is written again when a run begins.",
            redact_uri(path),
        )
    return tag


def write_tag(model_dir: str, tag: RunTag) -> None:
    """Replace the tag of a model directory. A directory that cannot be written is only warned about."""
    try:
        tf.io.gfile.makedirs(model_dir)
        replace_file(_path(model_dir), encode_tag(tag))
    except tf.errors.OpError as error:
        logger.warning(
            "%s could not be written (%s): a store of another training would not be noticed there.",
            redact_uri(_path(model_dir)),
            redact(str(error.message)),
        )


def remove_tag(model_dir: str) -> None:
    """Remove the tag of a model directory, if it has one."""
    with contextlib.suppress(tf.errors.OpError):
        tf.io.gfile.remove(_path(model_dir))


def _path(model_dir: str) -> str:
    return f"{model_dir.rstrip('/')}/{TAG_NAME}"
