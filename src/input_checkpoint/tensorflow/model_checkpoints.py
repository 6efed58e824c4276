"""The model's own checkpoints in the model directory: which there are, and which one is current."""

from __future__ import annotations

import contextlib
import os
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Optional

import tensorflow as tf
from google.protobuf import text_format

from input_checkpoint.errors import InputCheckpointError
from input_checkpoint.tensorflow.model_files import check_regular, digest_file
from input_checkpoint.training.model_directory import is_uri

_STEP = re.compile(r"-([0-9]{1,18})$")
_MAX_STATE_BYTES = 16 << 20
"""Size of the ``checkpoint`` file, which lists all model checkpoints that are kept."""


@dataclass(frozen=True)
class ModelCheckpoints:
    """What the ``checkpoint`` file of a model directory says."""

    latest_step: int
    """Step of the checkpoint that TensorFlow restores."""
    paths: Mapping[int, str]
    """Step → path prefix of every checkpoint that is listed and present, from old to new."""

    def digest(self, step: int) -> Optional[str]:
        """Return what identifies the content of a checkpoint, or None if it does not exist.

        The index of a checkpoint holds a checksum of every tensor: it is equal in equal models, and differs
        between two models of the same step.
        """
        path = self.paths.get(step)
        return None if path is None else index_digest(path)


def read_model_checkpoints(model_dir: str) -> Optional[ModelCheckpoints]:
    """Return the checkpoints of ``model_dir``, or None if it has none that carries a step.

    Raises:
        InputCheckpointError: its ``checkpoint`` file cannot be read.
    """
    with _reading_state(model_dir):
        state = tf.train.get_checkpoint_state(model_dir)
    latest = step_of(state.model_checkpoint_path) if state else None
    if latest is None:
        return None
    paths = {
        step: path
        for path in state.all_model_checkpoint_paths
        for step in [step_of(path)]
        if step is not None and tf.io.gfile.exists(f"{path}.index")
    }
    return ModelCheckpoints(latest, paths)


def saved_digest(model_dir: str, step: int) -> Optional[str]:
    """Return the digest of the model checkpoint of ``step``, or None if it is not there yet.

    A newer file of that step than the current checkpoint is of a training that was gone back from: it is
    about to be replaced.
    """
    model = read_model_checkpoints(model_dir)
    return None if model is None or model.latest_step < step else model.digest(step)


def index_digest(path: str) -> Optional[str]:
    """Return what identifies the content of the checkpoint at a path prefix, or None if there is none."""
    try:
        return digest_file(f"{path}.index")
    except (tf.errors.NotFoundError, tf.errors.FailedPreconditionError):
        return None  # just removed, or not a file: then TensorFlow cannot restore it either


def latest_model_step(model_dir: str) -> Optional[int]:
    """Return the step of the checkpoint that TensorFlow would restore. Reads one small file.

    Raises:
        InputCheckpointError: the ``checkpoint`` file cannot be read.
    """
    with _reading_state(model_dir):
        path = tf.train.latest_checkpoint(model_dir)
    return step_of(path) if path else None


@contextlib.contextmanager
def _reading_state(model_dir: str) -> Iterator[None]:
    """Refuse a ``checkpoint`` file that TensorFlow would read forever, or not understand."""
    path = f"{model_dir.rstrip('/')}/checkpoint"
    try:
        check_regular(path)
        with contextlib.suppress(tf.errors.NotFoundError):
            size = tf.io.gfile.stat(path).length
            if size > _MAX_STATE_BYTES:
                raise ValueError(f"it has {size} bytes, and at most {_MAX_STATE_BYTES} are expected")
        yield
    except (ValueError, tf.errors.FailedPreconditionError) as error:
        raise InputCheckpointError(
            f"{path}, which says which model checkpoint is current, cannot be read: {error}. Restore an "
            "intact copy of it, or delete it to train from the beginning."
        ) from error


def make_latest(model_dir: str, checkpoints: ModelCheckpoints, step: int) -> None:
    """Make the checkpoint of ``step`` the one that TensorFlow restores. No checkpoint is removed."""
    others = [path for other, path in checkpoints.paths.items() if other != step]
    _replace_state(model_dir, [*others, checkpoints.paths[step]])


def add_latest(model_dir: str, path: str) -> None:
    """Make a checkpoint that is not listed yet the one that TensorFlow restores. The others stay listed.

    Raises:
        tf.errors.NotFoundError: there is no such checkpoint. Nothing was changed.
    """
    tf.io.gfile.stat(f"{path}.index")
    _replace_state(model_dir, [*(listed for listed in listed_paths(model_dir) if listed != path), path])


def listed_paths(model_dir: str) -> list[str]:
    """Return the path prefixes of all checkpoints that the ``checkpoint`` file lists, from old to new."""
    state = tf.train.get_checkpoint_state(model_dir)
    return list(state.all_model_checkpoint_paths) if state else []


def remove_model(path: str) -> None:
    """Remove the checkpoint at a path prefix, whether it is complete or not."""
    folder, name = os.path.split(path)
    with contextlib.suppress(tf.errors.NotFoundError):
        # The index first: without it, TensorFlow does not see the rest.
        for file in sorted(tf.io.gfile.listdir(folder), reverse=True):
            if file.startswith((f"{name}.index", f"{name}.data-")):
                tf.io.gfile.remove(f"{folder}/{file}")


def _replace_state(model_dir: str, paths: Sequence[str]) -> None:
    """Write the ``checkpoint`` file, for checkpoints from old to new."""
    paths = [_relative(path, model_dir) for path in paths]
    state = tf.compat.v1.train.generate_checkpoint_state_proto(_absolute(model_dir), paths[-1], paths)
    replace_file(f"{_absolute(model_dir)}/checkpoint", text_format.MessageToString(state))


def replace_file(path: str, text: str) -> None:
    """Write a file so that a reader sees either the old content or the new one."""
    aside = f"{path}.{uuid.uuid4().hex[:8]}"
    with tf.io.gfile.GFile(aside, "w") as file:
        file.write(text)
    tf.io.gfile.rename(aside, path, overwrite=True)


def step_of(path: str) -> Optional[int]:
    """Return the global step in a checkpoint's path.

    >>> step_of("/run/model.ckpt-120")
    120
    """
    match = _STEP.search(path)
    return int(match.group(1)) if match else None


def _absolute(path: str) -> str:
    return path if is_uri(path) else os.path.abspath(path)


def _relative(path: str, model_dir: str) -> str:
    # Relative paths, as Estimator's own saver writes them, let a model directory be moved.
    return path if is_uri(path) else os.path.relpath(path, model_dir)
