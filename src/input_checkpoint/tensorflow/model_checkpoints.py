"""The model's own checkpoints in the model directory: which there are, and which one is current."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Optional

import tensorflow as tf

_STEP = re.compile(r"-(\d+)$")


@dataclass(frozen=True)
class ModelCheckpoints:
    """What the ``checkpoint`` file of a model directory says."""

    latest_step: int
    """Step of the checkpoint that TensorFlow restores."""
    paths: Mapping[int, str]
    """Step → path prefix of every checkpoint that is listed and present, from old to new."""


def default_backend_uri(model_dir: str) -> str:
    """Return the place for input checkpoints that is beside a model directory, never in it.

    >>> default_backend_uri("gs://bucket/run-7/")
    'gs://bucket/run-7-input'
    """
    return f"{_absolute(model_dir).rstrip('/')}-input"


def read_model_checkpoints(model_dir: str) -> Optional[ModelCheckpoints]:
    """Return the checkpoints of ``model_dir``, or None if it has none that carries a step."""
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


def latest_model_step(model_dir: str) -> Optional[int]:
    """Return the step of the checkpoint that TensorFlow would restore. Reads one small file."""
    path = tf.train.latest_checkpoint(model_dir)
    return step_of(path) if path else None


def make_latest(model_dir: str, checkpoints: ModelCheckpoints, step: int) -> None:
    """Make the checkpoint of ``step`` the one that TensorFlow restores. No checkpoint is removed."""
    others = [path for other, path in checkpoints.paths.items() if other != step]
    paths = [_relative(path, model_dir) for path in (*others, checkpoints.paths[step])]
    tf.compat.v1.train.update_checkpoint_state(_absolute(model_dir), paths[-1], paths)


def step_of(path: str) -> Optional[int]:
    """Return the global step in a checkpoint's path.

    >>> step_of("/run/model.ckpt-120")
    120
    """
    match = _STEP.search(path)
    return int(match.group(1)) if match else None


def _absolute(path: str) -> str:
    return path if "://" in path else os.path.abspath(path)


def _relative(path: str, model_dir: str) -> str:
    # Relative paths, as Estimator's own saver writes them, let a model directory be moved.
    return path if "://" in path else os.path.relpath(path, model_dir)
