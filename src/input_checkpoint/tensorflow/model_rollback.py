"""Model rollback: turns the model directory back to the newest step that has both model and input."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from typing import Callable, Optional

from input_checkpoint.backends.redaction import redact_uri
from input_checkpoint.checkpoint import CheckpointInfo, CheckpointRef
from input_checkpoint.errors import CheckpointNotFoundError, CorruptCheckpointError
from input_checkpoint.store.catalog import WorkerListing
from input_checkpoint.store.store import CheckpointStore
from input_checkpoint.tensorflow.model_checkpoints import ModelCheckpoints, make_latest
from input_checkpoint.training.evidence import is_proven, is_refuted
from input_checkpoint.training.resume_plan import (
    RollbackCandidate,
    crash_explains,
    observed_interval,
    rollback_candidates,
)
from input_checkpoint.training.run_tag import RunTag
from input_checkpoint.training.settings import TrainingSettings

logger = logging.getLogger(__name__)


def roll_back_model(
    store: CheckpointStore,
    settings: TrainingSettings,
    model: ModelCheckpoints,
    listing: WorkerListing,
    tag: Optional[RunTag],
    check_pipeline: Callable[[CheckpointInfo], None],
) -> Optional[int]:
    """If a crash has left the newest model without its input, make the newest complete pair current.

    Nothing is changed before the input checkpoint of the pair has been read, checked and found to fit the
    pipeline. A model that was trained without the hook is left as it is.

    Args:
        store: where the input checkpoints are.
        settings: of the hook.
        model: the model checkpoints.
        listing: what the worker has stored.
        tag: what the model directory remembers of the last training.
        check_pipeline: tells whether a checkpoint fits the present pipeline.

    Returns:
        The step that the model directory now names, or None if it was left as it was.

    Raises:
        PipelineMismatchError: the pair exists, but the pipeline has changed. Nothing was changed.
    """
    if _was_left_behind(store, model, listing):
        return None
    candidates = rollback_candidates(model.latest_step, model.paths, listing)
    candidates = list(_matching(store, model, candidates))
    if not candidates or not _was_crash(store, settings, model, listing, tag, candidates[0].step):
        return None
    for candidate in candidates:
        if candidate.ref is None or _is_usable(store, candidate.ref, check_pipeline):
            _make_latest(str(settings.model_dir), model, candidate.step)
            return candidate.step
    return None


def _was_left_behind(store: CheckpointStore, model: ModelCheckpoints, listing: WorkerListing) -> bool:
    """Whether the newest model has its own input, which a restart from an older step has left behind."""
    for ref in listing.checkpoints:
        if ref.step == model.latest_step:
            info = _readable_info(store, ref)
            if info is not None and is_proven(info, model):
                return True
    return False


def _matching(
    store: CheckpointStore, model: ModelCheckpoints, candidates: Iterable[RollbackCandidate]
) -> Iterable[RollbackCandidate]:
    """Yield the candidates whose input checkpoint was not saved with another model."""
    for candidate in candidates:
        info = None if candidate.ref is None else _readable_info(store, candidate.ref)
        if info is None or not is_refuted(info, model):
            yield candidate


def _was_crash(
    store: CheckpointStore,
    settings: TrainingSettings,
    model: ModelCheckpoints,
    listing: WorkerListing,
    tag: Optional[RunTag],
    paired: int,
) -> bool:
    history = listing.history
    newest = _readable_info(store, history[-1]) if history else None
    recorded = newest.context.save_steps if newest is not None else None
    if recorded is None:
        recorded = settings.schedule.every_steps
    return crash_explains(
        paired,
        {model.latest_step, *(step for step in model.paths if paired < step < model.latest_step)},
        observed_interval(recorded, history),
        ended_at=None if tag is None else tag.ended_at,
        skips_saves=settings.when_busy == "skip",
    )


def _readable_info(store: CheckpointStore, ref: CheckpointRef) -> Optional[CheckpointInfo]:
    try:
        return store.info(ref)
    except (CorruptCheckpointError, CheckpointNotFoundError):
        return None


def _is_usable(
    store: CheckpointStore, ref: CheckpointRef, check_pipeline: Callable[[CheckpointInfo], None]
) -> bool:
    try:
        check_pipeline(store.info(ref))
        store.check(ref)
    except (CorruptCheckpointError, CheckpointNotFoundError) as error:
        logger.warning("The model cannot go back to step %d, because %s", ref.step, error)
        return False
    return True


def _make_latest(model_dir: str, model: ModelCheckpoints, step: int) -> None:
    logger.warning(
        "The model was saved at step %d, but training stopped before the input of that step was stored. "
        "Going back to step %d, the newest that has both; model.ckpt-%d stays in %s until training has "
        "passed it. (resume='latest' leaves the model where it is. To undo this, write "
        'model_checkpoint_path: "%s" as the only line into %s/checkpoint.)',
        model.latest_step,
        step,
        model.latest_step,
        redact_uri(model_dir),
        os.path.basename(model.paths.get(model.latest_step, f"model.ckpt-{model.latest_step}")),
        redact_uri(model_dir),
    )
    make_latest(model_dir, model, step)
