"""Resuming: restores the input to the step of the model, and tells the user what that meant."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Callable, Optional

from input_checkpoint.checkpoint import CheckpointInfo, CheckpointRef
from input_checkpoint.errors import CheckpointNotFoundError, CorruptCheckpointError, PipelineMismatchError
from input_checkpoint.store.catalog import WorkerListing
from input_checkpoint.store.store import CheckpointStore
from input_checkpoint.training.evidence import ModelEvidence, NoModel, is_proven, is_refuted
from input_checkpoint.training.pipeline_check import check_nothing
from input_checkpoint.training.progress import Progress
from input_checkpoint.training.resume_plan import ResumePlan, plan_resume, starts_here
from input_checkpoint.training.source import InputSource

logger = logging.getLogger(__name__)

_NO_MODEL = NoModel()


class Resumer:
    """Restores the input of one worker, each time that its training starts or restarts.

    Args:
        store: where the input checkpoints are.
        worker: name of the worker.
        mode: one of `resume_plan.MODES`.
        progress: reports every restore. None: to this module's logger.
    """

    def __init__(
        self, store: CheckpointStore, worker: str, mode: str, progress: Optional[Progress] = None
    ) -> None:
        self._store = store
        self._worker = worker
        self._mode = mode
        self._progress = progress or Progress(store.uri, logger)
        self._has_resumed = False

    @property
    def mode(self) -> str:
        """How to resume next. After a fresh start, later sessions resume from what it has saved."""
        return "aligned" if self._mode == "fresh" and self._has_resumed else self._mode

    def restore(
        self,
        source: InputSource,
        step: int,
        listing: WorkerListing,
        model: ModelEvidence = _NO_MODEL,
        check_pipeline: Callable[[CheckpointInfo], None] = check_nothing,
    ) -> Optional[CheckpointRef]:
        """Restore the iterators for a model at ``step``.

        Args:
            source: the iterators.
            step: global step of the restored model.
            listing: what the worker has stored.
            model: the model checkpoints that exist. An input checkpoint that was saved with another model
                than the one of its step is not used.
            check_pipeline: raises `PipelineMismatchError` for a checkpoint of another pipeline.

        Returns:
            The checkpoint that they were restored from, or None if they start from their beginning.

        Raises:
            CheckpointNotFoundError, CorruptCheckpointError: the mode is ``'exact'``, and there is no usable
                checkpoint at ``step``.
            PipelineMismatchError: the checkpoint was taken from another pipeline.
        """
        history = listing.history
        plan = plan_resume(self.mode, step, history)
        if self.mode in ("aligned", "exact"):
            left_behind = self._left_behind(step, listing, model)
            plan = replace(plan, candidates=(*left_behind, *plan.candidates))
        restored = self._restore_first_usable(source, plan, model, check_pipeline)
        if restored is None and plan.required:
            raise CheckpointNotFoundError(
                f"{self._store.uri} has no input checkpoint of worker {self._worker!r} at step {step}, the "
                f"step of the model; {_describe_steps(history)}. Pass resume='aligned' to use the newest "
                "older one, or to start from the beginning of the input if there is none.",
                uri=self._store.uri,
            )
        self._has_resumed = True
        if restored is not None or not starts_here(listing, step):
            self._log_outcome(restored, step, history)
        return restored

    def _restore_first_usable(
        self,
        source: InputSource,
        plan: ResumePlan,
        model: ModelEvidence,
        check_pipeline: Callable[[CheckpointInfo], None],
    ) -> Optional[CheckpointRef]:
        for ref in plan.candidates:
            try:
                self._restore(source, ref, model, check_pipeline)
            except (CorruptCheckpointError, CheckpointNotFoundError) as error:
                if plan.required and ref == plan.candidates[-1]:
                    raise
                logger.warning("Trying an older input checkpoint, because %s", error)
                continue
            except PipelineMismatchError as error:
                if error.ref is not None:
                    raise  # it says all of this already
                raise PipelineMismatchError(
                    f"{self._store.uri}, checkpoint {ref}: {error} "
                    "To start the input from its beginning, pass resume='fresh'.",
                    uri=self._store.uri,
                    ref=ref,
                ) from error
            return ref
        return None

    def _left_behind(
        self, step: int, listing: WorkerListing, model: ModelEvidence
    ) -> tuple[CheckpointRef, ...]:
        """Return what a restart has left behind at ``step``, if it was saved with the model that exists now.

        So somebody who went back to an older model by mistake can return to the newer one.
        """
        history = set(listing.history)
        if any(ref.step == step for ref in history):
            return ()
        for ref in reversed(listing.checkpoints):
            if ref.step == step and ref not in history and self._is_proven(ref, model):
                return (ref,)
        return ()

    def _is_proven(self, ref: CheckpointRef, model: ModelEvidence) -> bool:
        try:
            return is_proven(self._store.info(ref), model)
        except (CorruptCheckpointError, CheckpointNotFoundError):
            return False

    def _restore(
        self,
        source: InputSource,
        ref: CheckpointRef,
        model: ModelEvidence,
        check_pipeline: Callable[[CheckpointInfo], None],
    ) -> None:
        started = time.monotonic()
        checkpoint = self._store.read(ref)
        if self.mode != "latest" and is_refuted(checkpoint.info, model):
            raise CheckpointNotFoundError(
                f"the checkpoint of step {ref.step} in {self._store.uri} was saved with another model than "
                f"the model checkpoint of step {ref.step} that exists now",
                uri=self._store.uri,
                ref=ref,
            )
        check_pipeline(checkpoint.info)
        source.restore(checkpoint.states)
        self._progress.restored(checkpoint.info, time.monotonic() - started)

    def _log_outcome(
        self, restored: Optional[CheckpointRef], step: int, history: Sequence[CheckpointRef]
    ) -> None:
        if restored is None:
            self._log_fresh_start(step, history)
            return
        if restored.step < step:
            logger.warning(
                "The model is at step %d, but the newest usable input checkpoint is of step %d: "
                "%d steps of data will be seen again. None are lost.",
                step,
                restored.step,
                step - restored.step,
            )
        if restored.step > step:
            logger.warning(
                "The model is at step %d and the input at step %d (resume='latest'): "
                "the data of %d steps is skipped.",
                step,
                restored.step,
                restored.step - step,
            )

    def _log_fresh_start(self, step: int, history: Sequence[CheckpointRef]) -> None:
        if history:
            logger.warning(
                "The input starts from its beginning at step %d. The checkpoints in %s (steps %s) will be "
                "deleted after this run's second save.",
                step,
                self._store.uri,
                _list_steps(history),
            )
        elif step > 0 and self._mode != "fresh":
            logger.warning(
                "The model is at step %d, but %s has no input checkpoint yet: the input starts from its "
                "beginning, so up to %d steps of data will be seen again.",
                step,
                self._store.uri,
                step,
            )


def _describe_steps(history: Sequence[CheckpointRef]) -> str:
    return f"it has steps {_list_steps(history)}" if history else "it has none at all"


def _list_steps(history: Sequence[CheckpointRef]) -> str:
    steps = [str(ref.step) for ref in history]
    return ", ".join(steps) if len(steps) <= 8 else f"{', '.join(steps[:3])}, …, {', '.join(steps[-3:])}"
