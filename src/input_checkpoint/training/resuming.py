"""Resuming: restores the input to the step of the model, and tells the user what that meant."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Callable, Optional, Union

from input_checkpoint.checkpoint import CheckpointInfo, CheckpointRef, MarkRef
from input_checkpoint.errors import CheckpointNotFoundError, CorruptCheckpointError, PipelineMismatchError
from input_checkpoint.format.keys import mark_key
from input_checkpoint.format.mark import Mark
from input_checkpoint.store.catalog import WorkerListing
from input_checkpoint.store.store import CheckpointStore
from input_checkpoint.training.evidence import ModelEvidence, NoModel, is_proven, is_refuted
from input_checkpoint.training.fast_forward import FastForward
from input_checkpoint.training.pipeline_check import check_nothing
from input_checkpoint.training.progress import Progress
from input_checkpoint.training.read_ahead import ReadAhead
from input_checkpoint.training.resume_plan import ResumePlan, plan_resume, starts_here
from input_checkpoint.training.source import DrawableSource, InputSource

logger = logging.getLogger(__name__)

_NO_MODEL = NoModel()


@dataclass(frozen=True)
class Resumed:
    """Where the input was restored to."""

    ref: CheckpointRef
    """Its run and step: those of a checkpoint or of a mark."""
    base: CheckpointRef
    """The checkpoint that was read. It is ``ref`` itself unless the input was fast-forwarded."""
    mark: Optional[Mark] = None
    """The mark up to which the input was drawn, if it was fast-forwarded."""


class Resumer:
    """Restores the input of one worker, each time that its training starts or restarts.

    Args:
        store: where the input checkpoints are.
        worker: name of the worker.
        mode: one of `resume_plan.MODES`.
        progress: reports every restore. None: to this module's logger.
        read_ahead: reads the checkpoints. None: they are read from ``store`` when they are restored.
    """

    def __init__(
        self,
        store: CheckpointStore,
        worker: str,
        mode: str,
        progress: Optional[Progress] = None,
        read_ahead: Optional[ReadAhead] = None,
    ) -> None:
        self._store = store
        self._worker = worker
        self._mode = mode
        self._progress = progress or Progress(store.uri, logger)
        self._read = store.read if read_ahead is None else read_ahead.read
        self._has_resumed = False

    @property
    def mode(self) -> str:
        """How to resume next. After a fresh start, later sessions resume from what it has saved."""
        return "aligned" if self._mode == "fresh" and self._has_resumed else self._mode

    def expected(
        self, step: int, listing: WorkerListing, fast_forward: Optional[FastForward] = None
    ) -> Optional[CheckpointRef]:
        """Return the checkpoint that `restore` will read first, as far as the listing shows, or None.

        Args:
            step: global step of the model that is about to be restored.
            listing: what the worker has stored.
            fast_forward: restores from marks. None: they are not used.
        """
        candidates = self._plan(step, listing, fast_forward).candidates
        return _full_checkpoint(candidates[0]) if candidates else None

    def restore(
        self,
        source: DrawableSource,
        step: int,
        listing: WorkerListing,
        model: ModelEvidence = _NO_MODEL,
        check_pipeline: Callable[[CheckpointInfo], None] = check_nothing,
        fast_forward: Optional[FastForward] = None,
    ) -> Optional[Resumed]:
        """Restore the iterators for a model at ``step``.

        Args:
            source: the iterators.
            step: global step of the restored model.
            listing: what the worker has stored.
            model: the model checkpoints that exist. An input checkpoint that was saved with another model
                than the one of its step is not used.
            check_pipeline: raises `PipelineMismatchError` for a checkpoint of another pipeline.
            fast_forward: restores from marks. None: they are not used.

        Returns:
            Where they were restored to, or None if they start from their beginning.

        Raises:
            MarkRefusedError: a mark was tried and refused. The next call tries what comes after it.
            CheckpointNotFoundError, CorruptCheckpointError: the mode is ``'exact'``, and there is no usable
                checkpoint at ``step``.
            PipelineMismatchError: the checkpoint was taken from another pipeline.
        """
        history = listing.history
        plan = self._plan(step, listing, fast_forward)
        if self.mode in ("aligned", "exact"):
            left_behind = self._left_behind(step, listing, model)
            plan = replace(plan, candidates=(*left_behind, *plan.candidates))
        restored = self._restore_first_usable(source, plan, listing, model, check_pipeline, fast_forward)
        if restored is None and plan.required:
            raise CheckpointNotFoundError(
                f"{self._store.uri} has no usable input checkpoint of worker {self._worker!r} at step "
                f"{step}, the step of the model; {_describe_steps(history)}. Pass resume='aligned' to use "
                "the newest older one, or to start from the beginning of the input if there is none.",
                uri=self._store.uri,
            )
        self._has_resumed = True
        if restored is not None or not starts_here(listing, step):
            self._log_outcome(restored, step, history)
        too_far = None if fast_forward is None else fast_forward.too_far(listing, step)
        if too_far is not None and (restored is None or restored.ref.step < step):
            logger.warning(
                "The mark of step %d was not used: it is %d steps from its base, more than max_fast_forward "
                "allows. (%s in %s)",
                step,
                step - too_far.base.step,
                mark_key(too_far),
                self._store.uri,
            )
        return restored

    def _plan(self, step: int, listing: WorkerListing, fast_forward: Optional[FastForward]) -> ResumePlan:
        marks: list[MarkRef] = []
        if fast_forward is not None:
            marks = [*fast_forward.candidates(listing, step), *fast_forward.older(listing, step)]
        return plan_resume(self.mode, step, listing.history, marks)

    def _restore_first_usable(
        self,
        source: DrawableSource,
        plan: ResumePlan,
        listing: WorkerListing,
        model: ModelEvidence,
        check_pipeline: Callable[[CheckpointInfo], None],
        fast_forward: Optional[FastForward],
    ) -> Optional[Resumed]:
        for candidate in plan.candidates:
            ref = _full_checkpoint(candidate)
            try:
                if isinstance(candidate, MarkRef):
                    assert fast_forward is not None, "only it finds marks"
                    mark = fast_forward.restore(source, candidate, listing, model, check_pipeline)
                    return Resumed(candidate.ref, candidate.base, mark)
                self._restore(source, candidate, model, check_pipeline)
                return Resumed(candidate, candidate)
            except (CorruptCheckpointError, CheckpointNotFoundError) as error:
                if plan.required and candidate == plan.candidates[-1]:
                    raise
                logger.warning("Trying an older input checkpoint, because %s", error)
            except PipelineMismatchError as error:
                if error.ref is not None:
                    raise  # it says all of this already
                raise PipelineMismatchError(
                    f"{self._store.uri}, checkpoint {ref}: {error} "
                    "To start the input from its beginning, pass resume='fresh'.",
                    uri=self._store.uri,
                    ref=ref,
                ) from error
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
        checkpoint = self._read(ref)
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

    def _log_outcome(self, resumed: Optional[Resumed], step: int, history: Sequence[CheckpointRef]) -> None:
        if resumed is None:
            self._log_fresh_start(step, history)
            return
        restored = resumed.ref
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


def _full_checkpoint(candidate: Union[CheckpointRef, MarkRef]) -> CheckpointRef:
    return candidate.base if isinstance(candidate, MarkRef) else candidate


def _describe_steps(history: Sequence[CheckpointRef]) -> str:
    return f"it has steps {_list_steps(history)}" if history else "it has none at all"


def _list_steps(history: Sequence[CheckpointRef]) -> str:
    steps = [str(ref.step) for ref in history]
    return ", ".join(steps) if len(steps) <= 8 else f"{', '.join(steps[:3])}, …, {', '.join(steps[-3:])}"
