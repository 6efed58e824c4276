"""Evidence that an input checkpoint or a mark was written with a model checkpoint."""

from __future__ import annotations

from typing import Optional, Protocol

from input_checkpoint.checkpoint import CheckpointInfo


class ModelEvidence(Protocol):
    """The model checkpoints that exist, by what identifies their content."""

    def digest(self, step: int) -> Optional[str]:
        """Return the digest of the model checkpoint of ``step``, or None if there is none."""


class NoModel:
    """Evidence where no model checkpoints are known: nothing can be proven or refuted."""

    def digest(self, step: int) -> Optional[str]:
        """Return None."""
        return None


def is_proven(info: CheckpointInfo, model: ModelEvidence) -> bool:
    """Whether an input checkpoint was demonstrably saved together with the model checkpoint of its step."""
    return proves(info.context.model_digest, info.step, model)


def is_refuted(info: CheckpointInfo, model: ModelEvidence) -> bool:
    """Whether the model checkpoint of its step is demonstrably another one than it was saved with."""
    return refutes(info.context.model_digest, info.step, model)


def proves(recorded: Optional[str], step: int, model: ModelEvidence) -> bool:
    """Whether a digest that was recorded at ``step`` is that of the model checkpoint that exists."""
    return recorded is not None and model.digest(step) == recorded


def refutes(recorded: Optional[str], step: int, model: ModelEvidence) -> bool:
    """Whether a digest that was recorded at ``step`` is that of another model checkpoint."""
    present = model.digest(step)
    return recorded is not None and present is not None and present != recorded
