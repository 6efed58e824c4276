"""Saves the model when training ends in the middle of a step, as when gradients are accumulated.

TensorFlow saves the model only once at each step. If several runs make up a step, and training ends between
them, no model checkpoint contains the last runs. This module has TensorFlow's own saver write another one.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Optional

import tensorflow as tf

from input_checkpoint.tensorflow.model_checkpoints import index_digest, listed_paths, remove_model

v1 = tf.compat.v1

_MARK = ".end"
_NAME = re.compile(r"(?P<stem>.*?)(?P<mark>\.end)?-(?P<step>\d+)")
# TensorFlow writes into a temporary folder first.
_LEFTOVER = re.compile(r"(?P<checkpoint>.+\.end-\d+)(\.index|\.data-.+|_temp_.+)")


@dataclass(frozen=True)
class ModelBeside:
    """A model checkpoint that is complete but not current yet."""

    path: str
    digest: str


@contextlib.contextmanager
def model_beside(session: Any, model_dir: str, current: str) -> Iterator[Optional[ModelBeside]]:
    """Write the current model beside the checkpoint of the same step, which stays unchanged.

    On exit, the new checkpoint is removed unless `add_latest` has made it current.

    Args:
        session: the raw session.
        model_dir: the model directory.
        current: path prefix of the current checkpoint.

    Yields:
        The new checkpoint, or None if no saver of the graph writes what the current checkpoint holds.
    """
    saver = _graph_saver(session.graph)
    if saver is None:
        yield None
        return
    path = beside(current)
    try:
        saver.save(session, path, write_meta_graph=False, write_state=False)
        digest = index_digest(path)
        fits = digest is not None and _content(path) == _content(current)
        yield ModelBeside(path, str(digest)) if fits else None
    finally:
        if path not in listed_paths(model_dir):
            remove_model(path)


def remove_leftovers(model_dir: str) -> None:
    """Remove the files of checkpoints that never became current because of a crash."""
    listed = {os.path.basename(path) for path in listed_paths(model_dir)}
    with contextlib.suppress(tf.errors.NotFoundError):
        for name in map(_without_slash, tf.io.gfile.listdir(model_dir)):
            match = _LEFTOVER.fullmatch(name)
            if match is None or match["checkpoint"] in listed:
                continue
            path = f"{model_dir.rstrip('/')}/{name}"
            if tf.io.gfile.isdir(path):
                tf.io.gfile.rmtree(path)
            else:
                tf.io.gfile.remove(path)


def beside(path: str) -> str:
    """Return another path prefix for a checkpoint of the same step.

    >>> beside("/run/model.ckpt-120")
    '/run/model.ckpt.end-120'
    >>> beside("/run/model.ckpt.end-120")
    '/run/model.ckpt-120'
    """
    match = _NAME.fullmatch(path)
    assert match is not None, path
    mark = "" if match["mark"] else _MARK
    return f"{match['stem']}{mark}-{match['step']}"


def _without_slash(name: str) -> str:
    """Return a name in a listing without the slash that some file systems add to a folder's."""
    return name.rstrip("/")


def _graph_saver(graph: Any) -> Optional[Any]:
    """Return the saver that TensorFlow uses for the model, or None if the graph does not have exactly one."""
    savers = graph.get_collection(v1.GraphKeys.SAVERS)
    return savers[0] if len(savers) == 1 else None


def _content(path: str) -> list[tuple[str, list[int]]]:
    """Return the names and shapes of all tensors of a checkpoint."""
    return sorted(tf.train.list_variables(path))
