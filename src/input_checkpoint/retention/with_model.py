"""Retention that follows the model: an input checkpoint is kept as long as its model checkpoint exists.

Works without TensorFlow: fsspec lists the model directory.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Optional, Union

import fsspec

from input_checkpoint.backends.location import parse_for_fsspec, parse_location
from input_checkpoint.backends.redaction import redact, redact_uri, remember_secrets
from input_checkpoint.backends.suggestions import did_you_mean
from input_checkpoint.checkpoint import CheckpointInfo, CheckpointRef
from input_checkpoint.errors import InvalidLocationError
from input_checkpoint.retention.policy import Kept, RetentionPolicy

logger = logging.getLogger(__name__)

_INDEX_FILE = re.compile(r".+-([0-9]+)\.index")


@dataclass(frozen=True, repr=False)
class KeepWithModel(RetentionPolicy):
    """Keeps the input checkpoint of every existing model checkpoint, so that each of them can be resumed.

    A model checkpoint is a file ``<prefix>-<global step>.index`` in ``model_dir``, as Estimator and
    MonitoredTrainingSession write it. The input checkpoint of the same step is kept. If there is none, these
    are kept: the checkpoint that a mark of that step leans on, because training resumes from it by
    fast-forward, and the newest one before that step, because ``resume="aligned"`` resumes from it if the
    mark is refused. Input checkpoints that are newer than every model checkpoint are kept as well, because
    their model checkpoint may still be in the process of being written.

    If ``model_dir`` does not exist, cannot be listed, or holds no model checkpoint yet, every input
    checkpoint is kept and the reason says so. If the directory cannot be listed, a warning is logged as well.

    Args:
        model_dir: a local path, or any URI that fsspec supports, written as for a backend. It is listed at
            every prune. A relative path is resolved once, when the policy is created.
        storage_options: passed to the fsspec filesystem.

    Example:
        >>> KeepWithModel("gs://bucket/run-7") | KeepWithModel("/models/best")
        KeepWithModel('gs://bucket/run-7') | KeepWithModel('/models/best')
    """

    model_dir: Union[str, os.PathLike[str]]
    storage_options: Optional[Mapping[str, Any]] = field(default=None, hash=False)

    def __post_init__(self) -> None:
        if not isinstance(self.model_dir, (str, os.PathLike)) or not os.fspath(self.model_dir):
            raise ValueError(f"KeepWithModel(model_dir) must be a path or a URI, got {self.model_dir!r}")
        remember_secrets(os.fspath(self.model_dir), self.storage_options)
        location = parse_location(self.model_dir)
        meant = did_you_mean(location.uri)
        if meant:
            raise InvalidLocationError(
                f"KeepWithModel(model_dir) cannot list {redact_uri(location.uri)}. Did you mean {meant}?"
            )
        if location.path is None:
            parse_for_fsspec(location.uri)  # raises if fsspec would open another place
        object.__setattr__(self, "model_dir", location.uri)

    def keep(self, checkpoints: Sequence[CheckpointInfo]) -> Kept:
        """See `RetentionPolicy.keep`."""
        try:
            steps = _model_steps(os.fspath(self.model_dir), self.storage_options or {})
        except Exception as error:
            # Filesystems raise their own exceptions, which share no base class, and a missing driver raises
            # ImportError. None of them is a reason to remove a checkpoint.
            logger.warning(
                "Cannot list the model checkpoints in %s, so all input checkpoints are kept: %s: %s",
                self._redacted_dir,
                type(error).__name__,
                redact(str(error)),
            )
            return {info.ref: f"{self._redacted_dir} cannot be listed" for info in checkpoints}
        return needed_by_model(checkpoints, steps)

    @property
    def _redacted_dir(self) -> str:
        return redact_uri(os.fspath(self.model_dir))

    def __repr__(self) -> str:
        return f"KeepWithModel({self._redacted_dir!r})"  # without storage_options, which may hold secrets


def needed_by_model(checkpoints: Sequence[CheckpointInfo], model_steps: Collection[int]) -> Kept:
    """Return the input checkpoints that are needed to resume a model checkpoint, or may soon be.

    Args:
        checkpoints: the history of one worker, from oldest to newest.
        model_steps: steps of all model checkpoints.
    """
    if not model_steps:
        return {info.ref: "the model has no checkpoint yet" for info in checkpoints}
    newest_model = max(model_steps)
    kept: dict[CheckpointRef, str] = {}
    for info in checkpoints:
        if info.step in model_steps:
            kept[info.ref] = f"the model checkpoint of step {info.step} still exists"
        elif info.step > newest_model:
            kept[info.ref] = f"newer than the newest model checkpoint, of step {newest_model}"
    for step in sorted(set(model_steps) - {info.step for info in checkpoints}):
        for info in checkpoints:
            if step in info.marks:
                kept.setdefault(info.ref, f"the mark of the model checkpoint of step {step} leans on it")
        older = [info.ref for info in checkpoints if info.step < step]
        if older:
            kept.setdefault(older[-1], f"the newest before the model checkpoint of step {step}")
    return kept


def _model_steps(model_dir: str, storage_options: Mapping[str, Any]) -> set[int]:
    """Return the steps of all model checkpoints. Raises what the filesystem raises if it cannot list."""
    options = {"use_listings_cache": False, "skip_instance_cache": True, **storage_options}
    location = parse_location(model_dir)
    if location.path is None:
        filesystem, path = fsspec.core.url_to_fs(parse_for_fsspec(location.uri), **options)
    else:
        filesystem, path = fsspec.filesystem("file", **options), location.path
    filesystem.invalidate_cache()  # for filesystems that ignore use_listings_cache
    names = (entry.rpartition("/")[2] for entry in filesystem.ls(path, detail=False))
    return {int(match.group(1)) for match in map(_INDEX_FILE.fullmatch, names) if match}
