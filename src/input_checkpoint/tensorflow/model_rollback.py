"""Model rollback: turns the model directory back to the newest step that has both model and input."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Callable, Optional

from input_checkpoint.backends.redaction import redact_uri
from input_checkpoint.checkpoint import CheckpointInfo, CheckpointRef, MarkRef
from input_checkpoint.errors import CheckpointNotFoundError, CorruptCheckpointError
from input_checkpoint.store.catalog import WorkerListing
from input_checkpoint.store.store import CheckpointStore
from input_checkpoint.tensorflow.model_checkpoints import ModelCheckpoints, make_latest
from input_checkpoint.training.evidence import is_proven, is_refuted, refutes
from input_checkpoint.training.fast_forward import FastForward
from input_checkpoint.training.resume_plan import (
    RollbackCandidate,
    crash_explains,
    is_behind,
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
    fast_forward: FastForward,
) -> Optional[int]:
    """If a crash has left the newest model without its input, make the newest complete pair current.

    Nothing is changed before the input checkpoint of the pair, or the base of its mark, has been read,
    checked and found to fit the pipeline. The model stays if it has a usable mark, or was trained without the
    hook.

    Args:
        store: where the input checkpoints are.
        settings: of the hook.
        model: the model checkpoints.
        listing: what the worker has stored.
        tag: what the model directory remembers of the last training.
        check_pipeline: tells whether a checkpoint fits the present pipeline.
        fast_forward: which marks can be used.

    Returns:
        The step that the model directory now names, or None if it was left as it was.

    Raises:
        PipelineMismatchError: the pair exists, but the pipeline has changed. Nothing was changed.
    """
    if not is_behind(model.latest_step, listing) or _was_left_behind(store, model, listing):
        return None
    marks = _Marks(store, model, listing, check_pipeline, fast_forward)
    if marks.usable([model.latest_step]):
        return None
    older = [step for step in sorted(model.paths) if step < model.latest_step]
    candidates = rollback_candidates(model.latest_step, model.paths, listing, marks.usable(older))
    candidates = list(_matching(store, model, candidates))
    if not candidates:
        return None
    marked = marks.belonging_steps(step for step in model.paths if step > candidates[0].step)
    if not _was_crash(store, settings, model, listing, tag, candidates[0].step, marked):
        return None
    for candidate in candidates:
        if candidate.ref is None or _is_usable(store, candidate, check_pipeline):
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


@dataclass(frozen=True)
class _Marks:
    """The marks of the model checkpoints that exist."""

    store: CheckpointStore
    model: ModelCheckpoints
    listing: WorkerListing
    check_pipeline: Callable[[CheckpointInfo], None]
    fast_forward: FastForward

    def usable(self, steps: Iterable[int]) -> list[MarkRef]:
        """Return the best mark of each step that is readable and whose base fits the pipeline."""
        return [mark for mark in map(self._best, steps) if mark is not None]

    def belonging_steps(self, steps: Iterable[int]) -> set[int]:
        """Return the steps whose model has a mark. One that was written with another model does not count."""
        wanted = set(steps)
        return {
            mark.ref.step
            for mark in self.listing.usable_marks
            if mark.ref.step in wanted and self._belongs(mark)
        }

    def _best(self, step: int) -> Optional[MarkRef]:
        for mark in self.fast_forward.candidates(self.listing, step):
            try:
                self.fast_forward.read(mark, self.listing, self.model)
                self.check_pipeline(self.store.info(mark.base))
            except (CorruptCheckpointError, CheckpointNotFoundError) as error:
                logger.warning("The input cannot be fast-forwarded to step %d, because %s", step, error)
            else:
                return mark
        return None

    def _belongs(self, mark: MarkRef) -> bool:
        try:
            return not refutes(self.store.read_mark(mark).model_digest, mark.ref.step, self.model)
        except (CorruptCheckpointError, CheckpointNotFoundError):
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
    marked: Collection[int],
) -> bool:
    history = listing.history
    newest = _readable_info(store, history[-1]) if history else None
    recorded = newest.context.save_steps if newest is not None else None
    if recorded is None:
        recorded = settings.mark_schedule.every_steps
    written = sorted({*history, *(mark.ref for mark in listing.usable_marks)})
    return crash_explains(
        paired,
        {model.latest_step, *(step for step in model.paths if paired < step < model.latest_step)},
        observed_interval(recorded, written),
        ended_at=None if tag is None else tag.ended_at,
        skips_saves=settings.when_busy == "skip" and not marked,
        marked=marked,
    )


def _readable_info(store: CheckpointStore, ref: CheckpointRef) -> Optional[CheckpointInfo]:
    try:
        return store.info(ref)
    except (CorruptCheckpointError, CheckpointNotFoundError):
        return None


def _is_usable(
    store: CheckpointStore, candidate: RollbackCandidate, check_pipeline: Callable[[CheckpointInfo], None]
) -> bool:
    assert candidate.ref is not None, "the beginning of the input needs no check"
    try:
        check_pipeline(store.info(candidate.ref))
        store.check(candidate.ref)
    except (CorruptCheckpointError, CheckpointNotFoundError) as error:
        logger.warning("The model cannot go back to step %d, because %s", candidate.step, error)
        return False
    return True


def _make_latest(model_dir: str, model: ModelCheckpoints, step: int) -> None:
    logger.warning(
        "The model was saved at step %d, but the input of that step was not stored, or cannot be restored. "
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
