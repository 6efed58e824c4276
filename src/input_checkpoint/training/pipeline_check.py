"""The check before every restore: is the pipeline still the one that the checkpoint was saved from?"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from input_checkpoint.checkpoint import CheckpointInfo
from input_checkpoint.errors import PipelineMismatchError
from input_checkpoint.training.pipeline_change import Fingerprint, compare_all, judge

logger = logging.getLogger(__name__)


class PipelineCheck:
    """Compares the pipeline of a checkpoint with the present one, before TensorFlow touches its state.

    TensorFlow does not compare: it may end the process with a segmentation fault, or restore a position into
    other data without a word.

    Args:
        current: fingerprints of the present pipelines, by the names of their iterators.
        on_pipeline_change: one of `pipeline_change.ON_PIPELINE_CHANGE`.
        uri: of the store, for messages.
    """

    def __init__(self, current: Mapping[str, Fingerprint], on_pipeline_change: str, uri: str) -> None:
        self._current = current
        self._mode = on_pipeline_change
        self._uri = uri
        self._warned: set[str] = set()

    def __call__(self, info: CheckpointInfo) -> None:
        """Warn of a change that leads to other data.

        Args:
            info: of the checkpoint.

        Raises:
            PipelineMismatchError: the pipeline has changed so that the state cannot be restored.
        """
        if self._mode == "ignore":
            return
        stored = {name: Fingerprint.from_json(value) for name, value in info.context.pipeline.items()}
        known = {name: fingerprint for name, fingerprint in stored.items() if fingerprint is not None}
        verdict = judge(compare_all(known, self._current), self._mode)
        if verdict.refusal is not None:
            raise PipelineMismatchError(
                f"{self._uri}, checkpoint {info.ref}: {verdict.refusal} To start the input from its "
                "beginning, pass resume='fresh'.",
                uri=self._uri,
                ref=info.ref,
            )
        if verdict.warning is not None and verdict.warning not in self._warned:
            self._warned.add(verdict.warning)
            logger.warning("%s, checkpoint %s: %s", self._uri, info.ref, verdict.warning)


def check_nothing(info: CheckpointInfo) -> None:
    """Accept every checkpoint: for inputs that have no fingerprint."""
