"""Input and model brought to the same step, and the user told of what that took."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Optional

from input_checkpoint.checkpoint import CheckpointRef
from input_checkpoint.errors import CheckpointNotFoundError, CorruptCheckpointError, PipelineMismatchError
from input_checkpoint.store.store import CheckpointStore
from input_checkpoint.tensorflow.iterators import GraphIterators
from input_checkpoint.tensorflow.model_checkpoints import (
    ModelCheckpoints,
    make_latest,
    read_model_checkpoints,
)
from input_checkpoint.training.resume_plan import ResumePlan, may_be_a_crash, paired_model_step, plan_resume
from input_checkpoint.training.settings import HookSettings

logger = logging.getLogger(__name__)


class Resumption:
    """Decides where one hook's input goes on, and puts it there.

    Args:
        store: where the input checkpoints are.
        settings: the hook's.
    """

    def __init__(self, store: CheckpointStore, settings: HookSettings) -> None:
        self._store = store
        self._settings = settings
        self._has_started = False

    def turn_model_back(self, restored_step: Optional[int] = None) -> bool:
        """If the newest model checkpoint has no input checkpoint, make the newest complete pair current.

        Only where a crash, or a save that was skipped, may have left it so. A model that was trained without
        the hook is left as it is.

        Args:
            restored_step: only if the newest model checkpoint is of this step. None: whatever it is of.

        Returns:
            Whether the model directory now names an older checkpoint.
        """
        settings = self._settings
        if self._mode != "aligned" or settings.num_workers > 1 or settings.model_dir is None:
            return False
        model = read_model_checkpoints(settings.model_dir)
        if model is None or restored_step not in (None, model.latest_step):
            return False
        history = self._store.history(settings.worker)
        step = paired_model_step(model.latest_step, model.paths, history)
        if step is None or not self._may_be_a_crash(step, model):
            return False
        logger.warning(
            "The model was saved at step %d, but training stopped before the input of that step was stored. "
            "Going back to step %d, the newest that has both; model.ckpt-%d stays in %s until training has "
            "passed it. (resume='latest' leaves the model where it is.)",
            model.latest_step,
            step,
            model.latest_step,
            settings.model_dir,
        )
        make_latest(settings.model_dir, model, step)
        return True

    def restore(self, session: Any, iterators: GraphIterators, step: int) -> Optional[CheckpointRef]:
        """Restore the iterators for a model at ``step``.

        Returns:
            The checkpoint that they came from, or None if they start over.

        Raises:
            CheckpointNotFoundError, CorruptCheckpointError: ``resume='exact'`` cannot be had.
            PipelineMismatchError: the checkpoint is not that of this pipeline.
        """
        history = self._store.history(self._settings.worker)
        plan = plan_resume(self._mode, step, history)
        source = self._first_restored(session, iterators, plan)
        if source is None and plan.required:
            raise CheckpointNotFoundError(
                f"{self._store.uri} has no input checkpoint of worker {self._settings.worker!r} for step "
                f"{step}, at which the model is; it has steps {_steps(history)}. "
                "Pass resume='aligned' to use the newest older one."
            )
        self._has_started = True
        self._tell(source, step, history)
        return source

    @property
    def _mode(self) -> str:
        """How to resume now. What was started over is gone on with: there is a state of it to go on from."""
        if self._settings.resume == "fresh" and self._has_started:
            return "aligned"
        return self._settings.resume

    def _may_be_a_crash(self, pair: int, model: ModelCheckpoints) -> bool:
        settings = self._settings
        unpaired = {model.latest_step, *(step for step in model.paths if step > pair)}
        return settings.when_busy == "skip" or may_be_a_crash(pair, unpaired, settings.schedule)

    def _first_restored(
        self, session: Any, iterators: GraphIterators, plan: ResumePlan
    ) -> Optional[CheckpointRef]:
        for ref in plan.candidates:
            try:
                iterators.restore(session, self._store.load(ref))
            except (CorruptCheckpointError, CheckpointNotFoundError) as error:
                if plan.required:
                    raise
                logger.warning("Trying an older input checkpoint, since %s", error)
                continue
            except PipelineMismatchError as error:
                raise PipelineMismatchError(
                    f"{self._store.uri}, checkpoint {ref}: {error} "
                    "To start the input over, pass resume='fresh'."
                ) from error
            return ref
        return None

    def _tell(self, source: Optional[CheckpointRef], step: int, history: Sequence[CheckpointRef]) -> None:
        if source is None:
            self._tell_fresh(step, history)
            return
        logger.info("Restored the input from %s, checkpoint %s.", self._store.uri, source)
        if source.step < step:
            logger.warning(
                "The model is at step %d and the newest input checkpoint that fits is of step %d: "
                "%d steps of data will be seen again. None are lost.",
                step,
                source.step,
                step - source.step,
            )
        if source.step > step:
            logger.warning(
                "The model is at step %d and the input at step %d (resume='latest'): "
                "the data of %d steps is skipped.",
                step,
                source.step,
                source.step - step,
            )

    def _tell_fresh(self, step: int, history: Sequence[CheckpointRef]) -> None:
        if history:
            logger.warning(
                "The input starts from its beginning at step %d. The checkpoints in %s (steps %s) are "
                "given up once this run has saved twice.",
                step,
                self._store.uri,
                _steps(history),
            )
        elif step > 0 and self._settings.resume != "fresh":
            logger.warning(
                "The model is at step %d, and %s has no input checkpoint yet: the input starts from its "
                "beginning, so up to %d steps of data will be seen again.",
                step,
                self._store.uri,
                step,
            )


def _steps(history: Sequence[CheckpointRef]) -> str:
    steps = [str(ref.step) for ref in history]
    return ", ".join(steps) if len(steps) <= 8 else f"{', '.join(steps[:3])}, …, {', '.join(steps[-3:])}"
