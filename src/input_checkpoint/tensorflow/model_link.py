"""The link between a training's model directory and the store of its input state."""

from __future__ import annotations

import uuid
from collections.abc import Collection
from dataclasses import dataclass
from typing import Callable, Optional

import tensorflow as tf

from input_checkpoint.checkpoint import CheckpointInfo
from input_checkpoint.errors import CheckpointNotFoundError, CorruptCheckpointError, DifferentModelError
from input_checkpoint.retention.policy import RetentionPolicy
from input_checkpoint.store.catalog import WorkerListing
from input_checkpoint.store.run import Run
from input_checkpoint.store.store import CheckpointStore
from input_checkpoint.tensorflow.model_checkpoints import (
    ModelCheckpoints,
    latest_model_step,
    read_model_checkpoints,
    saved_digest,
    step_of,
)
from input_checkpoint.tensorflow.model_retention import KeepForResume
from input_checkpoint.tensorflow.model_rollback import roll_back_model
from input_checkpoint.tensorflow.run_tag_file import read_tag, remove_tag, write_tag
from input_checkpoint.tensorflow.session_model import StateStamp, is_session_model, read_stamp
from input_checkpoint.tensorflow.unfinished_step import remove_leftovers
from input_checkpoint.training.evidence import ModelEvidence, NoModel, is_proven
from input_checkpoint.training.fast_forward import FastForward
from input_checkpoint.training.run_tag import RunTag, check_same_run, warn_of_older_store
from input_checkpoint.training.settings import TrainingSettings


@dataclass(frozen=True)
class _Seen:
    """What was found before a session: which model it is going to restore, and the input for it."""

    step: int
    listing: WorkerListing


class ModelLink:
    """Knows which model the input belongs to, and makes sure that the two stay together.

    Without a model directory, or with several workers, there is nothing to link: any store is accepted, and
    the model is left as it is.

    Args:
        store: where the input checkpoints are.
        settings: of the hook.
    """

    def __init__(self, store: CheckpointStore, settings: TrainingSettings) -> None:
        self._store = store
        self._settings = settings
        self._model_dir = settings.model_dir if settings.num_workers == 1 else None
        self._model: Optional[ModelCheckpoints] = None
        self._tag: Optional[RunTag] = None
        self._seen: Optional[_Seen] = None
        self._stamp: Optional[StateStamp] = None
        self._tagged_now = False
        self._run_id = uuid.uuid4().hex

    @property
    def model_dir(self) -> Optional[str]:
        """The model directory, or None if there is nothing to link."""
        return self._model_dir

    @property
    def evidence(self) -> ModelEvidence:
        """What identifies the model checkpoints that exist."""
        return self._model or NoModel()

    @property
    def retention(self) -> RetentionPolicy:
        """The user's policy, and whatever the newest models would resume from."""
        policy = self._settings.retention
        return policy if self._model_dir is None else policy | KeepForResume(self._model_dir)

    def prepare(
        self, mode: str, check_pipeline: Callable[[CheckpointInfo], None], fast_forward: FastForward
    ) -> None:
        """Look at the model directory and the store before TensorFlow restores the model.

        If a crash has left the newest model without its input and without a usable mark, the model directory
        is turned back to the newest complete pair.

        Args:
            mode: how the input is about to resume.
            check_pipeline: tells whether a checkpoint fits the present pipeline.
            fast_forward: which marks can be used.

        Raises:
            DifferentRunError: the store holds the input state of another training.
            PipelineMismatchError: the pair to go back to was saved from another pipeline.
        """
        if self._model_dir is None:
            return
        remove_leftovers(self._model_dir)
        self._model = read_model_checkpoints(self._model_dir)
        self._tag = read_tag(self._model_dir)
        listing = self._store.list_worker(self._settings.worker, read_ahead=True)
        proven = self._proven_steps(listing) if self._tag is None else []
        if mode != "fresh" and not self._settings.adopt:
            check_same_run(self._tag, listing, proven, uri=self._store.uri, model_dir=self._model_dir)
        self._run_id = self._continued_run_id(listing, proven)
        if self._tag is not None:
            warn_of_older_store(self._tag, listing, self._store.uri)
        self._tagged_now = self._tag is None
        if self._tagged_now:
            # Now, so that a second hook on the same training finds it.
            self._remember(lineage=0, ended_at=None)
        step = 0 if self._model is None else self._model.latest_step
        if mode == "aligned" and self._model is not None:
            step = self._roll_back(self._model, listing, check_pipeline, fast_forward) or step
        self._seen = _Seen(step, listing)
        self._stamp = read_stamp(self._model_dir)

    def check_session(self, steps: Collection[int], saves_first: bool) -> None:
        """Raise if a session does not train the model of the model directory.

        Args:
            steps: the global steps of the session up to now.
            saves_first: whether the session saves its model as soon as it is created.

        Raises:
            DifferentModelError: it trains another model.
        """
        if self._model_dir is None:
            return
        latest = latest_model_step(self._model_dir)
        if is_session_model(self._stamp, read_stamp(self._model_dir), latest, steps, saves_first):
            return
        if self._tagged_now:
            remove_tag(self._model_dir)
        found = "no model checkpoint" if latest is None else f"a model checkpoint of step {latest}"
        raise DifferentModelError(
            f"The hook was made for the model directory {self._model_dir}, but this session trains another "
            f"model: it is at step {max(steps)}, and has not saved its model to {self._model_dir}, which has "
            f"{found}. The hook was probably made for another Estimator. Make a hook for each Estimator, or "
            f"give SessionHook the session's checkpoint_dir as model_dir. {self._store.uri} was not changed.",
            uri=self._store.uri,
        )

    def roll_back_in_session(
        self,
        restored_step: int,
        check_pipeline: Callable[[CheckpointInfo], None],
        fast_forward: FastForward,
    ) -> bool:
        """If a session has restored a model without its input, turn the model directory back.

        Returns:
            Whether the session must restore the model again.
        """
        if self._model_dir is None:
            return False
        self._model = read_model_checkpoints(self._model_dir)
        if self._model is None or self._model.latest_step != restored_step:
            return False
        listing = self._store.list_worker(self._settings.worker, read_ahead=True)
        step = self._roll_back(self._model, listing, check_pipeline, fast_forward)
        self._seen = _Seen(restored_step if step is None else step, listing)
        return step is not None

    @property
    def expected(self) -> Optional[tuple[int, WorkerListing]]:
        """The step of the model that the session is going to restore, and what the worker has stored.

        None if nothing is linked, or since `listing_for` was called.
        """
        return None if self._seen is None else (self._seen.step, self._seen.listing)

    def listing_for(self, step: int) -> WorkerListing:
        """Return what the worker has stored; already known if the model is the one that was expected."""
        seen, self._seen = self._seen, None
        if seen is not None and seen.step == step:
            return seen.listing
        return self._store.list_worker(self._settings.worker, read_ahead=True)

    @property
    def run_id(self) -> Optional[str]:
        """Identity of this training, the same in all of its runs; None if no model directory remembers it."""
        return None if self._model_dir is None else self._run_id

    def run_begun(self, run: Run) -> None:
        """Let the model directory remember the run that now saves its input."""
        self._remember(run.lineage.number, ended_at=None)

    def run_ended(self, run: Run, step: int) -> None:
        """Let the model directory remember that training ended normally."""
        self._remember(run.lineage.number, ended_at=step)

    def current_model(self, step: int) -> Optional[str]:
        """Return the path prefix of the current model checkpoint, or None if it is not of ``step``."""
        path = None if self._model_dir is None else tf.train.latest_checkpoint(self._model_dir)
        return path if path is not None and step_of(path) == step else None

    def model_digest(self, step: int) -> Optional[str]:
        """Return the digest of the model checkpoint of ``step``, or None if there is none (yet).

        Reads two small files.
        """
        return None if self._model_dir is None else saved_digest(self._model_dir, step)

    def _roll_back(
        self,
        model: ModelCheckpoints,
        listing: WorkerListing,
        check_pipeline: Callable[[CheckpointInfo], None],
        fast_forward: FastForward,
    ) -> Optional[int]:
        return roll_back_model(
            self._store, self._settings, model, listing, self._tag, check_pipeline, fast_forward
        )

    def _proven_steps(self, listing: WorkerListing) -> list[int]:
        """Return the steps of input checkpoints that were saved with the model checkpoints that exist."""
        proven = []
        for ref in reversed(listing.history):
            if self._model is None or ref.step not in self._model.paths:
                continue
            try:
                if is_proven(self._store.info(ref), self._model):
                    proven.append(ref.step)
            except (CorruptCheckpointError, CheckpointNotFoundError):
                continue
        return proven

    def _continued_run_id(self, listing: WorkerListing, proven: Collection[int]) -> str:
        """Return the id of the training that continues, or a new one if none does.

        Whoever adopts the input state of another training becomes another one: the first is refused from
        then on.
        """
        if self._tag is not None:
            return self._tag.run_id
        if proven and listing.lineage is not None and listing.lineage.run_id:
            return listing.lineage.run_id
        return uuid.uuid4().hex

    def _remember(self, lineage: int, ended_at: Optional[int]) -> None:
        if self._model_dir is None:
            return
        tag = RunTag(self._run_id, self._store.uri, self._settings.worker, lineage, ended_at)
        write_tag(self._model_dir, tag)
        self._tag = tag
