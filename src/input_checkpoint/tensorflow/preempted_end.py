"""Ends a training early, because the machine is about to go."""

from __future__ import annotations

import logging
import sys
from typing import Any, Callable, Optional

from input_checkpoint.checkpoint import CheckpointRef
from input_checkpoint.tensorflow.model_checkpoints import latest_model_step
from input_checkpoint.tensorflow.session_state import SessionState
from input_checkpoint.training.preemption import Preemption
from input_checkpoint.training.settings import TrainingSettings

logger = logging.getLogger(__name__)


class PreemptedEnd:
    """Tells when a training must stop, and ends the process once its last state is stored.

    Without ``save_on_preemption``, nothing happens.

    Args:
        settings: of the hook.
        uri: where the input is saved, for messages.
        newest: returns the newest input checkpoint that is stored.
    """

    def __init__(
        self, settings: TrainingSettings, uri: str, newest: Callable[[], Optional[CheckpointRef]]
    ) -> None:
        self._model_dir = settings.model_dir
        self._uri = uri
        self._newest = newest
        self._ended_at: Optional[int] = None
        self._preemption = (
            Preemption(settings.grace_seconds, settings.termination_watcher_fn, self._describe)
            if settings.save_on_preemption
            else None
        )

    def watch(self) -> None:
        """Watch from now on. Call it before the first run of each session."""
        self._ended_at = None
        if self._preemption is not None:
            self._preemption.begin()

    def is_due(self, state: SessionState) -> bool:
        """Whether training must stop after the last run. In the middle of a step, it continues."""
        preemption = self._preemption
        return preemption is not None and preemption.requested and state.draws == state.draws_at_step

    def ended(self, coordinator: Any, step: int) -> None:
        """Have the process end when the session is closed, if it must. The input is stored.

        Args:
            coordinator: of the session. It raises the error after all hooks have ended.
            step: the global step.
        """
        self._ended_at = step
        if self._preemption is not None and self._preemption.requested:
            error = self._preemption.exit_error
            coordinator.request_stop((type(error), error, None))

    def closed(self) -> None:
        """Note that the session is being closed."""
        preemption = self._preemption
        if preemption is None:
            return
        if preemption.requested:
            if self._ended_at is None:
                return  # It has failed. Another session may follow, which must stop in time.
            self._report(preemption, self._ended_at)
        preemption.end()

    def _report(self, preemption: Preemption, step: int) -> None:
        error = sys.exc_info()[1]
        if error is not None:
            # The error that ends the process takes its place.
            logger.error("A hook failed at the end of training.", exc_info=error)
        logger.warning(
            "Training stopped at step %d, %.1f s after %s. %s",
            step,
            preemption.waited,
            preemption.reason,
            self._describe(),
        )

    def _describe(self) -> str:
        newest = self._newest()
        found = "No input" if newest is None else f"The input of step {newest.step}"
        stored = f"{found} is stored in {self._uri}"
        if self._model_dir is None:
            return f"{stored}."
        step = latest_model_step(self._model_dir)
        model = "no model" if step is None else f"the model of step {step}"
        return f"{stored}, and {model} in {self._model_dir}. Training resumes from the newest step with both."
