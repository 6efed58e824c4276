"""Model rollback: turns the model directory back to the newest step that has both model and input."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Optional

from input_checkpoint.store.catalog import WorkerListing
from input_checkpoint.store.store import CheckpointStore
from input_checkpoint.tensorflow.model_checkpoints import (
    ModelCheckpoints,
    make_latest,
    read_model_checkpoints,
)
from input_checkpoint.training.resume_plan import rollback_step
from input_checkpoint.training.settings import TrainingSettings

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelState:
    """Which model TensorFlow is going to restore, and the input checkpoints that there are for it."""

    step: int
    """Step of the current model checkpoint, after a rollback."""
    listing: WorkerListing
    rolled_back: bool


def roll_back_model(
    store: CheckpointStore,
    settings: TrainingSettings,
    mode: str,
    restored_step: Optional[int] = None,
) -> Optional[ModelState]:
    """If a crash has left the newest model without its input, make the newest complete pair current.

    A model that was trained without the hook is left as it is.

    Args:
        store: where the input checkpoints are.
        settings: of the hook.
        mode: how the input is about to resume.
        restored_step: only look if the newest model checkpoint is of this step. None: always look.

    Returns:
        What was found, or None if there was no reason to look: a model is only rolled back in mode
        ``'aligned'``, by a single worker, and if there is one.
    """
    if mode != "aligned" or settings.num_workers > 1 or settings.model_dir is None:
        return None
    model = read_model_checkpoints(settings.model_dir)
    if model is None or restored_step not in (None, model.latest_step):
        return None
    listing = store.list_worker(settings.worker)
    step = rollback_step(
        model.latest_step,
        model.paths,
        listing.history,
        settings.schedule,
        skips_saves=settings.when_busy == "skip",
    )
    if step is None:
        return ModelState(model.latest_step, listing, rolled_back=False)
    _roll_back(settings.model_dir, model, step)
    return ModelState(step, listing, rolled_back=True)


def _roll_back(model_dir: str, model: ModelCheckpoints, step: int) -> None:
    logger.warning(
        "The model was saved at step %d, but training stopped before the input of that step was stored. "
        "Going back to step %d, the newest that has both; model.ckpt-%d stays in %s until training has "
        "passed it. (resume='latest' leaves the model where it is.)",
        model.latest_step,
        step,
        model.latest_step,
        model_dir,
    )
    make_latest(model_dir, model, step)
