"""Retention that follows the model: input checkpoints stay while their model checkpoint does.

Works without TensorFlow: the model directory is only listed, with fsspec.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Optional, Union

import fsspec

from input_checkpoint.backends.redaction import redact
from input_checkpoint.checkpoint import CheckpointInfo, CheckpointRef
from input_checkpoint.retention.policy import Kept, RetentionPolicy

logger = logging.getLogger(__name__)

_INDEX_FILE = re.compile(r".+-([0-9]+)\.index")


@dataclass(frozen=True, repr=False)
class KeepWithModel(RetentionPolicy):
    """Keeps what belongs to a model checkpoint that is still there, so that every model can be resumed.

    A model checkpoint is a file ``<prefix>-<global step>.index`` in ``model_dir``, as Estimator and
    MonitoredTrainingSession write it. With it stays the input checkpoint of its step or, if there is none,
    the newest before it, from which ``resume="aligned"`` would go on. What is newer than every model
    checkpoint stays too, since its model checkpoint may still be on the way.

    Nothing is removed for want of an answer: if ``model_dir`` does not exist, cannot be listed, or holds no
    model checkpoint (yet), everything stays, and a log message and the reason say so.

    Args:
        model_dir: a local path, or any URI that fsspec knows. It is listed at every clean-up. A relative path
            is taken from the folder that is current now, whatever folder is later.
        storage_options: handed to the fsspec filesystem.

    Example:
        >>> KeepWithModel("gs://bucket/run-7") | KeepWithModel("/models/best")
        KeepWithModel('gs://bucket/run-7') | KeepWithModel('/models/best')
    """

    model_dir: Union[str, os.PathLike[str]]
    storage_options: Optional[Mapping[str, Any]] = field(default=None, hash=False)

    def __post_init__(self) -> None:
        if not isinstance(self.model_dir, (str, os.PathLike)) or not os.fspath(self.model_dir):
            raise ValueError(f"KeepWithModel(model_dir) must be a path or a URI, got {self.model_dir!r}")
        protocol, path = fsspec.core.split_protocol(os.fspath(self.model_dir))
        if protocol in (None, "file", "local"):
            object.__setattr__(self, "model_dir", os.path.abspath(os.path.expanduser(path)))

    def keep(self, checkpoints: Sequence[CheckpointInfo]) -> Kept:
        """See `RetentionPolicy.keep`."""
        try:
            steps = _model_steps(os.fspath(self.model_dir), self.storage_options or {})
        except Exception as error:
            # Filesystems raise exceptions of their own that share no base class, and a missing driver is an
            # ImportError. None of them is a reason to remove anything.
            logger.warning(
                "The model checkpoints in %s cannot be listed, so all input checkpoints are kept: %s: %s",
                self._shown,
                type(error).__name__,
                redact(str(error)),
            )
            return {info.ref: f"{self._shown} cannot be listed" for info in checkpoints}
        return kept_with_model(checkpoints, steps)

    @property
    def _shown(self) -> str:
        return redact(os.fspath(self.model_dir))

    def __repr__(self) -> str:
        return f"KeepWithModel({self._shown!r})"  # without storage_options, which may hold secrets


def kept_with_model(checkpoints: Sequence[CheckpointInfo], model_steps: Collection[int]) -> Kept:
    """Return the input checkpoints that are needed to resume each model, or may be before long.

    Args:
        checkpoints: the history of one worker, from old to new.
        model_steps: steps of all model checkpoints.
    """
    if not model_steps:
        return {info.ref: "the model has no checkpoint yet" for info in checkpoints}
    newest_model = max(model_steps)
    kept: dict[CheckpointRef, str] = {}
    for info in checkpoints:
        if info.step in model_steps:
            kept[info.ref] = f"the model checkpoint of step {info.step} is still there"
        elif info.step > newest_model:
            kept[info.ref] = f"newer than the newest model checkpoint, of step {newest_model}"
    for step in sorted(set(model_steps) - {info.step for info in checkpoints}):
        before = [info.ref for info in checkpoints if info.step < step]
        if before:
            kept.setdefault(before[-1], f"the newest before the model checkpoint of step {step}")
    return kept


def _model_steps(model_dir: str, storage_options: Mapping[str, Any]) -> set[int]:
    """Return the steps of all model checkpoints. Raises whatever the filesystem does, if it cannot list."""
    options = {"use_listings_cache": False, "skip_instance_cache": True, **storage_options}
    filesystem, path = fsspec.core.url_to_fs(model_dir, **options)
    filesystem.invalidate_cache()  # for filesystems that do not know the option
    names = (entry.rpartition("/")[2] for entry in filesystem.ls(path, detail=False))
    return {int(match.group(1)) for match in map(_INDEX_FILE.fullmatch, names) if match}
