"""Retention for the model's sake: a crash must always find the input that the model needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from input_checkpoint.checkpoint import CheckpointInfo
from input_checkpoint.retention.policy import Kept, RetentionPolicy
from input_checkpoint.retention.with_model import needed_by_model
from input_checkpoint.tensorflow.model_checkpoints import read_model_checkpoints

_MODELS = 2
"""The current model checkpoint, and the one before it, to which a crash may turn the model back."""


@dataclass(frozen=True)
class KeepForResume(RetentionPolicy):
    """Keeps what the current model checkpoint and the one before it would resume from.

    It does so whatever other policies say. Newer models, from which training went back, do not count.

    Args:
        model_dir: the model directory.
    """

    model_dir: str

    def keep(self, checkpoints: Sequence[CheckpointInfo]) -> Kept:
        """See `RetentionPolicy.keep`."""
        model = read_model_checkpoints(self.model_dir)
        if model is None:
            return {}
        steps = sorted(step for step in model.paths if step <= model.latest_step)[-_MODELS:]
        kept = needed_by_model([info for info in checkpoints if info.step <= max(steps, default=-1)], steps)
        return {ref: f"{reason}, which training would resume from" for ref, reason in kept.items()}
